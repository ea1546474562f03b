//! What waits to be told to everyone, and what goes into the next packet.
//!
//! A broadcast is sent a limited number of times, by each node that hears of it ([`retransmit_limit`]); what it misses
//! is left to push/pull. The queue hands out the least often sent first, among those the largest that fits, among
//! those the newest.
//!
//! There are three queues. News about members come first in a packet, but never so that the application starves: while
//! both wait, packets alternate between keeping a third for the application and letting it go first. The
//! application's own changes go before those that are passed on.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;

use super::UserBroadcast;
use crate::wire::message::{Message, NodeName};
use crate::wire::{COMPOUND_PART, encode_message};

/// The most broadcasts of the application that wait in one queue. Above it the one that was sent most is dropped:
/// it has the best chance to be known already.
pub const MAX_USER_QUEUE: usize = 16_384;

/// How often a broadcast is sent by each node that knows it.
///
/// `mult × ⌈log10(members + 1)⌉`, as in memberlist, which is only 4 for up to nine members: there one broadcast in
/// twenty misses a member even without loss. So below ten members it is at least three rounds of gossip.
#[must_use]
pub fn retransmit_limit(mult: u32, members: usize, gossip_nodes: usize) -> u32 {
    let upstream = mult.saturating_mul((members as f64 + 1.0).log10().ceil() as u32);
    if members < 10 {
        upstream.max(u32::try_from(gossip_nodes).unwrap_or(u32::MAX).saturating_mul(3))
    } else {
        upstream
    }
}

/// Something a queue can hold.
pub(super) trait Queued {
    /// Broadcasts of different groups never replace each other.
    type Group: Ord + Clone;

    fn group(&self) -> &Self::Group;
    /// Whether this one makes an older one of the same group superfluous.
    fn replaces(&self, older: &Self) -> bool;
    /// The encoded message.
    fn message(&self) -> &Bytes;
}

/// News about a member. There is at most one for each: the latest.
#[derive(Debug)]
pub(super) struct MemberNews {
    name: NodeName,
    message: Bytes,
}

impl Queued for MemberNews {
    type Group = NodeName;

    fn group(&self) -> &NodeName {
        &self.name
    }

    fn replaces(&self, _older: &Self) -> bool {
        true
    }

    fn message(&self) -> &Bytes {
        &self.message
    }
}

/// A broadcast of the application, encoded.
#[derive(Debug)]
pub(super) struct UserNews {
    key: Arc<str>,
    content: Vec<String>,
    version: u64,
    message: Bytes,
}

impl Queued for UserNews {
    type Group = Arc<str>;

    fn group(&self) -> &Arc<str> {
        &self.key
    }

    fn replaces(&self, older: &Self) -> bool {
        self.version >= older.version && older.content.iter().all(|part| self.content.contains(part))
    }

    fn message(&self) -> &Bytes {
        &self.message
    }
}

/// The order in which broadcasts are taken: transmits, then larger, then newer.
type Rank = (u32, Reverse<usize>, Reverse<u64>);

/// A transmit-limited queue.
#[derive(Debug)]
pub(super) struct TransmitQueue<T: Queued> {
    items: BTreeMap<Rank, T>,
    /// Hardly ever more than one of a group: of members there is one at most.
    groups: BTreeMap<T::Group, SmallVec<[Rank; 1]>>,
    next_id: u64,
    /// Sum of the lengths of all messages, in bytes.
    waiting: usize,
}

impl<T: Queued> TransmitQueue<T> {
    fn new() -> Self {
        Self { items: BTreeMap::new(), groups: BTreeMap::new(), next_id: 0, waiting: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    pub(super) fn has_group(&self, group: &T::Group) -> bool {
        self.groups.contains_key(group)
    }

    fn push(&mut self, item: T) {
        let replaced: SmallVec<[Rank; 1]> = self
            .groups
            .get(item.group())
            .into_iter()
            .flatten()
            .filter(|rank| self.items.get(rank).is_some_and(|older| item.replaces(older)))
            .copied()
            .collect();
        for rank in replaced {
            self.take(rank);
        }
        let rank = (0, Reverse(item.message().len()), Reverse(self.next_id));
        self.next_id += 1;
        self.put(rank, item);
    }

    /// Drops the most often sent, smallest, oldest one.
    fn drop_last(&mut self) {
        if let Some(rank) = self.items.keys().next_back().copied() {
            self.take(rank);
        }
    }

    /// Takes messages that fit into `budget` bytes, each costing `overhead` more than its length, and counts a
    /// transmission for each.
    fn fetch(&mut self, budget: usize, overhead: usize, limit: u32) -> Vec<Bytes> {
        let mut left = budget;
        let mut taken = Vec::new();
        let mut tier = 0;
        while let Some(room) = left.checked_sub(overhead) {
            match self.next_in_tier(tier, room) {
                Some(rank) => {
                    let Some(item) = self.take(rank) else { break };
                    left = room - item.message().len();
                    taken.push((rank, item));
                }
                None => match self.next_tier(tier) {
                    Some(next) => tier = next,
                    None => break,
                },
            }
        }
        self.return_sent(taken, limit)
    }

    /// Takes up to `count` messages that are longer than `size`, and counts a transmission for each.
    fn fetch_longer_than(&mut self, size: usize, count: usize, limit: u32) -> Vec<Bytes> {
        let mut taken = Vec::new();
        let mut tier = 0;
        while taken.len() < count {
            match self.next_in_tier(tier, usize::MAX).filter(|(_, Reverse(len), _)| *len > size) {
                Some(rank) => {
                    let Some(item) = self.take(rank) else { break };
                    taken.push((rank, item));
                }
                None => match self.next_tier(tier) {
                    Some(next) => tier = next,
                    None => break,
                },
            }
        }
        self.return_sent(taken, limit)
    }

    /// The largest message of up to `room` bytes among those sent `tier` times.
    fn next_in_tier(&self, tier: u32, room: usize) -> Option<Rank> {
        let from = (tier, Reverse(room), Reverse(u64::MAX));
        let to = (tier, Reverse(0), Reverse(0));
        self.items.range(from..=to).next().map(|(rank, _)| *rank)
    }

    fn next_tier(&self, tier: u32) -> Option<u32> {
        let from = (tier.checked_add(1)?, Reverse(usize::MAX), Reverse(u64::MAX));
        self.items.range(from..).next().map(|(rank, _)| rank.0)
    }

    /// Puts taken messages back, unless that was their last time. Only now, so that no message is taken twice.
    fn return_sent(&mut self, taken: Vec<(Rank, T)>, limit: u32) -> Vec<Bytes> {
        let mut messages = Vec::with_capacity(taken.len());
        for ((transmits, len, id), item) in taken {
            messages.push(item.message().clone());
            if transmits + 1 < limit {
                self.put((transmits + 1, len, id), item);
            }
        }
        messages
    }

    fn put(&mut self, rank: Rank, item: T) {
        self.waiting += item.message().len();
        self.groups.entry(item.group().clone()).or_default().push(rank);
        self.items.insert(rank, item);
    }

    fn take(&mut self, rank: Rank) -> Option<T> {
        let item = self.items.remove(&rank)?;
        self.waiting -= item.message().len();
        if let Some(ranks) = self.groups.get_mut(item.group()) {
            ranks.retain(|other| *other != rank);
            if ranks.is_empty() {
                self.groups.remove(item.group());
            }
        }
        Some(item)
    }
}

/// The three queues, and how they share packets.
#[derive(Debug)]
pub(super) struct Broadcasts {
    pub(super) members: TransmitQueue<MemberNews>,
    local: TransmitQueue<UserNews>,
    relayed: TransmitQueue<UserNews>,
    /// Whose turn it is when both kinds wait.
    user_first: bool,
}

impl Broadcasts {
    pub(super) fn new() -> Self {
        Self {
            members: TransmitQueue::new(),
            local: TransmitQueue::new(),
            relayed: TransmitQueue::new(),
            user_first: false,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.members.len() + self.local.len() + self.relayed.len()
    }

    /// How many of the node's own user messages wait.
    pub(super) fn own_len(&self) -> usize {
        self.local.len()
    }

    pub(super) fn push_member(&mut self, name: NodeName, message: Bytes) {
        self.members.push(MemberNews { name, message });
    }

    /// Queues a broadcast of the application. False if that pushed another one out of the full queue.
    pub(super) fn push_user(&mut self, broadcast: UserBroadcast) -> bool {
        let UserBroadcast { key, content, version, local, payload } = broadcast;
        let message = encode_message(&Message::User(payload));
        let queue = if local { &mut self.local } else { &mut self.relayed };
        queue.push(UserNews { key, content, version, message });
        let fits = queue.len() <= MAX_USER_QUEUE;
        if !fits {
            queue.drop_last();
        }
        fits
    }

    /// Fills `budget` bytes of a compound.
    pub(super) fn fetch(&mut self, budget: usize, limit: u32) -> Vec<Bytes> {
        let user_waits = self.local.waiting + self.relayed.waiting;
        if user_waits == 0 || self.members.len() == 0 {
            let mut parts = self.members.fetch(budget, COMPOUND_PART, limit);
            if parts.is_empty() {
                parts = self.fetch_user(budget, limit);
            }
            return parts;
        }
        self.user_first = !self.user_first;
        if self.user_first {
            // Now even a message that needs the whole packet gets it.
            let mut parts = self.fetch_user(budget, limit);
            parts.extend(self.members.fetch(budget.saturating_sub(size(&parts)), COMPOUND_PART, limit));
            return parts;
        }
        let reserved = (budget / 3).min(user_waits + COMPOUND_PART * (self.local.len() + self.relayed.len()));
        let mut parts = self.members.fetch(budget - reserved, COMPOUND_PART, limit);
        parts.extend(self.fetch_user(budget - size(&parts), limit));
        parts
    }

    fn fetch_user(&mut self, budget: usize, limit: u32) -> Vec<Bytes> {
        let mut parts = self.local.fetch(budget, COMPOUND_PART, limit);
        parts.extend(self.relayed.fetch(budget.saturating_sub(size(&parts)), COMPOUND_PART, limit));
        parts
    }

    /// Takes up to `count` broadcasts of the application whose message is longer than `size`: no packet takes them.
    pub(super) fn fetch_oversized(&mut self, size: usize, count: usize, limit: u32) -> Vec<Bytes> {
        let mut messages = self.local.fetch_longer_than(size, count, limit);
        let rest = count - messages.len();
        messages.extend(self.relayed.fetch_longer_than(size, rest, limit));
        messages
    }
}

/// What these parts take in a compound.
fn size(parts: &[Bytes]) -> usize {
    parts.iter().map(|part| part.len() + COMPOUND_PART).sum()
}
