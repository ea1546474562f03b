//! One test for each law of the ring's merge: exhaustive on small rings, at random on large ones.
//!
//! The merge treats each instance by itself, which [`merging_rings_is_merging_their_instances`] shows. So what holds for
//! every triple of entries of one instance holds for every triple of rings.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::kv::{Codec, Value};
use crate::ring::codec::RingCodec;
use crate::ring::desc::InstanceState::{self, Active, Joining, Leaving, Left, Pending, Unknown};
use crate::ring::tokens::owner_map;
use proptest::prelude::*;
use std::time::Duration;

fn now() -> Now {
    Now { unix: Duration::from_secs(100), ..Now::read() }
}

fn entry(timestamp: i64, state: InstanceState, tokens: &[u32]) -> Instance {
    let mut entry = Instance { timestamp, state, tokens: tokens.into(), ..Instance::default() };
    entry.normalize();
    entry
}

/// An instance that is absent, or any of: all states, three heartbeats, its own tokens or contested ones.
fn entries() -> Vec<Option<Instance>> {
    let mut entries = vec![None];
    for timestamp in 1..4 {
        for state in [Pending, Joining, Active, Leaving, Unknown(5)] {
            entries.push(Some(entry(timestamp, state, &[7])));
            entries.push(Some(entry(timestamp, state, &[7, 8])));
        }
        entries.push(Some(entry(timestamp, Left, &[])));
    }
    entries
}

fn ring(a: &Option<Instance>, b: &Option<Instance>) -> Desc {
    let entries = [("a", a), ("b", b)].into_iter().filter_map(|(id, entry)| Some((id.into(), entry.clone()?)));
    Desc { instances: entries.collect(), ..Desc::default() }
}

fn one(entry: &Option<Instance>) -> Desc {
    ring(entry, &None)
}

fn joined(a: &Desc, b: &Desc) -> Desc {
    let mut joined = a.clone();
    joined.join(b, now());
    joined
}

fn bytes(desc: &Desc) -> Vec<u8> {
    RingCodec.encode(&Value::new(desc.clone())).unwrap()
}

#[test]
fn merging_rings_is_merging_their_instances() {
    let entries: Vec<_> =
        entries().into_iter().filter(|entry| entry.as_ref().is_none_or(|entry| entry.tokens.len() != 1)).collect();
    assert_eq!(entries.len(), 19);
    let pairs: Vec<_> = entries.iter().flat_map(|a| entries.iter().map(move |b| (a, b))).collect();
    for (a, b) in &pairs {
        for (c, d) in &pairs {
            let left = joined(&one(a), &one(c)).instances.remove("a");
            let right = joined(&ring(&None, b), &ring(&None, d)).instances.remove("b");
            assert_eq!(joined(&ring(a, b), &ring(c, d)), ring(&left, &right));
        }
    }
}

#[test]
fn law_1_merging_is_commutative_to_the_byte() {
    for a in &entries() {
        for b in &entries() {
            let (ab, ba) = (joined(&one(a), &one(b)), joined(&one(b), &one(a)));
            assert_eq!(ab, ba);
            assert_eq!(bytes(&ab), bytes(&ba));
        }
    }
}

#[test]
fn law_2_merging_is_associative() {
    let rings: Vec<Desc> = entries().iter().map(one).collect();
    assert_eq!(rings.len(), 34);
    for a in &rings {
        for b in &rings {
            let ab = joined(a, b);
            for c in &rings {
                assert_eq!(joined(&ab, c), joined(a, &joined(b, c)));
            }
        }
    }
}

#[test]
fn law_3_merging_is_idempotent() {
    for a in &entries() {
        for b in &entries() {
            let ring = ring(a, b);
            assert_eq!(ring.clone().join(&ring, now()), None);
        }
    }
}

#[test]
fn law_4_merging_never_loses_or_ages_anything() {
    for a in &entries() {
        for b in &entries() {
            let (a, b) = (one(a), one(b));
            let mut ab = joined(&a, &b);
            assert_eq!((ab.join(&a, now()), ab.join(&b, now())), (None, None));
            for (id, entry) in a.instances.iter().chain(&b.instances) {
                assert!(ab.instances[id].timestamp >= entry.timestamp);
            }
        }
    }
}

#[test]
fn law_5_a_delta_has_exactly_the_entries_that_differ() {
    for a in &entries() {
        for b in &entries() {
            let (old, new) = (ring(a, &None), ring(b, &None));
            let delta = new.delta(Some(&old), now());
            let result = delta.as_ref().map_or_else(|| old.clone(), |delta| joined(&old, delta));
            let differs = result != old;
            assert_eq!(delta.is_some_and(|delta| delta.instances.len() == 1), differs);
            // Everything of the new ring is in.
            assert_eq!(joined(&result, &new), result);
        }
    }
}

#[test]
fn law_6_three_replicas_agree_whatever_the_order_of_updates() {
    let rings: Vec<Desc> = entries().iter().map(one).collect();
    for a in rings.iter().step_by(2) {
        for b in &rings {
            for c in rings.iter().step_by(3) {
                let replica = |order: &[&Desc]| order.iter().fold(Desc::default(), |sum, update| joined(&sum, update));
                let first = replica(&[a, b, c]);
                assert_eq!(replica(&[c, a, a, b]), first);
                assert_eq!(replica(&[b, &joined(c, a), b]), first);
            }
        }
    }
}

#[test]
fn every_token_has_one_owner_who_claims_it() {
    for a in &entries() {
        for b in &entries() {
            let ring = ring(a, b);
            let owners = owner_map(&ring);
            for (token, owner) in &owners {
                assert!(ring.instances[owner].tokens.contains(token));
            }
            for (_, instance) in ring.live() {
                assert!(instance.tokens.iter().all(|token| owners.contains_key(token)));
            }
        }
    }
}

#[test]
fn equal_digests_mean_equal_owners_and_heartbeats_are_not_in_them() {
    let rings: Vec<Desc> =
        entries().iter().flat_map(|a| entries().iter().map(|b| ring(a, b)).collect::<Vec<_>>()).collect();
    let mut by_digest = std::collections::BTreeMap::new();
    for ring in &rings {
        let owners = owner_map(ring);
        assert_eq!(*by_digest.entry(ring.digest()).or_insert_with(|| owners.clone()), owners);
    }
    // Absent or LEFT, or five states with one of two token lists: eleven of each instance that differ.
    assert_eq!(by_digest.len(), 11 * 11);
}

#[test]
fn a_digest_is_kept_up_by_subtracting_and_adding_one_instance() {
    let (old, new) = (entry(1, Joining, &[7]), entry(9, Active, &[7, 8]));
    let other = Some(entry(1, Active, &[1]));
    let (before, after) = (ring(&Some(old.clone()), &other), ring(&Some(new.clone()), &other));
    let kept_up = before.digest().wrapping_sub(old.digest("a")).wrapping_add(new.digest("a"));
    assert_eq!(kept_up, crate::ring::digest(&after));
    assert_ne!(new.digest("a"), new.digest("b"));
    assert_eq!(Desc::default().digest(), 0);
}

fn any_large() -> impl Strategy<Value = Desc> {
    let state = prop::sample::select(vec![Pending, Joining, Active, Leaving, Left, Unknown(5)]);
    let one = (1_i64..6, state, prop::collection::btree_set(0_u32..2000, 0..40), 0_u8..3, 0_u64..3);
    let one = one.prop_map(|(timestamp, state, tokens, zone, version)| Instance {
        zone: zone.to_string(),
        versions: [(1, version)].into(),
        ..entry(timestamp, state, &tokens.into_iter().collect::<Vec<_>>())
    });
    prop::collection::btree_map(0_u16..60, one, 0..50).prop_map(|entries| Desc {
        instances: entries.into_iter().map(|(id, entry)| (format!("instance-{id}").into(), entry)).collect(),
        ..Desc::default()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_laws_hold_for_large_rings(a in any_large(), b in any_large(), c in any_large()) {
        let ab = joined(&a, &b);
        prop_assert_eq!(bytes(&ab), bytes(&joined(&b, &a)));
        prop_assert_eq!(joined(&ab, &c), joined(&a, &joined(&b, &c)));
        prop_assert_eq!(joined(&ab, &ab), ab.clone());
        prop_assert_eq!(joined(&ab, &a), ab.clone());
        let delta = b.delta(Some(&a), now());
        let result = delta.as_ref().map_or_else(|| a.clone(), |delta| joined(&a, delta));
        prop_assert_eq!(joined(&result, &b), result.clone());
        let changed = result.instances.iter().filter(|(id, entry)| a.instances.get(*id) != Some(entry)).count();
        prop_assert_eq!(changed, delta.map_or(0, |delta| delta.instances.len()));
    }

    /// A token list never shrinks, and no heartbeat advances, unless the instance itself wrote that.
    #[test]
    fn a_merge_invents_nothing(updates in prop::collection::vec(any_large(), 1..5)) {
        let all = updates.iter().fold(Desc::default(), |sum, update| joined(&sum, update));
        for (id, entry) in &all.instances {
            prop_assert!(updates.iter().any(|update| update.instances.get(id) == Some(entry)));
        }
    }
}
