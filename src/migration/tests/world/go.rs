//! A node of another kind in the fleet: one that mirrors as Grafana's multi client does.
//!
//! It reads and writes its primary. After a write it overwrites the other store with the whole value that it wrote, some
//! time later and only the latest. In Consul that replaces what is there; in memberlist, what the value lacks becomes a
//! tombstone. A flip only swaps.

use super::nodes::put;
use super::{Ev, Map, RING, Side, World, millis};
use crate::kv::StoreKind;
use crate::migration::RuntimeMulti;

/// See the [module documentation](self).
#[derive(Clone, Debug)]
pub(in super::super) struct Go {
    primary: Side,
    mirror: bool,
    /// The longest time from its write to its mirror write, in milliseconds.
    delay: u64,
    /// What it will write over the other store, and which one that is.
    waiting: Option<(Side, Map)>,
}

impl World {
    /// Makes a node one of the other kind. Its own writes are not checked: no promise of Annulus speaks of them.
    pub(in super::super) fn make_go(&mut self, n: usize, delay: u64) {
        self.nodes[n].watch.clear();
        self.nodes[n].go = Some(Go { primary: Side::A, mirror: false, delay, waiting: None });
    }

    pub(super) fn go_runtime(&mut self, n: usize, runtime: RuntimeMulti) {
        let Some(go) = &mut self.nodes[n].go else { return };
        go.mirror = runtime.mirror_enabled.unwrap_or(go.mirror);
        match runtime.primary {
            Some(StoreKind::Memberlist) => go.primary = Side::B,
            Some(_) => go.primary = Side::A,
            None => {}
        }
    }

    pub(super) fn go_heartbeat(&mut self, n: usize) {
        let Some(Go { primary, .. }) = self.nodes[n].go else { return };
        let mut value = self.raw(n, primary, RING).unwrap_or_default();
        let stamp = self.stamp(n);
        put(&mut value, &format!("node-{n}"), stamp, self.order);
        match primary {
            Side::A => {
                let index = self.consul.index(RING);
                self.push(millis(5), Ev::GoWrite { node: n, index, value });
            }
            Side::B => {
                self.overwrite_replica(n, &RING.into(), &value);
                self.go_wrote(n, Side::A, value);
            }
        }
    }

    pub(super) fn go_write(&mut self, n: usize, index: u64, value: Map) {
        if !self.consul.up {
            return;
        }
        if self.consul.index(RING) != index {
            return self.go_heartbeat(n);
        }
        self.write_consul(&RING.into(), value.clone());
        self.go_wrote(n, Side::B, value);
    }

    fn go_wrote(&mut self, n: usize, other: Side, value: Map) {
        let Some(go) = &mut self.nodes[n].go else { return };
        let delay = go.delay;
        if go.mirror && go.waiting.replace((other, value)).is_none() {
            let after = self.upto(delay) + millis(1);
            self.push(after, Ev::GoMirror(n));
        }
    }

    pub(super) fn go_mirror(&mut self, n: usize) {
        let Some((side, value)) = self.nodes[n].go.as_mut().and_then(|go| go.waiting.take()) else { return };
        self.tally.fault("mirrored by overwriting");
        match side {
            Side::A if self.consul.up => {
                let older = |there: &Map| !value.covers(there);
                if self.consul.keys.get(RING).is_some_and(older) {
                    self.tally.fault("Consul overwritten with an older value");
                }
                self.overwrite_consul(&RING.into(), value);
            }
            Side::A => {}
            Side::B => {
                let there = self.raw(n, Side::B, RING).unwrap_or_default();
                if there.0.iter().any(|(name, entry)| entry.1.is_some() && !value.0.contains_key(name)) {
                    self.tally.fault("instance marked as left by an overwrite");
                }
                self.overwrite_replica(n, &RING.into(), &value);
            }
        }
    }
}
