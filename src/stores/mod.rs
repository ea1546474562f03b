//! Stores that live elsewhere than in the gossip: Consul, and a process-local one for tests and single nodes.
//!
//! They all keep the contract of [`crate::kv::Store`], so a ring does not notice which one it is kept in.

#[cfg(feature = "consul")]
pub mod consul;
pub mod memory;
