//! Gossip that does not reach everybody.

use super::*;

/// How old a heartbeat in Consul may be: its period, an answer that is late, and the attempt after that.
const FRESH: Duration = Duration::from_secs(15);

/// Looks each second whether an instance ages in Consul.
fn nothing_ages_in_consul(world: &mut World, from: u64, until: u64) {
    for second in from..until {
        world.plan(secs(second), |world| {
            let ring = world.consul.keys[RING].clone();
            for n in 0..world.nodes.len() {
                let age = world.age(&ring, n);
                if age > FRESH {
                    world.violations.push(format!("at {:?} node {n} is {age:?} old in Consul", world.at));
                }
            }
        });
    }
}

#[test]
pub(super) fn a_node_is_cut_off_from_gossip_and_nothing_ages_in_consul() {
    let all = seeds("node cut off from gossip", |seed| {
        let mut world = moving(seed, 4, 3000);
        let n = any(&mut world);
        let at = secs([MIRROR - 2, MIRROR + 3, FLIP - 1, FLIP + 5][(seed % 4) as usize]) + world.upto(2000);
        world.cut_off(n, at, secs(30));
        nothing_ages_in_consul(&mut world, 7, FLIP + 40);
        world.run_until(secs(FLIP + 40));
        ends(world, Side::B)
    });
    assert_eq!(all.count("node cut off from gossip"), SEEDS);
    assert_eq!(all.flips, 4 * SEEDS);
}

#[test]
pub(super) fn gossip_is_split_in_half_during_the_flip() {
    let all = seeds("gossip split in half", |seed| {
        let mut world = moving(seed, 4, 8000);
        let at = secs(FLIP - 1) + world.upto(8000);
        world.split(at, secs(20));
        nothing_ages_in_consul(&mut world, 7, FLIP + 25);
        // Written once, in one half.
        let n = any(&mut world);
        world.plan(secs(FLIP + 10), move |world| {
            world.put(n, STATIC, "in-one-half");
        });
        world.run_until(secs(FLIP + 30));
        ends(world, Side::B)
    });
    assert_eq!(all.count("gossip split in half"), SEEDS);
}
