//! Writing packets, each to a connection of its own.

use std::sync::Arc;

use tokio::io::AsyncWriteExt;
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout_at};

use super::Shared;
use super::outbox::{Job, Outcome};
use crate::transport::counters::add;
use crate::transport::{lock, tcp};

/// Starts a writer for each packet that may be written now. Each starts those that its end makes room for.
pub(super) fn pump(shared: &Arc<Shared>, runtime: &Handle) {
    loop {
        let (job, too_old) = lock(&shared.outbox).next(Instant::now());
        dropped(shared, too_old);
        let Some(job) = job else { return };
        runtime.spawn(deliver(shared.clone(), runtime.clone(), Writing { shared: shared.clone(), job, outcome: None }));
    }
}

/// Counts packets that were given up before anything was tried.
pub(super) fn dropped(shared: &Shared, count: usize) {
    if count > 0 {
        add(&shared.counters.packets_dropped, count);
    }
}

/// A packet that is being written. Gives its place back when dropped, also when its task does not end well.
struct Writing {
    shared: Arc<Shared>,
    job: Job,
    outcome: Option<Outcome>,
}

impl Drop for Writing {
    fn drop(&mut self) {
        let outcome = self.outcome.unwrap_or(Outcome::NotTaken);
        let (gone, idle) = {
            let mut outbox = lock(&self.shared.outbox);
            (outbox.done(Instant::now(), &self.job, outcome), outbox.is_idle())
        };
        if outcome != Outcome::Written {
            add(&self.shared.tcp.packets_sent_errors, gone + 1);
            add(&self.shared.counters.packet_errors, gone + 1);
        }
        if idle {
            self.shared.idle.notify_waiters();
        }
    }
}

async fn deliver(shared: Arc<Shared>, runtime: Handle, mut writing: Writing) {
    writing.outcome = Some(write(&shared, &writing.job).await);
    drop(writing);
    pump(&shared, &runtime);
}

async fn write(shared: &Shared, job: &Job) -> Outcome {
    let settings = &shared.settings;
    let Ok(mut stream) = tcp::connect(job.to, Instant::now() + settings.dial_timeout).await else {
        return Outcome::NotConnected;
    };
    // Set before the first packet is queued.
    let Some(from) = shared.advertised.get() else { return Outcome::NotTaken };
    let frame = shared.framing.frame(*from, &job.packet);
    let write = async {
        stream.write_all(&frame).await?;
        add(&shared.tcp.sent_bytes, frame.len());
        add(&shared.counters.packets_out, 1);
        add(&shared.counters.packet_bytes_out, job.packet.len());
        // The end of the connection is the end of the packet.
        stream.shutdown().await
    };
    match timeout_at(Instant::now() + settings.write_timeout, write).await {
        Ok(Ok(())) => Outcome::Written,
        _ => Outcome::NotTaken,
    }
}
