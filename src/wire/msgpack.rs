//! The msgpack of memberlist: a small reader that fills fixed structs, and a writer that gives the bytes Go gives.
//!
//! Go peers write the *old* msgpack: strings and byte strings are the same "raw" type, there is no str8 and no bin, map
//! keys are the Go field names in ASCII order. The writer does exactly that. The reader also takes what other encoders
//! write: str8, bin, any integer form, maps in any order and with unknown keys, a struct as an array of its fields in
//! the order in which Go declares them, a byte string as an array of numbers, and nil for any zero value.
//!
//! There is no generic value tree: [`Reader::structure`] names each field to the caller, who takes it or skips it.

use std::borrow::Cow;

use rmp::Marker;

use super::budget::{Budget, MAX_DEPTH};
use super::error::WireError;
use super::message::{NodeName, WireIp};

/// Most keys of one map that is a message. The largest message has eight.
const MAX_FIELDS: u64 = 16;
/// Longest key. The longest of the protocol has twelve bytes.
const MAX_KEY: usize = 255;
/// Longest address that is looked at: long enough to say how long the wrong one is.
const MAX_ADDRESS: usize = 255;
/// Longest node name, in bytes.
pub(super) const MAX_NAME: usize = 255;

/// One value's head: what it is, and how much follows.
#[derive(Clone, Copy, Debug)]
enum Head {
    Nil,
    Bool(bool),
    Uint(u64),
    Negative,
    Float,
    Text(usize),
    Binary(usize),
    Extension(usize),
    Array(u64),
    Map(u64),
}

/// Parses the head of the value that starts `bytes`, and how many bytes the head takes.
///
/// `None` when more bytes are needed. A number belongs to the head; the bytes of a string do not.
fn head(bytes: &[u8]) -> Result<Option<(Head, usize)>, WireError> {
    let Some((&first, rest)) = bytes.split_first() else { return Ok(None) };
    let marker = Marker::from_u8(first);
    // How many bytes after the marker hold a number: the value itself, or a length.
    let width = match marker {
        Marker::U8 | Marker::I8 | Marker::Str8 | Marker::Bin8 | Marker::Ext8 => 1,
        Marker::U16 | Marker::I16 | Marker::Str16 | Marker::Bin16 | Marker::Ext16 | Marker::Array16 | Marker::Map16 => {
            2
        }
        Marker::U32 | Marker::I32 | Marker::F32 | Marker::Str32 | Marker::Bin32 | Marker::Ext32 => 4,
        Marker::Array32 | Marker::Map32 => 4,
        Marker::U64 | Marker::I64 | Marker::F64 => 8,
        _ => 0,
    };
    let Some(digits) = rest.get(..width) else { return Ok(None) };
    let number = digits.iter().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
    let signed = |negative: bool| if negative { Head::Negative } else { Head::Uint(number) };
    let len = usize::try_from(number).unwrap_or(usize::MAX);
    let head = match marker {
        Marker::Null => Head::Nil,
        Marker::False => Head::Bool(false),
        Marker::True => Head::Bool(true),
        Marker::FixPos(value) => Head::Uint(value.into()),
        Marker::FixNeg(_) => Head::Negative,
        Marker::U8 | Marker::U16 | Marker::U32 | Marker::U64 => Head::Uint(number),
        Marker::I8 | Marker::I16 | Marker::I32 | Marker::I64 => signed(digits.first().is_some_and(|top| *top >= 0x80)),
        Marker::F32 | Marker::F64 => Head::Float,
        Marker::FixStr(len) => Head::Text(len.into()),
        Marker::Str8 | Marker::Str16 | Marker::Str32 => Head::Text(len),
        Marker::Bin8 | Marker::Bin16 | Marker::Bin32 => Head::Binary(len),
        Marker::FixArray(count) => Head::Array(count.into()),
        Marker::Array16 | Marker::Array32 => Head::Array(number),
        Marker::FixMap(count) => Head::Map(count.into()),
        Marker::Map16 | Marker::Map32 => Head::Map(number),
        // An extension has one more byte, its type.
        Marker::FixExt1 => Head::Extension(2),
        Marker::FixExt2 => Head::Extension(3),
        Marker::FixExt4 => Head::Extension(5),
        Marker::FixExt8 => Head::Extension(9),
        Marker::FixExt16 => Head::Extension(17),
        Marker::Ext8 | Marker::Ext16 | Marker::Ext32 => Head::Extension(len.saturating_add(1)),
        Marker::Reserved => return Err(WireError::WrongType { field: "value" }),
    };
    Ok(Some((head, 1 + width)))
}

/// Finds where a value ends, without looking at what it means, and without starting over when more bytes arrive.
///
/// Each byte of a value is looked at once however it is cut into pieces, so a peer that sends one byte at a time costs
/// no more than one that sends all at once.
#[derive(Debug)]
pub(super) struct Scanner {
    at: usize,
    max: usize,
    /// How many values are still missing at each level; the first is the value itself.
    open: [u64; MAX_DEPTH + 1],
    level: usize,
}

impl Scanner {
    /// For a value of at most `max` bytes that stands `depth` containers deep.
    pub(super) fn new(max: usize, depth: usize) -> Self {
        let mut open = [0; MAX_DEPTH + 1];
        let level = depth.min(MAX_DEPTH);
        open[level] = 1;
        Self { at: 0, max, open, level }
    }

    /// How far it has come.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// Looks at `bytes`, which begin with the value and continue what was passed before: the length of the value, or
    /// `None` when more bytes are needed.
    pub(super) fn scan(&mut self, bytes: &[u8], budget: &mut Budget) -> Result<Option<usize>, WireError> {
        while let Some(missing) = self.open.get_mut(self.level) {
            if *missing == 0 {
                // Levels above the first value's are zero from the start, so this ends there.
                let Some(outer) = self.level.checked_sub(1) else { break };
                self.level = outer;
                continue;
            }
            let Some((head, taken)) = head(bytes.get(self.at..).unwrap_or_default())? else { return Ok(None) };
            budget.item()?;
            *missing -= 1;
            self.at += taken;
            let (body, inner) = match head {
                Head::Text(len) | Head::Binary(len) | Head::Extension(len) => (len, None),
                Head::Array(count) => (0, Some(count)),
                Head::Map(count) => (0, Some(count * 2)),
                Head::Nil | Head::Bool(_) | Head::Uint(_) | Head::Negative | Head::Float => (0, None),
            };
            // Each inner value takes a byte at least: a count that cannot fit is refused before anything waits for it.
            let least = (self.at as u64).saturating_add(body as u64).saturating_add(inner.unwrap_or(0));
            if least > self.max as u64 {
                return Err(WireError::TooLong { field: "value", len: least, max: self.max as u64 });
            }
            self.at += body;
            if let Some(count) = inner {
                self.level += 1;
                *self.open.get_mut(self.level).ok_or(WireError::TooDeep)? = count;
            }
        }
        // The last string may reach past what is there.
        Ok((self.at <= bytes.len()).then_some(self.at))
    }
}

/// Reads one msgpack value after another from bytes that are all there.
#[derive(Debug)]
pub(super) struct Reader<'a, 'b> {
    rest: &'a [u8],
    budget: &'b mut Budget,
    /// The field that is being read, for errors.
    field: &'static str,
    /// How many bytes there were.
    len: usize,
    /// Where the value that is being read begins, for errors.
    value_at: usize,
}

impl<'a, 'b> Reader<'a, 'b> {
    /// Starts at the first byte. `what` names the message until the first field has been found.
    pub(super) fn new(bytes: &'a [u8], budget: &'b mut Budget, what: &'static str) -> Self {
        Self { rest: bytes, budget, field: what, len: bytes.len(), value_at: 0 }
    }

    /// How many bytes have been read.
    pub(super) fn position(&self) -> usize {
        self.len - self.rest.len()
    }

    /// Reads a message: calls `visit` with the name of each field that is there, which must read one value.
    ///
    /// `fields` are the names in the order in which Go declares them, for peers that send an array. Unknown keys are
    /// skipped; of a key that comes twice the last wins, because `visit` is called twice.
    pub(super) fn structure(
        &mut self,
        fields: &[&'static str],
        visit: impl FnMut(&mut Self, &'static str) -> Result<(), WireError>,
    ) -> Result<(), WireError> {
        let read = self.fields(fields, visit);
        read.map_err(|error| self.budget.stopped(self.value_at, error))
    }

    fn fields(
        &mut self,
        fields: &[&'static str],
        mut visit: impl FnMut(&mut Self, &'static str) -> Result<(), WireError>,
    ) -> Result<(), WireError> {
        let what = self.field;
        let (count, keyed) = match self.head()? {
            Head::Nil => return Ok(()),
            Head::Map(count) => (count, true),
            Head::Array(count) => (count, false),
            _ => return Err(self.wrong_type()),
        };
        if count > MAX_FIELDS {
            return Err(WireError::TooLong { field: what, len: count, max: MAX_FIELDS });
        }
        let mut positions = fields.iter();
        for _ in 0..count {
            self.field = what;
            let field = if keyed {
                let key = self.text(MAX_KEY)?;
                fields.iter().find(|field| field.as_bytes() == key)
            } else {
                positions.next()
            };
            match field {
                Some(field) => {
                    self.field = field;
                    visit(self, field)?;
                }
                None => self.skip()?,
            }
        }
        Ok(())
    }

    /// Reads past one value inside a message.
    pub(super) fn skip(&mut self) -> Result<(), WireError> {
        self.value_at = self.position();
        let len = Scanner::new(usize::MAX, 1).scan(self.rest, self.budget)?.ok_or(WireError::Truncated)?;
        self.take(len)?;
        Ok(())
    }

    /// A number from 0 to `max`.
    pub(super) fn uint(&mut self, max: u64) -> Result<u64, WireError> {
        match self.head()? {
            Head::Nil => Ok(0),
            Head::Uint(value) if value <= max => Ok(value),
            Head::Uint(_) | Head::Negative => Err(WireError::OutOfRange { field: self.field }),
            _ => Err(self.wrong_type()),
        }
    }

    /// A number of 16 bits.
    pub(super) fn uint16(&mut self) -> Result<u16, WireError> {
        Ok(self.uint(u16::MAX.into())? as u16)
    }

    /// A number of 32 bits.
    pub(super) fn uint32(&mut self) -> Result<u32, WireError> {
        Ok(self.uint(u32::MAX.into())? as u32)
    }

    /// Any whole number; `None` for a negative one.
    pub(super) fn integer(&mut self) -> Result<Option<u64>, WireError> {
        match self.head()? {
            Head::Nil => Ok(Some(0)),
            Head::Uint(value) => Ok(Some(value)),
            Head::Negative => Ok(None),
            _ => Err(self.wrong_type()),
        }
    }

    /// The length of something that follows: not more than `max`, and the error says by how much it is.
    pub(super) fn length(&mut self, max: usize) -> Result<usize, WireError> {
        let len = self.uint(i64::MAX as u64)?;
        match usize::try_from(len) {
            Ok(len) if len <= max => Ok(len),
            _ => Err(WireError::TooLong { field: self.field, len, max: max as u64 }),
        }
    }

    /// A truth value; Go also takes 0 and 1.
    pub(super) fn boolean(&mut self) -> Result<bool, WireError> {
        match self.head()? {
            Head::Nil => Ok(false),
            Head::Bool(value) => Ok(value),
            Head::Uint(value @ 0..=1) => Ok(value == 1),
            _ => Err(self.wrong_type()),
        }
    }

    /// A copy of a byte string of at most `max` bytes, in any of its forms.
    pub(super) fn bytes(&mut self, max: usize) -> Result<Vec<u8>, WireError> {
        match self.byte_string(max)? {
            Cow::Borrowed(bytes) => {
                self.budget.bytes(bytes.len())?;
                Ok(bytes.to_vec())
            }
            Cow::Owned(bytes) => Ok(bytes),
        }
    }

    /// A byte string of at most `max` bytes, where it stands if it stands in one piece.
    pub(super) fn byte_string(&mut self, max: usize) -> Result<Cow<'a, [u8]>, WireError> {
        match self.head()? {
            Head::Nil => Ok(Cow::Borrowed(&[])),
            Head::Text(len) | Head::Binary(len) => Ok(Cow::Borrowed(self.take_at_most(len, max)?)),
            Head::Array(count) => {
                if count > max as u64 {
                    return Err(WireError::TooLong { field: self.field, len: count, max: max as u64 });
                }
                // Not reserved ahead: the count is only a claim until the numbers are there.
                let mut bytes = Vec::new();
                for _ in 0..count {
                    self.budget.bytes(1)?;
                    bytes.push(self.uint(u8::MAX.into())? as u8);
                }
                Ok(Cow::Owned(bytes))
            }
            _ => Err(self.wrong_type()),
        }
    }

    /// A byte string of any length where it stands, raw or bin: nothing is copied, so its length needs no limit.
    pub(super) fn borrowed(&mut self) -> Result<&'a [u8], WireError> {
        self.text(usize::MAX)
    }

    /// A node name. It is printed and compared wherever there are members, so it has no control characters.
    pub(super) fn name(&mut self) -> Result<NodeName, WireError> {
        let name = self.string(MAX_NAME)?;
        if name.chars().any(char::is_control) {
            return Err(WireError::NotPrintable { field: self.field });
        }
        Ok(NodeName::from(name))
    }

    /// The name of whoever says something, where the message is about another. Go takes names that [`Self::name`] refuses,
    /// and what a member of such a name says is true all the same: here it has none.
    pub(super) fn speaker(&mut self) -> Result<NodeName, WireError> {
        let name = std::str::from_utf8(self.borrowed()?).unwrap_or_default();
        let name = if name.len() > MAX_NAME || name.chars().any(char::is_control) { "" } else { name };
        self.budget.bytes(name.len())?;
        Ok(NodeName::from(name))
    }

    /// UTF-8 text of at most `max` bytes.
    pub(super) fn string(&mut self, max: usize) -> Result<&'a str, WireError> {
        let text = std::str::from_utf8(self.text(max)?).map_err(|_| WireError::NotUtf8 { field: self.field })?;
        self.budget.bytes(text.len())?;
        Ok(text)
    }

    /// An IP address of 0, 4 or 16 bytes, kept as it is.
    pub(super) fn address(&mut self) -> Result<WireIp, WireError> {
        let bytes = self.byte_string(MAX_ADDRESS)?;
        WireIp::from_slice(&bytes).ok_or(WireError::BadAddress { field: self.field, len: bytes.len() })
    }

    fn text(&mut self, max: usize) -> Result<&'a [u8], WireError> {
        match self.head()? {
            Head::Nil => Ok(&[]),
            Head::Text(len) | Head::Binary(len) => self.take_at_most(len, max),
            _ => Err(self.wrong_type()),
        }
    }

    fn head(&mut self) -> Result<Head, WireError> {
        self.value_at = self.position();
        let (head, taken) = head(self.rest)?.ok_or(WireError::Truncated)?;
        self.budget.item()?;
        self.take(taken)?;
        Ok(head)
    }

    fn take_at_most(&mut self, len: usize, max: usize) -> Result<&'a [u8], WireError> {
        if len > max {
            return Err(WireError::TooLong { field: self.field, len: len as u64, max: max as u64 });
        }
        self.take(len)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(WireError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    fn wrong_type(&self) -> WireError {
        WireError::WrongType { field: self.field }
    }
}

/// Writes msgpack as go-msgpack 2.x does with memberlist's settings.
#[derive(Debug, Default)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    /// Starts a message with its type byte.
    pub(super) fn new(kind: u8) -> Self {
        // Most messages fit.
        let mut bytes = Vec::with_capacity(128);
        bytes.push(kind);
        Self(bytes)
    }

    /// Starts a message behind bytes that are already there.
    pub(super) fn after(mut bytes: Vec<u8>, kind: u8) -> Self {
        bytes.push(kind);
        Self(bytes)
    }

    /// The bytes so far.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// Starts a struct of `fields` fields (at most 15).
    pub(super) fn structure(&mut self, fields: u8) {
        self.0.push(Marker::FixMap(fields).to_u8());
    }

    /// The key of the next value. Keys must be written in ASCII order.
    pub(super) fn key(&mut self, name: &str) -> &mut Self {
        self.text(name)
    }

    /// A string, of any length: never nil.
    pub(super) fn text(&mut self, text: &str) -> &mut Self {
        self.raw(text.as_bytes());
        self
    }

    /// A byte string; an empty one is nil, as a Go slice that was never set.
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            self.0.push(Marker::Null.to_u8());
        } else {
            self.raw(bytes);
        }
    }

    /// A field that is unsigned in Go: the shortest form.
    pub(super) fn uint(&mut self, value: u32) {
        match value {
            0..=0x7f => self.0.push(value as u8),
            0x80..=0xff => self.0.extend([Marker::U8.to_u8(), value as u8]),
            0x100..=0xffff => self.number(Marker::U16, &(value as u16).to_be_bytes()),
            _ => self.number(Marker::U32, &value.to_be_bytes()),
        }
    }

    /// A field that is a signed `int` in Go, where it is never negative: above 127 a *signed* 16, 32 or 64 bit form.
    pub(super) fn int(&mut self, value: usize) {
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        if let Ok(small @ 0..=0x7f) = u8::try_from(value) {
            self.0.push(small);
        } else if let Ok(short) = i16::try_from(value) {
            self.number(Marker::I16, &short.to_be_bytes());
        } else if let Ok(long) = i32::try_from(value) {
            self.number(Marker::I32, &long.to_be_bytes());
        } else {
            self.number(Marker::I64, &value.to_be_bytes());
        }
    }

    /// A truth value.
    pub(super) fn boolean(&mut self, value: bool) {
        self.0.push(if value { Marker::True } else { Marker::False }.to_u8());
    }

    /// Bytes that are not msgpack.
    pub(super) fn append(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn raw(&mut self, bytes: &[u8]) {
        match bytes.len() {
            len @ 0..=31 => self.0.push(Marker::FixStr(len as u8).to_u8()),
            // Never str8: the old msgpack has no such thing.
            len @ 32..=0xffff => self.number(Marker::Str16, &(len as u16).to_be_bytes()),
            len => self.number(Marker::Str32, &u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes()),
        }
        self.0.extend_from_slice(bytes);
    }

    fn number(&mut self, marker: Marker, digits: &[u8]) {
        self.0.push(marker.to_u8());
        self.0.extend_from_slice(digits);
    }
}

#[cfg(test)]
#[path = "msgpack_tests.rs"]
mod tests;
