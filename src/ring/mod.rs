//! The hash ring: its value, how replicas of it merge, who owns which key, and how an instance lives in it.
//!
//! # Layout
//! - [`desc`]: the ring value, a map of instances with their tokens, states and heartbeats; [`codec`]: its bytes.
//! - [`lattice`]: how two copies join, free of order; [`compat`]: how dskit joins them, bit for bit.
//!   [`rules`]: which of the two a ring uses; [`admission`]: which entries of others it takes over.
//! - [`tokens`]: hashing keys, drawing tokens, and who owns a token that two instances claim.
//! - [`snapshot`]: an immutable ring made for look-ups; `topology`: the part of it that heartbeats leave alone;
//!   [`replication`]: the answers; [`operation`]: what a look-up is for.
//! - [`freshness`]: why a lost store does not make instances look dead.
//! - [`lifecycle`]: an instance's way from PENDING to LEFT.
//!
//! ```
//! use annulus::ring::{Desc, Instance, Operation, RingOptions, Snapshot, key_hash};
//! use std::{sync::Arc, time::Duration};
//!
//! let mut desc = Desc::default();
//! desc.instances.insert("a".into(), Instance { timestamp: 100, tokens: [7, 9].into(), ..Instance::default() });
//! let options = RingOptions { replication_factor: 1, ..RingOptions::default() };
//! let ring = Arc::new(Snapshot::build(&desc, &options, Duration::from_secs(110)));
//! let set = ring.get(key_hash("user-7"), Operation::Write)?;
//! assert_eq!(set.ids().collect::<Vec<_>>(), ["a"]);
//! # Ok::<(), annulus::ring::RingError>(())
//! ```

pub mod admission;
pub mod codec;
pub mod compat;
pub mod desc;
pub mod freshness;
pub mod lattice;
pub mod lifecycle;
pub mod operation;
pub mod parity;
pub mod replication;
pub mod rules;
pub mod snapshot;
pub mod tokens;
mod topology;

pub use codec::{RingCodec, UnknownFields};
pub use compat::merge_dskit;
pub use desc::{Desc, Instance, InstanceState, digest};
pub use freshness::Freshness;
pub use lifecycle::{Edit, Input, Lifecycle, LifecycleConfig, LifecycleDurable, Output};
pub use operation::Operation;
pub use parity::RingParity;
pub use replication::{ReplicationSet, RingError, Strategy};
pub use rules::{MergeStrategy, RingRules};
pub use snapshot::{RingInstance, RingOptions, Snapshot};
pub use tokens::{key_hash, owner_map};
