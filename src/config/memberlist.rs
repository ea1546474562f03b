//! The `memberlist` section.
//!
//! Key names follow Mimir and Loki where they have the setting, so that an operator can carry theirs over. The
//! reference in `docs/reference/configuration.md` is generated from `schema.rs`, which names every key of these
//! structs.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::profile::{Profile, ProfileSettings};
use super::units::{self, ByteSize, Secret};

/// How packets travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TransportKind {
    /// UDP packets and TCP streams, as memberlist, Serf and Consul do.
    #[default]
    Udp,
    /// Everything over TCP, as the Grafana databases do.
    Tcp,
}

/// How outgoing messages are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// LZW, memberlist's own: every member reads it.
    Lzw,
    /// Snappy, which only Annulus and Grafana's fork read.
    Snappy,
}

/// The gossip cluster.
///
/// A field that is an `Option` takes its value from [`profile`](Self::profile) when it is `None`; [`Self::settings`]
/// gives the values in force.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MemberlistConfig {
    /// udp: UDP packets and TCP streams, as memberlist, Serf and Consul. tcp: all TCP, as the Grafana databases; goes with
    /// profile grafana.
    pub transport: TransportKind,
    /// IP addresses to listen on. Empty means all IPv4 addresses.
    #[serde(deserialize_with = "units::list")]
    pub bind_addr: Vec<IpAddr>,
    /// Port to listen on. 0 lets the system choose one.
    pub bind_port: u16,
    /// IP address that other nodes reach this one at. Empty: found from the bind address.
    pub advertise_addr: String,
    /// Port that other nodes reach this one at. 0: the bound port.
    pub advertise_port: u16,
    /// Nodes to join through: host:port, or dns+host:port, dnssrv+name, dnssrvnoa+name. Empty starts a cluster of one.
    #[serde(deserialize_with = "units::list")]
    pub join_members: Vec<String>,
    /// How often join_members are contacted again, which heals a split cluster. 0s turns it off.
    #[serde(with = "units::duration")]
    pub rejoin_interval: Duration,
    /// First wait after a failed join.
    #[serde(with = "units::duration")]
    pub min_join_backoff: Duration,
    /// Longest wait between attempts to join.
    #[serde(with = "units::duration")]
    pub max_join_backoff: Duration,
    /// Attempts to join before giving up. 0 never gives up.
    pub max_join_retries: u32,
    /// Whether the node fails when it could not join.
    pub abort_if_cluster_join_fails: bool,
    /// Label in front of every packet and stream, which keeps clusters apart. At most 255 bytes; empty sends none.
    pub cluster_label: String,
    /// Accept any label, and none, from others: for a rollout that introduces a label.
    pub cluster_label_verification_disabled: bool,
    /// Further labels accepted from others, during a change of label.
    #[serde(deserialize_with = "units::list")]
    pub accepted_labels: Vec<String>,
    /// Gossip keys in base64, of 16, 24 or 32 bytes, at most 8; the first encrypts, all decrypt. Empty: no encryption.
    #[serde(deserialize_with = "units::list")]
    pub encryption_keys: Vec<Secret>,
    /// With keys: refuse what is not encrypted. Switched on last when a running cluster moves to encryption.
    pub gossip_verify_incoming: bool,
    /// With keys: encrypt what is sent. Switched on when every node has the keys.
    pub gossip_verify_outgoing: bool,
    /// How sent messages are compressed. lzw: every member reads it. snappy: only Annulus and Grafana's fork.
    pub compression: Compression,
    /// Set of timings that the keys below start from.
    pub profile: Profile,
    /// Time between gossip ticks. 0s turns the tick off.
    #[serde(with = "units::optional_duration")]
    pub gossip_interval: Option<Duration>,
    /// Members sent to at each gossip tick.
    pub gossip_nodes: Option<u32>,
    /// Transmissions of one message, times log10 of the cluster size.
    pub retransmit_factor: Option<u32>,
    /// Time between exchanges of the full state with a random member. 0s turns them off.
    #[serde(with = "units::optional_duration")]
    pub pull_push_interval: Option<Duration>,
    /// How long a dead node is still gossiped to, so that it can refute.
    #[serde(with = "units::optional_duration")]
    pub gossip_to_dead_nodes_time: Option<Duration>,
    /// Time between probes of a member.
    #[serde(with = "units::optional_duration")]
    pub probe_interval: Option<Duration>,
    /// Wait for the answer to a probe before others are asked to help. Shorter than probe_interval.
    #[serde(with = "units::optional_duration")]
    pub probe_timeout: Option<Duration>,
    /// Smallest time that a member stays suspect, in probe intervals times log10 of the cluster size.
    pub suspicion_mult: Option<u32>,
    /// Largest time that a member stays suspect, as a multiple of the smallest.
    pub suspicion_max_mult: Option<u32>,
    /// Members asked to probe one that does not answer.
    pub indirect_checks: Option<u32>,
    /// Most bytes in one packet.
    pub udp_buffer_size: Option<ByteSize>,
    /// Deadline of a whole exchange over a stream.
    #[serde(with = "units::optional_duration")]
    pub stream_timeout: Option<Duration>,
    /// With transport tcp: longest wait for the connection of one packet.
    #[serde(with = "units::duration")]
    pub packet_dial_timeout: Duration,
    /// With transport tcp: longest wait until one packet is taken.
    #[serde(with = "units::duration")]
    pub packet_write_timeout: Duration,
    /// With transport tcp: packets written at the same time. Peers that hang keep at most half of them.
    pub max_concurrent_writes: u32,
    /// How long an instance that left stays in the ring as a tombstone. 0s keeps it for ever.
    #[serde(with = "units::duration")]
    pub left_ingesters_timeout: Duration,
    /// How long a deleted key is remembered. 0s keeps it for ever.
    #[serde(with = "units::duration")]
    pub obsolete_entries_timeout: Duration,
    /// Longest wait for the message that this node leaves to be sent.
    #[serde(with = "units::duration")]
    pub leave_timeout: Duration,
    /// Networks that members may come from, such as 10.0.0.0/8 or fd00::/8. Announcements from elsewhere, or of other
    /// addresses, are refused and counted. Empty allows all.
    #[serde(deserialize_with = "units::list")]
    pub cidrs_allowed: Vec<String>,
    /// Use TLS between nodes (needs transport tcp; not in this version).
    pub tls_enabled: bool,
    /// Certificate of this node, PEM.
    pub tls_cert_path: String,
    /// Private key of this node, PEM.
    pub tls_key_path: String,
    /// Authorities that sign the certificates of others, PEM.
    pub tls_ca_path: String,
    /// Name expected in the certificates of others.
    pub tls_server_name: String,
}

impl Default for MemberlistConfig {
    fn default() -> Self {
        Self {
            transport: TransportKind::Udp,
            bind_addr: vec![IpAddr::V4(Ipv4Addr::UNSPECIFIED)],
            bind_port: 7946,
            advertise_addr: String::new(),
            advertise_port: 0,
            join_members: Vec::new(),
            rejoin_interval: Duration::from_secs(30),
            min_join_backoff: Duration::from_secs(1),
            max_join_backoff: Duration::from_secs(60),
            max_join_retries: 10,
            abort_if_cluster_join_fails: false,
            cluster_label: String::new(),
            cluster_label_verification_disabled: false,
            accepted_labels: Vec::new(),
            encryption_keys: Vec::new(),
            gossip_verify_incoming: true,
            gossip_verify_outgoing: true,
            compression: Compression::None,
            profile: Profile::Lan,
            gossip_interval: None,
            gossip_nodes: None,
            retransmit_factor: None,
            pull_push_interval: None,
            gossip_to_dead_nodes_time: None,
            probe_interval: None,
            probe_timeout: None,
            suspicion_mult: None,
            suspicion_max_mult: None,
            indirect_checks: None,
            udp_buffer_size: None,
            stream_timeout: None,
            packet_dial_timeout: Duration::from_millis(500),
            packet_write_timeout: Duration::from_secs(5),
            max_concurrent_writes: 64,
            left_ingesters_timeout: Duration::from_secs(300),
            obsolete_entries_timeout: Duration::from_secs(300),
            leave_timeout: Duration::from_secs(20),
            cidrs_allowed: Vec::new(),
            tls_enabled: false,
            tls_cert_path: String::new(),
            tls_key_path: String::new(),
            tls_ca_path: String::new(),
            tls_server_name: String::new(),
        }
    }
}

impl MemberlistConfig {
    /// The profile's values with the keys of this section laid over them.
    ///
    /// Over UDP the large packet size of the `grafana` profile, which is meant for TCP, is replaced by the one of
    /// `lan`.
    #[must_use]
    pub fn settings(&self) -> ProfileSettings {
        let profile = self.profile.settings();
        let packet = match self.transport {
            TransportKind::Udp => profile.udp_buffer_size.min(Profile::Lan.settings().udp_buffer_size),
            TransportKind::Tcp => profile.udp_buffer_size,
        };
        ProfileSettings {
            stream_timeout: self.stream_timeout.unwrap_or(profile.stream_timeout),
            indirect_checks: self.indirect_checks.unwrap_or(profile.indirect_checks),
            retransmit_factor: self.retransmit_factor.unwrap_or(profile.retransmit_factor),
            suspicion_mult: self.suspicion_mult.unwrap_or(profile.suspicion_mult),
            suspicion_max_mult: self.suspicion_max_mult.unwrap_or(profile.suspicion_max_mult),
            pull_push_interval: self.pull_push_interval.unwrap_or(profile.pull_push_interval),
            probe_interval: self.probe_interval.unwrap_or(profile.probe_interval),
            probe_timeout: self.probe_timeout.unwrap_or(profile.probe_timeout),
            gossip_nodes: self.gossip_nodes.unwrap_or(profile.gossip_nodes),
            gossip_interval: self.gossip_interval.unwrap_or(profile.gossip_interval),
            gossip_to_dead_nodes_time: self.gossip_to_dead_nodes_time.unwrap_or(profile.gossip_to_dead_nodes_time),
            udp_buffer_size: self.udp_buffer_size.map_or(packet, |size| size.0),
            ..profile
        }
    }

    /// The addresses to bind; an empty list means all IPv4 addresses, as in dskit.
    #[must_use]
    pub fn bind_addresses(&self) -> Vec<IpAddr> {
        if self.bind_addr.is_empty() { vec![IpAddr::V4(Ipv4Addr::UNSPECIFIED)] } else { self.bind_addr.clone() }
    }
}
