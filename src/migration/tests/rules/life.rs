//! Runtime configuration, restarts, shutdown, and what is told to readers and operators.

use super::*;

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
fn a_read_is_never_older_than_what_this_node_acknowledged() {
    let mut bench = Bench::new();
    bench.op(OpKind::Cas);
    bench.done(Side::A, Ok(OpEffect::Written(delta("mine"))));
    let read = bench.core.read("ring", Some(delta("theirs")), bench.now).unwrap();
    assert_eq!(Map::of(&read).0.len(), 2);
    assert!(bench.core.read("ring", None, bench.now).is_none());
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
