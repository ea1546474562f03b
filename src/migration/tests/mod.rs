//! Tests of the core: each rule on its own (`rules`, `reading`, `parity`), and fleets in virtual time (`world`,
//! `fleet`, and `scenarios`, the list of what can go wrong).
#![allow(clippy::unwrap_used)]

mod backfill;
mod deletions;
mod fleet;
mod map;
mod parity;
mod reading;
mod rules;
mod scenarios;
mod sizes;
mod stores;
mod world;
