//! Deletions of keys of which nobody knows whether they happened: a store was asked, and no answer came.
//!
//! The other store still has the key. If it was deleted after all, a flip would show it again, and the backfill that
//! follows would create it again where it was deleted. So the store that was asked to delete it is asked, later, whether
//! it still has the key; where that is gone, it is deleted in the other store as well. Nothing is removed because it is
//! absent alone: somebody here wanted this key deleted, and nobody here has written it since.

use std::sync::Arc;
use std::time::Instant;

use super::config::Side;
use super::core::{Job, MultiCore};
use super::message::{Task, TaskId, TaskResult};
use super::outbox::Backoff as _;
use crate::clock::Now;
use crate::kv::StoreError;

/// Questions in flight at once.
const MAX_IN_FLIGHT: usize = 4;

/// A deletion that may have happened.
#[derive(Clone, Debug)]
pub(super) struct Doubt {
    /// Where.
    side: Side,
    /// The question in flight.
    asked: Option<TaskId>,
    /// How often it was asked.
    times: u32,
    /// When it is asked next.
    due: Instant,
    /// Not asked any more after this: for a while a store that says "it is there" is asked again, because the deletion may
    /// still be on its way to it, and one that is not primary any more, because others may write the key elsewhere.
    until: Option<Instant>,
}

impl MultiCore {
    /// A store left the deletion of a key unanswered.
    pub(super) fn doubt_deletion(&mut self, key: &Arc<str>, side: Side, now: Now) {
        let due = now.mono + self.backoff.delay(1);
        let until = (side != self.durable.primary).then(|| now.mono + self.settle_time());
        let doubt = Doubt { side, asked: None, times: 0, due, until };
        Arc::make_mut(&mut self.durable.doubts).insert(key.clone(), doubt);
    }

    /// The key was deleted for certain, or was written since.
    pub(super) fn not_in_doubt(&mut self, key: &str) {
        // Looked at first: a change would copy what a clone of the durable state shares.
        if self.durable.doubts.contains_key(key) {
            Arc::make_mut(&mut self.durable.doubts).remove(key);
        }
    }

    pub(super) fn doubts_after_flip(&mut self, now: Now) {
        let until = now.mono + self.settle_time();
        if !self.durable.doubts.is_empty() {
            for doubt in Arc::make_mut(&mut self.durable.doubts).values_mut() {
                doubt.until.get_or_insert(until);
            }
        }
    }

    /// The actor died, and with it the questions.
    pub(super) fn restart_doubts(&mut self) {
        for doubt in Arc::make_mut(&mut self.durable.doubts).values_mut() {
            doubt.asked = None;
        }
    }

    pub(super) fn doubts_deadline(&self, now: Instant) -> Option<Instant> {
        let waiting = self.durable.doubts.values().filter(|doubt| doubt.asked.is_none());
        waiting.map(|doubt| doubt.due).filter(|due| *due > now).min()
    }

    /// Asks what is to be asked now.
    pub(super) fn step_doubts(&mut self, now: Now) {
        let in_flight = self.durable.doubts.values().filter(|doubt| doubt.asked.is_some()).count();
        let due = self.durable.doubts.iter().filter(|(_, doubt)| doubt.asked.is_none() && doubt.due <= now.mono);
        let next = due.map(|(key, doubt)| (key.clone(), doubt.side)).take(MAX_IN_FLIGHT.saturating_sub(in_flight));
        for (key, side) in next.collect::<Vec<_>>() {
            let id = self.start_task(Job::Doubt(key.clone()), side, Task::Exists { key: key.clone() });
            if let Some(doubt) = Arc::make_mut(&mut self.durable.doubts).get_mut(&key) {
                doubt.asked = Some(id);
            }
        }
    }

    /// The store that was asked to delete the key says whether it has it.
    pub(super) fn doubt_done(&mut self, now: Now, id: TaskId, key: &Arc<str>, result: Result<TaskResult, StoreError>) {
        let last = self.settle_time();
        let Some(doubt) = Arc::make_mut(&mut self.durable.doubts).get_mut(key).filter(|doubt| doubt.asked == Some(id))
        else {
            return;
        };
        let side = doubt.side;
        if matches!(result, Ok(TaskResult::Exists(false))) {
            self.not_in_doubt(key);
            self.forget_deleted(key);
            self.enqueue_delete(side.other(), key, now);
            return;
        }
        doubt.asked = None;
        doubt.times = doubt.times.saturating_add(1);
        doubt.due = now.mono + self.backoff.delay(doubt.times + 1);
        if result.is_ok() {
            doubt.until.get_or_insert(now.mono + last);
        }
        if doubt.until.is_some_and(|until| until < now.mono) {
            self.not_in_doubt(key);
        }
    }
}
