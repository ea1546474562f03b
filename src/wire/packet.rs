//! Packets: what one UDP datagram, or one packet over another transport, carries.
//!
//! The layers, outermost first, are label, encryption, checksum, compression, compound, message. A decoder accepts each
//! at most once and only in this order, which is the order in which every Go sender writes them.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use rand::CryptoRng;

use super::body;
use super::budget::{Budget, PACKET_BYTES};
use super::compound::{self, COMPOUND_MAX_PART, COMPOUND_MAX_PARTS};
use super::compress::{self, Compression};
use super::crc::{self, CRC_HEADER};
use super::crypt::{self, EncryptionVersion};
use super::error::WireError;
use super::keyring::{Key, Keyring};
use super::kind;
use super::label::{self, Label};
use super::message::Message;
use super::msgpack::Writer;
use super::trail::{Stage, Trail};

/// How packets and streams are wrapped: label, encryption, compression.
///
/// The default is no label, no key and no compression: whatever carries a label is refused, and what is compressed is
/// read all the same.
///
/// # From plaintext to encryption, node by node
///
/// A running cluster moves in three rounds over its nodes: first every node gets the key, with both
/// [`verify_incoming`](Self::verify_incoming) and [`verify_outgoing`](Self::verify_outgoing) off; then
/// `verify_outgoing` is switched on, node by node; then `verify_incoming`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PacketOptions {
    /// The label that this node sends, and accepts.
    pub label: Label,
    /// Whether a packet with another label, or without the label, is refused. `false` accepts anything, as the Grafana
    /// fork of memberlist does when told to skip the check; meant for the time in which a cluster moves to a label.
    pub verify_label: bool,
    /// Labels that are accepted besides [`label`](Self::label): the narrow way to move from one label to another.
    /// [`Label::NONE`] in this list accepts packets without a label.
    pub accepted_labels: Vec<Label>,
    /// The keys. Empty, the default, means no encryption.
    pub keyring: Keyring,
    /// Whether a node that has a key refuses what is not encrypted (true).
    pub verify_incoming: bool,
    /// Whether a node that has a key encrypts what it sends (true).
    pub verify_outgoing: bool,
    /// How what is sent is encrypted (version 1).
    pub encryption_version: EncryptionVersion,
    /// How what is sent is compressed, where that makes it shorter (not at all).
    pub compression: Compression,
    /// Most bytes that a packet may become when it is decompressed (512 KiB, which is plenty for a datagram). Over a
    /// transport whose packets are larger, as the Grafana databases use one, it must be more than those.
    pub max_unpacked: usize,
}

impl Default for PacketOptions {
    fn default() -> Self {
        Self {
            label: Label::NONE,
            verify_label: true,
            accepted_labels: Vec::new(),
            keyring: Keyring::default(),
            verify_incoming: true,
            verify_outgoing: true,
            encryption_version: EncryptionVersion::V1,
            compression: Compression::None,
            max_unpacked: PACKET_BYTES,
        }
    }
}

impl PacketOptions {
    /// Whether a packet or an accepted stream with this label is for us.
    #[must_use]
    pub fn accepts(&self, label: &Label) -> bool {
        self.accepts_bytes(label.as_bytes())
    }

    fn accepts_bytes(&self, label: &[u8]) -> bool {
        let ours = |own: &Label| own.as_bytes() == label;
        !self.verify_label || ours(&self.label) || self.accepted_labels.iter().any(ours)
    }

    /// The key that outgoing messages are encrypted with, if they are.
    pub(super) fn sealing_key(&self) -> Option<&Key> {
        self.keyring.primary().filter(|_| self.verify_outgoing)
    }

    /// Whether what is not encrypted is refused.
    pub(super) fn requires_encryption(&self) -> bool {
        self.verify_incoming && !self.keyring.is_empty()
    }

    /// A label that arrived. Our own, which is the usual one, costs no copy.
    pub(super) fn label_of(&self, label: &[u8]) -> Label {
        if label == self.label.as_bytes() { self.label.clone() } else { Label::received(label) }
    }

    /// Splits off the label header and checks it: the label and how many bytes it took, or `None` when it is not
    /// complete.
    pub(super) fn check_label<'a>(&self, bytes: &'a [u8]) -> Result<Option<(&'a [u8], usize)>, WireError> {
        let Some((label, len)) = label::split(bytes)? else { return Ok(None) };
        if !self.accepts_bytes(label) {
            return Err(WireError::WrongLabel { got: Label::received(label) });
        }
        Ok(Some((label, len)))
    }
}

/// What a packet said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    /// The label that it carried.
    pub label: Label,
    /// The messages, in the order in which they were sent.
    pub messages: Vec<Message>,
    /// Why parts of a compound were refused: they do not spoil the others.
    pub refused: Vec<WireError>,
}

/// Reads a packet.
///
/// ```
/// use annulus::wire::{PacketOptions, decode_packet};
/// use annulus::wire::message::{Message, Nack};
///
/// let packet = decode_packet(&b"\x0b\x81\xa5SeqNo\x2a"[..].into(), &PacketOptions::default())?;
/// assert_eq!(packet.messages, [Message::Nack(Nack { seq_no: 42 })]);
/// # Ok::<(), annulus::wire::WireError>(())
/// ```
///
/// # Errors
///
/// Any [`WireError`] of a layer, or of the message when the packet is not a compound: the packet should be dropped and
/// counted by [`WireError::reason`].
pub fn decode_packet(bytes: &Bytes, options: &PacketOptions) -> Result<Packet, WireError> {
    let (mut budget, mut trail) = (Budget::packet_of(options.max_unpacked), Trail::default());
    let Unsealed { label, bytes, doubtful } = unseal(bytes, options, &mut trail)?;
    match decode_plain(bytes, &mut budget, &mut trail) {
        Ok(packet) => Ok(Packet { label, ..packet }),
        Err(_) if doubtful => Err(WireError::NotDecrypted),
        Err(error) => Err(error),
    }
}

/// What lies inside label and encryption.
pub(super) struct Unsealed {
    pub(super) label: Label,
    pub(super) bytes: Bytes,
    /// It looked encrypted and no key opened it, and a node that does not verify reads it as plaintext all the same.
    pub(super) doubtful: bool,
}

/// Takes off label and encryption.
pub(super) fn unseal(bytes: &Bytes, options: &PacketOptions, trail: &mut Trail) -> Result<Unsealed, WireError> {
    if bytes.is_empty() {
        return Err(WireError::Empty);
    }
    let checked = options.check_label(bytes).and_then(|label| label.ok_or(WireError::Truncated));
    let (label, header) = checked.map_err(|error| {
        let offset = match error {
            WireError::Truncated => bytes.len(),
            WireError::EmptyLabel => 1,
            _ => 0,
        };
        trail.stop(offset, error)
    })?;
    let sealed = bytes.slice(header..);
    if options.keyring.is_empty() {
        return Ok(Unsealed { label: options.label_of(label), bytes: sealed, doubtful: false });
    }
    trail.enter(Stage::Encryption);
    // The label that came with it, which may be another than ours while a cluster changes its label.
    match crypt::open(BytesMut::from(&sealed[..]), &options.keyring, label) {
        Ok((plain, opened)) => {
            trail.opened = Some(opened);
            Ok(Unsealed { label: options.label_of(label), bytes: plain.freeze(), doubtful: false })
        }
        Err(error) if options.verify_incoming => Err(error),
        Err(error) => {
            let doubtful = error == WireError::NotDecrypted;
            Ok(Unsealed { label: options.label_of(label), bytes: sealed, doubtful })
        }
    }
}

/// Takes off checksum and compression: what is left is a compound or a message.
pub(super) fn unpack(bytes: Bytes, budget: &mut Budget, trail: &mut Trail) -> Result<Bytes, WireError> {
    let bytes = crc::strip(bytes, trail)?;
    trail.enter(Stage::Message);
    let (kind, body) = bytes.split_first().ok_or(WireError::Empty)?;
    if *kind != kind::COMPRESS {
        return Ok(bytes);
    }
    trail.enter(Stage::Compression);
    let unpacked = compress::decode(body, budget.bytes_left(), budget);
    let (plain, unpacked) = unpacked.map_err(|error| trail.stop(1 + budget.stopped_at, error))?;
    trail.unpacked = Some(unpacked);
    trail.enter(Stage::Message);
    Ok(plain)
}

/// Reads what lies inside label and encryption.
fn decode_plain(bytes: Bytes, budget: &mut Budget, trail: &mut Trail) -> Result<Packet, WireError> {
    let bytes = unpack(bytes, budget, trail)?;
    if bytes.first() == Some(&kind::COMPOUND) {
        return decode_compound(&bytes, budget);
    }
    let message = decode_message(&bytes, 0..bytes.len(), budget)?;
    Ok(Packet { messages: vec![message], ..Packet::default() })
}

fn decode_compound(bytes: &Bytes, budget: &mut Budget) -> Result<Packet, WireError> {
    let mut parts = compound::split(bytes)?;
    let mut packet = Packet { messages: Vec::with_capacity(parts.at_most()), ..Packet::default() };
    for part in &mut parts {
        match decode_part(bytes, part, budget) {
            Ok(message) => packet.messages.push(message),
            Err(error) => packet.refused.push(error),
        }
    }
    if let lost @ 1.. = parts.left() {
        packet.refused.push(WireError::CompoundTruncated { lost });
    }
    Ok(packet)
}

/// Reads a part of a compound.
pub(super) fn decode_part(bytes: &Bytes, part: Range<usize>, budget: &mut Budget) -> Result<Message, WireError> {
    budget.stopped_at = 0;
    budget.item()?;
    decode_message(bytes, part, budget)
}

/// Reads the message that stands in this range of the bytes. The budget notes where it stops.
pub(super) fn decode_message(bytes: &Bytes, range: Range<usize>, budget: &mut Budget) -> Result<Message, WireError> {
    let message = bytes.get(range.clone()).and_then(<[u8]>::split_first);
    let (&kind, body) = message.ok_or(WireError::Empty)?;
    let read = match kind {
        kind::PING => body::read_ping(body, budget).map(Message::Ping),
        kind::INDIRECT_PING => body::read_indirect_ping(body, budget).map(Message::IndirectPing),
        kind::ACK => body::read_ack(body, budget).map(Message::Ack),
        kind::SUSPECT => body::read_suspect(body, budget).map(Message::Suspect),
        kind::ALIVE => body::read_alive(body, budget).map(Message::Alive),
        kind::DEAD => body::read_dead(body, budget).map(Message::Dead),
        kind::USER => return Ok(Message::User(bytes.slice(range.start + 1..range.end))),
        kind::NACK => body::read_nack(body, budget).map(Message::Nack),
        kind::PUSH_PULL | kind::COMPOUND | kind::COMPRESS | kind::ENCRYPT | kind::CRC | kind::ERROR | kind::LABEL => {
            return Err(WireError::Misplaced(kind));
        }
        _ => return Err(WireError::UnknownType(kind)),
    };
    // The type byte stands before the body.
    read.inspect_err(|_| budget.stopped_at += 1)
}

/// Writes a message: its type byte and its body, as the current Go memberlist writes it.
///
/// Limits are the caller's business: a meta of more than 512 bytes or a name of more than 255 is written, and refused by
/// the decoder.
#[must_use]
pub fn encode_message(message: &Message) -> Bytes {
    match message {
        Message::Ping(ping) => body::write_ping(ping),
        Message::IndirectPing(ping) => body::write_indirect_ping(ping),
        Message::Ack(ack) => body::write_ack(ack),
        Message::Suspect(suspect) => body::write_suspect(suspect),
        Message::Alive(alive) => body::write_alive(alive),
        Message::Dead(dead) => body::write_dead(dead),
        Message::User(payload) => {
            let mut writer = Writer::new(kind::USER);
            writer.append(payload);
            writer.into_bytes()
        }
        Message::Nack(nack) => body::write_nack(nack),
    }
    .into()
}

/// How many bytes the label, the encryption and the checksum may add to a packet.
///
/// What remains of a datagram after this is for the message, or for [`COMPOUND_HEADER`](super::COMPOUND_HEADER) and
/// [`COMPOUND_PART`](super::COMPOUND_PART) bytes more a part. The checksum is always counted: whether a packet gets one
/// is decided later than what it carries. (Go does not count it, and its packets can be five bytes too long.)
#[must_use]
pub fn packet_overhead(options: &PacketOptions) -> usize {
    let encryption = options.sealing_key().map_or(0, |_| options.encryption_version.overhead());
    options.label.header_len() + encryption + CRC_HEADER
}

/// Writes encoded messages (see [`encode_message`]) as packets: compressed where that makes them shorter, with a checksum
/// if `crc`, encrypted if there is a key, and with the label.
///
/// One message goes as it is, several as compounds of at most 255 parts; a message of more than 65 535 bytes, which a
/// compound cannot hold, goes alone. What is in a packet is not limited otherwise: the caller knows its transport, and
/// chooses parts that fit.
///
/// `nonces` is used when there is a key: each encrypted packet takes twelve bytes of it. It must be a cryptographic
/// generator that was seeded from the operating system, and no copy of another; a repeated nonce breaks the encryption
/// of the whole cluster.
#[must_use]
pub fn encode_packets(parts: &[Bytes], options: &PacketOptions, crc: bool, nonces: &mut impl CryptoRng) -> Vec<Bytes> {
    let (small, large): (Vec<Bytes>, Vec<Bytes>) =
        parts.iter().cloned().partition(|part| part.len() <= COMPOUND_MAX_PART);
    let compounds = small.chunks(COMPOUND_MAX_PARTS).map(|group| match group {
        [single] => single.clone(),
        _ => {
            let mut out = Vec::with_capacity(compound::encoded_len(group));
            compound::write(&mut out, group);
            out.into()
        }
    });
    compounds.chain(large).map(|packet| wrap(packet, options, crc, nonces)).collect()
}

/// Shorter packets, those of an idle cluster, are not worth the attempt: the layer alone takes some 16 bytes.
const COMPRESS_FROM: usize = 128;

/// Adds the layers around the message or compound.
fn wrap(packet: Bytes, options: &PacketOptions, crc: bool, nonces: &mut impl CryptoRng) -> Bytes {
    let shorter = if packet.len() < COMPRESS_FROM { None } else { compress::encode(&packet, options.compression) };
    let packet = shorter.map_or(packet, Bytes::from);
    let key = options.sealing_key();
    if options.label.is_empty() && !crc && key.is_none() {
        return packet;
    }
    let mut out = Vec::with_capacity(packet_overhead(options) + packet.len());
    options.label.write(&mut out);
    let Some(key) = key else {
        checksummed(&mut out, &packet, crc);
        return out.into();
    };
    let mut plain = Vec::with_capacity(CRC_HEADER + packet.len());
    checksummed(&mut plain, &packet, crc);
    let nonce = crypt::nonce(nonces);
    crypt::seal(&mut out, &plain, key, options.encryption_version, nonce, options.label.as_bytes());
    out.into()
}

fn checksummed(out: &mut Vec<u8>, packet: &[u8], crc: bool) {
    if crc {
        crc::write(out, packet);
    }
    out.extend_from_slice(packet);
}
