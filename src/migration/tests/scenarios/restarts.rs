//! Nodes that end: restarts in every phase, processes killed and actors that die at every step.

use super::super::world::{Death, SPREAD};
use super::*;

/// A node that starts during a migration: it waits for its runtime file.
pub(super) fn waiting(seed: u64) -> MultiConfig {
    MultiConfig { wait_for_runtime: true, seed, ..config() }
}

/// A second in each phase: before, mirroring, within the skew of the flip, flipped, within the skew of the way back.
const PHASES: [u64; 5] = [3, 12, 20, 30, 40];

/// Every node is killed and started once in each phase; `stale` milliseconds is what the runtime file is missing for.
fn restarted(scenario: &'static str, boot: impl Fn(u64) -> MultiConfig, stale: u64) -> Tally {
    seeds(scenario, |seed| {
        let mut world = fleet(seed, 3, FAULT.get());
        for n in 0..3 {
            let at = secs(MIRROR) + world.upto(2000);
            world.plan(at, move |world| world.runtime(n, mirror(true)));
            let at = secs(20) + world.upto(6000);
            world.plan(at, move |world| world.runtime(n, to(Memberlist)));
            let at = secs(40) + world.upto(6000);
            world.plan(at, move |world| world.runtime(n, to(Consul)));
        }
        for phase in PHASES {
            // One after the other, as a rollout does it.
            let first = any(&mut world);
            for turn in 0..3 {
                let n = (first + turn) % 3;
                let at = secs(phase + 2 * turn as u64) + world.upto(500);
                let (config, file) = (boot(seed), world.upto(stale));
                world.plan(at, move |world| world.kill(n));
                world.plan(at + millis(1300), move |world| world.boot(n, config, file));
            }
        }
        world.run_until(secs(50 + stale / 1000));
        if world.tally.taken_age > SPREAD {
            world.violations.push(format!("taken along after {:?}", world.tally.taken_age));
        }
        ends(world, Side::A)
    })
}

#[test]
pub(super) fn every_node_restarts_once_in_every_phase() {
    let all = restarted("every node restarts in every phase", waiting, 1000);
    assert_eq!(all.count("process killed"), 15 * SEEDS);
}

#[test]
pub(super) fn every_node_restarts_with_the_stale_static_configuration() {
    // It does not wait for its runtime file, which is not there for a while: it begins on the wrong store, without mirror.
    let stale = |seed| MultiConfig { seed, ..config() };
    let all = restarted("every node restarts with the stale static configuration", stale, 6000);
    assert_eq!(all.count("process killed"), 15 * SEEDS);
}

/// A node dies over one input after another: the seed says in which phase, and after how many inputs.
fn dies(scenario: &'static str, death: impl Fn(u64) -> Death) -> Tally {
    seeds(scenario, |seed| {
        let mut world = moving(seed, 3, 2000);
        world.plan(secs(30), |world| world.runtime_all(to(Consul)));
        let at = secs([MIRROR, FLIP, FLIP + 6, 30, 33][(seed % 5) as usize]);
        let (n, inputs, death) = (any(&mut world), seed / 5, death(seed));
        world.plan(at, move |world| world.doom(n, inputs, death));
        world.run_until(secs(44));
        if world.tally.taken_age > SPREAD {
            world.violations.push(format!("taken along after {:?}", world.tally.taken_age));
        }
        ends(world, Side::A)
    })
}

#[test]
pub(super) fn a_process_is_killed_at_every_step() {
    let all = dies("kill -9 at every step", |seed| Death::Process(waiting(seed).into(), secs(2)));
    assert!(all.count("process killed") > SEEDS * 9 / 10, "{all:?}");
}

#[test]
pub(super) fn an_actor_dies_at_every_step() {
    let all = dies("an actor dies at every step", |_| Death::Actor);
    assert!(all.count("actor restarted") > SEEDS * 9 / 10 && all.taken == 0, "{all:?}");
}
