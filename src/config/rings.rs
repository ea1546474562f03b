//! The `rings` section.
//!
//! Key names follow Mimir and Loki where they have the setting, so that an operator can carry theirs over. The
//! reference in `docs/reference/configuration.md` is generated from `schema.rs`, which names every key of these
//! structs.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::units;

/// How a joining instance chooses its tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TokenStrategy {
    /// Uniform draws that avoid the tokens in use.
    #[default]
    Random,
    /// Computed from the instance's number and zone, for an even share.
    SpreadMinimizing,
}

/// How a store merges an update into a ring. Nodes with different strategies can share one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MergeStrategy {
    /// Entry by entry, the newer one whole ([`crate::ring::lattice`]). Replicas that saw the same updates hold the
    /// same ring, in whatever order, grouping and repetition the updates came.
    ///
    /// Owners of contested tokens are found at reading, by dskit's rule, so Grafana nodes in the same ring name the
    /// same owners: at once unless two entries of one instance bear the same second or a contested token changes
    /// hands, and then after its claimants have sent two heartbeats each.
    #[default]
    Lattice,
    /// As dskit does it, bit for bit ([`crate::ring::merge_dskit`]): what this node stores is what a Grafana node stores
    /// that got the same updates in the same order. What this node removes is dated later than its entry all the same.
    ///
    /// It is no lattice. Of two entries with the same second the first to arrive stays, so nodes may differ until the
    /// next heartbeat. With contested tokens, one result in 25 depends on the order of updates; an instance that lost a
    /// token gets it back with its next heartbeat at the earliest, and one of Grafana's never does.
    Dskit,
}

/// One ring that this node reads, and may join.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RingConfig {
    /// Name of the ring in the library, on pages and in metrics. Required, unique.
    pub name: String,
    /// Key of the ring in the store, after kv.prefix.
    pub key: String,
    /// Whether this node is an instance of the ring, or only reads it.
    pub join: bool,
    /// Instances that own each key.
    pub replication_factor: u32,
    /// Choose the owners of a key in different zones.
    pub zone_awareness_enabled: bool,
    /// Tokens of this instance, 1 to 4096.
    pub num_tokens: u32,
    /// File that keeps the tokens across restarts. Empty keeps none.
    pub tokens_file_path: String,
    /// How tokens are chosen. spread-minimizing needs node.id to end in a number, and no tokens file.
    pub token_generation_strategy: TokenStrategy,
    /// Time between heartbeats of this instance.
    #[serde(with = "units::duration")]
    pub heartbeat_period: Duration,
    /// Age of a heartbeat from which an instance counts as unhealthy. Longer than heartbeat_period.
    #[serde(with = "units::duration")]
    pub heartbeat_timeout: Duration,
    /// How long a new instance watches for others with its tokens before it serves.
    #[serde(with = "units::duration")]
    pub observe_period: Duration,
    /// How long an instance waits before it joins.
    #[serde(with = "units::duration")]
    pub join_after: Duration,
    /// How long the ring must look healthy before this instance is ready.
    #[serde(with = "units::duration")]
    pub min_ready_duration: Duration,
    /// Wait between leaving and stopping, so that others notice.
    #[serde(with = "units::duration")]
    pub final_sleep: Duration,
    /// Remove this instance from the ring when it stops, instead of leaving it there for its return.
    pub unregister_on_shutdown: bool,
    /// Zones whose instances are never owners.
    #[serde(deserialize_with = "units::list")]
    pub excluded_zones: Vec<String>,
    /// How updates of the ring are merged. Must be lattice while kv.store is multi.
    pub merge_strategy: MergeStrategy,
    /// Forget an instance after this many heartbeat timeouts without a heartbeat. 0 never forgets.
    pub auto_forget_unhealthy_periods: u32,
}

impl Default for RingConfig {
    fn default() -> Self {
        Self {
            name: String::new(),
            key: "ring".to_owned(),
            join: true,
            replication_factor: 3,
            zone_awareness_enabled: false,
            num_tokens: 128,
            tokens_file_path: String::new(),
            token_generation_strategy: TokenStrategy::Random,
            heartbeat_period: Duration::from_secs(15),
            heartbeat_timeout: Duration::from_secs(60),
            observe_period: Duration::ZERO,
            join_after: Duration::ZERO,
            min_ready_duration: Duration::from_secs(15),
            final_sleep: Duration::ZERO,
            unregister_on_shutdown: true,
            excluded_zones: Vec::new(),
            merge_strategy: MergeStrategy::Lattice,
            auto_forget_unhealthy_periods: 0,
        }
    }
}

impl RingConfig {
    /// A ring of this name with default settings.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }
}
