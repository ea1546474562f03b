//! Watches of users, and what they see.

use std::sync::Arc;

use super::{Entry, Ev, Input, Map, ReadJoin, Side, View, World, millis, secs};

impl World {
    /// A user of node `n` watches the key, from now on and after each restart.
    pub(in super::super) fn watch(&mut self, n: usize, key: &str) {
        let key: Arc<str> = key.into();
        self.nodes[n].watch.insert(key.clone(), ReadJoin::new(secs(300)));
        let View { primary: side, generation, waiting_for_runtime, .. } = self.nodes[n].view;
        // Opened when it is known which store is primary.
        if !waiting_for_runtime {
            let value = self.raw(n, side, &key);
            self.push(millis(1), Ev::Watch { node: n, generation, side, key, value });
        }
    }

    /// The key changed on a side: those whose watches are there are told.
    pub(super) fn notify(&mut self, n: usize, side: Side, key: &Arc<str>, after: std::time::Duration) {
        let node = &self.nodes[n];
        if !node.watches(side, key) {
            return;
        }
        let generation = node.view.generation;
        let value = self.raw(n, side, key);
        self.push(after, Ev::Watch { node: n, generation, side, key: key.clone(), value });
    }

    pub(super) fn watch_item(&mut self, n: usize, generation: u64, side: Side, key: Arc<str>, value: Option<Map>) {
        if !self.nodes[n].alive {
            return;
        }
        let now = self.now_of(n);
        if side == Side::A && self.nodes[n].blind {
            self.tally.fault("change missed by a watch that lost its place");
            return;
        }
        let Some(watch) = self.nodes[n].watch.get_mut(&key) else { return };
        let read = watch.deliver(generation, value.map(|value| value.value()), now).into_value();
        match &read {
            Some(value) => self.saw(n, &key, Map::of(value)),
            None => {
                let before = self.nodes[n].seen.remove(&key);
                if before.is_some() && !self.deleted_keys.contains(&key) && self.consul.restored == 0 {
                    self.older_read(format!("a reader of node {n} sees {key} deleted, which nobody deleted"));
                }
            }
        }
        self.input(n, Input::Delivered { key, side, value: read });
    }

    /// A watch that was answered with an older value, or lost its place, asks again.
    pub(super) fn reread(&mut self, n: usize, generation: u64, key: Arc<str>) {
        if self.nodes[n].view.generation == generation {
            self.notify(n, Side::A, &key, millis(1));
        }
    }

    /// The watches of a node on the store of one copy miss what changes for a while, as etcd's do after a compaction;
    /// then they begin anew with a fresh read.
    pub(in super::super) fn lose_watches(&mut self, n: usize, lasts: std::time::Duration) {
        self.tally.fault("watches that lost their place");
        self.nodes[n].blind = true;
        let life = self.nodes[n].life;
        self.plan(self.at + lasts, move |world| {
            if world.nodes[n].life == life {
                world.nodes[n].blind = false;
                for key in world.nodes[n].watch.keys().cloned().collect::<Vec<_>>() {
                    world.notify(n, Side::A, &key, millis(1));
                }
            }
        });
    }

    fn saw(&mut self, n: usize, key: &Arc<str>, value: &Map) {
        let node = &mut self.nodes[n];
        // Old tombstones may be forgotten, but what they buried does not come back.
        let newer = |name: &str, entry: &Entry| match value.0.get(name) {
            Some(now) => now >= entry,
            None => entry.1.is_none(),
        };
        let mut back = None;
        if let Some(before) = node.seen.get(key)
            && !before.0.iter().all(|(name, entry)| newer(name, entry))
        {
            back = Some(format!("a reader of node {n} went back: {before:?} -> {value:?}"));
        }
        let mut left = Vec::new();
        for (name, (stamp, live)) in &*value.0 {
            let buried = node.buried.get(&(key.clone(), name.clone()));
            if live.is_some() && buried.is_some_and(|at| stamp <= at) {
                back = Some(format!("a reader of node {n} sees {name} alive again, which was removed"));
            }
            if live.is_none() {
                node.buried.insert((key.clone(), name.clone()), *stamp);
                if !self.removed.contains(name) {
                    left.push(name.clone());
                }
            }
        }
        let before = node.seen.insert(key.clone(), value.clone());
        if let Some(back) = back {
            self.older_read(back);
        }
        for name in left {
            // Counted once for each time that it turns from alive into removed.
            if before.as_ref().is_none_or(|before| before.live(&name).is_some()) {
                self.false_left(format!("a reader of node {n} sees {name} removed, which nobody removed"));
            }
        }
    }

    /// A user of node `n` reads the key once.
    pub(super) fn got(&mut self, n: usize, side: Side, key: &Arc<str>, found: Option<Map>) {
        let now = self.now_of(n);
        let read = self.nodes[n].core.read(key, found.map(|value| value.value()), now);
        if let Some(value) = &read {
            let value = Map::of(value);
            let newer = |before: &Map| before.0.iter().all(|(name, e)| e.1.is_none() || value.has(name, e));
            if self.nodes[n].got.get(key).is_some_and(|before| !newer(before)) {
                self.older_read(format!("who asks node {n} for {key} is told less than before"));
            }
            self.nodes[n].got.insert(key.clone(), value.clone());
        }
        self.input(n, Input::Delivered { key: key.clone(), side, value: read });
    }
}
