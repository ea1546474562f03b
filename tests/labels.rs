//! Labels of real nodes over real sockets: a cluster gets a label, and another, under load and without an outage; two
//! clusters stay two.

#![allow(clippy::unwrap_used)]

mod support;

#[path = "support/checker.rs"]
mod checker;
#[path = "support/fleet.rs"]
mod fleet;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use annulus::config::MemberlistConfig;
use annulus::node::{LabelPlan, LabelStep};
use annulus::wire::Label;
use annulus::{Node, NodeEvent};
use checker::Workload;
use fleet::{Fleet, RING, id, live_members, member_state, ring_ids, until};
use futures_util::{FutureExt, StreamExt as _};

const NODES: usize = 4;

/// What a node is told in each round.
type Round = fn(&mut MemberlistConfig);

/// Restarts one node after the other with the configuration of the next round, while all the others work. Before every
/// restart the plan must have said that the round is safe.
async fn roll_out(rounds: &'static [(LabelStep, Round)], to: &str) {
    let round_of = Arc::new((0..=NODES).map(|_| AtomicUsize::new(0)).collect::<Vec<_>>());
    let mut fleet = Fleet::start(NODES, {
        let round_of = round_of.clone();
        move |number, config| {
            let round = round_of[number].load(Ordering::SeqCst);
            for (_, change) in &rounds[..=round] {
                change(&mut config.memberlist);
            }
            // A restart, not a farewell: the instance keeps its place in the ring.
            config.rings[0].unregister_on_shutdown = false;
        }
    })
    .await;
    let mut work = Workload::start(&fleet.nodes);
    for (round, (step, _)) in rounds.iter().enumerate().skip(1) {
        for node in &fleet.nodes {
            safe(node, *step, to).await;
        }
        for number in 1..=NODES {
            round_of[number].store(round, Ordering::SeqCst);
            let node = fleet.take(&id(number));
            let mut events: Vec<_> = fleet.nodes.iter().map(Node::events).collect();
            work.retire(&node).await;
            node.leave().await;
            let node = fleet.add(number).await;
            fleet.complete().await;
            work.add(&node);
            work.goes_on().await;
            for events in &mut events {
                while let Some(event) = events.next().now_or_never().flatten() {
                    assert!(!matches!(event, NodeEvent::MemberFailed { .. }), "round {round}: {event:?}");
                }
            }
        }
    }
    for node in &fleet.nodes {
        let plan = safe(node, LabelStep::Done, to).await;
        assert!(plan.in_the_way.is_empty());
        until("all send the label", async || node.labels().unwrap().sent.get(to) == Some(&NODES)).await;
    }
    let report = work.stop().await;
    report.assert_flawless();
    report.assert_nothing_lost(&fleet.nodes).await;
    fleet.stop().await;
}

/// Asks for the plan until it is safe; only a member that was not heard yet may be in the way for a while.
async fn safe(node: &Node, step: LabelStep, to: &str) -> LabelPlan {
    let mut last = None;
    until("the plan is safe", async || {
        let plan = node.plan_label(Some(Label::new(to).unwrap())).await.unwrap();
        assert_eq!(plan.step, step, "{}: {plan:?}", node.id());
        last = Some(plan);
        last.as_ref().is_some_and(|plan| plan.safe)
    })
    .await;
    last.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_without_a_label_gets_one_in_three_rounds_under_load() {
    const ROUNDS: &[(LabelStep, Round)] = &[
        (LabelStep::Accept, |_| {}),
        (LabelStep::Accept, |memberlist| memberlist.cluster_label_verification_disabled = true),
        (LabelStep::Send, |memberlist| memberlist.cluster_label = "prod".into()),
        (LabelStep::Verify, |memberlist| memberlist.cluster_label_verification_disabled = false),
    ];
    roll_out(ROUNDS, "prod").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_changes_its_label_and_never_accepts_any_other() {
    const ROUNDS: &[(LabelStep, Round)] = &[
        (LabelStep::Accept, |memberlist| memberlist.cluster_label = "old".into()),
        (LabelStep::Accept, |memberlist| memberlist.accepted_labels = vec!["new".into()]),
        (LabelStep::Send, |memberlist| {
            memberlist.cluster_label = "new".into();
            memberlist.accepted_labels = vec!["old".into()];
        }),
        (LabelStep::Verify, |memberlist| memberlist.accepted_labels.clear()),
    ];
    roll_out(ROUNDS, "new").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_names_the_node_that_was_forgotten() {
    let fleet = Fleet::start(3, |number, config| {
        // The third was left out of the first round.
        config.memberlist.cluster_label_verification_disabled = number != 3;
    })
    .await;
    let plan = fleet.nodes[0].plan_label(Some(Label::new("prod").unwrap())).await.unwrap();
    assert_eq!((plan.step, plan.safe), (LabelStep::Send, false), "{plan:?}");
    assert_eq!(plan.in_the_way.keys().collect::<Vec<_>>(), [&id(3)]);
    // What it refused is what it says.
    until("the refusal is counted", async || {
        fleet.nodes[2].labels().unwrap().refused.contains_key("prod")
            && fleet.nodes[2].metrics().contains(r#"annulus_foreign_label_total{label="prod"}"#)
    })
    .await;
    assert_eq!(live_members(&fleet.nodes[2]).len(), 3, "to be asked is no reason to be suspected");
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_clusters_that_meet_stay_two_whichever_calls_the_other() {
    let ours = Fleet::start(2, |_, config| config.memberlist.cluster_label = "ours".into()).await;
    // The other one is in the middle of its rollout: it accepts what anybody sends.
    let theirs = Fleet::empty(|number, config| {
        config.node.id = format!("their-{number}");
        config.memberlist.cluster_label = "theirs".into();
        config.memberlist.cluster_label_verification_disabled = true;
    });
    let open = theirs.builder(1).start().await.unwrap();
    until("they have a ring of their own", async || ring_ids(&open) == ["their-1"]).await;

    // We call an address that is theirs now: their answer is not taken.
    let refused = ours.nodes[0].join(vec![open.gossip_addr().unwrap()]).await;
    assert!(refused.as_ref().is_err_and(|error| error.contains("theirs")), "{refused:?}");
    assert_eq!(ring_ids(&ours.nodes[0]), [id(1), id(2)]);
    assert_eq!(member_state(&ours.nodes[0], "their-1"), None);
    until("the answer is counted", async || ours.nodes[0].labels().unwrap().refused.contains_key("theirs")).await;

    // They call us: we say nothing.
    let refused = open.join(vec![ours.nodes[1].gossip_addr().unwrap()]).await;
    assert!(refused.is_err(), "{refused:?}");
    until("the stream is counted", async || ours.nodes[1].labels().unwrap().refused.contains_key("theirs")).await;
    assert_eq!(ours.nodes[1].ring(RING).snapshot().instances().len(), 2);
    open.stop().await;
    ours.stop().await;
}
