//! Combinations that cannot work, each with the key and what to do.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::error::Problem;
use super::memberlist::TransportKind;
use super::rings::{MergeStrategy, TokenStrategy};
use super::{Config, ConsulConfig, EtcdConfig, KvStore, MemberlistConfig, Networks, RingConfig};

/// Longest name and label that fit the wire.
const MAX_NAME_BYTES: usize = 255;
/// Most gossip keys: as many as a node tries on what it receives.
const MAX_KEYS: usize = 8;
/// Most tokens of one instance.
const MAX_TOKENS: u32 = 4096;
/// Largest payload of a UDP packet over IPv4.
const MAX_UDP_PAYLOAD: u64 = 65_507;

/// What dskit lets its members put into one packet over TCP.
const MAX_TCP_PAYLOAD: u64 = 10 << 20;

const LATER: &str = "not built yet, see CHANGELOG";

struct Problems(Vec<Problem>);

impl Problems {
    fn add(&mut self, key: impl Into<String>, reason: impl Into<String>) {
        self.0.push(Problem { key: key.into(), reason: reason.into() });
    }

    fn check(&mut self, good: bool, key: &str, reason: &str) {
        if !good {
            self.add(key, reason);
        }
    }
}

/// Everything that cannot work.
pub(super) fn problems(config: &Config) -> Vec<Problem> {
    let mut found = Problems(Vec::new());
    node(config, &mut found);
    memberlist(&config.memberlist, &mut found);
    encryption(&config.memberlist, &mut found);
    unavailable(&config.memberlist, &mut found);
    kv(config, &mut found);
    let mut names = HashSet::new();
    for (index, ring) in config.rings.iter().enumerate() {
        let at = |key: &str| format!("rings[{index}].{key}");
        if !names.insert(&ring.name) {
            found.add(at("name"), format!("there are two rings named `{}`; give each its own name", ring.name));
        }
        self::ring(config, ring, &at, &mut found);
    }
    if !config.runtime_config.file.is_empty() && config.runtime_config.period.is_zero() {
        found.add("runtime_config.period", "must be longer than zero, since there are files to reload");
    }
    for (index, file) in config.runtime_config.file.iter().enumerate() {
        if file.contains("://") {
            found.add(format!("runtime_config.file[{index}]"), "only files are read, not URLs; mount it as a file");
        }
    }
    found.check(
        !config.migration.enabled,
        "migration.enabled",
        "the guided migration is not available in this version; use false: the runtime file drives a migration",
    );
    found.check(
        (0.0..=1.0).contains(&config.migration.shadow_lookups),
        "migration.shadow_lookups",
        "must be between 0 (off) and 1 (every lookup)",
    );
    let listen = &config.http.listen;
    if !listen.is_empty() && listen.parse::<SocketAddr>().is_err() {
        found.add(
            "http.listen",
            format!("`{listen}` is not an IP address with a port, such as 127.0.0.1:8080 or [::]:8080"),
        );
    }
    found.0
}

fn node(config: &Config, found: &mut Problems) {
    let node = &config.node;
    found.check(!node.id.is_empty(), "node.id", "is not set; give every node its own name, for example its host name");
    found.check(node.id.len() <= MAX_NAME_BYTES, "node.id", "is longer than 255 bytes");
    for (key, text) in [("node.id", &node.id), ("node.zone", &node.zone)] {
        found.check(!text.chars().any(char::is_control), key, "contains a control character");
    }
    found.check(node.zone.len() <= MAX_NAME_BYTES, "node.zone", "is longer than 255 bytes");
    if !node.address.is_empty() && !is_host_port(&node.address) {
        found.add("node.address", format!("`{}` is not host:port", node.address));
    }
    if node.address.is_empty() && config.rings.iter().any(|ring| ring.join) {
        found.add("node.address", "is not set, but a ring is joined; set host:port that peers of the application dial");
    }
}

fn memberlist(m: &MemberlistConfig, found: &mut Problems) {
    found.check(
        m.advertise_addr.is_empty() || m.advertise_addr.parse::<IpAddr>().is_ok(),
        "memberlist.advertise_addr",
        "is not an IP address",
    );
    for (index, member) in m.join_members.iter().enumerate() {
        if !is_join_member(member) {
            found.add(
                format!("memberlist.join_members[{index}]"),
                if is_srv(member) && !cfg!(feature = "dns-srv") {
                    format!("`{member}` needs SRV look-ups; this program was built without the feature dns-srv")
                } else {
                    format!("`{member}` is none of host:port, dns+host:port, dnssrv+name and dnssrvnoa+name")
                },
            );
        }
    }
    match Networks::parse(&m.cidrs_allowed) {
        Err(error) => found.add(format!("memberlist.cidrs_allowed[{}]", error.index), error.to_string()),
        Ok(networks) => {
            found.check(
                m.advertise_addr.parse().map_or(true, |ip| networks.allows(ip)),
                "memberlist.cidrs_allowed",
                "does not contain memberlist.advertise_addr: the others would refuse this node",
            );
        }
    }
    let label = "memberlist.cluster_label";
    found.check(
        m.cluster_label.len() <= MAX_NAME_BYTES,
        label,
        "is longer than 255 bytes, which is all that fits the wire",
    );
    found.check(!m.cluster_label.chars().any(char::is_control), label, "contains a control character");
    for (index, label) in m.accepted_labels.iter().enumerate() {
        if label.len() > MAX_NAME_BYTES {
            found.add(format!("memberlist.accepted_labels[{index}]"), "is longer than 255 bytes");
        }
    }
    found.check(
        !m.min_join_backoff.is_zero() && m.min_join_backoff <= m.max_join_backoff,
        "memberlist.min_join_backoff",
        "must be longer than zero and at most max_join_backoff",
    );
    let set = m.settings();
    found.check(!set.probe_interval.is_zero(), "memberlist.probe_interval", "must be longer than zero");
    found.check(
        !set.probe_timeout.is_zero() && set.probe_timeout < set.probe_interval,
        "memberlist.probe_timeout",
        "must be longer than zero and shorter than probe_interval",
    );
    found.check(!set.stream_timeout.is_zero(), "memberlist.stream_timeout", "must be longer than zero");
    for (key, value) in [
        ("gossip_nodes", set.gossip_nodes),
        ("retransmit_factor", set.retransmit_factor),
        ("suspicion_mult", set.suspicion_mult),
        ("suspicion_max_mult", set.suspicion_max_mult),
    ] {
        found.check(value > 0, &format!("memberlist.{key}"), "must be at least 1");
    }
    if m.transport == TransportKind::Udp {
        found.check(
            (512..=MAX_UDP_PAYLOAD).contains(&set.udp_buffer_size),
            "memberlist.udp_buffer_size",
            "must be between 512B and 65507B with transport udp",
        );
    } else {
        found.check(
            (512..=MAX_TCP_PAYLOAD).contains(&set.udp_buffer_size),
            "memberlist.udp_buffer_size",
            "must be between 512B and 10MiB with transport tcp: others take no more",
        );
        found.check(m.max_concurrent_writes >= 2, "memberlist.max_concurrent_writes", "must be at least 2");
        for (key, value) in [("dial", m.packet_dial_timeout), ("write", m.packet_write_timeout)] {
            found.check(!value.is_zero(), &format!("memberlist.packet_{key}_timeout"), "must be longer than zero");
        }
    }
}

/// The keys of gossip. What is said about a wrong one never contains it.
fn encryption(m: &MemberlistConfig, found: &mut Problems) {
    for (index, key) in m.encryption_keys.iter().enumerate() {
        let length = STANDARD.decode(key.expose().trim()).map(|bytes| bytes.len());
        let reason = match length {
            Ok(16 | 24 | 32) => continue,
            Ok(length) => format!("has {length} bytes; a key has 16, 24 or 32"),
            Err(_) => "is not base64; make one with `openssl rand -base64 32`".to_owned(),
        };
        found.add(format!("memberlist.encryption_keys[{index}]"), reason);
    }
    if m.encryption_keys.len() > MAX_KEYS {
        found.add("memberlist.encryption_keys", "holds more than 8 keys; remove those that no node encrypts with");
    }
    found.check(
        m.encryption_keys.is_empty() || m.gossip_verify_outgoing || !m.gossip_verify_incoming,
        "memberlist.gossip_verify_outgoing",
        "is off while gossip_verify_incoming is on: nodes would refuse each other; switch outgoing on first",
    );
}

/// Settings that this version knows but cannot do. They are refused, because ignoring them would be worse.
fn unavailable(m: &MemberlistConfig, found: &mut Problems) {
    if m.tls_enabled {
        found.add("memberlist.tls_enabled", format!("TLS between nodes is {LATER}; use false"));
    }
}

fn kv(config: &Config, found: &mut Problems) {
    let kv = &config.kv;
    if kv.store == KvStore::Multi {
        found.check(
            kv.multi.primary != kv.multi.secondary,
            "kv.multi.secondary",
            "is the same store as kv.multi.primary; name the other one",
        );
        for (key, store) in [("kv.multi.primary", kv.multi.primary), ("kv.multi.secondary", kv.multi.secondary)] {
            found.check(
                store != KvStore::Multi,
                key,
                "cannot be multi itself; name memberlist, consul, etcd or inmemory",
            );
        }
    }
    for (key, store) in store_keys(config) {
        if store == KvStore::Etcd {
            etcd(key, &kv.etcd, found);
        }
    }
    if kv.stores().contains(&KvStore::Consul) {
        consul(&kv.consul, found);
        found.check(
            kv.consul.watch_rate_limit.is_finite() && kv.consul.watch_rate_limit >= 0.0,
            "kv.consul.watch_rate_limit",
            "must be zero (no limit) or more",
        );
    }
    found.check(!kv.prefix.starts_with('/'), "kv.prefix", "must not begin with a slash, Consul refuses such keys");
}

fn consul(consul: &ConsulConfig, found: &mut Problems) {
    let tls = consul.uses_tls();
    let scheme = if tls { "https://" } else { "http://" };
    if !is_host_port(consul.host.strip_prefix(scheme).unwrap_or(&consul.host)) {
        found.add("kv.consul.host", format!("`{}` is not host:port", consul.host));
    }
    if tls {
        found.check(
            cfg!(feature = "consul-tls"),
            if consul.tls_enabled { "kv.consul.tls_enabled" } else { "kv.consul.host" },
            "asks for TLS and needs a program that was built with the crate's feature `consul-tls`",
        );
    } else if [&consul.tls_ca_path, &consul.tls_cert_path, &consul.tls_server_name].iter().any(|set| !set.is_empty()) {
        found.add("kv.consul.tls_enabled", "is false although there are TLS settings; set it, or https:// in the host");
    }
    found.check(
        consul.tls_cert_path.is_empty() == consul.tls_key_path.is_empty(),
        "kv.consul.tls_key_path",
        "and kv.consul.tls_cert_path belong together; set both or neither",
    );
}

fn etcd(key: &str, etcd: &EtcdConfig, found: &mut Problems) {
    if !cfg!(feature = "etcd") {
        found.add(key, "is etcd, which this program was built without; build it with the crate's feature `etcd`");
        return;
    }
    found.check(!etcd.endpoints.is_empty(), "kv.etcd.endpoints", "is empty; name the servers, each as host:port");
    for (index, endpoint) in etcd.endpoints.iter().enumerate() {
        let scheme = if etcd.tls_enabled { "https://" } else { "http://" };
        if !is_host_port(endpoint.strip_prefix(scheme).unwrap_or(endpoint)) {
            found.add(format!("kv.etcd.endpoints[{index}]"), format!("`{endpoint}` is not host:port"));
        }
    }
    found.check(
        !etcd.username.is_empty() || etcd.password.expose().is_empty(),
        "kv.etcd.username",
        "is empty although there is a password",
    );
    found.check(
        (1024..=16 * 1024 * 1024).contains(&etcd.max_request_bytes.0),
        "kv.etcd.max_request_bytes",
        "must be between 1KiB and 16MiB",
    );
    found.check(!etcd.dial_timeout.is_zero(), "kv.etcd.dial_timeout", "must be longer than zero");
    if etcd.tls_enabled {
        found.check(
            cfg!(feature = "etcd-tls"),
            "kv.etcd.tls_enabled",
            "needs a program that was built with the crate's feature `etcd-tls`",
        );
    }
    found.check(
        etcd.tls_cert_path.is_empty() == etcd.tls_key_path.is_empty(),
        "kv.etcd.tls_key_path",
        "and kv.etcd.tls_cert_path belong together; set both or neither",
    );
}

/// The keys that name the stores in use.
fn store_keys(config: &Config) -> Vec<(&'static str, KvStore)> {
    match config.kv.store {
        KvStore::Multi => {
            vec![("kv.multi.primary", config.kv.multi.primary), ("kv.multi.secondary", config.kv.multi.secondary)]
        }
        single => vec![("kv.store", single)],
    }
}

fn ring(config: &Config, ring: &RingConfig, at: &dyn Fn(&str) -> String, found: &mut Problems) {
    found.check(!ring.name.is_empty(), &at("name"), "is not set; it names the ring in the library and on pages");
    found.check(!ring.key.is_empty(), &at("key"), "is empty; it names the ring in the store");
    found.check(ring.replication_factor > 0, &at("replication_factor"), "must be at least 1");
    found.check(
        (1..=MAX_TOKENS).contains(&ring.num_tokens),
        &at("num_tokens"),
        "must be between 1 and 4096; more make every copy of the ring larger without a more even share",
    );
    found.check(
        ring.heartbeat_timeout > ring.heartbeat_period,
        &at("heartbeat_timeout"),
        "must be longer than heartbeat_period, or every instance is unhealthy between two heartbeats",
    );
    found.check(
        ring.heartbeat_period >= Duration::from_secs(1),
        &at("heartbeat_period"),
        "must be at least 1s: heartbeats count in whole seconds",
    );
    if ring.join && ring.zone_awareness_enabled {
        found.check(
            !config.node.zone.is_empty(),
            &at("zone_awareness_enabled"),
            "needs node.zone, or this instance belongs to no zone",
        );
    }
    found.check(
        ring.token_generation_strategy == TokenStrategy::Random,
        &at("token_generation_strategy"),
        "spread-minimizing is not available in this version; use random",
    );
    found.check(
        ring.merge_strategy == MergeStrategy::Lattice || config.kv.store != KvStore::Multi,
        &at("merge_strategy"),
        "dskit depends on the order of updates, and a move between two stores must not; use lattice, which names the same owners",
    );
}

/// `host:port`, with brackets around an IPv6 address, and a port that can be dialled.
fn is_host_port(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| is_host(host) && port.parse::<u16>().is_ok_and(|p| p > 0))
}

fn is_host(host: &str) -> bool {
    match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty() && !host.contains([':', '/', '@', '[', ']']) && host.chars().all(|c| c.is_ascii_graphic())
        }
    }
}

fn is_join_member(text: &str) -> bool {
    if let Some(rest) = text.strip_prefix("dns+") {
        // The port is not in an A record, so it must stand here.
        return is_host_port(rest);
    }
    if let Some(name) = text.strip_prefix("dnssrv+").or_else(|| text.strip_prefix("dnssrvnoa+")) {
        return cfg!(feature = "dns-srv") && (is_host_port(name) || is_host(name));
    }
    is_host_port(text) || is_host(text) || text.parse::<IpAddr>().is_ok()
}

fn is_srv(text: &str) -> bool {
    text.starts_with("dnssrv+") || text.starts_with("dnssrvnoa+")
}
