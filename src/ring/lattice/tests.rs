#![allow(clippy::unwrap_used)]

use super::*;
use crate::ring::desc::InstanceState::{self, Active, Joining, Leaving, Left, Pending, Unknown};
use proptest::prelude::*;
use std::time::Duration;

fn now() -> Now {
    Now { unix: Duration::from_secs(100), ..Now::read() }
}

fn joined(a: &Desc, b: &Desc) -> Desc {
    let mut joined = a.clone();
    let change = joined.join(b, now());
    // The change is what differs from before, no more and no less.
    let differs = |id: &std::sync::Arc<str>| a.instances.get(id) != joined.instances.get(id);
    let expected: Vec<_> = joined.instances.keys().filter(|id| differs(id)).cloned().collect();
    let reported: Vec<_> = change.iter().flat_map(|change| change.instances.keys().cloned()).collect();
    assert_eq!(reported, expected);
    joined
}

fn ring(entries: impl IntoIterator<Item = (&'static str, Instance)>) -> Desc {
    Desc { instances: entries.into_iter().map(|(id, entry)| (id.into(), entry)).collect(), ..Desc::default() }
}

fn entry(timestamp: i64, state: InstanceState, tokens: &[u32]) -> Instance {
    let mut entry = Instance { timestamp, state, tokens: tokens.into(), ..Instance::default() };
    entry.normalize();
    entry
}

/// Every ring of up to two instances with three states and two heartbeats.
fn small_rings() -> Vec<Desc> {
    let mut entries = vec![None];
    for timestamp in [1, 2] {
        for state in [Joining, Active, Left] {
            entries.push(Some(entry(timestamp, state, &[timestamp as u32, 7])));
        }
    }
    let mut rings = Vec::new();
    for a in &entries {
        for b in &entries {
            rings.push(ring([("a", a.clone()), ("b", b.clone())].into_iter().filter_map(|(id, e)| Some((id, e?)))));
        }
    }
    rings
}

#[test]
fn the_laws_hold_for_every_triple_of_small_rings() {
    let rings = small_rings();
    assert_eq!(rings.len(), 49);
    for a in &rings {
        assert_eq!(joined(a, a), *a);
        for b in &rings {
            let ab = joined(a, b);
            assert_eq!(ab, joined(b, a));
            assert_eq!(joined(&ab, b), ab, "absorption");
            for c in &rings {
                assert_eq!(joined(&ab, c), joined(a, &joined(b, c)));
            }
        }
    }
}

#[test]
fn a_delta_takes_every_small_ring_to_every_other() {
    for old in &small_rings() {
        assert_eq!(old.delta(Some(old), now()), None);
        for new in &small_rings() {
            let Some(delta) = new.delta(Some(old), now()) else {
                assert_eq!(joined(old, new), *old);
                continue;
            };
            let result = joined(old, &delta);
            // Everything of the new ring is in, or something newer that the old one had already.
            assert_eq!(joined(&result, new), result);
            // And what the new ring lacks is gone for good.
            for (id, gone) in old.live().filter(|(id, _)| !new.instances.contains_key(*id)) {
                let tombstone = &result.instances[id];
                assert!(tombstone.state.is_left() && tombstone.timestamp > gone.timestamp);
                assert_eq!(joined(&result, old), result);
            }
            assert_eq!(new.delta(Some(&result), now()), None);
        }
    }
}

#[test]
fn later_heartbeats_win_then_left_then_the_farther_state() {
    let order = [
        entry(1, Left, &[]),
        entry(2, Unknown(7), &[1]),
        entry(2, Pending, &[1]),
        entry(2, Joining, &[1]),
        entry(2, Active, &[1]),
        entry(2, Active, &[2]),
        entry(2, Leaving, &[1]),
        entry(2, Left, &[]),
        entry(3, Pending, &[1]),
    ];
    for (low, older) in order.iter().enumerate() {
        for newer in &order[low + 1..] {
            let (older, newer) = (ring([("a", older.clone())]), ring([("a", newer.clone())]));
            assert_eq!(joined(&older, &newer), newer);
            assert_eq!(joined(&newer, &older), newer);
        }
    }
}

#[test]
fn a_removal_beats_a_clock_that_runs_ahead_and_keeps_zone_and_address() {
    let ahead = Instance { addr: "a:1".into(), zone: "z".into(), ..entry(5000, Active, &[1]) };
    let old = ring([("a", ahead)]);
    let delta = Desc::default().delta(Some(&old), now()).unwrap();
    let tombstone = &delta.instances["a"];
    assert_eq!((tombstone.timestamp, tombstone.state), (5001, Left));
    assert!(tombstone.tokens.is_empty());
    assert_eq!((&*tombstone.zone, &*tombstone.addr), ("z", "a:1"));
    let recent = Desc::default().delta(Some(&ring([("a", entry(5, Active, &[1]))])), now()).unwrap();
    assert_eq!(recent.instances["a"].timestamp, 100);
}

#[test]
fn contested_tokens_stay_in_both_entries() {
    let (a, b) = (ring([("a", entry(1, Active, &[1, 2]))]), ring([("b", entry(2, Active, &[2, 3]))]));
    let both = joined(&a, &b);
    assert_eq!(*both.instances["a"].tokens, [1, 2]);
    assert_eq!(*both.instances["b"].tokens, [2, 3]);
}

#[test]
fn only_tombstones_before_the_limit_are_forgotten() {
    let mut desc = ring([("a", entry(5, Left, &[])), ("b", entry(6, Left, &[])), ("c", entry(1, Active, &[1]))]);
    assert_eq!(desc.remove_tombstones(Some(6)), 1);
    assert_eq!(desc.content(), ["b", "c"]);
    assert_eq!(desc.remove_tombstones(None), 1);
    assert_eq!(desc.content(), ["c"]);
}

fn any_entry() -> impl Strategy<Value = Instance> {
    let state = prop::sample::select(vec![Active, Leaving, Pending, Joining, Left, Unknown(5)]);
    let tokens = prop::collection::vec(0_u32..6, 0..4);
    (0_i64..4, state, tokens, any::<bool>(), 0_u8..2).prop_map(|(timestamp, state, tokens, read_only, addr)| Instance {
        addr: addr.to_string(),
        read_only,
        ..entry(timestamp, state, &tokens)
    })
}

fn any_ring() -> impl Strategy<Value = Desc> {
    let id = prop::sample::select(vec!["a", "b", "c"]);
    prop::collection::vec((id, any_entry()), 0..4).prop_map(ring)
}

proptest! {
    #[test]
    fn any_order_repetition_and_grouping_of_updates_gives_the_same_ring(
        updates in prop::collection::vec(any_ring(), 1..6),
        order in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
        split in any::<prop::sample::Index>(),
    ) {
        let all = updates.iter().fold(Desc::default(), |sum, update| joined(&sum, update));
        // Another order, some twice, then whatever is missing.
        let mut other = order.iter().fold(Desc::default(), |sum, at| joined(&sum, at.get(&updates)));
        for update in updates.iter().rev() {
            other = joined(&other, update);
        }
        prop_assert_eq!(&other, &all);
        // Grouped: two batches, each joined before they meet.
        let (left, right) = updates.split_at(split.index(updates.len()));
        let batch = |updates: &[Desc]| updates.iter().fold(Desc::default(), |sum, update| joined(&sum, update));
        prop_assert_eq!(&joined(&batch(right), &batch(left)), &all);
        // Equal rings have equal fingerprints.
        prop_assert_eq!(other.digest(), all.digest());
    }

    #[test]
    fn a_delta_is_sound_and_minimal(old in any_ring(), new in any_ring()) {
        let delta = new.delta(Some(&old), now());
        let result = delta.as_ref().map_or_else(|| old.clone(), |delta| joined(&old, delta));
        prop_assert_eq!(&joined(&result, &new), &result);
        let changed = result.instances.iter().filter(|(id, entry)| old.instances.get(*id) != Some(entry)).count();
        prop_assert_eq!(changed, delta.map_or(0, |delta| delta.instances.len()));
    }

    #[test]
    fn dskit_agrees_when_heartbeats_differ_and_no_token_is_contested(
        states in prop::collection::vec((any_entry(), any_entry()), 1..5),
    ) {
        let (mut ours, mut theirs) = (Desc::default(), Desc::default());
        for (index, (mut left, mut right)) in states.into_iter().enumerate() {
            // Tokens of their own, and heartbeats that never tie.
            for entry in [&mut left, &mut right] {
                entry.tokens = entry.tokens.iter().map(|token| token + 100 * index as u32).collect();
                entry.timestamp = entry.timestamp * 2 + 1;
            }
            right.timestamp += 1;
            let id: std::sync::Arc<str> = format!("i{index}").into();
            ours.instances.insert(id.clone(), left);
            theirs.instances.insert(id, right);
        }
        let mut go = ours.clone();
        let change = crate::ring::merge_dskit(&mut go, theirs.clone(), false, 0);
        let mut lattice = ours;
        prop_assert_eq!(lattice.join(&theirs, now()), change);
        prop_assert_eq!(lattice, go);
    }
}
