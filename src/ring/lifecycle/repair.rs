//! When an entry that others changed or removed is written again.
//!
//! The first time at once: until then the instance is missing to everybody. But whoever did it may do it again, such as a
//! store that mirrors whole values, or a second instance with the same id, which repairs, too. So between repairs that
//! follow each other are pauses, from one second, doubling up to the heartbeat period: by then the heartbeat repairs it anyway.

use std::time::{Duration, Instant};

/// The first pause.
const FIRST: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Repairs {
    longest: Duration,
    pause: Duration,
    last: Option<Instant>,
    /// When the next repair is due.
    due: Option<Instant>,
}

impl Repairs {
    pub(super) fn new(heartbeat_period: Duration) -> Self {
        let longest = if heartbeat_period.is_zero() { super::MAX_BACKOFF } else { heartbeat_period.max(FIRST) };
        Self { longest, pause: FIRST, last: None, due: None }
    }

    /// Our entry is damaged. `busy`: it is being written, which may repair it.
    pub(super) fn damaged(&mut self, now: Instant, busy: bool) {
        if self.due.is_some() {
            return;
        }
        let earliest = if busy { now + FIRST } else { now };
        self.due = Some(self.last.map_or(earliest, |last| earliest.max(last + self.pause)));
    }

    /// Our entry is as it should be.
    pub(super) fn whole(&mut self) {
        self.due = None;
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Whether to repair now; if so, the next pause begins.
    pub(super) fn begin(&mut self, now: Instant) -> bool {
        if self.due.is_none_or(|at| now < at) {
            return false;
        }
        self.due = None;
        // After a quiet while it begins anew.
        let recent = self.last.is_some_and(|last| now.saturating_duration_since(last) <= 2 * self.longest);
        self.pause = if recent { (self.pause * 2).min(self.longest) } else { FIRST };
        self.last = Some(now);
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn repairs_come_at_once_then_after_growing_pauses_and_at_once_again_after_a_quiet_while() {
        let start = Instant::now();
        let mut repairs = Repairs::new(Duration::from_secs(15));
        let (mut now, mut pauses) = (start, Vec::new());
        for _ in 0..7 {
            repairs.damaged(now, false);
            let due = repairs.due().unwrap();
            pauses.push((due - now).as_secs());
            assert!(repairs.begin(due) && !repairs.begin(due));
            now = due;
        }
        assert_eq!(pauses, [0, 1, 2, 4, 8, 15, 15]);
        now += Duration::from_secs(60);
        repairs.damaged(now, false);
        assert!(repairs.begin(now));
        repairs.damaged(now, true);
        repairs.whole();
        assert!(!repairs.begin(now + Duration::from_secs(60)), "somebody else repaired it");
    }
}
