//! What goes into the core and what comes out of it. All of it is plain data.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::config::{RuntimeMulti, Side};
use super::parity::ParityReport;
use crate::kv::{StoreError, StoreKind, Value};

/// Names an operation of a user. Chosen by the actor; never used twice, also not after [`super::MultiCore::resume`]:
/// intents of an earlier life may still be under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OpId(pub u64);

/// Names a background task. Chosen by the core; never used twice, also not after [`super::MultiCore::resume`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId(pub u64);

/// What a user wants. The callback of a compare-and-swap stays with the actor.
#[derive(Clone, Debug)]
pub enum OpKind {
    /// Compare-and-swap.
    Cas,
    /// Join this value.
    Join(Value),
    /// Delete the key.
    Delete,
    /// Read the key.
    Get,
    /// List keys.
    List,
}

/// What an operation did on the store that it ran on.
#[derive(Clone, Debug)]
pub enum OpEffect {
    /// The store acknowledged a write of this δ.
    Written(Value),
    /// The store was left as it was: success.
    Unchanged,
    /// The store acknowledged that the key is gone.
    Deleted,
    /// It was a read. What was read goes in separately, as [`Input::Delivered`].
    Read,
}

/// What a task brought back.
#[derive(Clone, Debug)]
pub enum TaskResult {
    /// A join or a delete was acknowledged.
    Done,
    /// The value of the key, or `None` when the store does not have it.
    Value(Option<Value>),
    /// The keys under the prefix.
    Keys(Vec<String>),
    /// Whether the key is there.
    Exists(bool),
}

/// Something happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// Time passed; due at [`super::MultiCore::next_deadline`].
    Tick,
    /// A runtime configuration arrived (the first one, a change, or the same again).
    Runtime(RuntimeMulti),
    /// A runtime configuration was unreadable or named a store that does not exist. Nothing changes, and a node that
    /// waits for its first one goes on waiting: this one did not say where the primary is.
    RuntimeInvalid(String),
    /// A user's operation.
    Op {
        /// Its name.
        id: OpId,
        /// The key, or for a list the prefix.
        key: Arc<str>,
        /// What to do.
        kind: OpKind,
    },
    /// The caller went away and the actor dropped the operation's future. A write may have happened.
    OpDropped {
        /// Which operation.
        id: OpId,
    },
    /// The callback of a running compare-and-swap produced δ and the store has not answered yet. Sent again for every
    /// further attempt of the same run; the last one counts. Recorded, so that nothing is lost if the actor or the
    /// store dies now.
    Intent {
        /// Which operation.
        id: OpId,
        /// What it is about to change, against the value that the callback was given.
        delta: Value,
    },
    /// A run that [`Output::RunOp`] asked for has ended.
    OpDone {
        /// Which operation.
        id: OpId,
        /// Where it ran.
        side: Side,
        /// How it ended there.
        result: Result<OpEffect, StoreError>,
    },
    /// The answer to [`Output::RunOpOnLast`]: the δ of the callback, or `None` when it kept or aborted.
    OpOnLastDone {
        /// Which operation.
        id: OpId,
        /// What it would have changed.
        delta: Option<Value>,
    },
    /// A task ended. An attempt that exceeded the mirror timeout ends as [`StoreError::Timeout`].
    TaskDone {
        /// Which task.
        id: TaskId,
        /// How.
        result: Result<TaskResult, StoreError>,
    },
    /// A watch or a read hands this to a user. `None`: it told the user that the key was deleted.
    Delivered {
        /// The key.
        key: Arc<str>,
        /// The side that it was read from.
        side: Side,
        /// The value.
        value: Option<Value>,
    },
    /// Somebody wants the stores compared thoroughly. Ends in [`Output::Parity`].
    ParityAsked {
        /// Chosen by the actor.
        id: u64,
    },
    /// The keys that are ours are under these prefixes now: a codec was registered.
    Prefixes(Vec<String>),
    /// How many members of the gossip cluster are alive, this node included.
    Members(usize),
    /// Send what waits in the outbox, for at most this long.
    Shutdown {
        /// The limit.
        drain: Duration,
    },
}

/// How an operation ends for its caller.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// Success, with the result of the last run.
    Done,
    /// Failure.
    Failed(StoreError),
}

/// Work in the background.
#[derive(Clone, Debug)]
pub enum Task {
    /// Join `delta` into the key. Where it is not there, it is created only if the other side has it, asked now;
    /// when that does not have it either, the task ends as [`StoreError::Absent`] and nothing is written, and likewise
    /// when the other side cannot be asked and this one remembers that the key was deleted (then as the error of that
    /// question).
    Join {
        /// The key.
        key: Arc<str>,
        /// What to join.
        delta: Value,
    },
    /// Delete the key.
    Delete {
        /// The key.
        key: Arc<str>,
    },
    /// Read the key, as a write would find it: not from a server that may be behind, nor before a node that gossips has
    /// joined.
    Get {
        /// The key.
        key: Arc<str>,
    },
    /// Find out whether the key is there, as a write would: a server that is behind must not answer this.
    Exists {
        /// The key.
        key: Arc<str>,
    },
    /// List the keys under a prefix, asked as [`Task::Get`] asks.
    List {
        /// The prefix.
        prefix: String,
    },
}

/// Something for the actor to do, in this order.
#[derive(Clone, Debug)]
pub enum Output {
    /// Run the operation on this side. When the operation runs elsewhere already, that run is dropped and not reported.
    RunOp {
        /// Which operation.
        id: OpId,
        /// Where.
        side: Side,
    },
    /// The primary could not be read: run the callback once on the last value known, so that heartbeats go on into the
    /// other store. Touches no store. Answer with exactly one [`Input::OpOnLastDone`].
    RunOpOnLast {
        /// Which operation.
        id: OpId,
        /// What to give to the callback.
        base: Option<Value>,
    },
    /// Answer the caller.
    Reply {
        /// Which operation.
        id: OpId,
        /// With what.
        verdict: Verdict,
    },
    /// Work in the background on one side, each attempt limited by the mirror timeout.
    Task {
        /// Its name.
        id: TaskId,
        /// Where.
        side: Side,
        /// What.
        task: Task,
    },
    /// Publish this; when the generation grew, re-home every watch.
    View(View),
    /// The stores were compared for those who asked, or could not be read.
    Parity {
        /// Who asked.
        ids: Vec<u64>,
        /// How the stores compare, or why that cannot be told.
        result: Result<Arc<ParityReport>, String>,
    },
    /// For logs and subscribers.
    Event(MigrationEvent),
    /// The shutdown is through; nothing follows.
    Drained,
}

/// Where a node is in a migration that the runtime configuration drives. A guided migration will add its own phases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Phase {
    /// Both stores are there, only the static primary is used.
    Wired,
    /// Both are written, the static primary is read.
    Dual,
    /// A flip was asked for and the carry-over is not through: the old primary is still read and written.
    Flipping,
    /// The static secondary is primary.
    Flipped,
}

impl Phase {
    /// All of them, in the order of a move.
    pub const ALL: &[Self] = &[Self::Wired, Self::Dual, Self::Flipping, Self::Flipped];

    /// The name in status pages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Wired => "wired",
            Self::Dual => "dual",
            Self::Flipping => "flipping",
            Self::Flipped => "flipped",
        }
    }
}

/// What readers and watches act on: an immutable snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct View {
    /// The side to read from.
    pub primary: Side,
    /// Its kind.
    pub primary_kind: StoreKind,
    /// Whether writes go to the other side as well.
    pub mirror_enabled: bool,
    /// Grows by one with every flip.
    pub generation: u64,
    /// The phase.
    pub phase: Phase,
    /// Whether operations are held until the first runtime configuration.
    pub waiting_for_runtime: bool,
}

/// What happened in a migration, for logs and subscribers.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum MigrationEvent {
    /// Writes go to both stores from now on.
    MirrorEnabled,
    /// Writes go to the primary only from now on; what waits in the outbox is still sent.
    MirrorDisabled,
    /// The copying of all keys from the primary began.
    BackfillStarted,
    /// Every key of the primary is in the other store.
    BackfillFinished {
        /// Keys looked at.
        keys: usize,
        /// Keys of which the other store lacked something.
        joined: usize,
    },
    /// The run is through and some keys were left out, because the other store does not take them.
    BackfillIncomplete {
        /// The other store.
        store: StoreKind,
        /// Keys looked at.
        keys: usize,
        /// Keys of which the other store has everything.
        done: usize,
        /// The ones left out, with their sizes.
        too_large: String,
    },
    /// The stores answer, and a key cannot be read, or the other store does not keep what it takes of it. It is tried
    /// again, later and later; the run does not end before, and the gate `backfill` stays closed.
    KeyNotCopied {
        /// The key.
        key: String,
        /// What keeps it.
        reason: String,
    },
    /// A value of the primary has more than 80 % of what the other store takes.
    ValueLarge {
        /// The other store.
        store: StoreKind,
        /// The key.
        key: String,
        /// Bytes it has there.
        size: usize,
        /// The most it may have.
        limit: usize,
    },
    /// A value of the primary is larger than the other store takes.
    ValueTooLarge {
        /// The other store.
        store: StoreKind,
        /// The key.
        key: String,
        /// Bytes it has there.
        size: usize,
        /// The most it may have.
        limit: usize,
    },
    /// A value that was too large is so no more.
    ValueFits {
        /// The other store.
        store: StoreKind,
        /// The key.
        key: String,
    },
    /// What had waited for a store was not written: its key was deleted meanwhile.
    DeletedKeyLeft {
        /// The store that it waited for.
        store: StoreKind,
        /// The key.
        key: String,
    },
    /// The phase of this node changed.
    PhaseChanged {
        /// Before.
        from: Phase,
        /// Now.
        to: Phase,
    },
    /// A condition for a flip is fulfilled now, or is so no more. Told while the mirror is on or a flip waits.
    GateChanged {
        /// Which one.
        gate: &'static str,
        /// Whether it is fulfilled.
        open: bool,
        /// What is so, in words.
        reason: String,
    },
    /// More keys wait for a store than ever before; told each time that the number has doubled.
    OutboxHighWater {
        /// How many.
        keys: usize,
        /// For how long the oldest waits.
        oldest: Duration,
    },
    /// The node begins to carry over what it knows.
    FlipStarted {
        /// From this store.
        from: StoreKind,
        /// To this one.
        to: StoreKind,
    },
    /// The new primary cannot take the carry-over at the moment; the flip stays pending and is retried.
    FlipDelayed {
        /// The store that should become primary.
        to: StoreKind,
        /// What it answered.
        reason: String,
    },
    /// The gate is closed; the flip stays pending until it opens.
    FlipRefused {
        /// Why.
        reason: String,
    },
    /// A pending flip was called off by a newer runtime configuration.
    FlipCancelled {
        /// The store that stays primary.
        stays: StoreKind,
    },
    /// Readers and writers use the new primary.
    Flipped {
        /// The old primary.
        from: StoreKind,
        /// The new one.
        to: StoreKind,
        /// From the request to the swap.
        took: Duration,
        /// How many flips of this node that makes.
        generation: u64,
    },
    /// A runtime configuration was refused as a whole; nothing changed.
    RuntimeRefused {
        /// Why.
        reason: String,
    },
    /// The other store has all that this node was shown by the primary.
    ParityReached {
        /// The other store.
        store: StoreKind,
    },
    /// The other store lacks something.
    ParityLost {
        /// The other store.
        store: StoreKind,
        /// The part of the circle, 0 to 1, whose owner a flip would change now.
        ownership_delta: f64,
    },
    /// A store answers again, and everything that had waited for it is sent.
    OutboxDrained {
        /// Which store.
        store: StoreKind,
    },
    /// The shutdown ended.
    ShutdownDrained {
        /// Keys whose δ did not reach the other store.
        left: usize,
    },
}
