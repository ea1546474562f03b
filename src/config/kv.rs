//! The `kv` section.
//!
//! Key names follow Mimir and Loki where they have the setting, so that an operator can carry theirs over. The
//! reference in `docs/reference/configuration.md` is generated from `schema.rs`, which names every key of these
//! structs.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::units::{self, ByteSize, Secret};

/// Which store holds the rings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KvStore {
    /// Gossip between the nodes.
    #[default]
    Memberlist,
    /// A Consul server.
    Consul,
    /// An etcd cluster. Needs the crate's feature `etcd`.
    Etcd,
    /// A store in this process alone, for tests.
    Inmemory,
    /// Two stores at once, during a migration.
    Multi,
}

impl KvStore {
    /// The names as they stand in a file.
    pub const NAMES: &'static [&'static str] = &["memberlist", "consul", "etcd", "inmemory", "multi"];

    /// The store with this name, written exactly so.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Memberlist, Self::Consul, Self::Etcd, Self::Inmemory, Self::Multi].into_iter().find(|s| s.name() == name)
    }

    /// The name as it stands in a file and in a metric.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Memberlist => "memberlist",
            Self::Consul => "consul",
            Self::Etcd => "etcd",
            Self::Inmemory => "inmemory",
            Self::Multi => "multi",
        }
    }
}

/// The store of the rings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KvConfig {
    /// Store of the rings. multi is two of them, for a migration; etcd needs a program built with the feature etcd.
    pub store: KvStore,
    /// Put in front of every ring key.
    pub prefix: String,
    /// The Consul server.
    pub consul: ConsulConfig,
    /// The etcd servers.
    pub etcd: EtcdConfig,
    /// The two stores of a migration.
    pub multi: MultiConfig,
}

impl Default for KvConfig {
    fn default() -> Self {
        Self {
            store: KvStore::Memberlist,
            prefix: "collectors/".to_owned(),
            consul: ConsulConfig::default(),
            etcd: EtcdConfig::default(),
            multi: MultiConfig::default(),
        }
    }
}

impl KvConfig {
    /// The stores that this configuration opens: one, or primary and secondary.
    #[must_use]
    pub fn stores(&self) -> Vec<KvStore> {
        match self.store {
            KvStore::Multi => vec![self.multi.primary, self.multi.secondary],
            single => vec![single],
        }
    }

    /// True when one of the stores is gossip, so that the memberlist section is in use.
    #[must_use]
    pub fn uses_gossip(&self) -> bool {
        self.stores().contains(&KvStore::Memberlist)
    }
}

/// A Consul server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConsulConfig {
    /// host:port of Consul's HTTP interface. https:// before them asks for TLS.
    pub host: String,
    /// Token sent to Consul.
    pub acl_token: Secret,
    /// Ask Consul for consistent instead of possibly stale reads.
    pub consistent_reads: bool,
    /// Watch requests a second. 0 sets no limit.
    pub watch_rate_limit: f64,
    /// Watch requests that may exceed the rate for a moment.
    pub watch_burst_size: u32,
    /// Use TLS to Consul, as https:// in host does. Needs a program built with the feature consul-tls.
    pub tls_enabled: bool,
    /// Our certificate, where Consul wants one, PEM.
    pub tls_cert_path: String,
    /// Private key of that certificate, PEM.
    pub tls_key_path: String,
    /// Authorities that sign Consul's certificates, PEM. Empty: those of the system.
    pub tls_ca_path: String,
    /// Name expected in Consul's certificates, such as server.dc1.consul. Empty: the host.
    pub tls_server_name: String,
    /// Accept any certificate of Consul: whoever can redirect the connection reads the token and writes the ring.
    pub tls_insecure_skip_verify: bool,
}

impl ConsulConfig {
    /// Whether connections to Consul use TLS.
    #[must_use]
    pub fn uses_tls(&self) -> bool {
        self.tls_enabled || self.host.starts_with("https://")
    }
}

impl Default for ConsulConfig {
    fn default() -> Self {
        Self {
            host: "localhost:8500".to_owned(),
            acl_token: Secret::default(),
            consistent_reads: false,
            watch_rate_limit: 1.0,
            watch_burst_size: 1,
            tls_enabled: false,
            tls_cert_path: String::new(),
            tls_key_path: String::new(),
            tls_ca_path: String::new(),
            tls_server_name: String::new(),
            tls_insecure_skip_verify: false,
        }
    }
}

/// An etcd cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EtcdConfig {
    /// host:port of the etcd servers. One is asked until it fails, then the next.
    #[serde(deserialize_with = "units::list")]
    pub endpoints: Vec<String>,
    /// User at etcd.
    pub username: String,
    /// Password at etcd.
    pub password: Secret,
    /// Use TLS to etcd. Needs a program built with the feature etcd-tls.
    pub tls_enabled: bool,
    /// Our certificate, where etcd wants one, PEM.
    pub tls_cert_path: String,
    /// Private key of that certificate, PEM.
    pub tls_key_path: String,
    /// Authorities that sign etcd's certificates, PEM. Empty: those of the system.
    pub tls_ca_path: String,
    /// Name expected in etcd's certificates. Empty: the host of the endpoint.
    pub tls_server_name: String,
    /// Longest wait for a connection to etcd.
    #[serde(with = "units::duration")]
    pub dial_timeout: Duration,
    /// Attempts of one compare-and-swap at etcd; 0 counts as 1.
    pub max_retries: u32,
    /// Largest request that the servers take, their --max-request-bytes. A value must be a little smaller.
    pub max_request_bytes: ByteSize,
}

impl Default for EtcdConfig {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            username: String::new(),
            password: Secret::default(),
            tls_enabled: false,
            tls_cert_path: String::new(),
            tls_key_path: String::new(),
            tls_ca_path: String::new(),
            tls_server_name: String::new(),
            dial_timeout: Duration::from_secs(10),
            max_retries: 10,
            max_request_bytes: ByteSize(3 * 512 * 1024),
        }
    }
}

/// The two stores of a migration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MultiConfig {
    /// Store that is read, until the runtime config names another.
    pub primary: KvStore,
    /// The other store.
    pub secondary: KvStore,
    /// Write to both stores, until the runtime config says otherwise.
    pub mirror_enabled: bool,
    /// Longest wait for one mirrored write. 0s sets no limit.
    #[serde(with = "units::duration")]
    pub mirror_timeout: Duration,
    /// Keep removed instances in Consul or etcd as LEFT entries, so that a node that is behind cannot bring them back.
    /// false: take them out at once, for programs of the Grafana family that read there.
    pub keep_tombstones: bool,
}

impl Default for MultiConfig {
    fn default() -> Self {
        Self {
            primary: KvStore::Consul,
            secondary: KvStore::Memberlist,
            mirror_enabled: false,
            mirror_timeout: Duration::from_secs(2),
            keep_tombstones: true,
        }
    }
}
