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
    let longest = Cell::new(Duration::ZERO);
    let all = seeds("a Go node in the fleet", |seed| {
        let mut world = fleet(seed, 4, FAULT.get());
        world.make_go(3, [50, 1900][(seed % 2) as usize]);
        world.put(0, RING, "early");
        moves(&mut world, 12_000);
        let mut beating: Vec<_> = (0..3).map(|n| format!("node-{n}")).collect();
        // Instances that come while nodes differ: half of them are written once, half have heartbeats.
        for turn in 0..8 {
            let (n, at) = (turn % 3, secs(FLIP) + world.upto(12_000));
            let often = turn % 2 == 0;
            let name = format!("{}-{turn}", if often { "new" } else { "once" });
            for beat in 0..if often { 10 } else { 1 } {
                let name = name.clone();
                world.plan(at + secs(5 * beat), move |world| {
                    world.put(n, RING, &name);
                });
            }
            if often {
                beating.push(name);
            }
        }
        let mut shown = BTreeMap::new();
        while world.at < secs(FLIP + 30) {
            world.run_until(world.at + millis(250));
            for side in [Side::A, Side::B] {
                let ring = world.raw(0, side, RING).unwrap_or_default();
                for name in &beating {
                    // When it was last seen there, once it was.
                    if ring.live(name).is_none() {
                        let Some(at) = shown.get(&(side, name.clone())) else { continue };
                        longest.set(longest.get().max(world.at - *at));
                        if world.at - *at > BACK_WITHIN {
                            world.violations.push(format!("{name} is gone from {side:?} since {at:?}"));
                        }
                        continue;
                    }
                    let before = shown.insert((side, name.clone()), world.at);
                    if before.is_some_and(|at| world.at - at > millis(250)) {
                        world.tally.fault("instance back after an overwrite");
                    }
                }
            }
        }
        ended(world, &beating)
    });
    println!("an instance was gone for at most {:?}", longest.get());
    assert!(all.count("mirrored by overwriting") > 5 * SEEDS, "{all:?}");
    assert!(all.count("Consul overwritten with an older value") > 100, "{all:?}");
    assert!(all.count("instance marked as left by an overwrite") > 20, "{all:?}");
    assert!(all.count("instance back after an overwrite") > 20, "{all:?}");
}

/// The end: what Annulus nodes write again, and what was there before, is in both stores, alive.
fn ended(mut world: World, beating: &[String]) -> World {
    world.settle(true);
    // What was written once while nodes differed may be gone; nothing else may.
    world.violations.retain(|what| !(what.starts_with("finally") && what.contains("once-")));
    world.tally.lost = world.violations.len() as u64;
    for n in 0..3 {
        for side in [Side::A, Side::B] {
            let ring = world.raw(n, side, RING).unwrap_or_default();
            for name in beating.iter().map(String::as_str).chain(["early"]) {
                if ring.live(name).is_none() {
                    world.violations.push(format!("finally, {name} is not alive on {side:?} of node {n}: {ring:?}"));
                }
            }
        }
    }
    let ring = world.raw(0, Side::B, RING).unwrap_or_default();
    let gone = (0..8).filter(|turn| turn % 2 == 1 && ring.live(&format!("once-{turn}")).is_none());
    world.tally.faults("entry written once, marked as left for ever", gone.count() as u64);
    world
}
