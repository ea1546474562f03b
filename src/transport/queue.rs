//! A bounded queue of packets between the task that receives them and the actor that handles them.
//!
//! It exists because an actor's mailbox is neither bounded nor fair. When the actor falls behind, the *oldest* packet
//! goes: gossip repeats itself, so new packets are worth more than old ones.

use std::collections::VecDeque;
use std::sync::Mutex;

use tokio::sync::Notify;

use super::{InboundPacket, lock};

/// A bounded queue of packets that drops, and counts, the oldest when it is full.
#[derive(Debug)]
pub struct PacketQueue {
    capacity: usize,
    max_bytes: usize,
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    packets: VecDeque<InboundPacket>,
    bytes: usize,
    dropped: u64,
    closed: bool,
}

impl PacketQueue {
    /// The default capacity, as deep as memberlist's hand-off queue: 1024 packets.
    pub const DEFAULT_CAPACITY: usize = 1024;

    /// The bytes that all packets of a queue may have: 64 MiB, as many as that many of the largest datagrams have. Packets
    /// over TCP can be larger than those.
    pub const MAX_BYTES: usize = 64 << 20;

    /// A queue for at most `capacity` packets (at least 1), and [`MAX_BYTES`](Self::MAX_BYTES). Memory is taken as packets
    /// come.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { capacity: capacity.max(1), max_bytes: Self::MAX_BYTES, inner: Mutex::default(), changed: Notify::new() }
    }

    /// Appends a packet, and returns the one that had to go for it: the oldest when the queue is full, or this very
    /// one when the queue is closed. A large packet may push several out; the last of them is returned. What went is counted in [`dropped`](Self::dropped).
    pub fn push(&self, packet: InboundPacket) -> Option<InboundPacket> {
        let gone = {
            let mut inner = lock(&self.inner);
            let gone = if inner.closed {
                Some(packet)
            } else {
                let mut gone = None;
                inner.bytes += packet.bytes.len();
                inner.packets.push_back(packet);
                while inner.packets.len() > self.capacity || inner.bytes > self.max_bytes && inner.packets.len() > 1 {
                    let Some(oldest) = inner.packets.pop_front() else { break };
                    inner.bytes -= oldest.bytes.len();
                    // The last one is counted below.
                    inner.dropped += u64::from(gone.replace(oldest).is_some());
                }
                gone
            };
            inner.dropped += u64::from(gone.is_some());
            gone
        };
        self.changed.notify_one();
        gone
    }

    /// Waits for at least one packet, and takes those that are there, oldest first, at most `max` (at least 1).
    ///
    /// An empty answer means that the queue is closed and drained. Cancel safe.
    pub async fn pop_batch(&self, max: usize) -> Vec<InboundPacket> {
        let mut batch = Vec::new();
        self.pop_into(&mut batch, max).await;
        batch
    }

    /// Like [`pop_batch`](Self::pop_batch), but appends to a vector that can be used again, and returns how many.
    pub async fn pop_into(&self, into: &mut Vec<InboundPacket>, max: usize) -> usize {
        // Under a flood there is always a packet ready: without this a consumer would never let others run.
        tokio::task::coop::consume_budget().await;
        loop {
            // Made before looking, so that a push or a close between looking and waiting is not missed.
            let changed = self.changed.notified();
            {
                let mut inner = lock(&self.inner);
                let count = inner.packets.len().min(max.max(1));
                if count > 0 {
                    let before = into.len();
                    into.extend(inner.packets.drain(..count));
                    inner.bytes -= into.iter().skip(before).map(|packet| packet.bytes.len()).sum::<usize>();
                    if !inner.packets.is_empty() {
                        self.changed.notify_one();
                    }
                    return count;
                }
                if inner.closed {
                    return 0;
                }
            }
            changed.await;
        }
    }

    /// Takes no more packets, and wakes whoever waits. What is queued can still be popped.
    pub fn close(&self) {
        lock(&self.inner).closed = true;
        self.changed.notify_waiters();
    }

    /// Packets that wait in the queue.
    #[must_use]
    pub fn len(&self) -> usize {
        lock(&self.inner).packets.len()
    }

    /// Whether no packet waits in the queue.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Packets that were dropped so far.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        lock(&self.inner).dropped
    }
}

impl Default for PacketQueue {
    fn default() -> Self {
        Self::new(Self::DEFAULT_CAPACITY)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;

    fn packet(number: u8) -> InboundPacket {
        InboundPacket { from: "127.0.0.1:1".parse().unwrap(), bytes: Bytes::copy_from_slice(&[number]) }
    }

    fn numbers(packets: &[InboundPacket]) -> Vec<u8> {
        packets.iter().map(|packet| packet.bytes[0]).collect()
    }

    #[tokio::test]
    async fn a_full_queue_drops_and_counts_the_oldest() {
        let queue = PacketQueue::new(3);
        let gone: Vec<Option<InboundPacket>> = (0..5).map(|number| queue.push(packet(number))).collect();
        assert_eq!(gone, [None, None, None, Some(packet(0)), Some(packet(1))]);
        assert_eq!((queue.len(), queue.dropped()), (3, 2));
        assert_eq!(numbers(&queue.pop_batch(2).await), [2, 3]);
        assert_eq!(numbers(&queue.pop_batch(2).await), [4]);
        assert!(queue.is_empty());
    }

    #[tokio::test]
    async fn a_waiting_consumer_is_woken_by_a_push() {
        let queue = Arc::new(PacketQueue::default());
        let consumer = tokio::spawn({
            let queue = Arc::clone(&queue);
            async move { queue.pop_batch(10).await }
        });
        tokio::task::yield_now().await;
        queue.push(packet(7));
        assert_eq!(numbers(&consumer.await.unwrap()), [7]);
    }

    #[tokio::test]
    async fn two_consumers_share_a_burst_and_none_sleeps_through_it() {
        let queue = Arc::new(PacketQueue::default());
        let consumers: Vec<_> = (0..2)
            .map(|_| {
                let queue = Arc::clone(&queue);
                tokio::spawn(async move { queue.pop_batch(1).await })
            })
            .collect();
        tokio::task::yield_now().await;
        queue.push(packet(1));
        queue.push(packet(2));
        let mut seen = Vec::new();
        for consumer in consumers {
            seen.extend(numbers(&consumer.await.unwrap()));
        }
        seen.sort_unstable();
        assert_eq!(seen, [1, 2]);
    }

    #[tokio::test]
    async fn a_closed_queue_is_drained_and_then_answers_empty() {
        let queue = PacketQueue::default();
        queue.push(packet(1));
        queue.close();
        assert_eq!(queue.push(packet(2)), Some(packet(2)));
        assert_eq!(numbers(&queue.pop_batch(10).await), [1]);
        assert!(queue.pop_batch(10).await.is_empty());
    }

    #[tokio::test]
    async fn close_wakes_a_waiting_consumer() {
        let queue = Arc::new(PacketQueue::default());
        let consumer = tokio::spawn({
            let queue = Arc::clone(&queue);
            async move { queue.pop_batch(10).await }
        });
        tokio::task::yield_now().await;
        queue.close();
        assert!(consumer.await.unwrap().is_empty());
    }
}
