//! A ring as its users hold it.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use super::status::RingStatus;
use crate::actors::heartbeat::{HeartbeatParts, OwnInstance};
use crate::actors::ring_keeper::RingParts;
use crate::actors::shadow::ShadowRing;
use crate::actors::system::RingEntry;
use crate::clock::Now;
use crate::kv::{CasAction, CasOutcome, SharedStore, StoreError, Value};
use crate::ring::{Desc, Operation, ReplicationSet, RingError, RingOptions, Snapshot};

/// Looks up owners in one ring. `Send + Sync + Clone`, cheap to clone, never waits and never allocates on a lookup.
#[derive(Clone)]
pub struct RingHandle {
    name: Arc<str>,
    snapshot: Arc<ArcSwap<Snapshot>>,
    /// The same ring as the other store of a migration has it, when lookups are compared.
    shadow: Option<Arc<ShadowRing>>,
    /// Absent for a ring that is not configured.
    inside: Option<Inside>,
}

#[derive(Clone)]
struct Inside {
    parts: Arc<RingParts>,
    heartbeat: Option<Arc<HeartbeatParts>>,
    store: SharedStore,
}

impl RingHandle {
    pub(super) fn of(entry: &RingEntry, store: SharedStore) -> Self {
        Self {
            name: entry.config.name.as_str().into(),
            snapshot: entry.parts.snapshot.clone(),
            shadow: entry.shadow.clone(),
            inside: Some(Inside { parts: entry.parts.clone(), heartbeat: entry.heartbeat.clone(), store }),
        }
    }

    pub(super) fn unknown(name: &str) -> Self {
        tracing::error!(ring = name, "no ring of this name is configured");
        let empty = Snapshot::build(&Desc::default(), &RingOptions::default(), Duration::ZERO);
        Self { name: name.into(), snapshot: Arc::new(ArcSwap::from_pointee(empty)), shadow: None, inside: None }
    }

    /// The ring's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Who owns a key now, for this operation. Reads the published snapshot: no await, no lock, no allocation up to a
    /// replication factor of 8. Hash keys with [`key_hash`](crate::key_hash).
    ///
    /// # Errors
    /// [`RingError`]: the ring is empty, or too few of the key's owners are healthy.
    pub fn get(&self, key: u32, operation: Operation) -> Result<ReplicationSet, RingError> {
        let answer = self.snapshot.load_full().get(key, operation);
        if let Some(shadow) = &self.shadow {
            shadow.saw(key, operation, &answer);
        }
        answer
    }

    /// All instances that must be asked to reach every key.
    ///
    /// # Errors
    /// [`RingError`], as [`RingHandle::get`].
    pub fn get_all(&self, operation: Operation) -> Result<ReplicationSet, RingError> {
        self.snapshot.load_full().get_all(operation)
    }

    /// The snapshot itself, for many lookups that must agree with each other.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// The ring value as last delivered by the store, tombstones included.
    #[must_use]
    pub fn desc(&self) -> Arc<Desc> {
        self.inside.as_ref().map(|inside| inside.parts.desc.load_full()).unwrap_or_default()
    }

    /// How this node's own instance is doing, or `None` when this node only reads the ring.
    #[must_use]
    pub fn own(&self) -> Option<Arc<OwnInstance>> {
        self.inside.as_ref()?.heartbeat.as_ref().map(|parts| parts.own.load_full())
    }

    /// Why this node is not ready to serve in this ring, if it is not.
    #[must_use]
    pub fn not_ready(&self) -> Option<String> {
        let reason = self.own()?.not_ready.clone()?;
        Some(format!("ring {}: {reason}", self.name))
    }

    /// The ring for people and scripts.
    #[must_use]
    pub fn status(&self) -> RingStatus {
        RingStatus::of(&self.name, &self.snapshot(), self.own().map(|own| OwnInstance::clone(&own)), Now::read())
    }

    /// Waits until at least this many instances are ACTIVE and heartbeat. Lookups may need more: a quorum of the
    /// replication factor.
    pub async fn wait_for_instances(&self, count: usize) {
        let active = |snapshot: &Arc<Snapshot>| {
            snapshot.instances().iter().filter(|instance| instance.is_healthy(Operation::WriteNoExtend)).count()
        };
        self.wait_until(|snapshot| active(snapshot) >= count).await;
    }

    /// Waits until the snapshot satisfies a condition; it is asked again with every new snapshot. Bound it with a
    /// timeout.
    pub async fn wait_until(&self, condition: impl Fn(&Arc<Snapshot>) -> bool) {
        let Some(inside) = &self.inside else { return std::future::pending().await };
        let mut published = inside.parts.published.subscribe();
        while !condition(&self.snapshot()) {
            if published.changed().await.is_err() {
                return;
            }
        }
    }

    /// Removes an instance from the ring, as an operator does with one that will not come back. One that is alive
    /// registers itself again with its next heartbeat. Returns whether it was there.
    ///
    /// # Errors
    /// [`StoreError`] when the store could not be written.
    pub async fn forget(&self, id: &str) -> Result<bool, StoreError> {
        let Some(inside) = &self.inside else { return Ok(false) };
        let forgotten = id.to_owned();
        let callback = Box::new(move |current: Option<&Value>| {
            let Some(desc) = current.and_then(|value| value.downcast_ref::<Desc>()) else { return CasAction::Keep };
            let mut desc = desc.clone();
            match desc.instances.remove(forgotten.as_str()) {
                Some(_) => CasAction::Write(Value::new(desc)),
                None => CasAction::Keep,
            }
        });
        let outcome = inside.store.cas(&inside.parts.key, callback).await?;
        Ok(matches!(outcome, CasOutcome::Written { .. }))
    }
}

impl std::fmt::Debug for RingHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RingHandle").field("name", &self.name).finish_non_exhaustive()
    }
}
