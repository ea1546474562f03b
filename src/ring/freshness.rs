//! Which time heartbeats are judged by, so that a store that is out of reach does not make instances look dead.
//!
//! Heartbeats arrive through the store. When the store is gone none arrive, and by the wall clock everybody would turn
//! unhealthy at once although nobody failed. So time stands still, for this judgement only, while the store is lost;
//! when it is back, time goes on from where it stood until every living instance had the chance to write a heartbeat;
//! then it is the wall clock again. Instances that were dead before the outage stay dead, and one that dies during it
//! is found out after the grace.

use std::time::{Duration, Instant};

use crate::clock::Now;

/// The core that keeps this time. One for each store.
#[derive(Clone, Debug)]
pub struct Freshness {
    grace: Duration,
    /// When the store was last in reach.
    contact: Option<Now>,
    /// Where time stands, during an outage.
    frozen: Option<Duration>,
    /// How far time lags behind the wall clock, and until when.
    lag: Option<(Duration, Instant)>,
}

impl Freshness {
    /// `grace` is how long after an outage heartbeats are judged leniently. It must be at least the heartbeat timeout,
    /// or living instances turn unhealthy when it ends.
    #[must_use]
    pub fn new(grace: Duration) -> Self {
        Self { grace, contact: None, frozen: None, lag: None }
    }

    /// The store answered.
    pub fn store_seen(&mut self, now: Now) {
        if let Some(frozen) = self.frozen.take() {
            self.lag = Some((now.unix.saturating_sub(frozen), now.mono + self.grace));
        }
        self.contact = Some(now);
    }

    /// The store is out of reach. Time stands still at the last contact; before the first contact, now.
    pub fn store_lost(&mut self, now: Now) {
        if self.frozen.is_none() {
            // An outage in the grace of the one before: what that lagged, this one lags as well.
            let contact = self.contact.unwrap_or(now);
            self.frozen = Some(self.judged(contact));
        }
    }

    /// The time since the Unix epoch to judge heartbeats by.
    #[must_use]
    pub fn health_at(&self, now: Now) -> Duration {
        self.frozen.unwrap_or_else(|| self.judged(now))
    }

    /// Whether the store is out of reach.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.frozen.is_some()
    }

    /// When the grace ends and [`Freshness::health_at`] jumps to the wall clock.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let (_, until) = self.lag.filter(|_| self.frozen.is_none())?;
        Some(until)
    }

    /// The time that connected instances go by.
    fn judged(&self, now: Now) -> Duration {
        match self.lag {
            Some((lag, until)) if now.mono < until => now.unix.saturating_sub(lag),
            _ => now.unix,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn time_is_the_wall_clock_while_the_store_is_in_reach() {
        let start = Now::read();
        let mut freshness = Freshness::new(MINUTE);
        assert_eq!(freshness.health_at(start), start.unix);
        freshness.store_seen(start);
        assert_eq!(freshness.health_at(start + MINUTE * 9), start.unix + MINUTE * 9);
        assert_eq!(freshness.next_deadline(), None);
    }

    #[test]
    fn time_stands_at_the_last_contact_while_the_store_is_lost() {
        let start = Now::read();
        let mut freshness = Freshness::new(MINUTE);
        freshness.store_seen(start);
        freshness.store_lost(start + SECOND * 5);
        freshness.store_lost(start + SECOND * 9);
        assert!(freshness.is_lost());
        for minutes in [1, 10, 1000] {
            assert_eq!(freshness.health_at(start + MINUTE * minutes), start.unix);
        }
    }

    #[test]
    fn after_an_outage_time_goes_on_from_where_it_stood_until_the_grace_is_over() {
        let start = Now::read();
        let mut freshness = Freshness::new(MINUTE);
        freshness.store_seen(start);
        freshness.store_lost(start + SECOND);
        let back = start + MINUTE * 10;
        freshness.store_seen(back);
        assert!(!freshness.is_lost());
        assert_eq!(freshness.health_at(back), start.unix);
        // Contact goes on; it does not shorten or lengthen the grace.
        freshness.store_seen(back + SECOND * 30);
        assert_eq!(freshness.health_at(back + SECOND * 59), start.unix + SECOND * 59);
        assert_eq!(freshness.next_deadline(), Some((back + MINUTE).mono));
        assert_eq!(freshness.health_at(back + MINUTE), (back + MINUTE).unix);
    }

    #[test]
    fn a_second_outage_in_the_grace_adds_to_the_first() {
        let start = Now::read();
        let mut freshness = Freshness::new(MINUTE);
        freshness.store_seen(start);
        freshness.store_lost(start + SECOND);
        let back = start + MINUTE * 10;
        freshness.store_seen(back);
        freshness.store_lost(back + SECOND * 20);
        assert_eq!(freshness.health_at(back + MINUTE * 5), start.unix);
        let again = back + MINUTE * 6;
        freshness.store_seen(again);
        // Sixteen minutes of outage in all: nobody who wrote just before the first one looks older than that.
        assert_eq!(freshness.health_at(again + SECOND * 30), start.unix + SECOND * 30);
        assert_eq!(freshness.health_at(again + MINUTE), (again + MINUTE).unix);
    }

    #[test]
    fn an_instance_that_kept_beating_is_fresh_at_every_moment_of_an_outage_and_after() {
        // It writes every 15 s, but nothing gets through between 100 s and 700 s.
        let start = Now::read();
        let mut freshness = Freshness::new(MINUTE);
        let mut heartbeat = start.unix;
        for second in 0..1000 {
            let now = start + SECOND * second;
            let reachable = !(100..700).contains(&second);
            if reachable {
                freshness.store_seen(now);
                if second % 15 == 0 {
                    heartbeat = now.unix;
                }
            } else {
                freshness.store_lost(now);
            }
            let age = freshness.health_at(now).saturating_sub(heartbeat);
            assert!(age <= MINUTE, "{age:?} old at {second} s");
        }
    }
}
