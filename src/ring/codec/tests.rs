#![allow(clippy::unwrap_used)]

use super::*;

fn block(proto: &[u8]) -> Vec<u8> {
    snap::raw::Encoder::new().compress_vec(proto).unwrap()
}

fn decode(bytes: &[u8]) -> Result<Desc, CodecError> {
    RingCodec.decode(bytes).map(|value| value.downcast_ref::<Desc>().unwrap().clone())
}

fn entry(key: &str, value: InstanceProto) -> Vec<u8> {
    let mut out = vec![INGESTERS];
    out.extend(EntryProto { key: key.to_owned(), value: Some(value) }.encode_length_delimited_to_vec());
    out
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
fn unknown_fields_of_the_ring_are_skipped() {
    // A varint (field 3), eight bytes (4), a string (5) and four bytes (6) around an instance.
    let mut proto = vec![0x18, 0x80, 0x01, 0x21, 0, 1, 2, 3, 4, 5, 6, 7, 0x2A, 2, b'h', b'i', 0x35, 0, 1, 2, 3];
    proto.extend(entry("a", InstanceProto::default()));
    assert_eq!(decode(&block(&proto)).unwrap().instances.len(), 1);
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
    let bytes = RingCodec.encode(&Value::new(desc)).unwrap();
    let proto = snap::raw::Decoder::new().decompress_vec(&bytes).unwrap();
    let mut refused = 0;
    for whole in [false, true] {
        let source = if whole { &bytes } else { &proto };
        for bit in 0..source.len() * 8 {
            let mut damaged = source.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let damaged = if whole { damaged } else { block(&damaged) };
            refused += usize::from(decode(&damaged).is_err());
        }
        for end in 0..source.len() {
            let cut = if whole { source[..end].to_vec() } else { block(&source[..end]) };
            refused += usize::from(decode(&cut).is_err());
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
