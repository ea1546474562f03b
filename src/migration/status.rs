//! What an operator sees.

use std::time::Duration;

use serde::Serialize;

use super::config::Side;
use super::core::MultiCore;
use super::gates::{Gate, Rollback};
use super::message::Phase;
use super::sizes::LargeValue;
use crate::clock::Now;
use crate::kv::StoreKind;
use crate::ring::Desc;

/// The state of a multi store at one moment. Durations are in milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MigrationStatus {
    /// The phase.
    pub phase: Phase,
    /// The store that is read.
    pub primary: StoreKind,
    /// The other one.
    pub secondary: StoreKind,
    /// Whether writes go to both.
    pub mirror_enabled: bool,
    /// Number of flips of this store since its start.
    pub generation: u64,
    /// Keys with something that still has to go to a store.
    pub outbox_len: usize,
    /// Age of the oldest of them; 0 when there is none.
    pub oldest_outbox_age_ms: u64,
    /// How long the last mirrored write waited, or how long the oldest waits now, whichever is more.
    pub mirror_lag_ms: u64,
    /// The backfill.
    pub backfill: BackfillStatus,
    /// Values of the primary that are near or above the limit of the other store, the worst first.
    pub large_values: Vec<LargeValue>,
    /// A flip that was asked for and has not happened.
    pub pending_flip: Option<PendingFlip>,
    /// Operations of users that have not been answered, the held ones included.
    pub in_flight: usize,
    /// The last error of a background task, and whether it still stands is told by `outbox_len`.
    pub last_error_secondary: Option<String>,
    /// Whether operations are held until the first runtime configuration.
    pub waiting_for_runtime: bool,
    /// Writes that reached the other store.
    pub mirrored_total: u64,
    /// Attempts that failed.
    pub mirror_errors_total: u64,
    /// Writes that were not made, because their key was deleted meanwhile.
    pub mirror_dropped_total: u64,
    /// The most keys that ever waited in the outbox at once.
    pub outbox_high_water: usize,
    /// Flips that happened.
    pub flips_total: u64,
    /// How long the last one took, from request to swap.
    pub last_flip_took_ms: Option<u64>,
    /// Whether a flip to the other store is safe on this node, condition by condition.
    pub gates: Vec<Gate>,
    /// Whether the way back is open.
    pub rollback: Rollback,
    /// The last comparison of the stores.
    pub parity: Option<ParitySummary>,
    /// Why the last attempt to compare them failed, if it did.
    pub parity_error: Option<String>,
}

/// The last comparison of the stores, in short.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ParitySummary {
    /// How long ago.
    pub age_ms: u64,
    /// Whether both hold the same.
    pub equal: bool,
    /// Whether the secondary has all that the primary has.
    pub secondary_has_all: bool,
    /// The part of the circle, 0 to 1, whose first owner a flip would change.
    pub ownership_delta: f64,
    /// The part of the circle whose replicas a flip would change.
    pub replica_set_delta: f64,
}

/// How far the backfill is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BackfillStatus {
    /// Whether one is running.
    pub running: bool,
    /// Keys found so far by this run, or by the last one.
    pub keys: usize,
    /// Keys of which the other store has everything.
    pub done: usize,
    /// Keys that the other store does not take, because their values are too large for it.
    pub too_large: usize,
    /// Whether a whole run in the present direction is through, each key read back and compared.
    pub verified: bool,
}

/// A flip that waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PendingFlip {
    /// The store that should become primary.
    pub to: StoreKind,
    /// For how long it waits.
    pub since_ms: u64,
    /// What it waits for.
    pub reason: String,
}

impl MultiCore {
    /// The state now.
    #[must_use]
    pub fn status(&self, now: Now) -> MigrationStatus {
        let view = self.view();
        let durable = &self.durable;
        let oldest = durable.outbox.iter().filter_map(|outbox| outbox.oldest()).map(|at| millis(now, at)).max();
        MigrationStatus {
            phase: view.phase,
            primary: view.primary_kind,
            secondary: self.config.kind(view.primary.other()),
            mirror_enabled: view.mirror_enabled,
            generation: view.generation,
            outbox_len: self.outbox_len(),
            oldest_outbox_age_ms: oldest.unwrap_or(0),
            mirror_lag_ms: u64::try_from(self.mirror_lag(now).as_millis()).unwrap_or(u64::MAX),
            backfill: self.backfill_status(),
            large_values: self.large_values(),
            pending_flip: self.flip.as_ref().map(|flip| PendingFlip {
                to: self.config.kind(flip.to),
                since_ms: millis(now, flip.since),
                reason: flip.reason.clone().unwrap_or_else(|| "carrying over the last known values".to_owned()),
            }),
            in_flight: self.ops.len(),
            last_error_secondary: durable.totals.last_error.clone(),
            waiting_for_runtime: view.waiting_for_runtime,
            mirrored_total: durable.totals.mirrored,
            mirror_errors_total: durable.totals.errors,
            mirror_dropped_total: durable.totals.dropped,
            outbox_high_water: self.story.high_water,
            flips_total: durable.totals.flips,
            last_flip_took_ms: durable
                .totals
                .last_flip_took
                .map(|took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX)),
            gates: self.gates(now),
            rollback: self.rollback(now),
            parity: self.parity.last.as_ref().map(|(at, report)| ParitySummary {
                age_ms: millis(now, *at),
                equal: report.equal,
                secondary_has_all: report.secondary_has_all,
                ownership_delta: report.ownership_delta,
                replica_set_delta: report.replica_set_delta,
            }),
            parity_error: self.parity.error.clone(),
        }
    }

    /// How long the last mirrored write waited, or how long the oldest waits now, whichever is more.
    pub(super) fn mirror_lag(&self, now: Now) -> Duration {
        let oldest = self.durable.outbox.iter().filter_map(|outbox| outbox.oldest()).min();
        let waiting = oldest.map_or(Duration::ZERO, |at| now.mono.saturating_duration_since(at));
        // A lag that is over says something for a while, until the next write would have shown another.
        let memory = self.config.heartbeat_timeout / 4;
        let last = self.durable.totals.last_lag;
        let last = last.filter(|(_, at)| now.mono.saturating_duration_since(*at) <= memory);
        waiting.max(last.map(|(lag, _)| lag).unwrap_or_default())
    }

    /// Live instances of the largest ring that this node was shown.
    pub(super) fn known_instances(&self) -> usize {
        let rings = self.durable.known.values().filter_map(|value| value.downcast_ref::<Desc>());
        rings.map(|ring| ring.live().count()).max().unwrap_or(0)
    }

    /// Keys that wait for a store.
    #[must_use]
    pub fn outbox_len(&self) -> usize {
        [Side::A, Side::B].into_iter().map(|side| self.durable.outbox[side.index()].len()).sum()
    }
}

fn millis(now: Now, since: std::time::Instant) -> u64 {
    u64::try_from(now.mono.saturating_duration_since(since).as_millis()).unwrap_or(u64::MAX)
}
