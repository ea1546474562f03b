//! Streams: one message each way over a connection.
//!
//! The layers, outermost first, are label (only what the dialer writes), encryption, compression, message. A stream has
//! no checksum and no compounds. A [`StreamDecoder`] is fed bytes as they arrive, in pieces of any size, and looks at each
//! of them once (and at what it decrypted and decompressed, once more each).
//!
//! The encrypted frame is `0a ‖ length (u32, big-endian) ‖ blob` (see [`crypt`]), where these five bytes
//! and the label are authenticated: the label that the dialer sent, in both directions. What is sent is written by
//! [`encode_request`](super::encode_request) and [`encode_reply`](super::encode_reply).

use bytes::{Buf, Bytes, BytesMut};

use super::body::{self, MAX_TEXT};
use super::budget::Budget;
use super::compress;
use super::crypt::{self, EncryptionVersion};
use super::error::WireError;
use super::kind;
use super::label::Label;
use super::message::{PushPull, StreamMessage};
use super::msgpack::Scanner;
use super::packet::PacketOptions;
use super::stream_out::frame_aad;
use super::trail::{Stage, Trail};

/// Most members in one push/pull. (memberlist: a million; its largest known cluster has some ten thousand.)
pub const MAX_PUSH_NODES: usize = 65_536;
/// Longest user state of a push/pull, in bytes, as in memberlist.
pub const MAX_USER_STATE: usize = 20 << 20;
/// Longest user message of a stream, in bytes, as in memberlist.
pub const MAX_USER_MESSAGE: usize = 20 << 20;
/// Most bytes of one direction of a stream.
pub const MAX_STREAM: usize = 64 << 20;

/// Longest encrypted blob, in bytes: 20 MiB of message, as in memberlist, and what encryption adds.
pub const MAX_ENCRYPTED: usize = (20 << 20) + EncryptionVersion::V0.overhead();
/// Longest msgpack object of a stream: the longest error text, and room for the rest of its message.
const MAX_OBJECT: usize = MAX_TEXT + (2 << 10);

/// Who opened the connection whose bytes are decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamSide {
    /// The peer did: its bytes begin with its label, which is checked.
    Accepted,
    /// We did: the peer's answer carries no label.
    Dialed,
}

/// What the decoder waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Label,
    Kind,
    /// The length of the encrypted blob.
    FrameLength,
    /// The encrypted blob of this length.
    Frame(u32),
    /// The msgpack object that follows this type byte.
    Object(u8),
    Nodes {
        left: usize,
        user_state_len: usize,
    },
    UserState(usize),
    UserMessage(usize),
    Done,
}

/// Which layers of the stream have been taken off, and so what may still come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Depth {
    /// None: these are the bytes that arrive.
    Arriving,
    /// It was encrypted: all of the rest is there.
    Decrypted,
    /// It was compressed: all of the rest is there.
    Decompressed,
}

/// What an object was.
enum Step {
    /// All of the message.
    Message(StreamMessage),
    /// Its header; the rest is still to come.
    Wait(Phase),
}

/// Decodes the one message that a peer sends on a stream, while it arrives.
///
/// ```
/// use annulus::wire::message::StreamMessage;
/// use annulus::wire::{PacketOptions, StreamDecoder, StreamSide};
///
/// let mut decoder = StreamDecoder::new(&PacketOptions::default(), StreamSide::Dialed);
/// decoder.feed(b"\x0d\x81\xa5Err")?;
/// assert_eq!(decoder.poll()?, None);
/// decoder.feed(b"or\xa4boom")?;
/// assert_eq!(decoder.poll()?, Some(StreamMessage::Error("boom".to_owned())));
/// # Ok::<(), annulus::wire::WireError>(())
/// ```
#[derive(Debug)]
pub struct StreamDecoder {
    options: PacketOptions,
    /// The label that the dialer sent, which is authenticated where the stream is encrypted.
    label: Label,
    phase: Phase,
    depth: Depth,
    buffer: BytesMut,
    received: usize,
    scanner: Scanner,
    budget: Budget,
    decompressed: usize,
    push_pull: PushPull,
    refused: Vec<WireError>,
    /// Where in the message the first refused member is wrong.
    refused_at: usize,
    failed: Option<WireError>,
    trail: Trail,
    /// How many bytes of the layer that is being read have been taken from the buffer.
    taken: usize,
}

impl StreamDecoder {
    /// A decoder for the bytes that the peer sends on one connection.
    #[must_use]
    pub fn new(options: &PacketOptions, side: StreamSide) -> Self {
        Self {
            label: options.label.clone(),
            options: options.clone(),
            depth: Depth::Arriving,
            phase: match side {
                StreamSide::Accepted => Phase::Label,
                StreamSide::Dialed => Phase::Kind,
            },
            buffer: BytesMut::new(),
            received: 0,
            scanner: Scanner::new(MAX_OBJECT, 0),
            budget: Budget::stream(),
            decompressed: 0,
            push_pull: PushPull::default(),
            refused: Vec::new(),
            refused_at: 0,
            failed: None,
            trail: Trail::default(),
            taken: 0,
        }
    }

    /// Appends bytes that arrived. Bytes after the end of the message are ignored.
    ///
    /// # Errors
    ///
    /// [`WireError::TooLong`] above [`MAX_STREAM`] bytes, and whatever [`poll`](Self::poll) found before.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if self.phase == Phase::Done {
            return Ok(());
        }
        self.received = self.received.saturating_add(bytes.len());
        if self.received > MAX_STREAM {
            let error = WireError::TooLong { field: "stream", len: self.received as u64, max: MAX_STREAM as u64 };
            return Err(self.fail(error));
        }
        // What follows an encrypted or compressed message is none of it.
        if self.depth == Depth::Arriving {
            self.buffer.extend_from_slice(bytes);
        }
        Ok(())
    }

    /// Decodes as far as the bytes go: the message once it is complete, and `None` while it is not (and again after it
    /// has been taken).
    ///
    /// # Errors
    ///
    /// The first [`WireError`], now and at every later call: nothing more can be read from this stream.
    pub fn poll(&mut self) -> Result<Option<StreamMessage>, WireError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        match self.advance() {
            Ok(Some(message)) => {
                self.phase = Phase::Done;
                self.buffer = BytesMut::new();
                Ok(Some(message))
            }
            // All of it is there, and it is not enough.
            Ok(None) if self.depth > Depth::Arriving && self.phase != Phase::Done => {
                self.trail.offset = self.taken + self.buffer.len();
                Err(self.fail(WireError::Truncated))
            }
            Ok(None) => Ok(None),
            Err(error) => Err(self.fail(error)),
        }
    }

    /// The label of the stream: on an accepted stream the one that its dialer sent, once the message is there. The answer
    /// goes back under it; see [`encode_reply`](super::encode_reply).
    #[must_use]
    pub fn label(&self) -> &Label {
        &self.label
    }

    /// Whether this is a stream of our own cluster: its label came, and is accepted. Always so where we dialed.
    #[must_use]
    pub fn is_admitted(&self) -> bool {
        self.phase != Phase::Label
    }

    /// How many bytes compressed data has become: what the message takes beyond the bytes that were fed.
    #[must_use]
    pub fn decompressed(&self) -> usize {
        self.decompressed
    }

    /// Why members of a push/pull were left out of the message. A member that another node accepted and we do not (a
    /// name that is not UTF-8, a meta that is too long) does not spoil the exchange.
    #[must_use]
    pub fn refused(&self) -> &[WireError] {
        &self.refused
    }

    /// Says that the peer closed its side.
    ///
    /// # Errors
    ///
    /// [`WireError::Truncated`] when the stream ended inside a message; a stream that ends before its first byte is no
    /// error. Also whatever [`poll`](Self::poll) found before.
    pub fn finish(self) -> Result<(), WireError> {
        match self.failed {
            Some(error) => Err(error),
            None if self.phase == Phase::Done || self.received == 0 => Ok(()),
            None => Err(WireError::Truncated),
        }
    }

    /// Which layers there were, and where the decoder stopped.
    pub(super) fn trail(&self) -> Trail {
        let offset = if self.failed.is_some() { self.trail.offset } else { self.taken + self.buffer.len() };
        Trail { offset, ..self.trail }
    }

    /// Where in the message the first of the [`refused`](Self::refused) members is wrong.
    pub(super) fn refused_at(&self) -> usize {
        self.refused_at
    }

    fn fail(&mut self, error: WireError) -> WireError {
        self.buffer = BytesMut::new();
        self.push_pull = PushPull::default();
        self.failed = Some(error.clone());
        error
    }

    fn advance(&mut self) -> Result<Option<StreamMessage>, WireError> {
        loop {
            self.phase = match self.phase {
                Phase::Label => {
                    let Some((label, len)) = self.options.check_label(&self.buffer)? else { return Ok(None) };
                    self.label = self.options.label_of(label);
                    self.buffer.advance(len);
                    Phase::Kind
                }
                Phase::Kind => {
                    let Some(&kind) = self.buffer.first() else { return Ok(None) };
                    self.trail.enter(match kind {
                        kind::ENCRYPT => Stage::Encryption,
                        kind::COMPRESS => Stage::Compression,
                        _ => Stage::Message,
                    });
                    self.taken = 1;
                    self.buffer.advance(1);
                    self.after_kind(kind)?
                }
                Phase::FrameLength => {
                    let Ok(len) = self.buffer.try_get_u32() else { return Ok(None) };
                    self.trail.offset = self.taken;
                    self.taken += 4;
                    if len as usize > MAX_ENCRYPTED {
                        let max = MAX_ENCRYPTED as u64;
                        return Err(WireError::TooLong { field: "encrypted", len: len.into(), max });
                    }
                    Phase::Frame(len)
                }
                Phase::Frame(len) => {
                    if self.buffer.len() < len as usize {
                        return Ok(None);
                    }
                    self.trail.offset = self.taken;
                    let blob = self.buffer.split_to(len as usize);
                    let aad = frame_aad(len, &self.label);
                    let (plain, opened) =
                        crypt::open(blob, &self.options.keyring, &aad).map_err(|error| match error {
                            // It says that it is encrypted.
                            WireError::NotEncrypted | WireError::Empty => WireError::NotDecrypted,
                            other => other,
                        })?;
                    self.trail.opened = Some(opened);
                    (self.buffer, self.taken) = (plain, 0);
                    self.depth = Depth::Decrypted;
                    Phase::Kind
                }
                Phase::Object(kind::COMPRESS) => {
                    let Some(object) = self.object()? else { return Ok(None) };
                    let plain = compress::decode(&object, compress::MAX_STREAM, &mut self.budget);
                    let (plain, unpacked) = plain.map_err(|error| self.stopped(&object, error))?;
                    drop(object);
                    self.trail.unpacked = Some(unpacked);
                    self.decompressed = plain.len();
                    (self.buffer, self.taken) = (plain.into(), 0);
                    self.depth = Depth::Decompressed;
                    Phase::Kind
                }
                Phase::Object(kind) => {
                    let Some(object) = self.object()? else { return Ok(None) };
                    match self.header(kind, &object).map_err(|error| self.stopped(&object, error))? {
                        Step::Message(message) => return Ok(Some(message)),
                        Step::Wait(next) => next,
                    }
                }
                Phase::Nodes { left: 0, user_state_len } => Phase::UserState(user_state_len),
                Phase::Nodes { left, user_state_len } => {
                    let Some(object) = self.object()? else { return Ok(None) };
                    match body::read_push_node(&object, &mut self.budget) {
                        Ok(node) => self.push_pull.nodes.push(node),
                        Err(error @ WireError::OverBudget { .. }) => return Err(self.stopped(&object, error)),
                        Err(error) => {
                            let error = self.stopped(&object, error);
                            if self.refused.is_empty() {
                                self.refused_at = self.trail.offset;
                            }
                            self.refused.push(error);
                        }
                    }
                    Phase::Nodes { left: left - 1, user_state_len }
                }
                Phase::UserState(len) => {
                    let Some(user_state) = self.take(len) else { return Ok(None) };
                    let push_pull = PushPull { user_state, ..std::mem::take(&mut self.push_pull) };
                    return Ok(Some(StreamMessage::PushPull(push_pull)));
                }
                Phase::UserMessage(len) => return Ok(self.take(len).map(StreamMessage::User)),
                Phase::Done => return Ok(None),
            };
        }
    }

    /// What follows this type byte.
    fn after_kind(&mut self, kind: u8) -> Result<Phase, WireError> {
        let plain = self.depth == Depth::Arriving;
        match kind {
            kind::ENCRYPT if plain && self.options.keyring.is_empty() => return Err(WireError::NoKey),
            kind::ENCRYPT if plain => return Ok(Phase::FrameLength),
            _ if plain && self.options.requires_encryption() => {
                self.trail.enter(Stage::Encryption);
                return Err(WireError::NotEncrypted);
            }
            kind::COMPRESS if self.depth < Depth::Decompressed => {
                // As long as what may arrive; it grows only while it does.
                self.scanner = Scanner::new(MAX_STREAM, 0);
            }
            kind::PING | kind::ACK | kind::PUSH_PULL | kind::USER | kind::ERROR => {}
            kind::INDIRECT_PING
            | kind::SUSPECT
            | kind::ALIVE
            | kind::DEAD
            | kind::COMPOUND
            | kind::COMPRESS
            | kind::ENCRYPT
            | kind::NACK
            | kind::CRC
            | kind::LABEL => return Err(WireError::Misplaced(kind)),
            _ => return Err(WireError::UnknownType(kind)),
        }
        Ok(Phase::Object(kind))
    }

    /// Reads the object that follows the type byte.
    fn header(&mut self, kind: u8, object: &[u8]) -> Result<Step, WireError> {
        let budget = &mut self.budget;
        Ok(Step::Message(match kind {
            kind::PING => StreamMessage::Ping(body::read_ping(object, budget)?),
            kind::ACK => StreamMessage::Ack(body::read_ack(object, budget)?),
            kind::ERROR => StreamMessage::Error(body::read_error(object, budget)?),
            kind::USER => {
                let len = body::read_user_header(object, budget, MAX_USER_MESSAGE)?;
                return Ok(Step::Wait(Phase::UserMessage(len)));
            }
            kind::PUSH_PULL => {
                let header = body::read_push_pull_header(object, budget, MAX_PUSH_NODES, MAX_USER_STATE)?;
                (self.push_pull.join, self.push_pull.label) = (header.join, header.label);
                return Ok(Step::Wait(Phase::Nodes { left: header.nodes, user_state_len: header.user_state_len }));
            }
            _ => return Err(WireError::UnknownType(kind)),
        }))
    }

    /// Takes the next msgpack object, once it is complete.
    fn object(&mut self) -> Result<Option<Bytes>, WireError> {
        let scanned = self.scanner.scan(&self.buffer, &mut self.budget);
        let scanned = scanned.map_err(|error| self.trail.stop(self.taken + self.scanner.position(), error))?;
        let Some(len) = scanned else { return Ok(None) };
        self.scanner = Scanner::new(MAX_OBJECT, 0);
        Ok(self.take(len))
    }

    /// Takes so many bytes, once they are there.
    fn take(&mut self, len: usize) -> Option<Bytes> {
        if len > self.buffer.len() {
            return None;
        }
        self.taken += len;
        Some(self.buffer.split_to(len).freeze())
    }

    /// Notes where in an object that was taken just now something is wrong.
    fn stopped(&mut self, object: &[u8], error: WireError) -> WireError {
        self.trail.stop(self.taken - object.len() + self.budget.stopped_at, error)
    }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
