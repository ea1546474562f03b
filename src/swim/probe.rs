//! Finding out who is dead: one member is probed in each interval, and each in turn.
//!
//! A probe is a ping; if no ack comes in time, other members are asked to ping the target, and a stream is tried. Only
//! when all of that fails is the target suspected. A helper that cannot reach the target says so (a nack), and says it
//! at four fifths of the probe timeout, so that the answer is in before the probe ends: silence of a helper means that
//! we ourselves are slow or cut off, and lowers our local health instead of blaming the target twice.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use super::timers::{Timer, TimerId};
use super::{ExchangeId, Output, Swim};
use crate::wire::message::{
    Ack, IndirectPing, MemberState, Message, Nack, NodeName, Ping, Source, StreamMessage, Suspect, WireIp,
};
use crate::wire::{encode_message, encode_request};

/// The most pings relayed for others at a time; more are ignored and counted.
pub(super) const MAX_RELAYS: usize = 1024;

/// Where the probing stands.
#[derive(Debug, Default)]
pub(super) struct Probing {
    /// The next place in the table.
    cursor: usize,
    current: Option<Probe>,
    /// An interval passed while a (stretched) probe was running: start the next one right after it.
    overdue: bool,
    relays: BTreeMap<u32, Relay>,
}

/// The probe in progress.
#[derive(Debug)]
struct Probe {
    seq_no: u32,
    target: NodeName,
    incarnation: u32,
    deadline: Instant,
    timers: [TimerId; 2],
    nacks_expected: u32,
    nacks: u32,
    stream: Option<ExchangeId>,
    stream_answered: bool,
}

/// A ping for somebody else.
#[derive(Debug)]
struct Relay {
    requester: SocketAddr,
    seq_no: u32,
}

impl Swim {
    pub(super) fn next_seq_no(&mut self) -> u32 {
        self.seq_no = self.seq_no.wrapping_add(1);
        self.seq_no
    }

    pub(super) fn source(&self) -> Option<Source> {
        let addr = self.local.addr;
        Some(Source { addr: WireIp::from(addr.ip()), port: addr.port(), node: self.local.name.clone() })
    }

    pub(super) fn probe_due(&mut self, now: Instant) {
        if self.probing.current.is_some() {
            self.probing.overdue = true;
        } else {
            self.probe_next(now);
        }
    }

    /// Probes the next member in the table's order. Walks the table once at most.
    fn probe_next(&mut self, now: Instant) {
        self.probing.overdue = false;
        for _ in 0..=self.table.len() {
            let Some(member) = self.table.at(self.probing.cursor) else {
                self.probing.cursor = 0;
                self.reap(now);
                continue;
            };
            self.probing.cursor += 1;
            if member.name != self.local.name && member.is_live() {
                let name = member.name.clone();
                return self.probe(now, &name);
            }
        }
    }

    fn reap(&mut self, now: Instant) {
        let gone = self.table.reap(&self.local.name, self.config.gossip_to_dead_time, now, &mut self.rng);
        for member in &gone {
            self.told.remove(&member.name);
        }
        self.changes += u64::from(!gone.is_empty());
    }

    fn probe(&mut self, now: Instant, name: &NodeName) {
        let Some(target) = self.table.get(name).cloned() else { return };
        let Some(to) = target.socket_addr() else { return };
        let score = self.awareness.score();
        self.stats.probes_started += 1;
        self.stats.probes_degraded += u64::from(score > 0);

        let seq_no = self.next_seq_no();
        let deadline = now + self.config.probe_interval * (score + 1);
        let timeout = (now + self.config.probe_timeout).min(deadline);
        let timers = [
            self.timers.schedule(timeout, Timer::ProbeTimeout(seq_no)),
            self.timers.schedule(deadline, Timer::ProbeEnd(seq_no)),
        ];
        self.probing.current = Some(Probe {
            seq_no,
            target: target.name.clone(),
            incarnation: target.incarnation,
            deadline,
            timers,
            nacks_expected: 0,
            nacks: 0,
            stream: None,
            stream_answered: false,
        });

        let ping = Message::Ping(Ping { seq_no, node: target.name.clone(), source: self.source() });
        if target.state == MemberState::Suspect {
            // Tell the suspect, so that it can refute at once (Lifeguard's buddy system).
            let suspect =
                Suspect { incarnation: target.incarnation, node: target.name.clone(), from: self.local.name.clone() };
            let parts = [encode_message(&ping), encode_message(&Message::Suspect(suspect))];
            self.send_parts(to, &parts, target.speaks(5));
        } else {
            self.send_with_news(to, &ping, target.speaks(5));
        }
    }

    /// The direct ping had its time: ask others, and try a stream.
    pub(super) fn probe_timeout_due(&mut self, now: Instant, seq_no: u32) {
        let Some(probe) = self.probing.current.as_ref().filter(|probe| probe.seq_no == seq_no) else { return };
        let deadline = probe.deadline;
        let Some(target) = self.table.get(&probe.target).cloned() else { return };

        let helpers = self.table.random(self.config.indirect_checks, &mut self.rng, |m| {
            m.state == MemberState::Alive && m.name != self.local.name && m.name != target.name
        });
        let mut nacks_expected = 0;
        for helper in helpers {
            let Some(to) = helper.socket_addr() else { continue };
            let nack = helper.speaks(4);
            nacks_expected += u32::from(nack);
            let request = Message::IndirectPing(IndirectPing {
                seq_no,
                target: target.addr,
                port: target.port,
                node: target.name.clone(),
                nack,
                source: self.source(),
            });
            self.send_with_news(to, &request, helper.speaks(5));
        }

        let timeout = deadline.saturating_duration_since(now);
        let mut stream = None;
        if !self.config.disable_tcp_pings
            && target.speaks(3)
            && !timeout.is_zero()
            && let Some(to) = target.socket_addr()
        {
            let exchange = self.next_exchange();
            stream = Some(exchange);
            let ping = StreamMessage::Ping(Ping { seq_no, node: target.name.clone(), source: self.source() });
            let bytes = encode_request(&ping, &self.config.packet, &mut self.nonces);
            self.outputs.push_back(Output::OpenStream { exchange, to, bytes, expect_reply: true, timeout });
        }
        if let Some(probe) = &mut self.probing.current {
            probe.nacks_expected = nacks_expected;
            probe.stream = stream;
        }
    }

    /// The reply to a stream that the current probe opened. False when it belongs to something else.
    pub(super) fn probe_stream_reply(&mut self, exchange: ExchangeId, reply: Option<&StreamMessage>) -> bool {
        let Some(probe) = self.probing.current.as_mut().filter(|probe| probe.stream == Some(exchange)) else {
            return false;
        };
        // Packets are what membership needs, so an ack by packet may still come: the verdict waits for the end.
        probe.stream_answered = matches!(reply, Some(StreamMessage::Ack(ack)) if ack.seq_no == probe.seq_no);
        true
    }

    pub(super) fn probe_end_due(&mut self, now: Instant, seq_no: u32) {
        let Some(probe) = self.probing.current.take_if(|probe| probe.seq_no == seq_no) else { return };
        if probe.stream_answered {
            self.stats.probes_saved_by_stream += 1;
            self.awareness.improve();
        } else {
            self.stats.probes_failed += 1;
            if probe.nacks_expected > 0 {
                self.awareness.worsen(probe.nacks_expected.saturating_sub(probe.nacks));
            } else {
                self.awareness.worsen(1);
            }
            let from = self.local.name.clone();
            self.suspect(now, Suspect { incarnation: probe.incarnation, node: probe.target, from });
        }
        self.probe_ended(now);
    }

    fn probe_ended(&mut self, now: Instant) {
        if self.probing.overdue {
            self.probe_next(now);
        }
    }

    pub(super) fn on_ack(&mut self, now: Instant, ack: &Ack) {
        if let Some(probe) = self.probing.current.take_if(|probe| probe.seq_no == ack.seq_no) {
            for timer in probe.timers {
                self.timers.cancel(timer);
            }
            self.awareness.improve();
            self.probe_ended(now);
        } else if let Some(relay) = self.probing.relays.remove(&ack.seq_no) {
            let ack = Message::Ack(Ack { seq_no: relay.seq_no, payload: bytes::Bytes::new() });
            self.send_parts(relay.requester, &[encode_message(&ack)], false);
        } else {
            self.label_check_ack(now, ack.seq_no);
        }
    }

    pub(super) fn on_nack(&mut self, nack: Nack) {
        if let Some(probe) = self.probing.current.as_mut().filter(|probe| probe.seq_no == nack.seq_no) {
            probe.nacks += 1;
        }
    }

    pub(super) fn on_ping(&mut self, from: SocketAddr, ping: &Ping) {
        if !ping.node.is_empty() && ping.node != self.local.name {
            return self.stats.refuse_message("ping_for_another");
        }
        // Nobody sends that, but one in some hundred packets that are encrypted with a key that we lack looks like it.
        if ping.node.is_empty() && ping.source.is_none() && ping.seq_no == 0 {
            return self.stats.refuse_message("ping_says_nothing");
        }
        let to = self.reply_address(from, ping.source.as_ref());
        let ack = Message::Ack(Ack { seq_no: ping.seq_no, payload: bytes::Bytes::new() });
        // News only for members: a forged ping must not use up their transmissions.
        let member = ping.source.as_ref().and_then(|source| self.table.get(&source.node));
        match member.filter(|member| member.socket_addr() == Some(to)).map(|member| member.speaks(5)) {
            Some(crc) => self.send_with_news(to, &ack, crc),
            None => self.send_parts(to, &[encode_message(&ack)], false),
        }
    }

    /// Where the answer to a ping goes: to the address that it names, if that is one of its sender's, or that of the
    /// member whose name it gives; otherwise to the sender. So nobody can make us send to a third party.
    fn reply_address(&self, from: SocketAddr, source: Option<&Source>) -> SocketAddr {
        let Some((source, named)) = source.and_then(|source| Some((source, source.socket_addr()?))) else {
            return from;
        };
        let of_sender = named.ip().to_canonical() == from.ip().to_canonical();
        let of_member = || self.table.get(&source.node).and_then(|member| member.socket_addr()) == Some(named);
        if of_sender || of_member() { named } else { from }
    }

    pub(super) fn on_indirect_ping(&mut self, now: Instant, from: SocketAddr, request: &IndirectPing) {
        let Some(ip) = request.target.to_ip() else {
            return self.stats.refuse_message("indirect_ping_without_target");
        };
        let port = if request.port == 0 { self.local.addr.port() } else { request.port };
        let target = SocketAddr::new(ip, port);
        let requester = self.reply_address(from, request.source.as_ref());
        if self.table.get(&request.node).and_then(|member| member.socket_addr()) != Some(target) {
            self.stats.refuse_message("indirect_ping_to_stranger");
            // Said at once: to a member that asked, silence would mean that we ourselves are slow.
            if request.nack {
                self.send_parts(requester, &[encode_message(&Message::Nack(Nack { seq_no: request.seq_no }))], false);
            }
            return;
        }
        if self.probing.relays.len() >= MAX_RELAYS {
            return self.stats.refuse_message("too_many_relayed_pings");
        }
        let seq_no = self.next_seq_no();
        self.probing.relays.insert(seq_no, Relay { requester, seq_no: request.seq_no });
        if request.nack {
            self.timers.schedule(now + self.config.probe_timeout * 4 / 5, Timer::RelayNack(seq_no));
        }
        self.timers.schedule(now + self.config.probe_timeout, Timer::RelayEnd(seq_no));
        let ping = Message::Ping(Ping { seq_no, node: request.node.clone(), source: self.source() });
        self.send_parts(target, &[encode_message(&ping)], false);
    }

    pub(super) fn relay_nack_due(&mut self, seq_no: u32) {
        // The relay stays: an ack that is late but in time is still passed on.
        if let Some(relay) = self.probing.relays.get(&seq_no) {
            let nack = encode_message(&Message::Nack(Nack { seq_no: relay.seq_no }));
            self.send_parts(relay.requester, &[nack], false);
        }
    }

    pub(super) fn relay_end_due(&mut self, seq_no: u32) {
        self.probing.relays.remove(&seq_no);
    }
}
