//! Whatever arrives, the core goes on, and never takes its own incarnation back.

use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::rules::{One, addr};
use crate::swim::{ExchangeId, Input, Output, SwimConfig};
use crate::wire::message::{
    Ack, Alive, Dead, IndirectPing, MemberState, Message, Nack, NodeName, Ping, PushNode, PushPull, Source,
    StreamMessage, Suspect, VSN, Vsn, WireIp,
};
use crate::wire::{Label, PacketOptions, encode_message, encode_packets};

fn name() -> impl Strategy<Value = NodeName> {
    prop_oneof![Just("me"), Just("a"), Just("b"), Just("c"), Just("")].prop_map(NodeName::from)
}

fn incarnation() -> impl Strategy<Value = u32> {
    prop_oneof![0..5_u32, Just(u32::MAX), Just(u32::MAX - 1), any::<u32>()]
}

fn ip() -> impl Strategy<Value = WireIp> {
    prop_oneof![
        4 => (1..5_u8).prop_map(|host| WireIp::from(addr(host).ip())),
        1 => Just(WireIp::NONE),
        1 => any::<[u8; 16]>().prop_map(|raw| WireIp::from_slice(&raw).unwrap()),
    ]
}

fn port() -> impl Strategy<Value = u16> {
    prop_oneof![4 => Just(7946_u16), 1 => Just(0), 1 => any::<u16>()]
}

fn vsn() -> impl Strategy<Value = Option<Vsn>> {
    prop_oneof![6 => Just(Some(VSN)), 1 => Just(None), 1 => any::<Vsn>().prop_map(Some)]
}

fn source() -> impl Strategy<Value = Option<Source>> {
    proptest::option::of((ip(), port(), name()).prop_map(|(addr, port, node)| Source { addr, port, node }))
}

fn message() -> impl Strategy<Value = Message> {
    let seq_no = prop_oneof![0..50_u32, any::<u32>()];
    prop_oneof![
        (seq_no.clone(), name(), source()).prop_map(|(seq_no, node, source)| Message::Ping(Ping {
            seq_no,
            node,
            source
        })),
        (seq_no.clone(), ip(), port(), name(), any::<bool>(), source()).prop_map(
            |(seq_no, target, port, node, nack, source)| {
                Message::IndirectPing(IndirectPing { seq_no, target, port, node, nack, source })
            }
        ),
        seq_no.clone().prop_map(|seq_no| Message::Ack(Ack { seq_no, payload: Bytes::new() })),
        seq_no.prop_map(|seq_no| Message::Nack(Nack { seq_no })),
        (incarnation(), name(), name()).prop_map(|(incarnation, node, from)| Message::Suspect(Suspect {
            incarnation,
            node,
            from
        })),
        (incarnation(), name(), name()).prop_map(|(incarnation, node, from)| Message::Dead(Dead {
            incarnation,
            node,
            from
        })),
        (incarnation(), name(), ip(), port(), vsn()).prop_map(|(incarnation, node, addr, port, vsn)| {
            Message::Alive(Alive { incarnation, node, addr, port, meta: Bytes::from_static(b"m"), vsn })
        }),
        proptest::collection::vec(any::<u8>(), 0..40).prop_map(|bytes| Message::User(bytes.into())),
    ]
}

fn push_node() -> impl Strategy<Value = PushNode> {
    let state = prop_oneof![
        Just(None),
        Just(Some(MemberState::Alive)),
        Just(Some(MemberState::Suspect)),
        Just(Some(MemberState::Dead)),
        Just(Some(MemberState::Left)),
    ];
    (name(), ip(), port(), incarnation(), state, vsn()).prop_map(|(name, addr, port, incarnation, state, vsn)| {
        PushNode { name, addr, port, meta: Bytes::new(), incarnation, state, vsn }
    })
}

#[derive(Clone, Debug)]
enum Step {
    Packet { messages: Vec<Message>, crc: bool, mutations: Vec<(usize, u8)> },
    PushPull { nodes: Vec<PushNode>, ours: bool },
    Wait(u64),
    Leave,
}

fn step() -> impl Strategy<Value = Step> {
    let mutations = proptest::collection::vec((any::<usize>(), any::<u8>()), 0..3);
    prop_oneof![
        12 => (proptest::collection::vec(message(), 1..5), any::<bool>(), mutations)
            .prop_map(|(messages, crc, mutations)| Step::Packet { messages, crc, mutations }),
        3 => (proptest::collection::vec(push_node(), 0..6), any::<bool>())
            .prop_map(|(nodes, ours)| Step::PushPull { nodes, ours }),
        4 => (0..3000_u64).prop_map(Step::Wait),
        1 => Just(Step::Leave),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_input_never_panics_and_never_lowers_the_own_incarnation(
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        let mut one = One::with(SwimConfig::lan());
        let mut incarnation = 1;
        let mut left = false;
        let mut asked: Vec<ExchangeId> = Vec::new();
        for (i, step) in steps.into_iter().enumerate() {
            match step {
                Step::Packet { messages, crc, mutations } => {
                    let parts: Vec<Bytes> = messages.iter().map(encode_message).collect();
                    for packet in encode_packets(&parts, &PacketOptions::default(), crc, &mut StdRng::seed_from_u64(1)) {
                        let mut bytes = packet.to_vec();
                        for (at, value) in &mutations {
                            let at = at % bytes.len();
                            bytes[at] = *value;
                        }
                        one.swim.handle(one.now, Input::Packet { from: addr(9), bytes: bytes.into() });
                    }
                }
                Step::PushPull { nodes, ours } => {
                    let message = StreamMessage::PushPull(PushPull { join: true, label: None, nodes, user_state: Bytes::new() });
                    if let Some(exchange) = asked.pop().filter(|_| ours) {
                        one.swim.handle(one.now, Input::StreamReply { exchange, result: Ok(Some(message)) });
                    } else {
                        let exchange = ExchangeId(1 << 63 | i as u64);
                        one.swim.handle(one.now, Input::StreamRequest { exchange, from: addr(2), label: Label::NONE, message });
                    }
                }
                Step::Wait(millis) => one.now = one.now + Duration::from_millis(millis),
                Step::Leave => {
                    one.swim.handle(one.now, Input::Leave);
                    left = true;
                }
            }
            one.swim.handle(one.now, Input::Tick);
            while let Some(output) = one.swim.poll_output() {
                match output {
                    Output::NeedUserState { exchange, .. } => {
                        one.swim.handle(one.now, Input::UserState { exchange, bytes: Bytes::from_static(b"s") });
                    }
                    Output::OpenStream { exchange, expect_reply: true, .. } => asked.push(exchange),
                    Output::SendPacket { bytes, .. } => prop_assert!(bytes.len() <= 1400),
                    _ => {}
                }
            }
            let own = one.member("me").unwrap();
            prop_assert!(own.incarnation >= incarnation);
            incarnation = own.incarnation;
            prop_assert_eq!(own.state, if left { MemberState::Left } else { MemberState::Alive });
            prop_assert_eq!(own.socket_addr(), Some(addr(1)));
            prop_assert!(one.swim.health_score() < 8);
            prop_assert!(one.swim.next_deadline().is_none_or(|next| next > one.now.mono));
            let members = one.swim.members();
            let names: std::collections::BTreeSet<_> = members.iter().map(|m| m.name.clone()).collect();
            prop_assert_eq!(names.len(), members.len());
        }
    }
}
