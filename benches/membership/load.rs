//! A compiler at work beside the nodes: what a busy developer's machine or CI runner is.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

/// Long enough for the build to have reached the compiler on every core.
const WARM_UP: Duration = Duration::from_secs(5);

/// `cargo build` of this crate with all its dependencies into an empty folder, with one job a core. It takes minutes, and is
/// ended when this is dropped.
pub(crate) struct Compiler {
    cargo: Child,
    _target: TempDir,
}

impl Compiler {
    pub(crate) fn start() -> Result<Self> {
        let target = tempfile::tempdir()?;
        let cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args(["build", "--offline", "--quiet", "--manifest-path"])
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
            .arg("--target-dir")
            .arg(target.path())
            .process_group(0)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cargo cannot be started")?;
        std::thread::sleep(WARM_UP);
        Ok(Self { cargo, _target: target })
    }
}

impl Drop for Compiler {
    fn drop(&mut self) {
        // With all compilers that it started.
        let _ = Command::new("kill").args(["-TERM", "--", &format!("-{}", self.cargo.id())]).status();
        let _ = self.cargo.wait();
    }
}
