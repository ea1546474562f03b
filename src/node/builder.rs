//! How a node is put together and started.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc as std_mpsc;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};

use super::on_node::OnNode;
use super::{Node, cbor_codec};
use crate::actors::system::{Extras, StartError, System};
use crate::config::Config;
use crate::kv::{Codec, Codecs, Mergeable};
use crate::stores::memory::Memory;
use crate::transport::Transport;

/// Builds a [`Node`]. Begin with [`Node::builder`].
#[must_use]
pub struct NodeBuilder {
    id: String,
    config: Config,
    codecs: Arc<Codecs>,
    memory: Option<Memory>,
    transport: Option<Arc<dyn Transport>>,
    meta: Bytes,
    delegate_versions: [u8; 3],
    dns_server: Option<SocketAddr>,
}

impl NodeBuilder {
    pub(super) fn new(id: String) -> Self {
        Self {
            id,
            config: Config::default(),
            codecs: Arc::default(),
            memory: None,
            transport: None,
            meta: Bytes::new(),
            delegate_versions: [0; 3],
            dns_server: None,
        }
    }

    /// The configuration; its `node.id` gives way to the builder's id.
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// The address at which the application's peers dial this instance; it stands in the ring.
    pub fn address(mut self, address: impl Into<String>) -> Self {
        self.config.node.address = address.into();
        self
    }

    /// The failure domain of this instance.
    pub fn zone(mut self, zone: impl Into<String>) -> Self {
        self.config.node.zone = zone.into();
        self
    }

    /// Shares an in-memory store with other nodes of this process, for `kv.store: inmemory`. Without it the node has
    /// one of its own.
    pub fn memory_store(mut self, memory: Memory) -> Self {
        self.memory = Some(memory);
        self
    }

    /// Replaces UDP and TCP sockets, for example by an endpoint of a [`MemoryNetwork`](crate::transport::MemoryNetwork).
    pub fn transport(mut self, transport: Arc<dyn Transport>) -> Self {
        self.transport = Some(transport);
        self
    }

    /// What members are told about this one, at most 512 bytes. Default: empty. [`Node::set_meta`] changes it later.
    pub fn meta(mut self, meta: impl Into<Bytes>) -> Self {
        self.meta = meta.into();
        self
    }

    /// What the members' applications speak over gossip: the lowest and the highest version understood, and the one spoken.
    /// Members whose versions exclude ours are refused, as we are by them. Default: 0, 0, 0, as memberlist's; a node among
    /// Serf's agents needs 2, 5, 5 (see `docs/interop.md` for what else it takes there).
    pub fn delegate_versions(mut self, versions: [u8; 3]) -> Self {
        self.delegate_versions = versions;
        self
    }

    /// Asks this DNS server for `dnssrv+` and `dnssrvnoa+` names in `memberlist.join_members`, for example a Consul agent
    /// on its port 8600, instead of those that the system is configured for.
    #[cfg(feature = "dns-srv")]
    pub fn dns_server(mut self, server: SocketAddr) -> Self {
        self.dns_server = Some(server);
        self
    }

    /// Values of a serde type live below this prefix.
    pub fn values<T>(self, prefix: &str) -> Self
    where
        T: Mergeable + Serialize + DeserializeOwned,
    {
        let codec = cbor_codec::<T>(prefix);
        self.codec(prefix, codec)
    }

    /// Values below this prefix have this codec.
    pub fn codec(self, prefix: &str, codec: Arc<dyn Codec>) -> Self {
        self.codecs.register(prefix, codec);
        self
    }

    /// Starts the node on a thread of its own. It is registered in its rings soon afterwards; see
    /// [`Node::ready`] and [`RingHandle::wait_for_instances`](super::RingHandle::wait_for_instances).
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running then.
    pub async fn start(self) -> Result<Node, StartError> {
        let (started, starting) = oneshot::channel();
        self.spawn(move |result| drop(started.send(result)))?;
        starting.await.unwrap_or_else(|_| Err(died_at_start()))
    }

    /// Like [`NodeBuilder::start`], for threads without an executor. Blocks for the few milliseconds that it takes.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running then.
    pub fn start_blocking(self) -> Result<Node, StartError> {
        let (started, starting) = std_mpsc::channel();
        self.spawn(move |result| drop(started.send(result)))?;
        starting.recv().unwrap_or_else(|_| Err(died_at_start()))
    }

    /// Like [`NodeBuilder::start`], but on the calling thread, so that many nodes can share one: for simulations,
    /// benchmarks and tests. Whatever blocks that thread holds up all of its nodes, which makes them look dead to
    /// others; a server wants [`NodeBuilder::start`].
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running then.
    ///
    /// # Panics
    /// Outside of a [`tokio::task::LocalSet`].
    pub fn start_local(self) -> Result<Node, StartError> {
        let (config, extras) = self.prepared()?;
        let (node, running) = launch(config, extras)?;
        tokio::task::spawn_local(running);
        Ok(node)
    }

    fn spawn(self, report: impl FnOnce(Result<Node, StartError>) + Send + 'static) -> Result<(), StartError> {
        let (config, extras) = self.prepared()?;
        let name = format!("annulus-{}", config.node.id);
        std::thread::Builder::new()
            .name(name)
            .spawn(move || run(config, extras, report))
            .map_err(StartError::Thread)?;
        Ok(())
    }

    fn prepared(mut self) -> Result<(Config, Extras), StartError> {
        self.config.node.id = self.id;
        if self.meta.len() > crate::wire::MAX_META {
            return Err(StartError::Config(format!("the meta has {} bytes, at most 512 are allowed", self.meta.len())));
        }
        self.config.validate().map_err(|error| StartError::Config(error.to_string()))?;
        let extras = Extras {
            codecs: self.codecs,
            memory: self.memory,
            transport: self.transport,
            meta: self.meta,
            delegate_versions: self.delegate_versions,
            dns_server: self.dns_server,
        };
        Ok((self.config, extras))
    }
}

fn died_at_start() -> StartError {
    StartError::Thread(std::io::Error::other("the node's thread died while it was starting"))
}

/// The node's thread: a current-thread runtime, so that actors never share a thread with the host's work.
fn run(config: Config, extras: Extras, report: impl FnOnce(Result<Node, StartError>)) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return report(Err(StartError::Thread(error))),
    };
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async move {
        match launch(config, extras) {
            Ok((node, running)) => {
                report(Ok(node));
                running.await;
            }
            Err(error) => report(Err(error)),
        }
    });
}

/// Starts the actors on this thread. The node ends with the future, and the future when the node ends.
fn launch(config: Config, extras: Extras) -> Result<(Node, impl Future<Output = ()>), StartError> {
    let (commands, received) = mpsc::unbounded_channel();
    let system = System::start(config, extras)?;
    let store = OnNode::wrap(system.store.clone(), system.handle.clone());
    Ok((Node { system: system.clone(), commands, store }, system.run(received)))
}
