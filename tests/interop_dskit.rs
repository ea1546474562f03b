//! Nodes of Annulus in a cluster of Grafana's dskit, over the transport of its databases: members, rings, removals, and
//! states of several megabytes. `tests/grafana.rs` has what is no question of either side's wire, and
//! `tests/mixed_migration.rs` a migration.

#![allow(clippy::unwrap_used)]

mod support;

#[path = "support/dskit_peer.rs"]
mod dskit_peer;
#[path = "support/fleet.rs"]
mod fleet;
#[path = "support/interop/mod.rs"]
mod interop;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use annulus::clock::Now;
use annulus::config::{Compression, Config};
use annulus::kv::Kv;
use annulus::ring::{Desc, Instance, InstanceState, RingCodec};
use annulus::wire::message::MemberState;
use annulus::{Node, NodeEvent};
use dskit_peer::{DskitPeer, gossip_like_grafana, ours, same_owners, theirs};
use fleet::{RING, RING_KEY, live_members, member_state, ring_text, until, until_seen};
use futures_util::{FutureExt as _, StreamExt as _};
use interop::matrix::{Peer, Scenario, passed};

const LABEL: &str = "interop";

/// A node that knows these.
async fn node(number: usize, seeds: &[SocketAddr], customise: impl Fn(&mut Config)) -> Node {
    let mut config = fleet::config(number);
    gossip_like_grafana(&mut config, LABEL);
    config.memberlist.join_members = seeds.iter().map(ToString::to_string).collect();
    // Who is told to come alone does not wait for others.
    config.memberlist.max_join_retries = 1;
    customise(&mut config);
    // Its own ring has rules of its own; other keys below the prefix hold rings, too.
    let builder = Node::builder(config.node.id.clone()).config(config).codec("collectors/", Arc::new(RingCodec));
    builder.start().await.unwrap()
}

/// A member with an instance of the same name in the ring.
async fn dskit(id: &str, options: &[&str]) -> Option<DskitPeer> {
    let (name, member, key) = (format!("-id={id}"), format!("-memberlist.nodename={id}"), format!("-key={RING_KEY}"));
    let mut arguments = vec![name.as_str(), &member, &key, "-tokens=64", "-memberlist.randomize-node-name=false"];
    let label = format!("-memberlist.cluster-label={LABEL}");
    if !options.iter().any(|option| option.starts_with("-memberlist.cluster-label=")) {
        arguments.push(&label);
    }
    arguments.extend(options);
    DskitPeer::start(&arguments).await
}

fn record(scenario: Scenario, took: Duration) {
    passed(Peer::Dskit, &dskit_peer::version(), scenario, took);
}

fn gossip(node: &Node) -> SocketAddr {
    node.gossip_addr().unwrap()
}

/// Waits until all have exactly these members.
async fn members(nodes: &[&Node], peers: &[&DskitPeer], names: &[&str]) {
    for node in nodes {
        let seen = || {
            let mut live = live_members(node);
            live.sort();
            live
        };
        until_seen(&format!("{} has the members {names:?}", node.id()), seen, async || seen() == names).await;
    }
    for peer in peers {
        until(&format!("dskit has the members {names:?}"), async || peer.members().await.keys().eq(names)).await;
    }
}

/// Waits until all see one ring of exactly these instances.
async fn one_ring(nodes: &[&Node], peers: &[&DskitPeer], ids: &[&str]) {
    for node in nodes {
        let what = format!("{} sees the instances {ids:?}", node.id());
        until_seen(&what, || ring_text(node), async || ours(node).keys().eq(ids)).await;
    }
    for peer in peers {
        for node in nodes {
            let what = format!("dskit sees the ring of {} {ids:?}", node.id());
            until(&what, async || theirs(peer).await.keys().eq(ids) && theirs(peer).await == ours(node)).await;
        }
    }
}

async fn sees_state(node: &Node, name: &str, state: MemberState) {
    let what = format!("{} sees {name} as {state:?}", node.id());
    until_seen(&what, || member_state(node, name), async || member_state(node, name) == Some(state)).await;
}

/// Waits until a member is alive at this address, as everybody sees it.
async fn is_at(nodes: &[&Node], peers: &[&DskitPeer], name: &str, addr: SocketAddr) {
    for node in nodes {
        let seen = || {
            let members = node.members();
            let found = members.list.iter().find(|member| member.name.to_string() == name);
            found.map(|member| (member.state, member.socket_addr()))
        };
        let there = Some((MemberState::Alive, Some(addr)));
        until_seen(&format!("{} sees {name} at {addr}", node.id()), seen, async || seen() == there).await;
    }
    for peer in peers {
        let there = addr.to_string();
        until(&format!("dskit sees {name} at {addr}"), async || peer.members().await.get(name) == Some(&there)).await;
    }
}

/// The rings under all keys below "collectors/".
fn rings(node: &Node) -> Kv<Desc> {
    Kv::new(node.store(), "collectors/")
}

/// Instances that are in a ring and not gone, with their tokens.
type Tokens = BTreeMap<String, Vec<u32>>;

async fn our_ring(node: &Node, key: &str) -> Tokens {
    let desc = rings(node).get(key).await.unwrap().unwrap_or_default();
    let live = desc.instances.iter().filter(|(_, it)| it.state != InstanceState::Left);
    live.map(|(id, it)| (id.to_string(), it.tokens.to_vec())).collect()
}

async fn their_ring(peer: &DskitPeer, key: &str) -> Tokens {
    peer.ring(&format!("collectors/{key}")).await.into_iter().map(|(id, it)| (id, it.tokens)).collect()
}

/// Waits until everybody has this ring under a key.
async fn all_have(nodes: &[&Node], peers: &[&DskitPeer], key: &str, wanted: &Tokens) {
    let count = wanted.len();
    for node in nodes {
        let what = format!("{} has {count} instances under {key}", node.id());
        until(&what, async || our_ring(node, key).await == *wanted).await;
    }
    for peer in peers {
        let what = format!("dskit at {} has {count} instances under {key}", peer.gossip());
        until(&what, async || their_ring(peer, key).await == *wanted).await;
    }
}

/// Writes instances into a ring by our hand.
async fn write(node: &Node, key: &str, instances: &Tokens) {
    let instances = instances.clone();
    let write = move |old: Option<Desc>| {
        let mut desc = old.unwrap_or_default();
        let now = Now::read().unix_secs();
        for (id, tokens) in &instances {
            let instance = Instance {
                addr: "127.0.0.1:1".into(),
                timestamp: now,
                registered_timestamp: now,
                tokens: tokens.clone().into(),
                ..Instance::default()
            };
            desc.instances.insert(id.as_str().into(), instance);
        }
        Ok(Some(desc))
    };
    rings(node).cas(key, write).await.unwrap();
}

/// The same by dskit's.
async fn put(peer: &DskitPeer, key: &str, id: &str, tokens: &[u32]) {
    let tokens = tokens.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    peer.tell(&format!("/put?key=collectors/{key}&id={id}&addr=127.0.0.1:1&tokens={tokens}")).await;
}

/// Whether a key is not in dskit's store, or only as deleted. Its own reads show it for another while.
async fn deleted(peer: &DskitPeer, key: &str) -> bool {
    let store = &peer.tell("/memberlist").await["Store"];
    assert!(store[RING_KEY]["Deleted"] == false, "{store}");
    let entry = &store[format!("collectors/{key}")];
    entry.is_null() || entry["Deleted"] == true
}

/// Waits until the instances of the ring have sent so many more heartbeats: what was to be sent about anything else is
/// sent, and states were exchanged.
async fn heartbeats(node: &Node, count: i64) {
    let beats = || -> BTreeMap<String, i64> {
        let desc = node.ring(RING).desc();
        let live = desc.instances.iter().filter(|(_, it)| it.state != InstanceState::Left);
        live.map(|(id, it)| (id.to_string(), it.timestamp)).collect()
    };
    let before = beats();
    let later = || before.iter().all(|(id, at)| beats().get(id).is_none_or(|now| *now >= at + count));
    until_seen("heartbeats go on", beats, async || later()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_join_both_ways_and_are_one_ring() {
    let Some(first) = dskit("theirs-1", &[]).await else { return };
    let one = node(1, &[], |_| {}).await;
    until("each has a ring of its own", async || ours(&one).len() == 1 && theirs(&first).await.len() == 1).await;
    let begin = Instant::now();
    first.join(&one).await.unwrap();
    members(&[&one], &[&first], &["node-1", "theirs-1"]).await;
    record(Scenario::JoinsUs, begin.elapsed());
    one_ring(&[&one], &[&first], &["node-1", "theirs-1"]).await;
    same_owners(&one, &first).await;
    record(Scenario::Ring, begin.elapsed());

    let begin = Instant::now();
    let two = node(2, &[first.gossip()], |_| {}).await;
    members(&[&one, &two], &[&first], &["node-1", "node-2", "theirs-1"]).await;
    record(Scenario::WeJoin, begin.elapsed());
    one_ring(&[&one, &two], &[&first], &["node-1", "node-2", "theirs-1"]).await;
    same_owners(&two, &first).await;
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn states_are_exchanged_both_ways_also_large_ones() {
    let Some(first) = dskit("theirs-1", &[]).await else { return };
    let one = node(1, &[first.gossip()], |_| {}).await;
    one_ring(&[&one], &[&first], &["node-1", "theirs-1"]).await;
    let small = Tokens::from([("by-dskit".to_owned(), vec![1, 2]), ("by-us".to_owned(), vec![3, 4])]);
    put(&first, "small", "by-dskit", &small["by-dskit"]).await;
    write(&one, "small", &Tokens::from([("by-us".to_owned(), small["by-us"].clone())])).await;
    all_have(&[&one], &[&first], "small", &small).await;
    let token = |instance: u32, number: u32| (instance * 512 + number).wrapping_mul(0x9E37_79B9);
    let large: Tokens = (0..800_u32)
        .map(|instance| {
            let mut tokens: Vec<u32> = (0..512).map(|number| token(instance, number)).collect();
            tokens.sort_unstable();
            (format!("instance-{instance:04}"), tokens)
        })
        .collect();

    // Nobody gossips about it any more when somebody comes.
    heartbeats(&one, 4).await;
    let begin = Instant::now();
    let two = node(2, &[first.gossip()], |_| {}).await;
    all_have(&[&two], &[], "small", &small).await;
    let second = dskit("theirs-2", &[]).await.unwrap();
    second.join(&two).await.unwrap();
    all_have(&[], &[&second], "small", &small).await;
    record(Scenario::PushPull, begin.elapsed());

    write(&one, "large", &large).await;
    all_have(&[&one, &two], &[&first, &second], "large", &large).await;
    heartbeats(&one, 4).await;
    let begin = Instant::now();
    let three = node(3, &[second.gossip()], |_| {}).await;
    all_have(&[&three], &[], "large", &large).await;
    let third = dskit("theirs-3", &[]).await.unwrap();
    third.join(&three).await.unwrap();
    all_have(&[], &[&third], "large", &large).await;
    record(Scenario::LargeState, begin.elapsed());
    for node in [&one, &two, &three] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_either_removes_is_gone_and_stays_gone() {
    let Some(first) = dskit("theirs-1", &[]).await else { return };
    let one = node(1, &[first.gossip()], |_| {}).await;
    let (id_1, id_2) = ("x-forgotten-by-dskit", "x-forgotten-by-us");
    put(&first, "ring", id_1, &[1, 2]).await;
    put(&first, "ring", id_2, &[3, 4]).await;
    one_ring(&[&one], &[&first], &["node-1", "theirs-1", id_1, id_2]).await;

    let begin = Instant::now();
    first.tell(&format!("/remove?key={RING_KEY}&id={id_1}")).await;
    assert!(one.ring(RING).forget(id_2).await.unwrap());
    one_ring(&[&one], &[&first], &["node-1", "theirs-1"]).await;
    let removal = begin.elapsed();

    for key in ["deleted-by-dskit", "deleted-by-us"] {
        put(&first, key, "by-dskit", &[1, 2]).await;
        write(&one, key, &Tokens::from([("by-us".to_owned(), vec![3])])).await;
        let both = Tokens::from([("by-dskit".to_owned(), vec![1, 2]), ("by-us".to_owned(), vec![3])]);
        all_have(&[&one], &[&first], key, &both).await;
    }
    let begin = Instant::now();
    first.tell("/delete?key=collectors/deleted-by-dskit").await;
    rings(&one).delete("deleted-by-us").await.unwrap();
    let keys = ["deleted-by-dskit", "deleted-by-us"];
    for key in keys {
        until(&format!("{key} is gone with us"), async || rings(&one).get(key).await.unwrap().is_none()).await;
        until(&format!("{key} is deleted with dskit"), async || deleted(&first, key).await).await;
    }
    let deletion = begin.elapsed();
    assert_eq!(rings(&one).list().await.unwrap(), ["ring"]);

    // Exchanged states bring nothing back, nor do those that come later and had none of it.
    heartbeats(&one, 3).await;
    let two = node(2, &[first.gossip()], |_| {}).await;
    let second = dskit("theirs-2", &[]).await.unwrap();
    second.join(&one).await.unwrap();
    one_ring(&[&one, &two], &[&first, &second], &["node-1", "node-2", "theirs-1", "theirs-2"]).await;
    heartbeats(&one, 3).await;
    one_ring(&[&one, &two], &[&first, &second], &["node-1", "node-2", "theirs-1", "theirs-2"]).await;
    for node in [&one, &two] {
        assert_eq!(rings(node).list().await.unwrap(), ["ring"], "{}", node.id());
    }
    for (peer, key) in [&first, &second].into_iter().flat_map(|peer| keys.map(|key| (peer, key))) {
        assert!(deleted(peer, key).await, "{key} is back");
    }
    record(Scenario::Removal, removal);
    record(Scenario::KeyDeletion, deletion);
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_goodbye_is_believed_and_the_name_may_return_elsewhere() {
    let Some(witness) = dskit("witness", &[]).await else { return };
    let one = node(1, &[witness.gossip()], |_| {}).await;
    let through = format!("-memberlist.join={}", gossip(&one));
    let leaver = dskit("leaver", &[&through]).await.unwrap();
    let two = node(2, &[witness.gossip()], |_| {}).await;
    let everyone = ["leaver", "node-1", "node-2", "witness"];
    members(&[&one, &two], &[&witness, &leaver], &everyone).await;
    let mut events = one.events();

    let before = leaver.gossip();
    let begin = Instant::now();
    leaver.leave().await;
    sees_state(&one, "leaver", MemberState::Left).await;
    members(&[&one, &two], &[&witness], &everyone[1..]).await;
    record(Scenario::TheirLeave, begin.elapsed());
    let begin = Instant::now();
    let leaver = dskit("leaver", &[&through]).await.unwrap();
    assert_ne!(leaver.gossip(), before);
    is_at(&[&one, &two], &[&witness], "leaver", leaver.gossip()).await;
    record(Scenario::TheirRestart, begin.elapsed());

    let before = gossip(&two);
    let begin = Instant::now();
    let report = two.leave().await;
    assert!(report.unfinished.is_empty(), "{report:?}");
    members(&[&one], &[&witness, &leaver], &["leaver", "node-1", "witness"]).await;
    sees_state(&one, "node-2", MemberState::Left).await;
    record(Scenario::OurLeave, begin.elapsed());
    let begin = Instant::now();
    let two = node(2, &[leaver.gossip()], |_| {}).await;
    assert_ne!(gossip(&two), before);
    // The name of one that had failed would be refused at another address.
    is_at(&[&one], &[&witness, &leaver], "node-2", gossip(&two)).await;
    record(Scenario::OurRestart, begin.elapsed());
    while let Some(event) = events.next().now_or_never().flatten() {
        assert!(!matches!(event, NodeEvent::MemberFailed { .. }), "{event:?}");
    }
    one_ring(&[&one, &two], &[&witness, &leaver], &everyone).await;
    one.stop().await;
    two.stop().await;
}

/// dskit probes every five seconds, and nobody can change that. With three members a suspicion lasts twenty.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_member_is_noticed() {
    let Some(victim) = dskit("victim", &[]).await else { return };
    let one = node(1, &[victim.gossip()], |_| {}).await;
    let two = node(2, &[victim.gossip()], |_| {}).await;
    let our_victim = node(3, &[], |_| {}).await;
    let through = format!("-memberlist.join={}", gossip(&our_victim));
    let by_them = [dskit("theirs-1", &[&through]).await.unwrap(), dskit("theirs-2", &[&through]).await.unwrap()];
    let their_victim = dskit("victim", &[]).await.unwrap();
    let through = format!("-memberlist.join={}", their_victim.gossip());
    let among_them = [dskit("theirs-3", &[&through]).await.unwrap(), dskit("theirs-4", &[&through]).await.unwrap()];
    members(&[&one, &two], &[&victim], &["node-1", "node-2", "victim"]).await;
    let [first, second] = &by_them;
    members(&[&our_victim], &[first, second], &["node-3", "theirs-1", "theirs-2"]).await;
    let [first, second] = &among_them;
    members(&[], &[first, second, &their_victim], &["theirs-3", "theirs-4", "victim"]).await;

    drop((victim, their_victim));
    our_victim.stop().await;
    let begin = Instant::now();
    let both = async |peers: &[DskitPeer; 2], names: &[&str]| {
        members(&[], &[&peers[0], &peers[1]], names).await;
        begin.elapsed()
    };
    let by_us = async {
        for node in [&one, &two] {
            sees_state(node, "victim", MemberState::Dead).await;
        }
        begin.elapsed()
    };
    let (by_us, by_them, among_them) =
        tokio::join!(by_us, both(&by_them, &["theirs-1", "theirs-2"]), both(&among_them, &["theirs-3", "theirs-4"]));
    record(Scenario::TheirDeath, by_us);
    record(Scenario::OurDeath, by_them);
    record(Scenario::DeathAmongThem, among_them);
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_returns_with_its_tokens_after_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    let tokens = format!("-tokens-file={}", directory.path().join("tokens").display());
    let Some(witness) = dskit("witness", &[]).await else { return };
    let other = node(2, &[witness.gossip()], |_| {}).await;
    // As the databases do it by themselves: a new name for each start, since the old one may not be given up yet.
    let through = format!("-memberlist.join={}", gossip(&other));
    let options = [&through, &tokens, "-memberlist.randomize-node-name=true"];
    let victim = dskit("theirs-1", &options).await.unwrap();
    let one = node(1, &[witness.gossip()], |_| {}).await;
    let ids = ["node-1", "node-2", "theirs-1", "witness"];
    one_ring(&[&one, &other], &[&witness, &victim], &ids).await;
    let before = ours(&other);
    let active = |id: &str| other.ring(RING).snapshot().instance(id).map(|it| (it.state, it.timestamp));

    let last = active("theirs-1").unwrap().1;
    drop(victim);
    let begin = Instant::now();
    let victim = dskit("theirs-1", &options).await.unwrap();
    let back =
        |seen: Option<(InstanceState, i64)>, last| seen.is_some_and(|(s, at)| s == InstanceState::Active && at > last);
    until("dskit's instance is back", async || back(active("theirs-1"), last)).await;
    one_ring(&[&one, &other], &[&witness, &victim], &ids).await;
    record(Scenario::TheirInstance, begin.elapsed());
    assert_eq!(ours(&other), before);

    let (last, at) = (active("node-1").unwrap().1, gossip(&one));
    one.stop().await;
    let begin = Instant::now();
    // At the address it had: dskit keeps that of a member whose death it does not know yet.
    let one = node(1, &[witness.gossip()], |config| config.memberlist.bind_port = at.port()).await;
    until("our instance is back", async || back(active("node-1"), last)).await;
    one_ring(&[&one, &other], &[&witness, &victim], &ids).await;
    record(Scenario::OurInstance, begin.elapsed());
    assert_eq!(ours(&other), before);
    one.stop().await;
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_label_or_none_is_refused_on_both_sides() {
    let begin = Instant::now();
    let Some(peer) = dskit("theirs", &[]).await else { return };
    let one = node(1, &[peer.gossip()], |_| {}).await;
    members(&[&one], &[&peer], &["node-1", "theirs"]).await;
    for (number, label) in [(2, "another"), (3, "")] {
        let stranger = node(number, &[], |config| config.memberlist.cluster_label = label.to_owned()).await;
        let option = format!("-memberlist.cluster-label={label}");
        let their_stranger = dskit("stranger", &[&option]).await.unwrap();
        // Ours calls, and is not answered; theirs calls, and is not answered.
        assert!(stranger.join(vec![peer.gossip()]).await.is_err(), "we joined dskit with {label:?}");
        assert!(peer.join(&stranger).await.is_err(), "dskit joined us with {label:?}");
        assert!(one.join(vec![their_stranger.gossip()]).await.is_err(), "we joined a stranger with {label:?}");
        assert!(their_stranger.join(&one).await.is_err(), "a stranger joined us with {label:?}");
        until("we count the stranger's label", async || one.labels().unwrap().refused.contains_key(label)).await;
        until("the stranger counts ours", async || stranger.labels().unwrap().refused.contains_key(LABEL)).await;
        assert_eq!(live_members(&stranger), [fleet::id(number)]);
        assert_eq!(fleet::ring_ids(&stranger), [fleet::id(number)]);
        members(&[], &[&their_stranger], &["stranger"]).await;
        stranger.stop().await;
    }
    members(&[&one], &[&peer], &["node-1", "theirs"]).await;
    one_ring(&[&one], &[&peer], &["node-1", "theirs"]).await;
    record(Scenario::Label, begin.elapsed());
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compressed_and_plain_members_understand_each_other() {
    let begin = Instant::now();
    let with = |algorithm: &str| format!("-memberlist.compression-algorithm={algorithm}");
    for (number, algorithm) in ["lzw", "snappy", "none"].into_iter().enumerate() {
        let option = with(algorithm);
        let options: &[&str] =
            if algorithm == "none" { &[] } else { &["-memberlist.compression-enabled=true", &option] };
        let Some(peer) = dskit("theirs", options).await else { return };
        let mut nodes = Vec::new();
        for (other, compression) in [Compression::None, Compression::Lzw, Compression::Snappy].into_iter().enumerate() {
            let node = node(3 * number + other + 1, &[peer.gossip()], |config| {
                config.memberlist.compression = compression;
            })
            .await;
            nodes.push(node);
        }
        let nodes: Vec<&Node> = nodes.iter().collect();
        let mut ids: Vec<String> = nodes.iter().map(|node| node.id().to_owned()).collect();
        ids.push("theirs".to_owned());
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        members(&nodes, &[&peer], &ids).await;
        one_ring(&nodes, &[&peer], &ids).await;
        heartbeats(nodes[0], 2).await;
        for node in nodes {
            let refused = node.members().refused.clone();
            assert!(refused.is_empty(), "{} refused {refused:?}", node.id());
            node.stop().await;
        }
        let errors = "memberlist_tcp_transport_packets_received_errors_total 0";
        assert!(peer.metrics().await.lines().any(|line| line == errors));
    }
    record(Scenario::Compression, begin.elapsed());
}
