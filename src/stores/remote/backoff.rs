//! When to ask again after a failure.

use std::time::Duration;

use rand::RngExt as _;

/// Pauses that grow after each failure: a random time between nothing and a bound that doubles ("full jitter"), so
/// that many clients do not come back at the same moment.
#[derive(Debug)]
pub(in crate::stores) struct Backoff {
    first: Duration,
    longest: Duration,
    bound: Duration,
}

impl Backoff {
    pub(in crate::stores) fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, bound: first.min(longest) }
    }

    /// The next pause.
    pub(in crate::stores) fn next_delay(&mut self) -> Duration {
        let delay = self.bound.mul_f64(rand::rng().random_range(0.0..=1.0));
        self.bound = self.bound.saturating_mul(2).min(self.longest);
        delay
    }

    pub(in crate::stores) async fn pause(&mut self) {
        tokio::time::sleep(self.next_delay()).await;
    }

    pub(in crate::stores) fn reset(&mut self) {
        self.bound = self.first.min(self.longest);
    }
}
