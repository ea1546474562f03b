//! The gossip side of a node: sockets, addresses, and the three actors on top of them.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, OnceLock};

use actix::Addr;
use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::sync::watch;

use super::{Extras, Spawner, StartError};
use crate::actors::events::EventHub;
use crate::actors::framing::GrafanaFraming;
use crate::actors::gossip::{Gossip, GossipClient, GossipParts};
use crate::actors::joining::{JoinPolicy, Joined};
use crate::actors::keys::Wrapping;
use crate::actors::membership::{Members, Membership, MembershipParts};
use crate::actors::transport::{TransportActor, TransportParts};
use crate::actors::watch_hub::WatchHub;
use crate::config::{self, Config, Networks, Profile, TransportKind};
use crate::kv::Codecs;
use crate::kv::gossip::{Contents, GossipConfig};
use crate::swim::{LocalNode, SwimConfig};
use crate::transport::{ByteBudget, Limits, NetTransport, PacketQueue, TcpSettings, TcpTransport, Transport};
use crate::wire::grafana;
use crate::wire::message::NodeName;
use crate::wire::{Compression, EncryptionVersion, Key, Keyring, Label, PacketOptions};

/// Most bytes of peers' states that wait for the store: three of the largest.
const STATES_WAITING: usize = 3 * crate::wire::stream::MAX_USER_STATE;

/// The gossip side of a node: transport, membership, store.
pub(super) struct GossipSide {
    pub(super) client: Arc<GossipClient>,
    pub(super) hub: Arc<WatchHub>,
    pub(super) membership: Addr<Membership>,
    pub(super) transport: Arc<TransportParts>,
    pub(super) joined: watch::Receiver<Joined>,
    pub(super) contents: Contents,
}

pub(super) fn bind(config: &Config, extras: &Extras) -> Result<Arc<dyn Transport>, StartError> {
    if let Some(transport) = &extras.transport {
        return Ok(transport.clone());
    }
    let memberlist = &config.memberlist;
    let (ips, port) = (memberlist.bind_addresses(), memberlist.bind_port);
    // All nodes of this machine dial from one address, and nobody else does.
    let alone = ips.iter().all(IpAddr::is_loopback);
    let limits = |limits: Limits| Limits {
        max_streams_per_ip: if alone { limits.max_streams } else { limits.max_streams_per_ip },
        ..limits
    };
    match memberlist.transport {
        TransportKind::Udp => Ok(Arc::new(NetTransport::bind(&ips, port, limits(Limits::default()))?)),
        TransportKind::Tcp => {
            let defaults = TcpSettings::default();
            let settings = TcpSettings {
                limits: limits(defaults.limits),
                max_packet: grafana::MAX_PACKET,
                dial_timeout: memberlist.packet_dial_timeout,
                write_timeout: memberlist.packet_write_timeout,
                writers: usize::try_from(memberlist.max_concurrent_writes).unwrap_or(usize::MAX),
                ..defaults
            };
            let transport = TcpTransport::bind(&ips, port, settings, Arc::new(GrafanaFraming))?;
            transport.advertise(advertised(config, transport.local_addr())?);
            Ok(Arc::new(transport))
        }
    }
}

/// The address that others are told to dial.
pub(super) fn advertised(config: &Config, bound: SocketAddr) -> Result<SocketAddr, StartError> {
    let memberlist = &config.memberlist;
    let port = if memberlist.advertise_port == 0 { bound.port() } else { memberlist.advertise_port };
    if !memberlist.advertise_addr.is_empty() {
        let ip: IpAddr = memberlist.advertise_addr.parse().map_err(|_| {
            StartError::Config(format!(
                "memberlist.advertise_addr {:?} is not an IP address",
                memberlist.advertise_addr
            ))
        })?;
        return Ok(SocketAddr::new(ip, port));
    }
    if !bound.ip().is_unspecified() {
        return Ok(SocketAddr::new(bound.ip(), port));
    }
    outgoing_address(bound.is_ipv6()).map(|ip| SocketAddr::new(ip, port)).ok_or_else(|| {
        StartError::Config(
            "memberlist.bind_addr is unspecified and this machine has no route to tell which of its addresses others \
             can reach: set memberlist.advertise_addr"
                .to_owned(),
        )
    })
}

/// The address of the interface that the default route uses. Connecting a datagram socket sends nothing.
fn outgoing_address(v6: bool) -> Option<IpAddr> {
    let (any, target) = if v6 { ("[::]:0", "[2001:db8::1]:9") } else { ("0.0.0.0:0", "192.0.2.1:9") };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(target).ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

#[allow(clippy::too_many_arguments, reason = "called once, each argument is another part of the node")]
pub(super) fn start_gossip(
    spawner: &Spawner,
    config: &Config,
    swim: SwimConfig,
    codecs: &Arc<Codecs>,
    events: &EventHub,
    members: &Arc<ArcSwap<Members>>,
    transport: Arc<dyn Transport>,
    advertised: SocketAddr,
    meta: Bytes,
    dns_server: Option<SocketAddr>,
) -> GossipSide {
    let queue = Arc::new(PacketQueue::default());
    let hub = Arc::new(WatchHub::default());
    let gossip_parts = Arc::new(GossipParts {
        config: GossipConfig {
            left_timeout: config.memberlist.left_ingesters_timeout,
            obsolete_timeout: config.memberlist.obsolete_entries_timeout,
            ..GossipConfig::default()
        },
        codecs: codecs.clone(),
        hub: hub.clone(),
        events: events.clone(),
        membership: OnceLock::new(),
        contents: Contents::default(),
    });
    let wrapping = Wrapping::new(swim.packet.clone());
    let network = transport.clone();
    let transport_parts = Arc::new(TransportParts {
        transport,
        queue: queue.clone(),
        wrapping: wrapping.clone(),
        stream_timeout: swim.stream_timeout,
        membership: OnceLock::new(),
        budget: ByteBudget::default(),
        streams: Arc::default(),
    });
    let membership_parts = Arc::new(MembershipParts {
        config: swim,
        wrapping,
        local: LocalNode { name: NodeName::from(config.node.id.as_str()), addr: advertised, meta },
        queue,
        network,
        states: ByteBudget::new(STATES_WAITING),
        members: members.clone(),
        events: events.clone(),
        transport: OnceLock::new(),
        gossip: OnceLock::new(),
        had_left: Mutex::new(None),
        join_members: config.memberlist.join_members.clone(),
        dns_server,
        join: JoinPolicy {
            max_retries: config.memberlist.max_join_retries,
            min_backoff: config.memberlist.min_join_backoff,
            max_backoff: config.memberlist.max_join_backoff,
            abort: config.memberlist.abort_if_cluster_join_fails,
            resolve_every: config.memberlist.rejoin_interval,
        },
        seeds: Mutex::new(Vec::new()),
        joined: watch::Sender::new(Joined::Trying),
    });
    let transport = spawner.spawn("transport", TransportActor::new(transport_parts.clone()));
    let gossip = spawner.spawn("gossip", Gossip::new(gossip_parts.clone()));
    let membership = spawner.spawn("membership", Membership::new(membership_parts.clone()));
    // The actors run only after this function has returned, so they never see these empty.
    let _ = transport_parts.membership.set(membership.clone());
    let _ = gossip_parts.membership.set(membership.clone());
    let _ = membership_parts.transport.set(transport);
    let _ = membership_parts.gossip.set(gossip.clone());
    let client =
        GossipClient::new(gossip, hub.clone(), gossip_parts.contents.clone(), membership_parts.joined.subscribe());
    let joined = membership_parts.joined.subscribe();
    let contents = gossip_parts.contents.clone();
    GossipSide { client, hub, membership, transport: transport_parts, joined, contents }
}

/// The keys from the configuration. A wrong key is refused: to go on without it would be to go on in the clear.
fn keyring(config: &Config) -> Result<Keyring, StartError> {
    let keys = &config.memberlist.encryption_keys;
    let wrong = |error| StartError::Config(format!("memberlist.encryption_keys: {error}"));
    let keys: Vec<Key> =
        keys.iter().map(|key| Key::from_base64(key.expose())).collect::<Result<_, _>>().map_err(wrong)?;
    Keyring::new(keys).map_err(wrong)
}

/// What the membership core starts from in a profile.
fn preset(profile: Profile) -> SwimConfig {
    match profile {
        Profile::Lan => SwimConfig::lan(),
        Profile::Wan => SwimConfig::wan(),
        Profile::Local => SwimConfig::local(),
        Profile::Grafana => SwimConfig::grafana(),
    }
}

/// The membership core's settings from the configuration: the profile's, but for what a key of the configuration says.
/// `leave_timeout` and `rejoin_interval` are keys with defaults of their own, the same in every profile.
pub(super) fn swim_config(config: &Config) -> Result<SwimConfig, StartError> {
    let memberlist = &config.memberlist;
    let settings = memberlist.settings();
    let label = |text: &str| Label::new(text.as_bytes()).unwrap_or_default();
    let count = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
    Ok(SwimConfig {
        packet: PacketOptions {
            label: label(&memberlist.cluster_label),
            verify_label: !memberlist.cluster_label_verification_disabled,
            accepted_labels: memberlist.accepted_labels.iter().map(|text| label(text)).collect(),
            keyring: keyring(config)?,
            verify_incoming: memberlist.gossip_verify_incoming,
            verify_outgoing: memberlist.gossip_verify_outgoing,
            // Annulus speaks protocol version 2 and up.
            encryption_version: EncryptionVersion::V1,
            compression: match memberlist.compression {
                config::Compression::None => Compression::None,
                config::Compression::Lzw => Compression::Lzw,
                config::Compression::Snappy => Compression::Snappy,
            },
            max_unpacked: match memberlist.transport {
                TransportKind::Udp => PacketOptions::default().max_unpacked,
                // As much as Grafana's members take.
                TransportKind::Tcp => 2 * grafana::MAX_PACKET,
            },
        },
        probe_interval: settings.probe_interval,
        probe_timeout: settings.probe_timeout,
        gossip_interval: settings.gossip_interval,
        gossip_to_dead_time: settings.gossip_to_dead_nodes_time,
        push_pull_interval: settings.pull_push_interval,
        leave_timeout: memberlist.leave_timeout,
        stream_timeout: settings.stream_timeout,
        indirect_checks: count(settings.indirect_checks),
        gossip_nodes: count(settings.gossip_nodes),
        retransmit_mult: settings.retransmit_factor,
        suspicion_mult: settings.suspicion_mult,
        suspicion_max_mult: settings.suspicion_max_mult,
        awareness_max: settings.awareness_max_multiplier,
        packet_budget: usize::try_from(settings.udp_buffer_size).unwrap_or(1400),
        disable_tcp_pings: !settings.stream_ping_fallback,
        rejoin_interval: memberlist.rejoin_interval,
        allowed_networks: Networks::parse(&memberlist.cidrs_allowed)
            .map_err(|error| StartError::Config(format!("memberlist.cidrs_allowed: {error}")))?,
        ..preset(memberlist.profile)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use super::*;

    #[test]
    fn each_profile_of_the_configuration_is_the_preset_of_the_core() {
        for profile in [Profile::Lan, Profile::Wan, Profile::Local, Profile::Grafana] {
            let mut config = Config::default();
            config.memberlist.profile = profile;
            // Its packets are too large for datagrams.
            if profile == Profile::Grafana {
                config.memberlist.transport = TransportKind::Tcp;
            }
            let made = swim_config(&config).unwrap();
            let (leave_timeout, rejoin_interval) = (made.leave_timeout, made.rejoin_interval);
            assert_eq!((leave_timeout, rejoin_interval), (Duration::from_secs(20), Duration::from_secs(30)));
            let preset = SwimConfig { packet: made.packet.clone(), leave_timeout, rejoin_interval, ..preset(profile) };
            assert_eq!(format!("{made:#?}"), format!("{preset:#?}"), "{profile:?}");
        }
    }
}
