//! Connections that others opened: what they carry, read within limits that no peer can stretch.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncReadExt;
use tokio::time::{Instant, timeout_at};

use super::counters::Counted;
use super::{Shared, Stream};
use crate::transport::InboundPacket;
use crate::transport::backoff::Backoff;
use crate::transport::budget::StreamRefused;
use crate::transport::counters::add;
use crate::transport::framing::{Carries, FramingError, Unframed};
use crate::transport::io::{ReadError, ReadLimits, feed_until};
use crate::transport::tcp::is_of_the_peer;

/// How long a connection may say nothing.
const FIRST_BYTE: Duration = Duration::from_secs(2);

/// Sets a signal when nothing is accepted any more, however that came.
struct Ended(Arc<Shared>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.ended.close();
    }
}

/// Accepts until the transport is closed. A panic ends the connection that it was about, not this.
pub(super) async fn attend(shared: Arc<Shared>) {
    let ended = Ended(shared);
    revive(|| accept(ended.0.clone())).await;
}

/// Does it again for as long as it panics.
async fn revive<F: Future<Output = ()> + Send + 'static>(mut work: impl FnMut() -> F) {
    let mut backoff = Backoff::new();
    while let Err(error) = tokio::spawn(work()).await
        && error.is_panic()
    {
        tracing::error!(%error, "accepting connections begins anew");
        backoff.wait().await;
    }
}

/// Accepts until the transport is closed. The listeners are borrowed for a moment at a time only, so that closing the
/// transport closes them at once.
async fn accept(shared: Arc<Shared>) {
    let shared = &shared;
    let accepting = async {
        let mut backoff = Backoff::new();
        loop {
            let accepted = std::future::poll_fn(|cx| {
                let listeners = shared.listeners();
                let Some(listeners) = &*listeners else { return Poll::Ready(None) };
                let accepted = ready!(listeners.poll_accept(cx));
                Poll::Ready(Some(
                    accepted.map(|(stream, from)| (listeners.admit(stream, from, &shared.counters), from)),
                ))
            });
            match accepted.await {
                None => return Ok(()),
                Some(Ok((None, _))) => {}
                Some(Ok((Some(stream), from))) => {
                    let stream = Box::new(Counted::new(stream, shared.tcp.clone()));
                    tokio::spawn(serve(shared.clone(), stream, from));
                }
                Some(Err(error)) => {
                    add(&shared.counters.stream_errors, 1);
                    if !is_of_the_peer(&error) {
                        backoff.wait().await;
                    }
                }
            }
            tokio::task::coop::consume_budget().await;
        }
    };
    let _: io::Result<()> = shared.closed.unless_closed(accepting).await;
}

async fn serve(shared: Arc<Shared>, stream: Box<dyn Stream>, from: SocketAddr) {
    let work = async {
        receive(&shared, stream, from).await;
        Ok(())
    };
    let _: io::Result<()> = shared.closed.unless_closed(work).await;
}

async fn receive(shared: &Arc<Shared>, mut stream: Box<dyn Stream>, from: SocketAddr) {
    let start = Instant::now();
    let first = match timeout_at(start + FIRST_BYTE, stream.read_u8()).await {
        Ok(Ok(first)) => first,
        // Connected and closed, as probes of load balancers do: nobody wanted anything.
        Ok(Err(_)) => return,
        Err(_) => return add(&shared.tcp.unknown_connections, 1),
    };
    match shared.framing.carries(first) {
        Carries::Packet => match read_packet(shared, &mut stream, first, start).await {
            Ok(packet) => {
                // As with a datagram: whoever sends an empty one is told nothing, and neither are we.
                if shared.packets.push(packet).is_some() {
                    add(&shared.counters.packets_dropped, 1);
                }
            }
            Err(error) => {
                add(&shared.tcp.packets_received_errors, 1);
                add(&shared.counters.packet_errors, 1);
                if matches!(error, ReadError::Refused(FramingError::Damaged)) {
                    add(&shared.tcp.packets_damaged, 1);
                }
            }
        },
        Carries::Stream => match shared.streams.try_send((stream, from)) {
            Ok(()) => add(&shared.counters.streams_in, 1),
            Err(_) => shared.counters.stream_refused(StreamRefused::Total),
        },
        Carries::Unknown => add(&shared.tcp.unknown_connections, 1),
    }
}

/// Reads a connection to its end: there the packet ends, too.
async fn read_packet(
    shared: &Shared,
    stream: &mut Box<dyn Stream>,
    first: u8,
    start: Instant,
) -> Result<InboundPacket, ReadError<FramingError>> {
    let settings = &shared.settings;
    // One more, so that a packet of the largest size is seen to end.
    let max = shared.framing.frame_len(settings.max_packet) + 1;
    let limits = ReadLimits { first_byte: FIRST_BYTE, ..ReadLimits::new(start + settings.read_timeout, max) };
    let mut permit = shared.budget.permit();
    let mut connection = BytesMut::from(&[first][..]);
    let read = feed_until(stream, &limits, &mut permit, |piece| {
        connection.extend_from_slice(piece);
        Ok(false)
    });
    match read.await {
        Err(ReadError::Closed { .. }) => {}
        Err(error) => return Err(error),
        Ok(_) => return Err(ReadError::TooLarge { max }),
    }
    let Unframed { from, packet } = shared.framing.unframe(connection.freeze()).map_err(ReadError::Refused)?;
    if packet.len() > settings.max_packet {
        return Err(ReadError::TooLarge { max });
    }
    // A slice would keep the whole buffer, of up to twice the size, for as long as the queue keeps the packet.
    Ok(InboundPacket { from, bytes: Bytes::copy_from_slice(&packet) })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn what_accepts_goes_on_after_a_panic() {
        let runs = Arc::new(AtomicU32::new(0));
        let work = || {
            let run = runs.fetch_add(1, Ordering::Relaxed);
            async move { assert!(run == 2, "a bug") }
        };
        revive(work).await;
        assert_eq!(runs.load(Ordering::Relaxed), 3);
    }
}
