//! The node: what an embedding server starts and holds.
//!
//! A node runs its actors on a thread of its own, so a request handler that blocks never makes this instance look dead
//! to the others. The [`Node`] handle is `Send + Sync + Clone`, works from any executor or plain thread, and reads
//! snapshots: no lookup ever waits.
//!
//! ```
//! use annulus::{Config, Node, Operation};
//! use annulus::config::{KvStore, RingConfig};
//!
//! # tokio::runtime::Runtime::new()?.block_on(async {
//! let mut config = Config::default();
//! config.kv.store = KvStore::Inmemory;
//! config.node.address = "10.0.0.5:9095".into();
//! config.rings = vec![RingConfig { replication_factor: 1, ..RingConfig::named("ingester") }];
//!
//! let node = Node::builder("ingester-1").config(config).start().await?;
//! node.ring("ingester").wait_for_instances(1).await;
//! let owners = node.ring("ingester").get(annulus::key_hash("tenant-7/series"), Operation::Write)?;
//! assert_eq!(owners.ids().collect::<Vec<_>>(), ["ingester-1"]);
//! node.leave().await;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod builder;
mod keys;
mod labels;
mod meta;
mod migration;
mod on_node;
mod ring;
mod status;

use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::{Stream, stream};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{broadcast, oneshot};

pub use self::builder::NodeBuilder;
pub use self::keys::KeyStatus;
pub use self::labels::{LabelPlan, LabelStatus, LabelStep};
pub use self::migration::Preflight;
pub use self::ring::RingHandle;
pub use self::status::{ActorStatus, RingStatus};
use crate::actors::config_watcher::{ReadNow, RuntimeView};
use crate::actors::events::NodeEvent;
use crate::actors::membership::{Join, Members};
use crate::actors::message::Fault;
use crate::actors::supervisor::Exit;
use crate::actors::system::{Command, LeaveReport, System};
use crate::config::Config;
use crate::kv::cbor::CborCodec;
use crate::kv::typed::Kv;
use crate::kv::{Codec, Codecs, Mergeable, SharedStore};

/// A running node. Cheap to clone; all clones are the same node.
///
/// Dropping the last clone ends the node as if its process had died. To say goodbye, call [`Node::leave`].
#[derive(Clone)]
pub struct Node {
    system: Arc<System>,
    /// Ends the node when the last handle goes away.
    commands: tokio::sync::mpsc::UnboundedSender<Command>,
    store: SharedStore,
}

impl Node {
    /// Begins to build a node with this instance id, which is also its name among the members.
    pub fn builder(id: impl Into<String>) -> NodeBuilder {
        NodeBuilder::new(id.into())
    }

    /// This node's id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.system.config.node.id
    }

    /// The configuration that this node was started with.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.system.config
    }

    /// The address of the gossip socket, or `None` when this node does not gossip.
    #[must_use]
    pub fn gossip_addr(&self) -> Option<SocketAddr> {
        self.system.transport.as_ref().map(|parts| parts.transport.local_addr())
    }

    /// A ring by the name that the configuration gives it.
    ///
    /// A name that is not configured gives a handle on an empty ring, whose lookups say so; see [`Node::rings`].
    #[must_use]
    pub fn ring(&self, name: &str) -> RingHandle {
        let entry = self.system.rings.iter().find(|entry| entry.config.name == name);
        entry.map_or_else(|| RingHandle::unknown(name), |entry| RingHandle::of(entry, self.store.clone()))
    }

    /// All configured rings, in the configuration's order.
    #[must_use]
    pub fn rings(&self) -> Vec<RingHandle> {
        self.system.rings.iter().map(|entry| RingHandle::of(entry, self.store.clone())).collect()
    }

    /// Typed access to the keys below `prefix`, in whichever store is primary.
    ///
    /// Values of serde types travel as CBOR. Register a value type before the node starts with
    /// [`NodeBuilder::values`] when other nodes may already hold values: what arrives before its codec is known is
    /// ignored, and comes again with the next push/pull.
    #[must_use]
    pub fn kv<T>(&self, prefix: &str) -> Kv<T>
    where
        T: Mergeable + Serialize + DeserializeOwned,
    {
        if self.system.codecs.for_key(prefix).is_none() {
            self.system.codecs.register(prefix, cbor_codec::<T>(prefix));
        }
        Kv::new(self.store.clone(), prefix)
    }

    /// The store itself, untyped: for keys whose codec was registered.
    #[must_use]
    pub fn store(&self) -> SharedStore {
        self.store.clone()
    }

    /// The codecs that this node knows.
    #[must_use]
    pub fn codecs(&self) -> Arc<Codecs> {
        self.system.codecs.clone()
    }

    /// The members of the gossip cluster as this node sees them: a snapshot, read without waiting.
    #[must_use]
    pub fn members(&self) -> Arc<Members> {
        self.system.members.load_full()
    }

    /// Contacts these members now, in addition to the configured ones. Returns how many answered.
    ///
    /// # Errors
    /// What each of them did instead, when none answered, or that this node does not gossip.
    pub async fn join(&self, seeds: Vec<SocketAddr>) -> Result<usize, String> {
        let Some(membership) = &self.system.membership else {
            return Err("this node's store is not memberlist, so it has no members to join".to_owned());
        };
        match membership.send(Join(seeds)).await {
            Ok(Ok(outcome)) if outcome.joined > 0 => Ok(outcome.joined),
            Ok(Ok(outcome)) if outcome.errors.is_empty() => Err("only this node itself was contacted".to_owned()),
            Ok(Ok(outcome)) => Err(outcome.errors.join("; ")),
            Ok(Err(())) | Err(_) => Err("the membership actor died over the join; it tries its seeds again".to_owned()),
        }
    }

    /// The runtime configuration as last read, or `None` when no runtime file is configured.
    #[must_use]
    pub fn runtime_config(&self) -> Option<Arc<RuntimeView>> {
        self.system.runtime_config.as_ref().map(|parts| parts.view.load_full())
    }

    /// Reads the runtime files now instead of at the end of the period.
    pub fn reload_runtime_config(&self) {
        if let Some(parts) = &self.system.runtime_config
            && let Some(watcher) = parts.address.get()
        {
            watcher.do_send(ReadNow);
        }
    }

    /// What happens on this node from now on. A reader that is more than 1024 events behind misses the oldest.
    pub fn events(&self) -> impl Stream<Item = NodeEvent> + Send + Unpin + 'static {
        let receiver = self.system.events.subscribe();
        Box::pin(stream::unfold(receiver, |mut receiver| async move {
            loop {
                match receiver.recv().await {
                    Ok(event) => return Some((event, receiver)),
                    Err(broadcast::error::RecvError::Lagged(missed)) => {
                        tracing::warn!(missed, "an event reader was too slow");
                    }
                    Err(broadcast::error::RecvError::Closed) => return None,
                }
            }
        }))
    }

    /// Whether every joined ring is ready to serve; otherwise the reasons why not.
    ///
    /// # Errors
    /// One line for each reason.
    pub fn ready(&self) -> Result<(), Vec<String>> {
        let reasons: Vec<_> = self.rings().iter().filter_map(RingHandle::not_ready).collect();
        if reasons.is_empty() { Ok(()) } else { Err(reasons) }
    }

    /// The supervision tree: each actor's state and restarts.
    #[must_use]
    pub fn actors(&self) -> Vec<ActorStatus> {
        self.system.tree.statuses().iter().map(|status| ActorStatus::of(status)).collect()
    }

    /// How long this node has been running.
    #[must_use]
    pub fn uptime(&self) -> std::time::Duration {
        self.system.started.elapsed()
    }

    /// This node's metrics in the OpenMetrics text format, made from the published snapshots.
    #[must_use]
    pub fn metrics(&self) -> String {
        status::metrics(&self.system)
    }

    /// Makes an actor fail, to see that nothing is lost: for drills and chaos tests.
    ///
    /// # Errors
    /// When there is no actor of that name; the message lists the names.
    pub fn drill(&self, actor: &str, fault: Fault) -> Result<(), String> {
        let drills = self.system.drills.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match drills.iter().find(|(name, _)| name == actor) {
            Some((_, fail)) => {
                fail(fault);
                Ok(())
            }
            None => {
                let names: Vec<_> = drills.iter().map(|(name, _)| name.as_str()).collect();
                Err(format!("no actor is called {actor:?}; there are {}", names.join(", ")))
            }
        }
    }

    /// Leaves: signs off from every ring, brings the mirror's outbox to the other store, says goodbye to the members,
    /// ends the node. Each step has its limit; the report names what could not be finished. Safe to call again.
    pub async fn leave(&self) -> LeaveReport {
        let (done, left) = oneshot::channel();
        let _ = self.commands.send(Command::Leave(done));
        left.await.unwrap_or_default()
    }

    /// Ends the node at once, without a word to anybody, as a crash would. Safe to call again.
    pub async fn stop(&self) {
        let (done, stopped) = oneshot::channel();
        let _ = self.commands.send(Command::Stop(done));
        let _ = stopped.await;
    }

    /// Waits until the node has ended, and says how: asked to, or because an actor could not be kept alive.
    pub async fn closed(&self) -> Exit {
        let mut exit = self.system.tree.exit();
        let ended = exit.wait_for(Option::is_some).await;
        ended.ok().and_then(|exit| exit.clone()).unwrap_or(Exit::Stopped)
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("id", &self.id()).finish_non_exhaustive()
    }
}

/// The codec of serde values below a prefix. Its id is made from the prefix, so that all nodes agree on it.
fn cbor_codec<T>(prefix: &str) -> Arc<dyn Codec>
where
    T: Mergeable + Serialize + DeserializeOwned,
{
    Arc::new(CborCodec::<T>::new(format!("cbor:{prefix}")))
}
