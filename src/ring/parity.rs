//! What two copies of one ring differ in, and how much of the circle would change owners for it.
//!
//! Before a fleet reads its ring from another store, somebody wants to know whether that store says the same. Heartbeats
//! always differ a little; what an instance wrote a moment ago may still be on its way. Neither is a difference. The last
//! figure is the one that predicts what the change would move: the part of the 2³² keys with other owners.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::desc::{Desc, Instance};
use super::snapshot::{RingOptions, Snapshot};

/// Ids listed of each kind of difference; the counts are complete.
const MAX_LISTED: usize = 20;

/// How two copies of a ring compare. `primary` is the one that is read, `secondary` the other.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RingParity {
    /// Instances in each, tombstones left out.
    pub instances: Sides<usize>,
    /// Tombstones in each.
    pub tombstones: Sides<usize>,
    /// Instances that only the primary has.
    pub only_primary: Ids,
    /// Instances that only the secondary has.
    pub only_secondary: Ids,
    /// Instances whose entries differ in more than the heartbeat.
    pub differing: Ids,
    /// In how many instances each field differs.
    pub fields: Fields,
    /// Instances that differ and were written so recently that the change may still be on its way. Not counted above.
    pub in_flight: usize,
    /// How far the heartbeats of an instance are apart in the two.
    pub heartbeats: Heartbeats,
    /// Fingerprints of everything but heartbeats, in hexadecimal; see [`Desc::digest`].
    pub digest: Sides<String>,
    /// The part of the circle, 0 to 1, whose first owner is another one in the secondary.
    pub ownership_delta: f64,
    /// The part of the circle whose replicas are others, or in another order, in the secondary.
    pub replica_set_delta: f64,
}

/// A figure of each side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Sides<T> {
    /// Of the store that is read.
    pub primary: T,
    /// Of the other one.
    pub secondary: T,
}

/// Instances: how many, and the ids of the first twenty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Ids {
    /// How many.
    pub count: usize,
    /// The first of them, in order.
    pub ids: Vec<String>,
}

/// In how many instances each field differs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Fields {
    /// `addr`.
    pub addr: usize,
    /// `state`.
    pub state: usize,
    /// `tokens`.
    pub tokens: usize,
    /// `zone`.
    pub zone: usize,
    /// `registered_timestamp`.
    pub registered: usize,
    /// `read_only` and its timestamp, and the versions.
    pub other: usize,
}

/// How far heartbeats are apart, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Heartbeats {
    /// Of half of the instances, at most this.
    pub p50: u64,
    /// Of 99 in 100.
    pub p99: u64,
    /// Of all.
    pub max: u64,
}

impl RingParity {
    /// Whether the two are the same but for heartbeats and for what is on its way.
    #[must_use]
    pub fn is_equal(&self) -> bool {
        self.only_primary.count == 0 && self.only_secondary.count == 0 && self.differing.count == 0
    }

    /// Whether the secondary has every instance that the primary has, as the primary has it. It may have more.
    #[must_use]
    pub fn secondary_has_all(&self) -> bool {
        self.only_primary.count == 0 && self.differing.count == 0
    }

    /// Compares a ring read from the primary, from the secondary, and from the primary again: a difference counts when
    /// both readings of the primary show it, and when neither side wrote the instance within `in_flight` before `now`
    /// (both since the Unix epoch).
    #[must_use]
    pub fn compare(
        primary: [&Desc; 2],
        secondary: &Desc,
        options: &RingOptions,
        in_flight: Duration,
        now: Duration,
    ) -> Self {
        let [first, last] = primary;
        let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        // What a clock far ahead wrote is not on its way for hours.
        let recent = seconds(now.saturating_sub(in_flight))..=seconds(now + in_flight);
        let mut parity = Self {
            instances: Sides { primary: last.live().count(), secondary: secondary.live().count() },
            digest: Sides { primary: hex(last.digest()), secondary: hex(secondary.digest()) },
            ..Self::default()
        };
        parity.tombstones = Sides {
            primary: last.instances.len() - parity.instances.primary,
            secondary: secondary.instances.len() - parity.instances.secondary,
        };
        let ids: BTreeSet<&Arc<str>> = last.live().chain(secondary.live()).map(|(id, _)| id).collect();
        let mut apart = Vec::new();
        for id in ids {
            let (ours, theirs) = (live(last, id), live(secondary, id));
            if let (Some(ours), Some(theirs)) = (ours, theirs) {
                apart.push(ours.timestamp.abs_diff(theirs.timestamp));
            }
            if !differ(ours, theirs) || !differ(live(first, id), theirs) {
                continue;
            }
            let written = match (last.instances.get(id), secondary.instances.get(id)) {
                // A tombstone is younger than what it removed.
                (Some(ours), Some(theirs)) => Some(ours.timestamp.max(theirs.timestamp)),
                // Heartbeats say nothing about when it came: with short periods it would be on its way for ever.
                (Some(one), None) | (None, Some(one)) if one.registered_timestamp > 0 => Some(one.registered_timestamp),
                (one, other) => one.or(other).map(|one| one.timestamp),
            };
            if written.is_some_and(|at| recent.contains(&at)) {
                parity.in_flight += 1;
                continue;
            }
            match (ours, theirs) {
                (Some(_), None) => parity.only_primary.add(id),
                (None, Some(_)) => parity.only_secondary.add(id),
                (Some(ours), Some(theirs)) => {
                    parity.differing.add(id);
                    parity.fields.add(ours, theirs);
                }
                (None, None) => {}
            }
        }
        parity.heartbeats = Heartbeats::of(apart);
        if last.digest() != secondary.digest() {
            let moved = |replication_factor| {
                let options = RingOptions { replication_factor, ..options.clone() };
                let build = |desc| Snapshot::build(desc, &options, now);
                build(last).owners_changed(&build(secondary)) as f64 / 2_f64.powi(32)
            };
            parity.ownership_delta = moved(1);
            parity.replica_set_delta = moved(options.replication_factor.max(1));
        }
        parity
    }
}

fn live<'a>(desc: &'a Desc, id: &str) -> Option<&'a Instance> {
    desc.instances.get(id).filter(|instance| !instance.state.is_left())
}

fn differ(ours: Option<&Instance>, theirs: Option<&Instance>) -> bool {
    match (ours, theirs) {
        (Some(ours), Some(theirs)) => !ours.same_content(theirs),
        (None, None) => false,
        _ => true,
    }
}

fn hex(digest: u128) -> String {
    format!("{digest:032x}")
}

impl Ids {
    /// One more.
    pub(crate) fn add(&mut self, id: &str) {
        self.count += 1;
        if self.ids.len() < MAX_LISTED {
            self.ids.push(id.to_owned());
        }
    }
}

impl Fields {
    fn add(&mut self, ours: &Instance, theirs: &Instance) {
        self.addr += usize::from(ours.addr != theirs.addr);
        self.state += usize::from(ours.state != theirs.state);
        self.tokens += usize::from(ours.tokens != theirs.tokens);
        self.zone += usize::from(ours.zone != theirs.zone);
        self.registered += usize::from(ours.registered_timestamp != theirs.registered_timestamp);
        self.other += usize::from(
            ours.read_only != theirs.read_only
                || ours.read_only_updated_timestamp != theirs.read_only_updated_timestamp
                || ours.versions != theirs.versions,
        );
    }
}

impl Heartbeats {
    fn of(mut apart: Vec<u64>) -> Self {
        apart.sort_unstable();
        let at = |share: usize| apart.get((apart.len() * share).div_ceil(100).saturating_sub(1)).copied().unwrap_or(0);
        Self { p50: at(50), p99: at(99), max: apart.last().copied().unwrap_or(0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::InstanceState;

    const NOW: i64 = 1_000_000;

    fn instance(token: u32, timestamp: i64) -> Instance {
        Instance {
            addr: format!("10.0.0.{token}:1"),
            timestamp,
            state: InstanceState::Active,
            tokens: [token << 24].into(),
            ..Instance::default()
        }
    }

    /// Four instances with a quarter of the circle each.
    fn ring() -> Desc {
        let one = |token: u32| (format!("i{token}").as_str().into(), instance(token, NOW - 60));
        Desc { instances: [64, 128, 192, 255].into_iter().map(one).collect(), ..Desc::default() }
    }

    fn compare(primary: [&Desc; 2], secondary: &Desc) -> RingParity {
        let options = RingOptions { replication_factor: 2, ..RingOptions::default() };
        let seconds = |at: i64| Duration::from_secs(at.unsigned_abs());
        RingParity::compare(primary, secondary, &options, Duration::from_secs(10), seconds(NOW))
    }

    fn change(desc: &Desc, id: &str, change: impl Fn(&mut Instance)) -> Desc {
        let mut desc = desc.clone();
        desc.instances.get_mut(id).into_iter().for_each(change);
        desc
    }

    #[test]
    fn heartbeats_make_no_difference_and_are_measured() {
        let ours = ring();
        let theirs = change(&ours, "i128", |one| one.timestamp -= 7);
        let parity = compare([&ours, &ours], &theirs);
        assert!(parity.is_equal());
        assert_eq!(parity.heartbeats, Heartbeats { p50: 0, p99: 7, max: 7 });
        assert_eq!(parity.digest.primary, parity.digest.secondary);
        assert_eq!((parity.ownership_delta, parity.replica_set_delta), (0.0, 0.0));
    }

    #[test]
    fn a_missing_instance_moves_its_part_of_the_circle() {
        let ours = ring();
        let mut theirs = ours.clone();
        theirs.instances.remove("i128");
        let parity = compare([&ours, &ours], &theirs);
        assert_eq!((parity.only_primary.count, parity.only_primary.ids.clone()), (1, vec!["i128".to_owned()]));
        assert!(!parity.is_equal() && !parity.secondary_has_all());
        assert!((parity.ownership_delta - 0.25).abs() < 0.01, "{}", parity.ownership_delta);
        // Its own quarter, and the one before, whose second replica it is.
        assert!((parity.replica_set_delta - 0.5).abs() < 0.01, "{}", parity.replica_set_delta);

        let more = compare([&theirs, &theirs], &ours);
        assert_eq!(more.only_secondary.count, 1);
        assert!(more.secondary_has_all() && !more.is_equal());
    }

    #[test]
    fn what_was_written_a_moment_ago_is_on_its_way() {
        let ours = ring();
        let joined = change(&ours, "i64", |one| {
            one.timestamp = NOW - 3;
            one.state = InstanceState::Leaving;
        });
        let parity = compare([&joined, &joined], &ours);
        assert!(parity.is_equal());
        assert_eq!(parity.in_flight, 1);
        let removed = change(&ours, "i64", |one| *one = one.tombstone(NOW));
        assert_eq!(compare([&removed, &removed], &ours).in_flight, 1);
        let by_a_fast_clock = change(&joined, "i64", |one| one.timestamp = NOW + 3600);
        assert_eq!(compare([&by_a_fast_clock, &by_a_fast_clock], &ours).differing.count, 1);
    }

    #[test]
    fn an_instance_that_is_missing_is_a_difference_however_often_it_writes_heartbeats() {
        let alive = |registered: i64| {
            change(&ring(), "i64", |one| {
                (one.timestamp, one.registered_timestamp) = (NOW - 1, registered);
            })
        };
        let mut without = ring();
        without.instances.remove("i64");
        let old = alive(NOW - 3600);
        assert_eq!(compare([&old, &old], &without).only_primary.count, 1);
        assert_eq!(compare([&without, &without], &old).only_secondary.count, 1);
        let new = alive(NOW - 3);
        let parity = compare([&new, &new], &without);
        assert_eq!((parity.only_primary.count, parity.in_flight), (0, 1), "it has just come");
    }

    #[test]
    fn a_difference_that_the_second_reading_of_the_primary_does_not_show_is_none() {
        let (before, after) = (ring(), change(&ring(), "i64", |one| one.zone = "b".to_owned()));
        assert!(compare([&before, &after], &after).is_equal());
        assert!(compare([&after, &before], &after).is_equal());
        let parity = compare([&before, &before], &after);
        assert_eq!((parity.differing.count, parity.fields), (1, Fields { zone: 1, ..Fields::default() }));
    }

    #[test]
    fn a_tombstone_on_one_side_and_nothing_on_the_other_are_the_same() {
        let mut ours = ring();
        let theirs = change(&ours, "i255", |one| *one = one.tombstone(NOW - 100));
        ours.instances.remove("i255");
        let parity = compare([&ours, &ours], &theirs);
        assert!(parity.is_equal());
        assert_eq!(parity.tombstones, Sides { primary: 0, secondary: 1 });
    }

    #[test]
    fn every_difference_is_counted_and_the_first_are_named() {
        let ours = Desc::default();
        let mut theirs = Desc::default();
        for i in 0..100_u32 {
            theirs.instances.insert(format!("i{i:03}").as_str().into(), instance(i, NOW - 60));
        }
        let parity = compare([&ours, &ours], &theirs);
        assert_eq!((parity.only_secondary.count, parity.only_secondary.ids.len()), (100, MAX_LISTED));
        assert!((parity.ownership_delta - 1.0).abs() < 1e-9);
    }
}
