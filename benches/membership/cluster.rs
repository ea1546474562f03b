//! The process with N Annulus nodes. `interop/memberlist-bench` does the same with memberlist, phase by phase.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use annulus::config::{Compression, Profile};
use annulus::wire::message::MemberState;
use annulus::{Config, Node};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::LocalSet;

use crate::proc::{Memory, cpu_seconds, loopback};
use crate::{ClusterOptions, Threads};

const PORT: u16 = 7946;

/// How often the nodes' members are looked at. Also memberlist's.
const LOOK: Duration = Duration::from_millis(10);

pub(crate) fn main(nodes: usize, options: &ClusterOptions) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let mut commands = commands();
        let before = Memory::now()?;
        let mut cluster = Cluster::start(nodes, options).await?;
        println!(
            "{}",
            json!({
                "program": "annulus",
                "nodes": nodes,
                "profile": options.profile,
                "compression": options.compression,
                "threads": format!("{:?}", options.threads).to_lowercase(),
            })
        );
        while let Some(command) = commands.recv().await {
            let words: Vec<&str> = command.split_whitespace().collect();
            let answer = match words[..] {
                ["storm"] => cluster.storm(options.limit).await?,
                ["idle", seconds] => {
                    let mut answer = cluster.idle(Duration::from_secs(seconds.parse()?)).await?;
                    let after = Memory::now()?;
                    answer["rss_kb"] = json!((after.resident - before.resident) / nodes as f64);
                    answer["anon_kb"] = json!((after.anonymous - before.anonymous) / nodes as f64);
                    answer
                }
                ["kill"] => json!({ "dead_ms": cluster.kill_the_last(options.limit).await? }),
                ["leave"] => json!({ "left_ms": cluster.the_last_leaves(options.limit).await? }),
                _ => bail!("there is no command {command:?}"),
            };
            println!("{answer}");
        }
        // Nobody needs to say goodbye any more.
        std::process::exit(0)
    })
}

/// The lines of the standard input.
fn commands() -> mpsc::UnboundedReceiver<String> {
    let (say, heard) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if say.send(line).is_err() {
                return;
            }
        }
    });
    heard
}

struct Cluster {
    nodes: Vec<Node>,
}

fn name(index: usize) -> String {
    format!("node-{index:03}")
}

fn address(index: usize) -> Result<Ipv4Addr> {
    Ok(Ipv4Addr::new(127, 1, u8::try_from(index / 200)?, u8::try_from(1 + index % 200)?))
}

fn config(index: usize, options: &ClusterOptions) -> Result<Config> {
    let mut config = Config::default();
    config.node.address = format!("{}:80", address(index)?);
    let memberlist = &mut config.memberlist;
    memberlist.bind_addr = vec![IpAddr::V4(address(index)?)];
    memberlist.bind_port = PORT;
    memberlist.profile = match options.profile.as_str() {
        "lan" => Profile::Lan,
        "local" => Profile::Local,
        "wan" => Profile::Wan,
        "grafana" => Profile::Grafana,
        other => bail!("there is no profile {other}"),
    };
    memberlist.compression = match options.compression.as_str() {
        "none" => Compression::None,
        "lzw" => Compression::Lzw,
        "snappy" => Compression::Snappy,
        other => bail!("there is no compression {other}"),
    };
    Ok(config)
}

impl Cluster {
    async fn start(count: usize, options: &ClusterOptions) -> Result<Self> {
        let mut nodes = Vec::with_capacity(count);
        for index in 0..count {
            let builder = Node::builder(name(index)).config(config(index, options)?);
            nodes.push(match options.threads {
                Threads::Shared => builder.start_local()?,
                Threads::Own => builder.start().await?,
            });
        }
        Ok(Self { nodes })
    }

    /// Lets all nodes join the first one at once, and waits until everybody sees everybody.
    async fn storm(&self, limit: Duration) -> Result<Value> {
        let (bytes, _) = loopback()?;
        let cpu = cpu_seconds()?;
        let start = Instant::now();
        for node in &self.nodes[1..] {
            tokio::spawn(join(node.clone(), SocketAddr::from((address(0)?, PORT))));
        }
        let mut complete = vec![0.0; self.nodes.len()];
        while complete.contains(&0.0) && start.elapsed() < limit {
            tokio::time::sleep(LOOK).await;
            for (node, complete) in self.nodes.iter().zip(&mut complete) {
                if *complete == 0.0 && live(node) >= self.nodes.len() {
                    *complete = milliseconds(start);
                }
            }
        }
        Ok(json!({
            "joined_ms": complete,
            "join_cpu_s": cpu_seconds()? - cpu,
            "join_mb": (loopback()?.0 - bytes) / 1e6,
        }))
    }

    /// Counts what doing nothing costs.
    async fn idle(&self, length: Duration) -> Result<Value> {
        let (bytes, packets) = loopback()?;
        let (cpu, start) = (cpu_seconds()?, Instant::now());
        tokio::time::sleep(length).await;
        let (bytes_after, packets_after) = loopback()?;
        let node_seconds = self.nodes.len() as f64 * start.elapsed().as_secs_f64();
        Ok(json!({
            "idle_cpu_ms_per_s": (cpu_seconds()? - cpu) * 1e3 / node_seconds,
            "idle_bytes_per_s": (bytes_after - bytes) / node_seconds,
            "idle_packets_per_s": (packets_after - packets) / node_seconds,
        }))
    }

    /// Ends the last node as if its process had died: dropping the handle closes its sockets and says nothing.
    async fn kill_the_last(&mut self, limit: Duration) -> Result<Value> {
        let victim = self.nodes.pop().context("no node is left")?;
        let name = victim.id().to_owned();
        let start = Instant::now();
        drop(victim);
        self.until_gone(&name, MemberState::Dead, start, limit).await
    }

    async fn the_last_leaves(&mut self, limit: Duration) -> Result<Value> {
        let leaver = self.nodes.pop().context("no node is left")?;
        let name = leaver.id().to_owned();
        let start = Instant::now();
        tokio::spawn(async move { leaver.leave().await });
        self.until_gone(&name, MemberState::Left, start, limit).await
    }

    /// When each of the nodes saw that member go, in milliseconds; 0 for those that did not.
    async fn until_gone(&self, name: &str, how: MemberState, start: Instant, limit: Duration) -> Result<Value> {
        let mut gone = vec![0.0; self.nodes.len()];
        while gone.contains(&0.0) && start.elapsed() < limit {
            tokio::time::sleep(LOOK).await;
            for (node, gone) in self.nodes.iter().zip(&mut gone) {
                if *gone == 0.0 && state(node, name).is_none_or(|state| state == how) {
                    *gone = milliseconds(start);
                }
            }
        }
        Ok(json!(gone))
    }
}

/// Tries until the seed answers, as the other side does.
async fn join(node: Node, seed: SocketAddr) {
    while node.join(vec![seed]).await.is_err() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn live(node: &Node) -> usize {
    node.members().list.iter().filter(|member| member.is_live()).count()
}

fn state(node: &Node, name: &str) -> Option<MemberState> {
    let members = node.members();
    let place = members.list.binary_search_by(|member| member.name.as_str().cmp(name)).ok()?;
    Some(members.list[place].state)
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
