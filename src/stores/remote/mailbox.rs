//! The way from a watch task to its reader: one slot for each key, which a newer change overwrites.
//!
//! A reader that is slower than the store therefore skips intermediate values, never the last one, and the memory in
//! use is bounded by the number of keys.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_core::Stream;
use futures_util::task::AtomicWaker;
use futures_util::{StreamExt as _, stream};
use tokio_util::task::AbortOnDropHandle;

use crate::clock::Now;
use crate::kv::{KeyChange, Watch};

struct Mailbox {
    slots: Mutex<Slots>,
    reader: AtomicWaker,
    /// When the store answered last; before its first answer, when the watch began.
    heard: Mutex<Instant>,
}

#[derive(Default)]
struct Slots {
    /// Keys with an unread change, the one that has waited longest first.
    order: VecDeque<Arc<str>>,
    latest: HashMap<Arc<str>, KeyChange>,
    closed: bool,
}

/// Writes changes. The stream ends when this is dropped.
pub(in crate::stores) struct Sender(Arc<Mailbox>);

/// Reads changes.
pub(in crate::stores) struct Receiver(Arc<Mailbox>);

/// The watches of one store that have a reader.
#[derive(Debug, Default)]
pub(in crate::stores) struct Watches(Mutex<Vec<Weak<Mailbox>>>);

impl Watches {
    /// The two ends of a new watch.
    pub(in crate::stores) fn open(&self, now: Now) -> (Sender, Receiver) {
        let mailbox =
            Arc::new(Mailbox { slots: Mutex::default(), reader: AtomicWaker::new(), heard: Mutex::new(now.mono) });
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|mailbox| mailbox.strong_count() > 0);
        open.push(Arc::downgrade(&mailbox));
        (Sender(mailbox.clone()), Receiver(mailbox))
    }

    /// How long ago the store answered the watch that has waited longest; `None` without a watch.
    pub(in crate::stores) fn age(&self, now: Now) -> Option<Duration> {
        let open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let heard = open.iter().filter_map(Weak::upgrade).map(|mailbox| mailbox.heard()).min()?;
        Some(now.mono.saturating_duration_since(heard))
    }
}

/// A stream that starts its task when it is first polled, and ends it when it is dropped.
pub(in crate::stores) fn watch_task<F>(watches: Arc<Watches>, run: impl FnOnce(Sender) -> F + Send + 'static) -> Watch
where
    F: Future<Output = ()> + Send + 'static,
{
    let started = stream::once(async move {
        let (sender, receiver) = watches.open(Now::read());
        let task = AbortOnDropHandle::new(tokio::spawn(run(sender)));
        receiver.map(move |change| {
            let _ends_with_the_stream = &task;
            change
        })
    });
    Box::pin(started.flatten())
}

impl Mailbox {
    fn slots(&self) -> std::sync::MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn heard(&self) -> Instant {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mailbox").field("heard", &self.heard()).finish_non_exhaustive()
    }
}

impl Sender {
    /// The store has answered, with news or without.
    pub(in crate::stores) fn heard(&self, now: Now) {
        *self.0.heard.lock().unwrap_or_else(PoisonError::into_inner) = now.mono;
    }

    pub(in crate::stores) fn send(&self, change: KeyChange) {
        let mut slots = self.0.slots();
        let key = change.key.clone();
        if slots.latest.insert(key.clone(), change).is_none() {
            slots.order.push_back(key);
        }
        drop(slots);
        self.0.reader.wake();
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.0.slots().closed = true;
        self.0.reader.wake();
    }
}

impl Stream for Receiver {
    type Item = KeyChange;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<KeyChange>> {
        self.0.reader.register(cx.waker());
        let slots = &mut *self.0.slots();
        match slots.order.pop_front().and_then(|key| slots.latest.remove(&key)) {
            Some(change) => Poll::Ready(Some(change)),
            None if slots.closed => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}
