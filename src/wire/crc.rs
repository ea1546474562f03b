//! The checksum layer: `0c ‖ CRC-32/IEEE, big-endian ‖ rest`.
//!
//! It covers everything after its five bytes, is computed after compression and before encryption, and is optional on
//! every packet: the same peer sends some packets with it and some without.

use bytes::{Buf, BufMut, Bytes};

use super::error::WireError;
use super::kind;
use super::trail::{Stage, Trail};

/// How many bytes the checksum takes in front of a packet.
pub const CRC_HEADER: usize = 5;

/// Writes the header for `rest`.
pub(super) fn write(out: &mut Vec<u8>, rest: &[u8]) {
    out.put_u8(kind::CRC);
    out.put_u32(crc32fast::hash(rest));
}

/// Checks and strips the layer; bytes that do not begin with it pass unchanged.
pub(super) fn strip(bytes: Bytes, trail: &mut Trail) -> Result<Bytes, WireError> {
    if bytes.first() != Some(&kind::CRC) {
        return Ok(bytes);
    }
    trail.enter(Stage::Crc);
    let Some((mut header, _)) = bytes.split_at_checked(CRC_HEADER) else {
        return Err(trail.stop(bytes.len(), WireError::Truncated));
    };
    header.advance(1);
    let expected = header.get_u32();
    let rest = bytes.slice(CRC_HEADER..);
    let found = crc32fast::hash(&rest);
    if found != expected {
        return Err(trail.stop(1, WireError::CrcMismatch { expected, found }));
    }
    trail.crc = Some(expected);
    Ok(rest)
}
