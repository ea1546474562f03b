//! The three ways in which a value enters the store.

use std::time::Duration;

use crate::clock::Now;
use crate::kv::codec::Codec;
use crate::kv::value::{TypeMismatch, Value};

/// A stored value after a merge, and what the merge changed.
#[derive(Clone, Debug)]
pub(super) struct Merged {
    pub(super) value: Value,
    pub(super) change: Value,
}

/// How a value that is written meets the stored one, by the rules of their codec.
pub(super) type Combine = fn(&dyn Codec, &Value, &Value, Now) -> Result<Option<Merged>, TypeMismatch>;

/// The first value of a key. It is normalised by taking its difference to nothing; `None` when nothing is inside.
pub(super) fn first(incoming: &Value, now: Now) -> Result<Option<Merged>, TypeMismatch> {
    Ok(incoming.delta(None, now)?.map(|value| Merged { change: value.clone(), value }))
}

/// `incoming` joined into a stored value; `None` when it holds nothing new.
pub(super) fn joined(
    codec: &dyn Codec,
    stored: &Value,
    incoming: &Value,
    now: Now,
) -> Result<Option<Merged>, TypeMismatch> {
    let joined = codec.join(stored, incoming, now)?;
    Ok(joined.change.map(|change| Merged { value: joined.value, change }))
}

/// `new` in place of a stored value; what `new` lacks becomes tombstones. `None` when the two are equal.
pub(super) fn replaced(
    codec: &dyn Codec,
    stored: &Value,
    new: &Value,
    now: Now,
) -> Result<Option<Merged>, TypeMismatch> {
    match new.delta(Some(stored), now)? {
        Some(delta) => joined(codec, stored, &delta, now),
        None => Ok(None),
    }
}

/// `new` as the value of a key whose deleted value was `retained`.
///
/// Peers still hold what the key had inside before, so a plain join would bring it back. The delete removed it: now is
/// the time to say so entry by entry. The whole result is the change, because a peer may have purged the old value.
pub(super) fn recreated(
    codec: &dyn Codec,
    retained: &Value,
    new: &Value,
    now: Now,
) -> Result<Option<Merged>, TypeMismatch> {
    if new.delta(None, now)?.is_none() {
        return Ok(None);
    }
    let value = replaced(codec, retained, new, now)?.map_or_else(|| retained.clone(), |merged| merged.value);
    Ok(Some(Merged { change: value.clone(), value }))
}

impl Merged {
    /// A merge that changed nothing inside: what changed is whether the key exists, which concerns all of it.
    pub(super) fn whole(value: Value) -> Self {
        Self { change: value.clone(), value }
    }

    /// The same without tombstones older than `timeout` (zero: tombstones are kept for ever), so that old ones are
    /// neither stored nor passed on. `None` when nothing remains of the change.
    pub(super) fn without_expired(self, now: Now, timeout: Duration) -> Option<Self> {
        let Some(before) = expiry(now, timeout) else { return Some(self) };
        let (change, expired) = self.change.without_tombstones(Some(before));
        if expired == 0 {
            return Some(self);
        }
        if change.is_empty() {
            return None;
        }
        Some(Self { value: self.value.without_tombstones(Some(before)).0, change })
    }
}

/// Whether a merge into `stored` removes, by tombstones that have expired, entries that are alive there. They are news to
/// this node however old they are, and maybe to those around it, so such a merge is stored and passed on whole. The next
/// sweep forgets the tombstones.
pub(super) fn buries(stored: &Value, merged: &Merged, now: Now, timeout: Duration) -> bool {
    let Some(before) = expiry(now, timeout) else { return false };
    let (recent, expired) = merged.change.without_tombstones(Some(before));
    if expired == 0 {
        return false;
    }
    let (alive, recent) = (stored.without_tombstones(None).0.content(), recent.content());
    merged.change.content().iter().any(|name| !recent.contains(name) && alive.contains(name))
}

/// Tombstones dated before this many seconds since the Unix epoch have expired; `None` when they never do.
pub(super) fn expiry(now: Now, timeout: Duration) -> Option<i64> {
    let timeout = i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX);
    (timeout > 0).then(|| now.unix_secs().saturating_sub(timeout))
}
