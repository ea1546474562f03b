//! Packets in and out: what a message of a packet does, and what rides along with one that is sent.

use std::net::SocketAddr;
use std::time::Instant;

use bytes::Bytes;

use super::admission::Origin;
use super::{Output, Swim};
use crate::wire::message::Message;
use crate::wire::{
    COMPOUND_HEADER, COMPOUND_PART, WireError, decode_packet, encode_message, encode_packets, packet_overhead,
};

impl Swim {
    pub(super) fn on_packet(&mut self, now: Instant, from: SocketAddr, bytes: &Bytes) {
        self.stats.packets_received += 1;
        let packet = match decode_packet(bytes, &self.config.packet) {
            Ok(packet) => packet,
            Err(error) => {
                if let WireError::WrongLabel { got } = &error {
                    self.count_foreign_label(got);
                    self.heard_label(from, got);
                }
                return self.stats.refuse_packet(error.reason());
            }
        };
        self.heard_label(from, &packet.label);
        for refused in &packet.refused {
            self.stats.refuse_message(refused.reason());
        }
        for message in packet.messages {
            match message {
                Message::Ping(ping) => self.on_ping(from, &ping),
                Message::IndirectPing(ping) => self.on_indirect_ping(now, from, &ping),
                Message::Ack(ack) => self.on_ack(now, &ack),
                Message::Nack(nack) => self.on_nack(nack),
                Message::Alive(alive) => self.alive(now, alive, Origin::Packet(from)),
                Message::Suspect(suspect) => self.suspect(now, suspect),
                Message::Dead(dead) => self.dead(now, dead),
                Message::User(bytes) => self.on_user_message(bytes),
            }
        }
    }

    pub(super) fn on_user_message(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.outputs.push_back(Output::UserMessage { bytes });
        }
    }

    /// What a single message may take, so that its packet keeps within the budget.
    pub(super) fn message_budget(&self) -> usize {
        self.config.packet_budget.saturating_sub(packet_overhead(&self.config.packet))
    }

    /// Sends encoded messages as they are.
    pub(super) fn send_parts(&mut self, to: SocketAddr, parts: &[Bytes], crc: bool) {
        for bytes in encode_packets(parts, &self.config.packet, crc, &mut self.nonces) {
            self.stats.packets_sent += 1;
            self.outputs.push_back(Output::SendPacket { to, bytes });
        }
    }

    /// Sends a message together with as many queued broadcasts as fit. One without any carries no checksum, as with
    /// memberlist: there is nothing in a ping or an ack that would be believed for long.
    pub(super) fn send_with_news(&mut self, to: SocketAddr, message: &Message, crc: bool) {
        let first = encode_message(message);
        let room = self.message_budget().saturating_sub(COMPOUND_HEADER + COMPOUND_PART + first.len());
        let limit = self.retransmit_limit();
        let mut parts = vec![first];
        parts.extend(self.broadcasts.fetch(room, limit));
        self.send_parts(to, &parts, crc && parts.len() > 1);
    }
}
