//! The store of one copy, late, down, set back, or without the place of a watch; and keys that only it has.

use super::*;
use crate::kv::StoreKind::Etcd;
use crate::migration::MigrationEvent;

#[test]
pub(super) fn two_percent_of_consuls_answers_are_late_and_nobody_is_marked_as_left() {
    let all = seeds("late answers of Consul", |seed| {
        let mut world = moving(seed, 4, 20_000);
        // And many more, in every second run.
        world.late_permille = [20, 200][(seed % 2) as usize];
        // Instances come all the time: a late mirror write that knows nothing of them must not remove them.
        for second in 6..FLIP + 24 {
            let n = any(&mut world);
            world.plan(secs(second), move |world| {
                world.put(n, RING, &format!("new-{second}"));
            });
        }
        world.run_until(secs(FLIP + 26));
        let mut world = ends(world, Side::B);
        for side in [Side::A, Side::B] {
            let ring = world.raw(0, side, RING).unwrap();
            let live = ring.0.values().filter(|(_, live)| live.is_some()).count();
            if live != ring.0.len() {
                world.violations.push(format!("{side:?}: {live} of {} are live", ring.0.len()));
            }
        }
        world
    });
    assert!(all.count("late answer") > 1000 && all.false_left == 0, "{all:?}");
}

/// The phases' boundaries: mirror on, the backfill, the flip, within its skew, mirror off and on, the way back.
const BOUNDARIES: [u64; 10] = [7, 8, 9, 15, 16, 17, 19, 25, 33, 34];

fn down_at_each_boundary(scenario: &'static str, down: [bool; 2]) -> Tally {
    seeds(scenario, |seed| {
        let mut world = moving(seed, 3, 4000);
        let at = secs(BOUNDARIES[(seed % 10) as usize]) + world.upto(1000);
        let lasts = millis(500) + world.upto(14_000);
        world.plan(secs(25), |world| world.runtime_all(mirror(false)));
        world.plan(secs(26), |world| world.runtime_all(mirror(true)));
        for n in 0..3 {
            let back = secs(34) + world.upto(3000);
            world.plan(back, move |world| world.runtime(n, to(Consul)));
            if down[1] {
                world.gossip_down(n, at, lasts);
            }
        }
        if down[0] {
            world.consul_down(at, lasts);
        }
        if !down[1] {
            // A store that is down says so. One that says nothing is waited for, by its client's timeout.
            world.late_permille = 0;
            // From the second heartbeat after the mirror is on.
            heartbeats_stay_fresh_in_gossip(&mut world, 17, 25);
        }
        // Writes that are on their way when it goes down.
        for n in 0..3 {
            world.plan(at - millis(8), move |world| {
                world.put(n, RING, &format!("last-{n}"));
            });
        }
        world.run_until(secs(44));
        ends(world, Side::A)
    })
}

/// Looks each second, while everything is mirrored, whether a node's own heartbeat grows old in its gossip store.
fn heartbeats_stay_fresh_in_gossip(world: &mut World, from: u64, until: u64) {
    for second in from..until {
        world.plan(secs(second), |world| {
            for n in 0..world.nodes.len() {
                let ring = world.raw(n, Side::B, RING).unwrap_or_default();
                // Its period, and the time that an unanswered write is waited for.
                if world.age(&ring, n) > secs(5 + 3) {
                    world.violations.push(format!("at {:?} node {n} has not been heard of in gossip", world.at));
                }
            }
        });
    }
}

#[test]
pub(super) fn the_primary_is_down_at_each_phase_boundary() {
    let all = down_at_each_boundary("Consul down at each boundary", [true, false]);
    assert!(all.count("Consul down") == SEEDS && all.count("refused by a store that is down") > 1000, "{all:?}");
    assert!(all.count("write of unknown outcome") > SEEDS / 4, "{all:?}");
}

#[test]
pub(super) fn the_secondary_is_down_at_each_phase_boundary() {
    let all = down_at_each_boundary("gossip store down at each boundary", [false, true]);
    assert!(all.count("gossip store of a node down") == 3 * SEEDS, "{all:?}");
    assert!(all.count("refused by a store that is down") > 1000, "{all:?}");
}

#[test]
pub(super) fn both_stores_are_down_at_each_phase_boundary() {
    let all = down_at_each_boundary("both stores down at each boundary", [true, true]);
    assert!(all.count("Consul down") == SEEDS && all.count("gossip store of a node down") == 3 * SEEDS, "{all:?}");
}

/// Consul goes back to what it was some seconds before, in one of the phases.
fn set_back(scenario: &'static str, reset: bool) -> Tally {
    seeds(scenario, |seed| {
        let mut world = moving(seed, 3, 6000);
        // Before the mirror, while both are written, within the skew of the flip, after it.
        let phase = seed % 4;
        let at = secs([5, MIRROR + 5, FLIP + 2, FLIP + 10][phase as usize]) + world.upto(2000);
        let age = secs(1) + world.upto(4000);
        world.plan(at - age, move |world| {
            let (snapshot, latest) = (world.consul.snapshot(), world.consul.latest());
            world.plan(at, move |world| {
                assert!(world.consul.latest() >= latest);
                world.restore_consul(snapshot, reset);
            });
        });
        // Written once, and in the snapshot or not.
        let n = any(&mut world);
        let once = at - age + world.upto(u64::try_from(age.as_millis()).unwrap());
        world.plan(once.saturating_sub(secs(1)), move |world| {
            world.put(n, STATIC, "between");
        });
        world.run_until(at + secs(35));
        if phase > 0 && world.tally.taken > 0 {
            world.violations.push(format!("{} acknowledged writes went with the snapshot", world.tally.taken));
        }
        ends(world, Side::B)
    })
}

#[test]
pub(super) fn consul_is_set_back_to_a_snapshot() {
    let all = set_back("Consul set back to a snapshot", false);
    assert_eq!(all.count("snapshot restored"), SEEDS);
}

#[test]
pub(super) fn consuls_index_begins_anew() {
    let all = set_back("Consul's index begins anew", true);
    assert_eq!(all.count("index reset"), SEEDS);
}

#[test]
pub(super) fn etcd_compacts_while_it_is_watched() {
    let all = seeds("etcd compacts while it is watched", |seed| {
        let etcd = MultiConfig { primary: Etcd, ..config() };
        let mut world = fleet_with(seed, 3, FAULT.get(), &etcd, secs(5));
        moves(&mut world, 6000);
        // Up to another one in every run, after which nobody writes the key any more.
        let losses = [4, MIRROR, FLIP - 3, FLIP, FLIP + 14];
        for second in losses.into_iter().take(1 + (seed % 5) as usize) {
            let n = any(&mut world);
            let at = secs(second) + world.upto(2000);
            let lasts = secs(1) + world.upto(6000);
            world.plan(at, move |world| world.lose_watches(n, lasts));
            // Written once, while that watch is gone.
            let m = any(&mut world);
            world.plan(at + millis(500), move |world| {
                world.put(m, STATIC, &format!("unseen-{second}"));
            });
        }
        world.plan(secs(FLIP + 12), |world| world.runtime_all(to(Etcd)));
        world.run_until(secs(FLIP + 24));
        ends(world, Side::A)
    });
    assert_eq!(all.count("watches that lost their place"), 3 * SEEDS);
    assert!(all.count("change missed by a watch that lost its place") > 1000, "{all:?}");
}

#[test]
pub(super) fn a_key_that_nobody_writes_or_watches_moves_too() {
    let copied = Cell::new(0);
    seeds("a key that nobody writes", |seed| {
        let mut world = moving(seed, 3, 3000);
        for key in 0..5 {
            world.put(key % 3, &format!("collectors/elected/{key}"), "replica");
        }
        if seed % 2 == 0 {
            world.consul_down(secs(MIRROR), secs(5));
        }
        world.run_until(secs(FLIP + 6));
        for event in world.nodes.iter().flat_map(|node| &node.events) {
            if let MigrationEvent::BackfillFinished { joined, .. } = event {
                copied.set(copied.get() + joined);
            }
        }
        ends(world, Side::B)
    });
    assert!(copied.get() as u64 > 5 * SEEDS, "{}", copied.get());
}
