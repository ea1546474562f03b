//! The two stores of the world: one copy with compare-and-swap, and a replica a node that gossips.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::map::Map;

/// A store of one copy: Consul.
#[derive(Default)]
pub(super) struct Consul {
    pub(super) up: bool,
    pub(super) keys: BTreeMap<Arc<str>, Map>,
    index: BTreeMap<Arc<str>, u64>,
    next: u64,
    /// Older values, for stale answers to watches.
    pub(super) history: BTreeMap<Arc<str>, Vec<Map>>,
}

impl Consul {
    pub(super) fn new() -> Self {
        Self { up: true, ..Self::default() }
    }

    pub(super) fn index(&self, key: &str) -> u64 {
        self.index.get(key).copied().unwrap_or(0)
    }

    pub(super) fn put(&mut self, key: &Arc<str>, value: Map) {
        self.next += 1;
        self.index.insert(key.clone(), self.next);
        self.history.entry(key.clone()).or_default().push(value.clone());
        self.keys.insert(key.clone(), value);
    }

    pub(super) fn delete(&mut self, key: &str) {
        self.keys.remove(key);
        self.index.remove(key);
        self.history.remove(key);
    }
}

/// One node's replica of the gossip store.
#[derive(Default)]
pub(super) struct Replica {
    /// Does not answer its own node (for "secondary down").
    pub(super) down: bool,
    /// Hears and reaches nobody.
    pub(super) cut: bool,
    pub(super) keys: BTreeMap<Arc<str>, Map>,
    deleted: BTreeMap<Arc<str>, u64>,
}

impl Replica {
    /// Joins; returns what was new. What is older than the key's deletion is not taken.
    pub(super) fn join(&mut self, key: &Arc<str>, delta: &Map) -> Option<Map> {
        let deleted = self.deleted.get(key).copied().unwrap_or(0);
        let mut delta = delta.clone();
        delta.0.retain(|_, (stamp, _)| *stamp > deleted);
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
            value.0.retain(|_, (stamp, _)| *stamp > at);
            if value.0.is_empty() {
                self.keys.remove(key);
            }
        }
        true
    }

    pub(super) fn deletions(&self) -> BTreeMap<Arc<str>, u64> {
        self.deleted.clone()
    }
}
