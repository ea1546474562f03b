//! The stream half of [`NetTransport`](super::NetTransport): TCP listeners and connects.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use socket2::{Domain, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use super::accepted::Accepted;
use super::backoff::Backoff;
use super::budget::StreamBudget;
use super::counters::{Counters, add};
use super::io::connect_by;
use super::net::{any, rotated};
use super::{Stream, canonical};

/// Connections that the system completes ahead of our accepting them.
const BACKLOG: i32 = 1024;

/// One listener for each bound address.
#[derive(Debug)]
pub(super) struct TcpListeners {
    listeners: Vec<TcpListener>,
    pub(super) budget: Arc<StreamBudget>,
    /// Where the next accept starts looking, so that a flood on one listener does not starve the others.
    turn: AtomicUsize,
}

/// Opens, binds and listens.
pub(super) fn open(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(socket2::Protocol::TCP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Lets a restarted node listen while old connections are in TIME_WAIT. On Windows the option means that others may
    // take the port over, and is not needed.
    #[cfg(not(windows))]
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Connects, until the deadline.
pub(super) async fn connect(to: SocketAddr, deadline: Instant) -> io::Result<TcpStream> {
    let stream = connect_by(deadline, TcpStream::connect(canonical(to))).await?;
    // TCP can connect a socket to itself when the port of a dead local peer is handed out as the local port.
    if stream.local_addr()? == stream.peer_addr()? {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    stream.set_nodelay(true)?;
    Ok(stream)
}

impl TcpListeners {
    pub(super) fn new(listeners: Vec<TcpListener>, budget: Arc<StreamBudget>) -> Self {
        Self { listeners, budget, turn: AtomicUsize::new(0) }
    }

    /// The next stream that is within the limits.
    pub(super) async fn accept(&self, counters: &Counters) -> (Box<dyn Stream>, SocketAddr) {
        let mut backoff = Backoff::new();
        loop {
            tokio::task::coop::consume_budget().await;
            let start = self.turn.fetch_add(1, Ordering::Relaxed);
            let accepts = rotated(&self.listeners, start).map(TcpListener::accept);
            match any(accepts).await {
                Ok((stream, from)) => {
                    if let Some(stream) = self.admit(stream, from, counters) {
                        add(&counters.streams_in, 1);
                        return (Box::new(stream), from);
                    }
                }
                Err(error) => {
                    add(&counters.stream_errors, 1);
                    // The peer gave up while it was queued: that is over with this one connection, while a lack of
                    // file descriptors or memory is not.
                    if !is_of_the_peer(&error) {
                        backoff.wait().await;
                    }
                }
            }
        }
    }

    /// The next connection of any listener, for one task. It is not within the limits yet: see [`Self::admit`].
    pub(super) fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
        let start = self.turn.fetch_add(1, Ordering::Relaxed);
        for listener in rotated(&self.listeners, start) {
            if let Poll::Ready(accepted) = listener.poll_accept(cx) {
                return Poll::Ready(accepted);
            }
        }
        Poll::Pending
    }

    /// Gives a connection a place within the limits, or closes it and counts that.
    pub(super) fn admit(
        &self,
        stream: TcpStream,
        from: SocketAddr,
        counters: &Counters,
    ) -> Option<Accepted<TcpStream>> {
        let permit = match self.budget.try_take(from.ip()) {
            Ok(permit) => permit,
            Err(why) => {
                counters.stream_refused(why);
                return None;
            }
        };
        // Costs speed at worst, so a failure is no reason to refuse the stream.
        let _ = stream.set_nodelay(true);
        Some(Accepted::new(stream, permit))
    }
}

pub(super) fn is_of_the_peer(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}
