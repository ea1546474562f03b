//! A node of another kind in the fleet: one of Grafana's, which mirrors by overwriting.
//!
//! What is promised with one (and what this test holds the fleet to):
//! - An instance of an Annulus node that such a node marks as left in gossip, or takes out of Consul, is back within a
//!   heartbeat period and the time of a mirror write: the node's next heartbeat is newer than the mark and is
//!   joined into both stores.
//! - A reader of an Annulus node never sees an older heartbeat; it can see a live instance as left for that time.
//! - What was written once before mirroring began stays.
//! - In the end both stores have all instances of Annulus nodes with their last acknowledged heartbeats.
//!
//! What is *not* promised: an entry that an Annulus node writes once and never again, while nodes differ in which store
//! is their primary, may be marked as left for ever: the other node saw a value without it. The test counts these.

use super::*;

/// A heartbeat, its mirror write when an answer was late, and gossip.
const BACK_WITHIN: Duration = Duration::from_secs(10);

#[test]
pub(super) fn a_go_node_in_the_fleet() {
    let longest = std::cell::Cell::new(Duration::ZERO);
    let all = seeds("a Go node in the fleet", |seed| {
        let mut world = fleet(seed, 4, Fault::None);
        let delay = [50, 1900][(seed % 2) as usize];
        world.make_go(3, delay);
        world.put(0, RING, "early");
        moves(&mut world, 12_000);
        // Instances that come while nodes differ: half of them are written once, half go on.
        for turn in 0..6 {
            let at = secs(FLIP) + world.upto(12_000);
            let n = turn % 3;
            world.plan(at, move |world| {
                world.put(n, RING, &format!("once-{turn}"));
            });
        }
        let mut gone: [[Option<Duration>; 3]; 2] = Default::default();
        while world.at < secs(FLIP + 20) {
            world.run_until(world.at + millis(500));
            if world.at < secs(12) {
                continue;
            }
            for side in [Side::A, Side::B] {
                let ring = world.raw(0, side, RING).unwrap_or_default();
                for (n, since) in gone[side.index()].iter_mut().enumerate() {
                    let live = ring.live(&format!("node-{n}")).is_some();
                    match since {
                        None if !live => *since = Some(world.at),
                        Some(at) if live => {
                            world.tally.fault("instance back after an overwrite");
                            longest.set(longest.get().max(world.at - *at));
                            *since = None;
                        }
                        Some(at) if world.at - *at > BACK_WITHIN => {
                            world.violations.push(format!("node {n} is gone from {side:?} since {at:?}"));
                        }
                        _ => {}
                    }
                }
            }
        }
        ended(world)
    });
    println!("an instance was gone for at most {:?}", longest.get());
    assert!(all.count("mirrored by overwriting") > 5 * SEEDS, "{all:?}");
    assert!(all.count("Consul overwritten with an older value") > 50, "{all:?}");
    assert!(all.count("instance marked as left by an overwrite") > 50, "{all:?}");
}

/// The end: what Annulus nodes write again is in both stores, alive.
fn ended(mut world: World) -> World {
    let mut world = {
        world.settle(true);
        // What was written once while nodes differed may be gone; nothing else may.
        let lost = |what: &String| what.starts_with("finally") && what.contains("once-");
        world.violations.retain(|what| !lost(what));
        world
    };
    for n in 0..3 {
        for side in [Side::A, Side::B] {
            let ring = world.raw(n, side, RING).unwrap_or_default();
            for name in ["early", "node-0", "node-1", "node-2"] {
                if ring.live(name).is_none() {
                    world.violations.push(format!("finally, {name} is not alive on {side:?} of node {n}: {ring:?}"));
                }
            }
            if n == 0 && side == Side::B {
                let once = (0..6).filter(|turn| ring.live(&format!("once-{turn}")).is_none()).count();
                world.tally.faults("entry written once, marked as left for ever", once as u64);
            }
        }
    }
    world
}
