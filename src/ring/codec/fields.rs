//! The fields of a protobuf message, one by one, and those of them that this version does not know.
//!
//! Grafana's ring gains fields from time to time. What a node does not know it must pass on all the same, or the field
//! is lost for everybody as soon as an older node gossips the entry. The decoder proper drops such fields, so messages
//! are read field by field first. Groups are refused: `ring.proto` has none, and they are the one thing in a message
//! that nests without its size being known.

use std::collections::BTreeMap;

/// Fields of a message that this version does not know, as they came.
///
/// By field number; a field that occurred several times keeps all its occurrences, in their order. The bytes are
/// canonical: the same fields give the same bytes whatever order and whatever long varints the sender wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnknownFields(BTreeMap<u32, Vec<u8>>);

impl UnknownFields {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Their size on the wire, in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }

    /// Their bytes on the wire, in the order of field numbers.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.values().flatten().copied().collect()
    }

    /// Joins `other` into these: field by field, the longer bytes win, and of equally long ones the greater. That means
    /// nothing, but it is a maximum, so it depends on no order. Returns what changed, or `None`.
    ///
    /// For messages without a version of their own, like a ring; an instance has one, and takes its fields along.
    pub fn join(&mut self, other: &Self) -> Option<Self> {
        let rank = |bytes: &Vec<u8>| (bytes.len(), bytes.clone());
        let newer = |(tag, theirs): &(&u32, &Vec<u8>)| self.0.get(tag).is_none_or(|ours| rank(theirs) > rank(ours));
        let change: BTreeMap<u32, Vec<u8>> =
            other.0.iter().filter(newer).map(|(tag, bytes)| (*tag, bytes.clone())).collect();
        self.0.extend(change.iter().map(|(tag, bytes)| (*tag, bytes.clone())));
        (!change.is_empty()).then_some(Self(change))
    }

    pub(super) fn add(&mut self, field: &Field<'_>) {
        field.write(self.0.entry(field.tag).or_default());
    }
}

/// One field of a message.
pub(super) struct Field<'a> {
    pub(super) tag: u32,
    pub(super) payload: Payload<'a>,
}

/// What is in a field.
pub(super) enum Payload<'a> {
    Varint(u64),
    Fixed64(&'a [u8]),
    Bytes(&'a [u8]),
    Fixed32(&'a [u8]),
}

impl<'a> Field<'a> {
    /// Takes the next field off a message; `None` at its end.
    pub(super) fn next(message: &mut &'a [u8]) -> Result<Option<Self>, String> {
        if message.is_empty() {
            return Ok(None);
        }
        let key = take_varint(message)?;
        let tag = u32::try_from(key >> 3).ok().filter(|tag| (1..1 << 29).contains(tag));
        let tag = tag.ok_or_else(|| format!("there is no field number {}", key >> 3))?;
        let payload = match key & 7 {
            0 => Payload::Varint(take_varint(message)?),
            1 => Payload::Fixed64(take(message, 8)?),
            2 => {
                let length = take_varint(message)?;
                Payload::Bytes(take(message, length)?)
            }
            5 => Payload::Fixed32(take(message, 4)?),
            other => return Err(format!("wire type {other} is not in use")),
        };
        Ok(Some(Self { tag, payload }))
    }

    /// Appends the field in its shortest form.
    fn write(&self, out: &mut Vec<u8>) {
        let (wire_type, bytes) = match &self.payload {
            Payload::Varint(_) => (0, &[][..]),
            Payload::Fixed64(bytes) => (1, *bytes),
            Payload::Bytes(bytes) => (2, *bytes),
            Payload::Fixed32(bytes) => (5, *bytes),
        };
        put_varint(out, u64::from(self.tag) << 3 | wire_type);
        match &self.payload {
            Payload::Varint(value) => put_varint(out, *value),
            Payload::Bytes(bytes) => put_varint(out, bytes.len() as u64),
            Payload::Fixed64(_) | Payload::Fixed32(_) => {}
        }
        out.extend_from_slice(bytes);
    }
}

/// Appends a varint.
pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take_varint(bytes: &mut &[u8]) -> Result<u64, String> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first().ok_or("a number is cut short")?;
        *bytes = rest;
        // Of the tenth byte, one bit has room.
        if shift == 63 && *byte > 1 {
            break;
        }
        value |= u64::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err("a number with more than 64 bits".to_owned())
}

fn take<'a>(bytes: &mut &'a [u8], length: u64) -> Result<&'a [u8], String> {
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    let (field, rest) = bytes.split_at_checked(length).ok_or("a field is cut short")?;
    *bytes = rest;
    Ok(field)
}
