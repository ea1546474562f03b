//! What the multi store is told: the static configuration, and the section of the runtime file that drives a migration.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::sizes::Sizer;
use crate::kv::StoreKind;
use crate::ring::RingOptions;

/// One of the two stores. The sides never change; which of them is primary does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum Side {
    /// The store that the static configuration calls primary.
    A,
    /// The store that the static configuration calls secondary.
    B,
}

impl Side {
    /// The opposite side.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// 0 for A, 1 for B.
    #[must_use]
    pub const fn index(self) -> usize {
        match self {
            Self::A => 0,
            Self::B => 1,
        }
    }
}

/// Static settings of a multi store.
#[derive(Clone, Debug)]
pub struct MultiConfig {
    /// The store of side A, primary until the runtime configuration says otherwise. Default: Consul.
    pub primary: StoreKind,
    /// The store of side B. Must be another kind than `primary`. Default: memberlist.
    pub secondary: StoreKind,
    /// Whether writes are mirrored from the start. Default: no (the familiar default; runtime configuration turns it on).
    pub mirror_enabled: bool,
    /// How long one attempt on the other store may take (the actor enforces it), how long a primary may leave a write
    /// unanswered before the write goes to the mirror all the same, and how long an operation that began on the old
    /// primary may outlive a flip before it is run again on the new one. Default and, when zero, fallback: 2 s.
    pub mirror_timeout: Duration,
    /// Key prefixes that a backfill copies. [`Input::Prefixes`](super::Input::Prefixes) changes them later. Default: the empty prefix, which is every key.
    pub prefixes: Vec<String>,
    /// Hold operations until the first runtime configuration has arrived, so that a node that starts during a migration
    /// does not write to the wrong primary. Default: no (a node without a runtime file would wait for ever).
    pub wait_for_runtime: bool,
    /// First delay after a failed attempt. Default: 250 ms.
    pub retry_min: Duration,
    /// Longest delay between attempts. Default: 30 s.
    pub retry_max: Duration,
    /// Flip only while every [`Gate`](super::Gate) is open. Default: no.
    pub require_parity: bool,
    /// Time between two comparisons of the other store with what this node was shown; six times that when the other
    /// store is a server. Default: 5 s.
    pub parity_period: Duration,
    /// How old a change must be before it counts as a difference. Default: 10 s.
    pub in_flight: Duration,
    /// How the rings are read, by their keys: for the part of the circle that would change owners. Default: none, and
    /// then rings are read by [`RingOptions::default`].
    pub rings: BTreeMap<String, RingOptions>,
    /// The shortest heartbeat timeout of the rings: the mirror may lag by a quarter of it. Default: one minute.
    pub heartbeat_timeout: Duration,
    /// Whether the store that was primary before is being given up. Default: no.
    pub teardown: bool,
    /// Read the other store back and compare before a key counts as copied. Default: yes.
    pub verify_backfill: bool,
    /// Tombstones of entries older than this are left out of what the core remembers of each key, or it would remember
    /// them for ever. Should be no shorter than that of the stores. Zero: keep all. Default: 5 min.
    pub tombstone_ttl: Duration,
    /// How large values would be in each of the stores. Default: no store has a limit.
    pub sizer: Sizer,
    /// Seed of the jitter. Nodes should differ. Default: 0.
    pub seed: u64,
}

impl Default for MultiConfig {
    fn default() -> Self {
        Self {
            primary: StoreKind::Consul,
            secondary: StoreKind::Memberlist,
            mirror_enabled: false,
            mirror_timeout: DEFAULT_MIRROR_TIMEOUT,
            prefixes: vec![String::new()],
            wait_for_runtime: false,
            retry_min: Duration::from_millis(250),
            retry_max: Duration::from_secs(30),
            require_parity: false,
            parity_period: Duration::from_secs(5),
            in_flight: Duration::from_secs(10),
            rings: BTreeMap::new(),
            heartbeat_timeout: Duration::from_secs(60),
            teardown: false,
            verify_backfill: true,
            tombstone_ttl: Duration::from_secs(300),
            sizer: Sizer::default(),
            seed: 0,
        }
    }
}

const DEFAULT_MIRROR_TIMEOUT: Duration = Duration::from_secs(2);

impl MultiConfig {
    /// The kind of store on a side.
    #[must_use]
    pub const fn kind(&self, side: Side) -> StoreKind {
        match side {
            Side::A => self.primary,
            Side::B => self.secondary,
        }
    }

    /// The side that holds this kind of store, if one does.
    #[must_use]
    pub fn side_of(&self, kind: StoreKind) -> Option<Side> {
        [Side::A, Side::B].into_iter().find(|side| self.kind(*side) == kind)
    }

    /// `mirror_timeout`, or its default where zero stands for "no limit": the core itself always needs one.
    pub(crate) const fn patience(&self) -> Duration {
        if self.mirror_timeout.is_zero() { DEFAULT_MIRROR_TIMEOUT } else { self.mirror_timeout }
    }
}

/// The section `multi_kv_config` of the runtime file, with its names already checked. What is left out does not change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuntimeMulti {
    /// The store to read from and to write to first.
    pub primary: Option<StoreKind>,
    /// Whether writes go to the other store as well.
    pub mirror_enabled: Option<bool>,
}
