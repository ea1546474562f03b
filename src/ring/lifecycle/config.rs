//! What an instance is told about its life in a ring.

use std::time::Duration;

/// The settings of one instance in one ring. [`LifecycleConfig::new`] has the defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LifecycleConfig {
    /// The instance's id: its key in the ring. It stays the same over restarts.
    pub id: String,
    /// Where others reach it, `host:port`.
    pub addr: String,
    /// Its failure domain; empty for none.
    pub zone: String,
    /// How many tokens it wants. Default 128.
    pub num_tokens: usize,
    /// How often it writes a heartbeat; each pause is up to a tenth longer or shorter. Default 5 s; zero writes none.
    pub heartbeat_period: Duration,
    /// After how long without a heartbeat an instance counts as unhealthy. Default one minute.
    pub heartbeat_timeout: Duration,
    /// How long it stays JOINING to see whether somebody else chose the same tokens. Default zero: not at all.
    pub observe_period: Duration,
    /// How long it stays PENDING before it takes tokens. Default zero.
    pub join_after: Duration,
    /// How long it must have been ACTIVE before it is ready. Default 15 s.
    pub min_ready_duration: Duration,
    /// How long it stays LEAVING before it is gone. Default zero.
    pub final_sleep: Duration,
    /// Whether it takes itself out of the ring at the end. If not, its entry stays as LEAVING, and a restart goes on
    /// with the same tokens. Default yes.
    pub unregister_on_shutdown: bool,
    /// The tokens of its last life, from the tokens file. They count only when the ring has no entry of it.
    pub tokens: Vec<u32>,
    /// Removes other instances whose heartbeat is older than this many heartbeat timeouts, as long as a majority of
    /// the others is fresh. Default 0: never.
    pub auto_forget_unhealthy_periods: u32,
}

impl LifecycleConfig {
    /// The defaults for an instance.
    #[must_use]
    pub fn new(id: impl Into<String>, addr: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            addr: addr.into(),
            zone: String::new(),
            num_tokens: 128,
            heartbeat_period: Duration::from_secs(5),
            heartbeat_timeout: Duration::from_secs(60),
            observe_period: Duration::ZERO,
            join_after: Duration::ZERO,
            min_ready_duration: Duration::from_secs(15),
            final_sleep: Duration::ZERO,
            unregister_on_shutdown: true,
            tokens: Vec::new(),
            auto_forget_unhealthy_periods: 0,
        }
    }

    /// The age of a heartbeat from which an entry is forgotten, if any is.
    pub(super) fn forget_after(&self) -> Option<Duration> {
        let periods = self.auto_forget_unhealthy_periods;
        (periods > 0).then(|| self.heartbeat_timeout.saturating_mul(periods))
    }
}
