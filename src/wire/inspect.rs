//! Explains bytes to people: every layer, every message, and exactly where and why it stops.
//!
//! This is what `annulus decode` prints. It is not another decoder: it calls those that run a cluster, in the same order,
//! and shows what they noted. So what it refuses, a node with the same options refuses, and for the same reason.
//!
//! ```
//! use annulus::wire::{PacketOptions, Stage, inspect};
//!
//! let seen = inspect::packet(&b"\x0c\xd9\x93\x26\x62\x00\x82\xa4Node\xa2n1\xa5SeqNo\x2a"[..].into(), &PacketOptions::default());
//! assert!(seen.is_ok());
//! assert!(matches!(seen.layers[..], [inspect::Layer::Crc { value: 0xd9932662 }]));
//!
//! let seen = inspect::packet(&b"\x00\x81\xa4Node\xa1\xff"[..].into(), &PacketOptions::default());
//! let stop = seen.error.expect("not UTF-8");
//! assert_eq!((stop.stage, stop.offset, stop.reason.as_str()), (Stage::Message, 7, "Node: not UTF-8"));
//! ```

use bytes::Bytes;

use super::budget::Budget;
use super::compound;
use super::error::WireError;
use super::grafana::{Connection, Frame, FrameDecoder, MAX_PACKET};
use super::kind;
use super::label::{self, Label};
use super::message::{Message, StreamMessage};
use super::packet::{PacketOptions, Unsealed, decode_message, decode_part, unpack, unseal};
use super::stream::{StreamDecoder, StreamSide};
use super::trail::{Stage, Trail};

/// The shortest blob that AES-GCM can be: a version byte, a nonce and a tag.
const SHORTEST_BLOB: usize = 29;

/// What bytes turned out to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Inspection {
    /// The layers that were taken off, outermost first.
    pub layers: Vec<Layer>,
    /// The messages, in the order in which they were sent.
    pub messages: Vec<Inspected>,
    /// Where and why the first thing was refused; what stands in `layers` and `messages` was in order all the same.
    pub error: Option<Stop>,
}

/// A layer that was taken off.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Layer {
    /// dskit's framing.
    Grafana {
        /// What the connection carries.
        connection: Connection,
        /// The address that the sender of a packet gives.
        from: Option<String>,
        /// Bytes inside.
        len: usize,
    },
    /// A label header.
    Label(Label),
    /// An encryption layer.
    Encryption {
        /// Its version: 0 with padding, 1 without.
        version: u8,
        /// Which of the keys opened it, counted from 0.
        key: usize,
        /// Bytes of the encrypted blob.
        len: usize,
        /// Bytes that were in it.
        plain: usize,
    },
    /// A checksum, which fits.
    Crc {
        /// The CRC-32.
        value: u32,
    },
    /// A compression layer.
    Compression {
        /// 0 is LZW, 1 is snappy.
        algorithm: u8,
        /// Bytes of the compressed data.
        len: usize,
        /// Bytes that it became.
        plain: usize,
    },
    /// A compound.
    Compound {
        /// Its whole parts.
        parts: Vec<Part>,
        /// How many parts were announced and are not all there.
        lost: usize,
    },
}

/// One part of a compound.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Part {
    /// Where it begins in the compound.
    pub offset: usize,
    /// Its length.
    pub len: usize,
    /// Why it was refused, if it was. The other parts are read all the same.
    pub refused: Option<WireError>,
}

/// A message of a packet or of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inspected {
    /// Of a packet.
    Packet(Message),
    /// Of a stream.
    Stream(StreamMessage),
}

/// Where and why bytes were refused.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stop {
    /// The layer that was being read.
    pub stage: Stage,
    /// Where it is wrong: bytes from the first of this layer, its type byte included. For a message of a compound, from
    /// the type byte of that message; for what ends too early, how many bytes there are.
    pub offset: usize,
    /// Why, for people.
    pub reason: String,
    /// Why.
    pub error: WireError,
}

impl Inspection {
    /// Whether nothing was refused.
    #[must_use]
    pub const fn is_ok(&self) -> bool {
        self.error.is_none()
    }

    /// Notes an error, unless there is an earlier one.
    fn stop(&mut self, stage: Stage, offset: usize, error: WireError) {
        self.stop_because(stage, offset, error.to_string(), error);
    }

    fn stop_because(&mut self, stage: Stage, offset: usize, reason: String, error: WireError) {
        self.error.get_or_insert(Stop { stage, offset, reason, error });
    }

    /// Adds the layers that a decoder took off, in their order.
    fn walked(&mut self, label: Label, trail: &Trail) {
        if !label.is_empty() {
            self.layers.push(Layer::Label(label));
        }
        let encryption = trail.opened.map(|opened| Layer::Encryption {
            version: opened.version,
            key: opened.key,
            len: opened.sealed,
            plain: opened.plain,
        });
        let crc = trail.crc.map(|value| Layer::Crc { value });
        let compression = trail.unpacked.map(|unpacked| Layer::Compression {
            algorithm: unpacked.algorithm,
            len: unpacked.packed,
            plain: unpacked.plain,
        });
        self.layers.extend([encryption, crc, compression].into_iter().flatten());
    }
}

/// Explains a packet: one datagram.
#[must_use]
pub fn packet(bytes: &Bytes, options: &PacketOptions) -> Inspection {
    let mut seen = Inspection::default();
    inspect_packet(&mut seen, bytes, options);
    seen
}

fn inspect_packet(seen: &mut Inspection, bytes: &Bytes, options: &PacketOptions) {
    let (mut budget, mut trail) = (Budget::packet_of(options.max_unpacked), Trail::default());
    let label = label::split(bytes).ok().flatten().map_or(Label::NONE, |(label, _)| Label::received(label));
    let unsealed = unseal(bytes, options, &mut trail);
    let unpacked = unsealed.and_then(|Unsealed { bytes, doubtful, .. }| {
        // Without the right key, what is encrypted looks like a damaged ping.
        let sealed = doubtful || options.keyring.is_empty() && looks_encrypted(&bytes);
        unpack(bytes, &mut budget, &mut trail).map(|bytes| (bytes, sealed, doubtful))
    });
    seen.walked(label, &trail);
    let (bytes, sealed, doubtful) = match unpacked {
        Ok(unpacked) => unpacked,
        Err(error) => return seen.stop(trail.stage, trail.offset, error),
    };
    if bytes.first() == Some(&kind::COMPOUND) {
        return inspect_compound(seen, &bytes, &mut budget);
    }
    let read = decode_message(&bytes, 0..bytes.len(), &mut budget);
    let doubt = match &read {
        _ if !sealed => None,
        Ok(message) if says_nothing(message) => Some("it says nothing".to_owned()),
        Ok(_) => None,
        Err(error) => Some(error.to_string()),
    };
    match (read, doubt) {
        (_, Some(_)) if doubtful => seen.stop(Stage::Encryption, 0, WireError::NotDecrypted),
        (_, Some(why)) => {
            let other = if bytes.first() == Some(&kind::PING) { "ping" } else { "indirect ping" };
            let reason = format!("encrypted, and no key was given; or else a damaged {other}: {why}");
            seen.stop_because(Stage::Encryption, 0, reason, WireError::NoKey);
        }
        (Ok(message), None) => seen.messages.push(Inspected::Packet(message)),
        (Err(error), None) => seen.stop(Stage::Message, budget.stopped_at, error),
    }
}

/// A packet says nowhere that it is encrypted: its first byte is a version, which is also the type of a ping.
fn looks_encrypted(bytes: &[u8]) -> bool {
    matches!(bytes.first(), Some(&(kind::PING | kind::INDIRECT_PING))) && bytes.len() >= SHORTEST_BLOB
}

/// A nonce may begin as an empty message does. No ping is empty: sequence numbers begin at 1.
fn says_nothing(message: &Message) -> bool {
    match message {
        Message::Ping(ping) => ping.seq_no == 0 && ping.node.is_empty(),
        Message::IndirectPing(ping) => ping.seq_no == 0 && ping.node.is_empty(),
        _ => false,
    }
}

fn inspect_compound(seen: &mut Inspection, bytes: &Bytes, budget: &mut Budget) {
    let mut ranges = match compound::split(bytes) {
        Ok(ranges) => ranges,
        Err(error) => return seen.stop(Stage::Compound, bytes.len(), error),
    };
    let mut parts = Vec::new();
    for range in &mut ranges {
        let (offset, len) = (range.start, range.len());
        let refused = match decode_part(bytes, range, budget) {
            Ok(message) => {
                seen.messages.push(Inspected::Packet(message));
                None
            }
            Err(error) => {
                let reason = format!("part {} of the compound: {error}", parts.len() + 1);
                seen.stop_because(Stage::Message, budget.stopped_at, reason, error.clone());
                Some(error)
            }
        };
        parts.push(Part { offset, len, refused });
    }
    let lost = ranges.left();
    if lost > 0 {
        seen.stop(Stage::Compound, bytes.len(), WireError::CompoundTruncated { lost });
    }
    seen.layers.push(Layer::Compound { parts, lost });
}

/// Explains what one side wrote on a stream.
#[must_use]
pub fn stream(bytes: &[u8], options: &PacketOptions, side: StreamSide) -> Inspection {
    let mut seen = Inspection::default();
    inspect_stream(&mut seen, bytes, options, side);
    seen
}

fn inspect_stream(seen: &mut Inspection, bytes: &[u8], options: &PacketOptions, side: StreamSide) {
    let mut decoder = StreamDecoder::new(options, side);
    let polled = decoder.feed(bytes).and_then(|()| decoder.poll());
    let trail = decoder.trail();
    // On a dialed stream it is ours, and no header says it.
    let label = if side == StreamSide::Accepted { decoder.label().clone() } else { Label::NONE };
    seen.walked(label, &trail);
    match polled {
        Ok(Some(message)) => seen.messages.push(Inspected::Stream(message)),
        Ok(None) => seen.stop(trail.stage, trail.offset, WireError::Truncated),
        Err(error) => return seen.stop(trail.stage, trail.offset, error),
    }
    if let Some(error) = decoder.refused().first() {
        let (offset, all) = (decoder.refused_at(), decoder.refused().len());
        let reason = format!("{all} members of the push/pull refused; the first: {error}");
        seen.stop_because(Stage::Message, offset, reason, error.clone());
    }
}

/// Explains what one side wrote on a connection of dskit's TCP transport: a packet or a stream.
#[must_use]
pub fn grafana(bytes: &[u8], options: &PacketOptions) -> Inspection {
    let mut seen = Inspection::default();
    let connection = match bytes.first().copied().map_or(Err(WireError::Empty), Connection::by) {
        Ok(connection) => connection,
        Err(error) => {
            seen.stop(Stage::Grafana, 0, error);
            return seen;
        }
    };
    if connection == Connection::Stream {
        let rest = bytes.get(1..).unwrap_or_default();
        seen.layers.push(Layer::Grafana { connection, from: None, len: rest.len() });
        inspect_stream(&mut seen, rest, options, StreamSide::Accepted);
        return seen;
    }
    let mut decoder = FrameDecoder::new(MAX_PACKET);
    match decoder.feed(bytes).and_then(|()| decoder.finish()) {
        Ok(Frame { from, packet }) => {
            seen.layers.push(Layer::Grafana { connection, from: Some(from), len: packet.len() });
            inspect_packet(&mut seen, &packet, options);
        }
        Err(error) => {
            let offset = match error {
                WireError::Truncated => bytes.len(),
                WireError::DigestMismatch | WireError::Empty => bytes.len().saturating_sub(16),
                WireError::NotUtf8 { .. } | WireError::NotPrintable { .. } => 2,
                _ => 0,
            };
            seen.stop(Stage::Grafana, offset, error);
        }
    }
    seen
}

#[cfg(test)]
#[path = "inspect_tests.rs"]
mod tests;
