//! What goes on all the time, on every node: lookups, compare-and-swaps, and a watch on the ring.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use annulus::{Operation, key_hash};

use crate::fleet::Slot;
use crate::peer::{Peer, RING};

/// Counts of what was done and what went wrong.
#[derive(Default)]
pub struct Counts {
    pub lookups: AtomicU64,
    pub lookups_failed: AtomicU64,
    pub cas: AtomicU64,
    pub cas_failed: AtomicU64,
    /// The most keys that waited for the other store on one node.
    pub outbox_max: AtomicU64,
    /// The first few failures, in words.
    pub failures: Mutex<Vec<String>>,
}

impl Counts {
    fn failed(&self, counter: &AtomicU64, what: String) {
        counter.fetch_add(1, Ordering::Relaxed);
        if let Ok(mut failures) = self.failures.lock()
            && failures.len() < 20
        {
            failures.push(what);
        }
    }
}

/// Every write that was acknowledged: key → entry → value.
pub type Acknowledged = Arc<Mutex<BTreeMap<String, BTreeMap<String, u64>>>>;

pub struct Workload {
    pub counts: Arc<Counts>,
    pub acknowledged: Acknowledged,
    /// Instances that must be in every settled ring.
    pub expected: Arc<Mutex<BTreeSet<String>>>,
    /// (node, instance) pairs where one was missing.
    pub lost_instances: Arc<Mutex<BTreeSet<(String, String)>>>,
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Workload {
    /// Starts all of it on all nodes.
    pub fn start(slots: &[Arc<Slot>]) -> Self {
        let mut workload = Self {
            counts: Arc::default(),
            acknowledged: Arc::default(),
            expected: Arc::new(Mutex::new(slots.iter().map(|slot| slot.id.clone()).collect())),
            lost_instances: Arc::default(),
            stop: Arc::default(),
            tasks: Vec::new(),
        };
        for slot in slots {
            let tasks = [
                tokio::spawn(look_up(slot.clone(), workload.counts.clone(), workload.stop.clone())),
                tokio::spawn(write(
                    slot.clone(),
                    workload.counts.clone(),
                    workload.acknowledged.clone(),
                    workload.stop.clone(),
                )),
                tokio::spawn(watch_outbox(slot.clone(), workload.counts.clone(), workload.stop.clone())),
                tokio::spawn(watch_ring(
                    slot.clone(),
                    workload.expected.clone(),
                    workload.lost_instances.clone(),
                    workload.stop.clone(),
                )),
            ];
            workload.tasks.extend(tasks);
        }
        workload
    }

    /// Ends it, and waits for operations in flight.
    pub async fn stop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for task in self.tasks.drain(..) {
            let _ = task.await;
        }
    }

    /// Looks for every acknowledged write on every node, until all are there or time is up. Returns how many are
    /// missing on the node that misses most.
    pub async fn lost_writes(&self, slots: &[Arc<Slot>], patience: Duration) -> anyhow::Result<u64> {
        let acknowledged = self.acknowledged.lock().map(|acknowledged| acknowledged.clone()).unwrap_or_default();
        let deadline = Instant::now() + patience;
        let mut worst = 0;
        for slot in slots {
            let Some(peer) = slot.peer.load_full() else { continue };
            loop {
                let missing = missing(&peer, &acknowledged).await?;
                if missing == 0 || Instant::now() > deadline {
                    worst = worst.max(missing);
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(worst)
    }
}

async fn missing(peer: &Peer, acknowledged: &BTreeMap<String, BTreeMap<String, u64>>) -> anyhow::Result<u64> {
    let mut missing = 0;
    for (key, entries) in acknowledged {
        let found = peer.read(key).await?;
        missing += entries.iter().filter(|(entry, value)| found.get(*entry) != Some(value)).count() as u64;
    }
    Ok(missing)
}

/// Lookups of changing keys: thousands a second in this process, as fast as HTTP goes with agents.
async fn look_up(slot: Arc<Slot>, counts: Arc<Counts>, stop: Arc<AtomicBool>) {
    let mut number = 0_u64;
    while !stop.load(Ordering::Acquire) && !slot.killed.load(Ordering::Acquire) {
        tokio::time::sleep(Duration::from_millis(2)).await;
        let _working = slot.working.read().await;
        let Some(peer) = slot.peer.load_full().filter(|_| slot.settled.load(Ordering::Acquire)) else { continue };
        match &*peer {
            Peer::Local(node) => {
                let ring = node.ring(RING);
                for _ in 0..100 {
                    number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let key = (number >> 32) as u32;
                    match ring.get(key, Operation::Write) {
                        Ok(set) if !set.is_empty() => _ = counts.lookups.fetch_add(1, Ordering::Relaxed),
                        Ok(_) => counts.failed(&counts.lookups_failed, format!("{}: no owner of {key}", slot.id)),
                        Err(_) if slot.killed.load(Ordering::Acquire) => return,
                        Err(error) => counts.failed(&counts.lookups_failed, format!("{}: {error}", slot.id)),
                    }
                }
            }
            Peer::Agent(_) => {
                number += 1;
                match peer.owners(&format!("{}-{number}", slot.id)).await {
                    Ok(owners) if !owners.is_empty() => _ = counts.lookups.fetch_add(1, Ordering::Relaxed),
                    _ if slot.killed.load(Ordering::Acquire) => return,
                    Ok(_) => counts.failed(&counts.lookups_failed, format!("{}: no owner", slot.id)),
                    Err(error) => counts.failed(&counts.lookups_failed, format!("{}: lookup: {error}", slot.id)),
                }
            }
        }
    }
}

/// Compare-and-swaps on keys that all nodes share; a new key every second keeps values small.
async fn write(slot: Arc<Slot>, counts: Arc<Counts>, acknowledged: Acknowledged, stop: Arc<AtomicBool>) {
    let started = Instant::now();
    let mut number = 0_u64;
    while !stop.load(Ordering::Acquire) && !slot.killed.load(Ordering::Acquire) {
        tokio::time::sleep(Duration::from_millis(40)).await;
        let _working = slot.working.read().await;
        let Some(peer) = slot.peer.load_full().filter(|_| slot.settled.load(Ordering::Acquire)) else { continue };
        number += 1;
        // A shared Consul may hold the writes of an earlier run: every run has keys of its own.
        let key = format!("{}/writes-{:04}", slot.run, started.elapsed().as_secs());
        let entry = format!("{}-{number}", slot.id);
        match peer.write(&key, &entry, number).await {
            Ok(()) => {
                counts.cas.fetch_add(1, Ordering::Relaxed);
                if let Ok(mut acknowledged) = acknowledged.lock() {
                    acknowledged.entry(key).or_default().insert(entry, number);
                }
            }
            Err(_) if slot.killed.load(Ordering::Acquire) => return,
            Err(error) => counts.failed(&counts.cas_failed, format!("{}: write: {error:#}", slot.id)),
        }
    }
}

/// A settled node's ring must hold every expected instance, all the time.
async fn watch_ring(
    slot: Arc<Slot>,
    expected: Arc<Mutex<BTreeSet<String>>>,
    lost: Arc<Mutex<BTreeSet<(String, String)>>>,
    stop: Arc<AtomicBool>,
) {
    while !stop.load(Ordering::Acquire) && !slot.killed.load(Ordering::Acquire) {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let _working = slot.working.read().await;
        let Some(peer) = slot.peer.load_full().filter(|_| slot.settled.load(Ordering::Acquire)) else { continue };
        let wanted = expected.lock().map(|expected| expected.clone()).unwrap_or_default();
        let Ok(ring) = peer.ring().await else { continue };
        let present: BTreeSet<_> = ring.into_iter().map(|instance| instance.id).collect();
        // An instance that was taken off the list while we looked is not lost.
        let still = expected.lock().map(|expected| expected.clone()).unwrap_or_default();
        if let Ok(mut lost) = lost.lock() {
            lost.extend(
                wanted.difference(&present).filter(|id| still.contains(*id)).map(|id| (slot.id.clone(), id.clone())),
            );
        }
    }
}

/// How much waits for the other store, while there are two.
async fn watch_outbox(slot: Arc<Slot>, counts: Arc<Counts>, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Acquire) && !slot.killed.load(Ordering::Acquire) {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let Some(peer) = slot.peer.load_full() else { continue };
        if let Ok(Some(view)) = peer.migration().await {
            counts.outbox_max.fetch_max(view.outbox_len, Ordering::Relaxed);
        }
    }
}

/// The owners of a fixed sample of keys as a node sees them.
pub async fn sample_owners(peer: &Peer) -> anyhow::Result<Vec<Vec<String>>> {
    let size = match peer {
        Peer::Local(_) => 4096,
        Peer::Agent(_) => 128,
    };
    let mut owners = Vec::with_capacity(size);
    for number in 0..size {
        owners.push(peer.owners(&format!("sample-{}-{}", number, key_hash(number.to_string()))).await?);
    }
    Ok(owners)
}
