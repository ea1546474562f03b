//! The multi store: a fleet moves its ring from one store to another while every node keeps serving.
//!
//! Two stores hold replicas of the same mergeable values. The multi store reads one of them, the primary, and writes what
//! each operation *changed* (δ) into the other one too, by joining: never by overwriting, and never removing what merely
//! is not there. So any mix of nodes, some reading the old store and some the new one, converges.
//!
//! This is the part that decides; it touches no store. An actor feeds it [`Input`]s and carries out [`Output`]s:
//!
//! ```text
//! Op ──► RunOp(primary) ──► Intent(δ) ──► OpDone(Written δ) ──► Reply, and at the same time
//!                                                               outbox[other] ⊔= δ ──► Task Join(δ), for ever
//! Runtime(primary: other) ──► Task Join(all that is known) into it ──► View(generation + 1)
//! ```
//!
//! # Layout
//! - `core`: [`MultiCore`]: inputs, outputs, shutdown · `ops`: operations of users · `flip`: changing the primary
//! - `outbox`: what still has to go to a store, one entry a key · `backfill`: copying what nobody writes ·
//!   `lacks`: what of it is missing
//! - `parity`: comparing the stores · `gates`: whether a flip is safe, and the way back
//! - `config`, `message`, `status`: the plain data · `durable`: what outlives the actor
//! - `sizes`: whether everything fits the other store · `story`: gates and outbox, told when they change
//! - `doubts`: deletions that may have happened
//! - `read`: [`ReadJoin`], which keeps a watch from going back in time
//!
//! # What is promised
//! - Every acknowledged δ is in the primary, in the other store or in the outbox at any time; with mirroring on it ends
//!   up in both stores.
//! - What the other store loses again (it was set back, or somebody overwrote it) is copied from the primary again: of the
//!   keys that this node has read, watched or written, by itself; of all keys after a thorough comparison.
//! - No reader of this node sees an older value after a flip than before it.
//! - The other store, slow or dead, never delays or fails a write; a dead primary does not keep writes from the other
//!   store while mirroring is on (the caller gets the primary's error, and should expect the write to appear).
//! - No operation hangs because of a flip.

mod backfill;
mod config;
mod core;
mod doubts;
mod durable;
mod flip;
mod gates;
mod lacks;
mod message;
mod ops;
mod outbox;
pub mod parity;
mod read;
mod sizes;
mod status;
mod story;
#[cfg(test)]
mod tests;

pub use self::config::{MultiConfig, RuntimeMulti, Side};
pub use self::core::MultiCore;
pub use self::durable::Durable;
pub use self::gates::{Gate, Rollback};
pub use self::message::{
    Input, MigrationEvent, OpEffect, OpId, OpKind, Output, Phase, Task, TaskId, TaskResult, Verdict, View,
};
pub use self::parity::ParityReport;
pub use self::read::{Read, ReadJoin};
pub use self::sizes::{LargeValue, Sizer};
pub use self::status::{BackfillStatus, MigrationStatus, ParitySummary, PendingFlip};
