//! Nodes as an application holds them: start, leave, end, restart; several clusters side by side in one process.

#![allow(clippy::unwrap_used)]

mod support;

#[path = "support/fleet.rs"]
mod fleet;

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use annulus::actors::meta::MetaError;
use annulus::clock::Now;
use annulus::config::{Config, KvStore, RingConfig};
use annulus::kv::LwwMap;
use annulus::ring::InstanceState;
use annulus::transport::MemoryNetwork;
use annulus::wire::message::MemberState;
use annulus::{Exit, Fault, JSON_PREFIX, Node, NodeEvent, Operation, StartError, key_hash};
use bytes::Bytes;
use fleet::{
    Fleet, PATIENCE, RING, config, identities, is_complete, live_members, member_state, restarts, ring_ids, ring_text,
    seed, two_stores, until, until_seen,
};
use futures_util::{Stream, StreamExt as _};
use serde_json::{Value, json};

type Map = LwwMap<Value>;

async fn write(node: &Node, key: &str, entry: &'static str) {
    let insert = move |old: Option<Map>| {
        let mut map = old.unwrap_or_default();
        map.insert(Now::read(), entry, json!(1));
        Ok(Some(map))
    };
    node.kv::<Map>(JSON_PREFIX).cas(key, insert).await.unwrap();
}

async fn entries(node: &Node, key: &str) -> Vec<String> {
    let map = node.kv::<Map>(JSON_PREFIX).get(key).await.unwrap().unwrap_or_default();
    map.iter().map(|(entry, _)| entry.to_owned()).collect()
}

/// The ids of everybody who owns one of many keys, as a node sees it.
fn owners(node: &Node) -> BTreeSet<String> {
    let ring = node.ring(RING);
    let keys = (0..500).map(|number: u32| key_hash(number.to_string()));
    keys.flat_map(|key| ring.get(key, Operation::Write).unwrap().ids().map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// The next event that this finds something in.
async fn event<T>(events: &mut (impl Stream<Item = NodeEvent> + Unpin), wanted: impl Fn(NodeEvent) -> Option<T>) -> T {
    let search = async {
        loop {
            let event = events.next().await.expect("the events of a node that runs do not end");
            if let Some(found) = wanted(event) {
                return found;
            }
        }
    };
    tokio::time::timeout(PATIENCE, search).await.expect("the event comes")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clusters_with_different_labels_stay_apart_though_they_know_each_others_addresses() {
    let one = Fleet::start(3, |_, config| config.memberlist.cluster_label = "one".into()).await;
    let foreign: Vec<_> = one.nodes.iter().map(|node| node.gossip_addr().unwrap().to_string()).collect();
    // The same names of nodes and ring, and the addresses of the others among the seeds.
    let two = Fleet::start(2, move |_, config| {
        config.memberlist.cluster_label = "two".into();
        config.memberlist.join_members.extend(foreign.clone());
        config.memberlist.rejoin_interval = Duration::from_secs(1);
    })
    .await;
    write(&one.nodes[0], "shared", "one").await;
    write(&two.nodes[0], "shared", "two").await;
    until("each cluster has its own values", async || {
        entries(&one.nodes[2], "shared").await == ["one"] && entries(&two.nodes[1], "shared").await == ["two"]
    })
    .await;
    let error = two.nodes[0].join(vec![one.nodes[0].gossip_addr().unwrap()]).await.unwrap_err();
    assert!(!error.is_empty());
    for (fleet, count) in [(&one, 3), (&two, 2)] {
        for node in &fleet.nodes {
            assert_eq!(live_members(node).len(), count);
            assert!(is_complete(node, count), "{:?}", ring_text(node));
        }
    }
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_cluster_on_a_reused_address_changes_nothing() {
    let network = MemoryNetwork::new();
    let addr = |number: u16| SocketAddr::from(([10, 0, 0, 1], 7000 + number));
    let start = async |number: u16, at: u16, label: &str, join: Vec<String>| {
        let mut config = config(usize::from(number));
        config.memberlist.cluster_label = label.into();
        config.memberlist.join_members = join;
        let transport = Arc::new(network.endpoint(addr(at)));
        Node::builder(config.node.id.clone()).config(config).transport(transport).start().await.unwrap()
    };
    let blue = [
        start(1, 1, "blue", vec![]).await,
        start(2, 2, "blue", seed(addr(1))).await,
        start(3, 3, "blue", seed(addr(1))).await,
    ];
    for node in &blue {
        until("the blue cluster is complete", async || is_complete(node, 3) && live_members(node).len() == 3).await;
    }
    blue[2].stop().await;
    // A node of another cluster gets its address, and has friends.
    let green = [start(1, 3, "green", vec![]).await, start(2, 4, "green", seed(addr(3))).await];
    for node in &green {
        until("the green cluster is complete", async || is_complete(node, 2) && live_members(node).len() == 2).await;
    }
    for node in &blue[..2] {
        until("the blue ones notice that theirs is gone", async || live_members(node) == ["node-1", "node-2"]).await;
        let ids: Vec<_> = identities(node).into_keys().collect();
        assert_eq!(ids, ["node-1", "node-2", "node-3"], "the ring keeps it until its heartbeat runs out");
    }
    assert_ne!(identities(&blue[0])["node-1"], identities(&green[0])["node-1"]);
    for node in blue.iter().chain(&green) {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_split_cluster_becomes_one_again_when_the_network_heals() {
    let network = MemoryNetwork::new();
    let addr = |number: usize| SocketAddr::from(([10, 0, 0, u8::try_from(number).unwrap()], 7946));
    let mut nodes = Vec::new();
    for number in 1..=4 {
        let mut config = config(number);
        config.memberlist.join_members = (1..=4).map(|other| addr(other).to_string()).collect();
        config.memberlist.rejoin_interval = Duration::from_secs(1);
        let transport = Arc::new(network.endpoint(addr(number)));
        nodes.push(Node::builder(config.node.id.clone()).config(config).transport(transport).start().await.unwrap());
    }
    for node in &nodes {
        until_seen("the ring is complete", || ring_text(node), async || is_complete(node, 4)).await;
    }
    let before = identities(&nodes[0]);
    network.partition(&[addr(1), addr(2)], &[addr(3), addr(4)]);
    for (node, half) in
        nodes.iter().zip([["node-1", "node-2"], ["node-1", "node-2"], ["node-3", "node-4"], ["node-3", "node-4"]])
    {
        until("each half takes the other for dead", async || live_members(node) == half).await;
    }
    write(&nodes[0], "split", "left").await;
    write(&nodes[3], "split", "right").await;
    network.heal();
    for node in &nodes {
        until("all are members again", async || live_members(node).len() == 4).await;
        until_seen("the ring is complete again", || ring_text(node), async || is_complete(node, 4)).await;
        until("both writes are there", async || entries(node, "split").await == ["left", "right"]).await;
        assert_eq!(identities(node), before);
    }
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test]
async fn what_keeps_a_node_from_starting_is_said_clearly() {
    let first = Node::builder("first").config(config(1)).start().await.unwrap();
    let port = first.gossip_addr().unwrap().port();
    let start = async |change: &dyn Fn(&mut Config)| {
        let mut config = config(2);
        change(&mut config);
        Node::builder(config.node.id.clone()).config(config).start().await.expect_err("it must not start")
    };

    let error = start(&|config| config.memberlist.bind_port = port).await;
    assert!(matches!(error, StartError::Bind(_)), "{error:?}");
    let text = error.to_string();
    assert!(text.contains(&port.to_string()) && text.to_lowercase().contains("in use"), "{text}");

    type Case<'a> = (&'a dyn Fn(&mut Config), &'a [&'a str]);
    let cases: [Case<'_>; 6] = [
        (&|config| config.node.id.clear(), &["node.id"]),
        (&|config| config.node.address.clear(), &["node.address"]),
        (&|config| config.rings[0].heartbeat_timeout = Duration::from_millis(1), &["heartbeat_timeout"]),
        (&|config| config.kv.store = KvStore::Etcd, &["etcd"]),
        (&|config| two_stores(config, KvStore::Inmemory, KvStore::Inmemory), &["kv.multi.secondary"]),
        (
            &|config| {
                config.rings.push(RingConfig::named(RING));
                config.rings[0].replication_factor = 0;
            },
            &["two rings named", "replication_factor"],
        ),
    ];
    for (change, told) in cases {
        let error = start(change).await;
        assert!(matches!(error, StartError::Config(_)), "{error:?}");
        assert!(told.iter().all(|part| error.to_string().contains(part)), "{error} must tell of {told:?}");
    }
    let error = Node::builder("fat").config(config(3)).meta(vec![0; 513]).start().await.unwrap_err();
    assert!(error.to_string().contains("513"), "{error}");
    until("the first one is not disturbed", async || first.ready().is_ok()).await;
    assert_eq!(live_members(&first), ["first"]);
    first.stop().await;
}

#[tokio::test]
async fn a_port_that_needs_permission_is_an_error_that_says_so() {
    // A privileged port can be had by root, and by everybody where the system says so.
    if UdpSocket::bind("127.0.0.1:1").is_ok() {
        println!("SKIPPED: this user may bind privileged ports");
        return;
    }
    let mut config = config(1);
    config.memberlist.bind_port = 1;
    let error = Node::builder("node-1").config(config).start().await.unwrap_err().to_string();
    assert!(error.contains('1') && error.to_lowercase().contains("permission"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_leaves_takes_its_instance_out_everywhere() {
    let mut fleet = Fleet::start(3, |_, _| {}).await;
    let mut events = fleet.nodes[0].events();
    let leaver = fleet.take("node-3");
    let report = leaver.leave().await;
    assert!(report.unfinished.is_empty(), "{report:?}");
    assert_eq!(leaver.closed().await, Exit::Stopped);
    fleet.complete().await;
    for node in &fleet.nodes {
        assert_eq!(ring_ids(node), ["node-1", "node-2"]);
        assert!(member_state(node, "node-3").is_none_or(|state| state == MemberState::Left));
        assert!(!owners(node).contains("node-3"));
        let desc = node.ring(RING).desc();
        assert!(desc.instances.get("node-3").is_none_or(|instance| instance.state == InstanceState::Left));
    }
    let left = event(&mut events, |event| match event {
        NodeEvent::MemberLeft { name } => Some(name),
        NodeEvent::MemberFailed { name } => panic!("{name} said goodbye and is taken for dead"),
        _ => None,
    });
    assert_eq!(left.await, "node-3");
    // Everything may be asked again of a node that has ended.
    assert!(leaver.leave().await.unfinished.is_empty());
    leaver.stop().await;
    assert!(leaver.ring(RING).get(1, Operation::Reporting).is_ok(), "the last ring can still be read");
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_goodbye_reports_what_it_could_not_finish() {
    let fleet = Fleet::start(1, |_, config| {
        two_stores(config, KvStore::Memberlist, KvStore::Inmemory);
        config.kv.multi.mirror_enabled = true;
        config.memberlist.leave_timeout = Duration::from_secs(1);
    })
    .await;
    fleet.mirrored().await;
    fleet.memory.set_available(false);
    write(&fleet.nodes[0], "late", "x").await;
    let report = fleet.nodes[0].leave().await;
    assert!(report.unfinished.iter().any(|line| line.contains("mirror") && line.contains("keys")), "{report:?}");
    assert_eq!(fleet.nodes[0].closed().await, Exit::Stopped);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_last_handle_is_dropped_ends_as_if_it_had_crashed() {
    let mut fleet = Fleet::start(2, |_, _| {}).await;
    let dropped = fleet.take("node-2");
    let (ring, addr) = (dropped.ring(RING), dropped.gossip_addr().unwrap());
    let second = dropped.clone();
    drop(dropped);
    write(&second, "alive", "x").await;
    drop(second);
    until("its socket is closed", async || UdpSocket::bind(addr).is_ok()).await;
    until("the other one notices", async || {
        member_state(&fleet.nodes[0], "node-2").is_none_or(|state| state == MemberState::Dead)
    })
    .await;
    // A handle on a ring does not keep the node alive, but goes on with the last snapshot.
    assert_eq!(ring.snapshot().instances().len(), 2);
    assert!(ring.forget("node-1").await.is_err());
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_node_is_detected_and_forgotten_and_its_keys_have_new_owners() {
    let mut fleet = Fleet::start(4, |_, config| {
        config.rings[0].heartbeat_timeout = Duration::from_secs(4);
        config.rings[0].auto_forget_unhealthy_periods = 1;
    })
    .await;
    let mut events = fleet.nodes[0].events();
    assert!(owners(&fleet.nodes[0]).contains("node-4"));
    fleet.take("node-4").stop().await;
    let failed = event(&mut events, |event| match event {
        NodeEvent::MemberFailed { name } => Some(name),
        _ => None,
    });
    assert_eq!(failed.await, "node-4");
    for node in &fleet.nodes {
        until("it is dead", async || member_state(node, "node-4").is_none_or(|state| state == MemberState::Dead)).await;
    }
    fleet.complete().await;
    for node in &fleet.nodes {
        assert_eq!(owners(node), BTreeSet::from(["node-1", "node-2", "node-3"].map(str::to_owned)));
    }
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_leaves_to_come_back_keeps_tokens_and_registration() {
    let mut fleet = Fleet::start(3, |_, config| config.rings[0].unregister_on_shutdown = false).await;
    let before = identities(&fleet.nodes[0]);
    for id in ["node-2", "node-1", "node-3"] {
        let node = fleet.take(id);
        assert!(node.leave().await.unfinished.is_empty());
        for other in &fleet.nodes {
            until_seen(
                "its instance is LEAVING",
                || ring_text(other),
                async || {
                    let snapshot = other.ring(RING).snapshot();
                    snapshot.instance(id).is_some_and(|instance| instance.state == InstanceState::Leaving)
                },
            )
            .await;
        }
        let number = id.trim_start_matches("node-").parse().unwrap();
        fleet.add(number).await;
        fleet.complete().await;
        for node in &fleet.nodes {
            assert_eq!(identities(node), before, "seen from {} after the restart of {id}", node.id());
        }
    }
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_crashed_comes_back_at_another_address_as_the_same_instance() {
    let mut fleet = Fleet::start(3, |_, _| {}).await;
    let before = identities(&fleet.nodes[0]);
    let crashed = fleet.take("node-2");
    let old = crashed.gossip_addr();
    crashed.stop().await;
    // At once: the others still take the old address for alive.
    let again = fleet.add(2).await;
    assert_ne!(again.gossip_addr(), old);
    fleet.complete().await;
    for node in &fleet.nodes {
        assert_eq!(identities(node), before, "seen from {}", node.id());
    }
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_must_not_live_alone_ends_when_it_joins_nobody() {
    let network = MemoryNetwork::new();
    let mut config = config(1);
    config.memberlist.join_members = vec!["10.9.9.9:7946".into()];
    config.memberlist.abort_if_cluster_join_fails = true;
    config.memberlist.max_join_retries = 1;
    config.memberlist.min_join_backoff = Duration::from_millis(50);
    config.memberlist.stream_timeout = Some(Duration::from_secs(1));
    let transport = Arc::new(network.endpoint("10.0.0.1:7946".parse().unwrap()));
    let node = Node::builder("node-1").config(config).transport(transport).start().await.unwrap();
    let exit = tokio::time::timeout(PATIENCE, node.closed()).await.expect("it ends");
    let Exit::Failed { actor, cause } = exit else { panic!("{exit:?}") };
    assert!(actor == "membership" && cause.contains("10.9.9.9:7946"), "{actor}: {cause}");
    assert!(node.ring(RING).own().unwrap().heartbeats == 0, "it never registered");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_tell_what_happens_in_order() {
    let mut fleet = Fleet::start(1, |_, _| {}).await;
    let mut events = fleet.nodes[0].events();
    let mut second = fleet.nodes[0].events();
    fleet.add(2).await;
    let joined = |event| match event {
        NodeEvent::MemberJoined { name } => Some(name),
        _ => None,
    };
    let grown = |event| match event {
        NodeEvent::RingChanged { ring, instances: 2 } => Some(ring),
        _ => None,
    };
    for events in [&mut events, &mut second] {
        assert_eq!(event(events, joined).await, "node-2");
        assert_eq!(event(events, grown).await, RING);
    }
    fleet.complete().await;
    let mut own = fleet.nodes[1].events();
    fleet.nodes[1].leave().await;
    // That it became ACTIVE may be told after others saw it: the goodbye is what counts here.
    let leaving = |event| match event {
        NodeEvent::InstanceState { ring, from, to: to @ InstanceState::Leaving } => Some((ring, from, to)),
        _ => None,
    };
    assert_eq!(event(&mut own, leaving).await, (RING.to_owned(), InstanceState::Active, InstanceState::Leaving));
    fleet.stop().await;
    events_end(events).await;
}

/// The events of a node end with its last handle.
async fn events_end(mut events: impl Stream<Item = NodeEvent> + Unpin) {
    let end = async { while events.next().await.is_some() {} };
    tokio::time::timeout(PATIENCE, end).await.expect("the events end");
}

fn meta(of: &str, seen_by: &Node) -> Option<Bytes> {
    let members = seen_by.members();
    members.list.iter().find(|member| member.name.as_str() == of).map(|member| member.meta.clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_members_are_told_what_a_node_says_about_itself_and_its_changes_also_after_a_crash() {
    let mut fleet = Fleet::empty(|_, _| {});
    for number in [1, 2] {
        let node = fleet.builder(number).meta(format!("first of {number}")).start().await.unwrap();
        fleet.nodes.push(node);
    }
    fleet.complete().await;
    let [teller, hearer] = &fleet.nodes[..] else { panic!() };
    let heard = |text: &'static str| async move {
        until(&format!("the other hears {text}"), async || meta("node-1", hearer).is_some_and(|meta| meta == text))
            .await;
    };
    heard("first of 1").await;
    teller.set_meta("second").await.unwrap();
    assert_eq!(meta("node-1", teller).unwrap(), "second");
    heard("second").await;

    assert_eq!(teller.set_meta(vec![0; 513]).await, Err(MetaError::TooLong { len: 513 }));
    // The actor dies, and whoever asks meanwhile waits for its successor.
    for (fault, text) in [(Fault::Panic, "third"), (Fault::Stop, "fourth")] {
        teller.drill("membership", fault).unwrap();
        teller.set_meta(text).await.unwrap();
        heard(text).await;
    }
    let before = restarts(teller, "membership");
    teller.drill("membership", Fault::Panic).unwrap();
    until("the actor is at work again", async || restarts(teller, "membership") > before).await;
    // What it then says to a newcomer comes from it alone.
    let newcomer = fleet.builder(3).start().await.unwrap();
    until("a newcomer hears it", async || meta("node-1", &newcomer).is_some_and(|meta| meta == "fourth")).await;
    newcomer.stop().await;
    assert_eq!(meta("node-1", teller).unwrap(), "fourth");

    teller.leave().await;
    assert_eq!(teller.set_meta("too late").await, Err(MetaError::Closed));
    hearer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_sees_the_ring_without_being_in_it_and_an_unknown_ring_says_so() {
    let mut fleet = Fleet::start(2, |_, _| {}).await;
    let mut reader = fleet.config(3);
    reader.rings[0].join = false;
    reader.node.address.clear();
    let reader = Node::builder("reader").config(reader).start().await.unwrap();
    until_seen("the reader sees the ring", || ring_text(&reader), async || is_complete(&reader, 2)).await;
    assert!(reader.ring(RING).own().is_none() && reader.ready().is_ok());
    assert_eq!(owners(&reader), owners(&fleet.nodes[0]));
    assert!(reader.ring("no-such-ring").get(1, Operation::Read).is_err());
    assert_eq!(reader.rings().len(), 1);
    reader.leave().await;

    // An operator forgets an instance that will not come back, and one that is alive comes back by itself.
    let before = identities(&fleet.nodes[0]);
    assert!(fleet.nodes[0].ring(RING).forget("node-2").await.unwrap());
    assert!(!fleet.nodes[0].ring(RING).forget("nobody").await.unwrap());
    fleet.complete().await;
    assert_eq!(identities(&fleet.nodes[0]), before);
    fleet.take("node-2").stop().await;
    fleet.nodes[0].ring(RING).forget("node-2").await.unwrap();
    fleet.nodes.iter().for_each(|node| assert!(node.uptime() > Duration::ZERO));
    until("it is gone", async || ring_ids(&fleet.nodes[0]) == ["node-1"]).await;
    fleet.stop().await;
}

/// The least that an executor can be: parks its thread until it is woken.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(std::thread::Thread, AtomicBool);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.1.store(true, Ordering::Release);
            self.0.unpark();
        }
    }
    let unpark = Arc::new(Unpark(std::thread::current(), AtomicBool::new(false)));
    let waker = Waker::from(unpark.clone());
    let mut future = std::pin::pin!(future);
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return value;
        }
        while !unpark.1.swap(false, Ordering::AcqRel) {
            std::thread::park();
        }
    }
}

/// The configuration of a node that needs no other.
fn alone() -> Config {
    let mut config = config(1);
    config.rings[0].replication_factor = 1;
    config
}

/// What an application does with a node, wherever it runs.
async fn use_it(node: &Node) {
    node.ring(RING).wait_for_instances(1).await;
    assert_eq!(node.ring(RING).get(1, Operation::Write).unwrap().ids().collect::<Vec<_>>(), [node.id()]);
    let mut watch = node.kv::<Map>(JSON_PREFIX).watch_key("k");
    assert_eq!(watch.next().await, Some(None));
    write(node, "k", "x").await;
    let map = watch.next().await.flatten().expect("the written value");
    assert_eq!(map.get("x"), Some(&json!(1)));
    assert_eq!(entries(node, "k").await, ["x"]);
    assert!(node.join(vec![]).await.is_err());
    assert!(node.leave().await.unfinished.is_empty());
    assert_eq!(node.closed().await, Exit::Stopped);
}

#[test]
fn it_works_from_a_plain_thread_with_any_executor() {
    let thread = std::thread::spawn(|| {
        let node = Node::builder("node-1").config(alone()).start_blocking().unwrap();
        block_on(use_it(&node));
    });
    thread.join().unwrap();
    let node = block_on(Node::builder("node-1").config(alone()).start()).unwrap();
    block_on(use_it(&node));
    assert!(Node::builder("").start_blocking().is_err());
}

#[test]
fn it_works_inside_an_actix_system() {
    actix::System::new().block_on(async {
        let node = Node::builder("node-1").config(alone()).start().await.unwrap();
        let elsewhere = node.clone();
        let arbiter = actix::Arbiter::new();
        let (done, used) = tokio::sync::oneshot::channel();
        arbiter.spawn(async move {
            use_it(&elsewhere).await;
            let _ = done.send(());
        });
        used.await.expect("it works on another arbiter of the system");
        arbiter.stop();
    });
}

#[test]
fn it_works_from_a_runtime_with_many_threads_and_outlives_it() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let first = runtime();
    let node = first.block_on(async {
        let node = Node::builder("node-1").config(alone()).start().await.unwrap();
        node.ring(RING).wait_for_instances(1).await;
        node
    });
    // The node has threads of its own: nothing of it ran here.
    drop(first);
    runtime().block_on(use_it(&node));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_whose_applications_speak_other_versions_refuse_each_other() {
    let fleet = Fleet::start(1, |_, _| {}).await;
    let ours = fleet.nodes[0].gossip_addr().unwrap();
    let start = async |number: usize| {
        let mut config = fleet.config(number);
        config.memberlist.join_members.clear();
        Node::builder(config.node.id.clone()).config(config).delegate_versions([2, 5, 5]).start().await.unwrap()
    };
    // As among the agents of Serf.
    let (first, second) = (start(2).await, start(3).await);
    assert_eq!(second.join(vec![first.gossip_addr().unwrap()]).await, Ok(1));
    until("the two are members", async || live_members(&first).len() == 2 && live_members(&second).len() == 2).await;
    let refused = first.join(vec![ours]).await;
    assert!(refused.as_ref().is_err_and(|error| error.contains("incompatible versions")), "{refused:?}");
    assert_eq!(live_members(&fleet.nodes[0]).len(), 1);
    first.stop().await;
    second.stop().await;
    fleet.stop().await;
}
