//! Knowing that a flip is safe: real nodes with two stores, compared, gated, asked.

#![allow(clippy::unwrap_used)]

mod support;

#[path = "support/fleet.rs"]
mod fleet;

use annulus::actors::shadow::ShadowStatus;
use annulus::config::KvStore;
use annulus::kv::{Codec, StoreKind, Value};
use annulus::migration::{Phase, Rollback};
use annulus::ring::{Desc, RingCodec};
use annulus::{Node, Operation, key_hash};
use fleet::{Fleet, RING, RING_KEY, RuntimeFile, two_stores, until, until_seen};

const WIRED: &str = "multi_kv_config: {}\n";
const MIRROR: &str = "multi_kv_config: { mirror_enabled: true }\n";
const SWAP: &str = "multi_kv_config: { primary: memberlist }\n";
const FLIPPED: &str = "multi_kv_config: { mirror_enabled: true, primary: memberlist }\n";
const FLIPPED_BACK: &str = "multi_kv_config: { mirror_enabled: true, primary: inmemory }\n";

async fn fleet(runtime: &RuntimeFile, require_parity: bool) -> Fleet {
    let path = runtime.path();
    Fleet::start(3, move |_, config| {
        two_stores(config, KvStore::Inmemory, KvStore::Memberlist);
        config.runtime_config.file = vec![path.clone()];
        config.migration.require_parity = require_parity;
        config.migration.shadow_lookups = 1.0;
    })
    .await
}

fn closed(node: &Node) -> Vec<&'static str> {
    let status = node.migration().unwrap();
    status.gates.iter().filter(|gate| !gate.open).map(|gate| gate.name).collect()
}

async fn gates_open(fleet: &Fleet) {
    for node in &fleet.nodes {
        until_seen(&format!("the gates of {} are open", node.id()), || closed(node), async || closed(node).is_empty())
            .await;
        assert!(node.preflight().unwrap().safe);
    }
}

/// Every node looks up the same keys, and what both stores say is compared.
fn look_up(fleet: &Fleet) {
    for node in &fleet.nodes {
        for key in 0..500 {
            node.ring(RING).get(key_hash(format!("key-{key}")), Operation::Write).unwrap();
        }
    }
}

async fn shadows_agree(fleet: &Fleet) {
    for node in &fleet.nodes {
        // The shadow may have heard of the last change a moment later than the ring: then it is asked again.
        until(&format!("the shadow of {} agrees", node.id()), async || {
            let before = node.shadow_lookups()[0].clone();
            look_up(fleet);
            let after = node.shadow_lookups()[0].clone();
            after.compared >= before.compared + 500 && after.mismatched == before.mismatched
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_knows_before_each_step_that_it_is_safe_and_can_go_back() {
    let runtime = RuntimeFile::new(WIRED);
    let fleet = fleet(&runtime, false).await;
    let node = &fleet.nodes[0];

    // Wired: the other store is empty, and that would move everything.
    let report = node.parity().await.unwrap().unwrap();
    assert!(!report.equal && !report.secondary_has_all);
    assert_eq!(report.only_primary.ids, [RING_KEY]);
    assert!(report.ownership_delta > 0.99, "{}", report.ownership_delta);
    assert!(closed(node).contains(&"mirror"));
    assert!(!node.preflight().unwrap().safe);

    runtime.write(MIRROR);
    gates_open(&fleet).await;
    for node in &fleet.nodes {
        until("both stores are equal", async || {
            let report = node.parity().await.unwrap().unwrap();
            report.equal && report.ownership_delta == 0.0 && report.replica_set_delta == 0.0
        })
        .await;
        let preflight = node.preflight().unwrap();
        assert_eq!((preflight.phase, preflight.to, preflight.members.len()), (Phase::Dual, StoreKind::Memberlist, 3));
        assert_eq!(preflight.rings, fleet.nodes[0].preflight().unwrap().rings);
    }
    shadows_agree(&fleet).await;

    runtime.write(FLIPPED);
    fleet.primary(StoreKind::Memberlist).await;
    gates_open(&fleet).await;
    for node in &fleet.nodes {
        until("the way back is safe", async || node.migration().unwrap().rollback == Rollback::Safe).await;
    }
    shadows_agree(&fleet).await;
    let metrics = node.metrics();
    for metric in [
        "annulus_parity_secondary_has_all 1",
        "annulus_rollback_safe 1",
        r#"annulus_gate_open{gate="parity"} 1"#,
        r#"annulus_migration_phase{phase="flipped"} 1"#,
        r#"annulus_migration_phase{phase="dual"} 0"#,
        r#"annulus_watch_age_seconds{store="inmemory"} 0.0"#,
    ] {
        assert!(metrics.contains(metric), "{metric} is not in\n{metrics}");
    }
    assert!(metrics.contains("annulus_parity_ownership_delta_ratio 0.0"), "{metrics}");

    let before: Vec<_> = fleet.nodes.iter().map(|node| node.ring(RING).snapshot()).collect();
    runtime.write(FLIPPED_BACK);
    fleet.primary(StoreKind::InMemory).await;
    for (node, before) in fleet.nodes.iter().zip(&before) {
        assert_eq!(node.ring(RING).snapshot().owners_changed(before), 0);
    }
    shadows_agree(&fleet).await;
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_have_to_be_sure_stay_until_the_other_store_has_everything() {
    let runtime = RuntimeFile::new(WIRED);
    let fleet = fleet(&runtime, true).await;
    // An operator who skips a step.
    runtime.write(SWAP);
    for node in &fleet.nodes {
        until("the node says why it stays", async || {
            let status = node.migration().unwrap();
            status.pending_flip.as_ref().is_some_and(|flip| flip.reason.contains("mirroring is off"))
        })
        .await;
        assert_eq!(node.migration().unwrap().primary, StoreKind::InMemory);
    }
    look_up(&fleet);
    // With the mirror on they go by themselves.
    runtime.write(FLIPPED);
    fleet.primary(StoreKind::Memberlist).await;
    fleet.complete().await;
    look_up(&fleet);
    fleet.stop().await;
}

fn shadow(node: &Node) -> ShadowStatus {
    node.shadow_lookups()[0].clone()
}

/// A counter of the shadow on the page of metrics.
fn counted(node: &Node, what: &str) -> u64 {
    let metrics = node.metrics();
    let start = format!("annulus_shadow_{what}_total{{name=\"{RING}\"}} ");
    let line = metrics.lines().find_map(|line| line.strip_prefix(&start));
    line.unwrap_or_else(|| panic!("there is no {start}in {metrics}")).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lookups_that_the_other_store_answers_differently_are_counted_and_shown() {
    let runtime = RuntimeFile::new(WIRED);
    let path = runtime.path();
    let fleet = Fleet::start(3, move |_, config| {
        two_stores(config, KvStore::Memberlist, KvStore::Inmemory);
        config.runtime_config.file = vec![path.clone()];
        config.migration.shadow_lookups = 1.0;
    })
    .await;
    let node = &fleet.nodes[0];
    assert_eq!((counted(node, "lookups"), counted(node, "mismatches")), (0, 0));

    // The other store is empty: there every lookup fails.
    look_up(&fleet);
    let empty = shadow(node);
    assert_eq!((empty.compared, empty.mismatched), (500, 500));
    assert_eq!((counted(node, "lookups"), counted(node, "mismatches")), (500, 500));
    let last = empty.last.unwrap();
    assert!(last.primary.contains("node-3") && last.secondary.contains("empty"), "{last:?}");

    // It has a ring, and in that an instance is missing: other owners, and no error.
    until_seen(
        "an answer with other owners is counted",
        || shadow(node),
        async || {
            let entry = node.store().get(RING_KEY).await.unwrap().unwrap();
            let mut ring = entry.value.downcast_ref::<Desc>().unwrap().clone();
            ring.instances.remove("node-3").unwrap();
            fleet.memory.put_bytes(RING_KEY, RingCodec.encode(&Value::new(ring)).unwrap());
            let before = shadow(node).mismatched;
            look_up(&fleet);
            let now = shadow(node);
            let last = now.last.clone().unwrap();
            let others = |text: &str| text.contains("node-1") && text.contains("node-2");
            let all_in_primary = others(&last.primary) && last.primary.contains("node-3");
            let fewer_in_other = others(&last.secondary) && !last.secondary.contains("node-3");
            now.mismatched == before + 500 && all_in_primary && fewer_in_other
        },
    )
    .await;
    assert_eq!(counted(node, "mismatches"), shadow(node).mismatched);

    // With the mirror on they become the same, and what was counted stays.
    let before = shadow(node).mismatched;
    runtime.write(MIRROR);
    fleet.mirrored().await;
    shadows_agree(&fleet).await;
    assert!(shadow(node).mismatched >= before);
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_starts_on_gossip_copies_and_compares_only_what_it_has_joined_for() {
    let runtime = RuntimeFile::new(FLIPPED);
    let mut fleet = fleet(&runtime, false).await;
    fleet.primary(StoreKind::Memberlist).await;
    fleet.mirrored().await;
    for number in 4..=6 {
        let node = fleet.add(number).await;
        until("its backfill is through", async || node.migration().unwrap().backfill.verified).await;
        let backfill = node.migration().unwrap().backfill;
        assert!(backfill.keys >= 1, "everything of nothing is verified: {backfill:?}");
    }
    fleet.stop().await;
}
