//! Watching: read, then follow what happens from the next revision on; after anything that may have lost an event, read
//! again.
//!
//! Reading again shows a key that was deleted and created meanwhile as its newest value, which is what a watch promises:
//! the last value always, those in between perhaps.

use std::sync::Arc;
use std::time::Duration;

use super::Shared;
use super::client::{Change, Position, Report};
use crate::clock::Now;
use crate::kv::{StoreError, StoreKind, Watch};
use crate::stores::remote::Target;
use crate::stores::remote::backoff::Backoff;
use crate::stores::remote::mailbox::{Sender, watch_task};
use crate::stores::remote::view::View;

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(5);
/// How often a watch is compared with what is stored, in case that a server forgot to tell something: that has happened
/// (etcd#18089, etcd#19179).
const COMPARE_PERIOD: Duration = Duration::from_secs(60);

/// See [`watch_task`].
pub(super) fn start(shared: Arc<Shared>, target: Target) -> Watch {
    watch_task(shared.watches.clone(), move |reader| async move {
        let keep = shared.config.left_timeout;
        let follower = Follower {
            view: View::new(StoreKind::Etcd, target.clone(), shared.codecs.clone(), keep),
            place: Place::default(),
            backoff: Backoff::new(FIRST_RETRY, LONGEST_RETRY),
            out_of_reach: false,
            reader,
            target,
            shared,
        };
        follower.run().await;
    })
}

/// Where the watch stands in etcd's history.
#[derive(Debug, Default)]
pub(super) struct Place {
    last: Option<Position>,
    /// Everything up to this revision is known from reading; events up to it say nothing new.
    read: u64,
}

impl Place {
    /// Everything was read. Returns whether etcd's history went back: it was restored from a backup, or is another one.
    pub(super) fn read(&mut self, at: Position) -> bool {
        let back = self.last.is_some_and(|last| last.cluster != at.cluster || last.revision > at.revision);
        self.last = Some(at);
        self.read = at.revision;
        back
    }

    /// Whether an event of this revision is news.
    pub(super) fn follows(&mut self, revision: u64) -> bool {
        if revision <= self.read {
            return false;
        }
        if let Some(last) = &mut self.last {
            last.revision = last.revision.max(revision);
        }
        true
    }
}

/// Why a watch has to begin anew.
enum Lost {
    /// What it waited for is no longer in the history.
    History,
    /// The connection, or the server's patience.
    Stream(String),
    /// The store.
    Store(StoreError),
}

struct Follower {
    view: View,
    place: Place,
    backoff: Backoff,
    out_of_reach: bool,
    reader: Sender,
    target: Target,
    shared: Arc<Shared>,
}

impl Follower {
    async fn run(mut self) {
        let name = self.target.name().clone();
        loop {
            match self.follow().await {
                Ok(never) => match never {},
                Err(Lost::History) => {
                    tracing::info!(target = &*name, "etcd compacted what a watch waited for; reading again");
                }
                Err(Lost::Stream(reason)) => {
                    tracing::info!(target = &*name, reason, "a watch lost its stream from etcd; reading again");
                }
                Err(Lost::Store(error)) => {
                    if !std::mem::replace(&mut self.out_of_reach, true) {
                        tracing::warn!(target = &*name, %error, "a watch lost etcd; trying again");
                        self.view.out_of_reach().into_iter().for_each(|change| self.reader.send(change));
                    }
                }
            }
            self.backoff.pause().await;
        }
    }

    /// Reads and follows until something is lost.
    async fn follow(&mut self) -> Result<std::convert::Infallible, Lost> {
        let shared = self.shared.clone();
        let start = self.read().await?.saturating_add(1);
        let mut reports = shared.client.watch(&self.target, start).await.map_err(Lost::Store)?;
        let mut compare = Box::pin(tokio::time::sleep(COMPARE_PERIOD));
        loop {
            tokio::select! {
                report = reports.next() => match report.map_err(|error| Lost::Stream(error.to_string()))? {
                    Report::Compacted => return Err(Lost::History),
                    Report::Cancelled(reason) => {
                        // Accounts or their rights may have changed.
                        shared.client.forget_token().await;
                        return Err(Lost::Stream(reason));
                    }
                    Report::Changes(changes) => self.changed(changes),
                },
                () = &mut compare => {
                    self.read().await?;
                    self.backoff.reset();
                    compare.as_mut().reset(tokio::time::Instant::now() + COMPARE_PERIOD);
                }
            }
        }
    }

    /// Shows everything that is stored. Returns the revision at which it was.
    async fn read(&mut self) -> Result<u64, Lost> {
        let reply = self.shared.client.read(&self.target).await.map_err(Lost::Store)?;
        let now = Now::read();
        self.reader.heard(now);
        if self.place.read(reply.position) {
            tracing::warn!(target = &**self.target.name(), "etcd's history went back; joining with what was known");
            self.view.index_went_back(now);
        }
        let was_out_of_reach = std::mem::take(&mut self.out_of_reach);
        if was_out_of_reach {
            tracing::info!(target = &**self.target.name(), "a watch reached etcd again");
        }
        let news = self.view.found(reply.pairs, was_out_of_reach, now);
        news.into_iter().for_each(|change| self.reader.send(change));
        Ok(reply.position.revision)
    }

    fn changed(&mut self, changes: Vec<Change>) {
        let now = Now::read();
        self.reader.heard(now);
        for Change { key, pair, revision } in changes {
            if self.place.follows(revision)
                && let Some(news) = self.view.changed(&key, pair, now)
            {
                self.reader.send(news);
            }
            self.backoff.reset();
        }
    }
}
