//! Watching: a task that asks Consul with blocking queries, and a stream that its reader polls.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Shared;
use super::client::{Block, Consistency, Reply};
use super::limit::RateLimit;
use crate::clock::Now;
use crate::kv::{StoreKind, Watch};
use crate::stores::remote::Target;
use crate::stores::remote::backoff::Backoff;
use crate::stores::remote::mailbox::{Sender, watch_task};
use crate::stores::remote::view::View;

/// How long Consul may hold an answer back, at most.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(10);

/// See [`watch_task`].
pub(super) fn start(shared: Arc<Shared>, target: Target) -> Watch {
    watch_task(shared.watches.clone(), move |reader| run(shared, target, reader))
}

/// What an answer's index says about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Something changed, or it is the first answer.
    Forward,
    /// Nothing changed.
    Same,
    /// The answer comes from a server that is behind: ask the leader.
    Behind,
    /// The leader itself went back: Consul was restored from a snapshot, or is another one.
    Back,
}

/// Where the watch stands in Consul's history.
#[derive(Debug, Default)]
pub(super) struct Position {
    /// The index of the last answer, 0 before the first.
    index: u64,
    /// Whether the next query waits for a change. It does not after failures: whether the store is back must be known
    /// at once, and if the index was reset meanwhile, waiting for the old one would take all the time there is.
    block: bool,
    ask_leader: bool,
}

impl Position {
    /// The index to wait for, if any.
    pub(super) fn wait_for(&self) -> Option<u64> {
        self.block.then_some(self.index)
    }

    pub(super) fn asks_leader(&self) -> bool {
        self.ask_leader
    }

    /// The query failed.
    pub(super) fn failed(&mut self) {
        self.block = false;
    }

    /// The query was answered with this index. Index 0, or none, must never be waited for: that does not block.
    pub(super) fn answered(&mut self, index: Option<u64>) -> Progress {
        let index = index.unwrap_or(0).max(1);
        let progress = match index.cmp(&self.index) {
            std::cmp::Ordering::Less if !self.ask_leader => {
                self.block = false;
                self.ask_leader = true;
                return Progress::Behind;
            }
            std::cmp::Ordering::Less => Progress::Back,
            std::cmp::Ordering::Equal => Progress::Same,
            std::cmp::Ordering::Greater => Progress::Forward,
        };
        *self = Self { index, block: true, ask_leader: false };
        progress
    }
}

async fn run(shared: Arc<Shared>, target: Target, reader: Sender) {
    let Shared { client, config, codecs, .. } = &*shared;
    let wait = (config.http_client_timeout / 2).min(LONGEST_WAIT);
    let mut limit = RateLimit::new(config.watch_rate_limit, config.watch_burst_size, Instant::now());
    let mut backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
    let mut view = View::new(StoreKind::Consul, target.clone(), codecs.clone(), config.left_timeout);
    let mut position = Position::default();
    let mut out_of_reach = false;
    loop {
        if let Some(limit) = &mut limit {
            tokio::time::sleep(limit.take(Instant::now())).await;
        }
        let consistency = match config.read_consistency() {
            Consistency::Stale if position.asks_leader() => Consistency::Leader,
            configured => configured,
        };
        let block = position.wait_for().map(|index| Block { index, wait });
        let asked = Instant::now();
        let Reply { index, pairs } = match client.read(&target, consistency, block).await {
            Ok(reply) => reply,
            Err(error) => {
                if !std::mem::replace(&mut out_of_reach, true) {
                    tracing::warn!(target = &**target.name(), %error, "a watch lost Consul; trying again");
                    view.out_of_reach().into_iter().for_each(|change| reader.send(change));
                }
                position.failed();
                backoff.pause().await;
                continue;
            }
        };
        let progress = position.answered(index);
        if progress == Progress::Behind {
            backoff.pause().await;
            continue;
        }
        let now = Now::read();
        reader.heard(now);
        if progress == Progress::Back {
            tracing::warn!(target = &**target.name(), "Consul's index went back; joining with what was known");
            view.index_went_back(now);
        }
        if std::mem::take(&mut out_of_reach) {
            tracing::info!(target = &**target.name(), "a watch reached Consul again");
            view.found(pairs, true, now)
        } else {
            view.found(pairs, false, now)
        }
        .into_iter()
        .for_each(|change| reader.send(change));
        if progress == Progress::Forward {
            backoff.reset();
        } else if asked.elapsed() < wait / 2 {
            // A server that neither has news nor waits for them would otherwise be asked in a tight loop.
            backoff.pause().await;
        }
    }
}
