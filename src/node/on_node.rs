//! A store whose operations run on the node's own runtime, so that a caller needs none.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use crate::clock::Now;
use crate::kv::{
    BoxFuture, CasFn, CasOutcome, Entry, SharedStore, Store, StoreError, StoreKind, Value, ValueSize, Watch,
};

pub(super) struct OnNode {
    inner: SharedStore,
    handle: Handle,
}

impl OnNode {
    pub(super) fn wrap(inner: SharedStore, handle: Handle) -> SharedStore {
        Arc::new(Self { inner, handle })
    }

    fn run<T, F>(&self, work: impl FnOnce(SharedStore) -> F) -> BoxFuture<'_, Result<T, StoreError>>
    where
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
        T: Send + 'static,
    {
        let kind = self.inner.kind();
        let task = self.handle.spawn(work(self.inner.clone()));
        // The task is lost only with the runtime: the node has ended.
        Box::pin(async move { task.await.unwrap_or(Err(StoreError::Closed(kind))) })
    }
}

impl Store for OnNode {
    fn kind(&self) -> StoreKind {
        self.inner.kind()
    }

    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<Entry>, StoreError>> {
        let key = key.to_owned();
        self.run(|store| async move { store.get(&key).await })
    }

    fn list(&self, prefix: &str) -> BoxFuture<'_, Result<Vec<String>, StoreError>> {
        let prefix = prefix.to_owned();
        self.run(|store| async move { store.list(&prefix).await })
    }

    fn get_latest(&self, key: &str) -> BoxFuture<'_, Result<Option<Entry>, StoreError>> {
        let key = key.to_owned();
        self.run(|store| async move { store.get_latest(&key).await })
    }

    fn list_latest(&self, prefix: &str) -> BoxFuture<'_, Result<Vec<String>, StoreError>> {
        let prefix = prefix.to_owned();
        self.run(|store| async move { store.list_latest(&prefix).await })
    }

    fn cas(&self, key: &str, f: CasFn) -> BoxFuture<'_, Result<CasOutcome, StoreError>> {
        let key = key.to_owned();
        self.run(|store| async move { store.cas(&key, f).await })
    }

    fn join(&self, key: &str, delta: Value) -> BoxFuture<'_, Result<CasOutcome, StoreError>> {
        let key = key.to_owned();
        self.run(|store| async move { store.join(&key, delta).await })
    }

    fn delete(&self, key: &str) -> BoxFuture<'_, Result<(), StoreError>> {
        let key = key.to_owned();
        self.run(|store| async move { store.delete(&key).await })
    }

    fn watch_key(&self, key: &str) -> Watch {
        let _inside = self.handle.enter();
        self.inner.watch_key(key)
    }

    fn watch_prefix(&self, prefix: &str) -> Watch {
        let _inside = self.handle.enter();
        self.inner.watch_prefix(prefix)
    }

    fn limits_values(&self) -> bool {
        self.inner.limits_values()
    }

    fn size_of(&self, key: &str, value: &Value) -> Option<ValueSize> {
        self.inner.size_of(key, value)
    }

    fn remembers_deletion(&self, key: &str) -> bool {
        self.inner.remembers_deletion(key)
    }

    fn watch_age(&self, now: Now) -> Option<Duration> {
        self.inner.watch_age(now)
    }
}
