//! The compression layer: `09 ‖ {Algo, Buf}`.
//!
//! Algorithm 0 is LZW as Go's `compress/lzw` has it (least significant bit first, 8 bits a literal), 1 is a snappy block,
//! which only the Grafana fork of memberlist knows. Compressed data is how a small message becomes a large one, so a
//! decoder stops at a limit, and makes no more than what the bytes that arrived can justify.

use bytes::Bytes;
use weezl::{BitOrder, LzwStatus, decode, encode};

use super::budget::Budget;
use super::error::WireError;
use super::kind;
use super::msgpack::{Reader, Writer};
use super::trail::Unpacked;

/// Most bytes that the compressed data of one datagram may become.
#[cfg(test)]
pub(super) const MAX_PACKET: usize = 512 << 10;
/// Most bytes that the compressed data of one stream may become, as in memberlist.
pub(super) const MAX_STREAM: usize = 40 << 20;

/// LZW cannot do better: the longest string has 3 838 bytes, its code 12 bits.
const LZW_RATIO: usize = 2_600;
/// Snappy cannot do better: a copy of 64 bytes takes 3.
const SNAPPY_RATIO: usize = 22;
/// What snappy may say beyond that: the last copy of few bytes.
const SNAPPY_SLACK: usize = 16;
/// How far the output of LZW is made ahead of what was decoded.
const LZW_CHUNK: usize = 4 << 10;

/// How what is sent is compressed. All of them are read, whatever this says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// LZW, which every member of every memberlist reads.
    Lzw,
    /// Snappy, which only Annulus and the Grafana fork of memberlist read; faster than LZW.
    Snappy,
}

/// Compresses a message, type byte included; `None` when that does not make it shorter.
pub(super) fn encode(plain: &[u8], compression: Compression) -> Option<Vec<u8>> {
    let (algorithm, packed) = match compression {
        Compression::None => return None,
        Compression::Lzw => (0, encode::Encoder::new(BitOrder::Lsb, 8).encode(plain).ok()?),
        Compression::Snappy => (1, snap::raw::Encoder::new().compress_vec(plain).ok()?),
    };
    let message = write(algorithm, &packed);
    (message.len() < plain.len()).then_some(message)
}

fn write(algorithm: u32, packed: &[u8]) -> Vec<u8> {
    let mut writer = Writer::new(kind::COMPRESS);
    writer.structure(2);
    writer.key("Algo").uint(algorithm);
    writer.key("Buf").bytes(packed);
    writer.into_bytes()
}

/// Decompresses what follows the type byte, to at most `max` bytes.
///
/// # Errors
///
/// [`WireError::UnknownCompression`], [`WireError::NotDecompressed`], [`WireError::TooLong`] beyond `max` or beyond what
/// the algorithm can reach, [`WireError::Empty`] when nothing comes out, and those of msgpack.
pub(super) fn decode(body: &[u8], max: usize, budget: &mut Budget) -> Result<(Bytes, Unpacked), WireError> {
    let (mut algorithm, mut packed): (u64, &[u8]) = (0, &[]);
    let (mut algorithm_at, mut start) = (0, 0);
    Reader::new(body, budget, "compressed").structure(&["Algo", "Buf"], |reader, field| {
        match field {
            "Algo" => {
                algorithm_at = reader.position();
                algorithm = reader.uint(u8::MAX.into())?;
            }
            _ => {
                packed = reader.borrowed()?;
                start = reader.position() - packed.len();
            }
        }
        Ok(())
    })?;
    let max = max.min(budget.bytes_left());
    let plain = match algorithm {
        0 => {
            let mut rest = packed;
            decode_lzw(&mut rest, max).map_err(|error| budget.stopped(start + packed.len() - rest.len(), error))?
        }
        1 => decode_snappy(packed, max).map_err(|error| budget.stopped(start, error))?,
        _ => return Err(budget.stopped(algorithm_at, WireError::UnknownCompression(algorithm as u8))),
    };
    if plain.is_empty() {
        return Err(budget.stopped(start, WireError::Empty));
    }
    budget.bytes(plain.len())?;
    let unpacked = Unpacked { algorithm: algorithm as u8, packed: packed.len(), plain: plain.len() };
    Ok((plain.into(), unpacked))
}

fn too_long(len: u64, max: usize) -> WireError {
    WireError::TooLong { field: "decompressed", len, max: max as u64 }
}

/// What is left in `packed` after an error says how far it came.
fn decode_lzw(packed: &mut &[u8], max: usize) -> Result<Vec<u8>, WireError> {
    let max = max.min(packed.len().saturating_mul(LZW_RATIO));
    let mut decoder = decode::Decoder::new(BitOrder::Lsb, 8);
    let (mut plain, mut len) = (Vec::new(), 0);
    loop {
        if len > max {
            return Err(too_long(len as u64, max));
        }
        if len == plain.len() {
            // In the end one more than allowed, to see whether there is more.
            let twice = len + len.max(LZW_CHUNK);
            let longer = if twice < max { twice } else { max + 1 };
            // Exactly: a vector that grows by itself takes up to twice the limit.
            plain.reserve_exact(longer - len);
            plain.resize(longer, 0);
        }
        let step = decoder.decode_bytes(packed, plain.get_mut(len..).unwrap_or_default());
        *packed = packed.get(step.consumed_in..).unwrap_or_default();
        len += step.consumed_out;
        match step.status {
            Ok(LzwStatus::Done) => break,
            Ok(LzwStatus::Ok) => {}
            // Room for more, and nothing came: the data ends without its end code.
            Ok(LzwStatus::NoProgress) if len < plain.len() => return Err(WireError::NotDecompressed),
            Ok(LzwStatus::NoProgress) => {}
            Err(_) => return Err(WireError::NotDecompressed),
        }
    }
    if len > max {
        return Err(too_long(len as u64, max));
    }
    plain.truncate(len);
    Ok(plain)
}

fn decode_snappy(packed: &[u8], max: usize) -> Result<Vec<u8>, WireError> {
    let max = max.min(packed.len().saturating_mul(SNAPPY_RATIO).saturating_add(SNAPPY_SLACK));
    // The length is the first thing that the data claims, and what a decoder would believe and reserve.
    let claimed = snap::raw::decompress_len(packed).map_err(|_| WireError::NotDecompressed)?;
    if claimed > max {
        return Err(too_long(claimed as u64, max));
    }
    snap::raw::Decoder::new().decompress_vec(packed).map_err(|_| WireError::NotDecompressed)
}

#[cfg(test)]
#[path = "compress_tests.rs"]
mod tests;
