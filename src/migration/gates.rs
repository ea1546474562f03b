//! Whether this node may leave its primary, and whether it could come back.

use std::time::Duration;

use serde::Serialize;

use super::config::Side;
use super::core::MultiCore;
use crate::clock::Now;
use crate::kv::StoreKind;

/// A comparison older than this many periods says nothing any more.
const STALE_PERIODS: u32 = 4;

/// How exactly it is known since when the way back is not open.
const NOTED_EVERY: Duration = Duration::from_millis(500);

/// One condition for a flip to the other store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Gate {
    /// Its name: `mirror`, `size`, `backfill`, `outbox`, `lag`, `parity`, `members`.
    pub name: &'static str,
    /// Whether it is fulfilled.
    pub open: bool,
    /// What is so, in words.
    pub reason: String,
    /// What will close it when it goes on like this, or what an operator should know although it is open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
}

/// Whether the store that was primary before can become primary again without a loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "state")]
pub enum Rollback {
    /// It has everything.
    Safe,
    /// It lacks what was written for this long. Going back joins what this node knows; what only others know comes with
    /// their own flip.
    Stale {
        /// Since it last had everything, in milliseconds.
        age_ms: u64,
    },
    /// It is being given up: `migration.teardown` is set.
    Impossible,
}

impl std::fmt::Display for Rollback {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Safe => f.write_str("safe"),
            Self::Stale { age_ms } => write!(f, "stale ({} s)", age_ms / 1000),
            Self::Impossible => f.write_str("impossible"),
        }
    }
}

impl MultiCore {
    /// The conditions for a flip to the store that is not primary, all of them, the fulfilled ones included.
    #[must_use]
    pub fn gates(&self, now: Now) -> Vec<Gate> {
        let other = self.durable.primary.other();
        let store = self.config.kind(other);
        let mut gates = vec![
            gate("mirror", if self.durable.mirror { Ok("on".to_owned()) } else { Err("mirroring is off".to_owned()) }),
            gate("backfill", self.backfill_gate(store)),
            gate("outbox", self.outbox_gate(other, now)),
            gate("lag", self.lag_gate(now)),
            Gate { warning: self.strangers(store), ..gate("parity", self.parity_gate(store, now)) },
        ];
        if let Some((state, warning)) = self.size_gate() {
            gates.insert(1, Gate { warning, ..gate("size", state) });
        }
        if [self.config.primary, self.config.secondary].contains(&StoreKind::Memberlist) {
            gates.push(gate("members", self.members_gate()));
        }
        gates
    }

    /// The conditions that are not fulfilled.
    pub(super) fn closed_gates(&self, now: Now) -> Vec<Gate> {
        self.gates(now).into_iter().filter(|gate| !gate.open).collect()
    }

    fn backfill_gate(&self, store: StoreKind) -> Result<String, String> {
        let backfill = self.backfill_status();
        match (backfill.verified, backfill.running) {
            (true, _) => Ok(format!("{} keys verified in {store}", backfill.keys)),
            (false, true) => {
                let so_far = format!("the backfill of {store} runs: {} of {} keys", backfill.done, backfill.keys);
                Err(match self.backfill_troubles() {
                    Some(troubles) => format!("{so_far}; it waits for {troubles}"),
                    None => so_far,
                })
            }
            (false, false) if backfill.too_large > 0 => {
                Err(format!("the backfill is not verified: {} keys are too large for {store}", backfill.too_large))
            }
            (false, false) => Err("the backfill is not verified".to_owned()),
        }
    }

    fn outbox_gate(&self, other: Side, now: Now) -> Result<String, String> {
        // A write that is on its way this very moment is no reason to wait.
        let outbox = &self.durable.outbox[other.index()];
        let age = outbox.oldest().map_or(Duration::ZERO, |oldest| now.mono.saturating_duration_since(oldest));
        let store = self.config.kind(other);
        if age <= self.config.patience() {
            Ok("empty".to_owned())
        } else {
            Err(format!("{} keys wait for {store}, the oldest for {} s", outbox.len(), age.as_secs()))
        }
    }

    fn lag_gate(&self, now: Now) -> Result<String, String> {
        let (lag, limit) = (self.mirror_lag(now), self.config.heartbeat_timeout / 4);
        let text = format!("{} ms, at most {} ms", lag.as_millis(), limit.as_millis());
        if lag < limit { Ok(text) } else { Err(format!("the mirror lags by {text}")) }
    }

    fn parity_gate(&self, store: StoreKind, now: Now) -> Result<String, String> {
        let failed = |what: &str| match &self.parity.error {
            Some(error) => Err(format!("{what}: {error}")),
            None => Err(what.to_owned()),
        };
        let Some((at, report)) = &self.parity.last else { return failed("the stores were not compared yet") };
        if now.mono.saturating_duration_since(*at) > self.parity_period() * STALE_PERIODS {
            return failed("the stores were not compared lately");
        }
        if report.secondary_has_all {
            return Ok(format!(
                "{store} has everything, {:.2} % of the ring would move",
                100.0 * report.ownership_delta
            ));
        }
        let rings: usize = report.rings.values().map(|ring| ring.only_primary.count + ring.differing.count).sum();
        let (keys, values) = (report.only_primary.count, report.values.len());
        let moved = 100.0 * report.ownership_delta;
        Err(format!(
            "{store} lacks {keys} keys, {rings} instances, something of {values} other values: {moved:.2} % of the ring \
             would move"
        ))
    }

    /// What the other store has and this one has not does not close the gate: an instance that has just joined by way of
    /// gossip is no reason to wait. But a flip makes owners of those instances, and they may be another cluster's.
    fn strangers(&self, store: StoreKind) -> Option<String> {
        let (_, report) = self.parity.last.as_ref()?;
        let more: usize = report.rings.values().map(|ring| ring.only_secondary.count).sum();
        (more > 0 && report.secondary_has_all).then(|| {
            let moved = 100.0 * report.ownership_delta;
            format!(
                "{store} has {more} instances that {} has not: a flip would give them {moved:.2} % of the ring. Are they of \
                 another cluster?",
                report.primary
            )
        })
    }

    fn members_gate(&self) -> Result<String, String> {
        let Some(members) = self.members else { return Err("the members are not known yet".to_owned()) };
        // A ring of a prefix that many nodes share has no more instances than there are nodes.
        let instances = self.known_instances();
        let text = format!("{members} members for {instances} instances");
        if members * 100 >= instances * 95 { Ok(text) } else { Err(format!("only {text}")) }
    }

    /// The way back to the store that was primary before.
    #[must_use]
    pub fn rollback(&self, now: Now) -> Rollback {
        if self.config.teardown {
            return Rollback::Impossible;
        }
        if self.durable.primary == Side::A || self.returnable(now) {
            return Rollback::Safe;
        }
        let since = self.durable.safe_at.unwrap_or(now.mono);
        let age = now.mono.saturating_duration_since(since).as_millis();
        Rollback::Stale { age_ms: u64::try_from(age).unwrap_or(u64::MAX) }
    }

    /// Whether the other store has everything: the gates but for what only a flip to gossip needs.
    fn returnable(&self, now: Now) -> bool {
        self.gates(now).iter().filter(|gate| gate.name != "members").all(|gate| gate.open)
    }

    /// Notes when the way back is open. Looks once in a while: it is told in seconds.
    pub(super) fn note_rollback(&mut self, now: Now) {
        let looked = self.durable.safe_at.is_some_and(|at| now.mono.saturating_duration_since(at) < NOTED_EVERY);
        if self.durable.primary == Side::B && !looked && self.returnable(now) {
            self.durable.safe_at = Some(now.mono);
        }
    }
}

fn gate(name: &'static str, state: Result<String, String>) -> Gate {
    match state {
        Ok(reason) => Gate { name, open: true, reason, warning: None },
        Err(reason) => Gate { name, open: false, reason, warning: None },
    }
}
