//! The process with N Annulus nodes and the observers. `interop/dskit-fleet` is the same with dskit's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use annulus::config::{KvStore, RingConfig};
use annulus::kv::StoreKind;
use annulus::ring::{Desc, InstanceState};
use annulus::{Config, Node};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::FleetOptions;
use crate::consul::RING_KEY;

const RING: &str = "ring";

const HEARTBEAT: Duration = Duration::from_secs(2);

/// Nobody listens there.
const NOWHERE: &str = "127.0.0.1:1";

/// The longest wait for the fleet to be complete.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often an observer looks. Also dskit's.
const LOOK: Duration = Duration::from_millis(50);

const MIRROR: &str = "multi_kv_config: { mirror_enabled: true }\n";
const FLIPPED: &str = "multi_kv_config: { mirror_enabled: true, primary: memberlist }\n";

pub(crate) fn main(options: &FleetOptions) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let mut fleet = Fleet::start(options.clone()).await?;
        println!("{}", json!({ "program": "annulus" }));
        for line in std::io::stdin().lines() {
            let begin = Instant::now();
            let mut answer = match line?.as_str() {
                "mirror" => fleet.mirror().await?,
                "join" => fleet.join()?,
                "flip" => fleet.flip().await?,
                "count" => fleet.count()?,
                "leave" => fleet.leave().await?,
                other => bail!("there is no command {other:?}"),
            };
            answer["took_ms"] = json!(begin.elapsed().as_millis());
            println!("{answer}");
        }
        // Nobody needs to say goodbye any more.
        std::process::exit(0)
    })
}

/// Instances that were LEFT, with the dates at which they are said to have left.
type Left = Arc<Mutex<BTreeMap<String, BTreeSet<i64>>>>;

struct Fleet {
    options: FleetOptions,
    directory: TempDir,
    nodes: Arc<Mutex<Vec<Node>>>,
    failed: Arc<Mutex<Vec<String>>>,
    started: usize,
    observers: Vec<Node>,
    left: Left,
}

impl Fleet {
    /// Returns when Consul has all nodes, ACTIVE.
    async fn start(options: FleetOptions) -> Result<Self> {
        let mut fleet = Self {
            directory: tempfile::tempdir()?,
            nodes: Arc::default(),
            failed: Arc::default(),
            started: 0,
            observers: Vec::new(),
            left: Left::default(),
            options,
        };
        fleet.write("multi_kv_config: {}\n")?;
        let first = fleet.config(Vec::new());
        fleet.add(first)?;
        fleet.until("the first node runs", |fleet| fleet.nodes().len() == 1).await?;
        for number in 0..fleet.options.observers {
            let observer = Node::builder(format!("observer-{number}")).config(fleet.observer()).start().await?;
            tokio::spawn(look(observer.clone(), fleet.left.clone()));
            fleet.observers.push(observer);
        }
        for number in 1..fleet.options.nodes {
            let cut = fleet.options.isolated && number + 1 == fleet.options.nodes;
            let config = fleet.config(if cut { vec![NOWHERE.to_owned()] } else { fleet.seeds() });
            fleet.add(config)?;
        }
        let all = fleet.options.nodes;
        fleet
            .until("Consul has all nodes", |fleet| {
                fleet.nodes().len() == all && fleet.nodes().iter().all(|node| active(&node.ring(RING).desc()) == all)
            })
            .await?;
        Ok(fleet)
    }

    fn nodes(&self) -> Vec<Node> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn seeds(&self) -> Vec<String> {
        self.nodes().first().and_then(Node::gossip_addr).map(|addr| addr.to_string()).into_iter().collect()
    }

    /// Everything that is not set here is as Annulus sets it.
    fn config(&self, seeds: Vec<String>) -> Config {
        let mut config = Config::default();
        config.node.address = "127.0.0.1:9095".to_owned();
        config.memberlist.bind_addr = vec![IpAddr::V4(Ipv4Addr::LOCALHOST)];
        config.memberlist.bind_port = 0;
        config.memberlist.join_members = seeds;
        config.kv.store = KvStore::Multi;
        config.kv.multi.primary = KvStore::Consul;
        config.kv.multi.secondary = KvStore::Memberlist;
        config.kv.consul.host.clone_from(&self.options.consul);
        config.rings = vec![RingConfig { heartbeat_period: HEARTBEAT, ..RingConfig::named(RING) }];
        config.runtime_config.file = vec![self.directory.path().join("runtime.yaml").display().to_string()];
        config.runtime_config.period = Duration::from_millis(200);
        config.http.listen = String::new();
        config
    }

    /// Gossips, and is not in the ring.
    fn observer(&self) -> Config {
        let mut config = self.config(self.seeds());
        config.kv.store = KvStore::Memberlist;
        config.runtime_config.file = Vec::new();
        config.rings[0].join = false;
        config
    }

    fn write(&self, text: &str) -> Result<()> {
        let next = self.directory.path().join("next");
        std::fs::write(&next, text)?;
        Ok(std::fs::rename(next, self.directory.path().join("runtime.yaml"))?)
    }

    /// Starts one more node and does not wait for it.
    fn add(&mut self, config: Config) -> Result<()> {
        self.started += 1;
        let builder = Node::builder(format!("annulus-{}", self.started)).config(config);
        let (nodes, failed) = (self.nodes.clone(), self.failed.clone());
        tokio::spawn(async move {
            match builder.start().await {
                Ok(node) => nodes.lock().unwrap_or_else(PoisonError::into_inner).push(node),
                Err(error) => failed.lock().unwrap_or_else(PoisonError::into_inner).push(error.to_string()),
            }
        });
        Ok(())
    }

    fn join(&mut self) -> Result<Value> {
        let config = self.config(self.seeds());
        self.add(config)?;
        Ok(json!({}))
    }

    async fn mirror(&self) -> Result<Value> {
        self.write(MIRROR)?;
        let gossiping = self.options.nodes - usize::from(self.options.isolated);
        self.until("the observers see all nodes", |fleet| {
            fleet.observers.iter().all(|observer| active(&observer.ring(RING).desc()) >= gossiping)
        })
        .await?;
        Ok(json!({}))
    }

    async fn flip(&self) -> Result<Value> {
        self.write(FLIPPED)?;
        self.until("all nodes read gossip", |fleet| {
            fleet.nodes().iter().all(|node| {
                node.migration().is_some_and(|it| it.primary == StoreKind::Memberlist && it.pending_flip.is_none())
            })
        })
        .await?;
        Ok(json!({}))
    }

    /// What the observers saw since the start, and how many mirrored writes the nodes say have failed.
    fn count(&self) -> Result<Value> {
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let live = self.observers.iter().map(|observer| active(&observer.ring(RING).desc())).min();
        let nodes = self.nodes();
        let errors = nodes.iter().filter_map(Node::migration).map(|status| status.mirror_errors_total).sum::<u64>();
        Ok(json!({
            "false_left": left.values().map(BTreeSet::len).sum::<usize>(),
            "hit": left.keys().collect::<Vec<_>>(),
            "live": live.context("no observers")?,
            "mirror_errors": errors,
            "members": nodes.len(),
            "failed": *self.failed.lock().unwrap_or_else(PoisonError::into_inner),
        }))
    }

    /// The last node leaves the ring; the observers must see that.
    async fn leave(&self) -> Result<Value> {
        let leaver = self.nodes().pop().context("no node is left")?;
        leaver.leave().await;
        let seen = |fleet: &Self| fleet.left.lock().unwrap_or_else(PoisonError::into_inner).contains_key(leaver.id());
        self.until("the observers see a node leave", seen).await?;
        Ok(json!({}))
    }

    async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while !condition(self) {
            if Instant::now() > end {
                bail!("waited in vain until {what}; {:?}", self.failed);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

/// Remembers what an observer sees that it should not.
async fn look(observer: Node, left: Left) {
    loop {
        if let Ok(Some(entry)) = observer.store().get(RING_KEY).await
            && let Some(desc) = entry.value.downcast_ref::<Desc>()
        {
            for (id, instance) in &desc.instances {
                if instance.state == InstanceState::Left {
                    let mut left = left.lock().unwrap_or_else(PoisonError::into_inner);
                    left.entry(id.to_string()).or_default().insert(instance.timestamp);
                }
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn active(desc: &Desc) -> usize {
    desc.instances.values().filter(|instance| instance.state == InstanceState::Active).count()
}
