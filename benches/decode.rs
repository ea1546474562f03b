//! What a packet costs its receiver: time, packets a second, allocations. `cargo bench --bench decode`
#![allow(clippy::unwrap_used)]

use annulus::wire::message::{Alive, MemberState, Message, NodeName, PushNode, PushPull, WireIp};
use annulus::wire::{
    Compression, Key, Keyring, Label, PacketOptions, StreamDecoder, StreamMessage, StreamSide, VSN, decode_packet,
    encode_message, encode_packets, encode_reply,
};

use bytes::Bytes;
use divan::counter::{BytesCount, ItemsCount};
use divan::{AllocProfiler, Bencher, black_box};
use rand::SeedableRng;
use rand::rngs::StdRng;

#[global_allocator]
static ALLOC: AllocProfiler = AllocProfiler::system();

fn main() {
    divan::main();
}

fn addr(index: u32) -> WireIp {
    WireIp::from_slice(&[10, 0, (index >> 8) as u8, index as u8]).unwrap()
}

fn alive(index: u32) -> Message {
    Message::Alive(Alive {
        incarnation: 1 + index,
        node: NodeName::from(format!("ingester-{index}")),
        addr: addr(index),
        port: 7946,
        meta: Bytes::from_static(b"zone-a"),
        vsn: Some(VSN),
    })
}

fn keyed() -> PacketOptions {
    let keyring = Keyring::new([Key::new(&[7; 32]).unwrap()]).unwrap();
    PacketOptions { label: "prod.mimir".parse().unwrap(), keyring, ..PacketOptions::default() }
}

/// A packet of so many members, and how it is decoded.
fn packet(members: u32, options: &PacketOptions) -> Bytes {
    let parts: Vec<Bytes> = (0..members).map(|index| encode_message(&alive(index))).collect();
    encode_packets(&parts, options, true, &mut StdRng::seed_from_u64(1)).remove(0)
}

fn decode(bencher: Bencher<'_, '_>, packet: &Bytes, options: &PacketOptions) {
    bencher
        .counter(ItemsCount::new(1u32))
        .bench_local(|| decode_packet(black_box(packet), black_box(options)).unwrap().messages.len());
}

#[divan::bench(sample_size = 1_000)]
fn one_alive(bencher: Bencher<'_, '_>) {
    let options = PacketOptions::default();
    decode(bencher, &packet(1, &options), &options);
}

#[divan::bench(sample_size = 1_000)]
fn user_message(bencher: Bencher<'_, '_>) {
    let options = PacketOptions::default();
    let user = [encode_message(&Message::User(vec![7; 1_000].into()))];
    let packet = encode_packets(&user, &options, true, &mut StdRng::seed_from_u64(1)).remove(0);
    decode(bencher, &packet, &options);
}

#[divan::bench(sample_size = 1_000)]
fn compound_of_10(bencher: Bencher<'_, '_>) {
    let options = PacketOptions::default();
    decode(bencher, &packet(10, &options), &options);
}

#[divan::bench(sample_size = 1_000)]
fn encrypted_compound_of_10(bencher: Bencher<'_, '_>) {
    let options = keyed();
    decode(bencher, &packet(10, &options), &options);
}

#[divan::bench(args = ["lzw", "snappy"], sample_size = 1_000)]
fn encrypted_compressed_compound_of_10(bencher: Bencher<'_, '_>, algorithm: &str) {
    let compression = if algorithm == "lzw" { Compression::Lzw } else { Compression::Snappy };
    let options = PacketOptions { compression, ..keyed() };
    let packet = packet(10, &options);
    assert!(packet.len() < self::packet(10, &keyed()).len(), "it is compressed");
    decode(bencher, &packet, &options);
}

/// What a stranger's packet costs a node with a key.
#[divan::bench(sample_size = 1_000)]
fn forgery(bencher: Bencher<'_, '_>) {
    let packet = packet(10, &keyed());
    let other = PacketOptions { keyring: Keyring::new([Key::new(&[8; 32]).unwrap()]).unwrap(), ..keyed() };
    bencher
        .counter(ItemsCount::new(1u32))
        .bench_local(|| decode_packet(black_box(&packet), black_box(&other)).unwrap_err());
}

/// A push/pull of a cluster.
#[divan::bench(args = [100, 1_000], sample_size = 10)]
fn push_pull(bencher: Bencher<'_, '_>, members: u32) {
    let nodes = (0..members).map(|index| PushNode {
        name: NodeName::from(format!("ingester-{index}")),
        addr: addr(index),
        port: 7946,
        meta: Bytes::from_static(b"zone-a"),
        incarnation: 1,
        state: Some(MemberState::Alive),
        vsn: Some(VSN),
    });
    let message = StreamMessage::PushPull(PushPull {
        join: false,
        label: None,
        nodes: nodes.collect(),
        user_state: vec![7; 10_000].into(),
    });
    let options = PacketOptions::default();
    let bytes = encode_reply(&message, &options, &Label::NONE, &mut StdRng::seed_from_u64(1));
    bencher.counter(BytesCount::new(bytes.len())).bench_local(|| {
        let mut decoder = StreamDecoder::new(&options, StreamSide::Dialed);
        decoder.feed(black_box(&bytes)).unwrap();
        decoder.poll().unwrap()
    });
}
