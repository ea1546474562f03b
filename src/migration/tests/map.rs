//! The mergeable value of the tests: names with the latest write, or tombstone, of each.

use std::collections::BTreeMap;

use crate::clock::Now;
use crate::kv::{Mergeable, Value};

/// Name → (stamp, what is there or `None` for a tombstone). The greater pair wins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Map(pub(super) BTreeMap<String, (u64, Option<u64>)>);

impl Map {
    pub(super) fn one(name: &str, stamp: u64, value: Option<u64>) -> Self {
        Self(BTreeMap::from([(name.to_owned(), (stamp, value))]))
    }

    pub(super) fn live(&self, name: &str) -> Option<u64> {
        self.0.get(name).and_then(|(_, value)| *value)
    }

    pub(super) fn merge(&mut self, other: &Self) -> Option<Self> {
        let mut change = Self::default();
        for (name, theirs) in &other.0 {
            if self.0.get(name).is_none_or(|ours| ours < theirs) {
                self.0.insert(name.clone(), *theirs);
                change.0.insert(name.clone(), *theirs);
            }
        }
        (!change.0.is_empty()).then_some(change)
    }

    /// Whether joining `other` would change nothing.
    pub(super) fn covers(&self, other: &Self) -> bool {
        other.0.iter().all(|(name, theirs)| self.0.get(name).is_some_and(|ours| ours >= theirs))
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
        let mut delta = Self::default();
        for (name, entry) in &self.0 {
            if base.0.get(name) != Some(entry) {
                delta.0.insert(name.clone(), *entry);
            }
        }
        for (name, (stamp, value)) in &base.0 {
            if value.is_some() && !self.0.contains_key(name) {
                let at = u64::try_from(now.unix.as_micros()).unwrap();
                delta.0.insert(name.clone(), (at.max(stamp + 1), None));
            }
        }
        (!delta.0.is_empty()).then_some(delta)
    }

    fn content(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    fn remove_tombstones(&mut self, before: Option<i64>) -> usize {
        let count = self.0.len();
        let before = before.map_or(u64::MAX, |secs| u64::try_from(secs).unwrap().saturating_mul(1_000_000));
        self.0.retain(|_, (stamp, value)| value.is_some() || *stamp >= before);
        count - self.0.len()
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
