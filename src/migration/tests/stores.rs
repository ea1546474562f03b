//! The two stores of the world: one copy with compare-and-swap, and a replica a node that gossips.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::map::Map;

/// Older values of a key that are kept for stale answers.
const KEPT: usize = 5;

/// A store of one copy: Consul or etcd.
#[derive(Default)]
pub(super) struct Consul {
    pub(super) up: bool,
    pub(super) keys: BTreeMap<Arc<str>, Map>,
    index: BTreeMap<Arc<str>, u64>,
    next: u64,
    /// Older values, for stale answers to watches; the newest last.
    pub(super) history: BTreeMap<Arc<str>, Vec<Map>>,
    /// How often it was set back to an older content.
    pub(super) restored: u64,
}

/// All that a store of one copy goes back to.
pub(super) struct Snapshot {
    keys: BTreeMap<Arc<str>, Map>,
    index: BTreeMap<Arc<str>, u64>,
    next: u64,
}

impl Consul {
    pub(super) fn new() -> Self {
        Self { up: true, ..Self::default() }
    }

    pub(super) fn index(&self, key: &str) -> u64 {
        self.index.get(key).copied().unwrap_or(0)
    }

    /// The index of the latest write.
    pub(super) const fn latest(&self) -> u64 {
        self.next
    }

    pub(super) fn put(&mut self, key: &Arc<str>, value: Map) {
        self.next += 1;
        self.index.insert(key.clone(), self.next);
        let history = self.history.entry(key.clone()).or_default();
        if history.len() == KEPT {
            history.remove(0);
        }
        history.push(value.clone());
        self.keys.insert(key.clone(), value);
    }

    pub(super) fn delete(&mut self, key: &str) -> bool {
        self.index.remove(key);
        self.history.remove(key);
        self.keys.remove(key).is_some()
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot { keys: self.keys.clone(), index: self.index.clone(), next: self.next }
    }

    /// Older content with lower indexes. With `reset` the indexes begin anew, as in a cluster built from a backup.
    pub(super) fn restore(&mut self, snapshot: Snapshot, reset: bool) {
        self.history = snapshot.keys.iter().map(|(key, value)| (key.clone(), vec![value.clone()])).collect();
        self.keys = snapshot.keys;
        (self.index, self.next) = (snapshot.index, snapshot.next);
        if reset {
            self.index.values_mut().zip(1..).for_each(|(index, low)| *index = low);
            self.next = self.index.len() as u64;
        }
        self.restored += 1;
    }
}

/// One node's replica of the gossip store.
#[derive(Default)]
pub(super) struct Replica {
    /// Does not answer its own node (for "secondary down").
    pub(super) down: bool,
    /// Hears and reaches nobody.
    pub(super) cut: bool,
    /// Hears and reaches only those of the same part.
    pub(super) part: usize,
    pub(super) keys: BTreeMap<Arc<str>, Map>,
    deleted: BTreeMap<Arc<str>, u64>,
}

impl Replica {
    /// Joins; returns what was new. What is older than the key's deletion is not taken.
    pub(super) fn join(&mut self, key: &Arc<str>, delta: &Map) -> Option<Map> {
        let mut delta = delta.clone();
        if let Some(deleted) = self.deleted.get(key) {
            delta.entries().retain(|_, (stamp, _)| *stamp > *deleted);
        }
        if delta.0.is_empty() {
            return None;
        }
        self.keys.entry(key.clone()).or_default().merge(&delta)
    }

    pub(super) fn delete(&mut self, key: &Arc<str>, at: u64) -> bool {
        let known = self.deleted.entry(key.clone()).or_default();
        if *known >= at {
            return false;
        }
        *known = at;
        if let Some(value) = self.keys.get_mut(key) {
            value.entries().retain(|_, (stamp, _)| *stamp > at);
            if value.0.is_empty() {
                self.keys.remove(key);
            }
        }
        true
    }

    pub(super) fn deletions(&self) -> BTreeMap<Arc<str>, u64> {
        self.deleted.clone()
    }

    /// The process that held it is gone, and with it the replica.
    pub(super) fn forget(&mut self) {
        self.keys.clear();
        self.deleted.clear();
    }

    pub(super) fn hears(&self, other: &Self) -> bool {
        !self.cut && !other.cut && self.part == other.part
    }
}
