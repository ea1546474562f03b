//! Readers never go back in time.

use std::time::Duration;

use super::super::ReadJoin;
use super::map::Map;
use crate::clock::Now;

fn watch() -> ReadJoin {
    ReadJoin::new(Duration::from_secs(300))
}

fn deliver(watch: &mut ReadJoin, generation: u64, incoming: Option<Map>) -> Option<Map> {
    let incoming = incoming.map(|map| map.value());
    watch.deliver(generation, incoming, Now::read()).into_value().map(|value| Map::of(&value).clone())
}

#[test]
fn a_missing_key_is_delivered_as_missing_the_first_time() {
    assert_eq!(deliver(&mut watch(), 0, None), None);
}

#[test]
fn an_older_value_does_not_replace_a_newer_one() {
    let mut watch = watch();
    deliver(&mut watch, 0, Some(Map::one("a", 5, Some(5))));
    let read = deliver(&mut watch, 0, Some(Map::one("a", 3, Some(3)))).unwrap();
    assert_eq!(read, Map::one("a", 5, Some(5)));
}

#[test]
fn the_first_value_of_a_new_primary_is_joined_with_what_was_seen() {
    let mut watch = watch();
    deliver(&mut watch, 0, Some(Map::one("a", 5, Some(5))));
    let read = deliver(&mut watch, 1, Some(Map::one("b", 1, Some(1)))).unwrap();
    assert_eq!((read.live("a"), read.live("b")), (Some(5), Some(1)));
}

#[test]
fn a_deletion_by_the_store_that_showed_the_key_is_believed() {
    let mut watch = watch();
    deliver(&mut watch, 0, Some(Map::one("a", 5, Some(5))));
    assert_eq!(deliver(&mut watch, 0, None), None);
    // And what comes after it starts afresh.
    let read = deliver(&mut watch, 0, Some(Map::one("b", 1, Some(1)))).unwrap();
    assert_eq!(read.live("a"), None);
}

#[test]
fn a_new_primary_that_does_not_have_the_key_yet_deletes_nothing() {
    let mut watch = watch();
    deliver(&mut watch, 0, Some(Map::one("a", 5, Some(5))));
    assert_eq!(deliver(&mut watch, 1, None), Some(Map::one("a", 5, Some(5))));
    // Once it has shown the key, its deletions count.
    deliver(&mut watch, 1, Some(Map::one("a", 5, Some(5))));
    assert_eq!(deliver(&mut watch, 1, None), None);
}

#[test]
fn a_late_report_of_the_old_primary_is_joined_but_deletes_nothing() {
    let mut watch = watch();
    deliver(&mut watch, 0, Some(Map::one("a", 5, Some(5))));
    deliver(&mut watch, 1, Some(Map::one("a", 6, Some(6))));
    assert_eq!(deliver(&mut watch, 0, None), Some(Map::one("a", 6, Some(6))));
    assert_eq!(deliver(&mut watch, 0, Some(Map::one("b", 9, Some(9)))).unwrap().live("b"), Some(9));
}

#[test]
fn a_new_primary_that_is_lost_right_after_the_flip_shows_nothing_older() {
    let mut watch = watch();
    deliver(&mut watch, 0, Some(Map::one("a", 5, Some(5))));
    // It was behind, and says what it had, or that it never had anything.
    let lost = watch.lost(Some(Map::one("a", 3, Some(3)).value()), Now::read()).unwrap();
    assert_eq!(*Map::of(&lost), Map::one("a", 5, Some(5)));
    let lost = watch.lost(None, Now::read()).unwrap();
    assert_eq!(*Map::of(&lost), Map::one("a", 5, Some(5)));
}

#[test]
fn a_tombstone_is_remembered_for_its_time_and_not_for_ever() {
    let mut watch = watch();
    let start = Now::read();
    let at = u64::try_from(start.unix.as_micros()).unwrap();
    let mut value = Map::one("gone", at, None);
    value.merge(&Map::one("here", at, Some(1)));
    watch.deliver(0, Some(value.value()), start);
    for (after, kept) in [(100, true), (290, true), (400, false)] {
        let read = watch.deliver(0, Some(Map::one("here", at, Some(1)).value()), start + Duration::from_secs(after));
        let read = read.into_value().unwrap();
        assert_eq!(Map::of(&read).0.contains_key("gone"), kept, "after {after} s");
        assert_eq!(Map::of(&read).live("here"), Some(1));
    }
}
