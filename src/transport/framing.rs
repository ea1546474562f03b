//! What a connection carries, for a transport that has nothing but connections.
//!
//! This room knows no protocol, so [`TcpTransport`](super::TcpTransport) is told by whoever binds it how a connection
//! says that it is a packet or a stream, and how a packet lies in it. There is one such framing in use, dskit's; the tests
//! of this room have one of their own.

use std::net::SocketAddr;

use bytes::Bytes;

/// What the first byte of a connection says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carries {
    /// One packet; it ends where the connection ends.
    Packet,
    /// A stream: everything behind the first byte.
    Stream,
    /// Nothing that we know.
    Unknown,
}

/// A packet as it lay in its connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unframed {
    /// Where the sender says that it can be reached. Nobody proves it, no more than the source address of a datagram.
    pub from: SocketAddr,
    /// What was sent.
    pub packet: Bytes,
}

/// Why a connection that should carry a packet carries none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FramingError {
    /// The packet is not what its sender's digest was made of. It is dropped: half a packet must not be read.
    #[error("the packet does not match its digest")]
    Damaged,
    /// Anything else that is wrong, in words.
    #[error("{0}")]
    Malformed(String),
}

/// How connections say what they carry.
pub trait Framing: Send + Sync + 'static {
    /// What a connection with this first byte carries.
    fn carries(&self, first: u8) -> Carries;

    /// The first byte of a connection that carries a stream.
    fn stream_byte(&self) -> u8;

    /// Most bytes that a connection with a packet of `packet` bytes has.
    fn frame_len(&self, packet: usize) -> usize;

    /// All bytes of a connection that carries this packet; `from` is where we can be reached.
    fn frame(&self, from: SocketAddr, packet: &[u8]) -> Vec<u8>;

    /// The packet in all bytes of a connection.
    ///
    /// # Errors
    /// [`FramingError`]: the packet is dropped and counted.
    fn unframe(&self, connection: Bytes) -> Result<Unframed, FramingError>;
}
