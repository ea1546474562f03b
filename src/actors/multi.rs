//! The multi store as its users see it: one store, whichever of the two is primary.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use actix::Addr;
use futures_util::{StreamExt, stream};
use tokio::sync::{oneshot, watch};

use super::mirror::{Delivered, Mirror, MirrorParts, Operation, Read, Request};
use crate::clock::Now;
use crate::kv::{BoxFuture, CasFn, CasOutcome, Entry, KeyChange, Store, StoreError, StoreKind, Value, Watch};
use crate::migration::{ReadJoin, Side, View};

/// How often an operation is handed to the mirror actor again when that died over it.
const RETRIES: usize = 5;

pub(crate) struct MultiStore {
    parts: Arc<MirrorParts>,
    mirror: Addr<Mirror>,
}

impl MultiStore {
    pub(crate) fn new(parts: Arc<MirrorParts>, mirror: Addr<Mirror>) -> Arc<Self> {
        Arc::new(Self { parts, mirror })
    }

    async fn operate(&self, key: Arc<str>, request: Request) -> Result<CasOutcome, StoreError> {
        for _ in 0..RETRIES {
            let (reply, answer) = oneshot::channel();
            let operation = Operation { key: key.clone(), request: request.clone(), reply };
            if self.mirror.send(operation).await.is_err() && !self.mirror.connected() {
                break;
            }
            // A dropped reply means that the actor died with the operation in its hands. It is safe to repeat: joins
            // are idempotent, and a callback decides anew on the current value.
            if let Ok(result) = answer.await {
                return result;
            }
        }
        Err(StoreError::Closed(StoreKind::Multi))
    }

    /// What to hand to a reader of a key of which a store holds this.
    async fn joined_with_known(
        &self,
        key: &Arc<str>,
        side: Side,
        found: Option<Value>,
    ) -> Result<Option<Value>, StoreError> {
        for _ in 0..RETRIES {
            let read = Read { key: key.clone(), side, found: found.clone() };
            match self.mirror.send(read).await {
                Ok(value) => return Ok(value),
                Err(_) if self.mirror.connected() => {}
                Err(_) => break,
            }
        }
        // What was found may be older than what this node has handed out already.
        Err(StoreError::Closed(StoreKind::Multi))
    }

    /// The store that is not primary, for watches alone: they follow it over a flip.
    pub(crate) fn shadow(self: &Arc<Self>) -> Arc<Shadow> {
        Arc::new(Shadow(self.clone()))
    }

    fn watch(&self, open: impl Fn(&dyn Store) -> Watch + Send + Sync + 'static) -> Watch {
        let homed = self.homed(open);
        Box::pin(stream::unfold(homed, |mut homed| async move { homed.next().await.map(|change| (change, homed)) }))
    }

    pub(super) fn homed(&self, open: impl Fn(&dyn Store) -> Watch + Send + Sync + 'static) -> Homed {
        let mut views = self.parts.views.subscribe();
        let view = *views.borrow_and_update();
        Homed {
            parts: self.parts.clone(),
            mirror: self.mirror.clone(),
            open: Arc::new(open),
            views,
            view,
            inner: None,
            seen: HashMap::new(),
        }
    }
}

/// How a watch is opened on a store.
type Open = dyn Fn(&dyn Store) -> Watch + Send + Sync;

/// A watch that follows the primary.
pub(super) struct Homed {
    parts: Arc<MirrorParts>,
    mirror: Addr<Mirror>,
    open: Arc<Open>,
    views: watch::Receiver<View>,
    view: View,
    /// Opened at the first poll, and not before it is known which store is primary.
    inner: Option<Watch>,
    /// What was handed out, by key: a reader never sees less after a flip.
    seen: HashMap<Arc<str>, ReadJoin>,
}

impl Homed {
    /// Of how many keys it is known what was handed out.
    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        self.seen.len()
    }

    pub(super) async fn next(&mut self) -> Option<KeyChange> {
        loop {
            if self.inner.is_none() && !self.view.waiting_for_runtime {
                self.inner = Some((self.open)(&*self.parts.side(self.view.primary)));
            }
            tokio::select! {
                biased;
                changed = self.views.changed() => {
                    if changed.is_err() {
                        return None;
                    }
                    self.follow();
                }
                change = next_of(&mut self.inner) => return self.deliver(change?),
            }
        }
    }

    /// After a flip the watch is opened anew on the new primary, which delivers its current value at once.
    fn follow(&mut self) {
        let view = *self.views.borrow_and_update();
        if view.generation != self.view.generation {
            self.inner = None;
        }
        self.view = view;
    }

    fn deliver(&mut self, mut change: KeyChange) -> Option<KeyChange> {
        let incoming = change.entry.as_ref().map(|entry| entry.value.clone());
        if !change.fresh {
            // A store that became primary while it is in trouble may know less than what was handed out.
            if let Some(seen) = self.seen.get(&change.key) {
                let version = change.entry.as_ref().map_or(0, |entry| entry.version);
                change.entry = seen.lost(incoming, Now::read()).map(|value| Entry { value, version });
            }
            return Some(change);
        }
        let (key, side) = (change.key.clone(), self.view.primary);
        self.mirror.do_send(Delivered { key, side, value: incoming.clone() });
        let version = change.entry.as_ref().map_or(0, |entry| entry.version);
        let ttl = self.parts.config.tombstone_ttl;
        let seen = self.seen.entry(change.key.clone()).or_insert_with(|| ReadJoin::new(ttl));
        let read = seen.deliver(self.view.generation, incoming, Now::read());
        change.entry = read.into_value().map(|value| Entry { value, version });
        if change.entry.is_none() {
            // Nothing is held against what comes next, so there is nothing to remember: names come and go without end.
            self.seen.remove(&change.key);
        }
        Some(change)
    }
}

/// The next item of a watch that may not be open yet.
async fn next_of(inner: &mut Option<Watch>) -> Option<KeyChange> {
    match inner {
        Some(watch) => watch.next().await,
        None => std::future::pending().await,
    }
}

impl Store for MultiStore {
    fn kind(&self) -> StoreKind {
        StoreKind::Multi
    }

    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<Entry>, StoreError>> {
        let key: Arc<str> = key.into();
        Box::pin(async move {
            loop {
                let (side, generation) = self.current().await?;
                let result = self.parts.side(side).get(&key).await;
                // A read that failed because the primary was on its way out is asked again at the new one.
                if result.is_err() && self.current().await?.1 != generation {
                    continue;
                }
                let found = result?;
                let version = found.as_ref().map_or(0, |entry| entry.version);
                let value = found.map(|entry| entry.value);
                // Right after a flip the new primary may lag behind what was already read: the core joins that.
                let value = self.joined_with_known(&key, side, value).await?;
                return Ok(value.map(|value| Entry { value, version }));
            }
        })
    }

    fn list(&self, prefix: &str) -> BoxFuture<'_, Result<Vec<String>, StoreError>> {
        let prefix = prefix.to_owned();
        Box::pin(async move {
            loop {
                let (side, generation) = self.current().await?;
                let result = self.parts.side(side).list(&prefix).await;
                if result.is_ok() || self.current().await?.1 == generation {
                    return result;
                }
            }
        })
    }

    fn cas(&self, key: &str, f: CasFn) -> BoxFuture<'_, Result<CasOutcome, StoreError>> {
        let key = key.into();
        Box::pin(async move { self.operate(key, Request::Cas(Arc::new(Mutex::new(f)))).await })
    }

    fn join(&self, key: &str, delta: Value) -> BoxFuture<'_, Result<CasOutcome, StoreError>> {
        let key = key.into();
        Box::pin(async move { self.operate(key, Request::Join(delta)).await })
    }

    fn delete(&self, key: &str) -> BoxFuture<'_, Result<(), StoreError>> {
        let key = key.into();
        Box::pin(async move { self.operate(key, Request::Delete).await.map(drop) })
    }

    fn watch_key(&self, key: &str) -> Watch {
        let key = key.to_owned();
        self.watch(move |store| store.watch_key(&key))
    }

    fn watch_prefix(&self, prefix: &str) -> Watch {
        let prefix = prefix.to_owned();
        self.watch(move |store| store.watch_prefix(&prefix))
    }
}

impl MultiStore {
    /// The primary and its generation, once it is known which store that is.
    async fn current(&self) -> Result<(Side, u64), StoreError> {
        let mut views = self.parts.views.subscribe();
        let known = views.wait_for(|view| !view.waiting_for_runtime).await;
        known.map(|view| (view.primary, view.generation)).map_err(|_| StoreError::Closed(StoreKind::Multi))
    }
}

/// The side that is not primary. Whoever watches through it hears what that store says and nothing else: a flip begins it
/// anew on the other side.
pub(crate) struct Shadow(Arc<MultiStore>);

impl Shadow {
    pub(crate) fn watch_key(&self, key: &str) -> Watch {
        let (parts, key) = (self.0.parts.clone(), key.to_owned());
        let views = parts.views.subscribe();
        let state = (parts, key, views, None::<(u64, Watch)>);
        Box::pin(stream::unfold(state, |(parts, key, mut views, mut open)| async move {
            loop {
                let view = *views.borrow_and_update();
                if open.as_ref().is_none_or(|(generation, _)| *generation != view.generation) {
                    open = Some((view.generation, parts.side(view.primary.other()).watch_key(&key)));
                }
                let (_, inner) = open.as_mut()?;
                tokio::select! {
                    biased;
                    changed = views.changed() => changed.ok()?,
                    change = inner.next() => return change.map(|change| (change, (parts, key, views, open))),
                }
            }
        }))
    }
}
