//! Tests of the explanations: which layers, which messages, and the exact byte at which something is wrong.

#![allow(clippy::unwrap_used)]

use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use super::*;
use crate::wire::{Compression, EncryptionVersion, Key, Keyring, Nack, encode_message, encode_packets, encode_request};

fn nonces() -> StdRng {
    StdRng::seed_from_u64(1)
}

fn keyed() -> PacketOptions {
    let keys = [[7; 16], [8; 16]].map(|key| Key::new(&key).unwrap());
    PacketOptions { keyring: Keyring::new(keys).unwrap(), ..PacketOptions::default() }
}

fn any_label() -> PacketOptions {
    PacketOptions { verify_label: false, ..PacketOptions::default() }
}

fn unhex(hex: &str) -> Bytes {
    hex::decode(hex.replace(' ', "")).unwrap().into()
}

/// Where a packet stops: layer, offset, reason.
fn stop(hex: &str, options: &PacketOptions) -> (&'static str, usize, String) {
    let stop = packet(&unhex(hex), options).error.unwrap();
    (stop.stage.name(), stop.offset, stop.reason)
}

fn stream_stop(bytes: &[u8], options: &PacketOptions) -> (&'static str, usize, String) {
    let stop = stream(bytes, options, StreamSide::Accepted).error.unwrap();
    (stop.stage.name(), stop.offset, stop.reason)
}

fn parts(count: u32) -> Vec<Bytes> {
    (0..count).map(|seq_no| encode_message(&Message::Nack(Nack { seq_no }))).collect()
}

#[test]
fn every_layer_is_shown_in_its_order() {
    let second = PacketOptions { keyring: Keyring::new([Key::new(&[8; 16]).unwrap()]).unwrap(), ..keyed() };
    let sent = PacketOptions { label: "lab".parse().unwrap(), compression: Compression::Lzw, ..second };
    let bytes = encode_packets(&parts(20), &sent, true, &mut nonces()).remove(0);
    let seen = packet(&bytes, &PacketOptions { verify_label: false, ..keyed() });
    assert_eq!((seen.is_ok(), seen.messages.len()), (true, 20));
    let [
        Layer::Label(label),
        Layer::Encryption { version: 1, key: 1, len, plain },
        Layer::Crc { .. },
        Layer::Compression { algorithm: 0, len: packed, plain: unpacked },
        Layer::Compound { parts, lost: 0 },
    ] = &seen.layers[..]
    else {
        panic!("{:?}", seen.layers)
    };
    assert_eq!((label.as_bytes(), *len, *plain), (&b"lab"[..], bytes.len() - 5, len - 29));
    assert_eq!((parts.len(), parts[0].offset, parts[0].len, *unpacked), (20, 2 + 40, 9, 2 + 40 + 20 * 9));
    assert!(packed < plain);

    let json = seen.to_json();
    assert_eq!(json["layers"][0], json!({ "layer": "label", "label": "lab", "hex": "6c6162" }));
    assert_eq!(json["layers"][1]["version"], 1);
    assert_eq!(json["layers"][3]["algorithm"], "lzw");
    assert_eq!(json["messages"][19], json!({ "type": "nack", "SeqNo": 19 }));
    assert_eq!((&json["ok"], &json["error"]), (&json!(true), &Value::Null));
}

#[test]
fn the_byte_at_which_a_message_is_wrong_is_named() {
    let plain = PacketOptions::default();
    // 00 82 | a4 Node | a1 ff
    assert_eq!(stop("0082a44e6f6465a1ff", &plain), ("message", 7, "Node: not UTF-8".to_owned()));
    assert_eq!(
        stop("0082a44e6f6465a16ea55365714e6fcb00", &plain),
        ("message", 15, "SeqNo: cut short".to_owned()).cut()
    );
    assert_eq!(stop("0b81a55365714e6fff", &plain), ("message", 8, "SeqNo: number out of range".to_owned()));
    assert_eq!(stop("0481a441646472a3010203", &plain), ("message", 7, "Addr: an address of 3 bytes".to_owned()));
    assert_eq!(stop("0481a356736ea3010203", &plain), ("message", 6, "Vsn: 3 is less than 6".to_owned()));
    assert_eq!(stop("0481a44e6f6465a2610a", &plain), ("message", 7, "Node: control characters".to_owned()));
    assert_eq!(stop("04a0", &plain), ("message", 1, "alive: wrong msgpack type".to_owned()));
    assert_eq!(stop("63", &plain), ("message", 0, "unknown message type 99".to_owned()));
    assert_eq!(stop("", &plain).0, "label");
    // Within a compound, in the part.
    let (layer, offset, reason) = stop("07 02 0002 0009 0868 0082a44e6f6465a1ff", &plain);
    assert_eq!((layer, offset, reason.as_str()), ("message", 7, "part 2 of the compound: Node: not UTF-8"));
}

trait Cut {
    fn cut(self) -> Self;
}

impl Cut for (&'static str, usize, String) {
    /// What is cut short does not say its field.
    fn cut(mut self) -> Self {
        self.2 = "cut short".to_owned();
        self
    }
}

#[test]
fn the_byte_at_which_a_layer_is_wrong_is_named() {
    let plain = PacketOptions::default();
    assert_eq!(stop("f4", &plain), ("label", 1, "cut short".to_owned()));
    assert_eq!(stop("f4036c", &plain), ("label", 3, "cut short".to_owned()));
    assert_eq!(stop("f40008", &plain), ("label", 1, "label header without a label".to_owned()));
    assert_eq!(stop("f4016c08", &plain), ("label", 0, "label \"l\" is not accepted".to_owned()));
    assert_eq!(stop("0c0000000008", &plain).0, "crc");
    assert_eq!(stop("0c0000000008", &plain).1, 1);
    assert_eq!(stop("0c0000", &plain), ("crc", 3, "cut short".to_owned()));
    assert_eq!(stop("0982a4416c676f09a3427566a0", &plain).2, "unknown compression algorithm 9");
    // The data begins at byte 13, and its first two bytes are good.
    let (layer, offset, reason) = stop("0982a4416c676f00a3427566a400c3ffff", &plain);
    assert_eq!((layer, reason.as_str()), ("compression", "compressed data is damaged"));
    assert!((13..=17).contains(&offset), "{offset}");
    assert_eq!(stop("0703000100", &plain), ("compound", 5, "cut short".to_owned()));
    let lost = stop("070200020008 0868 08", &plain);
    assert_eq!(lost, ("compound", 9, "compound cut short, 1 parts lost".to_owned()));
}

#[test]
fn any_label_is_shown_unless_one_is_asked_for() {
    let seen = packet(&unhex("f4036c6162086869"), &any_label());
    assert!(seen.is_ok());
    assert_eq!(seen.layers, [Layer::Label("lab".parse().unwrap())]);
    let refused = packet(&unhex("f4036c6162086869"), &PacketOptions::default());
    assert_eq!(refused.error.unwrap().stage, Stage::Label);
    assert_eq!(refused.layers, [Layer::Label("lab".parse().unwrap())], "and it is shown which it was");
}

#[test]
fn what_is_encrypted_says_so_when_there_is_no_key_for_it() {
    for version in [EncryptionVersion::V0, EncryptionVersion::V1] {
        for label in ["", "lab"] {
            let sender = PacketOptions { encryption_version: version, label: label.parse().unwrap(), ..keyed() };
            let mut rng = nonces();
            for round in 0..200 {
                let bytes = encode_packets(&parts(1), &sender, false, &mut rng).remove(0);
                let stop = packet(&bytes, &any_label()).error.unwrap();
                assert_eq!((stop.stage, stop.error), (Stage::Encryption, WireError::NoKey), "{version:?} {round}");
                assert!(stop.reason.starts_with("encrypted, and no key was given"), "{}", stop.reason);
            }
            let request = encode_request(&StreamMessage::User(Bytes::new()), &sender, &mut rng);
            let stop = stream(&request, &any_label(), StreamSide::Accepted).error.unwrap();
            assert_eq!((stop.stage, stop.error), (Stage::Encryption, WireError::NoKey));
            let other = PacketOptions {
                verify_label: false,
                keyring: Keyring::new([Key::new(&[9; 32]).unwrap()]).unwrap(),
                ..keyed()
            };
            let bytes = encode_packets(&parts(1), &sender, false, &mut rng).remove(0);
            assert_eq!(packet(&bytes, &other).error.unwrap().error, WireError::NotDecrypted);
        }
    }
    // A ping that is damaged and too short to be encrypted is a damaged ping.
    assert_eq!(stop("0082a44e6f6465a1ff", &any_label()).0, "message");
    let clear = packet(&parts(1)[0], &keyed()).error.unwrap();
    assert_eq!((clear.stage, clear.error), (Stage::Encryption, WireError::NotEncrypted));
}

#[test]
fn a_stream_is_explained_to_the_byte() {
    let plain = PacketOptions::default();
    // 06 | 83 … header (31 bytes) | 87 a4 Addr a3 …
    let header = "0683a44a6f696ec3a54e6f64657301ac5573657253746174654c656e00";
    let bytes = unhex(&format!("{header} 81a441646472a3010203"));
    let (layer, offset, reason) = stream_stop(&bytes, &plain);
    assert_eq!((layer, offset), ("message", unhex(header).len() + 6));
    assert_eq!(reason, "1 members of the push/pull refused; the first: Addr: an address of 3 bytes");
    let whole = unhex(&format!("{header} 81a44e616d65a16e"));
    assert!(stream(&whole, &plain, StreamSide::Accepted).is_ok());
    for len in 1..whole.len() {
        assert_eq!(stream_stop(&whole[..len], &plain), ("message", len, "cut short".to_owned()));
    }
    assert_eq!(stream_stop(b"", &plain), ("label", 0, "cut short".to_owned()));
    assert_eq!(stream_stop(b"\x0a\xff\xff\xff\xff", &keyed()).0, "encryption");
    assert_eq!(stream_stop(b"\x0a\xff\xff\xff\xff", &keyed()).1, 1);
    assert_eq!(
        stream_stop(b"\x08", &keyed()),
        ("encryption", 0, "not encrypted, though there is a key here".to_owned())
    );
    assert_eq!(stream_stop(b"\x04", &plain), ("message", 0, "message type 4 may not stand here".to_owned()));
    // Inside encryption and compression, offsets count from the layer that they are in.
    let options = PacketOptions { compression: Compression::Snappy, ..keyed() };
    let request = encode_request(&StreamMessage::Error("e".repeat(300)), &options, &mut nonces());
    let seen = stream(&request, &options, StreamSide::Accepted);
    assert!(seen.is_ok());
    assert!(matches!(
        seen.layers[..],
        [Layer::Encryption { key: 0, .. }, Layer::Compression { algorithm: 1, plain: 311, .. }]
    ));
}

#[test]
fn what_a_push_pull_says_has_the_names_of_the_wire() {
    let hex = "0683a44a6f696ec3a54e6f64657301ac5573657253746174654c656e0287a441646472a47f000001ab496e6361726e6174696f6e01a4\
               4d657461c0a44e616d65a26e31a4506f7274cd46b4a5537461746503a356736ea60105020000007573";
    let json = stream(&unhex(hex), &PacketOptions::default(), StreamSide::Dialed).to_json();
    let node = json!({
        "Addr": "7f000001", "Incarnation": 1, "Meta": "", "Name": "n1", "Port": 18100, "State": 3,
        "Vsn": "010502000000", "address": "127.0.0.1:18100",
    });
    let message = json!({
        "type": "push_pull", "Join": true, "Nodes": 1, "UserStateLen": 2, "nodes": [node], "user_state": "7573",
    });
    assert_eq!(json["messages"], json!([message]));
}

#[test]
fn the_framing_of_grafana_is_a_layer() {
    let packet = "010e3132372e302e302e313a37393436 086869";
    let wrong = unhex(&format!("{packet} 00000000000000000000000000000000"));
    let seen = grafana(&wrong, &any_label());
    let stop = seen.error.unwrap();
    assert_eq!((stop.stage, stop.offset, stop.error), (Stage::Grafana, 19, WireError::DigestMismatch));

    let framed = super::super::grafana::encode_packet("127.0.0.1:7946", b"\x08hi").unwrap();
    let json = grafana(&framed, &any_label()).to_json();
    let layer = json!({ "layer": "grafana", "carries": "packet", "from": "127.0.0.1:7946", "bytes": 3 });
    assert_eq!(
        (&json["layers"], &json["messages"]),
        (&json!([layer]), &json!([{ "type": "user", "payload": "6869" }]))
    );

    let json = grafana(b"\x02\x08\x81\xaaUserMsgLen\x01x", &any_label()).to_json();
    assert_eq!(json["layers"][0], json!({ "layer": "grafana", "carries": "stream", "from": null, "bytes": 15 }));
    assert_eq!(json["messages"], json!([{ "type": "user", "UserMsgLen": 1, "payload": "78" }]));
    for (bytes, offset) in [(&b""[..], 0), (b"\x03", 0), (b"\x01", 1), (b"\x01\x05ab", 4)] {
        let stop = grafana(bytes, &any_label()).error.unwrap();
        assert_eq!((stop.stage, stop.offset), (Stage::Grafana, offset), "{bytes:?}");
    }
}
