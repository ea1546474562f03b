//! The known faults, put back one at a time: scenarios must fail.

use std::panic::catch_unwind;

use super::super::fleet::{migration, plain_swap, starved};
use super::*;

/// The scenarios that fail with the fault.
fn noticed_by(fault: Fault, scenarios: &[(&'static str, fn())]) -> Vec<&'static str> {
    FAULT.set(fault);
    let failed = |(name, scenario): &(&'static str, fn())| catch_unwind(*scenario).is_err().then_some(*name);
    let names = scenarios.iter().filter_map(failed).collect();
    FAULT.set(Fault::None);
    names
}

/// How many of the first seeds notice a fault.
fn noticed(fault: Fault, run: impl Fn(u64, Fault) -> World) -> usize {
    noticed_in(20, fault, run)
}

fn noticed_in(seeds: u64, fault: Fault, run: impl Fn(u64, Fault) -> World) -> usize {
    (0..seeds).filter(|seed| !run(*seed, fault).violations.is_empty()).count()
}

/// `cargo test --lib every_fault -- --ignored --nocapture 2>/dev/null` tells which scenarios notice which fault.
#[test]
#[ignore = "runs every scenario with every fault"]
fn every_fault_is_noticed_by_some_scenario() {
    for fault in [
        Fault::BlindOverwrite,
        Fault::RemovalByAbsence,
        Fault::NoCarryOver,
        Fault::MirrorOnlyAfterSuccess,
        Fault::NoFirstValue,
    ] {
        let names = noticed_by(fault, ALL);
        println!("{fault:?}: {} of {}: {}", names.len(), ALL.len(), names.join(", "));
        assert!(!names.is_empty(), "{fault:?}");
    }
}

#[test]
fn a_blind_overwrite_is_noticed() {
    assert!(noticed(Fault::BlindOverwrite, migration) >= 15);
    let scenario = one_copy::two_percent_of_consuls_answers_are_late_and_nobody_is_marked_as_left;
    assert_eq!(noticed_by(Fault::BlindOverwrite, &[("late answers", scenario)]).len(), 1);
}

#[test]
fn a_backfill_that_removes_by_absence_is_noticed() {
    // Seldom: others must have joined by gossip, or by their mirror, between this node's two reads.
    assert!(noticed_in(60, Fault::RemovalByAbsence, migration) >= 1);
    assert_eq!(noticed_by(Fault::RemovalByAbsence, &[("skew", flips::nodes_flip_within_10_seconds)]).len(), 1);
}

#[test]
fn a_flip_without_carry_over_is_noticed() {
    assert!(noticed(Fault::NoCarryOver, plain_swap) >= 15);
    assert_eq!(noticed_by(Fault::NoCarryOver, &[("skew", flips::nodes_flip_within_10_seconds)]).len(), 1);
}

#[test]
fn a_mirror_that_waits_for_the_primary_is_noticed() {
    let (stale, fresh) = (starved(Fault::MirrorOnlyAfterSuccess), starved(Fault::None));
    assert!(stale > secs(100), "{stale:?}");
    assert!(fresh < secs(12), "{fresh:?}");
    let scenario = one_copy::the_primary_is_down_at_each_phase_boundary;
    assert_eq!(noticed_by(Fault::MirrorOnlyAfterSuccess, &[("Consul down", scenario)]).len(), 1);
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
    let scenario = one_copy::etcd_compacts_while_it_is_watched;
    assert_eq!(noticed_by(Fault::NoFirstValue, &[("compaction", scenario)]).len(), 1);
}
