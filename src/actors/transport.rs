//! The transport actor: moves bytes between the sockets and the membership actor.
//!
//! Packets go inward in batches through a bounded queue that drops the oldest, never through a mailbox, so a flood
//! cannot starve timers. Outward they do not come by here at all: a socket takes a packet at once or never, so the
//! membership actor hands it over itself, which halves the wake-ups of an idle node. Each accepted stream is served by its
//! own task under a deadline.

use std::io;
use std::net::SocketAddr;
use std::panic::resume_unwind;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use actix::{
    Actor, ActorContext, ActorFutureExt, Addr, AsyncContext, Context, Handler, ResponseFuture, Supervised, WrapFuture,
};
use bytes::Bytes;
use rand::rngs::StdRng;
use tokio::task::JoinError;
use tokio_util::task::AbortOnDropHandle;

use super::keys::Wrapping;
use super::membership::{Membership, StreamRequest};
use super::message::{drillable, message};
use super::streams::{self, StreamCounts};
use crate::transport::io::ReadLimits;
use crate::transport::{ByteBudget, PacketQueue, Transport};
use crate::wire::stream::MAX_STREAM;
use crate::wire::{StreamMessage, StreamSide, WireError, encode_reply};

/// Packets taken from the socket at a time.
const BATCH: usize = 64;

/// What the transport actor works with. Outlives it, so a restart does not rebind.
pub(crate) struct TransportParts {
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) queue: Arc<PacketQueue>,
    pub(crate) wrapping: Arc<Wrapping>,
    /// Longest exchange on an accepted stream.
    pub(crate) stream_timeout: Duration,
    pub(crate) membership: OnceLock<Addr<Membership>>,
    /// What all streams together may hold in memory.
    pub(crate) budget: ByteBudget,
    pub(crate) streams: Arc<StreamCounts>,
}

pub(crate) struct TransportActor {
    parts: Arc<TransportParts>,
}

impl TransportActor {
    pub(crate) fn new(parts: Arc<TransportParts>) -> Self {
        Self { parts }
    }

    /// Runs a loop as a task of its own: an actor polls all its futures whenever one of them wakes it, and here that is
    /// with every packet. The task ends with the actor's life, and its panic is the actor's. So is its error, unless the
    /// transport was closed because the node is ending: without the loop the node would be deaf, and show itself running.
    fn attend(&self, work: impl Future<Output = io::Error> + 'static, ctx: &mut Context<Self>) {
        let task = AbortOnDropHandle::new(tokio::task::spawn_local(work));
        ctx.spawn(task.into_actor(self).map(|ended, _, ctx| match ended.map_err(JoinError::try_into_panic) {
            Err(Ok(panic)) => resume_unwind(panic),
            Ok(error) if error.kind() != io::ErrorKind::NotConnected => {
                tracing::error!(%error, "the transport failed: its actor begins anew");
                ctx.stop();
            }
            Ok(_) | Err(Err(_)) => {}
        }));
    }
}

/// Opens a stream, writes `bytes`, and, if asked to, reads the one message that answers.
pub(crate) struct Exchange {
    pub(crate) to: SocketAddr,
    pub(crate) bytes: Bytes,
    pub(crate) expect_reply: bool,
    pub(crate) timeout: Duration,
}
message!(Exchange => Result<Option<StreamMessage>, String>);

impl Actor for TransportActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.attend(receive(self.parts.clone()), ctx);
        self.attend(accept(self.parts.clone()), ctx);
    }
}

impl Supervised for TransportActor {
    // Sockets and queue live in the parts; `started` reads from them again.
    fn restarting(&mut self, _: &mut Self::Context) {}
}

drillable!(TransportActor);

impl Handler<Exchange> for TransportActor {
    type Result = ResponseFuture<Result<Option<StreamMessage>, String>>;

    fn handle(&mut self, exchange: Exchange, _: &mut Self::Context) -> Self::Result {
        let parts = self.parts.clone();
        Box::pin(async move {
            let deadline = tokio::time::Instant::now() + exchange.timeout;
            let io = async {
                let mut stream = parts.transport.connect(exchange.to, deadline).await?;
                streams::write(&mut stream, &exchange.bytes).await?;
                if !exchange.expect_reply {
                    return Ok(None);
                }
                // We asked: the answer may take until the deadline to begin.
                let limits = ReadLimits { first_byte: exchange.timeout, ..ReadLimits::new(deadline, MAX_STREAM) };
                let mut permit = parts.budget.permit();
                let options = parts.wrapping.options();
                streams::read(&mut stream, &options, StreamSide::Dialed, &limits, &mut permit)
                    .await
                    .map(|(_, message)| Some(message))
                    .map_err(|unread| unread.error)
            };
            match tokio::time::timeout_at(deadline, io).await {
                Ok(result) => result.map_err(|error: streams::StreamError| format!("{}: {error}", exchange.to)),
                Err(_) => Err(format!("{}: no answer within {:?}", exchange.to, exchange.timeout)),
            }
        })
    }
}

/// Why it ended: `NotConnected` when the transport was closed.
async fn receive(parts: Arc<TransportParts>) -> io::Error {
    let mut batch = Vec::new();
    loop {
        if let Err(error) = parts.transport.recv_packets(&mut batch, BATCH).await {
            return error;
        }
        for packet in batch.drain(..) {
            parts.queue.push(packet);
        }
    }
}

/// As [`receive`].
async fn accept(parts: Arc<TransportParts>) -> io::Error {
    loop {
        let (stream, from) = match parts.transport.accept().await {
            Ok(accepted) => accepted,
            Err(error) => return error,
        };
        let parts = parts.clone();
        tokio::task::spawn_local(async move {
            let _active = parts.streams.begin();
            let timeout = parts.stream_timeout;
            match tokio::time::timeout(timeout, serve(&parts, stream, from)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    parts.streams.refuse(error.reason());
                    tracing::debug!(%from, %error, "stream refused");
                }
                Err(_) => {
                    parts.streams.refuse("deadline");
                    tracing::debug!(%from, ?timeout, "stream timed out");
                }
            }
        });
    }
}

/// Reads the request, lets the membership actor answer it, writes the answer. A peer of our own cluster whose request cannot
/// be read is told why, as by memberlist: its operator sees there that a key is missing. Under another label a stream is
/// closed in silence: who has the wrong label learns nothing from us.
async fn serve(
    parts: &TransportParts,
    mut stream: Box<dyn crate::transport::Stream>,
    from: SocketAddr,
) -> Result<(), streams::StreamError> {
    let limits = ReadLimits::new(tokio::time::Instant::now() + parts.stream_timeout, MAX_STREAM);
    let mut permit = parts.budget.permit();
    let options = parts.wrapping.options();
    let read = streams::read(&mut stream, &options, StreamSide::Accepted, &limits, &mut permit).await;
    let (label, message) = match read {
        Ok(request) => request,
        Err(unread) => {
            if let Some(WireError::WrongLabel { got }) = unread.error.wire() {
                parts.wrapping.foreign_stream(got);
            }
            if let Some((label, complaint)) = unread.complaint() {
                let mut nonces: StdRng = rand::make_rng();
                let complaint = encode_reply(&StreamMessage::Error(complaint), &options, label, &mut nonces);
                // It may have hung up already.
                let _ = streams::write(&mut stream, &complaint).await;
            }
            return Err(unread.error);
        }
    };
    let Some(membership) = parts.membership.get() else { return Ok(()) };
    let answer = membership.send(StreamRequest { from, label, message }).await;
    if let Ok(Some(bytes)) = answer {
        streams::write(&mut stream, &bytes).await?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "transport_tests.rs"]
mod tests;
