//! One node, wherever it runs: in this process, or as an `annulus agent` that is asked over HTTP.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use annulus::clock::Now;
use annulus::config::Config;
use annulus::kv::{CasOutcome, LwwMap};
use annulus::stores::memory::Memory;
use annulus::{Fault, Node, Operation, key_hash};
use anyhow::{Context, bail};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::fleet::Slot;

/// The ring that the demonstration is about.
pub const RING: &str = "ingester";

/// Where the workload writes.
pub const KEYS: &str = annulus::JSON_PREFIX;

pub enum Peer {
    Local(Node),
    Agent(Agent),
}

/// An instance as a ring shows it.
#[derive(Clone, Debug, Deserialize)]
pub struct InstanceView {
    pub id: String,
    pub state: String,
    pub healthy: bool,
}

/// Where a node's migration stands. A node without a multi store says that its only store is primary.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct MigrationView {
    pub phase: String,
    pub primary: String,
    pub mirror_enabled: bool,
    pub outbox_len: u64,
    pub mirror_lag_ms: u64,
    pub backfill: BackfillView,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub struct BackfillView {
    pub verified: bool,
}

/// Whether a node may leave its primary, and whether it could come back, as the node says itself.
#[derive(Clone, Debug, Deserialize)]
pub struct PreflightView {
    pub gates: Vec<GateView>,
    pub rollback: Value,
}

#[derive(Clone, Debug, Deserialize)]
pub struct GateView {
    pub name: String,
    pub open: bool,
    pub reason: String,
}

/// How a node's two stores compare, each of them read just now.
#[derive(Clone, Debug, Deserialize)]
pub struct ParityView {
    pub primary: String,
    pub secondary: String,
    pub keys: SidesView,
    pub ownership_delta: f64,
    only_primary: IdsView,
    only_secondary: IdsView,
    rings: BTreeMap<String, RingView>,
    values: BTreeMap<String, Value>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub struct SidesView {
    pub primary: u64,
    pub secondary: u64,
}

#[derive(Clone, Debug, Deserialize)]
struct IdsView {
    count: u64,
    ids: BTreeSet<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct RingView {
    only_primary: IdsView,
    only_secondary: IdsView,
    differing: IdsView,
}

impl ParityView {
    /// The keys that differ, each by name (of many keys that one store lacks, the report names the first).
    pub fn differing(&self) -> BTreeSet<String> {
        let missing = self.only_primary.ids.union(&self.only_secondary.ids).cloned();
        let rings = self.rings.iter().filter(|(_, ring)| {
            [&ring.only_primary, &ring.only_secondary, &ring.differing].into_iter().any(|ids| ids.count > 0)
        });
        missing.chain(rings.map(|(key, _)| key.clone())).chain(self.values.keys().cloned()).collect()
    }
}

impl Peer {
    pub async fn start_local(config: &Path, memory: Memory) -> anyhow::Result<Self> {
        let config = Config::load(config)?;
        let id = config.node.id.clone();
        let node = Node::builder(id).config(config).memory_store(memory).start().await?;
        Ok(Self::Local(node))
    }

    /// The ids of a key's owners.
    pub async fn owners(&self, key: &str) -> anyhow::Result<Vec<String>> {
        match self {
            Self::Local(node) => {
                let set = node.ring(RING).get(key_hash(key), Operation::Write)?;
                Ok(set.ids().map(str::to_owned).collect())
            }
            Self::Agent(agent) => {
                let path = format!("/api/v1/rings/{RING}/lookup?key={key}&op=write");
                let answer = agent.get(&path).await?;
                let ids = answer["instances"].as_array().context("no instances in the answer")?.iter();
                Ok(ids.filter_map(|instance| instance["id"].as_str().map(str::to_owned)).collect())
            }
        }
    }

    /// Writes one entry of a map, by compare-and-swap; returns when it is acknowledged.
    pub async fn write(&self, key: &str, entry: &str, value: u64) -> anyhow::Result<()> {
        match self {
            Self::Local(node) => {
                let entry = entry.to_owned();
                let kv = node.kv::<LwwMap<Value>>(KEYS);
                let outcome = kv
                    .cas(key, move |map: Option<LwwMap<Value>>| {
                        let mut map = map.unwrap_or_default();
                        map.insert(Now::read(), entry.as_str(), json!(value));
                        Ok(Some(map))
                    })
                    .await?;
                anyhow::ensure!(matches!(outcome, CasOutcome::Written { .. }), "nothing was written");
                Ok(())
            }
            Self::Agent(agent) => agent.put(&format!("/api/v1/kv/{KEYS}{key}"), &json!({ entry: value })).await,
        }
    }

    /// All entries of a map.
    pub async fn read(&self, key: &str) -> anyhow::Result<BTreeMap<String, u64>> {
        match self {
            Self::Local(node) => {
                let map = node.kv::<LwwMap<Value>>(KEYS).get(key).await?.unwrap_or_default();
                Ok(map.iter().filter_map(|(entry, value)| Some((entry.to_owned(), value.as_u64()?))).collect())
            }
            Self::Agent(agent) => {
                let answer = agent.get(&format!("/api/v1/kv/{KEYS}{key}")).await?;
                let entries = answer["value"].as_object().context("no entries in the answer")?.iter();
                Ok(entries.filter_map(|(entry, slot)| Some((entry.clone(), slot["value"].as_u64()?))).collect())
            }
        }
    }

    /// The ring as this node sees it.
    pub async fn ring(&self) -> anyhow::Result<Vec<InstanceView>> {
        let status = match self {
            Self::Local(node) => serde_json::to_value(node.ring(RING).status())?,
            Self::Agent(agent) => agent.get(&format!("/api/v1/rings/{RING}")).await?,
        };
        Ok(serde_json::from_value(status["instances"].clone())?)
    }

    /// State of each member, by name; empty when the node does not gossip.
    pub async fn members(&self) -> anyhow::Result<BTreeMap<String, String>> {
        match self {
            Self::Local(node) => {
                let members = node.members();
                let states = members.list.iter().map(|m| (m.name.to_string(), format!("{:?}", m.state).to_lowercase()));
                Ok(states.collect())
            }
            Self::Agent(agent) => {
                let answer = agent.get("/api/v1/members").await?;
                let members = answer["members"].as_array().context("no members in the answer")?.iter();
                Ok(members
                    .filter_map(|m| Some((m["name"].as_str()?.to_owned(), m["state"].as_str()?.to_owned())))
                    .collect())
            }
        }
    }

    /// `None` when the node has one store only.
    pub async fn migration(&self) -> anyhow::Result<Option<MigrationView>> {
        Ok(match self {
            Self::Local(node) => match node.migration() {
                Some(status) => Some(serde_json::from_value(serde_json::to_value(&*status)?)?),
                None => None,
            },
            Self::Agent(agent) => {
                let answer = agent.get("/api/v1/migration").await?;
                if answer["store"] == "multi" { Some(serde_json::from_value(answer)?) } else { None }
            }
        })
    }

    /// What the node says before a flip. Only while it has two stores.
    pub async fn preflight(&self) -> anyhow::Result<PreflightView> {
        Ok(match self {
            Self::Local(node) => {
                serde_json::from_value(serde_json::to_value(node.preflight().context("the node has one store")?)?)?
            }
            Self::Agent(agent) => serde_json::from_value(agent.get("/api/v1/migration/preflight").await?)?,
        })
    }

    /// Has the node read and compare both of its stores.
    pub async fn parity(&self) -> anyhow::Result<ParityView> {
        Ok(match self {
            Self::Local(node) => {
                let report = node.parity().await.context("the node has one store")?.map_err(anyhow::Error::msg)?;
                serde_json::from_value(serde_json::to_value(&*report)?)?
            }
            Self::Agent(agent) => serde_json::from_value(agent.get("/api/v1/migration/parity").await?)?,
        })
    }

    /// Restarts of all actors of this node together.
    pub async fn restarts(&self) -> anyhow::Result<u64> {
        let actors = match self {
            Self::Local(node) => serde_json::to_value(node.actors())?,
            Self::Agent(agent) => agent.get("/actors").await?["actors"].clone(),
        };
        let counts = actors.as_array().context("no actors in the answer")?.iter();
        let restarts =
            counts.filter_map(|actor| actor["restarts"].as_object()).flat_map(|by_reason| by_reason.values());
        Ok(restarts.filter_map(Value::as_u64).sum())
    }

    /// Makes an actor panic.
    pub async fn panic(&self, actor: &str) -> anyhow::Result<()> {
        match self {
            Self::Local(node) => node.drill(actor, Fault::Panic).map_err(anyhow::Error::msg),
            Self::Agent(agent) => agent.post(&format!("/api/v1/drills/{actor}?fault=panic")).await,
        }
    }

    /// Says goodbye and ends.
    pub async fn leave(&self) -> anyhow::Result<()> {
        match self {
            Self::Local(node) => {
                let report = node.leave().await;
                anyhow::ensure!(report.unfinished.is_empty(), "{}", report.unfinished.join("; "));
                Ok(())
            }
            Self::Agent(agent) => agent.terminate().await,
        }
    }

    /// Ends without a word.
    pub async fn kill(&self) {
        match self {
            Self::Local(node) => node.stop().await,
            Self::Agent(agent) => agent.kill().await,
        }
    }
}

/// The node in a slot.
pub fn peer(slot: &Slot) -> anyhow::Result<Arc<Peer>> {
    slot.peer.load_full().with_context(|| format!("{} is not running", slot.id))
}

/// A process of its own.
pub struct Agent {
    child: Mutex<Option<tokio::process::Child>>,
    url: String,
    client: reqwest::Client,
}

impl Agent {
    pub async fn start(binary: &Path, config: &Path, http: u16, log: &Path) -> anyhow::Result<Self> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
        let child = tokio::process::Command::new(binary)
            .args(["agent", "--config"])
            .arg(config)
            .stdin(Stdio::null())
            .stdout(Stdio::from(log.try_clone()?))
            .stderr(Stdio::from(log))
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", binary.display()))?;
        let client = reqwest::Client::builder().timeout(Duration::from_secs(30)).no_proxy().build()?;
        let agent = Self { child: Mutex::new(Some(child)), url: format!("http://127.0.0.1:{http}"), client };
        let answers = async {
            while agent.get("/actors").await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), answers).await.context("the agent does not answer over HTTP")?;
        Ok(agent)
    }

    async fn get(&self, path: &str) -> anyhow::Result<Value> {
        let response = self.client.get(format!("{}{path}", self.url)).send().await?;
        Self::checked(response).await
    }

    async fn put(&self, path: &str, body: &Value) -> anyhow::Result<()> {
        let response = self.client.put(format!("{}{path}", self.url)).json(body).send().await?;
        Self::checked(response).await.map(drop)
    }

    async fn post(&self, path: &str) -> anyhow::Result<()> {
        let response = self.client.post(format!("{}{path}", self.url)).send().await?;
        Self::checked(response).await.map(drop)
    }

    async fn checked(response: reqwest::Response) -> anyhow::Result<Value> {
        let status = response.status();
        let text = response.text().await?;
        if !status.is_success() {
            bail!("{status}: {text}");
        }
        Ok(serde_json::from_str(&text)?)
    }

    /// SIGTERM, then waits: the agent leaves gracefully.
    async fn terminate(&self) -> anyhow::Result<()> {
        let Some(mut child) = self.child.lock().ok().and_then(|mut child| child.take()) else { return Ok(()) };
        let pid = child.id().context("the agent has ended already")?;
        tokio::process::Command::new("kill").arg(pid.to_string()).status().await?;
        let status =
            tokio::time::timeout(Duration::from_secs(30), child.wait()).await.context("SIGTERM was ignored")??;
        anyhow::ensure!(status.success(), "the agent ended with {status}");
        Ok(())
    }

    async fn kill(&self) {
        let child = self.child.lock().ok().and_then(|mut child| child.take());
        if let Some(mut child) = child {
            let _ = child.kill().await;
        }
    }
}

/// The `annulus` binary: what `ANNULUS_BIN` names, or the one beside this example, built first if it is missing or
/// older than the example.
pub async fn agent_binary() -> anyhow::Result<PathBuf> {
    if let Some(named) = std::env::var_os("ANNULUS_BIN") {
        return Ok(named.into());
    }
    let example = std::env::current_exe()?;
    let profile = example.parent().and_then(Path::parent).context("this example was not built by cargo")?;
    let binary = profile.join("annulus");
    let changed = |path: &Path| path.metadata().and_then(|data| data.modified()).ok();
    if changed(&binary).is_some_and(|built| Some(built) >= changed(&example)) {
        return Ok(binary);
    }
    eprintln!("building the annulus binary …");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = tokio::process::Command::new(cargo);
    // Together with the example, so that the dependencies keep their features and are not built anew.
    build
        .args(["build", "--quiet", "--bin", "annulus", "--example", "multi_node"])
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    if profile.file_name().is_some_and(|name| name == "release") {
        build.arg("--release");
    }
    if let Some(target) = profile.parent() {
        build.arg("--target-dir").arg(target);
    }
    let status = build.status().await.context("cannot run cargo to build the annulus binary")?;
    anyhow::ensure!(status.success() && binary.exists(), "the annulus binary could not be built");
    Ok(binary)
}
