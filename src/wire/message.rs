//! The messages of the protocol, as plain data.
//!
//! Names follow memberlist, so that a reader of its sources and of packet captures finds the same words.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;

use super::label::Label;

/// The name of a member, unique in its cluster.
///
/// Cheap to clone. Go peers do not check names for UTF-8; Annulus refuses a message whose names are not UTF-8.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName(Arc<str>);

impl NodeName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the name is empty (a ping to "whoever you are").
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<&str> for NodeName {
    fn from(name: &str) -> Self {
        Self(Arc::from(name))
    }
}

impl From<String> for NodeName {
    fn from(name: String) -> Self {
        Self(Arc::from(name))
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Names come from the network: control characters never reach a terminal or a log.
        write!(f, "{}", self.0.escape_debug())
    }
}

impl fmt::Debug for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// An IP address exactly as it stood on the wire: 4 bytes, 16 bytes, or absent.
///
/// Go announces an IPv4 address either as 4 bytes or as 16 (`::ffff:a.b.c.d`), and peers compare the raw bytes, so
/// Annulus keeps and passes on what it was given and canonicalises only to dial ([`WireIp::to_ip`]).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct WireIp {
    bytes: [u8; 16],
    len: u8,
}

impl WireIp {
    /// No address.
    pub const NONE: Self = Self { bytes: [0; 16], len: 0 };

    /// Takes 0, 4 or 16 bytes; anything else is not an address.
    #[must_use]
    pub fn from_slice(raw: &[u8]) -> Option<Self> {
        if !matches!(raw.len(), 0 | 4 | 16) {
            return None;
        }
        let mut bytes = [0; 16];
        bytes[..raw.len()].copy_from_slice(raw);
        Some(Self { bytes, len: raw.len() as u8 })
    }

    /// The bytes as they stood on the wire.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// The address to dial: an IPv4-mapped form becomes IPv4. `None` when absent.
    #[must_use]
    pub fn to_ip(&self) -> Option<IpAddr> {
        match self.len {
            4 => Some(IpAddr::from([self.bytes[0], self.bytes[1], self.bytes[2], self.bytes[3]])),
            16 => Some(IpAddr::from(self.bytes).to_canonical()),
            _ => None,
        }
    }

    /// Whether no address was given.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.len == 0
    }
}

impl From<IpAddr> for WireIp {
    /// The one form in which Annulus announces itself: 4 bytes for IPv4, 16 for IPv6.
    fn from(ip: IpAddr) -> Self {
        let mut bytes = [0; 16];
        match ip {
            IpAddr::V4(v4) => {
                bytes[..4].copy_from_slice(&v4.octets());
                Self { bytes, len: 4 }
            }
            IpAddr::V6(v6) => Self { bytes: v6.octets(), len: 16 },
        }
    }
}

impl fmt::Debug for WireIp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.to_ip() {
            Some(ip) => write!(f, "{ip}"),
            None => write!(f, "-"),
        }
    }
}

/// The six version bytes of a member: protocol min, max, current; delegate min, max, current.
pub type Vsn = [u8; 6];

/// What Annulus speaks: protocol 1 to 5, 2 spoken; delegate 0.
pub const VSN: Vsn = [1, 5, 2, 0, 0, 0];

/// Where an answer to a ping should go; absent in pings from old peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Address of the asking node.
    pub addr: WireIp,
    /// Its port.
    pub port: u16,
    /// Its name.
    pub node: NodeName,
}

impl Source {
    /// The socket address to answer to, when address and port are both present.
    #[must_use]
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        (self.port != 0).then(|| self.addr.to_ip().map(|ip| SocketAddr::new(ip, self.port))).flatten()
    }
}

/// "Are you there?" (type 0).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ping {
    /// Chosen by the asking node; the ack carries it back.
    pub seq_no: u32,
    /// Who should answer; empty means whoever receives it.
    pub node: NodeName,
    /// Where to answer; `None` means to the sender's socket address.
    pub source: Option<Source>,
}

/// "Ask that one for me" (type 1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndirectPing {
    /// The requester's sequence number.
    pub seq_no: u32,
    /// Address of the node to ping.
    pub target: WireIp,
    /// Its port; 0 means the relay's own.
    pub port: u16,
    /// Its name.
    pub node: NodeName,
    /// Whether the requester wants a nack when the target stays silent.
    pub nack: bool,
    /// Where the relayed ack should go.
    pub source: Option<Source>,
}

/// The answer to a ping (type 2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack {
    /// The sequence number of the ping.
    pub seq_no: u32,
    /// What the answering application adds; empty for Annulus.
    pub payload: Bytes,
}

/// "I could not reach it either" (type 11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nack {
    /// The sequence number of the indirect ping.
    pub seq_no: u32,
}

/// "I think this member is dead" (type 3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspect {
    /// The incarnation of the member that is suspected.
    pub incarnation: u32,
    /// Who is suspected.
    pub node: NodeName,
    /// Who suspects.
    pub from: NodeName,
}

/// "This member is alive" (type 4): how members announce themselves and are gossiped about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alive {
    /// The member's own counter; only it raises it.
    pub incarnation: u32,
    /// Who.
    pub node: NodeName,
    /// Its address, verbatim.
    pub addr: WireIp,
    /// Its port.
    pub port: u16,
    /// What the application says about the member, at most 512 bytes.
    pub meta: Bytes,
    /// Its versions; `None` when it sent none or too few, and then the message is not to be trusted.
    pub vsn: Option<Vsn>,
}

/// "This member is dead", or, when `node == from`, "I am leaving" (type 5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dead {
    /// The incarnation that is declared dead.
    pub incarnation: u32,
    /// Who is dead.
    pub node: NodeName,
    /// Who says so.
    pub from: NodeName,
}

/// One message of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Type 0.
    Ping(Ping),
    /// Type 1.
    IndirectPing(IndirectPing),
    /// Type 2.
    Ack(Ack),
    /// Type 3.
    Suspect(Suspect),
    /// Type 4.
    Alive(Alive),
    /// Type 5.
    Dead(Dead),
    /// Type 8: bytes for the application, here the key-value store.
    User(Bytes),
    /// Type 11.
    Nack(Nack),
}

/// The state of a member as push/pull carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MemberState {
    /// 0: answers probes.
    Alive,
    /// 1: did not answer; has time to refute.
    Suspect,
    /// 2: failed.
    Dead,
    /// 3: said goodbye.
    Left,
}

/// One member in a push/pull exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushNode {
    /// Who.
    pub name: NodeName,
    /// Its address, verbatim.
    pub addr: WireIp,
    /// Its port.
    pub port: u16,
    /// Its meta.
    pub meta: Bytes,
    /// Its incarnation as the sender knows it.
    pub incarnation: u32,
    /// Its state as the sender sees it; `None` for a number we do not know, which a merge ignores.
    pub state: Option<MemberState>,
    /// Its versions.
    pub vsn: Option<Vsn>,
}

/// The full state of one side (type 6).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct PushPull {
    /// Whether the initiator is joining.
    pub join: bool,
    /// In an answer: the label of the node that answers, where it is not the one that the dialer sent. An answer has no
    /// label header, so nothing else tells the dialer that it reached another cluster, one that accepts any label. Go
    /// skips this field, and does not write it: its silence, like that of a node with the dialer's label, is `None`.
    pub label: Option<Label>,
    /// Every member the sender knows, itself and the dead included.
    pub nodes: Vec<PushNode>,
    /// The application's state: here the key-value store. Empty when there is none.
    pub user_state: Bytes,
}

/// One message of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamMessage {
    /// Type 0, the TCP fallback of a probe.
    Ping(Ping),
    /// Type 2, its answer.
    Ack(Ack),
    /// Type 6, both directions.
    PushPull(PushPull),
    /// Type 8: bytes for the application.
    User(Bytes),
    /// Type 13: why the peer refused.
    Error(String),
}
