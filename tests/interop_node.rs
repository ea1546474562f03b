//! Whole nodes of Annulus, as a server embeds them, in clusters of other programs: a ring whose instances know each other
//! only through a member that has never heard of rings.

#![allow(clippy::unwrap_used)]

mod support;

#[path = "support/fleet.rs"]
mod fleet;
#[path = "support/interop/mod.rs"]
mod interop;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use annulus::config::Secret;
use annulus::wire::Key;
use annulus::wire::message::MemberState;
use annulus::{Config, Node, NodeEvent, config};
use fleet::{is_complete, member_state, ring_text};
use futures_util::{FutureExt as _, StreamExt as _};
use interop::alertmanager::{self, Alertmanager};
use interop::go_peer::{GoPeer, Library, Settings};
use interop::loopback::Loopback;
use interop::matrix::{Peer, Scenario, passed};
use interop::until;

/// A member that is no node of ours.
enum Other {
    Go(GoPeer),
    Alertmanager(Alertmanager),
}

impl Other {
    fn addr(&self) -> SocketAddr {
        match self {
            Self::Go(peer) => peer.addr(),
            Self::Alertmanager(server) => server.addr(),
        }
    }

    async fn name(&self) -> String {
        match self {
            Self::Go(peer) => peer.name().to_owned(),
            Self::Alertmanager(server) => server.name().await,
        }
    }

    /// Waits until exactly these are members.
    async fn sees(&self, members: &[SocketAddr]) {
        let mut wanted: Vec<String> = members.iter().map(ToString::to_string).collect();
        wanted.sort();
        let seen = async || match self {
            Self::Go(peer) => {
                let mut addrs: Vec<String> = peer.members().await.into_iter().map(|(_, addr, _)| addr).collect();
                addrs.sort();
                addrs
            }
            Self::Alertmanager(server) => server.members().await,
        };
        until(&format!("it sees {wanted:?}"), seen, |seen| *seen == wanted).await;
    }

    fn kill(&mut self) {
        match self {
            Self::Go(peer) => peer.kill(),
            Self::Alertmanager(server) => server.kill(),
        }
    }
}

/// A node on an address of its own that knows only one member.
async fn node(number: usize, at: &Loopback, seed: SocketAddr, customise: impl Fn(&mut Config)) -> Node {
    let mut config = fleet::config(number);
    config.memberlist.bind_addr = vec![at.ip()];
    config.memberlist.join_members = vec![seed.to_string()];
    config.memberlist.gossip_interval = Some(Duration::from_millis(100));
    config.memberlist.probe_interval = Some(Duration::from_millis(500));
    config.memberlist.probe_timeout = Some(Duration::from_millis(200));
    // Whoever is left alone waits for confirmations that cannot come. With this there are none to wait for.
    config.memberlist.suspicion_mult = Some(2);
    customise(&mut config);
    let meta = format!("meta of {}", config.node.id);
    Node::builder(config.node.id.clone()).config(config).meta(meta).start().await.unwrap()
}

async fn ring_is_complete(nodes: &[&Node]) {
    for node in nodes {
        let what = format!("{} has all of the ring", node.id());
        until(&what, async || ring_text(node), |_| is_complete(node, nodes.len())).await;
    }
}

async fn sees_state(node: &Node, name: &str, state: MemberState) {
    let what = format!("{} sees {name} as {state:?}", node.id());
    until(&what, async || member_state(node, name), |seen| *seen == Some(state)).await;
}

async fn a_ring_lives_in_the_cluster_of(peer: Peer, version: &str, mut other: Other, customise: impl Fn(&mut Config)) {
    let [a, b, c] = std::array::from_fn(|_| Loopback::lease());
    let name = other.name().await;
    let begin = Instant::now();
    let first = node(1, &a, other.addr(), &customise).await;
    let second = node(2, &b, other.addr(), &customise).await;
    let third = node(3, &c, other.addr(), &customise).await;
    let [at_first, at_second, at_third] = [&first, &second, &third].map(|node| node.gossip_addr().unwrap());
    other.sees(&[other.addr(), at_first, at_second, at_third]).await;
    if let Other::Go(peer) = &other {
        let wanted = ("node-1".to_owned(), at_first.to_string(), "meta of node-1".to_owned());
        until("it sees our meta", async || peer.members().await, |all| all.contains(&wanted)).await;
    }
    ring_is_complete(&[&first, &second, &third]).await;
    sees_state(&first, &name, MemberState::Alive).await;

    third.leave().await;
    other.sees(&[other.addr(), at_first, at_second]).await;
    sees_state(&first, third.id(), MemberState::Left).await;
    ring_is_complete(&[&first, &second]).await;

    second.stop().await;
    other.sees(&[other.addr(), at_first]).await;
    sees_state(&first, second.id(), MemberState::Dead).await;

    other.kill();
    sees_state(&first, &name, MemberState::Dead).await;
    passed(peer, version, Scenario::WholeNode, begin.elapsed());
    first.stop().await;
}

async fn with_go(library: Library, settings: Settings, customise: impl Fn(&mut Config)) {
    let home = Loopback::lease();
    let Some(peer) = GoPeer::start(library, "theirs", &home, settings).await else { return };
    let version = peer.version().to_owned();
    a_ring_lives_in_the_cluster_of(library.peer(), &version, Other::Go(peer), customise).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ring_lives_in_a_cluster_of_hashicorps_memberlist() {
    with_go(Library::Hashicorp, Settings::fast(), |_| {}).await;
}

/// With all that configuration can put around the gossip.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ring_lives_in_a_cluster_of_grafanas_memberlist_under_a_label_encrypted_and_compressed() {
    const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
    let settings = Settings::fast().with("label", "prod").with("keys", KEY).with("compress", true);
    with_go(Library::Grafana, settings.with("compression-algorithm", "snappy"), |config| {
        config.memberlist.cluster_label = "prod".into();
        config.memberlist.encryption_keys = vec![Secret::new(KEY)];
        config.memberlist.compression = config::Compression::Snappy;
    })
    .await;
}

/// Both ends of a rotation, from the settings of a node.
const OLD_KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZg==";
const NEW_KEY: &str = "ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA=";

fn with_key(text: &str) -> impl Fn(&mut Config) {
    move |config| {
        config.memberlist.encryption_keys = vec![Secret::new(text)];
        // Nobody may be given up, and a busy machine can hold a process up for seconds.
        config.memberlist.suspicion_mult = Some(60);
    }
}

async fn nodes_change_their_keys_while_they_run(library: Library) {
    let [a, b, c, d, e] = std::array::from_fn(|_| Loopback::lease());
    let settings = Settings::fast().with("keys", OLD_KEY).with("suspicion-mult", 60);
    let Some(peer) = GoPeer::start(library, "theirs", &a, settings).await else { return };
    let first = node(1, &b, peer.addr(), with_key(OLD_KEY)).await;
    let second = node(2, &c, peer.addr(), with_key(OLD_KEY)).await;
    peer.sees(&["node-1", "node-2", "theirs"]).await;
    let mut events = [first.events(), second.events()];

    let begin = Instant::now();
    let (old, new) = (Key::from_base64(OLD_KEY).unwrap(), Key::from_base64(NEW_KEY).unwrap());
    for step in ["key-add", "key-use", "key-remove"] {
        peer.tell(&format!("{step} {}", if step == "key-remove" { OLD_KEY } else { NEW_KEY })).await;
        for node in [&first, &second] {
            match step {
                "key-add" => node.install_key(new.clone()).await.unwrap(),
                "key-use" => node.use_key(&new.id()).await.unwrap(),
                _ => node.remove_key(&old.id()).await.unwrap(),
            }
        }
        peer.tell(&format!("meta {step}")).await;
        for node in [&first, &second] {
            let meta = async || node.members().list.iter().find(|m| m.name == "theirs".into()).map(|m| m.meta.clone());
            let what = format!("{} hears of {step}", node.id());
            until(&what, meta, |meta| meta.as_deref() == Some(step.as_bytes())).await;
        }
    }
    // Whoever comes with the new key is let in by the peer, and finds the others; who comes with the old one is not.
    let third = node(3, &d, peer.addr(), with_key(NEW_KEY)).await;
    ring_is_complete(&[&first, &second, &third]).await;
    passed(library.peer(), peer.version(), Scenario::NodeKeyRotation, begin.elapsed());
    let late = node(4, &e, peer.addr(), with_key(OLD_KEY)).await;
    for seed in [peer.addr(), first.gossip_addr().unwrap()] {
        assert!(late.join(vec![seed]).await.is_err(), "the old key still opens {seed}");
    }
    peer.sees(&["node-1", "node-2", "node-3", "theirs"]).await;
    for events in &mut events {
        while let Some(event) = events.next().now_or_never().flatten() {
            assert!(!matches!(event, NodeEvent::MemberFailed { .. }), "{event:?}");
        }
    }
    for node in [&first, &second, &third, &late] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_change_their_keys_while_they_run_beside_hashicorps_memberlist() {
    nodes_change_their_keys_while_they_run(Library::Hashicorp).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_change_their_keys_while_they_run_beside_grafanas_memberlist() {
    nodes_change_their_keys_while_they_run(Library::Grafana).await;
}

async fn with_alertmanager(version: alertmanager::Version) {
    let home = Loopback::lease();
    let Some(server) = Alertmanager::start(version, &home, &[]).await else { return };
    a_ring_lives_in_the_cluster_of(version.peer(), &version.number(), Other::Alertmanager(server), |_| {}).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ring_lives_in_a_cluster_of_alertmanager_0_25() {
    with_alertmanager(alertmanager::Version::V025).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ring_lives_in_a_cluster_of_alertmanager_0_28() {
    with_alertmanager(alertmanager::Version::V028).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ring_lives_in_a_cluster_of_the_newest_alertmanager() {
    with_alertmanager(alertmanager::Version::Sid).await;
}
