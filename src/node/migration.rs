//! The migration as the users of a node see it.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use super::Node;
use crate::actors::mirror::CompareStores;
use crate::actors::shadow::ShadowStatus;
use crate::kv::StoreKind;
use crate::migration::{Gate, MigrationStatus, ParityReport, PendingFlip, Phase, Rollback};

/// What a node says before a flip. Several of these, one of each node, tell whether the fleet is ready.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Preflight {
    /// The node.
    pub node: String,
    /// Its version.
    pub version: &'static str,
    /// Its phase.
    pub phase: Phase,
    /// The store that it reads.
    pub primary: StoreKind,
    /// The store that it would flip to.
    pub to: StoreKind,
    /// Whether every gate is open.
    pub safe: bool,
    /// The conditions.
    pub gates: Vec<Gate>,
    /// A flip that was asked for and waits.
    pub pending_flip: Option<PendingFlip>,
    /// The way back.
    pub rollback: Rollback,
    /// Hash of the runtime configuration in force; empty when none is.
    pub runtime_config_hash: String,
    /// Whether the last reading of it succeeded.
    pub runtime_config_healthy: bool,
    /// Fingerprint of each ring as this node reads it, heartbeats left out.
    pub rings: BTreeMap<String, String>,
    /// Live members of the gossip cluster.
    pub members: Vec<String>,
}

impl Node {
    /// Where the migration stands on this node, or `None` when its store is not `multi`.
    #[must_use]
    pub fn migration(&self) -> Option<Arc<MigrationStatus>> {
        self.system.mirror.as_ref().map(|parts| parts.status.load_full())
    }

    /// Compares both stores thoroughly: lists and reads them, the primary twice. `None` when the store is not `multi`.
    ///
    /// # Errors
    /// Which store could not be read, in words.
    pub async fn parity(&self) -> Option<Result<Arc<ParityReport>, String>> {
        let mirror = self.system.mirror.as_ref()?.address.get()?.clone();
        Some(mirror.send(CompareStores).await.unwrap_or_else(|_| Err("the node has ended".to_owned())))
    }

    /// Whether this node could flip to the other store now, and what stands in the way. `None` when its store is not
    /// `multi`.
    #[must_use]
    pub fn preflight(&self) -> Option<Preflight> {
        let status = self.migration()?;
        let runtime = self.runtime_config();
        let members = self.members();
        Some(Preflight {
            node: self.id().to_owned(),
            version: env!("CARGO_PKG_VERSION"),
            phase: status.phase,
            primary: status.primary,
            to: status.secondary,
            safe: status.gates.iter().all(|gate| gate.open),
            gates: status.gates.clone(),
            pending_flip: status.pending_flip.clone(),
            rollback: status.rollback,
            runtime_config_hash: runtime.as_ref().map(|view| view.hash.clone()).unwrap_or_default(),
            runtime_config_healthy: runtime.is_none_or(|view| view.healthy),
            rings: self
                .rings()
                .iter()
                .map(|ring| (ring.name().to_owned(), format!("{:032x}", ring.snapshot().digest())))
                .collect(),
            members: members.list.iter().filter(|one| one.is_live()).map(|one| one.name.to_string()).collect(),
        })
    }

    /// Lookups that were answered from both stores and compared (`migration.shadow_lookups`), by ring; none when that is
    /// off.
    #[must_use]
    pub fn shadow_lookups(&self) -> Vec<ShadowStatus> {
        let rings = self.system.rings.iter();
        rings.filter_map(|ring| Some(ring.shadow.as_ref()?.status(&ring.config.name))).collect()
    }
}
