//! A network in memory, with faults that a test can switch on.
//!
//! It behaves like [`NetTransport`](super::NetTransport), as one test suite for both shows, but needs no ports and
//! never loses a packet unless told to. A fault acts like the real thing: packets vanish without an error, connects
//! hang until their deadline, and open streams stall until the network heals.
//!
//! ```
//! use annulus::transport::{MemoryNetwork, Transport};
//!
//! let network = MemoryNetwork::new();
//! let a = network.endpoint("10.0.0.1:7946".parse().unwrap());
//! let b = network.endpoint("10.0.0.2:7946".parse().unwrap());
//! network.partition(&[a.local_addr()], &[b.local_addr()]);
//! a.try_send_packet(b.local_addr(), b"lost").unwrap();
//! network.heal();
//! ```

use std::collections::{HashMap, HashSet};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::accepted::Accepted;
use super::budget::StreamBudget;
use super::close::CloseSignal;
use super::counters::{Counters, add};
use super::io::connect_by;
use super::queue::PacketQueue;
use super::sources::{MemberAddresses, Sources};
use super::{BoxFuture, InboundPacket, Limits, Stream, Transport, canonical, check_packet_size, closed_error, lock};

/// Bytes that a stream holds in each direction before its writer has to wait.
const STREAM_BUFFER: usize = 64 * 1024;
/// Streams that wait to be accepted, as in a listener's backlog.
const BACKLOG: usize = 1024;
/// Where ports are taken from when none is asked for: the range for that by IANA.
const FIRST_FREE_PORT: u16 = 49_152;

/// A network in memory; clones are the same network.
#[derive(Clone, Debug, Default)]
pub struct MemoryNetwork {
    hub: Arc<Mutex<Hub>>,
}

#[derive(Debug, Default)]
struct Hub {
    endpoints: HashMap<SocketAddr, Arc<Endpoint>>,
    down: HashSet<SocketAddr>,
    /// Pairs that cannot reach each other, in both orders.
    cut: HashSet<(SocketAddr, SocketAddr)>,
    loss: Option<Loss>,
    ports_given: u16,
    /// Tasks with a stream that stalls; woken when the faults change.
    stalled: Vec<Waker>,
}

#[derive(Debug)]
struct Endpoint {
    addr: SocketAddr,
    packets: PacketQueue,
    backlog: mpsc::Sender<(MemoryStream, SocketAddr)>,
    to_accept: tokio::sync::Mutex<mpsc::Receiver<(MemoryStream, SocketAddr)>>,
    sources: Sources,
    budget: Arc<StreamBudget>,
    closed: CloseSignal,
    counters: Counters,
}

impl MemoryNetwork {
    /// A network without endpoints and without faults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An endpoint at this address, with default [`Limits`]. Port 0 picks a free one.
    ///
    /// An endpoint that is there already is closed first, as if its node had crashed and come back.
    #[must_use]
    pub fn endpoint(&self, addr: SocketAddr) -> MemoryTransport {
        self.endpoint_with(addr, Limits::default())
    }

    /// Like [`endpoint`](Self::endpoint), with other limits. The receive buffer of the limits means nothing here:
    /// [`PacketQueue::DEFAULT_CAPACITY`] packets wait at most.
    #[must_use]
    pub fn endpoint_with(&self, addr: SocketAddr, limits: Limits) -> MemoryTransport {
        let mut hub = lock(&self.hub);
        let mut addr = canonical(addr);
        if addr.port() == 0 {
            addr.set_port(hub.free_port(addr));
        }
        let (backlog, to_accept) = mpsc::channel(BACKLOG);
        let endpoint = Arc::new(Endpoint {
            addr,
            packets: PacketQueue::default(),
            backlog,
            to_accept: tokio::sync::Mutex::new(to_accept),
            sources: Sources::new(limits.packets, limits.limit_loopback),
            budget: StreamBudget::new(&limits),
            closed: CloseSignal::new(),
            counters: Counters::default(),
        });
        if let Some(former) = hub.endpoints.insert(addr, Arc::clone(&endpoint)) {
            former.shut();
        }
        MemoryTransport { network: self.clone(), endpoint }
    }

    /// Takes an address off the network, or puts it back. While down it neither sends nor receives.
    pub fn set_down(&self, addr: SocketAddr, down: bool) {
        self.change_faults(|hub| {
            if down {
                hub.down.insert(canonical(addr));
            } else {
                hub.down.remove(&canonical(addr));
            }
        });
    }

    /// Cuts every address of one side off from every address of the other, in both directions, in addition to the
    /// cuts that are there.
    pub fn partition(&self, one: &[SocketAddr], other: &[SocketAddr]) {
        self.change_faults(|hub| {
            for a in one.iter().copied().map(canonical) {
                for b in other.iter().copied().map(canonical) {
                    hub.cut.insert((a, b));
                    hub.cut.insert((b, a));
                }
            }
        });
    }

    /// Ends all partitions. Addresses that are down stay down, and loss stays.
    pub fn heal(&self) {
        self.change_faults(|hub| hub.cut.clear());
    }

    /// Loses this part of all packets (0 none, 1 all), chosen by a generator with this seed. Streams are not touched.
    pub fn set_loss(&self, part: f64, seed: u64) {
        self.change_faults(|hub| hub.loss = (part > 0.0).then_some(Loss { part, state: seed }));
    }

    fn change_faults(&self, change: impl FnOnce(&mut Hub)) {
        let stalled = {
            let mut hub = lock(&self.hub);
            change(&mut hub);
            std::mem::take(&mut hub.stalled)
        };
        stalled.into_iter().for_each(Waker::wake);
    }
}

impl Endpoint {
    /// Ends the calls that wait, and hangs up on those who were waiting to be accepted.
    fn shut(&self) {
        self.closed.close();
        // Locked only by an accept that waits, and then nobody else is waiting.
        if let Ok(mut to_accept) = self.to_accept.try_lock() {
            to_accept.close();
            while to_accept.try_recv().is_ok() {}
        }
    }
}

impl Hub {
    fn reaches(&self, from: SocketAddr, to: SocketAddr) -> bool {
        !self.down.contains(&from) && !self.down.contains(&to) && !self.cut.contains(&(from, to))
    }

    /// Ready when packets and bytes get from one to the other; otherwise the task is woken when the faults change.
    fn poll_link(&mut self, from: SocketAddr, to: SocketAddr, cx: &Context<'_>) -> Poll<()> {
        if self.reaches(from, to) {
            return Poll::Ready(());
        }
        if !self.stalled.iter().any(|waker| waker.will_wake(cx.waker())) {
            self.stalled.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// A port that no endpoint at this IP address has.
    fn free_port(&mut self, addr: SocketAddr) -> u16 {
        let mut port = self.next_port();
        for _ in FIRST_FREE_PORT..u16::MAX {
            if !self.endpoints.contains_key(&SocketAddr::new(addr.ip(), port)) {
                break;
            }
            port = self.next_port();
        }
        port
    }

    /// Ports in turn, for the near end of streams.
    fn next_port(&mut self) -> u16 {
        let port = FIRST_FREE_PORT + self.ports_given;
        self.ports_given = (self.ports_given + 1) % (u16::MAX - FIRST_FREE_PORT);
        port
    }
}

/// One address on a [`MemoryNetwork`]. Closed when dropped.
#[derive(Debug)]
pub struct MemoryTransport {
    network: MemoryNetwork,
    endpoint: Arc<Endpoint>,
}

impl MemoryTransport {
    fn send(&self, to: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        check_packet_size(bytes)?;
        let Endpoint { addr: from, closed, .. } = &*self.endpoint;
        if closed.is_closed() {
            return Err(closed_error());
        }
        let to = canonical(to);
        let receiver = {
            let mut hub = lock(&self.network.hub);
            let lost = hub.loss.as_mut().is_some_and(Loss::next);
            if lost || !hub.reaches(*from, to) { None } else { hub.endpoints.get(&to).cloned() }
        };
        // Like UDP: nobody tells the sender when nobody is there.
        if let Some(receiver) = receiver {
            if !receiver.sources.allows(Instant::now(), from.ip()) {
                add(&receiver.counters.packets_over_rate, 1);
                return Ok(());
            }
            let packet = InboundPacket { from: *from, bytes: Bytes::copy_from_slice(bytes) };
            if receiver.packets.push(packet).is_some() {
                add(&receiver.counters.packets_dropped, 1);
            }
        }
        Ok(())
    }

    async fn open_stream(&self, to: SocketAddr) -> io::Result<MemoryStream> {
        let from = self.endpoint.addr;
        let to = canonical(to);
        // Asked anew whenever the faults change, as TCP repeats its SYN.
        let (listener, port) = poll_fn(|cx| {
            let mut hub = lock(&self.network.hub);
            ready!(hub.poll_link(from, to, cx));
            Poll::Ready((hub.endpoints.get(&to).cloned(), hub.next_port()))
        })
        .await;
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let listener = listener.ok_or_else(refused)?;
        let (ours, theirs) = tokio::io::duplex(STREAM_BUFFER);
        let end = |pipe, us, them| MemoryStream { pipe, hub: Arc::clone(&self.network.hub), us, them };
        let sender = SocketAddr::new(from.ip(), port);
        listener.backlog.try_send((end(theirs, to, from), sender)).map_err(|_| refused())?;
        Ok(end(ours, from, to))
    }
}

impl Transport for MemoryTransport {
    fn local_addr(&self) -> SocketAddr {
        self.endpoint.addr
    }

    fn try_send_packet(&self, to: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        self.endpoint.counters.sent(bytes.len(), self.send(to, bytes))
    }

    fn recv_packets<'a>(&'a self, into: &'a mut Vec<InboundPacket>, max: usize) -> BoxFuture<'a, io::Result<()>> {
        let Endpoint { packets, closed, counters, .. } = &*self.endpoint;
        Box::pin(closed.unless_closed(async move {
            let count = packets.pop_into(into, max).await;
            for packet in into.iter().rev().take(count) {
                counters.received(packet.bytes.len());
            }
            Ok(())
        }))
    }

    fn connect(&self, to: SocketAddr, deadline: Instant) -> BoxFuture<'_, io::Result<Box<dyn Stream>>> {
        Box::pin(async move {
            let stream = self.endpoint.closed.unless_closed(connect_by(deadline, self.open_stream(to))).await;
            self.endpoint.counters.connected(stream).map(|stream| Box::new(stream) as Box<dyn Stream>)
        })
    }

    fn accept(&self) -> BoxFuture<'_, io::Result<(Box<dyn Stream>, SocketAddr)>> {
        let Endpoint { to_accept, budget, closed, counters, .. } = &*self.endpoint;
        Box::pin(closed.unless_closed(async move {
            loop {
                let (stream, from) = to_accept.lock().await.recv().await.ok_or_else(closed_error)?;
                let permit = match budget.try_take(from.ip()) {
                    Ok(permit) => permit,
                    Err(why) => {
                        counters.stream_refused(why);
                        continue;
                    }
                };
                add(&counters.streams_in, 1);
                return Ok((Box::new(Accepted::new(stream, permit)) as Box<dyn Stream>, from));
            }
        }))
    }

    fn set_members(&self, members: &Arc<MemberAddresses>) {
        self.endpoint.sources.set_members(members);
        self.endpoint.budget.sources.set_members(members);
    }

    fn close(&self) {
        self.endpoint.shut();
        let mut hub = lock(&self.network.hub);
        // Another endpoint may have taken the address meanwhile.
        if hub.endpoints.get(&self.endpoint.addr).is_some_and(|current| Arc::ptr_eq(current, &self.endpoint)) {
            hub.endpoints.remove(&self.endpoint.addr);
        }
    }

    fn counters(&self) -> &Counters {
        &self.endpoint.counters
    }
}

impl Drop for MemoryTransport {
    fn drop(&mut self) {
        self.close();
    }
}

/// One end of a stream. While the two addresses cannot reach each other, nothing moves: no bytes, and no end of file.
#[derive(Debug)]
struct MemoryStream {
    pipe: DuplexStream,
    hub: Arc<Mutex<Hub>>,
    us: SocketAddr,
    them: SocketAddr,
}

impl MemoryStream {
    fn poll_link(&self, cx: &Context<'_>) -> Poll<()> {
        lock(&self.hub).poll_link(self.us, self.them, cx)
    }
}

impl AsyncRead for MemoryStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_link(cx));
        Pin::new(&mut self.pipe).poll_read(cx, buf)
    }
}

impl AsyncWrite for MemoryStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_link(cx));
        Pin::new(&mut self.pipe).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_shutdown(cx)
    }
}

/// Decides which packets are lost: SplitMix64, so that a seed means the same on every machine and in every release.
#[derive(Debug)]
struct Loss {
    part: f64,
    state: u64,
}

impl Loss {
    /// Whether the next packet is lost.
    fn next(&mut self) -> bool {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        // The upper 53 bits as a number from 0 up to, but not including, 1.
        ((bits >> 11) as f64) / ((1_u64 << 53) as f64) < self.part
    }
}
