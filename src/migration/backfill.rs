//! Copies every key of the primary into the other store once, and checks that it arrived.
//!
//! For each key: read it from the primary, read it from the other store; when the other store lacks something, send what
//! it lacks through the outbox and read again. A key is verified when the other store ⊒ the value that was read from the
//! primary. Writes that come later are mirrored on their own. What is missing is computed by *joining* into a copy of the
//! other store's value, never as a difference of the two, which would turn what only the other store has into tombstones.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::config::Side;
use super::core::{Job, MultiCore};
use super::message::{MigrationEvent, Task, TaskResult};
use super::outbox::{Backoff as _, Reason};
use super::sizes::{self, LargeValue};
use super::status::BackfillStatus;
use crate::clock::Now;
use crate::kv::{StoreError, Value};

/// Reads and listings in flight at once.
const MAX_IN_FLIGHT: usize = 16;

/// A run.
#[derive(Debug)]
pub(super) struct Backfill {
    /// Whether the run covers every prefix, or only keys whose state in the other store became doubtful.
    full: bool,
    /// Whether a key is read back after it was sent.
    verify: bool,
    /// After a flip: how long a key that only the new primary has must have been there before it is created in the old
    /// one. The old one was written first until now, so what it lacks was deleted there, or is on its way to it from
    /// the node that wrote it; its deletion may still be on its way to the new one.
    settle: Option<Duration>,
    /// Prefixes to list, and whether a listing is in flight.
    prefixes: BTreeMap<String, bool>,
    keys: BTreeMap<Arc<str>, Step>,
    found: usize,
    done: usize,
    joined: usize,
    /// Keys that the other store does not take.
    too_large: BTreeMap<Arc<str>, LargeValue>,
    in_flight: usize,
    failures: u32,
    retry_at: Option<Instant>,
}

#[derive(Debug)]
struct Step {
    at: At,
    counted: bool,
    /// Not looked at again before this.
    waits: Option<Instant>,
}

impl Step {
    const fn new() -> Self {
        Self { at: At::Read, counted: false, waits: None }
    }
}

#[derive(Debug)]
enum At {
    /// To be read from the primary.
    Read,
    /// Being read from the primary.
    Reading,
    /// To be compared with the other store.
    Check(Value),
    /// The other store's value is being read.
    Checking(Value),
    /// What the other store lacked is in the outbox.
    Sending(Value),
}

impl Backfill {
    fn new(full: bool, verify: bool, settle: Option<Duration>, prefixes: impl IntoIterator<Item = String>) -> Self {
        Self {
            full,
            verify,
            settle,
            prefixes: prefixes.into_iter().map(|prefix| (prefix, false)).collect(),
            keys: BTreeMap::new(),
            found: 0,
            done: 0,
            joined: 0,
            too_large: BTreeMap::new(),
            in_flight: 0,
            failures: 0,
            retry_at: None,
        }
    }

    /// The key has to be read (again).
    pub(super) fn read(&mut self, key: Arc<str>) {
        if self.keys.insert(key, Step::new()).is_none() {
            self.found += 1;
        }
    }

    /// The key was deleted on the primary: what was read of it before does not count.
    pub(super) fn deleted(&mut self, key: &Arc<str>) {
        if self.keys.contains_key(key) {
            self.read(key.clone());
        }
    }

    /// What had waited in the outbox for the key has arrived.
    pub(super) fn sent(&mut self, key: &str) {
        let Some(step) = self.keys.get_mut(key) else { return };
        let At::Sending(value) = &step.at else { return };
        if self.verify {
            step.at = At::Check(value.clone());
        } else {
            self.key_done(key);
        }
    }

    pub(super) fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let waiting = self.keys.values().filter_map(|step| step.waits);
        self.retry_at.into_iter().chain(waiting).filter(|at| *at > now).min()
    }

    fn finished(&self) -> bool {
        self.prefixes.is_empty() && self.keys.is_empty()
    }

    /// The next thing to do and on which side, marked as in flight.
    fn next(&mut self, primary: Side, now: Instant) -> Option<(Job, Side, Task)> {
        if let Some((prefix, listing)) = self.prefixes.iter_mut().find(|(_, listing)| !**listing) {
            *listing = true;
            return Some((Job::List(prefix.clone()), primary, Task::List { prefix: prefix.clone() }));
        }
        let ready =
            |step: &Step| matches!(step.at, At::Read | At::Check(_)) && step.waits.is_none_or(|until| until <= now);
        let (key, step) = self.keys.iter_mut().find(|(_, step)| ready(step))?;
        let get = Task::Get { key: key.clone() };
        Some(match std::mem::replace(&mut step.at, At::Reading) {
            At::Check(value) => {
                step.at = At::Checking(value);
                (Job::Check(key.clone()), primary.other(), get)
            }
            _ => (Job::Read(key.clone()), primary, get),
        })
    }

    /// A task failed: do it again.
    fn again(&mut self, job: &Job) {
        match job {
            Job::List(prefix) => {
                if let Some(listing) = self.prefixes.get_mut(prefix) {
                    *listing = false;
                }
            }
            Job::Read(key) | Job::Check(key) => {
                if let Some(step) = self.keys.get_mut(key) {
                    step.at = match std::mem::replace(&mut step.at, At::Read) {
                        At::Checking(value) => At::Check(value),
                        At::Reading => At::Read,
                        other => other,
                    };
                }
            }
            Job::Flush { .. }
            | Job::Survey
            | Job::SizeList
            | Job::SizeRead(_)
            | Job::ParityList
            | Job::ParityRead(..)
            | Job::Doubt(_) => {}
        }
    }

    /// The other store does not take this key: the run goes on without it, and does not count as verified.
    pub(super) fn give_up(&mut self, key: &Arc<str>, value: LargeValue) {
        if self.keys.remove(key).is_some() {
            self.too_large.insert(key.clone(), value);
        }
    }

    fn key_done(&mut self, key: &str) {
        if self.keys.remove(key).is_some() {
            self.done += 1;
        }
    }
}

impl MultiCore {
    /// Copies everything (again): mirroring was turned on, its direction changed, or the actor was restarted.
    pub(super) fn start_backfill(&mut self) {
        self.begin_backfill(None);
    }

    /// Copies everything back into the store that was primary until now.
    pub(super) fn start_backfill_after_flip(&mut self) {
        // By then every node has tried again to send what waits in its outbox.
        self.begin_backfill(Some(self.config.retry_max + self.config.patience()));
    }

    fn begin_backfill(&mut self, settle: Option<Duration>) {
        self.cancel_backfill();
        let prefixes = self.config.prefixes.iter().cloned();
        self.backfill = Some(Backfill::new(true, self.config.verify_backfill, settle, prefixes));
        self.event(MigrationEvent::BackfillStarted);
    }

    pub(super) fn cancel_backfill(&mut self) {
        self.backfill = None;
        self.backfilled = BackfillStatus::default();
        self.tasks.retain(|_, job| !matches!(job, Job::List(_) | Job::Read(_) | Job::Check(_)));
    }

    /// What the other store has of this key became doubtful (an operation ended in a way that does not say what the
    /// primary holds): compare and copy this key.
    pub(super) fn recheck(&mut self, key: &Arc<str>) {
        if self.durable.mirror {
            let verify = self.config.verify_backfill;
            self.backfill.get_or_insert_with(|| Backfill::new(false, verify, None, [])).read(key.clone());
        }
    }

    pub(super) fn backfill_status(&self) -> BackfillStatus {
        match &self.backfill {
            Some(run) if run.full => BackfillStatus {
                running: true,
                keys: run.found,
                done: run.done,
                too_large: run.too_large.len(),
                verified: false,
            },
            _ => self.backfilled,
        }
    }

    /// Starts what may be started, and ends a run that is through.
    pub(super) fn step_backfill(&mut self, now: Now) {
        while let Some(run) = self.backfill.as_mut() {
            if run.finished() {
                let Some(run) = self.backfill.take() else { return };
                let (keys, done, joined, too_large) = (run.found, run.done, run.joined, run.too_large.len());
                if run.full {
                    let verified = self.config.verify_backfill && too_large == 0;
                    self.backfilled = BackfillStatus { running: false, keys, done, too_large, verified };
                    self.event(match too_large {
                        0 => MigrationEvent::BackfillFinished { keys, joined },
                        _ => MigrationEvent::BackfillIncomplete {
                            store: self.config.kind(self.durable.primary.other()),
                            keys,
                            done,
                            too_large: sizes::named(&run.too_large.into_values().collect::<Vec<_>>()),
                        },
                    });
                    if too_large > 0 {
                        self.look_at_sizes_soon(now);
                    }
                    self.compare_soon(now);
                }
                return;
            }
            let limit = if run.failures > 0 { 1 } else { MAX_IN_FLIGHT };
            if run.in_flight >= limit || run.retry_at.is_some_and(|at| at > now.mono) {
                return;
            }
            let Some((job, side, task)) = run.next(self.durable.primary, now.mono) else { return };
            run.in_flight += 1;
            self.start_task(job, side, task);
        }
    }

    /// A listing or a read of the present run has ended.
    pub(super) fn backfill_task_done(&mut self, now: Now, job: Job, result: Result<TaskResult, StoreError>) {
        let Some(run) = self.backfill.as_mut() else { return };
        run.in_flight = run.in_flight.saturating_sub(1);
        let result = match result {
            Ok(result) => result,
            Err(error) => {
                run.again(&job);
                run.failures = run.failures.saturating_add(1);
                run.retry_at = Some(now.mono + self.backoff.delay(run.failures));
                self.durable.totals.last_error = Some(error.to_string());
                return;
            }
        };
        run.failures = 0;
        run.retry_at = None;
        match (job, result) {
            (Job::List(prefix), TaskResult::Keys(keys)) => {
                run.prefixes.remove(&prefix);
                for key in keys {
                    // Prefixes may overlap.
                    if !run.keys.contains_key(key.as_str()) {
                        run.read(key.into());
                    }
                }
            }
            (Job::Read(key), TaskResult::Value(found)) => match (run.keys.get_mut(&key), found) {
                (Some(step @ Step { at: At::Reading, .. }), Some(value)) => step.at = At::Check(value),
                // Nothing to copy, and nothing is ever removed because it is absent.
                (Some(Step { at: At::Reading, .. }), None) => run.key_done(&key),
                // Deleted, or made doubtful again, while it was read.
                _ => {}
            },
            (Job::Check(key), TaskResult::Value(found)) => self.compare(now, &key, found),
            // A task that was answered with the wrong kind of result: ask again.
            (job, _) => run.again(&job),
        }
    }

    fn compare(&mut self, now: Now, key: &Arc<str>, found: Option<Value>) {
        let Some(run) = self.backfill.as_mut() else { return };
        let Some(step) = run.keys.get_mut(key) else { return };
        let At::Checking(wanted) = &step.at else { return };
        let wanted = wanted.clone();
        if let (None, Some(settle), None) = (&found, run.settle, step.waits) {
            // Read again before it is created: it may be gone by then.
            *step = Step { at: At::Read, waits: Some(now.mono + settle), ..Step::new() };
            return;
        }
        let lacks = match &found {
            None => Some(wanted.clone()),
            #[cfg(test)]
            Some(found) if self.fault == super::core::Fault::RemovalByAbsence => {
                wanted.delta(Some(found), now).ok().flatten()
            }
            // Of two types, which a codec rules out, the primary's is the one that readers see.
            Some(found) => found.join(&wanted, now).map_or_else(|_| Some(wanted.clone()), |joined| joined.change),
        };
        match lacks {
            None => run.key_done(key),
            Some(lacks) => {
                let all = found
                    .and_then(|found| found.join(&wanted, now).ok())
                    .map_or_else(|| wanted.clone(), |all| all.value);
                if let Some(size) = self.too_large(key, &all) {
                    let (other, of) = (self.durable.primary.other(), key.to_string());
                    self.note_too_large(other, key, size, false);
                    if let Some(run) = self.backfill.as_mut() {
                        run.give_up(key, LargeValue { key: of, size: size.size, limit: size.limit });
                    }
                    return;
                }
                let mut counted = false;
                let Some(step) = self.backfill.as_mut().and_then(|run| run.keys.get_mut(key)) else { return };
                if !step.counted {
                    step.counted = true;
                    counted = true;
                }
                step.at = At::Sending(wanted);
                if let Some(run) = self.backfill.as_mut().filter(|_| counted) {
                    run.joined += 1;
                }
                let other = self.durable.primary.other();
                self.enqueue(other, key, &lacks, Reason::Owed, now);
            }
        }
    }
}
