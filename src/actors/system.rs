//! Builds a node's actors and takes them down again.

mod gossip_side;
mod rings;
mod stores;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use actix::Addr;
use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

use self::gossip_side::{advertised, bind, start_gossip, swim_config};
use self::rings::start_ring;
use self::stores::other_store;
use super::config_watcher::{ConfigParts, ConfigWatcher, RuntimeView};
use super::events::EventHub;
use super::guard::{self, ChildEvent, ChildStatus, RestartPolicy};
use super::heartbeat::{Heartbeat, HeartbeatParts, Shutdown};
use super::joining::Joined;
use super::membership::{Members, Membership, QueuedBroadcasts, leave};
use super::message::{Drill, Fault};
use super::mirror::{Drain, Mirror, MirrorParts};
use super::multi::MultiStore;
use super::ring_keeper::RingParts;
use super::shadow::ShadowRing;
use super::supervisor::{Exit, Supervisor, Tree};
use super::transport::TransportParts;
use super::watch_hub::WatchHub;
use crate::config::runtime::RuntimeLoader;
use crate::config::{Config, KvStore, RingConfig};
use crate::kv::gossip::Contents;
use crate::kv::{Codecs, LwwMap, SharedStore, StoreKind};
use crate::migration::{MultiConfig, Sizer};
use crate::ring::RingRules;
use crate::stores::memory::Memory;
use crate::swim::SwimConfig;
use crate::transport::{BindError, Transport};

/// Below this prefix every node keeps maps of JSON values: what people and scripts use over HTTP without writing a
/// codec.
pub const JSON_PREFIX: &str = "annulus/kv/";

/// Why a node did not start. Nothing is left running.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The gossip port cannot be had.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The configuration asks for what cannot be.
    #[error("{0}")]
    Config(String),
    /// A store cannot be set up.
    #[error("store: {0}")]
    Store(#[from] crate::kv::StoreError),
    /// The operating system refused a thread or a runtime.
    #[error("cannot start the node's thread: {0}")]
    Thread(std::io::Error),
}

/// What the builder of a node adds to its configuration.
pub(crate) struct Extras {
    pub(crate) codecs: Arc<Codecs>,
    pub(crate) memory: Option<Memory>,
    pub(crate) transport: Option<Arc<dyn Transport>>,
    pub(crate) meta: Bytes,
    /// Asked for SRV records instead of the DNS servers of the system.
    pub(crate) delegate_versions: [u8; 3],
    pub(crate) dns_server: Option<SocketAddr>,
}

/// One ring of the node.
pub(crate) struct RingEntry {
    pub(crate) config: RingConfig,
    pub(crate) parts: Arc<RingParts>,
    /// The ring as the other store of a migration has it, when lookups are compared.
    pub(crate) shadow: Option<Arc<ShadowRing>>,
    pub(crate) heartbeat: Option<Arc<HeartbeatParts>>,
    heartbeat_address: Option<Addr<Heartbeat>>,
}

/// A running node's parts; everything in it can be used from any thread.
pub(crate) struct System {
    pub(crate) config: Arc<Config>,
    pub(crate) codecs: Arc<Codecs>,
    pub(crate) events: EventHub,
    pub(crate) tree: Arc<Tree>,
    pub(crate) store: SharedStore,
    pub(crate) members: Arc<ArcSwap<Members>>,
    pub(crate) membership: Option<Addr<Membership>>,
    pub(crate) transport: Option<Arc<TransportParts>>,
    /// What the gossip store holds, for its counters.
    pub(crate) contents: Option<Contents>,
    pub(crate) mirror: Option<Arc<MirrorParts>>,
    pub(crate) runtime_config: Option<Arc<ConfigParts>>,
    pub(crate) rings: Vec<RingEntry>,
    pub(crate) handle: tokio::runtime::Handle,
    pub(crate) drills: Drills,
    pub(crate) started: std::time::Instant,
    joined: Option<watch::Receiver<Joined>>,
    hub: Option<Arc<WatchHub>>,
}

/// What a node's handle asks of its thread.
pub(crate) enum Command {
    /// Say goodbye, then end.
    Leave(oneshot::Sender<LeaveReport>),
    /// End now, as if the process had died.
    Stop(oneshot::Sender<()>),
}

/// What a goodbye could not finish in its time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeaveReport {
    /// What was not finished, in words; empty when all went well.
    pub unfinished: Vec<String>,
}

/// How to make each actor fail, by name.
pub(crate) type Drills = Arc<Mutex<Vec<(String, Box<dyn Fn(Fault) + Send + Sync>)>>>;

/// Spawns actors into a tree and remembers how to drill them.
struct Spawner {
    tree: Arc<Tree>,
    drills: Drills,
}

impl Spawner {
    fn spawn<A>(&self, name: impl Into<String>, actor: A) -> Addr<A>
    where
        A: actix::Actor<Context = actix::Context<A>> + actix::Supervised + actix::Handler<Drill>,
    {
        self.spawn_reporting(name.into(), actor, self.tree.reports())
    }

    fn spawn_reporting<A>(&self, name: String, actor: A, reports: mpsc::UnboundedSender<ChildEvent>) -> Addr<A>
    where
        A: actix::Actor<Context = actix::Context<A>> + actix::Supervised + actix::Handler<Drill>,
    {
        let status = ChildStatus::new(name.clone());
        let (address, guarded) = guard::spawn(status, RestartPolicy::default(), reports, actor);
        self.tree.adopt(guarded);
        let target = address.clone();
        let mut drills = self.drills.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        drills.push((name, Box::new(move |fault| target.do_send(Drill(fault)))));
        address
    }
}

impl System {
    /// Builds all actors. Must run inside the `LocalSet` of the node's own thread.
    pub(crate) fn start(config: Config, extras: Extras) -> Result<Arc<Self>, StartError> {
        let config = Arc::new(config);
        let codecs = extras.codecs.clone();
        for ring in &config.rings {
            codecs.register(&ring_key(&config, ring), Arc::new(ring_rules(&config, ring).codec()));
        }
        if codecs.for_key(JSON_PREFIX).is_none() {
            codecs.register(JSON_PREFIX, Arc::new(LwwMap::<serde_json::Value>::codec()));
        }
        let events = EventHub::new();
        let tree = Tree::new(events.clone());
        let spawner = Spawner { tree: tree.clone(), drills: Drills::default() };
        let members = Arc::new(ArcSwap::from_pointee(Members::default()));

        // Everything that can fail comes before the first actor is spawned.
        let transport = if config.kv.uses_gossip() { Some(bind(&config, &extras)?) } else { None };
        let advertised = transport.as_ref().map(|transport| advertised(&config, transport.local_addr())).transpose()?;
        let swim = SwimConfig { delegate_versions: extras.delegate_versions, ..swim_config(&config)? };
        if let Some(own) = advertised.filter(|own| !swim.allowed_networks.allows(own.ip())) {
            return Err(StartError::Config(format!(
                "memberlist.cidrs_allowed does not contain {}, the address that this node advertises: the others would \
                 refuse it; add its network, or set memberlist.advertise_addr",
                own.ip()
            )));
        }
        let memory = extras.memory.unwrap_or_default();
        let mut others = Vec::new();
        for kind in config.kv.stores().into_iter().filter(|kind| *kind != KvStore::Memberlist) {
            others.push((kind, other_store(kind, &config, &codecs, &memory)?));
        }

        spawn_supervisor(&spawner);
        let gossip = transport.zip(advertised).map(|(transport, advertised)| {
            start_gossip(
                &spawner,
                &config,
                swim,
                &codecs,
                &events,
                &members,
                transport,
                advertised,
                extras.meta,
                extras.dns_server,
            )
        });
        let store_of = |wanted: KvStore| match &gossip {
            Some(gossip) if wanted == KvStore::Memberlist => Ok(gossip.client.clone() as SharedStore),
            _ => others
                .iter()
                .find(|(kind, _)| *kind == wanted)
                .map(|(_, store)| store.clone())
                .ok_or_else(|| StartError::Config(format!("kv.store {} was not set up", wanted.name()))),
        };
        let (store, mirror, shadow) = match config.kv.store {
            KvStore::Multi => {
                let sides = [store_of(config.kv.multi.primary)?, store_of(config.kv.multi.secondary)?];
                let known = gossip.is_some().then(|| members.clone());
                let (store, parts) = start_mirror(&spawner, &config, &codecs, &events, known, sides)?;
                let shadow = (config.migration.shadow_lookups > 0.0).then(|| store.shadow());
                (store as SharedStore, Some(parts), shadow)
            }
            single => (store_of(single)?, None, None),
        };
        let start = |ring| start_ring(&spawner, &config, ring, &store, shadow.as_ref(), &events);
        let rings = config.rings.iter().map(start).collect();
        let runtime_config = start_config_watcher(&spawner, &config, &events, mirror.as_ref());
        Ok(Arc::new(Self {
            codecs,
            events,
            tree,
            store,
            members,
            membership: gossip.as_ref().map(|gossip| gossip.membership.clone()),
            transport: gossip.as_ref().map(|gossip| gossip.transport.clone()),
            contents: gossip.as_ref().map(|gossip| gossip.contents.clone()),
            joined: gossip.as_ref().map(|gossip| gossip.joined.clone()),
            hub: gossip.map(|gossip| gossip.hub),
            mirror,
            runtime_config,
            rings,
            handle: tokio::runtime::Handle::current(),
            drills: spawner.drills,
            started: std::time::Instant::now(),
            config,
        }))
    }

    /// Runs on the node's thread until the node ends.
    pub(crate) async fn run(self: Arc<Self>, mut commands: mpsc::UnboundedReceiver<Command>) {
        let mut exit = self.tree.exit();
        if let Some(joined) = self.joined.clone() {
            tokio::task::spawn_local(end_if_aborted(joined, self.tree.clone()));
        }
        let command = tokio::select! {
            // No command means that every handle is gone: nobody can use the node any more.
            command = commands.recv() => command,
            _ = exit.wait_for(Option::is_some) => None,
        };
        let report = match &command {
            Some(Command::Leave(_)) => self.say_goodbye().await,
            Some(Command::Stop(_)) | None => LeaveReport::default(),
        };
        self.take_down().await;
        self.tree.end(Exit::Stopped);
        match command {
            Some(Command::Leave(done)) => drop(done.send(report)),
            Some(Command::Stop(done)) => drop(done.send(())),
            None => {}
        }
    }

    /// Leaves rings, empties outboxes, tells the others; each within its limit.
    async fn say_goodbye(&self) -> LeaveReport {
        let mut report = LeaveReport::default();
        let limit = self.config.memberlist.leave_timeout;
        for ring in &self.rings {
            let (Some(parts), Some(address)) = (&ring.heartbeat, &ring.heartbeat_address) else { continue };
            address.do_send(Shutdown);
            let mut finished = parts.finished.subscribe();
            let patience = limit + ring.config.final_sleep;
            if tokio::time::timeout(patience, finished.wait_for(|done| *done)).await.is_err() {
                report.unfinished.push(format!("ring {}: our instance was not signed off", ring.config.name));
            }
        }
        if let Some(parts) = &self.mirror
            && let Some(mirror) = parts.address.get()
        {
            mirror.do_send(Drain(limit));
            let mut drained = parts.drained.subscribe();
            let _ = tokio::time::timeout(limit + Duration::from_secs(1), drained.wait_for(|done| *done)).await;
            let left = parts.status.load().outbox_len;
            if left > 0 {
                report.unfinished.push(format!("mirror: {left} keys were not brought to the other store"));
            }
        }
        if let Some(membership) = &self.membership {
            if tokio::time::timeout(limit, self.updates_sent(membership)).await.is_err() {
                report.unfinished.push("gossip: updates were still waiting to be sent".to_owned());
            }
            if !matches!(tokio::time::timeout(limit, leave(membership)).await, Ok(true)) {
                report.unfinished.push("gossip: the goodbye was not passed on".to_owned());
            }
            // Passed on to the sockets; over TCP that is not yet to the others.
            if let Some(transport) = &self.transport
                && tokio::time::timeout(limit, transport.transport.flush()).await.is_err()
            {
                report.unfinished.push("gossip: packets were still waiting to be sent".to_owned());
            }
        }
        report
    }

    /// Waits until no update is left to be gossiped, or nobody is left to hear it.
    async fn updates_sent(&self, membership: &Addr<Membership>) {
        loop {
            let alone = self.members.load().list.iter().filter(|member| member.is_live()).count() <= 1;
            if alone || !matches!(membership.send(QueuedBroadcasts).await, Ok(queued) if queued > 0) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn take_down(&self) {
        self.tree.stop_all().await;
        if let Some(hub) = &self.hub {
            hub.close();
        }
        if let Some(transport) = &self.transport {
            transport.transport.close();
        }
    }
}

/// Ends a node that was told not to live alone and joined nobody.
async fn end_if_aborted(mut joined: watch::Receiver<Joined>, tree: Arc<Tree>) {
    let Ok(joined) = joined.wait_for(|joined| *joined != Joined::Trying).await else { return };
    if let Joined::Aborted(problems) = &*joined {
        tree.end(Exit::Failed { actor: "membership".to_owned(), cause: format!("joined nobody: {problems}") });
    }
}

/// The key of a ring in the store.
pub(crate) fn ring_key(config: &Config, ring: &RingConfig) -> String {
    format!("{}{}", config.kv.prefix, ring.key)
}

/// By which rules a ring is merged, and what of other nodes it takes over.
fn ring_rules(config: &Config, ring: &RingConfig) -> RingRules {
    let rules = RingRules { merge: ring.merge_strategy, ..RingRules::default() };
    match ring.auto_forget_unhealthy_periods {
        0 => rules,
        periods => {
            rules.forgetting(ring.heartbeat_timeout.saturating_mul(periods), config.memberlist.left_ingesters_timeout)
        }
    }
}

/// The root of the tree. Its own guard cannot ask it when it dies too often, so that ends the node.
fn spawn_supervisor(spawner: &Spawner) {
    let (reports, mut reported) = mpsc::unbounded_channel();
    let tree = spawner.tree.clone();
    spawner.spawn_reporting("supervisor".to_owned(), Supervisor::new(tree.clone()), reports);
    tokio::task::spawn_local(async move {
        while let Some(event) = reported.recv().await {
            tree.heard_of_supervisor(event);
        }
    });
}

fn start_mirror(
    spawner: &Spawner,
    config: &Config,
    codecs: &Arc<Codecs>,
    events: &EventHub,
    members: Option<Arc<ArcSwap<Members>>>,
    sides: [SharedStore; 2],
) -> Result<(Arc<MultiStore>, Arc<MirrorParts>), StartError> {
    let multi = &config.kv.multi;
    let kind =
        |store: KvStore| store.name().parse::<StoreKind>().map_err(|error| StartError::Config(error.to_string()));
    let defaults = MultiConfig::default();
    let timeouts = config.rings.iter().map(|ring| ring.heartbeat_timeout);
    let heartbeat_timeout = timeouts.min().unwrap_or(defaults.heartbeat_timeout);
    let settings = MultiConfig {
        primary: kind(multi.primary)?,
        secondary: kind(multi.secondary)?,
        mirror_enabled: multi.mirror_enabled,
        mirror_timeout: multi.mirror_timeout,
        prefixes: codecs.prefixes(),
        wait_for_runtime: !config.runtime_config.file.is_empty(),
        seed: rand::random(),
        sizer: sizer(&sides),
        tombstone_ttl: config.memberlist.left_ingesters_timeout,
        require_parity: config.migration.require_parity,
        teardown: config.migration.teardown,
        rings: config.rings.iter().map(|ring| (ring_key(config, ring), rings::options(ring))).collect(),
        heartbeat_timeout,
        // A store that is back must be found before the heartbeats in it are too old.
        retry_max: defaults.retry_max.min(heartbeat_timeout / 4).max(defaults.retry_min),
        ..defaults
    };
    let parts = Arc::new(MirrorParts {
        views: watch::Sender::new(Mirror::first_view(&settings)),
        status: ArcSwap::from_pointee(Mirror::first_status(&settings)),
        config: settings,
        codecs: codecs.clone(),
        sides,
        members,
        events: events.clone(),
        durable: Mutex::new(None),
        next_op: AtomicU64::new(0),
        address: OnceLock::new(),
        drained: watch::Sender::new(false),
    });
    let mirror = spawner.spawn("mirror", Mirror::new(parts.clone()));
    let _ = parts.address.set(mirror.clone());
    Ok((MultiStore::new(parts.clone(), mirror), parts))
}

/// How large values would be in each of two stores.
fn sizer(sides: &[SharedStore; 2]) -> Sizer {
    let limited = [sides[0].limits_values(), sides[1].limits_values()];
    let sides = sides.clone();
    Sizer::new(limited, move |side, key, value| sides[side.index()].size_of(key, value))
}

fn start_config_watcher(
    spawner: &Spawner,
    config: &Config,
    events: &EventHub,
    mirror: Option<&Arc<MirrorParts>>,
) -> Option<Arc<ConfigParts>> {
    let runtime = &config.runtime_config;
    if runtime.file.is_empty() {
        return None;
    }
    let files = runtime.file.iter().map(PathBuf::from).collect();
    let loader = match config.kv.store {
        KvStore::Multi => RuntimeLoader::new(files).with_stores(config.kv.stores()),
        _ => RuntimeLoader::new(files),
    };
    let parts = Arc::new(ConfigParts {
        period: runtime.period,
        loader: Mutex::new(loader),
        view: ArcSwap::from_pointee(RuntimeView::default()),
        events: events.clone(),
        mirror: OnceLock::new(),
        static_primary: (config.kv.store == KvStore::Multi).then(|| config.kv.multi.primary.name()),
        address: OnceLock::new(),
        cache: (!config.node.data_dir.is_empty()).then(|| PathBuf::from(&config.node.data_dir)),
        readings: AtomicU64::new(0),
    });
    if let Some(mirror) = mirror.and_then(|parts| parts.address.get()) {
        let _ = parts.mirror.set(mirror.clone());
    }
    let address = spawner.spawn("config-watcher", ConfigWatcher::new(parts.clone()));
    let _ = parts.address.set(address);
    Some(parts)
}
