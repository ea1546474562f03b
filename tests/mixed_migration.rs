//! A ring moves from Consul into gossip in a fleet of Annulus nodes and of Grafana's own code, driven by the same runtime
//! files: dskit reads them with the code with which Mimir and Loki do.
#![cfg(feature = "consul")]
#![allow(clippy::unwrap_used)]

mod support;

#[path = "support/checker.rs"]
mod checker;
#[path = "support/dskit_peer.rs"]
mod dskit_peer;
#[path = "support/fleet.rs"]
mod fleet;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use annulus::Node;
use annulus::config::KvStore;
use annulus::kv::StoreKind;
use annulus::ring::InstanceState;
use checker::Workload;
use dskit_peer::{DskitPeer, Identities, gossip_like_grafana, ours, same_owners, theirs};
use fleet::{Fleet, RING, RING_KEY, RuntimeFile, is_complete, ring_text, two_stores, until, until_seen};
use support::consul::Consul;
use support::proxy::{Fault, FaultProxy};

const WIRED: &str = "multi_kv_config: {}\n";
const MIRROR: &str = "multi_kv_config: { mirror_enabled: true }\n";
const FLIPPED: &str = "multi_kv_config: { mirror_enabled: true, primary: memberlist }\n";
const FLIPPED_BACK: &str = "multi_kv_config: { mirror_enabled: true, primary: consul }\n";

/// What keeps one of dskit's behind the others, in a file that it merges over that of the fleet.
const HELD: &str = "multi_kv_config: { mirror_enabled: false, primary: consul }\n";
const HELD_ON_CONSUL: &str = "multi_kv_config: { primary: consul }\n";

/// Joins in the middle, while it cannot reach Consul.
const LATE: &str = "node-4";

const ALL: [&str; 5] = ["dskit-1", "dskit-2", "node-1", "node-2", "node-3"];

/// A peer on two stores, or (for the teardown) on gossip alone, that follows these runtime files.
async fn dskit(
    number: usize,
    store: &str,
    consul: &Consul,
    seeds: &str,
    tokens: &str,
    runtime: &[&RuntimeFile],
) -> Option<DskitPeer> {
    let files: Vec<_> = runtime.iter().map(|file| file.path()).collect();
    let arguments = [
        format!("-id=dskit-{number}"),
        format!("-key={RING_KEY}"),
        format!("-ring.store={store}"),
        format!("-consul.hostname={}", consul.host()),
        format!("-memberlist.join={seeds}"),
        format!("-tokens-file={tokens}/dskit-{number}"),
        format!("-runtime-config.file={}", files.join(",")),
    ];
    let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    arguments.extend(["-multi.primary=consul", "-multi.secondary=memberlist", "-memberlist.cluster-label=mixed"]);
    arguments.extend(["-leave-ring=false", "-tokens=64", "-runtime-config.reload-period=200ms"]);
    DskitPeer::start(&arguments).await
}

/// Looks at the rings of nodes all the time, and remembers what should not be there.
struct Witness {
    task: tokio::task::JoinHandle<()>,
    phase: Arc<Mutex<&'static str>>,
    seen: Arc<Mutex<BTreeSet<String>>>,
}

impl Witness {
    fn start(nodes: &[Node]) -> Self {
        let (nodes, phase, seen) = (nodes.to_vec(), Arc::new(Mutex::new("")), Arc::<Mutex<BTreeSet<_>>>::default());
        let (now, list) = (phase.clone(), seen.clone());
        let task = tokio::spawn(async move {
            loop {
                for node in &nodes {
                    let desc = node.ring(RING).desc();
                    for (id, instance) in &desc.instances {
                        if instance.state == InstanceState::Left && (ALL.contains(&&**id) || **id == *LATE) {
                            list.lock().unwrap().insert(format!(
                                "{}: {} sees {id} LEFT",
                                now.lock().unwrap(),
                                node.id()
                            ));
                        }
                    }
                    for id in ALL {
                        if node.ring(RING).snapshot().instance(id).is_none() {
                            list.lock().unwrap().insert(format!("{}: {} misses {id}", now.lock().unwrap(), node.id()));
                        }
                    }
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        Self { task, phase, seen }
    }

    fn phase(&self, phase: &'static str) {
        *self.phase.lock().unwrap() = phase;
    }

    fn seen(&self) -> BTreeSet<String> {
        self.seen.lock().unwrap().clone()
    }

    fn stop(self) -> BTreeSet<String> {
        self.task.abort();
        self.seen()
    }
}

/// In few words, what is not as it was.
fn changes(before: &Identities, now: &Identities) -> String {
    let text =
        |it: Option<&(Vec<u32>, i64)>| it.map(|(tokens, at)| format!("{} tokens, registered {at}", tokens.len()));
    let ids: BTreeSet<&String> = before.keys().chain(now.keys()).collect();
    let changed = ids.into_iter().filter(|id| before.get(*id) != now.get(*id));
    changed.map(|id| format!("{id}: {:?} -> {:?}; ", text(before.get(id)), text(now.get(id)))).collect()
}

/// Waits until everybody sees the five instances with the tokens and the registrations that they have had.
async fn whole(fleet: &Fleet, peers: &[&DskitPeer], before: &Identities) {
    for node in &fleet.nodes {
        let what = format!("{} sees the five as they were", node.id());
        until_seen(&what, || changes(before, &ours(node)), async || ours(node) == *before).await;
    }
    for peer in peers {
        let seen = Mutex::new(String::new());
        let what = "dskit sees the five as they were";
        until_seen(
            what,
            || seen.lock().unwrap().clone(),
            async || {
                let now = theirs(peer).await;
                *seen.lock().unwrap() = changes(before, &now);
                now == *before
            },
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn annulus_and_dskit_move_their_ring_together_through_the_five_steps() {
    let Some(mut consul) = Consul::start() else { return };
    if dskit_peer::program().is_none() {
        return;
    }
    let tokens = tempfile::tempdir().unwrap();
    let tokens = tokens.path().display().to_string();
    // One file for the whole fleet; and each of dskit's has a second one on top of it, which keeps it behind for a while.
    let runtime = RuntimeFile::new(WIRED);
    let (hold_one, hold_two) = (RuntimeFile::new(HELD), RuntimeFile::new(HELD));
    // Between the late node and Consul.
    let proxy = FaultProxy::start(consul.addr()).await;
    let (host, late, path) = (consul.host(), proxy.host(), runtime.path());
    let mut fleet = Fleet::empty(move |number, config| {
        gossip_like_grafana(config, "mixed");
        config.rings[0].unregister_on_shutdown = false;
        two_stores(config, KvStore::Consul, KvStore::Memberlist);
        // The others read Consul with Grafana's eyes.
        config.kv.multi.keep_tombstones = false;
        config.kv.consul.host.clone_from(if number == 4 { &late } else { &host });
        config.runtime_config.file = vec![path.clone()];
    });

    // 1: wired. Gossip runs and holds no ring.
    fleet.add(1).await;
    let seed = fleet.nodes[0].gossip_addr().unwrap().to_string();
    let mut one = dskit(1, "multi", &consul, &seed, &tokens, &[&runtime, &hold_one]).await.unwrap();
    let mut two = dskit(2, "multi", &consul, &seed, &tokens, &[&runtime, &hold_two]).await.unwrap();
    fleet.add(2).await;
    fleet.add(3).await;
    // Consul as it is, by Grafana's own eyes, whatever the others read.
    let (store, key) = (format!("-consul.hostname={}", consul.host()), format!("-key={RING_KEY}"));
    let in_consul = DskitPeer::start(&["-ring.store=consul", &store, &key]).await.unwrap();
    for node in &fleet.nodes {
        until_seen("all five are there", || ring_text(node), async || is_complete(node, ALL.len())).await;
    }
    let before = ours(&fleet.nodes[0]);
    whole(&fleet, &[&one, &two, &in_consul], &before).await;
    same_owners(&fleet.nodes[0], &one).await;
    let mut workload = Workload::lookups(&fleet.nodes);
    let witness = Witness::start(&fleet.nodes);
    workload.goes_on().await;

    // 2: mirror, Annulus first.
    witness.phase("mirror, ours");
    runtime.write(MIRROR);
    fleet.mirrored().await;
    workload.goes_on().await;
    witness.phase("mirror, all");
    for (hold, peer) in [(&hold_one, &one), (&hold_two, &two)] {
        hold.write(HELD_ON_CONSUL);
        mirrors(peer).await;
    }
    wait_for_heartbeats(&fleet, 5).await;
    whole(&fleet, &[&one, &two, &in_consul], &before).await;

    // 3: swap, one after the other, and a while with each reading something else.
    witness.phase("swap, ours");
    runtime.write(FLIPPED);
    fleet.primary(StoreKind::Memberlist).await;
    workload.goes_on().await;
    wait_for_heartbeats(&fleet, 5).await;
    whole(&fleet, &[&one, &two, &in_consul], &before).await;

    // A node joins through gossip, and does not reach Consul. Grafana's members, who read Consul and copy what they write
    // there over gossip whole, take it for gone with every heartbeat; and with every heartbeat it is back.
    witness.phase("join");
    proxy.set(Fault::Refuse);
    let late = fleet.add(4).await;
    let gone = || witness.seen().iter().any(|what| what.contains("node-4 LEFT"));
    until_seen("dskit takes the late node for gone", || ring_text(&late), async || gone()).await;
    workload.goes_on().await;
    proxy.set(Fault::None);
    until_seen(
        "its outbox is empty",
        || late.migration(),
        async || late.migration().is_some_and(|status| status.outbox_len == 0),
    )
    .await;
    for node in &fleet.nodes {
        until_seen("all six are there", || ring_text(node), async || is_complete(node, ALL.len() + 1)).await;
    }
    let before = ours(&late);
    wait_for_heartbeats(&fleet, 3).await;
    whole(&fleet, &[&one, &two, &in_consul], &before).await;

    witness.phase("swap, one of dskit's");
    hold_one.write(WIRED);
    dskit_reads(&one, StoreKind::Memberlist).await;
    wait_for_heartbeats(&fleet, 5).await;
    whole(&fleet, &[&one, &two, &in_consul], &before).await;
    dskit_reads(&two, StoreKind::Consul).await;
    witness.phase("swap, all");
    hold_two.write(WIRED);
    dskit_reads(&two, StoreKind::Memberlist).await;
    wait_for_heartbeats(&fleet, 5).await;
    whole(&fleet, &[&one, &two, &in_consul], &before).await;
    same_owners(&fleet.nodes[1], &one).await;
    same_owners(&fleet.nodes[2], &two).await;

    // A removed instance is nowhere, and in Consul not even as a tombstone.
    two.tell("/put?key=collectors/ring&id=ghost&addr=127.0.0.1:1&tokens=1,2").await;
    for node in &fleet.nodes {
        until("we see the ghost", async || node.ring(RING).snapshot().instance("ghost").is_some()).await;
    }
    until("it is in Consul", async || in_consul.ring(RING_KEY).await.contains_key("ghost")).await;
    assert!(fleet.nodes[0].ring(RING).forget("ghost").await.unwrap());
    whole(&fleet, &[&one, &two, &in_consul], &before).await;
    until("it is not in Consul", async || !in_consul.ring(RING_KEY).await.contains_key("ghost")).await;

    // 4: tear down. A rolling restart on gossip alone; the section stays until it is over.
    witness.phase("teardown");
    let mut seen = witness.stop();
    for number in 1..=4 {
        if number == 3 {
            // Half way it ends without a goodbye, and comes back with its old static configuration.
            let node = fleet.take(&fleet::id(3));
            workload.retire(&node).await;
            node.stop().await;
            let node = fleet.add(3).await;
            whole(&fleet, &[&one, &two], &before).await;
            reads(&node, StoreKind::Memberlist).await;
            assert!(node.migration().unwrap().mirror_enabled);
            workload.add(&node);
            wait_for_heartbeats(&fleet, 2).await;
        }
        let node = fleet.take(&fleet::id(number));
        workload.retire(&node).await;
        let report = node.leave().await;
        assert!(report.unfinished.is_empty(), "{report:?}");
        let mut config = fleet.config(number);
        config.kv.store = KvStore::Memberlist;
        config.migration.teardown = true;
        fleet.nodes.push(Node::builder(config.node.id.clone()).config(config).start().await.unwrap());
        whole(&fleet, &[&one, &two], &before).await;
    }
    // The same of dskit's: killed with both stores, it is back on gossip.
    let seeds = fleet.nodes[0].gossip_addr().unwrap().to_string();
    drop(two);
    two = dskit(2, "multi", &consul, &seeds, &tokens, &[&runtime, &hold_two]).await.unwrap();
    dskit_reads(&two, StoreKind::Memberlist).await;
    wait_for_heartbeats(&fleet, 2).await;
    whole(&fleet, &[&one, &two], &before).await;
    one.leave().await;
    one = dskit(1, "memberlist", &consul, &seeds, &tokens, &[&runtime]).await.unwrap();
    whole(&fleet, &[&one, &two], &before).await;
    two.leave().await;
    two = dskit(2, "memberlist", &consul, &seeds, &tokens, &[&runtime]).await.unwrap();
    whole(&fleet, &[&one, &two], &before).await;
    // Nobody has two stores any more.
    runtime.write("# nothing\n");
    for node in &fleet.nodes {
        assert!(node.migration().is_none());
        until("the section is gone", async || {
            node.runtime_config().is_some_and(|view| view.config.multi_kv_config.primary.is_none())
        })
        .await;
    }

    // 5: clean. Nobody needs Consul any more.
    consul.stop();
    wait_for_heartbeats(&fleet, 3).await;
    whole(&fleet, &[&one, &two], &before).await;
    same_owners(&fleet.nodes[0], &two).await;
    let report = workload.stop().await;
    report.assert_lookups();
    seen.retain(|what| !what.contains(LATE));
    assert!(seen.is_empty(), "living instances were missing or LEFT: {seen:#?}");
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mixed_fleet_goes_back_half_way_while_nodes_of_both_kinds_restart_and_then_gets_there() {
    let Some(consul) = Consul::start() else { return };
    if dskit_peer::program().is_none() {
        return;
    }
    let tokens = tempfile::tempdir().unwrap();
    let tokens = tokens.path().display().to_string();
    // The first of either kind gets its orders before the others.
    let (first, others) = (RuntimeFile::new(MIRROR), RuntimeFile::new(MIRROR));
    let (host, early, late) = (consul.host(), first.path(), others.path());
    let mut fleet = Fleet::empty(move |number, config| {
        gossip_like_grafana(config, "mixed");
        config.rings[0].unregister_on_shutdown = false;
        two_stores(config, KvStore::Consul, KvStore::Memberlist);
        config.kv.multi.keep_tombstones = false;
        config.kv.consul.host.clone_from(&host);
        config.runtime_config.file = vec![if number == 1 { &early } else { &late }.clone()];
    });
    fleet.add(1).await;
    let seed = fleet.nodes[0].gossip_addr().unwrap().to_string();
    let mut one = dskit(1, "multi", &consul, &seed, &tokens, &[&first]).await.unwrap();
    let mut two = dskit(2, "multi", &consul, &seed, &tokens, &[&others]).await.unwrap();
    fleet.add(2).await;
    fleet.add(3).await;
    for node in &fleet.nodes {
        until_seen("all five are there", || ring_text(node), async || is_complete(node, ALL.len())).await;
    }
    let before = ours(&fleet.nodes[0]);
    for peer in [&one, &two] {
        mirrors(peer).await;
    }
    fleet.mirrored().await;
    whole(&fleet, &[&one, &two], &before).await;
    let mut workload = Workload::lookups(&fleet.nodes);
    let mut witness = Witness::start(&fleet.nodes);

    // Half way: one of each kind reads gossip, the others read Consul.
    witness.phase("half way");
    first.write(FLIPPED);
    reads(&fleet.nodes[0], StoreKind::Memberlist).await;
    dskit_reads(&one, StoreKind::Memberlist).await;
    workload.goes_on().await;
    wait_for_heartbeats(&fleet, 3).await;
    whole(&fleet, &[&one, &two], &before).await;

    // Killed half way: one of dskit's that reads gossip, and one that reads Consul. Each comes back with its old settings,
    // and reads in its runtime file what it knew.
    witness.phase("dskit is killed");
    let seed = fleet.nodes[1].gossip_addr().unwrap().to_string();
    drop(one);
    one = dskit(1, "multi", &consul, &seed, &tokens, &[&first]).await.unwrap();
    dskit_reads(&one, StoreKind::Memberlist).await;
    mirrors(&one).await;
    whole(&fleet, &[&one, &two], &before).await;
    drop(two);
    two = dskit(2, "multi", &consul, &seed, &tokens, &[&others]).await.unwrap();
    mirrors(&two).await;
    dskit_reads(&two, StoreKind::Consul).await;
    wait_for_heartbeats(&fleet, 3).await;
    whole(&fleet, &[&one, &two], &before).await;

    // The same of ours: one that has flipped, and one that has not, end without a goodbye.
    let mut seen = BTreeSet::new();
    for number in [1, 2] {
        let node = fleet.take(&fleet::id(number));
        workload.retire(&node).await;
        seen.extend(witness.stop());
        node.stop().await;
        let node = fleet.add(number).await;
        for node in &fleet.nodes {
            until_seen("all five are there", || ring_text(node), async || is_complete(node, ALL.len())).await;
        }
        witness = Witness::start(&fleet.nodes);
        witness.phase("ours are killed");
        reads(&node, if number == 1 { StoreKind::Memberlist } else { StoreKind::Consul }).await;
        workload.add(&node);
        workload.goes_on().await;
        whole(&fleet, &[&one, &two], &before).await;
    }
    same_owners(&fleet.nodes[0], &one).await;

    // Back: one change of one file, and both kinds read Consul again.
    witness.phase("back");
    first.write(FLIPPED_BACK);
    fleet.primary(StoreKind::Consul).await;
    dskit_reads(&one, StoreKind::Consul).await;
    workload.goes_on().await;
    wait_for_heartbeats(&fleet, 3).await;
    whole(&fleet, &[&one, &two], &before).await;
    for node in &fleet.nodes {
        same_owners(node, &two).await;
    }

    // And once more, this time all the way.
    witness.phase("there");
    first.write(FLIPPED);
    others.write(FLIPPED);
    fleet.primary(StoreKind::Memberlist).await;
    for peer in [&one, &two] {
        dskit_reads(peer, StoreKind::Memberlist).await;
    }
    workload.goes_on().await;
    wait_for_heartbeats(&fleet, 3).await;
    whole(&fleet, &[&one, &two], &before).await;
    same_owners(&fleet.nodes[0], &two).await;
    workload.stop().await.assert_lookups();
    seen.extend(witness.stop());
    assert!(seen.is_empty(), "living instances were missing or LEFT: {seen:#?}");
    fleet.stop().await;
}

/// Waits until a node reads this store.
async fn reads(node: &Node, store: StoreKind) {
    let what = format!("{} reads {store}", node.id());
    let reads = async || node.migration().is_some_and(|status| status.primary == store);
    until_seen(&what, || node.migration(), reads).await;
}

/// Waits until one of dskit's reads this store, as its metrics tell.
async fn dskit_reads(peer: &DskitPeer, store: StoreKind) {
    let wanted = format!("multikv_primary_store{{store=\"{store}\"}} 1");
    until(&wanted, async || peer.metrics().await.lines().any(|line| line == wanted)).await;
}

/// Waits until one of dskit's writes both stores, as its metrics tell.
async fn mirrors(peer: &DskitPeer) {
    let wanted = "multikv_mirror_enabled 1";
    until("dskit mirrors", async || peer.metrics().await.lines().any(|line| line == wanted)).await;
}

/// Waits until every instance has sent so many more heartbeats, as all nodes of ours see it.
async fn wait_for_heartbeats(fleet: &Fleet, count: i64) {
    for node in &fleet.nodes {
        let beats = || -> BTreeMap<String, i64> {
            let snapshot = node.ring(RING).snapshot();
            snapshot.instances().iter().map(|it| (it.id.to_string(), it.timestamp)).collect()
        };
        let before = beats();
        until_seen("heartbeats go on", beats, async || {
            let now = beats();
            before.iter().all(|(id, at)| now.get(id).is_some_and(|now| *now >= at + count))
        })
        .await;
    }
}
