//! The state machine: what goes in, what comes out, and what it remembers.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use super::backfill::Backfill;
use super::config::{MultiConfig, RuntimeMulti, Side};
use super::durable::Durable;
use super::flip::Flip;
use super::message::{Input, MigrationEvent, Output, Phase, Task, TaskId, TaskResult, Verdict, View};
use super::ops::Op;
use super::outbox::{Backoff, Reason, Stamp, joined};
use super::parity::{Parity, Reading};
use super::sizes::{LargeValue, Sizes};
use super::status::BackfillStatus;
use super::story::Story;
use crate::clock::Now;
use crate::kv::{StoreError, StoreKind, Value, ValueSize};

/// What a background task is for.
#[derive(Clone, Debug)]
pub(super) enum Job {
    /// Send what waits for a key.
    Flush { side: Side, key: Arc<str> },
    /// Backfill: which keys there are.
    List(String),
    /// Backfill: what the primary has.
    Read(Arc<str>),
    /// Backfill: what the other store has.
    Check(Arc<str>),
    /// Flip: which keys the old primary has.
    Survey,
    /// Sizes: which keys the primary has.
    SizeList,
    /// Sizes: what the primary has.
    SizeRead(Arc<str>),
    /// Comparison: which keys a store has.
    ParityList,
    /// Comparison: what a store has of a key.
    ParityRead(Arc<str>, Reading),
    /// Whether a key is there that was to be deleted.
    Doubt(Arc<str>),
}

/// Exponential delays with jitter: between half and all of `min · 2ⁿ`, at most `max`.
#[derive(Debug)]
pub(super) struct Jittered {
    rng: SmallRng,
    min: Duration,
    max: Duration,
}

impl Backoff for Jittered {
    fn delay(&mut self, failures: u32) -> Duration {
        let doubled = self.min.saturating_mul(1_u32 << failures.saturating_sub(1).min(20));
        doubled.min(self.max).mul_f64(self.rng.random_range(0.5..=1.0))
    }
}

/// How often tombstones are looked at.
pub(super) const PRUNE_EVERY: Duration = Duration::from_secs(60);

/// The value without tombstones older than `ttl`, or `None` when it has none (or none is ever old: `ttl` is zero).
pub(super) fn without_old_tombstones(value: &Value, ttl: Duration, now: Now) -> Option<Value> {
    if ttl.is_zero() {
        return None;
    }
    let before = now.unix_secs().saturating_sub(i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX));
    let (pruned, forgotten) = value.without_tombstones(Some(before));
    (forgotten > 0).then_some(pruned)
}

/// Known faults that the tests put back, to show that the suite notices.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    /// The mirror writes a whole value over whatever is there (done by the test's stores).
    BlindOverwrite,
    /// A flip only swaps.
    NoCarryOver,
    /// Nothing goes to the other store unless the primary acknowledged.
    MirrorOnlyAfterSuccess,
    /// The backfill makes the other store equal to the primary.
    RemovalByAbsence,
    /// A watch that moves to another store is not handed the current value (done by the test's world, as the watches
    /// live in the actors).
    NoFirstValue,
}

/// The core of a multi store. See the [module documentation](super).
#[derive(Debug)]
pub struct MultiCore {
    pub(super) config: MultiConfig,
    pub(super) backoff: Jittered,
    pub(super) durable: Durable,
    pub(super) ops: BTreeMap<super::message::OpId, Op>,
    pub(super) tasks: BTreeMap<TaskId, Job>,
    pub(super) backfill: Option<Backfill>,
    /// How the last full run ended.
    pub(super) backfilled: BackfillStatus,
    pub(super) flip: Option<Flip>,
    pub(super) parity: Parity,
    pub(super) sizes: Sizes,
    pub(super) story: Story,
    /// How many members are alive, as far as that was told.
    pub(super) members: Option<usize>,
    pub(super) published: Option<View>,
    pub(super) out: VecDeque<Output>,
    pub(super) last_pump: Option<Instant>,
    /// When old tombstones were last left out of what is known.
    pruned: Instant,
    /// When draining must end.
    drain_until: Option<Instant>,
    closed: bool,
    #[cfg(test)]
    pub(super) fault: Fault,
}

impl MultiCore {
    /// A multi store that has just started.
    #[must_use]
    pub fn new(config: MultiConfig, now: Now) -> Self {
        let durable = Durable::new(&config);
        Self::build(config, durable, now)
    }

    /// A multi store whose actor died. What its running operations were about to change, with unknown outcome, goes to
    /// the outbox (a join is harmless); tasks are sent again; a backfill begins again; a pending flip goes on.
    ///
    /// The operations themselves are gone with the actor, which answers their callers with an error.
    #[must_use]
    pub fn resume(config: MultiConfig, durable: Durable, now: Now) -> Self {
        Self::build(config, durable, now)
    }

    fn build(config: MultiConfig, durable: Durable, now: Now) -> Self {
        let backoff =
            Jittered { rng: SmallRng::seed_from_u64(config.seed), min: config.retry_min, max: config.retry_max };
        let mut core = Self {
            config,
            backoff,
            durable,
            ops: BTreeMap::new(),
            tasks: BTreeMap::new(),
            backfill: None,
            backfilled: BackfillStatus::default(),
            flip: None,
            parity: Parity::default(),
            sizes: Sizes::default(),
            story: Story::default(),
            members: None,
            published: None,
            out: VecDeque::new(),
            last_pump: Some(now.mono),
            pruned: now.mono,
            drain_until: None,
            closed: false,
            #[cfg(test)]
            fault: Fault::None,
        };
        for outbox in &mut core.durable.outbox {
            outbox.restart(now);
        }
        core.restart_doubts();
        for intent in std::mem::take(&mut core.durable.intents).values() {
            core.outcome_unknown(intent, now);
        }
        if let Some(to) = core.durable.pending {
            core.flip = Some(Flip::new(to, now.mono));
        }
        if core.durable.mirror {
            core.start_backfill();
        }
        core.publish();
        core.pump(now);
        core
    }

    /// Everything that must outlive the actor. Cheap; take it after every input.
    #[must_use]
    pub fn durable(&self) -> Durable {
        self.durable.clone()
    }

    /// The present view.
    #[must_use]
    pub fn view(&self) -> View {
        let durable = &self.durable;
        let phase = match (self.flip.is_some(), durable.primary, durable.mirror) {
            (true, _, _) => Phase::Flipping,
            (false, Side::B, _) => Phase::Flipped,
            (false, Side::A, true) => Phase::Dual,
            (false, Side::A, false) => Phase::Wired,
        };
        View {
            primary: durable.primary,
            primary_kind: self.config.kind(durable.primary),
            mirror_enabled: durable.mirror,
            generation: durable.generation,
            phase,
            waiting_for_runtime: durable.waiting,
        }
    }

    /// What to answer to a read that brought `found`: never older than what this node has delivered or acknowledged.
    /// An absent key stays absent.
    #[must_use]
    pub fn read(&self, key: &str, found: Option<Value>, now: Now) -> Option<Value> {
        let found = found?;
        Some(match self.durable.known.get(key) {
            Some(known) => joined(known, &found, now),
            None => found,
        })
    }

    /// Something happened.
    pub fn handle(&mut self, now: Now, input: Input) {
        if self.closed {
            if let Input::Op { id, .. } = input {
                self.reply(id, Verdict::Failed(StoreError::Closed(StoreKind::Multi)));
            }
            return;
        }
        match input {
            Input::Tick => {}
            Input::Runtime(runtime) => self.runtime(now, runtime),
            Input::RuntimeInvalid(reason) => self.event(MigrationEvent::RuntimeRefused { reason }),
            Input::Op { id, key, kind } => self.op(id, key, kind, now),
            Input::OpDropped { id } => self.op_dropped(id, now),
            Input::Intent { id, delta } => self.intent(id, delta, now),
            Input::OpDone { id, side, result } => self.op_done(id, side, result, now),
            Input::OpOnLastDone { id, delta } => self.op_on_last_done(id, delta, now),
            Input::TaskDone { id, result } => self.task_done(now, id, result),
            Input::Delivered { key, side, value } => self.delivered(&key, side, value, now),
            Input::ParityAsked { id } => self.ask_parity(id),
            Input::Prefixes(prefixes) => self.prefixes(now, prefixes),
            Input::Members(alive) => self.members = Some(alive),
            Input::Shutdown { drain } => self.shutdown(now, drain),
        }
        self.pump(now);
    }

    /// The next thing for the actor to do. Call until `None` after every input.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    /// When [`Input::Tick`] is due.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.closed {
            return None;
        }
        let reference = self.last_pump?;
        let outboxes = self.durable.outbox.iter().filter_map(|outbox| outbox.next_deadline(reference));
        let backfill = self.backfill.iter().filter_map(|run| run.next_deadline(reference));
        let parity = self.parity_deadline(reference);
        let sizes = self.sizes_deadline(reference);
        let doubts = self.doubts_deadline(reference);
        let others = outboxes.chain(backfill).chain(parity).chain(sizes).chain(doubts);
        others.chain(self.ops_deadline()).chain(self.drain_until).min()
    }

    fn runtime(&mut self, now: Now, runtime: RuntimeMulti) {
        let wanted = match runtime.primary {
            None => None,
            Some(kind) => match self.config.side_of(kind) {
                Some(side) => Some(side),
                None => {
                    let (a, b) = (self.config.primary, self.config.secondary);
                    let reason = format!("primary store {kind} is neither {a} nor {b}: nothing was changed");
                    self.event(MigrationEvent::RuntimeRefused { reason });
                    return;
                }
            },
        };
        match runtime.mirror_enabled {
            Some(true) if !self.durable.mirror => {
                self.durable.mirror = true;
                self.event(MigrationEvent::MirrorEnabled);
                self.forget_learned_limits();
                self.start_backfill();
            }
            Some(false) if self.durable.mirror => {
                self.durable.mirror = false;
                self.cancel_backfill();
                self.event(MigrationEvent::MirrorDisabled);
            }
            _ => {}
        }
        let first = std::mem::take(&mut self.durable.waiting);
        if let Some(side) = wanted {
            self.request_primary(side, first, now);
        }
        self.publish();
        if first {
            // The flip of a node that has read and written nothing went through at once, before its first operation.
            self.release_held(now);
        }
    }

    /// The keys that are ours are under other prefixes than before: those that came are copied, compared and measured.
    fn prefixes(&mut self, now: Now, prefixes: Vec<String>) {
        let came = prefixes.iter().any(|prefix| !self.config.prefixes.contains(prefix));
        self.config.prefixes = prefixes;
        if !came {
            return;
        }
        self.restart_sizes();
        if self.durable.mirror {
            self.start_backfill();
            self.compare_soon(now);
        }
    }

    fn delivered(&mut self, key: &Arc<str>, side: Side, value: Option<Value>, now: Now) {
        let Some(value) = value else {
            if side == self.durable.primary {
                self.forget(key);
            }
            return;
        };
        let Some(new) = self.remember(key, &value, now) else { return };
        if side != self.durable.primary {
            // A reader saw this of the old primary after the flip: the new one must not fall behind it.
            self.enqueue(self.durable.primary, key, &new, Reason::Owed, now);
        } else if let Some(to) = self.carrying() {
            self.enqueue(to, key, &new, Reason::CarryOver, now);
        }
    }

    /// The primary does not have the key (any more). Returns whether something was known of it.
    pub(super) fn forget(&mut self, key: &Arc<str>) -> bool {
        if let Some(to) = self.carrying() {
            self.durable.outbox[to.index()].drop_carry_over(Some(key));
        }
        // Looked at first: a change would copy what a clone of the durable state shares.
        self.durable.known.contains_key(key) && Arc::make_mut(&mut self.durable.known).remove(key).is_some()
    }

    /// Joins into what is known of the key. Returns what was new.
    pub(super) fn remember(&mut self, key: &Arc<str>, value: &Value, now: Now) -> Option<Value> {
        // Also when it is nothing new: the key exists.
        self.not_doubtful(key);
        if let Some(run) = self.backfill.as_mut() {
            run.heard(key);
        }
        let joined = match self.durable.known.get(key) {
            None => Some((value.clone(), value.clone())),
            Some(known) => match known.join(value, now) {
                Ok(joined) => joined.change.map(|change| (joined.value, change)),
                Err(_) => Some((value.clone(), value.clone())),
            },
        };
        let (all, new) = joined?;
        Arc::make_mut(&mut self.durable.known).insert(key.clone(), all);
        Some(new)
    }

    fn task_done(&mut self, now: Now, id: TaskId, result: Result<TaskResult, StoreError>) {
        let Some(job) = self.tasks.remove(&id) else { return };
        let (side, key) = match job {
            Job::Flush { side, key } => (side, key),
            Job::Survey => return self.survey_done(id, result),
            job @ (Job::SizeList | Job::SizeRead(_)) => return self.size_task_done(now, job, result),
            Job::Doubt(key) => return self.doubt_done(now, id, &key, result),
            job @ (Job::ParityList | Job::ParityRead(..)) => return self.parity_task_done(now, job, result),
            job => return self.backfill_task_done(now, job, result),
        };
        // Deleted on both sides: what waited for the key has nothing to be joined into any more.
        let gone = matches!(result, Err(StoreError::Absent { .. }));
        let error = result.err().filter(|_| !gone);
        let outbox = &mut self.durable.outbox[side.index()];
        let Some(flushed) = outbox.finished(&key, id, error.as_ref(), now, &mut self.backoff) else { return };
        match &error {
            None if gone => {
                self.durable.totals.dropped += 1;
                self.event(MigrationEvent::DeletedKeyLeft { store: self.config.kind(side), key: key.to_string() });
                self.recheck_gone(&key);
            }
            None => {
                self.note_taken(side, &key);
                self.durable.totals.mirrored += 1;
                self.durable.totals.last_lag = Some((now.mono.saturating_duration_since(flushed.since), now.mono));
                if flushed.recovered {
                    self.event(MigrationEvent::OutboxDrained { store: self.config.kind(side) });
                }
                if side != self.durable.primary
                    && let Some(run) = self.backfill.as_mut()
                {
                    run.sent(&key);
                }
            }
            Some(error) => {
                self.durable.totals.errors += 1;
                self.durable.totals.last_error = Some(error.to_string());
                if let StoreError::TooLarge { size, limit, .. } = *error {
                    self.note_too_large(side, &key, ValueSize { size, limit }, true);
                    if side != self.durable.primary
                        && let Some(run) = self.backfill.as_mut()
                    {
                        run.give_up(&key, LargeValue { key: key.to_string(), size, limit });
                    }
                }
                self.carry_over_failed(side, error);
            }
        }
        self.joined_into(side, &key, flushed.up_to, error);
    }

    fn shutdown(&mut self, now: Now, drain: Duration) {
        self.drain_until = Some(now.mono + drain);
        self.cancel_backfill();
        self.cancel_flip();
        self.fail_held();
        for outbox in &mut self.durable.outbox {
            outbox.retry_now();
        }
    }

    fn finish_shutdown(&mut self, now: Now) {
        let Some(until) = self.drain_until else { return };
        let left = self.outbox_len();
        if now.mono < until && !(left == 0 && self.ops.is_empty()) {
            return;
        }
        self.closed = true;
        for id in self.ops.keys().copied().collect::<Vec<_>>() {
            self.reply(id, Verdict::Failed(StoreError::Closed(StoreKind::Multi)));
        }
        self.event(MigrationEvent::ShutdownDrained { left });
        self.out.push_back(Output::Drained);
    }

    /// Starts everything that may start now.
    pub(super) fn pump(&mut self, now: Now) {
        self.last_pump = Some(now.mono);
        self.prune(now);
        self.expire_ops(now);
        if self.drain_until.is_none() {
            self.step_doubts(now);
            // Its end may open the gate of a flip, and a flip begins another one.
            self.step_backfill(now);
            self.step_parity(now);
            self.step_sizes(now);
        }
        self.step_flip(now);
        for side in [Side::A, Side::B] {
            loop {
                let id = TaskId(self.durable.last_task + 1);
                let Some((key, task)) = self.durable.outbox[side.index()].start(id, now.mono) else { break };
                self.start_task(Job::Flush { side, key }, side, task);
            }
        }
        if self.drain_until.is_none() {
            self.step_backfill(now);
            self.step_parity(now);
            self.step_sizes(now);
        }
        self.note_rollback(now);
        self.tell_story(now);
        self.finish_shutdown(now);
    }

    /// Forgets old tombstones of what is known.
    fn prune(&mut self, now: Now) {
        let ttl = self.config.tombstone_ttl;
        if now.mono.saturating_duration_since(self.pruned) < PRUNE_EVERY {
            return;
        }
        self.pruned = now.mono;
        let pruned = |known: &Value| without_old_tombstones(known, ttl, now);
        let changed: Vec<_> =
            self.durable.known.iter().filter_map(|(key, known)| Some((key.clone(), pruned(known)?))).collect();
        if !changed.is_empty() {
            Arc::make_mut(&mut self.durable.known).extend(changed);
        }
    }

    pub(super) fn start_task(&mut self, job: Job, side: Side, task: Task) -> TaskId {
        self.durable.last_task += 1;
        let id = TaskId(self.durable.last_task);
        self.tasks.insert(id, job);
        self.out.push_back(Output::Task { id, side, task });
        id
    }

    /// Puts δ into the outbox to a side. Returns its position.
    pub(super) fn enqueue(&mut self, side: Side, key: &Arc<str>, delta: &Value, reason: Reason, now: Now) -> u64 {
        let stamp = self.stamp(now);
        self.durable.outbox[side.index()].push_delta(key, delta, stamp, reason, now);
        stamp.seq
    }

    /// Puts a deletion into the outbox to a side. Returns its position.
    pub(super) fn enqueue_delete(&mut self, side: Side, key: &Arc<str>, now: Now) -> u64 {
        let stamp = self.stamp(now);
        self.durable.outbox[side.index()].push_delete(key, stamp);
        stamp.seq
    }

    fn stamp(&mut self, now: Now) -> Stamp {
        self.durable.seq += 1;
        Stamp { seq: self.durable.seq, at: now.mono }
    }

    pub(super) fn event(&mut self, event: MigrationEvent) {
        self.out.push_back(Output::Event(event));
    }

    pub(super) fn publish(&mut self) {
        let view = self.view();
        if self.published != Some(view) {
            self.published = Some(view);
            self.out.push_back(Output::View(view));
        }
    }
}
