//! A network of cores in virtual time.
//!
//! Packets and streams take a random time, packets get lost, nodes are killed, muted and cut apart, all from one seed.
//! Nothing sleeps: the clock jumps to whatever happens next.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::{SmallRng, StdRng};
use rand::{RngExt, SeedableRng};

use crate::clock::Now;
use crate::swim::{ExchangeId, Input, LocalNode, Member, MemberEvent, Output, Swim, SwimConfig, UserBroadcast};
use crate::wire::message::{MemberState, NodeName};
use crate::wire::{Keyring, PacketOptions, StreamDecoder, StreamSide};

pub(super) const INBOUND: u64 = 1 << 63;

pub(super) struct Node {
    pub(super) swim: Swim,
    /// What its transport reads streams with.
    packet: PacketOptions,
    pub(super) name: NodeName,
    pub(super) addr: SocketAddr,
    pub(super) up: bool,
    /// Nodes of different groups cannot reach each other.
    pub(super) group: u32,
    /// Nothing that it sends arrives.
    pub(super) mute: bool,
    /// Its packets are lost, in and out; its streams work.
    pub(super) no_packets: bool,
    pub(super) events: Vec<(Duration, MemberEvent)>,
    pub(super) heard: BTreeSet<Bytes>,
    pub(super) states: Vec<(Bytes, bool)>,
    pub(super) joins: Vec<(u64, usize, Vec<String>)>,
    pub(super) leaves: usize,
    /// Checks of labels: who accepts it, who was silent.
    pub(super) label_checks: Vec<(u64, Vec<NodeName>, Vec<NodeName>)>,
    pub(super) user_state: Bytes,
    pub(super) streams_opened: usize,
}

enum Delivery {
    Packet { to: SocketAddr, from: usize, bytes: Bytes },
    Request { to: SocketAddr, from: usize, exchange: ExchangeId, bytes: Bytes },
    Reply { to: usize, exchange: ExchangeId, bytes: Option<Bytes> },
    Failed { to: usize, exchange: ExchangeId, error: &'static str },
}

pub(super) struct Net {
    pub(super) now: Now,
    start: Instant,
    pub(super) nodes: Vec<Node>,
    rng: SmallRng,
    queue: BTreeMap<(Instant, u64), Delivery>,
    next: u64,
    inbound: BTreeMap<u64, (usize, ExchangeId)>,
    pub(super) loss: f64,
    /// Every packet and every stream's bytes, both ways, where a test listens.
    pub(super) wiretap: Option<Vec<Bytes>>,
    trace: DefaultHasher,
}

impl Net {
    pub(super) fn new(seed: u64) -> Self {
        let now = Now::read();
        Self {
            now,
            start: now.mono,
            nodes: Vec::new(),
            rng: SmallRng::seed_from_u64(seed),
            queue: BTreeMap::new(),
            next: 0,
            inbound: BTreeMap::new(),
            loss: 0.0,
            wiretap: None,
            trace: DefaultHasher::new(),
        }
    }

    pub(super) fn add(&mut self, name: &str, port: u16, config: &SwimConfig) -> usize {
        let index = self.nodes.len();
        let name = NodeName::from(name);
        let addr = SocketAddr::from(([10, 0, 0, 1], port));
        let local = LocalNode { name: name.clone(), addr, meta: Bytes::new() };
        let rng = SmallRng::seed_from_u64(self.rng.random());
        // Drawn only for encryption, so that the traces of all other tests stay what they are.
        let nonces = StdRng::seed_from_u64(index as u64);
        let swim = Swim::new(config.clone(), local, rng, nonces, self.now);
        self.nodes.push(Node {
            swim,
            packet: config.packet.clone(),
            name,
            addr,
            up: true,
            group: 0,
            mute: false,
            no_packets: false,
            events: Vec::new(),
            heard: BTreeSet::new(),
            states: Vec::new(),
            joins: Vec::new(),
            leaves: 0,
            label_checks: Vec::new(),
            user_state: Bytes::new(),
            streams_opened: 0,
        });
        self.drain(index);
        index
    }

    /// `count` nodes; all but the first join the first, and all know each other.
    pub(super) fn cluster(seed: u64, count: usize, config: &SwimConfig) -> Self {
        let mut net = Self::unjoined(seed, count, config);
        net.join_all_to_first();
        net.until(Duration::from_secs(60), "the cluster forms", |net| net.all_alive(count));
        net
    }

    pub(super) fn unjoined(seed: u64, count: usize, config: &SwimConfig) -> Self {
        let mut net = Self::new(seed);
        for i in 0..count {
            net.add(&format!("n{i}"), 7000 + i as u16, config);
        }
        net
    }

    pub(super) fn join_all_to_first(&mut self) {
        let seed = self.nodes[0].addr;
        for i in 1..self.nodes.len() {
            self.input(i, Input::Join { id: 1, seeds: vec![seed] });
        }
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.now.mono - self.start
    }

    pub(super) fn trace(&self) -> u64 {
        self.trace.finish()
    }

    pub(super) fn input(&mut self, node: usize, input: Input) {
        self.nodes[node].swim.handle(self.now, input);
        self.drain(node);
    }

    /// Gives a running node, and the transport that reads its streams, other keys.
    pub(super) fn set_keyring(&mut self, node: usize, keyring: Keyring) {
        self.nodes[node].packet.keyring = keyring.clone();
        self.input(node, Input::SetKeyring(keyring));
    }

    pub(super) fn broadcast(&mut self, node: usize, key: &str, payload: Bytes) {
        self.nodes[node].heard.insert(payload.clone());
        self.input(node, Input::Broadcast(news(key, payload, true)));
    }

    pub(super) fn run(&mut self, time: Duration) {
        self.run_until(self.now.mono + time, |_| false);
    }

    /// Runs until `done`, and fails the test if that is not so within `limit`.
    pub(super) fn until(&mut self, limit: Duration, what: &str, done: impl Fn(&Self) -> bool) -> Duration {
        let from = self.elapsed();
        assert!(self.run_until(self.now.mono + limit, done), "not within {limit:?}: {what}\n{}", self.describe());
        self.elapsed() - from
    }

    fn run_until(&mut self, end: Instant, done: impl Fn(&Self) -> bool) -> bool {
        loop {
            if done(self) {
                return true;
            }
            let delivery = self.queue.keys().next().map(|(at, _)| *at);
            let timer = (0..self.nodes.len())
                .filter(|i| self.nodes[*i].up)
                .filter_map(|i| Some((self.nodes[i].swim.next_deadline()?, i)))
                .min();
            let next = [delivery, timer.map(|(at, _)| at)].into_iter().flatten().min();
            let Some(next) = next.filter(|next| *next <= end) else {
                self.advance(end);
                return done(self);
            };
            self.advance(next);
            match timer {
                Some((at, node)) if delivery.is_none_or(|delivery| at < delivery) => self.input(node, Input::Tick),
                _ => {
                    let (_, delivery) = self.queue.pop_first().unwrap();
                    self.deliver(delivery);
                }
            }
        }
    }

    fn advance(&mut self, to: Instant) {
        self.now = self.now + to.saturating_duration_since(self.now.mono);
    }

    fn send(&mut self, delivery: Delivery) {
        let latency = Duration::from_micros(self.rng.random_range(500..10_000));
        self.queue.insert((self.now.mono + latency, self.next), delivery);
        self.next += 1;
    }

    fn at(&self, addr: SocketAddr) -> Option<usize> {
        self.nodes.iter().rposition(|node| node.up && node.addr == addr)
    }

    fn reaches(&self, from: usize, to: usize) -> bool {
        let (from, to) = (&self.nodes[from], &self.nodes[to]);
        from.up && to.up && !from.mute && from.group == to.group
    }

    fn drain(&mut self, from: usize) {
        while let Some(output) = self.nodes[from].swim.poll_output() {
            let at = self.elapsed();
            if let (Some(tap), Some(bytes)) = (&mut self.wiretap, on_the_wire(&output)) {
                tap.push(bytes.clone());
            }
            match output {
                Output::SendPacket { to, bytes } => {
                    (at, from, to, &bytes).hash(&mut self.trace);
                    let lost = self.loss > 0.0 && self.rng.random_bool(self.loss);
                    if !lost && !self.nodes[from].no_packets {
                        self.send(Delivery::Packet { to, from, bytes });
                    }
                }
                Output::OpenStream { exchange, to, bytes, timeout, .. } => {
                    (at, from, to, &bytes).hash(&mut self.trace);
                    self.nodes[from].streams_opened += 1;
                    let reachable = self.at(to).is_some_and(|to| self.reaches(from, to) && self.reaches(to, from));
                    if reachable {
                        self.send(Delivery::Request { to, from, exchange, bytes });
                    } else {
                        let failed = Delivery::Failed { to: from, exchange, error: "timed out" };
                        self.queue.insert((self.now.mono + timeout, self.next), failed);
                        self.next += 1;
                    }
                }
                Output::RespondStream { exchange, bytes } => {
                    let (to, exchange) = self.inbound.remove(&exchange.0).expect("one answer to each request");
                    if self.reaches(from, to) {
                        self.send(Delivery::Reply { to, exchange, bytes });
                    }
                }
                Output::NeedUserState { exchange, .. } => {
                    let bytes = self.nodes[from].user_state.clone();
                    self.nodes[from].swim.handle(self.now, Input::UserState { exchange, bytes });
                }
                Output::RemoteState { bytes, join } => self.nodes[from].states.push((bytes, join)),
                Output::UserMessage { bytes } => {
                    // As the key-value store does: pass on what is new.
                    if self.nodes[from].heard.insert(bytes.clone()) {
                        let broadcast = news("key", bytes, false);
                        self.nodes[from].swim.handle(self.now, Input::Broadcast(broadcast));
                    }
                }
                Output::Event(event) => {
                    if let MemberEvent::Joined(m) | MemberEvent::Suspected(m) | MemberEvent::Failed(m) = &event {
                        (at, from, m.name.as_str(), m.incarnation, m.state).hash(&mut self.trace);
                    }
                    self.nodes[from].events.push((at, event));
                }
                Output::JoinDone { id, joined, errors } => self.nodes[from].joins.push((id, joined, errors)),
                Output::LabelChecked { id, accept, silent } => {
                    self.nodes[from].label_checks.push((id, accept, silent));
                }
                Output::LeaveDone => self.nodes[from].leaves += 1,
            }
        }
    }

    fn deliver(&mut self, delivery: Delivery) {
        match delivery {
            Delivery::Packet { to, from, bytes } => {
                let Some(to) = self.at(to) else { return };
                if self.reaches(from, to) && !self.nodes[to].no_packets {
                    let from = self.nodes[from].addr;
                    self.input(to, Input::Packet { from, bytes });
                }
            }
            Delivery::Request { to, from, exchange, bytes } => {
                let Some(to) = self.at(to) else {
                    return self.send(Delivery::Failed { to: from, exchange, error: "refused" });
                };
                let mut decoder = StreamDecoder::new(&self.nodes[to].packet, StreamSide::Accepted);
                decoder.feed(&bytes).unwrap();
                let message = match decoder.poll() {
                    Ok(message) => message.expect("a whole message"),
                    // Closed without an answer, as the transport does.
                    Err(_) => return self.send(Delivery::Reply { to: from, exchange, bytes: None }),
                };
                let label = decoder.label().clone();
                let id = ExchangeId(INBOUND | self.next);
                self.next += 1;
                self.inbound.insert(id.0, (from, exchange));
                let from_addr = SocketAddr::new(self.nodes[from].addr.ip(), 50_000);
                self.input(to, Input::StreamRequest { exchange: id, from: from_addr, label, message });
            }
            Delivery::Reply { to, exchange, bytes } => {
                let result = bytes.map_or(Ok(None), |bytes| {
                    let mut decoder = StreamDecoder::new(&self.nodes[to].packet, StreamSide::Dialed);
                    decoder.feed(&bytes).unwrap();
                    decoder.poll().map_err(|error| error.to_string())
                });
                if self.nodes[to].up {
                    self.input(to, Input::StreamReply { exchange, result });
                }
            }
            Delivery::Failed { to, exchange, error } => {
                if self.nodes[to].up {
                    self.input(to, Input::StreamReply { exchange, result: Err(error.to_owned()) });
                }
            }
        }
    }

    /// Whether every running node sees every other running node, and itself, as alive, and nobody else.
    pub(super) fn all_alive(&self, count: usize) -> bool {
        let up: BTreeSet<&NodeName> = self.nodes.iter().filter(|node| node.up).map(|node| &node.name).collect();
        up.len() == count
            && self.nodes.iter().filter(|node| node.up).all(|node| {
                let members = node.swim.members();
                let live: BTreeSet<&NodeName> =
                    members.iter().filter(|m| m.state == MemberState::Alive).map(|m| &m.name).collect();
                live == up && members.iter().filter(|m| m.is_live()).count() == count
            })
    }

    /// How all running nodes but `name` itself see it.
    pub(super) fn views(&self, name: &str) -> Vec<Option<MemberState>> {
        let name = NodeName::from(name);
        self.nodes
            .iter()
            .filter(|node| node.up && node.name != name)
            .map(|node| node.swim.members().into_iter().find(|m| m.name == name).map(|m| m.state))
            .collect()
    }

    pub(super) fn member(&self, node: usize, name: &str) -> Option<Arc<Member>> {
        self.nodes[node].swim.members().into_iter().find(|m| m.name.as_str() == name)
    }

    fn describe(&self) -> String {
        let mut out = String::new();
        for node in self.nodes.iter().filter(|node| node.up) {
            let members: Vec<String> =
                node.swim.members().iter().map(|m| format!("{}@{}:{:?}", m.name, m.incarnation, m.state)).collect();
            out += &format!("{}: {}\n", node.name, members.join(" "));
        }
        out
    }
}

fn on_the_wire(output: &Output) -> Option<&Bytes> {
    match output {
        Output::SendPacket { bytes, .. } | Output::OpenStream { bytes, .. } => Some(bytes),
        Output::RespondStream { bytes, .. } => bytes.as_ref(),
        _ => None,
    }
}

pub(super) fn news(key: &str, payload: Bytes, local: bool) -> UserBroadcast {
    // Different payloads never replace each other.
    let content = vec![format!("{payload:?}")];
    UserBroadcast { key: Arc::from(key), content, version: 1, local, payload }
}
