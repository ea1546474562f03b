//! The mirror actor: the shell around the `migration` core, one for each multi store.
//!
//! The core decides which store an operation runs on, what is mirrored, and when a flip may happen. This actor keeps
//! the callbacks, runs the operations, and publishes the view that readers follow.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use actix::{
    Actor, ActorFutureExt, Addr, AsyncContext, Context, Handler, ResponseFuture, SpawnHandle, Supervised, WrapFuture,
};
use arc_swap::ArcSwap;
use tokio::sync::{oneshot, watch};

use super::events::{EventHub, NodeEvent};
use super::membership::Members;
use super::message::{drillable, message};
use super::timer::CoreTimer;
use super::{mirror_join, mirror_log};
use crate::clock::Now;
use crate::kv::{CasAction, CasFn, CasOutcome, Codecs, SharedStore, StoreError, Value};
use crate::migration::{
    Durable, Input, MigrationEvent, MigrationStatus, MultiConfig, MultiCore, OpEffect, OpId, OpKind, Output,
    ParityReport, RuntimeMulti, Side, Task, TaskId, TaskResult, Verdict, View,
};

/// What outlives the actor.
pub(crate) struct MirrorParts {
    pub(crate) config: MultiConfig,
    /// What keys are ours; codecs may be registered at any time.
    pub(crate) codecs: Arc<Codecs>,
    pub(crate) sides: [SharedStore; 2],
    /// The members of the gossip cluster, when one of the stores is gossip.
    pub(crate) members: Option<Arc<ArcSwap<Members>>>,
    pub(crate) views: watch::Sender<View>,
    pub(crate) status: ArcSwap<MigrationStatus>,
    pub(crate) events: EventHub,
    pub(crate) durable: Mutex<Option<Durable>>,
    /// The name of the next operation. No name is given twice: a callback that waits in a store's mailbox outlives this
    /// actor, and tells the next one what it is about to change.
    pub(crate) next_op: AtomicU64,
    pub(crate) address: OnceLock<Addr<Mirror>>,
    pub(crate) drained: watch::Sender<bool>,
}

impl MirrorParts {
    pub(crate) fn side(&self, side: Side) -> SharedStore {
        match side {
            Side::A => self.sides[0].clone(),
            Side::B => self.sides[1].clone(),
        }
    }
}

/// The callback of a compare-and-swap, kept by the caller so that it can ask again when this actor dies over it.
pub(crate) type SharedCas = Arc<Mutex<CasFn>>;

/// What a user wants done.
#[derive(Clone)]
pub(crate) enum Request {
    Cas(SharedCas),
    Join(Value),
    Delete,
}

struct Pending {
    key: Arc<str>,
    request: Request,
    reply: oneshot::Sender<Result<CasOutcome, StoreError>>,
    last: Option<Result<CasOutcome, StoreError>>,
    /// The run in progress. A new run replaces it: the old one is dropped and never reported.
    run: Option<SpawnHandle>,
}

pub(crate) struct Mirror {
    parts: Arc<MirrorParts>,
    core: MultiCore,
    /// How many registrations of codecs the core knows of.
    codecs_registered: u64,
    pending: HashMap<OpId, Pending>,
    timer: CoreTimer,
    /// When the status was published last.
    status_at: Option<tokio::time::Instant>,
    /// Who waits for a thorough comparison.
    parity_asked: HashMap<u64, oneshot::Sender<ParityResult>>,
    next_parity: u64,
    /// Live members, as last told to the core.
    members_alive: Option<usize>,
}

/// How the stores compare, or why that cannot be told.
pub(crate) type ParityResult = Result<Arc<ParityReport>, String>;

/// How often the status is published when nothing happens: its ages and lags grow by themselves.
const STATUS_PERIOD: Duration = Duration::from_millis(500);

/// Time between two publications while much happens. Events are published at once.
const STATUS_AT_MOST: Duration = Duration::from_millis(50);

impl Mirror {
    pub(crate) fn new(parts: Arc<MirrorParts>) -> Self {
        let durable = parts.durable.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let now = Now::read();
        let codecs_registered = parts.codecs.registered();
        let config = MultiConfig { prefixes: parts.codecs.prefixes(), ..parts.config.clone() };
        let core = match durable {
            Some(durable) => MultiCore::resume(config, durable, now),
            None => MultiCore::new(config, now),
        };
        Self {
            parts,
            codecs_registered,
            core,
            pending: HashMap::new(),
            timer: CoreTimer::default(),
            status_at: None,
            parity_asked: HashMap::new(),
            next_parity: 0,
            members_alive: None,
        }
    }

    /// The view before the core has said anything.
    pub(crate) fn first_view(config: &MultiConfig) -> View {
        MultiCore::new(config.clone(), Now::read()).view()
    }

    /// The status before the core has done anything.
    pub(crate) fn first_status(config: &MultiConfig) -> MigrationStatus {
        let now = Now::read();
        MultiCore::new(config.clone(), now).status(now)
    }

    fn input(&mut self, input: Input, ctx: &mut Context<Self>) {
        self.look_at_codecs();
        self.core.handle(Now::read(), input);
        self.pump(ctx);
    }

    fn pump(&mut self, ctx: &mut Context<Self>) {
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::RunOp { id, side } => self.run(id, Some(side), None, ctx),
                Output::RunOpOnLast { id, base } => self.run(id, None, base, ctx),
                Output::Reply { id, verdict } => self.reply(id, verdict),
                Output::Task { id, side, task } => self.task(id, side, task, ctx),
                Output::View(view) => {
                    self.parts.views.send_replace(view);
                }
                Output::Event(event) => {
                    self.tell(event);
                    self.status_at = None;
                }
                Output::Parity { ids, result } => {
                    for id in ids {
                        if let Some(asked) = self.parity_asked.remove(&id) {
                            let _ = asked.send(result.clone());
                        }
                    }
                }
                Output::Drained => {
                    self.publish_status();
                    self.parts.drained.send_replace(true);
                }
            }
        }
        // Saved before anybody can see an effect of what was just decided: everything above only queued work.
        *self.parts.durable.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.core.durable());
        // Deliveries come by the thousand, and the status counts and compares: what is left out here follows in time.
        if self.status_at.is_none_or(|at| at.elapsed() >= STATUS_AT_MOST) {
            self.publish_status();
        }
        self.set_timer(ctx);
    }

    /// Tells the core of prefixes that came, before anything that could be about their keys.
    fn look_at_codecs(&mut self) {
        let registered = self.parts.codecs.registered();
        if std::mem::replace(&mut self.codecs_registered, registered) != registered {
            self.core.handle(Now::read(), Input::Prefixes(self.parts.codecs.prefixes()));
        }
    }

    fn count_members(&mut self, ctx: &mut Context<Self>) {
        let Some(members) = &self.parts.members else { return };
        let alive = members.load().list.iter().filter(|member| member.is_live()).count();
        if self.members_alive.replace(alive) != Some(alive) {
            self.input(Input::Members(alive), ctx);
        }
    }

    fn publish_status(&mut self) {
        self.status_at = Some(tokio::time::Instant::now());
        self.parts.status.store(Arc::new(self.core.status(Now::read())));
    }

    /// Runs an operation on a side, or, with no side, its callback on the last value that was delivered: that yields δ
    /// for the other store when the primary cannot even be read.
    fn run(&mut self, id: OpId, side: Option<Side>, base: Option<Value>, ctx: &mut Context<Self>) {
        // A callback that decided for a caller who is gone must not decide once more: meanwhile that caller may have
        // written something newer, which the new decision would be dated after. (A first run is another matter: with a
        // primary that hangs, the other store hears of a heartbeat only because that outlives its caller.)
        let outlived = |pending: &Pending| side.is_some() && pending.run.is_some() && pending.reply.is_closed();
        let Some(pending) = self.pending.get(&id).filter(|pending| !outlived(pending)) else {
            if let Some(run) = self.pending.remove(&id).and_then(|pending| pending.run) {
                ctx.cancel_future(run);
            }
            self.core.handle(Now::read(), Input::OpDropped { id });
            return;
        };
        let (key, request, address) = (pending.key.clone(), pending.request.clone(), ctx.address());
        let Some(side) = side else {
            let delta = match request {
                Request::Cas(f) => {
                    let mut f = f.lock().unwrap_or_else(PoisonError::into_inner);
                    wanted(&f(base.as_ref()), base.as_ref())
                }
                Request::Join(delta) => Some(delta),
                Request::Delete => None,
            };
            self.core.handle(Now::read(), Input::OpOnLastDone { id, delta });
            return;
        };
        let store = self.parts.side(side);
        let work = async move {
            match request {
                Request::Cas(f) => {
                    let callback = record_intents(id, f, address);
                    store.cas(&key, callback).await.map(Effect::Cas)
                }
                Request::Join(delta) => store.join(&key, delta).await.map(Effect::Cas),
                Request::Delete => store.delete(&key).await.map(|()| Effect::Deleted),
            }
        };
        let run = ctx.spawn(work.into_actor(self).map(move |result, this, ctx| {
            let effect = result.as_ref().map_err(Clone::clone).map(Effect::for_core);
            if let Some(pending) = this.pending.get_mut(&id) {
                pending.last = Some(result.map(Effect::outcome));
            }
            this.input(Input::OpDone { id, side, result: effect }, ctx);
        }));
        if let Some(pending) = self.pending.get_mut(&id)
            && let Some(replaced) = pending.run.replace(run)
        {
            ctx.cancel_future(replaced);
        }
    }

    fn reply(&mut self, id: OpId, verdict: Verdict) {
        let Some(pending) = self.pending.remove(&id) else { return };
        let answer = match verdict {
            Verdict::Done => pending.last.unwrap_or(Ok(CasOutcome::Unchanged)),
            Verdict::Failed(error) => Err(error),
        };
        let _ = pending.reply.send(answer);
    }

    fn task(&mut self, id: TaskId, side: Side, task: Task, ctx: &mut Context<Self>) {
        let (store, source) = (self.parts.side(side), self.parts.side(side.other()));
        let (kind, patience) = (store.kind(), self.parts.config.patience());
        let work = async move {
            let io = async {
                Ok(match task {
                    Task::Join { key, delta } => {
                        // The questions must leave time for the write.
                        mirror_join::join(&*store, &*source, &key, delta, patience / 3).await?;
                        TaskResult::Done
                    }
                    Task::Delete { key } => {
                        store.delete(&key).await?;
                        TaskResult::Done
                    }
                    Task::Get { key } => TaskResult::Value(store.get_latest(&key).await?.map(|entry| entry.value)),
                    Task::Exists { key } => TaskResult::Exists(mirror_join::is_there(&*store, &key).await?),
                    Task::List { prefix } => TaskResult::Keys(store.list_latest(&prefix).await?),
                })
            };
            tokio::time::timeout(patience, io)
                .await
                .unwrap_or(Err(StoreError::Timeout { store: kind, after: patience }))
        };
        ctx.spawn(work.into_actor(self).map(move |result, this, ctx| {
            this.input(Input::TaskDone { id, result }, ctx);
        }));
    }

    fn tell(&self, event: MigrationEvent) {
        let step = mirror_log::log(&event);
        if let MigrationEvent::Flipped { from, to, took, .. } = &event {
            self.parts.events.pass_on(NodeEvent::Flipped { from: *from, to: *to, took: *took });
        }
        self.parts.events.pass_on(NodeEvent::Migration { step, what: mirror_log::describe(&event) });
    }

    fn set_timer(&mut self, ctx: &mut Context<Self>) {
        self.timer.arm(self.core.next_deadline(), ctx, |this, ctx| {
            this.timer.fired();
            this.input(Input::Tick, ctx);
        });
    }
}

/// What an operation did, between the store's words and the core's.
enum Effect {
    Cas(CasOutcome),
    Deleted,
}

impl Effect {
    fn for_core(&self) -> OpEffect {
        match self {
            Self::Cas(CasOutcome::Written { delta, .. }) => OpEffect::Written(delta.clone()),
            Self::Cas(CasOutcome::Unchanged) => OpEffect::Unchanged,
            Self::Deleted => OpEffect::Deleted,
        }
    }

    fn outcome(self) -> CasOutcome {
        match self {
            Self::Cas(outcome) => outcome,
            Self::Deleted => CasOutcome::Unchanged,
        }
    }
}

/// Wraps a user's callback so that what it wants to write is known here before the store can acknowledge it.
fn record_intents(id: OpId, f: SharedCas, address: Addr<Mirror>) -> CasFn {
    Box::new(move |current| {
        let mut f = f.lock().unwrap_or_else(PoisonError::into_inner);
        let action = f(current);
        if let Some(delta) = wanted(&action, current) {
            address.do_send(CoreInput(Input::Intent { id, delta }));
        }
        action
    })
}

/// What a callback's decision changes.
fn wanted(action: &CasAction, current: Option<&Value>) -> Option<Value> {
    match action {
        CasAction::Write(value) => value.delta(current, Now::read()).ok().flatten(),
        CasAction::Join(delta) => match current {
            Some(current) => current.join(delta, Now::read()).ok()?.change,
            None => Some(delta.clone()),
        },
        CasAction::Keep | CasAction::Abort(_) => None,
    }
}

impl Actor for Mirror {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(STATUS_PERIOD, |this, ctx| {
            this.count_members(ctx);
            // Also when nothing else happens: codecs come, and what was told changes with time.
            this.input(Input::Tick, ctx);
            this.publish_status();
        });
        self.pump(ctx);
    }
}

impl Supervised for Mirror {
    fn restarting(&mut self, _: &mut Self::Context) {
        // Dropping the pending operations answers their callers, who ask again.
        *self = Self::new(self.parts.clone());
    }
}

drillable!(Mirror);

struct CoreInput(Input);
message!(CoreInput => ());

impl Handler<CoreInput> for Mirror {
    type Result = ();

    fn handle(&mut self, CoreInput(input): CoreInput, ctx: &mut Self::Context) {
        self.input(input, ctx);
    }
}

/// A user's operation.
pub(crate) struct Operation {
    pub(crate) key: Arc<str>,
    pub(crate) request: Request,
    pub(crate) reply: oneshot::Sender<Result<CasOutcome, StoreError>>,
}
message!(Operation => ());

impl Handler<Operation> for Mirror {
    type Result = ();

    fn handle(&mut self, operation: Operation, ctx: &mut Self::Context) {
        let id = OpId(self.parts.next_op.fetch_add(1, Ordering::Relaxed));
        let kind = match &operation.request {
            Request::Cas(_) => OpKind::Cas,
            Request::Join(delta) => OpKind::Join(delta.clone()),
            Request::Delete => OpKind::Delete,
        };
        let Operation { key, request, reply } = operation;
        self.pending.insert(id, Pending { key: key.clone(), request, reply, last: None, run: None });
        self.input(Input::Op { id, key, kind }, ctx);
    }
}

/// A reader was handed this value.
pub(crate) struct Delivered {
    pub(crate) key: Arc<str>,
    pub(crate) side: Side,
    pub(crate) value: Option<Value>,
}
message!(Delivered => ());

impl Handler<Delivered> for Mirror {
    type Result = ();

    fn handle(&mut self, Delivered { key, side, value }: Delivered, ctx: &mut Self::Context) {
        self.input(Input::Delivered { key, side, value }, ctx);
    }
}

/// A reader found this; the answer is what to hand it.
pub(crate) struct Read {
    pub(crate) key: Arc<str>,
    pub(crate) side: Side,
    pub(crate) found: Option<Value>,
}
message!(Read => Option<Value>);

impl Handler<Read> for Mirror {
    type Result = Option<Value>;

    fn handle(&mut self, Read { key, side, found }: Read, ctx: &mut Self::Context) -> Option<Value> {
        let value = self.core.read(&key, found, Now::read());
        self.input(Input::Delivered { key, side, value: value.clone() }, ctx);
        value
    }
}

/// The runtime configuration, as read now, or why it cannot be used.
pub(crate) struct Runtime(pub(crate) Result<RuntimeMulti, String>);
message!(Runtime => ());

impl Handler<Runtime> for Mirror {
    type Result = ();

    fn handle(&mut self, Runtime(runtime): Runtime, ctx: &mut Self::Context) {
        let input = match runtime {
            Ok(runtime) => Input::Runtime(runtime),
            Err(reason) => Input::RuntimeInvalid(reason),
        };
        self.input(input, ctx);
    }
}

/// Compares both stores thoroughly.
pub(crate) struct CompareStores;
message!(CompareStores => ParityResult);

impl Handler<CompareStores> for Mirror {
    type Result = ResponseFuture<ParityResult>;

    fn handle(&mut self, _: CompareStores, ctx: &mut Self::Context) -> Self::Result {
        let id = self.next_parity;
        self.next_parity += 1;
        let (asked, answer) = oneshot::channel();
        self.parity_asked.insert(id, asked);
        self.input(Input::ParityAsked { id }, ctx);
        self.parity_asked.retain(|_, asked| !asked.is_closed());
        Box::pin(async move {
            answer.await.unwrap_or_else(|_| Err("the mirror died over the comparison; ask again".to_owned()))
        })
    }
}

/// Drains the outbox, up to a limit; the end is told through [`MirrorParts::drained`].
pub(crate) struct Drain(pub(crate) Duration);
message!(Drain => ());

impl Handler<Drain> for Mirror {
    type Result = ();

    fn handle(&mut self, Drain(drain): Drain, ctx: &mut Self::Context) {
        self.input(Input::Shutdown { drain }, ctx);
    }
}

#[cfg(test)]
#[path = "mirror_tests.rs"]
mod tests;
