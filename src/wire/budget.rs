//! What one packet, or one stream, may cost.
//!
//! Every layer takes from the same [`Budget`], so that no combination of layers multiplies what each of them allows
//! alone. Bytes are charged when a decoder *makes* bytes (a copied name, and decompressed data); a slice of what
//! arrived is free. The budget of a packet is made before its first layer is taken off, and the same is passed to every layer and
//! to every part of a compound; a stream has one for all of its layers and members. Depth is limited by itself ([`MAX_DEPTH`]),
//! because layers do not nest. Time is the transport's to limit: this room has no clock. Items are charged for each msgpack value and each part of a compound.

use super::error::WireError;

/// Most levels of nested msgpack containers. The protocol itself needs two.
pub(super) const MAX_DEPTH: usize = 8;

/// From one datagram.
pub(super) const PACKET_BYTES: usize = 512 << 10;
/// 255 parts of the largest message are about 4 000 values.
const PACKET_ITEMS: usize = 1 << 14;
const STREAM_BYTES: usize = 64 << 20;
/// 65 536 members are about a million values, and a stream looks at each twice: to find its end, then to read it.
const STREAM_ITEMS: usize = 1 << 22;

/// What may still be spent.
#[derive(Debug)]
pub(super) struct Budget {
    bytes: usize,
    items: usize,
    /// Where the reader of msgpack stood when it refused something: an explanation for people.
    pub(super) stopped_at: usize,
}

impl Budget {
    /// For one datagram.
    #[cfg(test)]
    pub(super) fn packet() -> Self {
        Self::packet_of(PACKET_BYTES)
    }

    /// For one packet, from which this many bytes may be made.
    pub(super) fn packet_of(bytes: usize) -> Self {
        Self { bytes, items: PACKET_ITEMS, stopped_at: 0 }
    }

    /// For one direction of one stream.
    pub(super) fn stream() -> Self {
        Self { bytes: STREAM_BYTES, items: STREAM_ITEMS, stopped_at: 0 }
    }

    /// Pays for `len` bytes that are about to be made.
    pub(super) fn bytes(&mut self, len: usize) -> Result<(), WireError> {
        self.bytes = self.bytes.checked_sub(len).ok_or(WireError::OverBudget { what: "bytes" })?;
        Ok(())
    }

    /// How many bytes may still be made.
    pub(super) fn bytes_left(&self) -> usize {
        self.bytes
    }

    /// Notes where something was refused.
    pub(super) fn stopped<E>(&mut self, at: usize, error: E) -> E {
        self.stopped_at = at;
        error
    }

    /// Pays for one value.
    pub(super) fn item(&mut self) -> Result<(), WireError> {
        self.items = self.items.checked_sub(1).ok_or(WireError::OverBudget { what: "items" })?;
        Ok(())
    }
}
