//! What a node lets others do to it, over real sockets: the allow-list of networks, and refusals in the metrics.

#![allow(clippy::unwrap_used)]

mod support;

#[path = "support/fleet.rs"]
mod fleet;

use std::net::IpAddr;

use annulus::wire::message::MemberState;
use annulus::{Config, Node};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_are_refused_are_counted_by_reason_and_do_not_stay_open() {
    let fleet = Fleet::start(1, |_, _| {}).await;
    let node = &fleet.nodes[0];
    let to = node.gossip_addr().unwrap();
    let refused = |reason: &str| metric(node, &format!("annulus_streams_refused_total{{reason=\"{reason}\"}}"));

    // Someone else's label, a byte that is no message, and nothing at all.
    let mut sockets = Vec::new();
    let unknown_type = &b"\x0d\x81\xa5Error\xb7unknown message type 99"[..];
    for (bytes, told) in [(&b"\xf4\x05other\x08"[..], &b""[..]), (b"\x63", unknown_type), (b"", b"")] {
        let mut socket = TcpStream::connect(to).await.unwrap();
        socket.write_all(bytes).await.unwrap();
        sockets.push((socket, told));
    }
    for (socket, told) in &mut sockets {
        let mut answer = Vec::new();
        // A reset is as good as an end.
        let _ = socket.read_to_end(&mut answer).await;
        assert_eq!(answer, *told, "strangers learn nothing, and who has our label what was wrong");
    }
    until("all three are counted", async || {
        refused("label_mismatch") == 1.0 && refused("silent") == 1.0 && refused("unknown_type") == 1.0
    })
    .await;
    until("none is open any more", async || metric(node, "annulus_streams_active") == 0.0).await;
    assert_eq!(metric(node, "annulus_stream_budget_free_bytes"), f64::from(256 << 20));
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_strangers_who_say_nothing_do_not_keep_a_member_from_joining() {
    let mut fleet = Fleet::start(1, |_, _| {}).await;
    let to = fleet.nodes[0].gossip_addr().unwrap();
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(to).await.unwrap());
    }
    fleet.add(2).await;
    fleet.complete().await;
    drop(silent);
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_all_join_through_one_at_the_same_moment_are_refused_for_nothing() {
    let fleet = Fleet::start(1, |_, _| {}).await;
    let seed = &fleet.nodes[0];
    let starts = (2..=25).map(|number| fleet.builder(number).start());
    let nodes: Vec<Node> = futures_util::future::join_all(starts).await.into_iter().map(Result::unwrap).collect();
    until("the seed knows all", async || live_members(seed).len() == 25).await;
    for reason in ["too_many", "too_many_from_address", "too_often"] {
        assert_eq!(metric(seed, &format!("annulus_streams_refused_total{{reason=\"{reason}\"}}")), 0.0, "{reason}");
    }
    assert_eq!(metric(seed, "annulus_packets_refused_total{reason=\"over_rate\"}"), 0.0);
    assert_eq!(metric(seed, "annulus_packets_refused_total{reason=\"too_many_new_members\"}"), 0.0);
    futures_util::future::join_all(nodes.iter().map(Node::stop)).await;
    fleet.stop().await;
}
