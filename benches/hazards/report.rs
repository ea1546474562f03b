//! The table: what happened over all runs, both sides beside each other.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::Hazard;

#[derive(Debug, Default)]
pub(crate) struct Report {
    results: BTreeMap<Hazard, BTreeMap<String, Vec<Value>>>,
}

/// A row: what it says, and how it is read from all runs of a side.
type Row = (&'static str, fn(&[Value]) -> String);

const LATE: &[Row] = &[
    ("runs", |runs| runs.len().to_string()),
    ("late answers a run", |runs| range(runs, "late_answers")),
    ("runs with a living instance LEFT in gossip", |runs| count(runs, |run| run["false_left"] != 0)),
    ("living instances marked LEFT, a run", |runs| {
        spread(runs.iter().map(|run| run["hit"].as_array().map_or(0, Vec::len) as u64))
    }),
    ("false LEFT entries, all runs", |runs| sum(runs, "false_left")),
    ("mirror errors counted, all runs", |runs| sum(runs, "mirror_errors")),
];

const CUT: &[Row] = &[
    ("runs", |runs| runs.len().to_string()),
    ("runs with an entry in Consul older than 10 s", |runs| count(runs, |run| run["most_stale"] != 0)),
    ("entries of ten that were stale at one time", |runs| range(runs, "most_stale")),
    ("largest age of an entry in Consul, s", |runs| range(runs, "oldest_s")),
    ("share of looks that found one", |runs| {
        let all = |key: &str| runs.iter().filter_map(|run| run[key].as_f64()).sum::<f64>();
        format!("{:.0} %", 100.0 * all("stale_looks") / all("looks").max(1.0))
    }),
    ("mirror errors counted, all runs", |runs| sum(runs, "mirror_errors")),
];

impl Report {
    pub(crate) fn add(&mut self, hazard: Hazard, result: &Value) {
        let side = result["side"].as_str().unwrap_or_default().to_owned();
        self.results.entry(hazard).or_default().entry(side).or_default().push(result.clone());
    }

    pub(crate) fn print(&self) {
        for (hazard, sides) in &self.results {
            let names: Vec<&str> = sides.keys().map(String::as_str).collect();
            println!("\n{hazard:?}\n\n| | {} |\n|---|{}", names.join(" | "), "---|".repeat(names.len()));
            for (what, read) in if *hazard == Hazard::Late { LATE } else { CUT } {
                let cells: Vec<String> = sides.values().map(|runs| read(runs)).collect();
                println!("| {what} | {} |", cells.join(" | "));
            }
        }
    }
}

fn count(runs: &[Value], wanted: impl Fn(&Value) -> bool) -> String {
    format!("{} of {}", runs.iter().filter(|run| wanted(run)).count(), runs.len())
}

fn sum(runs: &[Value], key: &str) -> String {
    format!("{:.0}", runs.iter().filter_map(|run| run[key].as_f64()).sum::<f64>())
}

fn range(runs: &[Value], key: &str) -> String {
    spread(runs.iter().filter_map(|run| run[key].as_u64()))
}

/// The lowest and the highest.
fn spread(values: impl Iterator<Item = u64> + Clone) -> String {
    match (values.clone().min(), values.max()) {
        (Some(low), Some(high)) if low == high => low.to_string(),
        (Some(low), Some(high)) => format!("{low}–{high}"),
        _ => "–".to_owned(),
    }
}
