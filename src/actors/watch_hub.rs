//! Published values and who watches them.
//!
//! The gossip actor publishes here; readers and watchers never wait for it, and go on across its restarts. A watcher
//! has one slot a key, so a slow one skips intermediate values but always gets the latest.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use futures_util::stream;
use tokio::sync::Notify;

use crate::kv::{Entry, KeyChange, Watch};

#[derive(Default)]
pub(crate) struct WatchHub {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    values: BTreeMap<Arc<str>, Entry>,
    watchers: Vec<Weak<Watcher>>,
    closed: bool,
}

struct Watcher {
    filter: Filter,
    slots: Mutex<Slots>,
    changed: Notify,
}

#[derive(Default)]
struct Slots {
    pending: BTreeMap<Arc<str>, KeyChange>,
    closed: bool,
}

enum Filter {
    Key(String),
    Prefix(String),
}

impl Filter {
    fn matches(&self, key: &str) -> bool {
        match self {
            Self::Key(wanted) => wanted == key,
            Self::Prefix(prefix) => key.starts_with(prefix.as_str()),
        }
    }
}

impl Watcher {
    fn offer(&self, change: KeyChange) {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).pending.insert(change.key.clone(), change);
        self.changed.notify_one();
    }

    fn close(&self) {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.changed.notify_one();
    }

    async fn next(&self) -> Option<KeyChange> {
        loop {
            {
                let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some((_, change)) = slots.pending.pop_first() {
                    return Some(change);
                }
                if slots.closed {
                    return None;
                }
            }
            // A notification between the check and this await is kept as a permit.
            self.changed.notified().await;
        }
    }
}

impl WatchHub {
    /// The published value of a key.
    pub(crate) fn get(&self, key: &str) -> Option<Entry> {
        self.lock().values.get(key).cloned()
    }

    /// All published keys below a prefix, in order.
    pub(crate) fn list(&self, prefix: &str) -> Vec<String> {
        let state = self.lock();
        let from = (std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded);
        let keys = state.values.range::<str, _>(from).map(|(key, _)| key.to_string());
        keys.take_while(|key| key.starts_with(prefix)).collect()
    }

    /// Publishes a value, or with `None` that the key is gone.
    pub(crate) fn publish(&self, key: Arc<str>, entry: Option<Entry>) {
        let mut state = self.lock();
        match &entry {
            Some(entry) => state.values.insert(key.clone(), entry.clone()),
            None => state.values.remove(&key),
        };
        let change = KeyChange { key, entry, fresh: true };
        state.watchers.retain(|watcher| {
            let Some(watcher) = watcher.upgrade() else { return false };
            if watcher.filter.matches(&change.key) {
                watcher.offer(change.clone());
            }
            true
        });
    }

    /// Watches one key, beginning with its current value.
    pub(crate) fn watch_key(&self, key: &str) -> Watch {
        self.watch(Filter::Key(key.to_owned()), |values| {
            vec![KeyChange { key: key.into(), entry: values.get(key).cloned(), fresh: true }]
        })
    }

    /// Watches all keys below a prefix, beginning with their current values.
    pub(crate) fn watch_prefix(&self, prefix: &str) -> Watch {
        self.watch(Filter::Prefix(prefix.to_owned()), |values| {
            let below = values.iter().filter(|(key, _)| key.starts_with(prefix));
            below.map(|(key, entry)| KeyChange { key: key.clone(), entry: Some(entry.clone()), fresh: true }).collect()
        })
    }

    /// Ends all watches.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        for watcher in state.watchers.drain(..).filter_map(|watcher| watcher.upgrade()) {
            watcher.close();
        }
    }

    fn watch(&self, filter: Filter, first: impl FnOnce(&BTreeMap<Arc<str>, Entry>) -> Vec<KeyChange>) -> Watch {
        let watcher = Arc::new(Watcher { filter, slots: Mutex::default(), changed: Notify::new() });
        let mut state = self.lock();
        for change in first(&state.values) {
            watcher.offer(change);
        }
        if state.closed {
            watcher.close();
        } else {
            state.watchers.push(Arc::downgrade(&watcher));
        }
        drop(state);
        Box::pin(stream::unfold(watcher, |watcher| async move { watcher.next().await.map(|change| (change, watcher)) }))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
