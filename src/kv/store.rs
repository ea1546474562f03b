//! The contract that every store keeps: gossip, Consul, in-memory, and the multi store over two of them.
//!
//! A store is a replica of mergeable values. Values are handed out *with* their tombstones, because whoever joins two
//! stores needs them; the typed client and the ring leave them out.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_core::Stream;

use super::value::{TypeMismatch, Value};
use crate::clock::Now;

/// A future that can cross threads.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What is stored under a key.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The value, tombstones of its entries included.
    pub value: Value,
    /// Grows with every change, local to this store (Consul: `ModifyIndex`). For showing and for conditional writes.
    pub version: u64,
}

/// What a compare-and-swap callback decides.
#[derive(Debug)]
pub enum CasAction {
    /// Store this value. Entries that it lacks, compared with the value the callback was given, are removed.
    Write(Value),
    /// Join this into the value that the callback was given: never removes, never makes anything older. The version that
    /// is told of such a write may be a lower bound, as that of [`Store::join`].
    Join(Value),
    /// Leave the stored value as it is; the operation succeeds.
    Keep,
    /// Give up; the operation fails with [`StoreError::Aborted`].
    Abort(String),
}

/// A compare-and-swap callback. It may be called several times, each time with the current value.
pub type CasFn = Box<dyn FnMut(Option<&Value>) -> CasAction + Send>;

/// How a compare-and-swap ended.
#[derive(Clone, Debug)]
pub enum CasOutcome {
    /// The store acknowledged the write.
    Written {
        /// What the operation changed against the value that its callback was given.
        delta: Value,
        /// Version of the entry after the write. Where asking for it costs a request, a join tells a lower bound.
        version: u64,
    },
    /// The callback kept the value, or wrote what was there already. This is success, not an error.
    Unchanged,
}

/// One step of a watch.
#[derive(Clone, Debug)]
pub struct KeyChange {
    /// The key.
    pub key: Arc<str>,
    /// Its entry, or `None` when the key does not exist (any more).
    pub entry: Option<Entry>,
    /// Whether the store was reached just now. `false` marks a report that the store is out of reach, or (of a watch on
    /// one key) that what it holds does not decode: `entry` is then the last one known, and consumers go on from it. The
    /// next report with `true` says that it is back.
    pub fresh: bool,
}

/// Changes of a key or a prefix. The first items are the current values (for a missing single key: one item with no
/// entry). Changes that come faster than they are read are coalesced to the latest. It ends only when the store closes.
pub type Watch = Pin<Box<dyn Stream<Item = KeyChange> + Send>>;

/// How much room a value takes in a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ValueSize {
    /// Bytes of the value as the store keeps it.
    pub size: usize,
    /// The most that the store takes for this key, in bytes.
    pub limit: usize,
}

impl ValueSize {
    /// Whether the store would refuse it.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        self.size > self.limit
    }

    /// Whether it has more than 80 % of what the store takes.
    #[must_use]
    pub const fn is_near(&self) -> bool {
        self.size > self.limit / 5 * 4
    }
}

/// A key-value store of mergeable values.
///
/// Every operation may be cancelled by dropping its future; a dropped write may or may not have happened.
pub trait Store: Send + Sync + 'static {
    /// Which kind this is: `memberlist`, `consul`, `etcd`, `inmemory` or `multi`.
    fn kind(&self) -> StoreKind;

    /// The current entry, or `None` when the key does not exist.
    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<Entry>, StoreError>>;

    /// All keys that begin with `prefix`, in order.
    fn list(&self, prefix: &str) -> BoxFuture<'_, Result<Vec<String>, StoreError>>;

    /// The current entry, as a write would find it: not from a server that may be behind, where the store has several,
    /// and not before a node that gossips has joined. What brings one store up to date from another reads so. The
    /// default is [`Store::get`], for stores that always answer so.
    fn get_latest(&self, key: &str) -> BoxFuture<'_, Result<Option<Entry>, StoreError>> {
        self.get(key)
    }

    /// All keys that begin with `prefix`, in order, asked like [`Store::get_latest`]. The default is [`Store::list`].
    fn list_latest(&self, prefix: &str) -> BoxFuture<'_, Result<Vec<String>, StoreError>> {
        self.list(prefix)
    }

    /// Reads, calls `f`, writes what it returned if nobody wrote in between, else starts over.
    fn cas(&self, key: &str, f: CasFn) -> BoxFuture<'_, Result<CasOutcome, StoreError>>;

    /// Joins `delta` into what is stored: `v ⊔ δ`. Never removes, never makes anything older.
    fn join(&self, key: &str, delta: Value) -> BoxFuture<'_, Result<CasOutcome, StoreError>>;

    /// Deletes the key. Deleting a key that does not exist succeeds.
    fn delete(&self, key: &str) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Watches one key.
    fn watch_key(&self, key: &str) -> Watch;

    /// Watches all keys under a prefix.
    fn watch_prefix(&self, prefix: &str) -> Watch;

    /// Whether this store takes values up to a limit that a ring could reach. Default: no.
    fn limits_values(&self) -> bool {
        false
    }

    /// How large `value` would be here, encoded as it would be written, and how large it may be. Asks nobody.
    /// `None`, the default, when there is no such limit, or no codec for the key.
    fn size_of(&self, key: &str, value: &Value) -> Option<ValueSize> {
        let _ = (key, value);
        None
    }

    /// Whether the store remembers that this key was deleted, so that what still comes of it is a leftover. Stores
    /// that keep no tombstones of keys, the default, say no.
    fn remembers_deletion(&self, key: &str) -> bool {
        let _ = key;
        false
    }

    /// How long ago the store last answered one of its watches, with news or without; of several watches the one that
    /// has waited longest, and of one that was never answered since it began. `None`, the default, when there is no
    /// watch, or when watches are fed within this process and cannot be lost.
    fn watch_age(&self, now: Now) -> Option<Duration> {
        let _ = now;
        None
    }
}

/// A store that many parts share.
pub type SharedStore = Arc<dyn Store>;

/// The kinds of store, by the names that configuration files use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreKind {
    /// Gossip between the instances.
    Memberlist,
    /// Consul's key-value store.
    Consul,
    /// etcd version 3.
    Etcd,
    /// In this process, shared by whoever is given the same one.
    InMemory,
    /// Two of the others.
    Multi,
}

impl StoreKind {
    /// The name in configuration files, metrics and messages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Memberlist => "memberlist",
            Self::Consul => "consul",
            Self::Etcd => "etcd",
            Self::InMemory => "inmemory",
            Self::Multi => "multi",
        }
    }
}

impl fmt::Display for StoreKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for StoreKind {
    type Err = UnknownStore;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        [Self::Memberlist, Self::Consul, Self::Etcd, Self::InMemory, Self::Multi]
            .into_iter()
            .find(|kind| kind.as_str() == name)
            .ok_or_else(|| UnknownStore(name.to_owned()))
    }
}

/// A store name that Annulus does not know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown store {0:?}: it must be one of memberlist, consul, etcd, inmemory, multi")]
pub struct UnknownStore(pub String);

/// Why a store operation failed. Unless a variant says otherwise, the stored value was not changed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The store cannot be reached or answered with a server error. A write may still have happened. Try again later.
    #[error("{store} is not available: {reason}")]
    Unavailable {
        /// Which store.
        store: StoreKind,
        /// What happened, in the words of the client.
        reason: String,
    },
    /// The store refuses us (permission, ACL). Check the token or the account.
    #[error("{store} refused {operation} of key {key:?}: {reason}")]
    Refused {
        /// Which store.
        store: StoreKind,
        /// What we tried.
        operation: &'static str,
        /// On which key.
        key: String,
        /// Status and text of the answer.
        reason: String,
    },
    /// The value is larger than the store takes.
    #[error("the value of key {key:?} has {size} bytes, {store} takes at most {limit}")]
    TooLarge {
        /// Which store.
        store: StoreKind,
        /// Which key.
        key: String,
        /// Encoded size.
        size: usize,
        /// The store's limit; one byte less than `size` when the store did not say it.
        limit: usize,
    },
    /// The key is not there, nor in the store that it would be brought from: somebody deleted it, and it is not created
    /// again by what had waited. Only a mirror that writes what another store has ends so.
    #[error("key {key:?} was deleted")]
    Absent {
        /// Which key.
        key: String,
    },
    /// Others wrote in between each time. Try again.
    #[error("compare-and-swap of key {key:?} lost against other writers {attempts} times")]
    Conflict {
        /// Which key.
        key: String,
        /// How often it was tried.
        attempts: u32,
    },
    /// What is stored does not decode. It is left as it is; repair or delete the key.
    #[error("the stored value of key {key:?} does not decode: {reason}")]
    Decode {
        /// Which key.
        key: String,
        /// What the decoder said.
        reason: String,
    },
    /// No codec is registered for this key. Register one before using the key.
    #[error("no codec is registered for key {key:?}")]
    NoCodec {
        /// Which key.
        key: String,
    },
    /// The value is of another type than what is stored.
    #[error("key {key:?}: {source}")]
    Type {
        /// Which key.
        key: String,
        /// The mismatch.
        source: TypeMismatch,
    },
    /// The callback gave up.
    #[error("{0}")]
    Aborted(String),
    /// No answer in time. A write may still have happened.
    #[error("{store} did not answer within {}", humantime::format_duration(*.after))]
    Timeout {
        /// Which store.
        store: StoreKind,
        /// How long we waited.
        after: Duration,
    },
    /// The node is shutting down, or the actor behind this store died while it handled the operation.
    #[error("the {0} store is closed")]
    Closed(StoreKind),
}
