//! Every actor is killed at work, in every way, under load: nothing may be lost and nobody may notice.

#![allow(clippy::unwrap_used)]

mod support;

#[path = "support/checker.rs"]
mod checker;
#[path = "support/fleet.rs"]
mod fleet;

use annulus::actors::guard::ActorState;
use annulus::config::KvStore;
use annulus::kv::StoreKind;
use annulus::wire::message::MemberState;
use annulus::{Exit, Fault, Node, NodeEvent};
use checker::Workload;
use fleet::{
    Fleet, RuntimeFile, all_identities, assert_same_identities, is_complete, member_state, restarts, two_stores, until,
};
use futures_util::StreamExt as _;

/// The actors that a node with everything has.
const ALL_ACTORS: [&str; 8] = [
    "supervisor",
    "transport",
    "gossip",
    "membership",
    "mirror",
    "heartbeat/ingester",
    "ring-keeper/ingester",
    "config-watcher",
];

fn actors(node: &Node) -> Vec<String> {
    node.actors().into_iter().map(|actor| actor.name).collect()
}

/// Makes an actor fail and waits until it is at work again.
async fn kill(node: &Node, actor: &str, fault: Fault) {
    let before = restarts(node, actor);
    node.drill(actor, fault).unwrap();
    until(&format!("{actor} of {} is started again after {fault:?}", node.id()), async || {
        restarts(node, actor) > before && is_running(node, actor)
    })
    .await;
}

fn is_running(node: &Node, actor: &str) -> bool {
    node.actors().iter().any(|status| status.name == actor && status.state == ActorState::Running)
}

/// Kills every actor of every node, by stop and by panic, twice, one after the other, then all of one node at once.
async fn kill_everything(fleet: &Fleet, workload: &Workload) {
    for _ in 0..2 {
        for fault in [Fault::Stop, Fault::Panic] {
            for actor in actors(&fleet.nodes[0]) {
                for node in &fleet.nodes {
                    kill(node, &actor, fault).await;
                }
            }
            workload.goes_on().await;
        }
    }
    for node in &fleet.nodes {
        let before: Vec<_> = actors(node).into_iter().map(|actor| (restarts(node, &actor), actor)).collect();
        for (number, (_, actor)) in before.iter().enumerate() {
            node.drill(actor, if number % 2 == 0 { Fault::Panic } else { Fault::Stop }).unwrap();
        }
        until(&format!("all actors of {} are started again", node.id()), async || {
            before.iter().all(|(count, actor)| restarts(node, actor) > *count && is_running(node, actor))
        })
        .await;
        workload.goes_on().await;
    }
}

/// The whole exercise. Whatever store is primary, at the end each acknowledged write is on each node.
async fn chaos(fleet: &Fleet) -> checker::Report {
    let before = all_identities(fleet);
    let workload = Workload::start(&fleet.nodes);
    workload.goes_on().await;
    kill_everything(fleet, &workload).await;
    let report = workload.stop().await;
    report.assert_flawless();
    report.assert_nothing_lost(&fleet.nodes).await;
    fleet.complete().await;
    assert_same_identities(fleet, &before);
    for node in &fleet.nodes {
        for actor in node.actors() {
            assert!(actor.restarts["panic"] >= 2 && actor.restarts["stop"] >= 2, "{actor:?}");
        }
        assert!(node.ready().is_ok());
    }
    report
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_actor_of_nodes_that_mirror_into_gossip_may_die_under_load_and_nothing_is_lost() {
    let runtime = RuntimeFile::new("multi_kv_config: { mirror_enabled: true }\n");
    let path = runtime.path();
    let fleet = Fleet::start(3, move |_, config| {
        two_stores(config, KvStore::Inmemory, KvStore::Memberlist);
        config.runtime_config.file = vec![path.clone()];
    })
    .await;
    for node in &fleet.nodes {
        assert_eq!(actors(node), ALL_ACTORS);
    }
    let report = chaos(&fleet).await;
    // What was written while actors died is in the other store too: read it from there.
    fleet.mirrored().await;
    let before = all_identities(&fleet);
    runtime.write("multi_kv_config: { mirror_enabled: true, primary: memberlist }\n");
    fleet.primary(StoreKind::Memberlist).await;
    report.assert_nothing_lost(&fleet.nodes).await;
    fleet.complete().await;
    assert_same_identities(&fleet, &before);
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_actor_of_nodes_that_gossip_alone_may_die_under_load_and_nothing_is_lost() {
    let fleet = Fleet::start(3, |_, _| {}).await;
    chaos(&fleet).await;
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn actors_may_die_while_the_primary_changes() {
    let runtime = RuntimeFile::new("multi_kv_config: { mirror_enabled: true }\n");
    let path = runtime.path();
    let fleet = Fleet::start(3, move |_, config| {
        two_stores(config, KvStore::Inmemory, KvStore::Memberlist);
        config.runtime_config.file = vec![path.clone()];
    })
    .await;
    fleet.mirrored().await;
    let before = all_identities(&fleet);
    let workload = Workload::start(&fleet.nodes);
    for (actor, fault, primary) in [
        ("mirror", Fault::Panic, StoreKind::Memberlist),
        ("gossip", Fault::Stop, StoreKind::InMemory),
        ("config-watcher", Fault::Panic, StoreKind::Memberlist),
        ("mirror", Fault::Stop, StoreKind::InMemory),
        ("ring-keeper/ingester", Fault::Panic, StoreKind::Memberlist),
        ("heartbeat/ingester", Fault::Panic, StoreKind::InMemory),
        ("membership", Fault::Panic, StoreKind::Memberlist),
    ] {
        runtime.write(&format!("multi_kv_config: {{ mirror_enabled: true, primary: {primary} }}\n"));
        for node in &fleet.nodes {
            node.reload_runtime_config();
            node.drill(actor, fault).unwrap();
        }
        fleet.primary(primary).await;
        workload.goes_on().await;
    }
    let report = workload.stop().await;
    report.assert_flawless();
    report.assert_nothing_lost(&fleet.nodes).await;
    fleet.complete().await;
    assert_same_identities(&fleet, &before);
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_actor_cannot_be_kept_alive_gives_up_with_the_cause_and_only_that_node() {
    let mut fleet = Fleet::start(3, |_, _| {}).await;
    // A fleet of its own in the same process.
    let neighbours = Fleet::start(2, |_, _| {}).await;
    let workload = Workload::start(&neighbours.nodes);

    let doomed = fleet.take("node-3");
    let exit = drilled_to_death(&doomed, "gossip").await;
    let Exit::Failed { actor, cause } = exit else { panic!("{exit:?}") };
    assert_eq!(actor, "gossip");
    assert!(cause.contains("a drill asked for this panic"), "{cause}");
    // Whoever asks later is told the same, and nothing hangs on a node that is gone.
    assert!(matches!(doomed.closed().await, Exit::Failed { .. }));
    doomed.stop().await;
    doomed.leave().await;
    let store = doomed.store();
    let write = store.cas("annulus/kv/late", Box::new(|_| annulus::kv::CasAction::Keep));
    assert!(write.await.is_err(), "a node that has ended acknowledges nothing");

    for node in &fleet.nodes {
        until(&format!("{} notices", node.id()), async || {
            member_state(node, "node-3").is_none_or(|state| state == MemberState::Dead)
        })
        .await;
        assert!(node.actors().iter().all(|actor| actor.total_restarts() == 0), "{:?}", node.actors());
    }
    workload.goes_on().await;
    let report = workload.stop().await;
    report.assert_flawless();
    report.assert_nothing_lost(&neighbours.nodes).await;
    for node in &neighbours.nodes {
        assert!(is_complete(node, 2));
        assert!(node.actors().iter().all(|actor| actor.total_restarts() == 0), "{:?}", node.actors());
    }
    neighbours.stop().await;
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_death_is_told_as_an_event_and_in_the_metrics() {
    let fleet = Fleet::start(1, |_, _| {}).await;
    let node = &fleet.nodes[0];
    let mut events = node.events();
    kill(node, "ring-keeper/ingester", Fault::Panic).await;
    let told = tokio::time::timeout(fleet::PATIENCE, async {
        loop {
            if let Some(NodeEvent::ActorRestarted { actor, death }) = events.next().await {
                return (actor, death.reason());
            }
        }
    });
    assert_eq!(told.await.expect("an event"), ("ring-keeper/ingester".to_owned(), "panic"));
    let line = "annulus_actor_restarts_total{actor=\"ring-keeper/ingester\",reason=\"panic\"} 1";
    assert!(node.metrics().lines().any(|found| found == line), "{}", node.metrics());
    let error = node.drill("gardener", Fault::Stop).unwrap_err();
    assert!(error.contains("\"gardener\"") && error.contains("ring-keeper/ingester"), "{error}");
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_supervisor_that_cannot_be_kept_alive_ends_its_node_too() {
    let mut fleet = Fleet::start(1, |_, _| {}).await;
    let doomed = fleet.take("node-1");
    let Exit::Failed { actor, .. } = drilled_to_death(&doomed, "supervisor").await else { panic!("not failed") };
    assert_eq!(actor, "supervisor");
}

/// Makes an actor panic again and again until its node gives up.
async fn drilled_to_death(doomed: &annulus::Node, actor: &str) -> Exit {
    let dying = async {
        loop {
            if is_running(doomed, actor) {
                doomed.drill(actor, Fault::Panic).unwrap();
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    let ended = async {
        tokio::select! {
            exit = doomed.closed() => exit,
            () = dying => unreachable!(),
        }
    };
    tokio::time::timeout(fleet::PATIENCE, ended).await.expect("a node with an actor that keeps dying gives up")
}
