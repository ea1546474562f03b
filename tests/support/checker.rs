//! Load on all nodes of a fleet, and a checker that remembers every acknowledged write.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "every test uses its own part of this")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use annulus::clock::Now;
use annulus::kv::LwwMap;
use annulus::{JSON_PREFIX, Node, Operation};
use serde_json::{Value, json};

use crate::fleet::{PATIENCE, RING};
use crate::support::wait_until;

/// Writes after which a writer goes on to the next key, so that no value grows large.
const WRITES_A_KEY: u64 = 20;

/// Every write that was acknowledged: key → entry → value.
type Acknowledged = BTreeMap<String, BTreeMap<String, u64>>;

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// Ends lookups and writes on one node, before that node is ended on purpose.
    retired: Mutex<BTreeSet<String>>,
    lookups: AtomicU64,
    writes: AtomicU64,
    lookups_failed: Mutex<Vec<String>>,
    writes_failed: Mutex<Vec<String>>,
    lost: Mutex<BTreeSet<String>>,
    acknowledged: Mutex<Acknowledged>,
}

impl Shared {
    fn goes_on(&self, node: &Node) -> bool {
        !self.stop.load(Ordering::Acquire) && !self.retired.lock().unwrap().contains(node.id())
    }
}

/// Lookups, compare-and-swaps and a watch on the ring, on every node, until it is stopped.
pub struct Workload {
    shared: Arc<Shared>,
    tasks: Vec<(String, tokio::task::JoinHandle<()>)>,
    /// Pause between two writes of a node; `None` writes nothing.
    pause: Option<Duration>,
}

impl Workload {
    /// Lookups and compare-and-swaps on these nodes.
    pub fn start(nodes: &[Node]) -> Self {
        Self::with_pause(nodes, Some(Duration::from_millis(20)))
    }

    /// Lookups alone.
    pub fn lookups(nodes: &[Node]) -> Self {
        Self::with_pause(nodes, None)
    }

    /// Lookups, and compare-and-swaps with this pause between them. All nodes write the same keys, and a store in
    /// another process lets one of those win that write at the same moment: it needs a longer pause.
    pub fn with_pause(nodes: &[Node], pause: Option<Duration>) -> Self {
        let mut workload = Self { shared: Arc::default(), tasks: Vec::new(), pause };
        nodes.iter().for_each(|node| workload.add(node));
        workload
    }

    /// The same on one more node, whose ring is complete, or on a retired one that is back. Every instance in its ring
    /// must stay in it.
    pub fn add(&mut self, node: &Node) {
        self.shared.retired.lock().unwrap().remove(node.id());
        let mut spawn = |task| self.tasks.push((node.id().to_owned(), task));
        spawn(tokio::spawn(look_up(node.clone(), self.shared.clone())));
        if let Some(pause) = self.pause {
            spawn(tokio::spawn(write(node.clone(), self.shared.clone(), pause)));
        }
    }

    /// Ends the load on one node and waits for what is in flight there.
    pub async fn retire(&mut self, node: &Node) {
        self.shared.retired.lock().unwrap().insert(node.id().to_owned());
        let (over, rest) = std::mem::take(&mut self.tasks).into_iter().partition(|(id, _)| id == node.id());
        self.tasks = rest;
        join(over).await;
    }

    /// Lookups so far that were answered.
    pub fn lookups_done(&self) -> u64 {
        self.shared.lookups.load(Ordering::Relaxed)
    }

    /// Writes so far that were acknowledged.
    pub fn writes_done(&self) -> u64 {
        self.shared.writes.load(Ordering::Relaxed)
    }

    /// Waits until the load has gone on for a while, counted in operations.
    pub async fn goes_on(&self) {
        let (lookups, writes) = (self.lookups_done(), self.writes_done());
        let more = wait_until(PATIENCE, async || {
            self.lookups_done() >= lookups + 200 && (self.pause.is_none() || self.writes_done() >= writes + 20)
        })
        .await;
        assert!(more, "the load does not go on; {:?}", self.shared.writes_failed.lock().unwrap());
    }

    /// As [`Self::goes_on`], while nothing can be written.
    pub async fn lookups_go_on(&self) {
        let lookups = self.lookups_done();
        assert!(wait_until(PATIENCE, async || self.lookups_done() >= lookups + 200).await, "no lookups");
    }

    /// Ends all of it and waits for what is in flight.
    pub async fn stop(mut self) -> Report {
        self.shared.stop.store(true, Ordering::Release);
        join(std::mem::take(&mut self.tasks)).await;
        Report { shared: self.shared }
    }
}

async fn join(tasks: Vec<(String, tokio::task::JoinHandle<()>)>) {
    for (id, task) in tasks {
        task.await.unwrap_or_else(|error| panic!("the load on {id}: {error}"));
    }
}

/// How the load went.
pub struct Report {
    shared: Arc<Shared>,
}

impl Report {
    /// Fails the test unless every lookup found owners and every compare-and-swap was acknowledged, with some of each.
    pub fn assert_flawless(&self) {
        self.assert_lookups();
        let failed = self.shared.writes_failed.lock().unwrap();
        assert!(failed.is_empty(), "{} compare-and-swaps failed: {:#?}", failed.len(), failed.iter().take(5));
        assert!(self.shared.writes.load(Ordering::Relaxed) > 0, "nothing was written");
    }

    /// Fails the test unless every lookup found owners and no instance was missing in a ring at any time.
    pub fn assert_lookups(&self) {
        let failed = self.shared.lookups_failed.lock().unwrap();
        assert!(failed.is_empty(), "{} lookups failed: {:#?}", failed.len(), failed.iter().take(5));
        assert!(self.shared.lookups.load(Ordering::Relaxed) > 0, "nothing was looked up");
        let lost = self.shared.lost.lock().unwrap();
        assert!(lost.is_empty(), "instances were lost: {lost:?}");
    }

    /// What the failed compare-and-swaps said.
    pub fn failed_writes(&self) -> Vec<String> {
        self.shared.writes_failed.lock().unwrap().clone()
    }

    /// Waits until every acknowledged write is found on every node; fails the test when one stays away.
    pub async fn assert_nothing_lost(&self, nodes: &[Node]) {
        for node in nodes {
            let mut absent = Vec::new();
            let found = wait_until(PATIENCE, async || {
                absent = self.missing(node).await;
                absent.is_empty()
            })
            .await;
            assert!(found, "{} misses {} acknowledged writes: {:?}", node.id(), absent.len(), absent.iter().take(10));
        }
    }

    /// Acknowledged writes that a node does not see now.
    pub async fn missing(&self, node: &Node) -> Vec<String> {
        let acknowledged = self.shared.acknowledged.lock().unwrap().clone();
        let kv = node.kv::<LwwMap<Value>>(JSON_PREFIX);
        let mut missing = Vec::new();
        for (key, entries) in acknowledged {
            let map = match kv.get(&key).await {
                Ok(map) => map.unwrap_or_default(),
                Err(error) => {
                    missing.push(format!("{key}: {error}"));
                    continue;
                }
            };
            let absent = entries.iter().filter(|(entry, value)| map.get(entry) != Some(&json!(value)));
            missing.extend(absent.map(|(entry, _)| format!("{key}/{entry}")));
        }
        missing
    }
}

/// Looks up changing keys, and looks whether an instance that was there is gone.
async fn look_up(node: Node, shared: Arc<Shared>) {
    let ring = node.ring(RING);
    let expected: BTreeSet<_> = ring.snapshot().instances().iter().map(|instance| instance.id.clone()).collect();
    let mut key = 0x9e37_79b9_u32;
    while shared.goes_on(&node) {
        for _ in 0..20 {
            key = key.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            match ring.get(key, Operation::Write) {
                Ok(owners) if !owners.is_empty() => _ = shared.lookups.fetch_add(1, Ordering::Relaxed),
                Ok(_) => shared.lookups_failed.lock().unwrap().push(format!("{}: no owner of {key}", node.id())),
                Err(error) => shared.lookups_failed.lock().unwrap().push(format!("{}: {error}", node.id())),
            }
        }
        let snapshot = ring.snapshot();
        let retired = shared.retired.lock().unwrap().clone();
        let gone = expected.iter().filter(|id| snapshot.instance(id).is_none() && !retired.contains(&***id));
        shared.lost.lock().unwrap().extend(gone.map(|id| format!("{} did not see {id}", node.id())));
        tokio::time::sleep(Duration::from_millis(4)).await;
    }
}

/// Compare-and-swaps on keys that all nodes share, each of an entry of its own.
async fn write(node: Node, shared: Arc<Shared>, pause: Duration) {
    let kv = node.kv::<LwwMap<Value>>(JSON_PREFIX);
    let mut number = 0_u64;
    while shared.goes_on(&node) {
        number += 1;
        let key = format!("writes-{:04}", number / WRITES_A_KEY);
        let entry = format!("{}-{number}", node.id());
        let name = entry.clone();
        let outcome = kv
            .cas(&key, move |old| {
                let mut map = old.unwrap_or_default();
                map.insert(Now::read(), name.clone(), json!(number));
                Ok(Some(map))
            })
            .await;
        match outcome {
            Ok(_) => {
                shared.writes.fetch_add(1, Ordering::Relaxed);
                shared.acknowledged.lock().unwrap().entry(key).or_default().insert(entry, number);
            }
            Err(error) => shared.writes_failed.lock().unwrap().push(format!("{}: {key}: {error}", node.id())),
        }
        tokio::time::sleep(pause).await;
    }
}
