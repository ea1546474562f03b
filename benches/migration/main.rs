//! A flip under load, and what mirroring costs, beside dskit doing the same: N nodes in one process, a real Consul.
//!
//! ```sh
//! cargo bench --bench migration                                   # everything: some six minutes
//! cargo bench --bench migration -- --sizes 100 --seconds 5        # a look: a minute
//! ```
//!
//! Each side is a process with N nodes, each with a multi store over Consul and gossip, with its own defaults. The ring
//! has `--sizes`; those that are not nodes only take up their place. The nodes write heartbeats so often that Consul
//! gets as many as from that many instances with one every `--beat`, and the time of each is taken. One thread
//! looks up keys all the time, on one node after the other. Consul stands behind a proxy that counts requests.
//!
//! 1. `before`: Consul is read and written, the mirror is off;
//! 2. `mirror`: both are written, Consul is read;
//! 3. `flip`: from the change of the runtime file until a second after the last node reads gossip;
//! 4. `after`: both are written, gossip is read.
//!
//! | file | subject |
//! |---|---|
//! | `fleet` | the process with N Annulus nodes; `interop/dskit-mirror` is the other side |
//! | `proxy` | counts what Consul is asked |
//! | `report` | the tables |

mod fleet;
mod proxy;
mod report;
#[path = "../../tests/support/mod.rs"]
mod support;

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use annulus::config::parse_duration;
use anyhow::{Context, Result};
use clap::{Args, Parser};
use serde_json::{Value, json};

use self::report::Report;
use self::support::consul::Consul;
use self::support::go;

/// How often a node looks at its runtime file. 10 s is the default of both; a bench need not wait that long.
const RELOAD: Duration = Duration::from_secs(1);

/// A flip under load, and what mirroring costs.
#[derive(Debug, Parser)]
struct Options {
    /// Sizes of the ring.
    #[arg(long, value_delimiter = ',', default_value = "100,300")]
    sizes: Vec<usize>,
    /// Length of each measurement but the flip, in seconds.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Time between the heartbeats of an instance.
    #[arg(long, default_value = "15s", value_parser = parse_duration)]
    beat: Duration,
    /// How often everything is done.
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    /// Leave out dskit.
    #[arg(long)]
    no_go: bool,
    /// Lines of JSON only, no tables.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    fleet: FleetOptions,
    /// Be the process with the nodes: what this program starts itself as.
    #[arg(long, hide = true)]
    be_fleet: bool,
    /// Cargo says that this is a benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What a fleet is told when it starts.
#[derive(Clone, Debug, Args)]
struct FleetOptions {
    /// How many nodes.
    #[arg(long, default_value_t = 20)]
    nodes: usize,
    #[arg(long, default_value = "", hide = true)]
    consul: String,
    #[arg(long, default_value = "runtime.yaml", hide = true)]
    runtime: PathBuf,
    #[arg(long, default_value_t = 0, hide = true)]
    instances: usize,
    #[arg(long, default_value = "1s", value_parser = parse_duration, hide = true)]
    heartbeat: Duration,
}

fn main() -> Result<()> {
    let options = Options::parse();
    if options.be_fleet {
        return fleet::main(&options.fleet);
    }
    let runtime = tokio::runtime::Runtime::new()?;
    let dskit = if options.no_go { None } else { go::build("dskit-mirror", "dskit-mirror", &[]) };
    let own = std::env::current_exe()?;
    let mut report = Report::default();
    for _ in 0..options.rounds {
        for size in &options.sizes {
            for program in [Some(&own), dskit.as_ref()].into_iter().flatten() {
                let Some(consul) = Consul::start() else { return Ok(()) };
                let (address, counts) = runtime.block_on(proxy::start(consul.addr()))?;
                let mut side = Side::start(program, *program == own, &address.to_string(), *size, &options)?;
                side.run(&counts, &options, &mut report)?;
            }
        }
    }
    if !options.json {
        report.print();
    }
    Ok(())
}

/// A running fleet. Ends when dropped.
struct Side {
    process: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    name: String,
    size: usize,
    _files: tempfile::TempDir,
}

impl Side {
    fn start(program: &Path, ours: bool, consul: &str, size: usize, options: &Options) -> Result<Self> {
        let files = tempfile::tempdir()?;
        let file = files.path().join("runtime.yaml");
        fleet::write_whole(&file, if ours { "multi_kv_config: {}\n" } else { "" })?;
        let nodes = options.fleet.nodes;
        // The nodes write for the instances that are none.
        let heartbeat = options.beat.mul_f64(nodes as f64 / size as f64);
        let mut command = Command::new(program);
        if ours {
            command.arg("--be-fleet");
        }
        command.args(["--consul", consul, "--runtime"]).arg(&file);
        command.args(["--nodes", &nodes.to_string(), "--instances", &size.to_string()]);
        command.args(["--heartbeat", &format!("{}ms", heartbeat.as_millis())]);
        if !ours {
            command.args(["--reload", &format!("{}ms", RELOAD.as_millis())]);
        }
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = process.stdin.take();
        let output = BufReader::new(process.stdout.take().context("no output")?);
        let mut side = Self { process, input, output, name: String::new(), size, _files: files };
        // It says who it is when all of its nodes run and see the ring.
        side.name = side.hear()?["program"].as_str().unwrap_or_default().to_owned();
        Ok(side)
    }

    fn run(&mut self, counts: &Arc<proxy::Counts>, options: &Options, report: &mut Report) -> Result<()> {
        let settle = Duration::from_secs(3);
        let measure = format!("measure {}", options.seconds);
        std::thread::sleep(settle);
        self.measure("before", &measure, counts, report)?;
        self.ask("mirror")?;
        std::thread::sleep(settle);
        self.measure("mirror", &measure, counts, report)?;
        self.measure("flip", "flip", counts, report)?;
        self.measure("after", &measure, counts, report)
    }

    /// Has something measured, together with what Consul is asked meanwhile.
    fn measure(&mut self, phase: &str, command: &str, counts: &Arc<proxy::Counts>, report: &mut Report) -> Result<()> {
        let asked = counts.since_now();
        let mut line = json!({ "program": self.name, "instances": self.size, "phase": phase });
        for part in [self.ask(command)?, asked()] {
            let part = part.as_object().cloned().context("the fleet answered something else")?;
            line.as_object_mut().context("an object")?.extend(part);
        }
        println!("{line}");
        report.add(line);
        Ok(())
    }

    fn ask(&mut self, command: &str) -> Result<Value> {
        writeln!(self.input.as_mut().context("the fleet was told to end")?, "{command}").context("the fleet ended")?;
        self.hear()
    }

    fn hear(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("the fleet answered {line:?}"))
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // The end of its input ends it.
        self.input = None;
        let _ = self.process.wait();
    }
}
