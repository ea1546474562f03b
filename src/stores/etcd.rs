//! The etcd store: values as plain bytes under etcd's version 3 API, readable and writable by every other program that
//! uses the same codec.
//!
//! Reads are linearizable. Writes are conditional on the `mod_revision` that was read, which grows with every write of
//! the whole store; etcd's other counter, `version`, begins anew when a key is deleted and created, and a write that
//! compares it can overwrite what it has never seen. etcd has no idea of merging; by default a removed entry is removed
//! for good. See [`EtcdConfig::keep_tombstones`] for the other way.
//!
//! ```no_run
//! use annulus::kv::{Codecs, Store};
//! use annulus::stores::etcd::{EtcdConfig, EtcdStore};
//! use std::sync::Arc;
//!
//! # async fn example() -> Result<(), annulus::kv::StoreError> {
//! let config = EtcdConfig { endpoints: vec!["etcd.internal:2379".to_owned()], ..EtcdConfig::default() };
//! let store = EtcdStore::new(config, Arc::new(Codecs::default()))?;
//! println!("{:?}", store.list("collectors/").await?);
//! # Ok(())
//! # }
//! ```

mod channel;
mod client;
mod proto;
#[cfg(test)]
mod tests;
mod watch;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use self::client::Client;
use super::remote::backoff::Backoff;
use super::remote::mailbox::Watches;
use super::remote::{Edit, Prepared, Target, Tombstones, Writers, codec_for, decode, stored_size};
use crate::clock::Now;
use crate::kv::{BoxFuture, CasFn, CasOutcome, Codecs, Entry, Store, StoreError, StoreKind, Value, ValueSize, Watch};

/// The largest request that etcd takes with its default settings, in bytes. A value must be smaller by its key, which
/// is sent twice, and less than 200 bytes.
pub const REQUEST_LIMIT: usize = 3 * 512 * 1024;

/// The first pause after a lost compare-and-swap is at most this long; it doubles up to the configured delay.
const FIRST_CAS_DELAY: Duration = Duration::from_millis(20);

/// How to reach etcd and how to treat it.
#[derive(Clone)]
pub struct EtcdConfig {
    /// Host and port of each server. One is asked until it fails, then the next. Default: none.
    pub endpoints: Vec<String>,
    /// The account at etcd; empty for none. Default: empty.
    pub username: String,
    /// Its password. Never logged. Default: empty.
    pub password: String,
    /// How to speak TLS; `None` does not. Needs the feature `etcd-tls`. Default: `None`.
    pub tls: Option<EtcdTls>,
    /// The longest wait for a connection. Default: 10 s.
    pub dial_timeout: Duration,
    /// The longest time that one request may take, tries on other servers included. Default: 10 s.
    pub request_timeout: Duration,
    /// How often a compare-and-swap is tried before it fails with [`StoreError::Conflict`]; 0 counts as 1.
    /// Default: 10.
    pub max_retries: u32,
    /// The largest request that the servers take: their `--max-request-bytes`. Values are a little smaller. Default:
    /// [`REQUEST_LIMIT`], as theirs.
    pub max_request_bytes: usize,
    /// The longest pause before a lost compare-and-swap is tried again; the actual pause is random. Default: 1 s.
    pub cas_retry_delay: Duration,
    /// Whether tombstones are written to etcd. With `false`, removed entries are physically absent, as other programs
    /// that keep rings in etcd know it. Default: false.
    pub keep_tombstones: bool,
    /// How long tombstones are kept when they are kept at all (0: for ever), and how long a watch holds on to newer
    /// content after etcd was restored from an older state. Default: 5 min.
    pub left_timeout: Duration,
}

/// How to speak TLS with etcd. Files are PEM, and are read when the store is opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EtcdTls {
    /// Authorities that sign etcd's certificates. `None`: those of the system.
    pub ca_path: Option<PathBuf>,
    /// Our own certificate, where etcd wants one.
    pub cert_path: Option<PathBuf>,
    /// The private key of that certificate.
    pub key_path: Option<PathBuf>,
    /// The name in etcd's certificates. `None`: the host of the endpoint.
    pub server_name: Option<String>,
}

impl Default for EtcdConfig {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            username: String::new(),
            password: String::new(),
            tls: None,
            dial_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(10),
            max_retries: 10,
            max_request_bytes: REQUEST_LIMIT,
            cas_retry_delay: Duration::from_secs(1),
            keep_tombstones: false,
            left_timeout: Duration::from_secs(5 * 60),
        }
    }
}

impl fmt::Debug for EtcdConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdConfig")
            .field("endpoints", &self.endpoints)
            .field("username", &self.username)
            .field("password", &if self.password.is_empty() { "none" } else { "set" })
            .field("tls", &self.tls)
            .field("dial_timeout", &self.dial_timeout)
            .field("request_timeout", &self.request_timeout)
            .field("max_retries", &self.max_retries)
            .field("max_request_bytes", &self.max_request_bytes)
            .field("cas_retry_delay", &self.cas_retry_delay)
            .field("keep_tombstones", &self.keep_tombstones)
            .field("left_timeout", &self.left_timeout)
            .finish()
    }
}

impl EtcdConfig {
    fn tombstones(&self) -> Tombstones {
        Tombstones { keep: self.keep_tombstones, lifetime: self.left_timeout }
    }
}

/// A [`Store`] in etcd. All operations must be called, and watches polled, within a tokio runtime.
///
/// Versions are etcd's revisions. After etcd was restored from an older state, a watch goes on counting from the last
/// version that it delivered.
#[derive(Debug)]
pub struct EtcdStore {
    shared: Arc<Shared>,
    writers: Writers,
}

/// What operations and watch tasks have in common.
#[derive(Debug)]
struct Shared {
    client: Client,
    config: EtcdConfig,
    codecs: Arc<Codecs>,
    watches: Arc<Watches>,
}

impl EtcdStore {
    /// A store at the configured servers. Does not connect yet.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the settings cannot be used as they are.
    pub fn new(config: EtcdConfig, codecs: Arc<Codecs>) -> Result<Arc<Self>, StoreError> {
        let client = Client::new(&config)?;
        let shared = Arc::new(Shared { client, config, codecs, watches: Arc::default() });
        Ok(Arc::new(Self { shared, writers: Writers::default() }))
    }

    async fn edit(&self, key: &str, mut edit: Edit) -> Result<CasOutcome, StoreError> {
        let Shared { client, config, codecs, .. } = &*self.shared;
        let codec = codec_for(codecs, key)?;
        let writer = self.writers.of(key);
        let _turn = tokio::time::timeout(config.request_timeout, writer.lock())
            .await
            .map_err(|_| StoreError::Timeout { store: StoreKind::Etcd, after: config.request_timeout })?;
        let mut backoff = Backoff::new(FIRST_CAS_DELAY, config.cas_retry_delay);
        let attempts = config.max_retries.max(1);
        for attempt in 1..=attempts {
            let found = client.read(&Target::Key(key.into())).await?.pairs.into_iter().next();
            // A key that vanished between two attempts must be created, not compared with the revision it once had.
            let revision = found.as_ref().map_or(0, |pair| pair.version);
            let Some(Prepared { bytes, delta, .. }) =
                edit.prepare(key, &*codec, found.as_ref(), &config.tombstones())?
            else {
                return Ok(CasOutcome::Unchanged);
            };
            if let Some(version) = client.write(key, bytes, revision).await? {
                return Ok(CasOutcome::Written { delta, version });
            }
            if attempt < attempts {
                backoff.pause().await;
            }
        }
        Err(StoreError::Conflict { key: key.to_owned(), attempts })
    }
}

impl Store for EtcdStore {
    fn kind(&self) -> StoreKind {
        StoreKind::Etcd
    }

    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<Entry>, StoreError>> {
        let key = key.to_owned();
        Box::pin(async move {
            let Shared { client, codecs, .. } = &*self.shared;
            let codec = codec_for(codecs, &key)?;
            let reply = client.read(&Target::Key(key.as_str().into())).await?;
            let Some(pair) = reply.pairs.into_iter().next() else { return Ok(None) };
            Ok(Some(Entry { value: decode(&*codec, &key, &pair.value)?, version: pair.version }))
        })
    }

    fn list(&self, prefix: &str) -> BoxFuture<'_, Result<Vec<String>, StoreError>> {
        let prefix = prefix.to_owned();
        Box::pin(async move { self.shared.client.keys(&prefix).await })
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
        Some(ValueSize { size, limit: self.shared.client.value_limit(key, size) })
    }

    fn watch_age(&self, now: Now) -> Option<Duration> {
        self.shared.watches.age(now)
    }
}
