//! The running system: one file an actor, and what they share.
//!
//! Every actor is a thin shell: a mailbox, timers and I/O around one pure core, or around one snapshot that it
//! publishes. What an actor must not lose when it dies lives in its `…Parts`, which its successor is built from.
//!
//! # Layout
//!
//! * [`guard`]: survives panics and stops, restarts in place; [`supervisor`]: owns the tree.
//! * `transport`, `framing`, `membership`, `gossip`: packets, members, and the store that they carry.
//! * `mirror`: the multi store; `multi`: how its users see it.
//! * `ring_keeper`, `heartbeat`: a ring as this node sees it, and this node's place in it; [`shadow`]: the ring as the other store
//!   of a migration has it.
//! * `config_watcher`: the runtime configuration.
//! * `system`: builds all of it; `joining`, `seeds`: coming into the cluster; [`keys`], [`meta`]: keys, labels and metadata of a running
//!   node; `timer`: a core's deadlines; [`events`], `message`, `streams`, `watch_hub`: what they have in common.

pub mod config_watcher;
pub mod events;
pub(crate) mod framing;
pub(crate) mod gossip;
pub mod guard;
pub mod heartbeat;
pub(crate) mod joining;
pub mod keys;
pub mod membership;
pub mod message;
pub mod meta;
pub(crate) mod mirror;
mod mirror_join;
mod mirror_log;
pub(crate) mod multi;
pub(crate) mod ring_keeper;
pub(crate) mod seeds;
pub mod shadow;
#[cfg(feature = "dns-srv")]
pub(crate) mod srv;
pub(crate) mod streams;
pub mod supervisor;
pub(crate) mod system;
pub(crate) mod timer;
pub(crate) mod tokens_file;
pub(crate) mod transport;
pub(crate) mod watch_hub;
