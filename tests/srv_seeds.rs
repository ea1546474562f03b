//! Nodes that find each other by SRV records, asked of a small DNS server over real sockets.

#![cfg(feature = "dns-srv")]
#![allow(clippy::unwrap_used)]

mod support;

#[path = "support/dns.rs"]
mod dns;
#[path = "support/fleet.rs"]
mod fleet;

use std::net::SocketAddr;

use annulus::{Config, Node};
use dns::DnsServer;
use fleet::{Fleet, id, live_members, until};

const SERVICE: &str = "_gossip._tcp.annulus.test.";

/// A node that joins by this name and asks this server.
async fn start(number: usize, name: &str, dns: &DnsServer) -> Node {
    let mut config = fleet::config(number);
    config.memberlist.join_members = vec![name.to_owned()];
    config.memberlist.rejoin_interval = std::time::Duration::from_secs(1);
    Node::builder(id(number)).config(config).dns_server(dns.addr()).start().await.unwrap()
}

fn addr(node: &Node) -> SocketAddr {
    node.gossip_addr().unwrap()
}

async fn know_each_other(nodes: &[&Node]) {
    until("all know each other", async || nodes.iter().all(|node| live_members(node).len() == nodes.len())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_name_leads_to_its_members_with_their_ports() {
    let dns = DnsServer::start().await;
    let seeds = Fleet::start(2, |_, _| {}).await;
    let [first, second] = [&seeds.nodes[0], &seeds.nodes[1]];
    // Both hosts have the same address here; only the records know the ports.
    dns.set_a("one.annulus.test.", &["127.0.0.1"]);
    dns.set_a("two.annulus.test.", &["127.0.0.1"]);
    dns.set_srv(SERVICE, &[("one.annulus.test.", addr(first).port()), ("two.annulus.test.", addr(second).port())]);
    let by_records = start(3, &format!("dnssrv+{SERVICE}"), &dns).await;

    // The target is no name of this server: the system resolves it.
    dns.set_srv("_noa._tcp.annulus.test.", &[("localhost.", addr(first).port())]);
    let by_targets = start(4, "dnssrvnoa+_noa._tcp.annulus.test", &dns).await;

    // A port in the name wins.
    dns.set_srv("_port._tcp.annulus.test.", &[("one.annulus.test.", 1)]);
    let by_port = start(5, &format!("dnssrv+_port._tcp.annulus.test:{}", addr(second).port()), &dns).await;

    know_each_other(&[first, second, &by_records, &by_targets, &by_port]).await;
    for node in [&by_records, &by_targets, &by_port] {
        node.stop().await;
    }
    seeds.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_answer_is_no_success_and_the_name_is_asked_again() {
    let dns = DnsServer::start().await;
    dns.set_srv(SERVICE, &[]);
    let seeds = Fleet::start(1, |_, _| {}).await;
    let mut config: Config = fleet::config(2);
    config.memberlist.join_members = vec![format!("dnssrv+{SERVICE}")];
    config.memberlist.abort_if_cluster_join_fails = true;
    config.memberlist.max_join_retries = 1;
    let lonely = Node::builder(id(2)).config(config).dns_server(dns.addr()).start().await.unwrap();
    let end = tokio::time::timeout(fleet::PATIENCE, lonely.closed()).await.expect("it gives up");
    assert!(format!("{end:?}").contains("joined nobody"), "{end:?}");

    // One that may live alone finds the others when they are in DNS.
    let patient = start(3, &format!("dnssrv+{SERVICE}"), &dns).await;
    let asked = dns.asked();
    until("it asked again", async || dns.asked() > asked + 2).await;
    assert_eq!(live_members(&patient), [id(3)]);
    dns.set_a("one.annulus.test.", &["127.0.0.1"]);
    dns.set_srv(SERVICE, &[("one.annulus.test.", addr(&seeds.nodes[0]).port())]);
    know_each_other(&[&seeds.nodes[0], &patient]).await;
    patient.stop().await;
    seeds.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_finds_only_itself_goes_on_looking_for_others_behind_the_name() {
    let dns = DnsServer::start().await;
    dns.set_a("one.annulus.test.", &["127.0.0.1"]);
    let first = start(1, &format!("dnssrv+{SERVICE}"), &dns).await;
    dns.set_srv(SERVICE, &[("one.annulus.test.", addr(&first).port())]);
    until("it serves alone", async || fleet::ring_ids(&first) == [id(1)]).await;

    // Another node that never heard of it appears behind the same name.
    let other = Fleet::start(1, |_, config| config.node.id = "other".into()).await;
    dns.set_srv(
        SERVICE,
        &[("one.annulus.test.", addr(&first).port()), ("one.annulus.test.", addr(&other.nodes[0]).port())],
    );
    know_each_other(&[&first, &other.nodes[0]]).await;
    first.stop().await;
    other.stop().await;
}
