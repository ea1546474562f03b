//! What only a transport without datagrams counts, and the wrapper that counts the bytes of its connections.

use std::io::Result;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::transport::counters::add;

/// Running totals beside those of [`Counters`](crate::transport::Counters).
#[derive(Debug, Default)]
pub(super) struct TcpCounters {
    pub(super) packets_received_errors: AtomicU64,
    pub(super) packets_damaged: AtomicU64,
    pub(super) packets_sent_errors: AtomicU64,
    pub(super) unknown_connections: AtomicU64,
    pub(super) sent_bytes: AtomicU64,
    pub(super) received_bytes: AtomicU64,
}

/// Totals of a [`TcpTransport`](super::TcpTransport), since it was made, beside those that every transport has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TcpCounterValues {
    /// Connections that began as a packet and held none that could be read: too slow, too long, damaged, malformed.
    pub packets_received_errors: u64,
    /// Of these, packets that did not match their digest.
    pub packets_damaged: u64,
    /// Packets that could not be brought to their receiver: refused, or not taken in time.
    pub packets_sent_errors: u64,
    /// Connections whose first byte means nothing, and those that sent none in time.
    pub unknown_connections: u64,
    /// Bytes written to connections of both kinds, framing included.
    pub sent_bytes: u64,
    /// Bytes read from connections of both kinds, framing included.
    pub received_bytes: u64,
}

impl TcpCounters {
    pub(super) fn snapshot(&self) -> TcpCounterValues {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        TcpCounterValues {
            packets_received_errors: read(&self.packets_received_errors),
            packets_damaged: read(&self.packets_damaged),
            packets_sent_errors: read(&self.packets_sent_errors),
            unknown_connections: read(&self.unknown_connections),
            sent_bytes: read(&self.sent_bytes),
            received_bytes: read(&self.received_bytes),
        }
    }
}

/// A connection whose bytes are counted.
pub(super) struct Counted<S> {
    stream: S,
    counters: Arc<TcpCounters>,
}

impl<S> Counted<S> {
    pub(super) fn new(stream: S, counters: Arc<TcpCounters>) -> Self {
        Self { stream, counters }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        add(&self.counters.received_bytes, buf.filled().len() - before);
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if let Poll::Ready(Ok(count)) = written {
            add(&self.counters.sent_bytes, count);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
