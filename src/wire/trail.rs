//! What a decoder notes while it takes the layers off: which there were, and where it stopped.
//!
//! A few numbers, written for every packet and stream whether or not anybody reads them; they are what
//! [`inspect`](super::inspect) explains a packet from, so that the explanation and the decoder cannot disagree.

/// A layer of a packet or a stream, or what lies in all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stage {
    /// The framing of dskit's TCP transport.
    Grafana,
    /// The label header.
    #[default]
    Label,
    /// AES-GCM: the blob of a packet, or the frame of a stream.
    Encryption,
    /// The checksum.
    Crc,
    /// LZW or snappy.
    Compression,
    /// Several messages in one packet.
    Compound,
    /// A message.
    Message,
}

impl Stage {
    /// The name in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Grafana => "grafana",
            Self::Label => "label",
            Self::Encryption => "encryption",
            Self::Crc => "crc",
            Self::Compression => "compression",
            Self::Compound => "compound",
            Self::Message => "message",
        }
    }
}

/// An encryption layer that was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Opened {
    /// Its version byte.
    pub(super) version: u8,
    /// Which key of the keyring fitted.
    pub(super) key: usize,
    /// Bytes of the blob.
    pub(super) sealed: usize,
    /// Bytes that were in it.
    pub(super) plain: usize,
}

/// A compression layer that was taken off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unpacked {
    /// The number of the algorithm.
    pub(super) algorithm: u8,
    /// Bytes of the compressed data.
    pub(super) packed: usize,
    /// Bytes that it became.
    pub(super) plain: usize,
}

/// Which layers were taken off, and which is being read.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Trail {
    pub(super) stage: Stage,
    /// Where in that layer the decoder stopped: bytes from its first.
    pub(super) offset: usize,
    pub(super) opened: Option<Opened>,
    pub(super) crc: Option<u32>,
    pub(super) unpacked: Option<Unpacked>,
}

impl Trail {
    /// The next layer begins.
    pub(super) fn enter(&mut self, stage: Stage) {
        self.stage = stage;
        self.offset = 0;
    }

    /// The layer says something wrong here.
    pub(super) fn stop<E>(&mut self, offset: usize, error: E) -> E {
        self.offset = offset;
        error
    }
}
