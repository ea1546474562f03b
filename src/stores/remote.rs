//! What the stores on servers of their own have in common: a write that is conditional on what was read, and a watch
//! that never shows its reader anything older than before.
//!
//! Such a server stores bytes with a version and has no idea of merging. A compare-and-swap therefore reads, decides,
//! and writes only if the version is still the one that was read.

pub(super) mod backoff;
pub(super) mod mailbox;
#[cfg(test)]
mod tests;
pub(super) mod view;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use crate::clock::Now;
use crate::kv::{CasAction, CasFn, Codec, Codecs, StoreError, TypeMismatch, Value};

/// What is read or watched.
#[derive(Clone, Debug)]
pub(super) enum Target {
    Key(Arc<str>),
    Prefix(Arc<str>),
}

impl Target {
    pub(super) fn name(&self) -> &Arc<str> {
        match self {
            Self::Key(name) | Self::Prefix(name) => name,
        }
    }
}

/// A key with its value, as the server stores it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pair {
    pub(super) key: String,
    pub(super) value: Vec<u8>,
    /// Of the last write to this key, in the order of all writes. Never 0.
    pub(super) version: u64,
}

/// One compare-and-swap at a time for each key: operations of one process must not make each other lose.
#[derive(Debug, Default)]
pub(super) struct Writers(Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>);

impl Writers {
    /// The lock of a key.
    pub(super) fn of(&self, key: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut writers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = writers.get(key).and_then(Weak::upgrade) {
            return lock;
        }
        writers.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::default();
        writers.insert(key.to_owned(), Arc::downgrade(&lock));
        lock
    }
}

/// Which tombstones are written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tombstones {
    /// Whether any are.
    pub(super) keep: bool,
    /// For how long; zero is for ever.
    pub(super) lifetime: Duration,
}

impl Tombstones {
    /// The value as it is written: without tombstones, or without those that everybody has seen by now.
    fn stored_form(&self, value: &Value, now: Now) -> Value {
        if !self.keep {
            value.without_tombstones(None).0
        } else if self.lifetime.is_zero() {
            value.clone()
        } else {
            let age = i64::try_from(self.lifetime.as_secs()).unwrap_or(i64::MAX);
            value.without_tombstones(Some(now.unix_secs().saturating_sub(age))).0
        }
    }
}

/// What a write operation does to the value it finds.
pub(super) enum Edit {
    Cas(CasFn),
    Join(Value),
}

/// Bytes to be written, and what they change.
pub(super) struct Prepared {
    pub(super) bytes: Vec<u8>,
    pub(super) delta: Value,
    /// Whether it is a join. Whoever joins does not compare versions afterwards.
    #[cfg_attr(not(feature = "consul"), expect(dead_code, reason = "only Consul has to be asked for the version"))]
    pub(super) joins: bool,
}

/// A value to be written, and what it changes.
struct Write {
    value: Value,
    delta: Value,
    joins: bool,
}

impl Edit {
    /// What to write over what was found, or `None` when nothing is to be changed.
    pub(super) fn prepare(
        &mut self,
        key: &str,
        codec: &dyn Codec,
        found: Option<&Pair>,
        tombstones: &Tombstones,
    ) -> Result<Option<Prepared>, StoreError> {
        let base = found.map(|pair| decode(codec, key, &pair.value)).transpose()?;
        let now = Now::read();
        let Some(Write { value, delta, joins }) = self.decide(key, base.as_ref(), codec, now)? else { return Ok(None) };
        let value = tombstones.stored_form(&value, now);
        if base.is_none() && value.is_empty() {
            return Ok(None);
        }
        let bytes = codec.encode(&value).map_err(|_| StoreError::Type { key: key.to_owned(), source: TypeMismatch })?;
        if found.is_some_and(|pair| pair.value == bytes) {
            // The change was a tombstone of what is not there, and tombstones are not kept.
            return Ok(None);
        }
        Ok(Some(Prepared { bytes, delta, joins }))
    }

    /// What to write over `base`, or `None` when nothing is to be changed.
    fn decide(
        &mut self,
        key: &str,
        base: Option<&Value>,
        codec: &dyn Codec,
        now: Now,
    ) -> Result<Option<Write>, StoreError> {
        let of_key = |source| StoreError::Type { key: key.to_owned(), source };
        let (delta, joins) = match self {
            Self::Join(delta) => (delta.clone(), true),
            Self::Cas(f) => match f(base) {
                CasAction::Keep => return Ok(None),
                CasAction::Join(delta) => (delta, true),
                CasAction::Abort(reason) => return Err(StoreError::Aborted(reason)),
                CasAction::Write(value) => match value.delta(base, now).map_err(of_key)? {
                    Some(delta) => (delta, false),
                    None => return Ok(None),
                },
            },
        };
        let Some(base) = base else {
            return Ok((!delta.is_empty()).then(|| Write { value: delta.clone(), delta, joins }));
        };
        let joined = codec.join(base, &delta, now).map_err(of_key)?;
        Ok(joined.change.map(|change| Write { value: joined.value, delta: if joins { change } else { delta }, joins }))
    }
}

/// Bytes that a value would have, written now.
pub(super) fn stored_size(codecs: &Codecs, key: &str, value: &Value, tombstones: &Tombstones) -> Option<usize> {
    let stored = tombstones.stored_form(value, Now::read());
    codecs.for_key(key)?.encode(&stored).ok().map(|bytes| bytes.len())
}

pub(super) fn codec_for(codecs: &Codecs, key: &str) -> Result<Arc<dyn Codec>, StoreError> {
    codecs.for_key(key).ok_or_else(|| StoreError::NoCodec { key: key.to_owned() })
}

pub(super) fn decode(codec: &dyn Codec, key: &str, bytes: &[u8]) -> Result<Value, StoreError> {
    codec.decode(bytes).map_err(|error| StoreError::Decode { key: key.to_owned(), reason: error.reason })
}
