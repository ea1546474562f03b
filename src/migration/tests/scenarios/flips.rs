//! Flips that do not go together, are taken back, or meet other changes.

use rand::RngExt as _;

use super::super::world::Want;
use super::*;

/// All nodes flip within a time; the figures, and the time between the first flip and the last over all runs.
fn skewed(scenario: &'static str, skew: u64) {
    let spread = Cell::new(Duration::ZERO);
    let all = seeds(scenario, |seed| {
        let heartbeat = secs(if skew > 100 { 40 } else { 5 });
        let mut world = fleet_with(seed, 3, FAULT.get(), &config(), heartbeat);
        if skew > 100 {
            world.calm = [secs(50), secs(28)];
        }
        moves(&mut world, skew * 1000);
        let mut flipped = [None; 3];
        while flipped.iter().any(Option::is_none) && world.at < secs(FLIP + skew + 60) {
            world.run_until(world.at + secs(1));
            for (n, at) in flipped.iter_mut().enumerate() {
                if at.is_none() && world.nodes[n].view.primary == Side::B {
                    *at = Some(world.at);
                }
            }
        }
        let times = flipped.iter().flatten();
        spread.set(spread.get().max(*times.clone().max().unwrap() - *times.min().unwrap()));
        ends(world, Side::B)
    });
    assert_eq!(all.flips, 3 * SEEDS);
    assert!(spread.get() >= secs(skew * 8 / 10), "{:?}", spread.get());
    assert!(all.acked > 4_000 && all.count("late answer") > 100, "{all:?}");
}

#[test]
pub(super) fn nodes_flip_together() {
    skewed("flip skew 0 s", 0);
}

#[test]
pub(super) fn nodes_flip_within_10_seconds() {
    skewed("flip skew 10 s", 10);
}

#[test]
pub(super) fn nodes_flip_within_100_seconds() {
    skewed("flip skew 100 s", 100);
}

#[test]
pub(super) fn nodes_flip_within_600_seconds() {
    skewed("flip skew 600 s", 600);
}

#[test]
pub(super) fn a_rollback_at_half_way() {
    let all = seeds("rollback at half way", |seed| {
        let mut world = moving(seed, 4, 30_000);
        world.plan(secs(FLIP + 15), |world| {
            let flipped = world.nodes.iter().filter(|node| node.view.primary == Side::B).count();
            if (1..4).contains(&flipped) {
                world.tally.fault("rollback with some nodes flipped");
            }
        });
        for n in 0..4 {
            let at = secs(FLIP + 15) + world.upto(10_000);
            world.plan(at, move |world| world.runtime(n, to(Consul)));
            // Those that had not flipped yet do not flip later.
            world.plan(secs(FLIP + 30), move |world| world.runtime(n, to(Consul)));
        }
        world.run_until(secs(FLIP + 32));
        ends(world, Side::A)
    });
    assert!(all.count("rollback with some nodes flipped") > 150 && all.flips > 600, "{all:?}");
}

#[test]
pub(super) fn two_coordinators_that_nodes_hear_in_different_orders() {
    let all = seeds("two coordinators", |seed| {
        let mut world = fleet(seed, 3, FAULT.get());
        for n in 0..3 {
            world.plan(secs(MIRROR), move |world| world.runtime(n, mirror(true)));
            // What the two want, each node hears with delays of its own.
            for round in 0..6 {
                for primary in [Memberlist, Consul] {
                    let at = secs(FLIP + 3 * round) + world.upto(4000);
                    let on = world.rng.random_bool(0.8);
                    world.plan(at, move |world| {
                        world.tally.fault("order of one of two coordinators");
                        world.runtime(n, RuntimeMulti { primary: Some(primary), mirror_enabled: Some(on) });
                    });
                }
            }
        }
        let last = RuntimeMulti { primary: Some(Memberlist), mirror_enabled: Some(true) };
        world.plan(secs(FLIP + 24), move |world| world.runtime_all(last));
        world.run_until(secs(FLIP + 30));
        ends(world, Side::B)
    });
    assert!(all.flips > 3000 && all.count("order of one of two coordinators") == 36 * SEEDS, "{all:?}");
}

#[test]
pub(super) fn a_join_a_leave_and_a_forget_in_the_second_of_the_flip() {
    let all = seeds("join, leave and forget in the second of the flip", |seed| {
        let mut world = moving(seed, 4, 1000);
        let now = |world: &mut World| secs(FLIP) + world.upto(1000);
        // Node 2 dies before; another one forgets it.
        world.plan(secs(FLIP - 2), |world| world.kill(2));
        let at = now(&mut world);
        world.plan(at, |world| {
            world.tally.fault("instance forgotten");
            world.user(1, RING, Want::Remove("node-2".into()));
        });
        // Node 3 leaves: it removes its instance, and drains.
        let at = now(&mut world);
        world.plan(at, |world| {
            world.tally.fault("node left");
            world.user(3, RING, Want::Remove("node-3".into()));
        });
        world.plan(at + secs(3), |world| world.input(3, super::super::super::Input::Shutdown { drain: secs(5) }));
        // A new one starts, with the static configuration, and reads the runtime file soon.
        let at = now(&mut world);
        world.plan(at, move |world| {
            world.tally.fault("node joined");
            let new = world.join_fleet(MultiConfig { wait_for_runtime: true, seed, ..config() });
            world.watch(new, RING);
            world.heartbeats_of(new, secs(5));
            world.put(new, RING, &format!("node-{new}"));
            let file = RuntimeMulti { primary: Some(Memberlist), mirror_enabled: Some(true) };
            let after = world.upto(2000);
            world.plan(world.at + after, move |world| world.runtime(new, file));
        });
        world.run_until(secs(FLIP + 10));
        let mut world = ends(world, Side::B);
        for n in [0, 1, 4] {
            for side in [Side::A, Side::B] {
                let ring = world.raw(n, side, RING).unwrap();
                let live = [0, 1, 2, 3, 4].map(|n| ring.live(&format!("node-{n}")).is_some());
                if live != [true, true, false, false, true] {
                    world.violations.push(format!("{side:?} of node {n}: {live:?}"));
                }
            }
        }
        world
    });
    for what in ["node joined", "node left", "instance forgotten"] {
        assert_eq!(all.count(what), SEEDS);
    }
}

#[test]
pub(super) fn a_clock_that_is_two_hours_off_on_one_node() {
    let all = seeds("clock two hours off on one node", |seed| {
        let mut world = moving(seed, 3, 5000);
        let wrong = any(&mut world);
        // Ahead or behind; from the start, or it jumps somewhere on the way, and sometimes back.
        let off = if seed % 2 == 0 { (secs(7200), Duration::ZERO) } else { (Duration::ZERO, secs(7200)) };
        let at = if seed % 4 < 2 { Duration::ZERO } else { secs(5) + world.upto(20_000) };
        world.plan(at, move |world| {
            world.tally.fault("clock two hours off");
            world.nodes[wrong].clock = off;
        });
        if seed % 3 == 0 {
            world.plan(secs(FLIP + 6), move |world| world.nodes[wrong].clock = Default::default());
        }
        // It adds and removes instances, and others remove what it added.
        let other = (wrong + 1) % 3;
        world.plan(secs(6), move |world| {
            world.put(wrong, RING, "by-the-wrong-clock");
            world.put(other, RING, "by-a-right-clock");
        });
        let removed = secs(FLIP) + world.upto(6000);
        world.plan(removed, move |world| {
            world.user(other, RING, Want::Remove("by-the-wrong-clock".into()));
            world.user(wrong, RING, Want::Remove("by-a-right-clock".into()));
        });
        world.run_until(secs(FLIP + 10));
        let mut world = ends(world, Side::B);
        let ring = world.raw(0, Side::B, RING).unwrap();
        if ring.live("by-the-wrong-clock").is_some() || ring.live("by-a-right-clock").is_some() {
            world.violations.push(format!("what was removed is still there: {ring:?}"));
        }
        world
    });
    assert_eq!(all.count("clock two hours off"), SEEDS);
}
