//! Labels as they come in: which label each member sends, which foreign ones arrive, and whether the members would
//! accept another one.
//!
//! The last is asked before a cluster moves to a label. No member says which labels it accepts, but each shows it: a
//! ping under that label is answered by those who accept it, and dropped by the others. That holds for Go's memberlist
//! as well.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use super::timers::Timer;
use super::{Output, Swim};
use crate::wire::message::{Message, NodeName, Ping};
use crate::wire::{Label, PacketOptions, encode_message, encode_packets};

/// Most foreign labels that are counted one by one; what comes under further ones is counted together.
pub const MAX_FOREIGN_LABELS: usize = 32;

/// Sources that may send a label and are not members, before they are forgotten: joining nodes, and strangers.
const MAX_STRANGERS: usize = 256;

/// How often a member is pinged under the label in question. Packets get lost.
const CHECK_PINGS: u32 = 4;

/// How often packets and streams came under labels that this node does not accept: traffic of another cluster, or of
/// members that were forgotten in a rollout.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForeignLabels {
    counts: BTreeMap<Label, u64>,
    others: u64,
}

impl ForeignLabels {
    /// Counts one that came under this label. [`Label::NONE`] stands for no label at all.
    pub fn count(&mut self, label: &Label) {
        self.add(label, 1);
    }

    fn add(&mut self, label: &Label, times: u64) {
        if let Some(count) = self.counts.get_mut(label) {
            *count += times;
        } else if self.counts.len() < MAX_FOREIGN_LABELS {
            self.counts.insert(label.clone(), times);
        } else {
            self.others += times;
        }
    }

    /// Adds what was counted elsewhere.
    pub fn merge(&mut self, other: &Self) {
        for (label, count) in &other.counts {
            self.add(label, *count);
        }
        self.others += other.others;
    }

    /// The labels, at most [`MAX_FOREIGN_LABELS`], and how often they came.
    pub fn iter(&self) -> impl Iterator<Item = (&Label, u64)> {
        self.counts.iter().map(|(label, count)| (label, *count))
    }

    /// How often something came under a label that is not among these.
    #[must_use]
    pub fn others(&self) -> u64 {
        self.others
    }
}

/// Which label each address sent last.
///
/// There are as many addresses as members and hardly ever more than one label, or two while labels are rolled out. So
/// the addresses are kept close together, each with the number of its label.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeardLabels {
    labels: Vec<Label>,
    /// In order of the addresses.
    heard: Vec<Heard>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Heard {
    address: Address,
    label: u8,
}

/// An address to compare quickly. IPv4 ones are mapped, as a socket for both shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Address {
    network: u64,
    host: u64,
    port: u16,
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        let ip = match address.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        Self { network: (ip.to_bits() >> 64) as u64, host: ip.to_bits() as u64, port: address.port() }
    }
}

impl HeardLabels {
    /// The label of the last packet from this address; `None` when none came.
    #[must_use]
    pub fn of(&self, address: SocketAddr) -> Option<&Label> {
        let position = self.position(address.into()).ok()?;
        self.labels.get(usize::from(self.heard.get(position)?.label))
    }

    fn position(&self, address: Address) -> Result<usize, usize> {
        self.heard.binary_search_by_key(&address, |heard| heard.address)
    }

    fn len(&self) -> usize {
        self.heard.len()
    }

    fn retain(&mut self, wanted: impl Fn(&Address) -> bool) {
        self.heard.retain(|heard| wanted(&heard.address));
        self.heard.shrink_to_fit();
    }

    fn set(&mut self, address: SocketAddr, label: &Label) {
        let address = address.into();
        match (self.position(address), self.number(label)) {
            (Ok(position), Some(label)) => self.heard[position].label = label,
            (Err(position), Some(label)) => self.heard.insert(position, Heard { address, label }),
            // Somebody makes labels up. Better none than one that is not true any more.
            (Ok(position), None) => {
                self.heard.remove(position);
            }
            (Err(_), None) => {}
        }
    }

    /// Whether this label is new, and no further one is to be had without forgetting some.
    fn has_no_number_for(&self, label: &Label) -> bool {
        self.labels.len() > usize::from(u8::MAX) && !self.labels.contains(label)
    }

    /// The number of a label, a new one if need be; `None` when all are in use.
    fn number(&mut self, label: &Label) -> Option<u8> {
        if self.has_no_number_for(label) {
            self.forget_unused();
        }
        if let Some(known) = self.labels.iter().position(|known| known == label) {
            return u8::try_from(known).ok();
        }
        let number = u8::try_from(self.labels.len()).ok()?;
        self.labels.push(label.clone());
        Some(number)
    }

    /// Forgets labels that nobody sends any more, which gives the others new numbers.
    fn forget_unused(&mut self) {
        let old = std::mem::take(&mut self.labels);
        let mut renumbered = BTreeMap::new();
        for heard in &mut self.heard {
            heard.label = *renumbered.entry(heard.label).or_insert_with_key(|number| {
                self.labels.push(old[usize::from(*number)].clone());
                (self.labels.len() - 1) as u8
            });
        }
    }
}

/// What is known of labels from outside.
#[derive(Debug, Default)]
pub(super) struct Labels {
    foreign: ForeignLabels,
    heard: Arc<HeardLabels>,
    /// Counts changes of `heard` and `foreign`.
    changes: u64,
    checks: BTreeMap<u64, Check>,
}

/// Members being asked whether they accept a label.
#[derive(Debug)]
struct Check {
    label: Label,
    /// Those that have not answered, by the number of their ping.
    waiting: BTreeMap<u32, NodeName>,
    answered: Vec<NodeName>,
    pings_left: u32,
}

impl Swim {
    /// Which label each address sent last.
    #[must_use]
    pub fn heard_labels(&self) -> &Arc<HeardLabels> {
        &self.labels.heard
    }

    /// A number that grows with every change of [`heard_labels`](Self::heard_labels) and of
    /// [`foreign_labels`](Self::foreign_labels).
    #[must_use]
    pub fn label_changes(&self) -> u64 {
        self.labels.changes
    }

    /// Packets and answers under labels that are not accepted.
    #[must_use]
    pub fn foreign_labels(&self) -> &ForeignLabels {
        &self.labels.foreign
    }

    pub(super) fn count_foreign_label(&mut self, label: &Label) {
        self.labels.foreign.count(label);
        self.labels.changes += 1;
    }

    /// Remembers which label an address sends.
    pub(super) fn heard_label(&mut self, from: SocketAddr, label: &Label) {
        if self.labels.heard.of(from) == Some(label) {
            return;
        }
        let heard = Arc::make_mut(&mut self.labels.heard);
        // Strangers who make up labels must not use up the numbers that members need for theirs.
        if heard.len() >= self.table.len() + MAX_STRANGERS || heard.has_no_number_for(label) {
            let members: BTreeSet<_> =
                self.table.iter().filter_map(|member| member.socket_addr()).map(Address::from).collect();
            heard.retain(|address| members.contains(address));
        }
        heard.set(from, label);
        self.labels.changes += 1;
    }

    #[cfg(test)]
    pub(super) fn heard_addresses(&self) -> usize {
        self.labels.heard.len()
    }

    pub(super) fn on_check_label(&mut self, now: Instant, id: u64, label: Label) {
        let own = self.local.name.clone();
        let members: Vec<_> =
            self.table.iter().filter(|m| m.is_live() && m.name != own).map(|m| m.name.clone()).collect();
        let waiting = members.into_iter().map(|name| (self.next_seq_no(), name)).collect();
        self.labels.checks.insert(id, Check { label, waiting, answered: Vec::new(), pings_left: CHECK_PINGS });
        self.label_check_due(now, id);
    }

    /// Pings those who have not answered, and ends the check after the last of its pings.
    pub(super) fn label_check_due(&mut self, now: Instant, id: u64) {
        let Some(check) = self.labels.checks.get_mut(&id) else { return };
        if check.waiting.is_empty() || check.pings_left == 0 {
            let Some(check) = self.labels.checks.remove(&id) else { return };
            let silent = check.waiting.into_values().collect();
            self.outputs.push_back(Output::LabelChecked { id, accept: check.answered, silent });
            return;
        }
        check.pings_left -= 1;
        let options = PacketOptions { label: check.label.clone(), ..self.config.packet.clone() };
        let waiting = check.waiting.clone();
        for (seq_no, node) in waiting {
            let Some(to) = self.table.get(&node).and_then(|member| member.socket_addr()) else { continue };
            let ping = encode_message(&Message::Ping(Ping { seq_no, node, source: self.source() }));
            for bytes in encode_packets(&[ping], &options, false, &mut self.nonces) {
                self.stats.packets_sent += 1;
                self.outputs.push_back(Output::SendPacket { to, bytes });
            }
        }
        self.timers.schedule(now + self.config.probe_timeout, Timer::LabelCheck(id));
    }

    /// An ack that belongs to no probe.
    pub(super) fn label_check_ack(&mut self, now: Instant, seq_no: u32) {
        let answered = self.labels.checks.iter_mut().find_map(|(id, check)| {
            let name = check.waiting.remove(&seq_no)?;
            check.answered.push(name);
            Some((*id, check.waiting.is_empty()))
        });
        if let Some((id, true)) = answered {
            self.label_check_due(now, id);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::net::Ipv4Addr;

    use super::*;

    fn address(number: u32) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::from_bits(0x0a00_0000 + number), 7946))
    }

    fn label(number: u32) -> Label {
        number.to_string().parse().unwrap()
    }

    #[test]
    fn each_address_has_the_label_that_was_set_last() {
        let mut heard = HeardLabels::default();
        for number in [5, 1, 9, 3, 7] {
            heard.set(address(number), &label(number % 2));
        }
        heard.set(address(9), &label(4));
        let labels = [1, 3, 5, 7, 9, 11].map(|number| heard.of(address(number)).cloned());
        assert_eq!(labels, [Some(1), Some(1), Some(1), Some(1), Some(4), None].map(|known| known.map(label)));
        let mapped = SocketAddr::from((Ipv4Addr::from_bits(0x0a00_0009).to_ipv6_mapped(), 7946));
        assert_eq!(heard.of(mapped), Some(&label(4)), "as a socket for both families shows it");
    }

    #[test]
    fn labels_that_nobody_sends_any_more_make_room_for_others() {
        let mut heard = HeardLabels::default();
        heard.set(address(1), &label(1));
        for number in 0..10_000 {
            heard.set(address(2), &label(number));
            assert_eq!(heard.of(address(2)), Some(&label(number)));
        }
        assert_eq!(heard.of(address(1)), Some(&label(1)));
        assert!(heard.labels.len() <= 256);
    }

    #[test]
    fn more_labels_than_there_are_numbers_are_not_remembered_and_none_is_mistaken() {
        let mut heard = HeardLabels::default();
        for number in 0..300 {
            heard.set(address(number), &label(number));
        }
        heard.set(address(7), &label(1000));
        for number in 0..300 {
            let known = heard.of(address(number));
            assert_eq!(known.cloned(), (number < 256 && number != 7).then(|| label(number)), "{number}");
        }
    }
}
