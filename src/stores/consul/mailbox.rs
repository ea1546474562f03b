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

use crate::kv::KeyChange;

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
pub(super) struct Sender(Arc<Mailbox>);

/// Reads changes.
pub(super) struct Receiver(Arc<Mailbox>);

pub(super) fn mailbox() -> (Sender, Receiver) {
    let mailbox = Arc::new(Mailbox::default());
    (Sender(mailbox.clone()), Receiver(mailbox))
}

impl Mailbox {
    fn slots(&self) -> std::sync::MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sender {
    pub(super) fn send(&self, change: KeyChange) {
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
