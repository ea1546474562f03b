//! The nodes: cores with their users and their clocks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;

use super::ends::Death;
use super::{Call, Entry, Ev, Fault, Go, Map, RING, Side, World, millis};
use crate::kv::{Mergeable as _, StoreKind};
use crate::migration::tests::stores::Replica;
use crate::migration::{
    Input, MigrationEvent, MultiConfig, MultiCore, OpId, OpKind, Output, ParityReport, ReadJoin, RuntimeMulti, Verdict,
    View,
};

pub(in super::super) struct Node {
    pub(in super::super) core: MultiCore,
    pub(in super::super) replica: Replica,
    pub(in super::super) view: View,
    pub(in super::super) events: Vec<MigrationEvent>,
    pub(in super::super) reports: Vec<Result<Arc<ParityReport>, String>>,
    pub(in super::super) drained: bool,
    /// The process runs.
    pub(in super::super) alive: bool,
    /// It is of the other kind, and its core idles.
    pub(in super::super) go: Option<Go>,
    /// It has no store but gossip, and its core idles.
    pub(in super::super) alone: bool,
    /// How much its clock is ahead, and behind.
    pub(in super::super) clock: (Duration, Duration),
    /// The runtime file as this node sees it.
    pub(in super::super) file: RuntimeMulti,
    /// Its watches on the store of one copy lost their place.
    pub(super) blind: bool,
    /// Counts lives of the core: what was asked for by an earlier one does not reach the present one.
    pub(in super::super) life: u64,
    pub(super) ops: BTreeMap<OpId, User>,
    pub(super) watch: BTreeMap<Arc<str>, ReadJoin>,
    /// What readers of this node saw last.
    pub(super) seen: BTreeMap<Arc<str>, Map>,
    /// What those saw last who asked.
    pub(super) got: BTreeMap<Arc<str>, Map>,
    /// When what readers saw was removed.
    pub(super) buried: BTreeMap<(Arc<str>, Arc<str>), u64>,
    /// What a flip that began has to carry over.
    pub(super) carry: BTreeMap<Arc<str>, Map>,
    pub(super) tick_at: Option<Duration>,
    /// Dies over the input after this many.
    pub(in super::super) doomed: Option<(u64, Death)>,
    pub(in super::super) acked: u64,
    pub(in super::super) failed: u64,
}

impl Node {
    /// Whether a user of this node has a watch on that side now.
    pub(super) fn watches(&self, side: Side, key: &str) -> bool {
        let view = &self.view;
        self.alive && view.primary == side && !view.waiting_for_runtime && self.watch.contains_key(key)
    }
}

/// What a caller asked for.
#[derive(Clone, Debug)]
pub(in super::super) enum Want {
    /// Name, time, and what to write: the latest what wins.
    Put(String, u64, u64),
    Remove(String),
    Join(Map),
    Delete,
    Get,
}

pub(super) struct User {
    pub(super) key: Arc<str>,
    pub(super) want: Want,
    pub(super) run: u64,
    pub(super) delta: Option<Map>,
    pub(super) since: Duration,
    /// How often the store of one copy had been set back when it was written.
    pub(super) restored: u64,
}

impl World {
    /// Adds a node with the static configuration.
    pub(in super::super) fn join_fleet(&mut self, config: MultiConfig) -> usize {
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
            alive: true,
            go: None,
            alone: false,
            clock: (Duration::ZERO, Duration::ZERO),
            file: RuntimeMulti::default(),
            blind: false,
            life: 0,
            ops: BTreeMap::new(),
            watch: BTreeMap::new(),
            seen: BTreeMap::new(),
            got: BTreeMap::new(),
            buried: BTreeMap::new(),
            carry: BTreeMap::new(),
            tick_at: None,
            doomed: None,
            acked: 0,
            failed: 0,
        });
        let first = millis(self.rng.random_range(0..5000));
        self.push(first, Ev::PushPull(n));
        self.drive(n);
        n
    }

    pub(super) fn kind(&self, n: usize, side: Side) -> StoreKind {
        self.nodes[n].core.config.kind(side)
    }

    /// The runtime file as a node reads it now. What is left out stays as it was.
    pub(in super::super) fn runtime(&mut self, n: usize, runtime: RuntimeMulti) {
        let file = &mut self.nodes[n].file;
        file.primary = runtime.primary.or(file.primary);
        file.mirror_enabled = runtime.mirror_enabled.or(file.mirror_enabled);
        if self.nodes[n].go.is_some() {
            return self.go_runtime(n, runtime);
        }
        self.input(n, Input::Runtime(runtime));
    }

    /// The section of the multi store goes out of a node's runtime file.
    pub(in super::super) fn section_gone(&mut self, n: usize) {
        self.nodes[n].file = RuntimeMulti::default();
        self.input(n, Input::Runtime(RuntimeMulti::default()));
    }

    pub(in super::super) fn runtime_all(&mut self, runtime: RuntimeMulti) {
        for n in 0..self.nodes.len() {
            self.runtime(n, runtime);
        }
    }

    pub(super) fn heartbeat(&mut self, n: usize, period: Duration) {
        if self.quiet || self.removed.contains(format!("node-{n}").as_str()) {
            return;
        }
        self.push(period, Ev::Heartbeat(n, period));
        if self.nodes[n].drained {
            return;
        }
        if self.nodes[n].go.is_some() {
            return self.go_heartbeat(n);
        }
        if !self.nodes[n].alive {
            return;
        }
        self.put(n, RING, &format!("node-{n}"));
        if self.rng.random_bool(0.3) {
            self.user(n, RING, Want::Get);
        }
        if self.rng.random_bool(0.1) {
            let stamp = self.stamp(n);
            let map = Map::one(&format!("joined-by-{n}"), stamp, Some(stamp));
            self.user(n, "collectors/joined", Want::Join(map));
        }
    }

    pub(in super::super) fn user(&mut self, n: usize, key: &str, want: Want) -> OpId {
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
            self.removed.insert(name.as_str().into());
        }
        if matches!(want, Want::Delete) {
            self.deleted_keys.insert(key.clone());
        }
        if self.nodes[n].alive {
            let user = User { key: key.clone(), want, run: 0, delta: None, since: self.at, restored: 0 };
            self.nodes[n].ops.insert(id, user);
            self.input(n, Input::Op { id, key, kind });
        }
        id
    }

    pub(in super::super) fn put(&mut self, n: usize, key: &str, name: &str) -> OpId {
        let stamp = self.stamp(n);
        let what = self.order;
        self.user(n, key, Want::Put(name.to_owned(), stamp, what))
    }

    pub(in super::super) fn input(&mut self, n: usize, input: Input) {
        if !self.nodes[n].alive || self.nodes[n].go.is_some() {
            return;
        }
        let now = self.now_of(n);
        match self.nodes[n].doomed.take() {
            None => {}
            Some((0, Death::Actor)) => return self.crash(n),
            Some((0, Death::Process(config, after))) => {
                // What it decided is never carried out.
                if !self.nodes[n].alone {
                    self.nodes[n].core.handle(now, input);
                }
                self.kill(n);
                let file_after = self.upto(2000);
                return self.plan(self.at + after, move |world| world.boot(n, config, file_after));
            }
            Some((inputs, death)) => self.nodes[n].doomed = Some((inputs - 1, death)),
        }
        if self.nodes[n].alone {
            return self.alone(n, input);
        }
        self.nodes[n].core.handle(now, input);
        self.drive(n);
    }

    /// A node on gossip alone does what its users ask for there, and nothing else concerns it.
    fn alone(&mut self, n: usize, input: Input) {
        match input {
            Input::Op { id, .. } => self.run_op(n, id, Side::B),
            Input::OpDone { id, result, .. } => {
                let verdict = result.map_or_else(Verdict::Failed, |_| Verdict::Done);
                self.answered(n, id, &verdict);
            }
            _ => {}
        }
    }

    /// Does what the actor would do.
    pub(super) fn drive(&mut self, n: usize) {
        if self.nodes[n].alone {
            return;
        }
        while let Some(output) = self.nodes[n].core.poll_output() {
            match output {
                Output::RunOp { id, side } => self.run_op(n, id, side),
                Output::RunOpOnLast { id, base } => {
                    let delta = self.callback(n, id, base.as_ref().map(Map::of));
                    let delta = delta.map(|(_, delta)| delta.value());
                    let now = self.now_of(n);
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
        let before = std::mem::replace(&mut self.nodes[n].view, view);
        if view.generation > before.generation {
            self.flipped(n, view);
        } else if before.waiting_for_runtime && !view.waiting_for_runtime {
            self.home_watches(n, view);
        }
    }

    fn flipped(&mut self, n: usize, view: View) {
        self.tally.flips += 1;
        for (key, value) in std::mem::take(&mut self.nodes[n].carry) {
            let there = self.raw(n, view.primary, &key).is_some_and(|there| there.covers(&value));
            if !there && !self.deleted_keys.contains(&key) && !self.overwritten() {
                self.violations.push(format!("node {n} flipped to {:?} before it had all of {key}", view.primary));
            }
        }
        if self.fault != Fault::NoFirstValue {
            self.home_watches(n, view);
        }
    }

    /// Every watch is opened on the primary and gets its current value at once.
    fn home_watches(&mut self, n: usize, view: View) {
        for key in self.nodes[n].watch.keys().cloned().collect::<Vec<_>>() {
            let value = self.raw(n, view.primary, &key);
            let generation = view.generation;
            self.push(millis(2), Ev::Watch { node: n, generation, side: view.primary, key, value });
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
                if !self.deleted_keys.contains(&op.key) {
                    self.acknowledged(n, &op.key, &delta, op.restored != self.consul.restored);
                }
            }
        }
    }

    /// The caller's callback. Returns the new value and what it changes.
    pub(super) fn callback(&mut self, n: usize, id: OpId, base: Option<&Map>) -> Option<(Map, Map)> {
        let now = self.now_of(n);
        let want = self.nodes[n].ops.get(&id)?.want.clone();
        let mut value = base.cloned().unwrap_or_default();
        match want {
            Want::Put(name, stamp, what) => put(&mut value, &name, stamp, what),
            // The way a user removes: the new value simply lacks it; the store makes it a tombstone.
            Want::Remove(name) => {
                value.entries().retain(|n, (_, live)| **n != *name || live.is_none());
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

    fn run_op(&mut self, n: usize, id: OpId, side: Side) {
        let (life, restored) = (self.nodes[n].life, self.consul.restored);
        let Some(op) = self.nodes[n].ops.get_mut(&id) else { return };
        op.run += 1;
        op.delta = None;
        op.restored = restored;
        let at = Call { node: n, life, id, run: op.run };
        let after = millis(self.rng.random_range(1..10));
        self.push(
            after,
            match side {
                Side::A => Ev::CasRead { at, attempt: 0 },
                Side::B => Ev::OnGossip(at),
            },
        );
    }
}

/// Writes an entry as a ring's heartbeat does: never with an older time than what is there, unless that is a removal.
pub(super) fn put(value: &mut Map, name: &str, stamp: u64, what: u64) {
    let entry: Entry = match value.0.get(name) {
        Some((_, Some(there))) if *there >= what => return,
        Some((known, Some(_))) => (stamp.max(known + 1), Some(what)),
        Some((removed, None)) if *removed >= stamp => return,
        _ => (stamp, Some(what)),
    };
    value.entries().insert(name.into(), entry);
}
