//! Labels: the byte string that keeps the packets of two clusters apart.
//!
//! On the wire: `f4 ‖ length (1..=255) ‖ label`, in front of a packet or at the start of a dialed stream. An empty label
//! is no header at all.

use std::fmt;
use std::str::FromStr;

use bytes::{BufMut, Bytes};

use super::error::WireError;
use super::kind;

/// The longest label, in bytes: its length is one byte on the wire.
pub const MAX_LABEL: usize = 255;

/// The label of a cluster: 0 to 255 bytes, of any value. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Label(Bytes);

impl Label {
    /// No label: packets carry no label header.
    pub const NONE: Self = Self(Bytes::new());

    /// Makes a label.
    ///
    /// # Errors
    ///
    /// [`WireError::TooLong`] above [`MAX_LABEL`] bytes.
    pub fn new(label: impl AsRef<[u8]>) -> Result<Self, WireError> {
        let label = label.as_ref();
        if label.len() > MAX_LABEL {
            return Err(WireError::TooLong { field: "label", len: label.len() as u64, max: MAX_LABEL as u64 });
        }
        Ok(Self(Bytes::copy_from_slice(label)))
    }

    /// A copy of the bytes of a header: what keeps a label must not keep the packet that it came with.
    pub(super) fn received(label: &[u8]) -> Self {
        Self(Bytes::copy_from_slice(label))
    }

    /// The bytes of the label.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether there is no label.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many bytes the header takes in front of a packet or a stream: 0 without a label.
    #[must_use]
    pub const fn header_len(&self) -> usize {
        if self.0.is_empty() { 0 } else { 2 + self.0.len() }
    }

    /// Writes the header; nothing without a label.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        if !self.is_empty() {
            out.put_u8(kind::LABEL);
            out.put_u8(self.0.len() as u8);
            out.put_slice(&self.0);
        }
    }
}

impl FromStr for Label {
    type Err = WireError;

    fn from_str(label: &str) -> Result<Self, WireError> {
        Self::new(label)
    }
}

impl TryFrom<&str> for Label {
    type Error = WireError;

    fn try_from(label: &str) -> Result<Self, WireError> {
        Self::new(label)
    }
}

impl fmt::Display for Label {
    /// Quoted and escaped: a label comes from the network, and must not write control characters to a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

impl fmt::Debug for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Splits the label header off the front: the label (empty when there is no header) and how many bytes it took.
///
/// `None` when the header is not complete yet.
pub(super) fn split(bytes: &[u8]) -> Result<Option<(&[u8], usize)>, WireError> {
    match *bytes {
        [] | [kind::LABEL] => Ok(None),
        [kind::LABEL, 0, ..] => Err(WireError::EmptyLabel),
        [kind::LABEL, len, ref rest @ ..] => {
            let Some(label) = rest.get(..usize::from(len)) else { return Ok(None) };
            Ok(Some((label, 2 + label.len())))
        }
        _ => Ok(Some((&[], 0))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_label_of_255_bytes_is_the_longest() {
        let label = Label::new([7; 255]).unwrap();
        let mut wire = Vec::new();
        label.write(&mut wire);
        assert_eq!(wire.len(), label.header_len());
        assert_eq!(split(&wire).unwrap(), Some((label.as_bytes(), 257)));
        assert_eq!(Label::new([7; 256]).unwrap_err().reason(), "too_long");
    }

    #[test]
    fn a_header_that_is_not_complete_is_not_an_error_yet() {
        for cut in [&b""[..], b"\xf4", b"\xf4\x03", b"\xf4\x03la"] {
            assert_eq!(split(cut).unwrap(), None);
        }
    }

    #[test]
    fn a_header_of_length_zero_is_refused() {
        assert_eq!(split(b"\xf4\x00\x08x"), Err(WireError::EmptyLabel));
    }

    #[test]
    fn without_a_label_there_is_no_header() {
        let mut wire = Vec::new();
        Label::NONE.write(&mut wire);
        assert!(wire.is_empty());
        assert_eq!(split(b"\x08x").unwrap(), Some((&b""[..], 0)));
    }

    #[test]
    fn control_characters_never_reach_a_log() {
        assert_eq!(Label::new(b"a\x1b[2J\n").unwrap().to_string(), r#""a\x1b[2J\n""#);
    }
}
