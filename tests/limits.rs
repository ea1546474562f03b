//! What a node lets others do to it, over real sockets: the allow-list of networks, and refusals in the metrics.

#![allow(clippy::unwrap_used)]

mod support;

#[path = "support/fleet.rs"]
mod fleet;

use std::net::IpAddr;

use annulus::wire::message::MemberState;
use annulus::{Config, Node};
use fleet::{Fleet, id, live_members, member_state, until};

/// The value of a counter, 0 while it is not there.
fn metric(node: &Node, name: &str) -> f64 {
    let page = node.metrics();
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map_or(0.0, |value| value.parse().unwrap())
}

/// All of 127.0.0.0/8 is this host, on Linux.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_outside_the_allowed_networks_does_not_become_a_member() {
    let mut fleet = Fleet::start(2, |number, config| {
        config.memberlist.cidrs_allowed = vec!["127.0.0.1/32".into(), "10.0.0.0/8".into()];
        if number == 3 {
            config.memberlist.cidrs_allowed.clear();
            config.memberlist.bind_addr = vec!["127.0.0.2".parse::<IpAddr>().unwrap()];
        }
    })
    .await;
    let outsider = fleet.builder(3).start().await.unwrap();
    // It is answered, as memberlist answers it, and so it knows the members; they refuse to know it.
    until("the outsider knows the members", async || live_members(&outsider).len() == 3).await;
    let refused = "annulus_packets_refused_total{reason=\"alive_in_disallowed_network\"}";
    until("it was refused", async || fleet.nodes.iter().any(|node| metric(node, refused) > 0.0)).await;
    fleet.add(4).await;
    until("a member from an allowed network is let in", async || {
        fleet.nodes.iter().all(|node| member_state(node, &id(4)) == Some(MemberState::Alive))
    })
    .await;
    for node in &fleet.nodes {
        assert_eq!(member_state(node, &id(3)), None, "{}", node.id());
    }
    outsider.stop().await;
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_its_own_list_does_not_allow_does_not_start() {
    let fleet = Fleet::empty(|_, config: &mut Config| config.memberlist.cidrs_allowed = vec!["10.0.0.0/8".into()]);
    let error = fleet.builder(1).start().await.err().unwrap().to_string();
    assert!(error.contains("memberlist.cidrs_allowed") && error.contains("127.0.0.1"), "{error}");
}
