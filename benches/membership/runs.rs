//! Starting the processes of both sides.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{Options, Phases, RunOptions};

/// Whose nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Annulus,
    Memberlist,
}

/// Knows how to start a run.
pub(crate) struct Runner {
    go: Option<PathBuf>,
    namespaces: bool,
}

impl Runner {
    pub(crate) fn new(options: &Options) -> Result<Self> {
        let go = if options.no_go { None } else { go_program(options.go.as_deref())? };
        let namespaces = in_namespace(Path::new("true")).status().is_ok_and(|status| status.success());
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

    /// One run to its end; its result is what the process prints.
    pub(crate) fn run(&self, side: Side, nodes: usize, options: &RunOptions) -> Result<Value> {
        let own = env::current_exe()?;
        let program = match (side, &self.go) {
            (Side::Memberlist, Some(go)) => go.as_path(),
            (Side::Memberlist, None) => bail!("memberlist takes no part"),
            (Side::Annulus, _) => &own,
        };
        let mut command = if self.namespaces { in_namespace(program) } else { Command::new(program) };
        command.arg(if side == Side::Annulus { "--cluster" } else { "--nodes" }).arg(nodes.to_string());
        command.args(["--profile", &options.profile, "--compression", &options.compression]);
        command.args(["--phases", if options.phases == Phases::All { "all" } else { "storm" }]);
        for (option, value) in [("--settle", options.settle), ("--idle", options.idle), ("--limit", options.limit)] {
            command.arg(option).arg(format!("{}s", value.as_secs()));
        }
        eprintln!("{side:?}, {nodes} nodes, {}, {:?}", options.profile, options.phases);
        let done = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
        ensure!(done.status.success(), "{command:?} ended with {}", done.status);
        serde_json::from_slice(&done.stdout).with_context(|| format!("{command:?} printed no result"))
    }
}

/// Runs a program in a network namespace of its own, in which loopback is up.
fn in_namespace(program: &Path) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--net", "--", "sh", "-c", r#"ip link set lo up && exec "$0" "$@""#]).arg(program);
    command.stderr(Stdio::null());
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
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("memberlist-bench");
    let built = Command::new("go")
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/interop/memberlist-bench"))
        .args(["build", "-o"])
        .arg(&program)
        .arg(".")
        .status()?;
    ensure!(built.success(), "interop/memberlist-bench cannot be built");
    Ok(Some(program))
}
