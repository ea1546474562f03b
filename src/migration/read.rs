//! Keeps a reader from going back in time when its watch moves to another store.

use std::time::{Duration, Instant};

use super::core::{PRUNE_EVERY, without_old_tombstones};
use crate::clock::Now;
use crate::kv::Value;

/// What one watch has delivered of one key, joined.
///
/// A value is always joined with what was delivered before, so neither a stale answer nor a flip shows an older one.
/// A deletion is believed when the store that reports it has shown the key *since the last flip*: then the key was
/// deleted there. A store that became primary and does not have the key *yet* says the same thing, and is not believed:
/// the reader keeps what it had. (The carry-over of a flip puts every value that was delivered into the new primary
/// first, so this is the second line of defence.) The price: a key that was deleted in the short time between the flip
/// and the first answer of the new primary stays visible to this reader until it is written or deleted again.
#[derive(Clone, Debug)]
pub struct ReadJoin {
    seen: Option<Value>,
    generation: u64,
    shown_here: bool,
    tombstone_ttl: Duration,
    pruned: Option<Instant>,
}

/// What to hand to the reader.
#[derive(Clone, Debug)]
pub enum Read {
    /// This value.
    Value(Value),
    /// The key does not exist (any more).
    Absent,
}

impl Read {
    /// The value, `None` for [`Read::Absent`].
    #[must_use]
    pub fn into_value(self) -> Option<Value> {
        match self {
            Self::Value(value) => Some(value),
            Self::Absent => None,
        }
    }
}

impl ReadJoin {
    /// A watch that has delivered nothing. Tombstones of entries are remembered for `tombstone_ttl`
    /// ([`super::MultiConfig::tombstone_ttl`]; zero: for ever).
    #[must_use]
    pub const fn new(tombstone_ttl: Duration) -> Self {
        Self { seen: None, generation: 0, shown_here: false, tombstone_ttl, pruned: None }
    }

    /// What to deliver, when a store reports `incoming`. `generation` is that of the [`super::View`] under which the
    /// report was asked for; late reports from before a flip are joined, and their deletions ignored.
    pub fn deliver(&mut self, generation: u64, incoming: Option<Value>, now: Now) -> Read {
        if generation > self.generation {
            self.generation = generation;
            self.shown_here = false;
        }
        let current = generation == self.generation;
        match incoming {
            Some(value) => {
                self.shown_here |= current;
                self.seen = Some(match self.seen.take() {
                    Some(seen) => super::outbox::joined(&seen, &value, now),
                    None => value,
                });
            }
            None if current && self.shown_here => {
                self.seen = None;
                self.shown_here = false;
            }
            None => {}
        }
        self.prune(now);
        self.seen.clone().map_or(Read::Absent, Read::Value)
    }

    /// What to hand on with the news that the store is out of reach, when the last that is known of it is `last`: nothing
    /// older than what was delivered, and no deletion.
    #[must_use]
    pub fn lost(&self, last: Option<Value>, now: Now) -> Option<Value> {
        match (&self.seen, last) {
            (Some(seen), Some(last)) => Some(super::outbox::joined(seen, &last, now)),
            (seen, last) => last.or_else(|| seen.clone()),
        }
    }

    fn prune(&mut self, now: Now) {
        let last = *self.pruned.get_or_insert(now.mono);
        if now.mono.saturating_duration_since(last) >= PRUNE_EVERY {
            self.pruned = Some(now.mono);
            if let Some(pruned) = self.seen.as_ref().and_then(|v| without_old_tombstones(v, self.tombstone_ttl, now)) {
                self.seen = Some(pruned);
            }
        }
    }
}
