//! The rate limit of a watch.

use std::time::{Duration, Instant};

/// A token bucket: `burst` requests at once, `per_second` on average.
#[derive(Debug)]
pub(super) struct RateLimit {
    per_second: f64,
    burst: f64,
    tokens: f64,
    refilled: Instant,
}

impl RateLimit {
    /// A full bucket, or `None` when there is no limit.
    pub(super) fn new(per_second: f64, burst: u32, now: Instant) -> Option<Self> {
        let burst = f64::from(burst.max(1));
        (per_second > 0.0).then_some(Self { per_second, burst, tokens: burst, refilled: now })
    }

    /// Takes a token. Returns how long to wait before making use of it.
    pub(super) fn take(&mut self, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.refilled);
        self.refilled = now;
        self.tokens = (self.tokens + passed.as_secs_f64() * self.per_second).min(self.burst) - 1.0;
        Duration::try_from_secs_f64((-self.tokens / self.per_second).max(0.0)).unwrap_or(Duration::MAX)
    }
}
