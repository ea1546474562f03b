//! The tables: medians over the rounds of both sides, and ours as a share of theirs.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// The results, under what was done, with which profile and how many nodes.
pub(crate) struct Report {
    json: bool,
    results: BTreeMap<(Scene, String, u64), BTreeMap<String, Vec<Value>>>,
}

/// What was done, and beside what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scene {
    /// All phases.
    All,
    /// Only the join.
    Storm,
    /// Only the join, beside a compiler.
    Busy,
}

/// A row: what it says, and how it is read from a result.
type Row = (&'static str, fn(&Value) -> Option<f64>);

const JOIN: &[Row] = &[
    ("join storm: all known to half of the nodes, ms", |result| half(&result["joined_ms"])),
    ("join storm: all known to all, ms", |result| last(&result["joined_ms"])),
    ("join storm: traffic, MB", |result| result["join_mb"].as_f64()),
    ("join storm: CPU of all nodes, s", |result| result["join_cpu_s"].as_f64()),
];

const REST: &[Row] = &[
    ("killed node: dead for half of the nodes, ms", |result| half(&result["dead_ms"])),
    ("killed node: dead for all, ms", |result| last(&result["dead_ms"])),
    ("leave: seen by half of the nodes, ms", |result| half(&result["left_ms"])),
    ("leave: seen by all, ms", |result| last(&result["left_ms"])),
    ("idle: packets/s a node", |result| result["idle_packets_per_s"].as_f64()),
    ("idle: bytes/s a node", |result| result["idle_bytes_per_s"].as_f64()),
    ("idle: CPU a node, ms/s", |result| result["idle_cpu_ms_per_s"].as_f64()),
    ("resident memory a node, KiB", |result| result["rss_kb"].as_f64()),
    ("of it heap and stacks, KiB", |result| result["anon_kb"].as_f64()),
];

impl Report {
    pub(crate) fn new(json: bool) -> Self {
        Self { json, results: BTreeMap::new() }
    }

    pub(crate) fn add(&mut self, scene: Scene, mut result: Value) {
        if self.json {
            result["scene"] = json!(format!("{scene:?}").to_lowercase());
            println!("{result}");
        }
        let text = |key: &str| result[key].as_str().unwrap_or_default().to_owned();
        let key = (scene, text("profile"), result["nodes"].as_u64().unwrap_or_default());
        self.results.entry(key).or_default().entry(text("program")).or_default().push(result);
    }

    pub(crate) fn print(&self) {
        if self.json {
            return;
        }
        for ((scene, profile, nodes), sides) in &self.results {
            let beside = if *scene == Scene::Busy { ", beside a compiler" } else { "" };
            println!("\n{nodes} nodes, profile `{profile}`{beside}\n");
            println!("| | Annulus | memberlist | ours / theirs |\n|---|---|---|---|");
            let rest = if *scene == Scene::All { REST } else { &[] };
            for (what, read) in JOIN.iter().chain(rest) {
                let side = |name: &str| median(sides.get(name)?.iter().map(read));
                let (ours, theirs) = (side("annulus"), side("memberlist"));
                let ratio = ours.zip(theirs).filter(|(_, theirs)| *theirs > 0.0).map(|(ours, theirs)| ours / theirs);
                println!("| {what} | {} | {} | {} |", figure(ours), figure(theirs), figure(ratio));
            }
        }
    }
}

/// The middle one; `None`, "not within the limit", counts as the largest.
fn median(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let mut values: Vec<f64> = values.map(|value| value.unwrap_or(f64::INFINITY)).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().filter(|value| value.is_finite())
}

/// When half of the nodes had seen it. A zero stands for one that never did.
fn half(times: &Value) -> Option<f64> {
    let times = sorted(times)?;
    times.get(times.len() / 2).copied().filter(|time| time.is_finite())
}

/// When all had seen it.
fn last(times: &Value) -> Option<f64> {
    sorted(times)?.last().copied().filter(|time| time.is_finite())
}

fn sorted(times: &Value) -> Option<Vec<f64>> {
    let read = |time: &Value| time.as_f64().map(|time| if time > 0.0 { time } else { f64::INFINITY });
    let mut times: Vec<f64> = times.as_array()?.iter().map(read).collect::<Option<_>>()?;
    times.sort_by(f64::total_cmp);
    Some(times)
}

/// Three digits are what such figures are worth.
fn figure(value: Option<f64>) -> String {
    match value {
        None => "–".to_owned(),
        Some(value) if value >= 100.0 => format!("{value:.0}"),
        Some(value) if value >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.2}"),
    }
}
