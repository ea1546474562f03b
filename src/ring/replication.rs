//! The answers of a ring: who serves a key, or everything, and how many of them may fail.

use std::fmt;
use std::sync::Arc;

use smallvec::SmallVec;

use super::snapshot::{RingInstance, Snapshot};

/// Indexes of instances; up to eight without an allocation.
pub(super) type Members = SmallVec<[u32; 8]>;

/// How many replicas of a key must be healthy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// A majority of the replica set, and at least of the replication factor.
    #[default]
    Quorum,
    /// One.
    IgnoreUnhealthy,
}

/// The healthy instances that serve a key, or a whole ring. It keeps the [`Snapshot`] it was taken from alive.
#[derive(Clone)]
pub struct ReplicationSet {
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) members: Members,
    pub(super) max_errors: usize,
    pub(super) max_unavailable_zones: usize,
}

impl ReplicationSet {
    /// The instances, in the order in which the ring found them.
    pub fn instances(&self) -> impl ExactSizeIterator<Item = &RingInstance> {
        self.members.iter().map(|member| &self.snapshot.instances()[*member as usize])
    }

    /// The ids of the instances.
    pub fn ids(&self) -> impl ExactSizeIterator<Item = &str> {
        self.instances().map(|instance| &*instance.id)
    }

    /// How many instances.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// How many of the instances may fail with the whole still a success.
    #[must_use]
    pub fn max_errors(&self) -> usize {
        self.max_errors
    }

    /// In how many zones all instances may fail with the whole still a success. Only sets of a whole, zone-aware ring
    /// have it; it takes the place of [`ReplicationSet::max_errors`].
    #[must_use]
    pub fn max_unavailable_zones(&self) -> usize {
        self.max_unavailable_zones
    }

    /// The ring that this set was taken from.
    #[must_use]
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }
}

impl fmt::Debug for ReplicationSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplicationSet")
            .field("ids", &self.ids().collect::<Vec<_>>())
            .field("max_errors", &self.max_errors)
            .field("max_unavailable_zones", &self.max_unavailable_zones)
            .finish()
    }
}

/// Why a ring has no answer. The texts are dskit's, which dashboards and alerts match on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RingError {
    /// Nobody owns a token: no instance has joined yet, or the ring has not been read.
    #[error("empty ring")]
    Empty,
    /// Too many instances or zones of the whole ring are unhealthy.
    #[error("too many unhealthy instances in the ring")]
    TooManyUnhealthy,
    /// Too few replicas of a key are healthy.
    #[error(
        "at least {required} live replicas required{}, could only find {found}{}",
        if *.zone_aware { " across different availability zones" } else { "" },
        Unhealthy(.unhealthy)
    )]
    TooFewReplicas {
        /// How many must be healthy.
        required: usize,
        /// How many are.
        found: usize,
        /// Whether replicas are spread over zones.
        zone_aware: bool,
        /// Addresses of the replicas that are not healthy.
        unhealthy: Vec<Arc<str>>,
    },
    /// No replica of a key is healthy.
    #[error("at least 1 healthy replica required, could only find 0{}", Unhealthy(.unhealthy))]
    NoReplica {
        /// Addresses of the replicas that are not healthy.
        unhealthy: Vec<Arc<str>>,
    },
}

/// The tail of an error: which replicas are unhealthy.
struct Unhealthy<'a>(&'a [Arc<str>]);

impl fmt::Display for Unhealthy<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, addr) in self.0.iter().enumerate() {
            f.write_str(if index == 0 { " - unhealthy instances: " } else { "," })?;
            f.write_str(addr)?;
        }
        Ok(())
    }
}
