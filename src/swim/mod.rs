//! Membership: who is in the cluster, and who of them is alive.
//!
//! This is SWIM as HashiCorp's memberlist speaks it, with Lifeguard's three additions: local health, suspicion that
//! confirmations shorten, and telling a suspect about its suspicion. It is a plain state machine: it opens no socket,
//! reads no clock, and draws random numbers only from the generator that it was given. Whoever runs it passes in what
//! happened ([`Input`]), does what comes out ([`Output`]), and wakes it at [`Swim::next_deadline`].
//!
//! ```
//! use annulus::clock::Now;
//! use annulus::swim::{Input, LocalNode, Swim, SwimConfig};
//! use rand::rngs::{SmallRng, StdRng};
//!
//! let local = LocalNode { name: "a".into(), addr: "10.0.0.1:7946".parse()?, meta: Default::default() };
//! let now = Now::read();
//! let (rng, nonces): (SmallRng, StdRng) = (rand::make_rng(), rand::make_rng());
//! let mut swim = Swim::new(SwimConfig::lan(), local, rng, nonces, now);
//! swim.handle(now, Input::Join { id: 1, seeds: vec!["10.0.0.2:7946".parse()?] });
//! while let Some(output) = swim.poll_output() {
//!     // send the packet, open the stream, tell the application ...
//!     # let _ = output;
//! }
//! let wake_me_at = swim.next_deadline();
//! # assert!(wake_me_at.is_some());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Where Annulus differs from memberlist
//!
//! The wire is the same; these differences stay inside one node.
//!
//! * An incarnation never wraps: at its largest value it stays there.
//! * Higher evidence for a death raises the stored incarnation, so an old announcement cannot revive the dead.
//! * A member without versions, or with versions that exclude ours, is refused by itself; memberlist refuses the whole
//!   exchange, so that one bad entry stops every join. Only when the peer *with whom we exchange* is incompatible is
//!   everything that it says refused.
//! * Helpers say that they cannot reach a probed member before the probe ends, not after it.
//! * A member that announces itself with a stale incarnation is told what is held against it, so that it can refute. A
//!   member that is accused of what it refuted already announces itself again.
//! * Seeds and failed members are contacted again: a partition heals by itself, however long it took.
//! * After a join a node asks again who else joined, so that many that start together know each other within a second.
//!   What a newcomer learns from the answers it does not pass on.
//! * A lone ping or ack carries no checksum, whatever the peer's version; memberlist, too, sends them without.
//! * The two forms of an IPv4 address (4 bytes, or 16) count as the same address.
//! * In clusters below ten members broadcasts are sent more often; see [`retransmit_limit`].
//! * Broadcasts that fit no packet go over streams.
//! * New names are taken at a bounded rate, see [`NEW_NAMES_BURST`], and a name with control characters never.
//! * A ping or an indirect ping cannot make this node send to an address that is neither its sender's nor a member's.
//!
//! # Layout
//!
//! | file | subject |
//! |---|---|
//! | `api`, `config`, `stats` | inputs and outputs, settings, counters |
//! | `member` | a member, and the table of all |
//! | `admission` | who may become a member |
//! | `rules` | what alive, suspect and dead messages do to the table |
//! | `probe`, `suspicion`, `awareness` | finding out who is dead, with Lifeguard |
//! | `broadcast`, `gossip` | what waits to be told, and telling it |
//! | `push_pull` | full exchanges of state over streams |
//! | `join`, `catch_up`, `leave` | coming, with many others perhaps, staying connected, going |
//! | `labels` | who sends which label, and who would accept another |
//! | `packets`, `timers` | packets in and out, what is due when |

mod admission;
mod api;
mod awareness;
mod broadcast;
mod catch_up;
mod config;
mod gossip;
mod join;
mod labels;
mod leave;
mod member;
mod packets;
mod probe;
mod push_pull;
mod rules;
mod stats;
mod suspicion;
#[cfg(test)]
mod tests;
mod timers;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::RngExt;
use rand::rngs::{SmallRng, StdRng};

pub use admission::{INCARNATION_JUMP, NEW_NAMES_BURST, NEW_NAMES_PER_SECOND};
pub use api::{ExchangeId, Input, LocalNode, MemberEvent, Output, UserBroadcast};
pub use broadcast::{MAX_USER_QUEUE, retransmit_limit};
pub use config::SwimConfig;
pub use labels::{ForeignLabels, HeardLabels, MAX_FOREIGN_LABELS};
pub use member::{MAX_MEMBERS, Member};
pub use push_pull::{MAX_INBOUND_PUSH_PULLS, push_pull_interval};
pub use stats::Stats;

/// The most bytes that a member may say about itself.
pub use crate::wire::MAX_META;

use self::admission::{Admission, Conflicts};
use self::awareness::Awareness;
use self::broadcast::Broadcasts;
use self::catch_up::CatchUp;
use self::gossip::GossipTick;
use self::join::{Joins, Rejoin};
use self::labels::Labels;
use self::leave::Leave;
use self::member::Table;
use self::probe::Probing;
use self::push_pull::Exchanges;
use self::suspicion::Suspicion;
use self::timers::{Timer, Timers};
use crate::clock::Now;
use crate::wire::message::{MemberState, NodeName, WireIp};

/// Room for outputs that is kept when there are none.
const OUTPUTS_KEPT: usize = 4;

/// The membership core of one node. See the [module](self).
#[derive(Debug)]
pub struct Swim {
    config: SwimConfig,
    local: LocalNode,
    rng: SmallRng,
    nonces: StdRng,
    table: Table,
    admission: Admission,
    conflicts: Conflicts,
    /// Counts changes of the table, for [`Swim::changes`].
    changes: u64,
    awareness: Awareness,
    probing: Probing,
    suspicions: BTreeMap<NodeName, Suspicion>,
    /// When members with a stale incarnation were last told so.
    told: BTreeMap<NodeName, Instant>,
    broadcasts: Broadcasts,
    exchanges: Exchanges,
    joins: Joins,
    rejoin: Rejoin,
    catch_up: CatchUp,
    gossip_tick: GossipTick,
    leave: Leave,
    labels: Labels,
    seq_no: u32,
    timers: Timers,
    outputs: VecDeque<Output>,
    stats: Stats,
}

/// What must outlive the actor that runs a core: enough to go on as the same member. See [`Swim::resume`].
#[derive(Clone, Debug)]
pub struct Durable {
    /// [`Swim::members`].
    pub members: Vec<Arc<Member>>,
    /// [`Swim::has_left`].
    pub left: bool,
    /// What [`Input::SetSeeds`] said last.
    pub seeds: Vec<std::net::SocketAddr>,
}

impl Swim {
    /// A node that knows only itself, at incarnation 1.
    ///
    /// `rng` decides who is probed and told when. `nonces` is for encryption alone, and must be seeded from the operating
    /// system for every core that is made, the resumed ones included: two cores that share a key and a nonce break the
    /// encryption of the whole cluster (see [`wire::crypt`](crate::wire::crypt)).
    #[must_use]
    pub fn new(config: SwimConfig, local: LocalNode, rng: SmallRng, nonces: StdRng, now: Now) -> Self {
        let mut swim = Self::empty(config, local, rng, nonces);
        // Small numbers are short on the wire.
        swim.seq_no &= 0x3f;
        swim.insert_self(now.mono, 1);
        swim.start(now.mono);
        swim
    }

    /// The same member again, after the actor that ran its core died: it has the incarnation and the table of
    /// `durable`, and whether it had left. What was queued or in flight is gone, so it exchanges its full state with
    /// two members at once. If it was leaving or had left, it says goodbye again and reports [`Output::LeaveDone`] again.
    ///
    /// Name and address of `local` should be as before; its meta is that of `durable`, if this node is in there. Suspects get their whole time again. For `nonces` see
    /// [`Swim::new`]: it must not be the generator, or the seed, of the core before.
    #[must_use]
    pub fn resume(
        config: SwimConfig,
        local: LocalNode,
        rng: SmallRng,
        nonces: StdRng,
        now: Now,
        durable: Durable,
    ) -> Self {
        let mut swim = Self::empty(config, local, rng, nonces);
        let mut suspects = Vec::new();
        for member in durable.members {
            match member.state {
                MemberState::Suspect => suspects.push(member.name.clone()),
                MemberState::Dead => swim.remember_failed(member.since, &member),
                MemberState::Alive | MemberState::Left => {}
            }
            swim.table.insert(member, &mut swim.rng);
        }
        match swim.table.get(&swim.local.name) {
            // What the application said last, not what it said at first.
            Some(own) => swim.local.meta = own.meta.clone(),
            None => swim.insert_self(now.mono, 1),
        }
        for name in suspects {
            swim.start_suspicion(now.mono, name, swim.local.name.clone());
        }
        swim.rejoin.seeds = durable.seeds;
        swim.hosts();
        swim.start(now.mono);
        if durable.left {
            swim.resume_leave(now.mono);
        }
        swim.announce();
        swim.push_pull_with_some(now.mono, 2);
        swim
    }

    fn empty(config: SwimConfig, local: LocalNode, mut rng: SmallRng, nonces: StdRng) -> Self {
        // After a restart, a late answer to the predecessor's ping or stream must not be taken for one to ours.
        let seq_no = rng.random();
        let first_exchange = u64::from(rng.random::<u32>()) << 24;
        Self {
            awareness: Awareness::new(config.awareness_max),
            config,
            local,
            rng,
            nonces,
            table: Table::default(),
            admission: Admission::default(),
            conflicts: Conflicts::default(),
            changes: 0,
            probing: Probing::default(),
            suspicions: BTreeMap::new(),
            told: BTreeMap::new(),
            broadcasts: Broadcasts::new(),
            exchanges: Exchanges::new(first_exchange),
            joins: Joins::default(),
            rejoin: Rejoin::default(),
            catch_up: CatchUp::default(),
            gossip_tick: GossipTick::default(),
            leave: Leave::No,
            labels: Labels::default(),
            seq_no,
            timers: Timers::default(),
            outputs: VecDeque::new(),
            stats: Stats::default(),
        }
    }

    fn insert_self(&mut self, now: Instant, incarnation: u32) {
        let mut meta = self.local.meta.clone();
        if meta.len() > MAX_META {
            self.stats.refuse_message("own_meta_too_long");
            meta = Bytes::new();
        }
        let member = Arc::new(Member {
            name: self.local.name.clone(),
            addr: WireIp::from(self.local.addr.ip()),
            port: self.local.addr.port(),
            meta,
            incarnation,
            state: MemberState::Alive,
            vsn: self.config.vsn(),
            since: now,
        });
        self.table.insert(member.clone(), &mut self.rng);
        self.changes += 1;
        self.event(MemberEvent::Joined(member));
        self.announce();
    }

    /// Starts the periodic work, at random phases, so that nodes that start together do not act together.
    fn start(&mut self, now: Instant) {
        let periods = [
            (self.config.probe_interval, Timer::Probe),
            (self.config.gossip_interval, Timer::Gossip),
            (self.config.push_pull_interval, Timer::PushPull),
        ];
        for (period, timer) in periods {
            if !period.is_zero() {
                let phase = period.mul_f64(self.rng.random());
                self.timers.schedule(now + phase, timer);
            }
        }
        if !self.config.gossip_interval.is_zero() {
            self.gossip_tick = GossipTick::Scheduled;
        }
        self.rejoin_soon(now);
    }

    /// Takes what happened, then does whatever is due at `now`.
    ///
    /// The input comes first: an ack that waited while this process was held up still counts.
    pub fn handle(&mut self, now: Now, input: Input) {
        let at = now.mono;
        match input {
            Input::Tick => {}
            Input::Packet { from, bytes } => self.on_packet(at, from, &bytes),
            Input::StreamRequest { exchange, from, label, message } => {
                self.on_stream_request(at, exchange, from, label, message);
            }
            Input::StreamReply { exchange, result } => self.on_stream_reply(at, exchange, result),
            Input::UserState { exchange, bytes } => self.on_user_state(at, exchange, bytes),
            Input::Join { id, seeds } => self.on_join(at, id, seeds),
            Input::SetSeeds(seeds) => self.on_set_seeds(at, seeds),
            Input::Leave => self.on_leave(at),
            Input::Broadcast(broadcast) => self.on_broadcast(broadcast),
            Input::GossipNow => self.gossip(now.mono),
            Input::SendUser { to, bytes } => self.on_send_user(&to, bytes),
            Input::UpdateMeta(meta) => self.on_update_meta(meta),
            Input::SetKeyring(keyring) => self.config.packet.keyring = keyring,
            Input::CheckLabel { id, label } => self.on_check_label(at, id, label),
        }
        while let Some((due, timer)) = self.timers.pop_due(at) {
            self.on_timer(at, due, timer);
        }
        self.wake_gossip(at);
        self.check_leave_done();
    }

    /// The next thing to do, until `None`.
    pub fn poll_output(&mut self) -> Option<Output> {
        let output = self.outputs.pop_front();
        if output.is_none() {
            // A join of many brings hundreds at once, which are large, and then hardly any.
            self.outputs.shrink_to(OUTPUTS_KEPT);
        }
        output
    }

    /// When to call [`Swim::handle`] with [`Input::Tick`], unless something happens before.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// All members, this node, the suspects, the dead and those who left included, in no order.
    #[must_use]
    pub fn members(&self) -> Vec<Arc<Member>> {
        self.table.iter().cloned().collect()
    }

    /// How many members are alive, this node included; suspects do not count.
    #[must_use]
    pub fn alive_count(&self) -> usize {
        self.table.iter().filter(|m| m.state == MemberState::Alive).count()
    }

    /// A number that grows with every change of the table: when it is the same, so are [`Swim::members`] and
    /// [`Swim::durable`]'s members.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Local health: 0 is healthy, the highest is `awareness_max − 1`.
    #[must_use]
    pub fn health_score(&self) -> u32 {
        self.awareness.score()
    }

    /// How many broadcasts wait to be sent (again).
    #[must_use]
    pub fn queued_broadcasts(&self) -> usize {
        self.broadcasts.len()
    }

    /// How many of this node's own user broadcasts wait to be sent (again): what a goodbye waits for.
    #[must_use]
    pub fn queued_own_broadcasts(&self) -> usize {
        self.broadcasts.own_len()
    }

    /// What happened so far.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// What [`Swim::resume`] needs. Copies the table, so take it when [`Swim::changes`] has moved.
    #[must_use]
    pub fn durable(&self) -> Durable {
        Durable { members: self.members(), left: self.has_left(), seeds: self.rejoin.seeds.clone() }
    }

    /// Whether this node said goodbye, or is about to.
    #[must_use]
    pub fn has_left(&self) -> bool {
        self.leave != Leave::No
    }

    fn on_timer(&mut self, now: Instant, due: Instant, timer: Timer) {
        match timer {
            Timer::Probe => {
                self.again(now, due, self.config.probe_interval, Timer::Probe);
                self.probe_due(now);
            }
            Timer::ProbeTimeout(seq_no) => self.probe_timeout_due(now, seq_no),
            Timer::ProbeEnd(seq_no) => self.probe_end_due(now, seq_no),
            Timer::RelayNack(seq_no) => self.relay_nack_due(seq_no),
            Timer::RelayEnd(seq_no) => self.relay_end_due(seq_no),
            Timer::Gossip => {
                self.gossip_tick = GossipTick::Asleep { last: due };
                self.gossip(now);
            }
            Timer::PushPull => {
                let interval = push_pull_interval(self.config.push_pull_interval, self.table.len());
                self.again(now, due, interval, Timer::PushPull);
                self.push_pull_with_some(now, 1);
            }
            Timer::Rejoin => self.rejoin_due(now, due),
            Timer::CatchUp => self.catch_up_due(now, due),
            Timer::Suspicion(name) => self.suspicion_due(now, name),
            Timer::Exchange(exchange) => self.exchange_due(now, exchange),
            Timer::LabelCheck(id) => self.label_check_due(now, id),
            Timer::Leave => self.leave_due(),
        }
    }

    /// Schedules the next round of periodic work. Rounds that were missed are skipped.
    fn again(&mut self, now: Instant, due: Instant, interval: Duration, timer: Timer) {
        let next = due + interval;
        self.timers.schedule(if next > now { next } else { now + interval }, timer);
    }

    fn event(&mut self, event: MemberEvent) {
        self.outputs.push_back(Output::Event(event));
    }

    fn is_self(&self, name: &NodeName) -> bool {
        *name == self.local.name
    }

    /// Whether some other member is alive or suspect.
    fn has_company(&self) -> bool {
        self.table.iter().any(|m| m.is_live() && m.name != self.local.name)
    }

    fn retransmit_limit(&self) -> u32 {
        retransmit_limit(self.config.retransmit_mult, self.table.len(), self.config.gossip_nodes)
    }
}
