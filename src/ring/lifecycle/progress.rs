//! How an instance gets on: what it writes next, and what follows from what was written.

use std::time::Instant;

use rand::RngExt;

use super::{Action, Edit, Lifecycle, Output, Phase};
use crate::clock::Now;
use crate::ring::desc::{Desc, Instance, InstanceState};

impl Lifecycle {
    /// When to call [`Lifecycle::handle`] with [`super::Input::Tick`] at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        // What needs the store: not while it is busy, not before the pause after a failure is over.
        let write = match self.life.phase {
            Phase::Finished => return None,
            Phase::Registering | Phase::Leaving { .. } | Phase::Unregistering { .. } => Some(self.last),
            _ if self.dirty => Some(self.last),
            Phase::Waiting { until } | Phase::Observing { until } => {
                Some(self.heartbeat_at.map_or(until, |at| at.min(until)))
            }
            Phase::Active | Phase::Sleeping { .. } => self.heartbeat_at,
        };
        let write = write.into_iter().chain(self.repairs.due()).min();
        let write =
            write.filter(|_| self.in_flight.is_none()).map(|at| self.retry_at.map_or(at, |retry| retry.max(at)));
        // What does not.
        let end = match self.life.phase {
            Phase::Leaving { give_up } | Phase::Unregistering { give_up } => Some(give_up),
            Phase::Sleeping { until } => Some(until),
            _ => None,
        };
        [write, end, self.ready_deadline()].into_iter().flatten().min()
    }

    /// Moves on as far as time allows, and starts the next write.
    pub(super) fn advance(&mut self, now: Now) {
        match self.life.phase {
            Phase::Leaving { give_up } if now.mono >= give_up => self.sleep(now),
            Phase::Unregistering { give_up } if now.mono >= give_up => self.finish(),
            _ => {}
        }
        if matches!(self.life.phase, Phase::Sleeping { until } if now.mono >= until) {
            if self.config.unregister_on_shutdown {
                self.unregister(now);
            } else {
                self.finish();
            }
        }
        if self.in_flight.is_some() || self.retry_at.is_some_and(|at| now.mono < at) {
            return;
        }
        self.dirty |= self.repairs.begin(now.mono);
        let Some(action) = self.next_action(now) else { return };
        self.dirty = false;
        self.retry_at = None;
        let edit = Edit {
            id: self.id.clone(),
            entry: self.life.own.clone(),
            action,
            num_tokens: self.config.num_tokens,
            passed: self.life.clock.unix_secs(),
            seed: self.rng.random(),
        };
        let id = self.life.next_id;
        self.life.next_id += 1;
        self.in_flight = Some((id, edit.clone()));
        self.outputs.push_back(Output::Cas { id, edit: Box::new(edit) });
    }

    fn next_action(&self, now: Now) -> Option<Action> {
        let heartbeat = || {
            let due = self.heartbeat_at.is_some_and(|at| now.mono >= at);
            let forget = self.config.forget_after().map(|after| (after, self.config.heartbeat_timeout));
            (due || self.dirty).then_some(Action::Publish { forget })
        };
        match self.life.phase {
            Phase::Registering => Some(Action::Register),
            Phase::Waiting { until } if now.mono >= until => {
                let observes = !self.config.observe_period.is_zero();
                let to = if observes { InstanceState::Joining } else { InstanceState::Active };
                Some(Action::Join { to })
            }
            Phase::Observing { until } if now.mono >= until => Some(Action::Verify),
            Phase::Waiting { .. } | Phase::Observing { .. } | Phase::Active | Phase::Sleeping { .. } => heartbeat(),
            Phase::Leaving { .. } => Some(Action::Publish { forget: None }),
            Phase::Unregistering { .. } => Some(Action::Unregister),
            Phase::Finished => None,
        }
    }

    pub(super) fn cas_done(&mut self, now: Now, id: u64, result: Result<Option<Instance>, String>) {
        let Some((_, edit)) = self.in_flight.take_if(|(running, _)| *running == id) else { return };
        let Ok(stored) = result else { return self.cas_failed(now) };
        if edit.action == Action::Unregister {
            if matches!(self.life.phase, Phase::Unregistering { .. }) {
                self.finish();
            }
            return;
        }
        // The entry must be there after each of the others. If it is not, somebody removed it meanwhile.
        let Some(stored) = stored.filter(|stored| !stored.state.is_left()) else {
            return self.cas_failed(now);
        };
        self.failures = 0;
        self.retry_at = None;
        self.life.confirmed = Some(now.mono);
        self.life.own.timestamp = stored.timestamp;
        self.heartbeat_at = self.heartbeat_pause().map(|pause| now.mono + pause);
        self.adopt(&edit, &stored);
        match (&edit.action, &self.life.phase) {
            (Action::Register, Phase::Registering)
            | (Action::Join { .. }, Phase::Waiting { .. })
            | (Action::Verify, Phase::Observing { .. }) => self.enter(now, stored.state),
            (Action::Publish { .. }, Phase::Leaving { .. }) if edit.entry.state == InstanceState::Leaving => {
                self.sleep(now);
                self.advance(now);
            }
            // A shutdown came in between; what was written then is not what is wanted now.
            _ => {}
        }
    }

    fn cas_failed(&mut self, now: Now) {
        // A failed publish may have been more than a heartbeat.
        self.dirty = self.life.phase != Phase::Registering;
        let pause = self.backoff();
        self.retry_at = Some(now.mono + pause);
    }

    /// Takes over what an edit decided inside the compare-and-swap. A heartbeat decides nothing.
    fn adopt(&mut self, edit: &Edit, stored: &Instance) {
        if matches!(edit.action, Action::Publish { .. }) {
            return;
        }
        let own = &mut self.life.own;
        own.tokens = stored.tokens.clone();
        if edit.action == Action::Register {
            own.registered_timestamp = stored.registered_timestamp;
            own.versions.clone_from(&stored.versions);
            own.unknown.clone_from(&stored.unknown);
            // Unless it was switched while the registration ran.
            if own.read_only_updated_timestamp == edit.entry.read_only_updated_timestamp {
                own.read_only = stored.read_only;
                own.read_only_updated_timestamp = stored.read_only_updated_timestamp;
            }
        }
        if !own.tokens.is_empty() && own.tokens != self.life.saved {
            self.life.saved = own.tokens.clone();
            self.outputs.push_back(Output::SaveTokens(own.tokens.to_vec()));
        }
    }

    /// Goes on from the state that was written.
    fn enter(&mut self, now: Now, state: InstanceState) {
        self.life.phase = match state {
            InstanceState::Active => Phase::Active,
            InstanceState::Joining => Phase::Observing { until: now.mono + self.config.observe_period },
            _ => Phase::Waiting { until: now.mono + self.config.join_after },
        };
        self.set_state(state);
    }

    /// Somebody may have changed or removed our entry: then it is written again, as often as [`Repairs`](super::repair::Repairs) allows.
    pub(super) fn observed(&mut self, now: Now, desc: &Desc) {
        let registered = !matches!(self.life.phase, Phase::Registering | Phase::Unregistering { .. } | Phase::Finished);
        if !registered {
            return self.repairs.whole();
        }
        let damaged = match desc.instances.get(&self.id) {
            // A watch that lags behind our last write shows an older entry of ours, which is as it should be.
            Some(seen) => seen.timestamp >= self.life.own.timestamp && !seen.same_content(&self.life.own),
            None => true,
        };
        if damaged {
            self.repairs.damaged(now.mono, self.in_flight.is_some());
        } else {
            self.repairs.whole();
        }
    }

    pub(super) fn shutdown(&mut self, now: Now) {
        match self.life.phase {
            Phase::Leaving { .. } | Phase::Sleeping { .. } | Phase::Unregistering { .. } | Phase::Finished => {}
            // Nothing was asked of the store as yet, so nothing is in it.
            Phase::Registering if self.life.next_id == 1 => self.finish(),
            // The registration may have happened, whatever we were told.
            Phase::Registering if self.config.unregister_on_shutdown => self.unregister(now),
            Phase::Registering => self.finish(),
            Phase::Waiting { .. } | Phase::Observing { .. } | Phase::Active => {
                self.set_state(InstanceState::Leaving);
                self.life.phase = Phase::Leaving { give_up: now.mono + self.patience() };
                // A pause after failures was for a life that goes on.
                self.retry_at = None;
                self.failures = 0;
            }
        }
    }

    fn sleep(&mut self, now: Now) {
        self.life.phase = Phase::Sleeping { until: now.mono + self.config.final_sleep };
    }

    fn unregister(&mut self, now: Now) {
        self.life.phase = Phase::Unregistering { give_up: now.mono + self.patience() };
    }

    fn finish(&mut self) {
        self.life.phase = Phase::Finished;
        self.outputs.push_back(Output::Finished);
    }
}
