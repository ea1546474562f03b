//! The story of a migration in the log: one line for each step, with fields, under the target `annulus::migration`.

use crate::migration::MigrationEvent;

/// What a line has: everything that any step has. Its value is the name of the step.
macro_rules! step {
    ($level:ident, $step:literal, $event:expr $(, $($fields:tt)+)?) => {{
        tracing::$level!(target: "annulus::migration", step = $step, $($($fields)+,)? "{}", describe($event));
        $step
    }};
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Writes a step to the log: a warning where somebody should look. Returns its name, under which programs know it.
pub(super) fn log(event: &MigrationEvent) -> &'static str {
    match event {
        MigrationEvent::MirrorEnabled => step!(info, "mirror_enabled", event),
        MigrationEvent::MirrorDisabled => step!(info, "mirror_disabled", event),
        MigrationEvent::BackfillStarted => step!(info, "backfill_started", event),
        MigrationEvent::BackfillFinished { keys, joined } => {
            step!(info, "backfill_verified", event, keys = keys, joined = joined)
        }
        MigrationEvent::BackfillIncomplete { store, keys, done, .. } => {
            step!(warn, "backfill_incomplete", event, store = %store, keys = keys, done = done)
        }
        MigrationEvent::KeyNotCopied { key, reason } => {
            step!(warn, "key_not_copied", event, key = ?key, reason = reason)
        }
        MigrationEvent::ValueLarge { store, key, size, limit } => {
            step!(warn, "value_large", event, store = %store, key = ?key, size = size, limit = limit)
        }
        MigrationEvent::ValueTooLarge { store, key, size, limit } => {
            step!(warn, "value_too_large", event, store = %store, key = ?key, size = size, limit = limit)
        }
        MigrationEvent::ValueFits { store, key } => step!(info, "value_fits", event, store = %store, key = ?key),
        MigrationEvent::DeletedKeyLeft { store, key } => {
            step!(info, "deleted_key_left", event, store = %store, key = ?key)
        }
        MigrationEvent::PhaseChanged { from, to } => {
            step!(info, "phase", event, from = from.as_str(), to = to.as_str())
        }
        MigrationEvent::GateChanged { gate, open: true, reason } => {
            step!(info, "gate_opened", event, gate = gate, reason = reason)
        }
        MigrationEvent::GateChanged { gate, open: false, reason } => {
            step!(warn, "gate_closed", event, gate = gate, reason = reason)
        }
        MigrationEvent::OutboxHighWater { keys, oldest } => {
            step!(warn, "outbox_high_water", event, keys = keys, oldest_ms = millis(*oldest))
        }
        MigrationEvent::FlipStarted { from, to } => step!(info, "flip_begun", event, from = %from, to = %to),
        MigrationEvent::FlipDelayed { to, reason } => step!(warn, "flip_held", event, to = %to, reason = reason),
        MigrationEvent::FlipRefused { reason } => step!(warn, "flip_held", event, reason = reason),
        MigrationEvent::FlipCancelled { stays } => step!(info, "flip_cancelled", event, stays = %stays),
        MigrationEvent::Flipped { from, to, took, generation } => {
            step!(info, "flipped", event, from = %from, to = %to, took_ms = millis(*took), generation = generation)
        }
        MigrationEvent::RuntimeRefused { reason } => step!(warn, "runtime_refused", event, reason = reason),
        MigrationEvent::ParityReached { store } => step!(info, "parity_regained", event, store = %store),
        MigrationEvent::ParityLost { store, ownership_delta } => {
            step!(warn, "parity_lost", event, store = %store, ownership_delta = ownership_delta)
        }
        MigrationEvent::OutboxDrained { store } => step!(info, "outbox_drained", event, store = %store),
        MigrationEvent::ShutdownDrained { left: 0 } => step!(info, "shutdown_drained", event, left = 0),
        MigrationEvent::ShutdownDrained { left } => step!(warn, "shutdown_drained", event, left = left),
    }
}

/// A step of a migration, in words.
pub(super) fn describe(event: &MigrationEvent) -> String {
    match event {
        MigrationEvent::MirrorEnabled => "mirroring is on".to_owned(),
        MigrationEvent::MirrorDisabled => "mirroring is off".to_owned(),
        MigrationEvent::BackfillStarted => "bringing the other store up to date".to_owned(),
        MigrationEvent::BackfillFinished { keys, joined } => {
            format!("the other store is up to date: {keys} keys read, {joined} joined, all verified")
        }
        MigrationEvent::BackfillIncomplete { store, keys, done, too_large } => {
            format!("{store} has {done} of {keys} keys and does not take the others: {too_large}")
        }
        MigrationEvent::KeyNotCopied { key, reason } => {
            format!("{key:?} cannot be copied at the moment, and the backfill waits for it: {reason}")
        }
        MigrationEvent::ValueLarge { store, key, size, limit } => {
            format!("the value of {key:?} is near the limit of {store}: {size} bytes of at most {limit}")
        }
        MigrationEvent::ValueTooLarge { store, key, size, limit } => {
            format!("the value of {key:?} is too large for {store}: {size} bytes of at most {limit}")
        }
        MigrationEvent::ValueFits { store, key } => format!("the value of {key:?} fits {store} now"),
        MigrationEvent::DeletedKeyLeft { store, key } => {
            format!("{key:?} was deleted while a write of it waited for {store}: it stays deleted")
        }
        MigrationEvent::PhaseChanged { from, to } => format!("from phase {} to {}", from.as_str(), to.as_str()),
        MigrationEvent::GateChanged { gate, open: true, reason } => format!("gate {gate} is open: {reason}"),
        MigrationEvent::GateChanged { gate, open: false, reason } => format!("gate {gate} is closed: {reason}"),
        MigrationEvent::OutboxHighWater { keys, oldest } => {
            format!("{keys} keys wait for the other store, the oldest for {} s", oldest.as_secs())
        }
        MigrationEvent::FlipStarted { from, to } => format!("flip from {from} to {to} begins"),
        MigrationEvent::FlipDelayed { to, reason } => format!("flip to {to} waits: {reason}"),
        MigrationEvent::FlipRefused { reason } => format!("flip refused: {reason}"),
        MigrationEvent::FlipCancelled { stays } => format!("flip called off, {stays} stays primary"),
        MigrationEvent::Flipped { from, to, took, .. } => format!("flipped from {from} to {to} in {took:?}"),
        MigrationEvent::RuntimeRefused { reason } => format!("runtime config refused: {reason}"),
        MigrationEvent::ParityReached { store } => format!("{store} has all that this node was shown"),
        MigrationEvent::ParityLost { store, ownership_delta } => {
            format!("{store} lacks something: a flip would move {:.2} % of the ring", 100.0 * ownership_delta)
        }
        MigrationEvent::OutboxDrained { store } => format!("{store} has everything"),
        MigrationEvent::ShutdownDrained { left } => format!("outbox drained for shutdown, {left} keys left"),
    }
}
