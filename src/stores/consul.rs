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
mod mailbox;
mod pace;
#[cfg(test)]
mod tests;
mod view;
mod watch;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use self::client::{Client, Consistency, Target};
use self::pace::Backoff;
use crate::clock::Now;
use crate::kv::{
    BoxFuture, CasAction, CasFn, CasOutcome, Codec, Codecs, Entry, Store, StoreError, StoreKind, TypeMismatch, Value,
    Watch,
};

/// The largest value that Consul takes with its default settings, in bytes.
pub const VALUE_LIMIT: usize = 512 * 1024;

/// The first pause after a lost compare-and-swap is at most this long; it doubles up to the configured delay.
const FIRST_CAS_DELAY: Duration = Duration::from_millis(20);

/// How to reach Consul and how to treat it.
#[derive(Clone)]
pub struct ConsulConfig {
    /// Host and port of the HTTP API, without TLS. Proxies from the environment are not used.
    /// Default: `localhost:8500`.
    pub host: String,
    /// Sent as `X-Consul-Token` when not empty. Never logged. Default: empty.
    pub acl_token: String,
    /// Whether reads and watches ask the leader to confirm that it leads (`?consistent`), instead of taking any
    /// server's answer (`?stale`). A compare-and-swap always reads from the leader. Default: false.
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

impl Default for ConsulConfig {
    fn default() -> Self {
        Self {
            host: "localhost:8500".to_owned(),
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
}

/// A [`Store`] in Consul. All operations must be called, and watches polled, within a tokio runtime.
///
/// Consul does not say which `ModifyIndex` a write got, so it is read afterwards: the version in
/// [`CasOutcome::Written`] may be that of a write that followed at once. After Consul was restored from an older state,
/// a watch goes on counting from the last version that it delivered.
#[derive(Debug)]
pub struct ConsulStore {
    shared: Arc<Shared>,
    /// One compare-and-swap at a time for each key: operations of one process must not make each other lose.
    writers: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

/// What operations and watch tasks have in common.
#[derive(Debug)]
struct Shared {
    client: Client,
    config: ConsulConfig,
    codecs: Arc<Codecs>,
}

/// What a write operation does to the value it finds.
enum Edit {
    Cas(CasFn),
    Join(Value),
}

/// A value to be written, and what it changes.
struct Write {
    value: Value,
    delta: Value,
}

impl ConsulStore {
    /// A store at the configured address. Does not connect yet.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when host, token or timeout cannot be used as they are configured.
    pub fn new(config: ConsulConfig, codecs: Arc<Codecs>) -> Result<Arc<Self>, StoreError> {
        let client = Client::new(&config)?;
        let shared = Arc::new(Shared { client, config, codecs });
        Ok(Arc::new(Self { shared, writers: Mutex::default() }))
    }

    fn writer(&self, key: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut writers = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = writers.get(key).and_then(Weak::upgrade) {
            return lock;
        }
        writers.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::default();
        writers.insert(key.to_owned(), Arc::downgrade(&lock));
        lock
    }

    async fn edit(&self, key: &str, mut edit: Edit) -> Result<CasOutcome, StoreError> {
        let Shared { client, config, codecs } = &*self.shared;
        let codec = codec_for(codecs, key)?;
        let writer = self.writer(key);
        let _turn = tokio::time::timeout(config.http_client_timeout, writer.lock())
            .await
            .map_err(|_| StoreError::Timeout { store: StoreKind::Consul, after: config.http_client_timeout })?;
        let mut backoff = Backoff::new(FIRST_CAS_DELAY, config.cas_retry_delay);
        let attempts = config.max_cas_retries.max(1);
        for attempt in 1..=attempts {
            let reply = client.read(&Target::Key(key.into()), Consistency::Leader, None).await?;
            let found = reply.pairs.into_iter().next();
            // A key that vanished between two attempts must be created, not compared with the index it once had.
            let index = found.as_ref().map_or(0, |pair| pair.modify_index);
            let base = found.as_ref().map(|pair| decode(&*codec, key, &pair.value)).transpose()?;
            let now = Now::read();
            let Some(Write { value, delta }) = edit.decide(key, base.as_ref(), &*codec, now)? else {
                return Ok(CasOutcome::Unchanged);
            };
            let value = config.stored_form(&value, now);
            if base.is_none() && value.is_empty() {
                return Ok(CasOutcome::Unchanged);
            }
            let bytes =
                codec.encode(&value).map_err(|_| StoreError::Type { key: key.to_owned(), source: TypeMismatch })?;
            if found.is_some_and(|pair| pair.value == bytes) {
                // The change was a tombstone of what is not there, and tombstones are not kept.
                return Ok(CasOutcome::Unchanged);
            }
            if client.write(key, bytes, index).await? {
                // Consul does not tell the new index. Asking for it may fail, but the write has happened.
                let at_least = reply.index.unwrap_or(0).max(index).saturating_add(1);
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

impl Edit {
    /// What to write over `base`, or `None` when nothing is to be changed.
    fn decide(
        &mut self,
        key: &str,
        base: Option<&Value>,
        codec: &dyn Codec,
        now: Now,
    ) -> Result<Option<Write>, StoreError> {
        let of_key = |source| StoreError::Type { key: key.to_owned(), source };
        let delta = match self {
            Self::Join(delta) => delta.clone(),
            Self::Cas(f) => match f(base) {
                CasAction::Keep => return Ok(None),
                CasAction::Abort(reason) => return Err(StoreError::Aborted(reason)),
                CasAction::Write(value) => match value.delta(base, now).map_err(of_key)? {
                    Some(delta) => delta,
                    None => return Ok(None),
                },
            },
        };
        let Some(base) = base else {
            return Ok((!delta.is_empty()).then(|| Write { value: delta.clone(), delta }));
        };
        let joined = codec.join(base, &delta, now).map_err(of_key)?;
        Ok(joined.change.map(|change| Write {
            value: joined.value,
            delta: if matches!(self, Self::Cas(_)) { delta } else { change },
        }))
    }
}

impl ConsulConfig {
    /// The value as it is written: without tombstones, or without those that everybody has seen by now.
    fn stored_form(&self, value: &Value, now: Now) -> Value {
        if !self.keep_tombstones {
            value.without_tombstones(None).0
        } else if self.left_timeout.is_zero() {
            value.clone()
        } else {
            let age = i64::try_from(self.left_timeout.as_secs()).unwrap_or(i64::MAX);
            value.without_tombstones(Some(now.unix_secs().saturating_sub(age))).0
        }
    }
}

impl Store for ConsulStore {
    fn kind(&self) -> StoreKind {
        StoreKind::Consul
    }

    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<Entry>, StoreError>> {
        let key = key.to_owned();
        Box::pin(async move {
            let Shared { client, config, codecs } = &*self.shared;
            let codec = codec_for(codecs, &key)?;
            let reply = client.read(&Target::Key(key.as_str().into()), config.read_consistency(), None).await?;
            let Some(pair) = reply.pairs.into_iter().next() else { return Ok(None) };
            Ok(Some(Entry { value: decode(&*codec, &key, &pair.value)?, version: pair.modify_index }))
        })
    }

    fn list(&self, prefix: &str) -> BoxFuture<'_, Result<Vec<String>, StoreError>> {
        let prefix = prefix.to_owned();
        Box::pin(async move {
            let (mut keys, _) = self.shared.client.keys(&prefix, self.shared.config.read_consistency()).await?;
            keys.retain(|key| key.starts_with(&prefix));
            keys.sort_unstable();
            Ok(keys)
        })
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
}

fn codec_for(codecs: &Codecs, key: &str) -> Result<Arc<dyn Codec>, StoreError> {
    codecs.for_key(key).ok_or_else(|| StoreError::NoCodec { key: key.to_owned() })
}

fn decode(codec: &dyn Codec, key: &str, bytes: &[u8]) -> Result<Value, StoreError> {
    codec.decode(bytes).map_err(|error| StoreError::Decode { key: key.to_owned(), reason: error.reason })
}
