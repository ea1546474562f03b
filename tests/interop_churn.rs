//! A minute of coming and going: members of several programs join, leave, are killed and return, and in the end all views
//! agree.

#![allow(clippy::unwrap_used)]

mod support;

#[path = "support/fleet.rs"]
mod fleet;
#[path = "support/interop/mod.rs"]
mod interop;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use annulus::Node;
use annulus::swim::SwimConfig;
use bytes::Bytes;
use fleet::live_members;
use interop::alertmanager::{self, Alertmanager};
use interop::core_node::CoreNode;
use interop::go_peer::{GoPeer, Library, Settings};
use interop::loopback::Loopback;
use interop::matrix::{Scenario, passed};
use interop::serf::{self, Serf};
use interop::until;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// How long members come and go.
const CHURN: Duration = Duration::from_secs(60);
/// At most so many members.
const SIZE: usize = 10;
/// Where all listen that come back to where they were: each has an address to itself.
const PORT: u16 = 7946;

/// Whoever may come and go.
enum Someone {
    Core(CoreNode),
    Node(Node),
    Go(GoPeer),
    Serf(Serf),
    Alertmanager(Alertmanager),
}

/// One of those who are there.
struct Member {
    name: String,
    addr: SocketAddr,
    who: Someone,
}

impl Member {
    fn new(name: impl Into<String>, addr: SocketAddr, who: Someone) -> Self {
        Self { name: name.into(), addr, who }
    }

    async fn join(&self, seed: SocketAddr) {
        match &self.who {
            Someone::Core(node) => node.join(seed).await.unwrap(),
            Someone::Node(node) => drop(node.join(vec![seed]).await.unwrap()),
            Someone::Go(peer) => peer.join(seed).await.unwrap(),
            Someone::Serf(agent) => drop(agent.join(seed).unwrap()),
            // It was told when it started, and knows no other way.
            Someone::Alertmanager(_) => {}
        }
    }

    /// Waits until it sees exactly these as alive.
    async fn sees(&self, members: &[&Self]) {
        let mut names: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
        names.sort_unstable();
        let what = format!("{} sees {names:?}", self.name);
        match &self.who {
            Someone::Core(node) => drop(node.sees(&names).await),
            Someone::Node(node) => drop(until(&what, async || live_members(node), |seen| *seen == names).await),
            Someone::Go(peer) => drop(peer.sees(&names).await),
            Someone::Serf(agent) => {
                let alive = async || -> Vec<String> {
                    agent.members().into_iter().filter(|member| member.1 == "alive").map(|member| member.0).collect()
                };
                until(&what, alive, |seen| *seen == names).await;
            }
            Someone::Alertmanager(server) => {
                let addrs: Vec<_> = members.iter().map(|member| member.addr).collect();
                server.sees(&addrs).await;
            }
        }
    }

    async fn leave(self) {
        match self.who {
            Someone::Core(node) => node.leave().await,
            Someone::Node(node) => drop(node.leave().await),
            Someone::Go(peer) => drop(peer.tell("leave").await),
            Someone::Serf(agent) => drop(agent.try_run(&["leave"]).unwrap()),
            Someone::Alertmanager(mut server) => {
                server.terminate();
                until("it said goodbye and ended", async || (), |()| !server.runs()).await;
            }
        }
    }

    async fn kill(self) {
        match self.who {
            Someone::Core(node) => node.kill(),
            Someone::Node(node) => node.stop().await,
            Someone::Go(mut peer) => peer.kill(),
            Someone::Serf(mut agent) => agent.kill(),
            Someone::Alertmanager(mut server) => server.kill(),
        }
    }
}

/// Starts [`SIZE`] members, lets them come and go for [`CHURN`], and waits until all views agree. `start` starts the member
/// of a number; `seed` is one of those who are there, if anybody is.
///
/// Returns how long the views took to agree.
async fn churn(start: impl AsyncFn(usize, Option<SocketAddr>) -> Member) -> Duration {
    let mut members: Vec<Option<Member>> = Vec::new();
    for number in 0..SIZE {
        members.push(None);
        come(&mut members, number, &start).await;
    }

    // The same story each time, as far as processes and networks have one.
    let mut random = StdRng::seed_from_u64(20_260_101);
    let (begin, mut left, mut killed, mut started) = (Instant::now(), 0, 0, 0);
    while begin.elapsed() < CHURN {
        let number = random.random_range(0..SIZE);
        let there = members.iter().flatten().count();
        match members[number].take() {
            Some(member) if there <= 3 => members[number] = Some(member),
            Some(member) if random.random() => {
                left += 1;
                member.leave().await;
            }
            Some(member) => {
                killed += 1;
                member.kill().await;
            }
            None => {
                started += 1;
                come(&mut members, number, &start).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(200..1_200))).await;
    }
    assert!(left > 0 && killed > 0 && started > 0, "{left} left, {killed} were killed, {started} came");

    let end = Instant::now();
    let alive: Vec<&Member> = members.iter().flatten().collect();
    for member in &alive {
        member.sees(&alive).await;
    }
    println!("churn: {left} left, {killed} were killed, {started} came; {} are there at the end", alive.len());
    end.elapsed()
}

async fn come(
    members: &mut [Option<Member>],
    number: usize,
    start: &impl AsyncFn(usize, Option<SocketAddr>) -> Member,
) {
    let seed = members.iter().flatten().next().map(|member| member.addr);
    let member = start(number, seed).await;
    if let Some(seed) = seed {
        member.join(seed).await;
    }
    members[number] = Some(member);
}

fn homes() -> [Loopback; SIZE] {
    std::array::from_fn(|_| Loopback::lease())
}

/// A node of ours, where it was before.
fn core(name: &str, at: &Loopback, config: &SwimConfig, meta: impl Into<Bytes>) -> Member {
    let node = CoreNode::start(name, at.ip(), PORT, config.clone(), meta);
    Member::new(name, node.addr(), Someone::Core(node))
}

/// A whole node with the timings of [`Settings::fast`], where it was before: its configuration does not say how soon a
/// killed member's name is free for another address.
async fn whole_node(number: usize, name: &str, at: &Loopback) -> Member {
    let mut config = fleet::config(number + 1);
    config.node.id = name.to_owned();
    config.memberlist.bind_addr = vec![at.ip()];
    config.memberlist.bind_port = PORT;
    config.memberlist.gossip_interval = Some(Duration::from_millis(100));
    config.memberlist.probe_interval = Some(Duration::from_millis(500));
    config.memberlist.probe_timeout = Some(Duration::from_millis(200));
    config.memberlist.suspicion_mult = Some(4);
    let node = Node::builder(name).config(config).start().await.unwrap();
    let addr = node.gossip_addr().unwrap();
    Member::new(name, addr, Someone::Node(node))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_minute_of_churn_with_memberlist_all_views_agree() {
    if Library::Hashicorp.program().is_none() || Library::Grafana.program().is_none() {
        return;
    }
    let homes = homes();
    let versions = std::sync::Mutex::new([String::new(), String::new()]);
    let config = SwimConfig {
        probe_interval: Duration::from_millis(500),
        probe_timeout: Duration::from_millis(200),
        gossip_interval: Duration::from_millis(100),
        push_pull_interval: Duration::from_secs(1),
        stream_timeout: Duration::from_secs(5),
        dead_reclaim_time: Duration::from_secs(1),
        ..SwimConfig::lan()
    };
    // These come back at other ports: a killed member's name is soon free for another address.
    let settings = Settings::fast().with("dead-reclaim-time", "1s");
    // Half of them ours.
    let took = churn(async |number, _| {
        let (name, at) = (format!("member-{number}"), &homes[number]);
        match number % 4 {
            0 => core(&name, at, &config, Bytes::new()),
            2 => whole_node(number, &name, at).await,
            odd => {
                let library = if odd == 1 { Library::Hashicorp } else { Library::Grafana };
                let peer = GoPeer::start(library, &name, at, settings.clone()).await.unwrap();
                versions.lock().unwrap()[odd / 2] = peer.version().to_owned();
                Member::new(name, peer.addr(), Someone::Go(peer))
            }
        }
    })
    .await;
    for (library, version) in [Library::Hashicorp, Library::Grafana].into_iter().zip(&*versions.lock().unwrap()) {
        passed(library.peer(), version, Scenario::Churn, took);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_minute_of_churn_with_serf_all_views_agree() {
    let homes = homes();
    let versions = [serf::Version::V09, serf::Version::V010];
    if versions.iter().any(|version| !version.is_here()) {
        return;
    }
    let took = churn(async |number, _| {
        let (name, at) = (format!("member-{number}"), &homes[number]);
        match number % 4 {
            0 | 2 => core(&name, at, &serf::swim_config(), serf::tags(&[("role", &name)])),
            odd => {
                let agent = Serf::start(versions[odd / 2], &name, at, PORT, &[]).await.unwrap();
                Member::new(name, agent.addr(), Someone::Serf(agent))
            }
        }
    })
    .await;
    for version in versions {
        passed(version.peer(), &version.number(), Scenario::Churn, took);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_minute_of_churn_with_alertmanager_all_views_agree() {
    let homes = homes();
    let versions = [alertmanager::Version::V025, alertmanager::Version::V028, alertmanager::Version::Sid];
    if versions.iter().any(|version| !version.is_here()) {
        return;
    }
    let took = churn(async |number, seed| {
        let (name, at) = (format!("member-{number}"), &homes[number]);
        match number {
            0 | 4 | 8 => core(&name, at, &alertmanager::swim_config(), Bytes::new()),
            2 | 6 => whole_node(number, &name, at).await,
            odd => {
                let seed: Vec<String> = seed.iter().map(|addr| format!("--cluster.peer={addr}")).collect();
                let server = Alertmanager::start(versions[odd / 2 % 3], at, &seed).await.unwrap();
                // It makes up another name each time.
                Member::new(server.name().await, server.addr(), Someone::Alertmanager(server))
            }
        }
    })
    .await;
    for version in versions {
        passed(version.peer(), &version.number(), Scenario::Churn, took);
    }
}
