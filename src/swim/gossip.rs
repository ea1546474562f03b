//! Telling: each round, a few random members get whatever is queued.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::timers::Timer;
use super::{Output, Swim, UserBroadcast};
use crate::wire::message::{MemberState, Message, NodeName, StreamMessage};
use crate::wire::{COMPOUND_HEADER, COMPOUND_PART, encode_message, encode_request};

/// How many broadcasts that fit no packet are streamed to one member in one round: each costs a connection.
const STREAMED_PER_TARGET: usize = 2;

/// Where the periodic gossip stands. An idle node does not wake for it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum GossipTick {
    /// Never: its interval is zero.
    #[default]
    Never,
    /// The next round has its timer.
    Scheduled,
    /// Nothing waits to be told.
    Asleep {
        /// When the last round was due; the next one is a multiple of the interval later.
        last: Instant,
    },
}

impl Swim {
    /// Schedules the next round if there is something to tell.
    pub(super) fn wake_gossip(&mut self, now: Instant) {
        let GossipTick::Asleep { last } = self.gossip_tick else { return };
        if self.broadcasts.len() == 0 {
            return;
        }
        let interval = self.config.gossip_interval.as_nanos().max(1);
        let missed = now.saturating_duration_since(last).as_nanos() % interval;
        let wait = Duration::from_nanos(u64::try_from(interval - missed).unwrap_or(u64::MAX));
        self.timers.schedule(now + wait, Timer::Gossip);
        self.gossip_tick = GossipTick::Scheduled;
    }

    /// One round. Those who died not long ago get it too: they may live, and refute.
    pub(super) fn gossip(&mut self, now: Instant) {
        if self.broadcasts.len() == 0 {
            return;
        }
        let window = self.config.gossip_to_dead_time;
        let own = &self.local.name;
        let targets = self.table.random(self.config.gossip_nodes, &mut self.rng, |m| {
            m.name != *own
                && match m.state {
                    MemberState::Alive | MemberState::Suspect => true,
                    MemberState::Dead => now.saturating_duration_since(m.since) <= window,
                    MemberState::Left => false,
                }
        });
        let room = self.message_budget().saturating_sub(COMPOUND_HEADER);
        let limit = self.retransmit_limit();
        for target in targets {
            let Some(to) = target.socket_addr() else { continue };
            for message in
                self.broadcasts.fetch_oversized(room.saturating_sub(COMPOUND_PART), STREAMED_PER_TARGET, limit)
            {
                self.stats.broadcasts_streamed += 1;
                // The queue holds packet messages, whose type byte a stream writes for itself.
                self.stream_user(to, message.slice(1..));
            }
            let parts = self.broadcasts.fetch(room, limit);
            self.send_parts(to, &parts, target.speaks(5));
        }
    }

    pub(super) fn on_broadcast(&mut self, broadcast: UserBroadcast) {
        if !self.broadcasts.push_user(broadcast) {
            self.stats.broadcasts_dropped += 1;
        }
    }

    /// Queues news about a member, for everyone.
    pub(super) fn broadcast_member(&mut self, name: NodeName, message: &Message) {
        let message = encode_message(message);
        if message.len() + COMPOUND_PART + COMPOUND_HEADER > self.message_budget() {
            // Push/pull carries it.
            self.stats.broadcasts_dropped += 1;
            return;
        }
        self.broadcasts.push_member(name, message);
    }

    pub(super) fn on_send_user(&mut self, to: &NodeName, bytes: Bytes) {
        let Some(member) = self.table.get(to) else {
            return self.stats.refuse_message("send_to_unknown_member");
        };
        let crc = member.speaks(5);
        let Some(to) = member.socket_addr() else { return };
        let message = encode_message(&Message::User(bytes.clone()));
        if message.len() <= self.message_budget() {
            self.send_parts(to, &[message], crc);
        } else {
            self.stream_user(to, bytes);
        }
    }

    fn stream_user(&mut self, to: std::net::SocketAddr, bytes: Bytes) {
        let exchange = self.next_exchange();
        let bytes = encode_request(&StreamMessage::User(bytes), &self.config.packet, &mut self.nonces);
        let timeout = self.config.stream_timeout;
        self.outputs.push_back(Output::OpenStream { exchange, to, bytes, expect_reply: false, timeout });
    }
}
