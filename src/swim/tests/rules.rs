//! Single messages against one core.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::{SmallRng, StdRng};

use crate::clock::Now;
use crate::swim::admission::Origin;
use crate::swim::{Durable, ExchangeId, Input, LocalNode, Member, MemberEvent, Output, Swim, SwimConfig};
use crate::wire::message::{
    Alive, Dead, MemberState, Message, NodeName, PushNode, PushPull, StreamMessage, Suspect, VSN, Vsn, WireIp,
};
use crate::wire::{Label, PacketOptions, decode_packet, encode_message};

pub(super) struct One {
    pub(super) swim: Swim,
    pub(super) now: Now,
}

pub(super) fn addr(host: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, host], 7946))
}

pub(super) fn alive(node: &str, host: u8, incarnation: u32) -> Alive {
    Alive {
        incarnation,
        node: node.into(),
        addr: WireIp::from(addr(host).ip()),
        port: 7946,
        meta: Bytes::new(),
        vsn: Some(VSN),
    }
}

impl One {
    /// A node "me" at host 1. Nothing is periodic, so only messages make it do anything.
    pub(super) fn new() -> Self {
        let zero = Duration::ZERO;
        Self::with(SwimConfig {
            probe_interval: zero,
            gossip_interval: zero,
            push_pull_interval: zero,
            ..SwimConfig::lan()
        })
    }

    pub(super) fn with(config: SwimConfig) -> Self {
        let now = Now::read();
        let local = LocalNode { name: "me".into(), addr: addr(1), meta: Bytes::new() };
        let mut one =
            Self { swim: Swim::new(config, local, SmallRng::seed_from_u64(1), StdRng::seed_from_u64(1), now), now };
        one.outputs();
        one
    }

    pub(super) fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.swim.poll_output()).collect()
    }

    pub(super) fn packet(&mut self, message: Message) -> Vec<Output> {
        let bytes = encode_message(&message);
        self.swim.handle(self.now, Input::Packet { from: addr(9), bytes });
        self.outputs()
    }

    pub(super) fn tick(&mut self, after: Duration) -> Vec<Output> {
        self.now = self.now + after;
        self.swim.handle(self.now, Input::Tick);
        self.outputs()
    }

    pub(super) fn member(&self, name: &str) -> Option<std::sync::Arc<Member>> {
        self.swim.members().into_iter().find(|m| m.name.as_str() == name)
    }

    pub(super) fn state(&self, name: &str) -> Option<(MemberState, u32)> {
        self.member(name).map(|m| (m.state, m.incarnation))
    }

    fn alive(&mut self, host: u8, incarnation: u32) -> Vec<Output> {
        self.packet(Message::Alive(alive("n", host, incarnation)))
    }

    fn suspect(&mut self, node: &str, from: &str, incarnation: u32) -> Vec<Output> {
        self.packet(Message::Suspect(Suspect { incarnation, node: node.into(), from: from.into() }))
    }

    fn dead(&mut self, node: &str, from: &str, incarnation: u32) -> Vec<Output> {
        self.packet(Message::Dead(Dead { incarnation, node: node.into(), from: from.into() }))
    }

    pub(super) fn push_pull(&mut self, nodes: Vec<PushNode>) -> Vec<Output> {
        let exchange = ExchangeId(1 << 63 | 5);
        let message =
            StreamMessage::PushPull(PushPull { join: true, label: None, nodes, user_state: Bytes::from_static(b"kv") });
        self.swim.handle(self.now, Input::StreamRequest { exchange, from: addr(2), label: Label::NONE, message });
        self.swim.handle(self.now, Input::UserState { exchange, bytes: Bytes::new() });
        self.outputs()
    }
}

pub(super) fn push_node(name: &str, host: u8, incarnation: u32, state: MemberState, vsn: Option<Vsn>) -> PushNode {
    let Alive { node, addr, port, meta, .. } = alive(name, host, incarnation);
    PushNode { name: node, addr, port, meta, incarnation, state: Some(state), vsn }
}

pub(super) fn events(outputs: &[Output]) -> Vec<&'static str> {
    outputs
        .iter()
        .filter_map(|output| match output {
            Output::Event(MemberEvent::Joined(_)) => Some("joined"),
            Output::Event(MemberEvent::Updated(_)) => Some("updated"),
            Output::Event(MemberEvent::Suspected(_)) => Some("suspected"),
            Output::Event(MemberEvent::Recovered(_)) => Some("recovered"),
            Output::Event(MemberEvent::Failed(_)) => Some("failed"),
            Output::Event(MemberEvent::Left(_)) => Some("left"),
            Output::Event(MemberEvent::Conflict { .. }) => Some("conflict"),
            _ => None,
        })
        .collect()
}

use MemberState::{Dead as D, Left as L, Suspect as S};
const A: MemberState = MemberState::Alive;

#[test]
fn a_new_member_joins_once() {
    let mut one = One::new();
    assert_eq!(events(&one.alive(2, 3)), ["joined"]);
    assert!(events(&one.alive(2, 3)).is_empty());
    assert_eq!(one.state("n"), Some((A, 3)));
}

#[test]
fn announcements_that_cannot_be_true_never_enter_the_table() {
    let mut one = One::new();
    let base = alive("n", 2, 1);
    let bad = [
        Alive { vsn: None, ..base.clone() },
        Alive { vsn: Some([0; 6]), ..base.clone() },
        Alive { vsn: Some([5, 1, 2, 0, 0, 0]), ..base.clone() },
        Alive { vsn: Some([3, 5, 3, 0, 0, 0]), ..base.clone() },
        Alive { incarnation: 0, ..base.clone() },
        Alive { addr: WireIp::NONE, ..base.clone() },
        Alive { node: NodeName::from(""), ..base },
    ];
    for alive in bad {
        assert!(events(&one.packet(Message::Alive(alive.clone()))).is_empty(), "{alive:?}");
    }
    assert_eq!(one.swim.members().len(), 1);
    assert_eq!(one.swim.stats().messages_refused.values().sum::<u64>(), 7);
}

#[test]
fn only_a_higher_incarnation_clears_a_suspicion() {
    let mut one = One::new();
    one.alive(2, 1);
    assert_eq!(events(&one.suspect("n", "x", 1)), ["suspected"]);
    assert!(events(&one.alive(2, 1)).is_empty());
    assert_eq!(one.state("n"), Some((S, 1)));
    assert_eq!(events(&one.alive(2, 2)), ["recovered"]);
    assert!(one.suspect("n", "x", 1).is_empty(), "an old suspicion");
    assert_eq!(one.state("n"), Some((A, 2)));
}

#[test]
fn a_changed_meta_is_an_update() {
    let mut one = One::new();
    one.alive(2, 1);
    let changed = Alive { meta: Bytes::from_static(b"new"), ..alive("n", 2, 2) };
    assert_eq!(events(&one.packet(Message::Alive(changed))), ["updated"]);
}

#[test]
fn a_suspect_dies_when_its_time_is_over_and_sooner_when_others_confirm() {
    for (confirmations, seconds) in [(0, 24), (1, 11), (2, 4)] {
        let mut one = One::new();
        for host in 2..7 {
            one.packet(Message::Alive(alive(&format!("n{host}"), host, 1)));
        }
        one.suspect("n2", "n3", 1);
        one.suspect("n2", "n3", 1);
        for i in 0..confirmations {
            one.suspect("n2", &format!("n{}", 4 + i), 1);
        }
        assert_eq!(dies_after(&mut one, "n2").as_secs(), seconds, "{confirmations} confirmations");
    }
}

/// How long it takes until `name` is declared dead, if nothing else happens.
fn dies_after(one: &mut One, name: &str) -> Duration {
    let start = one.now;
    loop {
        let next = one.swim.next_deadline().unwrap();
        let outputs = one.tick(next.saturating_duration_since(one.now.mono));
        if outputs.iter().any(|o| matches!(o, Output::Event(MemberEvent::Failed(m)) if m.name.as_str() == name)) {
            return one.now.mono - start.mono;
        }
    }
}

#[test]
fn an_accusation_with_a_higher_incarnation_confirms_a_suspicion_and_does_not_restart_it() {
    let mut one = One::new();
    for host in 2..7 {
        one.packet(Message::Alive(alive(&format!("n{host}"), host, 1)));
    }
    one.suspect("n2", "n3", 1);
    for incarnation in 2..20 {
        assert!(one.tick(Duration::from_secs(1)).is_empty());
        // The same accuser, which raises it each second: no news.
        one.suspect("n2", "n3", incarnation);
    }
    assert_eq!(one.state("n2"), Some((S, 1)), "what it announces next clears it, however high that was raised");
    assert_eq!(dies_after(&mut one, "n2").as_secs(), 6, "24 s after the first");

    one.suspect("n4", "n3", 1);
    one.suspect("n4", "n5", 9);
    assert_eq!(dies_after(&mut one, "n4").as_secs(), 11);
}

#[test]
fn however_many_suspects_come_they_leave_one_timer_a_member() {
    let mut one = One::new();
    one.alive(2, 1);
    // One push/pull that names a member as often as it may, each time higher.
    one.push_pull((1..=65_536).map(|incarnation| push_node("n", 2, incarnation, S, Some(VSN))).collect());
    assert_eq!(one.swim.timers.suspicions(), 1);
    // A forger that has its victim suspected and recovered in turns.
    for incarnation in 2..100_000 {
        let from = "x".into();
        one.swim.alive(one.now.mono, alive("n", 2, incarnation), Origin::Request);
        one.swim.suspect(one.now.mono, Suspect { incarnation, node: "n".into(), from });
        one.outputs();
        if incarnation % 10_000 == 0 {
            assert_eq!(one.swim.timers.suspicions(), 1);
        }
    }
    one.dead("n", "x", 100_000);
    assert_eq!(one.swim.timers.suspicions(), 0);
}

#[test]
fn old_and_repeated_deaths_change_nothing_and_higher_evidence_is_kept() {
    let mut one = One::new();
    one.alive(2, 5);
    assert!(events(&one.dead("n", "x", 4)).is_empty());
    assert_eq!(events(&one.dead("n", "x", 5)), ["failed"]);
    assert!(events(&one.dead("n", "x", 5)).is_empty());
    assert!(events(&one.dead("n", "x", 10)).is_empty());
    assert_eq!(one.state("n"), Some((D, 10)));
    assert!(events(&one.alive(2, 7)).is_empty(), "memberlist would revive it");
    assert_eq!(events(&one.alive(2, 11)), ["joined"]);
}

#[test]
fn a_death_said_by_its_subject_is_a_leave_and_frees_the_address_at_once() {
    let mut one = One::new();
    one.alive(2, 5);
    assert_eq!(events(&one.alive(3, 6)), ["conflict"]);
    assert_eq!(events(&one.dead("n", "n", 5)), ["left"]);
    assert_eq!(one.state("n"), Some((L, 5)));
    assert_eq!(events(&one.alive(3, 1)), ["joined"], "a new process at a new address counts from 1 again");
    assert_eq!(one.member("n").unwrap().socket_addr(), Some(addr(3)));
}

#[test]
fn a_dead_name_moves_only_after_the_reclaim_time() {
    let mut one = One::new();
    one.alive(2, 5);
    one.dead("n", "x", 5);
    assert_eq!(events(&one.alive(3, 1)), ["conflict"]);
    one.tick(Duration::from_secs(11));
    assert_eq!(events(&one.alive(3, 1)), ["joined"]);
}

#[test]
fn both_forms_of_an_ipv4_address_are_the_same_member() {
    let mut one = One::new();
    one.alive(2, 1);
    let mapped = WireIp::from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 10, 0, 0, 2]).unwrap();
    assert!(events(&one.packet(Message::Alive(Alive { addr: mapped, ..alive("n", 2, 2) }))).is_empty());
    assert_eq!(one.member("n").unwrap().addr, mapped, "kept as announced");
}

#[test]
fn accusations_against_this_node_are_refuted() {
    let mut one = One::new();
    one.suspect("me", "x", 1);
    assert_eq!(one.state("me"), Some((A, 2)));
    one.dead("me", "x", 9);
    assert_eq!(one.state("me"), Some((A, 10)));
    one.dead("me", "x", 3);
    assert_eq!(one.state("me"), Some((A, 10)), "an old accusation raises nothing");
    one.packet(Message::Alive(Alive { meta: Bytes::from_static(b"forged"), ..alive("me", 1, 10) }));
    assert_eq!(one.state("me"), Some((A, 11)), "somebody else spoke in our name");
    assert_eq!(one.swim.health_score(), 3);
    assert_eq!(one.swim.stats().refutations, 3);
}

#[test]
fn an_old_accusation_shows_that_the_refutation_was_not_heard_so_it_is_repeated() {
    let gossip_interval = Duration::from_millis(200);
    let mut one = One::with(SwimConfig { gossip_interval, push_pull_interval: Duration::ZERO, ..SwimConfig::lan() });
    one.alive(2, 1);
    one.suspect("me", "n", 1);
    for _ in 0..30 {
        one.tick(gossip_interval);
    }
    assert_eq!(one.swim.queued_broadcasts(), 0);
    one.suspect("me", "n", 1);
    assert_eq!(one.swim.queued_broadcasts(), 1);
    assert_eq!(one.state("me"), Some((A, 2)));
}

#[test]
fn an_incarnation_never_wraps() {
    let mut one = One::new();
    one.dead("me", "x", u32::MAX);
    assert_eq!(one.state("me"), Some((A, u32::MAX)));
    one.suspect("me", "x", u32::MAX);
    one.dead("me", "x", u32::MAX);
    assert_eq!(one.state("me"), Some((A, u32::MAX)));
    one.swim.handle(one.now, Input::UpdateMeta(Bytes::from_static(b"m")));
    assert_eq!(one.state("me"), Some((A, u32::MAX)));
    assert!(one.swim.stats().refutations_exhausted > 0);
    one.alive(2, u32::MAX);
    one.dead("n", "x", u32::MAX);
    assert_eq!(one.state("n"), Some((D, u32::MAX)));
}

#[test]
fn a_member_that_announces_itself_too_low_is_told_why_it_is_not_believed() {
    let mut one = One::with(SwimConfig {
        gossip_interval: Duration::ZERO,
        push_pull_interval: Duration::ZERO,
        ..SwimConfig::lan()
    });
    one.alive(2, 1);
    one.dead("n", "x", 100);
    let outputs = one.alive(2, 1);
    let [Output::SendPacket { to, bytes }] = outputs.as_slice() else { panic!("{outputs:?}") };
    assert_eq!(*to, addr(2));
    let told = decode_packet(bytes, &PacketOptions::default()).unwrap();
    assert_eq!(told.messages, [Message::Dead(Dead { incarnation: 100, node: "n".into(), from: "me".into() })]);
    assert!(one.alive(2, 1).is_empty(), "but not for every packet");
}

#[test]
fn push_pull_answers_before_it_merges_and_downgrades_death_to_suspicion() {
    let mut one = One::new();
    one.alive(3, 1);
    let nodes = vec![
        push_node("peer", 2, 1, A, Some(VSN)),
        push_node("n", 3, 1, D, Some(VSN)),
        push_node("unknown", 4, 1, D, Some(VSN)),
        push_node("gone", 5, 1, L, Some(VSN)),
    ];
    let outputs = one.push_pull(nodes);
    let respond = outputs.iter().position(|o| matches!(o, Output::RespondStream { bytes: Some(_), .. }));
    let joined = outputs.iter().position(|o| matches!(o, Output::Event(MemberEvent::Joined(_))));
    assert!(respond.unwrap() < joined.unwrap());
    assert_eq!(one.state("n"), Some((S, 1)));
    assert_eq!(one.state("unknown"), None);
    assert_eq!(one.state("gone"), None);
    assert!(outputs.contains(&Output::RemoteState { bytes: Bytes::from_static(b"kv"), join: true }));
}

#[test]
fn one_incompatible_entry_is_skipped_and_an_incompatible_peer_is_refused_whole() {
    let mut one = One::new();
    let serf = Some([1, 5, 2, 2, 5, 5]);
    one.push_pull(vec![
        push_node("peer", 2, 1, A, Some(VSN)),
        push_node("poison", 3, 1, A, Some([0; 6])),
        push_node("serf", 4, 1, A, serf),
        push_node("good", 5, 1, A, Some(VSN)),
    ]);
    let mut names: Vec<String> = one.swim.members().iter().map(|m| m.name.to_string()).collect();
    names.sort();
    assert_eq!(names, ["good", "me", "peer"]);

    let mut one = One::new();
    let outputs = one.push_pull(vec![push_node("peer", 2, 1, A, serf), push_node("good", 5, 1, A, Some(VSN))]);
    assert_eq!(one.swim.members().len(), 1);
    assert_eq!(one.swim.stats().merges_refused, 1);
    assert!(!outputs.iter().any(|o| matches!(o, Output::RemoteState { .. })));
}

#[test]
fn a_message_to_one_member_goes_by_packet_or_by_stream() {
    let mut one = One::new();
    one.alive(2, 1);
    for (len, by_packet) in [(1_000, true), (5_000, false)] {
        one.swim.handle(one.now, Input::SendUser { to: "n".into(), bytes: Bytes::from(vec![0; len]) });
        let outputs = one.outputs();
        assert_eq!(outputs.len(), 1);
        assert_eq!(matches!(outputs[0], Output::SendPacket { .. }), by_packet);
        assert_eq!(matches!(outputs[0], Output::OpenStream { expect_reply: false, .. }), !by_packet);
    }
    one.swim.handle(one.now, Input::SendUser { to: "nobody".into(), bytes: Bytes::from_static(b"x") });
    assert!(one.outputs().is_empty());
}

#[test]
fn a_meta_of_more_than_512_bytes_is_refused() {
    let mut one = One::new();
    one.swim.handle(one.now, Input::UpdateMeta(Bytes::from(vec![0; 513])));
    assert!(one.outputs().is_empty());
    one.swim.handle(one.now, Input::UpdateMeta(Bytes::from(vec![0; 512])));
    assert_eq!(events(&one.outputs()), ["updated"]);
    assert_eq!(one.state("me"), Some((A, 2)));
}

#[test]
fn a_core_that_takes_over_says_about_itself_what_was_said_last() {
    let mut one = One::new();
    one.swim.handle(one.now, Input::UpdateMeta(Bytes::from_static(b"second")));
    let durable = Durable { members: one.swim.members(), left: false, seeds: Vec::new() };
    let local = LocalNode { name: "me".into(), addr: addr(1), meta: Bytes::from_static(b"first") };
    let (rng, nonces) = (SmallRng::seed_from_u64(2), StdRng::seed_from_u64(2));
    one.swim = Swim::resume(SwimConfig::lan(), local, rng, nonces, one.now, durable);
    one.outputs();
    assert_eq!(one.member("me").unwrap().meta, "second");
    one.swim.handle(one.now, Input::UpdateMeta(Bytes::from_static(b"second")));
    assert!(events(&one.outputs()).is_empty() && one.state("me") == Some((A, 2)), "no news");
    one.swim.handle(one.now, Input::UpdateMeta(Bytes::from_static(b"first")));
    assert_eq!(events(&one.outputs()), ["updated"]);
}
