//! The mergeable value of the tests: names with the latest write, or tombstone, of each.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::clock::Now;
use crate::kv::{Mergeable, Value};

/// When, and what is there or `None` for a tombstone.
pub(super) type Entry = (u64, Option<u64>);

/// Name → entry. The greater pair wins. Copies share: the world makes many.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Map(pub(super) Arc<BTreeMap<Arc<str>, Entry>>);

impl Map {
    pub(super) fn one(name: &str, stamp: u64, value: Option<u64>) -> Self {
        Self(Arc::new(BTreeMap::from([(name.into(), (stamp, value))])))
    }

    pub(super) fn live(&self, name: &str) -> Option<u64> {
        self.0.get(name).and_then(|(_, value)| *value)
    }

    pub(super) fn entries(&mut self) -> &mut BTreeMap<Arc<str>, Entry> {
        Arc::make_mut(&mut self.0)
    }

    pub(super) fn merge(&mut self, other: &Self) -> Option<Self> {
        let newer = |(name, theirs): &(&Arc<str>, &Entry)| self.0.get(*name).is_none_or(|ours| ours < theirs);
        let change: BTreeMap<_, _> = other.0.iter().filter(newer).map(|(name, entry)| (name.clone(), *entry)).collect();
        if change.is_empty() {
            return None;
        }
        self.entries().extend(change.clone());
        Some(Self(Arc::new(change)))
    }

    /// Whether joining `other` would change nothing.
    pub(super) fn covers(&self, other: &Self) -> bool {
        other.0.iter().all(|(name, theirs)| self.has(name, theirs))
    }

    /// Whether the entry is there, or a later one of that name.
    pub(super) fn has(&self, name: &str, entry: &Entry) -> bool {
        self.0.get(name).is_some_and(|ours| ours >= entry)
    }

    pub(super) fn value(&self) -> Value {
        Value::new(self.clone())
    }

    pub(super) fn of(value: &Value) -> &Self {
        value.downcast_ref().unwrap()
    }
}

impl Mergeable for Map {
    fn join(&mut self, other: &Self, _now: Now) -> Option<Self> {
        self.merge(other)
    }

    fn delta(&self, base: Option<&Self>, now: Now) -> Option<Self> {
        let empty = Self::default();
        let base = base.unwrap_or(&empty);
        let mut delta = BTreeMap::new();
        for (name, entry) in &*self.0 {
            if base.0.get(name) != Some(entry) {
                delta.insert(name.clone(), *entry);
            }
        }
        for (name, (stamp, value)) in &*base.0 {
            if value.is_some() && !self.0.contains_key(name) {
                let at = u64::try_from(now.unix.as_micros()).unwrap();
                delta.insert(name.clone(), (at.max(stamp + 1), None));
            }
        }
        (!delta.is_empty()).then(|| Self(Arc::new(delta)))
    }

    fn content(&self) -> Vec<String> {
        self.0.keys().map(ToString::to_string).collect()
    }

    fn remove_tombstones(&mut self, before: Option<i64>) -> usize {
        let count = self.0.len();
        if self.0.values().all(|(_, value)| value.is_some()) {
            return 0;
        }
        let before = before.map_or(u64::MAX, |secs| u64::try_from(secs).unwrap().saturating_mul(1_000_000));
        self.entries().retain(|_, (stamp, value)| value.is_some() || *stamp >= before);
        count - self.0.len()
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
