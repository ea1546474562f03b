//! `annulus label`: who sends which label, and what comes next in a change of label.

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Map, Value};

use crate::client::{Target, encode};
use crate::output::{Output, Table, cell, escape, items};

#[derive(Debug, Subcommand)]
pub(crate) enum LabelCommand {
    /// Show the label of this node, how many members send which, and what was refused for its label.
    Status,
    /// Say what comes next on the way to a label, whether it is safe, and who is in the way. Exits with 1 when it is not
    /// safe. Asks every member whether it accepts the label.
    Plan {
        /// The label that the cluster is to have; empty for none. Default: the one that this node sends.
        #[arg(long, value_name = "LABEL")]
        to: Option<String>,
    },
}

impl LabelCommand {
    pub(crate) async fn run(self, target: &Target, output: Output) -> anyhow::Result<ExitCode> {
        let client = target.client()?;
        match self {
            Self::Status => {
                let answer = client.get("/api/v1/label").await?;
                output.print(&answer, || status(&answer))?;
                Ok(ExitCode::SUCCESS)
            }
            Self::Plan { to } => {
                let query = to.map(|to| format!("?to={}", encode(&to))).unwrap_or_default();
                let answer = client.get(&format!("/api/v1/label/plan{query}")).await?;
                output.print(&answer, || plan(&answer))?;
                Ok(if answer["safe"] == true { ExitCode::SUCCESS } else { ExitCode::FAILURE })
            }
        }
    }
}

fn status(answer: &Value) -> String {
    let mut table = Table::new(&["label", &cell(&answer["label"])]);
    let mut row = |name: &str, value: String| table.row(vec![name.to_owned(), value]);
    row("verification", if answer["verification"] == true { "on" } else { "OFF: any label is accepted" }.to_owned());
    let accepted: Vec<String> = items(&answer["accepted"]).iter().map(cell).collect();
    if !accepted.is_empty() {
        row("also accepted", accepted.join(", "));
    }
    for (label, count) in fields(&answer["sent"]) {
        row("sent", format!("{} by {count} members", named(label)));
    }
    for (name, label) in fields(&answer["members"]) {
        match label {
            Value::Null => row("not heard yet", escape(name)),
            label if *label != answer["label"] => row("other label", format!("{} sends {}", escape(name), cell(label))),
            _ => {}
        }
    }
    for (label, count) in fields(&answer["refused"]) {
        row("refused", format!("{count} packets and streams with {}", named(label)));
    }
    if let Some(count) = answer["refused_others"].as_u64().filter(|count| *count > 0) {
        row("refused", format!("{count} with further labels"));
    }
    table.to_text()
}

fn plan(answer: &Value) -> String {
    let verdict = match (answer["step"].as_str(), answer["safe"] == true) {
        (Some("done"), _) => "done",
        (_, true) => "safe",
        (_, false) => "NOT SAFE YET",
    };
    let mut table = Table::new(&["to", &cell(&answer["to"])]);
    table.row(vec!["next".to_owned(), cell(&answer["change"])]);
    table.row(vec!["verdict".to_owned(), verdict.to_owned()]);
    for (name, reason) in fields(&answer["in_the_way"]) {
        table.row(vec!["in the way".to_owned(), format!("{}: {}", escape(name), cell(reason))]);
    }
    table.to_text()
}

fn named(label: &str) -> String {
    if label.is_empty() { "no label".to_owned() } else { format!("label {}", escape(label)) }
}

fn fields(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter)
}
