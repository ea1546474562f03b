//! Stores that live elsewhere than in the gossip: Consul, etcd, and a process-local one for tests and single nodes.
//!
//! They all keep the contract of [`crate::kv::Store`], so a ring does not notice which one it is kept in.

#[cfg(feature = "consul")]
pub mod consul;
#[cfg(feature = "etcd")]
pub mod etcd;
pub mod memory;
#[cfg(any(feature = "consul", feature = "etcd"))]
mod remote;
