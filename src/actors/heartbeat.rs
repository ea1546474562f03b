//! The heartbeat actor: keeps this node's instance in a ring, from registration to goodbye. One for each ring joined.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, Supervised, WrapFuture};
use arc_swap::ArcSwap;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::sync::watch;

use super::events::{EventHub, NodeEvent};
use super::message::{drillable, message};
use super::timer::CoreTimer;
use crate::clock::Now;
use crate::kv::{CasAction, SharedStore, StoreError, Value};
use crate::ring::lifecycle::{Edit, Input, Lifecycle, LifecycleConfig, LifecycleDurable, Output};
use crate::ring::{Desc, Instance, InstanceState};

/// How this node's instance is doing in a ring.
#[derive(Clone, Debug, serde::Serialize)]
pub struct OwnInstance {
    /// Its state; PENDING before it was registered.
    pub state: InstanceState,
    /// How many tokens it holds.
    pub tokens: usize,
    /// Why it is not ready to serve; absent when it is.
    pub not_ready: Option<String>,
    /// Heartbeats that the store acknowledged.
    pub heartbeats: u64,
    /// What the store said last, when that was an error.
    pub last_error: Option<String>,
}

/// What outlives the actor.
pub(crate) struct HeartbeatParts {
    pub(crate) ring: String,
    pub(crate) key: String,
    pub(crate) config: LifecycleConfig,
    pub(crate) tokens_file: Option<std::path::PathBuf>,
    pub(crate) store: SharedStore,
    pub(crate) own: ArcSwap<OwnInstance>,
    pub(crate) events: EventHub,
    pub(crate) durable: Mutex<Option<LifecycleDurable>>,
    pub(crate) finished: watch::Sender<bool>,
}

/// Longest wait for the store in one attempt; the lifecycle itself retries.
const ATTEMPT: Duration = Duration::from_secs(10);

pub(crate) struct Heartbeat {
    parts: Arc<HeartbeatParts>,
    lifecycle: Lifecycle,
    timer: CoreTimer,
    heartbeats: u64,
    last_error: Option<String>,
}

impl Heartbeat {
    pub(crate) fn new(parts: Arc<HeartbeatParts>) -> Self {
        let (config, now) = (parts.config.clone(), Now::read());
        let rng = SmallRng::from_rng(&mut rand::rng());
        let durable = parts.durable.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let lifecycle = match durable {
            Some(durable) => Lifecycle::resume(config, rng, now, durable),
            None => Lifecycle::new(config, rng, now),
        };
        let heartbeats = parts.own.load().heartbeats;
        Self { parts, lifecycle, timer: CoreTimer::default(), heartbeats, last_error: None }
    }

    fn input(&mut self, input: Input, ctx: &mut Context<Self>) {
        self.lifecycle.handle(Now::read(), input);
        self.pump(ctx);
    }

    fn pump(&mut self, ctx: &mut Context<Self>) {
        while let Some(output) = self.lifecycle.poll_output() {
            match output {
                Output::Cas { id, edit } => self.write(id, *edit, ctx),
                Output::StateChanged { from, to } => {
                    self.parts.events.publish(NodeEvent::InstanceState { ring: self.parts.ring.clone(), from, to });
                }
                Output::SaveTokens(tokens) => self.save_tokens(tokens),
                Output::Ready => tracing::info!(ring = %self.parts.ring, "instance is ready"),
                Output::Finished => {
                    self.parts.finished.send_replace(true);
                }
            }
        }
        *self.parts.durable.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.lifecycle.durable());
        self.publish();
        self.set_timer(ctx);
    }

    fn publish(&self) {
        self.parts.own.store(Arc::new(OwnInstance {
            state: self.lifecycle.state(),
            tokens: self.lifecycle.tokens().len(),
            not_ready: self.lifecycle.not_ready_reason(Now::read()),
            heartbeats: self.heartbeats,
            last_error: self.last_error.clone(),
        }));
    }

    fn write(&mut self, id: u64, edit: Edit, ctx: &mut Context<Self>) {
        let (store, key, own_id) = (self.parts.store.clone(), self.parts.key.clone(), self.parts.config.id.clone());
        let work = async move {
            let stored: Arc<Mutex<Option<Instance>>> = Arc::default();
            let seen = stored.clone();
            let callback = Box::new(move |current: Option<&Value>| {
                let current = match current.map(|value| value.downcast_ref::<Desc>().ok_or(())) {
                    None => None,
                    Some(Ok(desc)) => Some(desc),
                    Some(Err(())) => return CasAction::Abort("the value under the ring's key is not a ring".into()),
                };
                let edited = edit.apply(current, Now::read());
                let own = edited.as_ref().or(current).and_then(|desc| desc.instances.get(own_id.as_str()));
                *seen.lock().unwrap_or_else(PoisonError::into_inner) = own.cloned();
                edited.map_or(CasAction::Keep, |desc| CasAction::Write(Value::new(desc)))
            });
            let kind = store.kind();
            tokio::time::timeout(ATTEMPT, store.cas(&key, callback))
                .await
                .unwrap_or(Err(StoreError::Timeout { store: kind, after: ATTEMPT }))?;
            Ok(stored.lock().unwrap_or_else(PoisonError::into_inner).take())
        };
        ctx.spawn(work.into_actor(self).map(move |result: Result<_, StoreError>, this, ctx| {
            match &result {
                Ok(_) => {
                    this.heartbeats += 1;
                    this.last_error = None;
                }
                Err(error) => {
                    tracing::warn!(ring = %this.parts.ring, %error, "could not write our instance into the ring");
                    this.last_error = Some(error.to_string());
                }
            }
            this.input(Input::CasDone { id, result: result.map_err(|error| error.to_string()) }, ctx);
        }));
    }

    fn save_tokens(&self, tokens: Vec<u32>) {
        let Some(path) = self.parts.tokens_file.clone() else { return };
        tokio::task::spawn_blocking(move || {
            if let Err(error) = super::tokens_file::save(&path, &tokens) {
                tracing::warn!(path = %path.display(), %error, "tokens not saved");
            }
        });
    }

    fn set_timer(&mut self, ctx: &mut Context<Self>) {
        self.timer.arm(self.lifecycle.next_deadline(), ctx, |this, ctx| {
            this.timer.fired();
            this.input(Input::Tick, ctx);
        });
    }
}

impl Actor for Heartbeat {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        // Readiness and heartbeat errors change with time alone.
        ctx.run_interval(Duration::from_secs(1), |this, _| this.publish());
        self.pump(ctx);
    }
}

impl Supervised for Heartbeat {
    fn restarting(&mut self, _: &mut Self::Context) {
        *self = Self::new(self.parts.clone());
    }
}

drillable!(Heartbeat);

/// Begins the goodbye; the end is told through [`HeartbeatParts::finished`].
pub(crate) struct Shutdown;
message!(Shutdown => ());

impl Handler<Shutdown> for Heartbeat {
    type Result = ();

    fn handle(&mut self, _: Shutdown, ctx: &mut Self::Context) {
        self.input(Input::Shutdown, ctx);
    }
}

/// The ring as it was just delivered: shows whether our instance is still in it.
pub(crate) struct Observed(pub(crate) Arc<Desc>);
message!(Observed => ());

impl Handler<Observed> for Heartbeat {
    type Result = ();

    fn handle(&mut self, Observed(desc): Observed, ctx: &mut Self::Context) {
        self.input(Input::Observed { desc }, ctx);
    }
}
