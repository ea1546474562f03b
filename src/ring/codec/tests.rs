#![allow(clippy::unwrap_used)]

use super::*;

fn block(proto: &[u8]) -> Vec<u8> {
    snap::raw::Encoder::new().compress_vec(proto).unwrap()
}

fn decode(bytes: &[u8]) -> Result<Desc, CodecError> {
    RingCodec.decode(bytes).map(|value| value.downcast_ref::<Desc>().unwrap().clone())
}

fn entry(key: &str, value: InstanceProto) -> Vec<u8> {
    raw_entry(key, &value.encode_to_vec())
}

fn raw_entry(key: &str, value: &[u8]) -> Vec<u8> {
    let (mut entry, mut out) = (Vec::new(), Vec::new());
    put_bytes(&mut entry, 1, key.as_bytes());
    put_bytes(&mut entry, 2, value);
    put_bytes(&mut out, INGESTERS, &entry);
    out
}

/// Field 13 as a number, field 20 as two texts, field 4, which is retired, in four bytes.
const UNKNOWN: &[u8] = &[0x68, 0x2A, 0xA2, 0x01, 2, b'h', b'i', 0xA2, 0x01, 1, b'!', 0x25, 1, 2, 3, 4];
/// The same, the fields in order.
const CANONICAL: &[u8] = &[0x25, 1, 2, 3, 4, 0x68, 0x2A, 0xA2, 0x01, 2, b'h', b'i', 0xA2, 0x01, 1, b'!'];

fn protobuf(desc: &Desc) -> Vec<u8> {
    snap::raw::Decoder::new().decompress_vec(&RingCodec.encode(&Value::new(desc.clone())).unwrap()).unwrap()
}

fn reason(bytes: &[u8]) -> String {
    decode(bytes).unwrap_err().reason
}

#[test]
fn a_ring_survives_encoding_with_every_field_and_an_unknown_state() {
    let mut desc = Desc::default();
    let instance = Instance {
        addr: "10.0.0.1:9095".into(),
        timestamp: -3,
        state: InstanceState::Unknown(5),
        tokens: [1, 300, u32::MAX].into(),
        zone: "z".into(),
        registered_timestamp: i64::MAX,
        read_only_updated_timestamp: i64::MIN,
        read_only: true,
        versions: [(7, 9), (u64::MAX, 0)].into(),
        ..Instance::default()
    };
    desc.instances.insert("a".into(), instance);
    desc.instances.insert("b".into(), Instance::default());
    let bytes = RingCodec.encode(&Value::new(desc.clone())).unwrap();
    assert_eq!(decode(&bytes).unwrap(), desc);
}

#[test]
fn what_is_decoded_is_normalised() {
    let left = InstanceProto { state: 4, tokens: vec![1, 2], ..InstanceProto::default() };
    let unsorted = InstanceProto { tokens: vec![9, 1, 9, 4], ..InstanceProto::default() };
    let desc = decode(&block(&[entry("left", left), entry("unsorted", unsorted)].concat())).unwrap();
    assert!(desc.instances["left"].tokens.is_empty());
    assert_eq!(*desc.instances["unsorted"].tokens, [1, 4, 9]);
}

#[test]
fn unknown_fields_of_the_ring_and_of_instances_are_written_again() {
    // A varint (field 3), eight bytes (4), a string (5) and four bytes (6) in front of an instance.
    let own = [0x18, 0x80, 0x01, 0x21, 0, 1, 2, 3, 4, 5, 6, 7, 0x2A, 2, b'h', b'i', 0x35, 0, 1, 2, 3];
    let known = InstanceProto { addr: "a:1".into(), timestamp: 5, id: "a".into(), ..InstanceProto::default() };
    let known = known.encode_to_vec();
    let came = [&own[..], &raw_entry("a", &[UNKNOWN, &known].concat())].concat();
    let desc = decode(&block(&came)).unwrap();
    assert_eq!(desc.instances["a"].timestamp, 5);
    assert_eq!(desc.instances["a"].unknown.to_bytes(), CANONICAL);
    let written = protobuf(&desc);
    assert_eq!(written, [&raw_entry("a", &[&known, CANONICAL].concat()), &own[..]].concat());
    assert_eq!(decode(&block(&written)).unwrap(), desc);
}

#[test]
fn unknown_fields_travel_with_their_entry_and_those_of_the_ring_are_joined() {
    use crate::kv::Mergeable;
    let now = crate::clock::Now::read();
    let ring = |timestamp: i64, unknown: &[u8], own: &[u8]| {
        let proto = InstanceProto { timestamp, ..InstanceProto::default() }.encode_to_vec();
        decode(&block(&[own, &raw_entry("a", &[&proto[..], unknown].concat())].concat())).unwrap()
    };
    let old = ring(1, UNKNOWN, &[0x18, 1]);
    let new = ring(2, &[0x68, 0x2B], &[0x20, 9]);
    for (first, second) in [(&old, &new), (&new, &old)] {
        let mut joined = first.clone();
        joined.join(second, now);
        assert_eq!(joined.instances["a"].unknown.to_bytes(), [0x68, 0x2B], "of the newer entry");
        assert_eq!(joined.unknown.to_bytes(), [0x18, 1, 0x20, 9], "of both");
    }
    // A tie of everything else is decided by them, the same way on both sides.
    let tie = ring(2, &[0x68, 0x2C], &[]);
    let (mut left, mut right) = (new.clone(), tie.clone());
    left.join(&tie, now);
    right.join(&new, now);
    assert_eq!(left, right);
    // A change that holds nothing else is a change; so is its delta, and it has a name among broadcasts.
    let change = Desc::default().clone().join(&ring_of(&[0x18, 1]), now).unwrap();
    assert_eq!((change.instances.len(), change.content()), (0, vec![String::new()]));
    assert!(!Mergeable::is_empty(&change));
    assert_eq!(change.delta(Some(&Desc::default()), now), Some(change.clone()));
    assert_eq!(Desc::default().delta(Some(&change), now), None, "absence removes nothing");
}

fn ring_of(own: &[u8]) -> Desc {
    decode(&block(own)).unwrap()
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_the_decoder_panic_or_lose_what_it_took(
        bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200),
        instance in proptest::prelude::any::<bool>(),
    ) {
        taken_whole(&bytes);
        taken_whole(&block(&if instance { raw_entry("a", &bytes) } else { bytes }));
    }

    #[test]
    fn what_decodes_is_written_again_whole_and_equal_rings_have_equal_bytes(
        fields in proptest::collection::vec((13_u64..40, proptest::prelude::any::<u64>(), 0_u64..3), 0..20),
        shuffle in proptest::prelude::any::<u64>(),
    ) {
        use rand::SeedableRng;
        use rand::seq::SliceRandom;
        let write = |fields: &[(u64, u64, u64)]| {
            let mut out = Vec::new();
            for (tag, value, kind) in fields {
                match kind {
                    0 => { put_varint(&mut out, tag << 3); put_varint(&mut out, *value); }
                    1 => { put_varint(&mut out, tag << 3 | 1); out.extend(value.to_le_bytes()); }
                    _ => { put_bytes(&mut out, *tag as u32, &value.to_le_bytes()[..(value % 8) as usize]); }
                }
            }
            out
        };
        let desc = decode(&block(&raw_entry("a", &write(&fields)))).unwrap();
        proptest::prop_assert_eq!(desc.instances["a"].unknown.size(), write(&fields).len(), "nothing is lost");
        let written = protobuf(&desc);
        proptest::prop_assert_eq!(decode(&block(&written)).unwrap(), desc);
        // The order of different fields means nothing, that of occurrences of one does.
        let mut other = fields;
        other.shuffle(&mut rand::rngs::SmallRng::seed_from_u64(shuffle));
        other.sort_by_key(|field| std::cmp::Reverse(field.0));
        let again = protobuf(&decode(&block(&raw_entry("a", &write(&other)))).unwrap());
        proptest::prop_assert_eq!(again.len(), written.len());
    }
}

/// The bad inputs of the catalogue that are no error: what must come out of them.
#[test]
fn odd_rings_are_taken_as_they_are() {
    let odd = |instance: InstanceProto| decode(&block(&entry("a", instance))).unwrap().instances["a"].clone();
    for timestamp in [i64::MIN, i64::MAX] {
        let kept = odd(InstanceProto { timestamp, ..InstanceProto::default() });
        assert_eq!(kept.timestamp, timestamp);
        assert!(kept.tombstone(0).timestamp >= 0);
    }
    let unknown = odd(InstanceProto { state: 99, tokens: vec![1], ..InstanceProto::default() });
    assert_eq!(unknown.state, InstanceState::Unknown(99));
    assert!(crate::ring::Operation::ALL.iter().all(|op| !op.serves(unknown.state)), "not ACTIVE");
    let ring = Desc { instances: [("a".into(), unknown)].into(), ..Desc::default() };
    assert_eq!(decode(&block(&protobuf(&ring))).unwrap(), ring, "kept");
    // The same id twice: the later one. Go does the same.
    let twice =
        [entry("a", InstanceProto { timestamp: 9, ..InstanceProto::default() }), entry("a", InstanceProto::default())];
    assert_eq!(decode(&block(&twice.concat())).unwrap().instances["a"].timestamp, 0);
    // A token of 33 bits loses the highest, in every protobuf library.
    let wide = raw_entry("a", &[0x32, 5, 0x81, 0x80, 0x80, 0x80, 0x10]);
    assert_eq!(*decode(&block(&wide)).unwrap().instances["a"].tokens, [1]);
}

#[test]
fn a_block_that_declares_more_than_its_bytes_can_hold_is_refused_before_allocating() {
    // Four gigabytes, in five bytes of header and none of content.
    assert!(reason(&[0xFF, 0xFF, 0xFF, 0xFF, 0x0F]).contains("declare"));
    // Within the ratio, but above the cap.
    let mut large = vec![0x81, 0x80, 0x80, 0x10];
    large.resize(3 << 20, 0);
    assert!(reason(&large).contains("declare"));
}

#[test]
fn hostile_rings_are_refused() {
    let too_many_tokens = InstanceProto { tokens: (0..4097).collect(), ..InstanceProto::default() };
    assert!(reason(&block(&entry("a", too_many_tokens))).contains("4097 tokens"));
    let too_large = InstanceProto { tokens: vec![u32::MAX; 16_000], ..InstanceProto::default() };
    assert!(reason(&block(&entry("a", too_large))).contains("an instance of"));
    let long_zone = InstanceProto { zone: "z".repeat(1025), ..InstanceProto::default() };
    assert!(reason(&block(&entry("a", long_zone))).contains("zone of 1025"));
    let long_id = "i".repeat(1025);
    assert!(reason(&block(&entry(&long_id, InstanceProto::default()))).contains("id of 1025"));
    let other_id = InstanceProto { id: "b".into(), ..InstanceProto::default() };
    assert!(reason(&block(&entry("a", other_id))).contains("calls itself"));
    assert!(reason(&block(&entry("", InstanceProto::default()))).contains("without an id"));
    let groups = [0x0B_u8; 10_000];
    assert!(reason(&block(&groups)).contains("wire type 3"));
    assert!(reason(&block(&[0x0A, 0x05, 0x0A])).contains("cut short"));
    let crowd: Vec<u8> =
        (0..=MAX_INSTANCES).flat_map(|number| entry(&number.to_string(), InstanceProto::default())).collect();
    assert!(reason(&block(&crowd)).contains("more than 100000 instances"));
    let megabyte = InstanceProto { zone: "z".repeat(1 << 20), ..InstanceProto::default() };
    assert!(reason(&block(&entry("a", megabyte))).contains("an instance of"));
    let millions = [&[0x32, 0x80, 0x80, 0x80, 0x08][..], &vec![0; 16 << 20]].concat();
    assert!(reason(&block(&raw_entry("a", &millions))).contains("an instance of"));
    assert!(reason(&block(&raw_entry("a", &groups))).contains("wire type 3"));
    // An entry of no fields at all, and one whose key is a number.
    assert!(reason(&block(&[0x0A, 0])).contains("without an id"));
    assert!(reason(&block(&[0x0A, 2, 0x08, 1])).contains("another type"));
    assert!(reason(&block(&[0x08, 1])).contains("another type"));
    assert!(reason(&block(&[0x0A, 3, 0x0A, 1, 0xFF])).contains("UTF-8"));
    // No field number, and one that does not exist.
    assert!(reason(&block(&[0x00, 1])).contains("field number 0"));
    assert!(reason(&block(&[0xFF; 9])).contains("cut short"));
    assert!(reason(&block(&[0xFF; 11])).contains("64 bits"));
    let mut stuffed = Vec::new();
    put_bytes(&mut stuffed, 77, &vec![1; MAX_UNKNOWN]);
    assert!(reason(&block(&stuffed)).contains("unknown fields"));
    assert!(reason(&block(&raw_entry("a", &stuffed))).contains("unknown fields"));
}

/// Whether the bytes decode; and then what was decoded is what is written and read again.
fn taken_whole(bytes: &[u8]) -> bool {
    let Ok(desc) = decode(bytes) else { return false };
    let written = RingCodec.encode(&Value::new(desc.clone())).unwrap();
    assert_eq!(decode(&written).unwrap(), desc);
    true
}

#[test]
fn no_prefix_and_no_flipped_bit_of_a_ring_makes_the_decoder_panic() {
    let mut desc = Desc::default();
    let instance = Instance {
        addr: "a:1".into(),
        timestamp: 9,
        tokens: [1, 2, 3].into(),
        versions: [(1, 1)].into(),
        ..Instance::default()
    };
    desc.instances.insert("a".into(), instance.clone());
    desc.instances.insert("b".into(), instance);
    desc.unknown = ring_of(UNKNOWN).unknown;
    let bytes = RingCodec.encode(&Value::new(desc)).unwrap();
    let proto = snap::raw::Decoder::new().decompress_vec(&bytes).unwrap();
    let mut refused = 0;
    for whole in [false, true] {
        let source = if whole { &bytes } else { &proto };
        for bit in 0..source.len() * 8 {
            let mut damaged = source.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let damaged = if whole { damaged } else { block(&damaged) };
            refused += usize::from(!taken_whole(&damaged));
        }
        for end in 0..source.len() {
            let cut = if whole { source[..end].to_vec() } else { block(&source[..end]) };
            refused += usize::from(!taken_whole(&cut));
        }
    }
    assert!(refused > 100, "only {refused} of the damaged rings were refused");
}

#[test]
fn json_shows_state_names_and_tokens() {
    let mut desc = Desc::default();
    desc.instances
        .insert("a".into(), Instance { state: InstanceState::Joining, tokens: [4].into(), ..Instance::default() });
    let json = RingCodec.to_json(&Value::new(desc)).unwrap();
    assert_eq!(json["instances"]["a"]["state"], "JOINING");
    assert_eq!(json["instances"]["a"]["tokens"], json!([4]));
}
