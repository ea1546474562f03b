//! What others can fill or forge: the allow-list, new names, the full table, incarnations; and leaving while joining.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;

use super::harness::Net;
use super::rules::{One, addr, alive, events, push_node};
use crate::config::Networks;
use crate::swim::{ExchangeId, Input, MemberEvent, NEW_NAMES_BURST, NEW_NAMES_PER_SECOND, Output, SwimConfig};
use crate::wire::message::{
    Alive, Dead, MemberState, Message, PushNode, PushPull, StreamMessage, Suspect, VSN, WireIp,
};
use crate::wire::stream::MAX_USER_STATE;
use crate::wire::{Key, Keyring, PacketOptions, StreamDecoder, StreamSide, encode_message};

const A: MemberState = MemberState::Alive;

/// Only messages make it do anything.
fn quiet() -> SwimConfig {
    let zero = Duration::ZERO;
    SwimConfig { probe_interval: zero, gossip_interval: zero, push_pull_interval: zero, ..SwimConfig::lan() }
}

fn refused(one: &One, reason: &str) -> u64 {
    one.swim.stats().messages_refused.get(reason).copied().unwrap_or(0)
}

fn numbered(number: u32) -> PushNode {
    PushNode { name: format!("new-{number}").as_str().into(), ..push_node("", 2, 1, A, Some(VSN)) }
}

fn restricted(networks: &[&str]) -> One {
    One::with(SwimConfig { allowed_networks: Networks::parse(networks).unwrap(), ..quiet() })
}

fn at(node: &str, ip: &str, incarnation: u32) -> Alive {
    Alive { addr: WireIp::from(ip.parse::<std::net::IpAddr>().unwrap()), ..alive(node, 2, incarnation) }
}

#[test]
fn an_announcement_of_an_address_outside_the_allowed_networks_is_refused_and_counted() {
    let mut one = restricted(&["10.0.0.0/24", "fd00::/8"]);
    for (name, ip, taken) in [
        ("inside", "10.0.0.77", true),
        ("mapped", "::ffff:10.0.0.78", true),
        ("v6", "fd12::1", true),
        ("outside", "10.0.1.1", false),
        ("mapped-outside", "::ffff:10.0.1.1", false),
        ("v6-outside", "fe80::1", false),
    ] {
        one.packet(Message::Alive(at(name, ip, 1)));
        assert_eq!(one.state(name).is_some(), taken, "{name}");
    }
    assert_eq!(refused(&one, "alive_in_disallowed_network"), 3);
}

#[test]
fn a_packet_from_outside_the_allowed_networks_announces_nobody_but_may_accuse() {
    let mut one = restricted(&["10.0.0.0/24"]);
    one.packet(Message::Alive(alive("n", 2, 1)));
    let outside: SocketAddr = "192.0.2.1:7946".parse().unwrap();
    let mut from_outside = |message| {
        let bytes = encode_message(&message);
        one.swim.handle(one.now, Input::Packet { from: outside, bytes });
        one.outputs()
    };
    from_outside(Message::Alive(alive("other", 3, 1)));
    // As in memberlist: only announcements are checked.
    from_outside(Message::Suspect(Suspect { incarnation: 1, node: "n".into(), from: "x".into() }));
    assert_eq!(one.state("other"), None);
    assert_eq!(one.state("n"), Some((MemberState::Suspect, 1)));
    assert_eq!(refused(&one, "alive_from_disallowed_network"), 1);
}

#[test]
fn a_push_pull_brings_only_those_of_its_members_that_the_allowed_networks_contain() {
    let mut one = restricted(&["10.0.0.0/30", "10.0.0.9/32"]);
    one.push_pull(vec![push_node("peer", 2, 1, A, Some(VSN)), push_node("far", 8, 1, A, Some(VSN))]);
    assert!(one.state("peer").is_some() && one.state("far").is_none());
    // A member that is known cannot move out of the networks either, even when its name is free.
    one.packet(Message::Dead(Dead { incarnation: 1, node: "peer".into(), from: "peer".into() }));
    one.packet(Message::Alive(alive("peer", 8, 2)));
    assert_eq!(one.state("peer"), Some((MemberState::Left, 1)));
    assert_eq!(refused(&one, "alive_in_disallowed_network"), 2);
    assert_eq!(refused(&one, "alive_conflict"), 0);
}

#[test]
fn new_names_from_strangers_are_taken_at_a_bounded_rate_and_known_members_are_not_held_up() {
    let mut one = One::new();
    one.packet(Message::Alive(alive("known", 2, 1)));
    one.push_pull((1..NEW_NAMES_BURST + 50).map(numbered).collect());
    assert_eq!(one.swim.members().len() as u32, 1 + NEW_NAMES_BURST);
    assert_eq!(refused(&one, "too_many_new_members"), 50);
    one.packet(Message::Alive(Alive { meta: Bytes::from_static(b"changed"), ..alive("known", 2, 2) }));
    assert_eq!(one.state("known"), Some((A, 2)));
    // A second later there is room for a second's worth of names, those that were refused before among them.
    one.now = one.now + Duration::from_secs(1);
    one.push_pull((1..NEW_NAMES_BURST + 500).map(numbered).collect());
    assert_eq!(one.swim.members().len() as u32, 1 + NEW_NAMES_BURST + NEW_NAMES_PER_SECOND);
}

#[test]
fn a_node_that_joins_learns_a_cluster_of_any_size_at_once() {
    let mut one = One::new();
    one.swim.handle(one.now, Input::Join { id: 1, seeds: vec![addr(2)] });
    let Some(Output::NeedUserState { exchange, .. }) = one.outputs().pop() else { panic!() };
    one.swim.handle(one.now, Input::UserState { exchange, bytes: Bytes::new() });
    let nodes: Vec<_> = (0..3 * NEW_NAMES_BURST).map(numbered).collect();
    let answer = StreamMessage::PushPull(PushPull { join: true, label: None, nodes, user_state: Bytes::new() });
    one.swim.handle(one.now, Input::StreamReply { exchange, result: Ok(Some(answer)) });
    assert_eq!(one.swim.members().len() as u32, 1 + 3 * NEW_NAMES_BURST);
    assert_eq!(refused(&one, "too_many_new_members"), 0);
}

#[test]
fn a_full_table_forgets_those_that_are_dead_for_longest_and_never_a_living_member() {
    let mut one = One::with(SwimConfig { max_members: 6, ..quiet() });
    for name in ["a", "b", "c", "d", "e"] {
        one.packet(Message::Alive(alive(name, 2, 1)));
    }
    assert!(events(&one.packet(Message::Alive(alive("late", 3, 1)))).is_empty(), "full of living members");
    assert_eq!(refused(&one, "too_many_members"), 1);
    for name in ["c", "a", "e"] {
        one.now = one.now + Duration::from_secs(2);
        one.packet(Message::Dead(Dead { incarnation: 1, node: name.into(), from: "b".into() }));
    }
    assert_eq!(events(&one.packet(Message::Alive(alive("late", 3, 1)))), ["joined"]);
    let mut names: Vec<String> = one.swim.members().iter().map(|m| m.name.to_string()).collect();
    names.sort();
    assert_eq!(names, ["b", "d", "e", "late", "me"], "c and a were the older half of three");
    assert_eq!(one.swim.stats().members_evicted, 2);
}

#[test]
fn an_incarnation_that_jumps_is_counted_however_it_comes() {
    let mut one = One::new();
    one.packet(Message::Alive(alive("n", 2, 70_000)));
    assert_eq!(one.swim.stats().incarnation_jumps, 0, "the first that is heard of a member may be anything");
    one.packet(Message::Alive(alive("n", 2, 70_000 + 65_536)));
    assert_eq!(one.swim.stats().incarnation_jumps, 0);
    one.packet(Message::Alive(alive("n", 2, 300_000)));
    one.packet(Message::Suspect(Suspect { incarnation: 500_000, node: "n".into(), from: "x".into() }));
    one.packet(Message::Dead(Dead { incarnation: u32::MAX, node: "n".into(), from: "x".into() }));
    assert_eq!(one.swim.stats().incarnation_jumps, 3);
}

#[test]
fn a_conflict_about_a_name_is_told_once_a_minute_and_always_counted() {
    let mut one = One::new();
    for i in 0..100 {
        one.packet(Message::Alive(alive(&format!("n{i}"), 2, 1)));
    }
    let conflict = |one: &mut One, i: u32| events(&one.packet(Message::Alive(alive(&format!("n{i}"), 3, 2)))).len();
    assert_eq!((0..500).map(|_| conflict(&mut one, 7)).sum::<usize>(), 1);
    assert_eq!((0..100).map(|i| conflict(&mut one, i)).sum::<usize>(), 63, "64 names in a minute");
    assert_eq!(refused(&one, "alive_conflict"), 600);
    one.tick(Duration::from_secs(60));
    assert_eq!([conflict(&mut one, 7), conflict(&mut one, 7), conflict(&mut one, 99)], [1, 0, 1]);
}

/// Begins a join with one seed that is sent our state and has not answered.
fn joining() -> (One, ExchangeId) {
    let mut one = One::new();
    one.swim.handle(one.now, Input::Join { id: 1, seeds: vec![addr(2)] });
    let Some(Output::NeedUserState { exchange, .. }) = one.outputs().pop() else { panic!() };
    one.swim.handle(one.now, Input::UserState { exchange, bytes: Bytes::new() });
    assert!(matches!(one.outputs().as_slice(), [Output::OpenStream { .. }]));
    (one, exchange)
}

fn goodbyes(outputs: &[Output], to: SocketAddr) -> usize {
    let goodbye = encode_message(&Message::Dead(Dead { incarnation: 1, node: "me".into(), from: "me".into() }));
    outputs.iter().filter(|o| matches!(o, Output::SendPacket { to: t, bytes } if *t == to && bytes == &goodbye)).count()
}

#[test]
fn a_node_that_leaves_while_it_joins_says_goodbye_to_the_seed_whether_that_answers_or_not() {
    let answer = StreamMessage::PushPull(PushPull {
        label: None,
        join: true,
        nodes: vec![push_node("seed", 2, 1, A, Some(VSN))],
        user_state: Bytes::new(),
    });
    for (result, known) in [(Ok(Some(answer)), true), (Err("timed out".to_owned()), false)] {
        let (mut one, exchange) = joining();
        one.swim.handle(one.now, Input::Leave);
        let outputs = one.outputs();
        assert!(!outputs.contains(&Output::LeaveDone), "the seed may have taken us in: {outputs:?}");
        one.swim.handle(one.now, Input::StreamReply { exchange, result });
        let outputs = one.outputs();
        assert_eq!(goodbyes(&outputs, addr(2)), 1, "{outputs:?}");
        assert_eq!(one.state("seed").is_some(), known);
        assert!(outputs.iter().any(|o| matches!(o, Output::JoinDone { .. })));
        // With nobody else to tell it is over; with a cluster it is when the goodbye was gossiped.
        assert_eq!(outputs.contains(&Output::LeaveDone), !known);
    }
}

#[test]
fn a_node_that_leaves_waits_no_longer_than_its_leave_timeout_and_contacts_nobody_new() {
    let mut one = One::with(SwimConfig { leave_timeout: Duration::from_secs(3), ..quiet() });
    one.swim.handle(one.now, Input::Join { id: 1, seeds: (2..9).map(addr).collect() });
    let asked: Vec<_> = one.outputs();
    let ids: Vec<_> = asked
        .iter()
        .filter_map(|o| if let Output::NeedUserState { exchange, .. } = o { Some(*exchange) } else { None })
        .collect();
    assert_eq!(ids.len(), 3, "three at a time");
    // One was sent, two still wait for the store's state.
    one.swim.handle(one.now, Input::UserState { exchange: ids[0], bytes: Bytes::new() });
    one.outputs();
    one.swim.handle(one.now, Input::Leave);
    for id in &ids[1..] {
        one.swim.handle(one.now, Input::UserState { exchange: *id, bytes: Bytes::new() });
    }
    let outputs = one.outputs();
    let contacts = outputs.iter().filter(|o| matches!(o, Output::OpenStream { .. } | Output::NeedUserState { .. }));
    assert_eq!(contacts.count(), 0, "{outputs:?}");
    assert!(!one.tick(Duration::from_millis(2_999)).contains(&Output::LeaveDone));
    assert!(one.tick(Duration::from_millis(1)).contains(&Output::LeaveDone));
}

#[test]
fn a_cluster_learns_at_once_that_a_node_left_in_the_middle_of_its_join() {
    for seed in 0..20 {
        let mut net = Net::cluster(seed, 4, &SwimConfig::lan());
        let joiner = net.add("joiner", 7777, &SwimConfig::lan());
        let to = net.nodes[0].addr;
        net.input(joiner, Input::Join { id: 1, seeds: vec![to] });
        // Its request is on the way, and nobody knows it yet.
        net.input(joiner, Input::Leave);
        net.until(Duration::from_secs(4), "the joiner has left", |net| net.nodes[joiner].leaves == 1);
        net.nodes[joiner].up = false;
        net.until(Duration::from_secs(4), "all have heard the goodbye", |net| {
            net.views("joiner").iter().all(|state| matches!(state, None | Some(MemberState::Left)))
        });
        for node in &net.nodes[..4] {
            let failed = node.events.iter().any(|(_, event)| matches!(event, MemberEvent::Suspected(_)));
            assert!(!failed, "seed {seed}: nobody had to find out");
        }
    }
}

#[test]
fn a_state_that_no_peer_would_take_is_left_out_and_counted_and_the_members_are_sent() {
    let key = Key::new(&[7; 16]).unwrap();
    let encrypted = PacketOptions { keyring: Keyring::new([key]).unwrap(), ..PacketOptions::default() };
    // With encryption the members count too: what alone would just fit does not fit with them.
    for (packet, len, sent) in [
        (PacketOptions::default(), MAX_USER_STATE, true),
        (PacketOptions::default(), MAX_USER_STATE + 1, false),
        (encrypted.clone(), MAX_USER_STATE, false),
        (encrypted, 1000, true),
    ] {
        let mut one = One::with(SwimConfig { packet: packet.clone(), ..quiet() });
        one.swim.handle(one.now, Input::Join { id: 1, seeds: vec![addr(2)] });
        let Some(Output::NeedUserState { exchange, .. }) = one.outputs().pop() else { panic!() };
        one.swim.handle(one.now, Input::UserState { exchange, bytes: Bytes::from(vec![b's'; len]) });
        let Some(Output::OpenStream { bytes, .. }) = one.outputs().pop() else { panic!() };
        let mut peer = StreamDecoder::new(&packet, StreamSide::Accepted);
        peer.feed(&bytes).unwrap();
        let Some(StreamMessage::PushPull(arrived)) = peer.poll().unwrap() else { panic!("{len}: a whole push/pull") };
        assert_eq!(arrived.nodes.len(), 1);
        assert_eq!(arrived.user_state.len(), if sent { len } else { 0 });
        assert_eq!(refused(&one, "own_user_state_too_long"), u64::from(!sent));
    }
}
