//! The process with N Annulus nodes. `interop/dskit-mirror` does the same with dskit, command by command.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use annulus::clock::Now;
use annulus::config::{KvStore, RingConfig};
use annulus::kv::{CasAction, StoreKind, Value as Stored};
use annulus::migration::Gate;
use annulus::ring::{Desc, Instance};
use annulus::{Config, Node, Operation, RingHandle};
use anyhow::{Context, Result, bail, ensure};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use crate::{FleetOptions, RELOAD};

const RING: &str = "bench";
const KEY: &str = "collectors/ring";

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the fleet until the standard input ends.
pub(crate) fn main(options: &FleetOptions) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let fleet = runtime.block_on(Fleet::start(options))?;
    println!("{}", json!({ "program": "annulus" }));
    for line in std::io::stdin().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match words[..] {
            ["measure", seconds] => {
                let length = Duration::from_secs_f64(seconds.parse()?);
                fleet.measure(|| {
                    std::thread::sleep(length);
                    Ok(())
                })?
            }
            ["mirror"] => {
                fleet.tell("multi_kv_config: { mirror_enabled: true }\n")?;
                // There are more instances than members, for most of them are none.
                let ready = |gate: &Gate| gate.open || gate.name == "members";
                fleet.wait(|node| node.preflight().is_some_and(|said| said.gates.iter().all(ready)))?;
                json!({})
            }
            ["flip"] => fleet.flip()?,
            _ => bail!("there is no command {line:?}"),
        };
        println!("{answer}");
    }
    // Nobody needs to say goodbye any more.
    std::process::exit(0)
}

struct Fleet {
    nodes: Vec<Node>,
    runtime_file: PathBuf,
    writes: Arc<Mutex<Writes>>,
}

/// Compare-and-swaps of a measurement, each in milliseconds.
#[derive(Default)]
struct Writes {
    took: Vec<f64>,
    failed: u64,
}

impl Fleet {
    async fn start(options: &FleetOptions) -> Result<Self> {
        let mut nodes: Vec<Node> = Vec::new();
        for index in 0..options.nodes {
            let seed = nodes.first().and_then(Node::gossip_addr).map(|address| address.to_string());
            let config = config(index, options, seed);
            nodes.push(Node::builder(name(index)).config(config).start().await?);
            if index == 0 {
                fill(&nodes[0], options.instances).await?;
            }
        }
        let fleet = Self { nodes, runtime_file: options.runtime.clone(), writes: Arc::default() };
        fleet.wait(|node| {
            let complete = node.ring(RING).desc().instances.len() >= options.instances;
            complete && node.members().list.iter().filter(|member| member.is_live()).count() >= options.nodes
        })?;
        for node in &fleet.nodes {
            tokio::spawn(heartbeats(node.clone(), options.heartbeat, fleet.writes.clone()));
        }
        Ok(fleet)
    }

    fn wait(&self, condition: impl Fn(&Node) -> bool) -> Result<()> {
        let began = Instant::now();
        for node in &self.nodes {
            while !condition(node) {
                let gates = node.preflight().map(|said| said.gates);
                ensure!(began.elapsed() < PATIENCE, "{} is not ready: {gates:?}", node.id());
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(())
    }

    fn tell(&self, text: &str) -> Result<()> {
        write_whole(&self.runtime_file, text)
    }

    fn flip(&self) -> Result<Value> {
        let before = self.owners();
        let mut took = Duration::ZERO;
        let mut answer = self.measure(|| {
            let changed = Instant::now();
            self.tell("multi_kv_config: { mirror_enabled: true, primary: memberlist }\n")?;
            self.wait(|node| node.migration().is_some_and(|status| status.primary == StoreKind::Memberlist))?;
            took = changed.elapsed();
            std::thread::sleep(Duration::from_secs(1));
            Ok(())
        })?;
        let after = self.owners();
        answer["flip_ms"] = json!(took.as_secs_f64() * 1e3);
        answer["owners_moved"] = json!(before.iter().zip(&after).filter(|(before, after)| before != after).count());
        let swaps = self.nodes.iter().filter_map(|node| node.migration()?.last_flip_took_ms);
        answer["swap_ms_max"] = json!(swaps.max());
        answer["generations"] =
            json!(self.nodes.iter().filter_map(|node| Some(node.migration()?.generation)).sum::<u64>());
        Ok(answer)
    }

    /// Counts and times writes and lookups while something happens.
    fn measure(&self, something: impl FnOnce() -> Result<()>) -> Result<Value> {
        self.take_writes();
        let stop = Arc::new(AtomicBool::new(false));
        let rings: Vec<RingHandle> = self.nodes.iter().map(|node| node.ring(RING)).collect();
        let thread = std::thread::spawn({
            let stop = stop.clone();
            move || look_up(&rings, &stop)
        });
        let done = something();
        stop.store(true, Ordering::Relaxed);
        let Ok((mut lookups, failed)) = thread.join() else { bail!("lookups ended early") };
        done?;
        let mut writes = self.take_writes();
        Ok(json!({
            "lookups": lookups.len(),
            "lookups_failed": failed,
            "lookup_p50_ns": at(&mut lookups, 0.5),
            "lookup_p99_ns": at(&mut lookups, 0.99),
            "lookup_p999_ns": at(&mut lookups, 0.999),
            "lookup_max_ns": at(&mut lookups, 1.0),
            "cas": writes.took.len(),
            "cas_failed": writes.failed,
            "cas_p50_ms": at(&mut writes.took, 0.5),
            "cas_p99_ms": at(&mut writes.took, 0.99),
        }))
    }

    fn take_writes(&self) -> Writes {
        self.writes.lock().map(|mut writes| std::mem::take(&mut *writes)).unwrap_or_default()
    }

    /// The owners of a sample of keys, as every node sees them.
    fn owners(&self) -> Vec<String> {
        let sample = |ring: RingHandle| {
            (0..1024_u32).map(move |number| match ring.get(number.wrapping_mul(0x9E37_79B9), Operation::Write) {
                Ok(set) => set.ids().collect::<Vec<_>>().join(","),
                Err(error) => error.to_string(),
            })
        };
        self.nodes.iter().flat_map(|node| sample(node.ring(RING))).collect()
    }
}

fn name(index: usize) -> String {
    format!("node-{index}")
}

fn config(index: usize, options: &FleetOptions, seed: Option<String>) -> Config {
    let mut config = Config::default();
    config.node.id = name(index);
    config.memberlist.bind_addr = vec![[127, 0, 0, 1].into()];
    config.memberlist.bind_port = 0;
    config.memberlist.join_members = seed.into_iter().collect();
    config.kv.store = KvStore::Multi;
    config.kv.multi.primary = KvStore::Consul;
    config.kv.multi.secondary = KvStore::Memberlist;
    config.kv.consul.host.clone_from(&options.consul);
    config.rings = vec![RingConfig {
        // What the instance writes, we write, so that it can be timed.
        join: false,
        zone_awareness_enabled: true,
        heartbeat_timeout: Duration::from_secs(3600),
        ..RingConfig::named(RING)
    }];
    config.runtime_config.file = vec![options.runtime.display().to_string()];
    config.runtime_config.period = RELOAD;
    config.http.listen = String::new();
    config
}

/// Writes all instances: those of the nodes, and others that only take up their place.
async fn fill(node: &Node, instances: usize) -> Result<()> {
    let mut random = SmallRng::seed_from_u64(1);
    let now = Now::read().unix_secs();
    let instance = |index: usize| {
        let mut instance = Instance {
            addr: format!("10.0.{}.{}:9095", index / 250, index % 250),
            timestamp: now,
            registered_timestamp: now,
            zone: format!("zone-{}", index % 3),
            tokens: (0..128).map(|_| random.random()).collect(),
            ..Instance::default()
        };
        instance.normalize();
        (name(index).as_str().into(), instance)
    };
    let desc = Desc { instances: (0..instances).map(instance).collect(), ..Desc::default() };
    node.store().cas(KEY, Box::new(move |_| CasAction::Write(Stored::new(desc.clone())))).await?;
    Ok(())
}

/// Writes the node's instance again and again.
async fn heartbeats(node: Node, period: Duration, writes: Arc<Mutex<Writes>>) {
    tokio::time::sleep(period.mul_f64(rand::random())).await;
    let mut ticks = tokio::time::interval(period);
    // A late heartbeat is not made up for. Neither does the other side.
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let id: Arc<str> = node.id().into();
    loop {
        ticks.tick().await;
        let began = Instant::now();
        let id = id.clone();
        let heartbeat = move |stored: Option<&Stored>| {
            let Some(mut desc) = stored.and_then(|value| value.downcast_ref::<Desc>()).cloned() else {
                return CasAction::Abort("there is no ring".to_owned());
            };
            let Some(instance) = desc.instances.get_mut(&id) else {
                return CasAction::Abort("we are not in the ring".to_owned());
            };
            instance.timestamp = Now::read().unix_secs().max(instance.timestamp + 1);
            CasAction::Write(Stored::new(desc))
        };
        let done = node.store().cas(KEY, Box::new(heartbeat)).await;
        let Ok(mut writes) = writes.lock() else { return };
        match done {
            Ok(_) => writes.took.push(began.elapsed().as_secs_f64() * 1e3),
            Err(_) => writes.failed += 1,
        }
    }
}

/// Looks up random keys, fifty a millisecond, on one node after the other. How long each took, in nanoseconds, and how
/// many failed.
fn look_up(rings: &[RingHandle], stop: &AtomicBool) -> (Vec<f64>, u64) {
    let (mut took, mut failed, mut random) = (Vec::new(), 0, SmallRng::seed_from_u64(2));
    for ring in rings.iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        for _ in 0..50 {
            let key = random.random();
            let began = Instant::now();
            let set = ring.get(key, Operation::Write);
            took.push(began.elapsed().as_nanos() as f64);
            failed += u64::from(set.is_ok_and(|set| !set.is_empty())) ^ 1;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    (took, failed)
}

fn at(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let index = ((values.len() as f64 * share) as usize).min(values.len().saturating_sub(1));
    values.get(index).copied().unwrap_or(0.0)
}

/// Replaces a file as an operator's tools do: whole, by a rename.
pub(crate) fn write_whole(path: &Path, text: &str) -> Result<()> {
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, text).with_context(|| fresh.display().to_string())?;
    std::fs::rename(&fresh, path).with_context(|| path.display().to_string())
}
