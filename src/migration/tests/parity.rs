//! Comparing the stores, the gates that depend on it, and the way back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::super::parity::ParityReport;
use super::super::*;
use super::map::Map;
use super::rules::Bench;
use super::world::{mirror, secs, to};
use crate::clock::Now;
use crate::kv::{StoreError, StoreKind, Value};
use crate::ring::{Desc, Instance, InstanceState};

/// What the two stores hold, for tasks to be answered from.
#[derive(Default)]
pub(super) struct Stores(
    pub(super) [BTreeMap<String, Value>; 2],
    /// The one that keeps neither tombstones nor keys in which nothing is alive.
    pub(super) Option<Side>,
);

/// No work of these tests has as many steps.
const ENDLESS: usize = 2_000;

impl Stores {
    pub(super) fn put(&mut self, side: Side, key: &str, value: &Value) {
        self.0[side.index()].insert(key.to_owned(), value.clone());
    }

    fn answer(&mut self, side: Side, task: &Task, now: Now) -> TaskResult {
        let forgets = self.1 == Some(side);
        let store = &mut self.0[side.index()];
        match task {
            Task::List { prefix } => {
                TaskResult::Keys(store.keys().filter(|key| key.starts_with(prefix)).cloned().collect())
            }
            Task::Get { key } => TaskResult::Value(store.get(&**key).cloned()),
            Task::Exists { key } => TaskResult::Exists(store.contains_key(&**key)),
            Task::Join { key, delta } => {
                let joined = match store.get(&**key) {
                    Some(value) => value.join(delta, now).unwrap().value,
                    None => delta.clone(),
                };
                let joined = if forgets { joined.without_tombstones(None).0 } else { joined };
                if !(forgets && joined.is_empty()) {
                    store.insert(key.to_string(), joined);
                }
                TaskResult::Done
            }
            Task::Delete { key } => {
                store.remove(&**key);
                TaskResult::Done
            }
        }
    }

    /// Answers tasks until there are no more. Returns everything that was said meanwhile.
    pub(super) fn work(&mut self, bench: &mut Bench) -> Vec<Output> {
        let mut said = std::mem::take(&mut bench.out);
        let mut tasks = said.iter().filter_map(task).collect::<Vec<_>>();
        let mut answered = 0;
        while let Some((id, side, task_of)) = tasks.pop() {
            answered += 1;
            assert!(answered < ENDLESS, "it never ends: {task_of:?}");
            let answer = self.answer(side, &task_of, bench.now);
            bench.task_done(id, Ok(answer));
            tasks.extend(bench.out.iter().filter_map(task));
            said.append(&mut bench.out);
        }
        said
    }
}

pub(super) fn task(output: &Output) -> Option<(TaskId, Side, Task)> {
    match output {
        Output::Task { id, side, task } => Some((*id, *side, task.clone())),
        _ => None,
    }
}

pub(super) fn ring(ids: &[&str], now: Now) -> Value {
    let instance = |id: &&str| {
        let token = u32::from(id.as_bytes()[0]) << 24;
        let one = Instance {
            timestamp: now.unix_secs() - 60,
            state: InstanceState::Active,
            tokens: [token].into(),
            ..Instance::default()
        };
        (Arc::from(*id), one)
    };
    Value::new(Desc { instances: ids.iter().map(instance).collect(), ..Desc::default() })
}

pub(super) fn report(said: &[Output]) -> Arc<ParityReport> {
    said.iter()
        .find_map(|output| match output {
            Output::Parity { result: Ok(report), .. } => Some(report.clone()),
            _ => None,
        })
        .expect("a report")
}

pub(super) fn closed(bench: &Bench) -> Vec<&'static str> {
    bench.core.gates(bench.now).iter().filter(|gate| !gate.open).map(|gate| gate.name).collect()
}

/// Mirroring, with a ring of three in the primary, shown to this node and backfilled.
pub(super) fn mirroring(require_parity: bool) -> (Bench, Stores) {
    let mut bench = Bench::comparing(MultiConfig { require_parity, ..MultiConfig::default() }, Now::read());
    let mut stores = Stores::default();
    let value = ring(&["a", "k", "x"], bench.now);
    stores.put(Side::A, "ring", &value);
    bench.input(Input::Delivered { key: "ring".into(), side: Side::A, value: Some(value) });
    bench.input(Input::Members(3));
    bench.runtime(mirror(true));
    stores.work(&mut bench);
    (bench, stores)
}

#[test]
fn the_stores_are_read_primary_secondary_primary_and_compared() {
    let mut bench = Bench::new();
    let mut stores = Stores::default();
    stores.put(Side::A, "ring", &ring(&["a", "k", "x"], bench.now));
    stores.put(Side::B, "ring", &ring(&["a", "k"], bench.now));
    stores.put(Side::A, "only-here", &Map::one("n", 1, Some(1)).value());
    stores.put(Side::B, "only-there", &Map::one("n", 1, Some(1)).value());
    stores.put(Side::A, "map", &Map::one("n", 2, Some(2)).value());
    stores.put(Side::B, "map", &Map::one("n", 1, Some(1)).value());
    bench.input(Input::ParityAsked { id: 7 });
    let said = stores.work(&mut bench);
    let report = report(&said);
    assert!(said.iter().any(|output| matches!(output, Output::Parity { ids, .. } if *ids == [7])));
    assert!(report.thorough && !report.equal && !report.secondary_has_all);
    assert_eq!((report.keys.primary, report.keys.secondary), (3, 3));
    assert_eq!(
        (&report.only_primary.ids[..], &report.only_secondary.ids[..]),
        (&["only-here".into()][..], &["only-there".into()][..])
    );
    assert_eq!(report.rings["ring"].only_primary.ids, ["x"]);
    assert!(report.ownership_delta > 0.01, "{}", report.ownership_delta);
    assert_eq!((report.values["map"].secondary_lacks, report.values["map"].primary_lacks), (1, 0));
    let reads = said.iter().filter_map(task).filter(|(_, _, task)| matches!(task, Task::Get { .. }));
    let sides: Vec<Side> = reads
        .filter(|(_, _, task)| matches!(task, Task::Get { key } if &**key == "ring"))
        .map(|(_, side, _)| side)
        .collect();
    assert_eq!(sides, [Side::A, Side::B, Side::A]);
    assert!(serde_json::to_value(&*report).unwrap()["rings"]["ring"]["digest"]["primary"].is_string());
}

#[test]
fn a_store_that_cannot_be_read_is_told_to_who_asked() {
    let mut bench = Bench::new();
    bench.input(Input::ParityAsked { id: 1 });
    let (id, _, _) = bench.tasks()[0].clone();
    let down = StoreError::Unavailable { store: StoreKind::Consul, reason: "down".into() };
    bench.task_done(id, Err(down));
    assert!(bench.out.iter().any(|output| matches!(output, Output::Parity { ids, result: Err(_) } if *ids == [1])));
    // Later answers of the same comparison mean nothing, and the next question is answered.
    bench.input(Input::ParityAsked { id: 2 });
    let said = Stores::default().work(&mut bench);
    assert!(report(&said).equal);
}

#[test]
fn while_mirroring_the_other_store_is_compared_all_the_time_at_the_cost_of_one_read_there() {
    let (mut bench, mut stores) = mirroring(false);
    let parity = bench.core.status(bench.now).parity.unwrap();
    assert!(parity.equal && parity.secondary_has_all);
    bench.wait(secs(5));
    let tasks = bench.tasks();
    assert!(matches!(&tasks[..], [(_, Side::B, Task::Get { .. })]), "{tasks:?}");
    // Somebody takes an instance out of the other store.
    stores.put(Side::B, "ring", &ring(&["a", "k"], bench.now));
    let said = stores.work(&mut bench);
    let lost = |output: &Output| matches!(output, Output::Event(MigrationEvent::ParityLost { ownership_delta, .. }) if *ownership_delta > 0.0);
    assert!(said.iter().any(lost), "{said:?}");
    assert!(!bench.core.status(bench.now).parity.unwrap().secondary_has_all);
    assert_eq!(closed(&bench), ["parity"]);
    stores.put(Side::B, "ring", &ring(&["a", "k", "x"], bench.now));
    bench.wait(secs(5));
    let said = stores.work(&mut bench);
    assert!(said.iter().any(|output| matches!(output, Output::Event(MigrationEvent::ParityReached { .. }))));
    assert!(closed(&bench).is_empty());
}

/// Mirroring, a map with another entry in each store that the other lacks, and a question that was asked.
fn asked_about_maps() -> (Bench, Stores) {
    let (mut bench, mut stores) = mirroring(false);
    stores.put(Side::A, "map", &Map::one("n", 2, Some(2)).value());
    stores.put(Side::B, "map", &Map::one("m", 1, Some(1)).value());
    bench.input(Input::ParityAsked { id: 7 });
    let said = stores.work(&mut bench);
    assert!(!said.iter().any(|output| matches!(output, Output::Parity { .. })), "the writes may be on their way");
    (bench, stores)
}

#[test]
fn values_that_are_on_their_way_are_no_difference_however_much_is_written() {
    let (mut bench, mut stores) = asked_about_maps();
    // Both arrive, and while we look again somebody has written something else.
    let both = Map::one("n", 2, Some(2)).value().join(&Map::one("m", 1, Some(1)).value(), bench.now).unwrap().value;
    let newer = both.join(&Map::one("o", 3, Some(3)).value(), bench.now).unwrap().value;
    stores.put(Side::A, "map", &newer);
    stores.put(Side::B, "map", &both);
    bench.wait(Duration::from_millis(250));
    let report = report(&stores.work(&mut bench));
    assert!(report.equal && report.secondary_has_all, "{report:?}");
    assert_eq!((report.keys.primary, report.keys.secondary), (2, 2));
}

#[test]
fn values_that_do_not_arrive_are_reported_after_a_while() {
    let (mut bench, mut stores) = asked_about_maps();
    let mut said = Vec::new();
    for _ in 0..5 {
        bench.wait(secs(4));
        said = stores.work(&mut bench);
        if said.iter().any(|output| matches!(output, Output::Parity { .. })) {
            break;
        }
    }
    let report = report(&said);
    assert!(!report.equal && !report.secondary_has_all);
    assert_eq!((report.values["map"].secondary_lacks, report.values["map"].primary_lacks), (1, 1));
}

/// A comparison, with the time in which values that differ are looked at again.
pub(super) fn compare_for_good(bench: &mut Bench, stores: &mut Stores) {
    for _ in 0..5 {
        bench.wait(secs(5));
        stores.work(bench);
    }
}

#[test]
fn what_the_other_store_lost_again_is_copied_from_the_primary_again() {
    let (mut bench, mut stores) = mirroring(false);
    let once = Map::one("n", 2, Some(2)).value();
    stores.put(Side::A, "map", &once);
    bench.input(Input::Delivered { key: "map".into(), side: Side::A, value: Some(once.clone()) });
    // A snapshot is restored there: one key is gone, another one is older, and an instance is missing.
    for (ring_there, map_there) in [(None, None), (Some(ring(&["a", "k"], bench.now)), Some(Map::default().value()))] {
        stores.0[Side::B.index()].clear();
        for (key, there) in [("ring", ring_there), ("map", map_there)] {
            if let Some(there) = there {
                stores.put(Side::B, key, &there);
            }
        }
        compare_for_good(&mut bench, &mut stores);
        let there = &stores.0[Side::B.index()];
        assert_eq!(there["ring"].downcast_ref::<Desc>().unwrap().live().count(), 3);
        assert_eq!(Map::of(&there["map"]), Map::of(&once));
    }
    // What the primary does not have any more is not brought back from memory.
    stores.0.iter_mut().for_each(|store| drop(store.remove("map")));
    compare_for_good(&mut bench, &mut stores);
    assert!(!stores.0[Side::B.index()].contains_key("map"));
}

#[test]
fn a_key_that_another_node_deleted_closes_no_gate_for_good_and_keeps_no_node_from_flipping() {
    let (mut bench, mut stores) = mirroring(true);
    // Written here, and so known; nobody watches it.
    bench.input(Input::Op { id: OpId(9), key: "map".into(), kind: OpKind::Cas });
    let written = Map::one("n", 1, Some(1)).value();
    stores.put(Side::A, "map", &written);
    bench.input(Input::OpDone { id: OpId(9), side: Side::A, result: Ok(OpEffect::Written(written.clone())) });
    stores.work(&mut bench);
    compare_for_good(&mut bench, &mut stores);
    assert!(closed(&bench).is_empty());
    stores.0.iter_mut().for_each(|store| drop(store.remove("map")));
    compare_for_good(&mut bench, &mut stores);
    assert!(closed(&bench).is_empty(), "{:?}", bench.core.gates(bench.now));
    bench.runtime(to(StoreKind::Memberlist));
    stores.work(&mut bench);
    assert_eq!(bench.view().primary, Side::B);
    assert!(!stores.0[Side::B.index()].contains_key("map"));
}

/// Goes on until the primary is asked for this key, and leaves that without an answer.
fn asked_for(bench: &mut Bench, stores: &mut Stores, wanted: &str) -> TaskId {
    for _ in 0..20 {
        bench.wait(secs(1));
        let mut tasks = bench.tasks();
        while let Some((id, side, asked)) = tasks.pop() {
            if side == Side::A && matches!(&asked, Task::Get { key } if &**key == wanted) {
                return id;
            }
            let answer = stores.answer(side, &asked, bench.now);
            bench.task_done(id, Ok(answer));
            tasks.extend(bench.tasks());
        }
    }
    panic!("nobody asks the primary for {wanted}")
}

#[test]
fn what_is_heard_of_a_key_while_the_primary_is_asked_for_it_is_not_forgotten() {
    for again in [false, true] {
        let (mut bench, mut stores) = mirroring(true);
        let value = Map::one("n", 1, Some(1)).value();
        let shown = Input::Delivered { key: "map".into(), side: Side::A, value: Some(value.clone()) };
        bench.input(shown.clone());
        let id = asked_for(&mut bench, &mut stores, "map");
        if again {
            // Somebody has created it again, as it was before, and this node heard of it first.
            bench.input(shown);
        }
        bench.task_done(id, Ok(TaskResult::Value(None)));
        assert_eq!(bench.core.durable.known.contains_key("map"), again);
    }
}

#[test]
fn every_gate_closes_for_its_reason() {
    let (mut bench, mut stores) = mirroring(true);
    assert!(closed(&bench).is_empty());
    bench.input(Input::Members(2));
    assert_eq!(closed(&bench), ["members"], "two members for three instances");
    bench.input(Input::Members(4));
    // A write that the other store does not take.
    bench.op(OpKind::Cas);
    bench.done(Side::A, Ok(OpEffect::Written(ring(&["b"], bench.now))));
    bench.wait(secs(3));
    assert_eq!(closed(&bench), ["outbox"]);
    bench.wait(secs(15));
    assert_eq!(closed(&bench), ["outbox", "lag"]);
    bench.wait(secs(10));
    assert_eq!(closed(&bench), ["outbox", "lag", "parity"], "nothing was compared for a while either");
    stores.work(&mut bench);
    bench.wait(secs(60));
    stores.work(&mut bench);
    bench.runtime(mirror(false));
    assert!(closed(&bench).contains(&"mirror") && closed(&bench).contains(&"backfill"), "{:?}", closed(&bench));
}

#[test]
fn instances_that_only_the_other_store_has_are_no_reason_to_wait_but_to_ask() {
    let (mut bench, mut stores) = mirroring(true);
    let warning = |bench: &Bench| bench.core.gates(bench.now).into_iter().find_map(|gate| gate.warning);
    assert_eq!(warning(&bench), None);
    stores.put(Side::B, "ring", &ring(&["a", "c", "k", "x"], bench.now));
    bench.wait(secs(5));
    stores.work(&mut bench);
    assert!(closed(&bench).is_empty());
    let warning = warning(&bench).unwrap();
    assert!(
        warning.starts_with("memberlist has 1 instances that consul has not: a flip would give them "),
        "{warning}"
    );
    assert!(!warning.contains(" 0.00 %"), "{warning}");
}

#[test]
fn a_node_that_has_to_be_sure_stays_says_why_and_flips_by_itself_when_the_gates_open() {
    let (mut bench, mut stores) = mirroring(true);
    stores.put(Side::B, "ring", &ring(&["a"], bench.now));
    bench.wait(secs(5));
    stores.work(&mut bench);
    bench.runtime(to(StoreKind::Memberlist));
    assert_eq!(bench.view().primary, Side::A);
    assert!(bench.said(|event| matches!(event, MigrationEvent::FlipRefused { .. })));
    let reason = bench.core.status(bench.now).pending_flip.unwrap().reason;
    assert!(reason.contains("lacks 0 keys, 2 instances"), "{reason}");
    // Told once for each set of reasons, not once a comparison.
    bench.wait(secs(5));
    let said = stores.work(&mut bench);
    assert!(!said.iter().any(|output| matches!(output, Output::Event(MigrationEvent::FlipRefused { .. }))));
    // What is missing arrives.
    stores.put(Side::B, "ring", &ring(&["a", "k", "x"], bench.now));
    bench.wait(secs(5));
    stores.work(&mut bench);
    assert_eq!(bench.view().primary, Side::B);
}

#[test]
fn a_node_that_has_to_be_sure_may_leave_a_primary_that_is_away_when_the_other_has_all_that_it_saw() {
    let (mut bench, mut stores) = mirroring(true);
    // Nothing of the primary answers from here on; the comparison needs only the other store.
    bench.wait(secs(5));
    stores.work(&mut bench);
    bench.runtime(to(StoreKind::Memberlist));
    let down = StoreError::Unavailable { store: StoreKind::Consul, reason: "down".into() };
    for _ in 0..8 {
        let tasks = bench.tasks();
        if tasks.is_empty() {
            break;
        }
        for (id, side, task) in tasks {
            let result = if side == Side::A { Err(down.clone()) } else { Ok(stores.answer(side, &task, bench.now)) };
            bench.task_done(id, result);
        }
    }
    assert_eq!(bench.view().primary, Side::B);
}

#[test]
fn the_way_back_is_safe_while_the_old_store_follows_and_grows_stale_when_it_does_not() {
    let (mut bench, mut stores) = mirroring(false);
    assert_eq!(bench.core.rollback(bench.now), Rollback::Safe, "before the flip there is nothing to go back from");
    bench.runtime(to(StoreKind::Memberlist));
    stores.work(&mut bench);
    assert_eq!(bench.view().primary, Side::B);
    bench.input(Input::Delivered { key: "ring".into(), side: Side::B, value: Some(ring(&["a", "k", "x"], bench.now)) });
    bench.wait(secs(31));
    stores.work(&mut bench);
    assert_eq!(bench.core.rollback(bench.now), Rollback::Safe);
    // Consul is away; a write waits for it.
    bench.op(OpKind::Cas);
    bench.done(Side::B, Ok(OpEffect::Written(ring(&["b"], bench.now))));
    let down = StoreError::Unavailable { store: StoreKind::Consul, reason: "down".into() };
    for (id, _, _) in bench.tasks() {
        bench.task_done(id, Err(down.clone()));
    }
    bench.wait(secs(40));
    let Rollback::Stale { age_ms } = bench.core.rollback(bench.now) else { panic!("not stale") };
    assert!((35_000..=45_000).contains(&age_ms), "{age_ms}");
    // It is back and gets everything.
    stores.work(&mut bench);
    bench.wait(secs(31));
    stores.work(&mut bench);
    assert_eq!(bench.core.rollback(bench.now), Rollback::Safe);
    // Without the mirror it grows old from now on.
    bench.runtime(mirror(false));
    bench.wait(Duration::from_secs(9));
    assert!(matches!(bench.core.rollback(bench.now), Rollback::Stale { age_ms: 9_000..=10_000 }));
}

#[test]
fn a_store_that_is_being_given_up_is_no_way_back() {
    let bench = Bench::with(MultiConfig { teardown: true, ..MultiConfig::default() });
    assert_eq!(bench.core.rollback(bench.now), Rollback::Impossible);
    let other = Bench::with(MultiConfig::default());
    let with = MigrationStatus { rollback: Rollback::Safe, ..bench.core.status(bench.now) };
    assert_eq!(with, other.core.status(other.now), "it changes nothing else");
    assert_eq!(
        serde_json::to_value(Rollback::Stale { age_ms: 5 }).unwrap(),
        serde_json::json!({ "state": "stale", "age_ms": 5 })
    );
}
