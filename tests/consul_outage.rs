//! A Consul that goes away, comes back, refuses, or holds nonsense: the ring goes on from what was known last.
#![cfg(feature = "consul")]
#![allow(clippy::unwrap_used)]

mod support;

#[path = "support/checker.rs"]
mod checker;
#[path = "support/fleet.rs"]
mod fleet;

use std::time::Duration;

use annulus::config::KvStore;
use annulus::kv::LwwMap;
use annulus::{JSON_PREFIX, Node, Operation, key_hash};
use checker::Workload;
use fleet::{Fleet, RING, RING_KEY, all_identities, assert_same_identities, is_complete, until};
use serde_json::Value;
use support::consul::Consul;
use support::proxy::{Fault, FaultProxy};

/// Several heartbeat timeouts, and more periods than it takes to forget an instance.
const OUTAGE: Duration = Duration::from_secs(20);

const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(6);

/// Three nodes with their ring in Consul alone, that forget each other after one heartbeat timeout.
fn customise(host: String) -> impl Fn(usize, &mut annulus::Config) + Send + Sync + 'static {
    move |_, config| {
        config.kv.store = KvStore::Consul;
        config.kv.consul.host.clone_from(&host);
        config.rings[0].heartbeat_timeout = HEARTBEAT_TIMEOUT;
        config.rings[0].auto_forget_unhealthy_periods = 1;
    }
}

fn heartbeats(node: &Node) -> u64 {
    node.ring(RING).own().unwrap().heartbeats
}

fn last_error(node: &Node) -> Option<String> {
    node.ring(RING).own().unwrap().last_error.clone()
}

/// Waits until every node has written heartbeats again and sees the whole ring.
async fn recovered(fleet: &Fleet) {
    for node in &fleet.nodes {
        let before = heartbeats(node);
        until(&format!("heartbeats of {} go on", node.id()), async || {
            heartbeats(node) >= before + 2 && last_error(node).is_none()
        })
        .await;
    }
    fleet.complete().await;
}

/// Keeps something up until a time is over, and looks all the while that no instance is lost on any node.
async fn endure(fleet: &Fleet, time: Duration) {
    let end = tokio::time::Instant::now() + time;
    while tokio::time::Instant::now() < end {
        for node in &fleet.nodes {
            assert!(is_complete(node, fleet.nodes.len()), "{}: {:?}", node.id(), fleet::ring_text(node));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The instances that Consul holds, read by a node's store.
async fn stored(node: &Node) -> usize {
    let entry = node.store().get(RING_KEY).await.unwrap().expect("the ring is in Consul");
    entry.value.downcast_ref::<annulus::ring::Desc>().expect("a ring").live().count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_consul_refuses_connections_lookups_go_on_and_nobody_is_removed() {
    let Some(consul) = Consul::start() else { return };
    let proxy = FaultProxy::start(consul.addr()).await;
    let fleet = Fleet::start(3, customise(proxy.host())).await;
    let before = all_identities(&fleet);
    let workload = Workload::lookups(&fleet.nodes);
    workload.goes_on().await;

    proxy.set(Fault::Refuse);
    for node in &fleet.nodes {
        until("the outage is told", async || {
            last_error(node).is_some_and(|error| error.contains("consul is not available"))
        })
        .await;
    }
    endure(&fleet, OUTAGE).await;
    workload.goes_on().await;
    proxy.set(Fault::None);

    recovered(&fleet).await;
    endure(&fleet, HEARTBEAT_TIMEOUT * 2).await;
    let report = workload.stop().await;
    report.assert_lookups();
    assert_eq!(stored(&fleet.nodes[0]).await, 3, "nobody was removed for the store's fault");
    assert_same_identities(&fleet, &before);
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_consul_hangs_lookups_go_on_and_nobody_is_removed() {
    let Some(consul) = Consul::start() else { return };
    let fleet = Fleet::start(3, customise(consul.host())).await;
    let before = all_identities(&fleet);
    let workload = Workload::lookups(&fleet.nodes);
    workload.goes_on().await;

    // Connections stay open and nothing answers: only our own deadlines notice.
    consul.pause();
    let end = tokio::time::Instant::now() + OUTAGE;
    while tokio::time::Instant::now() < end {
        for node in &fleet.nodes {
            assert!(node.ring(RING).get(key_hash("any"), Operation::Write).is_ok());
            assert_eq!(node.ring(RING).snapshot().instances().len(), 3);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    workload.goes_on().await;
    consul.resume();

    recovered(&fleet).await;
    let report = workload.stop().await;
    report.assert_lookups();
    assert_eq!(stored(&fleet.nodes[0]).await, 3);
    assert_same_identities(&fleet, &before);
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_are_told_clearly_and_nothing_is_lost() {
    let Some(consul) = Consul::start() else { return };
    let proxy = FaultProxy::start(consul.addr()).await;
    let fleet = Fleet::start(3, customise(proxy.host())).await;
    let before = all_identities(&fleet);
    let workload = Workload::lookups(&fleet.nodes);
    for (status, method, body, told) in [
        ("403 Forbidden", "PUT", "Permission denied", "consul refused"),
        ("403 Forbidden", "GET", "ACL not found", "consul refused"),
        ("500 Internal Server Error", "PUT", "No cluster leader", "No cluster leader"),
        ("500 Internal Server Error", "GET", "rpc error", "consul is not available"),
        (
            "413 Request Entity Too Large",
            "PUT",
            "Request body(600000 bytes) too large, max size: 524288 bytes.",
            "at most 524288",
        ),
    ] {
        proxy.set(Fault::answer(method, status, body));
        for node in &fleet.nodes {
            until(&format!("{} tells of {method} {status}", node.id()), async || {
                last_error(node)
                    .is_some_and(|error| error.contains(told) && (told != "consul refused" || error.contains(body)))
            })
            .await;
        }
        workload.goes_on().await;
        proxy.set(Fault::None);
        recovered(&fleet).await;
    }
    let report = workload.stop().await;
    report.assert_lookups();
    assert_eq!(stored(&fleet.nodes[0]).await, 3);
    assert_same_identities(&fleet, &before);
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_does_not_decode_is_left_alone_and_the_last_ring_serves_on() {
    let Some(consul) = Consul::start() else { return };
    let fleet = Fleet::start(3, customise(consul.host())).await;
    let workload = Workload::lookups(&fleet.nodes);
    let path = format!("/v1/kv/{RING_KEY}");
    let good = raw(&consul);
    assert!(consul.request("PUT", &path, b"this is not a ring").trim_end().ends_with("true"));
    for node in &fleet.nodes {
        until(&format!("{} tells", node.id()), async || {
            last_error(node).is_some_and(|error| error.contains("does not decode") && error.contains(RING_KEY))
        })
        .await;
    }
    endure(&fleet, HEARTBEAT_TIMEOUT * 2).await;
    workload.goes_on().await;
    assert_eq!(raw(&consul), b"this is not a ring", "nobody may overwrite what he does not understand");

    // An operator repairs it.
    assert!(consul.request("PUT", &path, &good).trim_end().ends_with("true"));
    recovered(&fleet).await;
    let report = workload.stop().await;
    report.assert_lookups();
    fleet.stop().await;
}

/// The bytes under the ring's key.
fn raw(consul: &Consul) -> Vec<u8> {
    let json = consul.request("GET", &format!("/v1/kv/{RING_KEY}"), b"");
    let (_, body) = json.split_once("\r\n\r\n").unwrap();
    let value: Value = serde_json::from_str(body).unwrap();
    use base64::Engine as _;
    base64::prelude::BASE64_STANDARD.decode(value[0]["Value"].as_str().unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_start_without_consul_register_when_it_appears() {
    let Some(consul) = Consul::start() else { return };
    let proxy = FaultProxy::start(consul.addr()).await;
    proxy.set(Fault::Refuse);
    let mut fleet = Fleet::empty(customise(proxy.host()));
    for number in 1..=3 {
        let node = fleet.add(number).await;
        until("the missing Consul is told", async || last_error(&node).is_some_and(|error| error.contains("consul")))
            .await;
        let reasons = node.ready().unwrap_err();
        assert!(reasons.len() == 1 && reasons[0].contains(RING), "{reasons:?}");
        assert!(node.ring(RING).get(1, Operation::Write).is_err(), "there is no ring as yet");
        let write = node.kv::<LwwMap<Value>>(JSON_PREFIX).cas("k", |old| Ok(Some(old.unwrap_or_default()))).await;
        assert!(write.unwrap_err().to_string().contains("consul is not available"));
    }
    proxy.set(Fault::None);
    fleet.complete().await;
    for node in &fleet.nodes {
        until("it is ready", async || node.ready().is_ok()).await;
    }
    let workload = Workload::with_pause(&fleet.nodes, Some(Duration::from_millis(100)));
    workload.goes_on().await;
    let report = workload.stop().await;
    report.assert_flawless();
    report.assert_nothing_lost(&fleet.nodes).await;
    fleet.stop().await;
}
