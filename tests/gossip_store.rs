//! The store of a node keeps the contract of every store, whichever store it is.
//!
//! The suite asks for what two nodes that gossip can keep: what one wrote is awaited before the other relies on it.

#![allow(clippy::unwrap_used)]

mod support;

#[path = "support/fleet.rs"]
mod fleet;

use std::sync::Arc;

#[cfg(feature = "consul")]
use annulus::Node;
use annulus::config::{Config, KvStore};
use annulus::kv::StoreKind;
use fleet::{Fleet, RuntimeFile, two_stores};
use support::store_suite::{self, Map};

/// Two nodes that know the values of the suite and see each other.
async fn two_nodes(customise: impl Fn(usize, &mut Config) + Send + Sync + 'static) -> Fleet {
    let mut fleet = Fleet::empty(customise);
    for number in 1..=2 {
        let node = fleet.builder(number).codec("suite/", Arc::new(Map::codec())).start().await.unwrap();
        fleet.nodes.push(node);
    }
    fleet.complete().await;
    fleet
}

async fn run(fleet: &Fleet) {
    store_suite::run(fleet.nodes[0].store(), fleet.nodes[1].store()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_that_gossip_keep_the_contract() {
    let fleet = two_nodes(|_, _| {}).await;
    assert_eq!(fleet.nodes[0].store().kind(), StoreKind::Memberlist);
    run(&fleet).await;
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_that_gossips_with_nobody_keeps_the_contract() {
    let fleet = Fleet::start(1, |_, _| {}).await;
    let node = &fleet.nodes[0];
    node.codecs().register("suite/", Arc::new(Map::codec()));
    store_suite::run(node.store(), node.store()).await;
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_that_mirror_from_memory_into_gossip_keep_the_contract() {
    let fleet = two_nodes(|_, config| {
        two_stores(config, KvStore::Inmemory, KvStore::Memberlist);
        config.kv.multi.mirror_enabled = true;
    })
    .await;
    assert_eq!(fleet.nodes[0].store().kind(), StoreKind::Multi);
    run(&fleet).await;
    fleet.mirrored().await;
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_that_mirror_from_gossip_into_memory_keep_the_contract() {
    let fleet = two_nodes(|_, config| {
        two_stores(config, KvStore::Memberlist, KvStore::Inmemory);
        config.kv.multi.mirror_enabled = true;
    })
    .await;
    run(&fleet).await;
    fleet.mirrored().await;
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_that_have_flipped_to_gossip_keep_the_contract() {
    let file = RuntimeFile::new("multi_kv_config: { mirror_enabled: true }\n");
    let path = file.path();
    let fleet = two_nodes(move |_, config| {
        two_stores(config, KvStore::Inmemory, KvStore::Memberlist);
        config.runtime_config.file = vec![path.clone()];
    })
    .await;
    fleet.mirrored().await;
    file.write("multi_kv_config: { mirror_enabled: true, primary: memberlist }\n");
    fleet.primary(StoreKind::Memberlist).await;
    run(&fleet).await;
    fleet.stop().await;
}

/// Two nodes that mirror from one store into another, with real servers where a store has one.
#[cfg(any(feature = "consul", feature = "etcd"))]
async fn pair(primary: KvStore, secondary: KvStore) {
    let uses = |store| [primary, secondary].contains(&store);
    let (mut consul, mut etcd) = (None, None);
    if uses(KvStore::Consul) {
        let Some(server) = support::consul::Consul::start() else { return };
        consul = Some(server);
    }
    if uses(KvStore::Etcd) {
        let Some(server) = support::etcd::Etcd::start() else { return };
        etcd = Some(server);
    }
    let (consul_host, etcd_host) =
        (consul.as_ref().map(|server| server.host()), etcd.as_ref().map(|server| server.host()));
    let fleet = two_nodes(move |_, config| {
        two_stores(config, primary, secondary);
        if let Some(host) = &consul_host {
            config.kv.consul.host.clone_from(host);
        }
        config.kv.etcd.endpoints = etcd_host.iter().cloned().collect();
        config.kv.multi.mirror_enabled = true;
    })
    .await;
    run(&fleet).await;
    if primary != KvStore::Memberlist {
        store_suite::concurrent_increments_are_one_history(&fleet.nodes[0].store(), &fleet.nodes[1].store()).await;
    }
    fleet.mirrored().await;
    fleet.stop().await;
    // What the nodes said is in both stores is there.
    if let Some(consul) = consul {
        let keys = consul.request("GET", "/v1/kv/suite/?keys", b"");
        assert!(keys.contains("suite/count"), "{keys}");
    }
    if let Some(etcd) = etcd {
        assert!(etcd.bytes("suite/count").is_some());
    }
}

#[cfg(feature = "consul")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_that_mirror_from_consul_into_gossip_keep_the_contract() {
    pair(KvStore::Consul, KvStore::Memberlist).await;
}

#[cfg(feature = "consul")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_that_mirror_from_gossip_into_consul_keep_the_contract() {
    pair(KvStore::Memberlist, KvStore::Consul).await;
}

#[cfg(feature = "etcd")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_that_mirror_from_etcd_into_gossip_keep_the_contract() {
    pair(KvStore::Etcd, KvStore::Memberlist).await;
}

#[cfg(feature = "etcd")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_that_mirror_from_gossip_into_etcd_keep_the_contract() {
    pair(KvStore::Memberlist, KvStore::Etcd).await;
}

#[cfg(feature = "etcd")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_that_mirror_from_memory_into_etcd_keep_the_contract_without_gossip() {
    pair(KvStore::Inmemory, KvStore::Etcd).await;
}

#[cfg(feature = "consul")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_the_other_store_does_not_take_is_told_and_never_counts_as_copied() {
    use annulus::kv::{CasAction, Value};
    use fleet::{PATIENCE, until_seen};

    let Some(consul) = support::consul::Consul::start() else { return };
    let host = consul.host();
    let file = RuntimeFile::new("multi_kv_config: { mirror_enabled: false }\n");
    let path = file.path();
    let fleet = two_nodes(move |_, config| {
        two_stores(config, KvStore::Inmemory, KvStore::Consul);
        config.kv.consul.host.clone_from(&host);
        config.runtime_config.file = vec![path.clone()];
    })
    .await;
    let store = fleet.nodes[0].store();
    let large = |_: Option<&Value>| {
        let (mut map, now) = (Map::new(), annulus::clock::Now::read());
        (0..20_000).for_each(|number| map.insert(now, format!("an entry with number {number}"), number));
        CasAction::Write(Value::new(map))
    };
    store.cas("suite/large", Box::new(large)).await.unwrap();
    file.write("multi_kv_config: { mirror_enabled: true }\n");
    let status = || fleet.nodes[0].migration().unwrap();
    until_seen("it is known not to fit", status, async || {
        let known = |large: &annulus::migration::LargeValue| large.key == "suite/large" && large.limit == 524_288;
        let status = status();
        status.large_values.iter().any(known) && status.backfill.too_large == 1
    })
    .await;
    assert!(!status().backfill.verified, "{:?}", status());
    // The store itself is not to blame, so other keys go on.
    let small = |old: Option<&Value>| {
        let mut map = old.and_then(Value::downcast_ref::<Map>).cloned().unwrap_or_default();
        map.insert(annulus::clock::Now::read(), "x", 1);
        CasAction::Write(Value::new(map))
    };
    store.cas("suite/small", Box::new(small)).await.unwrap();
    let arrived = async || consul.request("GET", "/v1/kv/suite/?keys", b"").contains("suite/small");
    assert!(support::wait_until(PATIENCE, arrived).await, "{:?}", status());
    assert!(!status().backfill.verified, "{:?}", status());
    assert!(!consul.request("GET", "/v1/kv/suite/?keys", b"").contains("suite/large"));
    for node in &fleet.nodes {
        node.store().delete("suite/large").await.unwrap();
    }
    fleet.mirrored().await;
    fleet.stop().await;
}

#[cfg(all(feature = "consul", feature = "etcd"))]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_that_mirror_from_consul_into_etcd_keep_the_contract_without_gossip() {
    pair(KvStore::Consul, KvStore::Etcd).await;
}

#[cfg(all(feature = "consul", feature = "etcd"))]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_that_mirror_from_etcd_into_consul_keep_the_contract_without_gossip() {
    pair(KvStore::Etcd, KvStore::Consul).await;
}

#[cfg(feature = "consul")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_that_mirror_from_memory_into_consul_keep_the_contract_without_gossip() {
    pair(KvStore::Inmemory, KvStore::Consul).await;
}

#[cfg(feature = "consul")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_with_consul_alone_keep_what_a_store_without_tombstones_can_keep() {
    let Some(consul) = support::consul::Consul::start() else { return };
    let host = consul.host();
    let fleet = two_nodes(move |_, config| {
        config.kv.store = KvStore::Consul;
        config.kv.consul.host.clone_from(&host);
    })
    .await;
    let (here, there) = (kv(&fleet.nodes[0]), kv(&fleet.nodes[1]));
    let insert = |old: Option<Map>| {
        let mut map = old.unwrap_or_default();
        map.insert(annulus::clock::Now::read(), "x", 1);
        Ok(Some(map))
    };
    here.cas("alone", insert).await.unwrap();
    assert_eq!(there.get("alone").await.unwrap().and_then(|map| map.get("x").copied()), Some(1));
    there.delete("alone").await.unwrap();
    assert_eq!(here.get("alone").await.unwrap(), None);
    fleet.stop().await;
}

#[cfg(feature = "consul")]
fn kv(node: &Node) -> annulus::kv::Kv<Map> {
    annulus::kv::Kv::new(node.store(), "suite/")
}
