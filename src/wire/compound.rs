//! Compounds: several messages in one packet.
//!
//! `07 ‖ count ‖ count × length (u16, big-endian) ‖ bodies`. Every body begins with its own type byte and must be a
//! plain message. Go also takes compounds and compressed data inside a compound, though no Go sender writes them; here
//! such a part is refused by itself, because nesting is how a small packet becomes a large amount of work.

use bytes::{Buf, BufMut, Bytes};

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

/// Splits what follows the type byte of a compound: the whole parts, and how many were cut off at the end.
///
/// # Errors
///
/// [`WireError::Truncated`] when the number or the lengths of the parts are not all there.
pub(super) fn split(mut bytes: Bytes) -> Result<(Vec<Bytes>, usize), WireError> {
    let count = usize::from(bytes.try_get_u8().map_err(|_| WireError::Truncated)?);
    if bytes.len() < count * COMPOUND_PART {
        return Err(WireError::Truncated);
    }
    let lengths = bytes.split_to(count * COMPOUND_PART);
    let mut parts = Vec::with_capacity(count);
    for length in lengths.chunks_exact(COMPOUND_PART) {
        let length = length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
        if length > bytes.len() {
            break;
        }
        parts.push(bytes.split_to(length));
    }
    let lost = count - parts.len();
    Ok((parts, lost))
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
