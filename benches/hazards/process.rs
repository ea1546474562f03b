//! Starting the process of a side, and telling it what to do.
//!
//! A fleet reads commands from its standard input, one a line, and answers each with a line of JSON: `mirror` and `flip`
//! when that is done everywhere, `join` at once, `count` with what the observers saw, `leave` when they saw the last node
//! leave the ring. It ends with its input.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::FleetOptions;
use crate::support::go;

/// Longer than anything takes that does come.
const PATIENCE: Duration = Duration::from_secs(90);

/// Whose nodes.
#[derive(Clone, Debug)]
pub(crate) struct Side {
    pub(crate) name: &'static str,
    program: PathBuf,
    arguments: &'static [&'static str],
}

impl Side {
    pub(crate) fn annulus() -> Result<Self> {
        Ok(Self { name: "annulus", program: std::env::current_exe()?, arguments: &["--be-fleet"] })
    }

    /// `None` where there is no Go.
    pub(crate) fn dskit(built: Option<PathBuf>) -> Option<Self> {
        let program = built.or_else(|| go::build("dskit-fleet", "dskit-fleet", &[]))?;
        Some(Self { name: "dskit", program, arguments: &[] })
    }
}

/// A running fleet. Ends when dropped.
pub(crate) struct Fleet {
    _process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Fleet {
    /// Starts a fleet, and waits until Consul has all its nodes.
    pub(crate) async fn start(side: &Side, options: &FleetOptions) -> Result<Self> {
        let mut command = Command::new(&side.program);
        command.args(side.arguments).args(["--consul", &options.consul]);
        command.args(["--nodes", &options.nodes.to_string(), "--observers", &options.observers.to_string()]);
        if options.isolated {
            command.arg("--isolated");
        }
        let mut process =
            command.kill_on_drop(true).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("no fleet")?;
        let input = process.stdin.take().context("no input")?;
        let output = BufReader::new(process.stdout.take().context("no output")?);
        let mut fleet = Self { _process: process, input, output };
        fleet.hear().await?;
        Ok(fleet)
    }

    pub(crate) async fn ask(&mut self, command: &str) -> Result<Value> {
        self.input.write_all(format!("{command}\n").as_bytes()).await.context("the fleet ended")?;
        self.hear().await.with_context(|| command.to_owned())
    }

    async fn hear(&mut self) -> Result<Value> {
        let mut line = String::new();
        tokio::time::timeout(PATIENCE, self.output.read_line(&mut line)).await.context("no answer")??;
        serde_json::from_str(&line).with_context(|| format!("the fleet answered {line:?}"))
    }
}
