//! Tests of the stream decoder: pieces of any size, limits, and who says what when.

#![allow(clippy::unwrap_used)]

use super::super::message::{MemberState, NodeName, PushNode, VSN, WireIp};
use super::*;
use crate::wire::{encode_reply, encode_request};
use rand::SeedableRng;
use rand::rngs::StdRng;

/// A push/pull of one node that joins, as Go writes it.
const JOIN: &str = "0683a44a6f696ec3a54e6f64657301ac5573657253746174654c656e0087a441646472a47f000001ab496e6361726e6174696f\
                    6e01a44d657461c0a44e616d65a26e31a4506f7274cd46b4a5537461746500a356736ea6010502000000";

fn unhex(hex: &str) -> Vec<u8> {
    hex::decode(hex.replace(' ', "")).unwrap()
}

fn node(name: &str) -> PushNode {
    PushNode {
        name: NodeName::from(name),
        addr: WireIp::from_slice(&[127, 0, 0, 1]).unwrap(),
        port: 18_100,
        meta: Bytes::new(),
        incarnation: 1,
        state: Some(MemberState::Alive),
        vsn: Some(VSN),
    }
}

fn join() -> StreamMessage {
    StreamMessage::PushPull(PushPull { join: true, label: None, nodes: vec![node("n1")], user_state: Bytes::new() })
}

/// As a node without a key encodes.
fn encode_stream(message: &StreamMessage, label: Option<&Label>) -> Bytes {
    let nonces = &mut StdRng::seed_from_u64(1);
    match label {
        Some(label) => {
            encode_request(message, &PacketOptions { label: label.clone(), ..PacketOptions::default() }, nonces)
        }
        None => encode_reply(message, &PacketOptions::default(), &Label::NONE, nonces),
    }
}

fn labelled(label: &str) -> PacketOptions {
    PacketOptions { label: label.parse().unwrap(), ..PacketOptions::default() }
}

/// Feeds pieces of `size` bytes.
fn decode_by(bytes: &[u8], size: usize, options: &PacketOptions, side: StreamSide) -> Result<StreamMessage, WireError> {
    let mut decoder = StreamDecoder::new(options, side);
    let mut message = None;
    for piece in bytes.chunks(size) {
        decoder.feed(piece)?;
        if let Some(complete) = decoder.poll()? {
            assert!(message.replace(complete).is_none(), "a stream has one message");
        }
    }
    decoder.finish()?;
    message.ok_or(WireError::Empty)
}

fn decode(bytes: &[u8]) -> Result<StreamMessage, WireError> {
    decode_by(bytes, usize::MAX, &PacketOptions::default(), StreamSide::Accepted)
}

#[test]
fn a_push_pull_is_read_and_written_as_go_writes_it() {
    assert_eq!(decode(&unhex(JOIN)), Ok(join()));
    assert_eq!(encode_stream(&join(), None), unhex(JOIN));
}

#[test]
fn pieces_of_any_size_give_the_same_message() {
    let push_pull = PushPull {
        join: false,
        label: None,
        nodes: (0..300).map(|i| PushNode { meta: vec![7; i].into(), ..node(&format!("node-{i}")) }).collect(),
        user_state: vec![9; 70_000].into(),
    };
    let message = StreamMessage::PushPull(push_pull);
    let label: Label = "lab".parse().unwrap();
    let bytes = encode_stream(&message, Some(&label));
    assert_eq!(bytes.slice(..5), b"\xf4\x03lab"[..]);
    for size in [1, 2, 3, 7, 1_000, 65_536, usize::MAX] {
        let decoded = decode_by(&bytes, size, &labelled("lab"), StreamSide::Accepted);
        assert_eq!(decoded.as_ref(), Ok(&message), "pieces of {size}");
    }
}

#[test]
fn every_prefix_of_a_stream_is_truncated() {
    let bytes = encode_stream(&join(), Some(&"lab".parse().unwrap()));
    for len in 1..bytes.len() {
        let cut = decode_by(&bytes[..len], usize::MAX, &labelled("lab"), StreamSide::Accepted);
        assert_eq!(cut, Err(WireError::Truncated), "{len}");
    }
}

#[test]
fn a_stream_that_ends_before_its_first_byte_is_no_error() {
    for side in [StreamSide::Accepted, StreamSide::Dialed] {
        let mut decoder = StreamDecoder::new(&labelled("lab"), side);
        assert_eq!(decoder.poll(), Ok(None));
        assert_eq!(decoder.finish(), Ok(()));
    }
}

#[test]
fn only_the_dialer_sends_a_label() {
    let (plain, lab) = (unhex(JOIN), encode_stream(&join(), Some(&"lab".parse().unwrap())));
    let reason = |bytes: &[u8], options: &PacketOptions, side| {
        decode_by(bytes, 1, options, side).map_err(|error| error.reason())
    };
    assert_eq!(reason(&lab, &labelled("lab"), StreamSide::Accepted), Ok(join()));
    assert_eq!(reason(&plain, &labelled("lab"), StreamSide::Accepted), Err("label_missing"));
    assert_eq!(reason(&lab, &labelled("other"), StreamSide::Accepted), Err("label_mismatch"));
    assert_eq!(reason(&lab, &PacketOptions::default(), StreamSide::Accepted), Err("label_mismatch"));
    assert_eq!(reason(b"\xf4\x00", &PacketOptions::default(), StreamSide::Accepted), Err("label_empty"));
    assert_eq!(reason(&plain, &labelled("lab"), StreamSide::Dialed), Ok(join()));
    assert_eq!(reason(&lab, &labelled("lab"), StreamSide::Dialed), Err("misplaced_type"));

    let anything = PacketOptions { verify_label: false, ..labelled("x") };
    assert_eq!(reason(&lab, &anything, StreamSide::Accepted), Ok(join()));
    assert_eq!(reason(&plain, &anything, StreamSide::Accepted), Ok(join()));
    let moving = PacketOptions { accepted_labels: vec![Label::NONE, "lab".parse().unwrap()], ..labelled("new") };
    assert_eq!(reason(&lab, &moving, StreamSide::Accepted), Ok(join()));
    assert_eq!(reason(&plain, &moving, StreamSide::Accepted), Ok(join()));
}

#[test]
fn each_kind_of_message_goes_through_a_stream() {
    use super::super::message::{Ack, Ping};
    let messages = [
        StreamMessage::Ping(Ping { seq_no: 5, node: NodeName::from("n1"), source: None }),
        StreamMessage::Ack(Ack { seq_no: 5, payload: Bytes::new() }),
        StreamMessage::User(Bytes::new()),
        StreamMessage::User(vec![1; 70_000].into()),
        StreamMessage::Error("boom".to_owned()),
        StreamMessage::PushPull(PushPull::default()),
    ];
    for message in messages {
        assert_eq!(decode(&encode_stream(&message, None)), Ok(message));
    }
}

#[test]
fn headers_are_written_as_current_go_and_read_as_old_go_wrote_them() {
    let user = |len: usize| encode_stream(&StreamMessage::User(vec![0; len].into()), None);
    assert!(user(128).starts_with(&unhex("0881aa557365724d73674c656ed10080")));
    assert!(user(65_536).starts_with(&unhex("0881aa557365724d73674c656ed200010000")));
    let mut old = unhex("0881aa557365724d73674c656ecc80");
    old.extend([3; 128]);
    assert_eq!(decode(&old), Ok(StreamMessage::User(vec![3; 128].into())));

    let nodes = (0..200).map(|_| node("n")).collect();
    let push_pull = PushPull { join: false, label: None, nodes, user_state: vec![0; 70_000].into() };
    let new = encode_stream(&StreamMessage::PushPull(push_pull.clone()), None);
    let head = unhex("0683a44a6f696ec2a54e6f646573d100c8ac5573657253746174654c656ed200011170");
    assert_eq!(new[..head.len()], head);
    let old =
        [&unhex("0683a44a6f696ec2a54e6f646573ccc8ac5573657253746174654c656ece00011170"), &new[head.len()..]].concat();
    assert_eq!(decode(&old), Ok(StreamMessage::PushPull(push_pull)));
}

#[test]
fn a_header_that_claims_too_much_is_refused_at_once() {
    let push_pull =
        |nodes: &str, state: &str| decode(&unhex(&format!("0682a54e6f646573{nodes}ac5573657253746174654c656e{state}")));
    let too_long = |field, len, max: usize| Err(WireError::TooLong { field, len, max: max as u64 });
    assert_eq!(push_pull("ce00010001", "00"), too_long("Nodes", 65_537, MAX_PUSH_NODES));
    assert_eq!(push_pull("d27fffffff", "00"), too_long("Nodes", 0x7fff_ffff, MAX_PUSH_NODES));
    assert_eq!(push_pull("00", "d201400001"), too_long("UserStateLen", (20 << 20) + 1, MAX_USER_STATE));
    assert_eq!(push_pull("ff", "00"), Err(WireError::OutOfRange { field: "Nodes" }));
    assert_eq!(push_pull("cfffffffffffffffff", "00"), Err(WireError::OutOfRange { field: "Nodes" }));
    assert_eq!(push_pull("00", "d1ffff"), Err(WireError::OutOfRange { field: "UserStateLen" }));
    assert_eq!(push_pull("ce00010000", "d201400000"), Err(WireError::Truncated), "the limits themselves are accepted");
    let user = decode(&unhex("0881aa557365724d73674c656ed201400001"));
    assert_eq!(user, too_long("UserMsgLen", (20 << 20) + 1, MAX_USER_MESSAGE));
    let error = decode(&unhex("0d81a54572726f72db00010001")).unwrap_err();
    assert_eq!(error, WireError::Truncated, "65 537 bytes may still come, in an object of that size");
    let error = decode(&[&unhex("0d81a54572726f72db00010001")[..], &[b'x'; 65_537]].concat());
    assert_eq!(error, too_long("Error", 65_537, 65_536));
    let error = decode(&unhex("0d81a54572726f72db7fffffff")).unwrap_err();
    assert_eq!(error.reason(), "too_long");
}

#[test]
fn the_largest_cluster_is_within_the_budget() {
    let nodes = (0..MAX_PUSH_NODES).map(|i| node(&i.to_string())).collect();
    let message =
        StreamMessage::PushPull(PushPull { join: true, label: None, nodes, user_state: Bytes::from_static(b"state") });
    let heard = decode_by(&encode_stream(&message, None), 1 << 20, &PacketOptions::default(), StreamSide::Dialed);
    assert!(heard == Ok(message), "{:?}", heard.err());
}

#[test]
fn the_order_of_fields_in_arrays_is_that_of_go() {
    let mut bytes = unhex("06 93 01 02 c3");
    bytes.extend(unhex("97 a16e a40a000001 02 a16d 03 01 a6010502000000"));
    bytes.extend(b"us");
    let node = PushNode {
        name: NodeName::from("n"),
        addr: WireIp::from_slice(&[10, 0, 0, 1]).unwrap(),
        port: 2,
        meta: Bytes::from_static(b"m"),
        incarnation: 3,
        state: Some(MemberState::Suspect),
        vsn: Some(VSN),
    };
    let expected = PushPull { join: true, label: None, nodes: vec![node], user_state: Bytes::from_static(b"us") };
    assert_eq!(decode(&bytes), Ok(StreamMessage::PushPull(expected)));
    assert_eq!(decode(&unhex("08 91 02 7573")), Ok(StreamMessage::User(Bytes::from_static(b"us"))));
    assert_eq!(decode(&unhex("0d 91 a162")), Ok(StreamMessage::Error("b".to_owned())));
}

#[test]
fn a_claim_makes_no_memory() {
    let mut decoder = StreamDecoder::new(&PacketOptions::default(), StreamSide::Dialed);
    decoder.feed(&unhex("0682a54e6f646573ce00010000ac5573657253746174654c656ed201400000")).unwrap();
    assert_eq!(decoder.poll(), Ok(None));
    assert_eq!(decoder.push_pull.nodes.capacity(), 0);
    assert!(decoder.buffer.capacity() < 1_024);
}

#[test]
fn a_member_that_we_do_not_accept_does_not_spoil_the_others() {
    let mut bytes = unhex("0682a54e6f64657306ac5573657253746174654c656e02");
    bytes.extend(unhex("81a44e616d65a16f")); // "o"
    bytes.extend(unhex("81a44e616d65a1ff")); // not UTF-8
    bytes.extend(unhex("81a44d657461da0201").into_iter().chain([b'm'; 513]));
    bytes.extend(unhex("81a441646472a3010203"));
    bytes.extend(unhex("82a44e616d65a170a5537461746507")); // "p" in state 7
    bytes.extend(unhex("82a44e616d65a171a55374617465d1ffff")); // "q" in state -1
    bytes.extend(b"us");
    let mut decoder = StreamDecoder::new(&PacketOptions::default(), StreamSide::Dialed);
    decoder.feed(&bytes).unwrap();
    let Some(StreamMessage::PushPull(push_pull)) = decoder.poll().unwrap() else { panic!("no push/pull") };
    let seen: Vec<_> = push_pull.nodes.iter().map(|node| (node.name.as_str(), node.state)).collect();
    assert_eq!(seen, [("o", Some(MemberState::Alive)), ("p", None), ("q", None)]);
    assert_eq!(push_pull.user_state, b"us"[..]);
    let reasons: Vec<_> = decoder.refused().iter().map(WireError::reason).collect();
    assert_eq!(reasons, ["not_utf8", "too_long", "bad_address"]);
}

#[test]
fn a_member_that_is_no_msgpack_ends_the_stream() {
    let header = "0682a54e6f64657302ac5573657253746174654c656e00";
    let reason = |rest: &str| decode(&unhex(&format!("{header}{rest}"))).unwrap_err().reason();
    assert_eq!(reason("c1"), "wrong_type");
    assert_eq!(reason("81a16b9191919191919191c0"), "too_deep");
    assert_eq!(reason("81a16bddffffffff"), "too_long");
}

#[test]
fn layers_and_types_of_packets_are_told_apart() {
    let reason = |kind: u8| decode(&[kind]).unwrap_err().reason();
    assert_eq!(reason(9), "truncated");
    assert_eq!(reason(10), "no_key");
    for kind in [1, 3, 4, 5, 7, 11, 12] {
        assert_eq!(reason(kind), "misplaced_type", "{kind}");
    }
    for kind in [14, 99, 243, 255] {
        assert_eq!(reason(kind), "unknown_type", "{kind}");
    }
}

#[test]
fn bytes_after_the_message_are_ignored() {
    let mut decoder = StreamDecoder::new(&PacketOptions::default(), StreamSide::Dialed);
    decoder.feed(&[&unhex(JOIN)[..], b"more"].concat()).unwrap();
    assert_eq!(decoder.poll(), Ok(Some(join())));
    decoder.feed(&[0; 1_000]).unwrap();
    assert_eq!(decoder.poll(), Ok(None));
    assert_eq!(decoder.buffer.capacity(), 0);
    assert_eq!(decoder.finish(), Ok(()));
}

#[test]
fn an_error_is_final() {
    let mut decoder = StreamDecoder::new(&PacketOptions::default(), StreamSide::Accepted);
    decoder.feed(&[99]).unwrap();
    assert_eq!(decoder.poll(), Err(WireError::UnknownType(99)));
    assert_eq!(decoder.poll(), Err(WireError::UnknownType(99)));
    assert_eq!(decoder.feed(&unhex(JOIN)), Err(WireError::UnknownType(99)));
    assert_eq!(decoder.finish(), Err(WireError::UnknownType(99)));
}

#[test]
fn a_stream_cannot_be_fed_without_end() {
    let mut decoder = StreamDecoder::new(&PacketOptions::default(), StreamSide::Dialed);
    let mut piece = unhex("0681a54e6f646573ce00010000");
    let refused = std::iter::from_fn(|| {
        let fed = decoder.feed(&piece).and_then(|()| decoder.poll());
        // Members of 64 KiB each, which nobody has.
        piece = unhex("81a16bdaffff").into_iter().chain([0; 65_535]).collect();
        Some(fed)
    })
    .find_map(Result::err);
    assert_eq!(refused.map(|error| error.reason()), Some("too_long"));
    assert!(decoder.buffer.is_empty() && decoder.push_pull.nodes.is_empty());
}
