//! The edges of a move, with real stores: keys that are deleted while writes of them wait, values that do not fit, keys
//! whose codec comes later, and the story in the log.
#![cfg(feature = "consul")]
#![allow(clippy::unwrap_used)]

mod support;

#[path = "support/fleet.rs"]
mod fleet;

use std::io::Write;
use std::sync::{Arc, Mutex, OnceLock};

use annulus::clock::Now;
use annulus::config::KvStore;
use annulus::kv::{Kv, LwwMap, StoreKind};
use annulus::{JSON_PREFIX, Node};
use fleet::{Fleet, RuntimeFile, two_stores, until, until_seen};
use serde_json::{Value, json};
use support::consul::Consul;
use support::proxy::{Fault, FaultProxy};

const WIRED: &str = "multi_kv_config: {}\n";
const MIRROR: &str = "multi_kv_config: { mirror_enabled: true }\n";
const FLIPPED: &str = "multi_kv_config: { mirror_enabled: true, primary: memberlist }\n";
const FLIPPED_BACK: &str = "multi_kv_config: { mirror_enabled: true, primary: consul }\n";

type Map = LwwMap<Value>;

fn values(node: &Node) -> Kv<Map> {
    node.kv(JSON_PREFIX)
}

async fn set(store: &Kv<Map>, key: &str, value: Value) {
    let write = move |old: Option<Map>| {
        let mut map = old.unwrap_or_default();
        map.insert(Now::read(), "x", value.clone());
        Ok(Some(map))
    };
    store.cas(key, write).await.unwrap();
}

async fn is_there(node: &Node, key: &str) -> bool {
    values(node).get(key).await.unwrap().is_some()
}

/// Whether Consul has a value under a key, asked without anything of Annulus.
fn in_consul(consul: &Consul, key: &str) -> bool {
    let answer = consul.request("GET", &format!("/v1/kv/{key}"), b"");
    let status = answer.split(' ').nth(1).unwrap_or_default().to_owned();
    assert!(["200", "404"].contains(&&*status), "{answer}");
    status == "200"
}

fn waiting(node: &Node) -> usize {
    node.migration().unwrap().outbox_len
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_key_stays_deleted_through_a_whole_move_whoever_still_had_it_to_write() {
    let Some(consul) = Consul::start() else { return };
    // Each node reaches Consul on a way of its own.
    let ways = [FaultProxy::start(consul.addr()).await, FaultProxy::start(consul.addr()).await];
    let hosts = [ways[0].host(), ways[1].host(), consul.host()];
    let runtime = RuntimeFile::new(MIRROR);
    let path = runtime.path();
    let fleet = Fleet::start(3, move |number, config| {
        two_stores(config, KvStore::Consul, KvStore::Memberlist);
        config.kv.consul.host.clone_from(&hosts[number - 1]);
        config.runtime_config.file = vec![path.clone()];
    })
    .await;
    let (writer, deleter) = (&fleet.nodes[0], &fleet.nodes[1]);
    fleet.mirrored().await;

    // Consul is primary: written by one node, deleted by another.
    set(&values(writer), "there", json!(1)).await;
    set(&values(writer), "stays", json!(1)).await;
    values(deleter).delete("there").await.unwrap();
    runtime.write(FLIPPED);
    fleet.primary(StoreKind::Memberlist).await;
    for node in &fleet.nodes {
        until("what was deleted is gone on every node", async || !is_there(node, "there").await).await;
        until("what was not is there", async || is_there(node, "stays").await).await;
    }
    fleet.mirrored().await;

    // Gossip is primary, and Consul is away for both: the write waits at one, the deletion at the other.
    ways.iter().for_each(|way| way.set(Fault::Refuse));
    set(&values(writer), "back", json!(1)).await;
    until("the other node hears of it", async || is_there(deleter, "back").await).await;
    values(deleter).delete("back").await.unwrap();
    until("the writer hears that it is gone", async || !is_there(writer, "back").await).await;
    until("both wait for Consul", async || waiting(writer) > 0 && waiting(deleter) > 0).await;
    ways[1].set(Fault::None);
    until("the deletion reached Consul", async || waiting(deleter) == 0).await;
    assert!(!in_consul(&consul, "annulus/kv/back"));
    ways[0].set(Fault::None);
    until("the write has nothing to wait for any more", async || waiting(writer) == 0).await;
    assert!(!in_consul(&consul, "annulus/kv/back"), "a write that waited created a key that was deleted");
    until("it is counted", async || writer.migration().unwrap().mirror_dropped_total > 0).await;

    runtime.write(FLIPPED_BACK);
    fleet.primary(StoreKind::Consul).await;
    fleet.mirrored().await;
    for node in &fleet.nodes {
        assert!(!is_there(node, "back").await && !is_there(node, "there").await && is_there(node, "stays").await);
    }
    assert!(!in_consul(&consul, "annulus/kv/back") && !in_consul(&consul, "annulus/kv/there"));
    assert!(in_consul(&consul, "annulus/kv/stays"));
    fleet.stop().await;
}

#[cfg(feature = "etcd")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_consul_does_not_take_is_told_before_the_mirror_starts_and_is_copied_when_it_fits() {
    use annulus::kv::Codecs;
    use annulus::stores::etcd::{EtcdConfig, EtcdStore};
    use support::etcd::Etcd;

    let Some((consul, etcd)) = Consul::start().zip(Etcd::start()) else { return };
    let codecs = Arc::new(Codecs::default());
    codecs.register(JSON_PREFIX, Arc::new(Map::codec()));
    let config = EtcdConfig { endpoints: vec![etcd.host()], ..EtcdConfig::default() };
    let before: Kv<Map> = Kv::new(EtcdStore::new(config, codecs).unwrap(), JSON_PREFIX);
    set(&before, "huge", json!("x".repeat(600_000))).await;
    set(&before, "near", json!("x".repeat(450_000))).await;
    set(&before, "small", json!(1)).await;

    let runtime = RuntimeFile::new(WIRED);
    let (path, host, endpoint) = (runtime.path(), consul.host(), etcd.host());
    let fleet = Fleet::start(1, move |_, config| {
        two_stores(config, KvStore::Etcd, KvStore::Consul);
        config.kv.consul.host.clone_from(&host);
        config.kv.etcd.endpoints = vec![endpoint.clone()];
        config.runtime_config.file = vec![path.clone()];
    })
    .await;
    let node = &fleet.nodes[0];
    let gate = |name: &str| node.preflight().unwrap().gates.into_iter().find(|gate| gate.name == name).unwrap();
    until_seen(
        "the gate is red, and says why",
        || gate("size"),
        async || {
            let size = gate("size");
            !size.open && size.reason.contains("annulus/kv/huge") && size.reason.contains("524288")
        },
    )
    .await;
    let warning = gate("size").warning.expect("a warning for what is near the limit");
    assert!(warning.contains("annulus/kv/near") && !warning.contains("small"), "{warning}");
    let large = node.migration().unwrap().large_values.clone();
    assert!(large[0].key == "annulus/kv/huge" && large[0].size > 600_000 && large.len() == 2, "{large:?}");

    runtime.write(MIRROR);
    until_seen(
        "the backfill is through with the others",
        || node.migration(),
        async || {
            let backfill = node.migration().unwrap().backfill;
            !backfill.running && backfill.too_large == 1 && !backfill.verified
        },
    )
    .await;
    assert!(in_consul(&consul, "annulus/kv/small") && in_consul(&consul, "annulus/kv/near"));
    assert!(!in_consul(&consul, "annulus/kv/huge"));
    assert_eq!(waiting(node), 0, "it does not wait in the outbox");
    assert!(node.metrics().contains("annulus_mirror_values_too_large 1\n"), "{}", node.metrics());

    set(&values(node), "huge", json!("fits")).await;
    until_seen(
        "it is copied",
        || node.migration(),
        async || {
            gate("size").open && node.migration().unwrap().backfill.verified && in_consul(&consul, "annulus/kv/huge")
        },
    )
    .await;
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_whose_codec_is_registered_later_are_copied_and_compared_too() {
    let Some(consul) = Consul::start() else { return };
    // Written by a node that is gone by the time of the move: nobody will write it again.
    let host = consul.host();
    let only_consul = host.clone();
    let before = Fleet::start(1, move |_, config| {
        config.kv.store = KvStore::Consul;
        config.kv.consul.host.clone_from(&only_consul);
    })
    .await;
    set(&before.nodes[0].kv("late/"), "flags", json!(1)).await;
    before.stop().await;
    assert!(in_consul(&consul, "late/flags"));

    let runtime = RuntimeFile::new(MIRROR);
    let path = runtime.path();
    let mut fleet = Fleet::empty(move |_, config| {
        two_stores(config, KvStore::Consul, KvStore::Memberlist);
        config.kv.consul.host.clone_from(&host);
        config.runtime_config.file = vec![path.clone()];
    });
    let node = fleet.add(1).await;
    fleet.mirrored().await;
    let keys = node.migration().unwrap().backfill.keys;
    let late: Kv<Map> = node.kv("late/");
    until_seen(
        "the backfill covers what came",
        || node.migration(),
        async || {
            let backfill = node.migration().unwrap().backfill;
            backfill.verified && backfill.keys == keys + 1
        },
    )
    .await;
    let report = node.parity().await.unwrap().unwrap();
    assert_eq!((report.keys.primary, report.only_primary.count), (keys + 1, 0), "{report:?}");
    runtime.write(FLIPPED);
    fleet.primary(StoreKind::Memberlist).await;
    assert_eq!(late.get("flags").await.unwrap().unwrap().get("x"), Some(&json!(1)));
    fleet.stop().await;
}

/// What the whole process logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn log() -> &'static Log {
    static LOG: OnceLock<Log> = OnceLock::new();
    LOG.get_or_init(|| {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter("annulus::migration=info")
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .finish();
        // Other tests of this process may log as well: the steps of this one are told apart by their stores.
        tracing::subscriber::set_global_default(subscriber).unwrap();
        log
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_tells_the_story_of_a_move_once_and_with_fields() {
    let log = log();
    let runtime = RuntimeFile::new(WIRED);
    let path = runtime.path();
    let fleet = Fleet::start(1, move |_, config| {
        two_stores(config, KvStore::Inmemory, KvStore::Memberlist);
        config.runtime_config.file = vec![path.clone()];
        config.migration.require_parity = true;
    })
    .await;
    runtime.write(MIRROR);
    fleet.mirrored().await;
    runtime.write(FLIPPED);
    fleet.primary(StoreKind::Memberlist).await;
    runtime.write("multi_kv_config: { mirror_enabled: true, primary: inmemory }\n");
    fleet.primary(StoreKind::InMemory).await;
    let text = || String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    until("the way back is told", async || text().contains("from=memberlist to=inmemory took_ms=")).await;
    fleet.stop().await;
    let text = text();
    let lines = |what: &str| text.lines().filter(|line| line.contains(what)).collect::<Vec<_>>();
    for once in [
        "step=\"flip_begun\" from=inmemory to=memberlist",
        "step=\"flipped\" from=inmemory to=memberlist took_ms=",
        "step=\"flip_begun\" from=memberlist to=inmemory",
        "step=\"flipped\" from=memberlist to=inmemory took_ms=",
        "step=\"parity_regained\" store=inmemory",
    ] {
        assert_eq!(lines(once).len(), 1, "{once}: {text}");
    }
    let flipped = lines("step=\"flipped\" from=inmemory")[0];
    assert!(
        flipped.contains("generation=1") && flipped.contains(" INFO annulus::migration: flipped from"),
        "{flipped}"
    );
    assert!(!lines("step=\"phase\" from=\"wired\" to=\"dual\"").is_empty(), "{text}");
    assert!(!lines("step=\"mirror_enabled\"").is_empty() && !lines("step=\"backfill_verified\" keys=").is_empty());
}
