//! The membership actor: the shell around the `swim` core.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use actix::{
    Actor, ActorFutureExt, Addr, AsyncContext, Context, Handler, ResponseFuture, StreamHandler, Supervised, WrapFuture,
};
use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::stream;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::sync::{oneshot, watch};

use super::events::{EventHub, NodeEvent};
use super::gossip::{Gossip, LocalState, RebroadcastOwn, RemoteState, UserMessages};
use super::joining::{JoinPolicy, Joined, follow_seeds};
use super::keys::{Checks, LabelCheck, Wrapping};
use super::message::{drillable, message};
use super::timer::CoreTimer;
use super::transport::{Exchange, TransportActor};
use crate::clock::Now;
use crate::swim::{
    Durable, ExchangeId, ForeignLabels, HeardLabels, Input, LocalNode, Member, MemberEvent, Output, Swim, SwimConfig,
    UserBroadcast,
};
use crate::transport::{ByteBudget, InboundPacket, PacketQueue, Transport};
use crate::wire::message::NodeName;
use crate::wire::{Label, PacketOptions, StreamMessage};

/// Packets handled before timers get their turn.
const BATCH: usize = 64;

/// How long what is shown may be out of date when no member changes.
const PUBLISH_PERIOD: Duration = Duration::from_secs(1);

/// The same for labels: an idle node hears of an address that it had no packet of yet for as many seconds as there are
/// members.
const PUBLISH_LABELS_PERIOD: Duration = Duration::from_secs(5);

/// How often what was refused since the last time is written to the log, in one line: strangers must not fill it.
const REFUSALS_LOGGED: Duration = Duration::from_secs(60);

/// Exchanges that peers began have the top bit set, so that they never meet the ids of our own.
const INBOUND: u64 = 1 << 63;

/// The members as this node sees them: an immutable snapshot.
#[derive(Clone, Debug, Default)]
pub struct Members {
    /// Every member known, the suspected, the dead and those that left included, by name.
    pub list: Arc<[Arc<Member>]>,
    /// Lifeguard's local health score: 0 is healthy, higher means that this node itself is slow.
    pub health_score: u32,
    /// Messages that wait to be gossiped.
    pub queued_broadcasts: usize,
    /// Packets, and messages inside packets, that were refused, by reason: `label_mismatch` tells of a foreign cluster.
    pub refused: BTreeMap<&'static str, u64>,
    /// Which label each address sent last. See [`Members::label_of`].
    pub heard_labels: Arc<HeardLabels>,
    /// Packets and answers under labels that this node does not accept.
    pub foreign_labels: ForeignLabels,
    /// Incarnations of members that grew as none does by itself: somebody may be forging them.
    pub incarnation_jumps: u64,
    /// Members forgotten before their time because the table was full.
    pub evicted: u64,
}

impl Members {
    /// The label that a live member sent last; `None` when it sent no packet yet, for this node itself and for the dead.
    #[must_use]
    pub fn label_of(&self, member: &Member) -> Option<&Label> {
        self.heard_labels.of(member.socket_addr().filter(|_| member.is_live())?)
    }
}

/// What outlives the actor.
pub(crate) struct MembershipParts {
    pub(crate) config: SwimConfig,
    /// Takes the place of the options in `config`, which are those at the start.
    pub(crate) wrapping: Arc<Wrapping>,
    pub(crate) local: LocalNode,
    pub(crate) queue: Arc<PacketQueue>,
    /// Takes our packets, and is told who the members are: they may send more than strangers.
    pub(crate) network: Arc<dyn Transport>,
    /// What peers' states may take while they wait for the store.
    pub(crate) states: ByteBudget,
    pub(crate) members: Arc<ArcSwap<Members>>,
    pub(crate) events: EventHub,
    pub(crate) transport: OnceLock<Addr<TransportActor>>,
    pub(crate) gossip: OnceLock<Addr<Gossip>>,
    /// Whether the core before this one had left; `None` when there was none. Its members are those published.
    pub(crate) had_left: Mutex<Option<bool>>,
    /// Names of peers to join, as configured.
    pub(crate) join_members: Vec<String>,
    /// The DNS server to ask for SRV records, where it is not the system's.
    pub(crate) dns_server: Option<SocketAddr>,
    pub(crate) join: JoinPolicy,
    pub(crate) seeds: Mutex<Vec<SocketAddr>>,
    /// Whether the first attempt to join is over. Before that the store takes no writes: an instance that registered
    /// in an empty store would draw new tokens although the cluster still knows its old ones.
    pub(crate) joined: watch::Sender<Joined>,
}

pub(crate) struct Membership {
    parts: Arc<MembershipParts>,
    swim: Swim,
    /// The core's count of changes when the members were last published, and when the rest was last looked at.
    published: (u64, Instant),
    /// The members then.
    list: Arc<[Arc<Member>]>,
    /// The core's count of changes of labels when they were last published, and when that was.
    published_labels: (u64, Instant),
    /// What had been refused when that was last looked at for the log, and when that was.
    logged: (BTreeMap<&'static str, u64>, Instant),
    timer: CoreTimer,
    inbound: HashMap<u64, oneshot::Sender<Option<Bytes>>>,
    next_inbound: u64,
    joins: HashMap<u64, oneshot::Sender<JoinOutcome>>,
    next_join: u64,
    leaving: Vec<oneshot::Sender<()>>,
    checks: Checks,
    /// States of peers that the store had no room for.
    states_dropped: u64,
}

/// How a join went.
#[derive(Clone, Debug, Default)]
pub(crate) struct JoinOutcome {
    /// Peers that answered; oneself does not count.
    pub(crate) joined: usize,
    /// What went wrong with the others.
    pub(crate) errors: Vec<String>,
}

impl Membership {
    pub(crate) fn new(parts: Arc<MembershipParts>) -> Self {
        let packet = PacketOptions::clone(&parts.wrapping.options());
        let (config, local) = (SwimConfig { packet, ..parts.config.clone() }, parts.local.clone());
        let rng = SmallRng::from_rng(&mut rand::rng());
        // Of its own for each core, straight from the operating system: a core that takes over after a crash must not
        // repeat the nonces of the one before.
        let nonces = rand::make_rng();
        let had_left = *parts.had_left.lock().unwrap_or_else(PoisonError::into_inner);
        let seeds = parts.seeds.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let now = Now::read();
        let mut swim = match had_left {
            Some(left) => {
                let durable = Durable { members: parts.members.load().list.to_vec(), left, seeds: seeds.clone() };
                Swim::resume(config, local, rng, nonces, now, durable)
            }
            None => Swim::new(config, local, rng, nonces, now),
        };
        if !seeds.is_empty() {
            swim.handle(now, Input::SetSeeds(seeds));
        }
        Self {
            parts,
            swim,
            // As no core counts, so that the first time is a change.
            published: (u64::MAX, now.mono),
            list: Arc::default(),
            published_labels: (0, now.mono),
            logged: (BTreeMap::new(), now.mono),
            timer: CoreTimer::default(),
            inbound: HashMap::new(),
            next_inbound: 0,
            joins: HashMap::new(),
            next_join: 0,
            leaving: Vec::new(),
            checks: Checks::default(),
            states_dropped: 0,
        }
    }

    pub(super) fn core(&self) -> &Swim {
        &self.swim
    }

    pub(super) fn wrapping(&self) -> Arc<Wrapping> {
        self.parts.wrapping.clone()
    }

    pub(super) fn checks(&mut self) -> &mut Checks {
        &mut self.checks
    }

    pub(super) fn input(&mut self, input: Input, ctx: &mut Context<Self>) {
        self.swim.handle(Now::read(), input);
        self.pump(ctx);
    }

    /// Publishes what changed, carries out what the core wants, and sets the timer.
    ///
    /// In this order: who hears of an event finds it in the snapshot, and a core that takes over after a crash never has an
    /// incarnation below one that was sent.
    fn pump(&mut self, ctx: &mut Context<Self>) {
        self.publish_changes();
        let mut user_messages = Vec::new();
        while let Some(output) = self.swim.poll_output() {
            match output {
                // What the socket does not take now is dropped and counted, as on any network.
                Output::SendPacket { to, bytes } => {
                    if let Err(error) = self.parts.network.try_send_packet(to, &bytes) {
                        tracing::debug!(%to, %error, "packet not sent");
                    }
                }
                Output::UserMessage { bytes } => user_messages.push(bytes),
                Output::Event(event) => {
                    self.parts.events.publish(node_event(event));
                }
                output => self.carry_out(output, ctx),
            }
        }
        if let (false, Some(gossip)) = (user_messages.is_empty(), self.parts.gossip.get()) {
            // When the store is that far behind, what is dropped here comes with the next push/pull.
            if gossip.try_send(UserMessages(user_messages)).is_err() {
                tracing::warn!("the gossip store is overloaded: updates dropped");
            }
        }
        self.set_timer(ctx);
    }

    fn carry_out(&mut self, output: Output, ctx: &mut Context<Self>) {
        match output {
            Output::OpenStream { exchange, to, bytes, expect_reply, timeout } => {
                let Some(transport) = self.parts.transport.get() else { return };
                let request = transport.send(Exchange { to, bytes, expect_reply, timeout });
                ctx.spawn(request.into_actor(self).map(move |answer, this, ctx| {
                    let result = answer.unwrap_or_else(|error| Err(format!("{to}: {error}")));
                    this.input(Input::StreamReply { exchange, result }, ctx);
                }));
            }
            Output::RespondStream { exchange, bytes } => {
                if let Some(answer) = self.inbound.remove(&exchange.0) {
                    let _ = answer.send(bytes);
                }
            }
            Output::NeedUserState { exchange, .. } => {
                let Some(gossip) = self.parts.gossip.get() else { return };
                ctx.spawn(gossip.send(LocalState).into_actor(self).map(move |state, this, ctx| {
                    // Without the store's state the exchange goes on with the members alone.
                    let bytes = state.unwrap_or_default();
                    this.input(Input::UserState { exchange, bytes }, ctx);
                }));
            }
            Output::RemoteState { bytes, join } => {
                let Some(gossip) = self.parts.gossip.get() else { return };
                let mut permit = self.parts.states.permit();
                if permit.try_grow(bytes.len()) {
                    gossip.do_send(RemoteState { bytes, join, permit });
                } else {
                    // The stream that it came on counts it no more. The next push/pull brings it again.
                    self.states_dropped += 1;
                }
            }
            Output::JoinDone { id, joined, errors } => {
                if let Some(waiting) = self.joins.remove(&id) {
                    let _ = waiting.send(JoinOutcome { joined, errors });
                }
            }
            Output::LabelChecked { id, accept, silent } => {
                // Whoever asked looks next at which labels the members send: the answers have just told.
                self.publish();
                let names = |members: Vec<NodeName>| members.iter().map(NodeName::to_string).collect();
                self.checks.done(id, LabelCheck { accept: names(accept), silent: names(silent) });
            }
            Output::LeaveDone => {
                for waiting in self.leaving.drain(..) {
                    let _ = waiting.send(());
                }
            }
            Output::SendPacket { .. } | Output::UserMessage { .. } | Output::Event(_) => {}
        }
    }

    /// Members are shown at once, the rest at most once a period. It changes by what passes through here only, so an idle
    /// node has nothing to wake for.
    fn publish_changes(&mut self) {
        let now = Instant::now();
        // First, as it must not wait for a second in which no member changes.
        if now.saturating_duration_since(self.logged.1) >= REFUSALS_LOGGED {
            self.logged.1 = now;
            self.log_refusals();
        }
        let (changes, looked) = self.published;
        if self.swim.changes() != changes {
            return self.publish();
        }
        if now.saturating_duration_since(looked) < PUBLISH_PERIOD {
            return;
        }
        self.published.1 = now;
        let shown = self.parts.members.load();
        if shown.health_score != self.swim.health_score()
            || shown.queued_broadcasts != self.swim.queued_broadcasts()
            || shown.refused != self.refused()
            || (self.published_labels.0 != self.swim.label_changes()
                && now.saturating_duration_since(self.published_labels.1) >= PUBLISH_LABELS_PERIOD)
        {
            self.publish();
        }
    }

    fn publish(&mut self) {
        if self.swim.changes() != self.published.0 {
            let mut list = self.swim.members();
            list.sort_unstable_by(|a, b| a.name.cmp(&b.name));
            self.list = list.into();
            let live = self.list.iter().filter(|member| member.is_live());
            self.parts.network.set_members(&Arc::new(live.filter_map(|member| member.addr.to_ip()).collect()));
        }
        self.published = (self.swim.changes(), Instant::now());
        self.published_labels = (self.swim.label_changes(), self.published.1);
        self.parts.members.store(Arc::new(Members {
            list: Arc::clone(&self.list),
            health_score: self.swim.health_score(),
            queued_broadcasts: self.swim.queued_broadcasts(),
            refused: self.refused(),
            incarnation_jumps: self.swim.stats().incarnation_jumps,
            evicted: self.swim.stats().members_evicted,
            heard_labels: Arc::clone(self.swim.heard_labels()),
            foreign_labels: self.swim.foreign_labels().clone(),
        }));
        *self.parts.had_left.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.swim.has_left());
    }

    /// Everything that was refused or dropped, by reason.
    fn refused(&self) -> BTreeMap<&'static str, u64> {
        let stats = self.swim.stats();
        let mut refused = stats.packets_refused.clone();
        for (reason, count) in &stats.messages_refused {
            *refused.entry(*reason).or_default() += count;
        }
        for (reason, count) in [
            ("push_pull_turned_away", stats.push_pulls_turned_away),
            ("push_pull_incompatible", stats.merges_refused),
            ("push_pull_store_overloaded", self.states_dropped),
        ] {
            if count > 0 {
                refused.insert(reason, count);
            }
        }
        refused
    }

    fn log_refusals(&mut self) {
        let refused = self.refused();
        let news: Vec<String> = refused
            .iter()
            .map(|(reason, count)| (reason, count - self.logged.0.get(reason).unwrap_or(&0).min(count)))
            .filter(|(_, count)| *count > 0)
            .map(|(reason, count)| format!("{reason}: {count}"))
            .collect();
        if !news.is_empty() {
            tracing::warn!(refused = %news.join(", "), "packets and messages were refused in the last minute");
        }
        self.logged.0 = refused;
    }

    fn set_timer(&mut self, ctx: &mut Context<Self>) {
        self.timer.arm(self.swim.next_deadline(), ctx, |this, ctx| {
            this.timer.fired();
            this.input(Input::Tick, ctx);
        });
    }
}

fn node_event(event: MemberEvent) -> NodeEvent {
    let name = |member: Arc<Member>| member.name.to_string();
    match event {
        MemberEvent::Joined(member) => NodeEvent::MemberJoined { name: name(member) },
        MemberEvent::Updated(member) => NodeEvent::MemberUpdated { name: name(member) },
        MemberEvent::Suspected(member) => NodeEvent::MemberSuspected { name: name(member) },
        MemberEvent::Recovered(member) => NodeEvent::MemberRecovered { name: name(member) },
        MemberEvent::Failed(member) => NodeEvent::MemberFailed { name: name(member) },
        MemberEvent::Left(member) => NodeEvent::MemberLeft { name: name(member) },
        MemberEvent::Conflict { existing, other } => {
            NodeEvent::MemberConflict { name: name(existing), other: format!("{:?}:{}", other.addr, other.port) }
        }
    }
}

impl Actor for Membership {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.publish();
        self.pump(ctx);
        // Packets come one batch at a time: the next is taken when the last one is handled, so timers get their turn.
        ctx.add_stream(stream::unfold(self.parts.queue.clone(), |queue| async move {
            tokio::task::yield_now().await;
            let batch = queue.pop_batch(BATCH).await;
            Some((batch, queue))
        }));
        ctx.spawn(follow_seeds(self.parts.clone(), ctx.address()).into_actor(self));
    }
}

impl Supervised for Membership {
    fn restarting(&mut self, _: &mut Self::Context) {
        *self = Self::new(self.parts.clone());
        // What was queued died with the core.
        if let Some(gossip) = self.parts.gossip.get() {
            gossip.do_send(RebroadcastOwn);
        }
    }
}

drillable!(Membership);

/// Packets from the network.
impl StreamHandler<Vec<InboundPacket>> for Membership {
    fn handle(&mut self, packets: Vec<InboundPacket>, ctx: &mut Self::Context) {
        let now = Now::read();
        for InboundPacket { from, bytes } in packets {
            self.swim.handle(now, Input::Packet { from, bytes });
        }
        self.pump(ctx);
    }

    fn finished(&mut self, _: &mut Self::Context) {}
}

/// A stream that a peer opened. The answer is what to write back, or nothing.
pub(crate) struct StreamRequest {
    pub(crate) from: SocketAddr,
    pub(crate) label: Label,
    pub(crate) message: StreamMessage,
}
message!(StreamRequest => Option<Bytes>);

impl Handler<StreamRequest> for Membership {
    type Result = ResponseFuture<Option<Bytes>>;

    fn handle(&mut self, request: StreamRequest, ctx: &mut Self::Context) -> Self::Result {
        let id = self.next_inbound;
        self.next_inbound += 1;
        let exchange = ExchangeId(INBOUND | id);
        let (answer, answered) = oneshot::channel();
        self.inbound.insert(exchange.0, answer);
        let StreamRequest { from, label, message } = request;
        self.input(Input::StreamRequest { exchange, from, label, message }, ctx);
        // A request that is not answered at once stays only as long as somebody waits for it.
        self.inbound.retain(|_, waiting| !waiting.is_closed());
        Box::pin(async move { answered.await.ok().flatten() })
    }
}

/// Contacts seeds now.
pub(crate) struct Join(pub(crate) Vec<SocketAddr>);
message!(Join => Result<JoinOutcome, ()>);

impl Handler<Join> for Membership {
    type Result = ResponseFuture<Result<JoinOutcome, ()>>;

    fn handle(&mut self, Join(seeds): Join, ctx: &mut Self::Context) -> Self::Result {
        let id = self.next_join;
        self.next_join += 1;
        let (done, outcome) = oneshot::channel();
        self.joins.insert(id, done);
        self.input(Input::Join { id, seeds }, ctx);
        Box::pin(async move { outcome.await.map_err(drop) })
    }
}

/// Addresses that are tried again, with back-off, for as long as they are not members.
pub(crate) struct SetSeeds(pub(crate) Vec<SocketAddr>);
message!(SetSeeds => ());

impl Handler<SetSeeds> for Membership {
    type Result = ();

    fn handle(&mut self, SetSeeds(seeds): SetSeeds, ctx: &mut Self::Context) {
        *self.parts.seeds.lock().unwrap_or_else(PoisonError::into_inner) = seeds.clone();
        self.input(Input::SetSeeds(seeds), ctx);
    }
}

/// Says goodbye; answered when the others have been told, or cannot be. An error when the actor died before: its successor
/// says goodbye too, and answers whoever asks again.
pub(crate) struct Leave;
message!(Leave => Result<(), ()>);

impl Handler<Leave> for Membership {
    type Result = ResponseFuture<Result<(), ()>>;

    fn handle(&mut self, _: Leave, ctx: &mut Self::Context) -> Self::Result {
        let (done, left) = oneshot::channel();
        self.leaving.push(done);
        self.input(Input::Leave, ctx);
        Box::pin(async move { left.await.map_err(drop) })
    }
}

/// Says goodbye, again if the actor dies over it. Whether it was passed on.
pub(crate) async fn leave(membership: &Addr<Membership>) -> bool {
    loop {
        match membership.send(Leave).await {
            Ok(Ok(())) => return true,
            // It waits in the mailbox until the successor is there.
            Ok(Err(())) | Err(_) if membership.connected() => {}
            Ok(Err(())) | Err(_) => return false,
        }
    }
}

/// Updates of the store that the others should hear of. Our own are told to a first few members at once, and the
/// answer comes when those packets are with the operating system: a write that is acknowledged is then already on its
/// way out of this process.
#[derive(Clone)]
pub(crate) struct Broadcasts(pub(crate) Vec<UserBroadcast>);
message!(Broadcasts => ());

impl Handler<Broadcasts> for Membership {
    type Result = ();

    fn handle(&mut self, Broadcasts(broadcasts): Broadcasts, ctx: &mut Self::Context) -> Self::Result {
        let now = Now::read();
        let own = broadcasts.iter().any(|broadcast| broadcast.local);
        for broadcast in broadcasts {
            self.swim.handle(now, Input::Broadcast(broadcast));
        }
        if own {
            self.swim.handle(now, Input::GossipNow);
        }
        self.pump(ctx);
    }
}

/// Asks how many updates of this node's own still wait to be gossiped.
pub(crate) struct QueuedBroadcasts;
message!(QueuedBroadcasts => usize);

impl Handler<QueuedBroadcasts> for Membership {
    type Result = usize;

    fn handle(&mut self, _: QueuedBroadcasts, _: &mut Self::Context) -> usize {
        self.swim.queued_own_broadcasts()
    }
}

#[cfg(test)]
#[path = "membership_tests.rs"]
mod tests;
