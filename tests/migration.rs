//! A live ring moves from a real Consul into gossip, and back, and again, under load.
#![cfg(feature = "consul")]
#![allow(clippy::unwrap_used)]

mod support;

#[path = "support/checker.rs"]
mod checker;
#[path = "support/fleet.rs"]
mod fleet;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use annulus::clock::Now;
use annulus::config::KvStore;
use annulus::kv::{Kv, LwwMap, StoreKind};
use annulus::migration::Phase;
use annulus::ring::{Desc, Snapshot};
use annulus::{JSON_PREFIX, Node};
use checker::Workload;
use fleet::{Fleet, PATIENCE, RING, RING_KEY, RuntimeFile, identities, two_stores, until};
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use support::consul::Consul;
use tokio::sync::watch;

const WRITE_PAUSE: Duration = Duration::from_millis(100);

const WIRED: &str = "multi_kv_config: {}\n";
const MIRROR: &str = "multi_kv_config: { mirror_enabled: true }\n";
const FLIPPED: &str = "multi_kv_config: { mirror_enabled: true, primary: memberlist }\n";
const FLIPPED_BACK: &str = "multi_kv_config: { mirror_enabled: true, primary: consul }\n";

type Map = LwwMap<Value>;

fn values(node: &Node) -> Kv<Map> {
    node.kv(JSON_PREFIX)
}

async fn set(node: &Node, key: &str, entry: &'static str, value: u64) {
    let write = move |old: Option<Map>| {
        let mut map = old.unwrap_or_default();
        map.insert(Now::read(), entry, json!(value));
        Ok(Some(map))
    };
    values(node).cas(key, write).await.unwrap();
}

async fn read(node: &Node, key: &str, entry: &str) -> Option<Value> {
    values(node).get(key).await.unwrap()?.get(entry).cloned()
}

fn customise(consul: &Consul, runtime: &RuntimeFile) -> impl Fn(usize, &mut annulus::Config) + Send + Sync + 'static {
    let (host, path) = (consul.host(), runtime.path());
    move |_, config| {
        two_stores(config, KvStore::Consul, KvStore::Memberlist);
        config.kv.consul.host.clone_from(&host);
        config.runtime_config.file = vec![path.clone()];
        config.rings[0].unregister_on_shutdown = false;
    }
}

/// Whether Consul has a value under a key, asked without anything of Annulus.
fn in_consul(consul: &Consul, key: &str) -> bool {
    let answer = consul.request("GET", &format!("/v1/kv/{key}"), b"");
    let status = answer.split(' ').nth(1).unwrap_or_default();
    assert!(["200", "404"].contains(&status), "{answer}");
    status == "200"
}

fn snapshots(fleet: &Fleet) -> Vec<Arc<Snapshot>> {
    fleet.nodes.iter().map(|node| node.ring(RING).snapshot()).collect()
}

/// No key has other owners than at the time of these snapshots.
fn assert_same_owners(fleet: &Fleet, before: &[Arc<Snapshot>]) {
    for (node, before) in fleet.nodes.iter().zip(before) {
        assert_eq!(node.ring(RING).snapshot().owners_changed(before), 0, "owners changed on {}", node.id());
    }
}

/// Follows watches of every node and fails when one of them goes back.
struct Watchers {
    stop: Stop,
    tasks: Vec<tokio::task::JoinHandle<u64>>,
}

/// Becomes true when the watchers are to end.
type Stop = watch::Sender<bool>;

/// A key of which every node counts up an entry of its own.
const COUNTERS: &str = "counters";

impl Watchers {
    fn start(nodes: &[Node]) -> Self {
        let stop = Stop::new(false);
        let mut tasks = Vec::new();
        for node in nodes {
            tasks.push(tokio::spawn(count_up(node.clone(), stop.clone())));
            tasks.push(tokio::spawn(watch_counters(node.clone(), stop.clone())));
            tasks.push(tokio::spawn(watch_ring(node.clone(), stop.clone(), nodes.len())));
        }
        Self { stop, tasks }
    }

    async fn stop(self) {
        self.stop.send_replace(true);
        for task in self.tasks {
            let steps = tokio::time::timeout(PATIENCE, task).await.expect("a watcher ends").expect("a watch went back");
            assert!(steps > 0, "a watcher saw nothing");
        }
    }
}

async fn count_up(node: Node, stop: Stop) -> u64 {
    let mut number = 0;
    while !*stop.borrow() {
        number += 1;
        let name = node.id().to_owned();
        let write = move |old: Option<Map>| {
            let mut map = old.unwrap_or_default();
            map.insert(Now::read(), name.clone(), json!(number));
            Ok(Some(map))
        };
        values(&node).cas(COUNTERS, write).await.unwrap();
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    number
}

async fn watch_counters(node: Node, stop: Stop) -> u64 {
    let mut watch = values(&node).watch_key(COUNTERS);
    let (mut watched, mut got, mut steps) = (Counts::new(), Counts::new(), 0);
    while let Some(map) = next(&mut watch, &stop).await {
        let next = counts(map);
        assert_not_back(&watched, &next, &format!("the watch of {}", node.id()));
        watched = next;
        // The watch may be behind what is there now, but never ahead of it.
        let now = counts(values(&node).get(COUNTERS).await.unwrap());
        assert_not_back(&watched, &now, &format!("after the watch, the read of {}", node.id()));
        assert_not_back(&got, &now, &format!("the read of {}", node.id()));
        got = now;
        steps += 1;
    }
    steps
}

type Counts = BTreeMap<String, u64>;

fn counts(map: Option<Map>) -> Counts {
    map.iter().flat_map(Map::iter).map(|(name, value)| (name.to_owned(), value.as_u64().unwrap())).collect()
}

fn assert_not_back(before: &Counts, now: &Counts, who: &str) {
    for (name, before) in before {
        let now = now.get(name);
        assert!(now >= Some(before), "{who} went back: {name} from {before} to {now:?}");
    }
}

async fn watch_ring(node: Node, stop: Stop, instances: usize) -> u64 {
    let store = node.store();
    let mut watch = store.watch_key(RING_KEY);
    let mut seen = BTreeMap::<Arc<str>, i64>::new();
    let mut steps = 0;
    while let Some(change) = next(&mut watch, &stop).await {
        assert!(change.fresh, "{}: a store was out of reach", node.id());
        let value = change.entry.expect("the ring is there").value;
        let desc = value.downcast_ref::<Desc>().expect("a ring");
        assert!(desc.live().count() >= instances, "{}: an instance is gone: {desc:?}", node.id());
        for (id, instance) in desc.live() {
            let before = seen.insert(id.clone(), instance.timestamp);
            assert!(before <= Some(instance.timestamp), "{}: the heartbeat of {id} went back", node.id());
        }
        steps += 1;
    }
    steps
}

/// The next step of a watch, or `None` when the watchers are to end.
async fn next<T>(watch: &mut (impl futures_util::Stream<Item = T> + Unpin), stop: &Stop) -> Option<T> {
    let mut stopped = stop.subscribe();
    tokio::select! {
        step = tokio::time::timeout(PATIENCE, watch.next()) => {
            Some(step.expect("a watch that goes on").expect("a watch that does not end"))
        }
        _ = stopped.wait_for(|stopped| *stopped) => None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_nodes_move_their_ring_to_gossip_and_back_and_again_and_nothing_is_lost() {
    let Some(consul) = Consul::start() else { return };
    let runtime = RuntimeFile::new(WIRED);
    let mut fleet = Fleet::start(5, customise(&consul, &runtime)).await;
    let phase = |wanted: Phase| {
        let nodes = fleet.nodes.clone();
        move || nodes.iter().all(|node| node.migration().is_some_and(|status| status.phase == wanted))
    };
    assert!(phase(Phase::Wired)(), "{:?}", fleet.nodes[0].migration());
    set(&fleet.nodes[0], "nobody-writes-this", "x", 1).await;
    let identity = identities(&fleet.nodes[0]);
    let before = snapshots(&fleet);
    let mut workload = Workload::with_pause(&fleet.nodes, Some(WRITE_PAUSE));
    let watchers = Watchers::start(&fleet.nodes);
    workload.goes_on().await;

    // Mirror.
    runtime.write(MIRROR);
    fleet.mirrored().await;
    assert!(phase(Phase::Dual)());
    set(&fleet.nodes[1], "is-deleted-in-consul", "x", 1).await;
    // By another node than the one that wrote it, and that still knows it.
    values(&fleet.nodes[2]).delete("is-deleted-in-consul").await.unwrap();
    workload.goes_on().await;

    // There, back, and there again.
    runtime.write(FLIPPED);
    fleet.primary(StoreKind::Memberlist).await;
    assert_same_owners(&fleet, &before);
    workload.goes_on().await;
    assert!(phase(Phase::Flipped)());
    for node in &fleet.nodes {
        until("a key that nobody writes was copied", async || {
            read(node, "nobody-writes-this", "x").await == Some(json!(1))
        })
        .await;
        until("what was deleted in Consul is gone in gossip", async || {
            values(node).get("is-deleted-in-consul").await.unwrap().is_none()
        })
        .await;
    }
    set(&fleet.nodes[3], "is-deleted-in-gossip", "x", 1).await;
    until("the mirror brings it to Consul", async || in_consul(&consul, "annulus/kv/is-deleted-in-gossip")).await;
    values(&fleet.nodes[3]).delete("is-deleted-in-gossip").await.unwrap();
    until("the mirror deletes it in Consul", async || !in_consul(&consul, "annulus/kv/is-deleted-in-gossip")).await;

    runtime.write(FLIPPED_BACK);
    fleet.primary(StoreKind::Consul).await;
    assert_same_owners(&fleet, &before);
    workload.goes_on().await;
    fleet.mirrored().await;
    for node in &fleet.nodes {
        assert!(values(node).get("is-deleted-in-gossip").await.unwrap().is_none());
    }

    runtime.write(FLIPPED);
    fleet.primary(StoreKind::Memberlist).await;
    assert_same_owners(&fleet, &before);
    workload.goes_on().await;

    // The section goes away: everything stays as it is.
    for text in ["# multi_kv_config is gone\n", "overrides: {}\n", ""] {
        let reloads: Vec<_> = fleet.nodes.iter().map(|node| node.runtime_config().unwrap().reloads).collect();
        runtime.write(text);
        for (node, reloads) in fleet.nodes.iter().zip(reloads) {
            until("the file is read", async || node.runtime_config().unwrap().reloads > reloads).await;
        }
    }
    workload.goes_on().await;
    for node in &fleet.nodes {
        let status = node.migration().unwrap();
        assert_eq!((status.primary, status.mirror_enabled, status.flips_total), (StoreKind::Memberlist, true, 3));
    }
    watchers.stop().await;

    // Tear down: a rolling restart with gossip alone.
    for number in 1..=5 {
        let node = fleet.take(&fleet::id(number));
        workload.retire(&node).await;
        let report = node.leave().await;
        assert!(report.unfinished.is_empty(), "{report:?}");
        let mut config = fleet.config(number);
        config.kv.store = KvStore::Memberlist;
        config.migration.teardown = true;
        let node = Node::builder(config.node.id.clone()).config(config).start().await.unwrap();
        assert!(node.migration().is_none());
        fleet.nodes.push(node);
        fleet.complete().await;
    }
    assert_eq!(identities(&fleet.nodes[0]), identity, "the same instances with the same tokens since the beginning");
    assert_eq!(fleet.nodes[0].ring(RING).snapshot().owners_changed(&before[0]), 0);
    let report = workload.stop().await;
    report.assert_flawless();
    report.assert_nothing_lost(&fleet.nodes).await;
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_starts_in_the_middle_begins_on_the_right_primary() {
    let Some(consul) = Consul::start() else { return };
    let runtime = RuntimeFile::new(MIRROR);
    let mut fleet = Fleet::start(3, customise(&consul, &runtime)).await;
    fleet.mirrored().await;
    let workload = Workload::with_pause(&fleet.nodes, Some(WRITE_PAUSE));

    let late = fleet.add(4).await;
    set(&late, "from-4", "x", 4).await;
    let status = late.migration().unwrap();
    assert_eq!((status.primary, status.flips_total, status.mirror_enabled), (StoreKind::Consul, 0, true));
    fleet.complete().await;
    fleet.mirrored().await;
    workload.goes_on().await;

    runtime.write(FLIPPED);
    fleet.primary(StoreKind::Memberlist).await;
    let late = fleet.add(5).await;
    set(&late, "from-5", "x", 5).await;
    assert_eq!(late.migration().unwrap().primary, StoreKind::Memberlist, "its first write went to the new primary");
    fleet.complete().await;
    for node in &fleet.nodes {
        until("all see the writes of the late nodes", async || {
            (read(node, "from-4", "x").await, read(node, "from-5", "x").await) == (Some(json!(4)), Some(json!(5)))
        })
        .await;
    }
    until("the late node mirrors into Consul", async || in_consul(&consul, "annulus/kv/from-5")).await;
    let report = workload.stop().await;
    report.assert_flawless();
    report.assert_nothing_lost(&fleet.nodes).await;
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_start_when_gossip_is_primary_never_write_to_consul() {
    let Some(consul) = Consul::start() else { return };
    let runtime = RuntimeFile::new("multi_kv_config: { primary: memberlist, mirror_enabled: false }\n");
    let fleet = Fleet::start(3, customise(&consul, &runtime)).await;
    let workload = Workload::start(&fleet.nodes);
    workload.goes_on().await;
    let report = workload.stop().await;
    report.assert_flawless();
    report.assert_nothing_lost(&fleet.nodes).await;
    fleet.stop().await;
    assert!(!in_consul(&consul, RING_KEY));
    let answer = consul.request("GET", "/v1/kv/?recurse", b"");
    assert!(answer.contains(" 404 ") || answer.ends_with("[]"), "something is in Consul: {answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_flip_at_different_times_stay_one_ring() {
    let Some(consul) = Consul::start() else { return };
    // Each node has a runtime file of its own.
    let files: Vec<_> = (0..4).map(|_| RuntimeFile::new(MIRROR)).collect();
    let shared = customise(&consul, &files[0]);
    let paths: Vec<_> = files.iter().map(RuntimeFile::path).collect();
    let fleet = Fleet::start(4, move |number, config| {
        shared(number, config);
        config.runtime_config.file = vec![paths[number - 1].clone()];
    })
    .await;
    fleet.mirrored().await;
    let before = snapshots(&fleet);
    let workload = Workload::with_pause(&fleet.nodes, Some(WRITE_PAUSE));
    let watchers = Watchers::start(&fleet.nodes);
    for (there, expected) in [(FLIPPED, StoreKind::Memberlist), (FLIPPED_BACK, StoreKind::Consul)] {
        for (file, node) in files.iter().zip(&fleet.nodes) {
            file.write(there);
            until("one more node has flipped", async || node.migration().unwrap().primary == expected).await;
            // Half of the nodes read one store, half the other; all write both.
            workload.goes_on().await;
            assert_same_owners(&fleet, &before);
        }
    }
    watchers.stop().await;
    let report = workload.stop().await;
    report.assert_flawless();
    report.assert_nothing_lost(&fleet.nodes).await;
    fleet.complete().await;
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_flip_consul_may_go_away_for_good() {
    let Some(mut consul) = Consul::start() else { return };
    let runtime = RuntimeFile::new(MIRROR);
    let fleet = Fleet::start(3, customise(&consul, &runtime)).await;
    fleet.mirrored().await;
    let before = snapshots(&fleet);
    let workload = Workload::start(&fleet.nodes);
    workload.goes_on().await;
    runtime.write(FLIPPED);
    fleet.primary(StoreKind::Memberlist).await;
    consul.stop();
    for node in &fleet.nodes {
        until("the mirror keeps what Consul does not take", async || {
            let status = node.migration().unwrap();
            status.outbox_len > 0 && status.last_error_secondary.is_some()
        })
        .await;
    }
    workload.goes_on().await;
    assert_same_owners(&fleet, &before);
    let report = workload.stop().await;
    report.assert_flawless();
    report.assert_nothing_lost(&fleet.nodes).await;
    fleet.complete().await;
    // A consul that comes back empty is filled from the outbox and the heartbeats.
    consul.restart();
    for node in &fleet.nodes {
        until("the outbox is empty again", async || node.migration().unwrap().outbox_len == 0).await;
    }
    until("heartbeats bring the ring to Consul again", async || in_consul(&consul, RING_KEY)).await;
    fleet.stop().await;
}
