//! Tests of the layers together: Go's layered bytes both ways, keys on both sides, and bytes that were tampered with.

#![allow(clippy::unwrap_used)]

use std::convert::Infallible;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{SeedableRng, TryCryptoRng, TryRng};

use super::*;

/// Gives the nonce that Go happened to draw.
struct Drawn<'a>(&'a [u8]);

impl TryRng for Drawn<'_> {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        unreachable!("a nonce is drawn as bytes, never as a number")
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        unreachable!("a nonce is drawn as bytes, never as a number")
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        out.copy_from_slice(self.0);
        Ok(())
    }
}

impl TryCryptoRng for Drawn<'_> {}

fn nonces() -> StdRng {
    StdRng::seed_from_u64(1)
}

fn keyring(keys: &[&[u8]]) -> Keyring {
    Keyring::new(keys.iter().map(|key| Key::new(key).unwrap())).unwrap()
}

fn keyed() -> PacketOptions {
    PacketOptions { keyring: keyring(&[b"0123456789abcdef"]), ..PacketOptions::default() }
}

fn labelled(label: &str, options: PacketOptions) -> PacketOptions {
    PacketOptions { label: label.parse().unwrap(), ..options }
}

fn unhex(hex: &str) -> Bytes {
    hex::decode(hex).unwrap().into()
}

/// A ping and two suspicions in a compound, and what Go makes of it with ever more layers.
const INNER: &str = "0703003d001f001f0085a44e6f6465a26e32a55365714e6f2aaa536f7572636541646472a47f000001aa536f757263654e6f6465a26e31aa536f75726365506f7274cd490d0383a446726f6da26e31ab496e6361726e6174696f6e03a44e6f6465a26e320383a446726f6da26e31ab496e6361726e6174696f6e03a44e6f6465a26e32";
const CRC_LZW: &str = "0c0998952b0982a4416c676f00a3427566da0071000f0c00d003c00783000a9172f2864c19516e64949a52260e4315aaa6bca923674c992064c8c821f5070080001937762cc3d021c41829397a84f2460e9d66491a0c1844ca889c376d5eae4ae2664c18396ec2d049f3c6cd80850d1f46dcd9f36750373186163d9a7469d3a72da5ca0808";
const LABEL_KEY_CRC_LZW: &str = "f4036c626c01376338d00e28bc800387942bba949e7408cab06e6ef37bb682d65174163045930c8238b49f3b79b7a8d57e36785bdaaceef50ece90eeeef2e05617c9c0d5d72b3c479771f56bcac3210cc6a6f928756db95800458d9fcc3ba357b4b5f79e55d5147accab230137ce687418cf6fe33460a3cccec8348f5cc7cd00fcf8b48ba03fd90a18118390d348b391b5118e8f8dcdf8d41c26155666b16f455a14b3c1397622";

/// A push/pull of one node, without layers, with a key, and with a key and a label.
const STREAM: &str = "0683a44a6f696ec3a54e6f64657301ac5573657253746174654c656e0087a441646472a47f000001ab496e6361726e6174696f6e01a44d657461c0a44e616d65a26e31a4506f7274cd46b4a5537461746500a356736ea6010502000000";
const STREAM_KEY: &str = "0a0000007a01d6a1a1b1f729768028342e4a6640ada518611569b7b290ab74db4462b007be75bb7f21f59edc764f5c3065b3e95fc8c2919d880771e7e37db5f5a084bae68fd25aa8b36cf6ee117ba20cb2cf0d32e8287cfdb60590c0529e0c72d1e358e50bea479c7783026e557476ead15f96c2ce29d8a37451f5af0f72e7";
const STREAM_LABEL_KEY: &str = "f4036c626c0a0000007a01e237dbe6b578334fa927ebfa5682ae2b338b3778a40587e5679fc71d51b3b574245b3faed60b9dc89ef2250f66917f548194e9817f150231b50b9df563ddae80ab672adc6e1c616c1b8a6dbe833c078fcf70ae88a0ebd87560f0fac352f645fa413ab96de356dba6dc82638a5b6b2bba3d3398d57bd8963764";

#[test]
fn the_layers_of_a_packet_are_read_and_written_as_go_writes_them() {
    let plain = decode_packet(&unhex(INNER), &PacketOptions::default()).unwrap();
    assert!(matches!(plain.messages[..], [Message::Ping(_), Message::Suspect(_), Message::Suspect(_)]));
    let parts: Vec<Bytes> = plain.messages.iter().map(encode_message).collect();

    let packing = PacketOptions { compression: Compression::Lzw, ..PacketOptions::default() };
    assert_eq!(decode_packet(&unhex(CRC_LZW), &PacketOptions::default()).unwrap(), plain);
    assert_eq!(encode_packets(&parts, &packing, true, &mut nonces()), [unhex(CRC_LZW)]);

    let all = labelled("lbl", PacketOptions { compression: Compression::Lzw, ..keyed() });
    let bytes = unhex(LABEL_KEY_CRC_LZW);
    assert_eq!(decode_packet(&bytes, &all).unwrap(), Packet { label: all.label.clone(), ..plain });
    assert_eq!(encode_packets(&parts, &all, true, &mut Drawn(&bytes[6..18])), std::slice::from_ref(&bytes));
}

#[test]
fn the_layers_of_a_stream_are_read_and_written_as_go_writes_them() {
    let plain = decode(&unhex(STREAM), &PacketOptions::default(), StreamSide::Accepted).unwrap();
    for (hex, options, nonce) in [(STREAM_KEY, keyed(), 6..18), (STREAM_LABEL_KEY, labelled("lbl", keyed()), 11..23)] {
        let bytes = unhex(hex);
        assert_eq!(decode(&bytes, &options, StreamSide::Accepted).unwrap(), plain);
        assert_eq!(hex::encode(encode_request(&plain, &options, &mut Drawn(&bytes[nonce]))), hex);
    }
}

/// Feeds a stream byte by byte, and all at once: both must give the same.
fn decode(bytes: &[u8], options: &PacketOptions, side: StreamSide) -> Result<StreamMessage, WireError> {
    let by = |size| {
        let mut decoder = StreamDecoder::new(options, side);
        let mut message = None;
        for piece in bytes.chunks(size) {
            decoder.feed(piece)?;
            message = message.or(decoder.poll()?);
        }
        decoder.finish()?;
        message.ok_or(WireError::Empty)
    };
    let at_once = by(bytes.len().max(1));
    assert_eq!(by(1), at_once);
    at_once
}

fn reason(bytes: &Bytes, options: &PacketOptions) -> Result<usize, &'static str> {
    decode_packet(bytes, options).map(|packet| packet.messages.len()).map_err(|error| error.reason())
}

fn stream_reason(bytes: &Bytes, options: &PacketOptions, side: StreamSide) -> Result<(), &'static str> {
    decode(bytes, options, side).map(drop).map_err(|error| error.reason())
}

fn user() -> StreamMessage {
    StreamMessage::User(Bytes::from_static(b"hi"))
}

fn packet(options: &PacketOptions) -> Bytes {
    let parts = [encode_message(&Message::Nack(Nack { seq_no: 7 }))];
    encode_packets(&parts, options, true, &mut nonces()).remove(0)
}

#[test]
fn with_a_key_plaintext_is_refused_unless_incoming_is_not_verified() {
    let (plain, strict) = (PacketOptions::default(), keyed());
    let lax = PacketOptions { verify_incoming: false, ..keyed() };
    let quiet = PacketOptions { verify_incoming: false, verify_outgoing: false, ..keyed() };
    assert_eq!(packet(&quiet), packet(&plain), "a node that does not encrypt what it sends");
    assert_eq!(encode_request(&user(), &quiet, &mut nonces()), encode_request(&user(), &plain, &mut nonces()));

    for (sender, receiver, packets, streams) in [
        (&strict, &strict, Ok(1), Ok(())),
        (&strict, &lax, Ok(1), Ok(())),
        (&strict, &quiet, Ok(1), Ok(())),
        (&quiet, &quiet, Ok(1), Ok(())),
        (&quiet, &strict, Err("not_encrypted"), Err("not_encrypted")),
        (&plain, &strict, Err("not_encrypted"), Err("not_encrypted")),
        (&plain, &lax, Ok(1), Ok(())),
        // Without a key the version byte is the type of an indirect ping.
        (&strict, &plain, Err("wrong_type"), Err("no_key")),
    ] {
        let got = reason(&packet(sender), receiver);
        assert_eq!(got.is_ok(), packets.is_ok(), "{got:?}");
        if sender.keyring == receiver.keyring || receiver.verify_incoming && !receiver.keyring.is_empty() {
            assert_eq!(got, packets);
        }
        let request = encode_request(&user(), sender, &mut nonces());
        assert_eq!(stream_reason(&request, receiver, StreamSide::Accepted), streams);
        let reply = encode_reply(&user(), sender, &Label::NONE, &mut nonces());
        assert_eq!(stream_reason(&reply, receiver, StreamSide::Dialed), streams);
    }
    // A ping in the clear looks like an encrypted packet, to a node with a key.
    let ping = Message::Ping(Ping { seq_no: 1, node: NodeName::from("n"), source: None });
    let ping = encode_message(&ping);
    assert_eq!(reason(&ping, &strict), Err("not_decrypted"));
    assert_eq!(reason(&ping, &lax), Ok(1));
    assert_eq!(reason(&ping.slice(..5), &lax), Err("not_decrypted"));
}

#[test]
fn another_key_or_label_or_transport_is_refused() {
    let other_key = PacketOptions { keyring: keyring(&[b"fedcba9876543210"]), ..keyed() };
    assert_eq!(reason(&packet(&other_key), &keyed()), Err("not_decrypted"));
    let lax = PacketOptions { verify_incoming: false, ..keyed() };
    assert_eq!(reason(&packet(&other_key), &lax), Err("not_decrypted"));
    let request = encode_request(&user(), &other_key, &mut nonces());
    for receiver in [keyed(), lax] {
        assert_eq!(stream_reason(&request, &receiver, StreamSide::Accepted), Err("not_decrypted"));
    }
    let both = PacketOptions { keyring: keyring(&[b"0123456789abcdef", b"fedcba9876543210"]), ..keyed() };
    assert_eq!(reason(&packet(&other_key), &both), Ok(1));
    assert_eq!(stream_reason(&request, &both, StreamSide::Accepted), Ok(()));

    // The label is authenticated: it cannot be exchanged on the way.
    let (a, b) = (labelled("aaa", keyed()), labelled("bbb", keyed()));
    let relabelled = |bytes: &Bytes| Bytes::from([b"\xf4\x03bbb", &bytes[5..]].concat());
    assert_eq!(reason(&packet(&a), &a), Ok(1));
    assert_eq!(reason(&relabelled(&packet(&a)), &b), Err("not_decrypted"));
    let request = encode_request(&user(), &a, &mut nonces());
    assert_eq!(stream_reason(&relabelled(&request), &b, StreamSide::Accepted), Err("not_decrypted"));
    let reply = encode_reply(&user(), &a, &a.label, &mut nonces());
    assert_eq!(stream_reason(&reply, &a, StreamSide::Dialed), Ok(()));
    assert_eq!(stream_reason(&reply, &b, StreamSide::Dialed), Err("not_decrypted"));

    // What was sealed for a stream is no packet, and the reverse.
    let request = encode_request(&user(), &keyed(), &mut nonces());
    assert_eq!(reason(&request.slice(5..), &keyed()), Err("not_decrypted"));
    let blob = packet(&keyed());
    let framed = [&[10][..], &(blob.len() as u32).to_be_bytes(), &blob].concat();
    assert_eq!(stream_reason(&framed.into(), &keyed(), StreamSide::Accepted), Err("not_decrypted"));
}

#[test]
fn a_cluster_that_changes_its_label_answers_each_dialer_under_its_own() {
    let old = labelled("old", keyed());
    let moving = PacketOptions { accepted_labels: vec!["old".parse().unwrap()], ..labelled("new", keyed()) };
    assert_eq!(reason(&packet(&old), &moving), Ok(1));
    let mut decoder = StreamDecoder::new(&moving, StreamSide::Accepted);
    decoder.feed(&encode_request(&user(), &old, &mut nonces())).unwrap();
    assert_eq!(decoder.poll(), Ok(Some(user())));
    assert_eq!(*decoder.label(), old.label);
    let reply = encode_reply(&user(), &moving, decoder.label(), &mut nonces());
    assert_eq!(decode(&reply, &old, StreamSide::Dialed), Ok(user()));
}

#[test]
fn an_encrypted_frame_that_is_too_long_is_refused_before_it_is_read() {
    let claim = |len: usize| {
        let mut decoder = StreamDecoder::new(&keyed(), StreamSide::Dialed);
        decoder.feed(&[&[10][..], &(len as u32).to_be_bytes()].concat()).unwrap();
        decoder.poll().map_err(|error| error.reason())
    };
    assert_eq!(claim(stream::MAX_ENCRYPTED), Ok(None));
    assert_eq!(claim(stream::MAX_ENCRYPTED + 1), Err("too_long"));
    assert_eq!(claim(u32::MAX as usize), Err("too_long"));
    assert_eq!(claim(0), Err("not_decrypted"));
    let long = StreamMessage::User(vec![7; 1 << 20].into());
    let bytes = encode_request(&long, &keyed(), &mut nonces());
    let mut decoder = StreamDecoder::new(&keyed(), StreamSide::Accepted);
    for piece in bytes.chunks(10_000) {
        assert_eq!(decoder.poll(), Ok(None));
        decoder.feed(piece).unwrap();
    }
    assert!(decoder.poll() == Ok(Some(long)));
}

/// A stream with these layers around these bytes, which no peer writes.
fn framed(plain: &[u8]) -> Bytes {
    let options = keyed();
    let len = EncryptionVersion::V1.sealed_len(plain.len()) as u32;
    let mut out = [&[10][..], &len.to_be_bytes()].concat();
    let aad = out.clone();
    crypt::seal(&mut out, plain, options.keyring.primary().unwrap(), EncryptionVersion::V1, [1; 12], &aad);
    out.into()
}

fn packed(plain: &[u8]) -> Vec<u8> {
    let long = [plain, &[0; 200]].concat();
    compress::encode(&long, Compression::Lzw).unwrap()
}

#[test]
fn each_layer_of_a_stream_comes_once_and_in_order() {
    let nack = |bytes: Bytes| stream_reason(&bytes, &keyed(), StreamSide::Accepted);
    let plain = encode_reply(&user(), &PacketOptions::default(), &Label::NONE, &mut nonces());
    assert_eq!(nack(framed(&plain)), Ok(()));
    assert_eq!(nack(framed(&packed(&plain))), Ok(()));
    assert_eq!(nack(framed(&packed(&packed(&plain)))), Err("misplaced_type"));
    assert_eq!(nack(framed(&framed(&plain))), Err("misplaced_type"));
    assert_eq!(nack(framed(&packed(&framed(&plain)))), Err("misplaced_type"));
    assert_eq!(nack(packed(&framed(&plain)).into()), Err("not_encrypted"));
    assert_eq!(nack(framed(b"")), Err("truncated"), "nothing was encrypted");
    assert_eq!(nack(framed(&plain[..5])), Err("truncated"), "all of it is there, and it is not enough");
    assert_eq!(nack(framed(b"\xf4\x01x\x08")), Err("misplaced_type"));
    let more = Bytes::from([&framed(&plain)[..], b"more of it"].concat());
    assert_eq!(nack(more), Ok(()), "what follows the frame is ignored");

    let unkeyed = |bytes: &[u8]| decode(bytes, &PacketOptions::default(), StreamSide::Accepted);
    assert_eq!(unkeyed(&packed(&plain)), Ok(user()));
    assert_eq!(unkeyed(&[&packed(&plain)[..], b"more"].concat()), Ok(user()));
    assert_eq!(unkeyed(&packed(&packed(&plain))), Err(WireError::Misplaced(9)));
    assert_eq!(
        unkeyed(&packed(b"\x08\x81\xaaUserMsgLen\xcd\x10\x00")),
        Err(WireError::Truncated),
        "4 096 zeros are not there"
    );
}

#[test]
fn each_layer_of_a_packet_comes_once_and_in_order() {
    let seal = |plain: &[u8]| {
        let mut out = Vec::new();
        crypt::seal(&mut out, plain, keyed().keyring.primary().unwrap(), EncryptionVersion::V1, [1; 12], b"");
        Bytes::from(out)
    };
    let crc = |rest: &[u8]| {
        let mut out = Vec::new();
        crc::write(&mut out, rest);
        [&out[..], rest].concat()
    };
    let get = |bytes: &[u8]| reason(&seal(bytes), &keyed());
    assert_eq!(get(b"\x08hi"), Ok(1));
    assert_eq!(get(&crc(&packed(b"\x08hi"))), Ok(1));
    assert_eq!(get(b""), Err("empty"));
    assert_eq!(get(&seal(b"\x08hi")), Err("wrong_type"), "the version byte is the type of an indirect ping");
    assert_eq!(get(b"\xf4\x01l\x08hi"), Err("misplaced_type"));
    assert_eq!(get(&crc(&crc(b"\x08hi"))), Err("misplaced_type"));
    assert_eq!(get(&packed(&crc(b"\x08hi"))), Err("misplaced_type"));
    assert_eq!(get(&packed(&packed(b"\x08hi"))), Err("misplaced_type"));
    assert_eq!(get(&packed(&[10, 0, 0, 0, 40])), Err("misplaced_type"));
    let compound = [&b"\x07\x01"[..], &(packed(b"\x08hi").len() as u16).to_be_bytes(), &packed(b"\x08hi")].concat();
    let refused = decode_packet(&seal(&compound), &keyed()).unwrap().refused;
    assert_eq!(refused, [WireError::Misplaced(9)]);
}

#[test]
fn nonces_do_not_repeat() {
    let (mut rng, options) = (nonces(), keyed());
    let parts = [encode_message(&Message::Nack(Nack { seq_no: 7 }))];
    let mut seen = std::collections::HashSet::new();
    for _ in 0..500 {
        let sent = encode_packets(&parts, &options, false, &mut rng).remove(0);
        assert!(seen.insert(sent.slice(1..13)));
        let sent = encode_request(&user(), &options, &mut rng);
        assert!(seen.insert(sent.slice(6..18)));
    }
}

/// All combinations of label, keys, version and compression that make sense to send.
pub(super) fn any_options() -> impl Strategy<Value = PacketOptions> {
    let label = prop_oneof![Just(Vec::new()), vec(any::<u8>(), 0..=255)];
    let key = |len| vec(any::<u8>(), len);
    let keys = prop_oneof![Just(Vec::new()), vec(prop_oneof![key(16), key(24), key(32)], 1..4),];
    let version = prop_oneof![Just(EncryptionVersion::V0), Just(EncryptionVersion::V1)];
    let compression = prop_oneof![Just(Compression::None), Just(Compression::Lzw), Just(Compression::Snappy)];
    (label, keys, version, compression).prop_map(|(label, keys, encryption_version, compression)| PacketOptions {
        label: Label::new(label).unwrap(),
        keyring: keyring(&keys.iter().map(Vec::as_slice).collect::<Vec<_>>()),
        encryption_version,
        compression,
        ..PacketOptions::default()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_sealed_packet_that_was_changed_is_refused(
        payload in vec(any::<u8>(), 0..300),
        options in any_options(),
        crc: bool,
        at in any::<proptest::sample::Index>(),
        bit in 0..8u8,
        cut in any::<proptest::sample::Index>(),
    ) {
        prop_assume!(!options.keyring.is_empty());
        let sent = [encode_message(&Message::User(payload.into()))];
        let packet = encode_packets(&sent, &options, crc, &mut nonces()).remove(0);
        prop_assert!(packet.len() <= sent[0].len() + packet_overhead(&options));
        prop_assert!(decode_packet(&packet.slice(..cut.index(packet.len())), &options).is_err());
        let mut damaged = packet.to_vec();
        let at = at.index(damaged.len());
        damaged[at] ^= 1 << bit;
        let refused = decode_packet(&damaged.into(), &options);
        // The version byte alone is not authenticated, on this wire.
        prop_assert!(refused.is_err() || at == options.label.header_len());
        let lax = PacketOptions { verify_incoming: false, ..options };
        prop_assert!(decode_packet(&packet, &lax).is_ok());
    }

    #[test]
    fn a_sealed_stream_that_was_changed_is_refused(
        payload in vec(any::<u8>(), 0..300),
        options in any_options(),
        at in any::<proptest::sample::Index>(),
        bit in 0..8u8,
        cut in any::<proptest::sample::Index>(),
    ) {
        prop_assume!(!options.keyring.is_empty());
        let stream = encode_request(&StreamMessage::User(payload.into()), &options, &mut nonces());
        let cut = cut.index(stream.len() - 1) + 1;
        prop_assert_eq!(decode(&stream[..cut], &options, StreamSide::Accepted), Err(WireError::Truncated));
        let mut damaged = stream.to_vec();
        let at = at.index(damaged.len());
        damaged[at] ^= 1 << bit;
        let refused = decode(&damaged, &options, StreamSide::Accepted);
        prop_assert!(refused.is_err() || at == options.label.header_len() + 5);
    }

    #[test]
    fn random_bytes_are_survived_with_a_key(kind in prop_oneof![0..=13u8, any::<u8>()], rest in vec(any::<u8>(), 0..200)) {
        let bytes = Bytes::from([&[kind], &rest[..]].concat());
        for options in [keyed(), PacketOptions { verify_incoming: false, ..keyed() }] {
            let _ = decode_packet(&bytes, &options);
            let _ = decode(&bytes, &options, StreamSide::Accepted);
            // And behind a key, where only a member of the cluster can put them.
            let _ = decode(&framed(&bytes), &options, StreamSide::Accepted);
        }
    }
}
