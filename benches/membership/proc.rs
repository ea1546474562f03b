//! What Linux counts for this process.

use std::fs;

use anyhow::{Context, Result};

/// Processor time of this process so far, all threads together, in seconds.
///
/// From `/proc/self/schedstat` of every thread, which counts nanoseconds; the ticks of `stat` are too coarse for a few
/// idle nodes. Threads that ended are not in it: call it while the same threads run.
pub(crate) fn cpu_seconds() -> Result<f64> {
    let mut nanos = 0;
    for thread in fs::read_dir("/proc/self/task")? {
        // A thread may end between listing and reading.
        let Ok(text) = fs::read_to_string(thread?.path().join("schedstat")) else { continue };
        nanos += text.split_whitespace().next().context("an empty schedstat")?.parse::<u64>()?;
    }
    Ok(nanos as f64 / 1e9)
}

/// Memory of this process that is resident, in KiB.
#[derive(Clone, Copy)]
pub(crate) struct Memory {
    /// All of it: with the parts of the program's file that were used.
    pub(crate) resident: f64,
    /// What it made for itself: heap and stacks.
    pub(crate) anonymous: f64,
}

impl Memory {
    pub(crate) fn now() -> Result<Self> {
        let status = fs::read_to_string("/proc/self/status")?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let line = line.with_context(|| format!("no {name} in /proc/self/status"))?;
            anyhow::Ok(line.trim().trim_end_matches("kB").trim().parse()?)
        };
        Ok(Self { resident: field("VmRSS")?, anonymous: field("RssAnon")? })
    }
}

/// What the loopback interface of this network namespace carried so far: bytes and packets.
pub(crate) fn loopback() -> Result<(f64, f64)> {
    let devices = fs::read_to_string("/proc/net/dev")?;
    let line = devices.lines().find_map(|line| line.trim().strip_prefix("lo:")).context("no loopback interface")?;
    let mut counts = line.split_whitespace();
    let mut next = || anyhow::Ok(counts.next().context("a short line in /proc/net/dev")?.parse::<f64>()?);
    Ok((next()?, next()?))
}
