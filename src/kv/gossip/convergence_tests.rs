//! Nodes that gossip over a bad network: whatever it does to their messages, one push/pull round makes them equal.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::kv::LwwMap;

type Map = LwwMap<u16>;

const NODES: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    /// Write an entry of a name used once.
    Add {
        node: usize,
        key: usize,
    },
    /// Write an entry that others write too.
    Set {
        node: usize,
        key: usize,
        name: usize,
    },
    Remove {
        node: usize,
        key: usize,
        name: usize,
    },
    Delete {
        node: usize,
        key: usize,
    },
    /// Deliver a message in flight, whichever.
    Deliver(Index),
    /// Deliver it and keep a copy in flight.
    Duplicate(Index),
    Lose(Index),
    PushPull {
        from: usize,
        to: usize,
    },
    /// The actor of a node dies and is started again, the network's queue of its messages included.
    Crash {
        node: usize,
    },
    Wait {
        millis: u64,
    },
}

fn step(deletes: bool) -> impl Strategy<Value = Step> {
    let (node, key, name) = (0..NODES, 0..2_usize, 0..3_usize);
    let add = (node.clone(), key.clone()).prop_map(|(node, key)| Step::Add { node, key });
    let set = (node.clone(), key.clone(), name.clone()).prop_map(|(node, key, name)| Step::Set { node, key, name });
    let gone = (node.clone(), key.clone(), name).prop_map(|(node, key, name)| Step::Remove { node, key, name });
    let delete = (node.clone(), key).prop_map(|(node, key)| Step::Delete { node, key });
    prop_oneof![
        4 => add,
        3 => set,
        2 => gone,
        if deletes { 2 } else { 0 } => delete,
        8 => any::<Index>().prop_map(Step::Deliver),
        2 => any::<Index>().prop_map(Step::Duplicate),
        3 => any::<Index>().prop_map(Step::Lose),
        1 => (node.clone(), node.clone()).prop_map(|(from, to)| Step::PushPull { from, to }),
        1 => node.prop_map(|node| Step::Crash { node }),
        3 => (0_u64..3000).prop_map(|millis| Step::Wait { millis }),
    ]
}

struct Net {
    stores: Vec<GossipStore>,
    /// Each clock is off by some seconds.
    skew: [u64; NODES],
    now: Now,
    in_flight: Vec<(usize, Bytes)>,
    /// Acknowledged writes of names used once.
    acknowledged: BTreeMap<(usize, String), u16>,
    versions: Vec<BTreeMap<Arc<str>, u64>>,
}

const KEYS: [&str; 2] = ["app/x", "app/y"];

fn codecs() -> Arc<Codecs> {
    let codecs = Arc::new(Codecs::default());
    codecs.register("app/", Arc::new(Map::codec()));
    codecs
}

impl Net {
    fn new(skew: [u64; NODES]) -> Self {
        Self {
            stores: (0..NODES).map(|_| GossipStore::new(GossipConfig::default(), codecs())).collect(),
            skew,
            now: Now { unix: Duration::from_secs(1_800_000_000), ..Now::read() },
            in_flight: Vec::new(),
            acknowledged: BTreeMap::new(),
            versions: vec![BTreeMap::new(); NODES],
        }
    }

    fn clock(&self, node: usize) -> Now {
        Now { unix: self.now.unix + Duration::from_secs(self.skew[node]), ..self.now }
    }

    fn edit(&mut self, node: usize, key: usize, edit: impl Fn(&mut Map, Now)) {
        let now = self.clock(node);
        let outcome = self.stores[node].cas(now, KEYS[key], &mut |old| {
            let mut map = old.map(|old| old.downcast_ref::<Map>().unwrap().clone()).unwrap_or_default();
            edit(&mut map, now);
            CasAction::Write(Value::new(map))
        });
        outcome.unwrap();
        self.collect(node);
    }

    fn collect(&mut self, node: usize) {
        while let Some(output) = self.stores[node].poll_output() {
            match output {
                Output::Broadcast(broadcast) => {
                    let others = (0..NODES).filter(|other| *other != node);
                    self.in_flight.extend(others.map(|other| (other, broadcast.payload.clone())));
                }
                Output::Changed { key, entry: Some(entry) } => {
                    let before = self.versions[node].insert(key, entry.version);
                    assert!(before.is_none_or(|before| before < entry.version), "a version went back");
                }
                Output::Changed { .. } | Output::Refused { .. } => {}
            }
        }
    }

    fn push_pull(&mut self, from: usize, to: usize) {
        let bytes = self.stores[from].local_state();
        let now = self.clock(to);
        self.stores[to].handle(now, Input::RemoteState { bytes, join: false });
        self.collect(to);
    }

    fn deliver(&mut self, to: usize, message: Bytes) {
        let now = self.clock(to);
        self.stores[to].handle(now, Input::UserMessage(message));
        self.collect(to);
    }

    fn take(&mut self, step: &Step, number: usize) {
        match *step {
            Step::Add { node, key } => {
                let name = format!("once-{number}");
                let value = u16::try_from(number).unwrap();
                self.edit(node, key, |map, now| map.insert(now, name.clone(), value));
                self.acknowledged.insert((key, name), value);
            }
            Step::Set { node, key, name } => {
                let value = u16::try_from(number).unwrap();
                self.edit(node, key, |map, now| map.insert(now, format!("shared-{name}"), value));
            }
            Step::Remove { node, key, name } => {
                self.edit(node, key, |map, now| {
                    map.remove(now, &format!("shared-{name}"));
                });
            }
            Step::Delete { node, key } => {
                let now = self.clock(node);
                self.stores[node].delete(now, KEYS[key]).unwrap();
                self.collect(node);
            }
            Step::PushPull { from, to } => self.push_pull(from, to),
            Step::Crash { node } => {
                let contents = self.stores[node].contents();
                self.stores[node] = GossipStore::resume(GossipConfig::default(), codecs(), contents);
                let now = self.clock(node);
                self.stores[node].rebroadcast_own(now);
                self.collect(node);
            }
            Step::Wait { millis } => self.now = self.now + Duration::from_millis(millis),
            Step::Deliver(_) | Step::Duplicate(_) | Step::Lose(_) if self.in_flight.is_empty() => {}
            Step::Deliver(index) => {
                let (to, message) = self.in_flight.swap_remove(index.index(self.in_flight.len()));
                self.deliver(to, message);
            }
            Step::Duplicate(index) => {
                let (to, message) = index.get(&self.in_flight).clone();
                self.deliver(to, message);
            }
            Step::Lose(index) => drop(self.in_flight.swap_remove(index.index(self.in_flight.len()))),
        }
    }

    /// Loses everything in flight and lets the nodes exchange their states: once around to gather, once to spread.
    fn heal(&mut self) {
        self.in_flight.clear();
        for _ in 0..2 {
            for node in 0..NODES {
                self.push_pull(node, (node + 1) % NODES);
            }
        }
    }

    fn run(skew: [u64; NODES], steps: &[Step]) -> Self {
        let mut net = Self::new(skew);
        for (number, step) in steps.iter().enumerate() {
            net.take(step, number);
        }
        net.heal();
        net
    }
}

fn assert_converged(net: &mut Net) {
    let states: Vec<_> = net.stores.iter().map(GossipStore::local_state).collect();
    assert!(states.iter().all(|state| *state == states[0]), "replicas differ after they exchanged their states");
    net.in_flight.clear();
    net.heal();
    assert!(net.in_flight.is_empty(), "equal replicas still found something to tell");
    for store in &net.stores {
        let stats = store.stats();
        let invalid = stats.invalid_pair + stats.invalid_key + stats.invalid_value + stats.invalid_time;
        assert_eq!((invalid, stats.dropped), (0, 0));
        assert_eq!(stats.keys as usize, store.list("").len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn replicas_converge_and_no_acknowledged_write_is_lost(
        skew in prop::array::uniform3(0_u64..5), steps in prop::collection::vec(step(false), 1..60),
    ) {
        let mut net = Net::run(skew, &steps);
        assert_converged(&mut net);
        for ((key, name), value) in &net.acknowledged {
            for store in &net.stores {
                let entry = store.get(KEYS[*key]);
                let map = entry.as_ref().and_then(|entry| entry.value.downcast_ref::<Map>());
                prop_assert_eq!(map.and_then(|map| map.get(name)), Some(value));
            }
        }
    }

    #[test]
    fn replicas_converge_with_deletes_and_keys_created_again(
        skew in prop::array::uniform3(0_u64..5), steps in prop::collection::vec(step(true), 1..60),
    ) {
        assert_converged(&mut Net::run(skew, &steps));
    }

    #[test]
    fn hostile_bytes_neither_panic_nor_create_keys(
        noise in prop::collection::vec(any::<u8>(), 0..120), cut in any::<Index>(),
    ) {
        let mut net = Net::new([0; NODES]);
        net.edit(0, 0, |map, now| map.insert(now, "a", 1));
        let mut state = net.stores[0].local_state().to_vec();
        let at = cut.index(state.len());
        state.splice(at..at, noise.iter().copied());
        let now = net.now;
        net.stores[1].handle(now, Input::RemoteState { bytes: state.into(), join: false });
        net.stores[1].handle(now, Input::UserMessage(noise.into()));
        prop_assert!(net.stores[1].list("").len() <= 2);
    }
}
