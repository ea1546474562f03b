//! What must outlive the actor around the core.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::config::{MultiConfig, Side};
use super::doubts::Doubt;
use super::message::OpId;
use super::outbox::Outbox;
use crate::kv::Value;

/// The part of a [`super::MultiCore`] that outlives its actor: phase, outbox, intents, known values.
///
/// A clone costs a few reference counts. The maps inside are shared, and copied on the first change after a clone.
#[derive(Clone, Debug)]
pub struct Durable {
    pub(super) primary: Side,
    pub(super) mirror: bool,
    pub(super) generation: u64,
    pub(super) waiting: bool,
    /// Where a flip is pending to.
    pub(super) pending: Option<Side>,
    /// The join of everything that was handed to readers or acknowledged to writers, a key.
    pub(super) known: Arc<BTreeMap<Arc<str>, Value>>,
    /// What still has to go to side A, to side B.
    pub(super) outbox: [Outbox; 2],
    /// What running operations are about to change.
    pub(super) intents: Arc<BTreeMap<OpId, Intent>>,
    /// Deletions of unknown outcome.
    pub(super) doubts: Arc<BTreeMap<Arc<str>, Doubt>>,
    /// Last position in an outbox.
    pub(super) seq: u64,
    pub(super) last_task: u64,
    pub(super) totals: Totals,
    /// When the store that is not primary last had everything.
    pub(super) safe_at: Option<Instant>,
    /// After a flip with the mirror on: until when a run begins that has to wait with keys that only the new primary has.
    pub(super) settles_until: Option<Instant>,
}

/// What an operation is about to change where it runs.
#[derive(Clone, Debug)]
pub(super) struct Intent {
    pub(super) key: Arc<str>,
    pub(super) side: Side,
    pub(super) delta: Value,
}

/// Figures for the status.
#[derive(Clone, Debug, Default)]
pub(super) struct Totals {
    pub(super) mirrored: u64,
    pub(super) errors: u64,
    /// Writes that were not made, because their key was deleted meanwhile.
    pub(super) dropped: u64,
    pub(super) flips: u64,
    pub(super) last_flip_took: Option<Duration>,
    /// How long the last mirrored write waited, and when it arrived.
    pub(super) last_lag: Option<(Duration, Instant)>,
    pub(super) last_error: Option<String>,
}

impl Durable {
    pub(super) fn new(config: &MultiConfig) -> Self {
        Self {
            primary: Side::A,
            mirror: config.mirror_enabled,
            generation: 0,
            waiting: config.wait_for_runtime,
            pending: None,
            known: Arc::default(),
            outbox: [Outbox::default(), Outbox::default()],
            intents: Arc::default(),
            doubts: Arc::default(),
            seq: 0,
            last_task: 0,
            totals: Totals::default(),
            safe_at: None,
            settles_until: None,
        }
    }
}
