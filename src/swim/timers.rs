//! Everything that happens later, in the order in which it is due.
//!
//! A timer that is no longer wanted may stay in the list; what it refers to is gone or has moved, and whoever handles it
//! looks before acting. Two kinds are cancelled: those of probes, of which nearly all are answered in time, as they would
//! wake an idle node as often as all else together; and those of suspicions, which anybody can start and end as often as
//! packets arrive, and which are due only after minutes.

use std::collections::BTreeMap;
use std::time::Instant;

use super::ExchangeId;
use crate::wire::message::NodeName;

/// What falls due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Timer {
    /// Start the next probe.
    Probe,
    /// The pinged member had its time: ask others, and try a stream.
    ProbeTimeout(u32),
    /// The probe is over.
    ProbeEnd(u32),
    /// Tell the member that asked us to ping another one that it does not answer.
    RelayNack(u32),
    /// Stop waiting for the answer to a relayed ping.
    RelayEnd(u32),
    /// Send gossip.
    Gossip,
    /// Exchange the full state with someone.
    PushPull,
    /// Look for seeds and failed members that we are not connected to.
    Rejoin,
    /// Ask again who else joined.
    CatchUp,
    /// A suspect may have run out of time.
    Suspicion(NodeName),
    /// A stream's answer, or the user state for one, never came.
    Exchange(ExchangeId),
    /// Ping again those who did not answer under a label, or give them up.
    LabelCheck(u64),
    /// The leave message has had its time.
    Leave,
}

/// One scheduled timer: when it is due, and its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TimerId(Instant, u64);

/// Timers ordered by due time, and by age when due together.
#[derive(Debug, Default)]
pub(super) struct Timers {
    due: BTreeMap<TimerId, Timer>,
    next_id: u64,
}

impl Timers {
    pub(super) fn schedule(&mut self, at: Instant, timer: Timer) -> TimerId {
        let id = TimerId(at, self.next_id);
        self.due.insert(id, timer);
        self.next_id += 1;
        id
    }

    /// Takes a timer out, if it is still there.
    pub(super) fn cancel(&mut self, id: TimerId) {
        self.due.remove(&id);
    }

    /// Takes the oldest timer that is due, with the time at which it was due.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<(Instant, Timer)> {
        let entry = self.due.first_entry()?;
        let at = entry.key().0;
        (at <= now).then(|| (at, entry.remove()))
    }

    /// How many suspicions will end.
    #[cfg(test)]
    pub(super) fn suspicions(&self) -> usize {
        self.due.values().filter(|timer| matches!(timer, Timer::Suspicion(_))).count()
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.due.keys().next().map(|id| id.0)
    }
}
