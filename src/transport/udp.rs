//! The packet half of [`NetTransport`](super::NetTransport): UDP sockets.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use socket2::{Domain, SockRef, Socket, Type};
use tokio::net::UdpSocket;
use tokio::time::Instant;

use super::backoff::Backoff;
use super::counters::{Counters, add};
use super::net::{any, rotated};
use super::sources::Sources;
use super::{InboundPacket, Limits, canonical};

/// No datagram is longer: the length field of UDP has 16 bits.
const LARGEST_DATAGRAM: usize = 65_535;

/// The smallest receive buffer worth asking for.
const LEAST_RECEIVE_BUFFER: usize = 64 * 1024;

thread_local! {
    /// Every datagram is received here and then copied, so that a small packet does not keep 64 KiB alive. Only reserved,
    /// not filled: what no datagram reaches costs no memory.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(Vec::with_capacity(LARGEST_DATAGRAM));
}

/// One UDP socket for each bound address.
#[derive(Debug)]
pub(super) struct UdpSockets {
    sockets: Vec<UdpSocket>,
    /// Whether each of them is bound to an IPv4 address.
    are_ipv4: Vec<bool>,
    /// Where the next batch starts, so that a flood on one socket does not starve the others.
    turn: AtomicUsize,
    pub(super) sources: Sources,
}

/// Opens and binds one socket.
pub(super) fn open(addr: SocketAddr, limits: &Limits) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(socket2::Protocol::UDP))?;
    if addr.is_ipv6() {
        // `0.0.0.0` and `::` can then be bound side by side, and no sender appears as an IPv4-mapped address.
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    ask_receive_buffer(limits.receive_buffer, |size| socket.set_recv_buffer_size(size));
    UdpSocket::from_std(socket.into())
}

/// Asks for a receive buffer, and for half of it as long as the system refuses. Bursts (a join of many nodes) are
/// lost with a small buffer, but a small buffer is no reason not to start.
fn ask_receive_buffer(wanted: usize, mut ask: impl FnMut(usize) -> io::Result<()>) {
    let mut size = wanted;
    while size >= LEAST_RECEIVE_BUFFER && ask(size).is_err() {
        size /= 2;
    }
}

impl UdpSockets {
    pub(super) fn new(sockets: Vec<UdpSocket>, limits: &Limits) -> Self {
        let are_ipv4 = sockets.iter().map(|socket| socket.local_addr().is_ok_and(|local| local.is_ipv4())).collect();
        let sources = Sources::new(limits.packets, limits.limit_loopback);
        Self { sockets, are_ipv4, turn: AtomicUsize::new(0), sources }
    }

    /// Bytes of the smallest receive buffer, as the system reports it (Linux: twice what was asked for).
    pub(super) fn receive_buffer(&self) -> usize {
        let sizes = self.sockets.iter().map(|socket| SockRef::from(socket).recv_buffer_size().unwrap_or(0));
        sizes.min().unwrap_or(0)
    }

    /// Sends from the first bound socket of the right family, as memberlist does.
    pub(super) fn send(&self, to: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        let to = canonical(to);
        let place = self.are_ipv4.iter().position(|is_ipv4| *is_ipv4 == to.is_ipv4());
        let Some(socket) = place.and_then(|place| self.sockets.get(place)) else {
            let family = if to.is_ipv4() { "IPv4" } else { "IPv6" };
            let text = format!("no {family} address is bound to send to {to} from");
            return Err(io::Error::new(io::ErrorKind::AddrNotAvailable, text));
        };
        // Not `UdpSocket::try_send_to`: that refuses until the reactor has once seen the socket writable, so the
        // first packets of a fresh socket would be dropped.
        SockRef::from(socket).send_to(bytes, &to.into()).map(drop)
    }

    /// Waits for at least one packet, then takes those that are ready, at most `max`.
    pub(super) async fn recv(&self, into: &mut Vec<InboundPacket>, max: usize, counters: &Counters) {
        let max = max.max(1);
        let mut backoff = Backoff::new();
        loop {
            // Under a flood there is always a packet ready: without this the receiver would never let others run.
            tokio::task::coop::consume_budget().await;
            match self.take_ready(into, max, counters) {
                Ok(0) => {
                    let start = self.turn.load(Ordering::Relaxed);
                    let waits = rotated(&self.sockets, start).map(UdpSocket::readable);
                    if any(waits).await.is_err() {
                        add(&counters.packet_errors, 1);
                        backoff.wait().await;
                    }
                }
                Ok(_) => return,
                Err(_) => backoff.wait().await,
            }
        }
    }

    /// Takes what is ready on all sockets. An error only when nothing else was there.
    fn take_ready(&self, into: &mut Vec<InboundPacket>, max: usize, counters: &Counters) -> io::Result<usize> {
        BUFFER.with_borrow_mut(|buffer| self.take_ready_through(buffer, into, max, counters))
    }

    fn take_ready_through(
        &self,
        buffer: &mut Vec<u8>,
        into: &mut Vec<InboundPacket>,
        max: usize,
        counters: &Counters,
    ) -> io::Result<usize> {
        let (mut taken, mut over_rate) = (0, 0);
        let now = Instant::now();
        let mut failed = Ok(0);
        for socket in rotated(&self.sockets, self.turn.fetch_add(1, Ordering::Relaxed)) {
            // What is dropped costs time as well: then others get their turn, too.
            while taken < max && over_rate < 4 * max {
                buffer.clear();
                match socket.try_recv_buf_from(buffer) {
                    Ok((_, from)) if !self.sources.allows(now, from.ip()) => {
                        add(&counters.packets_over_rate, 1);
                        over_rate += 1;
                    }
                    Ok((_, from)) => {
                        let bytes = Bytes::copy_from_slice(buffer);
                        counters.received(bytes.len());
                        into.push(InboundPacket { from, bytes });
                        taken += 1;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => {
                        add(&counters.packet_errors, 1);
                        failed = Err(error);
                        break;
                    }
                }
            }
        }
        if taken > 0 { Ok(taken) } else { failed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receive_buffer_that_is_refused_is_halved_until_it_is_accepted() {
        let mut asked = Vec::new();
        ask_receive_buffer(2 << 20, |size| {
            asked.push(size);
            if size > 512 * 1024 { Err(io::ErrorKind::InvalidInput.into()) } else { Ok(()) }
        });
        assert_eq!(asked, [2 << 20, 1 << 20, 512 * 1024]);
    }

    #[test]
    fn a_system_that_accepts_no_receive_buffer_keeps_its_own() {
        let mut asked = 0;
        ask_receive_buffer(2 << 20, |_| {
            asked += 1;
            Err(io::ErrorKind::InvalidInput.into())
        });
        assert_eq!(asked, 6, "from 2 MiB down to 64 KiB");
    }
}
