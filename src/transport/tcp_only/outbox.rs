//! Packets that wait to be written to connections of their own, and which of them may be written next.
//!
//! A connection to a host that is gone hangs until its deadline. If whoever writes takes packets as they come, a few such
//! hosts stop everything, also the probes of those that live, and then those are suspected, too. So:
//!
//! * each destination has a short queue of its own, and its oldest packet goes when that is full: gossip repeats itself;
//! * destinations take turns, and each has at most [`PER_DESTINATION`] packets being written;
//! * a destination whose last packet failed has one at a time, and all of those together at most half of the writers. The
//!   other half is always there for the destinations that answer;
//! * a packet that waited longer than [`MAX_WAIT`] is dropped: its receiver would only be told old news.
//!
//! No sockets here: this decides, and [`TcpTransport`](super::TcpTransport) writes.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

/// Packets that wait for one destination.
const QUEUE: usize = 32;
/// Packets that are being written to one destination, so that a small one need not wait for a large one.
const PER_DESTINATION: usize = 2;
/// Packets that wait for all destinations.
const MAX_WAITING: usize = 4096;
/// Bytes that wait for all destinations.
const MAX_BYTES: usize = 64 << 20;
/// How long a packet waits at most. Longer than probes wait for their answer would be of no use.
const MAX_WAIT: Duration = Duration::from_secs(2);
/// How long it is remembered that a destination failed.
const REMEMBERED: Duration = Duration::from_secs(30);

/// What waits, and what is being written.
#[derive(Debug)]
pub(super) struct Outbox {
    writers: usize,
    destinations: HashMap<SocketAddr, Destination>,
    /// Destinations with packets that wait, each once.
    turns: VecDeque<SocketAddr>,
    waiting: usize,
    bytes: usize,
    writing: usize,
    /// How many of those go to destinations that had failed.
    writing_doubtful: usize,
}

#[derive(Debug, Default)]
struct Destination {
    waiting: VecDeque<(Instant, Bytes)>,
    writing: usize,
    failed: Option<Instant>,
}

/// A packet that may be written now. Give it back with [`Outbox::done`].
#[derive(Debug)]
pub(super) struct Job {
    pub(super) to: SocketAddr,
    pub(super) packet: Bytes,
    doubtful: bool,
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It was written whole.
    Written,
    /// Nobody could be reached.
    NotConnected,
    /// Somebody could be reached, and did not take it.
    NotTaken,
}

impl Outbox {
    /// With so many packets being written at a time, at least 2.
    pub(super) fn new(writers: usize) -> Self {
        Self {
            writers: writers.max(2),
            destinations: HashMap::new(),
            turns: VecDeque::new(),
            waiting: 0,
            bytes: 0,
            writing: 0,
            writing_doubtful: 0,
        }
    }

    /// Lets a packet wait. Says how many packets had to go for it, or `None` when there is no room at all for it.
    pub(super) fn push(&mut self, now: Instant, to: SocketAddr, packet: Bytes) -> Option<usize> {
        if self.waiting >= MAX_WAITING || self.bytes.saturating_add(packet.len()) > MAX_BYTES {
            return None;
        }
        self.forget(now);
        let destination = self.destinations.entry(to).or_default();
        if destination.waiting.is_empty() {
            self.turns.push_back(to);
        }
        let mut dropped = 0;
        if destination.waiting.len() >= QUEUE
            && let Some((_, oldest)) = destination.waiting.pop_front()
        {
            self.waiting -= 1;
            self.bytes -= oldest.len();
            dropped = 1;
        }
        self.waiting += 1;
        self.bytes += packet.len();
        destination.waiting.push_back((now, packet));
        Some(dropped)
    }

    /// The next packet that may be written, and how many were dropped on the way to it because they had waited too long.
    pub(super) fn next(&mut self, now: Instant) -> (Option<Job>, usize) {
        let mut dropped = 0;
        for _ in 0..self.turns.len() {
            if self.writing >= self.writers {
                break;
            }
            let Some(to) = self.turns.pop_front() else { break };
            let Some(destination) = self.destinations.get_mut(&to) else { continue };
            while let Some((since, packet)) = destination.waiting.front() {
                if now.saturating_duration_since(*since) <= MAX_WAIT {
                    break;
                }
                self.waiting -= 1;
                self.bytes -= packet.len();
                dropped += 1;
                destination.waiting.pop_front();
            }
            let doubtful = destination.failed.is_some();
            let free = if doubtful {
                destination.writing == 0 && self.writing_doubtful < self.writers / 2
            } else {
                destination.writing < PER_DESTINATION
            };
            let packet = if free { destination.waiting.pop_front() } else { None };
            if !destination.waiting.is_empty() {
                self.turns.push_back(to);
            }
            if let Some((_, packet)) = packet {
                destination.writing += 1;
                self.writing += 1;
                self.writing_doubtful += usize::from(doubtful);
                self.waiting -= 1;
                self.bytes -= packet.len();
                return (Some(Job { to, packet, doubtful }), dropped);
            }
            self.forget_idle(to);
        }
        (None, dropped)
    }

    /// Says what became of a packet. What else waits for somebody who cannot be reached goes with it: the number of those
    /// is returned.
    pub(super) fn done(&mut self, now: Instant, job: &Job, outcome: Outcome) -> usize {
        self.writing -= 1;
        self.writing_doubtful -= usize::from(job.doubtful);
        let Some(destination) = self.destinations.get_mut(&job.to) else { return 0 };
        destination.writing -= 1;
        destination.failed = (outcome != Outcome::Written).then_some(now);
        let mut gone = 0;
        if outcome == Outcome::NotConnected {
            gone = destination.waiting.len();
            self.waiting -= gone;
            self.bytes -= destination.waiting.drain(..).map(|(_, packet)| packet.len()).sum::<usize>();
            self.turns.retain(|to| *to != job.to);
        }
        self.forget_idle(job.to);
        gone
    }

    /// Drops everything that waits, and says how much that was.
    pub(super) fn clear(&mut self) -> usize {
        self.turns.clear();
        self.destinations.retain(|_, destination| {
            destination.waiting.clear();
            destination.writing > 0
        });
        self.bytes = 0;
        std::mem::take(&mut self.waiting)
    }

    /// Whether nothing waits and nothing is being written.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting == 0 && self.writing == 0
    }

    fn forget_idle(&mut self, to: SocketAddr) {
        let idle = |it: &Destination| it.waiting.is_empty() && it.writing == 0 && it.failed.is_none();
        if self.destinations.get(&to).is_some_and(idle) {
            self.destinations.remove(&to);
        }
    }

    /// Keeps the memory of failures from growing: addresses come from gossip, that is, from strangers.
    fn forget(&mut self, now: Instant) {
        if self.destinations.len() < MAX_WAITING / 4 {
            return;
        }
        let over = self.destinations.len() >= MAX_WAITING;
        self.destinations.retain(|_, destination| {
            let recent = destination.failed.is_some_and(|at| now.saturating_duration_since(at) < REMEMBERED);
            !destination.waiting.is_empty() || destination.writing > 0 || recent && !over
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn addr(number: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, number], 7946))
    }

    fn take(outbox: &mut Outbox, now: Instant) -> Vec<Job> {
        std::iter::from_fn(|| outbox.next(now).0).collect()
    }

    #[test]
    fn destinations_that_do_not_answer_leave_half_of_the_writers_to_the_others() {
        let now = Instant::now();
        let mut outbox = Outbox::new(8);
        // Everybody fails once.
        for gone in 1..=20 {
            outbox.push(now, addr(gone), "x".into()).unwrap();
            for job in take(&mut outbox, now) {
                outbox.done(now, &job, Outcome::NotConnected);
            }
        }
        for gone in 1..=20 {
            for _ in 0..5 {
                outbox.push(now, addr(gone), "x".into()).unwrap();
            }
        }
        assert_eq!(take(&mut outbox, now).len(), 4, "half of them hang");
        outbox.push(now, addr(100), "first".into()).unwrap();
        outbox.push(now, addr(101), "second".into()).unwrap();
        let jobs = take(&mut outbox, now);
        assert_eq!(jobs.iter().map(|job| job.to).collect::<Vec<_>>(), [addr(100), addr(101)]);
        assert!(!outbox.is_idle());
    }

    #[test]
    fn one_destination_has_two_writers_and_the_turns_go_round() {
        let now = Instant::now();
        let mut outbox = Outbox::new(8);
        for _ in 0..3 {
            outbox.push(now, addr(1), "one".into()).unwrap();
        }
        outbox.push(now, addr(2), "two".into()).unwrap();
        let jobs = take(&mut outbox, now);
        assert_eq!(jobs.iter().map(|job| job.to).collect::<Vec<_>>(), [addr(1), addr(2), addr(1)]);
        assert_eq!(outbox.done(now, &jobs[0], Outcome::Written), 0);
        assert_eq!(take(&mut outbox, now).len(), 1);
        for job in &jobs[1..] {
            outbox.done(now, job, Outcome::Written);
        }
        assert_eq!(outbox.destinations.len(), 1, "who is served is forgotten");
    }

    #[test]
    fn what_waits_is_bounded_and_the_oldest_of_the_same_destination_goes() {
        let now = Instant::now();
        let mut outbox = Outbox::new(2);
        let dropped: usize = (0..QUEUE + 3).map(|_| outbox.push(now, addr(1), "x".into()).unwrap()).sum();
        assert_eq!((dropped, outbox.waiting), (3, QUEUE));
        assert_eq!(outbox.push(now, addr(2), Bytes::from(vec![0; MAX_BYTES])), None, "too many bytes");
        let mut port = 0;
        while outbox.waiting < MAX_WAITING {
            port += 1;
            outbox.push(now, SocketAddr::from(([10, 1, 0, 1], port)), "x".into()).unwrap();
        }
        assert_eq!(outbox.push(now, addr(3), "x".into()), None, "too many packets");
        assert_eq!(outbox.clear(), MAX_WAITING);
        assert!(outbox.is_idle());
    }

    #[test]
    fn old_news_is_not_sent_and_who_cannot_be_reached_loses_what_waits() {
        let now = Instant::now();
        let mut outbox = Outbox::new(2);
        for _ in 0..4 {
            outbox.push(now, addr(1), "old".into()).unwrap();
        }
        let jobs = take(&mut outbox, now);
        assert_eq!(outbox.done(now, &jobs[0], Outcome::NotConnected), 2);
        outbox.done(now, &jobs[1], Outcome::NotTaken);
        outbox.push(now, addr(2), "old".into()).unwrap();
        let later = now + MAX_WAIT + Duration::from_millis(1);
        let (job, dropped) = outbox.next(later);
        assert!(job.is_none());
        assert_eq!((dropped, outbox.waiting, outbox.bytes), (1, 0, 0));
    }

    #[test]
    fn the_memory_of_failures_does_not_grow_without_end() {
        let now = Instant::now();
        let mut outbox = Outbox::new(2);
        for port in 1..=20_000 {
            outbox.push(now, SocketAddr::from(([10, 1, 0, 1], port)), "x".into()).unwrap();
            for job in take(&mut outbox, now) {
                outbox.done(now, &job, Outcome::NotConnected);
            }
        }
        assert!(outbox.destinations.len() <= MAX_WAITING, "{}", outbox.destinations.len());
    }
}
