//! `annulus members`.

use std::time::Duration;

use annulus::config::format_duration;
use serde_json::Value;

use crate::client::Target;
use crate::output::{Output, Table, cell, items};

pub(crate) async fn run(target: &Target, output: Output) -> anyhow::Result<()> {
    let answer = target.client()?.get("/api/v1/members").await?;
    output.print(&answer, || text(&answer))
}

fn text(answer: &Value) -> String {
    let members = items(&answer["members"]);
    if members.is_empty() {
        return "no members: this node does not gossip".to_owned();
    }
    let mut table = Table::new(&["NAME", "STATE", "ADDRESS", "INCARNATION", "SINCE", "PROTOCOL", "LABEL", "META"]);
    for member in members {
        let since = Duration::from_secs(member["since_ms"].as_u64().unwrap_or_default() / 1000);
        let protocol: Vec<String> = items(&member["protocol"]).iter().map(Value::to_string).collect();
        table.row(vec![
            cell(&member["name"]),
            cell(&member["state"]),
            cell(&member["address"]),
            cell(&member["incarnation"]),
            format_duration(since),
            cell(&Value::String(protocol.join("."))),
            cell(&member["label"]),
            cell(&member["meta"]),
        ]);
    }
    let (score, queued) = (&answer["health_score"], &answer["queued_broadcasts"]);
    format!("{}\nhealth score {score} (0 is healthy), {queued} broadcasts queued\n", table.to_text())
}
