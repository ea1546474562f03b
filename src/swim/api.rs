//! What goes into the core and what comes out of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::member::Member;
use crate::wire::message::{Alive, NodeName, StreamMessage};
use crate::wire::{Keyring, Label};

/// Who this node is.
#[derive(Clone, Debug)]
pub struct LocalNode {
    /// Its name, unique in the cluster.
    pub name: NodeName,
    /// The address at which others reach it, by packets and by streams. It keeps it for its life.
    pub addr: SocketAddr,
    /// What the application says about it, at most [`MAX_META`](super::MAX_META) bytes.
    pub meta: Bytes,
}

/// One exchange over a stream.
///
/// The core numbers those that it opens; whoever runs the core numbers the accepted ones, with the top bit set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExchangeId(pub u64);

/// What happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// Time passed: [`Swim::next_deadline`](super::Swim::next_deadline) is reached.
    Tick,
    /// A packet arrived.
    Packet {
        /// Its sender's socket address.
        from: SocketAddr,
        /// Its bytes as received.
        bytes: Bytes,
    },
    /// A peer opened a stream and sent this. Each is answered by one [`Output::RespondStream`].
    StreamRequest {
        /// Chosen by the caller, top bit set.
        exchange: ExchangeId,
        /// The peer's socket address; its port is not the one at which it listens.
        from: SocketAddr,
        /// The label that it sent ([`StreamDecoder::label`](crate::wire::StreamDecoder::label)): an encrypted answer goes
        /// back under it.
        label: Label,
        /// What it sent.
        message: StreamMessage,
    },
    /// How an [`Output::OpenStream`] ended. Optional when no reply was expected.
    StreamReply {
        /// The exchange that was opened.
        exchange: ExchangeId,
        /// The reply, `None` when the peer closed without one, or why it failed.
        result: Result<Option<StreamMessage>, String>,
    },
    /// The answer to [`Output::NeedUserState`]: the application's whole state, encoded.
    UserState {
        /// The exchange that needs it.
        exchange: ExchangeId,
        /// The state; may be empty.
        bytes: Bytes,
    },
    /// Become part of the cluster that these addresses belong to. Ends in [`Output::JoinDone`].
    Join {
        /// Chosen by the caller.
        id: u64,
        /// Addresses of members, one's own allowed (it is skipped).
        seeds: Vec<SocketAddr>,
    },
    /// Addresses to which this node should always be connected: those that are missing among the live members are
    /// contacted again and again. Replaces the former ones.
    SetSeeds(Vec<SocketAddr>),
    /// Say goodbye. Ends in [`Output::LeaveDone`]. There is no way back: a core that left cannot join again.
    Leave,
    /// Tell every member.
    Broadcast(UserBroadcast),
    /// Tell a few members what is queued now, instead of at the next tick: what was just acknowledged to a user should
    /// not die with this node.
    GossipNow,
    /// Tell one member, once: by packet if it fits, by stream otherwise. Nothing happens when the member is unknown.
    SendUser {
        /// Who.
        to: NodeName,
        /// What.
        bytes: Bytes,
    },
    /// Say something else about this node. Refused (and counted) above [`MAX_META`](super::MAX_META) bytes; without effect
    /// when it is what was said before, or when this node left.
    UpdateMeta(Bytes),
    /// Encrypt and decrypt with these keys from now on.
    SetKeyring(Keyring),
    /// Find out which members accept this label. Ends in [`Output::LabelChecked`].
    CheckLabel {
        /// Chosen by the caller.
        id: u64,
        /// The label.
        label: Label,
    },
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Send one datagram.
    SendPacket {
        /// Where to.
        to: SocketAddr,
        /// The datagram, label and all.
        bytes: Bytes,
    },
    /// Dial, send, and (if a reply is expected) read one message. Report it as [`Input::StreamReply`].
    OpenStream {
        /// Chosen by the core, top bit clear.
        exchange: ExchangeId,
        /// Whom to dial.
        to: SocketAddr,
        /// What to send, label and all.
        bytes: Bytes,
        /// Whether the peer answers.
        expect_reply: bool,
        /// For the whole exchange, dialing included.
        timeout: Duration,
    },
    /// Answer an accepted stream and close it.
    RespondStream {
        /// The exchange of the request.
        exchange: ExchangeId,
        /// The answer; `None`: close without one.
        bytes: Option<Bytes>,
    },
    /// The application's state is needed for an exchange; answer with [`Input::UserState`].
    NeedUserState {
        /// The exchange.
        exchange: ExchangeId,
        /// Whether it is a join.
        join: bool,
    },
    /// A peer's application state arrived.
    RemoteState {
        /// The state, never empty.
        bytes: Bytes,
        /// Whether it came with a join.
        join: bool,
    },
    /// A message for the application arrived.
    UserMessage {
        /// The message, never empty.
        bytes: Bytes,
    },
    /// The membership changed.
    Event(MemberEvent),
    /// A join ended.
    JoinDone {
        /// The join's id.
        id: u64,
        /// How many seeds answered and were merged.
        joined: usize,
        /// Why the others did not, one text for each.
        errors: Vec<String>,
    },
    /// Every member was pinged under a label, up to four times.
    LabelChecked {
        /// The check's id.
        id: u64,
        /// Those who answered: they accept the label.
        accept: Vec<NodeName>,
        /// Those who did not: they refuse it, or answer under a label that this node refuses, or cannot be reached.
        silent: Vec<NodeName>,
    },
    /// This node said goodbye, and enough members were told (or there are none, or time was up).
    LeaveDone,
}

/// A change in the membership. Each carries the member as it is after the change.
///
/// This node itself is a member too: it joins at creation, is updated by [`Input::UpdateMeta`], and leaves by
/// [`Input::Leave`]. A rise of its incarnation, and a change of someone's address or versions, is no event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberEvent {
    /// A member is new, or is back after it was dead or had left.
    Joined(Arc<Member>),
    /// A live member changed its meta.
    Updated(Arc<Member>),
    /// A member did not answer; it has some time to say that it lives.
    Suspected(Arc<Member>),
    /// A suspect proved to be alive.
    Recovered(Arc<Member>),
    /// A member is dead.
    Failed(Arc<Member>),
    /// A member said goodbye.
    Left(Arc<Member>),
    /// Somebody announced a live member's name with another address, and was refused. Told once a minute for each name, and
    /// for at most 64 names.
    Conflict {
        /// The member that holds the name.
        existing: Arc<Member>,
        /// The announcement that was refused.
        other: Alive,
    },
}

/// Something that every member should hear from the application.
///
/// A newer broadcast replaces a queued older one when it makes it superfluous: same `key`, all of its `content`, and
/// no lower `version`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserBroadcast {
    /// What it is about.
    pub key: Arc<str>,
    /// The parts of the key's value that it carries.
    pub content: Vec<String>,
    /// The local version of the value.
    pub version: u64,
    /// Whether it is this node's own change; those go before changes that are only passed on.
    pub local: bool,
    /// The message.
    pub payload: Bytes,
}
