//! The checker: it knows every acknowledged write, and what nobody removed. And the figures of a run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::{Acked, Entry, Map, Side, World, secs};

/// What happened in a run, or in many.
#[derive(Clone, Debug, Default)]
pub(in super::super) struct Tally {
    pub(in super::super) runs: u64,
    /// What was done to the fleet, by kind.
    pub(in super::super) faults: BTreeMap<&'static str, u64>,
    pub(in super::super) acked: u64,
    pub(in super::super) failed: u64,
    pub(in super::super) flips: u64,
    /// Acknowledged entries that were nowhere any more.
    pub(in super::super) lost: u64,
    /// Times that a reader saw an entry removed which nobody removed.
    pub(in super::super) false_left: u64,
    /// Times that a reader saw less than before.
    pub(in super::super) older: u64,
    /// Acknowledged entries that a killed process, or a store that was set back, took along, and that nothing else had.
    pub(in super::super) taken: u64,
    /// How long before that the eldest of them had been acknowledged.
    pub(in super::super) taken_age: Duration,
}

/// What was acknowledged longer ago is in the replica of another node: it takes gossip two attempts.
pub(in super::super) const SPREAD: Duration = Duration::from_secs(10);

impl Tally {
    pub(in super::super) fn fault(&mut self, what: &'static str) {
        self.faults(what, 1);
    }

    pub(in super::super) fn faults(&mut self, what: &'static str, times: u64) {
        *self.faults.entry(what).or_default() += times;
    }

    pub(in super::super) fn count(&self, what: &str) -> u64 {
        self.faults.get(what).copied().unwrap_or(0)
    }

    pub(in super::super) fn add(&mut self, other: &Self) {
        self.runs += other.runs;
        for (what, times) in &other.faults {
            self.faults(what, *times);
        }
        self.acked += other.acked;
        self.failed += other.failed;
        self.flips += other.flips;
        self.lost += other.lost;
        self.false_left += other.false_left;
        self.older += other.older;
        self.taken += other.taken;
        self.taken_age = self.taken_age.max(other.taken_age);
    }
}

impl World {
    /// The figures of this run.
    pub(in super::super) fn figures(&self) -> Tally {
        let mut tally = self.tally.clone();
        tally.acked = self.nodes.iter().map(|node| node.acked).sum();
        tally.failed = self.nodes.iter().map(|node| node.failed).sum();
        tally
    }

    /// How old a node's heartbeat is in a ring. A node that is not there has no age.
    pub(in super::super) fn age(&self, ring: &Map, n: usize) -> Duration {
        let entry = ring.0.get(format!("node-{n}").as_str());
        entry.map_or(Duration::ZERO, |(at, _)| self.now().unix.saturating_sub(Duration::from_micros(*at)))
    }

    /// Whether a node of another kind may overwrite what was written: then only what is written again is promised.
    pub(super) fn overwritten(&self) -> bool {
        self.nodes.iter().any(|node| node.go.is_some())
    }

    pub(super) fn older_read(&mut self, what: String) {
        self.tally.older += 1;
        self.violations.push(what);
    }

    pub(super) fn false_left(&mut self, what: String) {
        self.tally.false_left += 1;
        if !self.overwritten() {
            self.violations.push(what);
        }
    }

    /// A caller was told that this is written.
    pub(super) fn acknowledged(&mut self, n: usize, key: &Arc<str>, delta: &Map, set_back: bool) {
        let primary = self.nodes[n].view.primary;
        let there = self.raw(n, primary, key).is_some_and(|there| there.covers(delta));
        if !there && !set_back && !self.overwritten() {
            self.violations.push(format!("node {n}: acknowledged, but not in its primary: {delta:?}"));
        }
        for (name, entry) in &*delta.0 {
            if set_back && !self.anywhere(key, name, entry) {
                // The store was set back while its answer was on the way.
                self.tally.taken += 1;
                continue;
            }
            let new = Acked { entry: *entry, at: self.at, by: n, lone: false };
            let known = self.acked.entry(key.clone()).or_default().entry(name.clone()).or_insert(new);
            if known.entry < *entry {
                *known = new;
            }
        }
    }

    /// Whether this, or what came after it, is in a store or on its way into one.
    fn anywhere(&self, key: &Arc<str>, name: &str, entry: &Entry) -> bool {
        let has = |value: Option<&Map>| value.is_some_and(|value| value.has(name, entry));
        let now = self.now();
        has(self.consul.keys.get(key))
            || self.nodes.iter().any(|node| has(node.replica.keys.get(key)))
            || self.nodes.iter().any(|node| {
                let outboxes = node.core.durable.outbox.iter();
                outboxes.filter_map(|outbox| outbox.pending(key, now)).any(|value| has(Some(Map::of(&value))))
            })
    }

    /// Takes what is nowhere off the list of what was acknowledged.
    fn missing(&mut self) -> Vec<(Arc<str>, Arc<str>, Acked)> {
        let mut missing = Vec::new();
        for (key, entries) in &self.acked {
            for (name, acked) in entries {
                if !self.anywhere(key, name, &acked.entry) {
                    missing.push((key.clone(), name.clone(), *acked));
                }
            }
        }
        for (key, name, _) in &missing {
            self.acked.get_mut(key).map(|entries| entries.remove(name));
        }
        missing
    }

    /// NO-LOST-ACK: everything that was acknowledged is in a store or in an outbox.
    pub(super) fn check_nothing_lost(&mut self) {
        for (key, name, acked) in self.missing() {
            self.tally.lost += 1;
            self.violations.push(format!("lost at {:?}: {name} of {key}, {:?}", self.at, acked.entry));
        }
    }

    /// A process was killed: what only it had cannot be expected back. And what it wrote a moment ago may have reached
    /// one store and not the other.
    pub(super) fn gone_with_process(&mut self, n: usize) {
        self.gone();
        let mirrored = self.nodes[n].view.mirror_enabled || self.nodes[n].view.primary == Side::B;
        let alone = self.nodes[n].alone;
        let (at, consul, nodes) = (self.at, &self.consul, &self.nodes);
        let mut lone = 0;
        for (key, entries) in &mut self.acked {
            for (name, acked) in entries.iter_mut().filter(|(_, acked)| mirrored && acked.by == n && !acked.lone) {
                let has = |value: Option<&Map>| value.is_some_and(|value| value.has(name, &acked.entry));
                let other = alone || has(consul.keys.get(key));
                let both = other && nodes.iter().any(|node| has(node.replica.keys.get(key)));
                if !both && at - acked.at < SPREAD {
                    acked.lone = true;
                    lone += 1;
                }
            }
        }
        self.tally.faults("write in one store only when its process was killed", lone);
    }

    /// What is nowhere any more, and not by a fault of the cores, is counted, and how old it was.
    pub(super) fn gone(&mut self) {
        for (_, _, acked) in self.missing() {
            self.tally.taken += 1;
            self.tally.taken_age = self.tally.taken_age.max(self.at - acked.at);
        }
    }

    /// Everything works again; after a while both stores (with `both`) or the primaries hold everything, and readers
    /// have seen it.
    pub(in super::super) fn settle(&mut self, both: bool) {
        self.consul.up = true;
        self.late_permille = 0;
        for node in &mut self.nodes {
            node.replica.down = false;
            node.replica.cut = false;
            node.replica.part = 0;
        }
        self.run_until(self.at + self.calm[0]);
        self.quiet = true;
        self.run_until(self.at + self.calm[1]);
        for n in 0..self.nodes.len() {
            let node = &self.nodes[n];
            if !node.drained && node.alive && node.go.is_none() {
                let found = self.finally(n, both);
                self.violations.extend(found);
            }
        }
    }

    fn finally(&mut self, n: usize, both: bool) -> Vec<String> {
        let node = &self.nodes[n];
        let primary = node.view.primary;
        let sides: &[Side] = if both { &[Side::A, Side::B] } else { &[primary] };
        let mut found = Vec::new();
        let mut lost = 0;
        for side in sides {
            for (key, entries) in &self.acked {
                let there = self.raw(n, *side, key).unwrap_or_default();
                let lacks = |(name, acked): &(&Arc<str>, &Acked)| !acked.lone && !there.has(name, &acked.entry);
                for (name, acked) in entries.iter().filter(lacks) {
                    lost += 1;
                    found.push(format!(
                        "finally, {side:?} of node {n} lacks {name} {:?} of {key}: {there:?}",
                        acked.entry
                    ));
                }
                for (name, (_, live)) in &*there.0 {
                    if live.is_none() && !self.removed.contains(name) {
                        found.push(format!("finally, {name} is removed on {side:?} of node {n}; nobody did that"));
                    }
                }
            }
        }
        for key in node.watch.keys() {
            let there = self.raw(n, primary, key).unwrap_or_default();
            let seen = node.seen.get(key).cloned().unwrap_or_default();
            // Tombstones that were never shown are no loss to a reader.
            let missed = |(name, entry): &(&Arc<str>, &Entry)| !seen.has(name, entry) && entry.1.is_some();
            if let Some((name, _)) = there.0.iter().find(missed) {
                found
                    .push(format!("finally, readers of node {n} were not shown {name} of {key}: {seen:?} < {there:?}"));
            }
        }
        if node.core.outbox_len() > 0 {
            found.push(format!("finally, the outbox of node {n} still has {}", node.core.outbox_len()));
        }
        for (id, op) in &node.ops {
            if self.at - op.since > secs(60) {
                found.push(format!("operation {id:?} of node {n} hangs"));
            }
        }
        self.tally.lost += lost;
        found
    }
}
