//! What goes into a gossip store and comes out of it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::kv::admission::Refused;
use crate::kv::store::Entry;

/// Settings of a gossip store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GossipConfig {
    /// How long tombstones of entries inside a value are kept. 0 keeps them for ever. Default 5 minutes, as in dskit.
    pub left_timeout: Duration,
    /// How long deleted keys are kept. 0 keeps them for ever. Must outlive two push/pull periods, or a node that
    /// missed the delete brings the key back. Default 5 minutes (dskit: 30 seconds, which is too short).
    pub obsolete_timeout: Duration,
    /// Keys held at most, deleted ones included. More are refused and counted. Default 100 000.
    pub max_keys: usize,
    /// How far in the future another node may date a delete or a creation. Default 30 minutes.
    pub max_clock_skew: Duration,
}

impl Default for GossipConfig {
    fn default() -> Self {
        Self {
            left_timeout: Duration::from_secs(5 * 60),
            obsolete_timeout: Duration::from_secs(5 * 60),
            max_keys: 100_000,
            max_clock_skew: Duration::from_secs(30 * 60),
        }
    }
}

/// What happened outside.
#[derive(Clone, Debug)]
pub enum Input {
    /// A broadcast arrived: the payload of a memberlist user message.
    UserMessage(Bytes),
    /// A push/pull brought the state of another node.
    RemoteState {
        /// The user state as it was received.
        bytes: Bytes,
        /// Whether the exchange was made to join. Keys that are new to us are then not broadcast again: the other side
        /// has told its own peers, or will.
        join: bool,
    },
    /// [`next_deadline`](super::GossipStore::next_deadline) has passed.
    Tick,
}

/// What the store wants done or known.
#[derive(Clone, Debug)]
pub enum Output {
    /// Queue this for gossip.
    Broadcast(Broadcast),
    /// The value of a key changed, or its existence.
    Changed {
        /// Which key.
        key: Arc<str>,
        /// What it is now; `None` when it was deleted.
        entry: Option<Entry>,
    },
    /// Entries of other nodes were refused by the [rules of admission](crate::kv::admission), or only just accepted. Told
    /// once a minute at most, with the sums since the last time.
    Refused {
        /// The key of the latest.
        key: Arc<str>,
        /// How many, and why.
        refused: Refused,
    },
}

/// A change for the broadcast queue. A later broadcast of the same key replaces an earlier one whose content it covers.
#[derive(Clone, Debug)]
pub struct Broadcast {
    /// Which key changed.
    pub key: Arc<str>,
    /// Names of the entries inside that changed.
    pub content: Vec<String>,
    /// Version of the key at this node after the change.
    pub version: u64,
    /// Whether the change was made here. Such changes go first, and a leaving node waits until they are out.
    pub local: bool,
    /// The payload of the user message.
    pub payload: Bytes,
}

/// Counters since the store was created, and two gauges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GossipStats {
    /// User messages received.
    pub received: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// States received by push/pull.
    pub states: u64,
    /// Their bytes.
    pub state_bytes: u64,
    /// Pairs that did not decode, were truncated, or exceeded a limit.
    pub invalid_pair: u64,
    /// Pairs of a key that no codec is registered for, or of another codec than the registered one.
    pub invalid_key: u64,
    /// Values that the codec refused, or of another type than the stored one.
    pub invalid_value: u64,
    /// Pairs dated further in the future than clocks may differ, and deletes without a date.
    pub invalid_time: u64,
    /// Pairs that were valid and had no room: too many keys, or the joined value would have been too large.
    pub dropped: u64,
    /// Entries refused inside values that were otherwise accepted, by reason.
    pub entries_refused: Refused,
    /// Tombstones of entries forgotten after their time.
    pub tombstones_removed: u64,
    /// Deleted keys forgotten after their time.
    pub keys_purged: u64,
    /// Keys that exist (a gauge).
    pub keys: u64,
    /// Deleted keys that are remembered (a gauge).
    pub deleted_keys: u64,
}

/// One key for status pages; see [`GossipStore::describe`](super::GossipStore::describe).
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct KeyInfo {
    /// The key.
    pub key: String,
    /// Id of its codec.
    pub codec: String,
    /// Version at this node.
    pub version: u64,
    /// Whether it is deleted and only remembered.
    pub deleted: bool,
    /// When it was last created or deleted, in milliseconds since the Unix epoch; 0 when unknown.
    pub update_time_millis: i64,
    /// Bytes of its pair on the wire, 0 when it cannot be encoded.
    pub size: usize,
}
