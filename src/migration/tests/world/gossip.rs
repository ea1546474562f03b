//! The gossip store: every node has a replica; packets get lost, nodes are cut off, the cluster splits.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;

use super::{Call, Ev, Input, Map, OpEffect, Side, Want, World, millis};

impl World {
    pub(super) fn on_gossip(&mut self, at: Call) {
        if !self.runs(at) {
            return;
        }
        let node = at.node;
        let op = &self.nodes[node].ops[&at.id];
        let (key, want) = (op.key.clone(), op.want.clone());
        let result = if self.nodes[node].replica.down {
            self.tally.fault("refused by a store that is down");
            Err(Self::unavailable(self.kind(node, Side::B)))
        } else if let Want::Get = want {
            let value = self.raw(node, Side::B, &key);
            self.got(node, Side::B, &key, value);
            Ok(OpEffect::Read)
        } else if let Want::Delete = want {
            self.delete_in_gossip(node, &key);
            Ok(OpEffect::Deleted)
        } else {
            let base = self.raw(node, Side::B, &key);
            match self.callback(node, at.id, base.as_ref()) {
                None => Ok(OpEffect::Unchanged),
                Some((_, delta)) => {
                    self.input(node, Input::Intent { id: at.id, delta: delta.value() });
                    self.join_replica(node, &key, &delta);
                    if let Some(op) = self.nodes[node].ops.get_mut(&at.id) {
                        op.delta = Some(delta.clone());
                    }
                    Ok(OpEffect::Written(delta.value()))
                }
            }
        };
        self.push(millis(1), Ev::Done { at, side: Side::B, result });
    }

    pub(super) fn join_replica(&mut self, n: usize, key: &Arc<str>, delta: &Map) {
        if let Some(change) = self.nodes[n].replica.join(key, delta) {
            self.notify(n, Side::B, key, millis(1));
            for peer in self.reached(n) {
                let after = millis(self.rng.random_range(5..400));
                self.push(after, Ev::Gossip(peer, key.clone(), change.clone()));
            }
        }
    }

    pub(super) fn heard(&mut self, n: usize, key: &Arc<str>, delta: &Map) {
        if self.nodes[n].alive && !self.nodes[n].replica.cut {
            self.join_replica(n, key, delta);
        }
    }

    pub(super) fn delete_in_gossip(&mut self, n: usize, key: &Arc<str>) {
        let at = self.stamp(n);
        self.apply_delete(n, key, at);
    }

    pub(super) fn heard_delete(&mut self, n: usize, key: &Arc<str>, at: u64) {
        if self.nodes[n].alive && !self.nodes[n].replica.cut {
            self.apply_delete(n, key, at);
        }
    }

    fn apply_delete(&mut self, n: usize, key: &Arc<str>, at: u64) {
        if self.nodes[n].replica.delete(key, at) {
            self.notify(n, Side::B, key, millis(1));
            for peer in self.reached(n) {
                let after = millis(self.rng.random_range(5..400));
                self.push(after, Ev::GossipDelete(peer, key.clone(), at));
            }
        }
    }

    fn connected(&self, n: usize) -> Vec<usize> {
        let here = &self.nodes[n];
        let peer = |peer: &usize| {
            let there = &self.nodes[*peer];
            *peer != n && here.alive && there.alive && here.replica.hears(&there.replica)
        };
        (0..self.nodes.len()).filter(peer).collect()
    }

    /// Peers that one broadcast reaches: each packet is lost with 20 %.
    fn reached(&mut self, n: usize) -> Vec<usize> {
        let all = self.connected(n);
        let count = all.len();
        let reached: Vec<_> = all.into_iter().filter(|_| self.rng.random_bool(0.8)).collect();
        self.tally.faults("lost gossip packet", (count - reached.len()) as u64);
        reached
    }

    pub(super) fn push_pull(&mut self, n: usize) {
        let peer = self.rng.random_range(0..self.nodes.len());
        if self.connected(n).contains(&peer) {
            self.exchange(n, peer);
        }
    }

    /// A node that has started asks somebody for everything.
    pub(super) fn join_gossip(&mut self, n: usize) {
        let peers = self.connected(n);
        if !peers.is_empty() {
            let peer = peers[self.rng.random_range(0..peers.len())];
            self.exchange(n, peer);
        }
    }

    fn exchange(&mut self, n: usize, peer: usize) {
        for (here, there) in [(n, peer), (peer, n)] {
            for (key, at) in self.nodes[here].replica.deletions() {
                self.apply_delete(there, &key, at);
            }
            for (key, value) in self.nodes[here].replica.keys.clone() {
                self.join_replica(there, &key, &value);
            }
        }
    }

    pub(in super::super) fn gossip_down(&mut self, n: usize, at: Duration, lasts: Duration) {
        self.plan(at, move |world| {
            world.tally.fault("gossip store of a node down");
            world.nodes[n].replica.down = true;
        });
        self.plan(at + lasts, move |world| world.nodes[n].replica.down = false);
    }

    pub(in super::super) fn cut_off(&mut self, n: usize, at: Duration, lasts: Duration) {
        self.plan(at, move |world| {
            world.tally.fault("node cut off from gossip");
            world.nodes[n].replica.cut = true;
        });
        self.plan(at + lasts, move |world| world.nodes[n].replica.cut = false);
    }

    /// Gossip falls into two halves that do not hear each other.
    pub(in super::super) fn split(&mut self, at: Duration, lasts: Duration) {
        self.plan(at, |world| {
            world.tally.fault("gossip split in half");
            for n in 0..world.nodes.len() {
                world.nodes[n].replica.part = n % 2;
            }
        });
        self.plan(at + lasts, |world| world.nodes.iter_mut().for_each(|node| node.replica.part = 0));
    }
}
