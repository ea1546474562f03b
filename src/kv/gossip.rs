//! The gossip store: every node holds all keys, changes travel as broadcasts, and push/pull repairs what they missed.
//!
//! A pure core. Broadcasts that arrive, and the state that a push/pull brought, go in through [`GossipStore::handle`];
//! what is to be broadcast and which keys changed come out of [`GossipStore::poll_output`]. Operations are plain
//! method calls, because exactly one actor owns the store.
//!
//! Values only ever grow by [`join`](crate::kv::Mergeable::join): a compare-and-swap is turned into the difference
//! between what its callback was given and what it returned, removed entries become tombstones, and the difference is
//! joined. So replicas that saw the same changes hold the same value, in whatever order the changes came.
//!
//! ```
//! use annulus::clock::Now;
//! use annulus::kv::gossip::{GossipConfig, GossipStore};
//! use annulus::kv::{CasAction, Codecs, LwwMap, Value};
//! use std::sync::Arc;
//!
//! let codecs = Arc::new(Codecs::default());
//! codecs.register("flags", Arc::new(LwwMap::<bool>::codec()));
//! let mut store = GossipStore::new(GossipConfig::default(), codecs);
//! let now = Now::read();
//! store.cas(now, "flags", &mut |_old| {
//!     let mut flags = LwwMap::new();
//!     flags.insert(now, "dark-mode", true);
//!     CasAction::Write(Value::new(flags))
//! })?;
//! let flags = store.get("flags").expect("just written");
//! assert_eq!(flags.value.downcast_ref::<LwwMap<bool>>().and_then(|map| map.get("dark-mode")), Some(&true));
//! # Ok::<(), annulus::kv::StoreError>(())
//! ```

mod liveness;
mod merge;
mod message;
mod state;
mod sweep;
mod write;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};

use self::merge::Merged;
pub use self::message::{Broadcast, GossipConfig, GossipStats, Input, KeyInfo, Output};
pub use self::state::Contents;
use self::state::{OWN_CHANGE_LIFETIME, Stored};
use self::write::Origin;
use super::codec::{Codec, Codecs};
use super::pair::{self, KeyValuePair, append_state, read_state};
use super::store::{CasAction, CasOutcome, Entry, StoreError, StoreKind};
use super::value::Value;
use crate::clock::Now;

/// The gossip store core. See the [module documentation](self).
pub struct GossipStore {
    config: GossipConfig,
    codecs: Arc<Codecs>,
    contents: Contents,
    stats: GossipStats,
}

impl GossipStore {
    /// An empty store. Only keys that `codecs` knows are accepted; codecs may be registered later.
    #[must_use]
    pub fn new(config: GossipConfig, codecs: Arc<Codecs>) -> Self {
        Self::resume(config, codecs, Contents::default())
    }

    /// A store that goes on with what another one held when its actor died.
    #[must_use]
    pub fn resume(config: GossipConfig, codecs: Arc<Codecs>, contents: Contents) -> Self {
        let stats = contents.lock().stats;
        Self { config, codecs, contents, stats }
    }

    /// A handle to everything needed to go on after a crash. It stays current by itself.
    #[must_use]
    pub fn contents(&self) -> Contents {
        self.contents.clone()
    }

    /// Takes what happened outside. Never fails: what is wrong with the bytes of others is counted in the
    /// [statistics](Self::stats).
    pub fn handle(&mut self, now: Now, input: Input) {
        match input {
            Input::UserMessage(bytes) => {
                self.stats.received += 1;
                self.stats.received_bytes += bytes.len() as u64;
                self.take_pair(now, KeyValuePair::from_bytes(bytes), Origin::Remote);
            }
            Input::RemoteState { bytes, join } => {
                self.stats.states += 1;
                self.stats.state_bytes += bytes.len() as u64;
                for pair in read_state(bytes, self.config.max_keys) {
                    self.take_pair(now, pair, if join { Origin::RemoteQuiet } else { Origin::Remote });
                }
            }
            Input::Tick => self.sweep(now),
        }
        self.contents.lock().stats = self.stats;
    }

    /// The next thing to do. Call it until it returns `None` after every input and every operation.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.contents.lock().outputs.pop_front()
    }

    /// When to send [`Input::Tick`]: tombstones or deleted keys may have expired then.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.contents.lock().next_sweep
    }

    /// The current entry. A deleted key is absent.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Entry> {
        let state = self.contents.lock();
        state.entries.get(key).and_then(entry)
    }

    /// All keys that begin with `prefix`, in order.
    #[must_use]
    pub fn list(&self, prefix: &str) -> Vec<String> {
        let state = self.contents.lock();
        state
            .entries
            .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .filter(|(_, stored)| !stored.liveness.deleted)
            .map(|(key, _)| key.to_string())
            .collect()
    }

    /// Compare-and-swap. The callback is given the current value, tombstones included, or `None` for a missing or
    /// deleted key, and runs exactly once: one actor owns the store, so nobody writes in between.
    ///
    /// # Errors
    /// [`StoreError::NoCodec`], [`StoreError::Aborted`], [`StoreError::Type`], [`StoreError::TooLarge`], and
    /// [`StoreError::Refused`] for a key that is empty or too long, or when there are too many. Nothing is changed then.
    pub fn cas(
        &mut self,
        now: Now,
        key: &str,
        f: &mut dyn FnMut(Option<&Value>) -> CasAction,
    ) -> Result<CasOutcome, StoreError> {
        let codec = self.codec(key, "a compare-and-swap")?;
        let stored = self.lookup(key);
        let current = stored.as_ref().filter(|stored| !stored.liveness.deleted).map(|stored| &stored.value);
        match f(current) {
            CasAction::Keep => Ok(CasOutcome::Unchanged),
            CasAction::Abort(reason) => Err(StoreError::Aborted(reason)),
            CasAction::Write(new) => self.write(now, key, codec, stored, &new, merge::replaced),
            CasAction::Join(delta) => self.write(now, key, codec, stored, &delta, merge::joined),
        }
    }

    /// Joins `delta` into what is stored. A deleted key exists again, with `delta` as its value.
    ///
    /// # Errors
    /// As for [`GossipStore::cas`].
    pub fn join(&mut self, now: Now, key: &str, delta: &Value) -> Result<CasOutcome, StoreError> {
        let codec = self.codec(key, "a join")?;
        let stored = self.lookup(key);
        self.write(now, key, codec, stored, delta, merge::joined)
    }

    /// Deletes a key. The delete of a key that this node has not heard of is passed on as well: another node may have
    /// created it a moment ago.
    ///
    /// # Errors
    /// [`StoreError::Type`] when the stored value does not encode with its codec (a bug in the codec), and
    /// [`StoreError::Refused`] when there are too many keys to remember one more.
    pub fn delete(&mut self, now: Now, key: &str) -> Result<(), StoreError> {
        let stored = self.lookup(key).or_else(|| write::unheard(&self.codecs, key));
        let Some(mut stored) = stored.filter(|stored| !stored.liveness.deleted) else { return Ok(()) };
        stored.liveness = stored.liveness.deleted(now);
        let merged = Merged::whole(stored.value.clone());
        self.commit(now, key, stored, merged, Origin::Local).map_err(|error| self.failure(key, &error))?;
        Ok(())
    }

    /// The user state for a push/pull: every key, deleted ones and tombstones included.
    #[must_use]
    pub fn local_state(&self) -> Bytes {
        let mut state = BytesMut::new();
        for (_, encoded) in self.encoded_entries() {
            append_state(&mut state, &encoded);
        }
        state.freeze()
    }

    /// Queues the broadcasts of what was changed here within the last minute once more. For use after the actor that
    /// holds the broadcast queue has died: what it had not sent yet would otherwise wait for a push/pull.
    pub fn rebroadcast_own(&mut self, now: Now) {
        let recent: Vec<_> = {
            let state = self.contents.lock();
            let recent = |stored: &Stored| {
                let own = stored.own.as_ref()?;
                (now.mono.saturating_duration_since(own.last) <= OWN_CHANGE_LIFETIME).then(|| own.change.clone())
            };
            let entries = state.entries.iter();
            entries.filter_map(|(key, stored)| Some((key.clone(), stored.clone(), recent(stored)?))).collect()
        };
        for (key, stored, change) in recent {
            let change = match merge::expiry(now, self.config.left_timeout) {
                Some(before) => change.without_tombstones(Some(before)).0,
                None => change,
            };
            if let Ok(pair) = stored.pair(&key, &change) {
                let broadcast = Broadcast {
                    content: change.content(),
                    version: stored.version,
                    local: true,
                    payload: pair.to_bytes(),
                    key,
                };
                self.contents.lock().outputs.push_back(Output::Broadcast(broadcast));
            }
        }
    }

    /// Counters.
    #[must_use]
    pub const fn stats(&self) -> &GossipStats {
        &self.stats
    }

    /// All keys with their sizes, deleted ones included, for status pages. Encodes what changed since the last
    /// push/pull.
    #[must_use]
    pub fn describe(&self) -> Vec<KeyInfo> {
        let sizes: BTreeMap<_, _> = self.encoded_entries().into_iter().map(|(key, bytes)| (key, bytes.len())).collect();
        let state = self.contents.lock();
        let info = |(key, stored): (&Arc<str>, &Stored)| KeyInfo {
            key: key.to_string(),
            codec: stored.codec.id().to_owned(),
            version: stored.version,
            deleted: stored.liveness.deleted,
            update_time_millis: stored.liveness.millis,
            size: sizes.get(key).copied().unwrap_or_default(),
        };
        state.entries.iter().map(info).collect()
    }

    /// The encoded pairs of all keys, in order of keys. Fills the cache of encodings.
    fn encoded_entries(&self) -> Vec<(Arc<str>, Bytes)> {
        let entries: Vec<_> = {
            let state = self.contents.lock();
            state.entries.iter().map(|(key, stored)| (key.clone(), stored.clone())).collect()
        };
        let mut encoded = Vec::with_capacity(entries.len());
        for (key, stored) in entries {
            if let Some(bytes) = stored.encoded {
                encoded.push((key, bytes));
                continue;
            }
            // A value that its own codec does not encode cannot have been stored; if it is there, others must not suffer.
            let Ok(pair) = stored.pair(&key, &stored.value) else { continue };
            let bytes = pair.to_bytes();
            if let Some(stored) = self.contents.lock().entries.get_mut(&key) {
                stored.encoded = Some(bytes.clone());
                stored.size_bound = pair.value.len();
            }
            encoded.push((key, bytes));
        }
        encoded
    }

    /// The codec of a key that is about to be written.
    fn codec(&self, key: &str, operation: &'static str) -> Result<Arc<dyn Codec>, StoreError> {
        let codec = self.codecs.for_key(key).ok_or_else(|| StoreError::NoCodec { key: key.to_owned() })?;
        pair::check_key(key).map_err(|error| StoreError::Refused {
            store: StoreKind::Memberlist,
            operation,
            key: key.to_owned(),
            reason: error.to_string(),
        })?;
        Ok(codec)
    }

    fn lookup(&self, key: &str) -> Option<Stored> {
        self.contents.lock().entries.get(key).cloned()
    }
}

/// What readers see of a stored key.
fn entry(stored: &Stored) -> Option<Entry> {
    (!stored.liveness.deleted).then(|| Entry { value: stored.value.clone(), version: stored.version })
}

impl std::fmt::Debug for GossipStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GossipStore")
            .field("config", &self.config)
            .field("contents", &self.contents)
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "gossip/tests.rs"]
mod tests;

#[cfg(test)]
#[path = "gossip/convergence_tests.rs"]
mod convergence_tests;
