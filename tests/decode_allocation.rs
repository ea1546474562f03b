//! What decoding makes in memory is bounded by what arrived, and never by what was claimed: measured, at the peak.
//!
//! The bounds, beyond the bytes that arrived: a **packet** makes at most [`PACKET`], whatever layers it has; a **stream**
//! whose header lies makes next to nothing ([`CLAIM`]), decompression at most [`DECOMPRESSED`], and the members of a
//! push/pull at most [`MEMBERS`]. And what is in order makes no more than the message itself: see the last test, and
//! `benches/decode.rs`.

use annulus::wire::message::{Alive, Message, Nack, NodeName, Suspect, WireIp};
use annulus::wire::{
    Compression, Key, Keyring, PacketOptions, StreamDecoder, StreamSide, VSN, decode_packet, encode_message,
    encode_packets,
};
use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::StdRng;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Half a MiB of data, the buffer that it outgrew, and the tables of LZW.
const PACKET: u64 = 512 * KIB + 256 * KIB + 64 * KIB;
/// What a stream takes before anything but a header has arrived.
const CLAIM: u64 = 4 * KIB;
/// 40 MiB of data, the buffer that it outgrew, and the tables of LZW.
const DECOMPRESSED: u64 = 40 * MIB + 32 * MIB + MIB;
/// 65 536 members without a name or anything else, and the list that they outgrew.
const MEMBERS: u64 = 16 * MIB;

/// The most that was allocated at once, and how often, while this ran.
fn measured(run: impl FnOnce()) -> (u64, u64) {
    let info = allocation_counter::measure(run);
    (info.bytes_max, info.count_total)
}

/// The peak of a packet. Whether it is refused is another test's business.
fn packet(name: &str, bytes: Vec<u8>) -> u64 {
    let bytes = Bytes::from(bytes);
    let options = PacketOptions::default();
    let (peak, _) = measured(|| drop(decode_packet(&bytes, &options)));
    println!("{name}: {} bytes, peak {peak}", bytes.len());
    peak
}

/// The peak of a stream that comes in pieces, beyond what arrived.
fn stream(name: &str, bytes: &[u8], options: &PacketOptions) -> u64 {
    let (peak, _) = measured(|| {
        let mut decoder = StreamDecoder::new(options, StreamSide::Dialed);
        for piece in bytes.chunks(16 << 10) {
            if decoder.feed(piece).and_then(|()| decoder.poll()).is_err() {
                return;
            }
        }
        drop(decoder.finish());
    });
    println!("{name}: {} bytes, peak {peak}", bytes.len());
    peak
}

/// A compressed message of this data.
fn packed(algorithm: u8, data: &[u8]) -> Vec<u8> {
    let head = [&[0xdb][..], &(data.len() as u32).to_be_bytes()].concat();
    [&[9, 0x82, 0xa4][..], b"Algo", &[algorithm, 0xa3], b"Buf", &head, data].concat()
}

fn lzw(plain: &[u8]) -> Vec<u8> {
    let options = PacketOptions { compression: Compression::Lzw, ..PacketOptions::default() };
    let parts = [Bytes::copy_from_slice(plain)];
    encode_packets(&parts, &options, false, &mut StdRng::seed_from_u64(1)).remove(0).to_vec()
}

#[test]
fn no_packet_makes_more_than_the_budget() {
    let bombs = [("lzw bomb", lzw(&vec![8; 4 << 20])), ("lzw at the limit", lzw(&vec![8; 512 << 10]))];
    for (name, bomb) in bombs {
        let len = bomb.len();
        let peak = packet(name, bomb);
        assert!(peak <= PACKET, "{name}: {peak} for {len} bytes");
    }
    let small = [
        ("snappy that claims 4 GiB", packed(1, b"\xff\xff\xff\xff\x0f")),
        ("snappy that claims 22 times itself", packed(1, b"\x7e\x08")),
        ("a meta of 4 GiB", b"\x04\x81\xa4Meta\xc6\xff\xff\xff\xff".to_vec()),
        ("a name of 4 GiB", b"\x04\x81\xa4Node\xdb\xff\xff\xff\xff".to_vec()),
        ("a map of 4 G keys", b"\x04\xdf\xff\xff\xff\xff".to_vec()),
        ("an unknown array of 4 G values", b"\x04\x81\xa1x\xdd\xff\xff\xff\xff\xc0".to_vec()),
        ("an unknown extension of 4 GiB", b"\x04\x81\xa1x\xc9\xff\xff\xff\xff\x01".to_vec()),
        ("a meta as an array of 4 G numbers", b"\x04\x81\xa4Meta\xdd\xff\xff\xff\xff\x01".to_vec()),
        ("nesting", [&b"\x04\x81\xa1x"[..], &[0x91; 60_000]].concat()),
        ("a compound that announces 255 parts", [&[7, 255][..], &[0xff; 510]].concat()),
        ("64 KiB of nothing", vec![0; 65_535]),
    ];
    for (name, bytes) in small {
        let peak = packet(name, bytes);
        assert!(peak <= CLAIM, "{name}: {peak}");
    }
    // Each empty part is noted as refused, and no more.
    let empty = packet("255 empty parts", [&[7, 255][..], &[0; 510]].concat());
    assert!(empty <= 64 * KIB, "{empty}");
}

#[test]
fn a_stream_that_claims_makes_nothing() {
    let key = Key::new(&[7; 16]).and_then(|key| Keyring::new([key])).unwrap_or_default();
    let (plain, keyed) = (PacketOptions::default(), PacketOptions { keyring: key, ..PacketOptions::default() });
    for (name, bytes, options) in [
        ("2^31 members", &b"\x06\x81\xa5Nodes\xd2\x7f\xff\xff\xff"[..], &plain),
        ("a million members", b"\x06\x81\xa5Nodes\xd2\x00\x0f\x42\x40", &plain),
        ("65 536 members", b"\x06\x81\xa5Nodes\xd2\x00\x01\x00\x00", &plain),
        ("-1 members", b"\x06\x81\xa5Nodes\xd0\xff", &plain),
        ("20 MiB of user state", b"\x06\x81\xacUserStateLen\xd2\x01\x40\x00\x00\x01", &plain),
        ("20 MiB of user message", b"\x08\x81\xaaUserMsgLen\xd2\x01\x40\x00\x00\x01", &plain),
        ("an error of 4 GiB", b"\x0d\x81\xa5Error\xdb\xff\xff\xff\xff", &plain),
        ("compressed data of 4 GiB", b"\x09\x82\xa4Algo\x00\xa3Buf\xdb\xff\xff\xff\xff", &plain),
        ("snappy that claims 4 GiB", &packed(1, b"\xff\xff\xff\xff\x0f"), &plain),
        ("an encrypted frame of 4 GiB", b"\x0a\xff\xff\xff\xff", &keyed),
        ("an encrypted frame of 20 MiB", b"\x0a\x01\x40\x00\x00", &keyed),
    ] {
        let peak = stream(name, bytes, options);
        assert!(peak <= CLAIM, "{name}: {peak}");
    }
}

#[test]
fn what_a_stream_makes_of_compressed_data_and_of_members_is_bounded() {
    let plain = PacketOptions::default();
    let bomb = lzw(&vec![8; (40 << 20) + 2]);
    let peak = stream("lzw bomb", &bomb, &plain);
    assert!(peak <= DECOMPRESSED + 4 * bomb.len() as u64, "{peak}");

    let header = b"\x06\x81\xa5Nodes\xd2\x00\x01\x00\x00";
    let members = [&header[..], &[0x80; 65_536]].concat();
    let peak = stream("65 536 empty members", &members, &plain);
    assert!(peak <= MEMBERS + 2 * members.len() as u64, "{peak}");
    let refused = [&header[..], &b"\x81\xa4Addr\xa1x".repeat(65_536)].concat();
    let peak = stream("65 536 refused members", &refused, &plain);
    assert!(peak <= MEMBERS + 2 * refused.len() as u64, "{peak}");
    let peak = stream("65 536 empty members, compressed", &lzw(&members), &plain);
    assert!(peak <= MEMBERS + 4 * members.len() as u64, "{peak}");
}

#[test]
fn a_packet_in_order_makes_its_message_and_nothing_else() {
    let alive = |meta: &'static [u8]| {
        let addr = WireIp::from_slice(&[10, 0, 0, 1]).unwrap_or_default();
        let meta = Bytes::from_static(meta);
        Message::Alive(Alive { incarnation: 1, node: NodeName::from("n1"), addr, port: 7946, meta, vsn: Some(VSN) })
    };
    let suspect = Message::Suspect(Suspect { incarnation: 1, node: NodeName::from("n1"), from: NodeName::from("n2") });
    let nack = Message::Nack(Nack { seq_no: 300 });
    let labelled = PacketOptions { label: "lab".parse().unwrap_or_default(), ..PacketOptions::default() };
    for (name, messages, options, expected) in [
        // The list of messages is one allocation, each name one, each meta one.
        ("nack", vec![nack.clone()], PacketOptions::default(), 1),
        ("alive", vec![alive(b"")], PacketOptions::default(), 1 + 1),
        ("alive with a meta", vec![alive(b"zone-a")], PacketOptions::default(), 1 + 2),
        ("suspect", vec![suspect.clone()], PacketOptions::default(), 1 + 2),
        ("user", vec![Message::User(Bytes::from_static(b"hello"))], PacketOptions::default(), 1),
        ("labelled compound", vec![alive(b"m"), suspect, nack], labelled, 1 + 2 + 2),
    ] {
        let parts: Vec<Bytes> = messages.iter().map(encode_message).collect();
        let packet = encode_packets(&parts, &options, true, &mut StdRng::seed_from_u64(1)).remove(0);
        // A slice of a buffer that is shared for the first time makes the counter that shares it.
        let packet = Bytes::clone(&packet);
        let _label = options.label.clone();
        let (_, count) = measured(|| {
            assert_eq!(decode_packet(&packet, &options).map(|packet| packet.messages).as_ref(), Ok(&messages));
        });
        assert_eq!(count, expected, "{name}");
    }
}
