//! Copying what the other store lacks, where that store does not keep what it takes.

use super::super::lacks::lacks;
use super::super::*;
use super::map::Map;
use super::parity::{Stores, closed, compare_for_good, mirroring, ring, task};
use super::rules::Bench;
use super::world::{mirror, secs};
use crate::clock::Now;
use crate::kv::{StoreError, StoreKind, Value};
use crate::ring::Desc;

fn live(name: &str, stamp: u64) -> Value {
    Map::one(name, stamp, Some(stamp)).value()
}

fn with_tombstone(name: &str) -> Value {
    let mut map = Map::one("here", 1, Some(1));
    map.merge(&Map::one(name, 2, None));
    map.value()
}

fn verified(bench: &Bench) -> bool {
    bench.core.status(bench.now).backfill.verified
}

/// Turns the mirror on between these stores.
fn backfilled(stores: &mut Stores) -> Bench {
    let mut bench = Bench::comparing(MultiConfig::default(), Now::read());
    for (key, value) in &stores.0[Side::A.index()] {
        bench.input(Input::Delivered { key: key.as_str().into(), side: Side::A, value: Some(value.clone()) });
    }
    bench.input(Input::Members(3));
    bench.runtime(mirror(true));
    stores.work(&mut bench);
    bench
}

#[test]
fn tombstones_and_emptiness_that_the_other_store_does_not_keep_are_not_waited_for() {
    let mut stores = Stores(Default::default(), Some(Side::B));
    stores.put(Side::A, "ring", &ring(&["a", "k"], Now::read()));
    stores.put(Side::A, "empty", &Map::default().value());
    stores.put(Side::A, "tombstones", &Map::one("gone", 2, None).value());
    stores.put(Side::A, "some", &with_tombstone("gone"));
    stores.put(Side::B, "some", &live("here", 1));
    let mut bench = backfilled(&mut stores);
    assert!(verified(&bench));
    assert!(closed(&bench).is_empty(), "{:?}", closed(&bench));
    let report = bench.core.status(bench.now).parity.unwrap();
    assert!(report.equal && report.secondary_has_all, "{report:?}");
    assert_eq!(stores.0[Side::B.index()].keys().collect::<Vec<_>>(), ["ring", "some"]);
    // Nor do later comparisons begin it again.
    compare_for_good(&mut bench, &mut stores);
    assert!(closed(&bench).is_empty() && bench.core.outbox_len() == 0);
}

#[test]
fn a_tombstone_of_what_is_alive_in_the_other_store_is_copied() {
    let mut stores = Stores::default();
    stores.put(Side::A, "map", &with_tombstone("gone"));
    stores.put(Side::B, "map", &live("gone", 1));
    let bench = backfilled(&mut stores);
    assert!(verified(&bench));
    assert_eq!(Map::of(&stores.0[Side::B.index()]["map"]), Map::of(&with_tombstone("gone")));

    // Also where it removes what is there and is itself not kept.
    let mut stores = Stores(Default::default(), Some(Side::B));
    stores.put(Side::A, "map", &with_tombstone("gone"));
    stores.put(Side::B, "map", &live("gone", 1));
    assert!(verified(&backfilled(&mut stores)));
    assert_eq!(Map::of(&stores.0[Side::B.index()]["map"]), Map::of(&live("here", 1)));
}

#[test]
fn what_the_other_store_takes_and_does_not_have_is_sent_again_later_and_later() {
    let mut bench = Bench::new();
    bench.runtime(mirror(true));
    let list = bench.tasks()[0].0;
    bench.task_done(list, Ok(TaskResult::Keys(vec!["map".into()])));
    let mut sent = 0;
    let mut took = Vec::new();
    for second in 0..300 {
        // The primary has it, the other store takes everything and has nothing.
        while let Some((id, side, asked)) = bench.out.iter().find_map(task) {
            bench.task_done(
                id,
                Ok(match asked {
                    Task::Get { .. } => TaskResult::Value((side == Side::A).then(|| live("a", 1))),
                    _ => {
                        sent += 1;
                        took.push(second);
                        TaskResult::Done
                    }
                }),
            );
            assert!(sent < 100, "without a pause: {took:?}");
        }
        bench.wait(secs(1));
    }
    assert!((8..=30).contains(&sent), "at these seconds: {took:?}");
    assert!(!verified(&bench) && closed(&bench).contains(&"backfill"));
    // It stays there.
    let mut stores = Stores::default();
    stores.put(Side::A, "map", &live("a", 1));
    bench.wait(secs(30));
    stores.work(&mut bench);
    assert!(verified(&bench));
}

#[test]
fn left_instances_that_are_not_kept_do_not_keep_a_flipped_ring_from_going_back() {
    let (mut bench, mut stores) = mirroring(false);
    stores.1 = Some(Side::A);
    bench.runtime(super::world::to(StoreKind::Memberlist));
    stores.work(&mut bench);
    assert_eq!(bench.view().primary, Side::B);
    let now = bench.now;
    let mut desc = ring(&["a", "k", "x"], now).downcast_ref::<Desc>().unwrap().clone();
    let tombstone = desc.instances["x"].tombstone(now.unix_secs() - 30);
    desc.instances.insert("x".into(), tombstone);
    let value = Value::new(desc);
    stores.put(Side::B, "ring", &value);
    bench.input(Input::Delivered { key: "ring".into(), side: Side::B, value: Some(value) });
    bench.core.start_backfill();
    bench.wait(secs(1));
    stores.work(&mut bench);
    for _ in 0..10 {
        bench.wait(secs(10));
        stores.work(&mut bench);
    }
    assert!(verified(&bench));
    assert_eq!(bench.core.rollback(bench.now), Rollback::Safe);
    assert_eq!(stores.0[Side::A.index()]["ring"].downcast_ref::<Desc>().unwrap().instances.len(), 2);
}

fn seen(found: Option<&Map>, wanted: &Map) -> Option<Vec<String>> {
    let lack = lacks(found.map(Map::value).as_ref(), &wanted.value(), Now::read());
    lack.map(|lack| lack.seen.into_iter().collect())
}

#[test]
fn a_tombstone_counts_where_it_hides_something_and_nowhere_else() {
    let (alive, tombstone, other) = (Map::one("a", 1, Some(1)), Map::one("a", 2, None), Map::one("b", 1, Some(1)));
    assert_eq!(seen(Some(&alive), &tombstone), Some(vec!["a".to_owned()]));
    assert_eq!(seen(Some(&other), &tombstone), Some(vec![]), "it may be sent, and nobody waits for it");
    assert_eq!(seen(Some(&tombstone), &alive), None);
    assert_eq!(seen(None, &tombstone), None);
    assert_eq!(seen(None, &Map::default()), None);
    assert_eq!(seen(None, &alive), Some(vec!["a".to_owned()]));
    assert_eq!(seen(Some(&other), &alive), Some(vec!["a".to_owned()]));
}

#[test]
fn a_key_that_cannot_be_read_is_named_and_keeps_no_other_waiting() {
    let mut bench = Bench::with(MultiConfig::default());
    bench.runtime(mirror(true));
    let keys = ["a.bak", "b", "c"];
    let unreadable = || StoreError::Decode { key: "a.bak".into(), reason: "no ring".into() };
    let mut tasks = bench.tasks();
    let (mut asked, mut told) = (0, 0);
    for second in 0..120 {
        while let Some((id, side, task)) = tasks.pop() {
            let answer = match task {
                Task::List { .. } => Ok(TaskResult::Keys(keys.map(str::to_owned).to_vec())),
                Task::Get { key } if &*key == "a.bak" && side == Side::A => {
                    asked += 1;
                    Err(unreadable())
                }
                // The other store is away at first.
                Task::Get { .. } if side == Side::B && second < 60 => {
                    Err(StoreError::Unavailable { store: StoreKind::Memberlist, reason: "down".into() })
                }
                Task::Get { .. } => Ok(TaskResult::Value(Some(live("n", 1)))),
                other => panic!("{other:?}"),
            };
            bench.task_done(id, answer);
            tasks.extend(bench.tasks());
            told += usize::from(
                bench.said(|event| matches!(event, MigrationEvent::KeyNotCopied { key, .. } if key == "a.bak")),
            );
            assert!(asked < 60, "without a pause");
        }
        bench.wait(secs(1));
        tasks.extend(bench.tasks());
    }
    let status = bench.core.status(bench.now);
    assert_eq!((status.backfill.running, status.backfill.done, status.backfill.keys), (true, 2, 3));
    assert_eq!(told, 1);
    let reason = bench.core.gates(bench.now).into_iter().find(|gate| gate.name == "backfill").unwrap().reason;
    assert_eq!(
        reason,
        "the backfill of memberlist runs: 2 of 3 keys; it waits for \"a.bak\" (the stored value of key \"a.bak\" does not \
         decode: no ring)"
    );
}

#[test]
fn a_key_that_a_store_leaves_unanswered_does_not_keep_the_others_waiting() {
    let mut bench = Bench::with(MultiConfig::default());
    bench.runtime(mirror(true));
    let mut tasks = bench.tasks();
    for second in 0..300 {
        while let Some((id, _, task)) = tasks.pop() {
            let answer = match task {
                Task::List { .. } => Ok(TaskResult::Keys(vec!["a".into(), "b".into(), "c".into()])),
                // At first it answers for none.
                Task::Get { key } if &*key == "a" || second < 10 => {
                    Err(StoreError::Timeout { store: StoreKind::Consul, after: secs(2) })
                }
                _ => Ok(TaskResult::Value(Some(live("n", 1)))),
            };
            bench.task_done(id, answer);
            tasks.extend(bench.tasks());
        }
        bench.wait(secs(1));
        tasks.extend(bench.tasks());
    }
    assert_eq!(bench.core.status(bench.now).backfill.done, 2);
}
