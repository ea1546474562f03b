//! The background work of the cores, and the fault of a mirror that overwrites.

use std::sync::Arc;

use rand::RngExt as _;

use super::{Ev, Fault, Input, Map, Side, Task, TaskId, TaskResult, World, millis, secs};
use crate::kv::{Mergeable as _, StoreError};

impl World {
    pub(super) fn exec(&mut self, node: usize, life: u64, id: TaskId, side: Side, task: Task) {
        if self.nodes[node].life != life && self.rng.random_bool(0.5) {
            // The actor that asked is gone; its request may have left all the same.
            return;
        }
        if !self.nodes[node].alive && side == Side::B {
            return;
        }
        let down = match side {
            Side::A => !self.consul.up,
            Side::B => self.nodes[node].replica.down,
        };
        let store = self.kind(node, side);
        let mut after = millis(self.rng.random_range(1..10));
        let mut result = if down { Err(Self::unavailable(store)) } else { Ok(self.perform(node, side, task)) };
        if down {
            self.tally.fault("refused by a store that is down");
        }
        if side == Side::A && self.rng.random_range(0..1000) < self.late_permille {
            // It happened, but the answer comes after the limit.
            self.tally.fault("late answer");
            after = secs(2);
            result = Err(StoreError::Timeout { store, after });
        }
        self.push(after, Ev::In(node, life, Input::TaskDone { id, result }));
    }

    fn perform(&mut self, node: usize, side: Side, task: Task) -> TaskResult {
        match (task, side) {
            (Task::Get { key }, side) => TaskResult::Value(self.raw(node, side, &key).map(|value| value.value())),
            (Task::Exists { key }, side) => TaskResult::Exists(self.raw(node, side, &key).is_some()),
            (Task::List { prefix }, side) => {
                let keys = match side {
                    Side::A => self.consul.keys.keys(),
                    Side::B => self.nodes[node].replica.keys.keys(),
                };
                let keys = keys.filter(|key| key.starts_with(&prefix));
                TaskResult::Keys(keys.map(ToString::to_string).collect())
            }
            (Task::Delete { key }, side) => {
                match side {
                    Side::A => self.delete_in_consul(&key),
                    Side::B => self.delete_in_gossip(node, &key),
                }
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
            // This node's idea of the whole value, over whatever is there.
            let mut whole = self.nodes[node].seen.get(key).cloned().unwrap_or_default();
            whole.merge(delta);
            match side {
                Side::A => self.write_consul(key, whole),
                Side::B => self.overwrite_replica(node, key, &whole),
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

    /// What memberlist's compare-and-swap does with a value that lacks something: it becomes a tombstone, stamped now.
    pub(super) fn overwrite_replica(&mut self, n: usize, key: &Arc<str>, whole: &Map) {
        let there = self.raw(n, Side::B, key);
        if let Some(mut change) = whole.delta(there.as_ref(), self.now_of(n)) {
            // Older entries of the new value lose against what is there.
            if let Some(there) = &there {
                change.entries().retain(|name, entry| !there.has(name, entry));
            }
            self.join_replica(n, key, &change);
        }
    }
}
