//! How values get into the store: local writes, pairs of other nodes, and the one place that stores.

use std::sync::Arc;

use super::liveness::Liveness;
use super::merge::{self, Merged};
use super::state::{OWN_CHANGE_LIFETIME, OwnChange, Stored, TELL_REFUSED_EVERY, pair};
use super::{Broadcast, GossipStore, Output, entry};
use crate::clock::Now;
use crate::kv::admission::{Admitted, Known};
use crate::kv::codec::{Codec, Codecs};
use crate::kv::pair::{KeyValuePair, MAX_VALUE_LEN, PairError, check_key};
use crate::kv::store::{CasOutcome, StoreError, StoreKind};
use crate::kv::value::{TypeMismatch, Value};

/// Who caused a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Local,
    Remote,
    /// A remote change that is not passed on.
    RemoteQuiet,
}

/// Why a merged value was not stored.
pub(super) enum CommitError {
    Encode,
    TooLarge(usize),
    TooManyKeys,
}

impl GossipStore {
    /// A local write; `combine` says what it does to the value of a key that exists.
    pub(super) fn write(
        &mut self,
        now: Now,
        key: &str,
        codec: Arc<dyn Codec>,
        stored: Option<Stored>,
        incoming: &Value,
        combine: merge::Combine,
    ) -> Result<CasOutcome, StoreError> {
        let rules = codec.clone();
        let mut next = match &stored {
            Some(stored) => Stored { codec, ..stored.clone() },
            None => new_key(codec, incoming.clone(), Liveness::default()),
        };
        let merged = match &stored {
            None => {
                // Dated, so that the delete of an earlier key of this name, still on its way to us, does not hit it.
                next.liveness = next.liveness.created(now);
                merge::first(incoming, now)
            }
            Some(stored) if stored.liveness.deleted => {
                next.liveness = next.liveness.created(now);
                merge::recreated(&*rules, &stored.value, incoming, now)
            }
            Some(stored) => combine(&*rules, &stored.value, incoming, now),
        };
        let merged = merged.map_err(|source| StoreError::Type { key: key.to_owned(), source })?;
        let Some(merged) = merged.and_then(|merged| merged.without_expired(now, self.config.left_timeout)) else {
            return Ok(CasOutcome::Unchanged);
        };
        let delta = merged.change.clone();
        let version = self.commit(now, key, next, merged, Origin::Local).map_err(|error| self.failure(key, &error))?;
        Ok(CasOutcome::Written { delta, version })
    }

    pub(super) fn failure(&self, key: &str, error: &CommitError) -> StoreError {
        let (store, key) = (StoreKind::Memberlist, key.to_owned());
        match *error {
            CommitError::Encode => StoreError::Type { key, source: TypeMismatch },
            CommitError::TooLarge(size) => StoreError::TooLarge { store, key, size, limit: MAX_VALUE_LEN },
            CommitError::TooManyKeys => StoreError::Refused {
                store,
                operation: "the creation",
                key,
                reason: format!("there are {} keys already, deleted ones included", self.config.max_keys),
            },
        }
    }

    /// A pair from another node.
    pub(super) fn take_pair(&mut self, now: Now, pair: Result<KeyValuePair, PairError>, origin: Origin) {
        let Ok(pair) = pair else {
            self.stats.invalid_pair += 1;
            return;
        };
        let Some(codec) = self.codecs.for_key_and_id(&pair.key, &pair.codec) else {
            self.stats.invalid_key += 1;
            return;
        };
        let Ok(liveness) = Liveness::of(&pair, now, self.config.max_clock_skew) else {
            self.stats.invalid_time += 1;
            return;
        };
        if liveness.expired(now, self.config.obsolete_timeout) {
            // Everybody has purged it, and the key may have been created anew since.
            return;
        }
        let Some(value) = decode(&*codec, &pair.value) else {
            self.stats.invalid_value += 1;
            return;
        };
        let Some(value) = self.admitted(now, &pair.key, &*codec, value, liveness) else { return };
        if self.merge_remote(now, &pair.key, codec, &value, liveness, origin).is_err() {
            self.stats.invalid_value += 1;
        }
    }

    /// What of a value from another node may be joined; `None` when nothing is left of it.
    fn admitted(&mut self, now: Now, key: &str, codec: &dyn Codec, value: Value, liveness: Liveness) -> Option<Value> {
        let stored = self.lookup(key);
        let known = stored.as_ref().map_or_else(Known::default, |stored| Known {
            value: Some(&stored.value),
            forgotten: stored.forgotten.as_ref(),
        });
        let Admitted { value, refused, reply } = codec.admit(value, known, now);
        if refused.is_empty() {
            return Some(value);
        }
        self.stats.entries_refused.add(refused);
        let reply = reply.and_then(|reply| Some((pair(key, codec, &reply, stored?.liveness).ok()?, reply.content())));
        let mut state = self.contents.lock();
        let name: Arc<str> = key.into();
        if let Some((pair, content)) = reply {
            let (version, payload) = (state.last_version, pair.to_bytes());
            let broadcast = Broadcast { key: name.clone(), content, version, local: false, payload };
            state.outputs.push_back(Output::Broadcast(broadcast));
        }
        state.refused.add(refused);
        let told = state.refused_told.map(|told| now.mono.saturating_duration_since(told));
        if told.is_none_or(|ago| ago >= TELL_REFUSED_EVERY) {
            state.refused_told = Some(now.mono);
            let refused = std::mem::take(&mut state.refused);
            state.outputs.push_back(Output::Refused { key: name, refused });
        }
        (liveness.deleted || !value.is_empty()).then_some(value)
    }

    fn merge_remote(
        &mut self,
        now: Now,
        key: &str,
        codec: Arc<dyn Codec>,
        incoming: &Value,
        liveness: Liveness,
        origin: Origin,
    ) -> Result<(), TypeMismatch> {
        let left_timeout = self.config.left_timeout;
        let (next, merged, origin) = match self.lookup(key) {
            None => {
                let first = merge::first(incoming, now)?.and_then(|first| first.without_expired(now, left_timeout));
                let merged = match first {
                    Some(merged) => merged,
                    // Remembered although nothing is inside: the value may come later, by another path.
                    None if liveness.deleted => Merged::whole(incoming.without_tombstones(None).0),
                    None => return Ok(()),
                };
                (new_key(codec, merged.value.clone(), liveness), merged, origin)
            }
            Some(mut stored) => {
                let joined = merge::joined(&*codec, &stored.value, incoming, now)?;
                let joined = joined.and_then(|joined| {
                    let buries = merge::buries(&stored.value, &joined, now, left_timeout);
                    if buries { Some(joined) } else { joined.without_expired(now, left_timeout) }
                });
                let turned = liveness > stored.liveness;
                stored.liveness = stored.liveness.max(liveness);
                stored.codec = codec;
                let merged = match joined {
                    Some(merged) => merged,
                    None if turned => Merged::whole(stored.value.clone()),
                    None => return Ok(()),
                };
                (stored, merged, Origin::Remote)
            }
        };
        match self.commit(now, key, next, merged, origin) {
            Ok(_) => {}
            Err(CommitError::Encode) => return Err(TypeMismatch),
            Err(CommitError::TooLarge(_) | CommitError::TooManyKeys) => self.stats.dropped += 1,
        }
        Ok(())
    }

    /// Stores a merged value, with the codec and liveness of `next`, and puts out what follows from it.
    ///
    /// Everything that runs foreign code comes first, so that the store changes at once or not at all.
    pub(super) fn commit(
        &mut self,
        now: Now,
        key: &str,
        mut next: Stored,
        merged: Merged,
        origin: Origin,
    ) -> Result<u64, CommitError> {
        let Merged { value, change } = merged;
        let wire = pair(key, &*next.codec, &change, next.liveness).map_err(|_| CommitError::Encode)?;
        next.size_bound = next.size_bound.saturating_add(wire.value.len());
        if next.size_bound > MAX_VALUE_LEN {
            next.size_bound = next.codec.encode(&value).map_err(|_| CommitError::Encode)?.len();
            if next.size_bound > MAX_VALUE_LEN {
                return Err(CommitError::TooLarge(next.size_bound));
            }
        }
        if origin == Origin::Local {
            next.own = Some(own_change(next.own, &change, now));
        }
        next.value = value;
        next.encoded = None;
        next.settled = false;
        let content = change.content();
        let payload = wire.to_bytes();

        let mut state = self.contents.lock();
        let before = state.entries.get(key).map(|stored| stored.liveness.deleted);
        if before.is_none() && state.entries.len() >= self.config.max_keys {
            return Err(CommitError::TooManyKeys);
        }
        state.last_version += 1;
        let version = state.last_version;
        next.version = version;
        let name: Arc<str> = state.entries.get_key_value(key).map_or_else(|| key.into(), |(name, _)| name.clone());
        let (alive, visible) = (!next.liveness.deleted, entry(&next));
        state.entries.insert(name.clone(), next);
        if origin != Origin::RemoteQuiet {
            let local = origin == Origin::Local;
            let broadcast = Broadcast { key: name.clone(), content, version, local, payload };
            state.outputs.push_back(Output::Broadcast(broadcast));
        }
        if alive || before == Some(false) {
            state.outputs.push_back(Output::Changed { key: name, entry: visible });
        }
        let interval = self.config.sweep_interval();
        if state.next_sweep.is_none() {
            state.next_sweep = interval.map(|interval| now.mono + interval);
        }
        match before {
            Some(true) => self.stats.deleted_keys = self.stats.deleted_keys.saturating_sub(1),
            Some(false) => self.stats.keys = self.stats.keys.saturating_sub(1),
            None => {}
        }
        if alive {
            self.stats.keys += 1;
        } else {
            self.stats.deleted_keys += 1;
        }
        state.stats = self.stats;
        Ok(version)
    }
}

/// A key that was not there.
fn new_key(codec: Arc<dyn Codec>, value: Value, liveness: Liveness) -> Stored {
    Stored {
        codec,
        value,
        forgotten: None,
        liveness,
        version: 0,
        size_bound: 0,
        encoded: None,
        settled: false,
        own: None,
    }
}

/// A key that we have not heard of, with nothing inside; `None` when there can be no such key.
pub(super) fn unheard(codecs: &Codecs, key: &str) -> Option<Stored> {
    check_key(key).ok()?;
    let codec = codecs.for_key(key)?;
    let value = codec.empty()?;
    Some(new_key(codec, value, Liveness::default()))
}

/// Joins a change into the recent ones, unless those are no longer of interest.
fn own_change(known: Option<OwnChange>, change: &Value, now: Now) -> OwnChange {
    let recent = known.filter(|own| now.mono.saturating_duration_since(own.last) <= OWN_CHANGE_LIFETIME);
    let change =
        recent.and_then(|own| own.change.join(change, now).ok()).map_or_else(|| change.clone(), |own| own.value);
    OwnChange { change, last: now.mono }
}

/// Decodes a value. dskit's protobuf codecs never emit an empty value, yet receivers take one for the Snappy block of
/// an empty message.
fn decode(codec: &dyn Codec, bytes: &[u8]) -> Option<Value> {
    match codec.decode(bytes) {
        Ok(value) => Some(value),
        Err(_) if bytes.is_empty() => codec.decode(&[0]).ok(),
        Err(_) => None,
    }
}
