//! What happens on a node, as a stream for its host, its logs and its pages.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::broadcast;

use super::guard::Death;
use crate::ring::InstanceState;

/// Something worth telling.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum NodeEvent {
    /// A member joined, or came back from the dead.
    MemberJoined {
        /// Its name.
        name: String,
    },
    /// A member changed its meta.
    MemberUpdated {
        /// Its name.
        name: String,
    },
    /// A member did not answer probes and has time to refute.
    MemberSuspected {
        /// Its name.
        name: String,
    },
    /// A suspicion was refuted.
    MemberRecovered {
        /// Its name.
        name: String,
    },
    /// A member is declared dead.
    MemberFailed {
        /// Its name.
        name: String,
    },
    /// A member left.
    MemberLeft {
        /// Its name.
        name: String,
    },
    /// Two members claim one name; the first is kept. Told once a minute for each name, and for at most 64 names; how often
    /// it happens is in `annulus_packets_refused_total{reason="alive_conflict"}`.
    MemberConflict {
        /// The contested name.
        name: String,
        /// Address of the one that was refused.
        other: String,
    },
    /// The set of instances, their tokens or their states changed.
    RingChanged {
        /// Which ring.
        ring: String,
        /// Instances in it now.
        instances: usize,
    },
    /// This node's own instance changed its state.
    InstanceState {
        /// Which ring.
        ring: String,
        /// Before.
        from: InstanceState,
        /// Now.
        to: InstanceState,
    },
    /// Entries that other nodes sent were refused because of their dates: a clock is wrong, or a node that was cut off
    /// remembers instances that were removed. Told once a minute at most.
    EntriesRefused {
        /// The key of the latest.
        key: String,
        /// How many since the last time, and why.
        refused: crate::kv::Refused,
    },
    /// The runtime configuration changed.
    RuntimeConfigChanged {
        /// SHA-256 of the new one.
        hash: String,
    },
    /// The runtime configuration could not be used; the last good one stays.
    RuntimeConfigRefused {
        /// Why.
        reason: String,
    },
    /// This node has just started, and its runtime configuration names no primary, although an earlier one named another
    /// than the static configuration does: the section went away before the static configuration was changed. The node
    /// reads and writes the store of the static configuration, apart from those that kept the other one.
    RuntimePrimaryGone {
        /// The store that was named last.
        last: String,
        /// The store that is primary on this node.
        primary: String,
    },
    /// A step of a migration.
    Migration {
        /// Its name, as the field `step` of the log has it: `mirror_enabled`, `phase`, `gate_closed` and so on, listed in
        /// `docs/operations.md`. What it is about is in words only.
        step: &'static str,
        /// What happened, in words.
        what: String,
    },
    /// A store flip was carried out on this node.
    Flipped {
        /// The store that was primary.
        from: crate::kv::StoreKind,
        /// The store that is primary now.
        to: crate::kv::StoreKind,
        /// From the decision to the swap.
        took: Duration,
    },
    /// An actor died and was started again.
    ActorRestarted {
        /// Which one.
        actor: String,
        /// How it died.
        death: Death,
    },
}

/// Where events go in and come out. A reader that is too slow misses the oldest ones and is told how many.
///
/// The room for events that wait (100 KB) is taken when somebody first wants to read them.
#[derive(Clone, Debug)]
pub(crate) struct EventHub(Arc<Hub>);

#[derive(Debug)]
struct Hub {
    readers: OnceLock<broadcast::Sender<NodeEvent>>,
    limits: Mutex<LogLimits>,
}

/// How many events wait for a reader.
const WAITING: usize = 1024;

impl EventHub {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Hub { readers: OnceLock::new(), limits: Mutex::default() }))
    }

    pub(crate) fn publish(&self, event: NodeEvent) {
        let line = {
            let mut limits = self.0.limits.lock().unwrap_or_else(PoisonError::into_inner);
            limits.of(&event).map_or(Some(0), |limit| limit.line(Instant::now()))
        };
        match line {
            Some(0) => tracing::info!(event = ?event),
            Some(unlogged) => tracing::info!(event = ?event, unlogged, "and events about members that were not logged"),
            None => {}
        }
        self.pass_on(event);
    }

    /// For readers, without a line in the log: it has one already.
    pub(crate) fn pass_on(&self, event: NodeEvent) {
        if let Some(readers) = self.0.readers.get() {
            // That they are all gone is fine.
            let _ = readers.send(event);
        }
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<NodeEvent> {
        self.0.readers.get_or_init(|| broadcast::Sender::new(WAITING)).subscribe()
    }
}

/// How many lines about members may be written. Others decide how often a member comes and goes, or is suspected and
/// recovers: where gossip is not encrypted, anybody does, by packets that are quickly forged.
#[derive(Debug)]
struct LogLimits {
    /// Who comes and goes: a large cluster that starts, or is cut in two, is logged whole.
    coming: LogLimit,
    /// Everything else about members.
    other: LogLimit,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self { coming: LogLimit::new(10_000, 100), other: LogLimit::new(100, 10) }
    }
}

impl LogLimits {
    /// The limit for this event, if there is one.
    fn of(&mut self, event: &NodeEvent) -> Option<&mut LogLimit> {
        match event {
            NodeEvent::MemberJoined { .. } | NodeEvent::MemberFailed { .. } | NodeEvent::MemberLeft { .. } => {
                Some(&mut self.coming)
            }
            NodeEvent::MemberSuspected { .. }
            | NodeEvent::MemberRecovered { .. }
            | NodeEvent::MemberUpdated { .. }
            | NodeEvent::MemberConflict { .. } => Some(&mut self.other),
            _ => None,
        }
    }
}

/// A bucket of lines that fills again with time.
#[derive(Debug)]
struct LogLimit {
    burst: f64,
    per_second: f64,
    free: f64,
    /// When `free` was right.
    at: Option<Instant>,
    /// Lines left out since the last one.
    unlogged: u64,
}

impl LogLimit {
    fn new(burst: u32, per_second: u32) -> Self {
        Self { burst: burst.into(), per_second: per_second.into(), free: burst.into(), at: None, unlogged: 0 }
    }

    /// Whether a line may be written now, and how many were left out before it.
    fn line(&mut self, now: Instant) -> Option<u64> {
        let passed = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.at = Some(now);
        self.free = (self.free + passed.as_secs_f64() * self.per_second).min(self.burst);
        if self.free < 1.0 {
            self.unlogged += 1;
            return None;
        }
        self.free -= 1.0;
        Some(std::mem::take(&mut self.unlogged))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_flood_of_events_about_members_is_logged_at_a_bounded_rate_and_the_rest_is_counted() {
        let (mut limits, start) = (LogLimits::default(), Instant::now());
        let mut line = |event: NodeEvent, ms| {
            let now = start + Duration::from_millis(ms);
            limits.of(&event).map_or(Some(0), |limit| limit.line(now))
        };
        let suspected = || NodeEvent::MemberSuspected { name: "n".into() };
        let recovered = || NodeEvent::MemberRecovered { name: "n".into() };
        let written = (0..1_000).flat_map(|_| [line(suspected(), 0), line(recovered(), 0)]).flatten().count();
        assert_eq!(written, 100);
        assert_eq!(line(suspected(), 50), None);
        assert_eq!(line(recovered(), 150), Some(1_901), "and how many were left out");
        // Neither who comes and goes nor what this node does itself has to wait for that.
        assert_eq!(line(NodeEvent::MemberFailed { name: "n".into() }, 150), Some(0));
        assert_eq!(line(NodeEvent::RingChanged { ring: "r".into(), instances: 1 }, 150), Some(0));
        let joined = (0..20_000).filter(|_| line(NodeEvent::MemberJoined { name: "n".into() }, 150).is_some()).count();
        assert_eq!(joined, 9_999);
    }

    #[test]
    fn what_is_not_logged_still_reaches_the_readers() {
        let hub = EventHub::new();
        let mut reader = hub.subscribe();
        for _ in 0..500 {
            hub.publish(NodeEvent::MemberSuspected { name: "n".into() });
        }
        for _ in 0..500 {
            reader.try_recv().unwrap();
        }
    }
}
