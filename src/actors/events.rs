//! What happens on a node, as a stream for its host, its logs and its pages.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

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
    /// Two members claim one name; the first is kept.
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
pub(crate) struct EventHub(Arc<OnceLock<broadcast::Sender<NodeEvent>>>);

/// How many events wait for a reader.
const WAITING: usize = 1024;

impl EventHub {
    pub(crate) fn new() -> Self {
        Self(Arc::default())
    }

    pub(crate) fn publish(&self, event: NodeEvent) {
        tracing::info!(event = ?event);
        self.pass_on(event);
    }

    /// For readers, without a line in the log: it has one already.
    pub(crate) fn pass_on(&self, event: NodeEvent) {
        if let Some(readers) = self.0.get() {
            // That they are all gone is fine.
            let _ = readers.send(event);
        }
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<NodeEvent> {
        self.0.get_or_init(|| broadcast::Sender::new(WAITING)).subscribe()
    }
}
