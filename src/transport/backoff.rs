//! Waiting longer after each error in a row, so that a socket that keeps failing costs no processor.

use std::time::Duration;

/// First wait. The bounds are those of memberlist's accept loop.
const FIRST: Duration = Duration::from_millis(5);
/// Longest wait.
const LONGEST: Duration = Duration::from_secs(1);

/// The waits after errors in a row: 5 ms, doubling to 1 s. A new value starts over.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
}

impl Backoff {
    pub(super) fn new() -> Self {
        Self { next: FIRST }
    }

    /// How long to wait after one more error.
    pub(super) fn next_delay(&mut self) -> Duration {
        let delay = self.next;
        self.next = (delay * 2).min(LONGEST);
        delay
    }

    /// Waits that long.
    pub(super) async fn wait(&mut self) {
        tokio::time::sleep(self.next_delay()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_start_at_5_ms_and_double_to_one_second() {
        let mut backoff = Backoff::new();
        let waits: Vec<u128> = (0..10).map(|_| backoff.next_delay().as_millis()).collect();
        assert_eq!(waits, [5, 10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
    }
}
