//! Bringing a write from one store of a migration to the other, without ever bringing back a key that was deleted.
//!
//! Consul and etcd keep no tombstone of a key, so a write that had waited could create a key again that another node
//! deleted meanwhile. Therefore such a write changes only what is there. Where the key is not there, the other store is
//! asked, and only what it still has is created.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::kv::{CasAction, CasOutcome, Store, StoreError, Value};

/// Joins `delta` into a key of `store`. Creates the key only if `source` has it, or cannot be asked within this time.
///
/// # Errors
/// [`StoreError::Absent`] when neither store has the key. Otherwise what the store said.
pub(super) async fn join(
    store: &dyn Store,
    source: &dyn Store,
    key: &str,
    delta: Value,
    patience: Duration,
) -> Result<(), StoreError> {
    if join_where_there(store, key, &delta).await? {
        return Ok(());
    }
    let ask = async || {
        let asked = tokio::time::timeout(patience, is_there(source, key)).await;
        asked.unwrap_or(Err(StoreError::Timeout { store: source.kind(), after: patience }))
    };
    match ask().await {
        Ok(true) => {
            store.join(key, delta).await?;
            // Deleted there between the question and the creation? Whoever deleted it may have been here before us. A
            // deletion after this second question comes here after us.
            if matches!(ask().await, Ok(false)) {
                store.delete(key).await?;
                return Err(StoreError::Absent { key: key.to_owned() });
            }
            Ok(())
        }
        Ok(false) => Err(StoreError::Absent { key: key.to_owned() }),
        // Nobody can tell whether it was deleted, but this store can tell that it was: the write waits.
        Err(error) if store.remembers_deletion(key) => Err(error),
        // A primary that is away must not keep anything from the other store.
        Err(_) => store.join(key, delta).await.map(drop),
    }
}

/// Joins into a key that is there. Returns whether it was.
async fn join_where_there(store: &dyn Store, key: &str, delta: &Value) -> Result<bool, StoreError> {
    let absent = Arc::new(AtomicBool::new(false));
    let (seen, delta) = (absent.clone(), delta.clone());
    let join = move |found: Option<&Value>| {
        seen.store(found.is_none(), Ordering::Relaxed);
        found.map_or(CasAction::Keep, |_| CasAction::Join(delta.clone()))
    };
    store.cas(key, Box::new(join)).await?;
    Ok(!absent.load(Ordering::Relaxed))
}

/// Whether a key is there, asked as a write would ask: a server that is behind does not answer this.
pub(super) async fn is_there(store: &dyn Store, key: &str) -> Result<bool, StoreError> {
    let there = Arc::new(AtomicBool::new(false));
    let seen = there.clone();
    let look = move |found: Option<&Value>| {
        seen.store(found.is_some(), Ordering::Relaxed);
        CasAction::Keep
    };
    let outcome = store.cas(key, Box::new(look)).await?;
    debug_assert!(matches!(outcome, CasOutcome::Unchanged));
    Ok(there.load(Ordering::Relaxed))
}
