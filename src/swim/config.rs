//! What can be set in the membership core, and the presets that operators of memberlist know.

use std::time::Duration;

use super::MAX_MEMBERS;
use crate::config::Networks;
use crate::wire::PacketOptions;
use crate::wire::message::{VSN, Vsn};

/// Settings of the membership core.
///
/// [`SwimConfig::default`] is [`SwimConfig::lan`]. The defaults in brackets are those of the LAN preset. A duration of
/// zero switches a periodic task off where that is said.
///
/// All members of a cluster should agree on the probe and suspicion settings: they decide how long a member has to
/// answer before others call it dead.
#[derive(Clone, Debug)]
pub struct SwimConfig {
    /// How packets are wrapped: label, keys, compression.
    pub packet: PacketOptions,
    /// Time between two probes of a member (1 s). Zero: never probe, so failures are only learned from
    /// others; suspicion then counts in seconds.
    pub probe_interval: Duration,
    /// How long a direct ping may take before other members are asked to try (500 ms). Must be below
    /// `probe_interval`; a larger value counts as `probe_interval`.
    pub probe_timeout: Duration,
    /// Time between two gossip rounds (200 ms). Zero: news only travels on the back of probes and by push/pull.
    pub gossip_interval: Duration,
    /// How long a dead member still gets gossip, so that it can refute, and how long dead and left members stay in the
    /// table (30 s).
    pub gossip_to_dead_time: Duration,
    /// Time between two full exchanges of state with a random member (30 s), stretched in clusters above 32 members.
    /// Zero: never.
    pub push_pull_interval: Duration,
    /// How long [`Input::Leave`](super::Input::Leave) waits for its message to be sent often enough (5 s). Zero: for
    /// as long as it takes.
    pub leave_timeout: Duration,
    /// How long a stream may take, dialing included (10 s).
    pub stream_timeout: Duration,
    /// How many members are asked to ping one that did not answer (3).
    pub indirect_checks: usize,
    /// How many members get each gossip round (3).
    pub gossip_nodes: usize,
    /// Each broadcast is sent `retransmit_mult × ⌈log10(N + 1)⌉` times (4); see
    /// [`retransmit_limit`](super::retransmit_limit) for small clusters.
    pub retransmit_mult: u32,
    /// Shortest suspicion, in probe intervals and times log10 of the cluster's size (4). Also decides how many
    /// confirmations shorten it to that: `suspicion_mult − 2`.
    pub suspicion_mult: u32,
    /// Longest suspicion, as a multiple of the shortest (6).
    pub suspicion_max_mult: u32,
    /// Local health goes from 0 to this minus one (8) and stretches the probe interval by up to this factor.
    pub awareness_max: u32,
    /// Largest datagram that is sent, in bytes (1400). Larger broadcasts go over streams.
    pub packet_budget: usize,
    /// Never try a stream when pings get no answer (false). Set it when packets travel over TCP anyway.
    pub disable_tcp_pings: bool,
    /// How often seeds that are not among the live members, and members that failed, are contacted, so that a healed
    /// partition becomes one cluster again (30 s). Zero: only while no other member is alive.
    pub rejoin_interval: Duration,
    /// After this time a dead member's name may return with another address (10 s; memberlist's own default is zero).
    /// Zero: not before it is forgotten. The name of a member that left is free at once.
    pub dead_reclaim_time: Duration,
    /// Networks that members may come from (empty: everybody).
    pub allowed_networks: Networks,
    /// The most members in the table, the dead and those who left included ([`MAX_MEMBERS`]). When it is full, new
    /// members take the place of dead ones, and are refused while there are none.
    pub max_members: usize,
    /// Versions of what the application says over gossip: lowest and highest understood, and the one spoken (0, 0, 0,
    /// as in memberlist). Members that exclude ours are refused, as we are by them. Agents of Serf, and with them Consul
    /// and Nomad, need 2, 5, 5.
    pub delegate_versions: [u8; 3],
}

impl Default for SwimConfig {
    fn default() -> Self {
        Self::lan()
    }
}

impl SwimConfig {
    /// For members in one data centre; memberlist's `DefaultLANConfig`.
    #[must_use]
    pub fn lan() -> Self {
        Self {
            packet: PacketOptions::default(),
            probe_interval: Duration::from_secs(1),
            probe_timeout: Duration::from_millis(500),
            gossip_interval: Duration::from_millis(200),
            gossip_to_dead_time: Duration::from_secs(30),
            push_pull_interval: Duration::from_secs(30),
            leave_timeout: Duration::from_secs(5),
            stream_timeout: Duration::from_secs(10),
            indirect_checks: 3,
            gossip_nodes: 3,
            retransmit_mult: 4,
            suspicion_mult: 4,
            suspicion_max_mult: 6,
            awareness_max: 8,
            packet_budget: 1400,
            disable_tcp_pings: false,
            rejoin_interval: Duration::from_secs(30),
            dead_reclaim_time: Duration::from_secs(10),
            allowed_networks: Networks::default(),
            max_members: MAX_MEMBERS,
            delegate_versions: [0; 3],
        }
    }

    /// For members far apart: slower probes, longer suspicion; memberlist's `DefaultWANConfig`.
    #[must_use]
    pub fn wan() -> Self {
        Self {
            probe_interval: Duration::from_secs(5),
            probe_timeout: Duration::from_secs(3),
            gossip_interval: Duration::from_millis(500),
            gossip_to_dead_time: Duration::from_secs(60),
            push_pull_interval: Duration::from_secs(60),
            leave_timeout: Duration::from_secs(10),
            stream_timeout: Duration::from_secs(30),
            gossip_nodes: 4,
            suspicion_mult: 6,
            rejoin_interval: Duration::from_secs(60),
            dead_reclaim_time: Duration::from_secs(30),
            ..Self::lan()
        }
    }

    /// For members on one machine; memberlist's `DefaultLocalConfig`.
    #[must_use]
    pub fn local() -> Self {
        Self {
            probe_timeout: Duration::from_millis(200),
            gossip_interval: Duration::from_millis(100),
            gossip_to_dead_time: Duration::from_secs(15),
            push_pull_interval: Duration::from_secs(15),
            stream_timeout: Duration::from_secs(1),
            indirect_checks: 1,
            retransmit_mult: 2,
            suspicion_mult: 3,
            rejoin_interval: Duration::from_secs(10),
            dead_reclaim_time: Duration::from_secs(5),
            ..Self::lan()
        }
    }

    /// For a cluster with Grafana's servers (Mimir, Loki, Tempo) and Cortex, whose packets travel over TCP: probes
    /// every 5 s, no TCP pings, packets of up to 10 MiB, streams of 2 s.
    #[must_use]
    pub fn grafana() -> Self {
        Self {
            probe_interval: Duration::from_secs(5),
            probe_timeout: Duration::from_secs(2),
            leave_timeout: Duration::from_secs(20),
            stream_timeout: Duration::from_secs(2),
            packet_budget: 10 << 20,
            disable_tcp_pings: true,
            rejoin_interval: Duration::from_secs(60),
            ..Self::lan()
        }
    }

    /// The version bytes that this node announces.
    pub(super) fn vsn(&self) -> Vsn {
        let [min, max, current] = self.delegate_versions;
        [VSN[0], VSN[1], VSN[2], min, max, current]
    }
}
