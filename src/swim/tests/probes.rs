//! Pings, relayed pings, and what a probe does when they fail.

use std::time::Duration;

use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::rules::{One, addr, alive};
use crate::swim::{Input, Output, SwimConfig};
use crate::wire::message::{Ack, IndirectPing, MemberState, Message, Nack, Ping, Source, StreamMessage, WireIp};
use crate::wire::{PacketOptions, decode_packet, encode_message, encode_packets};

fn sent(outputs: &[Output]) -> Vec<(std::net::SocketAddr, Vec<Message>)> {
    let decode = |bytes| decode_packet(bytes, &PacketOptions::default()).unwrap().messages;
    outputs
        .iter()
        .filter_map(|o| match o {
            Output::SendPacket { to, bytes } => Some((*to, decode(bytes))),
            _ => None,
        })
        .collect()
}

fn source(host: u8) -> Option<Source> {
    Some(Source { addr: WireIp::from(addr(host).ip()), port: 7946, node: format!("n{host}").as_str().into() })
}

fn ack(seq_no: u32) -> Message {
    Message::Ack(Ack { seq_no, payload: Bytes::new() })
}

/// Only probes are periodic.
fn prober(members: std::ops::Range<u8>) -> One {
    let zero = Duration::ZERO;
    let mut one = One::with(SwimConfig {
        gossip_interval: zero,
        push_pull_interval: zero,
        rejoin_interval: zero,
        ..SwimConfig::lan()
    });
    for host in members {
        one.packet(Message::Alive(alive(&format!("n{host}"), host, 1)));
    }
    one
}

/// Runs to the next ping, and returns its sequence number and target.
fn next_ping(one: &mut One) -> (u32, u8) {
    loop {
        let next = one.swim.next_deadline().unwrap();
        let outputs = one.tick(next.saturating_duration_since(one.now.mono));
        for (_, messages) in sent(&outputs) {
            if let Message::Ping(ping) = &messages[0] {
                return (ping.seq_no, ping.node.as_str()[1..].parse().unwrap());
            }
        }
    }
}

#[test]
fn three_pings_in_one_compound_get_three_acks() {
    let mut one = One::new();
    let pings: Vec<Bytes> = (1..=3)
        .map(|seq_no| encode_message(&Message::Ping(Ping { seq_no, node: "me".into(), source: None })))
        .collect();
    let bytes = encode_packets(&pings, &PacketOptions::default(), true, &mut StdRng::seed_from_u64(1)).remove(0);
    one.swim.handle(one.now, Input::Packet { from: addr(9), bytes });
    let expected: Vec<_> = (1..=3).map(|seq_no| (addr(9), vec![ack(seq_no)])).collect();
    assert_eq!(sent(&one.outputs()), expected);
}

#[test]
fn a_ping_for_somebody_else_is_not_answered() {
    let mut one = prober(7..8);
    assert!(one.packet(Message::Ping(Ping { seq_no: 1, node: "you".into(), source: None })).is_empty());
    let answered = one.packet(Message::Ping(Ping { seq_no: 1, node: "".into(), source: source(7) }));
    assert_eq!(
        sent(&answered).into_iter().map(|(to, messages)| (to, messages[0].clone())).collect::<Vec<_>>(),
        [(addr(7), ack(1))],
        "an empty name is anybody, and the source is where to answer"
    );
}

#[test]
fn a_ping_cannot_make_us_send_to_a_third_party() {
    let mut one = prober(2..3);
    let mut answered = |node: &str, named: std::net::SocketAddr| {
        let source = Source { addr: WireIp::from(named.ip()), port: named.port(), node: node.into() };
        let ping = Message::Ping(Ping { seq_no: 1, node: "me".into(), source: Some(source) });
        sent(&one.packet(ping))[0].0
    };
    assert_eq!(answered("n8", addr(8)), addr(9), "a stranger names a victim: the answer goes to the sender");
    assert_eq!(answered("n2", addr(8)), addr(9), "a member's name with a victim's address");
    assert_eq!(answered("n2", addr(2)), addr(2), "a member, whatever its packet's source address was");
    let other_port = std::net::SocketAddr::new(addr(9).ip(), 1234);
    assert_eq!(answered("new", other_port), other_port, "the sender's own address, with the port at which it listens");
}

#[test]
fn a_ping_is_relayed_to_members_only_and_refused_with_a_nack() {
    let mut one = prober(2..3);
    let request = |node: &str, target, nack| {
        let target = WireIp::from(addr(target).ip());
        Message::IndirectPing(IndirectPing {
            seq_no: 7,
            target,
            port: 7946,
            node: node.into(),
            nack,
            source: source(2),
        })
    };
    let nack = vec![(addr(2), vec![Message::Nack(Nack { seq_no: 7 })])];
    assert_eq!(sent(&one.packet(request("n6", 6, true))), nack, "nobody we know");
    assert_eq!(sent(&one.packet(request("n2", 6, true))), nack, "a member's name, another's address");
    assert!(sent(&one.packet(request("n6", 6, false))).is_empty(), "old peers know no nack");
    assert_eq!(one.swim.stats().messages_refused["indirect_ping_to_stranger"], 3);
    assert_eq!(sent(&one.packet(request("n2", 2, true)))[0].0, addr(2), "a member");
}

#[test]
fn an_ack_to_a_member_carries_news_and_one_to_a_stranger_does_not() {
    let mut one = One::new();
    one.packet(Message::Alive(alive("n2", 2, 1)));
    let queued = one.swim.queued_broadcasts();
    let ping = |host| Message::Ping(Ping { seq_no: 1, node: "me".into(), source: source(host) });
    assert_eq!(sent(&one.packet(ping(8)))[0].1.len(), 1);
    assert_eq!(sent(&one.packet(ping(2)))[0].1.len(), 1 + queued);
}

#[test]
fn a_relayed_ping_passes_the_ack_on_with_the_requesters_number() {
    let mut one = One::new();
    one.packet(Message::Alive(alive("n2", 2, 1)));
    one.packet(Message::Alive(alive("n3", 3, 1)));
    let request = IndirectPing {
        seq_no: 77,
        target: WireIp::from(addr(3).ip()),
        port: 7946,
        node: "n3".into(),
        nack: true,
        source: source(2),
    };
    let outputs = one.packet(Message::IndirectPing(request));
    let pings = sent(&outputs);
    let [(to, messages)] = pings.as_slice() else { panic!("{pings:?}") };
    assert_eq!(*to, addr(3));
    let Message::Ping(ping) = &messages[0] else { panic!("{messages:?}") };
    let seq_no = ping.seq_no;
    // At four fifths of the probe timeout the requester hears that there is no answer yet ...
    assert!(sent(&one.tick(Duration::from_millis(399))).is_empty());
    let nack = sent(&one.tick(Duration::from_millis(1)));
    assert_eq!(nack, [(addr(2), vec![Message::Nack(Nack { seq_no: 77 })])]);
    // ... and one that still comes in time is passed on, once.
    assert_eq!(sent(&one.packet(ack(seq_no))), [(addr(2), vec![ack(77)])]);
    assert!(one.packet(ack(seq_no)).is_empty());
}

#[test]
fn a_relayed_ping_is_forgotten_after_the_probe_timeout() {
    let mut one = One::new();
    one.packet(Message::Alive(alive("n3", 3, 1)));
    let target = WireIp::from(addr(3).ip());
    let request = IndirectPing { seq_no: 7, target, port: 0, node: "n3".into(), nack: false, source: None };
    let outputs = one.packet(Message::IndirectPing(request));
    let Message::Ping(ping) = sent(&outputs)[0].1[0].clone() else { panic!() };
    assert_eq!(sent(&outputs)[0].0, addr(3), "port 0 is our own port");
    assert!(one.tick(Duration::from_millis(500)).is_empty(), "no nack was asked for");
    assert!(one.packet(ack(ping.seq_no)).is_empty());
}

#[test]
fn an_ack_ends_a_probe_and_improves_local_health() {
    let mut one = prober(2..3);
    one.packet(Message::Suspect(crate::wire::message::Suspect { incarnation: 1, node: "me".into(), from: "x".into() }));
    assert_eq!(one.swim.health_score(), 1);
    let (seq_no, _) = next_ping(&mut one);
    one.packet(ack(seq_no));
    assert_eq!(one.swim.health_score(), 0);
    assert_eq!(one.swim.stats().probes_failed, 0);
}

#[test]
fn a_silent_member_is_asked_for_by_others_and_by_stream_and_then_suspected() {
    let mut one = prober(2..8);
    let (seq_no, target) = next_ping(&mut one);
    let outputs = one.tick(Duration::from_millis(500));
    let mut asked = 0;
    for (_, messages) in sent(&outputs) {
        let Message::IndirectPing(request) = &messages[0] else { panic!("{messages:?}") };
        assert_eq!((request.seq_no, request.target, request.nack), (seq_no, WireIp::from(addr(target).ip()), true));
        asked += 1;
    }
    assert_eq!(asked, 3);
    let streams: Vec<_> = outputs.iter().filter(|o| matches!(o, Output::OpenStream { .. })).collect();
    let [Output::OpenStream { to, expect_reply: true, timeout, .. }] = streams.as_slice() else {
        panic!("{streams:?}")
    };
    assert_eq!((*to, *timeout), (addr(target), Duration::from_millis(500)));
    // All three helpers say that they cannot reach it: then it is not us.
    for _ in 0..3 {
        one.packet(Message::Nack(Nack { seq_no }));
    }
    one.tick(Duration::from_millis(500));
    assert_eq!(one.state(&format!("n{target}")), Some((MemberState::Suspect, 1)));
    assert_eq!(one.swim.health_score(), 0);
}

#[test]
fn helpers_that_stay_silent_lower_local_health() {
    let mut one = prober(2..8);
    let (seq_no, _) = next_ping(&mut one);
    one.tick(Duration::from_millis(500));
    one.packet(Message::Nack(Nack { seq_no }));
    // The next probe starts as this one ends. It has three intervals.
    let outputs = one.tick(Duration::from_millis(500));
    assert_eq!(one.swim.health_score(), 2);
    let pings = sent(&outputs);
    let Message::Ping(ping) = &pings[0].1[0] else { panic!("{pings:?}") };
    let target = &ping.node.as_str()[1..];
    one.tick(Duration::from_millis(2_900));
    assert_eq!(one.state(&format!("n{target}")), Some((MemberState::Alive, 1)));
    one.tick(Duration::from_millis(100));
    assert_eq!(one.state(&format!("n{target}")), Some((MemberState::Suspect, 1)));
    assert!(one.swim.stats().probes_degraded > 0);
}

#[test]
fn without_helpers_a_failed_probe_costs_one_point() {
    let mut one = prober(2..3);
    next_ping(&mut one);
    one.tick(Duration::from_millis(500));
    one.tick(Duration::from_millis(500));
    assert_eq!(one.state("n2"), Some((MemberState::Suspect, 1)));
    assert_eq!(one.swim.health_score(), 1);
}

#[test]
fn only_the_right_answer_by_stream_saves_a_member() {
    for (answer, saved) in [(0, true), (1, false)] {
        let mut one = prober(2..3);
        let (seq_no, _) = next_ping(&mut one);
        let outputs = one.tick(Duration::from_millis(500));
        let exchange = outputs
            .iter()
            .find_map(|o| match o {
                Output::OpenStream { exchange, .. } => Some(*exchange),
                _ => None,
            })
            .unwrap();
        let reply = StreamMessage::Ack(Ack { seq_no: seq_no.wrapping_add(answer), payload: Bytes::new() });
        one.swim.handle(one.now, Input::StreamReply { exchange, result: Ok(Some(reply)) });
        one.tick(Duration::from_millis(500));
        let state = if saved { MemberState::Alive } else { MemberState::Suspect };
        assert_eq!(one.state("n2"), Some((state, 1)));
    }
}

#[test]
fn a_suspect_is_told_when_it_is_probed() {
    let mut one = prober(2..3);
    let suspicion = crate::wire::message::Suspect { incarnation: 1, node: "n2".into(), from: "x".into() };
    one.packet(Message::Suspect(suspicion));
    let next = loop {
        let next = one.swim.next_deadline().unwrap();
        let outputs = one.tick(next.saturating_duration_since(one.now.mono));
        if let Some((_, messages)) = sent(&outputs).into_iter().next() {
            break messages;
        }
    };
    assert!(matches!(&next[..], [Message::Ping(_), Message::Suspect(s)] if s.from.as_str() == "me"), "{next:?}");
}

#[test]
fn every_member_is_probed_before_any_is_probed_twice_in_a_row_of_rounds() {
    let mut one = prober(2..12);
    let mut last = std::collections::BTreeMap::new();
    for round in 0..200_usize {
        let (seq_no, target) = next_ping(&mut one);
        one.packet(ack(seq_no));
        if let Some(before) = last.insert(target, round) {
            assert!(round - before < 2 * 10, "{} probes between two of n{target}", round - before);
        }
    }
    assert_eq!(last.len(), 10);
}
