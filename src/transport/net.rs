//! UDP and TCP on the same port number: what every memberlist node listens on.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::Poll;

use tokio::time::Instant;

use super::budget::StreamBudget;
use super::close::CloseSignal;
use super::counters::Counters;
use super::error::{BindError, BindErrorKind, Protocol};
use super::tcp::{self, TcpListeners};
use super::udp::{self, UdpSockets};
use super::{BoxFuture, InboundPacket, Limits, MemberAddresses, Stream, Transport, check_packet_size, closed_error};

/// How many ports to try when any port will do: one is often free for TCP but not for UDP.
const PORT_TRIES: usize = 10;

/// A [`Transport`] over the network: UDP for packets and TCP for streams, on one port number.
///
/// Its sockets belong to the tokio runtime in which it was bound.
#[derive(Debug)]
pub struct NetTransport {
    addrs: Vec<SocketAddr>,
    /// `None` once closed, so that the sockets go although somebody still holds the transport.
    sockets: RwLock<Option<Arc<Sockets>>>,
    closed: CloseSignal,
    counters: Counters,
}

#[derive(Debug)]
struct Sockets {
    udp: UdpSockets,
    tcp: TcpListeners,
}

impl NetTransport {
    /// Binds UDP and TCP on every address, with the same port. Port 0 picks one that is free for all of them.
    ///
    /// An address that appears twice is bound once. Packets are sent from the first address of the receiver's family.
    ///
    /// # Errors
    /// [`BindError`]; nothing stays bound. A list without an address, and a call outside a tokio runtime, are errors
    /// too.
    pub fn bind(ips: &[IpAddr], port: u16, limits: Limits) -> Result<Self, BindError> {
        let first = ips.first().copied().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        if ips.is_empty() {
            return Err(BindError::invalid_use(first, port, "the list of addresses to listen on is empty"));
        }
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(BindError::invalid_use(first, port, "sockets can be bound only inside a tokio runtime"));
        }
        let mut distinct: Vec<IpAddr> = Vec::with_capacity(ips.len());
        for ip in ips {
            if !distinct.contains(ip) {
                distinct.push(*ip);
            }
        }
        let bound = if port == 0 {
            retry_busy_ports(PORT_TRIES, || bind_all(&distinct, 0, &limits))?
        } else {
            bind_all(&distinct, port, &limits)?
        };
        let sockets = Sockets {
            udp: UdpSockets::new(bound.udp, &limits),
            tcp: TcpListeners::new(bound.tcp, StreamBudget::new(&limits)),
        };
        Ok(Self {
            addrs: distinct.iter().map(|ip| SocketAddr::new(*ip, bound.port)).collect(),
            sockets: RwLock::new(Some(Arc::new(sockets))),
            closed: CloseSignal::new(),
            counters: Counters::default(),
        })
    }

    /// Every address that is bound, in the order they were given.
    #[must_use]
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.addrs
    }

    /// Bytes of the smallest UDP receive buffer, as the system reports it; 0 once closed. Linux grants no more than
    /// `net.core.rmem_max` without a word, so a value below [`Limits::receive_buffer`] deserves a log line.
    #[must_use]
    pub fn receive_buffer(&self) -> usize {
        self.sockets().map_or(0, |sockets| sockets.udp.receive_buffer())
    }

    fn sockets(&self) -> io::Result<Arc<Sockets>> {
        let sockets = self.sockets.read().unwrap_or_else(PoisonError::into_inner);
        sockets.clone().ok_or_else(closed_error)
    }
}

impl Transport for NetTransport {
    fn local_addr(&self) -> SocketAddr {
        // `bind` refuses an empty list.
        self.addrs[0]
    }

    fn try_send_packet(&self, to: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        let send = || {
            check_packet_size(bytes)?;
            self.sockets()?.udp.send(to, bytes)
        };
        self.counters.sent(bytes.len(), send())
    }

    fn recv_packets<'a>(&'a self, into: &'a mut Vec<InboundPacket>, max: usize) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            let sockets = self.sockets()?;
            let recv = async {
                sockets.udp.recv(into, max, &self.counters).await;
                Ok(())
            };
            self.closed.unless_closed(recv).await
        })
    }

    fn connect(&self, to: SocketAddr, deadline: Instant) -> BoxFuture<'_, io::Result<Box<dyn Stream>>> {
        Box::pin(async move {
            let stream = self.closed.unless_closed(tcp::connect(to, deadline)).await;
            self.counters.connected(stream).map(|stream| Box::new(stream) as Box<dyn Stream>)
        })
    }

    fn accept(&self) -> BoxFuture<'_, io::Result<(Box<dyn Stream>, SocketAddr)>> {
        Box::pin(async move {
            let sockets = self.sockets()?;
            self.closed.unless_closed(async { Ok(sockets.tcp.accept(&self.counters).await) }).await
        })
    }

    fn set_members(&self, members: &Arc<MemberAddresses>) {
        // A closed transport limits nothing any more.
        let Ok(sockets) = self.sockets() else { return };
        sockets.udp.sources.set_members(members);
        sockets.tcp.budget.sources.set_members(members);
    }

    fn close(&self) {
        self.closed.close();
        *self.sockets.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}

/// Sockets that were bound together, before they become a transport.
struct Bound {
    port: u16,
    udp: Vec<tokio::net::UdpSocket>,
    tcp: Vec<tokio::net::TcpListener>,
}

/// Binds both sockets of every address. With port 0 the first socket picks the port for all.
fn bind_all(ips: &[IpAddr], port: u16, limits: &Limits) -> Result<Bound, BindError> {
    let mut bound = Bound { port, udp: Vec::with_capacity(ips.len()), tcp: Vec::with_capacity(ips.len()) };
    for &ip in ips {
        let explain = |port, protocol| move |error| BindError::from_io(ip, port, protocol, error);
        let listener = tcp::open(SocketAddr::new(ip, bound.port)).map_err(explain(bound.port, Protocol::Tcp))?;
        bound.port = listener.local_addr().map_err(explain(bound.port, Protocol::Tcp))?.port();
        bound.tcp.push(listener);
        let socket = udp::open(SocketAddr::new(ip, bound.port), limits).map_err(explain(bound.port, Protocol::Udp))?;
        bound.udp.push(socket);
    }
    Ok(bound)
}

/// Repeats an attempt to bind any port, as long as the port that came up is taken elsewhere.
fn retry_busy_ports<T>(tries: usize, mut attempt: impl FnMut() -> Result<T, BindError>) -> Result<T, BindError> {
    let mut left = tries;
    loop {
        left = left.saturating_sub(1);
        match attempt() {
            Err(error) if error.kind == BindErrorKind::PortInUse && left > 0 => {}
            Err(mut error) if error.kind == BindErrorKind::PortInUse => {
                error.port = 0;
                error.hint = format!("no port was free for both UDP and TCP on all addresses in {tries} tries");
                return Err(error);
            }
            done => return done,
        }
    }
}

/// All items, beginning at `start` (modulo their number) and going round.
pub(super) fn rotated<T>(items: &[T], start: usize) -> impl Iterator<Item = &T> {
    items.iter().cycle().skip(start.checked_rem(items.len()).unwrap_or(0)).take(items.len())
}

/// Waits for the first of several futures; the others are dropped. Never ends when there are none.
pub(super) async fn any<F: Future>(futures: impl Iterator<Item = F>) -> F::Output {
    let mut futures: Vec<Pin<Box<F>>> = futures.map(Box::pin).collect();
    poll_fn(|cx| {
        for future in &mut futures {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(output);
            }
        }
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn busy() -> BindError {
        let error = io::Error::from(io::ErrorKind::AddrInUse);
        BindError::from_io(IpAddr::V4(Ipv4Addr::LOCALHOST), 4711, Protocol::Udp, error)
    }

    #[test]
    fn a_port_that_is_taken_for_udp_makes_another_port_be_tried() {
        let mut calls = 0;
        let port = retry_busy_ports(PORT_TRIES, || {
            calls += 1;
            if calls < 3 { Err(busy()) } else { Ok(calls) }
        });
        assert_eq!(port.unwrap(), 3);
    }

    #[test]
    fn after_ten_taken_ports_the_error_says_so() {
        let mut calls = 0;
        let error = retry_busy_ports::<()>(PORT_TRIES, || {
            calls += 1;
            Err(busy())
        })
        .unwrap_err();
        assert_eq!(calls, 10);
        assert_eq!(error.kind, BindErrorKind::PortInUse);
        assert_eq!(
            error.to_string(),
            "cannot listen on 127.0.0.1:0: no port was free for both UDP and TCP on all addresses in 10 tries"
        );
    }

    #[test]
    fn another_error_is_not_retried() {
        let mut calls = 0;
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        let denied = BindError::from_io(IpAddr::V4(Ipv4Addr::LOCALHOST), 0, Protocol::Tcp, denied);
        let mut denied = Some(denied);
        let error = retry_busy_ports::<()>(PORT_TRIES, || {
            calls += 1;
            Err(denied.take().unwrap())
        });
        assert_eq!((error.unwrap_err().kind, calls), (BindErrorKind::PermissionDenied, 1));
    }

    #[test]
    fn rotation_visits_everything_once_from_any_start() {
        let order: Vec<i32> = rotated(&[1, 2, 3], usize::MAX).copied().collect();
        assert_eq!(order, [1, 2, 3], "usize::MAX is divisible by three");
        assert_eq!(rotated(&[1, 2, 3], 2).copied().collect::<Vec<i32>>(), [3, 1, 2]);
        assert_eq!(rotated::<i32>(&[], 5).count(), 0);
    }

    #[test]
    fn binding_outside_a_runtime_is_an_error_and_not_a_panic() {
        let error = NetTransport::bind(&[Ipv4Addr::LOCALHOST.into()], 0, Limits::default()).unwrap_err();
        assert_eq!(error.kind, BindErrorKind::InvalidUse);
    }
}
