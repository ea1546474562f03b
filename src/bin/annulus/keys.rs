//! `annulus keygen` and `annulus keys`: gossip keys, and their change on running nodes.
//!
//! A cluster changes its key in three rounds: `install` on every node, `use` on every node, `remove` on every node. A
//! round that begins before the one before is over cuts nodes off, so each of these commands looks at all nodes before
//! it changes one, and refuses when a member of the cluster was not named.

use std::collections::BTreeSet;
use std::io::Read;
use std::process::ExitCode;

use annulus::wire::Key;
use anyhow::{Context, bail};
use base64::Engine;
use clap::{Args, Subcommand};
use rand::TryRng;
use reqwest::Method;
use serde_json::{Value, json};

use crate::client::{Client, Scope, Target, segment};
use crate::output::{Output, Table, cell, escape, items};

/// Make a gossip key.
#[derive(Debug, Args)]
pub(crate) struct Keygen {
    /// Its length.
    #[arg(long, default_value = "256", value_parser = ["128", "192", "256"], value_name = "BITS")]
    bits: String,
}

impl Keygen {
    pub(crate) fn run(&self, output: Output) -> anyhow::Result<ExitCode> {
        let mut key = vec![0; self.bits.parse::<usize>()? / 8];
        rand::rngs::SysRng.try_fill_bytes(&mut key).context("the operating system gives no random bytes")?;
        let text = base64::engine::general_purpose::STANDARD.encode(&key);
        let answer = json!({ "key": text, "id": Key::new(&key)?.id(), "bits": key.len() * 8 });
        output.print(&answer, || text)?;
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Keys {
    /// Show the keys of each node by their ids; the keys themselves are never shown.
    List,
    /// Install a key behind the others. It is read from standard input, or from a file: not from the command line,
    /// where others see it.
    Install {
        /// A file that holds the key in base64.
        #[arg(long, value_name = "FILE")]
        key_file: Option<std::path::PathBuf>,
        #[command(flatten)]
        scope: Scope,
    },
    /// Encrypt with an installed key. Refused while a node does not have it.
    Use {
        /// The id of the key.
        id: String,
        #[command(flatten)]
        scope: Scope,
    },
    /// Remove a key. Refused while a node encrypts with it.
    Remove {
        /// The id of the key.
        id: String,
        #[command(flatten)]
        scope: Scope,
    },
}

/// A node and what it said about its keys.
struct Node {
    client: Client,
    answer: Value,
}

impl Node {
    fn name(&self) -> &str {
        self.answer["node"].as_str().unwrap_or_default()
    }

    fn key(&self, id: &str) -> Option<&Value> {
        items(&self.answer["keys"]).iter().find(|key| key["id"] == id)
    }
}

impl Keys {
    pub(crate) async fn run(self, target: &Target, output: Output) -> anyhow::Result<()> {
        let mut nodes = Vec::new();
        for client in target.clients()? {
            let answer = client.get("/api/v1/keys").await?;
            nodes.push(Node { client, answer });
        }
        match &self {
            Self::List => {}
            Self::Install { key_file, scope } => {
                all_named(&nodes, scope)?;
                let text = match key_file {
                    Some(file) => std::fs::read_to_string(file)
                        .with_context(|| format!("cannot read the key file {}", file.display()))?,
                    None => {
                        let mut text = String::new();
                        std::io::stdin().lock().take(1024).read_to_string(&mut text).context("standard input")?;
                        text
                    }
                };
                Key::from_base64(&text).context("this is no key")?;
                let body = json!({ "key": text.trim() }).to_string();
                change(&mut nodes, Method::POST, "/api/v1/keys", Some(&body)).await?;
            }
            Self::Use { id, scope } => {
                all_named(&nodes, scope)?;
                refuse_where(&nodes, |node| node.key(id).is_none(), "does not have this key; install it there first")?;
                change(&mut nodes, Method::POST, &format!("/api/v1/keys/{}/use", segment(id)?), None).await?;
            }
            Self::Remove { id, scope } => {
                all_named(&nodes, scope)?;
                let primary = |node: &Node| node.key(id).is_some_and(|key| key["primary"] == true);
                refuse_where(&nodes, primary, "encrypts with this key; use another there first")?;
                // A node that is without it already is as we want it.
                let mut with_key: Vec<Node> = Vec::new();
                for node in nodes.extract_if(.., |node| node.key(id).is_some()) {
                    with_key.push(node);
                }
                if with_key.is_empty() {
                    bail!("no node has the key {}", escape(id));
                }
                change(&mut with_key, Method::DELETE, &format!("/api/v1/keys/{}", segment(id)?), None).await?;
                nodes.extend(with_key);
            }
        }
        nodes.sort_by(|a, b| a.name().cmp(b.name()));
        let answer = json!({ "nodes": nodes.iter().map(shown).collect::<Vec<_>>() });
        output.print(&answer, || text(&nodes))
    }
}

/// What is printed of a node. Who its members are is another command's business.
fn shown(node: &Node) -> Value {
    json!({ "node": node.name(), "url": node.client.url(), "keys": node.answer["keys"] })
}

/// Refuses to change some nodes of a cluster and leave out others by mistake.
fn all_named(nodes: &[Node], scope: &Scope) -> anyhow::Result<()> {
    let named: BTreeSet<&str> = nodes.iter().map(Node::name).collect();
    let members = nodes.iter().flat_map(|node| items(&node.answer["members"])).filter_map(Value::as_str);
    let missing: BTreeSet<String> = members.filter(|name| !named.contains(name)).map(escape).collect();
    if !missing.is_empty() && !scope.partial {
        let missing: Vec<String> = missing.into_iter().collect();
        bail!(
            "nothing was changed: {} also in the cluster; name every node with --node, or give --partial when they are \
             changed in another way",
            match missing.as_slice() {
                [one] => format!("{one} is"),
                many => format!("{} are", many.join(", ")),
            }
        );
    }
    Ok(())
}

fn refuse_where(nodes: &[Node], refuse: impl Fn(&Node) -> bool, reason: &str) -> anyhow::Result<()> {
    match nodes.iter().find(|node| refuse(node)) {
        Some(node) => bail!("nothing was changed: {} {reason}", escape(node.name())),
        None => Ok(()),
    }
}

/// Changes node after node, and stops at the first that refuses: the command can be given again.
async fn change(nodes: &mut [Node], method: Method, path: &str, body: Option<&str>) -> anyhow::Result<()> {
    let all = nodes.len();
    for (done, node) in nodes.iter_mut().enumerate() {
        let answer = node.client.ask(method.clone(), path, body.map(str::to_owned)).await;
        node.answer = answer.with_context(|| {
            format!("{} was not changed ({done} of {all} were); give the command again", escape(node.name()))
        })?;
    }
    Ok(())
}

fn text(nodes: &[Node]) -> String {
    let mut table = Table::new(&["NODE", "KEY", "BITS", "ENCRYPTS", "IN ITS CONFIGURATION"]);
    for node in nodes {
        let keys = items(&node.answer["keys"]);
        let name = escape(node.name());
        if keys.is_empty() {
            table.row(vec![name.clone(), "none: not encrypted".to_owned()]);
        }
        for key in keys {
            let yes = |field: &str| if key[field] == true { "yes" } else { "no" }.to_owned();
            table.row(vec![name.clone(), cell(&key["id"]), cell(&key["bits"]), yes("primary"), yes("configured")]);
        }
    }
    table.to_text()
}
