//! Whether a key exists: a register that travels with every pair and merges like everything else.

use std::time::Duration;

use crate::clock::Now;
use crate::kv::pair::KeyValuePair;

/// When a key was last created or deleted, and which of the two.
///
/// The later event wins, a delete wins a tie; so this is a lattice, ordered like the tuple. `(0, alive)`, the bottom,
/// is what peers send who know no such event; dskit sends the time only with deletes and ignores it on live pairs, so
/// a created-again key reads as deleted there until its tombstone is purged, and is taken over from us afterwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Liveness {
    /// Milliseconds since the Unix epoch, 0 for never.
    pub(super) millis: i64,
    /// Whether that event was a delete.
    pub(super) deleted: bool,
}

/// The event lies further in the future than clocks may differ, or is a delete without a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadTime;

impl Liveness {
    /// What a pair says.
    pub(super) fn of(pair: &KeyValuePair, now: Now, max_clock_skew: Duration) -> Result<Self, BadTime> {
        if pair.update_time_millis <= 0 {
            // Nobody sends a delete without a time, and no peer would take it for one.
            return if pair.deleted { Err(BadTime) } else { Ok(Self::default()) };
        }
        if pair.update_time_millis > now.unix_millis().saturating_add(millis(max_clock_skew)) {
            return Err(BadTime);
        }
        Ok(Self { millis: pair.update_time_millis, deleted: pair.deleted })
    }

    /// The event "deleted now". Later than what was there, whatever the clocks say.
    pub(super) fn deleted(self, now: Now) -> Self {
        Self { millis: self.after(now), deleted: true }
    }

    /// The event "created now".
    pub(super) fn created(self, now: Now) -> Self {
        Self { millis: self.after(now), deleted: false }
    }

    /// Whether this is a delete that happened longer than `timeout` ago (zero: deletes are kept for ever).
    pub(super) fn expired(self, now: Now, timeout: Duration) -> bool {
        self.deleted && !timeout.is_zero() && self.millis < now.unix_millis().saturating_sub(millis(timeout))
    }

    fn after(self, now: Now) -> i64 {
        now.unix_millis().max(self.millis.saturating_add(1))
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
