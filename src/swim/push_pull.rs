//! Full exchanges of state over streams, and everything else that streams carry.
//!
//! The dialer sends all that it knows, the other side answers with all that it knows, and then both merge. The
//! application's state goes along; it is asked for when the exchange begins ([`Output::NeedUserState`]). What others
//! hold against a member is not taken over as it stands: death is only a reason to suspect, so that the member can
//! refute.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::admission::Origin;
use super::member::is_compatible;
use super::timers::Timer;
use super::{ExchangeId, Output, Swim};
use crate::wire::message::{Ack, Alive, Dead, MemberState, PushNode, PushPull, StreamMessage, Suspect};
use crate::wire::stream::{MAX_ENCRYPTED, MAX_STREAM, MAX_USER_STATE};
use crate::wire::{Label, PacketOptions, encode_reply, encode_request};

/// The most push/pulls of others that wait for our state at a time; more are closed at once.
pub const MAX_INBOUND_PUSH_PULLS: usize = 128;

/// Above this many members push/pulls become less frequent.
const SCALE_ABOVE: usize = 32;

/// Time between two push/pulls: `base` up to 32 members, twice that up to 64, three times up to 128, and so on.
#[must_use]
pub fn push_pull_interval(base: Duration, members: usize) -> Duration {
    if members <= SCALE_ABOVE {
        return base;
    }
    let doublings = ((members as f64).log2() - (SCALE_ABOVE as f64).log2()).ceil() as u32;
    base.saturating_mul(doublings + 1)
}

/// Why we began a push/pull.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// It is time.
    Periodic,
    /// For this join.
    Join(u64),
    /// To find a lost seed or member again.
    Rejoin,
    /// To hear who joined when we did.
    CatchUp,
}

impl Purpose {
    /// Whether the peer may not know us yet: what the protocol calls a join.
    fn is_join(self) -> bool {
        matches!(self, Self::Join(_) | Self::Rejoin)
    }
}

/// A push/pull in progress.
#[derive(Debug)]
enum Exchange {
    /// Ours.
    Out { to: SocketAddr, purpose: Purpose, sent: bool },
    /// Another's, whose state waits until ours is sent.
    In { from: SocketAddr, label: Label, remote: PushPull },
}

/// All push/pulls in progress.
#[derive(Debug)]
pub(super) struct Exchanges {
    next: u64,
    open: BTreeMap<ExchangeId, Exchange>,
}

impl Exchanges {
    pub(super) fn new(first: u64) -> Self {
        Self { next: first, open: BTreeMap::new() }
    }

    fn close(&mut self, exchange: ExchangeId) -> Option<Exchange> {
        let closed = self.open.remove(&exchange);
        if self.open.is_empty() {
            // An empty map keeps a leaf, which is large. Hardly ever is there an exchange.
            self.open = BTreeMap::new();
        }
        closed
    }

    fn inbound(&self) -> usize {
        self.open.values().filter(|exchange| matches!(exchange, Exchange::In { .. })).count()
    }
}

/// What became of merging a peer's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Merged {
    /// Done.
    Yes,
    /// That was ourselves.
    OurOwn,
}

impl Swim {
    pub(super) fn next_exchange(&mut self) -> ExchangeId {
        self.exchanges.next = (self.exchanges.next + 1) & (u64::MAX >> 1);
        ExchangeId(self.exchanges.next)
    }

    /// Exchanges state with up to `count` random members.
    pub(super) fn push_pull_with_some(&mut self, now: Instant, count: usize) {
        let own = &self.local.name;
        let targets = self.table.random(count, &mut self.rng, |m| m.state == MemberState::Alive && m.name != *own);
        for to in targets.iter().filter_map(|member| member.socket_addr()) {
            self.begin_push_pull(now, to, Purpose::Periodic);
        }
    }

    pub(super) fn begin_push_pull(&mut self, now: Instant, to: SocketAddr, purpose: Purpose) {
        let exchange = self.next_exchange();
        self.stats.push_pulls_started += 1;
        self.exchanges.open.insert(exchange, Exchange::Out { to, purpose, sent: false });
        self.guard(now, exchange);
        self.outputs.push_back(Output::NeedUserState { exchange, join: purpose.is_join() });
    }

    /// Ends an exchange that got no answer from whoever runs the core: it may have been restarted in between.
    fn guard(&mut self, now: Instant, exchange: ExchangeId) {
        let patience = self.config.stream_timeout.saturating_mul(2).max(Duration::from_secs(1));
        self.timers.schedule(now + patience, Timer::Exchange(exchange));
    }

    pub(super) fn exchange_due(&mut self, now: Instant, exchange: ExchangeId) {
        match self.exchanges.close(exchange) {
            Some(Exchange::Out { to, purpose, .. }) => {
                self.push_pull_ended(now, to, purpose, Err("no answer in time".to_owned()));
            }
            Some(Exchange::In { .. }) => self.outputs.push_back(Output::RespondStream { exchange, bytes: None }),
            None => {}
        }
    }

    pub(super) fn on_stream_request(
        &mut self,
        now: Instant,
        exchange: ExchangeId,
        from: SocketAddr,
        label: Label,
        message: StreamMessage,
    ) {
        let answer = match message {
            StreamMessage::PushPull(_) if self.exchanges.inbound() >= MAX_INBOUND_PUSH_PULLS => {
                self.stats.push_pulls_turned_away += 1;
                None
            }
            StreamMessage::PushPull(remote) => {
                self.stats.push_pulls_accepted += 1;
                let join = remote.join;
                if join {
                    self.hosts();
                }
                self.exchanges.open.insert(exchange, Exchange::In { from, label, remote });
                self.guard(now, exchange);
                self.outputs.push_back(Output::NeedUserState { exchange, join });
                return;
            }
            StreamMessage::Ping(ping) if ping.node.is_empty() || ping.node == self.local.name => {
                let ack = Ack { seq_no: ping.seq_no, payload: Bytes::new() };
                Some(encode_reply(&StreamMessage::Ack(ack), &self.config.packet, &label, &mut self.nonces))
            }
            StreamMessage::Ping(_) => {
                self.stats.refuse_message("ping_for_another");
                None
            }
            StreamMessage::User(bytes) => {
                self.on_user_message(bytes);
                None
            }
            StreamMessage::Ack(_) | StreamMessage::Error(_) => {
                self.stats.refuse_message("stream_request_misplaced");
                None
            }
        };
        self.outputs.push_back(Output::RespondStream { exchange, bytes: answer });
    }

    pub(super) fn on_user_state(&mut self, now: Instant, exchange: ExchangeId, user_state: Bytes) {
        match self.exchanges.open.get_mut(&exchange) {
            Some(Exchange::Out { to, purpose, sent }) if !*sent => {
                *sent = true;
                let (to, join) = (*to, purpose.is_join());
                let bytes = self.own_state(join, user_state, None);
                let timeout = self.config.stream_timeout;
                self.outputs.push_back(Output::OpenStream { exchange, to, bytes, expect_reply: true, timeout });
            }
            Some(Exchange::In { .. }) => {
                let Some(Exchange::In { from, label, remote }) = self.exchanges.close(exchange) else { return };
                let bytes = Some(self.own_state(remote.join, user_state, Some(&label)));
                // Answer first, as every peer does: even one whose state we refuse learns the members.
                self.outputs.push_back(Output::RespondStream { exchange, bytes });
                let peer = sole_node_at(&remote.nodes, from.ip());
                // The peer cannot be told why; the refusal is counted.
                let _ = self.merge(now, remote, peer, Origin::Request);
            }
            Some(Exchange::Out { .. }) | None => {}
        }
    }

    pub(super) fn on_stream_reply(
        &mut self,
        now: Instant,
        exchange: ExchangeId,
        result: Result<Option<StreamMessage>, String>,
    ) {
        if self.probe_stream_reply(exchange, result.as_ref().ok().and_then(Option::as_ref)) {
            return;
        }
        let Some(Exchange::Out { to, purpose, .. }) = self.exchanges.open.get(&exchange) else { return };
        let (to, purpose) = (*to, *purpose);
        self.exchanges.close(exchange);
        let own_incarnation = |swim: &Self| swim.table.get(&swim.local.name).map(|own| own.incarnation);
        let before = own_incarnation(self);
        let merged = match result {
            Ok(Some(StreamMessage::PushPull(remote))) => {
                let peer = remote.nodes.iter().position(|node| is_at(node, to));
                self.catch_up.is_known = self.is_known_to_others(purpose);
                let merged = self.check_answer(&remote).and_then(|()| self.merge(now, remote, peer, Origin::Answer));
                self.catch_up.is_known = false;
                merged
            }
            Ok(Some(StreamMessage::Error(error))) => Err(format!("the peer refused: {error}")),
            Ok(Some(_)) => Err("the peer answered something else".to_owned()),
            Ok(None) => Err("closed without an answer".to_owned()),
            Err(error) => Err(error),
        };
        if purpose.is_join() && merged == Ok(Merged::Yes) && own_incarnation(self) != before {
            // The peer holds something against us. We refuted, but those who think us dead may never gossip with us.
            self.begin_push_pull(now, to, Purpose::Periodic);
        }
        self.push_pull_ended(now, to, purpose, merged);
    }

    /// Whether peers that may not know us yet were sent our state and have not answered.
    pub(super) fn has_contacts(&self) -> bool {
        self.exchanges.open.values().any(|exchange| {
            matches!(exchange, Exchange::Out { purpose: Purpose::Join(_) | Purpose::Rejoin, sent: true, .. })
        })
    }

    /// Ends the exchanges of ours that have not been sent: a node that leaves contacts nobody new.
    pub(super) fn give_up_unsent_contacts(&mut self, now: Instant) {
        let unsent = |exchange: &Exchange| matches!(exchange, Exchange::Out { sent: false, .. });
        let ids: Vec<_> = self.exchanges.open.iter().filter(|(_, open)| unsent(open)).map(|(id, _)| *id).collect();
        for id in ids {
            if let Some(Exchange::Out { to, purpose, .. }) = self.exchanges.close(id) {
                self.push_pull_ended(now, to, purpose, Err("this node is leaving the cluster".to_owned()));
            }
        }
    }

    fn push_pull_ended(&mut self, now: Instant, to: SocketAddr, purpose: Purpose, result: Result<Merged, String>) {
        self.stats.push_pulls_failed += u64::from(result.is_err());
        if purpose.is_join() {
            self.say_goodbye_to(to);
        }
        match purpose {
            Purpose::Join(id) => self.join_contact_ended(now, id, to, result),
            Purpose::CatchUp if result.is_err() => self.catch_up_soon(now),
            Purpose::CatchUp | Purpose::Periodic | Purpose::Rejoin => {}
        }
    }

    /// All that this node knows, encoded: an answer to a stream with a label, or a request. If that is more than a peer
    /// takes, it would refuse all of it: then the application's state stays away, which is counted (and so logged and in
    /// the metrics), and the membership at least is exchanged.
    fn own_state(&mut self, join: bool, user_state: Bytes, answer_to: Option<&Label>) -> Bytes {
        let nodes: Vec<_> = self.table.iter().map(|member| member.to_push_node()).collect();
        let own_label = &self.config.packet.label;
        let label = answer_to.filter(|label| *label != own_label).map(|_| own_label.clone());
        let mut encode = |nodes, user_state| {
            let label = label.clone();
            let state = StreamMessage::PushPull(PushPull { join, label, nodes, user_state });
            match answer_to {
                Some(label) => encode_reply(&state, &self.config.packet, label, &mut self.nonces),
                None => encode_request(&state, &self.config.packet, &mut self.nonces),
            }
        };
        if user_state.len() <= MAX_USER_STATE {
            let bytes = encode(nodes.clone(), user_state);
            if bytes.len() <= longest_stream(&self.config.packet) {
                return bytes;
            }
        }
        let bytes = encode(nodes, Bytes::new());
        self.stats.refuse_message("own_user_state_too_long");
        bytes
    }

    /// Whether an answer comes from a node of another cluster, one that accepts any label and says so in its answer.
    ///
    /// # Errors
    ///
    /// That it does.
    fn check_answer(&mut self, answer: &PushPull) -> Result<(), String> {
        match &answer.label {
            Some(label) if !self.config.packet.accepts(label) => {
                self.count_foreign_label(label);
                self.stats.refuse_message("label_mismatch");
                Err(format!("it has another label, {label}"))
            }
            _ => Ok(()),
        }
    }

    /// Takes over what a peer says. `peer` is its own entry, if we can tell: when that one cannot understand us, nothing
    /// that it says is used. Any other entry with versions that do not fit is skipped by itself.
    ///
    /// # Errors
    ///
    /// Why everything was refused.
    fn merge(&mut self, now: Instant, remote: PushPull, peer: Option<usize>, origin: Origin) -> Result<Merged, String> {
        if let Some(peer) = peer.and_then(|place| remote.nodes.get(place))
            && !peer.vsn.as_ref().is_some_and(|vsn| is_compatible(&self.config.vsn(), vsn))
        {
            self.stats.merges_refused += 1;
            return Err(format!("{} speaks incompatible versions {:?}", peer.name, peer.vsn));
        }
        // Every node lists itself, so a list of nobody but us is our own.
        let own_addr = self.local.addr;
        let our_own = !remote.nodes.is_empty()
            && remote.nodes.iter().all(|node| node.name == self.local.name && is_at(node, own_addr));
        if our_own {
            return Ok(Merged::OurOwn);
        }
        let PushPull { join, nodes, user_state, label: _ } = remote;
        for node in nodes {
            self.merge_node(now, node, origin);
        }
        if !user_state.is_empty() {
            self.outputs.push_back(Output::RemoteState { bytes: user_state, join });
        }
        Ok(Merged::Yes)
    }

    fn merge_node(&mut self, now: Instant, node: PushNode, origin: Origin) {
        let PushNode { name, addr, port, meta, incarnation, state, vsn } = node;
        match state {
            Some(MemberState::Alive) => {
                self.alive(now, Alive { incarnation, node: name, addr, port, meta, vsn }, origin);
            }
            Some(MemberState::Left) => self.dead(now, Dead { incarnation, node: name.clone(), from: name }),
            Some(MemberState::Dead | MemberState::Suspect) => {
                self.suspect(now, Suspect { incarnation, node: name, from: self.local.name.clone() });
            }
            None => self.stats.refuse_message("member_state_unknown"),
        }
    }
}

/// The most bytes that a peer reads of what we send: less where it is encrypted. The label in front is no part of it, and
/// ignored here for its few bytes.
fn longest_stream(options: &PacketOptions) -> usize {
    let encrypted = !options.keyring.is_empty() && options.verify_outgoing;
    if encrypted { MAX_ENCRYPTED } else { MAX_STREAM }
}

/// Whether a node says that it is reached at this address.
fn is_at(node: &PushNode, addr: SocketAddr) -> bool {
    node.port == addr.port() && node.addr.to_ip() == Some(addr.ip().to_canonical())
}

/// The only live node with this address: the dialer of a stream, whose port says nothing, if it is alone on its host.
fn sole_node_at(nodes: &[PushNode], ip: IpAddr) -> Option<usize> {
    let ip = ip.to_canonical();
    let mut places = nodes
        .iter()
        .enumerate()
        .filter(|(_, node)| node.state == Some(MemberState::Alive) && node.addr.to_ip() == Some(ip))
        .map(|(place, _)| place);
    places.next().filter(|_| places.next().is_none())
}
