//! Values that are too large for the other store: known before the mirror is on, told once, not tried for ever. And
//! prefixes that come later, and the story that the events tell.

use std::sync::Arc;
use std::time::Duration;

use super::super::*;
use super::map::Map;
use super::rules::Bench;
use super::world::{mirror, secs};
use crate::kv::{StoreError, StoreKind, Value, ValueSize};

/// Every entry of a map counts 100 bytes in the store of side B, which takes 1000.
fn sized() -> MultiConfig {
    let sizer = Sizer::new([false, true], |side, _, value| {
        assert_eq!(side, Side::B);
        Some(ValueSize { size: 100 * Map::of(value).0.len(), limit: 1000 })
    });
    MultiConfig { primary: StoreKind::Etcd, secondary: StoreKind::Consul, sizer, ..MultiConfig::default() }
}

fn entries(count: u64) -> Value {
    let mut map = Map::default();
    for n in 0..count {
        map.merge(&Map::one(&format!("entry-{n}"), 1, Some(n)));
    }
    map.value()
}

/// Answers every task as two stores would that hold these values; returns what was joined into the second.
fn serve(bench: &mut Bench, primary: &[(&str, u64)], secondary: &[(&str, u64)]) -> Vec<Arc<str>> {
    let mut joined: Vec<Arc<str>> = Vec::new();
    let mut secondary = secondary.to_vec();
    let mut tasks = bench.tasks();
    let mut said = std::mem::take(&mut bench.out);
    while let Some((id, side, task)) = tasks.pop() {
        let held = if side == Side::A { primary } else { &secondary };
        let result = match task {
            Task::List { prefix } => {
                let keys = held.iter().filter(|(key, _)| key.starts_with(&prefix));
                TaskResult::Keys(keys.map(|(key, _)| (*key).to_owned()).collect())
            }
            Task::Get { key } => {
                TaskResult::Value(held.iter().find(|(held, _)| *held == &*key).map(|(_, count)| entries(*count)))
            }
            Task::Join { key, .. } => {
                // Both halves of a value are one then.
                secondary.retain(|(held, _)| *held != &*key);
                secondary.extend(primary.iter().filter(|(held, _)| *held == &*key));
                joined.push(key);
                TaskResult::Done
            }
            Task::Exists { key } => TaskResult::Exists(held.iter().any(|(held, _)| *held == &*key)),
            Task::Delete { .. } => TaskResult::Done,
        };
        bench.task_done(id, Ok(result));
        tasks.extend(bench.tasks());
        said.append(&mut bench.out);
    }
    bench.out = said;
    joined
}

fn gate(bench: &Bench, name: &str) -> Gate {
    bench.core.gates(bench.now).into_iter().find(|gate| gate.name == name).unwrap()
}

fn too_large(bench: &Bench) -> usize {
    let large = |output: &&Output| matches!(output, Output::Event(MigrationEvent::ValueTooLarge { .. }));
    bench.out.iter().filter(large).count()
}

#[test]
fn a_value_that_does_not_fit_closes_the_gate_before_the_mirror_is_on() {
    let mut bench = Bench::with(sized());
    assert!(!gate(&bench, "size").open && gate(&bench, "size").reason.contains("not known yet"));
    serve(&mut bench, &[("ring", 12), ("near", 9), ("small", 1)], &[]);
    let size = gate(&bench, "size");
    assert!(!size.open && size.reason.contains("\"ring\" has 1200 bytes of at most 1000"), "{size:?}");
    assert!(size.warning.as_ref().unwrap().contains("\"near\" has 900 bytes of at most 1000"), "{size:?}");
    assert_eq!(too_large(&bench), 1);
    let large = bench.core.status(bench.now).large_values;
    assert_eq!(large.iter().map(|value| value.key.as_str()).collect::<Vec<_>>(), ["ring", "near"], "the worst first");

    // Looked at again by itself, and not told again.
    bench.wait(secs(301));
    serve(&mut bench, &[("ring", 12)], &[]);
    assert_eq!(too_large(&bench), 0);
    bench.wait(secs(301));
    serve(&mut bench, &[("ring", 3)], &[]);
    assert!(bench.said(|event| matches!(event, MigrationEvent::ValueFits { key, .. } if key == "ring")));
    let size = gate(&bench, "size");
    assert!(size.open && size.warning.is_none(), "{size:?}");
}

#[test]
fn where_there_is_no_limit_nothing_is_read_and_there_is_no_gate() {
    let bench = Bench::with(MultiConfig::default());
    assert!(bench.tasks().is_empty() && bench.core.gates(bench.now).iter().all(|gate| gate.name != "size"));
}

#[test]
fn the_backfill_leaves_out_what_does_not_fit_says_so_and_copies_it_when_it_does() {
    let mut bench = Bench::with(sized());
    serve(&mut bench, &[("ring", 12), ("small", 1)], &[]);
    bench.runtime(mirror(true));
    let copied = serve(&mut bench, &[("ring", 12), ("small", 1)], &[("small", 1)]);
    assert!(copied.is_empty(), "{copied:?}");
    let status = bench.core.status(bench.now);
    assert_eq!((status.backfill.verified, status.backfill.done, status.backfill.too_large), (false, 1, 1));
    assert!(gate(&bench, "backfill").reason.contains("1 keys are too large for consul"));
    assert!(bench.said(
        |event| matches!(event, MigrationEvent::BackfillIncomplete { too_large, .. } if too_large.contains("ring"))
    ));

    // The joined value counts: each half fits, both together do not.
    bench.wait(secs(301));
    let half = |bench: &mut Bench| serve(bench, &[("ring", 3), ("small", 1)], &[("ring", 3), ("small", 1)]);
    half(&mut bench);
    assert!(bench.core.status(bench.now).backfill.verified, "{:?}", bench.core.status(bench.now));
}

#[test]
fn a_value_that_goes_away_while_the_backfill_still_waits_for_others_is_no_reason_to_stay_unverified() {
    let mut bench = Bench::with(sized());
    let held = [("ring", 12), ("small", 1)];
    serve(&mut bench, &held, &[]);
    bench.runtime(mirror(true));
    // The other store reads the one, which is found too large, and not the other one.
    let mut tasks = bench.tasks();
    while let Some((id, side, task)) = tasks.pop() {
        let answer = match task {
            Task::List { .. } => Ok(TaskResult::Keys(held.map(|(key, _)| key.to_owned()).to_vec())),
            Task::Get { key } if side == Side::A => {
                let count = held.iter().find(|(held, _)| *held == &*key).map(|(_, count)| entries(*count));
                Ok(TaskResult::Value(count))
            }
            Task::Get { key } if &*key == "ring" => Ok(TaskResult::Value(None)),
            _ => Err(StoreError::Unavailable { store: StoreKind::Consul, reason: "down".into() }),
        };
        bench.task_done(id, answer);
        tasks.extend(bench.tasks());
    }
    assert!(bench.core.status(bench.now).backfill.running);
    assert_eq!(bench.core.status(bench.now).backfill.too_large, 1);
    // It is deleted, which is seen before the run is over.
    for _ in 0..5 {
        bench.wait(secs(31));
        serve(&mut bench, &held[1..], &held[1..]);
    }
    assert!(bench.core.status(bench.now).backfill.verified, "{:?}", bench.core.status(bench.now));
}

#[test]
fn what_the_store_refuses_for_its_size_waits_and_is_told_once() {
    let mut bench = Bench::with(sized());
    serve(&mut bench, &[], &[]);
    bench.runtime(mirror(true));
    serve(&mut bench, &[], &[]);
    bench.op(OpKind::Cas);
    bench.done(Side::A, Ok(OpEffect::Written(entries(7))));
    let refuse = |bench: &mut Bench| {
        let (id, ..) = bench.tasks().into_iter().find(|(.., task)| matches!(task, Task::Join { .. })).unwrap();
        // A lower limit than usual: the server was set to it.
        let error = StoreError::TooLarge { store: StoreKind::Consul, key: "ring".into(), size: 700, limit: 600 };
        bench.task_done(id, Err(error));
    };
    refuse(&mut bench);
    assert_eq!(too_large(&bench), 1);
    assert!(gate(&bench, "size").reason.contains("has 700 bytes of at most 600"), "{:?}", gate(&bench, "size"));
    let mut joins = 0;
    for _ in 0..29 {
        bench.wait(secs(10));
        joins += bench.tasks().iter().filter(|(.., task)| matches!(task, Task::Join { .. })).count();
    }
    assert_eq!(joins, 0, "not tried again and again");
    assert_eq!(bench.core.outbox_len(), 1, "and not lost");
    // The limit was learned: another value of that size is known to be too large without trying.
    bench.wait(secs(20));
    let list = bench.tasks().into_iter().find(|(.., task)| matches!(task, Task::List { .. })).unwrap().0;
    refuse(&mut bench);
    bench.task_done(list, Ok(TaskResult::Keys(vec!["other".to_owned()])));
    serve(&mut bench, &[("other", 7)], &[("other", 7)]);
    assert!(bench.core.status(bench.now).large_values.iter().any(|value| value.key == "other" && value.limit == 600));
}

#[test]
fn a_limit_that_was_learned_is_forgotten_when_the_store_takes_more() {
    let mut bench = Bench::with(sized());
    serve(&mut bench, &[], &[]);
    bench.runtime(mirror(true));
    serve(&mut bench, &[], &[]);
    let refused = |bench: &mut Bench| {
        bench.op(OpKind::Cas);
        bench.done(Side::A, Ok(OpEffect::Written(entries(7))));
        let (id, ..) = bench.tasks().into_iter().find(|(.., task)| matches!(task, Task::Join { .. })).unwrap();
        let error = StoreError::TooLarge { store: StoreKind::Consul, key: "ring".into(), size: 700, limit: 600 };
        bench.task_done(id, Err(error));
    };
    let other_is_large = |bench: &mut Bench| {
        bench.wait(secs(301));
        serve(bench, &[("ring", 7), ("other", 7)], &[("ring", 7), ("other", 7)]);
        bench.core.status(bench.now).large_values.iter().any(|value| value.key == "other")
    };
    refused(&mut bench);
    // What waited is tried again after five minutes, and taken: the operator has raised the limit.
    assert!(!other_is_large(&mut bench) && gate(&bench, "size").open, "{:?}", gate(&bench, "size"));
    assert_eq!(bench.core.outbox_len(), 0);

    // Or somebody turned the mirror off and on, and nothing waits.
    refused(&mut bench);
    bench.runtime(mirror(false));
    bench.runtime(mirror(true));
    serve(&mut bench, &[("other", 7)], &[]);
    assert!(bench.core.status(bench.now).large_values.iter().all(|value| value.key != "other"));
}

#[test]
fn a_prefix_that_comes_later_is_copied_and_compared() {
    let config = MultiConfig { prefixes: vec!["collectors/".into()], parity_period: Duration::from_secs(5), ..sized() };
    let mut bench = Bench::with(config);
    let held = [("collectors/ring", 1), ("late/flags", 1)];
    serve(&mut bench, &held, &held[..1]);
    bench.runtime(mirror(true));
    assert!(serve(&mut bench, &held, &held[..1]).is_empty(), "it is under none of our prefixes");
    assert!(bench.core.status(bench.now).backfill.verified);

    bench.input(Input::Prefixes(vec!["collectors/".into(), "late/".into()]));
    assert!(!bench.core.status(bench.now).backfill.verified, "what came is not copied yet");
    let copied = serve(&mut bench, &held, &held[..1]);
    assert_eq!(copied.iter().map(|key| &**key).collect::<Vec<_>>(), ["late/flags"]);
    assert_eq!(bench.core.status(bench.now).backfill.keys, 2);
    let id = 1;
    bench.input(Input::ParityAsked { id });
    let compared = (0..10).find_map(|_| {
        serve(&mut bench, &held, &held[..1]);
        let compared = bench.out.iter().find_map(|output| match output {
            Output::Parity { result, .. } => Some(result.clone().unwrap()),
            _ => None,
        });
        // What differs is looked at again for some seconds.
        bench.wait(Duration::from_secs(2));
        compared
    });
    assert_eq!(compared.unwrap().only_primary.count, 1, "it is compared, too");
    // The same prefixes again are no news.
    bench.input(Input::Prefixes(vec!["late/".into(), "collectors/".into()]));
    assert!(!bench.said(|event| matches!(event, MigrationEvent::BackfillStarted)));
}

#[test]
fn phases_and_gates_are_told_when_they_change_and_not_each_time() {
    let mut bench = Bench::new();
    bench.runtime(mirror(true));
    let phase = |from, to| move |event: &MigrationEvent| *event == MigrationEvent::PhaseChanged { from, to };
    assert!(bench.said(phase(Phase::Wired, Phase::Dual)));
    let list = bench.tasks().pop().unwrap().0;
    bench.task_done(list, Ok(TaskResult::Keys(Vec::new())));
    let mut closed = Vec::new();
    for _ in 0..20 {
        bench.wait(secs(2));
        closed.extend(bench.out.iter().filter_map(|output| match output {
            Output::Event(MigrationEvent::GateChanged { gate, open: false, .. }) => Some(*gate),
            _ => None,
        }));
    }
    assert_eq!(closed, ["members"], "once");
    bench.input(Input::Members(3));
    let mut opened = Vec::new();
    for _ in 0..5 {
        bench.wait(secs(2));
        opened.extend(bench.out.iter().filter_map(|output| match output {
            Output::Event(MigrationEvent::GateChanged { gate, open: true, reason }) => Some((*gate, reason.clone())),
            _ => None,
        }));
    }
    assert_eq!(opened, [("members", "3 members for 0 instances".to_owned())]);
}

#[test]
fn the_high_water_of_the_outbox_is_told_each_time_it_doubles() {
    let mut bench = Bench::dual();
    let mut told = Vec::new();
    for n in 0..70_u64 {
        let (id, key): (_, Arc<str>) = (OpId(n), format!("key-{n}").into());
        bench.input(Input::Op { id, key, kind: OpKind::Cas });
        bench.input(Input::OpDone { id, side: Side::A, result: Ok(OpEffect::Written(entries(1))) });
        told.extend(bench.out.iter().filter_map(|output| match output {
            Output::Event(MigrationEvent::OutboxHighWater { keys, .. }) => Some(*keys),
            _ => None,
        }));
    }
    assert_eq!(told, [16, 32, 64]);
    assert_eq!(bench.core.status(bench.now).outbox_high_water, 70);
}
