//! What a person sees.

use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde::Serialize;

/// How it all ended. The JSON output is exactly this.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    pub nodes: usize,
    pub phase: String,
    pub lookups: u64,
    pub lookups_failed: u64,
    pub cas: u64,
    pub cas_failed: u64,
    pub owners_changed_by_flip: u64,
    pub instances_lost: u64,
    /// Whether both stores held the same on every node, before each of the swaps.
    pub parity_before_flip: bool,
    /// The part of the ring, 0 to 1, that a swap would have given to others.
    pub ownership_delta: f64,
    pub flip_ms_max: u64,
    /// From the change of the files until the last node read the old store again.
    pub rollback_ms: u64,
    /// The most keys that waited for the other store on one node.
    pub outbox_max: u64,
    pub detect_ms: u64,
    pub actor_restarts: u64,
    pub lost_writes: u64,
}

impl Summary {
    /// Whether everything that must be 0 is 0, and the migration reached its end.
    pub fn all_well(&self) -> bool {
        let zeros =
            [self.lookups_failed, self.cas_failed, self.owners_changed_by_flip, self.instances_lost, self.lost_writes];
        let same = self.parity_before_flip && self.ownership_delta == 0.0;
        zeros.iter().all(|count| *count == 0) && same && self.lookups > 0 && self.cas > 0 && self.phase == "done"
    }
}

/// Good, or not. Coloured on a terminal.
pub const fn mark(good: bool) -> &'static str {
    if good { "✓" } else { "✗" }
}

/// The terminal. In JSON mode it stays silent until the end.
#[derive(Clone)]
pub struct Screen {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    json: bool,
    tty: bool,
    started: Instant,
    status_shown: bool,
}

impl Screen {
    pub fn new(json: bool) -> Self {
        let tty = std::io::stdout().is_terminal();
        Self { inner: Arc::new(Mutex::new(Inner { json, tty, started: Instant::now(), status_shown: false })) }
    }

    /// A new chapter.
    pub fn chapter(&self, title: &str) {
        self.line(|inner| {
            if inner.tty {
                format!("\n\x1b[1;36m── {title} ──\x1b[0m")
            } else {
                format!("\n── {title} ──")
            }
        });
    }

    /// Something that happened.
    pub fn tell(&self, text: &str) {
        self.line(|inner| {
            let line = format!("{:6.1}s  {text}", inner.started.elapsed().as_secs_f64());
            if inner.tty {
                line.replace(mark(true), "\x1b[32m✓\x1b[0m").replace(mark(false), "\x1b[31m✗\x1b[0m")
            } else {
                line
            }
        });
    }

    /// The line at the bottom: renewed in place on a terminal, one line a second elsewhere.
    pub fn status(&self, text: &str) {
        let Ok(mut inner) = self.inner.lock() else { return };
        if inner.json {
            return;
        }
        let line = format!("{:6.1}s  {text}", inner.started.elapsed().as_secs_f64());
        if inner.tty {
            print!("\r\x1b[2K\x1b[2m{line}\x1b[0m");
            let _ = std::io::stdout().flush();
            inner.status_shown = true;
        } else {
            println!("{line}");
        }
    }

    /// The end.
    pub fn summary(&self, summary: &Summary) {
        let json = self.inner.lock().map(|inner| inner.json).unwrap_or(true);
        if json {
            println!("{}", serde_json::to_string(summary).unwrap_or_default());
            return;
        }
        self.chapter("summary");
        let must_be_zero = |count: u64| if count == 0 { "0".to_owned() } else { format!("{count}  ← must be 0") };
        let rows = [
            ("nodes", summary.nodes.to_string()),
            ("lookups", summary.lookups.to_string()),
            ("lookups failed", must_be_zero(summary.lookups_failed)),
            ("compare-and-swaps", summary.cas.to_string()),
            ("compare-and-swaps failed", must_be_zero(summary.cas_failed)),
            ("owners changed by the flip", must_be_zero(summary.owners_changed_by_flip)),
            ("instances lost", must_be_zero(summary.instances_lost)),
            ("acknowledged writes lost", must_be_zero(summary.lost_writes)),
            ("both stores before the flip", if summary.parity_before_flip { "equal" } else { "NOT EQUAL" }.to_owned()),
            ("ring that would have moved", format!("{:.2} %", 100.0 * summary.ownership_delta)),
            ("slowest node to flip", format!("{} ms after the file changed", summary.flip_ms_max)),
            ("half flipped, all back", format!("{} ms after the file changed", summary.rollback_ms)),
            ("largest outbox of a node", format!("{} keys", summary.outbox_max)),
            ("killed node detected by all", format!("after {} ms", summary.detect_ms)),
            ("actors restarted", summary.actor_restarts.to_string()),
        ];
        for (what, value) in rows {
            println!("  {what:<28} {value}");
        }
        println!(
            "\n{}",
            if summary.all_well() { "All well: nothing was lost." } else { "NOT well: see the counts above." }
        );
    }

    fn line(&self, make: impl FnOnce(&Inner) -> String) {
        let Ok(mut inner) = self.inner.lock() else { return };
        if inner.json {
            return;
        }
        if std::mem::take(&mut inner.status_shown) {
            print!("\r\x1b[2K");
        }
        println!("{}", make(&inner));
    }
}
