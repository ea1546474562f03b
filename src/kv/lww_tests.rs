#![allow(clippy::unwrap_used)]

use std::time::Duration;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::kv::{Codec, Value};

type Map = LwwMap<u8>;

fn at(secs: u64) -> Now {
    Now { unix: Duration::from_secs(secs), ..Now::read() }
}

/// Few names and stamps, so that writes meet and tie.
fn map() -> impl Strategy<Value = Map> {
    let slot = (prop::option::of(0_u8..3), 0_i64..4).prop_map(|(value, stamp)| Slot { value, stamp });
    prop::collection::btree_map("[a-d]", slot, 0..5).prop_map(|entries| LwwMap { entries })
}

fn joined(a: &Map, b: &Map) -> Map {
    let mut both = a.clone();
    both.join(b, at(10));
    both
}

proptest! {
    #[test]
    fn join_is_commutative(a in map(), b in map()) {
        let (ab, ba) = (joined(&a, &b), joined(&b, &a));
        prop_assert_eq!(&ab, &ba);
        let codec = Map::codec();
        prop_assert_eq!(codec.encode(&Value::new(ab)), codec.encode(&Value::new(ba)));
    }

    #[test]
    fn join_is_associative(a in map(), b in map(), c in map()) {
        prop_assert_eq!(joined(&joined(&a, &b), &c), joined(&a, &joined(&b, &c)));
    }

    #[test]
    fn join_is_idempotent_and_reports_no_change_the_second_time(a in map(), b in map()) {
        let mut both = joined(&a, &b);
        prop_assert_eq!(both.join(&b, at(10)), None);
        prop_assert_eq!(both.join(&a, at(10)), None);
    }

    #[test]
    fn the_reported_change_is_what_was_missing(a in map(), b in map()) {
        let mut both = a.clone();
        let change = both.join(&b, at(10));
        let replayed = change.as_ref().map_or_else(|| a.clone(), |change| joined(&a, change));
        prop_assert_eq!(&replayed, &both);
        for (key, slot) in change.iter().flat_map(|change| &change.entries) {
            prop_assert_ne!(a.entries.get(key), Some(slot), "the change is minimal");
        }
    }

    #[test]
    fn changes_may_arrive_in_any_order_and_more_than_once(
        changes in prop::collection::vec(map(), 1..6), order in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let expected = changes.iter().fold(Map::new(), |all, change| joined(&all, change));
        let shuffled = order.iter().fold(Map::new(), |all, index| joined(&all, index.get(&changes)));
        let completed = changes.iter().rev().fold(shuffled, |all, change| joined(&all, change));
        prop_assert_eq!(completed, expected);
    }

    #[test]
    fn joining_the_difference_gives_everything_that_was_wanted(base in map(), new in map()) {
        let now = at(10);
        let result = match new.delta(Some(&base), now) {
            Some(delta) => joined(&base, &delta),
            None => base.clone(),
        };
        prop_assert_eq!(&joined(&result, &new), &result, "the result is not below the new value");
        for key in base.iter().map(|(key, _)| key).filter(|key| !new.entries.contains_key(*key)) {
            prop_assert_eq!(result.get(key), None, "{} was left out and must be gone", key);
        }
        prop_assert_eq!(new.delta(Some(&new), now), None);
    }

    #[test]
    fn a_map_survives_its_codec(a in map()) {
        let codec = Map::codec();
        let value = Value::new(a.clone());
        let decoded = codec.decode(&codec.encode(&value).unwrap()).unwrap();
        prop_assert_eq!(decoded.downcast_ref::<Map>(), Some(&a));
        let parsed = codec.parse_json(codec.to_json(&value).unwrap()).unwrap();
        prop_assert_eq!(parsed.downcast_ref::<Map>(), Some(&a));
    }

    #[test]
    fn no_bytes_make_the_codec_panic(noise in prop::collection::vec(any::<u8>(), 0..120)) {
        let _ = Map::codec().decode(&noise);
    }
}

#[test]
fn a_write_replaces_what_it_saw_even_when_that_came_from_a_faster_clock() {
    let mut map = Map::new();
    map.insert(at(100), "a", 1);
    let earlier = at(40);
    map.insert(earlier, "a", 2);
    assert_eq!(map.stamp("a"), Some(100_000_001));
    map.remove(earlier, "a");
    assert_eq!((map.get("a"), map.stamp("a")), (None, Some(100_000_002)));
}

#[test]
fn what_is_left_out_is_removed_even_when_it_came_from_a_faster_clock() {
    let mut base = Map::new();
    base.insert(at(100), "a", 1);
    let delta = Map::new().delta(Some(&base), at(40)).unwrap();
    assert_eq!(joined(&base, &delta).get("a"), None);
}

#[test]
fn on_equal_stamps_a_removal_wins_and_then_the_greater_value() {
    let slot = |value| LwwMap { entries: [("a".to_owned(), Slot { value, stamp: 5 })].into() };
    assert_eq!(joined(&slot(Some(1)), &slot(Some(2))).get("a"), Some(&2));
    assert_eq!(joined(&slot(Some(2)), &slot(Some(1))).get("a"), Some(&2));
    assert_eq!(joined(&slot(None), &slot(Some(2))).get("a"), None);
    assert_eq!(joined(&slot(Some(2)), &slot(None)).get("a"), None);
}

#[test]
fn an_entry_from_the_far_future_is_not_taken() {
    let now = at(1_000_000);
    let stamped = |stamp| LwwMap { entries: [("a".to_owned(), Slot { value: Some(1_u8), stamp })].into() };
    assert!(Map::new().join(&stamped(i64::MAX), now).is_none());
    assert!(stamped(i64::MAX).delta(None, now).is_none());
    assert!(Map::new().join(&stamped(1_000_000_000_000 + MAX_AHEAD_MICROS), now).is_some());
}

#[test]
fn tombstones_are_forgotten_by_their_date() {
    let mut map = Map::new();
    for (name, removed) in [("old", 100), ("new", 200)] {
        map.insert(at(50), name, 1);
        map.remove(at(removed), name);
    }
    map.insert(at(50), "alive", 1);
    assert_eq!((map.len(), LwwMap::is_empty(&map)), (1, false));
    assert_eq!(map.remove_tombstones(Some(150)), 1);
    assert_eq!(map.stamp("old"), None);
    assert_eq!(map.stamp("new"), Some(200_000_000));
    assert_eq!(map.remove_tombstones(None), 1);
    assert_eq!(map.iter().collect::<Vec<_>>(), [("alive", &1)]);
}

#[test]
fn a_value_that_is_null_is_not_a_tombstone() {
    let mut map = LwwMap::<serde_json::Value>::new();
    map.insert(at(1), "null", json!(null));
    map.insert(at(1), "gone", json!(1));
    map.remove(at(1), "gone");
    let codec = LwwMap::<serde_json::Value>::codec();
    let decoded = codec.decode(&codec.encode(&Value::new(map.clone())).unwrap()).unwrap();
    assert_eq!(decoded.downcast_ref(), Some(&map));
    let expected = json!({"null": {"value": null, "stamp": 1_000_000}, "gone": {"stamp": 1_000_001}});
    let shown = codec.to_json(&Value::new(map.clone())).unwrap();
    assert_eq!(shown, expected);
    assert_eq!(codec.parse_json(shown).unwrap().downcast_ref(), Some(&map));
}

#[test]
fn plain_json_becomes_a_map_written_now() {
    let object = |json: serde_json::Value| json.as_object().unwrap().clone();
    let map = Map::from_plain_json(at(7), object(json!({"a": 1, "b": 2}))).unwrap();
    assert_eq!(map.iter().collect::<Vec<_>>(), [("a", &1), ("b", &2)]);
    assert_eq!(map.stamp("a"), Some(7_000_000));
    assert!(Map::from_plain_json(at(7), object(json!({"a": "text"}))).is_err());
}

#[test]
fn the_codec_refuses_other_types_and_deep_nesting() {
    let codec = LwwMap::<serde_json::Value>::codec();
    assert!(codec.encode(&Value::new(Map::new())).is_err());
    let mut deep = vec![0xa1, 0x61, b'a', 0xa2, 0x65];
    deep.extend(b"value");
    deep.extend(std::iter::repeat_n(0x81, 100_000));
    assert!(codec.decode(&deep).is_err());
    assert!(codec.decode(&[]).is_err());
    assert!(codec.decode(&[0xbb, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]).is_err(), "a map of 2^64 entries");
}
