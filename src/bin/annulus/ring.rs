//! `annulus ring`: rings, the owners of a key, live changes.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use annulus::config::format_duration;
use clap::{Args, Subcommand, ValueEnum};
use reqwest::Method;
use serde_json::Value;

use crate::client::{Client, Target, encode, segment};
use crate::output::{Output, Table, cell, escape, items, say};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Ring {
    /// The ring to show. Default: all of them.
    name: Option<String>,

    #[command(subcommand)]
    command: Option<RingCommand>,
}

#[derive(Debug, Subcommand)]
enum RingCommand {
    /// Show who owns a key.
    Lookup {
        /// The ring.
        name: String,
        /// The key; it is hashed as the library's key_hash does.
        key: String,
        /// What the look-up is for.
        #[arg(long, value_enum, default_value_t)]
        op: Op,
    },
    /// Remove an instance that will not come back. One that is alive registers itself again.
    Forget {
        /// The ring.
        name: String,
        /// The instance.
        id: String,
    },
    /// Print each change of a ring as it happens. With `--output json`: the ring, one line for each change.
    Watch {
        /// The ring.
        name: String,
    },
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Op {
    #[default]
    Write,
    Read,
    WriteNoExtend,
    Reporting,
}

impl Ring {
    pub(crate) async fn run(self, target: &Target, output: Output) -> anyhow::Result<()> {
        let client = target.client()?;
        match (self.command, self.name) {
            (None, Some(name)) => {
                let ring = client.get(&path(&name)?).await?;
                output.print(&ring, || instances(&ring))
            }
            (None, None) => {
                let answer = client.get("/api/v1/rings").await?;
                output.print(&answer, || all(&answer))
            }
            (Some(RingCommand::Lookup { name, key, op }), _) => lookup(&client, output, &name, &key, op).await,
            (Some(RingCommand::Forget { name, id }), _) => forget(&client, output, &name, &id).await,
            (Some(RingCommand::Watch { name }), _) => watch(&client, output, &name).await,
        }
    }
}

fn path(name: &str) -> anyhow::Result<String> {
    Ok(format!("/api/v1/rings/{}", segment(name)?))
}

fn all(answer: &Value) -> String {
    let rings = items(&answer["rings"]);
    if rings.is_empty() {
        return "no rings: this node is configured with none".to_owned();
    }
    let texts = rings.iter().map(|ring| format!("ring {}\n\n{}", cell(&ring["name"]), instances(ring)));
    texts.collect::<Vec<_>>().join("\n")
}

fn instances(ring: &Value) -> String {
    let mut table =
        Table::new(&["INSTANCE", "STATE", "HEALTHY", "HEARTBEAT", "TOKENS", "OWNERSHIP", "ZONE", "ADDRESS"]);
    for instance in items(&ring["instances"]) {
        let age = Duration::from_secs(u64::try_from(instance["heartbeat_age_s"].as_i64().unwrap_or(0)).unwrap_or(0));
        table.row(vec![
            cell(&instance["id"]),
            cell(&instance["state"]),
            if instance["healthy"] == true { "yes" } else { "NO" }.to_owned(),
            format!("{} ago", format_duration(age)),
            cell(&instance["tokens"]),
            format!("{:.1} %", instance["ownership"].as_f64().unwrap_or_default() * 100.0),
            cell(&instance["zone"]),
            cell(&instance["address"]),
        ]);
    }
    let count = items(&ring["instances"]).len();
    format!("{}\n{count} instances, digest {}\n", table.to_text(), cell(&ring["digest"]))
}

async fn lookup(client: &Client, output: Output, name: &str, key: &str, op: Op) -> anyhow::Result<()> {
    let op = op.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    let answer = client.get(&format!("{}/lookup?key={}&op={op}", path(name)?, encode(key))).await?;
    output.print(&answer, || {
        let mut table = Table::new(&["OWNER", "STATE", "ZONE", "ADDRESS"]);
        for instance in items(&answer["instances"]) {
            table.row(["id", "state", "zone", "address"].map(|field| cell(&instance[field])).to_vec());
        }
        let (hash, errors) = (&answer["hash"], &answer["max_errors"]);
        format!("{}\nkey {} hashes to {hash}; {errors} of its owners may fail\n", table.to_text(), escape(key))
    })
}

async fn forget(client: &Client, output: Output, name: &str, id: &str) -> anyhow::Result<()> {
    let answer = client.ask(Method::POST, &format!("{}/forget/{}", path(name)?, segment(id)?), None).await?;
    anyhow::ensure!(answer["forgotten"] == true, "there is no instance {} in ring {}", escape(id), escape(name));
    output.print(&answer, || format!("forgot {} in ring {}", escape(id), escape(name)))
}

async fn watch(client: &Client, output: Output, name: &str) -> anyhow::Result<()> {
    // The stream is open before the ring is read: no change falls between the two.
    let mut events = client.stream("/api/v1/events").await?;
    let path = path(name)?;
    let mut ring = client.get(&path).await?;
    output.print(&ring, || instances(&ring))?;
    loop {
        let event = events.next().await?;
        if event["event"] != "ring_changed" || event["ring"].as_str() != Some(name) {
            continue;
        }
        let after = client.get(&path).await?;
        match output {
            Output::Json => say(&after.to_string())?,
            Output::Text => {
                let time = humantime::format_rfc3339_seconds(SystemTime::now());
                for line in changes(&ring, &after) {
                    say(&format!("{time}  {line}"))?;
                }
            }
        }
        ring = after;
    }
}

/// What is different, one line for each instance.
fn changes(before: &Value, after: &Value) -> Vec<String> {
    let by_id = |ring: &Value| -> BTreeMap<String, String> {
        let show = |one: &Value| {
            let health = if one["healthy"] == true { "" } else { ", unhealthy" };
            (cell(&one["id"]), format!("{}, {} tokens{health}", cell(&one["state"]), one["tokens"]))
        };
        items(&ring["instances"]).iter().map(show).collect()
    };
    let (before, after) = (by_id(before), by_id(after));
    let mut lines = Vec::new();
    for (id, now) in &after {
        match before.get(id) {
            None => lines.push(format!("+ {id}: {now}")),
            Some(then) if then != now => lines.push(format!("~ {id}: {now} (was {then})")),
            Some(_) => {}
        }
    }
    lines.extend(before.keys().filter(|id| !after.contains_key(*id)).map(|id| format!("- {id}")));
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn changes_are_told_instance_by_instance() {
        let one = |id: &str, state: &str| json!({ "id": id, "state": state, "tokens": 2, "healthy": true });
        let before = json!({ "instances": [one("a", "ACTIVE"), one("b", "ACTIVE"), one("c", "ACTIVE")] });
        let after = json!({ "instances": [one("a", "ACTIVE"), one("b", "LEAVING"), one("d", "JOINING")] });
        let expected =
            ["~ b: LEAVING, 2 tokens (was ACTIVE, 2 tokens)", "+ d: JOINING, 2 tokens", "- c"].map(str::to_owned);
        assert_eq!(changes(&before, &after), expected);
        assert!(changes(&after, &after).is_empty());
    }
}
