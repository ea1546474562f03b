//! Runtime files that say nothing, or nonsense.

use rand::RngExt as _;

use super::*;
use crate::kv::StoreKind::Etcd;
use crate::migration::Input;

#[test]
pub(super) fn the_runtime_file_is_empty_half_written_missing_or_invalid() {
    let all = seeds("bad runtime files", |seed| {
        let mut world = moving(seed, 3, 4000);
        for _ in 0..20 {
            let (n, kind) = (any(&mut world), world.rng.random_range(0..3));
            let at = secs(1) + world.upto(34_000);
            world.plan(at, move |world| bad_file(world, n, kind));
        }
        // A node starts anew while its file is not there, or is invalid: it does nothing until it is.
        let n = any(&mut world);
        let at = secs(FLIP + 6) + world.upto(4000);
        let boot = MultiConfig { wait_for_runtime: true, seed, ..config() };
        world.plan(at, move |world| world.kill(n));
        world.plan(at + secs(1), move |world| world.boot(n, boot, secs(8)));
        world.plan(at + secs(3), move |world| world.input(n, Input::RuntimeInvalid("half a file".into())));
        world.plan(at + secs(8), move |world| {
            world.tally.fault("runtime file missing at start");
            let status = world.nodes[n].core.status(world.now());
            if !status.waiting_for_runtime || status.in_flight == 0 {
                world.violations.push(format!("it did not wait: {status:?}"));
            }
        });
        world.run_until(secs(38));
        ends(world, Side::B)
    });
    for what in ["runtime file half-written", "runtime file empty", "runtime file names another store"] {
        assert!(all.count(what) > 5 * SEEDS, "{all:?}");
    }
    assert_eq!(all.count("runtime file missing at start"), SEEDS);
}

/// A file that must not change anything.
fn bad_file(world: &mut World, n: usize, kind: u32) {
    let input = match kind {
        0 => {
            world.tally.fault("runtime file half-written");
            Input::RuntimeInvalid("multi_kv_config: {pri".into())
        }
        1 if world.nodes[n].view.waiting_for_runtime => return,
        1 => {
            world.tally.fault("runtime file empty");
            Input::Runtime(RuntimeMulti::default())
        }
        _ => {
            world.tally.fault("runtime file names another store");
            Input::Runtime(RuntimeMulti { primary: Some(Etcd), mirror_enabled: Some(false) })
        }
    };
    let before = world.nodes[n].core.view();
    let flip = world.nodes[n].core.status(world.now()).pending_flip.is_some();
    world.input(n, input);
    let after = world.nodes[n].core.view();
    if before.mirror_enabled != after.mirror_enabled || before.primary != after.primary && !flip {
        world.violations.push(format!("node {n}: a bad runtime file changed {before:?} to {after:?}"));
    }
}
