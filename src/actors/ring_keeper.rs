//! The ring keeper: follows the ring's key and publishes the snapshot that lookups read. One for each ring.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use actix::{Actor, Addr, AsyncContext, Context, Handler, SpawnHandle, Supervised, WrapFuture};
use arc_swap::ArcSwap;
use futures_util::StreamExt;
use tokio::sync::watch;

use super::events::{EventHub, NodeEvent};
use super::heartbeat::{Heartbeat, Observed};
use super::message::{drillable, message};
use super::multi::Shadow;
use crate::clock::Now;
use crate::kv::{KeyChange, SharedStore, Watch};
use crate::ring::{Desc, Freshness, RingOptions, Snapshot};

/// Where a keeper hears of its ring.
pub(crate) enum Source {
    /// The node's store.
    Store(SharedStore),
    /// The store of a migration that is not primary. Nothing is told of it: the ring's users read the other one.
    Shadow(Arc<Shadow>),
}

impl Source {
    fn watch(&self, key: &str) -> Watch {
        match self {
            Self::Store(store) => store.watch_key(key),
            Self::Shadow(shadow) => shadow.watch_key(key),
        }
    }
}

/// What outlives the actor.
pub(crate) struct RingParts {
    /// The ring's name in configuration, metrics and URLs.
    pub(crate) name: String,
    /// Its key in the store, prefix included.
    pub(crate) key: String,
    pub(crate) source: Source,
    pub(crate) snapshot: Arc<ArcSwap<Snapshot>>,
    pub(crate) desc: ArcSwap<Desc>,
    /// Counts the snapshots, for those who wait for the next one.
    pub(crate) published: watch::Sender<u64>,
    pub(crate) events: EventHub,
    pub(crate) freshness: Mutex<Freshness>,
    /// Our own instance's actor, which wants to see the ring too; `None` inside when we only read this ring.
    pub(crate) heartbeat: OnceLock<Option<Addr<Heartbeat>>>,
}

impl RingParts {
    pub(crate) fn new(
        name: String,
        key: String,
        options: &RingOptions,
        freshness: Freshness,
        source: Source,
        events: EventHub,
    ) -> Arc<Self> {
        let empty = Desc::default();
        let snapshot = Snapshot::build(&empty, options, Now::read().unix);
        Arc::new(Self {
            name,
            key,
            source,
            snapshot: Arc::new(ArcSwap::from_pointee(snapshot)),
            desc: ArcSwap::from_pointee(empty),
            published: watch::Sender::new(0),
            events,
            freshness: Mutex::new(freshness),
            heartbeat: OnceLock::new(),
        })
    }
}

pub(crate) struct RingKeeper {
    parts: Arc<RingParts>,
    timer: Option<SpawnHandle>,
}

impl RingKeeper {
    pub(crate) fn new(parts: Arc<RingParts>) -> Self {
        Self { parts, timer: None }
    }

    /// The time by which heartbeats are judged: the store's silence must not make instances unhealthy.
    fn health_at(&self) -> Duration {
        self.parts.freshness.lock().unwrap_or_else(PoisonError::into_inner).health_at(Now::read())
    }

    fn publish(&mut self, desc: &Arc<Desc>, ctx: &mut Context<Self>) {
        let before = self.parts.snapshot.load_full();
        let next = before.with_health(desc, self.health_at());
        let changed = next.digest() != before.digest();
        let instances = next.instances().len();
        self.parts.desc.store(desc.clone());
        self.parts.snapshot.store(Arc::new(next));
        self.parts.published.send_modify(|count| *count += 1);
        if changed && matches!(self.parts.source, Source::Store(_)) {
            self.parts.events.publish(NodeEvent::RingChanged { ring: self.parts.name.clone(), instances });
        }
        self.set_timer(ctx);
    }

    /// Wakes when the next instance turns unhealthy, if nothing is heard of it until then.
    fn set_timer(&mut self, ctx: &mut Context<Self>) {
        if let Some(timer) = self.timer.take() {
            ctx.cancel_future(timer);
        }
        let Some(at) = self.parts.snapshot.load().next_health_change() else { return };
        // A little later than the boundary, so that the boundary is past when we look. While the store is away the
        // judging time stands still; then we look again once a second.
        let wait = at.saturating_sub(self.health_at()) + Duration::from_millis(1);
        self.timer =
            Some(ctx.run_later(wait.max(Duration::from_millis(50)).min(Duration::from_secs(1)), |this, ctx| {
                this.timer = None;
                let desc = this.parts.desc.load_full();
                this.publish(&desc, ctx);
            }));
    }
}

impl Actor for RingKeeper {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let mut watch = self.parts.source.watch(&self.parts.key);
        let address = ctx.address();
        ctx.spawn(
            async move {
                while let Some(change) = watch.next().await {
                    if address.send(Changed(change)).await.is_err() {
                        return;
                    }
                }
            }
            .into_actor(self),
        );
        self.set_timer(ctx);
    }
}

impl Supervised for RingKeeper {
    // The snapshot stays published; `started` watches again and is handed the current value.
    fn restarting(&mut self, _: &mut Self::Context) {
        self.timer = None;
    }
}

drillable!(RingKeeper);

struct Changed(KeyChange);
message!(Changed => ());

impl Handler<Changed> for RingKeeper {
    type Result = ();

    fn handle(&mut self, Changed(change): Changed, ctx: &mut Self::Context) {
        let now = Now::read();
        {
            let mut freshness = self.parts.freshness.lock().unwrap_or_else(PoisonError::into_inner);
            if change.fresh {
                freshness.store_seen(now);
            } else {
                freshness.store_lost(now);
            }
        }
        let desc = match change.entry {
            Some(entry) => match entry.value.downcast_ref::<Desc>() {
                Some(desc) => Arc::new(desc.clone()),
                None => {
                    tracing::error!(ring = %self.parts.name, "the value under the ring's key is not a ring");
                    return;
                }
            },
            // Out of reach before anything was read: keep what we have. Deleted: an empty ring.
            None if !change.fresh => self.parts.desc.load_full(),
            None => Arc::new(Desc::default()),
        };
        if let (true, Some(Some(heartbeat))) = (change.fresh, self.parts.heartbeat.get()) {
            heartbeat.do_send(Observed(desc.clone()));
        }
        self.publish(&desc, ctx);
    }
}
