//! Looks at the rings of nodes all the time, and remembers what should not be there.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "every test uses its own part of this")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use annulus::Node;
use annulus::ring::{InstanceState, Snapshot};

use crate::fleet::RING;

/// How often each node is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// What every node must see without a break, from the moment that it is watched.
#[derive(Clone)]
struct Promise {
    /// Living instances.
    ids: BTreeSet<String>,
    /// With these owners.
    owners: Arc<Snapshot>,
}

#[derive(Default)]
struct Shared {
    nodes: Mutex<Vec<Node>>,
    phase: Mutex<String>,
    /// Living instances that were LEFT or not there, or owners that moved, or heartbeats that went back.
    broken: Mutex<BTreeSet<String>>,
    looks: Mutex<BTreeMap<String, u64>>,
}

/// The witness. It ends when it is dropped.
pub struct Witness {
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

impl Witness {
    /// Watches these nodes, which all see the whole ring now. From now on every instance stays, with its tokens.
    pub fn start(nodes: &[Node]) -> Self {
        let owners = nodes[0].ring(RING).snapshot();
        let ids = owners.instances().iter().map(|instance| instance.id.to_string()).collect();
        let shared = Arc::<Shared>::default();
        shared.nodes.lock().unwrap().extend_from_slice(nodes);
        let task = tokio::spawn(watch(shared.clone(), Promise { ids, owners }));
        Self { shared, task }
    }

    /// Watches one more node, which sees the whole ring now.
    pub fn add(&self, node: &Node) {
        self.shared.nodes.lock().unwrap().push(node.clone());
    }

    /// Does not look at a node any more.
    pub fn leave_out(&self, node: &Node) {
        self.shared.nodes.lock().unwrap().retain(|other| other.id() != node.id());
    }

    /// What is going on, for messages.
    pub fn phase(&self, phase: &str) {
        phase.clone_into(&mut self.shared.phase.lock().unwrap());
    }

    /// Fails the test unless all was well on every node at every look.
    ///
    /// # Panics
    /// Then.
    pub fn assert_flawless(&self) {
        let broken = self.shared.broken.lock().unwrap();
        assert!(broken.is_empty(), "{} promises were broken: {:#?}", broken.len(), broken.iter().take(10));
        let looks = self.shared.looks.lock().unwrap();
        assert!(!looks.is_empty() && looks.values().all(|count| *count > 100), "hardly looked: {looks:?}");
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn watch(shared: Arc<Shared>, promise: Promise) {
    // The heartbeat of each instance as each node saw it last.
    let mut seen = BTreeMap::<(String, String), i64>::new();
    loop {
        let nodes = shared.nodes.lock().unwrap().clone();
        seen.retain(|(observer, _), _| nodes.iter().any(|node| node.id() == observer));
        for node in &nodes {
            let broken = look(node, &promise, &mut seen);
            let phase = shared.phase.lock().unwrap().clone();
            shared
                .broken
                .lock()
                .unwrap()
                .extend(broken.into_iter().map(|what| format!("{phase}: {}: {what}", node.id())));
            *shared.looks.lock().unwrap().entry(node.id().to_owned()).or_default() += 1;
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn look(node: &Node, promise: &Promise, seen: &mut BTreeMap<(String, String), i64>) -> Vec<String> {
    let ring = node.ring(RING);
    let (desc, snapshot) = (ring.desc(), ring.snapshot());
    let mut broken = Vec::new();
    for id in &promise.ids {
        match desc.instances.get(id.as_str()) {
            None => broken.push(format!("{id} is missing")),
            Some(instance) if instance.state == InstanceState::Left => broken.push(format!("{id} is LEFT")),
            Some(instance) => {
                let before = seen.insert((node.id().to_owned(), id.clone()), instance.timestamp);
                if before > Some(instance.timestamp) {
                    broken.push(format!("an older ring: the heartbeat of {id} went back"));
                }
            }
        }
    }
    if snapshot.owners_changed(&promise.owners) != 0 {
        broken.push("owners moved".to_owned());
    }
    broken
}
