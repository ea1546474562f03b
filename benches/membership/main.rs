//! Membership side by side with Go's memberlist: N nodes in one process, the same N and profile, the same machine.
//!
//! ```sh
//! cargo bench --bench membership                                        # everything: some eight minutes
//! cargo bench --bench membership -- --nodes 20 --profiles lan --no-busy # a look: two minutes
//! ```
//!
//! What is measured on our side is what is shipped: whole [`annulus::Node`]s with their actors and the gossip store, over
//! UDP and TCP sockets on loopback; all on one thread (`NodeBuilder::start_local`), or each on its own as in a server
//! (`--threads own`). On the other side stands `interop/memberlist-bench`, built with `go` where that is installed. Each
//! cluster is a process of its own in a network namespace of its own (`unshare --net`, needs root), so that the counters
//! of its loopback interface are its alone. Join storms take turns; the idle phase, which needs minutes, and the kills
//! are of all clusters at the same time.
//!
//! | file | subject |
//! |---|---|
//! | `cluster` | the process with N Annulus nodes |
//! | `runs` | starting the processes of both sides, and telling them what to do |
//! | `load` | a compiler beside them |
//! | `report` | the tables |
//! | `proc` | what Linux counts |

mod cluster;
mod load;
mod proc;
mod report;
mod runs;

use std::path::PathBuf;
use std::time::Duration;

use annulus::config::parse_duration;
use annulus::swim::push_pull_interval;
use anyhow::Result;
use clap::{Args, Parser, ValueEnum};

use self::report::{Report, Scene};
use self::runs::{Cluster, Runner, Side};

/// Membership side by side with Go's memberlist.
#[derive(Debug, Parser)]
struct Options {
    /// How many nodes: a cluster of each size goes through all phases.
    #[arg(long, value_delimiter = ',', default_value = "20,50,100")]
    nodes: Vec<usize>,
    /// Profiles of the further join storms, with the largest number of nodes. All other phases are with `lan`.
    #[arg(long, value_delimiter = ',', default_value = "lan,local,wan,grafana")]
    profiles: Vec<String>,
    /// How often everything is done.
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    /// Leave out the join storms beside a compiler.
    #[arg(long)]
    no_busy: bool,
    /// Leave out everything but join storms.
    #[arg(long)]
    storms: bool,
    /// Leave out memberlist.
    #[arg(long)]
    no_go: bool,
    /// A built `interop/memberlist-bench`, instead of building it.
    #[arg(long)]
    go: Option<PathBuf>,
    /// Every result as a line of JSON instead of tables.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    cluster: ClusterOptions,
    /// Be the process with this many nodes: what this program starts itself as.
    #[arg(long, hide = true)]
    be_cluster: Option<usize>,
    /// Cargo says that this is a benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What a cluster is told when it starts.
#[derive(Clone, Debug, Args)]
struct ClusterOptions {
    /// Timings: lan, local, wan or grafana.
    #[arg(long, default_value = "lan", hide = true)]
    profile: String,
    /// Compression of both sides: none, or lzw, memberlist's default.
    #[arg(long, default_value = "lzw")]
    compression: String,
    /// Which threads our nodes run on.
    #[arg(long, default_value = "shared")]
    threads: Threads,
    /// Longest wait for the end of a phase.
    #[arg(long, default_value = "60s", value_parser = parse_duration)]
    limit: Duration,
}

/// Which threads our nodes run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Threads {
    /// All on one.
    Shared,
    /// Each on one of its own.
    Own,
}

fn main() -> Result<()> {
    let options = Options::parse();
    if let Some(nodes) = options.be_cluster {
        return cluster::main(nodes, &options.cluster);
    }
    let runner = Runner::new(&options)?;
    let mut report = Report::new(options.json);
    for _ in 0..options.rounds {
        if !options.storms {
            all_phases(&options, &runner, &mut report)?;
        }
        storms(&options, &runner, &mut report)?;
        if !options.no_busy {
            storms_beside_a_compiler(&options, &runner, &mut report)?;
        }
    }
    report.print();
    Ok(())
}

/// memberlist's first push/pull comes up to 30 s and one period after its start; from then on, a window of one period
/// holds exactly one of each node, on both sides.
const SETTLE: Duration = Duration::from_secs(35);

/// Join, idle, kill, leave, with clusters of all sizes.
fn all_phases(options: &Options, runner: &Runner, report: &mut Report) -> Result<()> {
    let mut clusters = Vec::new();
    for nodes in &options.nodes {
        for side in runner.sides() {
            let mut cluster = runner.start(side, *nodes, &options.cluster)?;
            cluster.ask("storm")?;
            clusters.push(cluster);
        }
    }
    eprintln!("idle: some two minutes");
    std::thread::sleep(SETTLE);
    let period = |nodes| push_pull_interval(Duration::from_secs(30), nodes).as_secs();
    together(&mut clusters, |cluster| format!("idle {}", period(cluster.nodes)))?;
    together(&mut clusters, |_| "kill".to_owned())?;
    together(&mut clusters, |_| "leave".to_owned())?;
    for cluster in clusters {
        report.add(Scene::All, cluster.result());
    }
    Ok(())
}

/// Asks all clusters, then waits for all answers.
fn together(clusters: &mut [Cluster], command: impl Fn(&Cluster) -> String) -> Result<()> {
    for cluster in &mut *clusters {
        let command = command(cluster);
        cluster.tell(&command)?;
    }
    clusters.iter_mut().try_for_each(Cluster::hear)
}

fn storms(options: &Options, runner: &Runner, report: &mut Report) -> Result<()> {
    for profile in &options.profiles {
        for side in runner.sides() {
            report.add(Scene::Storm, storm(options, runner, side, profile)?);
        }
    }
    Ok(())
}

fn storms_beside_a_compiler(options: &Options, runner: &Runner, report: &mut Report) -> Result<()> {
    for profile in &options.profiles {
        for side in runner.sides() {
            // memberlist takes minutes in any profile; one is enough to see it.
            if side == Side::Memberlist && profile != "lan" {
                continue;
            }
            let _compiler = load::Compiler::start()?;
            report.add(Scene::Busy, storm(options, runner, side, profile)?);
        }
    }
    Ok(())
}

fn storm(options: &Options, runner: &Runner, side: Side, profile: &str) -> Result<serde_json::Value> {
    let nodes = options.nodes.iter().copied().max().unwrap_or_default();
    let told = ClusterOptions { profile: profile.to_owned(), ..options.cluster.clone() };
    let mut cluster = runner.start(side, nodes, &told)?;
    cluster.ask("storm")?;
    Ok(cluster.result())
}
