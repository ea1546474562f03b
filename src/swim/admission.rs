//! Who may become a member: the allow-list of networks, the rate of new names, and room in the table.
//!
//! Every member costs memory, probes and gossip, and an announcement is easily forged where gossip is not encrypted. So
//! names that are new are taken at a bounded rate, unless they come in the answer to a push/pull that this node began: it
//! chose whom to ask, and a node that joins must learn a cluster of any size at once. What is refused for the rate
//! comes again with the next push/pull.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::Swim;
use crate::wire::message::{Alive, NodeName};

/// New names that are taken at once when none came for a while: larger than clusters are, so that two halves that find
/// each other again, or a whole cluster that starts, never wait.
pub const NEW_NAMES_BURST: u32 = 8192;

/// New names a second after that.
pub const NEW_NAMES_PER_SECOND: u32 = 100;

/// An incarnation that grows by more than this at once is counted: incarnations count refutations, so a real member
/// does not get there, and somebody who forges them may be pushing them to the end of their range.
pub const INCARNATION_JUMP: u32 = 1 << 16;

/// Pause between two searches for dead members to forget in a table that is full of living ones.
const SEARCH_PAUSE: Duration = Duration::from_secs(1);

/// In this time the application hears of a conflict about the same name once, ...
const CONFLICTS_PERIOD: Duration = Duration::from_secs(60);

/// ... and of so many names at most. All conflicts are counted.
const MAX_CONFLICTS: usize = 64;

/// How an announcement came here.
#[derive(Clone, Copy, Debug)]
pub(super) enum Origin {
    /// In a packet from this address.
    Packet(SocketAddr),
    /// In a push/pull that somebody else began.
    Request,
    /// In the answer to a push/pull of ours.
    Answer,
}

/// How many new names may still come.
#[derive(Debug, Default)]
pub(super) struct Admission {
    /// Names taken that have not been earned back yet, at `at`.
    used: f64,
    at: Option<Instant>,
    /// When the table was last found to be full of living members.
    full: Option<Instant>,
}

impl Admission {
    /// Takes one name out of the budget, if there is one.
    fn take(&mut self, now: Instant) -> bool {
        let passed = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.at = Some(now);
        self.used = (self.used - passed.as_secs_f64() * f64::from(NEW_NAMES_PER_SECOND)).max(0.0);
        let free = self.used + 1.0 <= f64::from(NEW_NAMES_BURST);
        self.used += f64::from(u8::from(free));
        free
    }
}

/// The names about whose conflicts the application was told lately. Whoever claims a name says so with every gossip, and
/// anybody can forge that, as often as packets arrive.
#[derive(Debug, Default)]
pub(super) struct Conflicts {
    /// When the period began.
    since: Option<Instant>,
    names: Vec<NodeName>,
}

impl Conflicts {
    /// Whether the application is to hear of one more conflict about this name.
    pub(super) fn is_news(&mut self, now: Instant, name: &NodeName) -> bool {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= CONFLICTS_PERIOD) {
            *self = Self { since: Some(now), names: Vec::new() };
        }
        let is_news = self.names.len() < MAX_CONFLICTS && !self.names.contains(name);
        if is_news {
            self.names.push(name.clone());
        }
        is_news
    }
}

impl Swim {
    /// The allow-list, as memberlist applies it: to the address that is announced, and to the sender of a packet that
    /// announces it. A refusal is counted.
    pub(super) fn may_come_from(&mut self, alive: &Alive, origin: Origin) -> bool {
        let networks = &self.config.allowed_networks;
        if networks.is_empty() {
            return true;
        }
        let reason = match (origin, alive.addr.to_ip()) {
            (Origin::Packet(from), _) if !networks.allows(from.ip()) => "alive_from_disallowed_network",
            (_, Some(ip)) if networks.allows(ip) => return true,
            _ => "alive_in_disallowed_network",
        };
        self.stats.refuse_message(reason);
        false
    }

    /// Whether a member with a new name is taken. A refusal is counted.
    pub(super) fn may_be_added(&mut self, now: Instant, origin: Origin) -> bool {
        let limited = !matches!(origin, Origin::Answer);
        if limited && !self.admission.take(now) {
            self.stats.refuse_message("too_many_new_members");
            return false;
        }
        if self.table.len() >= self.config.max_members && !self.make_room(now) {
            self.stats.refuse_message("too_many_members");
            return false;
        }
        true
    }

    /// Forgets the older half of those that are dead or left, if there are any.
    fn make_room(&mut self, now: Instant) -> bool {
        if self.admission.full.is_some_and(|last| now.saturating_duration_since(last) < SEARCH_PAUSE) {
            return false;
        }
        let gone = self.table.forget_older_half_of_the_dead(&self.local.name);
        for member in &gone {
            self.told.remove(&member.name);
        }
        self.admission.full = gone.is_empty().then_some(now);
        self.stats.members_evicted += gone.len() as u64;
        self.changes += u64::from(!gone.is_empty());
        !gone.is_empty()
    }

    /// Counts an incarnation that grew as no member's does.
    pub(super) fn note_incarnation(&mut self, name: &NodeName, incarnation: u32) {
        let Some(member) = self.table.get(name) else { return };
        if incarnation.saturating_sub(member.incarnation) > INCARNATION_JUMP {
            self.stats.incarnation_jumps += 1;
        }
    }
}
