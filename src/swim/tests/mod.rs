//! The core against a virtual network, against single messages, and against random bytes.
#![allow(clippy::unwrap_used)]

mod broadcasts;
mod cluster;
mod encryption;
mod foreign_cluster;
mod harness;
mod labels;
mod limits;
mod probes;
mod properties;
mod rules;
