//! Membership side by side with Go's memberlist: N nodes in one process, the same N and profile, in turns.
//!
//! ```sh
//! cargo bench --bench membership                                    # everything: some nine minutes
//! cargo bench --bench membership -- --nodes 20 --idle 10s --no-busy --profiles lan
//! ```
//!
//! What is measured on our side is what is shipped: whole [`annulus::Node`]s with the gossip store, from
//! `NodeBuilder::start`, over UDP and TCP sockets on loopback. On the other side stands `interop/memberlist-bench`, built
//! with `go` where that is installed. Each run is a process of its own in a network namespace of its own (`unshare
//! --net`, needs root), so that the counters of its loopback interface are its alone.
//!
//! | file | subject |
//! |---|---|
//! | `cluster` | the process with N Annulus nodes |
//! | `runs` | starting the processes of both sides |
//! | `load` | a compiler beside them |
//! | `report` | the table |
//! | `proc` | what Linux counts |

mod cluster;
mod load;
mod proc;
mod report;
mod runs;

use std::path::PathBuf;
use std::time::Duration;

use annulus::config::parse_duration;
use anyhow::Result;
use clap::{Args, Parser, ValueEnum};

use self::report::{Report, Scene};
use self::runs::{Runner, Side};

/// Membership side by side with Go's memberlist.
#[derive(Debug, Parser)]
struct Options {
    /// How many nodes; one run of all phases for each.
    #[arg(long, value_delimiter = ',', default_value = "20,50,100")]
    nodes: Vec<usize>,
    /// Profiles of the join storms with the largest number of nodes. All other phases are with `lan`.
    #[arg(long, value_delimiter = ',', default_value = "lan,local,wan,grafana")]
    profiles: Vec<String>,
    /// How often everything is done.
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    /// Leave out the join storms beside a compiler.
    #[arg(long)]
    no_busy: bool,
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
    run: RunOptions,
    /// Be the process with the nodes: what this program starts itself as.
    #[arg(long, hide = true)]
    cluster: Option<usize>,
    /// Cargo says that this is a benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What one run of either side is told.
#[derive(Clone, Debug, Args)]
struct RunOptions {
    /// Timings: lan, local, wan or grafana.
    #[arg(long, default_value = "lan", hide = true)]
    profile: String,
    /// Compression of both sides. memberlist's default is lzw, ours is none.
    #[arg(long, default_value = "lzw")]
    compression: String,
    /// How much is done.
    #[arg(long, default_value = "all", hide = true)]
    phases: Phases,
    /// Pause between the join and the idle phase.
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    settle: Duration,
    /// Length of the idle phase.
    #[arg(long, default_value = "30s", value_parser = parse_duration)]
    idle: Duration,
    /// Longest wait for the end of a phase.
    #[arg(long, default_value = "60s", value_parser = parse_duration)]
    limit: Duration,
}

/// What one run does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Phases {
    /// Join, idle, kill, leave.
    All,
    /// Only the join.
    Storm,
}

fn main() -> Result<()> {
    let options = Options::parse();
    if let Some(nodes) = options.cluster {
        return cluster::main(nodes, &options.run);
    }
    let runner = Runner::new(&options)?;
    let mut report = Report::new(options.json);
    let largest = options.nodes.iter().copied().max().unwrap_or_default();
    for _ in 0..options.rounds {
        for nodes in &options.nodes {
            for side in runner.sides() {
                report.add(Scene::All, runner.run(side, *nodes, &options.run)?);
            }
        }
        let storm = |profile: &String| RunOptions { profile: profile.clone(), phases: Phases::Storm, ..options.run.clone() };
        for profile in options.profiles.iter().filter(|profile| *profile != "lan") {
            for side in runner.sides() {
                report.add(Scene::Storm, runner.run(side, largest, &storm(profile))?);
            }
        }
        if options.no_busy {
            continue;
        }
        for profile in &options.profiles {
            for side in runner.sides() {
                // memberlist takes its minute in each profile; one is enough to see it.
                if side == Side::Memberlist && profile != "lan" {
                    continue;
                }
                let _compiler = load::Compiler::start()?;
                report.add(Scene::Busy, runner.run(side, largest, &storm(profile))?);
            }
        }
    }
    report.print();
    Ok(())
}
