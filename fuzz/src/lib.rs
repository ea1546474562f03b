//! What each fuzz target feeds to the decoders, and what must hold whatever the bytes are.
//!
//! The targets in `fuzz_targets/` only name these functions, and `tests/fuzz_corpus.rs` runs the same ones over the seeds
//! and over everything that was ever found. A property that fails panics. `docs/fuzzing.md` says how to run them.
//!
//! Everything goes through the public API: what cannot be reached through it cannot be reached by a stranger either.

use annulus::wire::grafana::{self, Connection, FrameDecoder};
use annulus::wire::inspect::{self, Inspected, Inspection, Layer};
use annulus::wire::{
    COMPOUND_MAX_PARTS, Compression, EncryptionVersion, Key, Keyring, Label, MAX_LABEL, Message, Packet, PacketOptions,
    Stage, StreamDecoder, StreamMessage, StreamSide, WireError, decode_packet, encode_message, encode_packets,
    encode_reply, encode_request,
};
use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::StdRng;

/// Most bytes that all layers of one packet may make: half a MiB, by documentation.
const PACKET_BYTES: usize = 512 << 10;

/// The lengths of the keys of every target that has some. Their bytes count up from 0, as in the golden bytes.
const KEYS: [u8; 3] = [16, 24, 32];

fn nonces() -> StdRng {
    StdRng::seed_from_u64(1)
}

fn keyring() -> Keyring {
    Keyring::new(KEYS.map(key)).expect("three keys")
}

fn key(len: u8) -> Key {
    Key::new(&(0..len).collect::<Vec<u8>>()).expect("a key")
}

/// Options that the first byte of the input chooses.
fn options(choice: u8) -> PacketOptions {
    PacketOptions {
        label: if choice & 1 == 0 { Label::NONE } else { Label::new("lab").expect("a label") },
        verify_label: choice & 2 == 0,
        keyring: if choice & 4 == 0 { Keyring::default() } else { keyring() },
        verify_incoming: choice & 8 == 0,
        encryption_version: if choice & 16 == 0 { EncryptionVersion::V1 } else { EncryptionVersion::V0 },
        compression: match choice >> 5 & 3 {
            0 | 1 => Compression::None,
            2 => Compression::Lzw,
            _ => Compression::Snappy,
        },
        ..PacketOptions::default()
    }
}

/// A packet with any layers. The first byte chooses the options, the rest is the packet.
pub fn packet(data: &[u8]) {
    let Some((choice, rest)) = data.split_first() else { return };
    let _ = check_packet(&Bytes::copy_from_slice(rest), &options(*choice));
}

/// A stream with any layers, cut anyhow. The first byte chooses the options, the second the side and the pieces.
pub fn stream(data: &[u8]) {
    let [choice, cut, rest @ ..] = data else { return };
    let side = if cut & 1 == 0 { StreamSide::Accepted } else { StreamSide::Dialed };
    let _ = check_stream(rest, &options(*choice), side, usize::from(cut >> 1));
}

/// A label header: the input is a packet, and the start of a stream.
pub fn label(data: &[u8]) {
    let packet = Bytes::copy_from_slice(data);
    let any = PacketOptions { verify_label: false, ..PacketOptions::default() };
    let _ = check_packet(&packet, &any);
    let _ = check_stream(data, &any, StreamSide::Accepted, 1);
    let seen = inspect::packet(&packet, &any);
    let Some(Layer::Label(label)) = seen.layers.first() else {
        let whole = matches!(data, [0xf4, len, rest @ ..] if *len > 0 && rest.len() >= usize::from(*len));
        assert!(!whole, "a label was not seen");
        return;
    };
    assert_eq!(label.as_bytes(), &data[2..2 + usize::from(data[1])]);
    assert!(label.as_bytes().len() <= MAX_LABEL && !label.is_empty());
    assert!(label.to_string().bytes().all(|byte| (0x20..0x7f).contains(&byte)), "a label in a log is printable");
    let strict = |label: Label| PacketOptions { label, ..PacketOptions::default() };
    assert_eq!(decode_packet(&packet, &strict(label.clone())), decode_packet(&packet, &any));
    let longer = Label::new([label.as_bytes(), b"x"].concat()).unwrap_or(Label::NONE);
    for other in [Label::NONE, longer] {
        assert_eq!(decode_packet(&packet, &strict(other)), Err(WireError::WrongLabel { got: label.clone() }));
    }
}

/// What lies behind a key. The first byte chooses version, key and label; the rest is what a holder of the key encrypts.
pub fn encryption(data: &[u8]) {
    let Some((&choice, plain)) = data.split_first() else { return };
    let ours = options(choice & !0b0110_1010 | 4);
    let plain = Bytes::copy_from_slice(plain);
    // A stranger's bytes never open.
    let _ = check_packet(&plain, &ours);
    assert!(decode_packet(&plain, &ours).is_err(), "a forgery was accepted");
    assert!(
        decode_stream(&plain, &PacketOptions { label: Label::NONE, ..ours.clone() }, StreamSide::Dialed, 0).is_err()
    );
    // What a member encrypts says what it says in the clear.
    let theirs = match choice & 128 {
        0 => ours.clone(),
        _ => PacketOptions { keyring: Keyring::new([key(KEYS[2])]).expect("one key"), ..ours.clone() },
    };
    let sealed = encode_packets(std::slice::from_ref(&plain), &theirs, false, &mut nonces()).remove(0);
    let _ = check_packet(&sealed, &ours);
    let clear = decode_packet(&plain, &PacketOptions::default());
    if plain.first() != Some(&0xf4) {
        let clear = clear.map(|packet| Packet { label: ours.label.clone(), ..packet });
        assert_eq!(decode_packet(&sealed, &ours), clear);
    }
    // The version byte is not authenticated: read as padded, the text must be in order by itself.
    let mut swapped = sealed.to_vec();
    swapped[ours.label.header_len()] ^= 1;
    let _ = check_packet(&swapped.into(), &ours);
    // For another cluster, it is noise.
    let other = PacketOptions { keyring: Keyring::new([Key::new(&[7; 24]).expect("a key")]).expect("one key"), ..ours };
    assert_eq!(decode_packet(&sealed, &other), Err(WireError::NotDecrypted));
}

/// Compressed data. The first byte chooses the algorithm; the rest is the data, and a text to compress.
pub fn compression(data: &[u8]) {
    let Some((&algorithm, rest)) = data.split_first() else { return };
    let message = [&[9, 0x82, 0xa4][..], b"Algo", &[algorithm & 3, 0xa3], b"Buf", &raw(rest), rest].concat();
    let _ = check_packet(&Bytes::from(message.clone()), &PacketOptions::default());
    let _ = check_stream(&message, &PacketOptions::default(), StreamSide::Dialed, 0);
    let compression = if algorithm & 1 == 0 { Compression::Lzw } else { Compression::Snappy };
    let options = PacketOptions { compression, ..PacketOptions::default() };
    let user = Message::User(Bytes::copy_from_slice(rest));
    let sent = encode_packets(&[encode_message(&user)], &options, false, &mut nonces()).remove(0);
    assert_eq!(decode_packet(&sent, &PacketOptions::default()).expect("our own").messages, [user]);
}

/// A compound: the input is what follows its type byte, and a list of payloads by length.
pub fn compound(data: &[u8]) {
    let bytes = Bytes::from([&[7], data].concat());
    let decoded = check_packet(&bytes, &PacketOptions::default());
    if let Ok(packet) = decoded {
        let lost = packet.refused.iter().map(|error| match error {
            WireError::CompoundTruncated { lost } => *lost,
            _ => 1,
        });
        assert_eq!(packet.messages.len() + lost.sum::<usize>(), usize::from(data[0]));
    }
    // Payloads of many lengths, as the bytes say.
    let mut payloads = Vec::new();
    let mut rest = &data[..data.len().min(PACKET_BYTES / 2)];
    while let [len, tail @ ..] = rest {
        let (payload, tail) = tail.split_at(usize::from(*len).min(tail.len()));
        payloads.push(Message::User(Bytes::copy_from_slice(payload)));
        rest = tail;
    }
    let parts: Vec<Bytes> = payloads.iter().map(encode_message).collect();
    let packets = encode_packets(&parts, &PacketOptions::default(), true, &mut nonces());
    assert_eq!(packets.len(), parts.len().div_ceil(COMPOUND_MAX_PARTS));
    let heard =
        packets.iter().flat_map(|packet| decode_packet(packet, &PacketOptions::default()).expect("our own").messages);
    assert!(heard.eq(payloads));
}

/// The msgpack body of each message. The first byte is the type.
pub fn body(data: &[u8]) {
    let Some((&kind, body)) = data.split_first() else { return };
    let bytes = [&[kind & 15], body].concat();
    let _ = check_packet(&Bytes::from(bytes.clone()), &PacketOptions::default());
    let _ = check_stream(&bytes, &PacketOptions::default(), StreamSide::Dialed, 0);
}

/// A push/pull: the first byte says how it is cut, the rest is what follows the type byte.
pub fn push_pull(data: &[u8]) {
    let Some((&cut, rest)) = data.split_first() else { return };
    let bytes = [&[6], rest].concat();
    let decoded = check_stream(&bytes, &PacketOptions::default(), StreamSide::Dialed, usize::from(cut));
    if let Ok(StreamMessage::PushPull(push_pull)) = decoded {
        assert!(push_pull.nodes.len() + push_pull.user_state.len() <= rest.len(), "more than arrived");
    }
}

/// A connection of dskit's transport. The first byte says how it is cut.
pub fn grafana_frame(data: &[u8]) {
    let Some((&cut, bytes)) = data.split_first() else { return };
    const MAX: usize = 4 << 10;
    let decode = |size: usize| {
        let mut decoder = FrameDecoder::new(MAX);
        for piece in bytes.chunks(size.max(1)) {
            decoder.feed(piece)?;
        }
        decoder.finish()
    };
    let frame = decode(usize::MAX);
    let cut = decode(usize::from(cut));
    // Cut, too long is found before the end and not by how much.
    assert!(frame == cut || matches!((&frame, &cut), (Err(WireError::TooLong { .. }), Err(WireError::TooLong { .. }))));
    let options = PacketOptions { verify_label: false, ..PacketOptions::default() };
    check_inspection(&inspect::grafana(bytes, &options), bytes.len());
    if let Ok(frame) = frame {
        assert!(frame.packet.len() + frame.from.len() + 18 == bytes.len() && frame.packet.len() <= MAX);
        assert_eq!(grafana::encode_packet(&frame.from, &frame.packet).expect("short enough"), bytes);
        let _ = check_packet(&frame.packet, &options);
    } else if let Some(Ok(Connection::Stream)) = bytes.first().copied().map(Connection::by) {
        let _ = check_stream(&bytes[1..], &options, StreamSide::Accepted, 0);
    }
    // With the digest put right, the packet gets through.
    if let [1, len, rest @ ..] = bytes
        && let Some((from, packet)) = rest.split_at_checked(usize::from(*len))
        && let Ok(from) = std::str::from_utf8(from)
        && !from.chars().any(char::is_control)
        && (1..=MAX).contains(&packet.len())
    {
        let sent = grafana::encode_packet(from, packet).expect("short enough");
        let mut decoder = FrameDecoder::new(MAX);
        decoder.feed(&sent).expect("not too long");
        assert_eq!(decoder.finish().expect("our own").packet, packet);
        let _ = check_packet(&Bytes::copy_from_slice(packet), &options);
    }
}

/// The head of a raw string of this length.
fn raw(bytes: &[u8]) -> Vec<u8> {
    [&[0xdb][..], &(bytes.len() as u32).to_be_bytes()].concat()
}

/// Whatever a packet is: it decodes to the same twice and says the same when written again, makes no more than it may,
/// and its explanation agrees.
fn check_packet(bytes: &Bytes, options: &PacketOptions) -> Result<annulus::wire::Packet, WireError> {
    let decoded = decode_packet(bytes, options);
    let seen = inspect::packet(bytes, options);
    check_inspection(&seen, bytes.len());
    match &decoded {
        Ok(packet) => {
            let payloads = packet.messages.iter().map(|message| match message {
                Message::User(payload) => payload.len(),
                Message::Ack(ack) => ack.payload.len(),
                Message::Alive(alive) => alive.meta.len(),
                _ => 0,
            });
            assert!(payloads.sum::<usize>() <= PACKET_BYTES + bytes.len(), "more than a packet may make");
            let inspected: Vec<Inspected> = packet.messages.iter().cloned().map(Inspected::Packet).collect();
            // Only the explanation guesses that a ping which says nothing is an encrypted packet.
            let guess = seen.error.as_ref().is_some_and(|stop| stop.stage == Stage::Encryption);
            let agree = inspected == seen.messages && seen.is_ok() == packet.refused.is_empty();
            assert!(agree || guess && packet.messages.len() == 1, "the explanation differs");
            if packet.messages.iter().map(encode_message).all(|message| message.len() <= PACKET_BYTES / 255) {
                let parts: Vec<Bytes> = packet.messages.iter().map(encode_message).collect();
                let again = encode_packets(&parts, options, true, &mut nonces());
                let heard = again.iter().flat_map(|packet| decode_packet(packet, options).expect("our own").messages);
                assert!(heard.eq(packet.messages.iter().cloned()), "a round trip changes it");
            }
        }
        Err(error) => {
            let stop = seen.error.expect("refused, and the explanation says it is in order");
            // Only the explanation guesses that an encrypted packet is one.
            assert!(stop.error == *error || stop.error == WireError::NoKey || *error == WireError::NotDecrypted);
        }
    }
    decoded
}

/// The same for streams, however they are cut.
fn check_stream(
    bytes: &[u8],
    options: &PacketOptions,
    side: StreamSide,
    piece: usize,
) -> Result<StreamMessage, WireError> {
    let decoded = decode_stream(bytes, options, side, 0);
    let cut = decode_stream(bytes, options, side, piece);
    assert!(decoded == cut, "in pieces of {piece}: {cut:?}, at once: {decoded:?}");
    let seen = inspect::stream(bytes, options, side);
    check_inspection(&seen, bytes.len());
    match &decoded {
        Ok(message) => {
            assert_eq!(seen.messages, [Inspected::Stream(message.clone())]);
            let mut again = match side {
                StreamSide::Accepted => encode_request(message, options, &mut nonces()),
                StreamSide::Dialed => encode_reply(message, options, &options.label, &mut nonces()),
            };
            let heard = decode_stream(&again, options, side, 0);
            assert!(heard.as_ref() == Ok(message), "a round trip changes it");
            again.truncate(again.len() - 1);
            assert!(decode_stream(&again, options, side, 0).is_err(), "cut, and still in order");
        }
        Err(error) => {
            let stop = seen.error.expect("refused, and the explanation says it is in order");
            assert_eq!(stop.error, *error);
        }
    }
    decoded
}

fn decode_stream(
    bytes: &[u8],
    options: &PacketOptions,
    side: StreamSide,
    piece: usize,
) -> Result<StreamMessage, WireError> {
    let mut decoder = StreamDecoder::new(options, side);
    let mut message = None;
    // Nothing says the same as never a byte.
    for piece in bytes.chunks(if piece == 0 { usize::MAX } else { piece }) {
        decoder.feed(piece)?;
        message = message.or(decoder.poll()?);
    }
    decoder.finish()?;
    message.ok_or(WireError::Truncated)
}

/// An explanation points into the bytes, or into what a layer made of them, and is JSON without control characters.
fn check_inspection(seen: &Inspection, len: usize) {
    let inside = seen.layers.iter().map(|layer| match layer {
        Layer::Encryption { plain, .. } | Layer::Compression { plain, .. } => *plain,
        _ => 0,
    });
    let most = inside.max().unwrap_or(0).max(len);
    if let Some(stop) = &seen.error {
        assert!(stop.offset <= most, "{stop:?} points beyond {most} bytes");
        assert!(!stop.reason.is_empty());
    }
    for layer in &seen.layers {
        if let Layer::Compound { parts, .. } = layer {
            assert!(parts.iter().all(|part| part.offset + part.len <= most));
        }
    }
    let json = seen.to_json();
    assert_eq!(json["ok"], seen.is_ok());
    assert_eq!(json["error"].is_null(), seen.is_ok());
}
