//! A fleet of cores over two simulated stores, in virtual time, with a checker that knows every acknowledged write.
//!
//! - here: time and events · `nodes`: the cores and their users · `ends`: their ends and restarts · `readers`: watches
//! - `consul`, `gossip`: what the two stores do and how they fail · `tasks`: the background work of cores
//! - `go`: nodes of another kind, that mirror by overwriting · `check`: the checker, and the figures of a run

mod check;
mod consul;
mod ends;
mod go;
mod gossip;
mod nodes;
mod readers;
mod tasks;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

pub(super) use self::check::{SPREAD, Tally};
pub(super) use self::ends::{Death, Static};
pub(super) use self::go::Go;
pub(super) use self::nodes::{Node, Want};
use super::super::core::Fault;
use super::super::*;
use super::map::{Entry, Map};
use super::stores::Consul;
use crate::clock::Now;
use crate::kv::{StoreError, StoreKind};

pub(super) const RING: &str = "collectors/ring";

/// Something that happens.
enum Ev {
    Tick(usize),
    Heartbeat(usize, Duration),
    In(usize, u64, Input),
    Done {
        at: Call,
        side: Side,
        result: Result<OpEffect, StoreError>,
    },
    CasRead {
        at: Call,
        attempt: u32,
    },
    CasWrite {
        at: Call,
        attempt: u32,
        index: u64,
        key: Arc<str>,
        value: Map,
        delta: Map,
    },
    OnGossip(Call),
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
    /// A node that has started asks a peer for everything.
    Join(usize),
    /// A node that has started, or whose actor has, is told the runtime file as it is now.
    Reload(usize, u64),
    Watch {
        node: usize,
        generation: u64,
        side: Side,
        key: Arc<str>,
        value: Option<Map>,
    },
    /// A watch on the store of one copy asks again.
    Reread {
        node: usize,
        generation: u64,
        key: Arc<str>,
    },
    GoWrite {
        node: usize,
        index: u64,
        value: Map,
    },
    GoMirror(usize),
    Do(Box<dyn FnOnce(&mut World)>),
}

/// One run of an operation of a user.
#[derive(Clone, Copy)]
struct Call {
    node: usize,
    life: u64,
    id: OpId,
    run: u64,
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
    acked: BTreeMap<Arc<str>, BTreeMap<Arc<str>, Acked>>,
    removed: BTreeSet<Arc<str>>,
    deleted_keys: BTreeSet<Arc<str>>,
    pub(super) violations: Vec<String>,
    /// How long it goes on after the trouble, with and without writes.
    pub(super) calm: [Duration; 2],
    pub(super) tally: Tally,
    /// Nobody writes any more.
    quiet: bool,
    steps: u64,
}

/// An entry of which a caller was told that it is written.
#[derive(Clone, Copy)]
struct Acked {
    entry: Entry,
    at: Duration,
    by: usize,
    /// The process that wrote it was killed before more than one store could have it: one is enough.
    lone: bool,
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
    pub(super) fn new(seed: u64, nodes: usize, fault: Fault, config: &MultiConfig) -> Self {
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
            calm: [secs(40), secs(110)],
            tally: Tally { runs: 1, ..Tally::default() },
            quiet: false,
            steps: 0,
        };
        // Stamps are microseconds of virtual time; start away from zero.
        world.start.unix = secs(1_000_000);
        for n in 0..nodes {
            world.join_fleet(MultiConfig { seed: seed ^ n as u64, ..config.clone() });
        }
        world
    }

    pub(super) fn now(&self) -> Now {
        self.start + self.at
    }

    /// The time that a node believes it to be.
    pub(super) fn now_of(&self, n: usize) -> Now {
        let mut now = self.now();
        let (ahead, behind) = self.nodes[n].clock;
        now.unix = now.unix + ahead - behind;
        now
    }

    /// A stamp by the clock of a node.
    pub(super) fn stamp(&mut self, n: usize) -> u64 {
        self.order += 1;
        u64::try_from(self.now_of(n).unix.as_micros()).unwrap() + self.order % 7
    }

    /// A random time of at most this many milliseconds.
    pub(super) fn upto(&mut self, ms: u64) -> Duration {
        millis(if ms == 0 { 0 } else { self.rng.random_range(0..=ms) })
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
            self.heartbeats_of(n, period);
        }
    }

    pub(super) fn heartbeats_of(&mut self, n: usize, period: Duration) {
        let first = period.mul_f64(self.rng.random_range(0.0..1.0));
        self.push(first, Ev::Heartbeat(n, period));
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
            Ev::Heartbeat(n, period) => self.heartbeat(n, period),
            Ev::In(n, life, input) if self.nodes[n].life == life => self.input(n, input),
            Ev::In(..) => {}
            Ev::Done { at, side, result } => {
                if self.runs(at) {
                    self.input(at.node, Input::OpDone { id: at.id, side, result });
                }
            }
            Ev::CasRead { at, attempt } => self.cas_read(at, attempt),
            Ev::CasWrite { at, attempt, index, key, value, delta } => {
                self.cas_write(at, attempt, index, &key, value, delta);
            }
            Ev::OnGossip(at) => self.on_gossip(at),
            Ev::Exec { node, life, id, side, task } => self.exec(node, life, id, side, task),
            Ev::Gossip(n, key, delta) => self.heard(n, &key, &delta),
            Ev::GossipDelete(n, key, at) => self.heard_delete(n, &key, at),
            Ev::PushPull(n) => {
                self.push_pull(n);
                self.push(secs(5), Ev::PushPull(n));
            }
            Ev::Join(n) => self.join_gossip(n),
            Ev::Reload(n, life) => {
                if self.nodes[n].life == life {
                    self.input(n, Input::Runtime(self.nodes[n].file));
                }
            }
            Ev::Watch { node, generation, side, key, value } => self.watch_item(node, generation, side, key, value),
            Ev::Reread { node, generation, key } => self.reread(node, generation, key),
            Ev::GoWrite { node, index, value } => self.go_write(node, index, value),
            Ev::GoMirror(n) => self.go_mirror(n),
            Ev::Do(action) => action(self),
        }
    }

    fn runs(&self, at: Call) -> bool {
        let node = &self.nodes[at.node];
        node.life == at.life && node.ops.get(&at.id).is_some_and(|op| op.run == at.run)
    }

    /// What a node finds on a side.
    pub(super) fn raw(&self, n: usize, side: Side, key: &str) -> Option<Map> {
        match side {
            Side::A => self.consul.keys.get(key).cloned(),
            Side::B => self.nodes[n].replica.keys.get(key).cloned(),
        }
    }

    fn unavailable(store: StoreKind) -> StoreError {
        StoreError::Unavailable { store, reason: "down".into() }
    }
}
