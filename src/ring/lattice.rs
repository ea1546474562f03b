//! How copies of a ring join: entry by entry, the newer one wins whole.
//!
//! [`Instance::version_cmp`] is a total order, so the join is a maximum, and maxima are idempotent, commutative and
//! associative: whatever order, repetition or grouping of updates a replica sees, it ends with the same ring. Nothing
//! in here resolves tokens that are claimed twice; that is a reader's projection ([`super::tokens`]), because
//! a join that edits token lists depends on the order of joins.

use std::cmp::Ordering;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use super::desc::{Desc, Instance};
use crate::clock::Now;
use crate::kv::Mergeable;

/// How many removed instances are remembered after their tombstones, the latest ones.
const MAX_FORGOTTEN: usize = 10_000;

impl Mergeable for Desc {
    fn join(&mut self, other: &Self, _now: Now) -> Option<Self> {
        let mut change = Self::default();
        if let Some(unknown) = self.unknown.join(&other.unknown) {
            change.unknown = unknown;
        }
        for (id, theirs) in &other.instances {
            let mut theirs = theirs.clone();
            theirs.normalize();
            match self.instances.entry(id.clone()) {
                Entry::Vacant(free) => {
                    free.insert(theirs.clone());
                }
                Entry::Occupied(mut ours) => {
                    if theirs.version_cmp(ours.get()) != Ordering::Greater {
                        continue;
                    }
                    ours.insert(theirs.clone());
                }
            }
            change.instances.insert(id.clone(), theirs);
        }
        (!Mergeable::is_empty(&change)).then_some(change)
    }

    fn delta(&self, base: Option<&Self>, now: Now) -> Option<Self> {
        let mut delta = Self::default();
        let mut known_unknown = base.map(|base| base.unknown.clone()).unwrap_or_default();
        if let Some(unknown) = known_unknown.join(&self.unknown) {
            delta.unknown = unknown;
        }
        let known = |id: &str| -> Option<&Instance> { base?.instances.get(id) };
        for (id, instance) in &self.instances {
            let mut instance = instance.clone();
            instance.normalize();
            // An entry older than the base's would not survive the join, so it is no difference.
            if known(id).is_none_or(|old| instance.version_cmp(old) == Ordering::Greater) {
                delta.instances.insert(id.clone(), instance);
            }
        }
        for (id, old) in base.iter().flat_map(|base| base.live()) {
            if !self.instances.contains_key(id) {
                delta.instances.insert(id.clone(), old.tombstone(now.unix_secs()));
            }
        }
        (!Mergeable::is_empty(&delta)).then_some(delta)
    }

    fn content(&self) -> Vec<String> {
        // The ring's own fields go by the empty name, which no instance has.
        let own = (!self.unknown.is_empty()).then(String::new);
        own.into_iter().chain(self.instances.keys().map(ToString::to_string)).collect()
    }

    fn remove_tombstones(&mut self, before_unix_secs: Option<i64>) -> usize {
        let had = self.instances.len();
        self.instances.retain(|_, instance| {
            !instance.state.is_left() || before_unix_secs.is_some_and(|before| instance.timestamp >= before)
        });
        had - self.instances.len()
    }

    fn forgotten(&self, earlier: Option<&Self>, before_unix_secs: Option<i64>) -> Option<Self> {
        let expired = |entry: &Instance| before_unix_secs.is_none_or(|before| entry.timestamp < before);
        let mut graves = earlier.cloned().unwrap_or_default();
        for (id, entry) in self.instances.iter().filter(|(_, entry)| entry.state.is_left() && expired(entry)) {
            let grave = Instance { state: entry.state, timestamp: entry.timestamp, ..Instance::default() };
            let known = graves.instances.entry(id.clone()).or_insert_with(|| grave.clone());
            known.timestamp = known.timestamp.max(grave.timestamp);
        }
        let excess = graves.instances.len().saturating_sub(MAX_FORGOTTEN);
        if excess > 0 {
            let mut dates: Vec<(i64, Arc<str>)> =
                graves.instances.iter().map(|(id, grave)| (grave.timestamp, id.clone())).collect();
            dates.sort_unstable();
            for (_, id) in dates.into_iter().take(excess) {
                graves.instances.remove(&id);
            }
        }
        (!graves.instances.is_empty()).then_some(graves)
    }

    fn is_empty(&self) -> bool {
        self.instances.is_empty() && self.unknown.is_empty()
    }
}

#[cfg(test)]
mod laws;
#[cfg(test)]
mod tests;
