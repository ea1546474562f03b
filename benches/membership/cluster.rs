//! The process with N Annulus nodes. `interop/memberlist-bench` does the same with memberlist, phase by phase.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use annulus::config::{Compression, Profile};
use annulus::wire::message::MemberState;
use annulus::{Config, Node};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::proc::{cpu_seconds, loopback, resident_kb};
use crate::{Phases, RunOptions};

const PORT: u16 = 7946;

/// How often the nodes' members are looked at. Also memberlist's.
const LOOK: Duration = Duration::from_millis(10);

pub(crate) fn main(nodes: usize, options: &RunOptions) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let before = resident_kb()?;
        let mut cluster = Cluster::start(nodes, options).await?;
        let mut result = json!({
            "program": "annulus",
            "nodes": nodes,
            "profile": options.profile,
            "compression": options.compression,
        });
        cluster.storm(&mut result, options.limit).await?;
        if options.phases == Phases::All {
            tokio::time::sleep(options.settle).await;
            cluster.idle(&mut result, options.idle).await?;
            result["rss_kb"] = json!((resident_kb()? - before) / nodes as f64);
            result["dead_ms"] = cluster.kill_the_last(options.limit).await?;
            result["left_ms"] = cluster.the_last_leaves(options.limit).await?;
        }
        println!("{result}");
        // Nobody needs to say goodbye any more.
        std::process::exit(0)
    })
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

fn config(index: usize, options: &RunOptions) -> Result<Config> {
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
    async fn start(count: usize, options: &RunOptions) -> Result<Self> {
        let mut nodes = Vec::with_capacity(count);
        for index in 0..count {
            nodes.push(Node::builder(name(index)).config(config(index, options)?).start().await?);
        }
        Ok(Self { nodes })
    }

    /// Lets all nodes join the first one at once, and waits until everybody sees everybody.
    async fn storm(&self, result: &mut Value, limit: Duration) -> Result<()> {
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
        result["joined_ms"] = json!(complete);
        result["join_cpu_s"] = json!(cpu_seconds()? - cpu);
        result["join_mb"] = json!((loopback()?.0 - bytes) / 1e6);
        Ok(())
    }

    /// Counts what doing nothing costs.
    async fn idle(&self, result: &mut Value, length: Duration) -> Result<()> {
        let (bytes, packets) = loopback()?;
        let (cpu, start) = (cpu_seconds()?, Instant::now());
        tokio::time::sleep(length).await;
        let (bytes_after, packets_after) = loopback()?;
        let node_seconds = self.nodes.len() as f64 * start.elapsed().as_secs_f64();
        result["idle_cpu_ms_per_s"] = json!((cpu_seconds()? - cpu) * 1e3 / node_seconds);
        result["idle_bytes_per_s"] = json!((bytes_after - bytes) / node_seconds);
        result["idle_packets_per_s"] = json!((packets_after - packets) / node_seconds);
        Ok(())
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
