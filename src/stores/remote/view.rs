//! What a watch has shown its reader, and what it has to show next.
//!
//! Answers may come from servers that are behind, and a restored snapshot takes the whole store back in time. A reader
//! must never see that: after the index went back, what was shown last is joined into whatever is found, until the store
//! has caught up or the entries are so old that they would be forgotten anyway.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Pair, Target};
use crate::clock::Now;
use crate::kv::{Codecs, Entry, KeyChange, StoreKind, Value};

/// All keys of one watch.
pub(in crate::stores) struct View {
    store: StoreKind,
    target: Target,
    keys: BTreeMap<Arc<str>, Shown>,
    codecs: Arc<Codecs>,
    /// How long shown values outlive an index that went back.
    keep: Duration,
}

/// One key as its reader knows it.
#[derive(Default)]
struct Shown {
    /// Version of what was found last, 0 for nothing.
    index: u64,
    found: Option<Value>,
    /// What must not be forgotten after the index went back, and until when.
    floor: Option<(Value, Instant)>,
    entry: Option<Entry>,
    /// The version shown last; it never goes back, not even where there is no entry.
    version: u64,
    announced: bool,
    /// What is stored now does not decode; `entry` is what did before.
    unreadable: bool,
}

impl View {
    pub(in crate::stores) fn new(store: StoreKind, target: Target, codecs: Arc<Codecs>, keep: Duration) -> Self {
        let mut keys = BTreeMap::new();
        if let Target::Key(key) = &target {
            // One key is always part of the view, also as long as it does not exist.
            keys.insert(key.clone(), Shown::default());
        }
        Self { store, target, keys, codecs, keep }
    }

    /// The store cannot be reached: every key as it was known last, marked so.
    pub(in crate::stores) fn out_of_reach(&self) -> Vec<KeyChange> {
        self.all(false)
    }

    /// The index went back: what is found from now on may be older than what was shown.
    pub(in crate::stores) fn index_went_back(&mut self, now: Now) {
        for shown in self.keys.values_mut() {
            shown.index = 0;
            shown.found = None;
            shown.floor = shown.entry.as_ref().map(|entry| (entry.value.clone(), now.mono + self.keep));
        }
    }

    /// Takes an answer over. Returns what its reader has to know; everything, if the store was out of reach before.
    pub(in crate::stores) fn found(&mut self, pairs: Vec<Pair>, was_out_of_reach: bool, now: Now) -> Vec<KeyChange> {
        let mut pairs: BTreeMap<String, Pair> = pairs.into_iter().map(|pair| (pair.key.clone(), pair)).collect();
        for key in pairs.keys() {
            if !self.keys.contains_key(key.as_str()) {
                self.keys.insert(key.as_str().into(), Shown::default());
            }
        }
        let mut news = Vec::new();
        let keys: Vec<_> = self.keys.keys().cloned().collect();
        for key in keys {
            let pair = pairs.remove(&*key);
            news.extend(self.take(&key, pair, was_out_of_reach, now));
        }
        if was_out_of_reach && self.keys.is_empty() {
            news = self.all(true);
        }
        self.forget_the_gone();
        news
    }

    /// Takes over that one key was written or, with no pair, deleted. Returns what its reader has to know.
    #[cfg(feature = "etcd")]
    pub(in crate::stores) fn changed(&mut self, key: &str, pair: Option<Pair>, now: Now) -> Option<KeyChange> {
        let key: Arc<str> = match self.keys.get_key_value(key) {
            Some((known, _)) => known.clone(),
            None => key.into(),
        };
        self.keys.entry(key.clone()).or_default();
        let news = self.take(&key, pair, false, now);
        self.forget_the_gone();
        news
    }

    fn take(&mut self, key: &Arc<str>, pair: Option<Pair>, was_out_of_reach: bool, now: Now) -> Option<KeyChange> {
        let shown = self.keys.get_mut(key)?;
        let was_unreadable = shown.unreadable;
        let changed = shown.update(self.store, key, pair, &self.codecs, now);
        let report = |fresh| KeyChange { key: key.clone(), entry: shown.entry.clone(), fresh };
        if matches!(self.target, Target::Key(_)) && shown.unreadable {
            // Whoever follows this key must know that no news does not mean that nothing happens.
            return (!was_unreadable || was_out_of_reach).then(|| report(false));
        }
        ((changed || was_out_of_reach) && shown.announced).then(|| report(true))
    }

    fn forget_the_gone(&mut self) {
        if let Target::Prefix(_) = self.target {
            self.keys.retain(|_, shown| shown.entry.is_some() || shown.index != 0);
        }
    }

    /// A report on every key; on the prefix itself when no key is known.
    fn all(&self, fresh: bool) -> Vec<KeyChange> {
        if self.keys.is_empty() {
            return vec![KeyChange { key: self.target.name().clone(), entry: None, fresh }];
        }
        self.keys.iter().map(|(key, shown)| KeyChange { key: key.clone(), entry: shown.entry.clone(), fresh }).collect()
    }
}

impl Shown {
    /// Takes over what was found under the key. Returns whether there is something new to show.
    fn update(&mut self, store: StoreKind, key: &str, pair: Option<Pair>, codecs: &Codecs, now: Now) -> bool {
        let mut changed = !self.announced;
        match pair {
            None => {
                if self.found.take().is_some() {
                    // It was here after the index went back, too: somebody deleted it.
                    self.floor = None;
                    changed = true;
                }
                changed |= self.index != 0;
                self.index = 0;
                self.unreadable = false;
            }
            Some(pair) if pair.version == self.index => {
                // Nothing new. What did not decode last time is still not worth announcing.
                changed &= self.found.is_some();
            }
            Some(pair) => {
                self.index = pair.version;
                match codecs
                    .for_key(key)
                    .ok_or_else(|| "no codec is registered for it".to_owned())
                    .and_then(|codec| codec.decode(&pair.value).map_err(|error| error.to_string()))
                {
                    Ok(value) => {
                        self.found = Some(value);
                        self.unreadable = false;
                        changed = true;
                    }
                    Err(reason) => {
                        tracing::warn!(%store, key, reason, "a watched value does not decode; it is left as it is");
                        self.unreadable = true;
                        changed = false;
                    }
                }
            }
        }
        if self.floor.as_ref().is_some_and(|(_, until)| now.mono >= *until) {
            self.floor = None;
            changed = true;
        }
        if !changed {
            return false;
        }
        self.announced = true;
        let Some(value) = self.above_floor(now) else {
            self.entry = None;
            return true;
        };
        self.version = self.version.saturating_add(1).max(self.index);
        self.entry = Some(Entry { value, version: self.version });
        true
    }

    /// What was found, joined with what must not be forgotten.
    fn above_floor(&mut self, now: Now) -> Option<Value> {
        let Some((floor, _)) = &self.floor else { return self.found.clone() };
        let Some(found) = &self.found else { return Some(floor.clone()) };
        match found.join(floor, now) {
            Ok(joined) if joined.change.is_some() => Some(joined.value),
            // The store has caught up, or holds something entirely different now.
            _ => {
                self.floor = None;
                self.found.clone()
            }
        }
    }
}
