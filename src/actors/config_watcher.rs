//! The config watcher: reads the runtime files again and again, and hands on what changed.
//!
//! Polling by content, not by inode or modification time, survives the symlink swap of a Kubernetes ConfigMap. A file
//! that cannot be used changes nothing: the last good configuration stays.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use actix::{Actor, ActorFutureExt, Addr, AsyncContext, Context, Handler, Supervised, WrapFuture};
use arc_swap::ArcSwap;

use super::events::{EventHub, NodeEvent};
use super::message::{drillable, message};
use super::mirror::{Mirror, Runtime};
use crate::config::runtime::{Poll, RuntimeConfig, RuntimeLoader, last_named_primary, load_last_good, save_last_good};
use crate::migration::RuntimeMulti;

/// The runtime configuration as it stands.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct RuntimeView {
    /// The last good one.
    pub config: RuntimeConfig,
    /// SHA-256 of its sources; empty before the first was read.
    pub hash: String,
    /// Whether the last reading succeeded.
    pub healthy: bool,
    /// Why it did not.
    pub last_error: Option<String>,
    /// Successful readings that changed something.
    pub reloads: u64,
    /// What is wrong with it although it could be read: this node started without the section that named its primary
    /// before. Gone with the next change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
}

/// What outlives the actor.
pub(crate) struct ConfigParts {
    pub(crate) period: Duration,
    pub(crate) loader: Mutex<RuntimeLoader>,
    pub(crate) view: ArcSwap<RuntimeView>,
    pub(crate) events: EventHub,
    pub(crate) mirror: OnceLock<Addr<Mirror>>,
    /// The primary of the static configuration, where there are two stores.
    pub(crate) static_primary: Option<&'static str>,
    pub(crate) address: OnceLock<Addr<ConfigWatcher>>,
    /// Where the last good configuration is kept for the next start.
    pub(crate) cache: Option<PathBuf>,
    /// Counts the readings, under the lock of the loader.
    pub(crate) readings: AtomicU64,
}

pub(crate) struct ConfigWatcher {
    parts: Arc<ConfigParts>,
    /// The newest reading that was taken over: one that was asked for meanwhile may come in after a later one.
    applied: u64,
}

impl ConfigWatcher {
    pub(crate) fn new(parts: Arc<ConfigParts>) -> Self {
        Self { parts, applied: 0 }
    }

    fn read(&mut self, ctx: &mut Context<Self>) {
        ctx.spawn(look(self.parts.clone()).into_actor(self).map(|reading, this, ctx| {
            this.apply(reading);
            ctx.run_later(this.parts.period, Self::read);
        }));
    }

    fn apply(&mut self, reading: Option<Reading>) {
        let Some(Reading { number, poll, good, hash, named }) = reading.filter(|reading| reading.number > self.applied)
        else {
            return;
        };
        self.applied = number;
        let before = self.parts.view.load_full();
        let mut view = RuntimeView::clone(&before);
        match (poll, good) {
            (Poll::Failed(error), _) => {
                let reason = error.to_string();
                if view.last_error.as_ref() != Some(&reason) {
                    self.parts.events.publish(NodeEvent::RuntimeConfigRefused { reason: reason.clone() });
                    if let Some(mirror) = self.parts.mirror.get() {
                        mirror.do_send(Runtime(Err(reason.clone())));
                    }
                }
                view.healthy = false;
                view.last_error = Some(reason);
                if view.hash.is_empty()
                    && let Some(config) = self.cached()
                {
                    view.config = config;
                    view.hash = "cached".to_owned();
                }
            }
            // By hash, not by what this reading found changed: an actor that died over a reading, or a second reading
            // at the same time, took that news away.
            (_, Some(config)) if view.hash != hash => {
                self.parts.events.publish(NodeEvent::RuntimeConfigChanged { hash: hash.clone() });
                view = RuntimeView {
                    config,
                    hash,
                    healthy: true,
                    last_error: None,
                    reloads: before.reloads + 1,
                    warning: None,
                };
            }
            _ => {
                view.healthy = true;
                view.last_error = None;
            }
        }
        if before.hash.is_empty() && !view.hash.is_empty() && view.config.multi_kv_config.primary.is_none() {
            view.warning = self.primary_gone(named);
        }
        self.parts.view.store(Arc::new(view));
        self.tell_mirror();
    }

    /// The first configuration of this run names no primary. Says what is wrong with that when an earlier one named
    /// another than the static configuration does.
    fn primary_gone(&self, named: Option<String>) -> Option<String> {
        let (last, primary) = (named?, self.parts.static_primary?);
        if last == primary {
            return None;
        }
        let warning = format!(
            "the runtime config names no primary, but before this start it named {last}: this node is on {primary}, as its \
             static configuration says, apart from nodes that kept {last}; put multi_kv_config back until every node has \
             its new static configuration"
        );
        tracing::warn!("{warning}");
        self.parts.events.publish(NodeEvent::RuntimePrimaryGone { last, primary: primary.to_owned() });
        Some(warning)
    }

    /// The last good configuration of an earlier run: a node that starts during a migration with an unreadable file
    /// goes on with what it last knew.
    fn cached(&self) -> Option<RuntimeConfig> {
        match load_last_good(self.parts.cache.as_deref()?) {
            Ok(config) => config,
            Err(error) => {
                tracing::warn!(%error, "the cached runtime config is not used");
                None
            }
        }
    }

    /// Level-triggered: the mirror is told the current state after each reading, so nothing is ever missed.
    fn tell_mirror(&self) {
        let Some(mirror) = self.parts.mirror.get() else { return };
        let view = self.parts.view.load();
        // The last good one stays in force whatever happened to the file since.
        if !view.hash.is_empty() {
            mirror.do_send(Runtime(runtime_multi(&view.config)));
        }
    }
}

/// What one look at the files gave.
struct Reading {
    number: u64,
    poll: Poll,
    /// The last good configuration, this one or an earlier one, and the hash of its sources.
    good: Option<RuntimeConfig>,
    hash: String,
    /// The primary that was named last, as it was cached before this reading.
    named: Option<String>,
}

/// Reads the files on a thread of its own: a network file system may hang, and that must not stop heartbeats. `None`
/// when the node is ending.
async fn look(parts: Arc<ConfigParts>) -> Option<Reading> {
    let reading = tokio::task::spawn_blocking(move || {
        let mut loader = parts.loader.lock().unwrap_or_else(PoisonError::into_inner);
        let poll = loader.poll();
        // A cache that cannot be believed says nothing here; whoever needs it tells why.
        let named = match &parts.cache {
            Some(directory) if parts.view.load().hash.is_empty() => last_named_primary(directory).ok().flatten(),
            _ => None,
        };
        if let (Poll::Changed(config), Some(directory)) = (&poll, &parts.cache)
            && let Err(error) = save_last_good(directory, config)
        {
            tracing::warn!(%error, "the last good runtime config was not saved");
        }
        let number = parts.readings.fetch_add(1, Ordering::Relaxed) + 1;
        Reading { number, poll, good: loader.last_good().cloned(), hash: loader.hash(), named }
    });
    reading.await.ok()
}

/// What the runtime configuration says to the multi store.
pub(crate) fn runtime_multi(config: &RuntimeConfig) -> Result<RuntimeMulti, String> {
    let multi = &config.multi_kv_config;
    let primary = multi.primary.as_deref().map(str::parse).transpose().map_err(|error| format!("{error}"))?;
    Ok(RuntimeMulti { primary, mirror_enabled: multi.mirror_enabled })
}

impl Actor for ConfigWatcher {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.read(ctx);
    }
}

impl Supervised for ConfigWatcher {
    // The loader with its last good configuration lives in the parts; `started` reads again at once.
    fn restarting(&mut self, _: &mut Self::Context) {}
}

drillable!(ConfigWatcher);

/// Reads the files now instead of at the next period.
pub(crate) struct ReadNow;
message!(ReadNow => ());

impl Handler<ReadNow> for ConfigWatcher {
    type Result = ();

    fn handle(&mut self, _: ReadNow, ctx: &mut Self::Context) {
        ctx.spawn(look(self.parts.clone()).into_actor(self).map(|reading, this, _| this.apply(reading)));
    }
}
