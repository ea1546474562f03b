//! Sockets only: packets and streams between addresses.
//!
//! This room knows bytes and addresses and no protocol. A [`Transport`] sends and receives datagrams and opens and
//! accepts byte streams under one address; what the bytes mean is for `wire` and the actors. There are three
//! implementations, held to one test suite:
//!
//! * [`NetTransport`]: UDP and TCP on the same port number.
//! * [`TcpTransport`]: TCP alone, a connection for each packet, as the Grafana databases gossip.
//! * [`MemoryTransport`]: an endpoint of a [`MemoryNetwork`], for tests, with faults that can be switched on.
//!
//! Everything that a stranger on the network can make grow is bounded here: streams and packets by [`Limits`], queued
//! packets by [`PacketQueue`], and bytes read from streams by [`io::ReadLimits`] and [`ByteBudget`].
//!
//! ```
//! use annulus::transport::{Limits, NetTransport, Transport};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let ours = NetTransport::bind(&["127.0.0.1".parse().unwrap()], 0, Limits::default())?;
//! ours.try_send_packet(ours.local_addr(), b"to myself")?;
//! let mut packets = Vec::new();
//! ours.recv_packets(&mut packets, 64).await?;
//! assert_eq!(&packets[0].bytes[..], b"to myself");
//! # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
//! ```

mod accepted;
mod backoff;
mod budget;
mod close;
mod counters;
mod error;
mod framing;
pub mod io;
mod memory;
mod net;
mod queue;
mod sources;
mod tcp;
mod tcp_only;
#[cfg(test)]
mod tests;
mod udp;

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

pub use budget::{ByteBudget, BytePermit};
pub use counters::{CounterValues, Counters};
pub use error::{BindError, BindErrorKind, Protocol};
pub use framing::{Carries, Framing, FramingError, Unframed};
pub use memory::{MemoryNetwork, MemoryTransport};
pub use net::NetTransport;
pub use queue::PacketQueue;
pub use sources::{MemberAddresses, Rate, Rates};
pub use tcp_only::{TcpCounterValues, TcpSettings, TcpTransport};

/// A future that can cross threads.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Largest packet that every transport sends, in bytes: what fits one IPv4 UDP datagram (65 535 less 8 of UDP header and
/// 20 of IP header). Protocols stay far below.
pub const MAX_PACKET: usize = 65_507;

/// Something that carries packets and streams between addresses.
///
/// Every method takes `&self`, so one transport can be shared behind an `Arc` by the tasks that receive, accept and
/// send. All waiting methods are cancel safe: dropping their future loses no packet and no stream.
pub trait Transport: Send + Sync + 'static {
    /// The (first) address that is bound, with the port that was chosen when port 0 was asked for.
    fn local_addr(&self) -> SocketAddr;

    /// Sends one packet without ever waiting. An IPv4-mapped IPv6 address is sent to as IPv4.
    ///
    /// `Ok` means that the packet left this node, or will soon, not that it arrived.
    ///
    /// # Errors
    /// `WouldBlock` when the packet was dropped because the socket's buffer is full (counted as dropped);
    /// `InvalidInput` when it is longer than [`MAX_PACKET`] (for a
    /// [`TcpTransport`]: than its settings say); `NotConnected` after [`close`](Self::close);
    /// `AddrNotAvailable` when no socket of the address's family is bound; otherwise what the system says.
    fn try_send_packet(&self, to: SocketAddr, bytes: &[u8]) -> std::io::Result<()>;

    /// Waits for at least one packet, then appends to `into` those that are ready, at most `max` (at least 1).
    ///
    /// Meant for one receiving task. Errors of single sockets are counted and retried inside, with back-off.
    ///
    /// # Errors
    /// `NotConnected` after [`close`](Self::close), and then only. Any other error is one of the transport itself: a node
    /// asks again, and gives up when that goes on.
    fn recv_packets<'a>(&'a self, into: &'a mut Vec<InboundPacket>, max: usize) -> BoxFuture<'a, std::io::Result<()>>;

    /// Opens a stream to an address.
    ///
    /// # Errors
    /// `TimedOut` at the deadline; `ConnectionRefused` when nobody listens; `NotConnected` after
    /// [`close`](Self::close); otherwise what the system says.
    fn connect(&self, to: SocketAddr, deadline: Instant) -> BoxFuture<'_, std::io::Result<Box<dyn Stream>>>;

    /// Waits for the next stream that another node opens, and says where it came from.
    ///
    /// The stream counts against [`Limits`] until it is dropped. A stream over a limit is closed at once and counted
    /// as refused. Errors of the listening sockets are counted and retried inside, after 5 ms doubling to 1 s.
    ///
    /// # Errors
    /// As [`recv_packets`](Self::recv_packets).
    fn accept(&self) -> BoxFuture<'_, std::io::Result<(Box<dyn Stream>, SocketAddr)>>;

    /// Waits until every packet that was taken has left, or has failed to. At once where packets leave immediately.
    fn flush(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }

    /// Ends the transport: calls that wait, and all later ones, return an error of kind `NotConnected`.
    ///
    /// The port is free again as soon as the calls that were waiting have returned. Streams that are open stay open.
    fn close(&self);

    /// Says at which addresses the members are, and how many at each: they may send more than strangers (see
    /// [`Limits`]). A transport without such limits need not care.
    fn set_members(&self, members: &Arc<MemberAddresses>) {
        let _ = members;
    }

    /// What went through this transport so far.
    fn counters(&self) -> &Counters;

    /// What only a transport over TCP alone counts.
    fn tcp_counters(&self) -> Option<TcpCounterValues> {
        None
    }
}

/// A connection in both directions, with end of file when the other side closes.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + ?Sized> Stream for T {}

/// A packet as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboundPacket {
    /// Who sent it, as the network says; anybody can forge this.
    pub from: SocketAddr,
    /// The datagram, exactly. May be empty.
    pub bytes: Bytes,
}

/// What a transport lets others use up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Accepted streams that may be open at the same time. Default 128, as memberlist allows push/pulls.
    pub max_streams: usize,
    /// Accepted streams that may be open at the same time from one IP address. Default 16: several nodes may share a
    /// host, or an address behind which they are translated, and an exchange takes a moment only.
    pub max_streams_per_ip: usize,
    /// How often packets may come from one source. What is over it is dropped and counted. Default
    /// [`Rates::PACKETS`].
    pub packets: Rates,
    /// How often streams may be opened by one source. What is over it is closed and counted. Default
    /// [`Rates::STREAMS`].
    pub streams: Rates,
    /// Whether the limits for one address or source hold for addresses of the loopback interface, from which nobody but
    /// this host can send, and where many nodes may live. The limits in total always hold. Default false.
    pub limit_loopback: bool,
    /// Receive buffer to ask the system for, in bytes a UDP socket. Halved until the system accepts. Default 2 MiB.
    pub receive_buffer: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_streams: 128,
            max_streams_per_ip: 16,
            packets: Rates::PACKETS,
            streams: Rates::STREAMS,
            limit_loopback: false,
            receive_buffer: 2 * 1024 * 1024,
        }
    }
}

/// Locks, also after a panic elsewhere: every critical section in this room leaves its data whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The error of every call on a transport that was closed.
fn closed_error() -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::NotConnected, "the transport is closed")
}

/// Refuses a packet that no datagram can hold, before any system call.
fn check_packet_size(bytes: &[u8]) -> std::io::Result<()> {
    if bytes.len() > MAX_PACKET {
        let text = format!("a packet of {} bytes is larger than a datagram ({MAX_PACKET})", bytes.len());
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, text));
    }
    Ok(())
}

/// The address to use with a socket: IPv4-mapped IPv6 becomes IPv4, which is how it reaches an IPv4 socket.
fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr.ip().to_canonical() {
        ip if ip == addr.ip() => addr,
        ip => SocketAddr::new(ip, addr.port()),
    }
}
