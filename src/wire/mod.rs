//! Bytes to messages and back, as memberlist writes them.
//!
//! The only place that knows the wire format. A packet goes through [`decode_packet`] and comes out as
//! [`message::Message`]s; a stream is fed to a [`StreamDecoder`] and comes out as a [`message::StreamMessage`]. What this
//! node says goes through [`encode_message`] and [`encode_packets`], or [`encode_request`] and [`encode_reply`],
//! and is what the current Go memberlist would have written.
//!
//! Bytes from the network are hostile. Every decoder has explicit limits, takes from one budget however many layers there
//! are, makes no more memory than arrived bytes justify, returns a [`WireError`] and never panics.
//!
//! # Layout
//!
//! * [`message`]: the messages, as plain data.
//! * [`packet`]: packets and their layers; [`stream`]: streams, decoded as they arrive; `stream_out`: streams,
//!   as they are sent.
//! * [`label`], [`crypt`], [`crc`], [`compress`], [`compound`]: one layer each; [`keyring`]: the keys.
//! * [`grafana`]: the framing of dskit's TCP transport, around packets and streams.
//! * [`inspect`]: the same decoders, to explain bytes to people; `trail`: what decoders note for it.
//! * `body`: the msgpack body of each message; `msgpack`: the reader and writer below it.
//! * `budget`: what one packet or stream may cost; [`error`]: why bytes were refused.

pub mod compound;
pub mod compress;
pub mod crc;
pub mod crypt;
pub mod error;
pub mod grafana;
pub mod inspect;
pub mod keyring;
pub mod label;
pub mod message;
pub mod packet;
pub mod stream;

mod body;
mod budget;
mod inspect_json;
mod kind;
mod msgpack;
mod stream_out;
mod trail;

pub use body::MAX_META;
pub use compound::{COMPOUND_HEADER, COMPOUND_MAX_PART, COMPOUND_MAX_PARTS, COMPOUND_PART};
pub use compress::Compression;
pub use crc::CRC_HEADER;
pub use crypt::EncryptionVersion;
pub use error::WireError;
pub use keyring::{Key, KeyError, Keyring, MAX_KEYS};
pub use label::{Label, MAX_LABEL};
pub use message::{
    Ack, Alive, Dead, IndirectPing, MemberState, Message, Nack, NodeName, Ping, PushNode, PushPull, Source,
    StreamMessage, Suspect, VSN, Vsn, WireIp,
};
pub use packet::{Packet, PacketOptions, decode_packet, encode_message, encode_packets, packet_overhead};
pub use stream::{StreamDecoder, StreamSide};
pub use stream_out::{encode_reply, encode_request};
pub use trail::Stage;

#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod layer_tests;
#[cfg(test)]
mod tests;
