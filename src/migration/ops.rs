//! Operations of users: on which store they run, when they are answered, and what of them goes to the other store.

use std::sync::Arc;
use std::time::Instant;

use super::config::Side;
use super::core::MultiCore;
use super::durable::Intent;
use super::message::{OpEffect, OpId, OpKind, Output, Verdict};
use super::outbox::{Reason, is_outage};
use crate::clock::Now;
use crate::kv::{StoreError, StoreKind, Value};

/// An operation that was not answered yet.
#[derive(Debug)]
pub(super) struct Op {
    key: Arc<str>,
    kind: OpKind,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Waits for the first runtime configuration.
    Held,
    Running {
        side: Side,
        /// The store leaves a known δ unanswered: at this time it goes to the mirror all the same.
        mirror_at: Option<Instant>,
        /// The flip left it behind on the old primary: at this time it is run again on the new one.
        rerun_at: Option<Instant>,
    },
    /// The primary failed with this before the callback ran; the callback runs on the last known value.
    OnLast { failed: Side, error: StoreError },
    /// Written on the old primary after the flip; waits until the new one has it too, up to this position.
    Joining { wrote: Side, into: Side, position: u64 },
}

/// Whether a failed write may have left its mark, or should leave it in the other store although the primary is in
/// trouble. Not so when the primary is well and said no: others won, the callback gave up, or the value is of no use.
const fn leaves_delta(error: &StoreError) -> bool {
    !matches!(
        error,
        StoreError::Conflict { .. } | StoreError::Aborted(_) | StoreError::Type { .. } | StoreError::NoCodec { .. }
    )
}

impl MultiCore {
    pub(super) fn op(&mut self, id: OpId, key: Arc<str>, kind: OpKind, now: Now) {
        self.ops.insert(id, Op { key, kind, state: State::Held });
        if !self.durable.waiting {
            self.run(id, now);
        }
    }

    /// Runs it (again) on the present primary. What an earlier run was about to change elsewhere stays recorded: should
    /// the caller be gone, there is no further run, and that is all that is known.
    fn run(&mut self, id: OpId, now: Now) {
        let side = self.durable.primary;
        let Some(op) = self.ops.get_mut(&id) else { return };
        let before = std::mem::replace(&mut op.state, State::Running { side, mirror_at: None, rerun_at: None });
        self.out.push_back(Output::RunOp { id, side });
        if let (OpKind::Delete, State::Running { side: left, .. }) = (&op.kind, before) {
            let key = op.key.clone();
            self.doubt_deletion(&key, left, now);
        }
    }

    pub(super) fn release_held(&mut self, now: Now) {
        for id in self.held() {
            self.run(id, now);
        }
    }

    pub(super) fn fail_held(&mut self) {
        for id in self.held() {
            self.reply(id, Verdict::Failed(StoreError::Closed(StoreKind::Multi)));
        }
    }

    fn held(&self) -> Vec<OpId> {
        self.ops.iter().filter(|(_, op)| matches!(op.state, State::Held)).map(|(id, _)| *id).collect()
    }

    pub(super) fn reply(&mut self, id: OpId, verdict: Verdict) {
        self.ops.remove(&id);
        self.take_intent(id);
        self.out.push_back(Output::Reply { id, verdict });
    }

    fn take_intent(&mut self, id: OpId) -> Option<Intent> {
        // Looked at first: a change would copy what a clone of the durable state shares.
        self.durable.intents.contains_key(&id).then(|| Arc::make_mut(&mut self.durable.intents).remove(&id))?
    }

    pub(super) fn intent(&mut self, id: OpId, delta: Value, now: Now) {
        let patience = self.config.patience();
        let Some(Op { key, state: State::Running { side, mirror_at, .. }, .. }) = self.ops.get_mut(&id) else { return };
        *mirror_at = Some(now.mono + patience);
        let intent = Intent { key: key.clone(), side: *side, delta };
        Arc::make_mut(&mut self.durable.intents).insert(id, intent);
    }

    pub(super) fn op_dropped(&mut self, id: OpId, now: Now) {
        self.ops.remove(&id);
        if let Some(intent) = self.take_intent(id) {
            self.outcome_unknown(&intent, now);
        }
    }

    /// A write may have happened on its side, and nobody will tell: wherever it would be missing, it is joined.
    pub(super) fn outcome_unknown(&mut self, intent: &Intent, now: Now) {
        let other = intent.side.other();
        if self.mirrors_to(other) || intent.side != self.durable.primary {
            self.enqueue(other, &intent.key, &intent.delta, Reason::Owed, now);
        }
    }

    /// Whether what the present primary acknowledges must go to this side as well.
    fn mirrors_to(&self, side: Side) -> bool {
        side != self.durable.primary && (self.durable.mirror || self.carrying().is_some())
    }

    pub(super) fn op_done(&mut self, id: OpId, side: Side, result: Result<OpEffect, StoreError>, now: Now) {
        let Some(op) = self.ops.get(&id) else { return };
        // The end of a run that was replaced.
        if !matches!(op.state, State::Running { side: runs_on, .. } if runs_on == side) {
            return;
        }
        let (key, kind) = (op.key.clone(), op.kind.clone());
        let at_primary = side == self.durable.primary;
        if let Err(error) = &result
            && !at_primary
            && is_outage(error)
        {
            return self.run(id, now);
        }
        // One that an earlier run on the other side left says nothing of this run.
        let intent = self.take_intent(id).filter(|intent| intent.side == side);
        match result {
            Ok(OpEffect::Written(delta)) => {
                self.not_in_doubt(&key);
                self.remember(&key, &delta, now);
                self.acknowledged(id, side, &key, Some(&delta), now);
            }
            Ok(OpEffect::Deleted) => {
                self.not_in_doubt(&key);
                self.forget_deleted(&key);
                self.acknowledged(id, side, &key, None, now);
            }
            // "As it was" was said of the old primary; only the new one can say it of itself.
            Ok(OpEffect::Unchanged) if !at_primary => self.run(id, now),
            Ok(OpEffect::Unchanged) => {
                if intent.is_some() {
                    self.recheck(&key);
                }
                self.reply(id, Verdict::Done);
            }
            Ok(OpEffect::Read) => self.reply(id, Verdict::Done),
            Err(error) if at_primary && self.durable.mirror => {
                self.failed_at_primary(id, key, kind, intent, error, now);
            }
            Err(error) => self.reply(id, Verdict::Failed(error)),
        }
    }

    /// The key is gone for certain.
    pub(super) fn forget_deleted(&mut self, key: &Arc<str>) {
        Arc::make_mut(&mut self.durable.known).remove(key);
        if let Some(run) = self.backfill.as_mut() {
            // A value that was read before the deletion must not be copied after it.
            run.deleted(key);
        }
    }

    /// A side acknowledged a write (`None`: a deletion). It goes to where it is missing, and the caller is told: at once
    /// when the side is primary, else when the new primary has it too.
    fn acknowledged(&mut self, id: OpId, side: Side, key: &Arc<str>, delta: Option<&Value>, now: Now) {
        let other = side.other();
        let left_behind = side != self.durable.primary;
        #[cfg(test)]
        let left_behind = left_behind && self.fault != super::core::Fault::NoCarryOver;
        if !left_behind && !self.mirrors_to(other) {
            return self.reply(id, Verdict::Done);
        }
        let position = match delta {
            Some(delta) => self.enqueue(other, key, delta, Reason::Owed, now),
            None => self.enqueue_delete(other, key, now),
        };
        match self.ops.get_mut(&id) {
            Some(op) if left_behind => op.state = State::Joining { wrote: side, into: other, position },
            _ => self.reply(id, Verdict::Done),
        }
    }

    /// With mirroring on, a primary in trouble does not starve the other store. The caller gets the error all the same.
    fn failed_at_primary(
        &mut self,
        id: OpId,
        key: Arc<str>,
        kind: OpKind,
        intent: Option<Intent>,
        error: StoreError,
        now: Now,
    ) {
        let other = self.durable.primary.other();
        let had_intent = intent.is_some();
        let delta = intent.map(|intent| intent.delta).or(match &kind {
            OpKind::Join(value) => Some(value.clone()),
            _ => None,
        });
        #[cfg(test)]
        if self.fault == super::core::Fault::MirrorOnlyAfterSuccess {
            return self.reply(id, Verdict::Failed(error));
        }
        match delta {
            Some(delta) if leaves_delta(&error) => {
                self.not_in_doubt(&key);
                self.enqueue(other, &key, &delta, Reason::Owed, now);
            }
            None if leaves_delta(&error) && matches!(kind, OpKind::Cas) => {
                let base = self.durable.known.get(&key).cloned();
                if let Some(op) = self.ops.get_mut(&id) {
                    op.state = State::OnLast { failed: other.other(), error };
                    self.out.push_back(Output::RunOpOnLast { id, base });
                }
                return;
            }
            _ if had_intent => self.recheck(&key),
            _ if matches!(kind, OpKind::Delete) && is_outage(&error) => {
                self.doubt_deletion(&key, other.other(), now);
            }
            _ => {}
        }
        self.reply(id, Verdict::Failed(error));
    }

    pub(super) fn op_on_last_done(&mut self, id: OpId, delta: Option<Value>, now: Now) {
        if !matches!(self.ops.get(&id), Some(Op { state: State::OnLast { .. }, .. })) {
            return;
        }
        let Some(Op { key, state: State::OnLast { failed, error }, .. }) = self.ops.remove(&id) else { return };
        if let Some(delta) = delta
            && self.durable.mirror
        {
            self.not_in_doubt(&key);
            // Seen from the side that failed, whichever is primary by now: the other one must not starve.
            self.enqueue(failed.other(), &key, &delta, Reason::Owed, now);
        }
        self.reply(id, Verdict::Failed(error));
    }

    /// An attempt to bring everything up to a position to a side has ended: answer the writes that waited for it.
    pub(super) fn joined_into(&mut self, side: Side, key: &Arc<str>, up_to: u64, error: Option<StoreError>) {
        let waiting = self.ops.iter().filter(|(_, op)| match op.state {
            State::Joining { into, position, .. } => into == side && position <= up_to && op.key == *key,
            _ => false,
        });
        for id in waiting.map(|(id, _)| *id).collect::<Vec<_>>() {
            // On failure the old primary has it and the outbox keeps it, but the new primary cannot show it now.
            self.reply(id, error.clone().map_or(Verdict::Done, Verdict::Failed));
        }
    }

    /// The primary is another one now.
    pub(super) fn ops_after_flip(&mut self, now: Now) {
        let primary = self.durable.primary;
        let deadline = now.mono + self.config.patience();
        self.doubts_after_flip(now);
        let mut answered = Vec::new();
        for (id, op) in &mut self.ops {
            match &mut op.state {
                State::Running { side, rerun_at, .. } => *rerun_at = (*side != primary).then_some(deadline),
                State::Joining { wrote, .. } if *wrote == primary => answered.push(*id),
                _ => {}
            }
        }
        for id in answered {
            self.reply(id, Verdict::Done);
        }
    }

    /// What time alone decides.
    pub(super) fn expire_ops(&mut self, now: Now) {
        let due = |at: &Option<Instant>| at.is_some_and(|at| at <= now.mono);
        let mut rerun = Vec::new();
        let mut unanswered = Vec::new();
        for (id, op) in &mut self.ops {
            if let State::Running { side, mirror_at, rerun_at } = &mut op.state {
                if due(rerun_at) {
                    rerun.push(*id);
                } else if due(mirror_at) {
                    *mirror_at = None;
                    unanswered.push((*id, *side));
                }
            }
        }
        for (id, side) in unanswered {
            let other = side.other();
            #[cfg(test)]
            if self.fault == super::core::Fault::MirrorOnlyAfterSuccess {
                continue;
            }
            if side == self.durable.primary
                && self.durable.mirror
                && let Some(Intent { key, delta, .. }) = self.durable.intents.get(&id).cloned()
            {
                self.enqueue(other, &key, &delta, Reason::Owed, now);
            }
        }
        for id in rerun {
            self.run(id, now);
        }
    }

    pub(super) fn ops_deadline(&self) -> Option<Instant> {
        self.ops
            .values()
            .filter_map(|op| match &op.state {
                State::Running { mirror_at, rerun_at, .. } => [*mirror_at, *rerun_at].into_iter().flatten().min(),
                _ => None,
            })
            .min()
    }
}
