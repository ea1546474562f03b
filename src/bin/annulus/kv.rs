//! `annulus kv`: the store, through a node.

use std::io::Read;

use anyhow::Context;
use clap::Subcommand;
use reqwest::Method;
use serde_json::Value;

use crate::client::{Target, encode, segment};
use crate::output::{Output, cell, escape, items, pretty, say, shown};

#[derive(Debug, Subcommand)]
pub(crate) enum Kv {
    /// Print the value of a key.
    Get {
        /// The key. Keys below annulus/kv/ hold maps of JSON values.
        key: String,
    },
    /// Write a key. For a map of JSON values: writes the given entries, removes those that are null, keeps the others.
    Put {
        /// The key.
        key: String,
        /// JSON, for example '{"colour": "red"}'; `-` reads it from standard input.
        value: String,
        /// Write only if the key has this version; 0 means that it must not exist.
        #[arg(long, value_name = "N")]
        if_version: Option<u64>,
    },
    /// Delete a key.
    Delete {
        /// The key.
        key: String,
    },
    /// Print the keys that begin with a prefix.
    List {
        /// The prefix. Default: all keys.
        #[arg(default_value = "")]
        prefix: String,
    },
    /// Print a key now and after each change, one line of JSON each.
    Watch {
        /// The key.
        key: String,
    },
}

impl Kv {
    pub(crate) async fn run(self, target: &Target, output: Output) -> anyhow::Result<()> {
        let client = target.client()?;
        match self {
            Self::Get { key } => {
                let answer = client.get(&path(&key)?).await?;
                output.print(&answer, || pretty(&answer["value"]))
            }
            Self::Put { key, value, if_version } => {
                let condition = if_version.map(|version| format!("?version={version}")).unwrap_or_default();
                let value = json_argument(value)?;
                let answer = client.ask(Method::PUT, &format!("{}{condition}", path(&key)?), Some(value)).await?;
                output.print(&answer, || {
                    let done = if answer["written"] == true { "written" } else { "unchanged" };
                    format!("{done}, version {}", cell(&answer["version"]))
                })
            }
            Self::Delete { key } => {
                let answer = client.ask(Method::DELETE, &path(&key)?, None).await?;
                output.print(&answer, || format!("deleted {}", escape(&key)))
            }
            Self::List { prefix } => {
                let answer = client.get(&format!("/api/v1/kv?prefix={}", encode(&prefix))).await?;
                output.print(&answer, || {
                    let lines = items(&answer["keys"]).iter().map(|key| cell(key) + "\n");
                    lines.collect::<String>()
                })
            }
            Self::Watch { key } => {
                let mut changes = client.stream(&format!("{}?watch=true", path(&key)?)).await?;
                loop {
                    let change = changes.next().await?;
                    say(&match output {
                        Output::Json => change.to_string(),
                        Output::Text => shown(&change["value"]),
                    })?;
                }
            }
        }
    }
}

fn path(key: &str) -> anyhow::Result<String> {
    Ok(format!("/api/v1/kv/{}", segment(key)?))
}

fn json_argument(value: String) -> anyhow::Result<String> {
    let text = if value == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("cannot read the value from standard input")?;
        text
    } else {
        value
    };
    let parsed: Value = serde_json::from_str(&text).context("VALUE is not JSON")?;
    Ok(parsed.to_string())
}
