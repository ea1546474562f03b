//! The Consul store: values as plain bytes under Consul's key-value HTTP API, readable and writable by every other
//! program that uses the same codec.
//!
//! Writes are conditional on the `ModifyIndex` that was read, so no concurrent write is ever lost. Consul itself has no
//! idea of merging; by default a removed entry is therefore removed for good, which is what the programs of the Grafana
//! family expect of a ring in Consul. See [`ConsulConfig::keep_tombstones`] for the other way.
//!
//! ```no_run
//! use annulus::kv::{Codecs, Store};
//! use annulus::stores::consul::{ConsulConfig, ConsulStore};
//! use std::sync::Arc;
//!
//! # async fn example() -> Result<(), annulus::kv::StoreError> {
//! let config = ConsulConfig { host: "consul.internal:8500".to_owned(), ..ConsulConfig::default() };
//! let store = ConsulStore::new(config, Arc::new(Codecs::default()))?;
//! println!("{:?}", store.list("collectors/").await?);
//! # Ok(())
//! # }
//! ```

mod client;
mod connect;
mod http;
mod limit;
#[cfg(test)]
mod tests;
mod tls;
mod watch;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use self::client::{Client, Consistency};
use super::remote::backoff::Backoff;
use super::remote::mailbox::Watches;
use super::remote::{Edit, Prepared, Target, Tombstones, Writers, codec_for, decode, stored_size};
use crate::clock::Now;
use crate::kv::{BoxFuture, CasFn, CasOutcome, Codecs, Entry, Store, StoreError, StoreKind, Value, ValueSize, Watch};

/// The largest value that Consul takes with its default settings, in bytes.
pub const VALUE_LIMIT: usize = 512 * 1024;

/// The first pause after a lost compare-and-swap is at most this long; it doubles up to the configured delay.
const FIRST_CAS_DELAY: Duration = Duration::from_millis(20);

/// How to reach Consul and how to treat it.
#[derive(Clone)]
pub struct ConsulConfig {
    /// Host and port of the HTTP API. `https://` before them asks for TLS, as [`ConsulConfig::tls`] does. Proxies from
    /// the environment are not used. Default: `localhost:8500`.
    pub host: String,
    /// How to speak TLS. `None` does not, unless the host asks for it; then it is the default. Needs the feature
    /// `consul-tls`. Default: `None`.
    pub tls: Option<ConsulTls>,
    /// Sent as `X-Consul-Token` when not empty. Never logged. Default: empty.
    pub acl_token: String,
    /// Whether reads and watches ask the leader to confirm that it leads (`?consistent`), instead of taking any
    /// server's answer (`?stale`). A compare-and-swap always reads from the leader, and so does what copies and compares
    /// during a move. Default: false.
    pub consistent_reads: bool,
    /// The longest time that one request may take. A watch asks Consul to hold its answer back for half of it, at most
    /// 10 s. Default: 20 s.
    pub http_client_timeout: Duration,
    /// How many times a second one watch may ask, on average; 0 or less: as often as something changes. Default: 1.
    pub watch_rate_limit: f64,
    /// How many requests a watch may send in a row before the rate limit holds it back; 0 counts as 1. Default: 1.
    pub watch_burst_size: u32,
    /// The longest pause before a lost compare-and-swap is tried again; the actual pause is random. Default: 1 s.
    pub cas_retry_delay: Duration,
    /// How often a compare-and-swap is tried before it fails with [`StoreError::Conflict`]; 0 counts as 1.
    /// Default: 10.
    pub max_cas_retries: u32,
    /// Whether tombstones are written to Consul. With `false`, removed entries are physically absent, as other
    /// programs that keep rings in Consul know it. Default: false.
    pub keep_tombstones: bool,
    /// How long tombstones are kept when they are kept at all (0: for ever), and how long a watch holds on to newer
    /// content after Consul was restored from an older state. Default: 5 min.
    pub left_timeout: Duration,
}

/// How to speak TLS with Consul. Files are PEM; they are read when the store is opened, and again for every new
/// connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConsulTls {
    /// Authorities that sign Consul's certificates. `None`: those of the system.
    pub ca_path: Option<PathBuf>,
    /// Our own certificate, where Consul wants one (`verify_incoming`).
    pub cert_path: Option<PathBuf>,
    /// The private key of that certificate.
    pub key_path: Option<PathBuf>,
    /// The name in Consul's certificate, such as `server.dc1.consul`. `None`: the host.
    pub server_name: Option<String>,
    /// Accept any certificate. Whoever can redirect the connection can then read the token and change the ring; said in
    /// the log when the store is opened. Default: no.
    pub insecure_skip_verify: bool,
}

impl Default for ConsulConfig {
    fn default() -> Self {
        Self {
            host: "localhost:8500".to_owned(),
            tls: None,
            acl_token: String::new(),
            consistent_reads: false,
            http_client_timeout: Duration::from_secs(20),
            watch_rate_limit: 1.0,
            watch_burst_size: 1,
            cas_retry_delay: Duration::from_secs(1),
            max_cas_retries: 10,
            keep_tombstones: false,
            left_timeout: Duration::from_secs(5 * 60),
        }
    }
}

impl fmt::Debug for ConsulConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsulConfig")
            .field("host", &self.host)
            .field("tls", &self.tls)
            .field("acl_token", &if self.acl_token.is_empty() { "none" } else { "set" })
            .field("consistent_reads", &self.consistent_reads)
            .field("http_client_timeout", &self.http_client_timeout)
            .field("watch_rate_limit", &self.watch_rate_limit)
            .field("watch_burst_size", &self.watch_burst_size)
            .field("cas_retry_delay", &self.cas_retry_delay)
            .field("max_cas_retries", &self.max_cas_retries)
            .field("keep_tombstones", &self.keep_tombstones)
            .field("left_timeout", &self.left_timeout)
            .finish()
    }
}

impl ConsulConfig {
    fn read_consistency(&self) -> Consistency {
        if self.consistent_reads { Consistency::Consistent } else { Consistency::Stale }
    }

    /// That of a read which must not miss what was written before it.
    fn latest_consistency(&self) -> Consistency {
        if self.consistent_reads { Consistency::Consistent } else { Consistency::Leader }
    }

    fn tombstones(&self) -> Tombstones {
        Tombstones { keep: self.keep_tombstones, lifetime: self.left_timeout }
    }
}

/// A [`Store`] in Consul. All operations must be called, and watches polled, within a tokio runtime.
///
/// Consul does not say which `ModifyIndex` a write got, so it is read afterwards: the version in
/// [`CasOutcome::Written`] may be that of a write that followed at once. After a join it is not read, and the version only
/// a lower bound. After Consul was restored from an older state, a watch goes on counting from the last version that it
/// delivered.
#[derive(Debug)]
pub struct ConsulStore {
    shared: Arc<Shared>,
    writers: Writers,
}

/// What operations and watch tasks have in common.
#[derive(Debug)]
struct Shared {
    client: Client,
    config: ConsulConfig,
    codecs: Arc<Codecs>,
    watches: Arc<Watches>,
}

impl ConsulStore {
    /// A store at the configured address. Does not connect yet.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when host, token or timeout cannot be used as they are configured.
    pub fn new(config: ConsulConfig, codecs: Arc<Codecs>) -> Result<Arc<Self>, StoreError> {
        let client = Client::new(&config)?;
        let shared = Arc::new(Shared { client, config, codecs, watches: Arc::default() });
        Ok(Arc::new(Self { shared, writers: Writers::default() }))
    }

    async fn read(&self, key: &str, consistency: Consistency) -> Result<Option<Entry>, StoreError> {
        let Shared { client, codecs, .. } = &*self.shared;
        let codec = codec_for(codecs, key)?;
        let reply = client.read(&Target::Key(key.into()), consistency, None).await?;
        let Some(pair) = reply.pairs.into_iter().next() else { return Ok(None) };
        Ok(Some(Entry { value: decode(&*codec, key, &pair.value)?, version: pair.version }))
    }

    async fn keys(&self, prefix: &str, consistency: Consistency) -> Result<Vec<String>, StoreError> {
        let (mut keys, _) = self.shared.client.keys(prefix, consistency).await?;
        keys.retain(|key| key.starts_with(prefix));
        keys.sort_unstable();
        Ok(keys)
    }

    async fn edit(&self, key: &str, mut edit: Edit) -> Result<CasOutcome, StoreError> {
        let Shared { client, config, codecs, .. } = &*self.shared;
        let codec = codec_for(codecs, key)?;
        let writer = self.writers.of(key);
        let _turn = tokio::time::timeout(config.http_client_timeout, writer.lock())
            .await
            .map_err(|_| StoreError::Timeout { store: StoreKind::Consul, after: config.http_client_timeout })?;
        let mut backoff = Backoff::new(FIRST_CAS_DELAY, config.cas_retry_delay);
        let attempts = config.max_cas_retries.max(1);
        for attempt in 1..=attempts {
            let reply = client.read(&Target::Key(key.into()), Consistency::Leader, None).await?;
            let found = reply.pairs.into_iter().next();
            // A key that vanished between two attempts must be created, not compared with the index it once had.
            let index = found.as_ref().map_or(0, |pair| pair.version);
            let Some(Prepared { bytes, delta, joins }) =
                edit.prepare(key, &*codec, found.as_ref(), &config.tombstones())?
            else {
                return Ok(CasOutcome::Unchanged);
            };
            if client.write(key, bytes, index).await? {
                // Consul does not tell the new index. Asking for it may fail, but the write has happened.
                let at_least = reply.index.unwrap_or(0).max(index).saturating_add(1);
                // Asking for one is a third request, and all that mirror would make it with every heartbeat.
                if joins {
                    return Ok(CasOutcome::Written { delta, version: at_least });
                }
                let version = client.modify_index(key).await.ok().flatten().unwrap_or(at_least).max(at_least);
                return Ok(CasOutcome::Written { delta, version });
            }
            if attempt < attempts {
                backoff.pause().await;
            }
        }
        Err(StoreError::Conflict { key: key.to_owned(), attempts })
    }
}

impl Store for ConsulStore {
    fn kind(&self) -> StoreKind {
        StoreKind::Consul
    }

    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<Entry>, StoreError>> {
        let key = key.to_owned();
        Box::pin(async move { self.read(&key, self.shared.config.read_consistency()).await })
    }

    fn list(&self, prefix: &str) -> BoxFuture<'_, Result<Vec<String>, StoreError>> {
        let prefix = prefix.to_owned();
        Box::pin(async move { self.keys(&prefix, self.shared.config.read_consistency()).await })
    }

    fn get_latest(&self, key: &str) -> BoxFuture<'_, Result<Option<Entry>, StoreError>> {
        let key = key.to_owned();
        Box::pin(async move { self.read(&key, self.shared.config.latest_consistency()).await })
    }

    fn list_latest(&self, prefix: &str) -> BoxFuture<'_, Result<Vec<String>, StoreError>> {
        let prefix = prefix.to_owned();
        Box::pin(async move { self.keys(&prefix, self.shared.config.latest_consistency()).await })
    }

    fn cas(&self, key: &str, f: CasFn) -> BoxFuture<'_, Result<CasOutcome, StoreError>> {
        let key = key.to_owned();
        Box::pin(async move { self.edit(&key, Edit::Cas(f)).await })
    }

    fn join(&self, key: &str, delta: Value) -> BoxFuture<'_, Result<CasOutcome, StoreError>> {
        let key = key.to_owned();
        Box::pin(async move { self.edit(&key, Edit::Join(delta)).await })
    }

    fn delete(&self, key: &str) -> BoxFuture<'_, Result<(), StoreError>> {
        let key = key.to_owned();
        Box::pin(async move { self.shared.client.delete(&key).await })
    }

    fn watch_key(&self, key: &str) -> Watch {
        watch::start(self.shared.clone(), Target::Key(key.into()))
    }

    fn watch_prefix(&self, prefix: &str) -> Watch {
        watch::start(self.shared.clone(), Target::Prefix(prefix.into()))
    }

    fn limits_values(&self) -> bool {
        true
    }

    fn size_of(&self, key: &str, value: &Value) -> Option<ValueSize> {
        let size = stored_size(&self.shared.codecs, key, value, &self.shared.config.tombstones())?;
        Some(ValueSize { size, limit: VALUE_LIMIT })
    }

    fn watch_age(&self, now: Now) -> Option<Duration> {
        self.shared.watches.age(now)
    }
}
