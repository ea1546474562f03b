//! The two hazards of a live migration, measured side by side with dskit: late answers of the old store, and a node that
//! gossip does not reach.
//!
//! ```sh
//! cargo bench --bench hazards                                      # everything: some 40 minutes, mostly idle
//! cargo bench --bench hazards -- --runs 1 --hazard late            # a look: two minutes
//! ```
//!
//! In dskit's multi store, a write to the primary is copied to the secondary whole, in place of what is there. Two things
//! follow. **late**: who copies a ring of two seconds ago over gossip marks those as LEFT that joined since. **cut**: who
//! does not hear gossip writes the ring of long ago into Consul, over everybody's heartbeats. Annulus joins what an operation
//! changed, so neither can happen; here both are given the opportunity.
//!
//! Both sides are real: N whole members each (`interop/dskit-fleet`, built with `go`; N [`annulus::Node`]s in a process
//! of their own), with the same heartbeats, on a real Consul behind the same proxy, with the same seeds for which
//! answers are late and when nodes join. Sides and runs take turns. One line of JSON a run, then a table.
//!
//! | file | subject |
//! |---|---|
//! | `fleet` | the process with N Annulus nodes and the observers |
//! | `process` | starting the process of a side, and telling it what to do |
//! | `scenes` | what happens in a run |
//! | `consul` | looking at the ring in Consul from outside; `tests/hazards.rs` does, too |
//! | `report` | the table |

#[path = "../../tests/support/ring_in_consul.rs"]
mod consul;
mod fleet;
mod process;
mod report;
mod scenes;
#[path = "../../tests/support/mod.rs"]
mod support;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, Parser, ValueEnum};

use self::process::Side;
use self::report::Report;

/// The two hazards of a live migration, side by side with dskit.
#[derive(Debug, Parser)]
struct Options {
    /// Runs of each hazard and side.
    #[arg(long, default_value_t = 10)]
    runs: u64,
    /// The seed of the first run; each run has the next one.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// late: Consul's answers are late while nodes join. cut: gossip does not reach a node after the flip.
    #[arg(long)]
    hazard: Option<Hazard>,
    /// Who takes part.
    #[arg(long, default_value = "both")]
    side: Sides,
    /// A built `interop/dskit-fleet`, instead of building it.
    #[arg(long)]
    go: Option<PathBuf>,
    /// Be the process with the nodes: what this program starts itself as.
    #[arg(long, hide = true)]
    be_fleet: bool,
    #[command(flatten)]
    fleet: FleetOptions,
    /// Cargo says that this is a benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What a fleet is told when it starts. `interop/dskit-fleet` has the same options.
#[derive(Clone, Debug, Args)]
struct FleetOptions {
    /// Nodes at the start.
    #[arg(long, default_value_t = 12, hide = true)]
    nodes: usize,
    /// Members of the gossip cluster that only watch.
    #[arg(long, default_value_t = 3, hide = true)]
    observers: usize,
    /// The last node never reaches the gossip cluster.
    #[arg(long, hide = true)]
    isolated: bool,
    /// host:port of Consul.
    #[arg(long, default_value = "127.0.0.1:8500", hide = true)]
    consul: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Hazard {
    Late,
    Cut,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Sides {
    Annulus,
    Dskit,
    Both,
}

fn main() -> Result<()> {
    let options = Options::parse();
    if options.be_fleet {
        return fleet::main(&options.fleet);
    }
    let mut sides = Vec::new();
    if options.side != Sides::Dskit {
        sides.push(Side::annulus()?);
    }
    if options.side != Sides::Annulus {
        match Side::dskit(options.go.clone()) {
            Some(side) => sides.push(side),
            None => eprintln!("SKIPPED: dskit, because there is no `go` to build interop/dskit-fleet with"),
        }
    }
    if sides.is_empty() {
        bail!("nobody takes part");
    }
    let hazards = options.hazard.map_or(vec![Hazard::Late, Hazard::Cut], |one| vec![one]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut report = Report::default();
    for seed in options.seed..options.seed + options.runs {
        for hazard in &hazards {
            for side in &sides {
                let result = runtime.block_on(scenes::run(*hazard, side, seed))?;
                println!("{result}");
                report.add(*hazard, &result);
            }
        }
    }
    report.print();
    Ok(())
}
