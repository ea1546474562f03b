//! Which entries of other nodes a ring takes over: bounded clock skew, no entry without a date, nobody who was removed.
//!
//! A ring is ordered by the clocks of its instances, so a wrong clock does lasting harm: an entry from next year counts
//! as healthy for a year, and a removed instance that somebody still remembers comes back. Four rules keep that out,
//! where values of others come in (see [`crate::kv::admission`]); what this node writes itself, and what it mirrors from
//! another store, is not touched.
//!
//! - **No date.** Nobody writes a heartbeat at or before 1970. Such entries are damage, and no clock can outdate them.
//! - **Future.** A heartbeat more than [`RingRules::max_clock_skew`] ahead is refused. So is a tombstone, except one that
//!   removes an entry with such a date: a removal must win, whatever the clocks say.
//! - **Removed.** An instance whose tombstone this node has kept for its time and forgotten comes back with a newer entry
//!   only. An older one is the memory of a node that was cut off, and that node is told of the removal again. So a
//!   partition may outlast the tombstones.
//! - **Stale.** Where long-dead instances are forgotten by time ([`RingRules::stale_after`]), an unknown instance
//!   that is dead for longer is not added: everybody has forgotten it. In other rings the dead keep their tokens until
//!   somebody removes them, so there a node that has just started must add them, however old.
//!
//! One clock judges here, and it may be the one that is wrong. If most instances look as if they were in the future, or
//! long dead, it is: then both rules about age let everything pass, and it is reported instead.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::desc::{Desc, Instance};
use super::rules::RingRules;
use crate::clock::Now;
use crate::kv::admission::Refused;

/// What is left of a ring that was not admitted as it came.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Admission {
    /// The entries to join.
    pub admitted: Desc,
    /// How many were not admitted, or only just, and why.
    pub refused: Refused,
    /// The tombstones of those that were removed here, for whoever does not know.
    pub removed: Desc,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Reason {
    Undated,
    Future,
    Removed,
    Stale,
}

/// Fewer entries than this do not show whose clock is wrong.
const QUORUM: usize = 3;

/// Judges the entries that another node sent, given what is `known` here and which tombstones were `forgotten`. `None`:
/// there is nothing against any of them.
#[must_use]
pub fn admit(
    incoming: &Desc,
    known: Option<&Desc>,
    forgotten: Option<&Desc>,
    rules: &RingRules,
    now: Now,
) -> Option<Admission> {
    let clock = now.unix_secs();
    let skew = i64::try_from(rules.max_clock_skew.as_secs()).unwrap_or(i64::MAX);
    let latest = clock.saturating_add(skew);
    let oldest = rules.stale_after.map(|age| clock.saturating_sub(i64::try_from(age.as_secs()).unwrap_or(i64::MAX)));

    let judge = |id: &Arc<str>, entry: &Instance| -> Option<Reason> {
        let ours = known.and_then(|known| known.instances.get(id));
        if entry.timestamp <= 0 {
            return Some(Reason::Undated);
        }
        if entry.timestamp > latest {
            let removes = entry.state.is_left()
                && ours.is_some_and(|ours| {
                    !ours.state.is_left() && entry.timestamp <= ours.timestamp.saturating_add(skew)
                });
            return (!removes).then_some(Reason::Future);
        }
        if ours.is_some() || entry.state.is_left() {
            return None;
        }
        let grave = forgotten.and_then(|forgotten| forgotten.instances.get(id));
        if grave.is_some_and(|grave| grave.version_cmp(entry).is_gt()) {
            return Some(Reason::Removed);
        }
        oldest.is_some_and(|oldest| entry.timestamp < oldest).then_some(Reason::Stale)
    };
    let mut against: BTreeMap<Arc<str>, Reason> = BTreeMap::new();
    for (id, entry) in &incoming.instances {
        if let Some(reason) = judge(id, entry) {
            against.insert(id.clone(), reason);
        }
    }
    if against.is_empty() {
        return None;
    }

    let mut out = Admission::default();
    let mostly = |reason: Reason, odd: &dyn Fn(i64) -> bool| {
        against.values().any(|found| *found == reason) && most_are(incoming, known, odd)
    };
    let all_ahead = mostly(Reason::Future, &|timestamp| timestamp > latest);
    let all_stale = mostly(Reason::Stale, &|timestamp| oldest.is_some_and(|oldest| timestamp < oldest));
    against.retain(|_, reason| {
        let excused = (*reason == Reason::Future && all_ahead) || (*reason == Reason::Stale && all_stale);
        out.refused.own_clock += u64::from(excused);
        match reason {
            _ if excused => {}
            Reason::Undated => out.refused.undated += 1,
            Reason::Future => out.refused.future += 1,
            Reason::Removed => out.refused.removed += 1,
            Reason::Stale => out.refused.stale += 1,
        }
        !excused
    });
    out.admitted = incoming.clone();
    out.admitted.instances.retain(|id, _| !against.contains_key(id));
    for (id, _) in against.iter().filter(|(_, reason)| **reason == Reason::Removed) {
        if let Some(grave) = forgotten.and_then(|forgotten| forgotten.instances.get(id)) {
            out.removed.instances.insert(id.clone(), grave.clone());
        }
    }
    Some(out)
}

/// Whether the dates of most instances, those here and those that came, are odd.
fn most_are(incoming: &Desc, known: Option<&Desc>, odd: &dyn Fn(i64) -> bool) -> bool {
    let here = known.into_iter().flat_map(Desc::live).filter(|(id, _)| !incoming.instances.contains_key(*id));
    let (mut all, mut odd_ones) = (0_usize, 0_usize);
    for (_, entry) in incoming.live().chain(here).filter(|(_, entry)| entry.timestamp > 0) {
        all += 1;
        odd_ones += usize::from(odd(entry.timestamp));
    }
    all >= QUORUM && odd_ones * 2 > all
}

#[cfg(test)]
mod tests;
