//! Flips: what is carried over, and what becomes of operations in flight.

use super::*;

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
fn a_value_from_the_old_primary_that_a_reader_sees_after_the_flip_goes_to_the_new_one() {
    let mut bench = Bench::new();
    bench.runtime(to(StoreKind::Memberlist));
    bench.deliver(Side::A, delta("late"));
    assert_eq!((bench.join().1, bench.join().2), (Side::B, map("late")));
}

/// A core that has flipped while A had not answered a write of known δ.
fn flipped_with_intent() -> Bench {
    let mut bench = Bench::new();
    bench.op(OpKind::Cas);
    bench.input(Input::Intent { id: ID, delta: delta("a") });
    bench.runtime(to(StoreKind::Memberlist));
    bench
}

#[test]
fn what_may_be_on_the_old_primary_is_joined_into_the_new_one_when_the_caller_is_gone_before_the_second_run() {
    let mut hangs = flipped_with_intent();
    hangs.wait(secs(2));
    let mut fails = flipped_with_intent();
    fails.done(Side::A, Err(down(StoreKind::Consul)));
    for mut bench in [hangs, fails] {
        assert_eq!(bench.runs_on(), Some(Side::B));
        bench.input(Input::OpDropped { id: ID });
        let (_, side, sent) = bench.join();
        assert_eq!((side, sent, bench.core.status(bench.now).in_flight), (Side::B, map("a"), 0));
    }
}

#[test]
fn what_the_first_run_was_about_to_change_is_not_taken_for_what_the_second_one_was() {
    let mut bench = flipped_with_intent();
    bench.runtime(mirror(true));
    bench.wait(secs(2));
    assert_eq!(bench.runs_on(), Some(Side::B));
    bench.done(Side::B, Err(down(StoreKind::Memberlist)));
    assert!(bench.out.iter().any(|output| matches!(output, Output::RunOpOnLast { .. })), "{:?}", bench.out);
}
