//! Changing the primary while everything goes on.
//!
//! The node first joins all that it knows (what it delivered to readers and what it acknowledged to writers) into the new
//! primary, then swaps. While it does so, reads and writes go on at the old primary, so there may be something new to
//! carry over when it is through: it goes round a few times, and what is new in the last round-trip follows right after
//! the swap, before which no reader can fall back either, because reads are joined with what is known.
//!
//! Something that this node knows may have been deleted by another one since, and nobody who does not watch the key is
//! told. So, when the mirror is on and all that is alive is on its way into the new primary anyway, the old primary is
//! first asked for its keys, and what it does not have any more is forgotten instead of carried over. An old primary
//! that does not answer does not hold up the flip: then everything is carried over.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use super::config::Side;
use super::core::{Job, MultiCore};
use super::message::{MigrationEvent, Task, TaskId, TaskResult};
use super::outbox::Reason;
use crate::clock::Now;
use crate::kv::StoreError;

/// Rounds before a busy node swaps although something new came in meanwhile.
const MAX_ROUNDS: u32 = 4;

/// A flip that was asked for.
#[derive(Debug)]
pub(super) struct Flip {
    pub(super) to: Side,
    pub(super) since: Instant,
    /// Why it does not go on.
    pub(super) reason: Option<String>,
    /// The question to the old primary which keys it has. `None`: not asked.
    survey: Option<Survey>,
    /// The carry-over under way: its number, and the position up to which it must arrive. `None`: not begun.
    round: Option<(u32, u64)>,
    delay_told: bool,
    /// The gates that were closed when that was told last.
    closed: Vec<&'static str>,
}

#[derive(Debug)]
struct Survey {
    /// Listings without an answer yet.
    asked: BTreeSet<TaskId>,
    /// Known keys that were in none of the answers, and of which nothing was heard meanwhile.
    doubtful: BTreeSet<Arc<str>>,
    failed: bool,
}

impl Flip {
    pub(super) fn new(to: Side, since: Instant) -> Self {
        Self { to, since, reason: None, survey: None, round: None, delay_told: false, closed: Vec::new() }
    }
}

impl MultiCore {
    /// The runtime configuration names the primary. `first`: it is the first one since the start, and the node has
    /// neither read nor written, so there is nothing to compare and no reason to wait.
    pub(super) fn request_primary(&mut self, side: Side, first: bool, now: Now) {
        match &self.flip {
            Some(flip) if flip.to == side => return,
            Some(_) => return self.cancel_flip(),
            None if side == self.durable.primary => return,
            None => {}
        }
        self.flip = Some(Flip::new(side, now.mono));
        self.durable.pending = Some(side);
        let (from, to) = (self.config.kind(self.durable.primary), self.config.kind(side));
        self.event(MigrationEvent::FlipStarted { from, to });
        if first && self.durable.known.is_empty() {
            self.swap(now);
        }
    }

    /// Stays with the present primary.
    pub(super) fn cancel_flip(&mut self) {
        let Some(flip) = self.flip.take() else { return };
        self.durable.pending = None;
        if !self.durable.mirror {
            // With the mirror on, everything belongs into the other store anyway.
            self.durable.outbox[flip.to.index()].drop_carry_over(None);
        }
        self.event(MigrationEvent::FlipCancelled { stays: self.config.kind(self.durable.primary) });
        self.publish();
    }

    /// The side that a flip is carrying things over to, if one is.
    pub(super) fn carrying(&self) -> Option<Side> {
        self.flip.as_ref().filter(|flip| flip.round.is_some()).map(|flip| flip.to)
    }

    /// Whether this node may leave its primary. If not, the flip says why, and is told of once for each set of reasons:
    /// the figures in them change all the time.
    fn may_leave(&mut self, now: Now) -> bool {
        let closed = if self.config.require_parity { self.closed_gates(now) } else { Vec::new() };
        let names: Vec<_> = closed.iter().map(|gate| gate.name).collect();
        let reason = closed.into_iter().map(|gate| gate.reason).collect::<Vec<_>>().join("; ");
        let Some(flip) = self.flip.as_mut() else { return false };
        if names.is_empty() {
            flip.closed.clear();
            return true;
        }
        flip.reason = Some(reason.clone());
        if flip.closed != names {
            flip.closed = names;
            self.event(MigrationEvent::FlipRefused { reason });
            self.publish();
        }
        false
    }

    /// Begins the carry-over, goes on with it, or swaps.
    pub(super) fn step_flip(&mut self, now: Now) {
        let Some(flip) = self.flip.as_ref() else { return };
        let to = flip.to;
        let Some((round, up_to)) = flip.round else {
            if let Some(survey) = &flip.survey {
                if survey.asked.is_empty() {
                    self.start_carry_over(to, now);
                }
                return;
            }
            if self.may_leave(now) {
                self.start_survey(to, now);
            }
            return;
        };
        let outbox = &self.durable.outbox[to.index()];
        if !outbox.sent_up_to(up_to) {
            return;
        }
        if outbox.len() == 0 || round >= MAX_ROUNDS {
            self.swap(now);
        } else if let Some(flip) = self.flip.as_mut() {
            flip.round = Some((round + 1, self.durable.seq));
        }
    }

    /// Asks the old primary which keys it has, where that matters.
    fn start_survey(&mut self, to: Side, now: Now) {
        let prefixes = self.config.prefixes.clone();
        let listed = |key: &&Arc<str>| prefixes.iter().any(|prefix| key.starts_with(prefix.as_str()));
        let doubtful: BTreeSet<_> = self.durable.known.keys().filter(listed).cloned().collect();
        if !self.durable.mirror || doubtful.is_empty() {
            return self.start_carry_over(to, now);
        }
        let ask = |prefix| self.start_task(Job::Survey, to.other(), Task::List { prefix });
        let asked = prefixes.into_iter().map(ask).collect();
        if let Some(flip) = self.flip.as_mut() {
            flip.reason = None;
            flip.survey = Some(Survey { asked, doubtful, failed: false });
        }
        self.publish();
    }

    /// Something new was heard of a key: it is not one that went away before the flip.
    pub(super) fn not_doubtful(&mut self, key: &str) {
        if let Some(survey) = self.flip.as_mut().and_then(|flip| flip.survey.as_mut()) {
            survey.doubtful.remove(key);
        }
    }

    /// The old primary told its keys, or did not.
    pub(super) fn survey_done(&mut self, id: TaskId, result: Result<TaskResult, StoreError>) {
        let Some(survey) = self.flip.as_mut().and_then(|flip| flip.survey.as_mut()) else { return };
        if !survey.asked.remove(&id) {
            return;
        }
        match result {
            Ok(TaskResult::Keys(keys)) => {
                for key in keys {
                    survey.doubtful.remove(key.as_str());
                }
            }
            _ => survey.failed = true,
        }
        if survey.asked.is_empty() && !survey.failed {
            let gone = std::mem::take(&mut survey.doubtful);
            if !gone.is_empty() {
                Arc::make_mut(&mut self.durable.known).retain(|key, _| !gone.contains(key));
            }
        }
    }

    fn start_carry_over(&mut self, to: Side, now: Now) {
        #[cfg(test)]
        if self.fault == super::core::Fault::NoCarryOver {
            return self.swap(now);
        }
        for (key, value) in self.durable.known.clone().iter() {
            self.enqueue(to, key, value, Reason::CarryOver, now);
        }
        if let Some(flip) = self.flip.as_mut() {
            flip.reason = None;
            flip.round = Some((1, self.durable.seq));
        }
        self.publish();
        if self.durable.outbox[to.index()].len() == 0 {
            self.swap(now);
        }
    }

    /// Something could not be sent to a side: when a flip waits for it, say why.
    pub(super) fn carry_over_failed(&mut self, side: Side, error: &StoreError) {
        if self.carrying() != Some(side) {
            return;
        }
        let to = self.config.kind(side);
        let Some(flip) = self.flip.as_mut() else { return };
        let reason = error.to_string();
        flip.reason = Some(reason.clone());
        if !std::mem::replace(&mut flip.delay_told, true) {
            self.event(MigrationEvent::FlipDelayed { to, reason });
        }
    }

    fn swap(&mut self, now: Now) {
        let Some(flip) = self.flip.take() else { return };
        let (from, to) = (self.durable.primary, flip.to);
        let took = now.mono.saturating_duration_since(flip.since);
        self.durable.pending = None;
        self.durable.primary = to;
        self.durable.generation += 1;
        self.durable.totals.flips += 1;
        self.durable.totals.last_flip_took = Some(took);
        // Readers first: operations and tasks that follow belong to the new view.
        self.publish();
        let generation = self.durable.generation;
        self.event(MigrationEvent::Flipped {
            from: self.config.kind(from),
            to: self.config.kind(to),
            took,
            generation,
        });
        self.restart_sizes();
        self.ops_after_flip(now);
        self.restart_parity();
        self.durable.safe_at = Some(now.mono);
        if self.durable.mirror {
            self.start_backfill_after_flip(now);
        } else {
            self.cancel_backfill();
        }
    }
}
