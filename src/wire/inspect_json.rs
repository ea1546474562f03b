//! An [`Inspection`] as JSON: fields by their names on the wire, bytes as hex.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::grafana::Connection;
use super::inspect::{Inspected, Inspection, Layer, Part, Stop};
use super::message::{Message, PushNode, PushPull, Source, StreamMessage, Vsn, WireIp};

impl Inspection {
    /// As one JSON object: `{"ok", "layers": [{"layer", …}], "messages": [{"type", …}], "error": {"layer", "offset", "reason"}}`.
    ///
    /// The fields of a message have their names on the wire (`Node`, `Addr`, …) and byte strings are hex. Names in lower
    /// case are not on the wire: `type`; `address`, which is `Addr` and `Port` to read; the `nodes` and the `user_state`
    /// of a push/pull; the `payload` of a user message.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "ok": self.is_ok(),
            "layers": self.layers.iter().map(layer).collect::<Vec<_>>(),
            "messages": self.messages.iter().map(inspected).collect::<Vec<_>>(),
            "error": self.error.as_ref().map(stop),
        })
    }
}

fn stop(stop: &Stop) -> Value {
    json!({ "layer": stop.stage.name(), "offset": stop.offset, "reason": stop.reason })
}

fn layer(layer: &Layer) -> Value {
    match layer {
        Layer::Grafana { connection, from, len } => {
            let carries = match connection {
                Connection::Packet => "packet",
                Connection::Stream => "stream",
            };
            json!({ "layer": "grafana", "carries": carries, "from": from, "bytes": len })
        }
        Layer::Label(label) => {
            let text = label.as_bytes().escape_ascii().to_string();
            json!({ "layer": "label", "label": text, "hex": hex(label.as_bytes()) })
        }
        Layer::Encryption { version, key, len, plain } => {
            json!({ "layer": "encryption", "version": version, "key": key, "bytes": len, "plain_bytes": plain })
        }
        Layer::Crc { value } => json!({ "layer": "crc", "crc32": format!("{value:08x}") }),
        Layer::Compression { algorithm, len, plain } => {
            let algorithm = if *algorithm == 0 { "lzw" } else { "snappy" };
            json!({ "layer": "compression", "algorithm": algorithm, "bytes": len, "plain_bytes": plain })
        }
        Layer::Compound { parts, lost } => {
            let parts: Vec<Value> = parts.iter().map(part).collect();
            json!({ "layer": "compound", "parts": parts, "lost": lost })
        }
    }
}

fn part(part: &Part) -> Value {
    let mut json = json!({ "offset": part.offset, "bytes": part.len });
    if let Some(error) = &part.refused {
        json["refused"] = error.to_string().into();
    }
    json
}

fn inspected(message: &Inspected) -> Value {
    match message {
        Inspected::Packet(message) => packet_message(message),
        Inspected::Stream(message) => stream_message(message),
    }
}

fn packet_message(message: &Message) -> Value {
    match message {
        Message::Ping(ping) => {
            let json = json!({ "type": "ping", "Node": ping.node.as_str(), "SeqNo": ping.seq_no });
            with_source(json, ping.source.as_ref())
        }
        Message::IndirectPing(ping) => {
            let json = json!({
                "type": "indirect_ping", "Nack": ping.nack, "Node": ping.node.as_str(), "Port": ping.port,
                "SeqNo": ping.seq_no, "Target": hex(ping.target.as_slice()), "address": address(ping.target, ping.port),
            });
            with_source(json, ping.source.as_ref())
        }
        Message::Ack(ack) => json!({ "type": "ack", "Payload": hex(&ack.payload), "SeqNo": ack.seq_no }),
        Message::Nack(nack) => json!({ "type": "nack", "SeqNo": nack.seq_no }),
        Message::Suspect(suspect) => {
            let (node, from) = (suspect.node.as_str(), suspect.from.as_str());
            json!({ "type": "suspect", "From": from, "Incarnation": suspect.incarnation, "Node": node })
        }
        Message::Dead(dead) => {
            let (node, from) = (dead.node.as_str(), dead.from.as_str());
            json!({ "type": "dead", "From": from, "Incarnation": dead.incarnation, "Node": node })
        }
        Message::Alive(alive) => json!({
            "type": "alive", "Addr": hex(alive.addr.as_slice()), "Incarnation": alive.incarnation,
            "Meta": hex(&alive.meta), "Node": alive.node.as_str(), "Port": alive.port, "Vsn": vsn(alive.vsn),
            "address": address(alive.addr, alive.port),
        }),
        Message::User(payload) => json!({ "type": "user", "payload": hex(payload) }),
    }
}

fn stream_message(message: &StreamMessage) -> Value {
    match message {
        StreamMessage::Ping(ping) => packet_message(&Message::Ping(ping.clone())),
        StreamMessage::Ack(ack) => packet_message(&Message::Ack(ack.clone())),
        StreamMessage::User(payload) => {
            json!({ "type": "user", "UserMsgLen": payload.len(), "payload": hex(payload) })
        }
        StreamMessage::Error(text) => json!({ "type": "error", "Error": text }),
        StreamMessage::PushPull(PushPull { join, label, nodes, user_state }) => {
            let mut json = json!({
                "type": "push_pull", "Join": join, "Nodes": nodes.len(), "UserStateLen": user_state.len(),
                "nodes": nodes.iter().map(push_node).collect::<Vec<_>>(), "user_state": hex(user_state),
            });
            if let Some(label) = label {
                json["Label"] = json!(hex(label.as_bytes()));
            }
            json
        }
    }
}

fn push_node(node: &PushNode) -> Value {
    json!({
        "Addr": hex(node.addr.as_slice()), "Incarnation": node.incarnation, "Meta": hex(&node.meta),
        "Name": node.name.as_str(), "Port": node.port, "State": node.state.map(|state| state as u8),
        "Vsn": vsn(node.vsn), "address": address(node.addr, node.port),
    })
}

fn with_source(mut json: Value, source: Option<&Source>) -> Value {
    if let (Some(source), Value::Object(fields)) = (source, &mut json) {
        let source_fields: Map<String, Value> = [
            ("SourceAddr".to_owned(), hex(source.addr.as_slice()).into()),
            ("SourceNode".to_owned(), source.node.as_str().into()),
            ("SourcePort".to_owned(), source.port.into()),
        ]
        .into_iter()
        .collect();
        fields.extend(source_fields);
    }
    json
}

fn address(ip: WireIp, port: u16) -> Option<String> {
    ip.to_ip().map(|ip| std::net::SocketAddr::new(ip, port).to_string())
}

fn vsn(vsn: Option<Vsn>) -> String {
    hex(vsn.as_ref().map_or(&[], |vsn| vsn.as_slice()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut hex, byte| {
        // Writing to a string cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}
