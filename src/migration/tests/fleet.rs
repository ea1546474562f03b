//! Fleets in virtual time: a whole migration with all kinds of trouble at once, and what a fleet does in single situations.
//! The list of what can go wrong, one by one, is in `scenarios`.

use rand::RngExt as _;

use super::super::core::Fault;
use super::super::*;
use super::map::Map;
use super::scenarios::{STATIC, fleet};
use super::world::{RING, Want, World, millis, mirror, secs, to};
use crate::kv::StoreKind::{Consul, Memberlist};

/// Fails with the seed and the first violations.
fn assert_clean(world: &World, what: &str, seed: u64) {
    let shown: Vec<_> = world.violations.iter().take(4).collect();
    assert!(world.violations.is_empty(), "{what}, seed {seed}: {} violations, {shown:#?}", world.violations.len());
}

/// The whole way: mirror on, swap with skew, sometimes half way back, with trouble at random times.
pub(super) fn migration(seed: u64, fault: Fault) -> World {
    let nodes = 3 + (seed % 3) as usize;
    let mut world = fleet(seed, nodes, fault);
    let skew = [0, 10, 100, 600][(seed % 4) as usize];
    let flip_from = 70;
    for n in 0..nodes {
        let at = secs(20) + millis(world.rng.random_range(0..10_000));
        world.plan(at, move |world| world.runtime(n, mirror(true)));
        let late = if skew == 0 { 0 } else { world.rng.random_range(0..=skew * 1000) };
        let at = secs(flip_from) + millis(late);
        let runtime = RuntimeMulti { primary: Some(Memberlist), mirror_enabled: Some(true) };
        world.plan(at, move |world| world.runtime(n, runtime));
    }
    let end = flip_from + skew + 40;
    // Trouble at the phase boundaries and anywhere else.
    for _ in 0..4 {
        let boundary = [20, 25, flip_from, flip_from + skew / 2][world.rng.random_range(0..4)];
        let at = secs(boundary) + millis(world.rng.random_range(0..8000));
        let lasts = millis(world.rng.random_range(500..20_000));
        let n = world.rng.random_range(0..nodes);
        match world.rng.random_range(0..5) {
            0 => {
                world.plan(at, |world| world.consul.up = false);
                world.plan(at + lasts, |world| world.consul.up = true);
            }
            1 => {
                world.plan(at, move |world| world.nodes[n].replica.down = true);
                world.plan(at + lasts, move |world| world.nodes[n].replica.down = false);
            }
            2 => {
                world.plan(at, move |world| world.nodes[n].replica.cut = true);
                world.plan(at + lasts, move |world| world.nodes[n].replica.cut = false);
            }
            _ => world.plan(at, move |world| world.crash(n)),
        }
    }
    // One instance leaves, in the second of the flip.
    let at = secs(flip_from) + millis(world.rng.random_range(0..1000));
    world.plan(secs(10), |world| {
        world.put(1, RING, "leaver");
    });
    world.plan(at, |world| {
        world.user(1, RING, Want::Remove("leaver".into()));
    });
    if seed.is_multiple_of(5) {
        let half = secs(flip_from) + secs(skew) / 2 + secs(1);
        world.plan(half, |world| world.runtime_all(to(Consul)));
        world.plan(secs(end - 20), |world| world.runtime_all(to(Consul)));
    }
    world.run_until(secs(end));
    world.settle(true);
    world
}

#[test]
fn a_fleet_with_trouble_moves_without_losing_an_acknowledged_write() {
    let (mut late, mut flips, mut failed, mut acked) = (0, 0, 0, 0);
    for seed in 0..240 {
        let world = migration(seed, Fault::None);
        assert_clean(&world, "migration", seed);
        late += world.tally.count("late answer");
        for node in &world.nodes {
            flips += node.core.view().generation;
            failed += node.failed;
            acked += node.acked;
            let expected = if seed % 5 == 0 { Side::A } else { Side::B };
            assert_eq!(node.core.view().primary, expected, "seed {seed}");
            assert!(node.core.status(world.now()).backfill.verified, "seed {seed}");
        }
    }
    // The trouble really happened.
    assert!(late > 500 && flips > 900 && failed > 1000 && acked > 50_000, "{late} {flips} {failed} {acked}");
}

/// A swap with the mirror off: only the carry-over moves anything.
pub(super) fn plain_swap(seed: u64, fault: Fault) -> World {
    let mut world = fleet(seed, 4, fault);
    let skew = [0, 10, 100, 600][(seed % 4) as usize];
    for n in 0..4 {
        let at = secs(30) + millis(if skew == 0 { 0 } else { world.rng.random_range(0..=skew * 1000) });
        world.plan(at, move |world| world.runtime(n, to(Memberlist)));
    }
    if seed.is_multiple_of(3) {
        world.plan(secs(32), |world| world.nodes[2].replica.down = true);
        world.plan(secs(60), |world| world.nodes[2].replica.down = false);
    }
    world.run_until(secs(50 + skew));
    world.settle(false);
    world
}

#[test]
fn a_swap_without_mirror_carries_over_what_every_node_knows() {
    for seed in 0..60 {
        let world = plain_swap(seed, Fault::None);
        assert_clean(&world, "plain swap", seed);
        for n in 0..4 {
            assert_eq!(world.nodes[n].core.view().primary, Side::B);
            let copied = world.raw(n, Side::B, STATIC).unwrap();
            assert!(copied.live("once").is_some(), "a key that nobody writes stayed behind");
        }
    }
}

/// The age of the oldest heartbeat in gossip after Consul was down for two minutes.
pub(super) fn starved(fault: Fault) -> std::time::Duration {
    let mut world = fleet(7, 4, fault);
    world.late_permille = 0;
    world.plan(secs(20), |world| world.runtime_all(mirror(true)));
    world.plan(secs(60), |world| world.consul.up = false);
    world.run_until(secs(180));
    let ring = world.raw(0, Side::B, RING).unwrap();
    let now = world.now().unix;
    (0..4).map(|n| now - std::time::Duration::from_micros(ring.0[format!("node-{n}").as_str()].0)).max().unwrap()
}

#[test]
fn heartbeats_stay_fresh_in_gossip_while_consul_is_down_for_two_minutes() {
    assert!(starved(Fault::None) < secs(12));
}

#[test]
fn a_dead_secondary_never_delays_or_fails_a_write() {
    for seed in 0..20 {
        let mut world = fleet(seed, 3, Fault::None);
        world.late_permille = 0;
        world.run_until(secs(15));
        for node in &mut world.nodes {
            node.replica.down = true;
        }
        world.runtime_all(mirror(true));
        world.run_until(secs(120));
        for n in 0..3 {
            assert_eq!(world.nodes[n].failed, 0);
            let status = world.nodes[n].core.status(world.now());
            assert!(status.outbox_len == 1 || status.outbox_len == 2, "one entry a key: {status:?}");
            assert!(status.mirror_errors_total > 0 && status.last_error_secondary.is_some());
            assert!(status.oldest_outbox_age_ms > 60_000, "{status:?}");
        }
        world.settle(true);
        assert_clean(&world, "dead secondary", seed);
    }
}

#[test]
fn a_flip_to_a_dead_store_waits_serves_on_and_says_why() {
    for seed in 0..20 {
        let mut world = fleet(seed, 3, Fault::None);
        world.late_permille = 0;
        world.run_until(secs(20));
        world.nodes[1].replica.down = true;
        world.runtime_all(to(Memberlist));
        world.run_until(secs(80));
        let status = world.nodes[1].core.status(world.now());
        let pending = status.pending_flip.unwrap();
        assert_eq!((status.phase, status.primary, pending.to), (Phase::Flipping, Consul, Memberlist));
        assert!(pending.reason.contains("not available") && pending.since_ms >= 59_000, "{pending:?}");
        assert_eq!(world.nodes[1].failed, 0);
        assert_eq!(world.nodes[0].core.view().primary, Side::B);
        world.settle(false);
        assert_eq!(world.nodes[1].core.view().primary, Side::B);
        assert_clean(&world, "dead target", seed);
    }
}

#[test]
fn the_actor_may_die_in_every_phase() {
    for seed in 0..12 {
        let mut world = fleet(seed, 4, Fault::None);
        world.plan(secs(20), |world| world.runtime_all(mirror(true)));
        world.plan(secs(40), |world| world.runtime_all(to(Memberlist)));
        world.plan(secs(60), |world| world.runtime_all(mirror(false)));
        world.plan(secs(65), |world| world.runtime_all(mirror(true)));
        world.plan(secs(80), |world| world.runtime_all(to(Consul)));
        for second in [10, 20, 21, 30, 40, 41, 50, 60, 62, 65, 70, 80, 81, 90] {
            for n in 0..4 {
                let at = secs(second) + millis(world.rng.random_range(0..40));
                world.plan(at, move |world| world.crash(n));
            }
        }
        world.run_until(secs(110));
        world.settle(true);
        assert_clean(&world, "crashes", seed);
        for node in &world.nodes {
            assert_eq!(node.core.view().generation, 2, "the generation outlives the actor");
        }
    }
}

#[test]
fn a_deletion_is_mirrored() {
    for seed in 0..20 {
        let mut world = fleet(seed, 4, Fault::None);
        world.late_permille = 0;
        world.put(2, "collectors/old", "entry");
        world.plan(secs(15), |world| world.runtime_all(mirror(true)));
        world.run_until(secs(30));
        assert!(world.raw(3, Side::B, "collectors/old").is_some(), "seed {seed}: not backfilled");
        for node in &mut world.nodes {
            node.replica.down = true;
        }
        world.user(1, "collectors/old", Want::Delete);
        world.run_until(secs(40));
        assert!(world.raw(3, Side::B, "collectors/old").is_some(), "seed {seed}: the outbox did not wait");
        for node in &mut world.nodes {
            node.replica.down = false;
        }
        world.run_until(secs(80));
        world.runtime_all(to(Memberlist));
        world.settle(true);
        assert_clean(&world, "deletion", seed);
        for n in 0..4 {
            assert_eq!(world.raw(n, Side::B, "collectors/old"), None, "seed {seed}, node {n}");
            assert_eq!(world.raw(n, Side::A, "collectors/old"), None);
        }
    }
}

#[test]
fn a_node_that_starts_late_waits_for_the_runtime_configuration() {
    for seed in 0..10 {
        let mut world = fleet(seed, 3, Fault::None);
        world.plan(secs(15), |world| world.runtime_all(mirror(true)));
        world.plan(secs(30), |world| world.runtime_all(to(Memberlist)));
        world.run_until(secs(50));
        let config = MultiConfig { wait_for_runtime: true, seed, ..MultiConfig::default() };
        let late = world.join_fleet(config);
        world.watch(late, RING);
        world.put(late, RING, "late");
        world.run_until(secs(55));
        assert_eq!(world.nodes[late].core.status(world.now()).in_flight, 1, "held, not failed");
        assert!(!world.consul.keys[RING].0.contains_key("late"), "it wrote to the wrong primary");
        let runtime = RuntimeMulti { primary: Some(Memberlist), mirror_enabled: Some(true) };
        world.runtime(late, runtime);
        world.run_until(secs(56));
        assert_eq!((world.nodes[late].acked, world.nodes[late].core.view().primary), (1, Side::B));
        world.settle(true);
        assert_clean(&world, "late start", seed);
        assert!(world.consul.keys[RING].live("late").is_some());
    }
}

#[test]
fn a_graceful_restart_of_every_node_in_the_dual_phase_leaves_nothing_behind() {
    for seed in 0..10 {
        let mut world = fleet(seed, 3, Fault::None);
        world.late_permille = 0;
        world.plan(secs(15), |world| world.runtime_all(mirror(true)));
        world.run_until(secs(30));
        for n in 0..3 {
            world.put(n, RING, &format!("last-words-{n}"));
            world.run_until(world.at + millis(200));
            world.input(n, Input::Shutdown { drain: secs(5) });
        }
        world.run_until(secs(40));
        for n in 0..3 {
            assert!(world.nodes[n].drained);
            assert!(world.nodes[n].events.contains(&MigrationEvent::ShutdownDrained { left: 0 }));
            let gossip = world.raw(n, Side::B, RING).unwrap();
            let words = Map::one(&format!("last-words-{n}"), 0, None);
            assert!(gossip.covers(&words), "seed {seed}");
        }
        assert_clean(&world, "restart", seed);
    }
}
