//! `annulus migrate`: the move from one store to the other.

use std::time::Duration;

use annulus::config::format_duration;
use clap::Subcommand;
use serde_json::Value;

use crate::client::Target;
use crate::output::{Output, Table, cell, escape};

#[derive(Debug, Subcommand)]
pub(crate) enum Migrate {
    /// Show the phase, the primary store, and how far the mirror is behind.
    Status,
}

impl Migrate {
    pub(crate) async fn run(self, target: &Target, output: Output) -> anyhow::Result<()> {
        let Self::Status = self;
        let answer = target.client()?.get("/api/v1/migration").await?;
        output.print(&answer, || text(&answer))
    }
}

fn text(answer: &Value) -> String {
    let mut table = Table::new(&["phase", answer["phase"].as_str().unwrap_or("?")]);
    let mut row = |name: &str, value: String| table.row(vec![name.to_owned(), value]);
    row("store", cell(&answer["store"]));
    row("primary", cell(&answer["primary"]));
    if answer["store"] == "multi" {
        row("secondary", cell(&answer["secondary"]));
        row("mirror", if answer["mirror_enabled"] == true { "on" } else { "off" }.to_owned());
        row("mirror lag", millis(&answer["mirror_lag_ms"]));
        row("outbox", format!("{} keys, oldest {}", answer["outbox_len"], millis(&answer["oldest_outbox_age_ms"])));
        row("backfill", backfill(&answer["backfill"]));
        row("flips", cell(&answer["flips_total"]));
        if let Some(flip) = answer["pending_flip"].as_object() {
            let field = |name: &str| flip.get(name).map(cell).unwrap_or_default();
            let since = flip.get("since_ms").map(millis).unwrap_or_default();
            row("pending flip", format!("to {}, for {since}: {}", field("to"), field("reason")));
        }
        if answer["waiting_for_runtime"] == true {
            row("waiting", "for the first runtime configuration".to_owned());
        }
        if let Some(error) = answer["last_error_secondary"].as_str() {
            row("last error", escape(error));
        }
    }
    let runtime = &answer["runtime_config"];
    if runtime.is_object() {
        let state = match runtime["last_error"].as_str() {
            Some(error) => format!("NOT READ: {}", escape(error)),
            None => format!("read, {} changes", runtime["reloads"]),
        };
        row("runtime config", state);
    }
    table.to_text()
}

fn backfill(backfill: &Value) -> String {
    let progress = format!("{} of {} keys", backfill["done"], backfill["keys"]);
    match (backfill["running"] == true, backfill["verified"] == true) {
        (true, _) => format!("running, {progress}"),
        (false, true) => format!("verified, {progress}"),
        (false, false) => "not verified".to_owned(),
    }
}

fn millis(value: &Value) -> String {
    format_duration(Duration::from_millis(value.as_u64().unwrap_or_default()))
}
