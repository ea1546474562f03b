//! A store in this process: for tests, drills, and servers that run alone.
//!
//! It behaves like Consul seen from several nodes: the data is bytes, each node brings its own codecs, a write
//! succeeds only if nobody wrote in between, and the store can go out of reach ([`Memory::set_available`]).
//!
//! ```
//! use annulus::kv::{Codecs, Kv, LwwMap};
//! use annulus::stores::memory::Memory;
//! use std::sync::Arc;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), annulus::kv::StoreError> {
//! let codecs = Arc::new(Codecs::default());
//! codecs.register("limits/", Arc::new(LwwMap::<u32>::codec()));
//! let memory = Memory::new();
//! let limits: Kv<LwwMap<u32>> = Kv::new(memory.store(codecs), "limits/");
//! assert_eq!(limits.get("tenant-1").await?, None);
//! # Ok(()) }
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream;
use tokio::sync::watch;

use crate::clock::Now;
use crate::kv::{
    BoxFuture, CasAction, CasFn, CasOutcome, Codec, Codecs, Entry, KeyChange, SharedStore, Store, StoreError,
    StoreKind, TypeMismatch, Value, Watch,
};

/// How often a write is tried against other writers.
const ATTEMPTS: u32 = 10;

/// How long tombstones of entries stay inside the stored values.
const TOMBSTONE_LIFETIME: Duration = Duration::from_secs(5 * 60);

/// The shared data. Clones share it; [`Memory::store`] makes the client of one node.
#[derive(Clone, Default)]
pub struct Memory(Arc<Shared>);

struct Shared {
    data: Mutex<Data>,
    /// Counts changes, to wake the watches.
    changes: watch::Sender<u64>,
}

#[derive(Default)]
struct Data {
    keys: BTreeMap<Arc<str>, Cell>,
    /// Of the last write to any key, like Consul's.
    index: u64,
    /// Since when it is out of reach.
    out_of_reach: Option<Instant>,
}

#[derive(Clone)]
struct Cell {
    bytes: Bytes,
    index: u64,
}

impl Default for Shared {
    fn default() -> Self {
        Self { data: Mutex::default(), changes: watch::Sender::new(0) }
    }
}

impl Memory {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A node's client of this store, with the node's codecs.
    #[must_use]
    pub fn store(&self, codecs: Arc<Codecs>) -> SharedStore {
        Arc::new(Client { shared: self.0.clone(), codecs })
    }

    /// Puts the store out of reach, or back. While it is, every operation fails with [`StoreError::Unavailable`], and
    /// watches report once that what they know is no longer fresh.
    pub fn set_available(&self, available: bool) {
        let now = Now::read().mono;
        self.0.change(|data| data.out_of_reach = (!available).then(|| data.out_of_reach.unwrap_or(now)));
    }

    /// Stores bytes as they are, as somebody else might who uses the same store.
    pub fn put_bytes(&self, key: &str, bytes: impl Into<Bytes>) {
        self.0.change(|data| {
            data.index += 1;
            data.keys.insert(key.into(), Cell { bytes: bytes.into(), index: data.index });
        });
    }

    /// The stored bytes of a key.
    #[must_use]
    pub fn bytes(&self, key: &str) -> Option<Bytes> {
        self.0.lock().keys.get(key).map(|cell| cell.bytes.clone())
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let data = self.0.lock();
        f.debug_struct("Memory").field("keys", &data.keys.len()).field("index", &data.index).finish()
    }
}

impl Shared {
    /// Held for map operations only, so a poisoned lock still guards whole data.
    fn lock(&self) -> MutexGuard<'_, Data> {
        self.data.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reach(&self) -> Result<MutexGuard<'_, Data>, StoreError> {
        let data = self.lock();
        if data.out_of_reach.is_some() {
            let reason = "it was put out of reach".to_owned();
            return Err(StoreError::Unavailable { store: StoreKind::InMemory, reason });
        }
        Ok(data)
    }

    fn change<R>(&self, f: impl FnOnce(&mut Data) -> R) -> R {
        let result = f(&mut self.lock());
        self.changes.send_modify(|count| *count += 1);
        result
    }

    /// Writes if the key still has this index (0: does not exist). Returns the new index.
    fn put(&self, key: &str, bytes: Vec<u8>, expected: u64) -> Result<Option<u64>, StoreError> {
        let mut data = self.reach()?;
        if data.keys.get(key).map_or(0, |cell| cell.index) != expected {
            return Ok(None);
        }
        data.index += 1;
        let index = data.index;
        data.keys.insert(key.into(), Cell { bytes: bytes.into(), index });
        drop(data);
        self.changes.send_modify(|count| *count += 1);
        Ok(Some(index))
    }
}

/// One node's view of the shared data.
#[derive(Clone)]
struct Client {
    shared: Arc<Shared>,
    codecs: Arc<Codecs>,
}

/// What an operation does to the value that it read: the new value and the difference, or nothing to write.
type Step<'a> = &'a mut (dyn FnMut(Option<&Value>, Now) -> Result<Option<(Value, Value)>, StoreError> + Send);

impl Client {
    fn codec(&self, key: &str) -> Result<Arc<dyn Codec>, StoreError> {
        self.codecs.for_key(key).ok_or_else(|| StoreError::NoCodec { key: key.to_owned() })
    }

    fn decode(&self, key: &str, cell: &Cell) -> Result<Entry, StoreError> {
        let value = self
            .codec(key)?
            .decode(&cell.bytes)
            .map_err(|error| StoreError::Decode { key: key.to_owned(), reason: error.to_string() })?;
        Ok(Entry { value, version: cell.index })
    }

    fn read(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let cell = self.shared.reach()?.keys.get(key).cloned();
        cell.map(|cell| self.decode(key, &cell)).transpose()
    }

    fn update(&self, key: &str, step: Step<'_>) -> Result<CasOutcome, StoreError> {
        let codec = self.codec(key)?;
        for _ in 0..ATTEMPTS {
            let now = Now::read();
            let current = self.read(key)?;
            let Some((value, delta)) = step(current.as_ref().map(|entry| &entry.value), now)? else {
                return Ok(CasOutcome::Unchanged);
            };
            let expired = now.unix.saturating_sub(TOMBSTONE_LIFETIME).as_secs();
            let (value, _) = value.without_tombstones(i64::try_from(expired).ok());
            let bytes = codec.encode(&value).map_err(|_| mismatch(key, TypeMismatch))?;
            let expected = current.map_or(0, |entry| entry.version);
            if let Some(version) = self.shared.put(key, bytes, expected)? {
                return Ok(CasOutcome::Written { delta, version });
            }
        }
        Err(StoreError::Conflict { key: key.to_owned(), attempts: ATTEMPTS })
    }

    fn cas_now(&self, key: &str, mut f: CasFn) -> Result<CasOutcome, StoreError> {
        let codec = self.codec(key)?;
        self.update(key, &mut |current, now| match f(current) {
            CasAction::Keep => Ok(None),
            CasAction::Abort(reason) => Err(StoreError::Aborted(reason)),
            CasAction::Write(new) => {
                let delta = new.delta(current, now).map_err(|source| mismatch(key, source))?;
                delta.map_or(Ok(None), |delta| joined(&*codec, key, current, delta, now))
            }
            CasAction::Join(delta) => joined_or_first(&*codec, key, current, &delta, now),
        })
    }

    fn join_now(&self, key: &str, delta: &Value) -> Result<CasOutcome, StoreError> {
        let codec = self.codec(key)?;
        self.update(key, &mut |current, now| joined_or_first(&*codec, key, current, delta, now))
    }

    fn delete_now(&self, key: &str) -> Result<(), StoreError> {
        let mut data = self.shared.reach()?;
        if data.keys.remove(key).is_some() {
            data.index += 1;
            drop(data);
            self.shared.changes.send_modify(|count| *count += 1);
        }
        Ok(())
    }
}

/// `delta` joined into what is stored: the new value, and what changed.
fn joined(
    codec: &dyn Codec,
    key: &str,
    current: Option<&Value>,
    delta: Value,
    now: Now,
) -> Result<Option<(Value, Value)>, StoreError> {
    let Some(current) = current else { return Ok(Some((delta.clone(), delta))) };
    let joined = codec.join(current, &delta, now).map_err(|source| mismatch(key, source))?;
    Ok(joined.change.map(|change| (joined.value, change)))
}

/// The same for a join from outside, which may be of nothing.
fn joined_or_first(
    codec: &dyn Codec,
    key: &str,
    current: Option<&Value>,
    delta: &Value,
    now: Now,
) -> Result<Option<(Value, Value)>, StoreError> {
    if current.is_some() {
        return joined(codec, key, current, delta.clone(), now);
    }
    let first = delta.delta(None, now).map_err(|source| mismatch(key, source))?;
    Ok(first.map(|first| (first.clone(), first)))
}

fn mismatch(key: &str, source: TypeMismatch) -> StoreError {
    StoreError::Type { key: key.to_owned(), source }
}

impl Store for Client {
    fn kind(&self) -> StoreKind {
        StoreKind::InMemory
    }

    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<Entry>, StoreError>> {
        let key = key.to_owned();
        Box::pin(async move { self.read(&key) })
    }

    fn list(&self, prefix: &str) -> BoxFuture<'_, Result<Vec<String>, StoreError>> {
        let prefix = prefix.to_owned();
        Box::pin(async move {
            let data = self.shared.reach()?;
            Ok(under(&data.keys, &prefix).map(|(key, _)| key.to_string()).collect())
        })
    }

    fn cas(&self, key: &str, f: CasFn) -> BoxFuture<'_, Result<CasOutcome, StoreError>> {
        let key = key.to_owned();
        Box::pin(async move { self.cas_now(&key, f) })
    }

    fn join(&self, key: &str, delta: Value) -> BoxFuture<'_, Result<CasOutcome, StoreError>> {
        let key = key.to_owned();
        Box::pin(async move { self.join_now(&key, &delta) })
    }

    fn delete(&self, key: &str) -> BoxFuture<'_, Result<(), StoreError>> {
        let key = key.to_owned();
        Box::pin(async move { self.delete_now(&key) })
    }

    fn watch_key(&self, key: &str) -> Watch {
        Watcher::start(self.clone(), Scope::Key(key.into()))
    }

    fn watch_prefix(&self, prefix: &str) -> Watch {
        Watcher::start(self.clone(), Scope::Prefix(prefix.into()))
    }

    /// In reach every watch is up to date.
    fn watch_age(&self, now: Now) -> Option<Duration> {
        let since = self.shared.lock().out_of_reach;
        Some(since.map_or(Duration::ZERO, |since| now.mono.saturating_duration_since(since)))
    }
}

fn under<'a>(keys: &'a BTreeMap<Arc<str>, Cell>, prefix: &'a str) -> impl Iterator<Item = (&'a Arc<str>, &'a Cell)> {
    keys.range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
        .take_while(move |(key, _)| key.starts_with(prefix))
}

enum Scope {
    Key(Arc<str>),
    Prefix(Arc<str>),
}

/// A watch: after each change of the store it compares what it has reported with what is there. So changes that come
/// faster than they are read are coalesced, and none is missed.
struct Watcher {
    client: Client,
    scope: Scope,
    changes: watch::Receiver<u64>,
    /// What was reported last. A key that was reported as missing is in here without an entry.
    reported: BTreeMap<Arc<str>, Option<Entry>>,
    /// Whether the last report said that the store is in reach; `None` before the first look.
    in_reach: Option<bool>,
    queue: VecDeque<KeyChange>,
}

impl Watcher {
    fn start(client: Client, scope: Scope) -> Watch {
        let changes = client.shared.changes.subscribe();
        let watcher =
            Self { client, scope, changes, reported: BTreeMap::new(), in_reach: None, queue: VecDeque::new() };
        Box::pin(stream::unfold(watcher, |mut watcher| async move {
            loop {
                if let Some(change) = watcher.queue.pop_front() {
                    return Some((change, watcher));
                }
                // The sender lives in the data that the watcher itself holds, so this ends only with the watcher.
                if watcher.in_reach.is_some() && watcher.changes.changed().await.is_err() {
                    return None;
                }
                watcher.changes.mark_unchanged();
                watcher.look();
            }
        }))
    }

    /// Compares the store with what was reported, and queues the difference.
    fn look(&mut self) {
        let shared = self.client.shared.clone();
        let data = shared.lock();
        if data.out_of_reach.is_some() {
            drop(data);
            if self.in_reach.replace(false) != Some(false) {
                self.report_all(false);
            }
            return;
        }
        let cells: BTreeMap<Arc<str>, Option<Cell>> = match &self.scope {
            Scope::Key(key) => [(key.clone(), data.keys.get(key).cloned())].into(),
            Scope::Prefix(prefix) => {
                under(&data.keys, prefix).map(|(key, cell)| (key.clone(), Some(cell.clone()))).collect()
            }
        };
        drop(data);
        let back = self.in_reach.replace(true) == Some(false);
        let gone: Vec<_> = self.reported.keys().filter(|key| !cells.contains_key(*key)).cloned().collect();
        for key in gone {
            self.reported.remove(&key);
            self.queue.push_back(KeyChange { key, entry: None, fresh: true });
        }
        for (key, cell) in cells {
            self.compare(key, cell.as_ref(), back);
        }
        if back && self.queue.is_empty() {
            self.report_all(true);
        }
    }

    fn compare(&mut self, key: Arc<str>, cell: Option<&Cell>, back: bool) {
        let known = self.reported.get(&key);
        let version = known.map(|entry| entry.as_ref().map(|entry| entry.version));
        if !back && version == Some(cell.map(|cell| cell.index)) {
            return;
        }
        match cell.map(|cell| self.client.decode(&key, cell)).transpose() {
            Ok(entry) => {
                self.reported.insert(key.clone(), entry.clone());
                self.queue.push_back(KeyChange { key, entry, fresh: true });
            }
            Err(error) => {
                // Consumers go on from the last value that did decode.
                tracing::warn!(%error, "a watched value is passed over");
                if matches!(self.scope, Scope::Key(_)) {
                    let entry = known.cloned().flatten();
                    self.queue.push_back(KeyChange { key, entry, fresh: false });
                }
            }
        }
    }

    /// Reports everything known once more; at least one item, so that whoever watches learns it.
    fn report_all(&mut self, fresh: bool) {
        let known = self.reported.iter();
        self.queue.extend(known.map(|(key, entry)| KeyChange { key: key.clone(), entry: entry.clone(), fresh }));
        if self.queue.is_empty() {
            let (Scope::Key(key) | Scope::Prefix(key)) = &self.scope;
            self.queue.push_back(KeyChange { key: key.clone(), entry: None, fresh });
        }
    }
}
