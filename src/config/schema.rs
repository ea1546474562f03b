//! The table of all keys: name, kind, meaning.
//!
//! Three things read it, so they cannot disagree: loading (which keys exist, which values they take), the reference
//! (`docs/reference/configuration.md`, `annulus config reference`) and `config print`. Defaults are not in it: they are
//! read from [`Config::default`](super::Config::default). A test compares the keys here with those of the structs.

use super::kv::KvStore;
use super::profile::Profile;

/// What kind of value a key takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    /// `true` or `false`.
    Bool,
    /// A whole number between these two.
    Integer(u64, u64),
    /// A number, perhaps with a fraction.
    Number,
    /// A duration.
    Duration,
    /// A number of bytes.
    Size,
    /// Any text.
    Text,
    /// A text that is never printed.
    Secret,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A list of texts, or one text with commas.
    TextList,
    /// A list of IP addresses, or one text with commas.
    AddressList,
    /// A list of texts that are never printed.
    SecretList,
}

impl Kind {
    /// How the kind is called in the reference and in errors.
    pub(crate) fn describe(self) -> String {
        match self {
            Self::Bool => "true or false".to_owned(),
            Self::Integer(0, PORT_MAX) => "a port, 0 to 65535".to_owned(),
            Self::Integer(low, U32_MAX) => format!("a whole number from {low}"),
            Self::Integer(low, high) => format!("a whole number from {low} to {high}"),
            Self::Number => "a number".to_owned(),
            Self::Duration => "a duration such as 15s or 1m30s".to_owned(),
            Self::Size => "a size such as 1400B or 20MiB".to_owned(),
            Self::Text => "a text".to_owned(),
            Self::Secret => "a text (secret)".to_owned(),
            Self::Choice(words) => format!("one of {}", words.join(", ")),
            Self::TextList => "a list of texts, or one text with commas".to_owned(),
            Self::AddressList => "a list of IP addresses, or one text with commas".to_owned(),
            Self::SecretList => "a list of texts (secret)".to_owned(),
        }
    }

    /// True when the value must not appear in a message.
    pub(crate) fn is_secret(self) -> bool {
        matches!(self, Self::Secret | Self::SecretList)
    }
}

/// One key.
#[derive(Debug)]
pub(crate) struct Key {
    /// Dotted name; `rings[].name` stands for that key of every ring.
    pub(crate) path: &'static str,
    /// What it takes.
    pub(crate) kind: Kind,
    /// What it does, for an operator.
    pub(crate) meaning: &'static str,
}

const PORT_MAX: u64 = u16::MAX as u64;
const U32_MAX: u64 = u32::MAX as u64;
const PORT: Kind = Kind::Integer(0, PORT_MAX);
const COUNT: Kind = Kind::Integer(0, U32_MAX);
const ONE_UP: Kind = Kind::Integer(1, U32_MAX);

const fn key(path: &'static str, kind: Kind, meaning: &'static str) -> Key {
    Key { path, kind, meaning }
}

/// The key with this normalised name.
pub(crate) fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// True when keys stand under this name, so that it is a section and no value.
pub(crate) fn is_section(path: &str) -> bool {
    KEYS.iter().any(|key| key.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
}

/// The names that stand directly under a section (`""` is the root), without repeats.
pub(crate) fn children(section: &str) -> Vec<&'static str> {
    let mut names = Vec::new();
    for key in KEYS {
        let rest = if section.is_empty() {
            Some(key.path)
        } else {
            key.path.strip_prefix(section).and_then(|rest| rest.strip_prefix('.'))
        };
        if let Some(name) = rest.and_then(|rest| rest.split('.').next()).map(|name| name.trim_end_matches("[]"))
            && !names.contains(&name)
        {
            names.push(name);
        }
    }
    names
}

/// All keys, in the order of the reference.
#[rustfmt::skip]
pub(crate) static KEYS: &[Key] = &[
    key("node.id", Kind::Text, "Name of this node and of its instance in every ring. Required, unique in the cluster, at most 255 bytes."),
    key("node.zone", Kind::Text, "Availability zone. Required when a joined ring has zone_awareness_enabled."),
    key("node.address", Kind::Text, "host:port that peers of the application dial. Required when a ring is joined."),
    key("node.data_dir", Kind::Text, "Directory for what survives a restart: the last good runtime config. Empty keeps nothing."),

    key("memberlist.transport", Kind::Choice(&["udp", "tcp"]), "udp: UDP packets and TCP streams, as memberlist, Serf and Consul. tcp: all TCP, as the Grafana databases; goes with profile grafana."),
    key("memberlist.bind_addr", Kind::AddressList, "IP addresses to listen on. Empty means all IPv4 addresses."),
    key("memberlist.bind_port", PORT, "Port to listen on. 0 lets the system choose one."),
    key("memberlist.advertise_addr", Kind::Text, "IP address that other nodes reach this one at. Empty: found from the bind address."),
    key("memberlist.advertise_port", PORT, "Port that other nodes reach this one at. 0: the bound port."),
    key("memberlist.join_members", Kind::TextList, "Nodes to join through: host:port, dns+host:port, or by SRV records dnssrv+name and dnssrvnoa+name (feature dns-srv). Empty starts a cluster of one. Names are resolved again every rejoin_interval."),
    key("memberlist.rejoin_interval", Kind::Duration, "How often join_members are contacted again, which heals a split cluster. 0s turns it off."),
    key("memberlist.min_join_backoff", Kind::Duration, "First wait after a failed join."),
    key("memberlist.max_join_backoff", Kind::Duration, "Longest wait between attempts to join."),
    key("memberlist.max_join_retries", COUNT, "Attempts to join before the node goes on alone, or ends with abort_if_cluster_join_fails. 0 never gives up. Seeds are tried again for ever all the same."),
    key("memberlist.abort_if_cluster_join_fails", Kind::Bool, "Whether the node fails when it could not join."),
    key("memberlist.cluster_label", Kind::Text, "Label in front of every packet and stream, which keeps clusters apart. At most 255 bytes; empty sends none."),
    key("memberlist.cluster_label_verification_disabled", Kind::Bool, "Accept any label, and none, from others: for a rollout that introduces a label."),
    key("memberlist.accepted_labels", Kind::TextList, "Further labels accepted from others, during a change of label."),
    key("memberlist.encryption_keys", Kind::SecretList, "Gossip keys in base64, of 16, 24 or 32 bytes, at most 8; the first encrypts, all decrypt. Empty: no encryption."),
    key("memberlist.gossip_verify_incoming", Kind::Bool, "With keys: refuse what is not encrypted. Switched on last when a running cluster moves to encryption."),
    key("memberlist.gossip_verify_outgoing", Kind::Bool, "With keys: encrypt what is sent. Switched on when every node has the keys."),
    key("memberlist.compression", Kind::Choice(&["none", "lzw", "snappy"]), "How sent messages are compressed. lzw: every member reads it. snappy: only Annulus and Grafana's fork."),
    key("memberlist.profile", Kind::Choice(Profile::NAMES), "Set of timings that the keys below start from."),
    key("memberlist.gossip_interval", Kind::Duration, "Time between gossip ticks. 0s turns the tick off."),
    key("memberlist.gossip_nodes", ONE_UP, "Members sent to at each gossip tick."),
    key("memberlist.retransmit_factor", ONE_UP, "Transmissions of one message, times log10 of the cluster size."),
    key("memberlist.pull_push_interval", Kind::Duration, "Time between exchanges of the full state with a random member. 0s turns them off."),
    key("memberlist.gossip_to_dead_nodes_time", Kind::Duration, "How long a dead node is still gossiped to, so that it can refute."),
    key("memberlist.probe_interval", Kind::Duration, "Time between probes of a member."),
    key("memberlist.probe_timeout", Kind::Duration, "Wait for the answer to a probe before others are asked to help. Shorter than probe_interval."),
    key("memberlist.suspicion_mult", ONE_UP, "Smallest time that a member stays suspect, in probe intervals times log10 of the cluster size."),
    key("memberlist.suspicion_max_mult", ONE_UP, "Largest time that a member stays suspect, as a multiple of the smallest."),
    key("memberlist.indirect_checks", COUNT, "Members asked to probe one that does not answer."),
    key("memberlist.udp_buffer_size", Kind::Size, "Most bytes in one packet."),
    key("memberlist.stream_timeout", Kind::Duration, "Deadline of a whole exchange over a stream."),
    key("memberlist.packet_dial_timeout", Kind::Duration, "With transport tcp: longest wait for the connection of one packet."),
    key("memberlist.packet_write_timeout", Kind::Duration, "With transport tcp: longest wait until one packet is taken."),
    key("memberlist.max_concurrent_writes", ONE_UP, "With transport tcp: packets written at the same time. Peers that hang keep at most half of them."),
    key("memberlist.left_ingesters_timeout", Kind::Duration, "How long an instance that left stays in the ring as a tombstone. 0s keeps it for ever."),
    key("memberlist.obsolete_entries_timeout", Kind::Duration, "How long a deleted key is remembered. 0s keeps it for ever. Must outlive two push/pulls, so dskit's 30s is not the default."),
    key("memberlist.leave_timeout", Kind::Duration, "Longest wait for the message that this node leaves to be sent."),
    key("memberlist.cidrs_allowed", Kind::TextList, "Networks that members may come from, such as 10.0.0.0/8 or fd00::/8. Announcements from elsewhere, or of other addresses, are refused and counted. Empty allows all."),
    key("memberlist.tls_enabled", Kind::Bool, "Use TLS between nodes (needs transport tcp; not in this version)."),
    key("memberlist.tls_cert_path", Kind::Text, "Certificate of this node, PEM."),
    key("memberlist.tls_key_path", Kind::Text, "Private key of this node, PEM."),
    key("memberlist.tls_ca_path", Kind::Text, "Authorities that sign the certificates of others, PEM."),
    key("memberlist.tls_server_name", Kind::Text, "Name expected in the certificates of others."),

    key("kv.store", Kind::Choice(KvStore::NAMES), "Store of the rings. multi is two of them, for a migration; etcd needs a program built with the feature etcd."),
    key("kv.prefix", Kind::Text, "Put in front of every ring key."),
    key("kv.consul.host", Kind::Text, "host:port of Consul's HTTP interface. https:// before them asks for TLS."),
    key("kv.consul.acl_token", Kind::Secret, "Token sent to Consul."),
    key("kv.consul.consistent_reads", Kind::Bool, "Ask Consul for consistent instead of possibly stale reads."),
    key("kv.consul.watch_rate_limit", Kind::Number, "Watch requests a second. 0 sets no limit."),
    key("kv.consul.watch_burst_size", COUNT, "Watch requests that may exceed the rate for a moment."),
    key("kv.consul.tls_enabled", Kind::Bool, "Use TLS to Consul, as https:// in host does. Needs a program built with the feature consul-tls."),
    key("kv.consul.tls_cert_path", Kind::Text, "Our certificate, where Consul wants one, PEM."),
    key("kv.consul.tls_key_path", Kind::Text, "Private key of that certificate, PEM."),
    key("kv.consul.tls_ca_path", Kind::Text, "Authorities that sign Consul's certificates, PEM. Empty: those of the system."),
    key("kv.consul.tls_server_name", Kind::Text, "Name expected in Consul's certificates, such as server.dc1.consul. Empty: the host."),
    key("kv.consul.tls_insecure_skip_verify", Kind::Bool, "Accept any certificate of Consul: whoever can redirect the connection reads the token and writes the ring."),
    key("kv.etcd.endpoints", Kind::TextList, "host:port of the etcd servers. One is asked until it fails, then the next."),
    key("kv.etcd.username", Kind::Text, "User at etcd."),
    key("kv.etcd.password", Kind::Secret, "Password at etcd."),
    key("kv.etcd.tls_enabled", Kind::Bool, "Use TLS to etcd. Needs a program built with the feature etcd-tls."),
    key("kv.etcd.tls_cert_path", Kind::Text, "Our certificate, where etcd wants one, PEM."),
    key("kv.etcd.tls_key_path", Kind::Text, "Private key of that certificate, PEM."),
    key("kv.etcd.tls_ca_path", Kind::Text, "Authorities that sign etcd's certificates, PEM. Empty: those of the system."),
    key("kv.etcd.tls_server_name", Kind::Text, "Name expected in etcd's certificates. Empty: the host of the endpoint."),
    key("kv.etcd.dial_timeout", Kind::Duration, "Longest wait for a connection to etcd."),
    key("kv.etcd.max_retries", COUNT, "Attempts of one compare-and-swap at etcd; 0 counts as 1."),
    key("kv.etcd.max_request_bytes", Kind::Size, "Largest request that the servers take, their --max-request-bytes. A value must be a little smaller."),
    key("kv.multi.primary", Kind::Choice(KvStore::NAMES), "Store that is read, until the runtime config names another."),
    key("kv.multi.secondary", Kind::Choice(KvStore::NAMES), "The other store."),
    key("kv.multi.mirror_enabled", Kind::Bool, "Write to both stores, until the runtime config says otherwise."),
    key("kv.multi.mirror_timeout", Kind::Duration, "Longest wait for one mirrored write. 0s sets no limit."),
    key("kv.multi.keep_tombstones", Kind::Bool, "Keep removed instances in Consul or etcd as LEFT entries for left_ingesters_timeout: no node that is behind brings them back. false: for programs of Grafana that read there."),

    key("rings[].name", Kind::Text, "Name of the ring in the library, on pages and in metrics. Required, unique."),
    key("rings[].key", Kind::Text, "Key of the ring in the store, after kv.prefix."),
    key("rings[].join", Kind::Bool, "Whether this node is an instance of the ring, or only reads it."),
    key("rings[].replication_factor", Kind::Integer(0, U32_MAX), "Instances that own each key."),
    key("rings[].zone_awareness_enabled", Kind::Bool, "Choose the owners of a key in different zones."),
    key("rings[].num_tokens", Kind::Integer(0, U32_MAX), "Tokens of this instance, 1 to 4096."),
    key("rings[].tokens_file_path", Kind::Text, "File that keeps the tokens across restarts. Empty keeps none."),
    key("rings[].token_generation_strategy", Kind::Choice(&["random", "spread-minimizing"]), "How tokens are chosen. spread-minimizing is not available in this version."),
    key("rings[].heartbeat_period", Kind::Duration, "Time between heartbeats of this instance."),
    key("rings[].heartbeat_timeout", Kind::Duration, "Age of a heartbeat from which an instance counts as unhealthy. Longer than heartbeat_period."),
    key("rings[].observe_period", Kind::Duration, "How long a new instance watches for others with its tokens before it serves."),
    key("rings[].join_after", Kind::Duration, "How long an instance waits before it joins."),
    key("rings[].min_ready_duration", Kind::Duration, "How long the ring must look healthy before this instance is ready."),
    key("rings[].final_sleep", Kind::Duration, "Wait between leaving and stopping, so that others notice."),
    key("rings[].unregister_on_shutdown", Kind::Bool, "Remove this instance from the ring when it stops, instead of leaving it there for its return."),
    key("rings[].excluded_zones", Kind::TextList, "Zones whose instances are never owners."),
    key("rings[].merge_strategy", Kind::Choice(&["lattice", "dskit"]), "How updates of the ring are merged. lattice: free of their order. dskit: bit for bit as Grafana's nodes. Not with kv.store multi."),
    key("rings[].auto_forget_unhealthy_periods", COUNT, "Forget an instance after this many heartbeat timeouts without a heartbeat. 0 never forgets."),

    key("runtime_config.file", Kind::TextList, "Files with what may change while running, merged from left to right. Empty turns reloading off."),
    key("runtime_config.period", Kind::Duration, "How often the files are read."),

    key("migration.enabled", Kind::Bool, "The guided migration over the fleet (not in this version)."),
    key("migration.require_parity", Kind::Bool, "A node flips only while every gate is open; until then it stays on the old primary, says why, and keeps trying."),
    key("migration.shadow_lookups", Kind::Number, "Share of lookups, 0 to 1, that are answered from both stores and compared. 0 turns it off."),
    key("migration.teardown", Kind::Bool, "Says to people and tools that the old store is going: the way back of a node with two stores is shown as impossible. Changes nothing else."),

    key("http.listen", Kind::Text, "IP address and port of the agent's pages and API. Empty opens none."),
    key("http.admin_token_file", Kind::Text, "File with the token that changes need. Empty: changes from loopback only."),
    key("http.drills_enabled", Kind::Bool, "Allow requests that break things on purpose, for exercises."),
];
