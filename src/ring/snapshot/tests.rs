#![allow(clippy::unwrap_used)]

use super::*;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

const SECOND: Duration = Duration::from_secs(1);

fn options(replication_factor: usize, zone_awareness: bool) -> RingOptions {
    RingOptions { replication_factor, zone_awareness, ..RingOptions::default() }
}

fn instance(zone: &str, tokens: &[u32]) -> Instance {
    Instance { addr: "addr".into(), zone: zone.into(), timestamp: 1000, tokens: tokens.into(), ..Instance::default() }
}

fn ring<const N: usize>(entries: [(&str, Instance); N]) -> Desc {
    Desc { instances: entries.into_iter().map(|(id, entry)| (id.into(), entry)).collect(), ..Desc::default() }
}

fn at(second: u64) -> Duration {
    SECOND * second as u32
}

fn ids(set: &ReplicationSet) -> Vec<&str> {
    set.ids().collect()
}

/// The selection as dskit's text has it, literally: all tokens, every time, with counters by zone name.
fn reference(desc: &Desc, options: &RingOptions, key: u32, op: Operation) -> Vec<String> {
    let mut tokens: Vec<(u32, bool, &str)> = Vec::new();
    for (id, one) in desc.live() {
        tokens.extend(one.tokens.iter().map(|token| (*token, one.state == InstanceState::Leaving, &**id)));
    }
    tokens.sort_unstable();
    tokens.dedup_by_key(|claim| claim.0);
    let start = tokens.iter().position(|(token, _, _)| *token > key).unwrap_or(0);
    tokens.rotate_left(start);
    let mut limit = options.replication_factor;
    let mut found = std::collections::BTreeMap::<&str, usize>::new();
    let mut selected: Vec<&str> = Vec::new();
    for (_, _, id) in tokens {
        let one = &desc.instances[id];
        if selected.len() >= limit {
            break;
        }
        let zoned = options.zone_awareness && !one.zone.is_empty();
        if selected.contains(&id) || (zoned && found.get(&*one.zone).is_some_and(|count| *count >= 1)) {
            continue;
        }
        selected.push(id);
        if op.extends(one.state) {
            limit += 1;
        } else if zoned {
            *found.entry(&one.zone).or_default() += 1;
        }
    }
    selected.into_iter().map(ToOwned::to_owned).collect()
}

#[test]
fn every_look_up_selects_what_the_rules_select_in_random_rings() {
    let mut rng = SmallRng::seed_from_u64(7);
    let states = [
        InstanceState::Active,
        InstanceState::Leaving,
        InstanceState::Pending,
        InstanceState::Joining,
        InstanceState::Left,
    ];
    let mut longest = 0;
    for round in 0..300 {
        let mut desc = Desc::default();
        let busy = rng.random_range(0..3);
        for index in 0..rng.random_range(1..20) {
            let zone = ["a", "b", "c", "d", ""][rng.random_range(0..if round % 5 == 0 { 5 } else { 4 })];
            // Few different tokens, so that some are contested; some instances have none.
            let tokens: Vec<u32> = (0..rng.random_range(0..5)).map(|_| rng.random_range(0..200)).collect();
            let mut one = instance(zone, &tokens);
            if rng.random_range(0..4) < busy {
                one.state = states[rng.random_range(0..5)];
            }
            one.normalize();
            desc.instances.insert(format!("i{index}").into(), one);
        }
        let options = options(rng.random_range(1..6), rng.random());
        let snapshot = Snapshot::build(&desc, &options, at(1000));
        for key in (0..210).chain([u32::MAX]) {
            for op in Operation::ALL {
                let mut scratch = Scratch::default();
                let Some(place) = snapshot.topology.search(key) else { continue };
                let selected = snapshot.topology.replicas(place, op, &mut scratch);
                let names: Vec<&str> = selected.iter().map(|index| &*snapshot.instances[*index as usize].id).collect();
                assert_eq!(names, reference(&desc, &options, key, op), "{options:?} {op:?} {key} {desc:?}");
                longest = longest.max(names.len());
            }
        }
    }
    assert!(longest > 6, "no ring extended much: {longest}");
}

#[test]
fn a_zone_of_many_leaving_instances_is_walked_with_the_same_result() {
    let mut rng = SmallRng::seed_from_u64(1);
    let mut desc = Desc::default();
    for index in 0..900_u32 {
        let tokens: Vec<u32> = (0..16).map(|_| rng.random()).collect();
        let mut one = instance(["a", "b", "c"][index as usize % 3], &tokens);
        if index % 3 == 0 {
            one.state = InstanceState::Leaving;
        }
        one.normalize();
        desc.instances.insert(format!("i{index}").into(), one);
    }
    let options = options(3, true);
    let snapshot = Arc::new(Snapshot::build(&desc, &options, at(1000)));
    for _ in 0..5 {
        let key = rng.random();
        let mut scratch = Scratch::default();
        let place = snapshot.topology.search(key).unwrap();
        let selected = snapshot.topology.replicas(place, Operation::Write, &mut scratch);
        assert_eq!(selected.len(), 302);
        let names: Vec<&str> = selected.iter().map(|index| &*snapshot.instances[*index as usize].id).collect();
        assert_eq!(names, reference(&desc, &options, key, Operation::Write));
        // Reads do not extend on LEAVING and are read from the table.
        assert_eq!(snapshot.get(key, Operation::Read).unwrap().len(), 3);
    }
}

#[test]
fn a_key_equal_to_a_token_belongs_to_the_next_one() {
    let desc = ring([("a", instance("", &[10])), ("b", instance("", &[20]))]);
    let snapshot = Arc::new(Snapshot::build(&desc, &options(1, false), at(1000)));
    let owner = |key| snapshot.get(key, Operation::Write).unwrap().ids().next().unwrap().to_owned();
    assert_eq!([9, 10, 19, 20, u32::MAX, 0].map(owner), ["a", "b", "b", "a", "a", "a"]);
}

#[test]
fn an_empty_ring_and_one_of_tombstones_say_so() {
    let left = ring([("a", Instance { state: InstanceState::Left, ..instance("", &[]) })]);
    for desc in [Desc::default(), left] {
        let snapshot = Arc::new(Snapshot::build(&desc, &options(3, true), at(0)));
        assert_eq!(snapshot.get(1, Operation::Read).unwrap_err(), RingError::Empty);
        assert_eq!(snapshot.get_all(Operation::Read).unwrap_err(), RingError::Empty);
        assert!(snapshot.instances().is_empty());
        assert_eq!(snapshot.next_health_change(), None);
    }
}

#[test]
fn an_instance_is_healthy_up_to_the_timeout_and_not_a_moment_longer() {
    let early = Instance { timestamp: 995, ..instance("", &[1]) };
    let desc = ring([
        ("a", early),
        ("b", instance("", &[2])),
        ("future", Instance { timestamp: i64::MAX, ..instance("", &[3]) }),
    ]);
    let snapshot = Snapshot::build(&desc, &options(3, false), at(1000));
    let fresh = |snapshot: &Snapshot| snapshot.instances().iter().map(|one| one.fresh).collect::<Vec<_>>();
    assert_eq!(fresh(&snapshot), [true; 3]);
    let change = snapshot.next_health_change().unwrap();
    assert_eq!(fresh(&snapshot.with_health(&desc, change - Duration::from_nanos(1))), [true; 3]);
    let later = snapshot.with_health(&desc, change);
    assert_eq!(fresh(&later), [false, true, true]);
    assert_eq!(later.next_health_change(), Some(at(1060) + Duration::from_nanos(1)));
}

#[test]
fn heartbeats_alone_share_the_indexes_and_anything_else_rebuilds_them() {
    let desc = ring([("a", instance("z", &[1, 5])), ("b", instance("y", &[3]))]);
    let first = Arc::new(Snapshot::build(&desc, &options(1, false), at(1000)));
    let edited = |edit: fn(&mut Desc)| {
        let mut desc = desc.clone();
        edit(&mut desc);
        (first.with_health(&desc, at(1030)), Snapshot::build(&desc, first.options(), at(1030)))
    };
    let (beat, _) = edited(|desc| desc.instances.values_mut().for_each(|one| one.timestamp = 1020));
    assert!(Arc::ptr_eq(&beat.topology, &first.topology));
    assert_eq!(beat.instances()[0].timestamp, 1020);
    assert_eq!(beat.digest(), first.digest());
    let edits: [fn(&mut Desc); 10] = [
        |desc| desc.instances.get_mut("a").unwrap().versions = [(1, 2)].into(),
        |desc| desc.instances.get_mut("a").unwrap().state = InstanceState::Leaving,
        |desc| desc.instances.get_mut("a").unwrap().addr = "other".into(),
        |desc| desc.instances.get_mut("a").unwrap().zone = "other".into(),
        |desc| desc.instances.get_mut("a").unwrap().tokens = [1, 6].into(),
        |desc| desc.instances.get_mut("a").unwrap().registered_timestamp = 6,
        |desc| desc.instances.get_mut("a").unwrap().read_only = true,
        |desc| drop(desc.instances.insert("c".into(), instance("", &[9]))),
        |desc| drop(desc.instances.remove("b")),
        |desc| {
            let gone = desc.instances.remove("a").unwrap();
            desc.instances.insert("aa".into(), gone);
        },
    ];
    for (number, edit) in edits.into_iter().enumerate() {
        let (next, rebuilt) = edited(edit);
        assert!(!Arc::ptr_eq(&next.topology, &first.topology), "edit {number}");
        assert_eq!(next.instances(), rebuilt.instances(), "edit {number}");
        assert_ne!(next.digest(), first.digest(), "edit {number}");
        assert_eq!(next.digest(), rebuilt.digest(), "edit {number}");
    }
    let (tombstone, _) = edited(|desc| {
        desc.instances.insert("c".into(), instance("", &[9]).tombstone(5));
    });
    assert!(Arc::ptr_eq(&tombstone.topology, &first.topology));
}

#[test]
fn excluded_zones_are_not_in_the_ring() {
    let desc = ring([("a", instance("z", &[1])), ("b", instance("y", &[3]))]);
    let options = RingOptions { excluded_zones: vec!["z".into()], ..options(1, false) };
    let snapshot = Arc::new(Snapshot::build(&desc, &options, at(1000)));
    assert_eq!(ids(&snapshot.get(0, Operation::Write).unwrap()), ["b"]);
    assert!(snapshot.instance("a").is_none() && snapshot.instance("b").is_some());
}

#[test]
fn ownership_adds_up_to_one_in_each_zone() {
    let half = 1 << 31;
    let desc = ring([
        ("a", instance("z", &[0, half])),
        ("b", instance("z", &[half + (1 << 30)])),
        ("c", instance("y", &[77])),
        ("d", instance("y", &[])),
        // Claims what a has, and loses it.
        ("e", instance("z", &[0])),
    ]);
    let shares = Snapshot::build(&desc, &options(1, true), at(0)).ownership();
    let shares: Vec<(&str, f64)> = shares.iter().map(|(id, share)| (&**id, *share)).collect();
    assert_eq!(shares, [("a", 0.75), ("b", 0.25), ("c", 1.0), ("d", 0.0), ("e", 0.0)]);
}

#[test]
fn owners_changed_counts_the_keys_whose_replicas_differ() {
    let old = ring([("a", instance("", &[1000])), ("b", instance("", &[3000]))]);
    let build = |desc: &Desc| Snapshot::build(desc, &options(1, false), at(0));
    let before = build(&old);
    assert_eq!(before.owners_changed(&before), 0);
    let mut new = old.clone();
    new.instances.insert("aa".into(), instance("", &[2500]));
    // The newcomer takes over the keys 1000..2500.
    assert_eq!(before.owners_changed(&build(&new)), 1500);
    assert_eq!(build(&new).owners_changed(&before), 1500);
    assert_eq!(before.owners_changed(&build(&Desc::default())), 1 << 32);
    // Neither health nor address is ownership.
    let mut moved = old;
    moved.instances.values_mut().for_each(|one| (one.timestamp, one.addr) = (0, "elsewhere".into()));
    assert_eq!(before.owners_changed(&build(&moved)), 0);
}

#[test]
fn owners_changed_agrees_with_asking_for_every_key() {
    let mut rng = SmallRng::seed_from_u64(3);
    let mut random = || {
        let mut desc = Desc::default();
        for index in 0..6 {
            // All tokens are small, so the keys above the largest behave alike and the rest can be asked for.
            let mut one = instance(["a", "b", "c"][index % 3], &[(); 3].map(|()| rng.random_range(0..300)));
            one.normalize();
            desc.instances.insert(format!("i{}", index + rng.random_range(0..2)).into(), one);
        }
        Snapshot::build(&desc, &options(2, true), at(0))
    };
    for _ in 0..50 {
        let (one, other) = (random(), random());
        let names = |snapshot: &Snapshot, key: u32| {
            let mut scratch = Scratch::default();
            let replicas = snapshot.replicas(key, &mut scratch).to_vec();
            replicas.into_iter().map(|index| snapshot.instances[index as usize].id.clone()).collect::<Vec<_>>()
        };
        let differs = |key: u32| u64::from(names(&one, key) != names(&other, key));
        let expected = (0..300).map(differs).sum::<u64>() + differs(300) * ((1 << 32) - 300);
        assert_eq!(one.owners_changed(&other), expected);
    }
}

#[test]
fn a_set_keeps_its_snapshot_and_reads_from_it() {
    let desc = ring([("a", Instance { addr: "1.2.3.4:5".into(), ..instance("z", &[1]) })]);
    let snapshot = Arc::new(Snapshot::build(&desc, &options(1, false), at(1000)));
    let set = snapshot.get(0, Operation::Write).unwrap();
    drop(snapshot);
    let only = set.instances().next().unwrap();
    assert_eq!((&*only.addr, &*only.zone, only.state), ("1.2.3.4:5", "z", InstanceState::Active));
    assert_eq!((set.len(), set.max_errors(), set.is_empty()), (1, 0, false));
}
