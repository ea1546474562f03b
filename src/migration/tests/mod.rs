//! Tests of the core: each rule on its own (`rules`, `reading`), and fleets in virtual time (`world`, `fleet`).
#![allow(clippy::unwrap_used)]

mod fleet;
mod map;
mod reading;
mod rules;
mod stores;
mod world;
