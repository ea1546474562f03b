//! The incident that labels are for: a node dies, a node of another cluster gets its address, and whoever still gossips to
//! the dead one talks to strangers. Both clusters have the same ring under the same key, as two installations of one
//! program have.
//!
//! Here two clusters each lose their first node, and each gets a new one at the address of the other's dead one, so that
//! both keep on talking to the other. How far it goes depends on labels alone: merged without, apart with them, and at
//! each step of a rollout of labels what the table in docs/labels.md says.

#![allow(clippy::unwrap_used)]

mod support;

#[path = "support/checker.rs"]
mod checker;
#[path = "support/fleet.rs"]
mod fleet;
#[path = "support/interop/loopback.rs"]
#[allow(dead_code, unreachable_pub, reason = "interop tests use more of it")]
mod loopback;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use annulus::clock::Now;
use annulus::config::{Config, KvStore, MemberlistConfig};
use annulus::kv::{Kv, LwwMap, StoreKind};
use annulus::{JSON_PREFIX, Node};
use fleet::{Fleet, RING, RING_KEY, RuntimeFile, live_members, ring_text, two_stores, until, until_seen};
use loopback::Loopback;
use serde_json::{Value, json};

/// All nodes gossip on one port, as pods do.
const PORT: u16 = 7946;

const MIRROR: &str = "multi_kv_config: { mirror_enabled: true }\n";
const FLIPPED: &str = "multi_kv_config: { mirror_enabled: true, primary: memberlist }\n";

/// Packets and streams that must have been refused before "nothing came through" means something.
const MANY: u64 = 20;

/// A cluster of which node 1 dies; the last node is started later, at the address of the other cluster's node 1.
struct Cluster {
    name: &'static str,
    /// Nodes before the death, and after the newcomer came.
    size: usize,
    fleet: Fleet,
    _homes: Arc<Vec<Loopback>>,
}

impl Cluster {
    /// Two clusters without nodes. `customise` is asked for every node, with the name of its cluster and its number.
    fn pair(size: usize, customise: impl Fn(&str, usize, &mut Config) + Clone + Send + Sync + 'static) -> (Self, Self) {
        let homes = Arc::new((0..2 * size).map(|_| Loopback::lease()).collect::<Vec<_>>());
        let ips: Vec<IpAddr> = homes.iter().map(Loopback::ip).collect();
        let (ours, theirs) = ips.split_at(size);
        let cluster = |name: &'static str, own: &[IpAddr], other: &[IpAddr]| {
            let at: Vec<IpAddr> = own.iter().chain(&other[..1]).copied().collect();
            let customise = customise.clone();
            let fleet = Fleet::empty(move |number, config| {
                config.node.id = format!("{name}-{number}");
                let memberlist = &mut config.memberlist;
                memberlist.bind_addr = vec![at[number - 1]];
                memberlist.bind_port = PORT;
                // Whom it once joined through it calls again and again.
                memberlist.rejoin_interval = Duration::from_secs(1);
                memberlist.pull_push_interval = Some(Duration::from_secs(1));
                customise(name, number, config);
            });
            Self { name, size, fleet, _homes: homes.clone() }
        };
        (cluster("a", ours, theirs), cluster("b", theirs, ours))
    }

    /// Starts all nodes but the newcomer, and writes a value.
    async fn start(&mut self) {
        for number in 1..=self.size {
            self.fleet.add(number).await;
        }
        self.fleet.complete().await;
        let (key, name) = (self.key(), self.name);
        let write = move |old: Option<Map>| {
            let mut map = old.unwrap_or_default();
            map.insert(Now::read(), "owner", json!(name));
            Ok(Some(map))
        };
        values(&self.fleet.nodes[0]).cas(&key, write).await.unwrap();
    }

    /// A key of this cluster alone.
    fn key(&self) -> String {
        format!("belongs-to-{}", self.name)
    }

    fn id(&self, number: usize) -> String {
        format!("{}-{number}", self.name)
    }

    /// The node at the address that the other cluster talks to.
    fn newcomer(&self) -> &Node {
        self.fleet.nodes.last().unwrap()
    }

    /// Ends node 1 without a goodbye, and without its instance in the ring.
    async fn lose_the_first(&mut self) -> Node {
        let node = self.fleet.take(&self.id(1));
        node.stop().await;
        node
    }

    /// What a node of this cluster has of another one: members, instances, keys.
    async fn has_of(&self, node: &Node, other: &Self) -> Vec<String> {
        let mut has = foreign(node, other.name);
        if let Ok(Some(map)) = values(node).get(&other.key()).await {
            has.push(format!("the key {}: {:?}", other.key(), map.get("owner")));
        }
        has
    }

    /// Waits until every node has members, instances and keys of the other cluster.
    async fn is_invaded_by(&self, other: &Self) {
        for node in &self.fleet.nodes {
            let seen = Mutex::new(Vec::new());
            until_seen(
                &format!("{} has members, instances and a key of {}", node.id(), other.name),
                || (seen.lock().unwrap().clone(), node.labels()),
                async || {
                    let has = self.has_of(node, other).await;
                    let kinds: BTreeSet<_> =
                        has.iter().map(|what| what.split(' ').nth(1).unwrap().to_owned()).collect();
                    *seen.lock().unwrap() = has;
                    kinds.len() == 3
                },
            )
            .await;
        }
    }

    /// Nothing of the other cluster is here, on any node.
    async fn is_clean_of(&self, other: &Self) {
        for node in &self.fleet.nodes {
            let has = self.has_of(node, other).await;
            assert!(has.is_empty(), "{} has of {}: {has:#?}", node.id(), other.name);
        }
    }

    /// Waits until the newcomer has refused much that came under this label.
    async fn refuses(&self, label: &str) {
        let node = self.newcomer();
        let refused = || node.labels().unwrap().refused.get(label).copied().unwrap_or_default();
        let before = refused();
        until_seen(
            &format!("{} refuses the label {label:?}", node.id()),
            || node.labels(),
            async || refused() >= before + MANY,
        )
        .await;
        assert!(node.metrics().contains(&format!("annulus_foreign_label_total{{label=\"{label}\"}}")));
    }
}

/// Each cluster loses its first node, and starts one at the address of the other's.
async fn swap_addresses(a: &mut Cluster, b: &mut Cluster) {
    let (from_a, from_b) = (a.lose_the_first().await, b.lose_the_first().await);
    for (cluster, freed) in [(&mut *a, &from_b), (b, &from_a)] {
        let node = cluster.fleet.add(cluster.size + 1).await;
        assert_eq!(node.gossip_addr(), freed.gossip_addr(), "the address is used again");
    }
}

type Map = LwwMap<Value>;

fn values(node: &Node) -> Kv<Map> {
    node.kv(JSON_PREFIX)
}

/// Members and instances whose names begin with a cluster's, as a node sees them.
fn foreign(node: &Node, cluster: &str) -> Vec<String> {
    let begin = format!("{cluster}-");
    let members = node.members().list.iter().map(|member| format!("the member {}", member.name)).collect::<Vec<_>>();
    let desc = node.ring(RING).desc();
    let instances = desc.instances.keys().map(|id| format!("the instance {id}"));
    let all = members.into_iter().chain(instances);
    all.filter(|what| what.rsplit(' ').next().is_some_and(|name| name.starts_with(&begin))).collect()
}

/// Looks at nodes all the time, and remembers what they had of another cluster.
struct Witness {
    tasks: Vec<tokio::task::JoinHandle<()>>,
    seen: Arc<Mutex<BTreeSet<String>>>,
}

impl Witness {
    fn new() -> Self {
        Self { tasks: Vec::new(), seen: Arc::default() }
    }

    fn watch(&mut self, nodes: &[Node], other: &'static str) {
        for node in nodes {
            let (node, seen) = (node.clone(), self.seen.clone());
            self.tasks.push(tokio::spawn(async move {
                loop {
                    let has = foreign(&node, other).into_iter().map(|what| format!("{}: {what}", node.id()));
                    seen.lock().unwrap().extend(has);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }));
        }
    }

    fn assert_nothing(self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
        let seen = self.seen.lock().unwrap();
        assert!(seen.is_empty(), "{seen:#?}");
    }
}

/// A node of cluster "a", which moves its ring from the old store into gossip.
fn migrates(config: &mut Config, from: KvStore, runtime: &str) {
    two_stores(config, from, KvStore::Memberlist);
    config.runtime_config.file = vec![runtime.to_owned()];
    config.rings[0].unregister_on_shutdown = false;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_labels_two_clusters_become_one_and_the_flip_brings_it_into_the_ring_that_is_read() {
    let runtime = RuntimeFile::new(MIRROR);
    let path = runtime.path();
    let (mut a, mut b) = Cluster::pair(3, move |name, _, config| {
        if name == "a" {
            migrates(config, KvStore::Inmemory, &path);
        }
    });
    a.start().await;
    a.fleet.mirrored().await;
    b.start().await;
    swap_addresses(&mut a, &mut b).await;

    // Members are one cluster, and who reads gossip has both rings.
    for cluster in [&a, &b] {
        for node in &cluster.fleet.nodes {
            let what = format!("{} has the members of both clusters", node.id());
            until_seen(&what, || live_members(node), async || live_members(node).len() == 6).await;
            assert!(node.labels().unwrap().refused.is_empty());
        }
    }
    b.is_invaded_by(&a).await;

    // Who still reads the old store notices nothing in the ring; the comparison of both stores tells.
    for node in &a.fleet.nodes {
        assert!(node.ring(RING).desc().instances.keys().all(|id| id.starts_with("a-")), "{:?}", ring_text(node));
        let seen = Mutex::new(None);
        until_seen(
            "the comparison shows the strangers",
            || seen.lock().unwrap().clone(),
            async || {
                let report = node.parity().await.unwrap().unwrap();
                *seen.lock().unwrap() = Some(report.clone());
                let strangers = |id: &String| id.starts_with("b-");
                report.rings[RING_KEY].only_secondary.ids.iter().any(strangers)
                    && report.only_secondary.ids.iter().any(|key| key.contains(&b.key()))
                    && report.ownership_delta > 0.3
            },
        )
        .await;
        // It is no reason for the gate to close: the other store has all that this one has.
        // But it says so.
        let open = |gates: &[annulus::migration::Gate]| {
            gates.iter().any(|gate| gate.name == "parity" && gate.open && gate.warning.is_some())
        };
        until_seen("the gate is open", || node.migration(), async || open(&node.migration().unwrap().gates)).await;
    }
    runtime.write(FLIPPED);
    a.fleet.primary(StoreKind::Memberlist).await;
    a.is_invaded_by(&b).await;
    a.fleet.stop().await;
    b.fleet.stop().await;
}

#[cfg(feature = "consul")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_labels_nothing_crosses_and_the_migration_goes_on_to_its_end_without_a_lost_write() {
    use checker::Workload;
    use support::consul::Consul;

    let Some(mut consul) = Consul::start() else { return };
    let runtime = RuntimeFile::new(MIRROR);
    let (path, host) = (runtime.path(), consul.host());
    let (mut a, mut b) = Cluster::pair(3, move |name, _, config| {
        config.memberlist.cluster_label = name.to_owned();
        if name == "a" {
            migrates(config, KvStore::Consul, &path);
            config.kv.consul.host.clone_from(&host);
        }
    });
    a.start().await;
    b.start().await;
    let mut witness = Witness::new();
    let mut work = Workload::with_pause(&a.fleet.nodes, Some(Duration::from_millis(100)));
    a.fleet.mirrored().await;
    work.goes_on().await;

    work.retire(&a.fleet.nodes[0]).await;
    swap_addresses(&mut a, &mut b).await;
    witness.watch(&a.fleet.nodes, b.name);
    witness.watch(&b.fleet.nodes, a.name);
    for cluster in [&a, &b] {
        // The dead one is taken out of the ring, by a node that lives.
        assert!(cluster.fleet.nodes[0].ring(RING).forget(&cluster.id(1)).await.unwrap());
        cluster.fleet.complete().await;
    }
    work.add(a.newcomer());

    // Both are called by the other one all the time, in packets and streams, and say what they refused.
    a.refuses(b.name).await;
    b.refuses(a.name).await;
    for cluster in [&a, &b] {
        let other = if cluster.name == "a" { "b" } else { "a" };
        let status = cluster.newcomer().labels().unwrap();
        assert_eq!(status.sent.keys().collect::<Vec<_>>(), [cluster.name]);
        assert!(status.members.values().flatten().all(|label| label == cluster.name), "{status:?}");
        says_what_it_refused(cluster.newcomer(), other).await;
    }
    // A push/pull that is asked for, either way: neither says a word to the other.
    for (caller, called) in [(&a, &b), (&b, &a)] {
        for (node, to) in caller.fleet.nodes.iter().zip(&called.fleet.nodes) {
            let before = to.labels().unwrap().refused.get(caller.name).copied().unwrap_or_default();
            let refused = node.join(vec![to.gossip_addr().unwrap()]).await;
            assert!(refused.is_err(), "{} joined {}: {refused:?}", node.id(), to.id());
            until("the stream is counted", async || to.labels().unwrap().refused[caller.name] > before).await;
        }
    }
    a.is_clean_of(&b).await;
    b.is_clean_of(&a).await;

    // The migration goes on: both stores are equal, so nothing foreign is in either, and the flip changes no owner.
    a.fleet.mirrored().await;
    for node in &a.fleet.nodes {
        until("both stores have the same instances and keys", async || {
            let report = node.parity().await.unwrap().unwrap();
            let ring = &report.rings[RING_KEY];
            report.only_primary.count + report.only_secondary.count == 0
                && ring.only_primary.count + ring.only_secondary.count == 0
                && report.replica_set_delta == 0.0
        })
        .await;
    }
    let before: Vec<_> = a.fleet.nodes.iter().map(|node| node.ring(RING).snapshot()).collect();
    runtime.write(FLIPPED);
    a.fleet.primary(StoreKind::Memberlist).await;
    for (node, before) in a.fleet.nodes.iter().zip(&before) {
        assert_eq!(node.ring(RING).snapshot().owners_changed(before), 0, "owners changed on {}", node.id());
    }
    work.goes_on().await;
    a.refuses(b.name).await;
    a.is_clean_of(&b).await;

    // To its end: a restart of each node on gossip alone, and no Consul.
    runtime.write("# nothing\n");
    for number in [2, 3, 4] {
        let node = a.fleet.take(&a.id(number));
        work.retire(&node).await;
        let report = node.leave().await;
        assert!(report.unfinished.is_empty(), "{report:?}");
        let mut config = a.fleet.config(number);
        config.kv.store = KvStore::Memberlist;
        config.migration.teardown = true;
        let node = Node::builder(config.node.id.clone()).config(config).start().await.unwrap();
        a.fleet.nodes.push(node.clone());
        a.fleet.complete().await;
        witness.watch(std::slice::from_ref(&node), b.name);
        work.add(&node);
        work.goes_on().await;
    }
    consul.stop();
    work.goes_on().await;
    // Who was restarted does not know the old address any more; the others call still.
    a.refuses(b.name).await;
    let report = work.stop().await;
    report.assert_flawless();
    report.assert_nothing_lost(&a.fleet.nodes).await;
    a.is_clean_of(&b).await;
    b.is_clean_of(&a).await;
    witness.assert_nothing();
    a.fleet.stop().await;
    b.fleet.stop().await;
}

/// Asks a node by the command line.
#[cfg(all(feature = "consul", feature = "cli"))]
async fn says_what_it_refused(node: &Node, label: &str) {
    let server = annulus::http::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let url = format!("http://{}", server.local_addr());
    let serving = tokio::spawn(server.run(node.clone(), std::future::pending()));
    let status = tokio::task::spawn_blocking(move || {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_annulus"));
        command.args(["--node", &url, "label", "status"]).output().unwrap()
    });
    let status = status.await.unwrap();
    serving.abort();
    let text = String::from_utf8_lossy(&status.stdout);
    let wanted = format!("packets and streams with label {label}");
    assert!(status.status.success() && text.contains(&wanted), "{wanted} is not in {text} {status:?}");
}

#[cfg(all(feature = "consul", not(feature = "cli")))]
async fn says_what_it_refused(_: &Node, _: &str) {}

/// A step of the rollout of a label; docs/labels.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// 0.
    Before,
    /// 1, the wide way: no label, anything is accepted.
    AcceptAll,
    /// 1, the narrow way: no label, the own one is accepted too.
    AcceptNamed,
    /// 2, the wide way: the label, anything is accepted.
    SendAll,
    /// 2, the narrow way: the label, none is accepted too.
    SendNamed,
    /// 3.
    Verify,
}

use Step::{AcceptAll, AcceptNamed, Before, SendAll, SendNamed, Verify};

impl Step {
    fn configure(self, label: &str, memberlist: &mut MemberlistConfig) {
        if matches!(self, SendAll | SendNamed | Verify) {
            memberlist.cluster_label = label.to_owned();
        }
        match self {
            AcceptAll | SendAll => memberlist.cluster_label_verification_disabled = true,
            AcceptNamed => memberlist.accepted_labels = vec![label.to_owned()],
            SendNamed => memberlist.accepted_labels = vec![String::new()],
            Before | Verify => {}
        }
    }

    /// The label that a cluster at this step sends.
    fn sends(self, label: &str) -> &str {
        if matches!(self, Before | AcceptAll | AcceptNamed) { "" } else { label }
    }
}

/// A case: our step, and who comes to whom.
struct Case {
    step: Step,
    into_us: bool,
    into_them: bool,
}

const fn case(step: Step, into_us: bool, into_them: bool) -> Case {
    Case { step, into_us, into_them }
}

/// Goes through the cases with a cluster that is configured so, and sends this label, or (none given) goes the same way.
async fn at_each_step(cases: &[Case], other: Option<&'static str>) {
    for &Case { step, into_us, into_them } in cases {
        println!("{step:?} beside {other:?}");
        let (mut a, mut b) = Cluster::pair(2, move |name, _, config| match other {
            Some(label) if name == "b" => config.memberlist.cluster_label = label.to_owned(),
            _ => step.configure(name, &mut config.memberlist),
        });
        a.start().await;
        b.start().await;
        swap_addresses(&mut a, &mut b).await;
        let (sent_by_a, sent_by_b) = (step.sends("a"), other.unwrap_or_else(|| step.sends("b")));
        for (here, there, comes, label) in [(&a, &b, into_us, sent_by_b), (&b, &a, into_them, sent_by_a)] {
            if comes {
                here.is_invaded_by(there).await;
            } else {
                here.refuses(label).await;
            }
        }
        for (here, there, comes) in [(&a, &b, into_us), (&b, &a, into_them)] {
            if !comes {
                here.is_clean_of(there).await;
            }
        }
        a.fleet.stop().await;
        b.fleet.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_a_cluster_without_a_label_others_are_safe_from_the_second_step_and_we_from_the_third() {
    let cases = [
        case(Before, true, true),
        case(AcceptAll, true, true),
        case(AcceptNamed, true, true),
        case(SendAll, true, false),
        case(SendNamed, true, false),
        case(Verify, false, false),
    ];
    at_each_step(&cases, Some("")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_a_cluster_with_a_label_others_are_always_safe_and_we_with_named_labels_from_the_first_step() {
    let cases = [
        case(Before, false, false),
        case(AcceptAll, true, false),
        case(AcceptNamed, false, false),
        case(SendAll, true, false),
        case(SendNamed, false, false),
        case(Verify, false, false),
    ];
    at_each_step(&cases, Some("b")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_a_cluster_at_the_same_step_named_labels_protect_both_from_the_second_step() {
    let cases = [
        case(Before, true, true),
        case(AcceptAll, true, true),
        case(AcceptNamed, true, true),
        case(SendAll, true, true),
        case(SendNamed, false, false),
        case(Verify, false, false),
    ];
    at_each_step(&cases, None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_that_accepts_anything_opens_the_whole_cluster() {
    // Ours is at the last step, but for the node that gets the address.
    let (mut a, mut b) = Cluster::pair(3, |name, number, config| {
        let step = if name == "a" && number == 4 { SendAll } else { Verify };
        step.configure(name, &mut config.memberlist);
    });
    a.start().await;
    b.start().await;
    swap_addresses(&mut a, &mut b).await;
    b.refuses("a").await;
    // The open node brings it to those that verify, under the label of all of them.
    a.is_invaded_by(&b).await;
    b.is_clean_of(&a).await;
    a.fleet.stop().await;
    b.fleet.stop().await;
}
