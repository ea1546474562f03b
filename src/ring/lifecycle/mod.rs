//! The life of one instance in one ring: PENDING → JOINING → ACTIVE → LEAVING → gone.
//!
//! A core without I/O: it asks for compare-and-swaps ([`Output::Cas`]) and is told how they ended
//! ([`Input::CasDone`]); there is at most one at a time. A store that fails never stops it: writes are tried again with
//! growing pauses, each later state follows from what was last written, and a shutdown ends in bounded time.
//!
//! The instance alone is the authority on its entry. What somebody else did to it, up to removing it, the next
//! heartbeat writes back, with the tokens and the registration time that it remembers.

mod config;
mod edit;
mod progress;
mod ready;
mod repair;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::rngs::SmallRng;

pub use config::LifecycleConfig;
pub use edit::{Action, Edit};

use self::repair::Repairs;
use super::desc::{Desc, Instance, InstanceState};
use crate::clock::Now;

/// The first pause after a failed write.
const MIN_BACKOFF: Duration = Duration::from_millis(100);
/// The longest pause after failed writes of an instance that writes no heartbeats.
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// How long a shutdown at least tries to write before it goes on without.
const MIN_PATIENCE: Duration = Duration::from_secs(1);

/// What the core is told.
#[derive(Clone, Debug)]
pub enum Input {
    /// Time has passed.
    Tick,
    /// A compare-and-swap ended. Every [`Output::Cas`] is answered by exactly one of these.
    CasDone {
        /// Which.
        id: u64,
        /// The instance's own entry as it is stored now, whether the write changed it or not (`None`: there is none),
        /// or why the store failed. After a failure the write may still have happened.
        result: Result<Option<Instance>, String>,
    },
    /// The ring as the store's watch delivers it.
    Observed {
        /// The value, with or without tombstones.
        desc: Arc<Desc>,
    },
    /// Switch reads-only.
    SetReadOnly(bool),
    /// Leave the ring. Ends with [`Output::Finished`].
    Shutdown,
}

/// What the core wants or tells.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Run this edit in a compare-and-swap of the ring's key: [`Edit::apply`] to the current value, write what it
    /// returns (`None`: keep), and answer with [`Input::CasDone`].
    Cas {
        /// To be given back.
        id: u64,
        /// What to apply.
        edit: Box<Edit>,
    },
    /// The instance is in another state. It is what the instance goes by; the store may learn it later.
    StateChanged {
        /// The state before.
        from: InstanceState,
        /// The state now.
        to: InstanceState,
    },
    /// The tokens to keep for the next life.
    SaveTokens(Vec<u32>),
    /// The instance is ready, once and for all.
    Ready,
    /// The end, after a shutdown: the entry is removed, or kept as configured, or the store stayed out of reach.
    Finished,
}

/// Where on its way the instance is.
#[derive(Clone, Debug, PartialEq)]
enum Phase {
    /// Not in the ring as yet.
    Registering,
    /// PENDING until the time is up, then it takes tokens.
    Waiting { until: Instant },
    /// JOINING until the time is up, then it looks whether its tokens are its own.
    Observing { until: Instant },
    /// ACTIVE.
    Active,
    /// LEAVING, which the store does not know yet. Not waited for beyond `give_up`.
    Leaving { give_up: Instant },
    /// LEAVING, until the final sleep is over.
    Sleeping { until: Instant },
    /// Removing itself; not tried beyond `give_up`.
    Unregistering { give_up: Instant },
    /// Done.
    Finished,
}

/// What survives a restart of the actor that runs the core, within the same process. See [`Lifecycle::resume`].
#[derive(Clone, Debug)]
pub struct LifecycleDurable {
    phase: Phase,
    /// The own entry as last decided; its timestamp is the one last known to be stored.
    own: Instance,
    /// The tokens last given out by [`Output::SaveTokens`], or read from the file.
    saved: Arc<[u32]>,
    next_id: u64,
    /// The time by a clock that does not go back.
    clock: Now,
    /// When the store last confirmed our entry as it is.
    confirmed: Option<Instant>,
    ready_since: Option<Instant>,
    ready: bool,
}

/// The lifecycle core.
#[derive(Debug)]
pub struct Lifecycle {
    config: LifecycleConfig,
    id: Arc<str>,
    rng: SmallRng,
    life: LifecycleDurable,
    /// The compare-and-swap that runs, and what it writes.
    in_flight: Option<(u64, Edit)>,
    /// When the next heartbeat is due.
    heartbeat_at: Option<Instant>,
    /// When what others did to our entry is repaired.
    repairs: Repairs,
    /// Something other than a heartbeat waits to be written.
    dirty: bool,
    failures: u32,
    retry_at: Option<Instant>,
    /// When the core was made or last handled something, as the floor of deadlines.
    last: Instant,
    outputs: VecDeque<Output>,
}

impl Lifecycle {
    /// A new life. It wants to be driven at once: [`Lifecycle::next_deadline`] is `now`.
    #[must_use]
    pub fn new(config: LifecycleConfig, rng: SmallRng, now: Now) -> Self {
        let mut own = Instance {
            addr: config.addr.clone(),
            zone: config.zone.clone(),
            state: InstanceState::Pending,
            tokens: config.tokens.clone().into(),
            ..Instance::default()
        };
        own.normalize();
        let life = LifecycleDurable {
            phase: Phase::Registering,
            saved: own.tokens.clone(),
            own,
            next_id: 1,
            clock: now,
            confirmed: None,
            ready_since: None,
            ready: false,
        };
        Self::resume(config, rng, now, life)
    }

    /// Goes on with a life whose actor died. Whatever was being written is decided anew; a late answer to it is
    /// ignored.
    #[must_use]
    pub fn resume(config: LifecycleConfig, rng: SmallRng, now: Now, durable: LifecycleDurable) -> Self {
        let registered = durable.phase != Phase::Registering;
        let repairs = Repairs::new(config.heartbeat_period);
        Self {
            id: config.id.as_str().into(),
            heartbeat_at: (registered && !config.heartbeat_period.is_zero()).then_some(now.mono),
            dirty: registered,
            config,
            rng,
            life: durable,
            in_flight: None,
            repairs,
            failures: 0,
            retry_at: None,
            last: now.mono,
            outputs: VecDeque::new(),
        }
    }

    /// What to hand to [`Lifecycle::resume`].
    #[must_use]
    pub fn durable(&self) -> LifecycleDurable {
        self.life.clone()
    }

    /// Takes one input. Read [`Lifecycle::poll_output`] and [`Lifecycle::next_deadline`] afterwards.
    pub fn handle(&mut self, now: Now, input: Input) {
        self.last = now.mono;
        let clock = self.life.clock + now.mono.saturating_duration_since(self.life.clock.mono);
        self.life.clock = Now { unix: now.unix.max(clock.unix), ..now };
        match input {
            Input::Tick => {}
            Input::CasDone { id, result } => self.cas_done(now, id, result),
            Input::Observed { desc } => self.observed(now, &desc),
            Input::SetReadOnly(read_only) => {
                if self.life.own.read_only != read_only {
                    self.life.own.read_only = read_only;
                    self.life.own.read_only_updated_timestamp = now.unix_secs();
                    self.dirty = true;
                }
            }
            Input::Shutdown => self.shutdown(now),
        }
        self.advance(now);
        self.watch_readiness(now);
    }

    /// The next thing that the core wants.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The instance's state. LEFT before it registered and after it unregistered is PENDING and LEAVING here.
    #[must_use]
    pub fn state(&self) -> InstanceState {
        self.life.own.state
    }

    /// The instance's tokens, sorted.
    #[must_use]
    pub fn tokens(&self) -> &[u32] {
        &self.life.own.tokens
    }

    /// The instance's own entry as it was last decided.
    #[must_use]
    pub fn entry(&self) -> &Instance {
        &self.life.own
    }

    /// Whether [`Output::Finished`] was reached.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.life.phase == Phase::Finished
    }

    fn set_state(&mut self, to: InstanceState) {
        let from = std::mem::replace(&mut self.life.own.state, to);
        if from != to {
            self.outputs.push_back(Output::StateChanged { from, to });
        }
    }

    /// The pause until the next heartbeat: within a tenth of the period, so that instances that started together do
    /// not write together for ever.
    fn heartbeat_pause(&mut self) -> Option<Duration> {
        let period = self.config.heartbeat_period;
        (!period.is_zero()).then(|| period.mul_f64(self.rng.random_range(0.9..=1.1)))
    }

    /// The pause after a failed write: grows up to the heartbeat period, and differs between instances.
    fn backoff(&mut self) -> Duration {
        let most = Some(self.config.heartbeat_period)
            .filter(|period| !period.is_zero())
            .unwrap_or(MAX_BACKOFF)
            .max(MIN_BACKOFF);
        let bound = MIN_BACKOFF.saturating_mul(1 << self.failures.min(16)).min(most);
        self.failures = self.failures.saturating_add(1);
        self.rng.random_range(MIN_BACKOFF..=bound)
    }

    /// How long a shutdown tries one write.
    fn patience(&self) -> Duration {
        self.config.heartbeat_period.max(MIN_PATIENCE)
    }
}

#[cfg(test)]
mod tests;
