//! A fleet of cores over two simulated stores, in virtual time, with a checker that knows every acknowledged write.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use super::super::core::Fault;
use super::super::*;
use super::map::Map;
use super::stores::{Consul, Replica};
use crate::clock::Now;
use crate::kv::{Mergeable as _, StoreError, StoreKind};

pub(super) const RING: &str = "collectors/ring";

pub(super) struct Node {
    pub(super) core: MultiCore,
    pub(super) replica: Replica,
    pub(super) view: View,
    pub(super) events: Vec<MigrationEvent>,
    pub(super) reports: Vec<Result<Arc<ParityReport>, String>>,
    pub(super) drained: bool,
    /// Counts lives of the core: what was asked for by an earlier one does not reach the present one.
    life: u64,
    ops: BTreeMap<OpId, User>,
    watch: BTreeMap<Arc<str>, ReadJoin>,
    /// What readers of this node saw last.
    seen: BTreeMap<Arc<str>, Map>,
    /// What a flip that began has to carry over.
    carry: BTreeMap<Arc<str>, Map>,
    tick_at: Option<Duration>,
    pub(super) acked: u64,
    pub(super) failed: u64,
}

/// What a caller asked for.
#[derive(Clone, Debug)]
pub(super) enum Want {
    Put(String, u64, u64),
    Remove(String),
    Join(Map),
    Delete,
    Get,
}

struct User {
    key: Arc<str>,
    want: Want,
    run: u64,
    delta: Option<Map>,
    since: Duration,
}

enum Ev {
    Tick(usize),
    Heartbeat(usize, Duration),
    In(usize, u64, Input),
    Done {
        node: usize,
        life: u64,
        id: OpId,
        run: u64,
        side: Side,
        result: Result<OpEffect, StoreError>,
    },
    CasRead {
        node: usize,
        life: u64,
        id: OpId,
        run: u64,
        attempt: u32,
    },
    CasWrite {
        node: usize,
        life: u64,
        id: OpId,
        run: u64,
        attempt: u32,
        index: u64,
        key: Arc<str>,
        value: Map,
        delta: Map,
    },
    OnGossip {
        node: usize,
        life: u64,
        id: OpId,
        run: u64,
    },
    Exec {
        node: usize,
        life: u64,
        id: TaskId,
        side: Side,
        task: Task,
    },
    Gossip(usize, Arc<str>, Map),
    GossipDelete(usize, Arc<str>, u64),
    PushPull(usize),
    Watch {
        node: usize,
        generation: u64,
        side: Side,
        key: Arc<str>,
        value: Option<Map>,
    },
    Do(Box<dyn FnOnce(&mut World)>),
}

pub(super) struct World {
    pub(super) rng: SmallRng,
    start: Now,
    pub(super) at: Duration,
    queue: BTreeMap<(Duration, u64), Ev>,
    order: u64,
    pub(super) nodes: Vec<Node>,
    pub(super) consul: Consul,
    fault: Fault,
    /// Per thousand: answers of Consul that come 1 to 30 s late.
    pub(super) late_permille: u32,
    /// Answers of Consul to watches that show an older value, per thousand.
    pub(super) stale_permille: u32,
    acked: BTreeMap<Arc<str>, Map>,
    removed: BTreeSet<String>,
    deleted_keys: BTreeSet<Arc<str>>,
    pub(super) violations: Vec<String>,
    pub(super) late_answers: u32,
    /// Nobody writes any more.
    quiet: bool,
    steps: u64,
}

pub(super) fn secs(s: u64) -> Duration {
    Duration::from_secs(s)
}

pub(super) fn millis(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

pub(super) fn to(primary: StoreKind) -> RuntimeMulti {
    RuntimeMulti { primary: Some(primary), mirror_enabled: None }
}

pub(super) fn mirror(on: bool) -> RuntimeMulti {
    RuntimeMulti { primary: None, mirror_enabled: Some(on) }
}

impl World {
    pub(super) fn new(seed: u64, nodes: usize, fault: Fault) -> Self {
        let mut world = Self {
            rng: SmallRng::seed_from_u64(seed),
            start: Now::read(),
            at: Duration::ZERO,
            queue: BTreeMap::new(),
            order: 0,
            nodes: Vec::new(),
            consul: Consul::new(),
            fault,
            late_permille: 0,
            stale_permille: 0,
            acked: BTreeMap::new(),
            removed: BTreeSet::new(),
            deleted_keys: BTreeSet::new(),
            violations: Vec::new(),
            late_answers: 0,
            quiet: false,
            steps: 0,
        };
        // Stamps are microseconds of virtual time; start away from zero.
        world.start.unix = secs(1_000_000);
        for n in 0..nodes {
            world.join_fleet(MultiConfig { seed: seed ^ n as u64, ..MultiConfig::default() });
        }
        world
    }

    /// Adds a node with the static configuration.
    pub(super) fn join_fleet(&mut self, config: MultiConfig) -> usize {
        let n = self.nodes.len();
        let mut core = MultiCore::new(config, self.now());
        core.fault = self.fault;
        let view = core.view();
        self.nodes.push(Node {
            core,
            replica: Replica::default(),
            view,
            events: Vec::new(),
            reports: Vec::new(),
            drained: false,
            life: 0,
            ops: BTreeMap::new(),
            watch: BTreeMap::new(),
            seen: BTreeMap::new(),
            carry: BTreeMap::new(),
            tick_at: None,
            acked: 0,
            failed: 0,
        });
        let first = millis(self.rng.random_range(0..5000));
        self.push(first, Ev::PushPull(n));
        self.drive(n);
        n
    }

    pub(super) fn now(&self) -> Now {
        self.start + self.at
    }

    pub(super) fn stamp(&mut self) -> u64 {
        self.order += 1;
        u64::try_from(self.now().unix.as_micros()).unwrap() + self.order % 7
    }

    fn push(&mut self, after: Duration, event: Ev) {
        self.order += 1;
        self.queue.insert((self.at + after, self.order), event);
    }

    pub(super) fn plan(&mut self, at: Duration, action: impl FnOnce(&mut Self) + 'static) {
        self.push(at.saturating_sub(self.at), Ev::Do(Box::new(action)));
    }

    /// Every node writes its own entry of the ring, each period.
    pub(super) fn heartbeats(&mut self, period: Duration) {
        for n in 0..self.nodes.len() {
            let first = period.mul_f64(self.rng.random_range(0.0..1.0));
            self.push(first, Ev::Heartbeat(n, period));
        }
    }

    pub(super) fn runtime(&mut self, n: usize, runtime: RuntimeMulti) {
        self.input(n, Input::Runtime(runtime));
    }

    pub(super) fn runtime_all(&mut self, runtime: RuntimeMulti) {
        for n in 0..self.nodes.len() {
            self.runtime(n, runtime);
        }
    }

    pub(super) fn user(&mut self, n: usize, key: &str, want: Want) -> OpId {
        self.order += 1;
        let id = OpId(self.order);
        let key: Arc<str> = key.into();
        let kind = match &want {
            Want::Put(..) | Want::Remove(_) => OpKind::Cas,
            Want::Join(map) => OpKind::Join(map.value()),
            Want::Delete => OpKind::Delete,
            Want::Get => OpKind::Get,
        };
        if let Want::Remove(name) = &want {
            self.removed.insert(name.clone());
        }
        if matches!(want, Want::Delete) {
            self.deleted_keys.insert(key.clone());
        }
        self.nodes[n].ops.insert(id, User { key: key.clone(), want, run: 0, delta: None, since: self.at });
        self.input(n, Input::Op { id, key, kind });
        id
    }

    pub(super) fn put(&mut self, n: usize, key: &str, name: &str) -> OpId {
        let stamp = self.stamp();
        self.user(n, key, Want::Put(name.to_owned(), stamp, stamp))
    }

    /// The actor dies and is restarted with what was durable.
    pub(super) fn crash(&mut self, n: usize) {
        let now = self.now();
        let config = self.nodes[n].core.config.clone();
        let mut core = MultiCore::resume(config, self.nodes[n].core.durable(), now);
        core.fault = self.fault;
        let node = &mut self.nodes[n];
        node.life += 1;
        node.failed += node.ops.len() as u64;
        node.ops.clear();
        node.core = core;
        node.tick_at = None;
        self.drive(n);
    }

    pub(super) fn run_until(&mut self, end: Duration) {
        while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= end) {
            let ((at, _), event) = entry.remove_entry();
            self.at = at;
            self.step(event);
            self.steps += 1;
            if self.steps.is_multiple_of(32) {
                self.check_nothing_lost();
            }
        }
        self.at = end;
        self.check_nothing_lost();
    }

    fn step(&mut self, event: Ev) {
        match event {
            Ev::Tick(n) => {
                self.nodes[n].tick_at = None;
                self.input(n, Input::Tick);
            }
            Ev::Heartbeat(n, period) => {
                if !self.nodes[n].drained && !self.quiet {
                    self.put(n, RING, &format!("node-{n}"));
                    if self.rng.random_bool(0.3) {
                        self.user(n, RING, Want::Get);
                    }
                    if self.rng.random_bool(0.1) {
                        let stamp = self.stamp();
                        let map = Map::one(&format!("joined-by-{n}"), stamp, Some(stamp));
                        self.user(n, "collectors/joined", Want::Join(map));
                    }
                    self.push(period, Ev::Heartbeat(n, period));
                }
            }
            Ev::In(n, life, input) if self.nodes[n].life == life => self.input(n, input),
            Ev::In(..) => {}
            Ev::Done { node, life, id, run, side, result } => {
                if self.runs(node, life, id, run) {
                    self.input(node, Input::OpDone { id, side, result });
                }
            }
            Ev::CasRead { node, life, id, run, attempt } => self.cas_read(node, life, id, run, attempt),
            Ev::CasWrite { node, life, id, run, attempt, index, key, value, delta } => {
                self.cas_write(node, life, id, run, attempt, index, &key, value, delta);
            }
            Ev::OnGossip { node, life, id, run } => self.on_gossip(node, life, id, run),
            Ev::Exec { node, life, id, side, task } => self.exec(node, life, id, side, task),
            Ev::Gossip(n, key, delta) => {
                if !self.nodes[n].replica.cut
                    && let Some(change) = self.nodes[n].replica.join(&key, &delta)
                {
                    self.replica_changed(n, &key, &change);
                }
            }
            Ev::GossipDelete(n, key, at) => {
                if !self.nodes[n].replica.cut && self.nodes[n].replica.delete(&key, at) {
                    self.spread_delete(n, &key, at);
                }
            }
            Ev::PushPull(n) => self.push_pull(n),
            Ev::Watch { node, generation, side, key, value } => self.watch_item(node, generation, side, key, value),
            Ev::Do(action) => action(self),
        }
    }

    fn runs(&self, n: usize, life: u64, id: OpId, run: u64) -> bool {
        self.nodes[n].life == life && self.nodes[n].ops.get(&id).is_some_and(|op| op.run == run)
    }

    pub(super) fn input(&mut self, n: usize, input: Input) {
        let now = self.now();
        self.nodes[n].core.handle(now, input);
        self.drive(n);
    }

    /// Does what the actor would do.
    fn drive(&mut self, n: usize) {
        while let Some(output) = self.nodes[n].core.poll_output() {
            match output {
                Output::RunOp { id, side } => self.run_op(n, id, side),
                Output::RunOpOnLast { id, base } => {
                    let delta = self.callback(n, id, base.as_ref().map(Map::of));
                    let delta = delta.map(|(_, delta)| delta.value());
                    let now = self.now();
                    self.nodes[n].core.handle(now, Input::OpOnLastDone { id, delta });
                }
                Output::Reply { id, verdict } => self.answered(n, id, &verdict),
                Output::Task { id, side, task } => {
                    let after = millis(self.rng.random_range(1..20));
                    let life = self.nodes[n].life;
                    self.push(after, Ev::Exec { node: n, life, id, side, task });
                }
                Output::View(view) => self.viewed(n, view),
                Output::Event(event) => {
                    if matches!(event, MigrationEvent::FlipStarted { .. }) {
                        self.nodes[n].carry = self.nodes[n].seen.clone();
                    }
                    self.nodes[n].events.push(event);
                }
                Output::Parity { result, .. } => self.nodes[n].reports.push(result),
                Output::Drained => self.nodes[n].drained = true,
            }
        }
        if let Some(at) = self.nodes[n].core.next_deadline() {
            let at = at.saturating_duration_since(self.start.mono).max(self.at + millis(1));
            if self.nodes[n].tick_at.is_none_or(|planned| at < planned) {
                self.nodes[n].tick_at = Some(at);
                self.push(at - self.at, Ev::Tick(n));
            }
        }
    }

    fn viewed(&mut self, n: usize, view: View) {
        let flipped = view.generation > self.nodes[n].view.generation;
        self.nodes[n].view = view;
        if !flipped {
            return;
        }
        for (key, value) in std::mem::take(&mut self.nodes[n].carry) {
            let there = self.raw(n, view.primary, &key).is_some_and(|there| there.covers(&value));
            if !there && !self.deleted_keys.contains(&key) {
                self.violations.push(format!("node {n} flipped to {:?} before it had all of {key}", view.primary));
            }
        }
        // Every watch is re-homed and gets its current value at once.
        for key in self.nodes[n].watch.keys().cloned().collect::<Vec<_>>() {
            let value = self.raw(n, view.primary, &key);
            let generation = view.generation;
            self.push(millis(2), Ev::Watch { node: n, generation, side: view.primary, key, value });
        }
    }

    /// What a node finds on a side.
    pub(super) fn raw(&self, n: usize, side: Side, key: &str) -> Option<Map> {
        match side {
            Side::A => self.consul.keys.get(key).cloned(),
            Side::B => self.nodes[n].replica.keys.get(key).cloned(),
        }
    }

    fn answered(&mut self, n: usize, id: OpId, verdict: &Verdict) {
        let Some(op) = self.nodes[n].ops.remove(&id) else {
            return self.violations.push(format!("node {n}: {id:?} was answered twice"));
        };
        match verdict {
            Verdict::Failed(_) => self.nodes[n].failed += 1,
            Verdict::Done => {
                self.nodes[n].acked += 1;
                if let Want::Delete = op.want {
                    self.acked.remove(&op.key);
                }
                let Some(delta) = op.delta else { return };
                let primary = self.nodes[n].view.primary;
                if !self.deleted_keys.contains(&op.key) {
                    if !self.raw(n, primary, &op.key).is_some_and(|there| there.covers(&delta)) {
                        self.violations.push(format!("node {n}: acknowledged, but not in its primary: {delta:?}"));
                    }
                    self.acked.entry(op.key.clone()).or_default().merge(&delta);
                }
            }
        }
    }

    /// The caller's callback. Returns the new value and what it changes.
    fn callback(&mut self, n: usize, id: OpId, base: Option<&Map>) -> Option<(Map, Map)> {
        let now = self.now();
        let want = self.nodes[n].ops.get(&id)?.want.clone();
        let mut value = base.cloned().unwrap_or_default();
        match want {
            Want::Put(name, stamp, what) => {
                if value.0.get(&name).is_none_or(|(known, _)| *known < stamp) {
                    value.0.insert(name, (stamp, Some(what)));
                }
            }
            // The way a user removes: the new value simply lacks it; the store makes it a tombstone.
            Want::Remove(name) => {
                value.0.retain(|n, (_, live)| *n != name || live.is_none());
            }
            Want::Join(map) => {
                value.merge(&map);
            }
            Want::Delete | Want::Get => return None,
        }
        let delta = value.delta(base, now)?;
        value.merge(&delta);
        Some((value, delta))
    }

    fn unavailable(store: StoreKind) -> StoreError {
        StoreError::Unavailable { store, reason: "down".into() }
    }

    fn run_op(&mut self, n: usize, id: OpId, side: Side) {
        let life = self.nodes[n].life;
        let Some(op) = self.nodes[n].ops.get_mut(&id) else { return };
        op.run += 1;
        op.delta = None;
        let run = op.run;
        let after = millis(self.rng.random_range(1..10));
        self.push(
            after,
            match side {
                Side::A => Ev::CasRead { node: n, life, id, run, attempt: 0 },
                Side::B => Ev::OnGossip { node: n, life, id, run },
            },
        );
    }

    fn done(&mut self, node: usize, life: u64, id: OpId, run: u64, result: Result<OpEffect, StoreError>) {
        let late = self.rng.random_range(0..1000) < self.late_permille;
        self.late_answers += u32::from(late);
        let ms = if late { self.rng.random_range(1_000..30_000) } else { self.rng.random_range(1..10) };
        self.push(millis(ms), Ev::Done { node, life, id, run, side: Side::A, result });
    }

    fn cas_read(&mut self, node: usize, life: u64, id: OpId, run: u64, attempt: u32) {
        if !self.runs(node, life, id, run) {
            return;
        }
        let op = &self.nodes[node].ops[&id];
        let (key, want) = (op.key.clone(), op.want.clone());
        if !self.consul.up {
            // Refused at once, or no answer at all.
            let error = Self::unavailable(StoreKind::Consul);
            return self.done(node, life, id, run, Err(error));
        }
        match want {
            Want::Get => {
                let value = self.consul.keys.get(&key).cloned();
                self.push(
                    millis(2),
                    Ev::In(node, life, Input::Delivered { key, side: Side::A, value: value.map(|v| v.value()) }),
                );
                return self.done(node, life, id, run, Ok(OpEffect::Read));
            }
            Want::Delete => {
                self.consul.delete(&key);
                return self.done(node, life, id, run, Ok(OpEffect::Deleted));
            }
            _ => {}
        }
        let base = self.consul.keys.get(&key).cloned();
        let index = self.consul.index(&key);
        let Some((value, delta)) = self.callback(node, id, base.as_ref()) else {
            return self.done(node, life, id, run, Ok(OpEffect::Unchanged));
        };
        self.input(node, Input::Intent { id, delta: delta.value() });
        let after = millis(self.rng.random_range(1..10));
        self.push(after, Ev::CasWrite { node, life, id, run, attempt, index, key, value, delta });
    }

    #[allow(clippy::too_many_arguments)]
    fn cas_write(
        &mut self,
        node: usize,
        life: u64,
        id: OpId,
        run: u64,
        attempt: u32,
        index: u64,
        key: &Arc<str>,
        value: Map,
        delta: Map,
    ) {
        // On its way already: it happens also when the caller, or the actor, is gone.
        if !self.consul.up {
            // The store went away: half of the writes happened before it did.
            if self.rng.random_bool(0.5) && self.consul.index(key) == index {
                self.write_consul(key, value);
            }
            let error = StoreError::Timeout { store: StoreKind::Consul, after: secs(2) };
            return self.done(node, life, id, run, Err(error));
        }
        if self.consul.index(key) != index {
            if attempt >= 20 {
                let error = StoreError::Conflict { key: key.to_string(), attempts: attempt };
                return self.done(node, life, id, run, Err(error));
            }
            let after = millis(self.rng.random_range(1..30));
            return self.push(after, Ev::CasRead { node, life, id, run, attempt: attempt + 1 });
        }
        self.write_consul(key, value);
        if self.runs(node, life, id, run) {
            self.nodes[node].ops.get_mut(&id).unwrap().delta = Some(delta.clone());
        }
        self.done(node, life, id, run, Ok(OpEffect::Written(delta.value())));
    }

    fn write_consul(&mut self, key: &Arc<str>, value: Map) {
        if let Some(old) = self.consul.keys.get(key)
            && !value.covers(old)
        {
            self.violations.push(format!("Consul went back: {old:?} -> {value:?}"));
        }
        self.consul.put(key, value);
        for n in 0..self.nodes.len() {
            if self.nodes[n].view.primary == Side::A && self.nodes[n].watch.contains_key(key) {
                let history = &self.consul.history[key];
                let stale = self.rng.random_range(0..1000) < self.stale_permille;
                let back = if stale { self.rng.random_range(0..history.len().min(5)) } else { 0 };
                let value = Some(history[history.len() - 1 - back].clone());
                let generation = self.nodes[n].view.generation;
                let after = millis(self.rng.random_range(1..50));
                self.push(after, Ev::Watch { node: n, generation, side: Side::A, key: key.clone(), value });
            }
        }
    }

    fn on_gossip(&mut self, node: usize, life: u64, id: OpId, run: u64) {
        if !self.runs(node, life, id, run) {
            return;
        }
        let op = &self.nodes[node].ops[&id];
        let (key, want) = (op.key.clone(), op.want.clone());
        let result = if self.nodes[node].replica.down {
            Err(Self::unavailable(StoreKind::Memberlist))
        } else if let Want::Get = want {
            let value = self.raw(node, Side::B, &key).map(|value| value.value());
            self.input(node, Input::Delivered { key, side: Side::B, value });
            Ok(OpEffect::Read)
        } else if let Want::Delete = want {
            let at = self.stamp();
            self.nodes[node].replica.delete(&key, at);
            self.spread_delete(node, &key, at);
            Ok(OpEffect::Deleted)
        } else {
            let base = self.raw(node, Side::B, &key);
            match self.callback(node, id, base.as_ref()) {
                None => Ok(OpEffect::Unchanged),
                Some((_, delta)) => {
                    self.input(node, Input::Intent { id, delta: delta.value() });
                    self.join_replica(node, &key, &delta);
                    self.nodes[node].ops.get_mut(&id).unwrap().delta = Some(delta.clone());
                    Ok(OpEffect::Written(delta.value()))
                }
            }
        };
        self.push(millis(1), Ev::Done { node, life, id, run, side: Side::B, result });
    }

    fn join_replica(&mut self, n: usize, key: &Arc<str>, delta: &Map) {
        if let Some(change) = self.nodes[n].replica.join(key, delta) {
            self.replica_changed(n, key, &change);
        }
    }

    fn replica_changed(&mut self, n: usize, key: &Arc<str>, change: &Map) {
        if self.nodes[n].view.primary == Side::B && self.nodes[n].watch.contains_key(key) {
            let generation = self.nodes[n].view.generation;
            let value = self.raw(n, Side::B, key);
            self.push(millis(1), Ev::Watch { node: n, generation, side: Side::B, key: key.clone(), value });
        }
        for peer in self.reached(n) {
            let after = millis(self.rng.random_range(5..400));
            self.push(after, Ev::Gossip(peer, key.clone(), change.clone()));
        }
    }

    fn spread_delete(&mut self, n: usize, key: &Arc<str>, at: u64) {
        for peer in self.reached(n) {
            let after = millis(self.rng.random_range(5..400));
            self.push(after, Ev::GossipDelete(peer, key.clone(), at));
        }
    }

    /// Peers that one broadcast reaches: each packet is lost with 20 %.
    fn reached(&mut self, n: usize) -> Vec<usize> {
        if self.nodes[n].replica.cut {
            return Vec::new();
        }
        let count = self.nodes.len();
        (0..count).filter(|peer| *peer != n).filter(|_| self.rng.random_bool(0.8)).collect()
    }

    fn push_pull(&mut self, n: usize) {
        let peer = self.rng.random_range(0..self.nodes.len());
        if peer != n && !self.nodes[n].replica.cut && !self.nodes[peer].replica.cut {
            for (here, there) in [(n, peer), (peer, n)] {
                for (key, at) in self.nodes[here].replica.deletions() {
                    self.nodes[there].replica.delete(&key, at);
                }
                for (key, value) in self.nodes[here].replica.keys.clone() {
                    self.join_replica(there, &key, &value);
                }
            }
        }
        self.push(secs(5), Ev::PushPull(n));
    }

    fn exec(&mut self, node: usize, life: u64, id: TaskId, side: Side, task: Task) {
        let (down, store) = match side {
            Side::A => (!self.consul.up, StoreKind::Consul),
            Side::B => (self.nodes[node].replica.down, StoreKind::Memberlist),
        };
        let mut after = millis(self.rng.random_range(1..10));
        let mut result = if down { Err(Self::unavailable(store)) } else { Ok(self.perform(node, side, task)) };
        if side == Side::A && self.rng.random_range(0..1000) < self.late_permille {
            // It happened, but the answer comes after the limit.
            after = secs(2);
            result = Err(StoreError::Timeout { store, after });
        }
        self.push(after, Ev::In(node, life, Input::TaskDone { id, result }));
    }

    fn perform(&mut self, node: usize, side: Side, task: Task) -> TaskResult {
        match (task, side) {
            (Task::Get { key }, side) => TaskResult::Value(self.raw(node, side, &key).map(|value| value.value())),
            (Task::List { prefix }, side) => {
                let keys = match side {
                    Side::A => self.consul.keys.keys().map(ToString::to_string).collect::<Vec<_>>(),
                    Side::B => self.nodes[node].replica.keys.keys().map(ToString::to_string).collect(),
                };
                TaskResult::Keys(keys.into_iter().filter(|key| key.starts_with(&prefix)).collect())
            }
            (Task::Delete { key }, Side::A) => {
                self.consul.delete(&key);
                TaskResult::Done
            }
            (Task::Delete { key }, Side::B) => {
                let at = self.stamp();
                self.nodes[node].replica.delete(&key, at);
                self.spread_delete(node, &key, at);
                TaskResult::Done
            }
            (Task::Join { key, delta }, side) => {
                self.mirror_write(node, side, &key, Map::of(&delta));
                TaskResult::Done
            }
        }
    }

    fn mirror_write(&mut self, node: usize, side: Side, key: &Arc<str>, delta: &Map) {
        if self.fault == Fault::BlindOverwrite {
            // What dskit does: this node's idea of the whole value, over whatever is there. In Consul it replaces; in
            // memberlist what is missing becomes a tombstone, stamped now.
            let mut whole = self.nodes[node].seen.get(key).cloned().unwrap_or_default();
            whole.merge(delta);
            match side {
                Side::A => self.write_consul(key, whole),
                Side::B => {
                    let there = self.raw(node, Side::B, key);
                    if let Some(change) = whole.delta(there.as_ref(), self.now()) {
                        self.join_replica(node, key, &change);
                    }
                }
            }
            return;
        }
        match side {
            Side::B => self.join_replica(node, key, delta),
            Side::A => {
                let mut value = self.consul.keys.get(key).cloned().unwrap_or_default();
                if value.merge(delta).is_some() {
                    self.write_consul(key, value);
                }
            }
        }
    }

    /// A user of node `n` watches the key.
    pub(super) fn watch(&mut self, n: usize, key: &str) {
        let key: Arc<str> = key.into();
        self.nodes[n].watch.insert(key.clone(), ReadJoin::new(secs(300)));
        let View { primary: side, generation, .. } = self.nodes[n].view;
        let value = self.raw(n, side, &key);
        self.push(millis(1), Ev::Watch { node: n, generation, side, key, value });
    }

    fn watch_item(&mut self, n: usize, generation: u64, side: Side, key: Arc<str>, value: Option<Map>) {
        let now = self.now();
        let Some(watch) = self.nodes[n].watch.get_mut(&key) else { return };
        let read = watch.deliver(generation, value.map(|value| value.value()), now).into_value();
        if let Some(value) = &read {
            self.saw(n, &key, Map::of(value).clone());
        }
        self.input(n, Input::Delivered { key, side, value: read });
    }

    fn saw(&mut self, n: usize, key: &Arc<str>, value: Map) {
        // Old tombstones may be forgotten, but what they buried does not come back.
        let newer = |name: &str, entry: &(u64, Option<u64>)| match value.0.get(name) {
            Some(now) => now >= entry,
            None => entry.1.is_none(),
        };
        if let Some(before) = self.nodes[n].seen.get(key)
            && !before.0.iter().all(|(name, entry)| newer(name, entry))
        {
            self.violations.push(format!("a reader of node {n} went back: {before:?} -> {value:?}"));
        }
        for (name, (_, live)) in &value.0 {
            if live.is_none() && !self.removed.contains(name) {
                self.violations.push(format!("a reader of node {n} sees {name} removed, which nobody removed"));
            }
        }
        self.nodes[n].seen.insert(key.clone(), value);
    }

    /// NO-LOST-ACK: everything that was acknowledged is in a store or in an outbox.
    pub(super) fn check_nothing_lost(&mut self) {
        let now = self.now();
        for (key, acked) in &self.acked {
            let mut anywhere = self.consul.keys.get(key).cloned().unwrap_or_default();
            for node in &self.nodes {
                if let Some(value) = node.replica.keys.get(key) {
                    anywhere.merge(value);
                }
                for outbox in &node.core.durable.outbox {
                    if let Some(value) = outbox.pending(key, now) {
                        anywhere.merge(Map::of(&value));
                    }
                }
            }
            if !anywhere.covers(acked) {
                self.violations.push(format!("lost at {:?}: {key} {acked:?} but there is {anywhere:?}", self.at));
            }
        }
    }

    /// Everything works again; after a while both stores (with `both`) or the primaries hold everything.
    pub(super) fn settle(&mut self, both: bool) {
        self.consul.up = true;
        self.late_permille = 0;
        for node in &mut self.nodes {
            node.replica.down = false;
            node.replica.cut = false;
        }
        self.run_until(self.at + secs(40));
        self.quiet = true;
        self.run_until(self.at + secs(110));
        let removed = &self.removed;
        let mut found = Vec::new();
        for n in 0..self.nodes.len() {
            if self.nodes[n].drained {
                continue;
            }
            let sides: &[Side] = if both { &[Side::A, Side::B] } else { &[self.nodes[n].view.primary] };
            for side in sides {
                for (key, acked) in &self.acked {
                    let there = self.raw(n, *side, key).unwrap_or_default();
                    if !there.covers(acked) {
                        found.push(format!("finally, {side:?} of node {n} lacks some of {key}: {there:?} < {acked:?}"));
                    }
                    for (name, (_, live)) in &there.0 {
                        if live.is_none() && !removed.contains(name) {
                            found.push(format!("finally, {name} is removed on {side:?} of node {n}; nobody did that"));
                        }
                    }
                }
            }
            if self.nodes[n].core.outbox_len() > 0 {
                found.push(format!("finally, the outbox of node {n} still has {}", self.nodes[n].core.outbox_len()));
            }
            for (id, op) in &self.nodes[n].ops {
                if self.at - op.since > secs(60) {
                    found.push(format!("operation {id:?} of node {n} hangs"));
                }
            }
        }
        self.violations.extend(found);
    }
}
