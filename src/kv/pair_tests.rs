#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

/// dskit's layout, written down byte by byte from its protobuf definition.
const RING: &str = "0a0472696e671201001a0872696e6744657363";
const DELETED: &str = "0a0472696e671201001a0872696e6744657363200128fbd095ffbc31";

fn ring() -> KeyValuePair {
    KeyValuePair {
        key: "ring".into(),
        value: Bytes::from_static(&[0]),
        codec: "ringDesc".into(),
        deleted: false,
        update_time_millis: 0,
    }
}

fn bytes(hex: &str) -> Bytes {
    hex::decode(hex).unwrap().into()
}

fn state(pairs: &[&[u8]]) -> Bytes {
    let mut state = BytesMut::new();
    for pair in pairs {
        assert!(append_state(&mut state, pair));
    }
    state.freeze()
}

#[test]
fn a_pair_has_exactly_the_bytes_that_dskit_writes() {
    assert_eq!(hex::encode(ring().to_bytes()), RING);
    let deleted = KeyValuePair { deleted: true, update_time_millis: 1_700_000_000_123, ..ring() };
    assert_eq!(hex::encode(deleted.to_bytes()), DELETED);
    assert_eq!(KeyValuePair::from_bytes(bytes(RING)).unwrap(), ring());
    assert_eq!(KeyValuePair::from_bytes(bytes(DELETED)).unwrap(), deleted);
}

#[test]
fn a_state_is_a_row_of_lengths_and_pairs() {
    assert_eq!(hex::encode(state(&[&ring().to_bytes()])), format!("00000013{RING}"));
    assert_eq!(read_state(Bytes::new(), 10).count(), 0, "no keys, no bytes");
}

/// Every object of a vector's decoding that describes a pair.
fn described_pairs<'a>(json: &'a serde_json::Value, found: &mut Vec<&'a serde_json::Value>) {
    match json {
        serde_json::Value::Object(fields) => {
            found.extend(fields.get("kv_pair").map(|_| json));
            fields.values().for_each(|value| described_pairs(value, found));
        }
        serde_json::Value::Array(items) => items.iter().for_each(|value| described_pairs(value, found)),
        _ => {}
    }
}

fn vector(name: &str) -> serde_json::Value {
    let path = format!("{}/tests/data/wire/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))).unwrap()
}

fn assert_describes(pair: &KeyValuePair, description: &serde_json::Value) {
    assert_eq!(pair.key, description["key"]);
    assert_eq!(pair.codec, description["codec"]);
    assert_eq!(hex::encode(&pair.value), description["value_snappy_hex"].as_str().unwrap());
    assert!(!pair.deleted);
    let plain = snap::raw::Decoder::new().decompress_vec(&pair.value).unwrap();
    assert_eq!(hex::encode(plain), description["value_proto_hex"].as_str().unwrap());
}

#[test]
fn user_messages_captured_from_dskit_decode_and_encode_to_the_same_bytes() {
    let expected = [
        ("dskit-packet-kv-cas-plain", 1),
        ("dskit-packet-kv-update-plain", 1),
        ("dskit-packet-kv-tombstone-plain", 1),
        ("dskit-packet-kv-compound-plain", 2),
        ("dskit-packet-lifecycler-ring", 2),
    ];
    for (name, count) in expected {
        let vector = vector(name);
        let mut pairs = Vec::new();
        described_pairs(&vector["decoded"], &mut pairs);
        assert_eq!(pairs.len(), count, "{name}");
        for description in pairs {
            let payload = description["payload_hex"].as_str().unwrap();
            let pair = KeyValuePair::from_bytes(bytes(payload)).unwrap();
            assert_describes(&pair, &description["kv_pair"]);
            assert_eq!(hex::encode(pair.to_bytes()), payload, "{name}");
        }
    }
}

#[test]
fn a_push_pull_state_captured_from_dskit_decodes_and_encodes_to_the_same_bytes() {
    let vector = vector("dskit-stream-pushpull-resp-partition");
    let captured = bytes(vector["decoded"]["msg"]["user_state_hex"].as_str().unwrap());
    let pairs: Vec<_> = read_state(captured.clone(), 1024).collect::<Result<_, _>>().unwrap();
    let described = vector["decoded"]["msg"]["kv_state"].as_array().unwrap();
    assert_eq!(pairs.len(), described.len());
    assert!(pairs.len() >= 2);
    for (pair, description) in pairs.iter().zip(described) {
        assert_describes(pair, description);
    }
    let again: Vec<_> = pairs.iter().map(KeyValuePair::to_bytes).collect();
    assert_eq!(state(&again.iter().map(AsRef::as_ref).collect::<Vec<_>>()), captured);
}

#[test]
fn a_truncated_tail_is_refused_and_what_was_whole_is_kept() {
    let whole = state(&[&ring().to_bytes(), &ring().to_bytes()]);
    for cut in 24..whole.len() {
        let read: Vec<_> = read_state(whole.slice(..cut), 10).collect();
        assert_eq!(read.len(), 2, "cut at {cut}");
        assert_eq!(read[0], Ok(ring()));
        assert!(matches!(read[1], Err(PairError::Truncated { missing }) if missing <= 19), "cut at {cut}: {read:?}");
    }
}

#[test]
fn a_length_of_four_gigabytes_is_a_truncation_not_an_allocation() {
    let read: Vec<_> = read_state(bytes("ffffffff00"), 10).collect();
    assert_eq!(read, [Err(PairError::Truncated { missing: 0xffff_fffe })]);
}

#[test]
fn a_pair_of_zero_length_ends_the_reading() {
    let state = [&0_u32.to_be_bytes()[..], &state(&[&ring().to_bytes()])].concat();
    assert_eq!(read_state(state.into(), 10).collect::<Vec<_>>(), [Err(PairError::Empty)]);
}

#[test]
fn a_damaged_pair_does_not_hide_the_pairs_behind_it() {
    let state = state(&[&[0xff, 0xff], &ring().to_bytes()]);
    let read: Vec<_> = read_state(state, 10).collect();
    assert!(matches!(read[0], Err(PairError::Protobuf(_))));
    assert_eq!(read[1], Ok(ring()));
}

#[test]
fn more_pairs_than_the_limit_are_refused() {
    let pair = ring().to_bytes();
    let read: Vec<_> = read_state(state(&[&pair, &pair, &pair]), 2).collect();
    assert_eq!(read, [Ok(ring()), Ok(ring()), Err(PairError::TooMany { limit: 2 })]);
}

#[test]
fn keys_have_one_to_512_bytes() {
    let named = |len: usize| KeyValuePair { key: "k".repeat(len), ..ring() }.to_bytes();
    assert!(KeyValuePair::from_bytes(named(1)).is_ok());
    assert!(KeyValuePair::from_bytes(named(512)).is_ok());
    for len in [0, 513, 65_536] {
        let error = KeyValuePair::from_bytes(named(len)).unwrap_err();
        assert_eq!(error, PairError::Length { field: "key", len, min: 1, max: 512 });
    }
}

#[test]
fn a_value_above_16_mebibytes_is_refused() {
    let sized = |len: usize| KeyValuePair { value: vec![7; len].into(), ..ring() }.to_bytes();
    assert!(KeyValuePair::from_bytes(sized(MAX_VALUE_LEN)).is_ok());
    assert!(matches!(
        KeyValuePair::from_bytes(sized(MAX_VALUE_LEN + 1)),
        Err(PairError::Length { field: "value", .. })
    ));
}

#[test]
fn fields_of_a_newer_version_are_skipped() {
    let newer = [&bytes(RING)[..], &[0x32, 2, 7, 7]].concat();
    assert_eq!(KeyValuePair::from_bytes(newer.into()).unwrap(), ring());
}

proptest! {
    #[test]
    fn every_pair_survives_the_way_over_the_wire(
        key in "[a-z/]{1,40}", value in prop::collection::vec(any::<u8>(), 0..60), codec in "[a-zA-Z]{0,12}",
        deleted: bool, update_time_millis: i64,
    ) {
        let pair = KeyValuePair { key, value: value.into(), codec, deleted, update_time_millis };
        prop_assert_eq!(read_state(state(&[&pair.to_bytes()]), 1).collect::<Vec<_>>(), [Ok(pair)]);
    }

    #[test]
    fn no_bytes_make_the_decoder_panic_or_invent_data(noise in prop::collection::vec(any::<u8>(), 0..200)) {
        let size = noise.len();
        let noise = Bytes::from(noise);
        let _ = KeyValuePair::from_bytes(noise.clone());
        let delivered: usize = read_state(noise, 1024).flatten().map(|pair| pair.value.len() + pair.key.len()).sum();
        prop_assert!(delivered <= size);
    }
}
