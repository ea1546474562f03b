//! The bytes of a ring: dskit's `ring.proto`, in one raw snappy block.
//!
//! The bytes come from peers and from stores that others write, so sizes are checked before anything is allocated for
//! them: the declared size of the block against what snappy can make of so many bytes, the number of instances before
//! they are decoded, and each instance by itself. What encodes is canonical: equal rings have equal bytes. Fields that
//! this version does not know are kept and written again ([`UnknownFields`]).

mod fields;

use std::collections::BTreeMap;

use prost::Message;
use serde_json::json;

pub use self::fields::UnknownFields;
use self::fields::{Field, Payload, put_varint};
use super::desc::{Desc, Instance, InstanceState};
use super::rules::RingRules;
use crate::clock::Now;
use crate::kv::admission::{Admitted, Known};
use crate::kv::{Codec, CodecError, Value};

/// The codec's name on the wire.
pub const RING_CODEC_ID: &str = "ringDesc";

/// Most tokens of one instance.
pub const MAX_TOKENS: usize = 4096;
/// Most instances of one ring, tombstones included.
pub const MAX_INSTANCES: usize = 100_000;
/// Longest id, address or zone, in bytes.
pub const MAX_TEXT: usize = 1024;
/// Most feature versions of one instance.
pub const MAX_VERSIONS: usize = 1024;
/// Most bytes of unknown fields of one instance, and of the ring itself.
pub const MAX_UNKNOWN: usize = 16 << 10;
/// Largest ring before compression, in bytes.
pub const MAX_DECLARED: usize = 32 << 20;
/// Largest instance in bytes: all tokens at five bytes each, and room for the rest.
const MAX_INSTANCE: usize = 64 << 10;

/// `InstanceDesc`. Tags 4 and 5 are retired.
#[derive(Clone, PartialEq, Message)]
struct InstanceProto {
    #[prost(string, tag = "1")]
    addr: String,
    #[prost(int64, tag = "2")]
    timestamp: i64,
    #[prost(int32, tag = "3")]
    state: i32,
    #[prost(uint32, repeated, tag = "6")]
    tokens: Vec<u32>,
    #[prost(string, tag = "7")]
    zone: String,
    #[prost(int64, tag = "8")]
    registered_timestamp: i64,
    #[prost(string, tag = "9")]
    id: String,
    #[prost(int64, tag = "10")]
    read_only_updated_timestamp: i64,
    #[prost(bool, tag = "11")]
    read_only: bool,
    #[prost(btree_map = "uint64, uint64", tag = "12")]
    versions: BTreeMap<u64, u64>,
}

/// Number of the `ingesters` map in `Desc`.
const INGESTERS: u32 = 1;

/// Whether `InstanceProto` has a field of this number.
const fn is_known(tag: u32) -> bool {
    matches!(tag, 1..=3 | 6..=12)
}

/// The codec of instance rings, `ringDesc`, with the default [`RingRules`].
#[derive(Clone, Copy, Debug, Default)]
pub struct RingCodec;

impl Codec for RingCodec {
    fn id(&self) -> &str {
        RING_CODEC_ID
    }

    fn encode(&self, value: &Value) -> Result<Vec<u8>, CodecError> {
        let proto = encode_proto(desc_of(value)?);
        snap::raw::Encoder::new().compress_vec(&proto).map_err(|error| bad(format!("cannot compress: {error}")))
    }

    fn decode(&self, bytes: &[u8]) -> Result<Value, CodecError> {
        let declared = snap::raw::decompress_len(bytes).map_err(|error| bad(format!("not a snappy block: {error}")))?;
        // Snappy's best is 64 bytes for 3, so a block that promises more lies.
        let most = MAX_DECLARED.min(bytes.len().saturating_mul(22).saturating_add(16));
        if declared > most {
            return Err(bad(format!("{} bytes declare a size of {declared}, more than {most}", bytes.len())));
        }
        let mut proto = vec![0; declared];
        let written = snap::raw::Decoder::new()
            .decompress(bytes, &mut proto)
            .map_err(|error| bad(format!("damaged snappy block: {error}")))?;
        proto.truncate(written);
        decode_proto(&proto).map(Value::new)
    }

    fn empty(&self) -> Option<Value> {
        Some(Value::new(Desc::default()))
    }

    fn admit(&self, incoming: Value, known: Known<'_>, now: Now) -> Admitted {
        RingRules::default().admit(incoming, known, now)
    }

    fn to_json(&self, value: &Value) -> Result<serde_json::Value, CodecError> {
        let instances: serde_json::Map<String, serde_json::Value> = desc_of(value)?
            .instances
            .iter()
            .map(|(id, instance)| {
                let shown = json!({
                    "addr": instance.addr,
                    "state": instance.state.to_string(),
                    "zone": instance.zone,
                    "timestamp": instance.timestamp,
                    "registered_timestamp": instance.registered_timestamp,
                    "read_only": instance.read_only,
                    "read_only_updated_timestamp": instance.read_only_updated_timestamp,
                    "tokens": &*instance.tokens,
                });
                (id.to_string(), shown)
            })
            .collect();
        Ok(json!({ "instances": instances }))
    }
}

fn bad(reason: impl Into<String>) -> CodecError {
    CodecError::new(RING_CODEC_ID, reason)
}

fn desc_of(value: &Value) -> Result<&Desc, CodecError> {
    value.downcast_ref::<Desc>().ok_or_else(|| bad("the value is not a ring"))
}

/// The protobuf of a ring. The map is written by hand: Go writes the value of a map entry even when it is empty,
/// prost's maps do not.
fn encode_proto(desc: &Desc) -> Vec<u8> {
    let mut out = Vec::new();
    for (id, instance) in &desc.instances {
        let proto = InstanceProto {
            addr: instance.addr.clone(),
            timestamp: instance.timestamp,
            state: instance.state.number(),
            tokens: instance.tokens.to_vec(),
            zone: instance.zone.clone(),
            registered_timestamp: instance.registered_timestamp,
            id: id.to_string(),
            read_only_updated_timestamp: instance.read_only_updated_timestamp,
            read_only: instance.read_only,
            versions: instance.versions.clone(),
        };
        let mut value = proto.encode_to_vec();
        value.extend(instance.unknown.to_bytes());
        let mut entry = Vec::with_capacity(value.len() + id.len() + 16);
        put_bytes(&mut entry, 1, id.as_bytes());
        put_bytes(&mut entry, 2, &value);
        put_bytes(&mut out, INGESTERS, &entry);
    }
    out.extend(desc.unknown.to_bytes());
    out
}

fn put_bytes(out: &mut Vec<u8>, tag: u32, bytes: &[u8]) {
    put_varint(out, u64::from(tag) << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Reads the outer messages by hand, so that the number and the size of entries are known before they are decoded.
fn decode_proto(mut bytes: &[u8]) -> Result<Desc, CodecError> {
    let mut desc = Desc::default();
    while let Some(field) = Field::next(&mut bytes).map_err(bad)? {
        let entry = match field {
            Field { tag: INGESTERS, payload: Payload::Bytes(entry) } => entry,
            Field { tag: INGESTERS, .. } => return Err(bad("the map of instances is of another type")),
            field => {
                keep(&mut desc.unknown, &field)?;
                continue;
            }
        };
        if entry.len() > MAX_INSTANCE {
            return Err(bad(format!("an instance of {} bytes, more than {MAX_INSTANCE}", entry.len())));
        }
        let (id, instance) = entry_of(entry)?;
        // The same id twice: the later one counts, as in every protobuf map.
        desc.instances.insert(id.into(), instance);
        if desc.instances.len() > MAX_INSTANCES {
            return Err(bad(format!("more than {MAX_INSTANCES} instances")));
        }
    }
    Ok(desc)
}

/// One entry of the map: the id is field 1, the instance field 2. Other fields cannot be: a map entry has two.
fn entry_of(mut entry: &[u8]) -> Result<(String, Instance), CodecError> {
    let (mut id, mut value): (&[u8], &[u8]) = (&[], &[]);
    while let Some(field) = Field::next(&mut entry).map_err(bad)? {
        match field {
            Field { tag: 1, payload: Payload::Bytes(bytes) } => id = bytes,
            Field { tag: 2, payload: Payload::Bytes(bytes) } => value = bytes,
            Field { tag: 1 | 2, .. } => return Err(bad("an entry of the map is of another type")),
            _ => {}
        }
    }
    let id = std::str::from_utf8(id).map_err(|_| bad("an id that is not UTF-8"))?;
    Ok((id.to_owned(), instance_of(id, value)?))
}

fn instance_of(id: &str, value: &[u8]) -> Result<Instance, CodecError> {
    if id.is_empty() {
        return Err(bad("an instance without an id"));
    }
    let mut unknown = UnknownFields::default();
    let mut rest = value;
    while let Some(field) = Field::next(&mut rest).map_err(bad)? {
        if !is_known(field.tag) {
            keep(&mut unknown, &field)?;
        }
    }
    let proto = InstanceProto::decode(value).map_err(|error| bad(error.to_string()))?;
    // Old writers leave the copy of the id out. A different one would make two readers see two rings.
    if !proto.id.is_empty() && proto.id != id {
        return Err(bad(format!("instance {} calls itself {}", id.escape_default(), proto.id.escape_default())));
    }
    for (what, text) in [("id", id), ("address", &*proto.addr), ("zone", &*proto.zone)] {
        if text.len() > MAX_TEXT {
            return Err(bad(format!("{what} of {} bytes, more than {MAX_TEXT}", text.len())));
        }
    }
    if proto.tokens.len() > MAX_TOKENS || proto.versions.len() > MAX_VERSIONS {
        return Err(bad(format!(
            "{} tokens and {} versions, at most {MAX_TOKENS} and {MAX_VERSIONS} are allowed",
            proto.tokens.len(),
            proto.versions.len()
        )));
    }
    let mut instance = Instance {
        addr: proto.addr,
        timestamp: proto.timestamp,
        state: InstanceState::from_number(proto.state),
        tokens: proto.tokens.into(),
        zone: proto.zone,
        registered_timestamp: proto.registered_timestamp,
        read_only_updated_timestamp: proto.read_only_updated_timestamp,
        read_only: proto.read_only,
        versions: proto.versions,
        unknown,
    };
    instance.normalize();
    Ok(instance)
}

/// Adds to the unknown fields of an instance or of the ring, as far as there is room.
fn keep(unknown: &mut UnknownFields, field: &Field<'_>) -> Result<(), CodecError> {
    unknown.add(field);
    if unknown.size() > MAX_UNKNOWN {
        return Err(bad(format!("more than {MAX_UNKNOWN} bytes of unknown fields")));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
