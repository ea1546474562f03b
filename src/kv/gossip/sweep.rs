//! Forgetting: tombstones of entries, and deleted keys, after their time.

use std::sync::Arc;
use std::time::Duration;

use super::state::Stored;
use super::{GossipConfig, GossipStore, merge};
use crate::clock::Now;

impl GossipConfig {
    /// How often to look for expired tombstones, so that none stays much longer than its time; `None` when none
    /// ever expires.
    pub(super) fn sweep_interval(&self) -> Option<Duration> {
        let shortest =
            [self.left_timeout, self.obsolete_timeout].into_iter().filter(|timeout| !timeout.is_zero()).min()?;
        Some((shortest / 4).clamp(Duration::from_secs(1), Duration::from_secs(60)))
    }
}

impl GossipStore {
    /// Forgets what has expired, if it is time to look.
    pub(super) fn sweep(&mut self, now: Now) {
        let candidates: Vec<(Arc<str>, Stored)> = {
            let mut state = self.contents.lock();
            if state.next_sweep.is_none_or(|at| at > now.mono) {
                return;
            }
            state.next_sweep = None;
            let entries = state.entries.iter().filter(|(_, stored)| stored.liveness.deleted || !stored.settled);
            entries.map(|(key, stored)| (key.clone(), stored.clone())).collect()
        };
        let mut again = false;
        for (key, stored) in candidates {
            if stored.liveness.expired(now, self.config.obsolete_timeout) {
                self.stats.keys_purged += 1;
                self.stats.deleted_keys = self.stats.deleted_keys.saturating_sub(1);
                let mut state = self.contents.lock();
                state.entries.remove(&key);
                state.stats = self.stats;
                continue;
            }
            let to_purge = stored.liveness.deleted && !self.config.obsolete_timeout.is_zero();
            again |= self.forget_tombstones(now, &key, &stored) || to_purge;
        }
        if again {
            let next = self.config.sweep_interval().map(|interval| now.mono + interval);
            self.contents.lock().next_sweep = next;
        }
    }

    /// Forgets the expired tombstones of one value. Returns whether others remain inside.
    fn forget_tombstones(&mut self, now: Now, key: &str, stored: &Stored) -> bool {
        let Some(before) = merge::expiry(now, self.config.left_timeout) else { return false };
        if stored.settled {
            return false;
        }
        let (value, removed) = stored.value.without_tombstones(Some(before));
        let forgotten =
            if removed > 0 { stored.value.forgotten(stored.forgotten.as_ref(), Some(before)) } else { None };
        let settled = value.without_tombstones(None).1 == 0;
        self.stats.tombstones_removed += removed as u64;
        let mut state = self.contents.lock();
        if let Some(kept) = state.entries.get_mut(key) {
            kept.settled = settled;
            if removed > 0 {
                kept.value = value;
                kept.forgotten = forgotten;
                kept.encoded = None;
            }
        }
        !settled
    }
}
