//! Each rule of the multi store on its own: inputs in, outputs out.

mod doubts;
mod flips;
mod life;
mod writes;

use std::sync::Arc;
use std::time::Duration;

use super::super::*;
use super::map::Map;
use super::world::{millis, mirror, secs, to};
use crate::clock::Now;
use crate::kv::{StoreError, StoreKind, Value};

/// A core, its clock, and what it said.
pub(super) struct Bench {
    pub(super) core: MultiCore,
    pub(super) now: Now,
    pub(super) out: Vec<Output>,
}

const ID: OpId = OpId(1);

fn key() -> Arc<str> {
    "ring".into()
}

fn map(name: &str) -> Map {
    Map::one(name, 1, Some(1))
}

fn delta(name: &str) -> Value {
    map(name).value()
}

fn down(store: StoreKind) -> StoreError {
    StoreError::Unavailable { store, reason: "down".into() }
}

impl Bench {
    pub(super) fn with(config: MultiConfig) -> Self {
        let now = Now::read();
        // The continuous comparison has its own tests.
        Self::comparing(MultiConfig { parity_period: Duration::from_secs(100_000), ..config }, now)
    }

    /// With the comparison that the configuration asks for.
    pub(super) fn comparing(config: MultiConfig, now: Now) -> Self {
        let mut bench = Self { core: MultiCore::new(config, now), now, out: Vec::new() };
        bench.collect();
        bench
    }

    pub(super) fn new() -> Self {
        Self::with(MultiConfig::default())
    }

    /// Mirroring on, and its backfill of nothing through.
    pub(super) fn dual() -> Self {
        let mut bench = Self::new();
        bench.runtime(mirror(true));
        let list = bench.tasks().pop().unwrap().0;
        bench.task_done(list, Ok(TaskResult::Keys(Vec::new())));
        bench.out.clear();
        bench
    }

    pub(super) fn collect(&mut self) {
        while let Some(output) = self.core.poll_output() {
            self.out.push(output);
        }
    }

    /// Outputs from here on are those of this input and what follows.
    pub(super) fn input(&mut self, input: Input) {
        self.out.clear();
        self.core.handle(self.now, input);
        self.collect();
    }

    pub(super) fn runtime(&mut self, runtime: RuntimeMulti) {
        self.input(Input::Runtime(runtime));
    }

    pub(super) fn task_done(&mut self, id: TaskId, result: Result<TaskResult, StoreError>) {
        self.input(Input::TaskDone { id, result });
    }

    pub(super) fn wait(&mut self, by: Duration) {
        self.now = self.now + by;
        self.input(Input::Tick);
    }

    pub(super) fn op(&mut self, kind: OpKind) {
        self.input(Input::Op { id: ID, key: key(), kind });
    }

    pub(super) fn done(&mut self, side: Side, result: Result<OpEffect, StoreError>) {
        self.input(Input::OpDone { id: ID, side, result });
    }

    pub(super) fn deliver(&mut self, side: Side, value: Value) {
        self.input(Input::Delivered { key: key(), side, value: Some(value) });
    }

    pub(super) fn tasks(&self) -> Vec<(TaskId, Side, Task)> {
        let task = |output: &Output| match output {
            Output::Task { id, side, task } => Some((*id, *side, task.clone())),
            _ => None,
        };
        self.out.iter().filter_map(task).collect()
    }

    /// The only task, a join; its id, side and δ.
    fn join(&self) -> (TaskId, Side, Map) {
        match &self.tasks()[..] {
            [(id, side, Task::Join { delta, .. })] => (*id, *side, Map::of(delta).clone()),
            other => panic!("not one join: {other:?}"),
        }
    }

    /// `Some(true)`: answered with success.
    fn reply(&self) -> Option<bool> {
        self.out.iter().find_map(|output| match output {
            Output::Reply { verdict, .. } => Some(matches!(verdict, Verdict::Done)),
            _ => None,
        })
    }

    fn runs_on(&self) -> Option<Side> {
        self.out.iter().find_map(|output| match output {
            Output::RunOp { side, .. } => Some(*side),
            _ => None,
        })
    }

    pub(super) fn view(&self) -> View {
        self.core.view()
    }

    pub(super) fn said(&self, wanted: impl Fn(&MigrationEvent) -> bool) -> bool {
        self.out.iter().any(|output| matches!(output, Output::Event(event) if wanted(event)))
    }
}
