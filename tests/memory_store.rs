//! The in-memory store keeps the contract of every store, and can be put out of reach.

#![allow(clippy::unwrap_used)]

/// Shared between the tests of all stores.
pub mod support {
    pub mod store_suite;
}

use std::sync::Arc;
use std::time::Duration;

use annulus::clock::Now;
use annulus::kv::{CasAction, Codecs, KeyChange, LwwMap, SharedStore, StoreError, StoreKind, Value, Watch};
use annulus::stores::memory::Memory;
use futures_util::StreamExt;
use support::store_suite::{self, Map, codecs};

#[tokio::test]
async fn the_memory_store_keeps_the_contract() {
    let memory = Memory::new();
    store_suite::run_linearizable(memory.store(codecs()), memory.store(codecs())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_memory_store_keeps_the_contract_with_threads() {
    let memory = Memory::new();
    store_suite::run_linearizable(memory.store(codecs()), memory.store(codecs())).await;
}

async fn put(store: &SharedStore, key: &str, value: i64) {
    let write = move |_: Option<&Value>| {
        let mut map = Map::new();
        map.insert(Now::read(), "x", value);
        CasAction::Write(Value::new(map))
    };
    store.cas(key, Box::new(write)).await.unwrap();
}

async fn next(watch: &mut Watch) -> KeyChange {
    tokio::time::timeout(Duration::from_secs(10), watch.next()).await.expect("a report").expect("no end")
}

fn value(change: &KeyChange) -> Option<i64> {
    change.entry.as_ref()?.value.downcast_ref::<Map>()?.get("x").copied()
}

/// Nothing is ready to be read, now and without waiting.
async fn assert_silent(watch: &mut Watch) {
    let mut silent = true;
    std::future::poll_fn(|context| {
        silent = watch.as_mut().poll_next_unpin(context).is_pending();
        std::task::Poll::Ready(())
    })
    .await;
    assert!(silent, "an unexpected report");
}

#[tokio::test]
async fn out_of_reach_every_operation_fails_and_nothing_is_written() {
    let memory = Memory::new();
    let store = memory.store(codecs());
    assert_eq!(store.kind(), StoreKind::InMemory);
    put(&store, "suite/k", 1).await;
    memory.set_available(false);
    let unavailable = |error| matches!(error, StoreError::Unavailable { store: StoreKind::InMemory, .. });
    assert!(unavailable(store.get("suite/k").await.unwrap_err()));
    assert!(unavailable(store.list("").await.unwrap_err()));
    assert!(unavailable(store.cas("suite/k", Box::new(|_| CasAction::Keep)).await.unwrap_err()));
    assert!(unavailable(store.join("suite/k", Value::new(Map::new())).await.unwrap_err()));
    assert!(unavailable(store.delete("suite/k").await.unwrap_err()));
    memory.set_available(true);
    assert_eq!(store.list("").await.unwrap(), ["suite/k"]);
}

#[tokio::test]
async fn a_watch_reports_an_outage_once_and_the_return_with_the_current_value() {
    let memory = Memory::new();
    let store = memory.store(codecs());
    put(&store, "suite/k", 1).await;
    let (mut key, mut prefix) = (store.watch_key("suite/k"), store.watch_prefix("suite/"));
    for watch in [&mut key, &mut prefix] {
        let first = next(watch).await;
        assert_eq!((value(&first), first.fresh), (Some(1), true));
    }
    memory.set_available(false);
    for watch in [&mut key, &mut prefix] {
        let lost = next(watch).await;
        assert_eq!((value(&lost), lost.fresh), (Some(1), false), "the last known value, marked as such");
        memory.set_available(false);
        assert_silent(watch).await;
    }
    memory.put_bytes("suite/other", memory.bytes("suite/k").unwrap());
    memory.set_available(true);
    let back = next(&mut key).await;
    assert_eq!((value(&back), back.fresh), (Some(1), true), "unchanged, but fresh again");
    let back = [next(&mut prefix).await, next(&mut prefix).await];
    assert!(back.iter().all(|change| change.fresh && value(change) == Some(1)));
    assert_silent(&mut key).await;
    assert_silent(&mut prefix).await;
}

#[tokio::test]
async fn a_watch_that_begins_during_an_outage_says_so() {
    let memory = Memory::new();
    let store = memory.store(codecs());
    memory.set_available(false);
    let (mut key, mut prefix) = (store.watch_key("suite/k"), store.watch_prefix("suite/"));
    for watch in [&mut key, &mut prefix] {
        let first = next(watch).await;
        assert!(!first.fresh && first.entry.is_none());
    }
    memory.set_available(true);
    for watch in [&mut key, &mut prefix] {
        let back = next(watch).await;
        assert!(back.fresh && back.entry.is_none());
    }
}

#[tokio::test]
async fn changes_that_come_faster_than_they_are_read_are_coalesced() {
    let memory = Memory::new();
    let store = memory.store(codecs());
    let mut watch = store.watch_prefix("suite/");
    assert_silent(&mut watch).await;
    for number in 0..100 {
        put(&store, "suite/k", number).await;
    }
    assert_eq!(value(&next(&mut watch).await), Some(99));
    assert_silent(&mut watch).await;
}

#[tokio::test]
async fn what_does_not_decode_is_an_error_for_readers_and_no_fresh_news_for_watches() {
    let memory = Memory::new();
    let store = memory.store(codecs());
    put(&store, "suite/k", 1).await;
    let good = memory.bytes("suite/k").unwrap();
    let mut watch = store.watch_key("suite/k");
    next(&mut watch).await;
    memory.put_bytes("suite/k", "not cbor");
    assert!(matches!(store.get("suite/k").await, Err(StoreError::Decode { .. })));
    let error = store.cas("suite/k", Box::new(|_| CasAction::Keep)).await.unwrap_err();
    assert!(matches!(error, StoreError::Decode { .. }));
    let report = next(&mut watch).await;
    assert!(!report.fresh && value(&report) == Some(1), "go on from this, but do not expect news: {report:?}");
    assert_silent(&mut watch).await;
    let first = next(&mut store.watch_key("suite/k")).await;
    assert!(!first.fresh, "there is something, but nobody knows what");
    memory.put_bytes("suite/k", good);
    assert_eq!(value(&next(&mut watch).await), Some(1));
}

#[tokio::test]
async fn keys_without_a_codec_and_values_of_another_type_are_refused() {
    let memory = Memory::new();
    let store = memory.store(codecs());
    let none = memory.store(Arc::new(Codecs::default()));
    put(&store, "suite/k", 1).await;
    assert!(matches!(none.get("suite/k").await, Err(StoreError::NoCodec { .. })));
    let mut other = LwwMap::<String>::new();
    other.insert(Now::read(), "x", "text".to_owned());
    for key in ["suite/k", "suite/new"] {
        let error = store.join(key, Value::new(other.clone())).await.unwrap_err();
        assert!(matches!(error, StoreError::Type { .. }), "{error}");
    }
    assert_eq!(store.list("").await.unwrap(), ["suite/k"]);
}

#[tokio::test]
async fn a_write_that_always_loses_the_race_is_a_conflict() {
    let memory = Memory::new();
    let store = memory.store(codecs());
    put(&store, "suite/k", 1).await;
    let (rival, mut attempts) = (memory.clone(), 0);
    let write = move |old: Option<&Value>| {
        attempts += 1;
        let mut map = old.unwrap().downcast_ref::<Map>().unwrap().clone();
        map.insert(Now::read(), "mine", attempts);
        // Somebody else writes between our read and our write.
        rival.put_bytes("suite/k", rival.bytes("suite/k").unwrap());
        CasAction::Write(Value::new(map))
    };
    let error = store.cas("suite/k", Box::new(write)).await.unwrap_err();
    assert!(matches!(error, StoreError::Conflict { attempts: 10, .. }), "{error}");
    let (rival, mut lost) = (memory.clone(), 0);
    let write = move |old: Option<&Value>| {
        let mut map = old.unwrap().downcast_ref::<Map>().unwrap().clone();
        map.insert(Now::read(), "mine", lost);
        if lost < 9 {
            lost += 1;
            rival.put_bytes("suite/k", rival.bytes("suite/k").unwrap());
        }
        CasAction::Write(Value::new(map))
    };
    store.cas("suite/k", Box::new(write)).await.unwrap();
    let entry = store.get("suite/k").await.unwrap().unwrap();
    assert_eq!(entry.value.downcast_ref::<Map>().unwrap().get("mine"), Some(&9));
}
