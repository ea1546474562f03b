//! The catalogue of hostile bytes, row by row: what stands against each, and the tests that no other file has.
//!
//! | bytes | what stands against them | tests |
//! |---|---|---|
//! | a label header alone, of length 0, longer than the rest | refused | `tests`: a_packet_that_ends_too_early_is_refused; `label` |
//! | a label of 255 bytes, not UTF-8 | compared as bytes, escaped when shown | `label`; here |
//! | a label twice, or on one transport only | refused; compared before anything is answered | `tests`, `layer_tests`: each_layer_…; `stream_tests`: only_the_dialer_sends_a_label |
//! | a blob that is too short, cut, of another version or key or label or transport | one answer for all of them; at most eight keys are tried | `crypt_tests`; `layer_tests`: another_key_or_label_or_transport_is_refused; `keyring` |
//! | a padding of 0, beyond 16, beyond the text, uneven | refused, and the plaintext is overwritten | `crypt_tests`: a_padding_that_is_not_in_order_is_refused |
//! | an encrypted frame of 4 GiB | refused before it is read | `layer_tests`: an_encrypted_frame_that_is_too_long_… |
//! | a checksum of four bytes, wrong, or twice | once, outermost after decryption | `tests`: the_checksum_is_…, each_layer_… |
//! | LZW that explodes, without its end, of codes that nothing defined; an unknown algorithm | stops at the limit and one; table of 4 096; empty is refused | `compress_tests`; here |
//! | LZW that begins with no literal, or never clears its table | refused; read | here |
//! | snappy that claims 4 GiB, a varint beyond five bytes, another length than it has | refused before anything is made | `compress_tests` |
//! | snappy that copies from offset 0 or from before its beginning, literals past the end | refused | here |
//! | a compound of 0 or 255 parts, cut, with empty parts, in a compound | leaves only; a bad part spoils no other | `tests`: parts_of_a_compound_…, a_compound_that_is_cut_… |
//! | a packet whose layers or parts together cost too much | one budget for all of them | here |
//! | msgpack nested deep, with lengths of 2³²−1, wrong types, keys twice or missing or unknown, negative, ext, floats, old and new forms | depth 8, 16 keys, fixed structs | `msgpack_tests` |
//! | meta beyond 512 bytes, addresses of another length, versions of fewer than six bytes | refused | `tests`: fields_beyond_their_limits_are_refused, versions_are_six_bytes_or_none |
//! | a member without address, port or versions | read here (a push/pull may leave the port out), refused by the membership | `swim::rules` |
//! | a name with control characters, of more than 255 bytes | refused; where it is that of the speaker and not of the subject, it counts as empty. The catalogue says 128; names of hosts have up to 253 | here; `tests` |
//! | a push/pull of −1, 2³¹ or a million members, a state of −1, 2³¹ or more than there is | at most 65 536 members, made as they come | `stream_tests`: a_header_that_claims_too_much_…, a_claim_makes_no_memory |
//! | a member in state 4 or −1, or twice | read, and ignored by the merge | `stream_tests`: a_member_that_we_do_not_accept_…; here |
//! | dskit's framing: an unknown type, cut, a wrong digest, without end | refused; a wrong digest too, which dskit lets pass | `grafana` |
//!
//! What one packet or stream may make in memory is measured in `tests/decode_allocation.rs`. Rates, deadlines and what all
//! streams may take together are the transport's. Whatever else bytes can be is for the fuzzer (`docs/fuzzing.md`).

#![allow(clippy::unwrap_used)]

use bytes::Bytes;

use super::*;

fn reason(bytes: &[u8]) -> Result<Packet, &'static str> {
    decode_packet(&Bytes::copy_from_slice(bytes), &PacketOptions::default()).map_err(|error| error.reason())
}

/// A compressed packet of this data, shorter than 64 KiB.
fn packed(algorithm: u8, data: &[u8]) -> Vec<u8> {
    let head = [&[0xda][..], &(data.len() as u16).to_be_bytes()].concat();
    [&[9, 0x82, 0xa4][..], b"Algo", &[algorithm, 0xa3], b"Buf", &head, data].concat()
}

/// LZW of these codes, as an encoder would write them that never clears its table: nine bits at first, and wider when the
/// table has grown.
fn lzw(codes: &[u16]) -> Vec<u8> {
    let (mut bits, mut next, mut width) = (Vec::new(), 257, 9);
    for (index, code) in codes.iter().enumerate() {
        bits.extend((0..width).map(|bit| code >> bit & 1));
        // The first code after the beginning defines nothing.
        if index > 0 && next < 4_095 {
            next += 1;
        }
        if next >= (1 << width) - 1 && width < 12 && index > 0 {
            width += 1;
        }
    }
    bits.chunks(8).map(|bits| bits.iter().rev().fold(0, |byte, bit| byte << 1 | *bit as u8)).collect()
}

#[test]
fn lzw_begins_with_a_literal() {
    for first in [258, 300, 511] {
        assert_eq!(reason(&packed(0, &lzw(&[first, 257]))), Err("not_decompressed"), "{first}");
        assert_eq!(reason(&packed(0, &lzw(&[256, first, 257]))), Err("not_decompressed"), "cleared, then {first}");
    }
    assert_eq!(reason(&packed(0, &lzw(&[256, 257]))), Err("empty"));
    let hi = [Message::User(Bytes::from_static(b"h"))];
    assert_eq!(
        reason(&packed(0, &lzw(&[8, u16::from(b'h'), 257]))).unwrap().messages,
        hi,
        "no code to clear comes first"
    );
}

#[test]
fn lzw_that_never_clears_its_table_is_read_or_refused_within_the_limit() {
    for count in [200, 254, 255, 256, 3_837, 3_838, 3_839, 10_000] {
        let codes: Vec<u16> = [8].into_iter().chain((0..count).map(|i| i % 251)).chain([257]).collect();
        match reason(&packed(0, &lzw(&codes))) {
            Ok(packet) => {
                let [Message::User(payload)] = &packet.messages[..] else { panic!("{count}: {:?}", packet.messages) };
                let expected: Vec<u8> = (0..count).map(|i| (i % 251) as u8).collect();
                assert!(*payload == expected, "{count}");
            }
            Err(reason) => assert!(count > 3_800 && reason == "not_decompressed", "{count}: {reason}"),
        }
    }
}

#[test]
fn snappy_copies_only_what_is_there() {
    let data = |tail: &[u8]| [&[8][..], &[0b1100], b"\x08abc", tail].concat();
    // Four more bytes: from four back, as it should be.
    let good = reason(&packed(1, &data(&[0b001, 4]))).unwrap();
    assert_eq!(good.messages, [Message::User(Bytes::from_static(b"abc\x08abc"))]);
    for (tail, what) in [
        (&[0b001, 0][..], "from offset 0"),
        (&[0b001, 5], "from before the beginning"),
        (&[0b010 | 3 << 2, 0xff, 0xff], "from far before the beginning"),
        (&[0b011 | 3 << 2, 0, 0, 0, 0], "from offset 0, long form"),
        (&[0b1100, 1, 2, 3], "literals past the end"),
        (&[63 << 2, 0xff, 0xff, 0xff, 0xff, 1], "4 GiB of literals"),
        (&[0b001], "cut short"),
        (&[], "fewer than it claims"),
    ] {
        assert_eq!(reason(&packed(1, &data(tail))), Err("not_decompressed"), "{what}");
    }
}

#[test]
fn a_label_may_be_any_bytes() {
    let packet = Bytes::from_static(b"\xf4\x03\xff\x00\n\x08x");
    let ours = PacketOptions { label: Label::new(b"\xff\x00\n").unwrap(), ..PacketOptions::default() };
    assert_eq!(decode_packet(&packet, &ours).unwrap().messages.len(), 1);
    let error = decode_packet(&packet, &PacketOptions::default()).unwrap_err();
    assert_eq!(error.to_string(), r#"label "\xff\x00\n" is not accepted"#);
}

#[test]
fn the_parts_of_a_compound_share_one_budget() {
    // 255 nacks with an unknown field of 100 values each: more than the values of one packet.
    let nack = [&b"\x0b\x82\xa1x\xdc\x00\x64"[..], &[0xc0; 100], b"\xa5SeqNo\x07"].concat();
    let table: Vec<u8> = (0..255).flat_map(|_| (nack.len() as u16).to_be_bytes()).collect();
    let compound = [&[7, 255][..], &table, &nack.repeat(255)].concat();
    let packet = reason(&compound).unwrap();
    assert_eq!(packet.messages.len() + packet.refused.len(), 255);
    assert!((100..200).contains(&packet.messages.len()), "{}", packet.messages.len());
    assert!(packet.refused.iter().all(|error| *error == WireError::OverBudget { what: "items" }));
}

#[test]
fn names_are_printable() {
    for (name, expected) in [
        ("a\u{1b}[2Jb", Err("not_printable")),
        ("a\nb", Err("not_printable")),
        ("\u{9b}", Err("not_printable")),
        ("zürich-1.example", Ok(())),
    ] {
        for message in [
            Message::Ping(Ping { seq_no: 1, node: NodeName::from(name), source: None }),
            Message::Suspect(Suspect { incarnation: 1, node: NodeName::from(name), from: NodeName::from("n") }),
        ] {
            let found = reason(&encode_message(&message)).map(|_| ());
            assert_eq!(found, expected, "{name:?}");
        }
    }
    let long = NodeName::from("n".repeat(255));
    assert!(reason(&encode_message(&Message::Dead(Dead { incarnation: 1, node: long.clone(), from: long }))).is_ok());
}

#[test]
fn what_a_member_of_an_unprintable_name_says_about_others_is_heard_without_the_name() {
    let long = "n".repeat(256);
    for (name, heard) in [("web1\n", ""), ("\u{9b}", ""), (long.as_str(), ""), ("web1", "web1"), ("", "")] {
        let (node, name, heard) = (NodeName::from("n"), NodeName::from(name), NodeName::from(heard));
        let addr = WireIp::from_slice(&[10, 0, 0, 1]).unwrap();
        let source = |node: &NodeName| Some(Source { addr, port: 7, node: node.clone() });
        let ping = |from| Ping { seq_no: 1, node: node.clone(), source: source(from) };
        let indirect = |from| IndirectPing {
            seq_no: 1,
            target: addr,
            port: 7,
            node: node.clone(),
            nack: true,
            source: source(from),
        };
        let suspect = |from: &NodeName| Suspect { incarnation: 1, node: node.clone(), from: from.clone() };
        let dead = |from: &NodeName| Dead { incarnation: 1, node: node.clone(), from: from.clone() };
        for (said, expected) in [
            (Message::Ping(ping(&name)), Message::Ping(ping(&heard))),
            (Message::IndirectPing(indirect(&name)), Message::IndirectPing(indirect(&heard))),
            (Message::Suspect(suspect(&name)), Message::Suspect(suspect(&heard))),
            (Message::Dead(dead(&name)), Message::Dead(dead(&heard))),
        ] {
            assert_eq!(reason(&encode_message(&said)).unwrap().messages, [expected]);
        }
    }
    // Bytes that are no text.
    let ping = encode_message(&Message::Ping(Ping {
        seq_no: 1,
        node: NodeName::from("n"),
        source: Some(Source { addr: WireIp::NONE, port: 7, node: NodeName::from("?") }),
    }));
    let bytes: Vec<u8> = ping.iter().map(|byte| if *byte == b'?' { 0xff } else { *byte }).collect();
    let Ok([Message::Ping(Ping { source: Some(source), .. })]) =
        reason(&bytes).map(|packet| <[Message; 1]>::try_from(packet.messages).unwrap())
    else {
        panic!("the ping is read")
    };
    assert!(source.node.is_empty());
}

#[test]
fn a_push_pull_of_nobody_and_one_that_names_a_member_twice_are_read() {
    let decode = |hex: &str| {
        let mut decoder = StreamDecoder::new(&PacketOptions::default(), StreamSide::Dialed);
        decoder.feed(&hex::decode(hex.replace(' ', "")).unwrap())?;
        decoder.poll()
    };
    let nobody = decode("0683a44a6f696ec3a54e6f64657300ac5573657253746174654c656e00");
    assert_eq!(nobody, Ok(Some(StreamMessage::PushPull(PushPull { join: true, ..PushPull::default() }))));
    let twice = decode("0683a44a6f696ec3a54e6f64657302ac5573657253746174654c656e00 81a44e616d65a16e 81a44e616d65a16e");
    let Ok(Some(StreamMessage::PushPull(push_pull))) = twice else { panic!("{twice:?}") };
    assert_eq!(push_pull.nodes.len(), 2);
}

#[test]
fn one_budget_spans_decompression_and_every_part() {
    use rand::SeedableRng;
    // Each part is small enough, and so is what is decompressed; together with the names that are copied it is too much.
    let name = NodeName::from("n".repeat(255));
    let suspect = encode_message(&Message::Suspect(Suspect { incarnation: 1, node: name.clone(), from: name }));
    let filler = Bytes::from(vec![8; COMPOUND_MAX_PART]);
    let parts: Vec<Bytes> = [vec![filler; 7], vec![suspect; 70]].concat();
    let options = PacketOptions { compression: Compression::Lzw, ..PacketOptions::default() };
    let nonces = &mut rand::rngs::StdRng::seed_from_u64(1);
    let sent = encode_packets(&parts, &options, true, nonces).remove(0);
    assert!(sent.len() < 20_000, "{}", sent.len());
    let packet = decode_packet(&sent, &options).unwrap();
    assert!((40..77).contains(&packet.messages.len()), "{}", packet.messages.len());
    assert_eq!(packet.messages.len() + packet.refused.len(), 77);
    assert!(packet.refused.iter().all(|error| *error == WireError::OverBudget { what: "bytes" }));
}
