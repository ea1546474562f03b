//! The Consul store against a real Consul, directly and through a proxy that breaks things.
#![cfg(feature = "consul")]
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use annulus::clock::Now;
use annulus::kv::{CasAction, CasOutcome, Codecs, KeyChange, SharedStore, Store, StoreError, Value, Watch};
use annulus::stores::consul::{ConsulConfig, ConsulStore, VALUE_LIMIT};
use base64::Engine as _;
use futures_util::StreamExt as _;
use support::consul::Consul;
use support::notes::{Notes, NotesCodec};
use support::proxy::{Fault, FaultProxy};
use support::{store_suite, wait_until};

/// Longer than anything takes that does come; a test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(30);

fn codecs() -> Arc<Codecs> {
    let codecs = Codecs::default();
    codecs.register("", Arc::new(NotesCodec));
    Arc::new(codecs)
}

fn config(host: String) -> ConsulConfig {
    ConsulConfig { host, http_client_timeout: Duration::from_secs(5), watch_rate_limit: 0.0, ..ConsulConfig::default() }
}

fn open(config: ConsulConfig) -> Arc<ConsulStore> {
    ConsulStore::new(config, codecs()).unwrap()
}

async fn set(store: &ConsulStore, key: &str, name: &'static str, text: &str) -> Result<CasOutcome, StoreError> {
    let text = text.to_owned();
    let write = move |current: Option<&Value>| {
        let mut notes = Notes::of(current);
        notes.set(name, &text);
        CasAction::Write(Value::new(notes))
    };
    store.cas(key, Box::new(write)).await
}

async fn forget(store: &ConsulStore, key: &str, name: &'static str) {
    let write = move |current: Option<&Value>| {
        let mut notes = Notes::of(current);
        notes.forget(name);
        CasAction::Write(Value::new(notes))
    };
    assert!(matches!(store.cas(key, Box::new(write)).await, Ok(CasOutcome::Written { .. })));
}

async fn read(store: &ConsulStore, key: &str) -> Notes {
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

/// Consul's answer for one key, as the proxy would invent it.
fn invented(index: u64, key: &str, notes: &Notes) -> Fault {
    let value = base64::prelude::BASE64_STANDARD.encode(serde_json::to_vec(notes).unwrap());
    let body = serde_json::json!([{"Key": key, "Value": value, "ModifyIndex": index}]).to_string();
    Fault::Answer { method: "GET", status: "200 OK", headers: format!("X-Consul-Index: {index}\r\n"), body }
}

#[tokio::test]
async fn it_keeps_the_contract_of_a_store() {
    let Some(consul) = Consul::start() else { return };
    let client = || -> SharedStore {
        let config = ConsulConfig { keep_tombstones: true, ..config(consul.host()) };
        ConsulStore::new(config, store_suite::codecs()).unwrap()
    };
    store_suite::run_linearizable(client(), client()).await;
}

#[tokio::test]
async fn a_write_tells_its_version_also_when_longer_keys_begin_alike() {
    let Some(consul) = Consul::start() else { return };
    let store = open(config(consul.host()));
    for key in ["ring", "ring-partitions", "ring"] {
        for text in ["1", "2"] {
            let outcome = set(&store, key, "a", text).await.unwrap();
            let CasOutcome::Written { version, .. } = outcome else { panic!("{outcome:?}") };
            assert_eq!(store.get(key).await.unwrap().unwrap().version, version);
        }
    }
}

#[tokio::test]
async fn two_writers_lose_no_increment() {
    let Some(consul) = Consul::start() else { return };
    let increment = async |store: Arc<ConsulStore>| {
        for _ in 0..100 {
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
    let (a, b) = (open(config(consul.host())), open(config(consul.host())));
    tokio::join!(increment(a.clone()), increment(a.clone()), increment(b.clone()));
    assert_eq!(read(&a, "counter").await.get("count"), Some("300"));
}

#[tokio::test]
async fn a_key_that_vanishes_while_it_is_written_is_created_anew() {
    let Some(consul) = Consul::start() else { return };
    let consul = Arc::new(consul);
    let store = open(ConsulConfig { max_cas_retries: 2, ..config(consul.host()) });
    set(&store, "key", "old", "x").await.unwrap();
    let (server, mut calls) = (consul.clone(), 0);
    let write = move |current: Option<&Value>| {
        calls += 1;
        if calls == 1 {
            assert!(server.request("DELETE", "/v1/kv/key", b"").trim_end().ends_with("true"));
        }
        let mut notes = Notes::of(current);
        notes.set("new", "y");
        CasAction::Write(Value::new(notes))
    };
    assert!(matches!(store.cas("key", Box::new(write)).await, Ok(CasOutcome::Written { .. })));
    let notes = read(&store, "key").await;
    assert_eq!((notes.get("old"), notes.get("new")), (None, Some("y")));
}

#[tokio::test]
async fn a_writer_that_loses_each_time_is_told_so() {
    let Some(consul) = Consul::start() else { return };
    let consul = Arc::new(consul);
    let store = open(ConsulConfig { max_cas_retries: 3, cas_retry_delay: Duration::ZERO, ..config(consul.host()) });
    let (server, mut calls) = (consul.clone(), 0);
    let interfered = move |current: Option<&Value>| {
        let mut notes = Notes::of(current);
        notes.set("mine", "x");
        // Consul does not count a write that changes nothing, so each of these differs.
        calls += 1;
        let other = serde_json::to_vec(&Notes::dated("other", "y", calls)).unwrap();
        assert!(server.request("PUT", "/v1/kv/key", &other).trim_end().ends_with("true"));
        CasAction::Write(Value::new(notes))
    };
    let lost = store.cas("key", Box::new(interfered)).await;
    assert!(matches!(lost, Err(StoreError::Conflict { attempts: 3, .. })), "{lost:?}");
    assert!(read(&store, "key").await.get("mine").is_none());
}

#[tokio::test]
async fn a_join_adds_and_never_removes_or_ages() {
    let Some(consul) = Consul::start() else { return };
    let store = open(config(consul.host()));
    let join = async |notes: Notes| store.join("key", Value::new(notes)).await.unwrap();
    assert!(matches!(join(Notes::dated("a", "first", 100)).await, CasOutcome::Written { .. }));
    assert!(matches!(join(Notes::dated("b", "other", 100)).await, CasOutcome::Written { .. }));
    assert!(matches!(join(Notes::dated("a", "older", 50)).await, CasOutcome::Unchanged));
    assert!(matches!(join(Notes::default()).await, CasOutcome::Unchanged));
    assert!(matches!(store.join("absent", Value::new(Notes::default())).await, Ok(CasOutcome::Unchanged)));
    let notes = read(&store, "key").await;
    assert_eq!((notes.get("a"), notes.get("b")), (Some("first"), Some("other")));
    assert!(store.get("absent").await.unwrap().is_none());
}

#[tokio::test]
async fn a_join_costs_a_read_and_a_write_also_one_that_only_changes_what_is_there() {
    let Some(consul) = Consul::start() else { return };
    let proxy = FaultProxy::start(consul.addr()).await;
    let store = open(config(proxy.host()));
    let asked = || {
        let requests = proxy.requests();
        requests.iter().map(|request| request.split(' ').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    set(&store, "key", "a", "x").await.unwrap();
    assert_eq!(asked(), ["GET", "PUT", "GET"], "Consul does not tell the version that it gave to a write");

    let before = asked().len();
    store.join("key", Value::new(Notes::dated("b", "y", 100))).await.unwrap();
    let join = |stamp: i64| {
        Box::new(move |found: Option<&Value>| {
            let delta = Value::new(Notes::dated("c", "z", stamp));
            found.map_or(CasAction::Keep, |_| CasAction::Join(delta))
        })
    };
    let outcome = store.cas("key", join(100)).await.unwrap();
    let CasOutcome::Written { delta, .. } = &outcome else { panic!("{outcome:?}") };
    assert_eq!(Notes::of(Some(delta)), Notes::dated("c", "z", 100));
    assert_eq!(asked()[before..], ["GET", "PUT", "GET", "PUT"]);

    assert!(matches!(store.cas("key", join(50)).await, Ok(CasOutcome::Unchanged)), "nothing is aged");
    assert!(matches!(store.cas("absent", join(100)).await, Ok(CasOutcome::Unchanged)));
    assert_eq!(asked()[before + 4..], ["GET", "GET"]);
    let notes = read(&store, "key").await;
    assert_eq!((notes.get("a"), notes.get("b"), notes.get("c")), (Some("x"), Some("y"), Some("z")));
}

#[tokio::test]
async fn tombstones_are_left_out_or_kept_for_their_time() {
    let Some(consul) = Consul::start() else { return };
    let plain = open(config(consul.host()));
    let keeping = open(ConsulConfig { keep_tombstones: true, ..config(consul.host()) });

    set(&plain, "plain", "a", "x").await.unwrap();
    set(&plain, "plain", "b", "y").await.unwrap();
    forget(&plain, "plain", "a").await;
    assert!(consul.request("GET", "/v1/kv/plain?raw", b"").contains("\"b\""));
    assert!(!consul.request("GET", "/v1/kv/plain?raw", b"").contains("\"a\""));
    // A tombstone of what is not there changes nothing, and so wakes nobody.
    let before = plain.get("plain").await.unwrap().unwrap().version;
    let joined = plain.join("plain", Value::new(Notes::removed("a", i64::MAX - 1))).await.unwrap();
    assert!(matches!(joined, CasOutcome::Unchanged));
    assert_eq!(plain.get("plain").await.unwrap().unwrap().version, before);

    set(&keeping, "kept", "a", "x").await.unwrap();
    forget(&keeping, "kept", "a").await;
    assert!(read(&keeping, "kept").await.is_removed("a"));
    keeping.join("kept", Value::new(Notes::removed("ancient", 1000))).await.unwrap();
    assert!(read(&keeping, "kept").await.is_removed("a"));
    assert!(!read(&keeping, "kept").await.is_removed("ancient"), "it is older than the left timeout");
}

#[tokio::test]
async fn keys_with_strange_characters_are_what_they_seem_and_bad_ones_are_refused() {
    let Some(consul) = Consul::start() else { return };
    let store = open(config(consul.host()));
    let strange = ["ring/a b", "ring/ü?x=1&cas=0#f", "ring/100%", "ring/a+b;c", "ring/.hidden", "ring/dir/"];
    for key in strange {
        set(&store, key, "key", key).await.unwrap();
    }
    for key in strange {
        assert_eq!(read(&store, key).await.get("key"), Some(key));
    }
    let mut sorted = strange.map(str::to_owned);
    sorted.sort();
    assert_eq!(store.list("ring/").await.unwrap(), sorted);
    assert_eq!(store.list("ring/a b").await.unwrap(), ["ring/a b"]);
    for key in ["/ring", "", "a//b", "a/../b", "./a", "a\0b"] {
        let refused = set(&store, key, "x", "x").await;
        assert!(matches!(refused, Err(StoreError::Refused { .. })), "{key:?}: {refused:?}");
        assert!(matches!(store.delete(key).await, Err(StoreError::Refused { .. })), "{key:?}");
    }
    assert_eq!(store.list("").await.unwrap(), sorted);
    store.delete("ring/100%").await.unwrap();
    store.delete("ring/100%").await.unwrap();
    assert_eq!(store.list("").await.unwrap().len(), strange.len() - 1);
}

#[tokio::test]
async fn every_refusal_and_failure_is_told_apart() {
    let Some(consul) = Consul::start() else { return };
    let proxy = FaultProxy::start(consul.addr()).await;
    let store = open(config(proxy.host()));
    let mut answers = Vec::new();
    for status in ["403 Forbidden", "500 Internal Server Error", "429 Too Many Requests", "301 Moved Permanently"] {
        proxy.set(Fault::Answer {
            method: "GET",
            status,
            headers: format!("Location: {}/v1/kv/key\r\n", consul.url()),
            body: "rpc error: Permission denied".to_owned(),
        });
        answers.push(store.get("key").await.unwrap_err());
    }
    assert!(
        matches!(&answers[0], StoreError::Refused { operation: "read", key, reason, .. }
        if key == "key" && reason.contains("403") && reason.contains("Permission denied")),
        "{answers:?}"
    );
    assert!(answers[1..].iter().all(|e| matches!(e, StoreError::Unavailable { .. })), "{answers:?}");

    for nonsense in ["", "null", "{}", "[]", "[null]", r#"[{"Key":"other","Value":"e30=","ModifyIndex":5}]"#] {
        proxy.set(Fault::answer("GET", "200 OK", nonsense));
        let answer = store.get("key").await;
        assert!(matches!(answer, Err(StoreError::Unavailable { .. })), "{nonsense}: {answer:?}");
    }

    proxy.set(Fault::answer("PUT", "413 Payload Too Large", "Request body(18 bytes) too large, max size: 10 bytes."));
    let refused = set(&store, "key", "a", "x").await;
    assert!(matches!(refused, Err(StoreError::TooLarge { limit: 10, .. })), "{refused:?}");
    proxy.set(Fault::answer("PUT", "500 Internal Server Error", "No cluster leader"));
    let failed = set(&store, "key", "a", "x").await.unwrap_err();
    assert!(failed.to_string().contains("No cluster leader"), "{failed}");
    proxy.set(Fault::Cut);
    assert!(matches!(store.get("key").await, Err(StoreError::Unavailable { .. })));
    proxy.set(Fault::Refuse);
    assert!(matches!(store.list("").await, Err(StoreError::Unavailable { .. })));
    proxy.set(Fault::None);
    assert!(wait_until(PATIENCE, async || store.get("key").await.is_ok()).await);
    assert!(store.get("key").await.unwrap().is_none(), "none of the failed writes happened");
}

#[tokio::test]
async fn a_value_that_is_too_large_is_not_even_sent() {
    let Some(consul) = Consul::start() else { return };
    let proxy = FaultProxy::start(consul.addr()).await;
    let store = open(config(proxy.host()));
    let overhead = serde_json::to_vec(&Notes::dated("a", "", 1_000_000_000_000)).unwrap().len();
    set(&store, "largest", "a", &"x".repeat(VALUE_LIMIT - overhead)).await.unwrap();
    let refused = set(&store, "larger", "a", &"x".repeat(VALUE_LIMIT - overhead + 1)).await;
    assert!(matches!(refused, Err(StoreError::TooLarge { limit: VALUE_LIMIT, size, .. }) if size == VALUE_LIMIT + 1));
    assert!(!proxy.requests().iter().any(|request| request.starts_with("PUT /v1/kv/larger")));
    assert_eq!(read(&store, "largest").await.get("a").unwrap().len(), VALUE_LIMIT - overhead);
}

#[tokio::test]
async fn a_connection_that_is_reset_says_nothing_of_the_size() {
    let Some(consul) = Consul::start() else { return };
    let proxy = FaultProxy::start(consul.addr()).await;
    let store = open(config(proxy.host()));
    let large = "x".repeat(VALUE_LIMIT / 5 * 4);
    proxy.set(Fault::Torn { method: "PUT" });
    let torn = set(&store, "key", "a", &large).await;
    assert!(matches!(torn, Err(StoreError::Unavailable { .. })), "{torn:?}");
    assert_eq!(read(&store, "key").await.get("a"), Some(&*large), "this one had happened");
    proxy.set(Fault::None);
    set(&store, "key", "b", "x").await.unwrap();
}

#[tokio::test]
async fn a_consul_that_takes_less_than_usual_says_so_of_a_value_of_any_size() {
    const LIMIT: usize = 1000;
    let Some(consul) = Consul::start_taking(LIMIT) else { return };
    let store = open(config(consul.host()));
    for size in [LIMIT, 100_000, 300_000, 500_000] {
        for _ in 0..5 {
            let refused = set(&store, "key", "a", &"x".repeat(size)).await;
            assert!(matches!(refused, Err(StoreError::TooLarge { limit: LIMIT, .. })), "{size}: {refused:?}");
        }
    }
    set(&store, "key", "a", "x").await.unwrap();
}

#[tokio::test]
async fn a_late_answer_is_a_timeout_and_the_write_may_have_happened() {
    let Some(consul) = Consul::start() else { return };
    let proxy = FaultProxy::start(consul.addr()).await;
    let short = Duration::from_millis(300);
    let store = open(ConsulConfig { http_client_timeout: short, ..config(proxy.host()) });
    proxy.set(Fault::Late { method: "PUT", by: PATIENCE });
    let late = set(&store, "key", "a", "x").await;
    assert!(matches!(late, Err(StoreError::Timeout { after, .. }) if after == short), "{late:?}");
    let direct = open(config(consul.host()));
    assert!(wait_until(PATIENCE, async || read(&direct, "key").await.get("a") == Some("x")).await);
    // Trying again is safe: the value is there already.
    proxy.set(Fault::None);
    assert!(
        wait_until(PATIENCE, async || matches!(set(&store, "key", "a", "x").await, Ok(CasOutcome::Unchanged))).await
    );
}

#[tokio::test]
async fn a_server_that_hangs_is_a_timeout_until_it_goes_on() {
    let Some(consul) = Consul::start() else { return };
    set(&open(config(consul.host())), "key", "a", "x").await.unwrap();
    let store = open(ConsulConfig { http_client_timeout: Duration::from_millis(300), ..config(consul.host()) });
    consul.pause();
    let hangs = async || matches!(store.get("key").await, Err(StoreError::Timeout { .. }));
    assert!(wait_until(PATIENCE, hangs).await);
    consul.resume();
    assert!(wait_until(PATIENCE, async || store.get("key").await.is_ok()).await);
}

#[tokio::test]
async fn a_watch_that_gets_no_answer_grows_old_and_one_that_gets_no_news_does_not() {
    let Some(consul) = Consul::start() else { return };
    set(&open(config(consul.host())), "key", "a", "x").await.unwrap();
    let store = open(ConsulConfig { http_client_timeout: Duration::from_millis(400), ..config(consul.host()) });
    let mut watch = store.watch_key("key");
    assert_eq!(store.watch_age(Now::read()), None, "nobody has read a watch yet");
    assert_eq!(notes(&next(&mut watch).await).get("a"), Some("x"));
    // Consul answers each time that its patience is over, with nothing new.
    for _ in 0..3 {
        let earlier = Now::read();
        let answered = async || {
            let now = Now::read();
            store.watch_age(now).is_some_and(|age| age < now.mono - earlier.mono)
        };
        assert!(wait_until(PATIENCE, answered).await);
    }
    consul.pause();
    let old = async || store.watch_age(Now::read()) > Some(Duration::from_secs(2));
    assert!(wait_until(PATIENCE, old).await);
    consul.resume();
    assert!(wait_until(PATIENCE, async || store.watch_age(Now::read()) < Some(Duration::from_secs(2))).await);
    drop(watch);
    assert!(wait_until(PATIENCE, async || store.watch_age(Now::read()).is_none()).await);
}

#[tokio::test]
async fn a_value_that_does_not_decode_stays_as_it_is() {
    let Some(consul) = Consul::start() else { return };
    let store = open(config(consul.host()));
    consul.request("PUT", "/v1/kv/key", b"not notes");
    assert!(matches!(store.get("key").await, Err(StoreError::Decode { .. })));
    assert!(matches!(set(&store, "key", "a", "x").await, Err(StoreError::Decode { .. })));
    assert!(matches!(store.join("key", Value::new(Notes::dated("a", "x", 1))).await, Err(StoreError::Decode { .. })));
    assert!(consul.request("GET", "/v1/kv/key?raw", b"").ends_with("not notes"));

    // A watch goes on as if nothing had been written, and shows the repaired value.
    let mut watch = store.watch_key("key");
    let mut prefix = store.watch_prefix("");
    set(&store, "other", "a", "x").await.unwrap();
    assert_eq!(&*next(&mut prefix).await.key, "other");
    consul.request("PUT", "/v1/kv/key", b"{}");
    set(&store, "key", "a", "repaired").await.unwrap();
    let repaired = next_where(&mut watch, |change| notes(change).get("a").is_some()).await;
    assert_eq!(notes(&repaired).get("a"), Some("repaired"));
}

#[tokio::test]
async fn a_watch_begins_with_what_is_there_and_follows_changes_and_deletion() {
    let Some(consul) = Consul::start() else { return };
    let store = open(config(consul.host()));
    let mut missing = store.watch_key("key");
    let first = next(&mut missing).await;
    assert!(first.fresh && first.entry.is_none() && &*first.key == "key");
    set(&store, "key", "a", "1").await.unwrap();
    assert_eq!(notes(&next(&mut missing).await).get("a"), Some("1"));

    let mut existing = store.watch_key("key");
    let first = next(&mut existing).await;
    assert_eq!(notes(&first).get("a"), Some("1"));
    assert_eq!(first.entry.unwrap().version, store.get("key").await.unwrap().unwrap().version);
    store.delete("key").await.unwrap();
    assert!(next(&mut existing).await.entry.is_none());
    set(&store, "key", "a", "2").await.unwrap();
    assert_eq!(notes(&next(&mut existing).await).get("a"), Some("2"));
}

#[tokio::test]
async fn a_prefix_watch_shows_each_key_below_it() {
    let Some(consul) = Consul::start() else { return };
    let store = open(config(consul.host()));
    for key in ["ring/a", "ring/b", "other/c"] {
        set(&store, key, "n", "1").await.unwrap();
    }
    let mut watch = store.watch_prefix("ring/");
    let mut keys = [next(&mut watch).await.key, next(&mut watch).await.key];
    keys.sort();
    assert_eq!(keys.map(|key| key.to_string()), ["ring/a", "ring/b"]);
    set(&store, "other/c", "n", "2").await.unwrap();
    set(&store, "ring/b", "n", "2").await.unwrap();
    let change = next(&mut watch).await;
    assert_eq!((&*change.key, notes(&change).get("n")), ("ring/b", Some("2")));
    store.delete("ring/a").await.unwrap();
    let change = next(&mut watch).await;
    assert!(&*change.key == "ring/a" && change.entry.is_none());
    set(&store, "ring/a", "n", "3").await.unwrap();
    let change = next(&mut watch).await;
    assert_eq!((&*change.key, notes(&change).get("n")), ("ring/a", Some("3")));
}

#[tokio::test]
async fn a_watch_of_a_missing_key_waits_for_the_index_it_was_given() {
    let Some(consul) = Consul::start() else { return };
    let proxy = FaultProxy::start(consul.addr()).await;
    let store = open(config(proxy.host()));
    let mut watch = store.watch_key("missing");
    assert!(next(&mut watch).await.entry.is_none());
    assert!(wait_until(PATIENCE, async || proxy.requests().len() >= 2).await);
    let answer = consul.request("GET", "/v1/kv/missing", b"");
    let index = answer.lines().find_map(|line| line.strip_prefix("X-Consul-Index: ")).unwrap();
    let requests = proxy.requests();
    assert!(!requests[0].contains("index="), "{}", requests[0]);
    assert!(requests[1].contains(&format!("index={index}&wait=2500ms ")), "{}", requests[1]);
}

#[tokio::test]
async fn reads_are_as_consistent_as_configured_and_writes_and_moves_always_read_the_leader() {
    let Some(consul) = Consul::start() else { return };
    let proxy = FaultProxy::start(consul.addr()).await;
    for (consistent_reads, parameter) in [(false, "stale"), (true, "consistent")] {
        let store = open(ConsulConfig { consistent_reads, ..config(proxy.host()) });
        let key = format!("by-{parameter}");
        store.get(&key).await.unwrap();
        store.list(&key).await.unwrap();
        store.get_latest(&key).await.unwrap();
        store.list_latest(&key).await.unwrap();
        set(&store, &key, "a", "x").await.unwrap();
        let seen: Vec<_> = proxy
            .requests()
            .iter()
            .filter(|request| request.contains(&key))
            .map(|request| request.split_whitespace().take(2).collect::<Vec<_>>().join(" "))
            .collect();
        let confirmed = if consistent_reads { "consistent" } else { "" };
        let expected = [
            format!("GET /v1/kv/{key}?{parameter}"),
            format!("GET /v1/kv/{key}?keys&{parameter}"),
            format!("GET /v1/kv/{key}?{confirmed}").trim_end_matches('?').to_owned(),
            format!("GET /v1/kv/{key}?keys&{confirmed}").trim_end_matches('&').to_owned(),
            format!("GET /v1/kv/{key}"),
            format!("PUT /v1/kv/{key}?cas=0"),
            format!("GET /v1/kv/{key}?keys"),
        ];
        assert_eq!(seen, expected);
    }
}

#[tokio::test]
async fn a_store_that_is_out_of_reach_at_first_is_watched_when_it_appears() {
    let Some(consul) = Consul::start() else { return };
    set(&open(config(consul.host())), "key", "a", "x").await.unwrap();
    let proxy = FaultProxy::start(consul.addr()).await;
    proxy.set(Fault::Refuse);
    let store = open(config(proxy.host()));
    let (mut watch, mut prefix) = (store.watch_key("key"), store.watch_prefix("k"));
    for watch in [&mut watch, &mut prefix] {
        let first = next(watch).await;
        assert!(!first.fresh && first.entry.is_none());
    }
    proxy.set(Fault::None);
    for watch in [&mut watch, &mut prefix] {
        let change = next(watch).await;
        assert!(change.fresh);
        assert_eq!(notes(&change).get("a"), Some("x"));
    }
}

#[tokio::test]
async fn an_outage_in_the_middle_of_a_watch_is_reported_and_loses_nothing() {
    let Some(consul) = Consul::start() else { return };
    let direct = open(config(consul.host()));
    set(&direct, "key", "a", "before").await.unwrap();
    set(&direct, "quiet", "a", "same").await.unwrap();
    let proxy = FaultProxy::start(consul.addr()).await;
    let store = open(config(proxy.host()));
    let (mut watch, mut quiet) = (store.watch_key("key"), store.watch_key("quiet"));
    assert_eq!(notes(&next(&mut watch).await).get("a"), Some("before"));
    assert_eq!(notes(&next(&mut quiet).await).get("a"), Some("same"));

    for (round, fault) in
        [Fault::Cut, Fault::Refuse, Fault::answer("GET", "403 Forbidden", "no")].into_iter().enumerate()
    {
        let forbidden = matches!(fault, Fault::Answer { .. });
        proxy.set(fault);
        if forbidden {
            // Requests that are being answered are not broken by this fault: end them.
            set(&direct, "key", "b", "wake").await.unwrap();
            set(&direct, "quiet", "b", "wake").await.unwrap();
            for watch in [&mut watch, &mut quiet] {
                next_where(watch, |change| !change.fresh).await;
            }
        } else {
            let lost = next(&mut watch).await;
            assert!(!lost.fresh && notes(&lost).get("a").is_some(), "the last known value goes with the report");
            assert!(!next(&mut quiet).await.fresh);
        }
        let text = format!("after {round}");
        set(&direct, "key", "a", &text).await.unwrap();
        proxy.set(Fault::None);
        let back = next(&mut watch).await;
        assert!(back.fresh);
        assert_eq!(notes(&back).get("a"), Some(text.as_str()));
        let back = next(&mut quiet).await;
        assert!(back.fresh, "that the store is back is news, even if nothing changed");
        assert_eq!(notes(&back).get("a"), Some("same"));
    }
}

#[tokio::test]
async fn a_watch_goes_on_with_a_consul_that_lost_everything_and_never_shows_less() {
    let Some(mut consul) = Consul::start() else { return };
    let store = open(config(consul.host()));
    for round in 0..20 {
        set(&store, "key", "old", &round.to_string()).await.unwrap();
    }
    let mut watch = store.watch_key("key");
    let first = next(&mut watch).await;
    assert_eq!(notes(&first).get("old"), Some("19"));
    consul.restart();
    set(&store, "key", "new", "x").await.unwrap();
    assert!(store.get("key").await.unwrap().unwrap().version < first.entry.as_ref().unwrap().version, "a real reset");
    let mut version = first.entry.unwrap().version;
    let change = next_where(&mut watch, |change| {
        assert_eq!(notes(change).get("old"), Some("19"), "{change:?}");
        let shown = change.entry.as_ref().unwrap().version;
        assert!(shown >= version);
        version = shown;
        change.fresh && notes(change).get("new").is_some()
    })
    .await;
    assert_eq!(notes(&change).get("new"), Some("x"));
}

#[tokio::test]
async fn an_answer_from_the_past_is_never_shown() {
    let Some(consul) = Consul::start() else { return };
    let proxy = FaultProxy::start(consul.addr()).await;
    let store = open(config(proxy.host()));
    proxy.set(invented(100, "key", &Notes::dated("a", "new", 1000)));
    let mut watch = store.watch_key("key");
    assert_eq!(notes(&next(&mut watch).await).get("a"), Some("new"));
    proxy.set(invented(50, "key", &Notes::dated("a", "old", 500)));
    let mut texts = Vec::new();
    let asked = proxy.requests().len();
    assert!(wait_until(PATIENCE, async || proxy.requests().len() >= asked + 4).await);
    assert!(proxy.requests()[asked..].iter().any(|r| r.starts_with("GET /v1/kv/key HTTP")), "the leader was not asked");
    proxy.set(invented(51, "key", &Notes::dated("a", "newest", 2000)));
    next_where(&mut watch, |change| {
        texts.push(notes(change).get("a").unwrap().to_owned());
        texts.last().is_some_and(|text| text == "newest")
    })
    .await;
    assert!(!texts.contains(&"old".to_owned()), "{texts:?}");
}

#[tokio::test]
async fn the_size_that_is_told_is_the_size_that_is_taken() {
    let Some(consul) = Consul::start() else { return };
    let store = open(config(consul.host()));
    let of = |length: usize| {
        let mut notes = Notes::default();
        notes.set("a", &"x".repeat(length));
        Value::new(notes)
    };
    let empty = store.size_of("key", &of(0)).unwrap();
    assert_eq!((store.limits_values(), empty.limit), (true, VALUE_LIMIT));
    let largest = empty.limit - empty.size;
    let fits = store.size_of("key", &of(largest)).unwrap();
    assert_eq!((fits.size, fits.is_over(), fits.is_near()), (VALUE_LIMIT, false, true));
    store.join("key", of(largest)).await.unwrap();
    assert!(store.size_of("key", &of(largest + 1)).unwrap().is_over());
    let refused = store.join("other", of(largest + 1)).await;
    assert!(matches!(refused, Err(StoreError::TooLarge { size, .. }) if size == VALUE_LIMIT + 1), "{refused:?}");
}

#[tokio::test]
async fn a_dropped_watch_ends_its_task() {
    let Some(consul) = Consul::start() else { return };
    let codecs = codecs();
    let store = ConsulStore::new(config(consul.host()), codecs.clone()).unwrap();
    let mut watch = store.watch_key("key");
    next(&mut watch).await;
    drop(store);
    assert!(Arc::strong_count(&codecs) > 1, "the watch outlives the store's handle");
    drop(watch);
    assert!(wait_until(PATIENCE, async || Arc::strong_count(&codecs) == 1).await);
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn the_acl_token_is_sent_and_never_logged() {
    let Some(consul) = Consul::start() else { return };
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .with_ansi(false)
        .finish();
    // For the whole process: what a subscriber of one thread hears depends on the tests of other threads.
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let token = "d0c5f6ab-secret";
    let proxy = FaultProxy::start(consul.addr()).await;
    let config = ConsulConfig { acl_token: token.to_owned(), ..config(proxy.host()) };
    let store = open(config.clone());
    proxy.set(Fault::answer("GET", "403 Forbidden", "ACL not found"));
    let error = store.get("key").await.unwrap_err();
    let mut watch = store.watch_key("key");
    assert!(!next(&mut watch).await.fresh);
    proxy.set(Fault::None);
    assert!(next(&mut watch).await.fresh);

    let sent = format!("x-consul-token: {token}\r\n");
    assert!(proxy.requests().iter().all(|request| request.contains(&sent)), "{:?}", proxy.requests());
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(log.contains("ACL not found"), "the failure itself is not logged");
    for text in [log, format!("{error} {error:?}"), format!("{config:?} {store:?}")] {
        assert!(!text.contains(token));
    }
}

#[test]
fn settings_that_cannot_work_are_refused_at_once() {
    let bad = [
        ConsulConfig { host: String::new(), ..ConsulConfig::default() },
        ConsulConfig { host: "user@host:8500".to_owned(), ..ConsulConfig::default() },
        // Without the feature there is no TLS; with it the scheme asks for it.
        #[cfg(not(feature = "consul-tls"))]
        ConsulConfig { host: "https://host:8500".to_owned(), ..ConsulConfig::default() },
        ConsulConfig { host: "host:8500/v1".to_owned(), ..ConsulConfig::default() },
        ConsulConfig { host: "host:99999".to_owned(), ..ConsulConfig::default() },
        ConsulConfig { acl_token: "a\nb".to_owned(), ..ConsulConfig::default() },
        ConsulConfig { http_client_timeout: Duration::ZERO, ..ConsulConfig::default() },
    ];
    for config in bad {
        assert!(ConsulStore::new(config.clone(), codecs()).is_err(), "{config:?}");
    }
    assert!(ConsulStore::new(ConsulConfig::default(), codecs()).is_ok());
}
