//! The promise: what a node knows can be asked over HTTP, what may be changed can be changed by those who may, and no
//! request, however wrong, does more than get an error.

#![cfg(feature = "http")]
#![allow(clippy::unwrap_used)]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use annulus::config::{ConfigBuilder, KvStore, RingConfig, Secret};
use annulus::http::{Api, Body, Method, ROUTES, Request, ServeError};
use annulus::stores::memory::Memory;
use annulus::transport::MemoryNetwork;
use annulus::{Config, Node, http};
use proptest::prelude::*;
use serde_json::{Value, json};
use support::wait_until;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

const DEADLINE: Duration = Duration::from_secs(20);

/// A node with a server in front of it.
struct Served {
    node: Node,
    memory: Memory,
    address: SocketAddr,
    client: reqwest::Client,
    stop: oneshot::Sender<()>,
    server: JoinHandle<Result<(), ServeError>>,
}

fn ring(name: &str) -> RingConfig {
    RingConfig {
        replication_factor: 1,
        num_tokens: 4,
        min_ready_duration: Duration::ZERO,
        key: format!("ring-{name}"),
        ..RingConfig::named(name)
    }
}

fn config() -> ConfigBuilder {
    Config::builder("n1").store(KvStore::Inmemory).address("10.0.0.5:9095").ring_with(ring("ingester"))
}

/// Starts a node, waits until it is in its ring, and serves it on a port of its own.
async fn served(config: ConfigBuilder) -> Served {
    let memory = Memory::new();
    let node = Node::builder("n1").config(config.build().unwrap()).memory_store(memory.clone()).start().await.unwrap();
    for ring in node.rings() {
        tokio::time::timeout(DEADLINE, ring.wait_for_instances(1)).await.unwrap();
    }
    let server = http::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = server.local_addr();
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(server.run(node.clone(), async move { drop(stopped.await) }));
    let client = reqwest::Client::builder().no_proxy().timeout(DEADLINE).build().unwrap();
    Served { node, memory, address, client, stop, server }
}

impl Served {
    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        answer(self.client.get(self.url(path))).await
    }

    async fn ok(&self, path: &str) -> Value {
        let (status, json) = self.get(path).await;
        assert_eq!(status, 200, "{path}: {json}");
        json
    }

    async fn put(&self, path: &str, body: impl Into<reqwest::Body>) -> (u16, Value) {
        answer(self.client.put(self.url(path)).body(body)).await
    }

    async fn post(&self, path: &str) -> (u16, Value) {
        answer(self.client.post(self.url(path))).await
    }

    async fn delete(&self, path: &str) -> (u16, Value) {
        answer(self.client.delete(self.url(path))).await
    }

    /// Sends bytes as they are, which no HTTP client would, and returns the head of the answer.
    async fn raw(&self, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        // The server may answer, and close, before it has read everything.
        let _ = stream.write_all(request).await;
        let mut head = Vec::new();
        while !head.windows(4).any(|four| four == b"\r\n\r\n") {
            let read = tokio::time::timeout(DEADLINE, stream.read_buf(&mut head)).await.unwrap().unwrap();
            if read == 0 {
                break;
            }
        }
        String::from_utf8_lossy(&head).into_owned()
    }

    async fn end(self) {
        self.node.stop().await;
        drop(self.stop);
        tokio::time::timeout(DEADLINE, self.server).await.unwrap().unwrap().unwrap();
    }
}

async fn answer(request: reqwest::RequestBuilder) -> (u16, Value) {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    assert_eq!(response.headers()["content-type"], "application/json");
    let json: Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
    if status >= 400 {
        assert!(json["error"].as_str().is_some_and(|text| !text.is_empty()) && json.as_object().unwrap().len() == 1);
    }
    (status, json)
}

/// The events of a stream.
struct Events {
    response: reqwest::Response,
    text: String,
}

impl Events {
    async fn open(served: &Served, path: &str) -> Self {
        let response = served.client.get(served.url(path)).send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { response, text: String::new() }
    }

    /// The next event, or `None` at the end of the stream.
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let event = event.strip_prefix("data: ").map(|data| serde_json::from_str(data).unwrap());
                self.text = rest.to_owned();
                match event {
                    Some(event) => return Some(event),
                    None => continue,
                }
            }
            let chunk = tokio::time::timeout(DEADLINE, self.response.chunk()).await.unwrap().unwrap()?;
            self.text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }
}

#[tokio::test]
async fn the_index_names_the_node_and_every_route() {
    let served = served(config()).await;
    assert!(wait_until(DEADLINE, async || served.ok("/").await["state"] == "ready").await);
    let index = served.ok("/").await;
    assert_eq!((&index["name"], &index["version"]), (&json!("n1"), &json!(env!("CARGO_PKG_VERSION"))));
    assert_eq!(index["links"].as_array().unwrap().len(), ROUTES.len());
    served.end().await;
}

#[tokio::test]
async fn ready_says_yes_or_why_not() {
    let served = served(config()).await;
    let ready = async || {
        let response = served.client.get(served.url("/ready")).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    };
    assert!(wait_until(DEADLINE, async || ready().await == (200, "ready".to_owned())).await);
    served.node.stop().await;
    assert_eq!(ready().await, (503, "the node has stopped".to_owned()));
    assert_eq!(served.ok("/").await["state"], "stopped");
    served.end().await;
}

#[tokio::test]
async fn a_node_that_is_not_ready_gives_one_reason_a_line() {
    let patient = |name| RingConfig { min_ready_duration: Duration::from_secs(3600), ..ring(name) };
    let base = Config::builder("n1").store(KvStore::Inmemory).address("10.0.0.5:9095");
    let served = served(base.ring_with(patient("one")).ring_with(patient("two"))).await;
    let response = served.client.get(served.url("/ready")).send().await.unwrap();
    assert_eq!(response.status(), 503);
    let text = response.text().await.unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert!(lines.len() == 2 && lines[0].starts_with("ring one: ") && lines[1].starts_with("ring two: "), "{text}");
    served.end().await;
}

#[tokio::test]
async fn metrics_are_open_metrics() {
    let served = served(config()).await;
    let response = served.client.get(served.url("/metrics")).send().await.unwrap();
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!((response.status().as_u16(), response.headers()["content-type"].to_str().unwrap()), (200, kind));
    let text = response.text().await.unwrap();
    assert!(text.contains("ring_members") && text.ends_with("# EOF\n"), "{text}");
    served.end().await;
}

#[tokio::test]
async fn metrics_tell_the_phase_and_how_long_a_watch_has_heard_nothing() {
    let served = served(config()).await;
    let page = || served.node.metrics();
    let age = || -> Option<f64> {
        let page = page();
        let line = page.lines().find_map(|line| line.strip_prefix(r#"annulus_watch_age_seconds{store="inmemory"} "#));
        line.map(|age| age.parse().unwrap())
    };
    let phases = ["solo", "wired", "dual", "flipping", "flipped"];
    for phase in phases {
        let line = format!("annulus_migration_phase{{phase=\"{phase}\"}} {}\n", u8::from(phase == "solo"));
        assert!(page().contains(&line), "{}", page());
    }
    assert_eq!(age(), Some(0.0));
    served.memory.set_available(false);
    assert!(wait_until(DEADLINE, async || age() > Some(0.05)).await, "{:?}", age());
    // Said once more, it is still the same outage.
    let before = age();
    served.memory.set_available(false);
    assert!(age() > before);
    served.memory.set_available(true);
    assert_eq!(age(), Some(0.0));
    served.end().await;
}

#[tokio::test]
async fn members_are_shown_with_their_state() {
    let network = MemoryNetwork::new();
    let start = async |name: &str, seeds: &[&str], port: u16| {
        let endpoint = network.endpoint(format!("10.0.0.1:{port}").parse().unwrap());
        let config = Config::builder(name).join_members(seeds.iter().copied()).build().unwrap();
        Node::builder(name).config(config).transport(Arc::new(endpoint)).meta(&b"rack 7"[..]).start().await.unwrap()
    };
    let a = start("a", &[], 1).await;
    let b = start("b", &["10.0.0.1:1"], 2).await;
    let api = Api::new(a.clone());
    let members = async || {
        let response = api.handle(Request::new(Method::Get, "/api/v1/members").unwrap()).await;
        let Body::Bytes(bytes) = response.body else { panic!("the members are not a stream") };
        serde_json::from_slice::<Value>(&bytes).unwrap()
    };
    assert!(wait_until(DEADLINE, async || members().await["members"].as_array().unwrap().len() == 2).await);
    let shown = members().await;
    assert_eq!(shown["health_score"], 0);
    assert!(shown["queued_broadcasts"].is_u64());
    let one = &shown["members"][1];
    assert_eq!(one["name"], "b");
    assert_eq!(one["address"], "10.0.0.1:2");
    assert_eq!(one["state"], "alive");
    assert_eq!(one["meta"], "rack 7");
    assert_eq!(one["protocol"].as_array().unwrap().len(), 6);
    assert!(one["since_ms"].is_u64() && one["incarnation"].is_u64());
    // Who leaves before the answer to its join has arrived knows nobody to say goodbye to.
    assert!(wait_until(DEADLINE, async || b.members().list.len() == 2).await);
    assert_eq!(b.leave().await.unfinished, Vec::<String>::new());
    let left = wait_until(DEADLINE, async || members().await["members"][1]["state"] == "left").await;
    assert!(left, "{}", members().await);
    a.stop().await;
}

#[tokio::test]
async fn rings_are_shown_under_both_names() {
    let served = served(config().ring_with(ring("a/b"))).await;
    let rings = served.ok("/api/v1/rings").await;
    assert_eq!(rings["rings"].as_array().unwrap().len(), 2);
    let one = served.ok("/api/v1/rings/ingester").await;
    assert_eq!(one["name"], "ingester");
    assert_eq!(one["digest"].as_str().unwrap().len(), 32);
    let instance = &one["instances"][0];
    assert_eq!((&instance["id"], &instance["state"]), (&json!("n1"), &json!("ACTIVE")));
    assert_eq!((&instance["healthy"], &instance["tokens"]), (&json!(true), &json!(4)));
    assert_eq!(served.ok("/ring/ingester").await["digest"], one["digest"]);
    assert_eq!(served.ok("/ring").await["rings"].as_array().unwrap().len(), 2);
    assert_eq!(served.ok("/api/v1/rings/a%2Fb").await["name"], "a/b");
    let (status, error) = served.get("/api/v1/rings/nope").await;
    assert!(status == 404 && error["error"].as_str().unwrap().contains("ingester"), "{error}");
    served.end().await;
}

#[tokio::test]
async fn a_lookup_names_the_owners() {
    let served = served(config()).await;
    let found = served.ok("/api/v1/rings/ingester/lookup?key=tenant-7%2Fseries&op=read").await;
    let owner = json!([{ "id": "n1", "address": "10.0.0.5:9095", "zone": "", "state": "ACTIVE" }]);
    let expected = json!({
        "key": "tenant-7/series", "hash": annulus::key_hash("tenant-7/series"), "operation": "read",
        "instances": owner, "max_errors": 0,
    });
    assert_eq!(found, expected);
    let by_hash = served.ok("/api/v1/rings/ingester/lookup?hash=4294967295").await;
    assert_eq!((&by_hash["key"], &by_hash["hash"]), (&Value::Null, &json!(u32::MAX)));
    assert_eq!(by_hash["operation"], "write");
    for op in ["write", "write_no_extend", "reporting"] {
        assert_eq!(served.ok(&format!("/api/v1/rings/ingester/lookup?key=&op={op}")).await["operation"], op);
    }
    let wrong = ["", "?key=a&hash=1", "?hash=4294967296", "?hash=-1", "?key=a&op=Write", "?key=a&opp=read", "?key=%ff"];
    for query in wrong {
        assert_eq!(served.get(&format!("/api/v1/rings/ingester/lookup{query}")).await.0, 400, "{query}");
    }
    assert_eq!(served.get("/api/v1/rings/nope/lookup?key=a").await.0, 404);
    served.end().await;
}

#[tokio::test]
async fn a_lookup_in_an_empty_ring_is_unavailable() {
    let served = served(Config::builder("n1").store(KvStore::Inmemory)).await;
    served.end().await;
    let base = Config::builder("n1").store(KvStore::Inmemory);
    let config = base.ring_with(RingConfig { join: false, ..ring("watched") }).build().unwrap();
    let node = Node::builder("n1").config(config).start().await.unwrap();
    let request = Request::new(Method::Get, "/api/v1/rings/watched/lookup?key=a").unwrap();
    let response = Api::new(node.clone()).handle(request).await;
    let Body::Bytes(body) = response.body else { panic!("a lookup is not a stream") };
    assert_eq!((response.status, &body[..]), (503, &br#"{"error":"empty ring"}"#[..]));
    node.stop().await;
}

#[tokio::test]
async fn an_instance_that_will_not_come_back_is_forgotten() {
    let served = served(config()).await;
    let other = config().build().unwrap();
    let other = Node::builder("n/2").config(other).memory_store(served.memory.clone()).start().await.unwrap();
    tokio::time::timeout(DEADLINE, served.node.ring("ingester").wait_for_instances(2)).await.unwrap();
    other.stop().await;
    assert_eq!(served.post("/api/v1/rings/ingester/forget/n/2").await, (200, json!({ "forgotten": true })));
    assert_eq!(served.post("/api/v1/rings/ingester/forget/n%2F2").await, (200, json!({ "forgotten": false })));
    let one = async || served.ok("/ring/ingester").await["instances"].as_array().unwrap().len() == 1;
    assert!(wait_until(DEADLINE, one).await);
    assert_eq!(served.post("/api/v1/rings/nope/forget/n1").await.0, 404);
    served.end().await;
}

const KEY: &str = "/api/v1/kv/annulus/kv/colours/1";

#[tokio::test]
async fn a_map_is_written_entry_by_entry_and_read() {
    let served = served(config()).await;
    assert_eq!(served.get(KEY).await.0, 404);
    let (status, written) = served.put(KEY, r#"{"a": 1, "b": {"deep": [true]}}"#).await;
    assert!(status == 200 && written["written"] == true && written["version"].is_u64(), "{written}");

    let read = served.ok(KEY).await;
    assert_eq!(read["key"], "annulus/kv/colours/1");
    assert_eq!(read["codec"], "annulus.lwwmap");
    assert_eq!(read["version"], written["version"]);
    assert_eq!((&read["value"]["a"]["value"], &read["value"]["b"]["value"]), (&json!(1), &json!({ "deep": [true] })));

    assert_eq!(served.put(KEY, r#"{"b": null, "c": 3}"#).await.0, 200);
    let value = served.ok(KEY).await["value"].clone();
    assert_eq!((&value["a"]["value"], &value["c"]["value"]), (&json!(1), &json!(3)));
    assert!(value["b"].get("value").is_none() && value["b"]["stamp"].is_u64(), "a tombstone remains: {value}");
    assert_eq!(served.put(KEY, r#"{"nothing": null}"#).await.1["written"], false);

    assert_eq!(served.ok("/api/v1/kv?prefix=annulus%2Fkv%2F").await, json!({ "keys": ["annulus/kv/colours/1"] }));
    let all = served.ok("/api/v1/kv").await;
    assert_eq!(all, json!({ "keys": ["annulus/kv/colours/1", "collectors/ring-ingester"] }));
    assert_eq!(served.ok("/api/v1/kv/collectors/ring-ingester").await["codec"], "ringDesc");

    assert_eq!(served.delete(KEY).await, (200, json!({ "deleted": true })));
    assert_eq!(served.get(KEY).await.0, 404);
    served.end().await;
}

#[tokio::test]
async fn a_write_on_a_condition_needs_the_version_to_be_current() {
    let served = served(config()).await;
    let (status, created) = served.put(&format!("{KEY}?version=0"), r#"{"a": 1}"#).await;
    assert_eq!(status, 200);
    assert_eq!(served.put(&format!("{KEY}?version=0"), r#"{"a": 2}"#).await.0, 409);
    let version = created["version"].as_u64().unwrap();
    assert_eq!(served.put(&format!("{KEY}?version={version}"), r#"{"a": 3}"#).await.0, 200);
    assert_eq!(served.put(&format!("{KEY}?version={version}"), r#"{"a": 4}"#).await.0, 409);
    assert_eq!(served.ok(KEY).await["value"]["a"]["value"], 3);
    // A misspelt condition is not an unconditional write.
    assert_eq!(served.put(&format!("{KEY}?verison=0"), r#"{"a": 5}"#).await.0, 400);
    assert_eq!(served.delete(&format!("{KEY}?version=0")).await.0, 400);
    assert_eq!(served.ok(KEY).await["value"]["a"]["value"], 3);
    served.end().await;
}

#[tokio::test]
async fn of_many_writers_with_one_version_one_wins() {
    let served = served(config()).await;
    let (_, created) = served.put(KEY, r#"{"a": 0}"#).await;
    let path = format!("{KEY}?version={}", created["version"]);
    let writers = (0..16).map(|writer| served.put(&path, format!(r#"{{"a": {writer}}}"#)));
    let statuses: Vec<u16> =
        futures_util::future::join_all(writers).await.into_iter().map(|(status, _)| status).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|status| **status == 409).count(), 15, "{statuses:?}");
    served.end().await;
}

#[tokio::test]
async fn values_that_cannot_be_stored_are_refused_with_the_reason() {
    let served = served(config()).await;
    assert_eq!(served.put(KEY, "{").await.0, 400);
    assert_eq!(served.put(KEY, vec![0xff_u8, 0xfe]).await.0, 400);
    assert_eq!(served.put(KEY, "[1]").await.0, 422);
    assert_eq!(served.put("/api/v1/kv/nobody/knows/this", "{}").await.0, 404);
    assert_eq!(served.get("/api/v1/kv/nobody/knows/this").await.0, 404);
    assert_eq!(served.put("/api/v1/kv/collectors/ring-ingester", "{}").await.0, 422);
    let long = "k".repeat(600);
    assert_eq!(served.put(&format!("/api/v1/kv/annulus/kv/{long}"), "{}").await.0, 400);
    let deep = format!(r#"{{"a": {}1{}}}"#, "[".repeat(126), "]".repeat(126));
    assert_eq!(served.put(KEY, deep).await.0, 422);
    assert_eq!(served.put(KEY, "[".repeat(100_000)).await.0, 400);
    served.end().await;
}

#[tokio::test]
async fn a_store_out_of_reach_is_unavailable() {
    let served = served(config()).await;
    served.memory.set_available(false);
    assert_eq!(served.get(KEY).await.0, 503);
    assert_eq!(served.get("/api/v1/kv").await.0, 503);
    assert_eq!(served.put(KEY, "{\"a\": 1}").await.0, 503);
    assert_eq!(served.delete(KEY).await.0, 503);
    assert_eq!(served.post("/api/v1/rings/ingester/forget/n1").await.0, 503);
    // What is known already is still told.
    assert_eq!(served.get("/api/v1/rings/ingester").await.0, 200);
    served.memory.set_available(true);
    assert_eq!(served.put(KEY, "{\"a\": 1}").await.0, 200);
    served.memory.put_bytes("annulus/kv/colours/1", &b"\xff\xff"[..]);
    assert_eq!(served.get(KEY).await.0, 422);
    served.end().await;
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused() {
    let served = served(config()).await;
    let head = format!("PUT {KEY} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", http::MAX_BODY + 1);
    let body = vec![b' '; http::MAX_BODY + 1];
    assert!(served.raw(&[head.as_bytes(), &body].concat()).await.starts_with("HTTP/1.1 413 "));
    // A value that fits the body and not the wire.
    let large = format!(r#"{{"a": "{}"}}"#, "x".repeat(http::MAX_BODY - 10));
    assert_eq!(served.put(KEY, large).await.0, 413);
    served.end().await;
}

#[tokio::test]
async fn a_watch_begins_with_the_present_value_and_ends_with_the_node() {
    let served = served(config()).await;
    let mut events = Events::open(&served, &format!("{KEY}?watch=true")).await;
    let key = json!("annulus/kv/colours/1");
    assert_eq!(events.next().await.unwrap(), json!({ "key": key, "version": null, "value": null }));
    let version = served.put(KEY, r#"{"a": 1}"#).await.1["version"].clone();
    let changed = events.next().await.unwrap();
    assert_eq!((&changed["key"], &changed["version"]), (&key, &version));
    assert_eq!(changed["value"]["a"]["value"], 1);
    served.delete(KEY).await;
    assert_eq!(events.next().await.unwrap(), json!({ "key": key, "version": null, "value": null }));

    served.put(KEY, r#"{"a": 2}"#).await;
    let mut prefix = Events::open(&served, "/api/v1/kv?prefix=annulus%2Fkv%2F&watch=true").await;
    let first = prefix.next().await.unwrap();
    assert_eq!((&first["key"], &first["value"]["a"]["value"]), (&key, &json!(2)));
    assert_eq!(served.get(&format!("{KEY}?watch=perhaps")).await.0, 400);

    served.node.stop().await;
    while events.next().await.is_some() {}
    served.end().await;
}

#[tokio::test]
async fn events_are_streamed_as_they_happen() {
    let served = served(config()).await;
    let mut events = Events::open(&served, "/api/v1/events").await;
    assert_eq!(served.post("/api/v1/rings/ingester/forget/n1").await.0, 200);
    let expected = json!({ "event": "ring_changed", "ring": "ingester", "instances": 0 });
    let mut before = Vec::new();
    // The last steps of the node's start may come first.
    loop {
        match events.next().await {
            Some(event) if event == expected => break,
            Some(event) => before.push(event),
            None => panic!("the stream ended after {before:?}"),
        }
    }
    assert!(before.iter().all(|event| event["event"].is_string()), "{before:?}");
    served.end().await;
}

#[tokio::test]
async fn steps_of_a_migration_are_events_with_the_names_that_the_log_has() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = dir.path().join("runtime.yaml");
    std::fs::write(&runtime, "multi_kv_config: {}\n").unwrap();
    let two_stores = config().multi(KvStore::Inmemory, KvStore::Memberlist).bind("127.0.0.1".parse().unwrap(), 0);
    let follows = two_stores.runtime_config_file(&runtime);
    let served = served(follows.with(|config| config.runtime_config.period = Duration::from_millis(20))).await;
    let mut events = Events::open(&served, "/api/v1/events").await;
    std::fs::write(&runtime, "multi_kv_config: { mirror_enabled: true }\n").unwrap();
    let mut steps = Vec::new();
    while steps.last().is_none_or(|(step, _)| step != "backfill_verified") {
        let event = events.next().await.unwrap();
        if event["event"] == "migration" {
            steps.push((event["step"].as_str().unwrap().to_owned(), event["what"].as_str().unwrap().to_owned()));
        }
    }
    for (step, what) in [("mirror_enabled", "mirroring is on"), ("phase", "from phase wired to dual")] {
        assert!(steps.contains(&(step.to_owned(), what.to_owned())), "{step} is not in {steps:?}");
    }
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md")).unwrap();
    for (step, _) in &steps {
        assert!(page.contains(&format!("`{step}`")), "{step} is not explained in docs/operations.md");
    }
    served.end().await;
}

#[tokio::test]
async fn a_server_that_shuts_down_ends_its_streams() {
    let served = served(config()).await;
    let mut events = Events::open(&served, "/api/v1/events").await;
    drop(served.stop);
    while events.next().await.is_some() {}
    tokio::time::timeout(DEADLINE, served.server).await.unwrap().unwrap().unwrap();
    served.node.stop().await;
}

#[tokio::test]
async fn migration_of_a_node_with_one_store_is_solo() {
    let served = served(config()).await;
    let expected = json!({
        "store": "inmemory", "phase": "solo", "primary": "inmemory", "mirror_enabled": false, "shadow_lookups": [],
        "runtime_config": null,
    });
    assert_eq!(served.ok("/api/v1/migration").await, expected);
    assert_eq!(served.ok("/migration").await, expected);
    assert_eq!(served.get("/runtime_config").await.0, 404);
    served.end().await;
}

#[tokio::test]
async fn migration_of_a_multi_store_is_told_with_its_runtime_config() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("runtime.yaml");
    std::fs::write(&file, "multi_kv_config: { mirror_enabled: true }\n").unwrap();
    let loopback = "127.0.0.1".parse().unwrap();
    let config = Config::builder("n1").multi(KvStore::Inmemory, KvStore::Memberlist).bind(loopback, 0);
    let served = served(config.runtime_config_file(&file)).await;
    let mirroring = async || served.ok("/api/v1/migration").await["mirror_enabled"] == true;
    assert!(wait_until(DEADLINE, mirroring).await);
    let status = served.ok("/api/v1/migration").await;
    assert_eq!((&status["store"], &status["primary"]), (&json!("multi"), &json!("inmemory")));
    assert_eq!(status["secondary"], "memberlist");
    assert!(status["outbox_len"].is_u64() && status["mirror_lag_ms"].is_u64() && status["backfill"].is_object());
    assert_eq!(status["runtime_config"]["healthy"], true);
    let runtime = served.ok("/runtime_config").await;
    assert_eq!(runtime["config"]["multi_kv_config"]["mirror_enabled"], true);
    assert_eq!(served.put(KEY, r#"{"a": 1}"#).await.0, 200);
    assert_eq!(served.ok(KEY).await["value"]["a"]["value"], 1);
    served.end().await;
}

#[tokio::test]
async fn actors_are_shown_and_drilled_only_when_that_is_allowed() {
    let served_without = served(config()).await;
    let tree = served_without.ok("/actors").await;
    assert!(tree["uptime_ms"].is_u64());
    let names: Vec<_> = tree["actors"].as_array().unwrap().iter().map(|actor| actor["name"].clone()).collect();
    assert!(names.contains(&json!("heartbeat/ingester")), "{names:?}");
    assert_eq!(served_without.post("/api/v1/drills/heartbeat/ingester?fault=panic").await.0, 403);
    served_without.end().await;

    let served = served(config().with(|config| config.http.drills_enabled = true)).await;
    let drilled = served.post("/api/v1/drills/heartbeat/ingester?fault=panic").await;
    assert_eq!(drilled, (200, json!({ "actor": "heartbeat/ingester", "fault": "panic" })));
    let restarted = async || {
        let tree = served.ok("/api/v1/actors").await;
        let mut actors = tree["actors"].as_array().unwrap().iter();
        actors.any(|actor| actor["name"] == "heartbeat/ingester" && actor["restarts"]["panic"] == 1)
    };
    assert!(wait_until(DEADLINE, restarted).await);
    assert_eq!(served.post("/api/v1/drills/nobody?fault=stop").await.0, 404);
    assert_eq!(served.post("/api/v1/drills/heartbeat/ingester").await.0, 400);
    assert_eq!(served.post("/api/v1/drills/heartbeat/ingester?fault=exit").await.0, 400);
    served.end().await;
}

#[tokio::test]
async fn the_configuration_is_shown_without_its_secrets() {
    let secret = |config: &mut Config| config.kv.consul.acl_token = Secret::new("hunter2-acl");
    let served = served(config().with(secret)).await;
    let shown = served.ok("/config").await;
    assert_eq!((&shown["node"]["id"], &shown["kv"]["store"]), (&json!("n1"), &json!("inmemory")));
    assert_eq!(shown["kv"]["consul"]["acl_token"], annulus::config::SECRET_MASK);
    assert!(!shown.to_string().contains("hunter2"));
    served.end().await;
}

#[tokio::test]
async fn with_an_admin_token_every_change_needs_it_and_reading_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, "s3cret\n").unwrap();
    let path = file.to_str().unwrap().to_owned();
    let served = served(config().with(|config| config.http.admin_token_file = path)).await;
    assert_eq!(served.get("/api/v1/rings").await.0, 200);
    assert_eq!(served.put(KEY, "{\"a\": 1}").await.0, 401);
    assert_eq!(served.delete(KEY).await.0, 401);
    assert_eq!(served.post("/api/v1/rings/ingester/forget/x").await.0, 401);
    assert_eq!(served.post("/api/v1/drills/supervisor?fault=panic").await.0, 401);
    let with = |token: &str| served.client.put(served.url(KEY)).body("{\"a\": 1}").bearer_auth(token);
    assert_eq!(answer(with("s3cre")).await.0, 401);
    assert_eq!(answer(with("s3cret")).await.0, 200);
    let head = served.raw(format!("DELETE {KEY} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await;
    assert!(head.starts_with("HTTP/1.1 401 ") && head.contains("www-authenticate: Bearer"), "{head}");
    served.end().await;
}

#[tokio::test]
async fn an_admin_token_that_cannot_be_read_is_an_error_and_nobody_may_change_anything() {
    let config = config().with(|config| config.http.admin_token_file = "/nonexistent/token".to_owned());
    let node = Node::builder("n1").config(config.build().unwrap()).start().await.unwrap();
    let mut request = Request::new(Method::Delete, KEY).unwrap();
    request.peer = Some("127.0.0.1".parse().unwrap());
    request.authorization = Some("Bearer ".to_owned());
    assert_eq!(Api::new(node.clone()).handle(request).await.status, 403);
    let error = http::serve(node.clone(), "127.0.0.1:0".parse().unwrap(), async {}).await.unwrap_err();
    assert!(matches!(error, ServeError::Admin(_)), "{error}");
    node.stop().await;
}

#[tokio::test]
async fn without_an_admin_token_only_this_host_and_no_foreign_page_may_change_anything() {
    let served = served(config()).await;
    let api = Api::new(served.node.clone());
    for (peer, expected) in [(Some("10.1.2.3"), 403), (None, 403), (Some("::1"), 200)] {
        let mut request = Request::new(Method::Delete, KEY).unwrap();
        request.peer = peer.map(|peer| peer.parse().unwrap());
        assert_eq!(api.handle(request).await.status, expected, "{peer:?}");
    }
    let with = |name: &str, value: &str| served.client.delete(served.url(KEY)).header(name, value);
    assert_eq!(answer(with("x-forwarded-for", "10.1.2.3")).await.0, 403);
    assert_eq!(answer(with("origin", "http://evil.example")).await.0, 403);
    assert_eq!(answer(with("origin", &served.url(""))).await.0, 200);
    served.end().await;
}

#[tokio::test]
async fn wrong_methods_and_unknown_paths_are_told_so() {
    let served = served(config()).await;
    for path in
        ["/nope", "/api/v1/nope", "/api", "/ready/", "/api/v1/rings/ingester/nope", "/api/v1/kv/", "//", "/ring/a/b"]
    {
        assert_eq!(served.get(path).await.0, 404, "{path}");
    }
    for path in ["/", "/ready", "/metrics", "/api/v1/rings/ingester", "/api/v1/events", "/api/v1/kv", "/config"] {
        assert_eq!(served.post(path).await.0, 405, "{path}");
    }
    assert_eq!(served.get("/api/v1/rings/ingester/forget/n1").await.0, 405);
    assert_eq!(served.get("/api/v1/drills/supervisor?fault=panic").await.0, 405);
    let head = served.raw(format!("PATCH {KEY} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await;
    assert!(head.starts_with("HTTP/1.1 405 ") && head.contains("allow: GET, PUT, DELETE"), "{head}");
    let head = served.raw(b"HEAD /ready HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 ") && head.contains("content-type: text/plain"), "{head}");
    served.end().await;
}

#[tokio::test]
async fn hostile_requests_get_an_error_and_the_server_goes_on() {
    let served = served(config()).await;
    let lines: &[&[u8]] = &[
        b"GET /api/v1/kv/%ff HTTP/1.1",
        b"GET /api/v1/kv/%00%1b[2J HTTP/1.1",
        b"GET /api/v1/kv/../../etc/passwd HTTP/1.1",
        b"GET /api/v1/rings/%zz/lookup?key=%zz HTTP/1.1",
        b"GET /api/v1/rings/ingester/lookup?hash=99999999999999999999 HTTP/1.1",
        b"GET /api/v1/kv?%=%& HTTP/1.1",
        b"OPTIONS * HTTP/1.1",
        b"CONNECT evil.example:80 HTTP/1.1",
        b"POST /api/v1/drills/%F0%9F%92%A5?fault=panic HTTP/1.1",
    ];
    for line in lines {
        let head = served.raw(&[line, &b"\r\nhost: x\r\ncontent-length: 0\r\n\r\n"[..]].concat()).await;
        assert!(head.starts_with("HTTP/1.1 4"), "{}: {head}", String::from_utf8_lossy(line));
    }
    let long = format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "a".repeat(60_000));
    assert!(served.raw(long.as_bytes()).await.starts_with("HTTP/1.1 4"));
    assert_eq!(served.get("/api/v1/rings").await.0, 200);
    served.end().await;
}

#[test]
fn no_path_or_query_makes_the_api_panic() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let config = config().with(|config| config.http.drills_enabled = true).build().unwrap();
    let node = runtime.block_on(Node::builder("n1").config(config).start()).unwrap();
    let api = Api::new(node.clone());
    let part = prop_oneof![
        Just("/api/v1/".to_owned()),
        Just("rings/ingester/lookup?key=".to_owned()),
        Just("rings/ingester/forget/".to_owned()),
        Just("kv/annulus/kv/".to_owned()),
        Just("kv/collectors/ring-ingester".to_owned()),
        Just("drills/".to_owned()),
        Just("?version=".to_owned()),
        Just("&watch".to_owned()),
        Just("%".to_owned()),
        ".{0,8}",
    ];
    let targets = prop::collection::vec(part, 0..6).prop_map(|parts| parts.concat());
    let methods = prop::sample::select(vec![Method::Get, Method::Put, Method::Post, Method::Delete, Method::Other]);
    proptest!(ProptestConfig::with_cases(500), |(target in targets, method in methods, body in ".{0,40}")| {
        if let Ok(mut request) = Request::new(method, &target) {
            request.peer = Some("127.0.0.1".parse().unwrap());
            request.body = body.into();
            let response = runtime.block_on(api.handle(request));
            prop_assert!((200..600).contains(&response.status));
            prop_assert!(response.status != 500, "{}", target);
        }
    });
    runtime.block_on(node.stop());
}

#[tokio::test]
async fn a_port_in_use_is_a_clear_error_before_anything_starts() {
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = holder.local_addr().unwrap();
    let error = http::bind(listen).await.unwrap_err();
    assert!(matches!(error, ServeError::PortInUse { listen: address } if address == listen), "{error}");
    assert!(error.to_string().contains("http.listen") && error.to_string().contains("in use"));
    let foreign = http::bind("192.0.2.1:0".parse().unwrap()).await.unwrap_err();
    assert!(matches!(foreign, ServeError::AddressNotAvailable { .. }), "{foreign}");
}

#[test]
fn the_reference_describes_every_route() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/http.md")).unwrap();
    for route in ROUTES {
        let row = format!("| {} | `{}` | {} |", route.methods, route.path, route.about);
        assert!(page.contains(&row), "docs/reference/http.md lacks the row\n{row}");
    }
}
