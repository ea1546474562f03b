//! Annulus and Grafana's own code in one cluster, over the TCP transport of the Grafana databases.

#![allow(clippy::unwrap_used)]

mod support;

#[path = "support/dskit_peer.rs"]
mod dskit_peer;
#[path = "support/fleet.rs"]
mod fleet;

use std::time::Duration;

use annulus::Node;
use annulus::clock::Now;
use annulus::config::{Compression, Config};
use annulus::ring::InstanceState;
use dskit_peer::{DskitPeer, gossip_like_grafana, ours, same_owners, theirs};
use fleet::{RING, RING_KEY, id, live_members, ring_text, until, until_seen};

const LABEL: &str = "a.label";

/// A node that gossips like the Grafana databases, and joins through these.
fn config(number: usize, seeds: &[std::net::SocketAddr]) -> Config {
    let mut config = fleet::config(number);
    gossip_like_grafana(&mut config, LABEL);
    config.memberlist.join_members = seeds.iter().map(ToString::to_string).collect();
    config.rings[0].zone_awareness_enabled = true;
    config.rings[0].unregister_on_shutdown = true;
    config
}

async fn start(config: Config) -> Node {
    Node::builder(config.node.id.clone()).config(config).start().await.unwrap()
}

/// A peer with an instance in the ring.
async fn peer(id: &str, zone: &str, label: &str, more: &[&str]) -> Option<DskitPeer> {
    let (id, zone) = (format!("-id={id}"), format!("-zone={zone}"));
    let (label, key) = (format!("-memberlist.cluster-label={label}"), format!("-key={RING_KEY}"));
    let mut arguments = vec![id.as_str(), &zone, &label, &key, "-tokens=64", "-zone-aware=true"];
    arguments.extend(more);
    DskitPeer::start(&arguments).await
}

fn join(node: &Node) -> String {
    format!("-memberlist.join={}", node.gossip_addr().unwrap())
}

/// Waits until all see one ring with exactly these instances.
async fn one_ring(nodes: &[&Node], peers: &[&DskitPeer], ids: &[&str]) {
    for node in nodes {
        let what = format!("{} sees {ids:?}", node.id());
        until_seen(&what, || ring_text(node), async || ours(node).keys().eq(ids)).await;
    }
    for peer in peers {
        until(&format!("dskit at {} sees {ids:?}", peer.gossip()), async || theirs(peer).await.keys().eq(ids)).await;
    }
    // Tokens and registration come with the next heartbeats at the latest.
    for peer in peers {
        for node in nodes {
            until(&format!("{} and dskit agree", node.id()), async || ours(node) == theirs(peer).await).await;
        }
    }
}

fn state(node: &Node, id: &str) -> Option<(InstanceState, bool)> {
    node.ring(RING).snapshot().instance(id).map(|it| (it.state, it.read_only))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn annulus_and_dskit_are_one_ring_whoever_joins_whom() {
    let lzw: &[&str] = &["-memberlist.compression-enabled=true", "-memberlist.compression-algorithm=lzw"];
    let Some(first) = peer("dskit-1", "zone-a", LABEL, lzw).await else { return };
    let mut one = config(1, &[first.gossip()]);
    one.memberlist.compression = Compression::Snappy;
    let one = start(one).await;
    let through = join(&one);
    let snappy: &[&str] =
        &["-memberlist.compression-enabled=true", "-memberlist.compression-algorithm=snappy", &through];
    let second = peer("dskit-2", "zone-c", LABEL, snappy).await.unwrap();
    let mut two = config(2, &[one.gossip_addr().unwrap()]);
    two.memberlist.compression = Compression::Lzw;
    let two = start(two).await;
    let all = ["dskit-1", "dskit-2", "node-1", "node-2"];
    one_ring(&[&one, &two], &[&first, &second], &all).await;
    for node in [&one, &two] {
        until_seen("all are members", || live_members(node), async || live_members(node).len() == 4).await;
        same_owners(node, &first).await;
        same_owners(node, &second).await;
    }

    // What one writes the others see; what one forgets stays forgotten.
    let ghost = "/put?key=collectors/ring&addr=127.0.0.1:1&zone=zone-b&tokens=1,2,4000000000&id=";
    for name in ["x-forgotten-by-dskit", "x-forgotten-by-us"] {
        first.tell(&format!("{ghost}{name}")).await;
    }
    let with_ghosts = ["dskit-1", "dskit-2", "node-1", "node-2", "x-forgotten-by-dskit", "x-forgotten-by-us"];
    one_ring(&[&one, &two], &[&first, &second], &with_ghosts).await;
    same_owners(&two, &second).await;
    second.tell("/remove?key=collectors/ring&id=x-forgotten-by-dskit").await;
    assert!(two.ring(RING).forget("x-forgotten-by-us").await.unwrap());
    one_ring(&[&one, &two], &[&first, &second], &all).await;

    // Read-only and leaving instances.
    second.tell("/readonly?to=true").await;
    let wanted = Some((InstanceState::Active, true));
    until("we see that dskit takes no writes", async || state(&one, "dskit-2") == wanted).await;
    second.tell("/readonly?to=false").await;
    first.tell("/state?to=LEAVING").await;
    let wanted = Some((InstanceState::Leaving, false));
    until("we see that dskit leaves", async || state(&two, "dskit-1") == wanted).await;
    same_owners(&one, &second).await;
    first.tell("/state?to=ACTIVE").await;
    one_ring(&[&one, &two], &[&first, &second], &all).await;

    // Both sides count what goes through the transport under the same names.
    for metrics in [one.metrics(), first.metrics().await] {
        for name in ["packets_received", "packets_sent", "incoming_streams", "sent_bytes", "received_bytes"] {
            let start = format!("memberlist_tcp_transport_{name}_total ");
            let value = metrics.lines().find_map(|line| line.strip_prefix(&start)).unwrap_or_else(|| {
                panic!("there is no {start}in {metrics}");
            });
            assert!(value.parse::<f64>().unwrap() > 0.0, "{start}{value}");
        }
        let errors = "memberlist_tcp_transport_packets_received_errors_total 0";
        assert!(metrics.lines().any(|line| line == errors), "{metrics}");
    }

    // A goodbye of either is understood by the other.
    second.leave().await;
    let report = two.leave().await;
    assert!(report.unfinished.is_empty(), "{report:?}");
    one_ring(&[&one], &[&first], &["dskit-1", "node-1"]).await;
    until_seen("two members are left", || live_members(&one), async || live_members(&one).len() == 2).await;

    // And the tombstones do not keep them from coming back.
    let second = peer("dskit-2", "zone-c", LABEL, &[&join(&one)]).await.unwrap();
    let two = start(config(2, &[first.gossip()])).await;
    one_ring(&[&one, &two], &[&first, &second], &all).await;
    same_owners(&two, &second).await;
    one.leave().await;
    two.leave().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_either_keeps_its_tokens() {
    let directory = tempfile::tempdir().unwrap();
    let tokens = format!("-tokens-file={}", directory.path().join("tokens").display());
    let stays: &[&str] = &["-leave-ring=false", &tokens];
    let Some(reader) = peer("", "", LABEL, &[]).await else { return };
    let seed = reader.gossip();
    let mut one = config(1, &[seed]);
    one.rings[0].unregister_on_shutdown = false;
    let node = start(one.clone()).await;
    let through = format!("-memberlist.join={seed}");
    let arguments = [stays, &[&through]].concat();
    let dskit = peer("dskit-1", "zone-a", LABEL, &arguments).await.unwrap();
    let all = ["dskit-1", "node-1"];
    one_ring(&[&node], &[&dskit, &reader], &all).await;
    let before = ours(&node);

    node.leave().await;
    let node = start(one.clone()).await;
    one_ring(&[&node], &[&dskit, &reader], &all).await;
    until("our instance is active again", async || state(&node, "node-1").unwrap().0 == InstanceState::Active).await;
    assert_eq!(ours(&node), before);

    dskit.leave().await;
    let dskit = peer("dskit-1", "zone-a", LABEL, &arguments).await.unwrap();
    until("dskit is active again", async || state(&node, "dskit-1").unwrap().0 == InstanceState::Active).await;
    one_ring(&[&node], &[&dskit, &reader], &all).await;
    assert_eq!(ours(&node), before);

    // Killed, and started again, as another member with the same instance.
    drop(dskit);
    let dskit = peer("dskit-1", "zone-a", LABEL, &arguments).await.unwrap();
    one_ring(&[&node], &[&dskit, &reader], &all).await;
    assert_eq!(ours(&node), before);
    node.leave().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_dskit_takes_for_gone_comes_back_without_waiting_for_its_heartbeat() {
    let Some(dskit) = peer("dskit-1", "zone-a", LABEL, &["-heartbeat-timeout=1h"]).await else { return };
    let mut config = config(1, &[dskit.gossip()]);
    config.rings[0].heartbeat_period = Duration::from_secs(600);
    config.rings[0].heartbeat_timeout = Duration::from_secs(3600);
    let node = start(config).await;
    one_ring(&[&node], &[&dskit], &["dskit-1", "node-1"]).await;
    let before = ours(&node);
    let last = dskit.ring(RING_KEY).await["node-1"].timestamp;
    // Several writes within one second are dated ahead, and a removal dated before them would be undone by them.
    until("its date is past", async || Now::read().unix_secs() > last).await;
    // What a mirror of dskit does that has not heard of us: it marks what its copy lacks as LEFT, as of now.
    dskit.tell("/remove?key=collectors/ring&id=node-1").await;
    let seen = std::sync::Mutex::new(None);
    let both = || {
        (*seen.lock().unwrap(), node.ring(RING).desc().instances.get("node-1").map(|it| (it.state, it.timestamp)), last)
    };
    until_seen("it is back", both, async || {
        let now = dskit.ring(RING_KEY).await.remove("node-1").map(|it| (it.state, it.timestamp));
        *seen.lock().unwrap() = now;
        now.is_some_and(|(state, at)| at > last && state == "ACTIVE")
    })
    .await;
    one_ring(&[&node], &[&dskit], &["dskit-1", "node-1"]).await;
    assert_eq!(ours(&node), before, "the same tokens, and registered when it was");
    node.leave().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_label_keeps_annulus_and_dskit_apart_and_both_count_it() {
    let Some(dskit) = peer("dskit-1", "zone-a", "another.label", &[]).await else { return };
    let mut config = config(1, &[dskit.gossip()]);
    // Then it goes on alone, and tries again now and then.
    config.memberlist.max_join_retries = 1;
    let node = start(config).await;
    let refused = "annulus_foreign_label_total{label=\"another.label\"}";
    // dskit is told to join us, too, again and again: then what it sends has the wrong label for us.
    until("we count its label", async || {
        let _ = dskit.join(&node).await;
        node.metrics().contains(refused)
    })
    .await;
    until("dskit refuses ours", async || dskit.log().contains("unacceptable label")).await;
    until_seen("we have a ring of our own", || ring_text(&node), async || fleet::ring_ids(&node) == [id(1)]).await;
    assert_eq!(live_members(&node), [id(1)]);
    assert_eq!(dskit.ring(RING_KEY).await.keys().collect::<Vec<_>>(), ["dskit-1"]);
    node.leave().await;
}
