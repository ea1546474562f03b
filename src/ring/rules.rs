//! By which rules one ring is merged and which entries of others it takes over, and the codec that applies them.

use std::time::Duration;

use super::admission::admit;
use super::codec::RingCodec;
use super::compat::merge_dskit;
use super::desc::Desc;
use crate::clock::Now;
pub use crate::config::MergeStrategy;
use crate::kv::admission::{Admitted, Known};
use crate::kv::{Codec, CodecError, Joined, Mergeable, TypeMismatch, Value};

/// The rules of one ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingRules {
    /// How updates are merged. Nodes with different strategies can share a ring. Default: the lattice.
    pub merge: MergeStrategy,
    /// How far in the future another node may date an entry. Default half an hour, as in Cortex: more than clocks that
    /// are set at all differ by, and short enough that an entry from the future is soon a matter of the past.
    pub max_clock_skew: Duration,
    /// The age from which an unknown instance is not added any more. Default `None`: never. For rings that forget
    /// long-dead instances: see [`RingRules::forgetting`].
    pub stale_after: Option<Duration>,
}

impl Default for RingRules {
    fn default() -> Self {
        Self { merge: MergeStrategy::Lattice, max_clock_skew: Duration::from_secs(30 * 60), stale_after: None }
    }
}

impl RingRules {
    /// The rules of a ring whose instances are removed `after` their last heartbeat, and whose tombstones are kept for
    /// `tombstones`. An unknown instance is refused from the middle between the two ends: its removal is certain, and
    /// clocks may differ by a quarter of `tombstones` before the rule forgets too early or too late.
    #[must_use]
    pub fn forgetting(self, after: Duration, tombstones: Duration) -> Self {
        // Tombstones that are never forgotten need no such rule.
        let stale_after = (!tombstones.is_zero()).then(|| after.saturating_add(tombstones / 2));
        Self { stale_after, ..self }
    }

    /// The codec of a ring with these rules.
    #[must_use]
    pub fn codec(self) -> impl Codec {
        Ruled(self)
    }

    /// Merges `update` into `stored` and returns what changed, or `None` when nothing did.
    pub fn merge(&self, stored: &mut Desc, update: &Desc, now: Now) -> Option<Desc> {
        match self.merge {
            MergeStrategy::Lattice => stored.join(update, now),
            MergeStrategy::Dskit => merge_dskit(stored, update.clone(), false, now.unix_secs()),
        }
    }

    /// What of a ring from another node may be joined; see [`admit`].
    pub(super) fn admit(&self, incoming: Value, known: Known<'_>, now: Now) -> Admitted {
        let Some(desc) = incoming.downcast_ref::<Desc>() else { return incoming.into() };
        let known_ring = known.value.and_then(Value::downcast_ref::<Desc>);
        let forgotten = known.forgotten.and_then(Value::downcast_ref::<Desc>);
        match admit(desc, known_ring, forgotten, self, now) {
            None => incoming.into(),
            Some(admission) => Admitted {
                value: Value::new(admission.admitted),
                refused: admission.refused,
                reply: (!admission.removed.instances.is_empty()).then(|| Value::new(admission.removed)),
            },
        }
    }
}

/// [`RingCodec`] with rules of its own.
struct Ruled(RingRules);

impl Codec for Ruled {
    fn id(&self) -> &str {
        RingCodec.id()
    }

    fn encode(&self, value: &Value) -> Result<Vec<u8>, CodecError> {
        RingCodec.encode(value)
    }

    fn decode(&self, bytes: &[u8]) -> Result<Value, CodecError> {
        RingCodec.decode(bytes)
    }

    fn empty(&self) -> Option<Value> {
        RingCodec.empty()
    }

    fn to_json(&self, value: &Value) -> Result<serde_json::Value, CodecError> {
        RingCodec.to_json(value)
    }

    fn join(&self, stored: &Value, update: &Value, now: Now) -> Result<Joined, TypeMismatch> {
        if self.0.merge == MergeStrategy::Lattice {
            return stored.join(update, now);
        }
        let ring = |value: &Value| value.downcast_ref::<Desc>().cloned().ok_or(TypeMismatch);
        let (mut joined, update) = (ring(stored)?, ring(update)?);
        Ok(match self.0.merge(&mut joined, &update, now) {
            Some(change) => Joined { value: Value::new(joined), change: Some(Value::new(change)) },
            None => Joined { value: stored.clone(), change: None },
        })
    }

    fn admit(&self, incoming: Value, known: Known<'_>, now: Now) -> Admitted {
        self.0.admit(incoming, known, now)
    }
}
