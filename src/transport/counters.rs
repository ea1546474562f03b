//! What went through a transport, for metrics and the status page.

use std::sync::atomic::{AtomicU64, Ordering};

use super::budget::StreamRefused;

/// Running totals of one transport. Read them with [`snapshot`](Self::snapshot).
#[derive(Debug, Default)]
pub struct Counters {
    pub(super) packets_in: AtomicU64,
    pub(super) packets_out: AtomicU64,
    pub(super) packet_bytes_in: AtomicU64,
    pub(super) packet_bytes_out: AtomicU64,
    pub(super) packets_dropped: AtomicU64,
    pub(super) packet_errors: AtomicU64,
    pub(super) streams_in: AtomicU64,
    pub(super) streams_out: AtomicU64,
    pub(super) packets_over_rate: AtomicU64,
    pub(super) streams_over_total: AtomicU64,
    pub(super) streams_over_source: AtomicU64,
    pub(super) streams_over_rate: AtomicU64,
    pub(super) stream_errors: AtomicU64,
}

/// The totals at one moment, since the transport was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CounterValues {
    /// Packets handed to the receiver.
    pub packets_in: u64,
    /// Packets that left.
    pub packets_out: u64,
    /// Bytes in the packets handed to the receiver.
    pub packet_bytes_in: u64,
    /// Bytes in the packets that left.
    pub packet_bytes_out: u64,
    /// Packets dropped on purpose because a buffer was full: not sent, or (in memory) pushed out by newer ones.
    pub packets_dropped: u64,
    /// Packets that could not be sent or received for any other reason.
    pub packet_errors: u64,
    /// Streams accepted, within the limits.
    pub streams_in: u64,
    /// Streams opened to others.
    pub streams_out: u64,
    /// Packets dropped because their source, or all strangers together, sent too many.
    pub packets_over_rate: u64,
    /// Streams closed at once because too many were open.
    pub streams_over_total: u64,
    /// Streams closed at once because too many were open from their address.
    pub streams_over_source: u64,
    /// Streams closed at once because their source, or all strangers together, opened too many in a short time.
    pub streams_over_rate: u64,
    /// Connects and accepts that failed.
    pub stream_errors: u64,
}

impl CounterValues {
    /// Streams closed at once because a limit was reached.
    #[must_use]
    pub fn streams_refused(&self) -> u64 {
        self.streams_over_total + self.streams_over_source + self.streams_over_rate
    }
}

impl Counters {
    /// Reads all totals. Each is exact; together they may be a few packets apart.
    #[must_use]
    pub fn snapshot(&self) -> CounterValues {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CounterValues {
            packets_in: read(&self.packets_in),
            packets_out: read(&self.packets_out),
            packet_bytes_in: read(&self.packet_bytes_in),
            packet_bytes_out: read(&self.packet_bytes_out),
            packets_dropped: read(&self.packets_dropped),
            packet_errors: read(&self.packet_errors),
            streams_in: read(&self.streams_in),
            streams_out: read(&self.streams_out),
            packets_over_rate: read(&self.packets_over_rate),
            streams_over_total: read(&self.streams_over_total),
            streams_over_source: read(&self.streams_over_source),
            streams_over_rate: read(&self.streams_over_rate),
            stream_errors: read(&self.stream_errors),
        }
    }

    pub(super) fn stream_refused(&self, why: StreamRefused) {
        let counter = match why {
            StreamRefused::Total => &self.streams_over_total,
            StreamRefused::Source => &self.streams_over_source,
            StreamRefused::Rate => &self.streams_over_rate,
        };
        add(counter, 1);
    }

    pub(super) fn received(&self, bytes: usize) {
        add(&self.packets_in, 1);
        add(&self.packet_bytes_in, bytes);
    }

    /// Counts one attempt to send `bytes`, by its result, and hands the result back.
    pub(super) fn sent(&self, bytes: usize, result: std::io::Result<()>) -> std::io::Result<()> {
        match &result {
            Ok(()) => {
                add(&self.packets_out, 1);
                add(&self.packet_bytes_out, bytes);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => add(&self.packets_dropped, 1),
            Err(_) => add(&self.packet_errors, 1),
        }
        result
    }

    /// Counts one attempt to connect, by its result, and hands the result back.
    pub(super) fn connected<T>(&self, result: std::io::Result<T>) -> std::io::Result<T> {
        add(if result.is_ok() { &self.streams_out } else { &self.stream_errors }, 1);
        result
    }
}

pub(super) fn add(counter: &AtomicU64, by: usize) {
    counter.fetch_add(by as u64, Ordering::Relaxed);
}
