//! Whole clusters in virtual time.

use std::time::Duration;

use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::{SmallRng, StdRng};

use super::harness::Net;
use crate::swim::{Input, LocalNode, MemberEvent, Swim, SwimConfig};
use crate::wire::message::MemberState;

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn failures(net: &Net) -> Vec<(Duration, String)> {
    net.nodes
        .iter()
        .flat_map(|node| &node.events)
        .filter_map(|(at, event)| match event {
            MemberEvent::Failed(m) => Some((*at, m.name.to_string())),
            _ => None,
        })
        .collect()
}

#[test]
fn ten_and_fifty_nodes_that_join_one_seed_all_know_each_other() {
    for (count, limit) in [(10, 5), (50, 10)] {
        let mut net = Net::unjoined(count as u64, count, &SwimConfig::lan());
        net.join_all_to_first();
        net.until(secs(limit), "everybody sees everybody", |net| net.all_alive(count));
        for node in &net.nodes[1..] {
            assert_eq!(node.joins, [(1, 1, vec![])]);
        }
        net.run(secs(60));
        assert!(net.all_alive(count));
        assert_eq!(failures(&net), []);
    }
}

#[test]
fn a_killed_node_is_found_dead_by_all_within_the_bounds_of_suspicion() {
    for seed in 0..5 {
        let mut net = Net::cluster(seed, 10, &SwimConfig::lan());
        net.run(secs(10));
        let killed = net.elapsed();
        net.nodes[3].up = false;
        // (2N − 1) probe intervals, the longest suspicion, and some time to spread.
        let bound = secs(19) + secs(24) + secs(2);
        net.until(bound, "all see it dead", |net| net.views("n3").iter().all(|s| *s == Some(MemberState::Dead)));
        for (at, name) in failures(&net) {
            assert_eq!(name, "n3");
            assert!(at >= killed + secs(4), "dead {:?} after the kill, before the shortest suspicion", at - killed);
        }
        assert_eq!(failures(&net).len(), 9);
        net.until(secs(60), "all forget it", |net| net.views("n3").iter().all(Option::is_none));
    }
}

#[test]
fn a_node_that_leaves_is_seen_as_left_and_never_as_failed() {
    let mut net = Net::cluster(1, 10, &SwimConfig::lan());
    net.input(4, Input::Leave);
    net.until(secs(2), "all see it left", |net| net.views("n4").iter().all(|s| *s == Some(MemberState::Left)));
    net.until(secs(5), "it is told so", |net| net.nodes[4].leaves == 1);
    net.nodes[4].up = false;
    net.run(secs(60));
    assert_eq!(failures(&net), []);
    assert!(net.all_alive(9));
    let left = |(_, event): &&(Duration, MemberEvent)| matches!(event, MemberEvent::Left(m) if m.name.as_str() == "n4");
    for node in &net.nodes {
        assert_eq!(node.events.iter().filter(left).count(), 1, "{}", node.name);
    }
}

#[test]
fn a_lone_node_leaves_at_once() {
    let mut net = Net::unjoined(1, 1, &SwimConfig::lan());
    net.input(0, Input::Leave);
    assert_eq!(net.nodes[0].leaves, 1);
    net.input(0, Input::Join { id: 7, seeds: vec![([10, 0, 0, 1], 7001).into()] });
    assert_eq!(net.nodes[0].joins[0].1, 0);
    assert_eq!(net.nodes[0].joins[0].2.len(), 1, "after leaving there is no way back, and it says so");
}

#[test]
fn a_falsely_suspected_node_refutes_as_soon_as_it_is_heard() {
    let mut net = Net::cluster(2, 10, &SwimConfig::lan());
    net.nodes[5].mute = true;
    net.until(secs(30), "somebody suspects it", |net| net.views("n5").contains(&Some(MemberState::Suspect)));
    net.run(secs(1));
    net.nodes[5].mute = false;
    net.until(secs(10), "all trust it again", |net| net.all_alive(10));
    assert_eq!(failures(&net), []);
    assert!(net.member(0, "n5").unwrap().incarnation > 1);
    assert!(net.nodes[5].swim.stats().refutations > 0);
    net.run(secs(30));
    assert!(net.nodes.iter().all(|node| node.swim.health_score() == 0), "local health recovers");
}

#[test]
fn a_partition_longer_than_the_memory_of_the_dead_heals_by_itself() {
    for seed in 0..3 {
        let mut net = Net::cluster(seed, 10, &SwimConfig::lan());
        for node in &mut net.nodes[..4] {
            node.group = 1;
        }
        net.run(secs(180));
        for node in &net.nodes {
            let expected = if node.group == 1 { 4 } else { 6 };
            assert_eq!(node.swim.members().len(), expected, "both sides forgot the other");
        }
        for node in &mut net.nodes {
            node.group = 0;
        }
        net.until(secs(90), "one cluster again", |net| net.all_alive(10));
        net.run(secs(60));
        assert!(net.all_alive(10));
    }
}

#[test]
fn a_short_partition_heals_too() {
    let mut net = Net::cluster(9, 10, &SwimConfig::lan());
    for node in &mut net.nodes[..5] {
        node.group = 1;
    }
    net.run(secs(45));
    for node in &mut net.nodes {
        node.group = 0;
    }
    net.until(secs(120), "one cluster again", |net| net.all_alive(10));
}

#[test]
fn a_node_alone_keeps_trying_its_seeds_until_one_appears() {
    let mut net = Net::unjoined(3, 1, &SwimConfig::lan());
    let seeds = vec![net.nodes[0].addr, ([10, 0, 0, 1], 7001).into()];
    net.input(0, Input::SetSeeds(seeds));
    net.run(secs(300));
    assert_eq!(net.nodes[0].swim.members().len(), 1);
    net.add("n1", 7001, &SwimConfig::lan());
    net.until(secs(45), "it found its seed", |net| net.all_alive(2));
}

#[test]
fn two_clusters_that_share_a_seed_list_become_one() {
    let mut net = Net::unjoined(4, 6, &SwimConfig::lan());
    let seeds = vec![net.nodes[0].addr, net.nodes[3].addr];
    for (node, seed) in [(1, 0), (2, 0), (4, 3), (5, 3)] {
        let addr = net.nodes[seed].addr;
        net.input(node, Input::Join { id: 1, seeds: vec![addr] });
    }
    net.run(secs(5));
    assert_eq!(net.nodes[1].swim.alive_count(), 3);
    net.input(1, Input::SetSeeds(seeds));
    net.until(secs(60), "one cluster", |net| net.all_alive(6));
}

#[test]
fn after_a_leave_the_same_name_returns_at_once_with_another_port() {
    let mut net = Net::cluster(5, 6, &SwimConfig::lan());
    net.input(2, Input::Leave);
    net.until(secs(6), "it left", |net| net.nodes[2].leaves == 1);
    net.run(secs(1));
    net.nodes[2].up = false;
    let again = net.add("n2", 7999, &SwimConfig::lan());
    let seed = net.nodes[0].addr;
    net.input(again, Input::Join { id: 1, seeds: vec![seed] });
    net.until(secs(5), "it is back", |net| net.all_alive(6));
    net.until(secs(5), "with its new port", |net| (0..2).all(|i| net.member(i, "n2").unwrap().port == 7999));
    net.run(secs(60));
    assert!(net.all_alive(6));
}

#[test]
fn a_node_that_restarts_before_anybody_noticed_refutes_what_is_known_of_it() {
    let mut net = Net::cluster(6, 6, &SwimConfig::lan());
    for times in 1..5 {
        net.input(2, Input::UpdateMeta(Bytes::from(vec![b'x'; times])));
    }
    net.until(secs(5), "its incarnation is known", |net| net.member(0, "n2").unwrap().incarnation == 5);
    net.nodes[2].up = false;
    let again = net.add("n2", 7002, &SwimConfig::lan());
    let seed = net.nodes[0].addr;
    net.input(again, Input::Join { id: 1, seeds: vec![seed] });
    net.until(secs(5), "the new one is known", |net| {
        [0, 1, 3, 4, 5].iter().all(|i| net.member(*i, "n2").unwrap().meta.is_empty()) && net.all_alive(6)
    });
}

#[test]
fn a_dead_members_name_moves_to_a_new_address_after_the_reclaim_time() {
    let mut net = Net::cluster(7, 6, &SwimConfig::lan());
    net.nodes[2].up = false;
    let again = net.add("n2", 7999, &SwimConfig::lan());
    let seeds = vec![net.nodes[0].addr];
    net.input(again, Input::SetSeeds(seeds.clone()));
    net.input(again, Input::Join { id: 1, seeds });
    net.run(secs(2));
    let conflict = |(_, event): &(Duration, MemberEvent)| matches!(event, MemberEvent::Conflict { .. });
    assert!(net.nodes[0].events.iter().any(conflict), "while the old one may live, the name is taken");
    net.until(secs(120), "it has its name", |net| {
        net.all_alive(6) && [0, 1, 3, 4, 5].iter().all(|i| net.member(*i, "n2").unwrap().port == 7999)
    });
}

#[test]
fn a_user_broadcast_reaches_all_of_twenty_nodes_by_packet_or_by_stream() {
    let mut net = Net::cluster(8, 20, &SwimConfig::lan());
    net.run(secs(5));
    let streams: usize = net.nodes.iter().map(|node| node.streams_opened).sum();
    let small = Bytes::from_static(b"small");
    net.broadcast(0, "key", small.clone());
    net.until(secs(3), "all heard the small one", |net| net.nodes.iter().all(|node| node.heard.contains(&small)));
    assert_eq!(net.nodes.iter().map(|node| node.swim.stats().broadcasts_streamed).sum::<u64>(), 0);

    let large = Bytes::from(vec![b'x'; 5_000]);
    net.broadcast(7, "key", large.clone());
    net.until(secs(3), "all heard the large one", |net| net.nodes.iter().all(|node| node.heard.contains(&large)));
    assert!(net.nodes.iter().map(|node| node.streams_opened).sum::<usize>() > streams);
    net.until(secs(10), "all queues are empty", |net| net.nodes.iter().all(|n| n.swim.queued_broadcasts() == 0));
}

#[test]
fn one_fifth_of_all_packets_lost_delays_but_does_not_divide() {
    let mut net = Net::unjoined(10, 15, &SwimConfig::lan());
    net.loss = 0.2;
    net.join_all_to_first();
    net.until(secs(60), "everybody sees everybody", |net| net.all_alive(15));
    net.run(secs(120));
    assert_eq!(failures(&net), []);
    let news = Bytes::from_static(b"news");
    net.broadcast(3, "key", news.clone());
    net.until(secs(5), "all heard it", |net| net.nodes.iter().all(|node| node.heard.contains(&news)));
}

#[test]
fn user_state_travels_with_push_pull_both_ways() {
    let mut net = Net::unjoined(11, 2, &SwimConfig::lan());
    net.nodes[0].user_state = Bytes::from_static(b"zero");
    net.nodes[1].user_state = Bytes::from_static(b"one");
    net.join_all_to_first();
    net.run(secs(1));
    // With the join, and once more when the node that joined asks who else came.
    assert_eq!(net.nodes[0].states, [true, false].map(|join| (Bytes::from_static(b"one"), join)));
    assert_eq!(net.nodes[1].states, [true, false].map(|join| (Bytes::from_static(b"zero"), join)));
}

#[test]
fn joining_reports_dead_seeds_and_is_silent_about_itself() {
    let mut net = Net::unjoined(12, 2, &SwimConfig::lan());
    let own = net.nodes[0].addr;
    net.input(0, Input::Join { id: 1, seeds: vec![own] });
    assert_eq!(net.nodes[0].joins, [(1, 0, vec![])]);
    let nobody = ([10, 0, 0, 1], 9).into();
    let other = net.nodes[1].addr;
    net.input(0, Input::Join { id: 2, seeds: vec![own, nobody, other] });
    net.run(secs(15));
    let (id, joined, errors) = &net.nodes[0].joins[1];
    assert_eq!((*id, *joined, errors.len()), (2, 1, 1));
    assert!(errors[0].contains("10.0.0.1:9"), "{errors:?}");
}

#[test]
fn a_member_whose_packets_are_lost_is_saved_by_streams() {
    let mut net = Net::cluster(13, 5, &SwimConfig::lan());
    net.nodes[2].no_packets = true;
    net.run(secs(20));
    let saved: u64 = [0, 1, 3, 4].iter().map(|i| net.nodes[*i].swim.stats().probes_saved_by_stream).sum();
    assert!(saved > 0);
    for i in [0, 1, 3, 4] {
        assert_eq!(net.member(i, "n2").unwrap().state, MemberState::Alive);
    }
    let mut net = Net::cluster(13, 5, &SwimConfig { disable_tcp_pings: true, ..SwimConfig::lan() });
    net.nodes[2].no_packets = true;
    net.until(secs(40), "without them it is dead", |net| {
        [0, 1, 3, 4].iter().all(|i| net.member(*i, "n2").is_some_and(|m| m.state == MemberState::Dead))
    });
}

#[test]
fn a_healthy_prober_of_a_dead_member_does_not_blame_itself() {
    // memberlist's helpers send their nacks too late, and the prober's own health suffers.
    let mut net = Net::cluster(14, 6, &SwimConfig::lan());
    net.nodes[5].up = false;
    net.until(secs(60), "it is dead", |net| net.views("n5").iter().all(|s| *s == Some(MemberState::Dead)));
    assert!(net.nodes[..5].iter().map(|node| node.swim.stats().probes_failed).sum::<u64>() > 0);
    assert!(net.nodes[..5].iter().all(|node| node.swim.stats().probes_degraded == 0));
}

#[test]
fn a_core_that_resumes_keeps_its_incarnation_and_the_cluster_does_not_notice() {
    let mut net = Net::cluster(15, 8, &SwimConfig::lan());
    for _ in 0..3 {
        net.input(2, Input::UpdateMeta(Bytes::from_static(b"meta")));
    }
    net.run(secs(2));
    let durable = net.nodes[2].swim.durable();
    let before = net.member(2, "n2").unwrap();
    let (name, addr) = (net.nodes[2].name.clone(), net.nodes[2].addr);
    let local = LocalNode { name, addr, meta: Bytes::from_static(b"meta") };
    net.nodes[2].swim = Swim::resume(
        SwimConfig::lan(),
        local,
        SmallRng::seed_from_u64(77),
        StdRng::seed_from_u64(77),
        net.now,
        durable,
    );
    assert_eq!(net.nodes[2].swim.stats().push_pulls_started, 2, "two members are asked at once");
    assert_eq!(net.member(2, "n2").unwrap(), before);
    assert!(net.all_alive(8));
    let quiet = |net: &Net| net.nodes.iter().map(|node| node.events.len()).sum::<usize>();
    let events = quiet(&net);
    net.run(secs(60));
    assert!(net.all_alive(8));
    assert_eq!(quiet(&net), events);
}

#[test]
fn a_core_that_had_left_resumes_as_left() {
    let mut net = Net::cluster(16, 4, &SwimConfig::lan());
    net.input(1, Input::Leave);
    let durable = net.nodes[1].swim.durable();
    let local = LocalNode { name: net.nodes[1].name.clone(), addr: net.nodes[1].addr, meta: Bytes::new() };
    net.nodes[1].swim = Swim::resume(
        SwimConfig::lan(),
        local,
        SmallRng::seed_from_u64(78),
        StdRng::seed_from_u64(78),
        net.now,
        durable,
    );
    net.run(secs(10));
    assert_eq!(net.nodes[1].leaves, 1);
    assert_eq!(net.member(1, "n1").unwrap().state, MemberState::Left);
    assert!(net.views("n1").iter().all(|s| *s == Some(MemberState::Left)));
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let trace = |seed| {
        let mut net = Net::unjoined(seed, 12, &SwimConfig::lan());
        net.loss = 0.1;
        net.join_all_to_first();
        net.run(secs(10));
        net.nodes[3].up = false;
        net.broadcast(0, "key", Bytes::from_static(b"news"));
        net.run(secs(40));
        net.trace()
    };
    assert_eq!(trace(1), trace(1));
    assert_ne!(trace(1), trace(2));
}

#[test]
fn a_hundred_nodes_that_join_one_seed_at_once_all_know_each_other_within_a_second_in_every_profile() {
    let profiles = [SwimConfig::lan(), SwimConfig::local(), SwimConfig::wan(), SwimConfig::grafana()];
    for (seed, config) in (0..).zip(profiles) {
        let mut net = Net::unjoined(seed, 100, &config);
        net.join_all_to_first();
        net.until(secs(1), "everybody sees everybody", |net| {
            net.nodes.iter().all(|node| node.swim.alive_count() == 100)
        });
    }
}

#[test]
fn a_node_that_joins_two_clusters_makes_them_one() {
    for seed in 0..5 {
        let mut net = Net::unjoined(seed, 13, &SwimConfig { push_pull_interval: Duration::ZERO, ..SwimConfig::lan() });
        let (left, right) = (net.nodes[0].addr, net.nodes[6].addr);
        for i in 1..12 {
            let through = if i < 6 { left } else { right };
            net.input(i, Input::Join { id: 1, seeds: vec![through] });
        }
        net.run(secs(15));
        net.input(12, Input::Join { id: 1, seeds: vec![left] });
        net.run(secs(15));
        net.input(12, Input::Join { id: 2, seeds: vec![right] });
        // Gossip alone misses one here and there: only half of the nodes pass on what the other half knows.
        let most = |net: &Net| net.nodes.iter().filter(|node| node.swim.alive_count() == 13).count() > 9;
        net.until(secs(5), "most on both sides heard of the other", most);
    }
}
