//! Starting the processes of both sides, and telling them what to do.
//!
//! A cluster reads commands from its standard input, one a line: `storm`, `idle SECONDS`, `kill`, `leave`. It answers each
//! with a line of JSON, and ends with its input.

use std::env;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

use crate::{ClusterOptions, Options, Threads};

/// Whose nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Annulus,
    Memberlist,
}

/// Knows how to start a cluster.
pub(crate) struct Runner {
    go: Option<PathBuf>,
    namespaces: bool,
}

impl Runner {
    pub(crate) fn new(options: &Options) -> Result<Self> {
        let go = if options.no_go { None } else { go_program(options.go.as_deref())? };
        let probe = in_namespace(Path::new("true")).stderr(Stdio::null()).status();
        let namespaces = probe.is_ok_and(|status| status.success());
        if !namespaces {
            eprintln!("no network namespaces here (they need root): bytes and packets include all else on loopback");
        }
        Ok(Self { go, namespaces })
    }

    /// Who takes part, in the order of their turns.
    pub(crate) fn sides(&self) -> impl Iterator<Item = Side> + use<> {
        let go = self.go.is_some().then_some(Side::Memberlist);
        [Some(Side::Annulus), go].into_iter().flatten()
    }

    pub(crate) fn start(&self, side: Side, nodes: usize, options: &ClusterOptions) -> Result<Cluster> {
        let own = env::current_exe()?;
        let program = match (side, &self.go) {
            (Side::Memberlist, Some(go)) => go.as_path(),
            (Side::Memberlist, None) => bail!("memberlist takes no part"),
            (Side::Annulus, _) => &own,
        };
        let mut command = if self.namespaces { in_namespace(program) } else { Command::new(program) };
        if side == Side::Annulus {
            command.args(["--threads", if options.threads == Threads::Own { "own" } else { "shared" }]);
        }
        command.arg(if side == Side::Annulus { "--be-cluster" } else { "--nodes" }).arg(nodes.to_string());
        command.args(["--profile", &options.profile, "--compression", &options.compression, "--limit"]);
        command.arg(format!("{}s", options.limit.as_secs()));
        eprintln!("{side:?}, {nodes} nodes, {}", options.profile);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = process.stdin.take().context("no input")?;
        let output = BufReader::new(process.stdout.take().context("no output")?);
        let mut cluster = Cluster { process, input: Some(input), output, nodes, results: Map::new() };
        // It says who it is when all of its nodes run.
        cluster.hear()?;
        Ok(cluster)
    }
}

/// A running cluster, and what it answered so far. Ends when dropped.
pub(crate) struct Cluster {
    process: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    pub(crate) nodes: usize,
    results: Map<String, Value>,
}

impl Cluster {
    pub(crate) fn tell(&mut self, command: &str) -> Result<()> {
        let input = self.input.as_mut().context("the cluster was told to end")?;
        writeln!(input, "{command}").context("the cluster ended")
    }

    pub(crate) fn hear(&mut self) -> Result<()> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        let answer: Map<String, Value> =
            serde_json::from_str(&line).with_context(|| format!("the cluster answered {line:?}"))?;
        self.results.extend(answer);
        Ok(())
    }

    pub(crate) fn ask(&mut self, command: &str) -> Result<()> {
        self.tell(command)?;
        self.hear()
    }

    /// Ends it; everything that it answered.
    pub(crate) fn result(mut self) -> Value {
        Value::Object(std::mem::take(&mut self.results))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // The end of its input ends it.
        self.input = None;
        let _ = self.process.wait();
    }
}

/// Runs a program in a network namespace of its own, in which loopback is up.
fn in_namespace(program: &Path) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--net", "--", "sh", "-c", r#"ip link set lo up && exec "$0" "$@""#]).arg(program);
    command
}

/// memberlist's side: the given program, or one built with `go`, or nothing where there is no `go`.
fn go_program(given: Option<&Path>) -> Result<Option<PathBuf>> {
    if let Some(given) = given {
        return Ok(Some(given.to_owned()));
    }
    if Command::new("go").arg("version").stdout(Stdio::null()).status().is_err() {
        eprintln!("SKIPPED: memberlist, because there is no `go` to build interop/memberlist-bench with");
        return Ok(None);
    }
    let source = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/interop/memberlist-bench"));
    if !source.is_dir() {
        eprintln!(
            "SKIPPED: memberlist, because interop/memberlist-bench is not in the package, only in the repository"
        );
        return Ok(None);
    }
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("memberlist-bench");
    let built = Command::new("go").current_dir(source).args(["build", "-o"]).arg(&program).arg(".").status()?;
    ensure!(built.success(), "interop/memberlist-bench cannot be built");
    Ok(Some(program))
}
