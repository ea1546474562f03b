//! Each rule of the multi store on its own: inputs in, outputs out.

use std::sync::Arc;
use std::time::Duration;

use super::super::*;
use super::map::Map;
use super::world::{millis, mirror, secs, to};
use crate::clock::Now;
use crate::kv::{StoreError, StoreKind, Value};

/// A core, its clock, and what it said.
pub(super) struct Bench {
    pub(super) core: MultiCore,
    pub(super) now: Now,
    pub(super) out: Vec<Output>,
}

const ID: OpId = OpId(1);

fn key() -> Arc<str> {
    "ring".into()
}

fn map(name: &str) -> Map {
    Map::one(name, 1, Some(1))
}

fn delta(name: &str) -> Value {
    map(name).value()
}

fn down(store: StoreKind) -> StoreError {
    StoreError::Unavailable { store, reason: "down".into() }
}

impl Bench {
    pub(super) fn with(config: MultiConfig) -> Self {
        let now = Now::read();
        // The continuous comparison has its own tests.
        Self::comparing(MultiConfig { parity_period: Duration::from_secs(100_000), ..config }, now)
    }

    /// With the comparison that the configuration asks for.
    pub(super) fn comparing(config: MultiConfig, now: Now) -> Self {
        let mut bench = Self { core: MultiCore::new(config, now), now, out: Vec::new() };
        bench.collect();
        bench
    }

    pub(super) fn new() -> Self {
        Self::with(MultiConfig::default())
    }

    /// Mirroring on, and its backfill of nothing through.
    pub(super) fn dual() -> Self {
        let mut bench = Self::new();
        bench.runtime(mirror(true));
        let list = bench.tasks().pop().unwrap().0;
        bench.task_done(list, Ok(TaskResult::Keys(Vec::new())));
        bench.out.clear();
        bench
    }

    pub(super) fn collect(&mut self) {
        while let Some(output) = self.core.poll_output() {
            self.out.push(output);
        }
    }

    /// Outputs from here on are those of this input and what follows.
    pub(super) fn input(&mut self, input: Input) {
        self.out.clear();
        self.core.handle(self.now, input);
        self.collect();
    }

    pub(super) fn runtime(&mut self, runtime: RuntimeMulti) {
        self.input(Input::Runtime(runtime));
    }

    pub(super) fn task_done(&mut self, id: TaskId, result: Result<TaskResult, StoreError>) {
        self.input(Input::TaskDone { id, result });
    }

    pub(super) fn wait(&mut self, by: Duration) {
        self.now = self.now + by;
        self.input(Input::Tick);
    }

    pub(super) fn op(&mut self, kind: OpKind) {
        self.input(Input::Op { id: ID, key: key(), kind });
    }

    pub(super) fn done(&mut self, side: Side, result: Result<OpEffect, StoreError>) {
        self.input(Input::OpDone { id: ID, side, result });
    }

    pub(super) fn deliver(&mut self, side: Side, value: Value) {
        self.input(Input::Delivered { key: key(), side, value: Some(value) });
    }

    pub(super) fn tasks(&self) -> Vec<(TaskId, Side, Task)> {
        let task = |output: &Output| match output {
            Output::Task { id, side, task } => Some((*id, *side, task.clone())),
            _ => None,
        };
        self.out.iter().filter_map(task).collect()
    }

    /// The only task, a join; its id, side and δ.
    fn join(&self) -> (TaskId, Side, Map) {
        match &self.tasks()[..] {
            [(id, side, Task::Join { delta, .. })] => (*id, *side, Map::of(delta).clone()),
            other => panic!("not one join: {other:?}"),
        }
    }

    /// `Some(true)`: answered with success.
    fn reply(&self) -> Option<bool> {
        self.out.iter().find_map(|output| match output {
            Output::Reply { verdict, .. } => Some(matches!(verdict, Verdict::Done)),
            _ => None,
        })
    }

    fn runs_on(&self) -> Option<Side> {
        self.out.iter().find_map(|output| match output {
            Output::RunOp { side, .. } => Some(*side),
            _ => None,
        })
    }

    pub(super) fn view(&self) -> View {
        self.core.view()
    }

    pub(super) fn said(&self, wanted: impl Fn(&MigrationEvent) -> bool) -> bool {
        self.out.iter().any(|output| matches!(output, Output::Event(event) if wanted(event)))
    }
}

#[test]
fn without_mirroring_a_write_goes_to_the_primary_only() {
    let mut bench = Bench::new();
    bench.op(OpKind::Cas);
    assert_eq!(bench.runs_on(), Some(Side::A));
    bench.done(Side::A, Ok(OpEffect::Written(delta("a"))));
    assert_eq!((bench.reply(), bench.tasks().len()), (Some(true), 0));
    assert_eq!(bench.core.status(bench.now).phase, Phase::Wired);
}

#[test]
fn a_write_is_acknowledged_with_the_primary_and_mirrored_at_the_same_time() {
    let mut bench = Bench::dual();
    bench.op(OpKind::Cas);
    bench.done(Side::A, Ok(OpEffect::Written(delta("a"))));
    assert_eq!(bench.reply(), Some(true));
    let (_, side, sent) = bench.join();
    assert_eq!((side, sent), (Side::B, map("a")));
}

#[test]
fn the_outbox_has_one_entry_a_key_and_joins_what_comes_later() {
    let mut bench = Bench::dual();
    for name in ["a", "b", "c"] {
        bench.op(OpKind::Cas);
        bench.done(Side::A, Ok(OpEffect::Written(delta(name))));
        if name == "a" {
            let first = bench.join().0;
            bench.task_done(first, Err(down(StoreKind::Memberlist)));
        }
        assert_eq!(bench.core.outbox_len(), 1);
    }
    bench.wait(secs(1));
    let (id, _, sent) = bench.join();
    assert_eq!(sent.0.len(), 3, "joined");
    bench.task_done(id, Ok(TaskResult::Done));
    assert!(bench.said(|event| matches!(event, MigrationEvent::OutboxDrained { store: StoreKind::Memberlist })));
    assert_eq!(bench.core.outbox_len(), 0);
}

#[test]
fn a_failed_mirror_write_is_retried_for_ever_with_growing_delays() {
    let mut bench = Bench::dual();
    bench.op(OpKind::Cas);
    bench.done(Side::A, Ok(OpEffect::Written(delta("a"))));
    let mut last = Duration::ZERO;
    for attempt in 0..200 {
        let id = bench.join().0;
        bench.task_done(id, Err(down(StoreKind::Memberlist)));
        let wait = bench.core.next_deadline().unwrap() - bench.now.mono;
        assert!(wait >= millis(125) && wait <= secs(30), "{wait:?}");
        assert!(attempt > 6 || wait > last || last < millis(500), "grows: {last:?} {wait:?}");
        last = wait;
        bench.wait(wait);
    }
    assert!(last > secs(14));
    assert_eq!(bench.core.status(bench.now).mirror_errors_total, 200);
}

#[test]
fn a_key_that_the_store_does_not_answer_for_does_not_keep_the_others_waiting() {
    let mut bench = Bench::dual();
    bench.op(OpKind::Cas);
    bench.done(Side::A, Ok(OpEffect::Written(delta("a"))));
    let (first, _, busy) = bench.join();
    bench.input(Input::Op { id: OpId(2), key: "other".into(), kind: OpKind::Cas });
    bench.input(Input::OpDone { id: OpId(2), side: Side::A, result: Ok(OpEffect::Written(delta("b"))) });
    let (second, _, other) = bench.join();
    bench.task_done(first, Err(down(StoreKind::Memberlist)));
    bench.task_done(second, Err(down(StoreKind::Memberlist)));
    for probed in [&busy, &other, &busy, &other] {
        bench.wait(secs(30));
        let (id, _, sent) = bench.join();
        assert_eq!(sent, *probed, "one after the other");
        bench.task_done(id, Err(down(StoreKind::Memberlist)));
    }
}

#[test]
fn an_undecodable_key_of_the_secondary_does_not_hold_back_the_others() {
    let mut bench = Bench::dual();
    bench.op(OpKind::Cas);
    bench.done(Side::A, Ok(OpEffect::Written(delta("a"))));
    let id = bench.join().0;
    bench.task_done(id, Err(StoreError::Decode { key: "ring".into(), reason: "bad".into() }));
    bench.input(Input::Op { id: OpId(2), key: "other".into(), kind: OpKind::Cas });
    bench.input(Input::OpDone { id: OpId(2), side: Side::A, result: Ok(OpEffect::Written(delta("b"))) });
    assert_eq!(bench.join().2, map("b"));
}

#[test]
fn a_mirrored_deletion_goes_before_what_is_written_after_it_and_supersedes_what_was_before() {
    let mut bench = Bench::dual();
    bench.op(OpKind::Cas);
    bench.done(Side::A, Ok(OpEffect::Written(delta("before"))));
    let id = bench.join().0;
    bench.op(OpKind::Delete);
    bench.done(Side::A, Ok(OpEffect::Deleted));
    bench.op(OpKind::Cas);
    bench.done(Side::A, Ok(OpEffect::Written(delta("after"))));
    assert!(bench.tasks().is_empty(), "one task a key at a time");
    bench.task_done(id, Err(down(StoreKind::Memberlist)));
    bench.wait(secs(1));
    let delete = match &bench.tasks()[..] {
        [(id, Side::B, Task::Delete { .. })] => *id,
        other => panic!("{other:?}"),
    };
    bench.task_done(delete, Ok(TaskResult::Done));
    assert_eq!(bench.join().2, map("after"));
}

#[test]
fn a_failed_write_with_a_known_delta_still_goes_to_the_secondary() {
    let mut bench = Bench::dual();
    bench.op(OpKind::Cas);
    bench.input(Input::Intent { id: ID, delta: delta("a") });
    assert!(bench.tasks().is_empty(), "the primary may still refuse it");
    bench.done(Side::A, Err(down(StoreKind::Consul)));
    assert_eq!((bench.reply(), bench.join().2), (Some(false), map("a")));
}

#[test]
fn a_write_that_others_won_is_not_mirrored_but_the_key_is_compared() {
    let mut bench = Bench::dual();
    bench.op(OpKind::Cas);
    bench.input(Input::Intent { id: ID, delta: delta("a") });
    bench.done(Side::A, Err(StoreError::Conflict { key: "ring".into(), attempts: 10 }));
    assert_eq!(bench.reply(), Some(false));
    assert!(matches!(&bench.tasks()[..], [(_, Side::A, Task::Get { .. })]));
}

#[test]
fn a_primary_that_leaves_a_write_unanswered_does_not_starve_the_secondary() {
    let mut bench = Bench::dual();
    bench.op(OpKind::Cas);
    bench.input(Input::Intent { id: ID, delta: delta("a") });
    bench.wait(secs(2));
    assert_eq!((bench.reply(), bench.join().2), (None, map("a")));
}

#[test]
fn a_heartbeat_goes_on_into_the_secondary_when_the_primary_cannot_even_be_read() {
    let mut bench = Bench::dual();
    bench.deliver(Side::A, delta("seen"));
    bench.op(OpKind::Cas);
    bench.done(Side::A, Err(down(StoreKind::Consul)));
    let base = bench.out.iter().find_map(|output| match output {
        Output::RunOpOnLast { base, .. } => base.clone(),
        _ => None,
    });
    assert_eq!(Map::of(&base.unwrap()), &map("seen"));
    assert_eq!(bench.reply(), None);
    bench.input(Input::OpOnLastDone { id: ID, delta: Some(delta("beat")) });
    assert_eq!((bench.reply(), bench.join().2), (Some(false), map("beat")));
}

#[test]
fn a_dead_primary_without_mirroring_only_fails_the_write() {
    let mut bench = Bench::new();
    bench.op(OpKind::Cas);
    bench.done(Side::A, Err(down(StoreKind::Consul)));
    assert_eq!((bench.reply(), bench.tasks().len()), (Some(false), 0));
}

#[test]
fn a_backfill_sends_what_is_missing_and_reads_it_back() {
    let mut bench = Bench::new();
    bench.runtime(mirror(true));
    let list = bench.tasks()[0].0;
    bench.task_done(list, Ok(TaskResult::Keys(vec!["ring".into()])));
    let read = bench.tasks()[0].0;
    bench.task_done(read, Ok(TaskResult::Value(Some(delta("a")))));
    let check = bench.tasks()[0].clone();
    assert_eq!(check.1, Side::B);
    // The other store has something of its own, which stays as it is.
    bench.task_done(check.0, Ok(TaskResult::Value(Some(delta("own")))));
    let (id, side, sent) = bench.join();
    assert_eq!((side, sent), (Side::B, map("a")));
    bench.task_done(id, Ok(TaskResult::Done));
    assert!(!bench.core.status(bench.now).backfill.verified, "not before it was read back");
    let check = bench.tasks()[0].0;
    let mut both = map("a");
    both.merge(&map("own"));
    bench.task_done(check, Ok(TaskResult::Value(Some(both.value()))));
    assert!(bench.said(|event| *event == MigrationEvent::BackfillFinished { keys: 1, joined: 1 }));
    assert!(bench.core.status(bench.now).backfill.verified);
}

#[test]
fn a_backfill_goes_on_when_the_primary_comes_back() {
    let mut bench = Bench::new();
    bench.runtime(mirror(true));
    for _ in 0..20 {
        let list = bench.tasks()[0].0;
        bench.task_done(list, Err(down(StoreKind::Consul)));
        assert!(bench.tasks().is_empty());
        bench.wait(secs(30));
    }
    assert!(matches!(bench.tasks()[0].2, Task::List { .. }));
}

#[test]
fn a_flip_carries_over_first_and_swaps_then() {
    let mut bench = Bench::new();
    bench.deliver(Side::A, delta("a"));
    bench.runtime(to(StoreKind::Memberlist));
    let (id, side, sent) = bench.join();
    assert_eq!((side, sent, bench.view().primary), (Side::B, map("a"), Side::A));
    assert_eq!(bench.view().phase, Phase::Flipping);
    bench.op(OpKind::Get);
    assert_eq!(bench.runs_on(), Some(Side::A), "nobody waits");
    bench.task_done(id, Ok(TaskResult::Done));
    let view = bench.view();
    assert_eq!((view.primary, view.generation, view.phase), (Side::B, 1, Phase::Flipped));
    assert!(matches!(bench.out[0], Output::View(first) if first == view));
}

#[test]
fn what_is_written_during_the_carry_over_is_carried_over_too() {
    let mut bench = Bench::new();
    bench.deliver(Side::A, delta("a"));
    bench.runtime(to(StoreKind::Memberlist));
    let id = bench.join().0;
    bench.op(OpKind::Cas);
    bench.done(Side::A, Ok(OpEffect::Written(delta("b"))));
    assert_eq!(bench.reply(), Some(true));
    bench.task_done(id, Ok(TaskResult::Done));
    assert_eq!(bench.view().primary, Side::A);
    let (id, _, sent) = bench.join();
    assert_eq!(sent, map("b"));
    bench.task_done(id, Ok(TaskResult::Done));
    assert_eq!(bench.view().primary, Side::B);
}

/// A mirroring core that knows the key and was told to flip; with the question to the old primary.
fn surveying() -> (Bench, TaskId) {
    let mut bench = Bench::dual();
    bench.deliver(Side::A, delta("a"));
    bench.runtime(to(StoreKind::Memberlist));
    let [(id, Side::A, Task::List { .. })] = bench.tasks()[..] else { panic!("{:?}", bench.tasks()) };
    assert_eq!(bench.view().phase, Phase::Flipping);
    (bench, id)
}

#[test]
fn what_others_deleted_meanwhile_is_not_carried_over() {
    let (mut bench, id) = surveying();
    bench.task_done(id, Ok(TaskResult::Keys(vec!["other".to_owned()])));
    assert_eq!(bench.view().primary, Side::B);
    assert!(!bench.tasks().iter().any(|(_, _, task)| matches!(task, Task::Join { .. })), "{:?}", bench.tasks());
    assert_eq!(
        bench.core.read(&key(), Some(delta("b")), bench.now).map(|value| Map::of(&value).clone()),
        Some(map("b"))
    );
}

#[test]
fn what_the_old_primary_still_has_is_carried_over() {
    let (mut bench, id) = surveying();
    bench.task_done(id, Ok(TaskResult::Keys(vec![key().to_string()])));
    assert_eq!((bench.join().2, bench.view().primary), (map("a"), Side::A));
}

#[test]
fn an_old_primary_that_does_not_answer_does_not_hold_up_the_flip() {
    let (mut bench, id) = surveying();
    bench.task_done(id, Err(down(StoreKind::Consul)));
    assert_eq!(bench.join().2, map("a"), "everything is carried over");
}

#[test]
fn what_is_heard_of_while_the_old_primary_is_asked_is_carried_over() {
    let (mut bench, id) = surveying();
    bench.deliver(Side::A, delta("b"));
    bench.task_done(id, Ok(TaskResult::Keys(vec![])));
    assert_eq!(bench.join().2.0.len(), 2);
}

#[test]
fn a_survey_goes_on_when_the_mirror_is_turned_off_over_it() {
    let (mut bench, id) = surveying();
    bench.runtime(RuntimeMulti { primary: Some(StoreKind::Memberlist), mirror_enabled: Some(false) });
    bench.task_done(id, Ok(TaskResult::Keys(vec![key().to_string()])));
    let joined = bench.join().0;
    bench.task_done(joined, Ok(TaskResult::Done));
    assert_eq!(bench.view().primary, Side::B);
}

#[test]
fn a_busy_node_flips_although_something_new_always_comes_in() {
    let mut bench = Bench::new();
    bench.deliver(Side::A, delta("0"));
    bench.runtime(to(StoreKind::Memberlist));
    for round in 1..10 {
        let id = bench.join().0;
        bench.deliver(Side::A, delta(&round.to_string()));
        bench.task_done(id, Ok(TaskResult::Done));
        if bench.view().primary == Side::B {
            assert_eq!(bench.join().1, Side::B, "the rest follows");
            return;
        }
    }
    panic!("it never flipped");
}

/// A core that has flipped while a write was in flight on A.
fn flipped_in_flight() -> Bench {
    let mut bench = Bench::new();
    bench.op(OpKind::Cas);
    bench.runtime(to(StoreKind::Memberlist));
    assert_eq!(bench.view().primary, Side::B);
    bench
}

#[test]
fn a_write_that_finishes_on_the_old_primary_is_in_the_new_one_before_it_is_acknowledged() {
    let mut bench = flipped_in_flight();
    bench.done(Side::A, Ok(OpEffect::Written(delta("a"))));
    assert_eq!(bench.reply(), None);
    let (id, side, sent) = bench.join();
    assert_eq!((side, sent), (Side::B, map("a")));
    bench.task_done(id, Ok(TaskResult::Done));
    assert_eq!(bench.reply(), Some(true));
}

#[test]
fn a_write_that_the_new_primary_cannot_take_fails_and_is_kept() {
    let mut bench = flipped_in_flight();
    bench.done(Side::A, Ok(OpEffect::Written(delta("a"))));
    let id = bench.join().0;
    bench.task_done(id, Err(down(StoreKind::Memberlist)));
    assert_eq!((bench.reply(), bench.core.outbox_len()), (Some(false), 1));
}

#[test]
fn a_deletion_that_finishes_on_the_old_primary_is_in_the_new_one_before_it_is_acknowledged() {
    let mut bench = Bench::new();
    bench.op(OpKind::Delete);
    bench.runtime(to(StoreKind::Memberlist));
    bench.done(Side::A, Ok(OpEffect::Deleted));
    assert_eq!(bench.reply(), None);
    let (id, side, task) = bench.tasks().pop().unwrap();
    assert!(side == Side::B && matches!(task, Task::Delete { .. }));
    bench.task_done(id, Ok(TaskResult::Done));
    assert_eq!(bench.reply(), Some(true));
}

#[test]
fn an_operation_that_fails_on_the_old_primary_after_the_flip_runs_on_the_new_one() {
    for error in [
        down(StoreKind::Consul),
        StoreError::Timeout { store: StoreKind::Consul, after: secs(2) },
        StoreError::Closed(StoreKind::Consul),
    ] {
        let mut bench = flipped_in_flight();
        bench.done(Side::A, Err(error));
        assert_eq!((bench.runs_on(), bench.reply()), (Some(Side::B), None));
    }
    let mut bench = flipped_in_flight();
    bench.done(Side::A, Ok(OpEffect::Unchanged));
    assert_eq!(bench.runs_on(), Some(Side::B), "only the new primary can say that nothing had to change");
}

#[test]
fn an_operation_that_hangs_on_the_old_primary_runs_on_the_new_one_after_a_while() {
    let mut bench = flipped_in_flight();
    assert_eq!(bench.core.next_deadline(), Some(bench.now.mono + secs(2)));
    bench.wait(secs(2));
    assert_eq!(bench.runs_on(), Some(Side::B));
    // The end of the first run does not count any more.
    bench.done(Side::A, Ok(OpEffect::Written(delta("a"))));
    assert_eq!(bench.reply(), None);
    bench.done(Side::B, Ok(OpEffect::Unchanged));
    assert_eq!(bench.reply(), Some(true));
}

#[test]
fn a_flip_back_while_the_flip_is_pending_ends_where_it_began() {
    let mut bench = Bench::new();
    bench.deliver(Side::A, delta("a"));
    bench.runtime(to(StoreKind::Memberlist));
    let id = bench.join().0;
    bench.task_done(id, Err(down(StoreKind::Memberlist)));
    bench.runtime(to(StoreKind::Consul));
    assert!(bench.said(|event| *event == MigrationEvent::FlipCancelled { stays: StoreKind::Consul }));
    let view = bench.view();
    assert_eq!((view.primary, view.generation, view.phase), (Side::A, 0, Phase::Wired));
    assert_eq!(bench.core.outbox_len(), 0, "a carry-over that nobody needs is not sent");
    assert_eq!(bench.core.next_deadline(), None);
}

#[test]
fn a_write_that_waits_for_the_new_primary_is_answered_when_the_flip_is_taken_back() {
    let mut bench = flipped_in_flight();
    bench.done(Side::A, Ok(OpEffect::Written(delta("a"))));
    assert_eq!(bench.join().1, Side::B);
    bench.runtime(to(StoreKind::Consul));
    let id = bench.join().0;
    bench.task_done(id, Ok(TaskResult::Done));
    assert_eq!((bench.view().primary, bench.reply()), (Side::A, Some(true)));
}

#[test]
fn nothing_in_a_runtime_configuration_changes_nothing() {
    let mut bench = Bench::dual();
    let before = bench.view();
    bench.runtime(RuntimeMulti::default());
    assert!(bench.out.is_empty());
    assert_eq!(bench.view(), before);
}

#[test]
fn a_store_that_is_none_of_the_two_is_refused_loudly_as_a_whole() {
    let mut bench = Bench::new();
    bench.runtime(RuntimeMulti { primary: Some(StoreKind::Etcd), mirror_enabled: Some(true) });
    assert!(bench.said(|event| matches!(event, MigrationEvent::RuntimeRefused { .. })));
    assert_eq!((bench.out.len(), bench.view().mirror_enabled), (1, false));
    bench.input(Input::RuntimeInvalid("half a file".into()));
    assert!(bench.said(|event| matches!(event, MigrationEvent::RuntimeRefused { .. })));
    assert_eq!(bench.out.len(), 1);
}

#[test]
fn a_node_that_waits_for_its_runtime_configuration_holds_operations_and_starts_on_the_right_primary() {
    let config = MultiConfig { wait_for_runtime: true, ..MultiConfig::default() };
    let mut bench = Bench::with(config.clone());
    bench.op(OpKind::Cas);
    assert!(bench.out.is_empty() && bench.view().waiting_for_runtime);
    bench.input(Input::RuntimeInvalid("half a file".into()));
    assert_eq!(bench.runs_on(), None, "an invalid file does not say where the primary is");
    bench.runtime(to(StoreKind::Memberlist));
    assert_eq!(bench.runs_on(), Some(Side::B));

    let mut bench = Bench::with(config);
    bench.op(OpKind::Cas);
    bench.runtime(RuntimeMulti::default());
    assert_eq!(bench.runs_on(), Some(Side::A), "an empty one counts");
}

#[test]
fn a_shutdown_drains_the_outbox_or_says_how_much_is_left() {
    for answers in [true, false] {
        let mut bench = Bench::dual();
        bench.op(OpKind::Cas);
        bench.done(Side::A, Ok(OpEffect::Written(delta("a"))));
        let id = bench.join().0;
        bench.input(Input::Shutdown { drain: secs(3) });
        assert!(bench.out.is_empty());
        if answers {
            bench.task_done(id, Ok(TaskResult::Done));
        } else {
            assert_eq!(bench.core.next_deadline(), Some(bench.now.mono + secs(3)));
            bench.wait(secs(3));
        }
        let left = usize::from(!answers);
        assert!(bench.said(|event| *event == MigrationEvent::ShutdownDrained { left }));
        assert!(matches!(bench.out.last(), Some(Output::Drained)));
        bench.op(OpKind::Get);
        assert_eq!(bench.reply(), Some(false), "after that everything is refused");
    }
}

#[test]
fn an_intent_of_unknown_outcome_is_in_the_outbox_of_the_next_life() {
    let mut bench = Bench::dual();
    bench.op(OpKind::Cas);
    bench.input(Input::Intent { id: ID, delta: delta("a") });
    let config = bench.core.config.clone();
    bench.core = MultiCore::resume(config, bench.core.durable(), bench.now);
    bench.out.clear();
    bench.collect();
    let tasks = bench.tasks();
    assert!(tasks.iter().any(|(_, side, task)| *side == Side::B && matches!(task, Task::Join { .. })), "{tasks:?}");
    assert!(tasks.iter().any(|(_, _, task)| matches!(task, Task::List { .. })), "the backfill begins again");
    assert!(bench.view().mirror_enabled);
}

#[test]
fn a_dropped_write_of_unknown_outcome_is_mirrored() {
    let mut bench = Bench::dual();
    bench.op(OpKind::Cas);
    bench.input(Input::Intent { id: ID, delta: delta("a") });
    bench.input(Input::OpDropped { id: ID });
    assert_eq!((bench.join().2, bench.core.status(bench.now).in_flight), (map("a"), 0));
}

#[test]
fn a_value_from_the_old_primary_that_a_reader_sees_after_the_flip_goes_to_the_new_one() {
    let mut bench = Bench::new();
    bench.runtime(to(StoreKind::Memberlist));
    bench.deliver(Side::A, delta("late"));
    assert_eq!((bench.join().1, bench.join().2), (Side::B, map("late")));
}

#[test]
fn a_read_is_never_older_than_what_this_node_acknowledged() {
    let mut bench = Bench::new();
    bench.op(OpKind::Cas);
    bench.done(Side::A, Ok(OpEffect::Written(delta("mine"))));
    let read = bench.core.read("ring", Some(delta("theirs")), bench.now).unwrap();
    assert_eq!(Map::of(&read).0.len(), 2);
    assert!(bench.core.read("ring", None, bench.now).is_none());
}

#[test]
fn turning_the_mirror_off_still_sends_what_was_promised() {
    let mut bench = Bench::dual();
    bench.op(OpKind::Cas);
    bench.done(Side::A, Ok(OpEffect::Written(delta("a"))));
    let id = bench.join().0;
    bench.runtime(mirror(false));
    bench.task_done(id, Err(down(StoreKind::Memberlist)));
    bench.wait(secs(1));
    assert_eq!(bench.join().2, map("a"));
    bench.op(OpKind::Cas);
    bench.done(Side::A, Ok(OpEffect::Written(delta("b"))));
    assert_eq!(bench.core.outbox_len(), 1);
    assert!(bench.tasks().is_empty());
}

#[test]
fn the_status_is_plain_json() {
    let mut bench = Bench::new();
    bench.deliver(Side::A, delta("a"));
    bench.runtime(to(StoreKind::Memberlist));
    let json = serde_json::to_value(bench.core.status(bench.now + secs(4))).unwrap();
    assert_eq!(json["phase"], "flipping");
    assert_eq!(json["primary"], "consul");
    assert_eq!(json["secondary"], "memberlist");
    assert_eq!(json["pending_flip"]["to"], "memberlist");
    assert_eq!(json["pending_flip"]["since_ms"], 4000);
    assert_eq!(json["outbox_len"], 1);
    assert_eq!(json["oldest_outbox_age_ms"], 4000);
}

#[test]
fn what_is_known_of_a_key_does_not_keep_tombstones_for_ever() {
    let mut bench = Bench::new();
    let at = u64::try_from(bench.now.unix.as_micros()).unwrap();
    bench.deliver(Side::A, Map::one("gone", at, None).value());
    for (after, kept) in [(120, true), (400, false)] {
        bench.wait(secs(after));
        let read = bench.core.read("ring", Some(delta("here")), bench.now).unwrap();
        assert_eq!(Map::of(&read).0.contains_key("gone"), kept, "after {after} s");
    }
}
