//! Writes, the mirror's outbox, and the backfill.

use super::*;

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
