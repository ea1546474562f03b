//! Whole keys that are deleted during a move stay deleted: nodes over two stores that remember nothing of a deleted key.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use super::super::*;
use super::map::Map;
use super::rules::Bench;
use super::world::{millis, mirror, secs, to};
use crate::clock::Now;
use crate::kv::{StoreError, StoreKind};

const NODES: usize = 4;

/// Keys that are written and stay, and keys that are written and deleted.
const KEYS: usize = 12;

type Contents = BTreeMap<Arc<str>, Map>;

enum Ev {
    Input(usize, Input),
    Tick(usize),
    Task(usize, TaskId, Side, Task),
    Run(usize, OpId, Side),
    Do(Box<dyn FnOnce(&mut Moves)>),
}

/// What is wanted of a key.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Want {
    Put,
    Delete,
}

/// Nodes, and etcd and Consul: of each one copy, and no memory of what was deleted.
struct Moves {
    rng: SmallRng,
    start: Now,
    at: Duration,
    queue: BTreeMap<(Duration, u64), Ev>,
    order: u64,
    cores: Vec<MultiCore>,
    ticks: Vec<Option<Duration>>,
    stores: [Contents; 2],
    up: [bool; 2],
    ops: BTreeMap<OpId, (usize, Arc<str>, Want)>,
    unanswered: BTreeSet<OpId>,
    /// Deletions that happened, and whose answer got lost. Their user does not insist.
    lost: BTreeSet<OpId>,
    /// The fault to notice: what waited is written whether the key is there or not.
    creates: bool,
    left: usize,
}

impl Moves {
    fn new(seed: u64, creates: bool) -> Self {
        let start = Now::read();
        let config = |n| MultiConfig {
            primary: StoreKind::Consul,
            secondary: StoreKind::Etcd,
            mirror_enabled: true,
            seed: seed.wrapping_add(n),
            ..MultiConfig::default()
        };
        let mut moves = Self {
            rng: SmallRng::seed_from_u64(seed),
            start,
            at: Duration::ZERO,
            queue: BTreeMap::new(),
            order: 0,
            cores: (0..NODES as u64).map(|n| MultiCore::new(config(n), start)).collect(),
            ticks: vec![None; NODES],
            stores: Default::default(),
            up: [true, true],
            ops: BTreeMap::new(),
            unanswered: BTreeSet::new(),
            lost: BTreeSet::new(),
            creates,
            left: 0,
        };
        (0..NODES).for_each(|n| moves.drive(n));
        moves
    }

    fn push(&mut self, after: Duration, event: Ev) {
        self.order += 1;
        self.queue.insert((self.at + after, self.order), event);
    }

    fn plan(&mut self, at: Duration, action: impl FnOnce(&mut Self) + 'static) {
        self.push(at.saturating_sub(self.at), Ev::Do(Box::new(action)));
    }

    /// A user who insists.
    fn user(&mut self, n: usize, key: &str, want: Want) {
        self.order += 1;
        let (id, key): (_, Arc<str>) = (OpId(self.order), key.into());
        self.ops.insert(id, (n, key.clone(), want));
        self.unanswered.insert(id);
        let kind = if want == Want::Put { OpKind::Cas } else { OpKind::Delete };
        self.input(n, Input::Op { id, key, kind });
    }

    fn input(&mut self, n: usize, input: Input) {
        let now = self.start + self.at;
        self.cores[n].handle(now, input);
        self.drive(n);
    }

    fn drive(&mut self, n: usize) {
        while let Some(output) = self.cores[n].poll_output() {
            let delay = millis(self.rng.random_range(1..40));
            match output {
                Output::RunOp { id, side } => self.push(delay, Ev::Run(n, id, side)),
                Output::RunOpOnLast { id, .. } => {
                    self.push(delay, Ev::Input(n, Input::OpOnLastDone { id, delta: None }));
                }
                Output::Task { id, side, task } => self.push(delay, Ev::Task(n, id, side, task)),
                Output::Reply { id, verdict } => {
                    self.unanswered.remove(&id);
                    let (n, key, want) = self.ops[&id].clone();
                    if !matches!(verdict, Verdict::Done) && !self.lost.contains(&id) {
                        self.push(secs(1), Ev::Do(Box::new(move |moves| moves.user(n, &key, want))));
                    }
                }
                Output::Event(MigrationEvent::DeletedKeyLeft { .. }) => self.left += 1,
                Output::Event(_) | Output::View(_) | Output::Parity { .. } | Output::Drained => {}
            }
        }
        if let Some(at) = self.cores[n].next_deadline() {
            let at = at.saturating_duration_since(self.start.mono).max(self.at + millis(1));
            if self.ticks[n].is_none_or(|planned| at < planned) {
                self.ticks[n] = Some(at);
                self.push(at - self.at, Ev::Tick(n));
            }
        }
    }

    fn run_until(&mut self, end: Duration) {
        while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= end) {
            let ((at, _), event) = entry.remove_entry();
            self.at = at;
            match event {
                Ev::Input(n, input) => self.input(n, input),
                Ev::Tick(n) => {
                    self.ticks[n] = None;
                    self.input(n, Input::Tick);
                }
                Ev::Task(n, id, side, task) => {
                    let result = self.perform(side, task);
                    let delay = millis(self.rng.random_range(1..40));
                    self.push(delay, Ev::Input(n, Input::TaskDone { id, result }));
                }
                Ev::Run(n, id, side) => {
                    let result = self.operate(id, side);
                    let delay = millis(self.rng.random_range(1..40));
                    self.push(delay, Ev::Input(n, Input::OpDone { id, side, result }));
                }
                Ev::Do(action) => action(self),
            }
        }
        self.at = end;
    }

    fn check_up(&self, side: Side) -> Result<(), StoreError> {
        let store = if side == Side::A { StoreKind::Consul } else { StoreKind::Etcd };
        if self.up[side.index()] { Ok(()) } else { Err(StoreError::Unavailable { store, reason: "down".into() }) }
    }

    fn operate(&mut self, id: OpId, side: Side) -> Result<OpEffect, StoreError> {
        self.check_up(side)?;
        let (n, key, want) = self.ops[&id].clone();
        if want == Want::Delete {
            self.stores[side.index()].remove(&key);
            if self.rng.random_bool(0.3) {
                self.lost.insert(id);
                return Err(StoreError::Timeout { store: StoreKind::Consul, after: secs(2) });
            }
            return Ok(OpEffect::Deleted);
        }
        let stamp = u64::try_from(self.at.as_micros()).unwrap();
        let delta = Map::one(&format!("node-{n}"), stamp, Some(stamp));
        self.stores[side.index()].entry(key).or_default().merge(&delta);
        Ok(OpEffect::Written(delta.value()))
    }

    fn perform(&mut self, side: Side, task: Task) -> Result<TaskResult, StoreError> {
        self.check_up(side)?;
        let elsewhere = self.up[side.other().index()].then(|| self.stores[side.other().index()].clone());
        let store = &mut self.stores[side.index()];
        Ok(match task {
            Task::Get { key } => TaskResult::Value(store.get(&key).map(Map::value)),
            Task::Exists { key } => TaskResult::Exists(store.contains_key(&key)),
            Task::List { prefix } => {
                TaskResult::Keys(store.keys().filter(|key| key.starts_with(&prefix)).map(ToString::to_string).collect())
            }
            Task::Delete { key } => {
                store.remove(&key);
                TaskResult::Done
            }
            Task::Join { key, delta } => {
                let gone = elsewhere.is_some_and(|elsewhere| !elsewhere.contains_key(&key));
                if !self.creates && gone && !store.contains_key(&key) {
                    return Err(StoreError::Absent { key: key.to_string() });
                }
                store.entry(key).or_default().merge(Map::of(&delta));
                TaskResult::Done
            }
        })
    }

    /// Keys are written, and half of them deleted by another node, while the store that is not primary comes and goes.
    fn life(&mut self, round: usize, primary: Side) {
        let begin = self.at;
        for key in 0..KEYS {
            let name = format!("round-{round}/key-{key}");
            let (writer, deleter) = (self.rng.random_range(0..NODES), self.rng.random_range(0..NODES));
            let at = begin + millis(self.rng.random_range(0..50_000));
            let written = name.clone();
            self.plan(at, move |moves| moves.user(writer, &written, Want::Put));
            if key % 2 == 0 {
                let later = at + millis(self.rng.random_range(200..8_000));
                self.plan(later, move |moves| moves.user(deleter, &name, Want::Delete));
            }
        }
        for outage in 0..4 {
            let at = begin + secs(outage * 15) + millis(self.rng.random_range(0..5_000));
            let until = at + millis(self.rng.random_range(500..9_000));
            self.plan(at, move |moves| moves.up[primary.other().index()] = false);
            self.plan(until, move |moves| moves.up[primary.other().index()] = true);
        }
        self.run_until(begin + secs(60));
    }

    fn flip(&mut self, primary: StoreKind) {
        let begin = self.at;
        for n in 0..NODES {
            let at = begin + millis(self.rng.random_range(0..20_000));
            self.plan(at, move |moves| moves.input(n, Input::Runtime(to(primary))));
        }
        self.run_until(begin + secs(25));
    }

    /// What is not as it should be: keys that came back, and keys that are not in both stores.
    fn wrong(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let wants: BTreeMap<_, _> = self.ops.values().map(|(_, key, want)| (key.clone(), *want)).collect();
        for (key, want) in wants {
            for (store, kind) in self.stores.iter().zip(["consul", "etcd"]) {
                if store.contains_key(&key) != (want == Want::Put) {
                    wrong.push(format!("{key} in {kind}: {}", if want == Want::Put { "lost" } else { "came back" }));
                }
            }
        }
        wrong
    }

    /// A whole move, there and back.
    fn there_and_back(seed: u64, creates: bool) -> Self {
        let mut moves = Self::new(seed, creates);
        moves.life(0, Side::A);
        moves.flip(StoreKind::Etcd);
        moves.life(1, Side::B);
        moves.flip(StoreKind::Consul);
        moves.life(2, Side::A);
        moves.run_until(moves.at + secs(180));
        assert!(moves.unanswered.is_empty(), "seed {seed}: an operation hangs");
        for core in &moves.cores {
            assert_eq!((core.outbox_len(), core.view().generation), (0, 2), "seed {seed}");
        }
        moves
    }
}

#[test]
fn a_deleted_key_stays_deleted_through_a_whole_move_and_what_was_not_deleted_is_in_both_stores() {
    let (mut left, mut lost) = (0, 0);
    for seed in 0..60 {
        let moves = Moves::there_and_back(seed, false);
        assert_eq!(moves.wrong(), Vec::<String>::new(), "seed {seed}");
        left += moves.left;
        lost += moves.lost.len();
    }
    assert!(lost > 0, "no deletion was ever left unanswered");
    assert!(left > 0, "no write ever waited for a key that was deleted");
}

#[test]
fn the_suite_notices_a_mirror_that_creates_what_was_deleted() {
    assert!((0..20).any(|seed| !Moves::there_and_back(seed, true).wrong().is_empty()));
}

#[test]
fn a_write_of_a_key_that_is_gone_on_both_sides_is_dropped_and_told() {
    let mut bench = Bench::dual();
    bench.op(OpKind::Cas);
    bench.done(Side::A, Ok(OpEffect::Written(Map::one("a", 1, Some(1)).value())));
    let (id, _, _) = bench.tasks().pop().unwrap();
    bench.task_done(id, Err(StoreError::Absent { key: "ring".into() }));
    assert!(bench.said(|event| matches!(event, MigrationEvent::DeletedKeyLeft { key, .. } if key == "ring")));
    let status = bench.core.status(bench.now);
    assert_eq!((status.outbox_len, status.mirror_dropped_total, status.mirror_errors_total), (0, 1, 0));
}

#[test]
fn after_a_flip_what_only_the_new_primary_has_is_copied_back_only_if_it_stays() {
    let mut bench = Bench::new();
    bench.runtime(mirror(true));
    bench.runtime(to(StoreKind::Memberlist));
    assert_eq!(bench.view().primary, Side::B);
    let (list, ..) = bench.tasks().pop().unwrap();
    bench.task_done(list, Ok(TaskResult::Keys(vec!["ring".into()])));
    let value = Map::one("a", 1, Some(1)).value();
    let read = bench.tasks().pop().unwrap().0;
    bench.task_done(read, Ok(TaskResult::Value(Some(value.clone()))));
    let check = bench.tasks().pop().unwrap();
    assert_eq!(check.1, Side::A);
    bench.task_done(check.0, Ok(TaskResult::Value(None)));
    assert!(bench.tasks().is_empty(), "its deletion may be on its way");
    bench.wait(secs(60));
    let again = bench.tasks().pop().unwrap();
    assert_eq!(again.1, Side::B, "it is read again first");
    bench.task_done(again.0, Ok(TaskResult::Value(Some(value))));
    let check = bench.tasks().pop().unwrap().0;
    bench.task_done(check, Ok(TaskResult::Value(None)));
    assert!(matches!(&bench.tasks()[..], [(_, Side::A, Task::Join { .. })]));
}

/// A flip to gossip, and a key that the new primary has and the old one lacks: read, and to be settled.
fn settling() -> Bench {
    let mut bench = Bench::new();
    bench.runtime(mirror(true));
    bench.runtime(to(StoreKind::Memberlist));
    answer(&mut bench);
    bench
}

/// Answers like two stores of which only side B has the key. Returns whether it was to be created on side A.
fn answer(bench: &mut Bench) -> bool {
    let mut created = false;
    let mut tasks = bench.tasks();
    while let Some((id, side, task)) = tasks.pop() {
        let answer = match task {
            Task::List { .. } => TaskResult::Keys((side == Side::B).then(|| "ring".into()).into_iter().collect()),
            Task::Get { .. } => TaskResult::Value((side == Side::B).then(|| Map::one("a", 1, Some(1)).value())),
            Task::Exists { .. } => TaskResult::Exists(side == Side::B),
            Task::Join { .. } | Task::Delete { .. } => {
                created |= side == Side::A;
                continue;
            }
        };
        bench.task_done(id, Ok(answer));
        tasks.extend(bench.tasks());
    }
    created
}

#[test]
fn what_is_compared_while_a_key_settles_does_not_make_it_wait_longer() {
    let mut bench = settling();
    let created = (1..=60).find(|_| {
        // As a comparison does that finds the key missing.
        bench.core.recheck(&"ring".into());
        bench.wait(secs(1));
        answer(&mut bench)
    });
    // The longest pause of an outbox, and the time of an attempt.
    assert_eq!(created, Some(32), "not before its deletion must have arrived, and not never");
}

#[test]
fn a_run_that_begins_anew_soon_after_a_flip_waits_with_keys_that_only_the_new_primary_has() {
    for restart in [false, true] {
        let mut bench = settling();
        bench.wait(secs(10));
        assert!(!answer(&mut bench));
        if restart {
            bench.core = MultiCore::resume(bench.core.config.clone(), bench.core.durable(), bench.now);
            bench.out.clear();
            bench.collect();
        } else {
            bench.input(Input::Prefixes(vec![String::new(), "other/".into()]));
        }
        assert!(!answer(&mut bench), "its deletion may be on its way");
        bench.wait(secs(15));
        assert!(!answer(&mut bench));
        bench.wait(secs(60));
        assert!(answer(&mut bench));
    }
}
