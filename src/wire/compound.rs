//! Compounds: several messages in one packet.
//!
//! `07 ‖ count ‖ count × length (u16, big-endian) ‖ bodies`. Every body begins with its own type byte and must be a
//! plain message. Go also takes compounds and compressed data inside a compound, though no Go sender writes them; here
//! such a part is refused by itself, because nesting is how a small packet becomes a large amount of work.

use std::ops::Range;

use bytes::{BufMut, Bytes};

use super::error::WireError;
use super::kind;

/// Bytes of a compound before its parts.
pub const COMPOUND_HEADER: usize = 2;
/// Bytes that each part of a compound adds to its own.
pub const COMPOUND_PART: usize = 2;
/// Most parts of one compound: their number is one byte.
pub const COMPOUND_MAX_PARTS: usize = 255;
/// The longest part of a compound: its length is two bytes. A longer message travels alone.
pub const COMPOUND_MAX_PART: usize = u16::MAX as usize;

/// The whole parts of a compound, each as the range of its bytes; ends at the first that is not all there.
#[derive(Debug)]
pub(super) struct Parts<'a> {
    lengths: &'a [u8],
    /// Where the next part begins, and where the compound ends.
    rest: Range<usize>,
}

impl Parts<'_> {
    /// How many parts were announced and have not been given: after the last one, how many are lost.
    pub(super) fn left(&self) -> usize {
        self.lengths.len() / COMPOUND_PART
    }

    /// How many parts can still come: each announced, and no more than there are bytes.
    pub(super) fn at_most(&self) -> usize {
        self.left().min(self.rest.len())
    }
}

impl Iterator for Parts<'_> {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        let (length, lengths) = self.lengths.split_first_chunk::<COMPOUND_PART>()?;
        let start = self.rest.start;
        let end = start + usize::from(u16::from_be_bytes(*length));
        if end > self.rest.end {
            return None;
        }
        self.lengths = lengths;
        self.rest.start = end;
        Some(start..end)
    }
}

/// Splits a compound, type byte included.
///
/// # Errors
///
/// [`WireError::Truncated`] when the number or the lengths of the parts are not all there.
pub(super) fn split(bytes: &[u8]) -> Result<Parts<'_>, WireError> {
    let (&[_, count], rest) = bytes.split_first_chunk::<COMPOUND_HEADER>().ok_or(WireError::Truncated)?;
    let table = usize::from(count) * COMPOUND_PART;
    let lengths = rest.get(..table).ok_or(WireError::Truncated)?;
    Ok(Parts { lengths, rest: COMPOUND_HEADER + table..bytes.len() })
}

/// Writes a compound of 1 to 255 parts of at most 65 535 bytes each; the caller sees to both.
pub(super) fn write(out: &mut Vec<u8>, parts: &[Bytes]) {
    debug_assert!(parts.len() <= COMPOUND_MAX_PARTS, "the caller splits into compounds");
    out.put_u8(kind::COMPOUND);
    out.put_u8(parts.len() as u8);
    for part in parts {
        out.put_u16(part.len() as u16);
    }
    for part in parts {
        out.put_slice(part);
    }
}

/// How long a compound of these parts is.
pub(super) fn encoded_len(parts: &[Bytes]) -> usize {
    COMPOUND_HEADER + parts.iter().map(|part| COMPOUND_PART + part.len()).sum::<usize>()
}
