//! The typed client: one type of value in a store, below a prefix, without tombstones.

use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use futures_core::Stream;

use super::store::{CasAction, CasOutcome, Entry, KeyChange, SharedStore, StoreError, Watch};
use super::value::{Mergeable, TypeMismatch, Value};

/// Values of type `T` in a store. Keys are relative to the prefix. Clones share the store.
///
/// A codec for `T` must be registered for the prefix ([`Codecs::register`](super::Codecs::register)).
///
/// ```
/// # use annulus::clock::Now;
/// # use annulus::kv::{Kv, LwwMap, SharedStore, StoreError};
/// # async fn example(store: SharedStore) -> Result<(), StoreError> {
/// let limits: Kv<LwwMap<u32>> = Kv::new(store, "limits/");
/// limits
///     .cas("tenant-1", |old| {
///         let mut map = old.unwrap_or_default();
///         map.insert(Now::read(), "burst", 100);
///         Ok(Some(map))
///     })
///     .await?;
/// let burst = limits.get("tenant-1").await?.and_then(|map| map.get("burst").copied());
/// # Ok(()) }
/// ```
pub struct Kv<T> {
    store: SharedStore,
    prefix: Arc<str>,
    value: PhantomData<fn() -> T>,
}

impl<T: Mergeable> Kv<T> {
    /// A client of `store` for the keys that begin with `prefix`.
    pub fn new(store: SharedStore, prefix: impl Into<Arc<str>>) -> Self {
        Self { store, prefix: prefix.into(), value: PhantomData }
    }

    /// The current value, or `None` when the key does not exist.
    ///
    /// # Errors
    /// What the store says, and [`StoreError::Type`] when the stored value is not a `T`.
    pub async fn get(&self, key: &str) -> Result<Option<T>, StoreError> {
        let key = self.key(key);
        let Some(entry) = self.store.get(&key).await? else { return Ok(None) };
        typed(&entry.value).map(Some).ok_or(StoreError::Type { key, source: TypeMismatch })
    }

    /// Compare-and-swap: `f` is given the current value and returns the new one, or `Ok(None)` to leave it, or an error
    /// to give up. It may be called several times.
    ///
    /// # Errors
    /// What the store says, [`StoreError::Aborted`] with the error of `f`, and [`StoreError::Type`] when the stored
    /// value is not a `T`.
    pub async fn cas<F>(&self, key: &str, mut f: F) -> Result<CasOutcome, StoreError>
    where
        F: FnMut(Option<T>) -> Result<Option<T>, String> + Send + 'static,
    {
        let key = self.key(key);
        let mismatch = Arc::new(AtomicBool::new(false));
        let seen = mismatch.clone();
        let callback = move |current: Option<&Value>| {
            let current = match current.map(typed::<T>) {
                Some(None) => {
                    seen.store(true, Ordering::Relaxed);
                    return CasAction::Abort(TypeMismatch.to_string());
                }
                Some(value) => value,
                None => None,
            };
            match f(current) {
                Ok(Some(new)) => CasAction::Write(Value::new(new)),
                Ok(None) => CasAction::Keep,
                Err(reason) => CasAction::Abort(reason),
            }
        };
        let outcome = self.store.cas(&key, Box::new(callback)).await;
        if mismatch.load(Ordering::Relaxed) {
            return Err(StoreError::Type { key, source: TypeMismatch });
        }
        outcome
    }

    /// Deletes a key. Deleting a key that does not exist succeeds.
    ///
    /// # Errors
    /// What the store says.
    pub async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.store.delete(&self.key(key)).await
    }

    /// All keys, without the prefix, in order.
    ///
    /// # Errors
    /// What the store says.
    pub async fn list(&self) -> Result<Vec<String>, StoreError> {
        let keys = self.store.list(&self.prefix).await?;
        Ok(keys.into_iter().map(|key| self.relative(&key)).collect())
    }

    /// The value of a key, now and after each change; `None` while it does not exist. Changes that come faster than
    /// they are read are coalesced. While the store is out of reach nothing is reported.
    pub fn watch_key(&self, key: &str) -> impl Stream<Item = Option<T>> + Send + Unpin + use<T> {
        TypedWatch::new(self.store.watch_key(&self.key(key)), |_key: &str, value: Option<T>| value)
    }

    /// The keys (without the prefix) and values below the prefix, now and after each change; `None` for a key that
    /// was deleted.
    pub fn watch_prefix(&self) -> impl Stream<Item = (String, Option<T>)> + Send + Unpin + use<T> {
        let this = self.clone();
        TypedWatch::new(self.store.watch_prefix(&self.prefix), move |key: &str, value: Option<T>| {
            (this.relative(key), value)
        })
    }

    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    fn relative(&self, key: &str) -> String {
        key.strip_prefix(&*self.prefix).unwrap_or(key).to_owned()
    }
}

/// A value as its real type, without tombstones.
fn typed<T: Mergeable>(value: &Value) -> Option<T> {
    let mut typed = value.downcast_ref::<T>()?.clone();
    typed.remove_tombstones(None);
    Some(typed)
}

/// A watch whose items are converted. Values of another type and reports without contact are passed over.
struct TypedWatch<T, F> {
    watch: Watch,
    map: F,
    value: PhantomData<fn() -> T>,
}

impl<T, F> TypedWatch<T, F> {
    const fn new(watch: Watch, map: F) -> Self {
        Self { watch, map, value: PhantomData }
    }
}

impl<T: Mergeable, R, F: Fn(&str, Option<T>) -> R + Unpin> Stream for TypedWatch<T, F> {
    type Item = R;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let Some(KeyChange { key, entry, fresh }) = ready!(self.watch.as_mut().poll_next(context)) else {
                return Poll::Ready(None);
            };
            let value = match entry {
                _ if !fresh => continue,
                Some(Entry { value, .. }) => match typed::<T>(&value) {
                    Some(value) => Some(value),
                    None => continue,
                },
                None => None,
            };
            return Poll::Ready(Some((self.map)(&key, value)));
        }
    }
}

impl<T> Clone for Kv<T> {
    fn clone(&self) -> Self {
        Self { store: self.store.clone(), prefix: self.prefix.clone(), value: PhantomData }
    }
}

impl<T> std::fmt::Debug for Kv<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kv").field("store", &self.store.kind()).field("prefix", &self.prefix).finish()
    }
}
