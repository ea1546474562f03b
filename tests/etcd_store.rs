//! The etcd store against a real etcd, directly and through a relay that breaks connections.
#![cfg(feature = "etcd")]
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use annulus::clock::Now;
use annulus::kv::{CasAction, CasOutcome, Codecs, KeyChange, SharedStore, Store, StoreError, Value, Watch};
use annulus::stores::etcd::{EtcdConfig, EtcdStore, REQUEST_LIMIT};
use futures_util::StreamExt as _;
use support::etcd::Etcd;
use support::notes::{Notes, NotesCodec};
use support::relay::{Line, Relay};
use support::{store_suite, wait_until};

/// Longer than anything takes that does come; a test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

fn codecs() -> Arc<Codecs> {
    let codecs = Codecs::default();
    codecs.register("", Arc::new(NotesCodec));
    Arc::new(codecs)
}

fn config(host: String) -> EtcdConfig {
    EtcdConfig { endpoints: vec![host], ..EtcdConfig::default() }
}

fn open(config: EtcdConfig) -> Arc<EtcdStore> {
    EtcdStore::new(config, codecs()).unwrap()
}

async fn set(store: &EtcdStore, key: &str, name: &'static str, text: &str) -> Result<CasOutcome, StoreError> {
    let text = text.to_owned();
    let write = move |current: Option<&Value>| {
        let mut notes = Notes::of(current);
        notes.set(name, &text);
        CasAction::Write(Value::new(notes))
    };
    store.cas(key, Box::new(write)).await
}

async fn read(store: &EtcdStore, key: &str) -> Notes {
    Notes::of(store.get(key).await.unwrap().map(|entry| entry.value).as_ref())
}

async fn next(watch: &mut Watch) -> KeyChange {
    tokio::time::timeout(PATIENCE, watch.next()).await.expect("no change came").expect("the watch ended")
}

/// The next change that satisfies the condition; those before it are passed to it as well.
async fn next_where(watch: &mut Watch, mut condition: impl FnMut(&KeyChange) -> bool) -> KeyChange {
    loop {
        let change = next(watch).await;
        if condition(&change) {
            return change;
        }
    }
}

fn notes(change: &KeyChange) -> Notes {
    Notes::of(change.entry.as_ref().map(|entry| &entry.value))
}

fn text(name: &str, text: &str, at: i64) -> Vec<u8> {
    serde_json::to_vec(&Notes::dated(name, text, at)).unwrap()
}

async fn suite(version: &str) {
    let Some(etcd) = Etcd::start_version(version) else { return };
    let client = || -> SharedStore {
        let config = EtcdConfig { keep_tombstones: true, ..config(etcd.host()) };
        EtcdStore::new(config, store_suite::codecs()).unwrap()
    };
    store_suite::run_linearizable(client(), client()).await;
}

#[tokio::test]
async fn it_keeps_the_contract_of_a_store_in_etcd_3_5() {
    suite("etcd-3.5").await;
}

#[tokio::test]
async fn it_keeps_the_contract_of_a_store_in_etcd_3_4() {
    suite("etcd-3.4").await;
}

#[tokio::test]
async fn a_write_tells_its_revision_and_removed_entries_are_absent() {
    let Some(etcd) = Etcd::start() else { return };
    let store = open(config(etcd.host()));
    for text in ["1", "2"] {
        let CasOutcome::Written { version, .. } = set(&store, "key", "a", text).await.unwrap() else { panic!() };
        assert_eq!(etcd.bytes("key").unwrap().2, version);
        assert_eq!(store.get("key").await.unwrap().unwrap().version, version);
    }
    let forget = |current: Option<&Value>| {
        let mut notes = Notes::of(current);
        notes.forget("a");
        CasAction::Write(Value::new(notes))
    };
    assert!(matches!(store.cas("key", Box::new(forget)).await, Ok(CasOutcome::Written { .. })));
    assert_eq!(etcd.bytes("key").unwrap().0, b"{}");
}

#[tokio::test]
async fn three_writers_of_two_processes_lose_no_increment() {
    let Some(etcd) = Etcd::start() else { return };
    let increment = async |store: Arc<EtcdStore>| {
        for _ in 0..50 {
            let add = || {
                Box::new(|current: Option<&Value>| {
                    let mut notes = Notes::of(current);
                    let count: u32 = notes.get("count").map_or(0, |count| count.parse().unwrap());
                    notes.set("count", &(count + 1).to_string());
                    CasAction::Write(Value::new(notes))
                })
            };
            while let Err(error) = store.cas("counter", add()).await {
                assert!(matches!(error, StoreError::Conflict { .. }), "{error}");
            }
        }
    };
    let (a, b) = (open(config(etcd.host())), open(config(etcd.host())));
    tokio::join!(increment(a.clone()), increment(a.clone()), increment(b.clone()));
    assert_eq!(read(&a, "counter").await.get("count"), Some("150"));
}

#[tokio::test]
async fn a_key_that_was_deleted_and_created_in_between_is_not_the_key_that_was_read() {
    let Some(etcd) = Etcd::start() else { return };
    let etcd = Arc::new(etcd);
    let store = open(config(etcd.host()));
    etcd.put("key", &text("old", "x", 1));
    let (_, before, _) = etcd.bytes("key").unwrap();
    let (server, mut calls) = (etcd.clone(), 0);
    let write = move |current: Option<&Value>| {
        calls += 1;
        if calls == 1 {
            server.delete("key");
            server.put("key", &text("other", "y", 1));
            // What etcd calls version is the same as before: a write that compared it would overwrite `other`.
            assert_eq!(server.bytes("key").unwrap().1, before);
        }
        let mut notes = Notes::of(current);
        notes.set("mine", "z");
        CasAction::Write(Value::new(notes))
    };
    assert!(matches!(store.cas("key", Box::new(write)).await, Ok(CasOutcome::Written { .. })));
    let notes = read(&store, "key").await;
    assert_eq!((notes.get("old"), notes.get("other"), notes.get("mine")), (None, Some("y"), Some("z")));
}

#[tokio::test]
async fn a_key_that_vanishes_while_it_is_written_is_created_anew_and_one_that_appears_is_kept() {
    let Some(etcd) = Etcd::start() else { return };
    let etcd = Arc::new(etcd);
    let store = open(EtcdConfig { max_retries: 2, ..config(etcd.host()) });
    etcd.put("gone", &text("old", "x", 1));
    for (key, appears) in [("gone", false), ("new", true)] {
        let (server, mut calls) = (etcd.clone(), 0);
        let write = move |current: Option<&Value>| {
            calls += 1;
            match (calls, appears) {
                (1, true) => server.put(key, &text("other", "y", 1)),
                (1, false) => server.delete(key),
                _ => {}
            }
            let mut notes = Notes::of(current);
            notes.set("mine", "z");
            CasAction::Write(Value::new(notes))
        };
        assert!(matches!(store.cas(key, Box::new(write)).await, Ok(CasOutcome::Written { .. })));
        let notes = read(&store, key).await;
        assert_eq!((notes.get("old"), notes.get("mine")), (None, Some("z")));
        assert_eq!(notes.get("other").is_some(), appears);
    }
}

#[tokio::test]
async fn a_writer_that_loses_each_time_is_told_so() {
    let Some(etcd) = Etcd::start() else { return };
    let etcd = Arc::new(etcd);
    let store = open(EtcdConfig { max_retries: 3, cas_retry_delay: Duration::ZERO, ..config(etcd.host()) });
    let server = etcd.clone();
    let interfered = move |current: Option<&Value>| {
        server.put("key", &text("other", "y", 1));
        let mut notes = Notes::of(current);
        notes.set("mine", "x");
        CasAction::Write(Value::new(notes))
    };
    let lost = store.cas("key", Box::new(interfered)).await;
    assert!(matches!(lost, Err(StoreError::Conflict { attempts: 3, .. })), "{lost:?}");
    assert!(read(&store, "key").await.get("mine").is_none());
}

#[tokio::test]
async fn a_value_that_is_too_large_is_told_before_and_by_the_server() {
    let Some(etcd) = Etcd::start() else { return };
    let store = open(config(etcd.host()));
    let refused = set(&store, "key", "a", &"x".repeat(REQUEST_LIMIT)).await;
    let Err(StoreError::TooLarge { size, limit, .. }) = refused else { panic!("{refused:?}") };
    assert!(size > REQUEST_LIMIT && limit < REQUEST_LIMIT);
    // The limit that was told is one that etcd keeps: a value of just that size is stored.
    let overhead = text("a", "", 1_000_000_000_000).len();
    set(&store, "key", "a", &"x".repeat(limit - overhead)).await.unwrap();
    assert_eq!(etcd.bytes("key").unwrap().0.len(), limit);
    let refused = set(&store, "key", "a", &"x".repeat(limit - overhead + 1)).await;
    assert!(matches!(refused, Err(StoreError::TooLarge { .. })), "{refused:?}");
    assert_eq!(read(&store, "key").await.get("a").unwrap().len(), limit - overhead);

    let small = Etcd::start_with("etcd-3.5", &["--max-request-bytes=4096".to_owned()]);
    let Some(small) = small else { return };
    let store = open(config(small.host()));
    let refused = set(&store, "key", "a", &"x".repeat(8192)).await;
    assert!(matches!(refused, Err(StoreError::TooLarge { limit, .. }) if limit < 9000), "{refused:?}");
    assert!(small.bytes("key").is_none());
}

#[tokio::test]
async fn strange_keys_are_what_they_seem_and_an_empty_one_is_refused() {
    let Some(etcd) = Etcd::start() else { return };
    let store = open(config(etcd.host()));
    assert_eq!(store.list("").await.unwrap(), Vec::<String>::new());
    let mut keys = ["/a", "a b", "a//b", "a/../b", "ring/ü", "ring/\u{10ffff}", "ring0"].map(str::to_owned);
    for key in &keys {
        set(&store, key, "key", key).await.unwrap();
    }
    for key in &keys {
        assert_eq!(read(&store, key).await.get("key"), Some(key.as_str()));
    }
    keys.sort();
    assert_eq!(store.list("").await.unwrap(), keys);
    assert_eq!(store.list("ring/").await.unwrap(), ["ring/ü", "ring/\u{10ffff}"]);
    assert!(matches!(set(&store, "", "a", "x").await, Err(StoreError::Refused { .. })));
    assert!(matches!(store.delete("").await, Err(StoreError::Refused { .. })));
}

#[tokio::test]
async fn a_value_that_does_not_decode_stays_as_it_is() {
    let Some(etcd) = Etcd::start() else { return };
    let store = open(config(etcd.host()));
    etcd.put("key", b"not notes");
    assert!(matches!(store.get("key").await, Err(StoreError::Decode { .. })));
    assert!(matches!(set(&store, "key", "a", "x").await, Err(StoreError::Decode { .. })));
    assert_eq!(etcd.bytes("key").unwrap().0, b"not notes");
    let mut watch = store.watch_key("key");
    assert!(!next(&mut watch).await.fresh, "no news must not look like nothing happened");
    etcd.put("key", &text("a", "repaired", 1));
    let repaired = next_where(&mut watch, |change| change.fresh).await;
    assert_eq!(notes(&repaired).get("a"), Some("repaired"));
}

#[tokio::test]
async fn a_watch_begins_with_what_is_there_and_follows_changes_and_deletion() {
    let Some(etcd) = Etcd::start() else { return };
    let store = open(config(etcd.host()));
    let mut missing = store.watch_key("key");
    let first = next(&mut missing).await;
    assert!(first.fresh && first.entry.is_none() && &*first.key == "key");
    etcd.put("key", &text("a", "1", 1));
    assert_eq!(notes(&next(&mut missing).await).get("a"), Some("1"));

    let mut existing = store.watch_key("key");
    let mut prefix = store.watch_prefix("k");
    for watch in [&mut existing, &mut prefix] {
        let first = next(watch).await;
        assert_eq!(notes(&first).get("a"), Some("1"));
        assert_eq!(first.entry.unwrap().version, etcd.bytes("key").unwrap().2);
    }
    etcd.delete("key");
    assert!(next(&mut existing).await.entry.is_none());
    assert!(next(&mut prefix).await.entry.is_none());
    etcd.put("other", &text("a", "x", 1));
    etcd.put("key", &text("a", "2", 2));
    assert_eq!(notes(&next(&mut existing).await).get("a"), Some("2"));
    assert_eq!(&*next(&mut prefix).await.key, "key", "and not the key outside of the prefix");
}

#[tokio::test]
async fn a_watch_whose_history_was_compacted_reads_again_and_goes_on() {
    let Some(etcd) = Etcd::start() else { return };
    etcd.put("watched-key", &text("a", "1", 1));
    // The first time that the key is sent is the read, the second time is the watch: it is held up in between.
    let relay = Relay::holding(etcd.addr(), "watched-key", 2).await;
    let store = open(EtcdConfig { request_timeout: PATIENCE, ..config(relay.host()) });
    let mut watch = store.watch_key("watched-key");
    assert_eq!(notes(&next(&mut watch).await).get("a"), Some("1"));
    assert!(wait_until(PATIENCE, async || relay.occurrences() == 2).await);
    for round in 2..=5 {
        etcd.put("watched-key", &text("a", &round.to_string(), round));
    }
    etcd.compact();
    relay.release();
    let change = next_where(&mut watch, |change| {
        assert!(change.fresh, "compaction is no outage: {change:?}");
        notes(change).get("a") == Some("5")
    })
    .await;
    assert_eq!(change.entry.unwrap().version, etcd.bytes("watched-key").unwrap().2);
    assert!(relay.occurrences() >= 3, "without another read the compacted write cannot be known");
    etcd.put("watched-key", &text("a", "6", 6));
    assert_eq!(notes(&next(&mut watch).await).get("a"), Some("6"));
}

#[tokio::test]
async fn a_watch_whose_connection_is_cut_again_and_again_loses_nothing() {
    let Some(etcd) = Etcd::start() else { return };
    let relay = Relay::start(etcd.addr()).await;
    let store = open(config(relay.host()));
    let (mut watch, mut prefix) = (store.watch_key("ring/key"), store.watch_prefix("ring/"));
    next(&mut watch).await;
    let mut last = 0;
    for round in 1..=8 {
        relay.cut();
        etcd.put("ring/key", &text("a", &round.to_string(), round));
        if round % 2 == 0 {
            etcd.delete("ring/other");
        } else {
            etcd.put("ring/other", &text("a", "x", round));
        }
        for watch in [&mut watch, &mut prefix] {
            next_where(watch, |change| {
                let Some(seen) = notes(change).get("a").and_then(|seen| seen.parse::<i64>().ok()) else { return false };
                assert!(seen >= last && seen <= round, "from {last} to {seen}");
                &*change.key == "ring/key" && change.fresh && seen == round
            })
            .await;
        }
        last = round;
    }
    assert!(relay.connections() > 8, "the relay did not cut");
    // The other key's last word was its deletion.
    assert_eq!(store.list("ring/").await.unwrap(), ["ring/key"]);
    let mut fresh = store.watch_prefix("ring/");
    assert_eq!(&*next(&mut fresh).await.key, "ring/key");
}

#[tokio::test]
async fn a_server_that_hangs_is_a_timeout_and_watches_say_that_they_lost_it() {
    let Some(etcd) = Etcd::start() else { return };
    etcd.put("key", &text("a", "before", 1));
    let relay = Relay::start(etcd.addr()).await;
    let store = open(EtcdConfig { request_timeout: Duration::from_secs(1), ..config(relay.host()) });
    let (mut watch, mut quiet) = (store.watch_key("key"), store.watch_prefix("none/"));
    assert_eq!(store.watch_age(Now::read()), None, "nobody has read a watch yet");
    assert_eq!(notes(&next(&mut watch).await).get("a"), Some("before"));
    let heard = Now::read();
    relay.set(Line::Stuck);
    let hangs = set(&store, "key", "a", "x").await;
    assert!(matches!(hangs, Err(StoreError::Timeout { after, .. }) if after == Duration::from_secs(1)), "{hangs:?}");
    let lost = next(&mut watch).await;
    assert!(!lost.fresh && notes(&lost).get("a") == Some("before"), "{lost:?}");
    assert!(!next_where(&mut quiet, |change| !change.fresh).await.fresh);
    let age = store.watch_age(Now::read()).expect("two watches");
    assert!(age >= Duration::from_secs(1), "a report of the outage is no answer of etcd: {age:?}");
    etcd.put("key", &text("a", "meanwhile", 2));
    relay.set(Line::Open);
    let back = next_where(&mut watch, |change| change.fresh).await;
    assert_eq!(notes(&back).get("a"), Some("meanwhile"));
    assert!(next_where(&mut quiet, |change| change.fresh).await.entry.is_none());
    let now = Now::read();
    assert!(store.watch_age(now).expect("two watches") < now.mono - heard.mono, "both were answered since");
    drop((watch, quiet));
    assert!(wait_until(PATIENCE, async || store.watch_age(Now::read()).is_none()).await);
}

#[tokio::test]
async fn a_store_that_is_out_of_reach_at_first_is_watched_when_it_appears() {
    let Some(etcd) = Etcd::start() else { return };
    etcd.put("key", &text("a", "x", 1));
    let relay = Relay::start(etcd.addr()).await;
    relay.set(Line::Closed);
    let store = open(config(relay.host()));
    assert!(matches!(store.get("key").await, Err(StoreError::Unavailable { .. })));
    let (mut watch, mut prefix) = (store.watch_key("key"), store.watch_prefix("k"));
    for watch in [&mut watch, &mut prefix] {
        let first = next(watch).await;
        assert!(!first.fresh && first.entry.is_none());
    }
    relay.set(Line::Open);
    for watch in [&mut watch, &mut prefix] {
        let change = next(watch).await;
        assert!(change.fresh);
        assert_eq!(notes(&change).get("a"), Some("x"));
    }
}

#[tokio::test]
async fn a_restart_of_etcd_is_an_outage_and_nothing_more() {
    let Some(mut etcd) = Etcd::start() else { return };
    let store = open(config(etcd.host()));
    set(&store, "key", "a", "before").await.unwrap();
    let mut watch = store.watch_key("key");
    let first = next(&mut watch).await;
    etcd.restart();
    etcd.put("key", &text("a", "after", i64::MAX - 1));
    let change = next_where(&mut watch, |change| change.fresh && notes(change).get("a") == Some("after")).await;
    assert!(change.entry.unwrap().version > first.entry.unwrap().version);
    assert!(wait_until(PATIENCE, async || set(&store, "key", "b", "x").await.is_ok()).await);
}

#[tokio::test]
async fn a_watch_goes_on_with_an_etcd_that_lost_everything_and_never_shows_less() {
    let Some(mut etcd) = Etcd::start() else { return };
    let store = open(config(etcd.host()));
    for round in 0..20 {
        set(&store, "key", "old", &round.to_string()).await.unwrap();
    }
    let mut watch = store.watch_key("key");
    let first = next(&mut watch).await;
    assert_eq!(notes(&first).get("old"), Some("19"));
    etcd.replace();
    etcd.put("key", &text("new", "x", 1));
    let mut version = first.entry.unwrap().version;
    assert!(etcd.revision() < version, "a real reset");
    next_where(&mut watch, |change| {
        assert_eq!(notes(change).get("old"), Some("19"), "{change:?}");
        let shown = change.entry.as_ref().unwrap().version;
        assert!(shown >= version);
        version = shown;
        change.fresh && notes(change).get("new") == Some("x")
    })
    .await;
}

#[tokio::test]
async fn the_next_server_is_asked_when_one_fails() {
    let Some(etcd) = Etcd::start() else { return };
    let (first, second) = (Relay::start(etcd.addr()).await, Relay::start(etcd.addr()).await);
    let endpoints = vec!["127.0.0.1:1".to_owned(), first.host(), second.host()];
    let store = open(EtcdConfig { endpoints, ..EtcdConfig::default() });
    set(&store, "key", "a", "1").await.unwrap();
    let mut watch = store.watch_key("key");
    next(&mut watch).await;
    assert_eq!((first.connections(), second.connections()), (1, 0), "one that works is kept");
    first.set(Line::Closed);
    assert_eq!(read(&store, "key").await.get("a"), Some("1"));
    etcd.put("key", &text("a", "2", i64::MAX - 1));
    next_where(&mut watch, |change| {
        assert!(change.fresh, "there was a server all the time: {change:?}");
        notes(change).get("a") == Some("2")
    })
    .await;
    assert!(second.connections() >= 1);
}

#[tokio::test]
async fn an_account_logs_in_and_again_when_its_token_is_gone() {
    for version in support::etcd::VERSIONS {
        // Tokens are in the server's memory, and are forgotten by a restart.
        let Some(mut etcd) = Etcd::start_version(version) else { continue };
        let account = |password: &str| EtcdConfig {
            username: "ring".to_owned(),
            password: password.to_owned(),
            ..config(etcd.host())
        };
        let (store, wrong) = (open(account("secret")), open(account("wrong")));
        let (stranger, early) = (open(config(etcd.host())), open(account("secret")));
        // As long as there are no accounts, any is good.
        set(&early, "ring/key", "a", "0").await.unwrap();
        let mut watch = early.watch_prefix("ring/");
        next(&mut watch).await;
        etcd.enable_accounts("ring", "secret", "ring/");
        set(&early, "ring/key", "a", "1").await.unwrap();
        set(&store, "ring/key", "a", "2").await.unwrap();
        next_where(&mut watch, |change| notes(change).get("a") == Some("2")).await;
        for refused in [
            store.get("other/key").await.map(drop),
            store.list("").await.map(drop),
            set(&store, "other/key", "a", "x").await.map(drop),
            wrong.get("ring/key").await.map(drop),
            stranger.get("ring/key").await.map(drop),
        ] {
            assert!(matches!(refused, Err(StoreError::Refused { .. })), "{version}: {refused:?}");
        }
        let error = wrong.get("ring/key").await.unwrap_err().to_string();
        assert!(error.contains("authentication failed") && !error.contains("wrong"), "{error}");

        etcd.restart();
        let back = async || set(&store, "ring/key", "a", "3").await.is_ok();
        assert!(wait_until(PATIENCE, back).await, "{version}: {:?}", set(&store, "ring/key", "a", "3").await);
        next_where(&mut watch, |change| change.fresh && notes(change).get("a") == Some("3")).await;
    }
}

#[cfg(feature = "etcd-tls")]
#[tokio::test]
async fn tls_is_proven_both_ways_and_strangers_get_nowhere() {
    use annulus::stores::etcd::EtcdTls;
    use support::consul::certificates;

    let (Some(ours), Some(theirs)) = (certificates(), certificates()) else { return };
    let file = |name: &str| ours.path().join(name);
    let argument = |name: &str, path: &str| format!("--{name}={}", file(path).display());
    let arguments = [
        argument("cert-file", "dc1-server-consul-0.pem"),
        argument("key-file", "dc1-server-consul-0-key.pem"),
        argument("trusted-ca-file", "consul-agent-ca.pem"),
        "--client-cert-auth".to_owned(),
    ];
    let Some(etcd) = Etcd::start_with("etcd-3.5", &arguments) else { return };
    let good = || EtcdTls {
        ca_path: Some(file("consul-agent-ca.pem")),
        cert_path: Some(file("dc1-client-consul-0.pem")),
        key_path: Some(file("dc1-client-consul-0-key.pem")),
        server_name: None,
    };
    let with = |tls| EtcdConfig { tls: Some(tls), ..config(etcd.host()) };
    let store = open(with(good()));
    set(&store, "key", "a", "1").await.unwrap();
    let mut watch = store.watch_key("key");
    assert_eq!(notes(&next(&mut watch).await).get("a"), Some("1"));
    let named = EtcdTls { server_name: Some("server.dc1.consul".to_owned()), ..good() };
    set(&open(with(named)), "key", "a", "2").await.unwrap();
    next_where(&mut watch, |change| notes(change).get("a") == Some("2")).await;

    let strangers = [
        with(EtcdTls { server_name: Some("another.name".to_owned()), ..good() }),
        with(EtcdTls { ca_path: Some(theirs.path().join("consul-agent-ca.pem")), ..good() }),
        with(EtcdTls { cert_path: None, key_path: None, ..good() }),
        with(EtcdTls {
            cert_path: Some(theirs.path().join("dc1-client-consul-0.pem")),
            key_path: Some(theirs.path().join("dc1-client-consul-0-key.pem")),
            ..good()
        }),
        config(etcd.host()),
    ];
    for stranger in strangers {
        let refused = open(stranger.clone()).get("key").await;
        assert!(matches!(refused, Err(StoreError::Unavailable { .. })), "{stranger:?}: {refused:?}");
    }
    for unusable in [
        EtcdTls { ca_path: Some(file("missing.pem")), ..good() },
        EtcdTls { key_path: None, ..good() },
        EtcdTls { key_path: Some(file("consul-agent-ca.pem")), ..good() },
    ] {
        assert!(EtcdStore::new(with(unusable.clone()), codecs()).is_err(), "{unusable:?}");
    }
}

#[tokio::test]
async fn the_size_that_is_told_is_the_size_that_is_taken() {
    let Some(etcd) = Etcd::start_with("etcd-3.5", &["--max-request-bytes=600000".to_owned()]) else { return };
    let of = |length: usize| {
        let mut notes = Notes::default();
        notes.set("a", &"x".repeat(length));
        Value::new(notes)
    };
    // Both the usual limit of another server and the lower one of this, each told to the client.
    for (limit, room) in [(600_000, 590_000), (300_000, 290_000)] {
        let store = open(EtcdConfig { max_request_bytes: limit, ..config(etcd.host()) });
        assert!(store.limits_values());
        let empty = store.size_of("key", &of(0)).unwrap();
        let largest = empty.limit - empty.size - 8;
        assert!(largest > room, "{empty:?}");
        let fits = store.size_of("key", &of(largest)).unwrap();
        assert!(!fits.is_over() && fits.is_near(), "{fits:?}");
        store.join("key", of(largest)).await.unwrap();
        assert_eq!(etcd.bytes("key").unwrap().0.len(), fits.size, "as it is stored");
        etcd.delete("key");
        let over = store.size_of("key", &of(largest + 100)).unwrap();
        assert!(over.is_over(), "{over:?}");
        let refused = store.join("key", of(largest + 100)).await;
        assert!(matches!(refused, Err(StoreError::TooLarge { size, .. }) if size == over.size), "{refused:?}");
    }
}

#[tokio::test]
async fn a_dropped_watch_ends_its_task() {
    let Some(etcd) = Etcd::start() else { return };
    let codecs = codecs();
    let store = EtcdStore::new(config(etcd.host()), codecs.clone()).unwrap();
    let mut watch = store.watch_key("key");
    next(&mut watch).await;
    drop(store);
    assert!(Arc::strong_count(&codecs) > 1, "the watch outlives the store's handle");
    drop(watch);
    assert!(wait_until(PATIENCE, async || Arc::strong_count(&codecs) == 1).await);
}

#[test]
fn settings_that_cannot_work_are_refused_at_once() {
    let good = || config("host:2379".to_owned());
    let bad = [
        EtcdConfig::default(),
        config(String::new()),
        config("host".to_owned()),
        config("user@host:2379".to_owned()),
        config("https://host:2379".to_owned()),
        config("host:2379/v3".to_owned()),
        config("host:99999".to_owned()),
        config("host:0".to_owned()),
        EtcdConfig { dial_timeout: Duration::ZERO, ..good() },
        EtcdConfig { request_timeout: Duration::ZERO, ..good() },
        EtcdConfig { password: "x".to_owned(), ..good() },
    ];
    for config in bad {
        assert!(EtcdStore::new(config.clone(), codecs()).is_err(), "{config:?}");
    }
    for address in ["host:2379", "http://host:2379", "[::1]:2379"] {
        assert!(EtcdStore::new(config(address.to_owned()), codecs()).is_ok(), "{address}");
    }
}
