//! The wire form of gossiped keys: one `KeyValuePair` in a user message, many of them in the state of a push/pull.
//!
//! The layout is that of dskit's `memberlist` package: a user message is the protobuf encoding of one pair and nothing
//! else; the user state of a push/pull is, for each pair, its length as a big-endian `u32` and then its encoding, with
//! no count and no checksum.
//!
//! ```
//! use annulus::kv::pair::{KeyValuePair, append_state, read_state};
//!
//! let pair = KeyValuePair { key: "ring".into(), value: vec![0].into(), codec: "ringDesc".into(), ..Default::default() };
//! let mut state = bytes::BytesMut::new();
//! append_state(&mut state, &pair.to_bytes());
//! let back: Vec<_> = read_state(state.freeze(), 10).collect::<Result<_, _>>().unwrap();
//! assert_eq!(back, [pair]);
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

/// Longest key that is sent or taken, in bytes.
pub const MAX_KEY_LEN: usize = 512;

/// Largest encoded value that is sent or taken, in bytes (16 MiB).
pub const MAX_VALUE_LEN: usize = 16 << 20;

/// Longest codec id that is taken, in bytes.
pub const MAX_CODEC_LEN: usize = 128;

/// Largest encoding of one pair: its fields at their limits, and room for tags, lengths and fields that a newer
/// version may add.
pub const MAX_PAIR_LEN: usize = MAX_VALUE_LEN + MAX_KEY_LEN + MAX_CODEC_LEN + 1024;

/// One key as it travels (dskit: `memberlist.KeyValuePair`).
#[derive(Clone, PartialEq, Eq, Message)]
pub struct KeyValuePair {
    /// The key.
    #[prost(string, tag = "1")]
    pub key: String,
    /// The value, or a change of it, encoded by the codec.
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
    /// Id of the codec that encoded the value.
    #[prost(string, tag = "3")]
    pub codec: String,
    /// Whether the key is deleted.
    #[prost(bool, tag = "4")]
    pub deleted: bool,
    /// When the key was deleted, or created again after a delete, in milliseconds since the Unix epoch; 0 when neither
    /// ever happened.
    #[prost(int64, tag = "5")]
    pub update_time_millis: i64,
}

/// Why bytes are not a pair. Nothing of the pair was used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PairError {
    /// A pair of no bytes: it can carry no key, and would let an endless loop look like data.
    #[error("a pair of zero length")]
    Empty,
    /// The bytes end inside a pair or its length.
    #[error("the state ends inside a pair: {missing} bytes are missing")]
    Truncated {
        /// How many bytes are missing, as far as we can tell.
        missing: usize,
    },
    /// A field is longer than its limit, or the key is empty.
    #[error("the {field} has {len} bytes, the limits are {min} to {max}")]
    Length {
        /// Which part.
        field: &'static str,
        /// Its length.
        len: usize,
        /// Shortest allowed.
        min: usize,
        /// Longest allowed.
        max: usize,
    },
    /// The state has more pairs than we take.
    #[error("the state has more than {limit} pairs")]
    TooMany {
        /// The limit.
        limit: usize,
    },
    /// Not protobuf, or another message.
    #[error("not a key-value pair: {0}")]
    Protobuf(String),
}

const fn check_len(field: &'static str, len: usize, min: usize, max: usize) -> Result<(), PairError> {
    if len < min || len > max { Err(PairError::Length { field, len, min, max }) } else { Ok(()) }
}

/// Checks the length of a key.
///
/// # Errors
/// [`PairError::Length`] unless it has 1 to [`MAX_KEY_LEN`] bytes.
pub const fn check_key(key: &str) -> Result<(), PairError> {
    check_len("key", key.len(), 1, MAX_KEY_LEN)
}

impl KeyValuePair {
    /// Decodes the payload of a user message, or one pair of a state. The value shares the memory of `bytes`.
    ///
    /// # Errors
    /// [`PairError`]; fields that we do not know are skipped.
    pub fn from_bytes(bytes: Bytes) -> Result<Self, PairError> {
        if bytes.is_empty() {
            return Err(PairError::Empty);
        }
        check_len("pair", bytes.len(), 1, MAX_PAIR_LEN)?;
        let pair = Self::decode(bytes).map_err(|error| PairError::Protobuf(error.to_string()))?;
        check_key(&pair.key)?;
        check_len("value", pair.value.len(), 0, MAX_VALUE_LEN)?;
        check_len("codec id", pair.codec.len(), 0, MAX_CODEC_LEN)?;
        Ok(pair)
    }

    /// The encoding: fields in ascending order, zero values left out.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        self.encode_to_vec().into()
    }
}

/// Appends one encoded pair to the user state of a push/pull. A pair that no receiver would take (nothing, or more
/// than [`MAX_PAIR_LEN`]) is left out; returns whether it was appended.
pub fn append_state(state: &mut BytesMut, pair: &[u8]) -> bool {
    let Some(len) = u32::try_from(pair.len()).ok().filter(|_| (1..=MAX_PAIR_LEN).contains(&pair.len())) else {
        return false;
    };
    state.reserve(4 + pair.len());
    state.put_u32(len);
    state.put_slice(pair);
    true
}

/// Reads the user state of a push/pull, pair by pair, at most `max_pairs` of them.
///
/// Whole pairs in front of a fault are delivered. A fault in the framing (truncation, zero length, too many) ends the
/// reading with that one error, because what follows cannot be trusted; a pair that is framed well and does not
/// decode is an error of its own, and the reading goes on behind it.
#[must_use]
pub const fn read_state(state: Bytes, max_pairs: usize) -> StatePairs {
    StatePairs { rest: state, left: max_pairs, limit: max_pairs }
}

/// The pairs of a push/pull state; see [`read_state`].
#[derive(Clone, Debug)]
pub struct StatePairs {
    rest: Bytes,
    left: usize,
    limit: usize,
}

impl StatePairs {
    fn frame(&mut self) -> Result<Bytes, PairError> {
        if self.left == 0 {
            return Err(PairError::TooMany { limit: self.limit });
        }
        let Some(head) = self.rest.first_chunk::<4>() else {
            return Err(PairError::Truncated { missing: 4 - self.rest.len() });
        };
        let len = usize::try_from(u32::from_be_bytes(*head)).unwrap_or(usize::MAX);
        if len == 0 {
            return Err(PairError::Empty);
        }
        let present = self.rest.len() - 4;
        if len > present {
            return Err(PairError::Truncated { missing: len - present });
        }
        self.rest.advance(4);
        self.left -= 1;
        Ok(self.rest.split_to(len))
    }
}

impl Iterator for StatePairs {
    type Item = Result<KeyValuePair, PairError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        match self.frame() {
            Ok(bytes) => Some(KeyValuePair::from_bytes(bytes)),
            Err(error) => {
                self.rest = Bytes::new();
                Some(Err(error))
            }
        }
    }
}

#[cfg(test)]
#[path = "pair_tests.rs"]
mod tests;
