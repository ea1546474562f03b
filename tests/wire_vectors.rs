//! What Go programs put on the wire, Annulus reads; and where Go is deterministic, Annulus writes the same bytes.
//!
//! `tests/data/wire/` holds bytes that were captured from memberlist, its Grafana fork, dskit, Serf and Alertmanager, or
//! that were sent to them, with what an independent decoder made of them. See the README there for the format.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::Path;

use annulus::wire::message::{Message, PushNode, Source, StreamMessage, Vsn, WireIp};
use annulus::wire::{
    CRC_HEADER, Compression, EncryptionVersion, Key, Keyring, Label, Packet, PacketOptions, StreamDecoder, StreamSide,
    WireError, decode_packet, encode_message, encode_packets, encode_reply, encode_request,
};
use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use rand::{TryCryptoRng, TryRng};
use serde_json::{Value, json};

/// Vectors that Go refuses in the wire format, and why Annulus refuses them.
const REFUSED: &[(&str, &str)] = &[
    ("rej-compress-algo9", "unknown_compression"),
    ("rej-crc-mismatch", "crc_mismatch"),
    ("rej-double-label", "not_encrypted"),
    ("rej-empty-compound-trunc", "truncated"),
    ("rej-enc-missing", "not_encrypted"),
    ("rej-enc-wrong-aad", "not_decrypted"),
    ("rej-label-empty", "label_empty"),
    ("rej-label-on-unlabelled", "label_mismatch"),
    ("rej-tcp-bad-label", "label_mismatch"),
    ("rej-unknown-type", "unknown_type"),
    ("rej-unlabelled-to-labelled", "label_missing"),
];

/// Vectors that Go takes only in part, or that Annulus takes only in part: why a part is refused.
const PARTLY: &[(&str, &str)] = &[
    // Go takes the inner compound too. No sender nests compounds, and nesting multiplies work, so Annulus does not.
    ("in-compound-nested-crc", "misplaced_type"),
    ("rej-truncated-compound", "compound_truncated"),
];

/// Vectors that Go refuses for what they say: the membership decides about them, and the wire format is in order.
const FOR_MEMBERSHIP: &[&str] = &["rej-ping-wrong-node", "rej-tcp-pushpull-vsn-incompatible"];

/// Vectors made by hand to be unusual: they are read, but nobody writes them so.
const UNUSUAL: &[&str] =
    &["in-alive-bin8-str8", "in-alive-keyorder", "in-alive-unknown-field", "in-user-compress-literal-lzw"];

/// Vectors of programs with an old go-msgpack, which writes a length above 127 in another form; they lie in LZW, so that
/// all of it differs.
const OLD_MSGPACK: &[&str] = &["prog-serf094-tcp-pushpull-req", "prog-serf101-tcp-pushpull-req"];

/// One file of the vectors.
struct Vector {
    name: String,
    json: Value,
}

/// What came out of the decoder.
enum Decoded {
    Packet(Packet),
    Stream(StreamMessage),
}

impl Vector {
    fn text(&self, pointer: &str) -> &str {
        self.json.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    /// What the peer was configured with.
    fn options(&self) -> Result<PacketOptions> {
        let key = hex::decode(self.text("/config/key_hex"))?;
        let keys = if key.is_empty() { Vec::new() } else { vec![Key::new(&key)?] };
        let compressed = self.layer("compress");
        Ok(PacketOptions {
            label: Label::new(self.text("/config/label"))?,
            keyring: Keyring::new(keys)?,
            encryption_version: match self.json.pointer("/decoded/encryption/version").and_then(Value::as_u64) {
                Some(0) => EncryptionVersion::V0,
                _ => EncryptionVersion::V1,
            },
            compression: match compressed.and_then(|layer| layer["algo"].as_u64()) {
                Some(0) => Compression::Lzw,
                Some(1) => Compression::Snappy,
                _ => Compression::None,
            },
            ..PacketOptions::default()
        })
    }

    /// The nonce that the peer drew.
    fn nonce(&self) -> Result<Vec<u8>> {
        let (body, label) = (self.body()?, self.options()?.label.header_len());
        let label = if self.text("/transport").ends_with("-resp") { 0 } else { label };
        let start = label + if self.is_packet() { 1 } else { 6 };
        Ok(body.get(start..start + 12).unwrap_or_default().to_vec())
    }

    fn is_packet(&self) -> bool {
        matches!(self.text("/transport"), "udp" | "dskit-packet")
    }

    /// The packet, or everything that was written on the stream, without dskit's own framing.
    fn body(&self) -> Result<Vec<u8>> {
        let bytes = hex::decode(self.text("/hex"))?;
        Ok(match self.text("/transport") {
            "dskit-packet" => {
                // 01, the length of the sender's address, the address, the packet, an MD5 of the packet.
                let address = usize::from(bytes[1]);
                ensure!(bytes[0] == 1, "not a packet");
                bytes[2 + address..bytes.len() - 16].to_vec()
            }
            "dskit-stream" => {
                ensure!(bytes[0] == 2, "not a stream");
                bytes[1..].to_vec()
            }
            "udp" | "tcp" | "tcp-resp" | "dskit-stream-resp" => bytes,
            other => bail!("unknown transport {other}"),
        })
    }

    fn decode(&self) -> Result<Result<Decoded, WireError>> {
        let (body, options) = (self.body()?, self.options()?);
        Ok(if self.is_packet() {
            decode_packet(&body.into(), &options).map(Decoded::Packet)
        } else {
            let side =
                if self.text("/transport").ends_with("-resp") { StreamSide::Dialed } else { StreamSide::Accepted };
            decode_stream(&body, &options, side).map(Decoded::Stream)
        })
    }

    /// The layer of this type that the independent decoder saw around the message.
    fn layer(&self, kind: &str) -> Option<&Value> {
        let mut layer = &self.json["decoded"]["msg"];
        while let Some(found) = layer.get("type") {
            if found == kind {
                return Some(layer);
            }
            layer = layer.get("inner")?;
        }
        None
    }

    /// Whether a layer makes other bytes of what Annulus writes: snappy leaves its encoder free to choose; and where Go
    /// says an empty slice and Annulus nil, everything that is encrypted or compressed around it differs.
    fn is_packed_otherwise(&self) -> bool {
        let compressed = self.layer("compress");
        let plain = self.json.pointer("/decoded/encryption/plaintext_hex").and_then(Value::as_str);
        let unpacked = compressed.and_then(|layer| layer["uncompressed_hex"].as_str());
        compressed.is_some_and(|layer| layer["algo"] == 1)
            || [plain, unpacked].into_iter().flatten().any(|hex| hex.contains(&hex::encode(b"\xa4Meta\xa0")))
    }

    /// The innermost message or compound that the independent decoder saw, and whether it lay in a checksum.
    fn expected(&self) -> (&Value, bool) {
        let mut message = &self.json["decoded"]["msg"];
        while let (Some("hasCrc" | "compress"), Some(inner)) = (message["type"].as_str(), message.get("inner")) {
            message = inner;
        }
        (message, self.layer("hasCrc").is_some())
    }
}

/// Gives the nonce that a peer drew.
struct Drawn(Vec<u8>);

impl TryRng for Drawn {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        unreachable!("a nonce is drawn as bytes, never as a number")
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        unreachable!("a nonce is drawn as bytes, never as a number")
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        out.copy_from_slice(&self.0);
        Ok(())
    }
}

impl TryCryptoRng for Drawn {}

fn decode_stream(body: &[u8], options: &PacketOptions, side: StreamSide) -> Result<StreamMessage, WireError> {
    let mut decoder = StreamDecoder::new(options, side);
    let mut message = None;
    for byte in body.chunks(1) {
        decoder.feed(byte)?;
        message = message.or(decoder.poll()?);
    }
    decoder.finish()?;
    message.ok_or(WireError::Truncated)
}

fn vectors() -> Result<BTreeMap<String, Vector>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/wire");
    let mut vectors = BTreeMap::new();
    for file in std::fs::read_dir(&folder).context("the vectors")? {
        let path = file?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let json: Value = serde_json::from_slice(&std::fs::read(path)?)?;
        let name = json["name"].as_str().context("a vector without a name")?.to_owned();
        vectors.insert(name.clone(), Vector { name, json });
    }
    ensure!(vectors.len() > 90, "only {} vectors", vectors.len());
    Ok(vectors)
}

fn listed(table: &[(&str, &str)], name: &str) -> bool {
    table.iter().any(|(listed, _)| *listed == name)
}

/// Whether somebody else than the wire format refuses this vector.
fn not_for_wire(name: &str) -> bool {
    FOR_MEMBERSHIP.contains(&name)
}

#[test]
fn every_vector_says_what_go_says() -> Result<()> {
    let mut compared = 0;
    for vector in vectors()?.values() {
        let name = &vector.name;
        if listed(REFUSED, name) || listed(PARTLY, name) {
            continue;
        }
        let decoded = vector.decode()?.with_context(|| name.clone())?;
        let (expected, _) = vector.expected();
        if expected.is_null() {
            // The independent decoder was not run on what we made up; the note says why.
            ensure!(not_for_wire(name) || name == "in-dskit-packet-bad-md5", "{name} says nothing");
            continue;
        }
        let found = match decoded {
            Decoded::Packet(packet) => {
                ensure!(packet.refused.is_empty(), "{name}: {:?}", packet.refused);
                let mut messages: Vec<Value> = packet.messages.iter().map(message_json).collect();
                if expected["type"] == "compound" { messages.into() } else { messages.remove(0) }
            }
            Decoded::Stream(message) => stream_json(&message),
        };
        let expected = if expected["type"] == "compound" { &expected["msgs"] } else { expected };
        assert_eq!(found, simplified(expected), "{name}");
        compared += 1;
    }
    ensure!(compared >= 80, "only {compared} vectors were compared");
    Ok(())
}

#[test]
fn what_go_refuses_is_refused_for_the_same_reason() -> Result<()> {
    let vectors = vectors()?;
    for (name, reason) in REFUSED {
        let vector = vectors.get(*name).with_context(|| format!("no vector {name}"))?;
        let Err(error) = vector.decode()? else { bail!("{name} was accepted") };
        assert_eq!(error.reason(), *reason, "{name}: {error}");
    }
    for (name, vector) in &vectors {
        let known = listed(REFUSED, name) || listed(PARTLY, name);
        ensure!(
            vector.text("/direction") != "rejected" || known || not_for_wire(name),
            "{name} is rejected by Go and in no table"
        );
    }
    Ok(())
}

#[test]
fn a_bad_part_of_a_compound_does_not_spoil_the_others() -> Result<()> {
    let vectors = vectors()?;
    for (name, reason) in PARTLY {
        let vector = vectors.get(*name).with_context(|| format!("no vector {name}"))?;
        let Ok(Decoded::Packet(packet)) = vector.decode()? else { bail!("{name} was refused") };
        ensure!(matches!(packet.messages[..], [Message::User(_)]), "{name}: {:?}", packet.messages);
        assert_eq!(packet.refused.iter().map(WireError::reason).collect::<Vec<_>>(), [*reason], "{name}");
    }
    Ok(())
}

#[test]
fn what_go_wrote_is_written_byte_for_byte() -> Result<()> {
    let (mut exact, mut but_for_nil, mut packed_otherwise) = (0, 0, 0);
    for vector in vectors()?.values() {
        let name = &vector.name;
        let emitted = !listed(REFUSED, name) && !listed(PARTLY, name);
        if !emitted || UNUSUAL.contains(&name.as_str()) || OLD_MSGPACK.contains(&name.as_str()) {
            continue;
        }
        if vector.is_packed_otherwise() {
            packed_otherwise += 1;
            continue;
        }
        let (body, options, mut nonces) = (vector.body()?, vector.options()?, Drawn(vector.nonce()?));
        let (_, crc) = vector.expected();
        let written = match vector.decode()?.with_context(|| name.clone())? {
            Decoded::Packet(packet) => {
                let parts: Vec<Bytes> = packet.messages.iter().map(encode_message).collect();
                let mut packets = encode_packets(&parts, &options, crc, &mut nonces);
                assert_eq!(packets.len(), 1, "{name}");
                packets.remove(0)
            }
            Decoded::Stream(message) => {
                if vector.text("/transport").ends_with("-resp") {
                    encode_reply(&message, &options, &options.label, &mut nonces)
                } else {
                    encode_request(&message, &options, &mut nonces)
                }
            }
        };
        // Go tells an empty slice (raw of length 0) from none (nil); Annulus always writes nil.
        let as_nil = with_nil_meta(&body);
        if as_nil == body {
            assert_eq!(hex::encode(&written), hex::encode(&body), "{name}");
            exact += 1;
        } else {
            let checksum = if crc { options.label.header_len() + CRC_HEADER } else { 0 };
            assert_eq!(hex::encode(&written[checksum..]), hex::encode(&as_nil[checksum..]), "{name}");
            but_for_nil += 1;
        }
    }
    let counts = format!("{exact} exactly, {but_for_nil} but for nil, {packed_otherwise} not");
    ensure!(exact >= 45 && but_for_nil >= 10 && packed_otherwise <= 20, "compared: {counts}");
    Ok(())
}

/// The same bytes with every empty `Meta` as nil, which has the same length.
fn with_nil_meta(body: &[u8]) -> Vec<u8> {
    let mut body = body.to_vec();
    for at in 0..body.len().saturating_sub(5) {
        if body[at..].starts_with(b"\xa4Meta\xa0") {
            body[at + 5] = 0xc0;
        }
    }
    body
}

/// What the independent decoder said, without what is not compared: lengths, texts beside bytes, decoded user data,
/// unknown fields; and with nil for every empty byte string.
fn simplified(value: &Value) -> Value {
    match value {
        Value::Object(fields) if fields.len() == 1 && fields.get("hex").is_some_and(|hex| hex == "") => Value::Null,
        Value::Object(fields) if fields.get("type").is_some_and(|kind| kind == "user") => {
            let text = fields.get("payload").and_then(Value::as_str).map(hex::encode);
            let hex = fields.get("payload_hex").and_then(Value::as_str).map(str::to_owned).or(text);
            json!({ "type": "user", "payload_hex": hex })
        }
        Value::Object(fields) => {
            let kept = fields.iter().filter(|(key, _)| !matches!(key.as_str(), "Zzz" | "kv_state" | "serf"));
            kept.map(|(key, value)| (key.clone(), simplified(value))).collect()
        }
        Value::Array(values) => values.iter().map(simplified).collect(),
        other => other.clone(),
    }
}

fn bytes_json(bytes: &[u8]) -> Value {
    if bytes.is_empty() { Value::Null } else { json!({ "hex": hex::encode(bytes) }) }
}

fn vsn_json(vsn: Option<Vsn>) -> Value {
    bytes_json(vsn.as_ref().map_or(&[], |vsn| vsn.as_slice()))
}

fn with_source(mut body: Value, source: Option<&Source>) -> Value {
    if let Some(Source { addr, port, node }) = source {
        body["SourceAddr"] = bytes_json(addr.as_slice());
        body["SourceNode"] = node.as_str().into();
        body["SourcePort"] = (*port).into();
    }
    body
}

fn message_json(message: &Message) -> Value {
    let (kind, body) = match message {
        Message::Ping(ping) => {
            let body = json!({ "Node": ping.node.as_str(), "SeqNo": ping.seq_no });
            ("ping", with_source(body, ping.source.as_ref()))
        }
        Message::IndirectPing(ping) => {
            let body = json!({
                "Nack": ping.nack, "Node": ping.node.as_str(), "Port": ping.port, "SeqNo": ping.seq_no,
                "Target": bytes_json(ping.target.as_slice()),
            });
            ("indirectPing", with_source(body, ping.source.as_ref()))
        }
        Message::Ack(ack) => ("ackResp", json!({ "Payload": bytes_json(&ack.payload), "SeqNo": ack.seq_no })),
        Message::Nack(nack) => ("nackResp", json!({ "SeqNo": nack.seq_no })),
        Message::Suspect(suspect) => {
            let (node, from) = (suspect.node.as_str(), suspect.from.as_str());
            ("suspect", json!({ "From": from, "Incarnation": suspect.incarnation, "Node": node }))
        }
        Message::Dead(dead) => {
            let (node, from) = (dead.node.as_str(), dead.from.as_str());
            ("dead", json!({ "From": from, "Incarnation": dead.incarnation, "Node": node }))
        }
        Message::Alive(alive) => {
            let body = json!({
                "Addr": bytes_json(alive.addr.as_slice()), "Incarnation": alive.incarnation,
                "Meta": bytes_json(&alive.meta), "Node": alive.node.as_str(), "Port": alive.port,
                "Vsn": vsn_json(alive.vsn),
            });
            ("alive", body)
        }
        Message::User(payload) => return json!({ "type": "user", "payload_hex": hex::encode(payload) }),
    };
    json!({ "type": kind, "body": body })
}

fn node_json(node: &PushNode) -> Value {
    json!({
        "Addr": bytes_json(node.addr.as_slice()), "Incarnation": node.incarnation, "Meta": bytes_json(&node.meta),
        "Name": node.name.as_str(), "Port": node.port, "State": node.state.map(|state| state as u8),
        "Vsn": vsn_json(node.vsn),
    })
}

fn stream_json(message: &StreamMessage) -> Value {
    match message {
        StreamMessage::Ping(ping) => message_json(&Message::Ping(ping.clone())),
        StreamMessage::Ack(ack) => message_json(&Message::Ack(ack.clone())),
        StreamMessage::User(payload) => message_json(&Message::User(payload.clone())),
        StreamMessage::Error(text) => json!({ "type": "err", "body": { "Error": text } }),
        StreamMessage::PushPull(push_pull) => {
            let header = json!({
                "Join": push_pull.join, "Nodes": push_pull.nodes.len(), "UserStateLen": push_pull.user_state.len(),
            });
            let nodes: Vec<Value> = push_pull.nodes.iter().map(node_json).collect();
            let user_state = hex::encode(&push_pull.user_state);
            json!({ "type": "pushPull", "header": header, "nodes": nodes, "user_state_hex": user_state })
        }
    }
}

#[test]
fn an_address_is_kept_as_it_stood_on_the_wire() {
    let mapped = WireIp::from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1]);
    let short = WireIp::from_slice(&[10, 0, 0, 1]);
    assert_ne!(mapped, short);
    assert_eq!(mapped.and_then(|ip| ip.to_ip()), short.and_then(|ip| ip.to_ip()));
}
