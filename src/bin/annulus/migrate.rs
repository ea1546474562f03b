//! `annulus migrate`: the move from one store to the other.

use std::process::ExitCode;
use std::time::Duration;

use annulus::config::format_duration;
use clap::Subcommand;
use serde_json::Value;

use crate::client::{Scope, Target};
use crate::output::{Output, Table, cell, escape, items};
use crate::preflight;

#[derive(Debug, Subcommand)]
pub(crate) enum Migrate {
    /// Show the phase, the primary store, how far the mirror is behind, and whether the way back is open.
    Status,
    /// Read both stores now and compare them. Exits with 1 when they differ.
    Parity,
    /// Say whether a flip to the other store is safe, and what stands in the way. Name every node of the fleet with
    /// --node. Exits with 1 when it is not safe.
    Preflight {
        #[command(flatten)]
        scope: Scope,
    },
}

impl Migrate {
    pub(crate) async fn run(self, target: &Target, output: Output) -> anyhow::Result<ExitCode> {
        match self {
            Self::Status => {
                let answer = target.client()?.get("/api/v1/migration").await?;
                output.print(&answer, || text(&answer))?;
                Ok(ExitCode::SUCCESS)
            }
            Self::Parity => {
                let answer = target.client()?.get("/api/v1/migration/parity").await?;
                output.print(&answer, || parity_text(&answer))?;
                Ok(if answer["equal"] == true { ExitCode::SUCCESS } else { ExitCode::FAILURE })
            }
            Self::Preflight { scope } => preflight::run(target, &scope, output).await,
        }
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
        row("rollback", rollback(&answer["rollback"]));
        row("parity", parity_line(answer));
        for gate in items(&answer["gates"]).iter().filter(|gate| gate["open"] != true) {
            row("closed gate", format!("{}: {}", cell(&gate["name"]), cell(&gate["reason"])));
        }
        for large in items(&answer["large_values"]) {
            let size =
                format!("{} of at most {} bytes in {}", large["size"], large["limit"], cell(&answer["secondary"]));
            row("large value", format!("{}: {size}", cell(&large["key"])));
        }
        for shadow in items(&answer["shadow_lookups"]) {
            let counts = format!("{} compared, {} mismatched", shadow["compared"], shadow["mismatched"]);
            row("shadow lookups", format!("{}: {counts}", cell(&shadow["ring"])));
        }
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
        (false, false) if backfill["too_large"].as_u64() > Some(0) => {
            format!("NOT VERIFIED, {progress}; {} too large", backfill["too_large"])
        }
        (false, false) => "not verified".to_owned(),
    }
}

fn millis(value: &Value) -> String {
    format_duration(Duration::from_millis(value.as_u64().unwrap_or_default()))
}

/// `safe`, `stale (12 s)`, `impossible`.
pub(crate) fn rollback(rollback: &Value) -> String {
    match rollback["state"].as_str() {
        Some("stale") => format!("STALE ({})", millis(&rollback["age_ms"])),
        Some(state) => escape(state),
        None => "-".to_owned(),
    }
}

fn parity_line(status: &Value) -> String {
    let parity = &status["parity"];
    let error = status["parity_error"].as_str().map(|error| format!("; the last attempt failed: {}", escape(error)));
    let state = if !parity.is_object() {
        "not compared yet".to_owned()
    } else {
        let state = match (parity["equal"] == true, parity["secondary_has_all"] == true) {
            (true, _) => "equal",
            (false, true) => "the secondary has more",
            (false, false) => "THE SECONDARY LACKS SOMETHING",
        };
        format!("{state}, {} would move, {} ago", percent(&parity["ownership_delta"]), millis(&parity["age_ms"]))
    };
    state + &error.unwrap_or_default()
}

fn percent(value: &Value) -> String {
    format!("{:.2} %", 100.0 * value.as_f64().unwrap_or_default())
}

fn parity_text(report: &Value) -> String {
    let verdict = if report["equal"] == true { "equal" } else { "DIFFERENT" };
    let mut table = Table::new(&["verdict", verdict]);
    let mut row = |name: &str, value: String| table.row(vec![name.to_owned(), value]);
    row("primary", cell(&report["primary"]));
    row("secondary", cell(&report["secondary"]));
    let moved = format!("{} of the ring", percent(&report["ownership_delta"]));
    row("a flip moves", format!("{moved}, replica sets {}", percent(&report["replica_set_delta"])));
    row("keys", both(&report["keys"]));
    row("keys missing in secondary", ids(&report["only_primary"]));
    row("keys missing in primary", ids(&report["only_secondary"]));
    for (key, ring) in report["rings"].as_object().into_iter().flatten() {
        let mut row = |name: &str, value: String| row(&format!("{}: {name}", escape(key)), value);
        row("instances", both(&ring["instances"]));
        row("only in primary", ids(&ring["only_primary"]));
        row("only in secondary", ids(&ring["only_secondary"]));
        row("differing", ids(&ring["differing"]));
        let fields = ring["fields"].as_object().into_iter().flatten();
        let fields: Vec<String> =
            fields.filter(|(_, count)| **count != 0).map(|(name, count)| format!("{name} {count}")).collect();
        if !fields.is_empty() {
            row("fields", fields.join(", "));
        }
        row("on its way", cell(&ring["in_flight"]));
        row("tombstones", both(&ring["tombstones"]));
        let beats = &ring["heartbeats"];
        row("heartbeats apart", format!("p50 {} s, p99 {} s, max {} s", beats["p50"], beats["p99"], beats["max"]));
    }
    for (key, value) in report["values"].as_object().into_iter().flatten() {
        let lacks = format!("secondary lacks {}, primary {}", value["secondary_lacks"], value["primary_lacks"]);
        row(&escape(key), format!("{lacks} entries"));
    }
    table.to_text()
}

fn both(sides: &Value) -> String {
    let equal = if sides["primary"] == sides["secondary"] { "=" } else { "≠" };
    format!("{} {equal} {}", sides["primary"], sides["secondary"])
}

/// `3: a, b, c`, or `0`.
fn ids(ids: &Value) -> String {
    let listed: Vec<String> = items(&ids["ids"]).iter().map(cell).collect();
    match ids["count"].as_u64() {
        None | Some(0) => "0".to_owned(),
        Some(count) if count > listed.len() as u64 => format!("{count}: {}, …", listed.join(", ")),
        Some(count) => format!("{count}: {}", listed.join(", ")),
    }
}
