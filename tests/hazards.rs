//! The two hazards of a live migration that were measured with Grafana's dskit, on a real Consul: late answers while nodes
//! join (a copy of an older ring marks them as LEFT), and a node that gossip does not reach (its copies make everybody
//! stale in Consul). Here: nobody is LEFT, nothing is stale. `cargo bench --bench hazards` does it at length, beside dskit.
#![cfg(feature = "consul")]
#![allow(clippy::unwrap_used)]

mod support;

#[path = "support/ring_in_consul.rs"]
#[allow(dead_code, reason = "the benchmark reports more of it")]
mod consul;
#[path = "support/fleet.rs"]
mod fleet;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use annulus::Node;
use annulus::config::{Config, KvStore};
use annulus::kv::StoreKind;
use annulus::ring::{Desc, InstanceState};
use consul::Ages;
use fleet::{Fleet, RING, RuntimeFile, is_complete, ring_text, two_stores, until, until_seen};
use support::consul::Consul;
use support::proxy::{Fault, FaultProxy};

const MIRROR: &str = "multi_kv_config: { mirror_enabled: true }\n";
const FLIPPED: &str = "multi_kv_config: { mirror_enabled: true, primary: memberlist }\n";

/// How late an answer is, and which share of them.
const LATE: Duration = Duration::from_secs(2);
const SHARE: f64 = 0.02;

/// Nodes that join while answers are late, and late answers that there must have been.
const JOINERS: usize = 4;
const LATE_ANSWERS: u64 = 4;

/// Nobody listens there.
const NOWHERE: &str = "127.0.0.1:1";

/// Longer than an entry needs to become stale, in seconds of heartbeats.
const LONG: i64 = 14;

/// The number of a node that gossips and is not in the ring.
const OBSERVER: usize = 99;

fn migrates(config: &mut Config, consul: &str, runtime: &str) {
    two_stores(config, KvStore::Consul, KvStore::Memberlist);
    config.kv.consul.host = consul.to_owned();
    config.runtime_config.file = vec![runtime.to_owned()];
    config.rings[0].heartbeat_timeout = Duration::from_secs(60);
}

/// Looks at the rings of nodes all the time, and remembers who was LEFT.
struct Looker {
    nodes: Arc<Mutex<Vec<Node>>>,
    left: Arc<Mutex<BTreeSet<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Looker {
    fn start(nodes: &[Node]) -> Self {
        let (nodes, left) = (Arc::new(Mutex::new(nodes.to_vec())), Arc::<Mutex<BTreeSet<String>>>::default());
        let (looked_at, seen) = (nodes.clone(), left.clone());
        let task = tokio::spawn(async move {
            loop {
                for node in looked_at.lock().unwrap().iter() {
                    let gone = gone(&node.ring(RING).desc());
                    seen.lock().unwrap().extend(gone.into_iter().map(|id| format!("{id} on {}", node.id())));
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        Self { nodes, left, task }
    }

    fn add(&self, node: &Node) {
        self.nodes.lock().unwrap().push(node.clone());
    }

    fn left(&self) -> BTreeSet<String> {
        self.left.lock().unwrap().clone()
    }
}

impl Drop for Looker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn gone(desc: &Desc) -> Vec<String> {
    let left = desc.instances.iter().filter(|(_, instance)| instance.state == InstanceState::Left);
    left.map(|(id, _)| id.to_string()).collect()
}

/// Looks at Consul, too, until something is so.
async fn looking_at(consul: &Consul, ages: &mut Ages, what: &str, mut done: impl FnMut(&Desc) -> bool) {
    until(what, async || {
        tokio::task::block_in_place(|| {
            ages.look(consul).unwrap();
            done(&consul::ring(consul).unwrap())
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_left_when_answers_of_consul_are_late_while_nodes_join() {
    let Some(consul) = Consul::start() else { return };
    let proxy = FaultProxy::start(consul.addr()).await;
    let runtime = RuntimeFile::new(MIRROR);
    let (host, path) = (proxy.host(), runtime.path());
    let mut fleet = Fleet::start(6, move |number, config| {
        migrates(config, &host, &path);
        if number == OBSERVER {
            config.kv.store = KvStore::Memberlist;
            config.runtime_config.file.clear();
            config.rings[0].join = false;
        }
    })
    .await;
    fleet.mirrored().await;
    let observer = fleet.builder(OBSERVER).start().await.unwrap();
    until_seen("the observer sees all", || ring_text(&observer), async || is_complete(&observer, 6)).await;
    let looker = Looker::start(&fleet.nodes);
    looker.add(&observer);

    proxy.set(Fault::SomeLate { method: "PUT", by: LATE, share: SHARE, seed: 1 });
    let mut ages = Ages::default();
    for number in 7..7 + JOINERS {
        let node = fleet.add(number).await;
        looker.add(&node);
        let everybody = [&fleet.nodes[..], std::slice::from_ref(&observer)].concat();
        let there = |_: &Desc| everybody.iter().all(|node| is_complete(node, number));
        looking_at(&consul, &mut ages, "all see the one that joined", there).await;
    }
    let enough = |_: &Desc| proxy.injected() >= LATE_ANSWERS;
    looking_at(&consul, &mut ages, "enough answers were late", enough).await;
    proxy.set(Fault::None);
    fleet.mirrored().await;
    for node in fleet.nodes.iter().chain([&observer]) {
        until_seen("all are there", || ring_text(node), async || is_complete(node, 6 + JOINERS)).await;
    }
    assert!(looker.left().is_empty() && ages.left.is_empty(), "{:?}, in Consul {:?}", looker.left(), ages.left);
    assert_eq!((ages.stale_looks, ages.fewest), (0, Some(6)), "{ages:?}");

    // Who sees nobody LEFT is able to.
    fleet.take("node-10").leave().await;
    until("a node that leaves is seen as LEFT", async || looker.left().contains("node-10 on node-99")).await;
    fleet.stop().await;
    observer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_ages_in_consul_when_gossip_does_not_reach_a_node() {
    let Some(consul) = Consul::start() else { return };
    let runtime = RuntimeFile::new(MIRROR);
    let (host, path) = (consul.host(), runtime.path());
    // The last one joins nobody, and nobody knows of it.
    let mut fleet = Fleet::empty(move |number, config| {
        migrates(config, &host, &path);
        if number == 5 {
            config.memberlist.join_members = vec![NOWHERE.to_owned()];
        }
    });
    for number in 1..=5 {
        fleet.add(number).await;
    }
    for node in &fleet.nodes {
        until_seen("all five are there", || ring_text(node), async || is_complete(node, 5)).await;
    }
    fleet.mirrored().await;
    let looker = Looker::start(&fleet.nodes);
    runtime.write(FLIPPED);
    fleet.primary(StoreKind::Memberlist).await;
    assert_eq!(fleet.nodes[4].members().list.len(), 1, "it is alone");

    let mut ages = Ages::default();
    let begin = consul::ring(&consul).unwrap();
    let beaten = |desc: &Desc| {
        begin.live().all(|(id, then)| desc.instances.get(id).is_some_and(|now| now.timestamp >= then.timestamp + LONG))
    };
    looking_at(&consul, &mut ages, "heartbeats of all reach Consul for long", beaten).await;
    assert_eq!((ages.stale_looks, ages.fewest), (0, Some(5)), "{ages:?}");
    assert!(looker.left().is_empty() && ages.left.is_empty(), "{:?}, in Consul {:?}", looker.left(), ages.left);
    fleet.stop().await;
}
