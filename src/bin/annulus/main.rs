//! `annulus`: one node as a process of its own, and commands that ask a running node.
//!
//! | file | what |
//! |---|---|
//! | `agent.rs` | `annulus agent`: runs a node until it is told to end |
//! | `members.rs`, `ring.rs`, `kv.rs`, `migrate.rs`, `label.rs` | ask a running node over HTTP |
//! | `preflight.rs` | asks all nodes whether a flip is safe |
//! | `keys.rs` | makes gossip keys, and changes those of running nodes |
//! | `decode.rs` | explains bytes of the wire, without a node |
//! | `config.rs` | checks and shows configuration files, without a node |
//! | `client.rs` | the HTTP client of those that ask |
//! | `output.rs` | tables and JSON; names from the network are escaped |
//!
//! Exit codes: 0 done, 1 refused or failed (a line on standard error says why), 2 wrong usage.

mod agent;
mod client;
mod config;
mod decode;
mod keys;
mod kv;
mod label;
mod members;
mod migrate;
mod output;
mod preflight;
mod ring;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::client::Target;
use crate::output::Output;

/// An embedded hash ring with gossip and a live move from Consul to gossip: run a node, or ask one.
#[derive(Debug, Parser)]
#[command(name = "annulus", version, arg_required_else_help = true, disable_help_subcommand = true)]
struct Cli {
    #[command(flatten)]
    target: Target,

    /// What is printed: text for people, or one JSON object and nothing else.
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORM")]
    output: Output,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node until SIGTERM or SIGINT, then leave gracefully. A second signal ends it at once.
    Agent(agent::Agent),
    /// Show the members of the gossip cluster.
    Members,
    /// Show rings and their instances; look up the owners of a key.
    Ring(ring::Ring),
    /// Read and write the store, through the node.
    #[command(subcommand)]
    Kv(kv::Kv),
    /// Show the move from one store to the other, and whether its next step is safe.
    #[command(subcommand)]
    Migrate(migrate::Migrate),
    /// Show who sends which label, and whether the next step of a change of label is safe.
    #[command(subcommand)]
    Label(label::LabelCommand),
    /// Make a gossip key and print it in base64.
    Keygen(keys::Keygen),
    /// Show and change the gossip keys of running nodes. Name every node with --node.
    #[command(subcommand)]
    Keys(keys::Keys),
    /// Check and show configuration files, without a node.
    #[command(subcommand)]
    Config(config::Config),
    /// Explain bytes that were seen on the network, layer by layer, and where and why they are refused.
    Decode(decode::Decode),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => code,
        // Whoever read our output has seen enough.
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("annulus: {}", sentence(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error and its causes on one line. A cause that the line tells already is not told twice.
fn sentence(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |line, cause| match line.as_str() {
        "" => cause,
        known if known.contains(&cause) => line,
        known => format!("{known}: {cause}"),
    })
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let Cli { target, output, command } = cli;
    match command {
        Command::Agent(agent) => agent.run(),
        Command::Config(command) => command.run(output),
        Command::Decode(decode) => decode.run(output),
        Command::Members => ask(members::run(&target, output)),
        Command::Ring(ring) => ask(ring.run(&target, output)),
        Command::Kv(command) => ask(command.run(&target, output)),
        Command::Migrate(command) => ask_with_verdict(command.run(&target, output)),
        Command::Label(command) => ask_with_verdict(command.run(&target, output)),
        Command::Keygen(command) => command.run(output),
        Command::Keys(command) => ask(command.run(&target, output)),
    }
}

/// Runs a command that asks a node; one thread is enough for that.
fn ask(command: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<ExitCode> {
    ask_with_verdict(async { command.await.map(|()| ExitCode::SUCCESS) })
}

/// As [`ask`], for a command whose answer may be a no.
fn ask_with_verdict(command: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(command)
}
