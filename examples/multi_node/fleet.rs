//! The nodes: their configuration files, ports, starts and restarts.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use annulus::stores::memory::Memory;
use anyhow::Context;
use arc_swap::ArcSwapOption;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;

use crate::Options;
use crate::peer::{Agent, KEYS, Peer, RING, agent_binary};

/// Where the ring is kept at the beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OldStore {
    Memory,
    Consul(String),
    Etcd(String),
}

impl std::str::FromStr for OldStore {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            None if text == "memory" => Ok(Self::Memory),
            Some((store @ ("consul" | "etcd"), url)) => {
                let host = url.strip_prefix("http://").unwrap_or(url).trim_end_matches('/');
                if host.is_empty() || host.contains('/') {
                    return Err(format!("{url:?} is not an http://host:port"));
                }
                match store {
                    "consul" => Ok(Self::Consul(host.to_owned())),
                    _ if cfg!(feature = "etcd") => Ok(Self::Etcd(host.to_owned())),
                    _ => Err("this program was built without etcd: add --features etcd".to_owned()),
                }
            }
            _ => Err("it must be memory, consul=http://host:port, or etcd=http://host:port".to_owned()),
        }
    }
}

impl OldStore {
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Memory => "inmemory",
            Self::Consul(_) => "consul",
            Self::Etcd(_) => "etcd",
        }
    }
}

/// What a node's static configuration says about stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wiring {
    /// The old store alone.
    Old,
    /// Both, the old one primary until the runtime file says otherwise.
    Both,
    /// Gossip alone; the flag tells that the old store is being torn down.
    Gossip { teardown: bool },
}

/// How long things take in this run.
#[derive(Clone, Copy, Debug)]
pub struct Timings {
    pub reload: Duration,
    pub heartbeat_period: Duration,
    pub heartbeat_timeout: Duration,
    pub probe_interval: Duration,
    /// A pause after each step, so that a reader can follow.
    pub pause: Duration,
}

impl Timings {
    const fn of(fast: bool) -> Self {
        let ms = Duration::from_millis;
        if fast {
            Self {
                reload: ms(250),
                heartbeat_period: ms(1_000),
                heartbeat_timeout: ms(4_000),
                probe_interval: ms(300),
                pause: ms(300),
            }
        } else {
            Self {
                reload: ms(1_000),
                heartbeat_period: ms(1_000),
                heartbeat_timeout: ms(6_000),
                probe_interval: ms(1_000),
                pause: ms(4_000),
            }
        }
    }
}

/// One place in the fleet; the node in it changes when it is restarted.
pub struct Slot {
    /// Names this run of the demonstration.
    pub run: String,
    pub id: String,
    pub zone: String,
    /// The node's runtime file: each has one of its own, as each host of a fleet has.
    pub runtime_file: PathBuf,
    gossip_port: u16,
    http_port: u16,
    /// The workload holds a read lock during each operation, so that whoever replaces the node waits for them.
    pub working: tokio::sync::RwLock<()>,
    pub peer: ArcSwapOption<Peer>,
    /// Whether the ring on this node must be complete.
    pub settled: AtomicBool,
    /// Whether the node was killed: what fails on it now is no failure of the ring.
    pub killed: AtomicBool,
}

pub struct Fleet {
    pub slots: Vec<Arc<Slot>>,
    pub timings: Timings,
    pub old: OldStore,
    directory: tempfile::TempDir,
    memory: Memory,
    processes: bool,
    binary: tokio::sync::OnceCell<PathBuf>,
    prefix: String,
}

impl Fleet {
    pub fn prepare(options: &Options) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("annulus-demo-").tempdir()?;
        let run = format!("annulus-demo-{}-{:x}", std::process::id(), started());
        let mut slots = Vec::new();
        for number in 1..=options.nodes {
            let id = format!("node-{number}");
            let runtime_file = directory.path().join(format!("{id}.runtime.yaml"));
            std::fs::write(&runtime_file, "multi_kv_config: {}\n")?;
            slots.push(Arc::new(Slot {
                run: run.clone(),
                id,
                runtime_file,
                zone: format!("zone-{}", ["a", "b", "c"][usize::from(number - 1) % 3]),
                gossip_port: free_port()?,
                http_port: free_port()?,
                working: tokio::sync::RwLock::new(()),
                peer: ArcSwapOption::empty(),
                settled: AtomicBool::new(false),
                killed: AtomicBool::new(false),
            }));
        }
        Ok(Self {
            slots,
            timings: Timings::of(options.fast),
            old: options.old_store.clone(),
            directory,
            memory: Memory::new(),
            processes: options.processes,
            binary: tokio::sync::OnceCell::new(),
            prefix: format!("{run}/"),
        })
    }

    /// Nodes that were not killed.
    pub fn living(&self) -> Vec<Arc<Slot>> {
        self.slots.iter().filter(|slot| !slot.killed.load(Ordering::Acquire)).cloned().collect()
    }

    /// Rewrites the runtime file of these nodes as an operator's tools do: whole, by a rename.
    pub fn write_runtime(&self, slots: &[Arc<Slot>], text: &str) -> anyhow::Result<()> {
        for slot in slots {
            let temporary = slot.runtime_file.with_extension("new");
            std::fs::write(&temporary, text)?;
            std::fs::rename(&temporary, &slot.runtime_file)?;
        }
        Ok(())
    }

    /// Removes from a real server what this run left there.
    pub async fn clean_up(&self) -> anyhow::Result<()> {
        let client = reqwest::Client::builder().timeout(Duration::from_secs(10)).no_proxy().build()?;
        for prefix in [self.prefix.clone(), format!("{KEYS}{}", self.prefix)] {
            let request = match &self.old {
                OldStore::Memory => return Ok(()),
                OldStore::Consul(host) => client.delete(format!("http://{host}/v1/kv/{prefix}?recurse")),
                OldStore::Etcd(host) => {
                    // All keys from the prefix up to the next text of its length, over etcd's JSON gateway.
                    let mut end = prefix.clone().into_bytes();
                    if let Some(last) = end.last_mut() {
                        *last += 1;
                    }
                    let body = serde_json::json!({ "key": BASE64.encode(&prefix), "range_end": BASE64.encode(&end) });
                    client.post(format!("http://{host}/v3/kv/deleterange")).json(&body)
                }
            };
            request.send().await?.error_for_status()?;
        }
        Ok(())
    }

    /// Starts the node of a slot.
    pub async fn start(&self, slot: &Slot, wiring: Wiring) -> anyhow::Result<()> {
        let path = self.directory.path().join(format!("{}.yaml", slot.id));
        std::fs::write(&path, self.config_of(slot, wiring))?;
        let peer = if self.processes {
            let binary = self.binary.get_or_try_init(agent_binary).await?;
            let log = self.directory.path().join(format!("{}.log", slot.id));
            let started = Agent::start(binary, &path, slot.http_port, &log).await;
            Peer::Agent(started.with_context(|| {
                format!(
                    "{} did not start; its log ends: {}",
                    slot.id,
                    tail(&std::fs::read_to_string(&log).unwrap_or_default())
                )
            })?)
        } else {
            Peer::start_local(&path, self.memory.clone()).await?
        };
        slot.peer.store(Some(Arc::new(peer)));
        Ok(())
    }

    /// The static configuration, in the words of Mimir and Loki.
    fn config_of(&self, slot: &Slot, wiring: Wiring) -> String {
        let millis = |duration: Duration| format!("{}ms", duration.as_millis());
        let t = &self.timings;
        let join: Vec<_> = self.slots.iter().map(|slot| format!("127.0.0.1:{}", slot.gossip_port)).collect();
        let old = self.old.name();
        let store = match wiring {
            Wiring::Old => format!("  store: {old}"),
            Wiring::Both => format!("  store: multi\n  multi: {{ primary: {old}, secondary: memberlist }}"),
            Wiring::Gossip { .. } => "  store: memberlist".to_owned(),
        };
        let server = match &self.old {
            OldStore::Consul(host) => {
                format!("\n  consul: {{ host: \"{host}\", watch_rate_limit: 10, watch_burst_size: 2 }}")
            }
            OldStore::Etcd(host) => format!("\n  etcd: {{ endpoints: [\"{host}\"] }}"),
            OldStore::Memory => String::new(),
        };
        format!(
            "node: {{ id: {id}, zone: {zone}, address: \"127.0.0.1:{http}\" }}\n\
             memberlist:\n  bind_addr: [127.0.0.1]\n  bind_port: {gossip}\n  join_members: {join:?}\n\
             \x20 cluster_label: demo\n  gossip_interval: 100ms\n  probe_interval: {probe}\n  probe_timeout: {timeout}\n\
             \x20 suspicion_mult: 3\n  leave_timeout: 5s\n\
             kv:\n  prefix: {prefix}\n{store}{server}\n\
             rings:\n  - name: {RING}\n    key: ring\n    replication_factor: 3\n    zone_awareness_enabled: true\n\
             \x20   num_tokens: 128\n    heartbeat_period: {beat}\n    heartbeat_timeout: {beat_timeout}\n\
             \x20   min_ready_duration: 0s\n    unregister_on_shutdown: false\n    auto_forget_unhealthy_periods: 1\n\
             runtime_config: {{ file: [\"{runtime}\"], period: {reload} }}\n\
             migration: {{ teardown: {teardown} }}\n\
             http: {{ listen: \"127.0.0.1:{http}\", drills_enabled: true }}\n",
            id = slot.id,
            zone = slot.zone,
            gossip = slot.gossip_port,
            http = slot.http_port,
            probe = millis(t.probe_interval),
            timeout = millis(t.probe_interval / 2),
            prefix = self.prefix,
            beat = millis(t.heartbeat_period),
            beat_timeout = millis(t.heartbeat_timeout),
            runtime = slot.runtime_file.display(),
            reload = millis(t.reload),
            teardown = wiring == Wiring::Gossip { teardown: true },
        )
    }
}

/// A port that is free for UDP and TCP now.
fn free_port() -> anyhow::Result<u16> {
    for _ in 0..50 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        if UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    anyhow::bail!("no port is free for both UDP and TCP")
}

fn started() -> u128 {
    annulus::clock::Now::read().unix.as_millis()
}

fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().rev().take(5).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
}
