//! What a gossip store holds, in a place that outlives the actor around it.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::liveness::Liveness;
use super::{GossipStats, Output};
use crate::kv::admission::Refused;
use crate::kv::codec::{Codec, CodecError};
use crate::kv::pair::KeyValuePair;
use crate::kv::value::Value;

/// Everything that a gossip store holds: a handle to it, which stays current and is cheap to clone.
///
/// A supervisor keeps one and hands it to [`GossipStore::resume`](super::GossipStore::resume) when the actor that
/// owned the store has died. Outputs that were not polled yet are inside too. Two stores must not use the same
/// contents at the same time: each change would still be whole, but outputs would go to either.
#[derive(Clone, Default)]
pub struct Contents(Arc<Mutex<State>>);

impl Contents {
    /// The counters of the store that uses the contents.
    #[must_use]
    pub fn stats(&self) -> GossipStats {
        self.lock().stats
    }

    /// Whether a key was deleted and is only remembered.
    #[must_use]
    pub fn remembers_deletion(&self, key: &str) -> bool {
        self.lock().entries.get(key).is_some_and(|stored| stored.liveness.deleted)
    }

    /// The lock is held for map operations only, never while code of a codec or a value runs: a panic there leaves
    /// the contents as they were. So a poisoned lock would be no reason for alarm.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Contents").field("keys", &state.entries.len()).field("version", &state.last_version).finish()
    }
}

/// Behind the handle.
#[derive(Default)]
pub(super) struct State {
    pub(super) entries: BTreeMap<Arc<str>, Stored>,
    /// One counter for all keys: a key that is purged and created again goes on above its old versions.
    pub(super) last_version: u64,
    pub(super) outputs: VecDeque<Output>,
    pub(super) next_sweep: Option<Instant>,
    pub(super) stats: GossipStats,
    /// Refused entries that nobody was told of as yet, and when somebody was told last.
    pub(super) refused: Refused,
    pub(super) refused_told: Option<Instant>,
}

/// What is stored under a key.
#[derive(Clone)]
pub(super) struct Stored {
    pub(super) codec: Arc<dyn Codec>,
    pub(super) value: Value,
    /// Tombstones that have left the value after their time; what they removed must not come back.
    pub(super) forgotten: Option<Value>,
    pub(super) liveness: Liveness,
    pub(super) version: u64,
    /// The encoding of the value has at most about this many bytes; saves encoding it all to learn that it fits.
    pub(super) size_bound: usize,
    /// The encoded pair, once a push/pull needed it; void after each change.
    pub(super) encoded: Option<Bytes>,
    /// Whether the last sweep found no tombstone inside.
    pub(super) settled: bool,
    /// What was changed here lately.
    pub(super) own: Option<OwnChange>,
}

/// The join of the latest local changes of a key.
#[derive(Clone)]
pub(super) struct OwnChange {
    pub(super) change: Value,
    pub(super) last: Instant,
}

/// How long local changes are remembered for another broadcast.
pub(super) const OWN_CHANGE_LIFETIME: Duration = Duration::from_secs(60);

/// How often, at most, somebody is told of refused entries.
pub(super) const TELL_REFUSED_EVERY: Duration = Duration::from_secs(60);

impl Stored {
    /// The pair that carries `value`, a part or the whole of what is stored.
    pub(super) fn pair(&self, key: &str, value: &Value) -> Result<KeyValuePair, CodecError> {
        pair(key, &*self.codec, value, self.liveness)
    }
}

/// A pair for the wire.
pub(super) fn pair(
    key: &str,
    codec: &dyn Codec,
    value: &Value,
    liveness: Liveness,
) -> Result<KeyValuePair, CodecError> {
    Ok(KeyValuePair {
        key: key.to_owned(),
        value: codec.encode(value)?.into(),
        codec: codec.id().to_owned(),
        deleted: liveness.deleted,
        update_time_millis: liveness.millis,
    })
}
