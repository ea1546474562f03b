//! Copies every key of the primary into the other store once, and checks that it arrived.
//!
//! For each key: read it from the primary, read it from the other store; when the other store lacks something, send what
//! it lacks through the outbox and read again. A key is verified when the other store ⊒ the value that was read from the
//! primary, in all that a reader could see (`lacks`). When it still lacks something that it was sent and took, both are
//! read anew, later and later: the store does not keep it, or somebody took it out again. So is a key that cannot be
//! read. Others do not wait for it; the run does, and says what it waits for.
//!
//! Writes that come later are mirrored on their own. What is missing is computed by *joining* into a copy of the other
//! store's value, never as a difference of the two, which would turn what only the other store has into tombstones.

mod check;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::config::Side;
use super::core::{Job, MultiCore};
use super::message::{MigrationEvent, Task, TaskResult};
use super::outbox::{Backoff as _, is_outage};
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
    /// Begun soon after a flip: how long a key that only the new primary has must have been there before it is created
    /// in the old one. The old one was written first until now, so what it lacks was deleted there, or is on its way to
    /// it from the node that wrote it; its deletion may still be on its way to the new one.
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
    /// Whether the other store took what it lacked after it was read last.
    sent: bool,
    /// How often the key could not be read, or the other store did not have what it had been sent.
    failures: u32,
    /// Attempts in a row that found a store out of reach.
    probes: u32,
    /// What keeps it from being copied, while the stores answer.
    trouble: Option<String>,
    /// Whether something was heard of the key since it began to be read.
    heard: bool,
    /// Whether it was seen that only the new primary has the key, long enough ago.
    settled: bool,
    /// Not looked at again before this.
    waits: Option<Instant>,
}

impl Step {
    const fn new() -> Self {
        Self {
            at: At::Read,
            counted: false,
            sent: false,
            failures: 0,
            probes: 0,
            trouble: None,
            heard: false,
            settled: false,
            waits: None,
        }
    }

    /// To be read again from the primary, at that time.
    fn read_again_at(&mut self, at: Instant) {
        (self.at, self.sent, self.waits) = (At::Read, false, Some(at));
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

    /// The key has to be read (again). One that waits goes on waiting: it is read after that in any case.
    pub(super) fn read(&mut self, key: Arc<str>) {
        match self.keys.entry(key) {
            Entry::Vacant(free) => {
                free.insert(Step::new());
                self.found += 1;
            }
            Entry::Occupied(mut step) => {
                let step = step.get_mut();
                (step.at, step.sent) = (At::Read, false);
            }
        }
    }

    /// The key was deleted on the primary: what was read of it before, and how long it was there, does not count.
    pub(super) fn deleted(&mut self, key: &Arc<str>) {
        if let Some(step) = self.keys.get_mut(key) {
            *step = Step::new();
        }
    }

    /// Something was heard of the key: an answer that is on its way and says that it does not exist may be older.
    pub(super) fn heard(&mut self, key: &str) {
        if let Some(step) = self.keys.get_mut(key) {
            step.heard = true;
        }
    }

    /// What had waited in the outbox for the key has arrived.
    pub(super) fn sent(&mut self, key: &str) {
        let Some(step) = self.keys.get_mut(key) else { return };
        let At::Sending(value) = &step.at else { return };
        if self.verify {
            step.at = At::Check(value.clone());
            step.sent = true;
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
        let mut waiting = self.keys.iter_mut().filter(|(_, step)| ready(step));
        // Not the same one again and again, when it is perhaps the key that a store does not answer for.
        let (key, step) = match self.failures {
            0 => waiting.next()?,
            _ => waiting.min_by_key(|(_, step)| step.probes)?,
        };
        let get = Task::Get { key: key.clone() };
        Some(match std::mem::replace(&mut step.at, At::Reading) {
            At::Check(value) => {
                step.at = At::Checking(value);
                (Job::Check(key.clone()), primary.other(), get)
            }
            _ => {
                step.heard = false;
                (Job::Read(key.clone()), primary, get)
            }
        })
    }

    /// A task found its store out of reach, or was not answered: do it again.
    fn again(&mut self, job: &Job) {
        match job {
            Job::List(prefix) => {
                if let Some(listing) = self.prefixes.get_mut(prefix) {
                    *listing = false;
                }
            }
            Job::Read(key) | Job::Check(key) => {
                if let Some(step) = self.keys.get_mut(key) {
                    step.probes = step.probes.saturating_add(1);
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
    /// Copies everything (again): mirroring was turned on, its direction changed, there are other prefixes, or the actor
    /// was restarted.
    pub(super) fn start_backfill(&mut self) {
        self.cancel_backfill();
        let prefixes = self.config.prefixes.iter().cloned();
        self.backfill = Some(Backfill::new(true, self.config.verify_backfill, self.settle(), prefixes));
        self.event(MigrationEvent::BackfillStarted);
    }

    /// Copies everything back into the store that was primary until now.
    pub(super) fn start_backfill_after_flip(&mut self, now: Now) {
        self.durable.settles_until = Some(now.mono + self.settle_time());
        self.start_backfill();
    }

    /// How long it takes until every node has tried again to send what waits in its outbox.
    pub(super) const fn settle_time(&self) -> Duration {
        self.config.retry_max.saturating_add(self.config.patience())
    }

    /// What a run that begins now has to wait for with a key that only the primary has.
    fn settle(&self) -> Option<Duration> {
        let settling = self.durable.settles_until.is_some_and(|until| self.last_pump.is_none_or(|at| at < until));
        settling.then(|| self.settle_time())
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
            let (verify, settle) = (self.config.verify_backfill, self.settle());
            self.backfill.get_or_insert_with(|| Backfill::new(false, verify, settle, [])).read(key.clone());
        }
    }

    /// Neither store has the key, so that what waited for it was dropped: what was read of it does not count, and it is
    /// looked at again where it should come from, to be copied if somebody wrote it, or else forgotten.
    pub(super) fn recheck_gone(&mut self, key: &Arc<str>) {
        match self.backfill.as_mut() {
            Some(run) if run.keys.contains_key(key) => run.deleted(key),
            _ if self.durable.known.contains_key(key) => self.recheck(key),
            _ => {}
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
                if let (Job::Read(key) | Job::Check(key), false) = (&job, is_outage(&error)) {
                    return self.key_in_trouble(now, key, &error);
                }
                run.again(&job);
                run.failures = run.failures.saturating_add(1);
                run.retry_at = Some(now.mono + self.backoff.delay(run.failures));
                self.durable.totals.last_error = Some(error.to_string());
                return;
            }
        };
        run.failures = 0;
        run.retry_at = None;
        if let Job::Read(key) | Job::Check(key) = &job
            && let Some(step) = run.keys.get_mut(key)
        {
            step.probes = 0;
        }
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
                // Nothing to copy, and nothing is ever removed from a store because it is absent in the other one.
                (Some(Step { at: At::Reading, heard, .. }), None) => {
                    let heard = *heard;
                    run.key_done(&key);
                    if !heard && self.forget(&key) {
                        self.compare_soon(now);
                    }
                }
                // Deleted, or made doubtful again, while it was read.
                _ => {}
            },
            (Job::Check(key), TaskResult::Value(found)) => self.compare(now, &key, found),
            // A task that was answered with the wrong kind of result: ask again.
            (job, _) => run.again(&job),
        }
    }
}
