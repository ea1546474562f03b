//! A transport that has nothing but TCP: each packet travels in a connection of its own.
//!
//! Grafana's databases gossip this way. What a connection carries is said by a [`Framing`]; deadlines, sizes and numbers
//! of connections are bounded here, in both directions:
//!
//! * **Inbound**, a connection has two seconds to say what it carries, and a packet [`TcpSettings::read_timeout`] to
//!   arrive whole. [`Limits`] bound the connections, [`TcpSettings::max_packet`] each packet, and a [`ByteBudget`] all
//!   packets that are being read. A packet that does not match its digest is dropped and counted.
//! * **Outbound**, sending never waits: packets go through a bounded queue with a place for each destination, to a bounded
//!   number of writers. Peers that hang keep at most half of them, so they cannot stop the probes of the others.
//!
//! `Ok` from [`try_send_packet`](Transport::try_send_packet) means that the packet was queued. Whether it left is
//! counted. Packets to one destination may overtake each other.

mod counters;
mod inbound;
mod outbound;
mod outbox;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

pub use self::counters::TcpCounterValues;
use self::counters::{Counted, TcpCounters};
use self::outbox::Outbox;
use super::budget::StreamBudget;
use super::close::CloseSignal;
use super::counters::Counters;
use super::error::{BindError, Protocol};
use super::framing::Framing;
use super::io::connect_by;
use super::tcp::{self, TcpListeners};
use super::{
    BoxFuture, ByteBudget, InboundPacket, Limits, MemberAddresses, PacketQueue, Rates, Stream, Transport, canonical,
    closed_error, lock,
};

/// What a [`TcpTransport`] allows itself and others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpSettings {
    /// How many connections may be open that others opened. A packet is one, too, for the moment that it takes: default
    /// 512 in total, and 64 from one IP address; they may be opened as often as packets may come elsewhere.
    pub limits: Limits,
    /// Most bytes of one packet, sent or received. Default 10 MiB and 64 KiB.
    pub max_packet: usize,
    /// How long a packet may take to arrive whole. Default 5 s.
    pub read_timeout: Duration,
    /// How long the connection for a packet may take to be there. Default 2 s.
    pub dial_timeout: Duration,
    /// How long the other side may take to read a packet. Default 5 s.
    pub write_timeout: Duration,
    /// Packets that are written at the same time, at least 2. Default 64: each costs a socket and no thread.
    pub writers: usize,
}

impl Default for TcpSettings {
    fn default() -> Self {
        Self {
            // What elsewhere is a packet is a connection here.
            limits: Limits { max_streams: 512, max_streams_per_ip: 64, streams: Rates::PACKETS, ..Limits::default() },
            max_packet: (10 << 20) + (64 << 10),
            read_timeout: Duration::from_secs(5),
            dial_timeout: Duration::from_secs(2),
            write_timeout: Duration::from_secs(5),
            writers: 64,
        }
    }
}

/// A [`Transport`] over TCP alone.
///
/// Its tasks belong to the tokio runtime in which it was bound.
pub struct TcpTransport {
    addrs: Vec<SocketAddr>,
    to_accept: tokio::sync::Mutex<mpsc::Receiver<(Box<dyn Stream>, SocketAddr)>>,
    shared: Arc<Shared>,
    runtime: Handle,
}

/// What the tasks of a transport share.
struct Shared {
    settings: TcpSettings,
    framing: Arc<dyn Framing>,
    /// Where others are told to reach us.
    advertised: OnceLock<SocketAddr>,
    /// `None` once closed.
    listeners: Mutex<Option<TcpListeners>>,
    packets: PacketQueue,
    streams: mpsc::Sender<(Box<dyn Stream>, SocketAddr)>,
    outbox: Mutex<Outbox>,
    /// Told when the outbox has become idle.
    idle: Notify,
    budget: ByteBudget,
    /// Nothing new may begin.
    closed: CloseSignal,
    /// Nothing is accepted any more, and the port is free.
    ended: CloseSignal,
    counters: Counters,
    tcp: Arc<TcpCounters>,
}

impl Shared {
    fn listeners(&self) -> MutexGuard<'_, Option<TcpListeners>> {
        lock(&self.listeners)
    }
}

impl std::fmt::Debug for TcpTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TcpTransport").field("addrs", &self.addrs).finish_non_exhaustive()
    }
}

impl TcpTransport {
    /// Listens on every address, with the same port. Port 0 picks one that is free for all of them.
    ///
    /// An address that appears twice is bound once.
    ///
    /// # Errors
    /// [`BindError`]; nothing stays bound. A list without an address, and a call outside a tokio runtime, are errors
    /// too.
    pub fn bind(
        ips: &[IpAddr],
        port: u16,
        settings: TcpSettings,
        framing: Arc<dyn Framing>,
    ) -> Result<Self, BindError> {
        let first = ips.first().copied().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        if ips.is_empty() {
            return Err(BindError::invalid_use(first, port, "the list of addresses to listen on is empty"));
        }
        let Ok(runtime) = Handle::try_current() else {
            return Err(BindError::invalid_use(first, port, "sockets can be bound only inside a tokio runtime"));
        };
        let (mut addrs, mut listeners, mut port) = (Vec::<SocketAddr>::new(), Vec::new(), port);
        for &ip in ips {
            if addrs.iter().any(|addr| addr.ip() == ip) {
                continue;
            }
            let explain = |error| BindError::from_io(ip, port, Protocol::Tcp, error);
            let listener = tcp::open(SocketAddr::new(ip, port)).map_err(explain)?;
            port = listener.local_addr().map_err(explain)?.port();
            addrs.push(SocketAddr::new(ip, port));
            listeners.push(listener);
        }
        let (streams, to_accept) = mpsc::channel(settings.limits.max_streams.max(1));
        let shared = Arc::new(Shared {
            settings,
            framing,
            advertised: OnceLock::new(),
            listeners: Mutex::new(Some(TcpListeners::new(listeners, StreamBudget::new(&settings.limits)))),
            packets: PacketQueue::default(),
            streams,
            outbox: Mutex::new(Outbox::new(settings.writers)),
            idle: Notify::new(),
            budget: ByteBudget::default(),
            closed: CloseSignal::new(),
            ended: CloseSignal::new(),
            counters: Counters::default(),
            tcp: Arc::default(),
        });
        runtime.spawn(inbound::attend(shared.clone()));
        Ok(Self { addrs, to_accept: tokio::sync::Mutex::new(to_accept), shared, runtime })
    }

    /// Says where others can reach this transport, if not at the address that it is bound to. Counts once; packets carry
    /// it, and answers to them go there.
    pub fn advertise(&self, addr: SocketAddr) {
        let _ = self.shared.advertised.set(addr);
    }

    /// Every address that is bound, in the order they were given.
    #[must_use]
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.addrs
    }

    fn queue(&self, to: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        let shared = &self.shared;
        if shared.closed.is_closed() {
            return Err(closed_error());
        }
        if bytes.len() > shared.settings.max_packet {
            let text = format!("a packet of {} bytes, more than the {}", bytes.len(), shared.settings.max_packet);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        shared.advertised.get_or_init(|| self.local_addr());
        let pushed = lock(&shared.outbox).push(Instant::now(), canonical(to), Bytes::copy_from_slice(bytes));
        let Some(dropped) = pushed else { return Err(io::ErrorKind::WouldBlock.into()) };
        outbound::dropped(shared, dropped);
        outbound::pump(shared, &self.runtime);
        Ok(())
    }
}

impl Transport for TcpTransport {
    fn local_addr(&self) -> SocketAddr {
        // `bind` refuses an empty list.
        self.addrs[0]
    }

    fn try_send_packet(&self, to: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        let queued = self.queue(to, bytes);
        // What was queued is counted when it has left.
        if queued.is_err() { self.shared.counters.sent(bytes.len(), queued) } else { queued }
    }

    fn recv_packets<'a>(&'a self, into: &'a mut Vec<InboundPacket>, max: usize) -> BoxFuture<'a, io::Result<()>> {
        let Shared { packets, ended, counters, .. } = &*self.shared;
        Box::pin(ended.unless_closed(async move {
            let count = packets.pop_into(into, max).await;
            for packet in into.iter().rev().take(count) {
                counters.received(packet.bytes.len());
            }
            Ok(())
        }))
    }

    fn connect(&self, to: SocketAddr, deadline: Instant) -> BoxFuture<'_, io::Result<Box<dyn Stream>>> {
        let Shared { closed, framing, counters, tcp, .. } = &*self.shared;
        Box::pin(async move {
            let open = async {
                let mut stream = Counted::new(tcp::connect(to, deadline).await?, tcp.clone());
                connect_by(deadline, stream.write_all(&[framing.stream_byte()])).await?;
                Ok(stream)
            };
            let stream = counters.connected(closed.unless_closed(open).await)?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    }

    fn accept(&self) -> BoxFuture<'_, io::Result<(Box<dyn Stream>, SocketAddr)>> {
        Box::pin(self.shared.ended.unless_closed(async move {
            let mut to_accept = self.to_accept.lock().await;
            to_accept.recv().await.ok_or_else(closed_error)
        }))
    }

    fn flush(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            loop {
                // Made before looking, so that the last packet cannot leave in between.
                let idle = self.shared.idle.notified();
                if lock(&self.shared.outbox).is_idle() {
                    return;
                }
                idle.await;
            }
        })
    }

    fn set_members(&self, members: &Arc<MemberAddresses>) {
        if let Some(listeners) = &*self.shared.listeners() {
            listeners.budget.sources.set_members(members);
        }
    }

    fn close(&self) {
        self.shared.closed.close();
        *self.shared.listeners() = None;
        // What is being written is finished; what only waits is not begun.
        outbound::dropped(&self.shared, lock(&self.shared.outbox).clear());
        self.shared.idle.notify_waiters();
        // Hangs up on those who wait to be accepted. Locked only by an accept that waits, and then nobody else waits.
        if let Ok(mut to_accept) = self.to_accept.try_lock() {
            to_accept.close();
            while to_accept.try_recv().is_ok() {}
        }
    }

    fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    fn tcp_counters(&self) -> Option<TcpCounterValues> {
        Some(self.shared.tcp.snapshot())
    }
}

impl Drop for TcpTransport {
    fn drop(&mut self) {
        self.close();
    }
}
