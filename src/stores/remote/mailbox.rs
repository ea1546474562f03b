//! The way from a watch task to its reader: one slot for each key, which a newer change overwrites.
//!
//! A reader that is slower than the store therefore skips intermediate values, never the last one, and the memory in
//! use is bounded by the number of keys.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures_core::Stream;
use futures_util::task::AtomicWaker;
use futures_util::{StreamExt as _, stream};
use tokio_util::task::AbortOnDropHandle;

use crate::kv::{KeyChange, Watch};

#[derive(Default)]
struct Mailbox {
    slots: Mutex<Slots>,
    reader: AtomicWaker,
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

pub(in crate::stores) fn mailbox() -> (Sender, Receiver) {
    let mailbox = Arc::new(Mailbox::default());
    (Sender(mailbox.clone()), Receiver(mailbox))
}

/// A stream that starts its task when it is first polled, and ends it when it is dropped.
pub(in crate::stores) fn watch_task<F>(run: impl FnOnce(Sender) -> F + Send + 'static) -> Watch
where
    F: Future<Output = ()> + Send + 'static,
{
    let started = stream::once(async move {
        let (sender, receiver) = mailbox();
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
}

impl Sender {
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
