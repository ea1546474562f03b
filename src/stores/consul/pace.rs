//! When to ask again: pauses after failures, and the rate limit of a watch.

use std::time::{Duration, Instant};

use rand::RngExt;

/// Pauses that grow after each failure: a random time between nothing and a bound that doubles ("full jitter"), so
/// that many clients do not come back at the same moment.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    longest: Duration,
    bound: Duration,
}

impl Backoff {
    pub(super) fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, bound: first.min(longest) }
    }

    /// The next pause.
    pub(super) fn next_delay(&mut self) -> Duration {
        let delay = self.bound.mul_f64(rand::rng().random_range(0.0..=1.0));
        self.bound = self.bound.saturating_mul(2).min(self.longest);
        delay
    }

    pub(super) async fn pause(&mut self) {
        tokio::time::sleep(self.next_delay()).await;
    }

    pub(super) fn reset(&mut self) {
        self.bound = self.first.min(self.longest);
    }
}

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
