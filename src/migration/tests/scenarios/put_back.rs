//! The known faults, put back one at a time: the suite must notice.

use super::super::fleet::{migration, plain_swap, starved};
use super::*;

/// How many of the first seeds notice a fault.
fn noticed(fault: Fault, run: impl Fn(u64, Fault) -> World) -> usize {
    (0..20).filter(|seed| !run(*seed, fault).violations.is_empty()).count()
}

#[test]
fn a_blind_overwrite_is_noticed() {
    assert!(noticed(Fault::BlindOverwrite, migration) >= 15);
}

#[test]
fn a_backfill_that_removes_by_absence_is_noticed() {
    // Others joined by gossip, or by their mirror, before this node's backfill compares.
    assert!(noticed(Fault::RemovalByAbsence, migration) >= 3);
}

#[test]
fn a_flip_without_carry_over_is_noticed() {
    assert!(noticed(Fault::NoCarryOver, plain_swap) >= 15);
}

#[test]
fn a_mirror_that_waits_for_the_primary_is_noticed() {
    let (stale, fresh) = (starved(Fault::MirrorOnlyAfterSuccess), starved(Fault::None));
    assert!(stale > secs(100), "{stale:?}");
    assert!(fresh < secs(12), "{fresh:?}");
}

/// A swap with the mirror off, in which the first node to flip writes what nobody writes again.
fn written_by_the_first(seed: u64, fault: Fault) -> World {
    let mut world = fleet(seed, 3, fault);
    for n in 0..3 {
        let at = secs(8 + 6 * n);
        world.plan(at, move |world| world.runtime(n as usize, to(Memberlist)));
    }
    world.plan(secs(11), |world| {
        world.put(0, STATIC, "after the first flip");
    });
    world.run_until(secs(24));
    world.settle(false);
    world
}

#[test]
fn a_watch_that_is_moved_without_a_first_value_is_noticed() {
    assert_eq!(noticed(Fault::None, written_by_the_first), 0);
    assert!(noticed(Fault::NoFirstValue, written_by_the_first) >= 15);
}
