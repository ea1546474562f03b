//! The last step: one node after the other is restarted on gossip alone, and nodes die on the way.

use super::super::world::{Death, SPREAD, Static};
use super::restarts::waiting;
use super::*;
use crate::migration::Input;

/// When the rollout begins, and the time that it takes for a node.
const TEARDOWN: u64 = 26;
const TURN: u64 = 10;

/// How old a heartbeat in gossip may be: its period, two restarts, and what a drain takes.
const FRESH: Duration = Duration::from_secs(24);

/// Where in the teardown a node dies.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Dies {
    /// Before the rollout gets to it, so it comes back with its old static configuration.
    Before,
    /// While it hands on what waits, and it comes back as it was.
    DrainingOld,
    /// The same, but its new static configuration was there already.
    DrainingNew,
    /// On gossip alone.
    After,
}

/// Ends a node in peace and starts it on gossip alone. One that dies meanwhile and comes back as it was has another turn.
fn roll(world: &mut World, n: usize) {
    let life = world.nodes[n].life;
    if world.nodes[n].alive {
        world.input(n, Input::Shutdown { drain: secs(2) });
    }
    world.plan(world.at + secs(3), move |world| {
        let node = &world.nodes[n];
        if node.alive && node.life == life {
            world.leave(n);
            world.plan(world.at + secs(1), move |world| world.boot(n, Static::GossipAlone, Duration::ZERO));
        } else if !node.alone || !node.alive {
            world.plan(world.at + secs(1), move |world| roll(world, n));
        }
    });
}

/// Takes the section out of every runtime file.
fn section_gone(world: &mut World) {
    (0..world.nodes.len()).for_each(|n| world.section_gone(n));
}

/// A fleet that has moved is torn down, and the section goes at this time.
fn torn_down(seed: u64, section_goes: u64) -> World {
    let mut world = moving(seed, 4, 2000);
    let first = any(&mut world);
    for turn in 0..4 {
        let n = (first + turn as usize) % 4;
        let begins = TEARDOWN + TURN * turn;
        let dies = [Dies::Before, Dies::DrainingOld, Dies::DrainingNew, Dies::After][((seed + turn) % 4) as usize];
        let (at, inputs, back) = match dies {
            Dies::Before => {
                (secs(FLIP + 6) + world.upto((begins - FLIP - 8) * 1000), seed / 4 % 20, waiting(seed).into())
            }
            Dies::DrainingOld => (secs(begins), seed / 4 % 6, waiting(seed).into()),
            Dies::DrainingNew => (secs(begins), seed / 4 % 6, Static::GossipAlone),
            Dies::After => (secs(begins + 5) + world.upto(3000), seed / 4 % 10, Static::GossipAlone),
        };
        world.plan(at, move |world| world.doom(n, inputs, Death::Process(back, secs(1))));
        world.plan(secs(begins), move |world| {
            if dies == Dies::Before && world.nodes[n].doomed.is_none() {
                world.tally.fault("process killed before its turn in the teardown");
            }
            roll(world, n);
        });
        world.plan(secs(begins + TURN), move |world| match dies {
            Dies::DrainingOld | Dies::DrainingNew if world.nodes[n].doomed.is_none() => {
                world.tally.fault("process killed while it drained");
            }
            Dies::After if world.nodes[n].doomed.is_none() => world.tally.fault("process killed on gossip alone"),
            _ => {}
        });
    }
    let rolled = TEARDOWN + 4 * TURN;
    world.plan(secs(section_goes), section_gone);
    // The flags go, too: one more restart of each, without a section.
    for n in 0..4 {
        world.plan(secs(rolled + 6 + 5 * n as u64), move |world| roll(world, n));
    }
    let over = rolled + 28;
    for second in FLIP + 6..over {
        // Written once, wherever a node believes it has to.
        let (n, at) = (any(&mut world), secs(second) + world.upto(900));
        world.plan(at, move |world| {
            world.put(n, STATIC, &format!("in-second-{second}"));
        });
        world.plan(secs(second), nothing_ages_in_gossip);
    }
    world.run_until(secs(over));
    if world.tally.taken_age > SPREAD {
        world.violations.push(format!("taken along after {:?}", world.tally.taken_age));
    }
    world.settle(false);
    for (n, node) in world.nodes.iter().enumerate() {
        if !node.alive || !node.alone {
            world.violations.push(format!("node {n} did not end on gossip alone"));
        }
    }
    world
}

/// No instance ages for a node that reads gossip.
fn nothing_ages_in_gossip(world: &mut World) {
    for reader in 0..world.nodes.len() {
        let Some(ring) = world.raw(reader, Side::B, RING).filter(|_| world.nodes[reader].alive) else { continue };
        for n in 0..world.nodes.len() {
            let age = world.age(&ring, n);
            if age > FRESH {
                world.violations.push(format!("at {:?} node {n} is {age:?} old in gossip of {reader}", world.at));
            }
        }
    }
}

#[test]
pub(super) fn nodes_die_at_every_point_of_the_teardown() {
    let all = seeds("nodes die in the teardown", |seed| torn_down(seed, TEARDOWN + 4 * TURN + 4));
    for (what, least) in [
        ("process killed before its turn in the teardown", SEEDS * 8 / 10),
        ("process killed while it drained", SEEDS * 15 / 10),
        ("process killed on gossip alone", SEEDS * 8 / 10),
        ("process started on gossip alone", SEEDS * 8),
    ] {
        assert!(all.count(what) >= least, "{what}: {all:?}");
    }
}

/// Why the section goes last: a node that dies comes back on the old store, with nothing to tell it otherwise.
#[test]
fn a_section_that_goes_before_the_rollout_ends_is_noticed() {
    let noticed = |seed: &u64| !torn_down(*seed, TEARDOWN - 4).violations.is_empty();
    assert!((0..20).filter(noticed).count() >= 15);
}
