#![allow(clippy::unwrap_used)]

use std::time::Duration;

use super::*;
use crate::kv::pair::MAX_VALUE_LEN;
use crate::kv::{CborCodec, CodecError, LwwMap};

type Map = LwwMap<u8>;

const KEY: &str = "app/one";
const MINUTE: Duration = Duration::from_secs(60);

fn codecs() -> Arc<Codecs> {
    let codecs = Arc::new(Codecs::default());
    codecs.register("app/", Arc::new(Map::codec()));
    codecs
}

fn store() -> GossipStore {
    GossipStore::new(GossipConfig::default(), codecs())
}

/// Starts well after 1970, so that moments before the start exist.
fn start() -> Now {
    Now { unix: Duration::from_secs(1_800_000_000), ..Now::read() }
}

fn insert(store: &mut GossipStore, now: Now, key: &str, name: &str, value: u8) -> CasOutcome {
    let write = &mut |old: Option<&Value>| {
        let mut map = old.map(|old| old.downcast_ref::<Map>().unwrap().clone()).unwrap_or_default();
        map.insert(now, name, value);
        CasAction::Write(Value::new(map))
    };
    store.cas(now, key, write).unwrap()
}

fn remove(store: &mut GossipStore, now: Now, key: &str, name: &str) -> CasOutcome {
    let write = &mut |old: Option<&Value>| {
        let mut map = old.unwrap().downcast_ref::<Map>().unwrap().clone();
        map.remove(now, name).unwrap();
        // Left out altogether, as a reader without tombstones would do it.
        crate::kv::Mergeable::remove_tombstones(&mut map, None);
        CasAction::Write(Value::new(map))
    };
    store.cas(now, key, write).unwrap()
}

fn entries(store: &GossipStore, key: &str) -> Option<Vec<(String, u8)>> {
    let entry = store.get(key)?;
    let map = entry.value.downcast_ref::<Map>().unwrap();
    Some(map.iter().map(|(name, value)| (name.to_owned(), *value)).collect())
}

fn outputs(store: &mut GossipStore) -> (Vec<Broadcast>, Vec<(String, Option<u64>)>) {
    let (mut broadcasts, mut changed) = (Vec::new(), Vec::new());
    while let Some(output) = store.poll_output() {
        match output {
            Output::Broadcast(broadcast) => broadcasts.push(broadcast),
            Output::Changed { key, entry } => changed.push((key.to_string(), entry.map(|entry| entry.version))),
            Output::Refused { .. } => panic!("these values have no rules of admission"),
        }
    }
    (broadcasts, changed)
}

fn broadcasts(store: &mut GossipStore) -> Vec<Broadcast> {
    outputs(store).0
}

fn deliver(store: &mut GossipStore, now: Now, broadcasts: &[Broadcast]) {
    for broadcast in broadcasts {
        store.handle(now, Input::UserMessage(broadcast.payload.clone()));
    }
}

fn pair_of(broadcast: &Broadcast) -> KeyValuePair {
    KeyValuePair::from_bytes(broadcast.payload.clone()).unwrap()
}

fn names(broadcast: &Broadcast) -> Vec<String> {
    let value = Map::codec().decode(&pair_of(broadcast).value).unwrap();
    assert_eq!(value.content(), broadcast.content);
    value.content()
}

fn remote_pair(value: &Map, deleted: bool, update_time_millis: i64) -> Bytes {
    let value = Map::codec().encode(&Value::new(value.clone())).unwrap().into();
    KeyValuePair { key: KEY.into(), value, codec: "annulus.lwwmap".into(), deleted, update_time_millis }.to_bytes()
}

fn map(now: Now, names: &[&str]) -> Map {
    let mut map = Map::new();
    names.iter().for_each(|name| map.insert(now, *name, 1));
    map
}

#[test]
fn a_write_is_readable_broadcast_and_reported() {
    let (mut store, now) = (store(), start());
    assert!(store.get(KEY).is_none());
    let CasOutcome::Written { version, .. } = insert(&mut store, now, KEY, "a", 1) else { panic!("not written") };
    assert_eq!(entries(&store, KEY), Some(vec![("a".into(), 1)]));
    let (broadcasts, changed) = outputs(&mut store);
    assert_eq!(broadcasts.len(), 1);
    assert!(broadcasts[0].local);
    assert_eq!((broadcasts[0].version, names(&broadcasts[0])), (version, vec!["a".to_owned()]));
    assert_eq!(changed, [(KEY.to_owned(), Some(version))]);
}

#[test]
fn only_the_change_is_broadcast() {
    let (mut store, now) = (store(), start());
    insert(&mut store, now, KEY, "a", 1);
    broadcasts(&mut store);
    let CasOutcome::Written { delta, .. } = insert(&mut store, now, KEY, "b", 2) else { panic!("not written") };
    assert_eq!(delta.content(), ["b"]);
    assert_eq!(names(&broadcasts(&mut store)[0]), ["b"]);
}

#[test]
fn what_a_writer_leaves_out_becomes_a_tombstone_that_travels() {
    let (mut here, mut there, now) = (store(), store(), start());
    insert(&mut here, now, KEY, "a", 1);
    insert(&mut here, now, KEY, "b", 2);
    let sent = broadcasts(&mut here);
    deliver(&mut there, now, &sent);
    remove(&mut here, now, KEY, "a");
    let removal = broadcasts(&mut here);
    assert_eq!(names(&removal[0]), ["a"]);
    deliver(&mut there, now, &removal);
    deliver(&mut there, now, &sent);
    assert_eq!(entries(&there, KEY), Some(vec![("b".into(), 2)]), "an old message brought the entry back");
}

#[test]
fn writing_what_is_there_already_succeeds_without_a_change() {
    let (mut store, now) = (store(), start());
    insert(&mut store, now, KEY, "a", 1);
    outputs(&mut store);
    let same = store.cas(now, KEY, &mut |old| CasAction::Write(old.unwrap().clone())).unwrap();
    let kept = store.cas(now, KEY, &mut |_| CasAction::Keep).unwrap();
    let empty = store.cas(now, "app/new", &mut |_| CasAction::Write(Value::new(Map::new()))).unwrap();
    assert!(matches!((same, kept, empty), (CasOutcome::Unchanged, CasOutcome::Unchanged, CasOutcome::Unchanged)));
    assert!(store.poll_output().is_none());
}

#[test]
fn a_callback_that_gives_up_or_writes_another_type_changes_nothing() {
    let (mut store, now) = (store(), start());
    insert(&mut store, now, KEY, "a", 1);
    outputs(&mut store);
    let error = store.cas(now, KEY, &mut |_| CasAction::Abort("not today".into())).unwrap_err();
    assert_eq!(error.to_string(), "not today");
    for key in [KEY, "app/new"] {
        let mut other = LwwMap::<String>::new();
        other.insert(now, "x", "text".to_owned());
        let error = store.cas(now, key, &mut |_| CasAction::Write(Value::new(other.clone()))).unwrap_err();
        assert!(matches!(error, StoreError::Type { .. }), "{error}");
    }
    assert!(store.poll_output().is_none());
    assert_eq!(store.list(""), [KEY]);
}

#[test]
fn keys_without_a_codec_and_keys_of_impossible_length_are_refused() {
    let (mut store, now) = (store(), start());
    let long = format!("app/{}", "x".repeat(600));
    let error = store.join(now, "other", &Value::new(map(now, &["a"]))).unwrap_err();
    assert!(matches!(error, StoreError::NoCodec { .. }));
    let error = store.join(now, &long, &Value::new(map(now, &["a"]))).unwrap_err();
    assert!(matches!(error, StoreError::Refused { .. }));
}

#[test]
fn join_neither_removes_nor_ages() {
    let (mut store, now) = (store(), start());
    insert(&mut store, now, KEY, "a", 1);
    insert(&mut store, now, KEY, "b", 1);
    let older = map(Now { unix: now.unix - MINUTE, ..now }, &["b", "c"]);
    let CasOutcome::Written { delta, .. } = store.join(now, KEY, &Value::new(older.clone())).unwrap() else { panic!() };
    assert_eq!(delta.content(), ["c"]);
    let stamp = store.get(KEY).unwrap().value.downcast_ref::<Map>().unwrap().stamp("b");
    assert_eq!(stamp, Some(1_800_000_000_000_000));
    assert!(matches!(store.join(now, KEY, &Value::new(older)).unwrap(), CasOutcome::Unchanged));
}

#[test]
fn a_received_change_is_passed_on_once_and_only_what_was_new() {
    let (mut store, now) = (store(), start());
    insert(&mut store, now, KEY, "a", 1);
    outputs(&mut store);
    let known = store.get(KEY).unwrap().value.downcast_ref::<Map>().unwrap().clone();
    let mut message = known;
    message.insert(now, "b", 2);
    let message = remote_pair(&message, false, 0);
    store.handle(now, Input::UserMessage(message.clone()));
    let (broadcasts, changed) = outputs(&mut store);
    assert_eq!(names(&broadcasts[0]), ["b"]);
    assert!(!broadcasts[0].local);
    assert_eq!(changed, [(KEY.to_owned(), Some(2))]);
    store.handle(now, Input::UserMessage(message));
    assert!(store.poll_output().is_none(), "nothing new, nothing to say");
}

#[test]
fn a_joining_node_does_not_broadcast_what_the_cluster_knows() {
    let (mut old, mut new, now) = (store(), store(), start());
    insert(&mut old, now, KEY, "a", 1);
    insert(&mut new, now, "app/mine", "b", 1);
    outputs(&mut new);
    new.handle(now, Input::RemoteState { bytes: old.local_state(), join: true });
    let (broadcasts, changed) = outputs(&mut new);
    assert!(broadcasts.is_empty());
    assert_eq!(changed.len(), 1);
    insert(&mut old, now, KEY, "c", 1);
    new.handle(now, Input::RemoteState { bytes: old.local_state(), join: true });
    assert_eq!(names(&outputs(&mut new).0[0]), ["c"], "changes of a known key do travel on");
}

#[test]
fn a_deleted_key_is_gone_and_stays_gone_when_old_messages_arrive() {
    let (mut here, mut there, now) = (store(), store(), start());
    insert(&mut here, now, KEY, "a", 1);
    let old = broadcasts(&mut here);
    deliver(&mut there, now, &old);
    outputs(&mut there);
    here.delete(now, KEY).unwrap();
    assert!(here.get(KEY).is_none());
    assert!(here.list("").is_empty());
    let (delete, changed) = outputs(&mut here);
    assert_eq!(changed, [(KEY.to_owned(), None)]);
    assert!(delete[0].local, "a leaving node must wait until a delete is out");
    assert!(pair_of(&delete[0]).deleted);
    assert_eq!(names(&delete[0]), ["a"], "dskit expects the whole value with a delete");

    deliver(&mut there, now, &delete);
    let (forwarded, changed) = outputs(&mut there);
    assert_eq!((forwarded.len(), changed), (1, vec![(KEY.to_owned(), None)]));
    deliver(&mut there, now, &old);
    assert!(there.get(KEY).is_none());
    here.delete(now, KEY).unwrap();
    assert!(here.poll_output().is_none());
    assert_eq!((there.stats().keys, there.stats().deleted_keys), (0, 1));
}

#[test]
fn a_delete_where_the_key_was_not_heard_of_still_deletes_it() {
    let (mut here, mut there, now) = (store(), store(), start());
    insert(&mut here, now, KEY, "a", 1);
    let created = broadcasts(&mut here);
    there.delete(now, KEY).unwrap();
    let (deleted, changed) = outputs(&mut there);
    assert!(changed.is_empty(), "nobody was shown the key");
    deliver(&mut there, now, &created);
    assert!(there.get(KEY).is_none(), "the value comes after the delete");
    deliver(&mut here, now, &deleted);
    assert!(here.get(KEY).is_none());
    insert(&mut there, now, KEY, "b", 2);
    let again = broadcasts(&mut there);
    deliver(&mut here, now, &again);
    assert_eq!(entries(&here, KEY), Some(vec![("b".to_owned(), 2)]));
}

#[test]
fn a_key_created_again_within_the_tombstone_window_lives_everywhere_without_its_old_content() {
    let (mut here, mut there, now) = (store(), store(), start());
    insert(&mut here, now, KEY, "old", 1);
    let written = broadcasts(&mut here);
    here.delete(now, KEY).unwrap();
    let deleted = broadcasts(&mut here);
    let outcome = insert(&mut here, now, KEY, "new", 2);
    assert!(matches!(outcome, CasOutcome::Written { version: 3, .. }));
    let created = broadcasts(&mut here);
    let expected = Some(vec![("new".to_owned(), 2)]);
    assert_eq!(entries(&here, KEY), expected);
    for order in [[0, 1, 2], [0, 2, 1], [2, 1, 0], [1, 2, 0], [2, 0, 1], [1, 0, 2]] {
        let mut there = store();
        for index in order {
            deliver(&mut there, now, [&written, &deleted, &created][index]);
        }
        assert_eq!(entries(&there, KEY), expected, "order {order:?}");
        assert_eq!(there.local_state(), here.local_state());
    }
    there.handle(now, Input::RemoteState { bytes: here.local_state(), join: false });
    assert_eq!(entries(&there, KEY), expected);
}

#[test]
fn a_pair_without_a_time_does_not_revive_a_deleted_key_and_a_later_one_does() {
    let (mut store, now) = (store(), start());
    insert(&mut store, now, KEY, "a", 1);
    let later = now + MINUTE;
    store.delete(later, KEY).unwrap();
    outputs(&mut store);
    let millis = later.unix_millis();
    let value = map(later, &["b"]);
    store.handle(later, Input::UserMessage(remote_pair(&value, false, 0)));
    assert!(store.get(KEY).is_none(), "the heartbeat of a node that has not heard of the delete");
    let (forwarded, changed) = outputs(&mut store);
    assert!(pair_of(&forwarded[0]).deleted, "whoever hears it from us hears of the delete");
    assert!(changed.is_empty());
    store.handle(later, Input::UserMessage(remote_pair(&value, false, millis)));
    assert!(store.get(KEY).is_none(), "a delete wins a tie");
    store.handle(later, Input::UserMessage(remote_pair(&value, false, millis + 1)));
    assert!(store.get(KEY).is_some());
}

#[test]
fn a_key_created_where_its_delete_was_not_heard_of_survives_that_delete() {
    let (mut here, mut there, now) = (store(), store(), start());
    insert(&mut here, now, KEY, "old", 1);
    here.delete(now, KEY).unwrap();
    let deleted = broadcasts(&mut here);
    let later = now + MINUTE;
    insert(&mut there, later, KEY, "new", 2);
    let created = broadcasts(&mut there);
    deliver(&mut there, later, &deleted);
    deliver(&mut here, later, &created);
    assert!(entries(&there, KEY).unwrap().contains(&("new".to_owned(), 2)));
    assert!(entries(&here, KEY).unwrap().contains(&("new".to_owned(), 2)));
}

#[test]
fn deleted_keys_are_purged_after_their_time_and_versions_go_on() {
    let (mut store, now) = (store(), start());
    insert(&mut store, now, KEY, "a", 1);
    store.delete(now, KEY).unwrap();
    let mut tick = now;
    while store.stats().keys_purged == 0 {
        let at = store.next_deadline().expect("something to purge");
        tick = tick + at.saturating_duration_since(tick.mono);
        store.handle(tick, Input::Tick);
        assert!(tick.mono < now.mono + 7 * MINUTE, "purged too late");
    }
    assert!(tick.mono >= now.mono + 5 * MINUTE, "purged too early");
    assert_eq!(store.next_deadline(), None);
    assert!(store.local_state().is_empty());
    let outcome = insert(&mut store, tick, KEY, "b", 1);
    assert!(matches!(outcome, CasOutcome::Written { version: 3, .. }), "{outcome:?}");
}

#[test]
fn expired_deletes_and_deletes_from_the_future_are_not_taken() {
    let (mut store, now) = (store(), start() + 60 * MINUTE);
    insert(&mut store, now, KEY, "a", 1);
    outputs(&mut store);
    let value = map(now, &["b"]);
    for (offset, dated) in [(-6, "expired"), (31, "future")] {
        let millis = now.unix_millis() + offset * 60_000;
        store.handle(now, Input::UserMessage(remote_pair(&value, true, millis)));
        assert_eq!(entries(&store, KEY), Some(vec![("a".into(), 1)]), "{dated}");
    }
    store.handle(now, Input::UserMessage(remote_pair(&value, true, i64::MAX)));
    store.handle(now, Input::UserMessage(remote_pair(&value, true, i64::MIN)));
    store.handle(now, Input::UserMessage(remote_pair(&value, true, 0)));
    assert_eq!(entries(&store, KEY), Some(vec![("a".into(), 1)]));
    assert_eq!(store.stats().invalid_time, 4, "one from the near future, one from the end of time, two undated");
}

#[test]
fn expired_tombstones_are_neither_stored_nor_passed_on() {
    let now = start() + 60 * MINUTE;
    let removed_at = |minutes_ago: u32| {
        let then = Now { unix: now.unix - minutes_ago * MINUTE, ..now };
        let mut map = map(then, &["a"]);
        map.remove(then, "a");
        remote_pair(&map, false, 0)
    };
    let mut store = store();
    store.handle(now, Input::UserMessage(removed_at(6)));
    assert!(store.get(KEY).is_none(), "expired, unknown key");
    assert!(store.poll_output().is_none());
    store.handle(now, Input::UserMessage(removed_at(4)));
    assert_eq!(outputs(&mut store).0.len(), 1, "recent: stored and forwarded");
    store.handle(now, Input::UserMessage(removed_at(4)));
    assert!(store.poll_output().is_none(), "known");
    store.handle(now, Input::UserMessage(removed_at(3)));
    assert_eq!(outputs(&mut store).0.len(), 1, "newer: stored and forwarded");
}

#[test]
fn tombstones_of_entries_are_forgotten_after_their_time() {
    let (mut store, now) = (store(), start());
    insert(&mut store, now, KEY, "a", 1);
    insert(&mut store, now, KEY, "b", 1);
    remove(&mut store, now, KEY, "a");
    assert_eq!(store.get(KEY).unwrap().value.content(), ["a", "b"]);
    let before = store.local_state().len();
    for minutes in [2, 4, 7] {
        store.handle(now + minutes * MINUTE, Input::Tick);
    }
    assert_eq!(store.get(KEY).unwrap().value.content(), ["b"]);
    assert!(store.local_state().len() < before);
    assert_eq!(store.stats().tombstones_removed, 1);
    assert_eq!(store.next_deadline(), None, "nothing is left to forget");
}

#[test]
fn with_timeouts_of_zero_nothing_is_forgotten() {
    let config = GossipConfig { left_timeout: Duration::ZERO, obsolete_timeout: Duration::ZERO, ..Default::default() };
    let (mut store, now) = (GossipStore::new(config, codecs()), start());
    insert(&mut store, now, KEY, "a", 1);
    remove(&mut store, now, KEY, "a");
    insert(&mut store, now, "app/two", "a", 1);
    store.delete(now, "app/two").unwrap();
    assert_eq!(store.next_deadline(), None);
    store.handle(now + 1000 * MINUTE, Input::Tick);
    assert_eq!(store.describe().len(), 2);
    assert_eq!(store.get(KEY).unwrap().value.content(), ["a"]);
}

#[test]
fn what_is_wrong_with_messages_is_counted_by_reason() {
    let (mut store, now) = (store(), start());
    let good = KeyValuePair::from_bytes(remote_pair(&map(now, &["a"]), false, 0)).unwrap();
    let mut message = |pair: &KeyValuePair| store.handle(now, Input::UserMessage(pair.to_bytes()));
    message(&KeyValuePair { key: "other".into(), ..good.clone() });
    message(&KeyValuePair { codec: "ringDesc".into(), ..good.clone() });
    message(&KeyValuePair { key: String::new(), ..good.clone() });
    message(&KeyValuePair { value: Bytes::from_static(b"\xff\xff"), ..good.clone() });
    message(&good);
    store.handle(now, Input::UserMessage(Bytes::new()));
    let mut state = BytesMut::new();
    append_state(&mut state, &good.to_bytes());
    append_state(&mut state, &KeyValuePair { key: "app/two".into(), ..good }.to_bytes());
    store.handle(now, Input::RemoteState { bytes: state.freeze().split_to(70), join: false });
    let stats = *store.stats();
    assert_eq!((stats.received, stats.states), (6, 1));
    assert_eq!((stats.invalid_key, stats.invalid_value, stats.invalid_pair, stats.dropped), (2, 1, 3, 0));
    assert_eq!(store.list(""), [KEY]);
}

#[test]
fn keys_beyond_the_limit_are_refused_and_counted() {
    let config = GossipConfig { max_keys: 2, ..GossipConfig::default() };
    let (mut full, now) = (GossipStore::new(config, codecs()), start());
    insert(&mut full, now, "app/1", "a", 1);
    insert(&mut full, now, "app/2", "a", 1);
    let error = full.join(now, "app/3", &Value::new(map(now, &["a"]))).unwrap_err();
    assert!(matches!(error, StoreError::Refused { .. }));
    full.handle(now, Input::UserMessage(remote_pair(&map(now, &["a"]), false, 0)));
    assert_eq!(full.stats().dropped, 1);
    insert(&mut full, now, "app/1", "b", 1);
    assert_eq!(full.stats().keys, 2);
    let mut other = store();
    (1..=3).for_each(|number| drop(insert(&mut other, now, &format!("app/{number}"), "c", 1)));
    full.handle(now, Input::RemoteState { bytes: other.local_state(), join: false });
    assert_eq!((full.stats().invalid_pair, full.list("").len()), (1, 2));
}

/// Protobuf codecs hold Snappy blocks; an empty block is one byte.
struct Snappy(CborCodec<Map>);

impl Codec for Snappy {
    fn id(&self) -> &str {
        "ringDesc"
    }

    fn encode(&self, value: &Value) -> Result<Vec<u8>, CodecError> {
        let plain = if value.is_empty() { Vec::new() } else { self.0.encode(value)? };
        snap::raw::Encoder::new().compress_vec(&plain).map_err(|error| CodecError::new("ringDesc", error.to_string()))
    }

    fn decode(&self, bytes: &[u8]) -> Result<Value, CodecError> {
        let plain = snap::raw::Decoder::new().decompress_vec(bytes);
        let plain = plain.map_err(|error| CodecError::new("ringDesc", error.to_string()))?;
        if plain.is_empty() { Ok(Value::new(Map::new())) } else { self.0.decode(&plain) }
    }

    fn to_json(&self, value: &Value) -> Result<serde_json::Value, CodecError> {
        self.0.to_json(value)
    }
}

#[test]
fn an_empty_value_is_taken_for_an_empty_snappy_block() {
    let codecs = Arc::new(Codecs::default());
    codecs.register("ring", Arc::new(Snappy(Map::codec())));
    let (mut store, now) = (GossipStore::new(GossipConfig::default(), codecs), start());
    let pair = KeyValuePair {
        key: "ring".into(),
        codec: "ringDesc".into(),
        deleted: true,
        update_time_millis: now.unix_millis(),
        value: Bytes::new(),
    };
    store.handle(now, Input::UserMessage(pair.to_bytes()));
    assert_eq!((store.stats().invalid_value, store.stats().deleted_keys), (0, 1));
    let expected = KeyValuePair { value: Bytes::from_static(&[0]), ..pair }.to_bytes();
    let mut state = BytesMut::new();
    append_state(&mut state, &expected);
    assert_eq!(store.local_state(), state);
}

#[test]
fn a_value_that_would_not_fit_a_message_is_refused() {
    let codecs = codecs();
    codecs.register("big", Arc::new(LwwMap::<String>::codec()));
    let (mut store, now) = (GossipStore::new(GossipConfig::default(), codecs), start());
    let half = "x".repeat(MAX_VALUE_LEN / 2);
    let mut write = |name: &str| {
        let mut map = LwwMap::new();
        map.insert(now, name, half.clone());
        store.join(now, "big", &Value::new(map))
    };
    write("a").unwrap();
    let error = write("b").unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { limit: MAX_VALUE_LEN, .. }), "{error}");
    assert_eq!(store.get("big").unwrap().value.content(), ["a"]);
    // Rewriting the same entry again and again is not growth.
    for step in 1..4_u32 {
        let now = now + step * MINUTE;
        let mut map = LwwMap::new();
        map.insert(now, "a", half.clone());
        store.join(now, "big", &Value::new(map)).unwrap();
    }
}

#[test]
fn a_store_resumed_after_a_crash_has_everything_and_its_pending_outputs() {
    let (mut first, now) = (store(), start());
    let contents = first.contents();
    insert(&mut first, now, KEY, "a", 1);
    insert(&mut first, now, "app/two", "a", 1);
    first.delete(now, "app/two").unwrap();
    let (state, stats) = (first.local_state(), *first.stats());
    drop(first);
    let mut second = GossipStore::resume(GossipConfig::default(), codecs(), contents);
    assert_eq!(second.local_state(), state);
    assert_eq!(second.stats(), &stats);
    assert_eq!(outputs(&mut second).0.len(), 3, "what the dead actor had not sent yet");
    let outcome = insert(&mut second, now, KEY, "b", 1);
    assert!(matches!(outcome, CasOutcome::Written { version: 4, .. }));
}

#[test]
fn a_panicking_callback_leaves_the_contents_whole() {
    let (mut store, now) = (store(), start());
    insert(&mut store, now, KEY, "a", 1);
    let contents = store.contents();
    let died = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        drop(store.cas(now, KEY, &mut |_| panic!("a bug in a callback")));
    }));
    assert!(died.is_err());
    let mut store = GossipStore::resume(GossipConfig::default(), codecs(), contents);
    insert(&mut store, now, KEY, "b", 1);
    assert_eq!(entries(&store, KEY).unwrap().len(), 2);
}

#[test]
fn own_changes_of_the_last_minute_can_be_broadcast_again() {
    let (mut store, now) = (store(), start());
    insert(&mut store, now, KEY, "ancient", 1);
    let now = now + 2 * MINUTE;
    insert(&mut store, now, KEY, "a", 1);
    insert(&mut store, now, KEY, "b", 1);
    insert(&mut store, now, "app/gone", "a", 1);
    store.delete(now, "app/gone").unwrap();
    store.handle(now, Input::UserMessage(remote_pair(&map(now, &["remote"]), false, 0)));
    outputs(&mut store);
    store.rebroadcast_own(now);
    let again = broadcasts(&mut store);
    assert_eq!(again.len(), 2);
    assert!(pair_of(&again[0]).deleted);
    assert_eq!((again[1].local, names(&again[1])), (true, vec!["a".to_owned(), "b".to_owned()]));
    store.rebroadcast_own(now + 2 * MINUTE);
    assert!(store.poll_output().is_none());
}

#[test]
fn the_description_shows_sizes_and_deleted_keys() {
    let (mut store, now) = (store(), start());
    insert(&mut store, now, KEY, "a", 1);
    insert(&mut store, now, "app/zwei", "a", 1);
    store.delete(now, "app/zwei").unwrap();
    let keys = store.describe();
    assert_eq!(keys.iter().map(|key| (&*key.key, key.deleted)).collect::<Vec<_>>(), [(KEY, false), ("app/zwei", true)]);
    let total: usize = keys.iter().map(|key| key.size + 4).sum();
    assert_eq!(total, store.local_state().len());
}
