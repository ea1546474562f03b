//! The framing of dskit's TCP transport, which Grafana's databases gossip over instead of UDP.
//!
//! A connection carries either one packet, `01 ‖ length of the address ‖ address ‖ packet ‖ MD5 of the packet`, and ends
//! with it; or `02` and then a stream as over any other transport (see [`stream`](super::stream)). The address is what the
//! sender says of itself: nobody proves it. What is inside the framing is an ordinary packet or stream.
//!
//! The packet has no length: it ends where the connection ends. So a [`FrameDecoder`] keeps what arrives, up to a limit,
//! and looks at it when told that nothing more comes. How long that may take is the transport's business.
//!
//! ```
//! use annulus::wire::grafana::{FrameDecoder, MAX_PACKET, encode_packet};
//!
//! let sent = encode_packet("127.0.0.1:7946", b"\x08hello")?;
//! let mut decoder = FrameDecoder::new(MAX_PACKET);
//! for piece in sent.chunks(7) {
//!     decoder.feed(piece)?;
//! }
//! let frame = decoder.finish()?;
//! assert_eq!((frame.from.as_str(), &frame.packet[..]), ("127.0.0.1:7946", &b"\x08hello"[..]));
//! # Ok::<(), annulus::wire::WireError>(())
//! ```

use bytes::{Buf, Bytes, BytesMut};
use md5::{Digest, Md5};

use super::error::WireError;

/// Most bytes of one packet: what dskit lets its members gossip at once, which is 10 MiB, and room for the layers around it.
pub const MAX_PACKET: usize = (10 << 20) + (1 << 10);

/// First byte of a connection that carries a packet.
const PACKET: u8 = 1;
/// First byte of a connection that carries a stream.
const STREAM: u8 = 2;
/// Bytes of an MD5.
const DIGEST: usize = 16;
/// Most bytes around a packet.
const OVERHEAD: usize = 2 + u8::MAX as usize + DIGEST;

/// What a connection carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection {
    /// One packet, for a [`FrameDecoder`].
    Packet,
    /// A stream: what follows goes to a [`StreamDecoder`](super::StreamDecoder).
    Stream,
}

impl Connection {
    /// Tells by its first byte what a connection carries.
    ///
    /// # Errors
    ///
    /// [`WireError::UnknownConnection`]: the connection should be closed.
    pub fn by(first: u8) -> Result<Self, WireError> {
        match first {
            PACKET => Ok(Self::Packet),
            STREAM => Ok(Self::Stream),
            other => Err(WireError::UnknownConnection(other)),
        }
    }

    /// The first byte of such a connection.
    #[must_use]
    pub const fn byte(self) -> u8 {
        match self {
            Self::Packet => PACKET,
            Self::Stream => STREAM,
        }
    }
}

/// A packet that came over a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Where the sender says that it can be reached: `ip:port`, IPv6 in brackets. Unproven.
    pub from: String,
    /// The packet, for [`decode_packet`](super::decode_packet).
    pub packet: Bytes,
}

/// Collects the bytes of one connection that carries a packet, its first byte included.
#[derive(Debug)]
pub struct FrameDecoder {
    buffer: BytesMut,
    max_packet: usize,
    failed: Option<WireError>,
}

impl FrameDecoder {
    /// For packets of at most `max_packet` bytes.
    #[must_use]
    pub fn new(max_packet: usize) -> Self {
        Self { buffer: BytesMut::new(), max_packet, failed: None }
    }

    /// Takes bytes that arrived. No more than what may still be right is kept.
    ///
    /// # Errors
    ///
    /// [`WireError::UnknownConnection`], [`WireError::Misplaced`] for a stream, and [`WireError::TooLong`] as soon as the
    /// packet is longer than it may be. Any error is final.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let checked = self.check(bytes);
        match checked {
            Ok(()) => self.buffer.extend_from_slice(bytes),
            Err(ref error) => {
                self.buffer = BytesMut::new();
                self.failed = Some(error.clone());
            }
        }
        checked
    }

    fn check(&self, bytes: &[u8]) -> Result<(), WireError> {
        match self.buffer.first().or(bytes.first()).copied().map(Connection::by).transpose()? {
            Some(Connection::Stream) => return Err(WireError::Misplaced(STREAM)),
            Some(Connection::Packet) | None => {}
        }
        let len = self.buffer.len() + bytes.len();
        let address = self.buffer.iter().chain(bytes).nth(1).map_or(u8::MAX, |len| *len);
        let packet = len.saturating_sub(OVERHEAD - usize::from(u8::MAX - address));
        if packet > self.max_packet {
            return Err(WireError::TooLong { field: "packet", len: packet as u64, max: self.max_packet as u64 });
        }
        Ok(())
    }

    /// Says that the connection ended: the packet and who sent it.
    ///
    /// # Errors
    ///
    /// [`WireError::Truncated`] when there is less than framing, [`WireError::Empty`] without a packet in it,
    /// [`WireError::NotUtf8`] and [`WireError::NotPrintable`] for an address that is no text, and
    /// [`WireError::DigestMismatch`]. Also whatever [`feed`](Self::feed) found before.
    pub fn finish(self) -> Result<Frame, WireError> {
        match self.failed {
            Some(error) => Err(error),
            None => decode_packet(self.buffer.freeze()),
        }
    }
}

/// Reads all bytes of a connection that carries a packet, its first byte included. The packet is a slice of them; how
/// many there may be is the caller's business.
///
/// # Errors
///
/// Those of [`FrameDecoder::finish`].
pub fn decode_packet(connection: Bytes) -> Result<Frame, WireError> {
    let mut rest = connection;
    if rest.first() == Some(&STREAM) {
        return Err(WireError::Misplaced(STREAM));
    }
    rest.try_get_u8().map_err(|_| WireError::Truncated)?;
    let len = usize::from(rest.try_get_u8().map_err(|_| WireError::Truncated)?);
    if rest.len() < len + DIGEST {
        return Err(WireError::Truncated);
    }
    let from = String::from_utf8(rest.split_to(len).into());
    let from = from.map_err(|_| WireError::NotUtf8 { field: "address" })?;
    if from.chars().any(char::is_control) {
        return Err(WireError::NotPrintable { field: "address" });
    }
    let packet = rest.split_to(rest.len() - DIGEST);
    if Md5::digest(&packet)[..] != rest[..] {
        return Err(WireError::DigestMismatch);
    }
    if packet.is_empty() {
        return Err(WireError::Empty);
    }
    Ok(Frame { from, packet })
}

/// Bytes of a connection that carries a packet of this size, at most.
#[must_use]
pub const fn frame_len(packet: usize) -> usize {
    OVERHEAD.saturating_add(packet)
}

/// Writes a packet as one connection carries it; `from` is where we can be reached.
///
/// # Errors
///
/// [`WireError::TooLong`] for an address of more than 255 bytes.
pub fn encode_packet(from: &str, packet: &[u8]) -> Result<Vec<u8>, WireError> {
    let max = u64::from(u8::MAX);
    let len = u8::try_from(from.len());
    let len = len.map_err(|_| WireError::TooLong { field: "address", len: from.len() as u64, max })?;
    let mut out = Vec::with_capacity(OVERHEAD + packet.len());
    out.extend([PACKET, len]);
    out.extend_from_slice(from.as_bytes());
    out.extend_from_slice(packet);
    out.extend_from_slice(&Md5::digest(packet));
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// As dskit writes them: a packet of four letters, and one with a label and a checksum.
    const GO: [(&str, &str, &str); 2] = [
        ("010e3132372e302e302e313a3739343674657374098f6bcd4621d373cade4e832627b4f6", "127.0.0.1:7946", "74657374"),
        (
            "010d31302e302e302e313a37393436f403612e620c51824ec2080a0472696e671201001a0872696e67446573639aa456f9a26acc555a52593781045256",
            "10.0.0.1:7946",
            "f403612e620c51824ec2080a0472696e671201001a0872696e6744657363",
        ),
    ];

    fn decode(bytes: &[u8]) -> Result<Frame, WireError> {
        let whole = decode_by(bytes, usize::MAX, 100);
        assert_eq!(decode_by(bytes, 1, 100), whole);
        whole
    }

    fn decode_by(bytes: &[u8], size: usize, max: usize) -> Result<Frame, WireError> {
        let mut decoder = FrameDecoder::new(max);
        for piece in bytes.chunks(size) {
            decoder.feed(piece)?;
        }
        decoder.finish()
    }

    #[test]
    fn what_dskit_wrote_is_read_and_written_byte_for_byte() {
        for (hex, from, packet) in GO {
            let bytes = hex::decode(hex).unwrap();
            let frame = decode(&bytes).unwrap();
            assert_eq!((frame.from.as_str(), hex::encode(&frame.packet).as_str()), (from, packet));
            assert_eq!(encode_packet(from, &frame.packet).unwrap(), bytes);
        }
    }

    #[test]
    fn a_packet_that_was_damaged_or_cut_is_refused() {
        let whole = encode_packet("a:1", b"\x08hello").unwrap();
        for len in 0..whole.len() {
            let error = decode(&whole[..len]).unwrap_err();
            assert!(matches!(error, WireError::Truncated | WireError::DigestMismatch), "{len}: {error}");
        }
        // The address alone is not covered by the digest.
        for at in 5..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            assert_eq!(decode(&damaged), Err(WireError::DigestMismatch), "{at}");
        }
    }

    #[test]
    fn the_first_byte_says_what_a_connection_carries() {
        for first in 0..=255 {
            let connection = Connection::by(first);
            match first {
                1 => assert_eq!(connection, Ok(Connection::Packet)),
                2 => assert_eq!(connection, Ok(Connection::Stream)),
                _ => assert_eq!(connection, Err(WireError::UnknownConnection(first))),
            }
            assert_eq!(connection.map_or(first, Connection::byte), first);
            let fed = FrameDecoder::new(9).feed(&[first]);
            assert_eq!(fed.is_ok(), first == 1);
        }
        assert_eq!(FrameDecoder::new(9).feed(&[2]), Err(WireError::Misplaced(2)));
        assert_eq!(FrameDecoder::new(9).finish(), Err(WireError::Truncated), "a health probe: connected, and closed");
    }

    #[test]
    fn addresses_are_text_of_up_to_255_bytes() {
        let long = "a".repeat(255);
        assert_eq!(decode(&encode_packet(&long, b"x").unwrap()).unwrap().from, long);
        assert_eq!(encode_packet(&"a".repeat(256), b"x").unwrap_err().reason(), "too_long");
        assert_eq!(decode(&[&[1, 255][..], &[b'a'; 270]].concat()), Err(WireError::Truncated));
        let mut text = encode_packet("a\u{1b}", b"x").unwrap();
        assert_eq!(decode(&text), Err(WireError::NotPrintable { field: "address" }));
        text[2] = 0xff;
        assert_eq!(decode(&text), Err(WireError::NotUtf8 { field: "address" }));
        assert_eq!(decode(&encode_packet("", b"x").unwrap()).unwrap().from, "");
        assert_eq!(decode(&encode_packet("a:1", b"").unwrap()), Err(WireError::Empty));
    }

    #[test]
    fn a_connection_cannot_be_fed_without_end() {
        let (fits, long) = (encode_packet("a:1", &[7; 100]).unwrap(), encode_packet("a:1", &[7; 101]).unwrap());
        assert_eq!(decode(&fits).unwrap().packet.len(), 100);
        let refused = Err(WireError::TooLong { field: "packet", len: 101, max: 100 });
        assert_eq!(decode(&long), refused);
        let mut decoder = FrameDecoder::new(100);
        decoder.feed(&fits).unwrap();
        assert_eq!(decoder.feed(b"x"), Err(WireError::TooLong { field: "packet", len: 101, max: 100 }));
        assert_eq!(decoder.buffer.capacity(), 0);
        assert_eq!(
            decoder.feed(b""),
            Err(WireError::TooLong { field: "packet", len: 101, max: 100 }),
            "an error is final"
        );
    }
}
