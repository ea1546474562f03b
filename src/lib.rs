//! # Annulus
//!
//! Embed this crate in a server, and its instances become a **hash ring**: they share out a key space by tokens,
//! heartbeat, notice the dead, and any of them answers "who owns this key" in nanoseconds. The ring lives in **gossip**
//! between the instances (SWIM with Lifeguard, and a mergeable key-value store on top), in Consul, or in both at once
//! while it **moves from one to the other** without a restart and without losing an instance.
//!
//! # Start here
//!
//! * [`Node`] is what a server starts and holds; [`RingHandle::get`] is the lookup.
//! * [`Config`] is what can be set, from a file or in code.
//! * `cargo run --release --example multi_node` shows five nodes moving their ring, live.
//!
//! # Layout
//!
//! | room | what is in it |
//! |---|---|
//! | [`node`] | the builder and the handle that an embedding server holds |
//! | [`config`] | what can be set: static, and runtime (reloaded while running) |
//! | [`ring`] | the ring value and its merge, tokens, lookup, replication, an instance's life |
//! | [`kv`] | the contract of a store, mergeable values, and the gossip store's core |
//! | [`stores`] | stores that live elsewhere: Consul, etcd, in-memory |
//! | [`migration`] | the multi store's core: mirroring by join, backfill, flip |
//! | [`swim`] | membership: probes, suspicion, gossip, push/pull |
//! | [`wire`] | bytes to messages and back, as memberlist writes them |
//! | [`transport`] | sockets |
//! | [`actors`] | the running system: one actor around each core, and their supervisor |
//! | `http` | JSON API and metrics (feature `http`) |
//! | [`clock`] | the only way a core learns the time |
//!
//! `wire`, `swim`, `kv`, `ring` and `migration` are pure state machines: no sockets, no clocks, no tasks. See
//! `docs/architecture.md`.
//!
//! # Features
//!
//! | feature | default | what |
//! |---|---|---|
//! | `consul` | yes | the Consul store |
//! | `consul-tls` | no | TLS to Consul |
//! | `etcd` | yes, with `cli` | the etcd store |
//! | `etcd-tls` | no | TLS to etcd |
//! | `dns-srv` | no | `dnssrv+name` and `dnssrvnoa+name` in `join_members` |
//! | `http` | yes | the JSON API, metrics, and the server that the agent runs |
//! | `cli` | yes | the `annulus` binary |
//!
//! With `default-features = false` a library user pays for none of them.

#![forbid(unsafe_code)]

pub mod actors;
pub mod clock;
pub mod config;
#[cfg(feature = "http")]
pub mod http;
pub mod kv;
pub mod migration;
pub mod node;
pub mod ring;
pub mod stores;
pub mod swim;
pub mod transport;
pub mod wire;

pub use actors::events::NodeEvent;
pub use actors::message::Fault;
pub use actors::supervisor::Exit;
pub use actors::system::{JSON_PREFIX, LeaveReport, StartError};
pub use config::Config;
pub use node::{Node, NodeBuilder, RingHandle};
pub use ring::{Operation, ReplicationSet, RingError, key_hash};

/// The examples in the README, compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
