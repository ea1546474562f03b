//! The tables: medians over the rounds of both sides, and theirs as a multiple of ours.

use std::collections::BTreeMap;

use serde_json::Value;

/// The results, by size of the ring, phase and program.
#[derive(Default)]
pub(crate) struct Report {
    results: BTreeMap<u64, BTreeMap<(String, String), Vec<Value>>>,
}

/// A row: what it says, in which phase, and which figure.
type Row = (&'static str, &'static str, &'static str);

const ROWS: &[Row] = &[
    ("a lookup while mirroring: p50, ns", "mirror", "lookup_p50_ns"),
    ("p99, ns", "mirror", "lookup_p99_ns"),
    ("p99.9, ns", "mirror", "lookup_p999_ns"),
    ("longest, ns", "mirror", "lookup_max_ns"),
    ("a lookup during the flip: p50, ns", "flip", "lookup_p50_ns"),
    ("p99, ns", "flip", "lookup_p99_ns"),
    ("p99.9, ns", "flip", "lookup_p999_ns"),
    ("longest, ns", "flip", "lookup_max_ns"),
    ("lookups that failed during the flip", "flip", "lookups_failed"),
    ("owners that moved", "flip", "owners_moved"),
    ("last node flipped after the change of the file, ms", "flip", "flip_ms"),
    ("heartbeat, mirror off: p50, ms", "before", "cas_p50_ms"),
    ("p99, ms", "before", "cas_p99_ms"),
    ("heartbeat, mirror on: p50, ms", "mirror", "cas_p50_ms"),
    ("p99, ms", "mirror", "cas_p99_ms"),
    ("heartbeat, after the flip: p50, ms", "after", "cas_p50_ms"),
    ("p99, ms", "after", "cas_p99_ms"),
    ("heartbeats that failed, mirror on", "mirror", "cas_failed"),
    ("heartbeats that failed, after the flip", "after", "cas_failed"),
    ("requests/s to Consul, mirror off", "before", "consul_requests_per_s"),
    ("requests/s to Consul, mirror on", "mirror", "consul_requests_per_s"),
    ("requests/s to Consul, after the flip", "after", "consul_requests_per_s"),
    ("KB/s from and to Consul, mirror off", "before", "consul_kb_per_s"),
    ("KB/s from and to Consul, mirror on", "mirror", "consul_kb_per_s"),
    ("KB/s from and to Consul, after the flip", "after", "consul_kb_per_s"),
];

impl Report {
    pub(crate) fn add(&mut self, result: Value) {
        let text = |key: &str| result[key].as_str().unwrap_or_default().to_owned();
        let size = result["instances"].as_u64().unwrap_or_default();
        let key = (text("program"), text("phase"));
        self.results.entry(size).or_default().entry(key).or_default().push(result);
    }

    pub(crate) fn print(&self) {
        for (size, results) in &self.results {
            println!("\n{size} instances\n\n| | Annulus | dskit | dskit : Annulus |\n|---|---|---|---|");
            for (what, phase, figure) in ROWS {
                let side = |program: &str| {
                    let found = results.get(&(program.to_owned(), (*phase).to_owned()))?;
                    median(found.iter().filter_map(|result| result[figure].as_f64()))
                };
                let (ours, theirs) = (side("annulus"), side("dskit"));
                let ratio = ours.zip(theirs).filter(|(ours, _)| *ours > 0.0).map(|(ours, theirs)| theirs / ours);
                println!("| {what} | {} | {} | {} |", text(ours), text(theirs), text(ratio));
            }
        }
    }
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// Three digits are what such figures are worth.
fn text(value: Option<f64>) -> String {
    match value {
        None => "–".to_owned(),
        Some(0.0) => "0".to_owned(),
        Some(value) if value >= 100.0 => format!("{value:.0}"),
        Some(value) if value >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.2}"),
    }
}
