//! The four sets of membership timings, as plain data.
//!
//! `lan`, `wan` and `local` are memberlist's own defaults; `grafana` is what Grafana's databases force on top of `lan`.
//! A key of the `memberlist` section overrides the profile's value for that one setting:
//! [`MemberlistConfig::settings`](super::MemberlistConfig::settings) gives the result.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Which set of timings a node starts from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// One data centre. The default.
    #[default]
    Lan,
    /// Links with tens to hundreds of milliseconds between nodes.
    Wan,
    /// All nodes on one machine, for development.
    Local,
    /// What Mimir, Loki and Tempo run with; for a node that joins their cluster.
    Grafana,
}

/// Every timing and factor of the membership protocol, with nothing left open.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProfileSettings {
    /// Deadline of a whole stream exchange (memberlist: `TCPTimeout`).
    pub stream_timeout: Duration,
    /// Helpers asked to probe a member that does not answer.
    pub indirect_checks: u32,
    /// Transmissions of one broadcast, times log10 of the cluster size (memberlist: `RetransmitMult`).
    pub retransmit_factor: u32,
    /// Smallest suspicion time, in probe intervals times log10 of the cluster size.
    pub suspicion_mult: u32,
    /// Largest suspicion time, as a multiple of the smallest.
    pub suspicion_max_mult: u32,
    /// Time between exchanges of the full state; zero is off.
    pub pull_push_interval: Duration,
    /// Time between probes.
    pub probe_interval: Duration,
    /// Wait for the answer to a direct probe.
    pub probe_timeout: Duration,
    /// Whether a probe that timed out is tried once more over a stream.
    pub stream_ping_fallback: bool,
    /// Most that a node slows itself down when it notices that it is slow (memberlist: `AwarenessMaxMultiplier`).
    pub awareness_max_multiplier: u32,
    /// Members sent to at each gossip tick.
    pub gossip_nodes: u32,
    /// Time between gossip ticks; zero is off.
    pub gossip_interval: Duration,
    /// How long a dead member is still gossiped to, and kept.
    pub gossip_to_dead_nodes_time: Duration,
    /// Bytes that one packet may fill.
    pub udp_buffer_size: u64,
}

/// Bytes of a packet that passes every common network unfragmented, memberlist's default.
const UDP_BUFFER: u64 = 1400;
/// What the Grafana databases use: their packets travel in TCP connections.
const TCP_BUFFER: u64 = 10 << 20;

impl Profile {
    /// The names as they stand in a file.
    pub const NAMES: &'static [&'static str] = &["lan", "wan", "local", "grafana"];

    /// The table.
    #[must_use]
    pub fn settings(self) -> ProfileSettings {
        let ms = Duration::from_millis;
        let s = Duration::from_secs;
        let lan = ProfileSettings {
            stream_timeout: s(10),
            indirect_checks: 3,
            retransmit_factor: 4,
            suspicion_mult: 4,
            suspicion_max_mult: 6,
            pull_push_interval: s(30),
            probe_interval: s(1),
            probe_timeout: ms(500),
            stream_ping_fallback: true,
            awareness_max_multiplier: 8,
            gossip_nodes: 3,
            gossip_interval: ms(200),
            gossip_to_dead_nodes_time: s(30),
            udp_buffer_size: UDP_BUFFER,
        };
        match self {
            Self::Lan => lan,
            Self::Wan => ProfileSettings {
                stream_timeout: s(30),
                suspicion_mult: 6,
                pull_push_interval: s(60),
                probe_interval: s(5),
                probe_timeout: s(3),
                gossip_nodes: 4,
                gossip_interval: ms(500),
                gossip_to_dead_nodes_time: s(60),
                ..lan
            },
            Self::Local => ProfileSettings {
                stream_timeout: s(1),
                indirect_checks: 1,
                retransmit_factor: 2,
                suspicion_mult: 3,
                pull_push_interval: s(15),
                probe_timeout: ms(200),
                gossip_interval: ms(100),
                gossip_to_dead_nodes_time: s(15),
                ..lan
            },
            Self::Grafana => ProfileSettings {
                stream_timeout: s(2),
                probe_interval: s(5),
                probe_timeout: s(2),
                stream_ping_fallback: false,
                udp_buffer_size: TCP_BUFFER,
                ..lan
            },
        }
    }
}
