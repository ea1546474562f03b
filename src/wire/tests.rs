//! Tests of the wire format as a whole: the bytes of Go, the limits of packets, and bytes of no meaning at all.

#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::layer_tests::any_options as options;
use super::*;

/// Single messages as current Go writes them.
const GOLDEN: [(&str, &str); 10] = [
    (
        "full ping",
        "0085a44e6f6465a26e31a55365714e6f2aaa536f7572636541646472a40a000001aa536f757263654e6f6465a26d65aa536f75726365506f7274cd1f0a",
    ),
    ("short ping", "0082a44e6f6465a26e31a55365714e6fcd012c"),
    (
        "indirect ping",
        "0188a44e61636bc3a44e6f6465a26e31a4506f7274cd1f0aa55365714e6f07aa536f7572636541646472a40a000001aa536f757263654e6f6465a26d65aa536f75726365506f727450a6546172676574a40a000001",
    ),
    ("empty ack", "0282a75061796c6f6164c0a55365714e6f2a"),
    ("ack", "0282a75061796c6f6164a378797aa55365714e6f2a"),
    ("suspect", "0383a446726f6da26e32ab496e6361726e6174696f6e03a44e6f6465a26e31"),
    (
        "alive",
        "0486a441646472a40a000001ab496e6361726e6174696f6e01a44d657461c0a44e6f6465a26e31a4506f7274cd1f0aa356736ea6010502000000",
    ),
    ("leave", "0583a446726f6da26e31ab496e6361726e6174696f6e03a44e6f6465a26e31"),
    ("nack", "0b81a55365714e6f2a"),
    ("user", "086869"),
];

/// A ping with two suspicions, as Go piggy-backs them.
const COMPOUND: &str = "0703003d001f001f0085a44e6f6465a26e32a55365714e6f2aaa536f7572636541646472a47f000001aa536f757263654e6f6465a26e31aa536f75726365506f7274cd490d0383a446726f6da26e31ab496e6361726e6174696f6e03a44e6f6465a26e320383a446726f6da26e31ab496e6361726e6174696f6e03a44e6f6465a26e32";

fn unhex(hex: &str) -> Bytes {
    hex::decode(hex).unwrap().into()
}

fn ip(raw: &[u8]) -> WireIp {
    WireIp::from_slice(raw).unwrap()
}

fn golden_messages() -> Vec<Message> {
    let (n1, n2, local) = (NodeName::from("n1"), NodeName::from("n2"), ip(&[10, 0, 0, 1]));
    let source = |port| Some(Source { addr: local, port, node: NodeName::from("me") });
    vec![
        Message::Ping(Ping { seq_no: 42, node: n1.clone(), source: source(7946) }),
        Message::Ping(Ping { seq_no: 300, node: n1.clone(), source: None }),
        Message::IndirectPing(IndirectPing {
            seq_no: 7,
            target: local,
            port: 7946,
            node: n1.clone(),
            nack: true,
            source: source(80),
        }),
        Message::Ack(Ack { seq_no: 42, payload: Bytes::new() }),
        Message::Ack(Ack { seq_no: 42, payload: Bytes::from_static(b"xyz") }),
        Message::Suspect(Suspect { incarnation: 3, node: n1.clone(), from: n2 }),
        Message::Alive(Alive {
            incarnation: 1,
            node: n1.clone(),
            addr: local,
            port: 7946,
            meta: Bytes::new(),
            vsn: Some(VSN),
        }),
        Message::Dead(Dead { incarnation: 3, node: n1.clone(), from: n1 }),
        Message::Nack(Nack { seq_no: 42 }),
        Message::User(Bytes::from_static(b"hi")),
    ]
}

fn plain() -> PacketOptions {
    PacketOptions::default()
}

fn labelled(label: &str) -> PacketOptions {
    PacketOptions { label: label.parse().unwrap(), ..plain() }
}

fn encode_packets(parts: &[Bytes], options: &PacketOptions, crc: bool) -> Vec<Bytes> {
    super::encode_packets(parts, options, crc, &mut StdRng::seed_from_u64(1))
}

fn encode_reply(message: &StreamMessage, options: &PacketOptions) -> Bytes {
    super::encode_reply(message, options, &options.label, &mut StdRng::seed_from_u64(1))
}

fn decode(bytes: &Bytes) -> Result<Vec<Message>, &'static str> {
    let packet = decode_packet(bytes, &plain()).map_err(|error| error.reason())?;
    packet.refused.first().map_or(Ok(packet.messages), |error| Err(error.reason()))
}

#[test]
fn each_message_is_read_and_written_as_go_writes_it() {
    for ((name, hex), message) in GOLDEN.iter().zip(golden_messages()) {
        assert_eq!(hex::encode(encode_message(&message)), *hex, "{name}");
        assert_eq!(decode(&unhex(hex)), Ok(vec![message]), "{name}");
    }
}

#[test]
fn a_name_of_32_bytes_is_raw16_and_never_str8() {
    let node = NodeName::from("n".repeat(32));
    let ping = encode_message(&Message::Ping(Ping { seq_no: 1, node, source: None }));
    assert!(hex::encode(&ping).starts_with(&format!("0082a44e6f6465da0020{}", "6e".repeat(32))));
}

#[test]
fn a_compound_is_read_and_written_as_go_writes_it() {
    let messages = decode(&unhex(COMPOUND)).unwrap();
    assert!(matches!(messages[..], [Message::Ping(_), Message::Suspect(_), Message::Suspect(_)]));
    let parts: Vec<Bytes> = messages.iter().map(encode_message).collect();
    assert_eq!(encode_packets(&parts, &plain(), false), [unhex(COMPOUND)]);
    let with_crc = unhex(&format!("0c6bd0f42e{COMPOUND}"));
    assert_eq!(decode(&with_crc), Ok(messages.clone()));
    assert_eq!(encode_packets(&parts, &plain(), true), [with_crc]);

    let lab = encode_packets(&parts, &labelled("lbl"), true);
    assert_eq!(hex::encode(&lab[0]), format!("f4036c626c0c6bd0f42e{COMPOUND}"));
    assert_eq!(decode_packet(&lab[0], &labelled("lbl")).unwrap().messages, messages);
}

#[test]
fn parts_of_a_compound_may_be_empty() {
    let parts = [&b"\x01\x02\x03"[..], b"\x04", b""].map(Bytes::from_static);
    assert_eq!(encode_packets(&parts, &plain(), false), [unhex("070300030001000001020304")]);
    let packet = decode_packet(&unhex("070200000003086869"), &plain()).unwrap();
    assert_eq!(packet.messages, [Message::User(Bytes::from_static(b"hi"))]);
    assert_eq!(packet.refused, [WireError::Empty]);
    assert_eq!(decode(&unhex("0700")), Ok(vec![]));
}

#[test]
fn the_checksum_is_crc32_over_the_rest() {
    let ping = unhex("0082a44e6f6465a26e31a55365714e6f2a");
    let sealed = encode_packets(std::slice::from_ref(&ping), &plain(), true).remove(0);
    assert_eq!(sealed, [&unhex("0cd9932662"), &ping[..]].concat());
    for at in 1..sealed.len() {
        let mut damaged = sealed.to_vec();
        damaged[at] ^= 0x10;
        assert_eq!(decode(&damaged.into()), Err("crc_mismatch"), "byte {at}");
    }
}

#[test]
fn each_layer_comes_once_and_in_order() {
    let crc = |rest: &[u8]| {
        let mut out = Vec::new();
        super::crc::write(&mut out, rest);
        out.extend_from_slice(rest);
        Bytes::from(out)
    };
    let user = b"\x08hi";
    assert_eq!(decode(&crc(user)), Ok(vec![Message::User(Bytes::from_static(b"hi"))]));
    assert_eq!(decode(&crc(&crc(user))), Err("misplaced_type"));
    assert_eq!(decode(&crc(b"\xf4\x01l\x08hi")), Err("misplaced_type"));
    assert_eq!(decode(&[&b"\x07\x01\x00\x08"[..], &crc(user)].concat().into()), Err("misplaced_type"));
    assert_eq!(decode(&Bytes::from_static(b"\x07\x01\x00\x02\x07\x00")), Err("misplaced_type"));
    assert_eq!(decode(&Bytes::from_static(b"\x09\x80")), Err("not_decompressed"));
    assert_eq!(decode(&crc(b"\x09\x80")), Err("not_decompressed"));
    assert_eq!(decode(&Bytes::from_static(b"\x07\x01\x00\x02\x09\x80")), Err("misplaced_type"));
    for kind in [6, 10, 13] {
        assert_eq!(decode(&vec![kind, 0x80].into()), Err("misplaced_type"), "{kind} is for streams");
    }
    assert_eq!(decode(&Bytes::from_static(b"\x63abc")), Err("unknown_type"));
    let doubly = decode_packet(&Bytes::from_static(b"\xf4\x01l\xf4\x01l\x08hi"), &labelled("l"));
    assert_eq!(doubly, Err(WireError::Misplaced(244)));
}

#[test]
fn a_packet_that_ends_too_early_is_refused() {
    for (hex, reason) in [("", "empty"), ("f4", "truncated"), ("f4036c", "truncated"), ("f400", "label_empty")] {
        assert_eq!(decode(&unhex(hex)), Err(reason), "{hex}");
    }
    for (hex, reason) in
        [("0c000000", "truncated"), ("0c00000000", "empty"), ("07", "truncated"), ("070200", "truncated")]
    {
        assert_eq!(decode(&unhex(hex)), Err(reason), "{hex}");
    }
    assert_eq!(decode_packet(&unhex("f4016c"), &labelled("l")), Err(WireError::Empty));
}

#[test]
fn a_compound_that_is_cut_keeps_what_is_whole() {
    // Two parts of which the second runs past the end, and a third that would fit but can no longer be found.
    let packet = decode_packet(&unhex("0703000200050001086108"), &plain()).unwrap();
    assert_eq!(packet.messages, [Message::User(Bytes::from_static(b"a"))]);
    assert_eq!(packet.refused, [WireError::CompoundTruncated { lost: 2 }]);
}

#[test]
fn a_label_says_whose_packet_it_is() {
    let (bare, lab) = (unhex("086869"), unhex("f4036c6162086869"));
    let reason = |bytes, options: &PacketOptions| decode_packet(bytes, options).map_err(|error| error.reason()).err();
    assert_eq!(reason(&bare, &plain()), None);
    assert_eq!(reason(&lab, &plain()), Some("label_mismatch"));
    assert_eq!(reason(&lab, &labelled("lab")), None);
    assert_eq!(reason(&lab, &labelled("la")), Some("label_mismatch"));
    assert_eq!(reason(&bare, &labelled("lab")), Some("label_missing"));

    let anything = PacketOptions { verify_label: false, ..labelled("x") };
    assert_eq!((reason(&bare, &anything), reason(&lab, &anything)), (None, None));
    let both = PacketOptions { accepted_labels: vec!["lab".parse().unwrap()], ..labelled("new") };
    assert_eq!((reason(&bare, &both), reason(&lab, &both)), (Some("label_missing"), None));
    let first = PacketOptions { accepted_labels: vec!["lab".parse().unwrap()], ..plain() };
    assert_eq!((reason(&bare, &first), reason(&lab, &first)), (None, None));
    assert_eq!(reason(&unhex("f4017a086869"), &first), Some("label_mismatch"));
}

#[test]
fn many_messages_become_compounds_of_255_and_large_ones_go_alone() {
    let mut parts: Vec<Bytes> = (0..=600u16).map(|i| [&[8], &i.to_be_bytes()[..]].concat().into()).collect();
    parts.insert(300, vec![8; 65_536].into());
    parts.insert(400, vec![8; 65_535].into());
    let packets = encode_packets(&parts, &labelled("l"), true);
    let decoded: Vec<Packet> = packets.iter().map(|packet| decode_packet(packet, &labelled("l")).unwrap()).collect();
    assert!(decoded.iter().all(|packet| packet.refused.is_empty()));
    assert_eq!(decoded.iter().map(|packet| packet.messages.len()).collect::<Vec<_>>(), [255, 255, 92, 1]);
    let mut sent: Vec<Bytes> = parts;
    let mut heard: Vec<Bytes> = decoded.iter().flat_map(|packet| &packet.messages).map(encode_message).collect();
    sent.sort();
    heard.sort();
    assert!(sent == heard, "what was sent is what was heard");
    assert_eq!(encode_packets(&[], &plain(), true), Vec::<Bytes>::new());
}

#[test]
fn the_overhead_is_what_the_layers_add() {
    let keyed = |encryption_version| PacketOptions {
        keyring: Keyring::new([Key::new(&[7; 16]).unwrap()]).unwrap(),
        encryption_version,
        ..labelled("lab")
    };
    let quiet = PacketOptions { verify_outgoing: false, ..keyed(EncryptionVersion::V1) };
    assert_eq!(packet_overhead(&quiet), packet_overhead(&labelled("lab")));
    assert_eq!(packet_overhead(&keyed(EncryptionVersion::V0)), packet_overhead(&quiet) + 45);
    for options in [plain(), labelled("lab"), labelled(&"l".repeat(255)), keyed(EncryptionVersion::V1)] {
        let user = encode_message(&Message::User(Bytes::from_static(b"x")));
        let one = encode_packets(std::slice::from_ref(&user), &options, true);
        assert_eq!(one[0].len(), packet_overhead(&options) + user.len());
        let two = encode_packets(&[user.clone(), user.clone()], &options, true);
        let compound = COMPOUND_HEADER + 2 * (COMPOUND_PART + user.len());
        assert_eq!(two[0].len(), packet_overhead(&options) + compound);
    }
}

#[test]
fn fields_beyond_their_limits_are_refused() {
    let alive = |change: fn(&mut Alive)| {
        let Message::Alive(mut alive) = golden_messages().remove(6) else { panic!("not an alive") };
        change(&mut alive);
        decode(&encode_message(&Message::Alive(alive))).map(|_| ())
    };
    assert_eq!(alive(|alive| alive.meta = vec![0xff; 512].into()), Ok(()));
    assert_eq!(alive(|alive| alive.meta = vec![0xff; 513].into()), Err("too_long"));
    assert_eq!(alive(|alive| alive.node = NodeName::from("n".repeat(255))), Ok(()));
    assert_eq!(alive(|alive| alive.node = NodeName::from("n".repeat(256))), Err("too_long"));
    let field = |hex: &str| decode(&unhex(&format!("0481{hex}"))).map(|_| ());
    assert_eq!(field("a441646472a50102030405"), Err("bad_address"));
    assert_eq!(field("a441646472b0000102030405060708090a0b0c0d0e0f"), Ok(()));
    assert_eq!(field("a4506f7274ce00010000"), Err("out_of_range"));
    assert_eq!(field("ab496e6361726e6174696f6ecf0000000100000000"), Err("out_of_range"));
    assert_eq!(field("a44e6f6465a1ff"), Err("not_utf8"));
}

#[test]
fn versions_are_six_bytes_or_none() {
    let vsn = |hex: &str| match decode(&unhex(&format!("0481a356736e{hex}"))).unwrap().remove(0) {
        Message::Alive(alive) => alive.vsn,
        other => panic!("{other:?}"),
    };
    assert_eq!(vsn("a6010502000000"), Some(VSN));
    assert_eq!(vsn("a701050200000009"), Some(VSN));
    assert_eq!(vsn("c406010502000000"), Some(VSN));
    assert_eq!(vsn("96010502000000"), Some(VSN));
    assert_eq!(decode(&unhex("0481a356736ea50105020000")), Err("too_short"));
    assert_eq!(vsn("a0"), None);
    assert_eq!(vsn("c0"), None);
}

#[test]
fn the_order_of_fields_in_arrays_is_that_of_go() {
    // Each field has a value of its own, so that a swapped pair shows.
    let cases = [
        ("0095 01 a16e a40a000001 02 a173", 0),
        ("0198 01 a40a000001 02 a16e c3 a40a000002 03 a173", 1),
        ("0292 01 a170", 2),
        ("0393 01 a16e a166", 3),
        ("0496 01 a16e a40a000001 02 a16d a6010502000000", 4),
        ("0593 01 a16e a166", 5),
        ("0b91 01", 6),
    ];
    let node = NodeName::from("n");
    let from = NodeName::from("f");
    let source = |last, port| Some(Source { addr: ip(&[10, 0, 0, last]), port, node: NodeName::from("s") });
    let expected = [
        Message::Ping(Ping { seq_no: 1, node: node.clone(), source: source(1, 2) }),
        Message::IndirectPing(IndirectPing {
            seq_no: 1,
            target: ip(&[10, 0, 0, 1]),
            port: 2,
            node: node.clone(),
            nack: true,
            source: source(2, 3),
        }),
        Message::Ack(Ack { seq_no: 1, payload: Bytes::from_static(b"p") }),
        Message::Suspect(Suspect { incarnation: 1, node: node.clone(), from: from.clone() }),
        Message::Alive(Alive {
            incarnation: 1,
            node: node.clone(),
            addr: ip(&[10, 0, 0, 1]),
            port: 2,
            meta: Bytes::from_static(b"m"),
            vsn: Some(VSN),
        }),
        Message::Dead(Dead { incarnation: 1, node, from }),
        Message::Nack(Nack { seq_no: 1 }),
    ];
    for (hex, at) in cases {
        assert_eq!(decode(&unhex(&hex.replace(' ', ""))), Ok(vec![expected[at].clone()]), "{hex}");
    }
}

#[test]
fn what_a_member_keeps_does_not_keep_the_packet() {
    let mut packet = Vec::new();
    packet.extend_from_slice(&encode_message(&Message::Alive(Alive {
        incarnation: 1,
        node: NodeName::from("n1"),
        addr: WireIp::NONE,
        port: 1,
        meta: Bytes::from_static(b"zone-a"),
        vsn: None,
    })));
    let packet = Bytes::from(packet);
    let within = packet.as_ptr_range();
    let Message::Alive(alive) = decode(&packet).unwrap().remove(0) else { panic!("not an alive") };
    assert!(!within.contains(&alive.meta.as_ptr()));
}

fn name() -> impl Strategy<Value = NodeName> {
    prop_oneof!["[a-z0-9.-]{0,40}", "\\PC{0,20}"].prop_map(NodeName::from)
}

fn address() -> impl Strategy<Value = WireIp> {
    prop_oneof![Just(Vec::new()), vec(any::<u8>(), 4), vec(any::<u8>(), 16)].prop_map(|raw| ip(&raw))
}

fn bytes(max: usize) -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..=max).prop_map(Bytes::from)
}

/// A source that is there: one that is zero throughout is none.
fn source() -> impl Strategy<Value = Option<Source>> {
    proptest::option::of((address(), 1u16.., name()).prop_map(|(addr, port, node)| Source { addr, port, node }))
}

fn ping() -> impl Strategy<Value = Ping> {
    (any::<u32>(), name(), source()).prop_map(|(seq_no, node, source)| Ping { seq_no, node, source })
}

fn ack() -> impl Strategy<Value = Ack> {
    (any::<u32>(), bytes(300)).prop_map(|(seq_no, payload)| Ack { seq_no, payload })
}

/// Messages whose end shows in their bytes: all but those of the application.
fn protocol_message() -> impl Strategy<Value = Message> {
    let accused = || (any::<u32>(), name(), name());
    prop_oneof![
        ping().prop_map(Message::Ping),
        (any::<u32>(), address(), any::<u16>(), name(), any::<bool>(), source()).prop_map(
            |(seq_no, target, port, node, nack, source)| Message::IndirectPing(IndirectPing {
                seq_no,
                target,
                port,
                node,
                nack,
                source
            })
        ),
        ack().prop_map(Message::Ack),
        any::<u32>().prop_map(|seq_no| Message::Nack(Nack { seq_no })),
        accused().prop_map(|(incarnation, node, from)| Message::Suspect(Suspect { incarnation, node, from })),
        accused().prop_map(|(incarnation, node, from)| Message::Dead(Dead { incarnation, node, from })),
        (any::<u32>(), name(), address(), any::<u16>(), bytes(512), any::<Option<Vsn>>()).prop_map(
            |(incarnation, node, addr, port, meta, vsn)| Message::Alive(Alive {
                incarnation,
                node,
                addr,
                port,
                meta,
                vsn
            })
        ),
    ]
}

fn message() -> impl Strategy<Value = Message> {
    prop_oneof![4 => protocol_message(), 1 => bytes(2_000).prop_map(Message::User)]
}

fn push_node() -> impl Strategy<Value = PushNode> {
    use MemberState::{Alive, Dead, Left, Suspect};
    let state = proptest::sample::select(vec![None, Some(Alive), Some(Suspect), Some(Dead), Some(Left)]);
    (name(), address(), any::<u16>(), bytes(512), any::<u32>(), state, any::<Option<Vsn>>()).prop_map(
        |(name, addr, port, meta, incarnation, state, vsn)| PushNode {
            name,
            addr,
            port,
            meta,
            incarnation,
            state,
            vsn,
        },
    )
}

fn stream_message() -> impl Strategy<Value = StreamMessage> {
    prop_oneof![
        ping().prop_map(StreamMessage::Ping),
        ack().prop_map(StreamMessage::Ack),
        bytes(2_000).prop_map(StreamMessage::User),
        "\\PC{0,100}".prop_map(StreamMessage::Error),
        (
            any::<bool>(),
            proptest::option::of(options().prop_map(|options| options.label)),
            vec(push_node(), 0..20),
            bytes(2_000)
        )
            .prop_map(|(join, label, nodes, user_state)| StreamMessage::PushPull(PushPull {
                join,
                label,
                nodes,
                user_state
            })),
    ]
}

/// Feeds a stream in pieces and takes whatever comes out.
fn decode_stream(
    bytes: &[u8],
    piece: usize,
    options: &PacketOptions,
    side: StreamSide,
) -> Result<StreamMessage, WireError> {
    let mut decoder = StreamDecoder::new(options, side);
    let mut message = None;
    for piece in bytes.chunks(piece.max(1)) {
        decoder.feed(piece)?;
        message = message.or(decoder.poll()?);
    }
    decoder.finish()?;
    message.ok_or(WireError::Empty)
}

/// Decoding must not panic; and what it accepts, it must accept again from its own encoding.
fn survives(bytes: &Bytes) {
    for options in [plain(), labelled("lab"), PacketOptions { verify_label: false, ..plain() }] {
        if let Ok(packet) = decode_packet(bytes, &options) {
            for message in packet.messages {
                let again = decode_packet(&encode_message(&message), &plain()).unwrap();
                assert_eq!(again.messages, [message]);
            }
        }
        for side in [StreamSide::Accepted, StreamSide::Dialed] {
            let at_once = decode_stream(bytes, usize::MAX, &options, side);
            assert_eq!(at_once.as_ref().ok(), decode_stream(bytes, 3, &options, side).as_ref().ok());
            if let Ok(message) = at_once {
                let again = decode_stream(&encode_reply(&message, &plain()), 1, &plain(), StreamSide::Dialed);
                assert_eq!(again, Ok(message));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_sent_in_packets_is_what_is_heard(messages in vec(message(), 1..300), options in options(), crc: bool) {
        let parts: Vec<Bytes> = messages.iter().map(encode_message).collect();
        let mut heard = Vec::new();
        for packet in encode_packets(&parts, &options, crc) {
            let packet = decode_packet(&packet, &options).unwrap();
            prop_assert_eq!(packet.refused, []);
            heard.extend(packet.messages);
        }
        prop_assert_eq!(heard, messages);
    }

    #[test]
    fn what_is_sent_on_a_stream_is_what_is_heard(message in stream_message(), options in options(), piece in 1..500usize) {
        let dialed = encode_request(&message, &options, &mut StdRng::seed_from_u64(1));
        let heard = decode_stream(&dialed, piece, &options, StreamSide::Accepted);
        prop_assert_eq!(heard.as_ref(), Ok(&message));
        let answered = encode_reply(&message, &options);
        prop_assert_eq!(decode_stream(&answered, piece, &options, StreamSide::Dialed), Ok(message));
    }

    #[test]
    fn no_prefix_of_a_packet_passes_for_the_whole(messages in vec(protocol_message(), 1..5), options in options(), crc: bool) {
        let parts: Vec<Bytes> = messages.iter().map(encode_message).collect();
        let packet = encode_packets(&parts, &options, crc).remove(0);
        for len in 0..packet.len() {
            let decoded = decode_packet(&packet.slice(..len), &options);
            prop_assert!(decoded.is_err() || decoded.is_ok_and(|packet| !packet.refused.is_empty()), "{}", len);
        }
    }

    #[test]
    fn no_prefix_of_a_stream_passes_for_the_whole(message in stream_message()) {
        let stream = encode_reply(&message, &plain());
        for len in 1..stream.len() {
            let decoded = decode_stream(&stream[..len], usize::MAX, &plain(), StreamSide::Dialed);
            prop_assert_eq!(decoded, Err(WireError::Truncated));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 768, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_are_survived(kind in prop_oneof![0..=13u8, Just(244), any::<u8>()], rest in vec(any::<u8>(), 0..200)) {
        survives(&[&[kind], &rest[..]].concat().into());
    }

    #[test]
    fn random_msgpack_is_survived(
        kind in 0..=13u8,
        rest in vec(prop_oneof![0x80..=0x9fu8, 0xa0..=0xa8u8, 0xc0..=0xdfu8, 0x00..=0x05u8, any::<u8>()], 0..100),
    ) {
        survives(&[&[kind], &rest[..]].concat().into());
    }

    #[test]
    fn damaged_packets_are_survived(
        at in 0..GOLDEN.len() + 1,
        damage in vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<proptest::sample::Index>(),
    ) {
        let hex = GOLDEN.get(at).map_or(COMPOUND, |(_, hex)| hex);
        let mut bytes = unhex(hex).to_vec();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        survives(&bytes.clone().into());
        bytes.truncate(cut.index(bytes.len() + 1));
        survives(&bytes.into());
    }

    #[test]
    fn damaged_streams_are_survived(
        message in stream_message(),
        damage in vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = encode_reply(&message, &plain()).to_vec();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        survives(&bytes.into());
    }
}

#[test]
fn a_compressed_packet_becomes_as_large_as_its_transport_allows_and_no_larger() {
    let message = Message::User(Bytes::from(vec![7; 2 << 20]));
    for compression in [Compression::Lzw, Compression::Snappy] {
        let packing = PacketOptions { compression, ..plain() };
        let packet = encode_packets(&[encode_message(&message)], &packing, true).remove(0);
        assert!(packet.len() < 512 << 10);
        assert_eq!(decode_packet(&packet, &plain()).unwrap_err().reason(), "too_long", "over UDP");
        let roomy = PacketOptions { max_unpacked: 4 << 20, ..plain() };
        assert_eq!(decode_packet(&packet, &roomy).unwrap().messages, std::slice::from_ref(&message));
    }
}
