//! How long a suspect has to prove that it is alive (Lifeguard's dynamic suspicion timeout).
//!
//! A lone accuser may be wrong, or slow itself, so its suspicion runs long. Each further member that comes to the same
//! conclusion shortens it, down to a minimum that leaves time for a refutation to travel.

use std::time::{Duration, Instant};

use super::timers::{Timer, TimerId, Timers};
use crate::wire::message::NodeName;

/// One running suspicion, and the one timer that ends it. Its bounds are fixed when it starts.
#[derive(Debug)]
pub(super) struct Suspicion {
    start: Instant,
    min: Duration,
    max: Duration,
    /// Confirmations that bring the timeout down to `min`.
    needed: u32,
    /// The first accuser, then those who confirmed.
    accusers: Vec<NodeName>,
    timer: TimerId,
}

impl Suspicion {
    /// Begins to suspect `name`. `bounds` are [`confirmations_needed`], the shortest time and the longest.
    pub(super) fn new(
        start: Instant,
        from: NodeName,
        bounds: (u32, Duration, Duration),
        timers: &mut Timers,
        name: &NodeName,
    ) -> Self {
        let (needed, min, max) = bounds;
        let timer = timers.schedule(start + timeout(0, needed, min, max), Timer::Suspicion(name.clone()));
        Self { start, min, max, needed, accusers: vec![from], timer }
    }

    /// Counts an accuser of `name`, and ends sooner. False when it said so before or no more are needed: then it is no
    /// news for others either.
    pub(super) fn confirm(&mut self, from: &NodeName, timers: &mut Timers, name: &NodeName) -> bool {
        if self.confirmations() >= self.needed || self.accusers.contains(from) {
            return false;
        }
        self.accusers.push(from.clone());
        timers.cancel(self.timer);
        self.timer = timers.schedule(self.deadline(), Timer::Suspicion(name.clone()));
        true
    }

    /// What is to be cancelled when it ends before its time.
    pub(super) fn timer(&self) -> TimerId {
        self.timer
    }

    fn deadline(&self) -> Instant {
        self.start + timeout(self.confirmations(), self.needed, self.min, self.max)
    }

    /// Whether it ended with fewer confirmations than were asked for.
    pub(super) fn is_unconfirmed(&self) -> bool {
        self.confirmations() < self.needed
    }

    fn confirmations(&self) -> u32 {
        // The first accuser is no confirmation.
        u32::try_from(self.accusers.len()).unwrap_or(u32::MAX).saturating_sub(1)
    }
}

/// How many confirmations to ask for: `suspicion_mult − 2`, but none where there are not that many other members.
pub(super) fn confirmations_needed(suspicion_mult: u32, members: usize) -> u32 {
    let wanted = suspicion_mult.saturating_sub(2);
    let others = u32::try_from(members.saturating_sub(2)).unwrap_or(u32::MAX);
    if others < wanted { 0 } else { wanted }
}

/// The shortest suspicion: `mult × max(1, log10(members)) × probe_interval`, the logarithm cut to three digits.
pub(super) fn min_timeout(mult: u32, members: usize, probe_interval: Duration) -> Duration {
    let scale = (members.max(1) as f64).log10().max(1.0);
    let millis = (scale * 1000.0) as u64;
    let nanos = u128::from(mult) * u128::from(millis) * probe_interval.as_nanos() / 1000;
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// The timeout after `confirmed` of `needed` confirmations, falling from `max` to `min` with their logarithm.
fn timeout(confirmed: u32, needed: u32, min: Duration, max: Duration) -> Duration {
    if needed == 0 {
        return min;
    }
    let fraction = f64::from(confirmed + 1).ln() / f64::from(needed + 1).ln();
    let seconds = max.as_secs_f64() - fraction * (max.as_secs_f64() - min.as_secs_f64());
    let millis = (seconds * 1000.0).floor().max(0.0) as u64;
    Duration::from_millis(millis).max(min)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Now;

    const MIN: Duration = Duration::from_secs(2);
    const MAX: Duration = Duration::from_secs(30);

    #[test]
    fn the_timeout_follows_the_published_table() {
        let millis: Vec<u128> = (0..=5).map(|n| timeout(n, 3, MIN, MAX).as_millis()).collect();
        assert_eq!(millis, [30_000, 16_000, 7_810, 2_000, 2_000, 2_000]);
        assert_eq!(timeout(0, 0, MIN, MAX), MIN, "with nobody to confirm, the minimum counts at once");
    }

    #[test]
    fn the_minimum_grows_with_the_logarithm_of_the_cluster() {
        let second = Duration::from_secs(1);
        for (members, millis) in
            [(0, 4_000), (5, 4_000), (10, 4_000), (50, 6_792), (99, 7_980), (100, 8_000), (1000, 12_000)]
        {
            assert_eq!(min_timeout(4, members, second).as_millis(), millis, "{members} members");
        }
    }

    #[test]
    fn small_clusters_need_no_confirmation() {
        assert_eq!(confirmations_needed(4, 2), 0);
        assert_eq!(confirmations_needed(4, 3), 0);
        assert_eq!(confirmations_needed(4, 4), 2);
        assert_eq!(confirmations_needed(1, 100), 0);
    }

    #[test]
    fn an_accuser_counts_once_and_only_as_long_as_it_is_needed() {
        let start = Now::read().mono;
        let name = |i: u32| NodeName::from(format!("n{i}"));
        let (subject, mut timers) = (name(9), Timers::default());
        let mut suspicion = Suspicion::new(start, name(0), (2, MIN, MAX), &mut timers, &subject);
        assert_eq!(timers.next(), Some(start + MAX));
        let mut confirm = |suspicion: &mut Suspicion, i| suspicion.confirm(&name(i), &mut timers, &subject);
        assert!(!confirm(&mut suspicion, 0));
        assert!(confirm(&mut suspicion, 1));
        assert!(!confirm(&mut suspicion, 1));
        assert!(suspicion.is_unconfirmed());
        assert!(confirm(&mut suspicion, 2));
        assert!(!confirm(&mut suspicion, 3));
        assert!(!suspicion.is_unconfirmed());
        assert_eq!((timers.suspicions(), timers.next()), (1, Some(start + MIN)));
    }
}
