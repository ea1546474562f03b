//! Counters: what happened, and everything that was refused or dropped.

use std::collections::BTreeMap;

/// Counters since the core was made. They only grow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Packets received, refused ones included.
    pub packets_received: u64,
    /// Packets that could not be read, by reason.
    pub packets_refused: BTreeMap<&'static str, u64>,
    /// Packets sent.
    pub packets_sent: u64,
    /// Well-formed messages that were not believed, by reason.
    pub messages_refused: BTreeMap<&'static str, u64>,
    /// Announcements of members that were accepted.
    pub alive_accepted: u64,
    /// Suspicions that were accepted or raised here.
    pub suspect_accepted: u64,
    /// Deaths and departures that were accepted or found here.
    pub dead_accepted: u64,
    /// Members forgotten before their time because the table was full.
    pub members_evicted: u64,
    /// Incarnations that grew by more than [`INCARNATION_JUMP`](super::INCARNATION_JUMP) at once.
    pub incarnation_jumps: u64,
    /// Probes started.
    pub probes_started: u64,
    /// Probes that nobody and nothing answered.
    pub probes_failed: u64,
    /// Probes started with a stretched interval, because this node may be slow itself.
    pub probes_degraded: u64,
    /// Probes that only a stream answered: packets do not get through.
    pub probes_saved_by_stream: u64,
    /// Suspicions that ran out with fewer confirmations than hoped for.
    pub suspicions_unconfirmed: u64,
    /// Accusations against this node that it refuted.
    pub refutations: u64,
    /// Accusations that could not be refuted because the incarnation is at its largest value. Restart the node under
    /// another name.
    pub refutations_exhausted: u64,
    /// Members that were told what the cluster thinks of them because they announced themselves with a stale
    /// incarnation.
    pub stale_members_told: u64,
    /// Push/pulls begun by this node, joins included.
    pub push_pulls_started: u64,
    /// Of those, the ones that failed.
    pub push_pulls_failed: u64,
    /// Push/pulls begun by others.
    pub push_pulls_accepted: u64,
    /// Push/pulls of others that were turned away because too many were in progress.
    pub push_pulls_turned_away: u64,
    /// Push/pulls whose whole content was refused because that peer's versions do not fit ours.
    pub merges_refused: u64,
    /// Times a missing seed or a failed member was contacted to heal a partition.
    pub rejoin_attempts: u64,
    /// Broadcasts of the application that went over streams because they fit no packet.
    pub broadcasts_streamed: u64,
    /// Broadcasts given up: too large for a packet (membership), or pushed out of a full queue (application).
    pub broadcasts_dropped: u64,
}

impl Stats {
    pub(super) fn refuse_message(&mut self, reason: &'static str) {
        *self.messages_refused.entry(reason).or_default() += 1;
    }

    pub(super) fn refuse_packet(&mut self, reason: &'static str) {
        *self.packets_refused.entry(reason).or_default() += 1;
    }
}
