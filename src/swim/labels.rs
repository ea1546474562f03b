//! Labels as they come in: which label each member sends, which foreign ones arrive, and whether the members would
//! accept another one.
//!
//! The last is asked before a cluster moves to a label. No member says which labels it accepts, but each shows it: a
//! ping under that label is answered by those who accept it, and dropped by the others. That holds for Go's memberlist
//! as well.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use super::timers::Timer;
use super::{Member, Output, Swim};
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

/// What is known of labels from outside.
#[derive(Debug, Default)]
pub(super) struct Labels {
    foreign: ForeignLabels,
    /// The label of the last packet from each address.
    heard: BTreeMap<SocketAddr, Label>,
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
    /// The label that each live member sent last. Members that sent no packet yet are missing, as is this node.
    #[must_use]
    pub fn member_labels(&self) -> BTreeMap<NodeName, Label> {
        let heard = |member: &Member| self.labels.heard.get(&member.socket_addr()?).cloned();
        let live = self.table.iter().filter(|member| member.is_live());
        live.filter_map(|member| Some((member.name.clone(), heard(member)?))).collect()
    }

    /// A number that grows with every change of [`member_labels`](Self::member_labels) by what was heard, and of
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
        if let Some(known) = self.labels.heard.get_mut(&from) {
            if known != label {
                *known = label.clone();
                self.labels.changes += 1;
            }
            return;
        }
        if self.labels.heard.len() >= self.table.len() + MAX_STRANGERS {
            let members: std::collections::BTreeSet<_> = self.table.iter().filter_map(Member::socket_addr).collect();
            self.labels.heard.retain(|address, _| members.contains(address));
        }
        self.labels.heard.insert(from, label.clone());
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
            let Some(to) = self.table.get(&node).and_then(Member::socket_addr) else { continue };
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
