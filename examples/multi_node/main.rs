//! Five nodes move their ring from an old store into gossip, live, with a change of mind half way; then one node is
//! killed and one actor panics.
//!
//! ```text
//! cargo run --release --example multi_node
//! cargo run --release --example multi_node -- --fast --output json
//! cargo run --release --example multi_node -- --old-store consul=http://127.0.0.1:8500 --processes
//! cargo run --release --example multi_node -- --old-store etcd=http://127.0.0.1:2379
//! ```
//!
//! All the time, on every node, a workload looks up owners and does compare-and-swaps; a checker remembers every write
//! that was acknowledged and looks for it at the end. The process exits 1 if anything was lost.
//!
//! | file | what |
//! |---|---|
//! | `story.rs` | the walk: the five steps of the migration, the kill, the panic |
//! | `checks.rs` | before each step: do the stores hold the same, and do the nodes say that it is safe |
//! | `swap.rs` | step 3: half of the nodes, back again, and all of them |
//! | `fleet.rs` | the nodes: their files, ports, starts and restarts |
//! | `peer.rs` | one node, in this process or as an `annulus agent` of its own |
//! | `workload.rs` | lookups, compare-and-swaps, the checker, the watch on lost instances |
//! | `screen.rs` | what you see |

#![allow(unreachable_pub, reason = "a program has no outside")]

mod checks;
mod fleet;
mod peer;
mod screen;
mod story;
mod swap;
mod workload;

use std::process::ExitCode;

use clap::{Parser, ValueEnum};

use crate::fleet::{Fleet, OldStore};
use crate::screen::Screen;

/// Five nodes move their ring from an old store into gossip, live.
#[derive(Clone, Debug, Parser)]
struct Options {
    /// How many nodes.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(4..=20))]
    nodes: u8,
    /// Where the ring is kept at the beginning: `memory`, `consul=URL` or `etcd=URL`.
    #[arg(long, default_value = "memory")]
    old_store: OldStore,
    /// Each node is an `annulus agent` process of its own (needs a Consul or an etcd that they can share).
    #[arg(long)]
    processes: bool,
    /// Shorter timings, no pauses for the reader.
    #[arg(long)]
    fast: bool,
    /// What to print; `json` prints one object, on the last line.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "off".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    if options.processes && matches!(options.old_store, OldStore::Memory) {
        eprintln!(
            "--processes needs a store that processes can share: add --old-store consul=http://127.0.0.1:8500, \
             or etcd=http://127.0.0.1:2379"
        );
        return ExitCode::from(2);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let screen = Screen::new(options.output == Output::Json);
    show_panics_briefly();
    let result = runtime.block_on(async {
        let fleet = Fleet::prepare(&options)?;
        story::tell(fleet, screen.clone()).await
    });
    match result {
        Ok(summary) => {
            screen.summary(&summary);
            if summary.all_well() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("the demonstration could not go on: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// One of the acts is a panic: a line is enough for it. Panics elsewhere stay loud.
fn show_panics_briefly() {
    let loud = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let thread = std::thread::current();
        match thread.name() {
            Some(name) if name.starts_with("annulus-") => eprintln!("\n{name}: {panic}"),
            _ => loud(panic),
        }
    }));
}
