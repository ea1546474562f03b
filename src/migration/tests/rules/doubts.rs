//! Deletions that a store left unanswered.

use super::*;

fn unanswered() -> StoreError {
    StoreError::Timeout { store: StoreKind::Consul, after: secs(20) }
}

/// A mirroring core whose primary left the deletion of a key unanswered; with the question that it asks later.
fn in_doubt() -> (Bench, TaskId) {
    let mut bench = Bench::dual();
    bench.deliver(Side::A, delta("a"));
    bench.op(OpKind::Delete);
    bench.done(Side::A, Err(unanswered()));
    assert_eq!((bench.reply(), bench.tasks().len()), (Some(false), 0), "it may still be under way");
    bench.wait(secs(1));
    let id = asked(&bench).unwrap();
    (bench, id)
}

/// The question whether the old primary has the key, if it is asked now.
fn asked(bench: &Bench) -> Option<TaskId> {
    bench.tasks().into_iter().find_map(|(id, side, task)| match task {
        Task::Exists { .. } => {
            assert_eq!(side, Side::A);
            Some(id)
        }
        _ => None,
    })
}

fn deletes_in_b(bench: &Bench) -> bool {
    bench.tasks().iter().any(|(_, side, task)| *side == Side::B && matches!(task, Task::Delete { .. }))
}

#[test]
fn a_deletion_that_happened_although_it_was_not_answered_goes_to_the_other_store() {
    let (mut bench, id) = in_doubt();
    bench.task_done(id, Ok(TaskResult::Exists(false)));
    assert!(deletes_in_b(&bench), "{:?}", bench.tasks());
    let read = bench.core.read("ring", Some(delta("b")), bench.now).unwrap();
    assert_eq!(Map::of(&read), &map("b"), "and it is not known any more");
}

#[test]
fn a_store_that_does_not_answer_is_asked_until_it_does() {
    let (mut bench, mut id) = in_doubt();
    for _ in 0..50 {
        bench.task_done(id, Err(down(StoreKind::Consul)));
        assert_eq!(asked(&bench), None, "not at once");
        bench.wait(secs(30));
        id = asked(&bench).unwrap();
    }
    bench.task_done(id, Ok(TaskResult::Exists(false)));
    assert!(deletes_in_b(&bench));
}

#[test]
fn a_key_that_is_there_is_asked_for_again_for_a_while_and_then_left_alone() {
    let (mut bench, id) = in_doubt();
    bench.task_done(id, Ok(TaskResult::Exists(true)));
    let mut times = 0;
    for _ in 0..120 {
        bench.wait(secs(1));
        assert!(!deletes_in_b(&bench));
        if let Some(id) = asked(&bench) {
            times += 1;
            bench.task_done(id, Ok(TaskResult::Exists(true)));
        }
    }
    assert!((2..20).contains(&times), "{times}");
    bench.wait(secs(3600));
    assert_eq!(asked(&bench), None);
}

#[test]
fn a_key_that_was_written_since_is_in_doubt_no_more() {
    let (mut bench, id) = in_doubt();
    bench.op(OpKind::Cas);
    bench.done(Side::A, Ok(OpEffect::Written(delta("again"))));
    assert_eq!(bench.join().2, map("again"));
    bench.task_done(id, Ok(TaskResult::Exists(false)));
    assert!(bench.out.is_empty(), "the answer is older than the write: {:?}", bench.out);
    bench.wait(secs(60));
    assert_eq!(asked(&bench), None);

    // Also when only the other store could take it.
    let (mut bench, id) = in_doubt();
    bench.op(OpKind::Cas);
    bench.input(Input::Intent { id: ID, delta: delta("again") });
    bench.done(Side::A, Err(down(StoreKind::Consul)));
    assert_eq!(bench.join().2, map("again"));
    bench.task_done(id, Ok(TaskResult::Exists(false)));
    assert!(bench.out.is_empty(), "{:?}", bench.out);
}

#[test]
fn a_doubt_outlives_the_actor_and_its_question() {
    let (mut bench, before) = in_doubt();
    let config = bench.core.config.clone();
    bench.core = MultiCore::resume(config, bench.core.durable(), bench.now);
    bench.out.clear();
    bench.collect();
    let id = asked(&bench).unwrap();
    bench.task_done(before, Ok(TaskResult::Exists(false)));
    assert!(!deletes_in_b(&bench), "that was asked in another life");
    bench.task_done(id, Ok(TaskResult::Exists(false)));
    assert!(deletes_in_b(&bench));
}

#[test]
fn a_flip_does_not_wait_for_a_doubt_which_ends_soon_after_it() {
    for answers in [true, false] {
        let (mut bench, mut id) = in_doubt();
        bench.runtime(to(StoreKind::Memberlist));
        let survey = bench.tasks()[0].0;
        bench.task_done(survey, Ok(TaskResult::Keys(vec![])));
        assert_eq!(bench.view().primary, Side::B);
        if answers {
            bench.task_done(id, Ok(TaskResult::Exists(false)));
            assert!(deletes_in_b(&bench));
            continue;
        }
        for _ in 0..3 {
            bench.task_done(id, Err(down(StoreKind::Consul)));
            bench.wait(secs(20));
            match asked(&bench) {
                Some(again) => id = again,
                None => break,
            }
        }
        bench.wait(secs(3600));
        assert_eq!(asked(&bench), None, "meanwhile somebody may have written the key to the new primary");
    }
}

#[test]
fn a_deletion_that_hangs_on_the_old_primary_is_in_doubt_there_when_nobody_waits_for_it() {
    let mut bench = Bench::dual();
    bench.op(OpKind::Delete);
    bench.runtime(to(StoreKind::Memberlist));
    bench.wait(secs(2));
    assert_eq!(bench.runs_on(), Some(Side::B));
    bench.input(Input::OpDropped { id: ID });
    bench.wait(secs(1));
    let id = asked(&bench).unwrap();
    bench.task_done(id, Ok(TaskResult::Exists(false)));
    assert!(deletes_in_b(&bench));
}
