//! Nodes of one fleet in this process, over real sockets of the loopback interface, with short timings.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "every test uses its own part of this")]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use annulus::actors::membership::Members;
use annulus::config::{Config, KvStore, RingConfig};
use annulus::kv::StoreKind;
use annulus::ring::InstanceState;
use annulus::stores::memory::Memory;
use annulus::wire::message::MemberState;
use annulus::{Node, NodeBuilder, Operation};

use crate::support::wait_until;

/// The ring of every fleet.
pub const RING: &str = "ingester";

/// The ring's key in every store.
pub const RING_KEY: &str = "collectors/ring";

/// Longer than anything takes that does come, also on a machine with other work. Nothing is asserted about less time.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Waits for a condition; fails the test with its name when it does not come true.
pub async fn until(what: &str, condition: impl AsyncFnMut() -> bool) {
    assert!(wait_until(PATIENCE, condition).await, "waited {PATIENCE:?} in vain until {what}");
}

/// As [`until`]; shows what was there in the end.
pub async fn until_seen<T: std::fmt::Debug>(what: &str, seen: impl Fn() -> T, condition: impl AsyncFnMut() -> bool) {
    assert!(wait_until(PATIENCE, condition).await, "waited {PATIENCE:?} in vain until {what}: {:?}", seen());
}

/// A configuration with short timings, for a node with this number, counted from 1.
pub fn config(number: usize) -> Config {
    let ms = |millis| Some(Duration::from_millis(millis));
    let mut config = Config::default();
    config.node.id = id(number);
    config.node.zone = format!("zone-{}", ["a", "b", "c"][(number - 1) % 3]);
    config.node.address = format!("127.0.0.1:{}", 20_000 + number);
    let memberlist = &mut config.memberlist;
    memberlist.bind_addr = vec![IpAddr::V4(Ipv4Addr::LOCALHOST)];
    memberlist.bind_port = 0;
    memberlist.gossip_interval = ms(50);
    memberlist.probe_interval = ms(300);
    memberlist.probe_timeout = ms(150);
    memberlist.suspicion_mult = Some(3);
    memberlist.pull_push_interval = ms(5_000);
    memberlist.leave_timeout = Duration::from_secs(5);
    config.kv.store = KvStore::Memberlist;
    config.kv.consul.watch_rate_limit = 0.0;
    config.rings = vec![RingConfig {
        key: "ring".into(),
        replication_factor: 3,
        num_tokens: 64,
        heartbeat_period: Duration::from_secs(1),
        heartbeat_timeout: Duration::from_secs(5),
        min_ready_duration: Duration::ZERO,
        ..RingConfig::named(RING)
    }];
    config.runtime_config.period = Duration::from_millis(100);
    config.http.listen = String::new();
    config
}

/// The id of a node.
pub fn id(number: usize) -> String {
    format!("node-{number}")
}

/// Lets a configuration use two stores.
pub fn two_stores(config: &mut Config, primary: KvStore, secondary: KvStore) {
    config.kv.store = KvStore::Multi;
    config.kv.multi.primary = primary;
    config.kv.multi.secondary = secondary;
}

type Customise = Box<dyn Fn(usize, &mut Config) + Send + Sync>;

/// Nodes of one fleet, and what they share.
pub struct Fleet {
    /// The store of `kv.store: inmemory`.
    pub memory: Memory,
    /// The nodes that were started and not taken out, in the order of their starts.
    pub nodes: Vec<Node>,
    customise: Customise,
}

impl Fleet {
    /// A fleet without nodes. `customise` is asked for every node that is started, with its number.
    pub fn empty(customise: impl Fn(usize, &mut Config) + Send + Sync + 'static) -> Self {
        Self { memory: Memory::new(), nodes: Vec::new(), customise: Box::new(customise) }
    }

    /// Starts nodes 1 to `count` and waits until each sees all of them, as members and in the ring.
    pub async fn start(count: usize, customise: impl Fn(usize, &mut Config) + Send + Sync + 'static) -> Self {
        let mut fleet = Self::empty(customise);
        for number in 1..=count {
            fleet.add(number).await;
        }
        fleet.complete().await;
        fleet
    }

    /// The configuration of a node that would be started now: it joins through the nodes that are there.
    pub fn config(&self, number: usize) -> Config {
        let mut config = config(number);
        config.memberlist.join_members =
            self.nodes.iter().filter_map(Node::gossip_addr).map(|addr| addr.to_string()).collect();
        (self.customise)(number, &mut config);
        config
    }

    /// A builder with that configuration and the shared store.
    pub fn builder(&self, number: usize) -> NodeBuilder {
        let config = self.config(number);
        Node::builder(config.node.id.clone()).config(config).memory_store(self.memory.clone())
    }

    /// Starts a node.
    pub async fn add(&mut self, number: usize) -> Node {
        let node = self.builder(number).start().await.unwrap_or_else(|error| panic!("node {number}: {error}"));
        self.nodes.push(node.clone());
        node
    }

    /// Takes a node out of the list; it goes on until it is stopped or its last handle is dropped.
    pub fn take(&mut self, id: &str) -> Node {
        let place = self.nodes.iter().position(|node| node.id() == id).expect("a node of this fleet");
        self.nodes.remove(place)
    }

    /// Waits until every node sees every node of the list, and no other, healthy and ACTIVE in the ring, with the same
    /// tokens everywhere; and as members, where there is gossip.
    pub async fn complete(&self) {
        let count = self.nodes.len();
        for node in &self.nodes {
            until_seen(
                &format!("the ring of {} has {count} instances", node.id()),
                || ring_text(node),
                async || is_complete(node, count),
            )
            .await;
            if node.gossip_addr().is_some() {
                until_seen(
                    &format!("{} has {count} members", node.id()),
                    || live_members(node),
                    async || live_members(node).len() == count,
                )
                .await;
            }
        }
        until("all see the same ring", async || {
            let mut digests = self.nodes.iter().map(|node| node.ring(RING).snapshot().digest());
            let first = digests.next();
            digests.all(|digest| Some(digest) == first)
        })
        .await;
    }

    /// Waits until a store is primary on every node and nothing is left to be done for it.
    pub async fn primary(&self, store: StoreKind) {
        for node in &self.nodes {
            until_seen(
                &format!("{} reads {store}", node.id()),
                || node.migration(),
                async || {
                    node.migration().is_some_and(|status| status.primary == store && status.pending_flip.is_none())
                },
            )
            .await;
        }
    }

    /// Waits until the mirror of every node is on, has copied everything and has nothing left to send.
    pub async fn mirrored(&self) {
        for node in &self.nodes {
            until_seen(
                &format!("the mirror of {} is complete", node.id()),
                || node.migration(),
                async || {
                    node.migration().is_some_and(|status| {
                        status.mirror_enabled && status.backfill.verified && status.outbox_len == 0
                    })
                },
            )
            .await;
        }
    }

    /// Ends all nodes at once, without a goodbye.
    pub async fn stop(self) {
        for node in &self.nodes {
            node.stop().await;
        }
    }
}

/// Whether a node's ring has exactly this many instances, all healthy and ACTIVE.
pub fn is_complete(node: &Node, count: usize) -> bool {
    let snapshot = node.ring(RING).snapshot();
    snapshot.instances().len() == count
        && snapshot.instances().iter().all(|instance| {
            instance.state == InstanceState::Active
                && instance.is_healthy(Operation::Write)
                && !instance.tokens.is_empty()
        })
}

/// A node's ring in few words, for messages.
pub fn ring_text(node: &Node) -> Vec<String> {
    let snapshot = node.ring(RING).snapshot();
    let text = |instance: &annulus::ring::RingInstance| {
        format!("{} {} healthy={}", instance.id, instance.state, instance.is_healthy(Operation::Write))
    };
    snapshot.instances().iter().map(text).collect()
}

/// The ids of the instances in a node's ring.
pub fn ring_ids(node: &Node) -> Vec<String> {
    node.ring(RING).snapshot().instances().iter().map(|instance| instance.id.to_string()).collect()
}

/// The names of the members that a node takes for alive or suspects.
pub fn live_members(node: &Node) -> Vec<String> {
    names(&node.members(), |state| matches!(state, MemberState::Alive | MemberState::Suspect))
}

/// The state of a member as a node sees it.
pub fn member_state(node: &Node, name: &str) -> Option<MemberState> {
    node.members().list.iter().find(|member| member.name.to_string() == name).map(|member| member.state)
}

fn names(members: &Arc<Members>, wanted: impl Fn(MemberState) -> bool) -> Vec<String> {
    members.list.iter().filter(|member| wanted(member.state)).map(|member| member.name.to_string()).collect()
}

/// What makes an instance the same one: tokens and registration time, by id, as a node sees them.
pub type Identities = BTreeMap<String, (Arc<[u32]>, i64)>;

/// See [`Identities`].
pub fn identities(node: &Node) -> Identities {
    let snapshot = node.ring(RING).snapshot();
    let identity = |instance: &annulus::ring::RingInstance| {
        (instance.id.to_string(), (instance.tokens.clone(), instance.registered_timestamp))
    };
    snapshot.instances().iter().map(identity).collect()
}

/// What every node of a fleet sees, to compare with later.
pub fn all_identities(fleet: &Fleet) -> Vec<Identities> {
    fleet.nodes.iter().map(identities).collect()
}

/// Every node sees the same instances as before, with the tokens and the registration they had.
pub fn assert_same_identities(fleet: &Fleet, before: &[Identities]) {
    for (node, before) in fleet.nodes.iter().zip(before) {
        assert_eq!(identities(node), *before, "an instance is not the same any more, seen from {}", node.id());
    }
}

/// Restarts of one actor so far.
pub fn restarts(node: &Node, actor: &str) -> u64 {
    node.actors().iter().find(|status| status.name == actor).map_or(0, annulus::node::ActorStatus::total_restarts)
}

/// A runtime file, rewritten as an operator's tools do: whole, by a rename.
pub struct RuntimeFile {
    directory: tempfile::TempDir,
    path: PathBuf,
}

impl RuntimeFile {
    /// A file with this content.
    pub fn new(text: &str) -> Self {
        let file = Self::missing();
        file.write(text);
        file
    }

    /// A path at which there is no file yet.
    pub fn missing() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("runtime.yaml");
        Self { directory, path }
    }

    /// Its path, for `runtime_config.file`.
    pub fn path(&self) -> String {
        self.path.display().to_string()
    }

    /// The directory that it is in.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Replaces it.
    pub fn write(&self, text: &str) {
        let next = self.directory.path().join("next");
        std::fs::write(&next, text).unwrap();
        std::fs::rename(&next, &self.path).unwrap();
    }

    /// Overwrites it in place, as an editor does that is caught half way.
    pub fn scribble(&self, text: &str) {
        std::fs::write(&self.path, text).unwrap();
    }

    /// Deletes it.
    pub fn remove(&self) {
        std::fs::remove_file(&self.path).unwrap();
    }
}

/// An address as it stands in `join_members`.
pub fn seed(addr: SocketAddr) -> Vec<String> {
    vec![addr.to_string()]
}
