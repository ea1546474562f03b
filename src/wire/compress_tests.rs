//! Tests of the compression layer by itself: the bytes of Go both ways, damaged data, and data that becomes too much.

#![allow(clippy::unwrap_used)]

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// A text, and the whole message that Go makes of it.
const LZW: [(&str, &str); 4] = [
    ("", "0982a4416c676f00a3427566a3000302"),
    ("a", "0982a4416c676f00a3427566a400c30404"),
    ("hello world", "0982a4416c676f00a3427566af00d19461c3e60d883b6fe4b0211310"),
    (
        "abababababababababababababababababababababababababababababababababababababababababababababababababab",
        "0982a4416c676f00a3427566b800c388114870a0c182080f2a4cc870a1c386101f4a8c1810",
    ),
];

fn lzw(plain: &[u8]) -> Vec<u8> {
    encode::Encoder::new(BitOrder::Lsb, 8).encode(plain).unwrap()
}

fn decode_to(message: &[u8], max: usize) -> Result<Bytes, WireError> {
    decode(&message[1..], max, &mut Budget::stream()).map(|(plain, _)| plain)
}

#[test]
fn what_go_compressed_is_read_and_written_byte_for_byte() {
    for (text, hex) in LZW {
        assert_eq!(hex::encode(write(0, &lzw(text.as_bytes()))), hex, "{text}");
        let decoded = decode_to(&hex::decode(hex).unwrap(), MAX_PACKET);
        match text {
            "" => assert_eq!(decoded, Err(WireError::Empty)),
            _ => assert_eq!(decoded.unwrap(), text.as_bytes()),
        }
    }
}

#[test]
fn data_is_compressed_only_when_that_makes_it_shorter() {
    let long = LZW[3].0.as_bytes();
    assert_eq!(hex::encode(encode(long, Compression::Lzw).unwrap()), LZW[3].1);
    assert!(encode(long, Compression::Snappy).unwrap().len() < long.len());
    assert_eq!(encode(long, Compression::None), None);
    for compression in [Compression::Lzw, Compression::Snappy] {
        assert_eq!(encode(b"hello world", compression), None);
        assert_eq!(encode(b"", compression), None);
        // The shortest text that gains anything, and the one before it.
        let gains = |len| encode(&vec![7; len], compression).is_some();
        let first = (0..200).find(|len| gains(*len)).unwrap();
        assert!(encode(&vec![7; first], compression).unwrap().len() < first);
    }
}

#[test]
fn an_unknown_algorithm_is_refused() {
    for algorithm in [2, 9, 255] {
        assert_eq!(decode_to(&write(algorithm, b"xx"), 100), Err(WireError::UnknownCompression(algorithm as u8)));
    }
    assert_eq!(decode_to(&write(256, b"xx"), 100), Err(WireError::OutOfRange { field: "Algo" }));
    assert_eq!(decode_to(&[9, 0x80], 100), Err(WireError::NotDecompressed), "no data is LZW without an end");
}

#[test]
fn lzw_ends_with_its_end_code() {
    let packed = lzw(b"hello world");
    for len in 0..packed.len() {
        let cut = decode_to(&write(0, &packed[..len]), 100);
        assert_eq!(cut, Err(WireError::NotDecompressed), "{len} of {}", packed.len());
    }
    let more = [&packed[..], b"anything"].concat();
    assert_eq!(decode_to(&write(0, &more), 100).unwrap(), b"hello world"[..], "what follows the end is ignored");
    assert_eq!(decode_to(&write(0, &[0xff; 50]), 100), Err(WireError::NotDecompressed), "codes that nothing defined");
}

#[test]
fn the_output_stops_at_the_limit_and_not_before() {
    for len in [1, 4_095, 4_096, 4_097, 8_192, 100_000] {
        let plain = vec![7; len];
        for (algorithm, packed) in [(0, lzw(&plain)), (1, snap::raw::Encoder::new().compress_vec(&plain).unwrap())] {
            let message = write(algorithm, &packed);
            assert!(decode_to(&message, len).unwrap() == plain, "{algorithm} {len}");
            assert!(decode_to(&message, len + 1).unwrap() == plain, "{algorithm} {len}");
            let refused = decode_to(&message, len - 1).unwrap_err();
            assert_eq!(refused, too_long(len as u64, len - 1), "{algorithm} {len}");
        }
    }
}

#[test]
fn a_bomb_is_refused_at_the_limit_and_charged() {
    // 40 MiB and some, in a datagram.
    let plain = vec![0; (40 << 20) + 1];
    let bomb = write(0, &lzw(&plain));
    assert!(bomb.len() < 64 << 10, "{}", bomb.len());
    assert_eq!(decode_to(&bomb, MAX_PACKET), Err(too_long((MAX_PACKET + 1) as u64, MAX_PACKET)));
    assert_eq!(decode_to(&bomb, MAX_STREAM), Err(too_long((MAX_STREAM + 1) as u64, MAX_STREAM)));
    let fits = write(0, &lzw(&plain[1..]));
    assert_eq!(decode_to(&fits, MAX_STREAM).unwrap().len(), MAX_STREAM);
    // Two of these are more than one stream may cost.
    let mut budget = Budget::stream();
    decode(&fits[1..], MAX_STREAM, &mut budget).unwrap();
    let left = budget.bytes_left();
    assert_eq!(decode(&fits[1..], MAX_STREAM, &mut budget).unwrap_err(), too_long(left as u64 + 1, left));
}

#[test]
fn snappy_that_claims_more_than_it_can_be_is_refused_before_anything_is_made() {
    // Five bytes that claim 4 GiB.
    let claim = write(1, b"\xff\xff\xff\xff\x0f");
    let error = decode_to(&claim, MAX_STREAM).unwrap_err();
    assert_eq!(error, too_long(u32::MAX.into(), 5 * SNAPPY_RATIO + SNAPPY_SLACK));
    assert_eq!(decode_to(&write(1, b"\xff\xff\xff\xff\xff\x01"), MAX_STREAM), Err(WireError::NotDecompressed));
    assert_eq!(decode_to(&write(1, b"\x00"), MAX_STREAM), Err(WireError::Empty));
    assert_eq!(decode_to(&write(1, b""), MAX_STREAM), Err(WireError::NotDecompressed), "not even a length");
    // It claims 11 bytes and holds 2.
    assert_eq!(decode_to(&write(1, b"\x0b\x04hi"), MAX_STREAM), Err(WireError::NotDecompressed));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_was_compressed_comes_back(plain in vec(0..4u8, 1..20_000), snappy: bool) {
        let compression = if snappy { Compression::Snappy } else { Compression::Lzw };
        if let Some(message) = encode(&plain, compression) {
            prop_assert!(message.len() < plain.len());
            prop_assert_eq!(decode_to(&message, MAX_PACKET).unwrap(), plain);
        }
    }

    #[test]
    fn damaged_data_is_survived(
        plain in vec(0..4u8, 1..2_000),
        algorithm in 0..2u32,
        at in any::<proptest::sample::Index>(),
        value: u8,
    ) {
        let mut packed = if algorithm == 0 { lzw(&plain) } else { snap::raw::Encoder::new().compress_vec(&plain).unwrap() };
        let at = at.index(packed.len());
        packed[at] = value;
        if let Ok(decoded) = decode_to(&write(algorithm, &packed), 10_000) {
            prop_assert!(!decoded.is_empty() && decoded.len() <= 10_000);
        }
    }

    #[test]
    fn random_data_is_survived(packed in vec(any::<u8>(), 0..500), algorithm in 0..3u32) {
        if let Ok(decoded) = decode_to(&write(algorithm, &packed), 10_000) {
            prop_assert!(!decoded.is_empty() && decoded.len() <= 10_000);
        }
    }
}
