//! What can go wrong in a migration, one named test for each, from at least two hundred seeds.
//!
//! Every run moves a fleet of real cores from one store to the other in virtual time, does one kind of harm to it, and
//! ends with quiet, after which both stores must hold every acknowledged write. All along a checker looks whether an
//! acknowledged write is nowhere, a live instance is marked as left, or a reader sees less than before. Each test also
//! asserts that the harm was done, by counters.
//!
//! | What goes wrong | Test |
//! |---|---|
//! | Nodes flip 0, 10, 100, 600 s apart | `flips::nodes_flip_together`, `…_within_10_seconds`, `…_100_seconds`, `…_600_seconds` |
//! | Rollback at half way | `flips::a_rollback_at_half_way` |
//! | Two coordinators | `flips::two_coordinators_that_nodes_hear_in_different_orders` |
//! | Join, leave and forget in the second of the flip | `flips::a_join_a_leave_and_a_forget_in_the_second_of_the_flip` |
//! | Clock wrong by two hours on one node | `flips::a_clock_that_is_two_hours_off_on_one_node` |
//! | 2 % of Consul's answers 1 to 30 s late | `one_copy::two_percent_of_consuls_answers_are_late_and_nobody_is_marked_as_left` |
//! | Primary, secondary, both down, at each phase boundary | `one_copy::the_primary_is_down_at_each_phase_boundary`, `…_secondary_…`, `both_…` |
//! | Consul index reset, snapshot restored | `one_copy::consul_is_set_back_to_a_snapshot`, `one_copy::consuls_index_begins_anew` |
//! | etcd compacts while it is watched | `one_copy::etcd_compacts_while_it_is_watched` |
//! | A key that nobody writes | `one_copy::a_key_that_nobody_writes_or_watches_moves_too` |
//! | One node cut off from gossip, but not from Consul | `gossip::a_node_is_cut_off_from_gossip_and_nothing_ages_in_consul` |
//! | Gossip split in half during the flip | `gossip::gossip_is_split_in_half_during_the_flip` |
//! | Every node restarted once in every phase | `restarts::every_node_restarts_once_in_every_phase` |
//! | … with the stale static configuration | `restarts::every_node_restarts_with_the_stale_static_configuration` |
//! | `kill -9` at every step | `restarts::a_process_is_killed_at_every_step`, `restarts::an_actor_dies_at_every_step` |
//! | Runtime file empty, half-written, missing, invalid | `runtime_file::the_runtime_file_is_empty_half_written_missing_or_invalid` |
//! | Nodes die in the teardown, and start with the old static configuration or the new one | `teardown::nodes_die_at_every_point_of_the_teardown` |
//! | A Go node in the fleet | `other_kind::a_go_node_in_the_fleet` |
//! | The known faults, put back one at a time | `put_back` |

mod flips;
mod gossip;
mod one_copy;
mod other_kind;
mod put_back;
mod restarts;
mod runtime_file;
mod teardown;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::super::core::Fault;
use super::super::{MultiConfig, RuntimeMulti, Side};
use super::world::{RING, Tally, World, millis, mirror, secs, to};
use crate::kv::StoreKind::{Consul, Memberlist};

/// A key that is written once.
pub(super) const STATIC: &str = "collectors/partitions";

/// When mirroring is turned on, and when the flip begins, where a scenario does not say otherwise.
const MIRROR: u64 = 8;
const FLIP: u64 = 16;

/// Seeds of each scenario.
const SEEDS: u64 = 200;

/// The static configuration of the scenarios' nodes.
fn config() -> MultiConfig {
    MultiConfig { retry_max: secs(4), ..MultiConfig::default() }
}

thread_local! {
    /// The fault that this thread's scenarios have put back: see `put_back`.
    static FAULT: Cell<Fault> = const { Cell::new(Fault::None) };
}

/// A fleet that runs on Consul, with a key that is written once and then by nobody.
pub(super) fn fleet(seed: u64, nodes: usize, fault: Fault) -> World {
    fleet_with(seed, nodes, fault, &config(), secs(5))
}

fn fleet_with(seed: u64, nodes: usize, fault: Fault, config: &MultiConfig, heartbeat: Duration) -> World {
    let mut world = World::new(seed, nodes, fault, config);
    world.late_permille = 20;
    world.stale_permille = 100;
    world.calm = [secs(14), secs(28)];
    for n in 0..nodes {
        world.watch(n, RING);
        world.watch(n, STATIC);
    }
    world.put(0, STATIC, "once");
    world.heartbeats(heartbeat);
    world
}

/// A fleet that moves: mirror on node by node, the flips within `skew` milliseconds.
fn moving(seed: u64, nodes: usize, skew: u64) -> World {
    let mut world = fleet(seed, nodes, FAULT.get());
    moves(&mut world, skew);
    world
}

fn moves(world: &mut World, skew: u64) {
    for n in 0..world.nodes.len() {
        let at = secs(MIRROR) + world.upto(2000);
        world.plan(at, move |world| world.runtime(n, mirror(true)));
        let at = secs(FLIP) + world.upto(skew);
        world.plan(at, move |world| world.runtime(n, to(Memberlist)));
    }
}

/// Everything is over: nothing may have gone wrong, and all nodes must be where they should.
fn ends(mut world: World, primary: Side) -> World {
    world.settle(true);
    for n in 0..world.nodes.len() {
        let node = &world.nodes[n];
        if node.alive && node.go.is_none() && !node.drained && node.view.primary != primary {
            world.violations.push(format!("node {n} did not end on {primary:?}"));
        }
    }
    world
}

/// A random node.
fn any(world: &mut World) -> usize {
    use rand::RngExt as _;
    let count = world.nodes.len();
    world.rng.random_range(0..count)
}

/// The figures of all scenarios that ran in this process.
static FIGURES: Mutex<BTreeMap<&'static str, Tally>> = Mutex::new(BTreeMap::new());

/// Runs a scenario from its seeds. Fails with the first seed whose run is not clean; returns what happened.
fn seeds(scenario: &'static str, run: impl Fn(u64) -> World) -> Tally {
    let mut all = Tally::default();
    for seed in 0..SEEDS {
        let world = run(seed);
        let shown: Vec<_> = world.violations.iter().take(4).collect();
        let count = world.violations.len();
        assert!(count == 0, "{scenario}, seed {seed}: {count} violations, {shown:#?}");
        all.add(&world.figures());
    }
    println!("{scenario}: {}", line(&all));
    FIGURES.lock().unwrap_or_else(PoisonError::into_inner).insert(scenario, all.clone());
    all
}

fn line(tally: &Tally) -> String {
    let kinds: Vec<_> = tally.faults.iter().map(|(what, times)| format!("{times} × {what}")).collect();
    format!(
        "{} runs, {} flips, {} acknowledged writes, {} failed, {} lost, {} false LEFT, {} older reads, {} taken along \
         (at most {:.1} s old); {}",
        tally.runs,
        tally.flips,
        tally.acked,
        tally.failed,
        tally.lost,
        tally.false_left,
        tally.older,
        tally.taken,
        tally.taken_age.as_secs_f64(),
        kinds.join(", ")
    )
}

/// All scenarios.
const ALL: &[(&str, fn())] = &[
    ("nodes_flip_together", flips::nodes_flip_together),
    ("nodes_flip_within_10_seconds", flips::nodes_flip_within_10_seconds),
    ("nodes_flip_within_100_seconds", flips::nodes_flip_within_100_seconds),
    ("nodes_flip_within_600_seconds", flips::nodes_flip_within_600_seconds),
    ("a_rollback_at_half_way", flips::a_rollback_at_half_way),
    (
        "two_coordinators_that_nodes_hear_in_different_orders",
        flips::two_coordinators_that_nodes_hear_in_different_orders,
    ),
    (
        "a_join_a_leave_and_a_forget_in_the_second_of_the_flip",
        flips::a_join_a_leave_and_a_forget_in_the_second_of_the_flip,
    ),
    ("a_clock_that_is_two_hours_off_on_one_node", flips::a_clock_that_is_two_hours_off_on_one_node),
    (
        "two_percent_of_consuls_answers_are_late_and_nobody_is_marked_as_left",
        one_copy::two_percent_of_consuls_answers_are_late_and_nobody_is_marked_as_left,
    ),
    ("the_primary_is_down_at_each_phase_boundary", one_copy::the_primary_is_down_at_each_phase_boundary),
    ("the_secondary_is_down_at_each_phase_boundary", one_copy::the_secondary_is_down_at_each_phase_boundary),
    ("both_stores_are_down_at_each_phase_boundary", one_copy::both_stores_are_down_at_each_phase_boundary),
    ("consul_is_set_back_to_a_snapshot", one_copy::consul_is_set_back_to_a_snapshot),
    ("consuls_index_begins_anew", one_copy::consuls_index_begins_anew),
    ("etcd_compacts_while_it_is_watched", one_copy::etcd_compacts_while_it_is_watched),
    ("a_key_that_nobody_writes_or_watches_moves_too", one_copy::a_key_that_nobody_writes_or_watches_moves_too),
    (
        "a_node_is_cut_off_from_gossip_and_nothing_ages_in_consul",
        gossip::a_node_is_cut_off_from_gossip_and_nothing_ages_in_consul,
    ),
    ("gossip_is_split_in_half_during_the_flip", gossip::gossip_is_split_in_half_during_the_flip),
    ("every_node_restarts_once_in_every_phase", restarts::every_node_restarts_once_in_every_phase),
    (
        "every_node_restarts_with_the_stale_static_configuration",
        restarts::every_node_restarts_with_the_stale_static_configuration,
    ),
    ("a_process_is_killed_at_every_step", restarts::a_process_is_killed_at_every_step),
    ("an_actor_dies_at_every_step", restarts::an_actor_dies_at_every_step),
    (
        "the_runtime_file_is_empty_half_written_missing_or_invalid",
        runtime_file::the_runtime_file_is_empty_half_written_missing_or_invalid,
    ),
    ("nodes_die_at_every_point_of_the_teardown", teardown::nodes_die_at_every_point_of_the_teardown),
    ("a_go_node_in_the_fleet", other_kind::a_go_node_in_the_fleet),
];

/// Runs all scenarios one after the other and adds up: `cargo test --lib totals -- --ignored --nocapture`.
#[test]
#[ignore = "runs every scenario once more, to add up what happened"]
fn totals() {
    for (_, scenario) in ALL {
        scenario();
    }
    let figures = FIGURES.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(figures.len() >= ALL.len(), "each scenario has figures");
    let mut total = Tally::default();
    figures.values().for_each(|tally| total.add(tally));
    let harm: u64 = total.faults.values().sum();
    println!("totals: {} scenarios, {harm} times harm, {}", figures.len(), line(&total));
}
