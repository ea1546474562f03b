//! The msgpack body of each message, one encoder and one decoder a message.
//!
//! Decoders list the fields in the order in which Go declares them (a peer may send a struct as an array); encoders
//! write them in ASCII order of their names, because Go sorts keys. Byte strings are copied: a member's meta is kept for
//! as long as the member, and must not keep the packet or stream that it came with.

use bytes::Bytes;

use super::budget::Budget;
use super::error::WireError;
use super::kind;
use super::label::{Label, MAX_LABEL};
use super::message::{
    Ack, Alive, Dead, IndirectPing, MemberState, Nack, NodeName, Ping, PushNode, Source, Suspect, Vsn, WireIp,
};
use super::msgpack::{Reader, Writer};

/// The longest meta of a member, in bytes.
pub const MAX_META: usize = 512;
/// The longest payload of an ack, and the longest error text, in bytes.
pub(super) const MAX_TEXT: usize = 64 << 10;
/// Versions are six bytes; more are cut off, and this is where a decoder stops to listen.
const MAX_VSN: usize = 255;

/// The names in a suspicion or an obituary.
const ACCUSATION: [&str; 3] = ["Incarnation", "Node", "From"];

fn nobody() -> NodeName {
    NodeName::from("")
}

/// `Source*` of a ping: three fields, each left out when it is zero.
#[derive(Default)]
struct SourceFields {
    addr: WireIp,
    port: u16,
    node: Option<NodeName>,
}

impl SourceFields {
    fn into_source(self) -> Option<Source> {
        let nameless = self.node.as_ref().is_none_or(NodeName::is_empty);
        let absent = self.addr.is_none() && self.port == 0 && nameless;
        (!absent).then(|| Source { addr: self.addr, port: self.port, node: self.node.unwrap_or_else(nobody) })
    }

    fn read(&mut self, reader: &mut Reader<'_, '_>, field: &str) -> Result<(), WireError> {
        match field {
            "SourceAddr" => self.addr = reader.address()?,
            "SourcePort" => self.port = reader.uint16()?,
            "SourceNode" => self.node = Some(reader.speaker()?),
            _ => reader.skip()?,
        }
        Ok(())
    }

    fn count(source: Option<&Source>) -> u8 {
        source.map_or(0, |source| {
            u8::from(!source.addr.is_none()) + u8::from(source.port != 0) + u8::from(!source.node.is_empty())
        })
    }

    fn write(writer: &mut Writer, source: Option<&Source>) {
        let Some(source) = source else { return };
        if !source.addr.is_none() {
            writer.key("SourceAddr").bytes(source.addr.as_slice());
        }
        if !source.node.is_empty() {
            writer.key("SourceNode").text(source.node.as_str());
        }
        if source.port != 0 {
            writer.key("SourcePort").uint(source.port.into());
        }
    }
}

pub(super) fn read_ping(bytes: &[u8], budget: &mut Budget) -> Result<Ping, WireError> {
    const FIELDS: [&str; 5] = ["SeqNo", "Node", "SourceAddr", "SourcePort", "SourceNode"];
    let (mut seq_no, mut node, mut source) = (0, None, SourceFields::default());
    Reader::new(bytes, budget, "ping").structure(&FIELDS, |reader, field| {
        match field {
            "SeqNo" => seq_no = reader.uint32()?,
            "Node" => node = Some(reader.name()?),
            _ => source.read(reader, field)?,
        }
        Ok(())
    })?;
    Ok(Ping { seq_no, node: node.unwrap_or_else(nobody), source: source.into_source() })
}

pub(super) fn write_ping(ping: &Ping) -> Vec<u8> {
    let source = ping.source.as_ref();
    let mut writer = Writer::new(kind::PING);
    writer.structure(2 + SourceFields::count(source));
    writer.key("Node").text(ping.node.as_str());
    writer.key("SeqNo").uint(ping.seq_no);
    SourceFields::write(&mut writer, source);
    writer.into_bytes()
}

pub(super) fn read_indirect_ping(bytes: &[u8], budget: &mut Budget) -> Result<IndirectPing, WireError> {
    const FIELDS: [&str; 8] = ["SeqNo", "Target", "Port", "Node", "Nack", "SourceAddr", "SourcePort", "SourceNode"];
    let (mut seq_no, mut target, mut port, mut node, mut nack) = (0, WireIp::NONE, 0, None, false);
    let mut source = SourceFields::default();
    Reader::new(bytes, budget, "indirect ping").structure(&FIELDS, |reader, field| {
        match field {
            "SeqNo" => seq_no = reader.uint32()?,
            "Target" => target = reader.address()?,
            "Port" => port = reader.uint16()?,
            "Node" => node = Some(reader.name()?),
            "Nack" => nack = reader.boolean()?,
            _ => source.read(reader, field)?,
        }
        Ok(())
    })?;
    Ok(IndirectPing { seq_no, target, port, node: node.unwrap_or_else(nobody), nack, source: source.into_source() })
}

pub(super) fn write_indirect_ping(ping: &IndirectPing) -> Vec<u8> {
    let source = ping.source.as_ref();
    let mut writer = Writer::new(kind::INDIRECT_PING);
    writer.structure(5 + SourceFields::count(source));
    writer.key("Nack").boolean(ping.nack);
    writer.key("Node").text(ping.node.as_str());
    writer.key("Port").uint(ping.port.into());
    writer.key("SeqNo").uint(ping.seq_no);
    SourceFields::write(&mut writer, source);
    writer.key("Target").bytes(ping.target.as_slice());
    writer.into_bytes()
}

pub(super) fn read_ack(bytes: &[u8], budget: &mut Budget) -> Result<Ack, WireError> {
    let (mut seq_no, mut payload) = (0, Vec::new());
    Reader::new(bytes, budget, "ack").structure(&["SeqNo", "Payload"], |reader, field| {
        match field {
            "SeqNo" => seq_no = reader.uint32()?,
            _ => payload = reader.bytes(MAX_TEXT)?,
        }
        Ok(())
    })?;
    Ok(Ack { seq_no, payload: payload.into() })
}

pub(super) fn write_ack(ack: &Ack) -> Vec<u8> {
    let mut writer = Writer::new(kind::ACK);
    writer.structure(2);
    writer.key("Payload").bytes(&ack.payload);
    writer.key("SeqNo").uint(ack.seq_no);
    writer.into_bytes()
}

pub(super) fn read_nack(bytes: &[u8], budget: &mut Budget) -> Result<Nack, WireError> {
    let mut seq_no = 0;
    Reader::new(bytes, budget, "nack").structure(&["SeqNo"], |reader, _| {
        seq_no = reader.uint32()?;
        Ok(())
    })?;
    Ok(Nack { seq_no })
}

pub(super) fn write_nack(nack: &Nack) -> Vec<u8> {
    let mut writer = Writer::new(kind::NACK);
    writer.structure(1);
    writer.key("SeqNo").uint(nack.seq_no);
    writer.into_bytes()
}

/// What a suspect and a dead message have in common, which is everything but the type: incarnation, node, from.
fn read_accusation(
    bytes: &[u8],
    budget: &mut Budget,
    what: &'static str,
) -> Result<(u32, NodeName, NodeName), WireError> {
    let (mut incarnation, mut node, mut from) = (0, None, None);
    Reader::new(bytes, budget, what).structure(&ACCUSATION, |reader, field| {
        match field {
            "Incarnation" => incarnation = reader.uint32()?,
            "Node" => node = Some(reader.name()?),
            _ => from = Some(reader.speaker()?),
        }
        Ok(())
    })?;
    Ok((incarnation, node.unwrap_or_else(nobody), from.unwrap_or_else(nobody)))
}

fn write_accusation(kind: u8, incarnation: u32, node: &NodeName, from: &NodeName) -> Vec<u8> {
    let mut writer = Writer::new(kind);
    writer.structure(3);
    writer.key("From").text(from.as_str());
    writer.key("Incarnation").uint(incarnation);
    writer.key("Node").text(node.as_str());
    writer.into_bytes()
}

pub(super) fn read_suspect(bytes: &[u8], budget: &mut Budget) -> Result<Suspect, WireError> {
    let (incarnation, node, from) = read_accusation(bytes, budget, "suspect")?;
    Ok(Suspect { incarnation, node, from })
}

pub(super) fn write_suspect(suspect: &Suspect) -> Vec<u8> {
    write_accusation(kind::SUSPECT, suspect.incarnation, &suspect.node, &suspect.from)
}

pub(super) fn read_dead(bytes: &[u8], budget: &mut Budget) -> Result<Dead, WireError> {
    let (incarnation, node, from) = read_accusation(bytes, budget, "dead")?;
    Ok(Dead { incarnation, node, from })
}

pub(super) fn write_dead(dead: &Dead) -> Vec<u8> {
    write_accusation(kind::DEAD, dead.incarnation, &dead.node, &dead.from)
}

pub(super) fn read_alive(bytes: &[u8], budget: &mut Budget) -> Result<Alive, WireError> {
    const FIELDS: [&str; 6] = ["Incarnation", "Node", "Addr", "Port", "Meta", "Vsn"];
    let (mut incarnation, mut node, mut addr, mut port) = (0, None, WireIp::NONE, 0);
    let (mut meta, mut vsn) = (Bytes::new(), None);
    Reader::new(bytes, budget, "alive").structure(&FIELDS, |reader, field| {
        match field {
            "Incarnation" => incarnation = reader.uint32()?,
            "Node" => node = Some(reader.name()?),
            "Addr" => addr = reader.address()?,
            "Port" => port = reader.uint16()?,
            "Meta" => meta = reader.bytes(MAX_META)?.into(),
            _ => vsn = read_vsn(reader)?,
        }
        Ok(())
    })?;
    Ok(Alive { incarnation, node: node.unwrap_or_else(nobody), addr, port, meta, vsn })
}

pub(super) fn write_alive(alive: &Alive) -> Vec<u8> {
    let mut writer = Writer::new(kind::ALIVE);
    writer.structure(6);
    writer.key("Addr").bytes(alive.addr.as_slice());
    writer.key("Incarnation").uint(alive.incarnation);
    writer.key("Meta").bytes(&alive.meta);
    writer.key("Node").text(alive.node.as_str());
    writer.key("Port").uint(alive.port.into());
    writer.key("Vsn").bytes(alive.vsn.as_ref().map_or(&[], |vsn| vsn.as_slice()));
    writer.into_bytes()
}

/// Six bytes or more give versions, an empty string none, and whoever acts on the message must not trust it.
fn read_vsn(reader: &mut Reader<'_, '_>) -> Result<Option<Vsn>, WireError> {
    let bytes = reader.byte_string(MAX_VSN)?;
    let vsn = bytes.first_chunk().copied();
    match bytes.len() {
        len @ 1..6 => Err(WireError::TooShort { field: "Vsn", len: len as u64, min: 6 }),
        _ => Ok(vsn),
    }
}

/// What precedes the members in a push/pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PushPullHeader {
    pub(super) join: bool,
    pub(super) label: Option<Label>,
    pub(super) nodes: usize,
    pub(super) user_state_len: usize,
}

pub(super) fn read_push_pull_header(
    bytes: &[u8],
    budget: &mut Budget,
    max_nodes: usize,
    max_state: usize,
) -> Result<PushPullHeader, WireError> {
    const FIELDS: [&str; 4] = ["Nodes", "UserStateLen", "Join", "Label"];
    let mut header = PushPullHeader { join: false, label: None, nodes: 0, user_state_len: 0 };
    Reader::new(bytes, budget, "push/pull").structure(&FIELDS, |reader, field| {
        match field {
            "Nodes" => header.nodes = reader.length(max_nodes)?,
            "UserStateLen" => header.user_state_len = reader.length(max_state)?,
            "Join" => header.join = reader.boolean()?,
            _ => header.label = Some(Label::new(reader.bytes(MAX_LABEL)?)?),
        }
        Ok(())
    })?;
    Ok(header)
}

pub(super) fn write_push_pull_header(writer: &mut Writer, header: &PushPullHeader) {
    writer.structure(3 + u8::from(header.label.is_some()));
    writer.key("Join").boolean(header.join);
    if let Some(label) = &header.label {
        writer.key("Label").bytes(label.as_bytes());
    }
    writer.key("Nodes").int(header.nodes);
    writer.key("UserStateLen").int(header.user_state_len);
}

pub(super) fn read_push_node(bytes: &[u8], budget: &mut Budget) -> Result<PushNode, WireError> {
    const FIELDS: [&str; 7] = ["Name", "Addr", "Port", "Meta", "Incarnation", "State", "Vsn"];
    let (mut name, mut addr, mut port, mut meta) = (None, WireIp::NONE, 0, Bytes::new());
    let (mut incarnation, mut state, mut vsn) = (0, Some(MemberState::Alive), None);
    Reader::new(bytes, budget, "push/pull node").structure(&FIELDS, |reader, field| {
        match field {
            "Name" => name = Some(reader.name()?),
            "Addr" => addr = reader.address()?,
            "Port" => port = reader.uint16()?,
            "Meta" => meta = reader.bytes(MAX_META)?.into(),
            "Incarnation" => incarnation = reader.uint32()?,
            "State" => state = reader.integer()?.and_then(state_of),
            _ => vsn = read_vsn(reader)?,
        }
        Ok(())
    })?;
    Ok(PushNode { name: name.unwrap_or_else(nobody), addr, port, meta, incarnation, state, vsn })
}

pub(super) fn write_push_node(writer: &mut Writer, node: &PushNode) {
    writer.structure(7);
    writer.key("Addr").bytes(node.addr.as_slice());
    writer.key("Incarnation").uint(node.incarnation);
    writer.key("Meta").bytes(&node.meta);
    writer.key("Name").text(node.name.as_str());
    writer.key("Port").uint(node.port.into());
    writer.key("State").int(number_of(node.state));
    writer.key("Vsn").bytes(node.vsn.as_ref().map_or(&[], |vsn| vsn.as_slice()));
}

fn state_of(number: u64) -> Option<MemberState> {
    match number {
        0 => Some(MemberState::Alive),
        1 => Some(MemberState::Suspect),
        2 => Some(MemberState::Dead),
        3 => Some(MemberState::Left),
        _ => None,
    }
}

fn number_of(state: Option<MemberState>) -> usize {
    match state {
        Some(MemberState::Alive) => 0,
        Some(MemberState::Suspect) => 1,
        Some(MemberState::Dead) => 2,
        Some(MemberState::Left) => 3,
        // The first number without a meaning: every receiver ignores it, as we did.
        None => 4,
    }
}

pub(super) fn read_user_header(bytes: &[u8], budget: &mut Budget, max: usize) -> Result<usize, WireError> {
    let mut len = 0;
    Reader::new(bytes, budget, "user message").structure(&["UserMsgLen"], |reader, _| {
        len = reader.length(max)?;
        Ok(())
    })?;
    Ok(len)
}

pub(super) fn write_user_header(writer: &mut Writer, len: usize) {
    writer.structure(1);
    writer.key("UserMsgLen").int(len);
}

pub(super) fn read_error(bytes: &[u8], budget: &mut Budget) -> Result<String, WireError> {
    let mut text = String::new();
    Reader::new(bytes, budget, "error").structure(&["Error"], |reader, _| {
        text = reader.string(MAX_TEXT)?.to_owned();
        Ok(())
    })?;
    Ok(text)
}

pub(super) fn write_error(text: &str) -> Vec<u8> {
    let mut writer = Writer::new(kind::ERROR);
    writer.structure(1);
    writer.key("Error").text(text);
    writer.into_bytes()
}
