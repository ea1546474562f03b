//! Local health: how much this node trusts its own judgement of others (Lifeguard's "local health multiplier").
//!
//! A node that misses acks, gets no nacks from helpers that should be alive, or has to refute, is probably slow
//! itself. Its score goes up, and it gives others more time before it accuses them.

/// A score from 0 (healthy) to `max − 1`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Awareness {
    score: u32,
    max: u32,
}

impl Awareness {
    /// `max` below 1 counts as 1: the score then stays 0.
    pub(super) fn new(max: u32) -> Self {
        Self { score: 0, max: max.max(1) }
    }

    pub(super) fn score(self) -> u32 {
        self.score
    }

    pub(super) fn improve(&mut self) {
        self.score = self.score.saturating_sub(1);
    }

    pub(super) fn worsen(&mut self, by: u32) {
        self.score = self.score.saturating_add(by).min(self.max - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_score_stays_between_zero_and_max_minus_one() {
        let mut health = Awareness::new(8);
        health.improve();
        assert_eq!(health.score(), 0);
        health.worsen(5);
        health.worsen(u32::MAX);
        assert_eq!(health.score(), 7);
        for _ in 0..7 {
            health.improve();
        }
        assert_eq!(health.score(), 0);
    }
}
