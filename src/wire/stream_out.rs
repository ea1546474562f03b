//! Streams, the sending side: what a dialer says, and what it is answered.

use bytes::{BufMut, Bytes};
use rand::CryptoRng;

use super::body::{self, PushPullHeader};
use super::compress;
use super::crypt;
use super::kind;
use super::label::Label;
use super::message::{PushPull, StreamMessage};
use super::msgpack::Writer;
use super::packet::PacketOptions;

/// The type byte and the length in front of an encrypted blob.
const FRAME_HEADER: usize = 5;

/// What is authenticated with an encrypted blob of `len` bytes.
pub(super) fn frame_aad(len: u32, label: &Label) -> Vec<u8> {
    let mut aad = Vec::with_capacity(FRAME_HEADER + label.as_bytes().len());
    aad.put_u8(kind::ENCRYPT);
    aad.put_u32(len);
    aad.put_slice(label.as_bytes());
    aad
}

/// Writes what a dialer says on the stream that it opened: its label, then the message, compressed where that makes it
/// shorter, and encrypted if there is a key.
///
/// Limits are the caller's business: more than [`MAX_PUSH_NODES`](super::stream::MAX_PUSH_NODES) members or
/// [`MAX_USER_STATE`](super::stream::MAX_USER_STATE) bytes are written, and refused by the decoder. For `nonces` see [`encode_packets`](super::encode_packets).
#[must_use]
pub fn encode_request(message: &StreamMessage, options: &PacketOptions, nonces: &mut impl CryptoRng) -> Bytes {
    let mut out = Vec::new();
    options.label.write(&mut out);
    wrap(out, message, options, &options.label, nonces)
}

/// Writes the answer to what came on a stream with this label ([`StreamDecoder::label`](super::StreamDecoder::label)). An answer has no label header;
/// where it is encrypted, the dialer's label is authenticated.
///
/// Otherwise as [`encode_request`].
#[must_use]
pub fn encode_reply(
    message: &StreamMessage,
    options: &PacketOptions,
    label: &Label,
    nonces: &mut impl CryptoRng,
) -> Bytes {
    wrap(Vec::new(), message, options, label, nonces)
}

/// Appends the message in its layers.
fn wrap(
    mut out: Vec<u8>,
    message: &StreamMessage,
    options: &PacketOptions,
    label: &Label,
    nonces: &mut impl CryptoRng,
) -> Bytes {
    let start = out.len();
    write(&mut out, message);
    if let Some(packed) = compress::encode(out.get(start..).unwrap_or_default(), options.compression) {
        out.truncate(start);
        out.extend_from_slice(&packed);
    }
    if let Some(key) = options.sealing_key() {
        let plain = out.split_off(start);
        let len = options.encryption_version.sealed_len(plain.len());
        // A message too long for the frame is refused by every decoder, this one included.
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        out.put_u8(kind::ENCRYPT);
        out.put_u32(len);
        let aad = frame_aad(len, label);
        crypt::seal(&mut out, &plain, key, options.encryption_version, crypt::nonce(nonces), &aad);
    }
    out.into()
}

/// Appends the message as the current Go memberlist writes it.
fn write(out: &mut Vec<u8>, message: &StreamMessage) {
    match message {
        StreamMessage::Ping(ping) => out.extend(body::write_ping(ping)),
        StreamMessage::Ack(ack) => out.extend(body::write_ack(ack)),
        StreamMessage::Error(text) => out.extend(body::write_error(text)),
        StreamMessage::User(payload) => {
            let mut writer = Writer::after(std::mem::take(out), kind::USER);
            body::write_user_header(&mut writer, payload.len());
            writer.append(payload);
            *out = writer.into_bytes();
        }
        StreamMessage::PushPull(push_pull) => {
            let PushPull { join, label, nodes, user_state } = push_pull;
            let mut writer = Writer::after(std::mem::take(out), kind::PUSH_PULL);
            let (join, label) = (*join, label.clone());
            let header = PushPullHeader { join, label, nodes: nodes.len(), user_state_len: user_state.len() };
            body::write_push_pull_header(&mut writer, &header);
            for node in nodes {
                body::write_push_node(&mut writer, node);
            }
            writer.append(user_state);
            *out = writer.into_bytes();
        }
    }
}
