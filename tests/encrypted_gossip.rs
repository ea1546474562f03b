//! Nodes that encrypt their gossip, over real sockets: who is let in, and how a running cluster moves to encryption.

#![allow(clippy::unwrap_used)]

mod support;

#[path = "support/checker.rs"]
mod checker;
#[path = "support/fleet.rs"]
mod fleet;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use annulus::actors::keys::KeyChangeError;
use annulus::config::{Compression, Secret};
use annulus::wire::message::MemberState;
use annulus::wire::{Key, KeyError};
use annulus::{Config, Fault, Node, NodeEvent};
use checker::Workload;
use fleet::{Fleet, id, live_members, member_state, restarts, ring_ids, until};
use futures_util::StreamExt as _;

const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
const OTHER_KEY: &str = "ZmVkY2JhOTg3NjU0MzIxMA==";

fn with_key(config: &mut Config, key: &str) {
    config.memberlist.cluster_label = "encrypted".into();
    config.memberlist.encryption_keys = vec![Secret::new(key)];
    config.memberlist.compression = Compression::Lzw;
}

/// A node beside the fleet that must not become part of it.
async fn stranger(fleet: &Fleet, number: usize, customise: impl Fn(&mut Config)) -> Node {
    let mut config = fleet.config(number);
    config.memberlist.join_members.clear();
    customise(&mut config);
    Node::builder(id(number)).config(config).start().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_with_the_same_key_share_a_ring_and_strangers_stay_outside() {
    let fleet = Fleet::start(3, |_, config| with_key(config, KEY)).await;
    let members = || fleet.nodes.iter().map(|node| node.gossip_addr().unwrap()).collect::<Vec<_>>();

    let other_key = stranger(&fleet, 4, |config| with_key(config, OTHER_KEY)).await;
    let no_key = stranger(&fleet, 5, |config| config.memberlist.encryption_keys.clear()).await;
    for stranger in [&other_key, &no_key] {
        let refused = stranger.join(members()).await;
        assert!(refused.is_err(), "{} joined: {refused:?}", stranger.id());
        let refused = fleet.nodes[0].join(vec![stranger.gossip_addr().unwrap()]).await;
        assert!(refused.is_err(), "{} was joined: {refused:?}", stranger.id());
        assert_eq!(live_members(stranger), [stranger.id()]);
        until("the stranger has a ring of its own", async || ring_ids(stranger) == [stranger.id()]).await;
    }
    for node in &fleet.nodes {
        for stranger in [4, 5] {
            assert_eq!(member_state(node, &id(stranger)), None);
        }
    }
    // A fourth with the key is let in.
    let mut fleet = fleet;
    fleet.add(6).await;
    fleet.complete().await;
    for node in fleet.nodes.iter().chain([&other_key, &no_key]) {
        let printed = format!("{}{:?}", node.metrics(), node.config());
        assert!(!printed.contains(KEY) && !printed.contains(OTHER_KEY), "a key is never shown");
    }
    other_key.stop().await;
    no_key.stop().await;
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_cluster_moves_to_encryption_node_by_node_and_loses_nobody() {
    let step = Arc::new(AtomicUsize::new(0));
    let mut fleet = Fleet::start(3, {
        let step = step.clone();
        move |_, config| {
            let step = step.load(Ordering::SeqCst);
            if step > 0 {
                config.memberlist.encryption_keys = vec![Secret::new(KEY)];
                config.memberlist.gossip_verify_outgoing = step >= 2;
                config.memberlist.gossip_verify_incoming = step >= 3;
            }
        }
    })
    .await;
    for next in 1..=3 {
        step.store(next, Ordering::SeqCst);
        for number in 1..=3 {
            let leaving = fleet.take(&id(number));
            let mut events: Vec<_> = fleet.nodes.iter().map(Node::events).collect();
            leaving.leave().await;
            fleet.add(number).await;
            fleet.complete().await;
            for (node, events) in fleet.nodes.iter().zip(&mut events) {
                assert_eq!(live_members(node).len(), 3, "step {next}, node {number} restarted");
                assert_eq!(member_state(node, &id(number)), Some(MemberState::Alive));
                // Those who stayed never lost each other; whoever left said so.
                while let Some(event) = futures_util::FutureExt::now_or_never(events.next()).flatten() {
                    assert!(!matches!(event, NodeEvent::MemberFailed { .. }), "step {next}: {event:?}");
                }
            }
        }
    }
    // Now encryption is required.
    let plain = stranger(&fleet, 4, |config| config.memberlist.encryption_keys.clear()).await;
    let refused = plain.join(fleet.nodes.iter().filter_map(Node::gossip_addr).collect()).await;
    assert!(refused.is_err(), "{refused:?}");
    plain.stop().await;
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_key_is_refused_at_the_start_and_not_shown() {
    let fleet = Fleet::empty(|_, _| {});
    let mut config = fleet.config(1);
    config.memberlist.encryption_keys = vec![Secret::new("aHVudGVyMg==")];
    let error = Node::builder(id(1)).config(config).start().await.err().unwrap().to_string();
    assert!(error.contains("memberlist.encryption_keys") && !error.contains("aHVudGVyMg"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_cluster_changes_its_key_under_load_though_actors_die_over_it() {
    const NEW_KEY: &str = OTHER_KEY;
    let mut fleet = Fleet::start(4, |_, config| with_key(config, KEY)).await;
    let work = Workload::start(&fleet.nodes);
    let new = Key::from_base64(NEW_KEY).unwrap();
    let (old, new_id) = (Key::from_base64(KEY).unwrap().id(), new.id());
    let first = &fleet.nodes[0];
    assert_eq!(first.use_key(&new_id).await, Err(KeyChangeError::Key(KeyError::Unknown)));
    assert_eq!(first.remove_key(&old).await, Err(KeyChangeError::Key(KeyError::Primary)));

    let mut events: Vec<_> = fleet.nodes.iter().map(Node::events).collect();
    for node in &fleet.nodes {
        node.install_key(new.clone()).await.unwrap();
        work.goes_on().await;
    }
    // Who reads and who writes gossip comes back with the keys of now, not with those of the configuration.
    for (node, actor) in fleet.nodes.iter().zip(["membership", "transport"]) {
        node.drill(actor, Fault::Panic).unwrap();
        until("the actor is back", async || restarts(node, actor) == 1).await;
    }
    for node in &fleet.nodes {
        node.use_key(&new_id).await.unwrap();
        work.goes_on().await;
    }
    for node in &fleet.nodes {
        node.remove_key(&old).await.unwrap();
        let keys = node.keys();
        assert_eq!(keys.len(), 1);
        assert_eq!((keys[0].id.as_str(), keys[0].primary, keys[0].configured), (new_id.as_str(), true, false));
        work.goes_on().await;
    }
    fleet.complete().await;
    for events in &mut events {
        while let Some(event) = futures_util::FutureExt::now_or_never(events.next()).flatten() {
            assert!(!matches!(event, NodeEvent::MemberFailed { .. }), "{event:?}");
        }
    }
    let report = work.stop().await;
    report.assert_flawless();
    report.assert_nothing_lost(&fleet.nodes).await;

    // The old key opens nothing any more; the new one does.
    let late = stranger(&fleet, 5, |config| with_key(config, KEY)).await;
    let members: Vec<_> = fleet.nodes.iter().filter_map(Node::gossip_addr).collect();
    assert!(late.join(members.clone()).await.is_err());
    late.stop().await;
    let mut config = fleet.config(6);
    with_key(&mut config, NEW_KEY);
    let joined = Node::builder(id(6)).config(config).start().await.unwrap();
    fleet.nodes.push(joined);
    fleet.complete().await;
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_a_key_does_not_fall_silent_by_its_first() {
    let fleet = Fleet::start(2, |_, _| {}).await;
    let key = Key::from_base64(KEY).unwrap();
    assert_eq!(fleet.nodes[0].install_key(key).await, Err(KeyChangeError::NotEncrypted));
    assert_eq!(fleet.nodes[0].keys(), []);
    fleet.stop().await;
}
