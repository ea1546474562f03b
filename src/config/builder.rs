//! A configuration written in code.
//!
//! The common settings have a method each. Everything else is a public field: [`ConfigBuilder::with`] reaches it.

use std::net::IpAddr;
use std::path::PathBuf;

use super::{Config, ConfigError, KvStore, MultiConfig, Profile, RingConfig};

/// Builds a [`Config`], see [`Config::builder`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct ConfigBuilder {
    config: Config,
}

impl ConfigBuilder {
    pub(super) fn new(id: impl Into<String>) -> Self {
        let mut config = Config::default();
        config.node.id = id.into();
        Self { config }
    }

    /// Changes any setting: `.with(|c| c.memberlist.max_join_retries = 0)`.
    pub fn with(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(&mut self.config);
        self
    }

    /// Availability zone.
    pub fn zone(self, zone: impl Into<String>) -> Self {
        let zone = zone.into();
        self.with(|c| c.node.zone = zone)
    }

    /// `host:port` that peers of the application dial.
    pub fn address(self, address: impl Into<String>) -> Self {
        let address = address.into();
        self.with(|c| c.node.address = address)
    }

    /// Directory for what survives a restart.
    pub fn data_dir(self, dir: impl Into<String>) -> Self {
        let dir = dir.into();
        self.with(|c| c.node.data_dir = dir)
    }

    /// Address and port of the gossip protocol; port 0 lets the system choose.
    pub fn bind(self, address: IpAddr, port: u16) -> Self {
        self.with(|c| {
            c.memberlist.bind_addr = vec![address];
            c.memberlist.bind_port = port;
        })
    }

    /// Nodes to join through.
    pub fn join_members<I: IntoIterator<Item: Into<String>>>(self, members: I) -> Self {
        let members = members.into_iter().map(Into::into).collect();
        self.with(|c| c.memberlist.join_members = members)
    }

    /// Label that keeps this cluster apart from others.
    pub fn cluster_label(self, label: impl Into<String>) -> Self {
        let label = label.into();
        self.with(|c| c.memberlist.cluster_label = label)
    }

    /// Timings of the membership protocol.
    pub fn profile(self, profile: Profile) -> Self {
        self.with(|c| c.memberlist.profile = profile)
    }

    /// Store of the rings.
    pub fn store(self, store: KvStore) -> Self {
        self.with(|c| c.kv.store = store)
    }

    /// Two stores, for a migration: `primary` is read until the runtime configuration names the other.
    pub fn multi(self, primary: KvStore, secondary: KvStore) -> Self {
        self.with(|c| {
            c.kv.store = KvStore::Multi;
            c.kv.multi = MultiConfig { primary, secondary, ..c.kv.multi.clone() };
        })
    }

    /// `host:port` of Consul.
    pub fn consul_host(self, host: impl Into<String>) -> Self {
        let host = host.into();
        self.with(|c| c.kv.consul.host = host)
    }

    /// Joins a ring of this name, with default settings.
    pub fn ring(self, name: impl Into<String>) -> Self {
        self.ring_with(RingConfig::named(name))
    }

    /// Adds a ring.
    pub fn ring_with(self, ring: RingConfig) -> Self {
        self.with(|c| c.rings.push(ring))
    }

    /// Adds a file of the runtime configuration; later ones win.
    pub fn runtime_config_file(self, path: impl Into<PathBuf>) -> Self {
        let path = path.into().display().to_string();
        self.with(|c| c.runtime_config.file.push(path))
    }

    /// Address and port of pages and API; empty opens none.
    pub fn http_listen(self, address: impl Into<String>) -> Self {
        let address = address.into();
        self.with(|c| c.http.listen = address)
    }

    /// Checks and gives the configuration.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Invalid`] with every combination that cannot work.
    pub fn build(self) -> Result<Config, ConfigError> {
        self.config.validate()?;
        Ok(self.config)
    }
}
