//! Why bytes from the network were refused.

use super::label::Label;

/// Why bytes were refused.
///
/// A refusal changes no state: the packet, the part of a compound, or the stream is dropped, and the caller counts it
/// by [`reason`](Self::reason). On a stream any error is final, and the connection should be closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// A packet, or a part of a compound, without a single byte.
    #[error("nothing there")]
    Empty,
    /// The bytes end before the message does.
    #[error("cut short")]
    Truncated,
    /// The bodies of a compound end early: so many parts are lost; those before them were kept.
    #[error("compound cut short, {lost} parts lost")]
    CompoundTruncated {
        /// How many parts could not be read.
        lost: usize,
    },
    /// A type byte that nobody defined.
    #[error("unknown message type {0}")]
    UnknownType(u8),
    /// A known type where it may not stand: a layer twice or out of order, a compound in a compound, or a message of
    /// streams in a packet (or the reverse). No peer sends these; nested layers are how decoders are made to explode.
    #[error("message type {0} may not stand here")]
    Misplaced(u8),
    /// An encrypted stream, and this node has no key. (An encrypted packet without a key cannot be told from a damaged
    /// ping, and is refused for whatever its bytes happen to look like.)
    #[error("encrypted, and there is no key here")]
    NoKey,
    /// Not encrypted, and this node has a key and takes nothing else.
    #[error("not encrypted, though there is a key here")]
    NotEncrypted,
    /// Encrypted with another key, for another label or transport, or damaged; or a ping that is not encrypted. These
    /// are not told apart, so that nobody learns from the answer how far a forgery came.
    #[error("no key here decrypts it")]
    NotDecrypted,
    /// A compression algorithm that nobody defined.
    #[error("unknown compression algorithm {0}")]
    UnknownCompression(u8),
    /// Compressed data that is damaged or ends early.
    #[error("compressed data is damaged")]
    NotDecompressed,
    /// A label header of length zero.
    #[error("label header without a label")]
    EmptyLabel,
    /// Another cluster's label, or none where one is required, or one where none is configured.
    #[error("{}", wrong_label(got))]
    WrongLabel {
        /// The label that arrived; [`Label::NONE`] when there was none.
        got: Label,
    },
    /// The checksum does not match: damaged on the way, or not a CRC layer at all.
    #[error("checksum is {found:08x}, the header says {expected:08x}")]
    CrcMismatch {
        /// What the header says.
        expected: u32,
        /// What the bytes give.
        found: u32,
    },
    /// A field, a key or a message body of a msgpack type that it cannot have.
    #[error("{field}: wrong msgpack type")]
    WrongType {
        /// The field, by its name on the wire.
        field: &'static str,
    },
    /// A number that is negative or too large for its field.
    #[error("{field}: number out of range")]
    OutOfRange {
        /// The field, by its name on the wire.
        field: &'static str,
    },
    /// Longer than this decoder accepts.
    #[error("{field}: {len} is more than {max}")]
    TooLong {
        /// The field, by its name on the wire, or the thing that is too long.
        field: &'static str,
        /// What was announced, in bytes or items.
        len: u64,
        /// What is accepted.
        max: u64,
    },
    /// A name or an error text that is not UTF-8. Go would take it; Annulus prints and compares names as text.
    #[error("{field}: not UTF-8")]
    NotUtf8 {
        /// The field, by its name on the wire.
        field: &'static str,
    },
    /// A name with control characters. Go would take it; no member is named so, and names end up in logs and tables.
    #[error("{field}: control characters")]
    NotPrintable {
        /// The field, by its name on the wire.
        field: &'static str,
    },
    /// Neither empty nor as long as it must be: versions of fewer than six bytes, which confuse a cluster of Go members.
    #[error("{field}: {len} is less than {min}")]
    TooShort {
        /// The field, by its name on the wire, or the thing that is too short.
        field: &'static str,
        /// What there is, in bytes.
        len: u64,
        /// What is needed.
        min: u64,
    },
    /// An address that has neither 0 nor 4 nor 16 bytes.
    #[error("{field}: an address of {len} bytes")]
    BadAddress {
        /// The field, by its name on the wire.
        field: &'static str,
        /// Its length.
        len: usize,
    },
    /// More nested than the eight levels that are accepted.
    #[error("nested too deep")]
    TooDeep,
    /// The first byte of a connection of dskit's TCP transport is neither a packet's (1) nor a stream's (2).
    #[error("unknown type of connection {0}")]
    UnknownConnection(u8),
    /// A packet of dskit's TCP transport that its MD5 does not fit: damaged, or cut short. (dskit counts it and takes the
    /// packet all the same, which then lacks its last bytes.)
    #[error("the packet's digest does not fit")]
    DigestMismatch,
    /// The bytes ask for more work or memory than one packet or stream may cost.
    #[error("more {what} than one packet or stream may cost")]
    OverBudget {
        /// `bytes` or `items`.
        what: &'static str,
    },
}

fn wrong_label(got: &Label) -> String {
    if got.is_empty() {
        "there is no label, and one is required".to_owned()
    } else {
        format!("label {got} is not accepted")
    }
}

impl WireError {
    /// A short, stable name for metrics and logs. It carries nothing that came from the network.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Truncated => "truncated",
            Self::CompoundTruncated { .. } => "compound_truncated",
            Self::UnknownType(_) => "unknown_type",
            Self::Misplaced(_) => "misplaced_type",
            Self::NoKey => "no_key",
            Self::NotEncrypted => "not_encrypted",
            Self::NotDecrypted => "not_decrypted",
            Self::UnknownCompression(_) => "unknown_compression",
            Self::NotDecompressed => "not_decompressed",
            Self::EmptyLabel => "label_empty",
            Self::WrongLabel { got } if got.is_empty() => "label_missing",
            Self::WrongLabel { .. } => "label_mismatch",
            Self::CrcMismatch { .. } => "crc_mismatch",
            Self::WrongType { .. } => "wrong_type",
            Self::OutOfRange { .. } => "out_of_range",
            Self::TooLong { .. } => "too_long",
            Self::NotUtf8 { .. } => "not_utf8",
            Self::NotPrintable { .. } => "not_printable",
            Self::TooShort { .. } => "too_short",
            Self::BadAddress { .. } => "bad_address",
            Self::UnknownConnection(_) => "unknown_connection",
            Self::DigestMismatch => "digest_mismatch",
            Self::TooDeep => "too_deep",
            Self::OverBudget { .. } => "over_budget",
        }
    }
}
