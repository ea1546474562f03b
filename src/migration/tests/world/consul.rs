//! The store of one copy: compare-and-swap, late answers, stale answers, going back to a snapshot.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;

use super::{Call, Ev, Input, Map, OpEffect, Side, Want, World, millis, secs};
use crate::kv::StoreError;
use crate::migration::tests::stores::Snapshot;

impl World {
    fn done(&mut self, at: Call, result: Result<OpEffect, StoreError>) {
        let late = self.rng.random_range(0..1000) < self.late_permille;
        if late {
            self.tally.fault("late answer");
        }
        let ms = if late { self.rng.random_range(1_000..30_000) } else { self.rng.random_range(1..10) };
        self.push(millis(ms), Ev::Done { at, side: Side::A, result });
    }

    pub(super) fn cas_read(&mut self, at: Call, attempt: u32) {
        if !self.runs(at) {
            return;
        }
        let op = &self.nodes[at.node].ops[&at.id];
        let (key, want) = (op.key.clone(), op.want.clone());
        if !self.consul.up {
            // Refused at once, or no answer at all.
            self.tally.fault("refused by a store that is down");
            let error = Self::unavailable(self.kind(at.node, Side::A));
            return self.done(at, Err(error));
        }
        match want {
            Want::Get => {
                let value = self.consul.keys.get(&key).cloned();
                self.got(at.node, Side::A, &key, value);
                return self.done(at, Ok(OpEffect::Read));
            }
            Want::Delete => {
                self.delete_in_consul(&key);
                return self.done(at, Ok(OpEffect::Deleted));
            }
            _ => {}
        }
        let base = self.consul.keys.get(&key).cloned();
        let index = self.consul.index(&key);
        let Some((value, delta)) = self.callback(at.node, at.id, base.as_ref()) else {
            return self.done(at, Ok(OpEffect::Unchanged));
        };
        self.input(at.node, Input::Intent { id: at.id, delta: delta.value() });
        let after = millis(self.rng.random_range(1..10));
        self.push(after, Ev::CasWrite { at, attempt, index, key, value, delta });
    }

    pub(super) fn cas_write(&mut self, at: Call, attempt: u32, index: u64, key: &Arc<str>, value: Map, delta: Map) {
        // On its way already: it happens also when the caller, or the actor, is gone.
        if !self.consul.up {
            // The store went away: half of the writes happened before it did.
            self.tally.fault("write of unknown outcome");
            if self.rng.random_bool(0.5) && self.consul.index(key) == index {
                self.write_consul(key, value);
            }
            let store = self.kind(at.node, Side::A);
            return self.done(at, Err(StoreError::Timeout { store, after: secs(2) }));
        }
        if self.consul.index(key) != index {
            if attempt >= 20 {
                let error = StoreError::Conflict { key: key.to_string(), attempts: attempt };
                return self.done(at, Err(error));
            }
            let after = millis(self.rng.random_range(1..30));
            return self.push(after, Ev::CasRead { at, attempt: attempt + 1 });
        }
        self.write_consul(key, value);
        if self.runs(at) {
            let restored = self.consul.restored;
            let op = self.nodes[at.node].ops.get_mut(&at.id).unwrap();
            (op.delta, op.restored) = (Some(delta.clone()), restored);
        }
        self.done(at, Ok(OpEffect::Written(delta.value())));
    }

    /// A write that was computed from what is there.
    pub(super) fn write_consul(&mut self, key: &Arc<str>, value: Map) {
        if let Some(old) = self.consul.keys.get(key)
            && !value.covers(old)
        {
            self.violations.push(format!("Consul went back: {old:?} -> {value:?}"));
        }
        self.overwrite_consul(key, value);
    }

    pub(super) fn overwrite_consul(&mut self, key: &Arc<str>, value: Map) {
        self.consul.put(key, value);
        for n in 0..self.nodes.len() {
            let after = millis(self.rng.random_range(1..50));
            if self.rng.random_range(0..1000) >= self.stale_permille {
                self.notify(n, Side::A, key, after);
                continue;
            }
            let history = &self.consul.history[key];
            let stale = history[self.rng.random_range(0..history.len())].clone();
            let node = &self.nodes[n];
            if !node.watches(Side::A, key) {
                continue;
            }
            self.tally.fault("stale answer");
            let generation = node.view.generation;
            self.push(after, Ev::Watch { node: n, generation, side: Side::A, key: key.clone(), value: Some(stale) });
            self.push(after + secs(1), Ev::Reread { node: n, generation, key: key.clone() });
        }
    }

    pub(super) fn delete_in_consul(&mut self, key: &Arc<str>) {
        if self.consul.delete(key) {
            for n in 0..self.nodes.len() {
                let after = millis(self.rng.random_range(1..50));
                self.notify(n, Side::A, key, after);
            }
        }
    }

    /// The store goes back to an older content with lower indexes; watches are told what is there now.
    pub(in super::super) fn restore_consul(&mut self, snapshot: Snapshot, reset: bool) {
        self.tally.fault(if reset { "index reset" } else { "snapshot restored" });
        let before: Vec<_> = self.consul.keys.keys().cloned().collect();
        self.consul.restore(snapshot, reset);
        self.gone();
        for key in before {
            for n in 0..self.nodes.len() {
                self.notify(n, Side::A, &key, millis(20));
            }
        }
    }

    pub(in super::super) fn consul_down(&mut self, at: Duration, lasts: Duration) {
        self.plan(at, |world| {
            world.tally.fault("Consul down");
            world.consul.up = false;
        });
        self.plan(at + lasts, |world| world.consul.up = true);
    }
}
