//! What still has to go to one of the stores: one entry a key.
//!
//! A new δ is joined into the one that waits, so the outbox is bounded by the number of keys and never drops. At most one
//! task is in flight for a key, so a deletion and a δ keep their order. An outage (no answer) holds back the whole outbox,
//! and one entry after the other probes; an error of one key (too large, undecodable) holds back only that key. What is
//! too large is not tried again and again: the value has to become another one first.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::message::{Task, TaskId};
use crate::clock::Now;
use crate::kv::{StoreError, Value};

/// Tasks in flight at once while the store answers.
const MAX_IN_FLIGHT: usize = 64;

/// How long a value waits that the store has refused for its size.
const TOO_LARGE_RETRY: Duration = Duration::from_secs(300);

/// When something was put in: for the order, and for its age.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stamp {
    /// Position among everything ever put into an outbox of this core.
    pub(super) seq: u64,
    /// When.
    pub(super) at: Instant,
}

/// Why something is put in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// A write that a mirror or a new primary must get, whatever happens to a pending flip.
    Owed,
    /// Known values for a pending flip; pointless when the flip is called off.
    CarryOver,
}

/// The part of an entry that is being sent.
#[derive(Clone, Debug)]
struct Flight {
    task: TaskId,
    work: Work,
    oldest: Stamp,
    newest: u64,
}

#[derive(Clone, Debug)]
enum Work {
    Delete,
    Join(Value),
}

#[derive(Clone, Debug, Default)]
struct Entry {
    /// A deletion waits, with its position. It goes before the δ.
    delete: Option<u64>,
    /// A δ waits.
    delta: Option<Value>,
    /// Stamp of the oldest thing that waits.
    waiting: Option<Stamp>,
    /// Position of the newest thing ever put in.
    newest: u64,
    flight: Option<Flight>,
    owed: bool,
    failures: u32,
    retry_at: Option<Instant>,
    /// Attempts in a row that found the store out of reach.
    probes: u32,
}

impl Entry {
    fn oldest(&self) -> Option<Stamp> {
        self.flight.as_ref().map(|flight| flight.oldest).or(self.waiting)
    }

    fn ready(&self, now: Instant) -> bool {
        self.flight.is_none() && self.waiting.is_some() && self.retry_at.is_none_or(|at| at <= now)
    }
}

/// How a flush ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flushed {
    /// Everything up to this position that concerns the key was part of the attempt, or of an earlier one.
    pub(super) up_to: u64,
    /// When the oldest part was put in.
    pub(super) since: Instant,
    /// The store was out of reach before, and with this nothing waits for it any more.
    pub(super) recovered: bool,
}

/// Delays between attempts, growing, with jitter.
pub(super) trait Backoff {
    /// The delay after this many failures in a row.
    fn delay(&mut self, failures: u32) -> Duration;
}

/// See the [module documentation](self).
#[derive(Clone, Debug, Default)]
pub(super) struct Outbox {
    /// Shared with copies of the durable state; copied on the first change after one was taken.
    entries: Arc<BTreeMap<Arc<str>, Entry>>,
    in_flight: usize,
    failures: u32,
    retry_at: Option<Instant>,
    had_outage: bool,
}

impl Outbox {
    /// Keys with something that was not acknowledged.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// When the oldest of all was put in.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.entries.values().filter_map(Entry::oldest).map(|stamp| stamp.at).min()
    }

    /// Whether everything up to this position was acknowledged.
    pub(super) fn sent_up_to(&self, seq: u64) -> bool {
        self.entries.values().filter_map(Entry::oldest).all(|oldest| oldest.seq > seq)
    }

    /// What waits or is on its way for a key, joined: the tests' checker looks whether something is lost.
    #[cfg(test)]
    pub(super) fn pending(&self, key: &str, now: Now) -> Option<Value> {
        let entry = self.entries.get(key)?;
        let flying = entry.flight.as_ref().and_then(|flight| match &flight.work {
            Work::Join(value) => Some(value.clone()),
            Work::Delete => None,
        });
        match (flying, entry.delta.clone()) {
            (Some(a), Some(b)) => Some(joined(&a, &b, now)),
            (a, b) => a.or(b),
        }
    }

    /// Joins δ into what waits for the key.
    pub(super) fn push_delta(&mut self, key: &Arc<str>, delta: &Value, stamp: Stamp, reason: Reason, now: Now) {
        let entry = self.entry(key);
        entry.delta = Some(match entry.delta.take() {
            Some(waiting) => joined(&waiting, delta, now),
            None => delta.clone(),
        });
        entry.put(stamp, reason);
    }

    /// Puts in a deletion, which supersedes what waits for the key.
    pub(super) fn push_delete(&mut self, key: &Arc<str>, stamp: Stamp) {
        let entry = self.entry(key);
        entry.delta = None;
        entry.delete = Some(stamp.seq);
        entry.put(stamp, Reason::Owed);
    }

    fn entry(&mut self, key: &Arc<str>) -> &mut Entry {
        Arc::make_mut(&mut self.entries).entry(key.clone()).or_default()
    }

    /// Takes the next thing to send, if any may be sent now. `task` becomes its name.
    pub(super) fn start(&mut self, task: TaskId, now: Instant) -> Option<(Arc<str>, Task)> {
        let limit = if self.failures > 0 { 1 } else { MAX_IN_FLIGHT };
        if self.in_flight >= limit || self.retry_at.is_some_and(|at| at > now) {
            return None;
        }
        // The oldest first, so that one busy key does not keep others waiting; but not the same one again and again when
        // it is perhaps the key that the store does not answer for, such as one that is too much for a slow line.
        let key = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.ready(now))
            .min_by_key(|(_, entry)| (entry.probes, entry.waiting.map(|stamp| stamp.seq)))
            .map(|(key, _)| key.clone())?;
        let entry = self.entry(&key);
        let oldest = entry.waiting.take()?;
        let (work, newest) = match entry.delete.take() {
            Some(seq) => {
                // The δ behind the deletion still waits.
                entry.waiting = entry.delta.is_some().then_some(oldest);
                (Work::Delete, seq)
            }
            None => (Work::Join(entry.delta.take()?), entry.newest),
        };
        let job = match &work {
            Work::Delete => Task::Delete { key: key.clone() },
            Work::Join(delta) => Task::Join { key: key.clone(), delta: delta.clone() },
        };
        entry.flight = Some(Flight { task, work, oldest, newest });
        self.in_flight += 1;
        Some((key, job))
    }

    /// The task ended. `None` when it is not the one that is in flight for the key.
    pub(super) fn finished(
        &mut self,
        key: &Arc<str>,
        task: TaskId,
        error: Option<&StoreError>,
        now: Now,
        backoff: &mut dyn Backoff,
    ) -> Option<Flushed> {
        if self.entries.get(key)?.flight.as_ref()?.task != task {
            return None;
        }
        self.in_flight = self.in_flight.saturating_sub(1);
        let entry = self.entry(key);
        let flight = entry.flight.take()?;
        let mut done = Flushed { up_to: flight.newest, since: flight.oldest.at, recovered: false };
        match error {
            None => {
                entry.failures = 0;
                entry.probes = 0;
                entry.retry_at = None;
                if entry.waiting.is_none() {
                    Arc::make_mut(&mut self.entries).remove(key);
                }
                self.failures = 0;
                self.retry_at = None;
                if self.had_outage && self.entries.is_empty() {
                    self.had_outage = false;
                    done.recovered = true;
                }
            }
            Some(error) => {
                entry.put_back(flight, now);
                if is_outage(error) {
                    entry.probes = entry.probes.saturating_add(1);
                    self.had_outage = true;
                    // Several tasks that were in flight when the store went away count as one failure.
                    if self.retry_at.is_none_or(|at| at <= now.mono) {
                        self.failures = self.failures.saturating_add(1);
                        self.retry_at = Some(now.mono + backoff.delay(self.failures));
                    }
                } else {
                    entry.failures = entry.failures.saturating_add(1);
                    // What is too large stays so until the value is another one, and that is looked for elsewhere.
                    let delay = match error {
                        StoreError::TooLarge { .. } => TOO_LARGE_RETRY,
                        _ => backoff.delay(entry.failures),
                    };
                    entry.retry_at = Some(now.mono + delay);
                }
            }
        }
        Some(done)
    }

    /// Forgets that tasks are in flight (their actor died): what they carried waits again.
    pub(super) fn restart(&mut self, now: Now) {
        self.in_flight = 0;
        for entry in Arc::make_mut(&mut self.entries).values_mut() {
            if let Some(flight) = entry.flight.take() {
                entry.put_back(flight, now);
            }
        }
        self.retry_now();
    }

    /// Ends all waiting for a next attempt.
    pub(super) fn retry_now(&mut self) {
        self.retry_at = None;
        for entry in Arc::make_mut(&mut self.entries).values_mut() {
            entry.retry_at = None;
        }
    }

    /// Ends the waiting of one key.
    pub(super) fn retry_key_now(&mut self, key: &str) {
        if let Some(entry) = Arc::make_mut(&mut self.entries).get_mut(key) {
            entry.retry_at = None;
        }
    }

    /// Drops what waits only for a flip: the flip was called off, or (with a key) the key is gone.
    pub(super) fn drop_carry_over(&mut self, only: Option<&Arc<str>>) {
        for (key, entry) in Arc::make_mut(&mut self.entries) {
            if !entry.owed && only.is_none_or(|only| only == key) {
                entry.delta = None;
                entry.waiting = None;
            }
        }
        Arc::make_mut(&mut self.entries).retain(|_, entry| entry.waiting.is_some() || entry.flight.is_some());
    }

    /// When something becomes ready by time alone.
    pub(super) fn next_deadline(&self, now: Instant) -> Option<Instant> {
        if self.entries.is_empty() {
            return None;
        }
        match self.retry_at {
            Some(at) if at > now => Some(at),
            // Entries without a time wait for a task to end, not for the clock.
            _ => self.entries.values().filter_map(|entry| entry.retry_at).filter(|at| *at > now).min(),
        }
    }
}

impl Entry {
    fn put(&mut self, stamp: Stamp, reason: Reason) {
        self.waiting.get_or_insert(stamp);
        self.newest = stamp.seq;
        self.owed |= reason == Reason::Owed;
    }

    /// The attempt failed: what it carried waits again, before what came after it.
    fn put_back(&mut self, flight: Flight, now: Now) {
        match flight.work {
            Work::Delete => self.delete = self.delete.max(Some(flight.newest)),
            // A deletion that came later supersedes the δ.
            Work::Join(_) if self.delete.is_some() => {}
            Work::Join(value) => {
                self.delta = Some(match self.delta.take() {
                    Some(later) => joined(&value, &later, now),
                    None => value,
                });
            }
        }
        self.waiting = Some(flight.oldest);
    }
}

/// Whether the store as a whole does not answer, so that other keys would fail as well.
pub(super) const fn is_outage(error: &StoreError) -> bool {
    matches!(error, StoreError::Unavailable { .. } | StoreError::Timeout { .. } | StoreError::Closed(_))
}

/// `a ⊔ b`. The type of a key's value is fixed by its codec; should two types meet all the same, the later one is kept.
pub(super) fn joined(a: &Value, b: &Value, now: Now) -> Value {
    a.join(b, now).map_or_else(|_| b.clone(), |joined| joined.value)
}
