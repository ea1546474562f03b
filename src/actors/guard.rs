//! The guard around every actor: it survives panics and stops, which `actix::Supervisor` does not.
//!
//! A guard owns the actor's context future and polls it under `catch_unwind`. The mailbox lives inside that future, so
//! a restart *in place* keeps the address and every queued message: only the message that was being handled is lost,
//! and its sender is told (`MailboxError::Closed`). Restarts back off exponentially with jitter; when an actor dies too
//! often, its guard asks the parent what to do.
//!
//! Every actor rebuilds itself in [`actix::Supervised::restarting`] from state that outlives it.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use actix::dev::ContextFut;
use actix::{Actor, ActorContext, Addr, AsyncContext, Context, Supervised};
use rand::RngExt;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

/// How often an actor may die, and how long to wait before it is started again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RestartPolicy {
    /// Deaths within `window` after which the parent decides.
    pub(crate) max_restarts: usize,
    /// The window in which deaths are counted.
    pub(crate) window: Duration,
    /// Pause before the first restart; doubles with each death in the window.
    pub(crate) backoff_min: Duration,
    /// Longest pause.
    pub(crate) backoff_max: Duration,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            max_restarts: 10,
            window: Duration::from_secs(60),
            backoff_min: Duration::from_millis(10),
            backoff_max: Duration::from_secs(2),
        }
    }
}

impl RestartPolicy {
    /// The pause before the restart after `deaths` deaths in the window, with up to 25 % jitter.
    fn pause(&self, deaths: usize) -> Duration {
        let doubled = self.backoff_min.saturating_mul(1 << deaths.saturating_sub(1).min(16));
        doubled.min(self.backoff_max).mul_f64(rand::rng().random_range(1.0..1.25))
    }
}

/// What an actor is doing, as its guard sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ActorState {
    /// Handling messages.
    Running,
    /// Died; waits out its back-off. Messages queue up meanwhile.
    Restarting,
    /// Died too often; its parent is deciding.
    Escalated,
    /// Ended because the node ends.
    Stopped,
    /// Given up.
    Failed,
}

impl ActorState {
    const ALL: [Self; 5] = [Self::Running, Self::Restarting, Self::Escalated, Self::Stopped, Self::Failed];
}

/// Why an actor died.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", content = "message", rename_all = "lowercase")]
pub enum Death {
    /// It panicked; with the panic's message.
    Panic(String),
    /// It stopped itself although the node goes on.
    Stop,
    /// Its parent restarted it together with a sibling.
    Sibling,
}

impl Death {
    /// The label value in `annulus_actor_restarts_total`.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Panic(_) => "panic",
            Self::Stop => "stop",
            Self::Sibling => "sibling",
        }
    }
}

/// What everybody may know about one actor. Outlives it.
#[derive(Debug)]
pub(crate) struct ChildStatus {
    /// The actor's name, for example `heartbeat/ingester`.
    pub(crate) name: String,
    state: AtomicU8,
    panics: AtomicU64,
    stops: AtomicU64,
    siblings: AtomicU64,
    last: Mutex<Option<(Instant, Death)>>,
}

impl ChildStatus {
    pub(crate) fn new(name: impl Into<String>) -> Arc<Self> {
        Arc::new(Self {
            name: name.into(),
            state: AtomicU8::new(ActorState::Running as u8),
            panics: AtomicU64::new(0),
            stops: AtomicU64::new(0),
            siblings: AtomicU64::new(0),
            last: Mutex::new(None),
        })
    }

    pub(crate) fn state(&self) -> ActorState {
        let index = usize::from(self.state.load(Ordering::Relaxed));
        ActorState::ALL.get(index).copied().unwrap_or(ActorState::Failed)
    }

    fn set_state(&self, state: ActorState) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    /// Restarts so far, by reason.
    pub(crate) fn restarts(&self) -> [(&'static str, u64); 3] {
        [
            ("panic", self.panics.load(Ordering::Relaxed)),
            ("stop", self.stops.load(Ordering::Relaxed)),
            ("sibling", self.siblings.load(Ordering::Relaxed)),
        ]
    }

    pub(crate) fn last_death(&self) -> Option<(Instant, Death)> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn record(&self, death: &Death) {
        let counter = match death {
            Death::Panic(_) => &self.panics,
            Death::Stop => &self.stops,
            Death::Sibling => &self.siblings,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), death.clone()));
    }
}

/// What a parent tells a guard.
#[derive(Debug)]
pub(crate) enum Control {
    /// Restart the actor in place, because a sibling died for good.
    Restart,
    /// The node ends: stop the actor and do not start it again.
    Stop,
}

/// What a guard tells its parent.
#[derive(Debug)]
pub(crate) enum ChildEvent {
    /// The actor died and was started again.
    Restarted { status: Arc<ChildStatus>, death: Death },
    /// The actor died too often. The guard waits for the verdict.
    Escalated { status: Arc<ChildStatus>, death: Death, verdict: oneshot::Sender<Verdict> },
}

/// A parent's answer to an escalation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Start it again; its count of deaths begins anew.
    Restart,
    /// Let it be.
    GiveUp,
}

/// The parent's ends of a guard.
pub(crate) struct Guarded {
    pub(crate) status: Arc<ChildStatus>,
    pub(crate) control: mpsc::UnboundedSender<Control>,
    pub(crate) done: tokio::task::JoinHandle<()>,
}

/// Starts an actor under a guard on the current thread's `LocalSet`.
///
/// `events` receives what happens to it; a parent that is gone counts as one that says [`Verdict::GiveUp`].
pub(crate) fn spawn<A>(
    status: Arc<ChildStatus>,
    policy: RestartPolicy,
    events: mpsc::UnboundedSender<ChildEvent>,
    actor: A,
) -> (Addr<A>, Guarded)
where
    A: Actor<Context = Context<A>> + Supervised,
{
    let context = Context::new();
    let future = context.into_future(actor);
    let address = future.address();
    let (control, controls) = mpsc::unbounded_channel();
    let guard = Guard { future, status: status.clone(), policy, events, controls, deaths: VecDeque::new() };
    let done = tokio::task::spawn_local(guard.run());
    (address, Guarded { status, control, done })
}

/// More than any actor spawns when it starts.
const FIRST_NUMBERS: usize = 64;

struct Guard<A: Actor<Context = Context<A>> + Supervised> {
    future: ContextFut<A, Context<A>>,
    status: Arc<ChildStatus>,
    policy: RestartPolicy,
    events: mpsc::UnboundedSender<ChildEvent>,
    controls: mpsc::UnboundedReceiver<Control>,
    deaths: VecDeque<Instant>,
}

impl<A: Actor<Context = Context<A>> + Supervised> Guard<A> {
    async fn run(mut self) {
        loop {
            let death = tokio::select! {
                biased;
                control = self.controls.recv() => match control {
                    Some(Control::Restart) => Death::Sibling,
                    Some(Control::Stop) | None => return self.finish(ActorState::Stopped),
                },
                death = run_until_death(&mut self.future) => death,
            };
            self.status.record(&death);
            match &death {
                Death::Panic(message) => tracing::error!(actor = %self.status.name, %message, "actor panicked"),
                Death::Stop => tracing::warn!(actor = %self.status.name, "actor stopped"),
                Death::Sibling => tracing::warn!(actor = %self.status.name, "actor is restarted with its siblings"),
            }
            if !self.allowed_to_restart(&death).await {
                return self.finish(ActorState::Failed);
            }
            if !self.restart() {
                // Every address is gone, so nobody can ever talk to it again.
                return self.finish(ActorState::Stopped);
            }
            let _ = self.events.send(ChildEvent::Restarted { status: self.status.clone(), death });
        }
    }

    /// Counts the death, then waits out the back-off, or asks the parent when the actor died too often.
    async fn allowed_to_restart(&mut self, death: &Death) -> bool {
        let now = Instant::now();
        self.deaths.push_back(now);
        while self.deaths.front().is_some_and(|at| now.duration_since(*at) > self.policy.window) {
            self.deaths.pop_front();
        }
        if self.deaths.len() > self.policy.max_restarts {
            self.status.set_state(ActorState::Escalated);
            if self.ask_parent(death).await == Verdict::GiveUp {
                return false;
            }
            self.deaths.clear();
        }
        self.status.set_state(ActorState::Restarting);
        let pause = self.policy.pause(self.deaths.len().max(1));
        tokio::select! {
            () = tokio::time::sleep(pause) => true,
            // A stop during the back-off ends the wait; a restart request is what we are doing anyway.
            control = self.controls.recv() => matches!(control, Some(Control::Restart)),
        }
    }

    async fn ask_parent(&self, death: &Death) -> Verdict {
        loop {
            let (verdict, decided) = oneshot::channel();
            let question = ChildEvent::Escalated { status: self.status.clone(), death: death.clone(), verdict };
            if self.events.send(question).is_err() {
                return Verdict::GiveUp;
            }
            // The parent is an actor too: one that died over the question is asked again.
            if let Ok(verdict) = decided.await {
                return verdict;
            }
        }
    }

    fn restart(&mut self) -> bool {
        let future = &mut self.future;
        let spawned = future.ctx().spawn(actix::fut::ready(())).into_usize();
        // `restarting` rebuilds the actor; should that panic, the next poll panics too and is counted as a death.
        let connected = catch_unwind(AssertUnwindSafe(|| future.restart())).unwrap_or(true);
        // actix numbers what an actor spawns from 1 again, and still cancels by number what its predecessor cancelled last:
        // that was a timer, and would be one that the successor begins with. So its numbers begin behind those.
        if spawned <= FIRST_NUMBERS {
            for _ in 0..spawned {
                self.future.ctx().spawn(actix::fut::ready(()));
            }
        }
        if connected {
            self.status.set_state(ActorState::Running);
        }
        connected
    }

    fn finish(mut self, state: ActorState) {
        self.status.set_state(state);
        // Without this, dropping the future would poll a broken actor once more.
        self.future.ctx().terminate();
    }
}

/// Polls the actor until it panics or stops.
async fn run_until_death<A>(future: &mut ContextFut<A, Context<A>>) -> Death
where
    A: Actor<Context = Context<A>> + Supervised,
{
    std::future::poll_fn(|cx| {
        let polled = catch_unwind(AssertUnwindSafe(|| Pin::new(&mut *future).poll(cx)));
        match polled {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(())) => Poll::Ready(Death::Stop),
            Err(payload) => Poll::Ready(Death::Panic(panic_message(&*payload))),
        }
    })
    .await
}

fn panic_message(payload: &(dyn std::any::Any + Send)) -> String {
    payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".to_owned())
}

#[cfg(test)]
#[path = "guard_tests.rs"]
mod tests;
