//! The signal that ends every waiting call of a transport.

use tokio::sync::watch;

/// Set once; whoever waits for it, now or later, is woken.
#[derive(Debug)]
pub(super) struct CloseSignal {
    closed: watch::Sender<bool>,
}

impl CloseSignal {
    pub(super) fn new() -> Self {
        Self { closed: watch::Sender::new(false) }
    }

    pub(super) fn close(&self) {
        self.closed.send_replace(true);
    }

    pub(super) fn is_closed(&self) -> bool {
        *self.closed.borrow()
    }

    /// Runs `work` until it is done, or fails with `NotConnected` as soon as the signal is set.
    pub(super) async fn unless_closed<T>(&self, work: impl Future<Output = std::io::Result<T>>) -> std::io::Result<T> {
        let mut closed = self.closed.subscribe();
        tokio::select! {
            biased;
            // The sender is `self`, so waiting cannot fail.
            _ = closed.wait_for(|closed| *closed) => Err(super::closed_error()),
            done = work => done,
        }
    }
}
