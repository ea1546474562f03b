//! The main job, as a user runs it: the demonstration in this process, with five `annulus agent` processes on a real
//! Consul, and on a real etcd. It exits 1 if anything was lost.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::PathBuf;
use std::process::{Command, Output};

use support::consul::Consul;
use support::etcd::Etcd;

/// The example, built by `cargo test` beside the binary.
fn example() -> Option<PathBuf> {
    let binary = PathBuf::from(env!("CARGO_BIN_EXE_annulus"));
    let example = binary.parent()?.join("examples").join("multi_node");
    example.exists().then_some(example)
}

fn run(arguments: &[&str]) -> Option<Output> {
    let Some(example) = example() else {
        support::skip_or_fail(
            "the example multi_node is not built: run `cargo test` without --test, or build it first",
        );
        return None;
    };
    let mut command = Command::new(example);
    command.args(["--fast", "--output", "json"]).args(arguments).env("ANNULUS_BIN", env!("CARGO_BIN_EXE_annulus"));
    Some(command.output().unwrap())
}

fn assert_nothing_was_lost(output: &Output) {
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "exit {}: {stdout}\n{stderr}", output.status);
    assert_eq!(stdout.lines().count(), 1, "one object and nothing else: {stdout}");
    let summary: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    for must_be_zero in ["lookups_failed", "cas_failed", "owners_changed_by_flip", "instances_lost", "lost_writes"] {
        assert_eq!(summary[must_be_zero], 0, "{must_be_zero}: {summary}\n{stderr}");
    }
    assert_eq!((&summary["nodes"], &summary["phase"]), (&5.into(), &"done".into()));
    for must_be_more in ["lookups", "cas", "flip_ms_max", "rollback_ms", "detect_ms", "actor_restarts"] {
        assert!(summary[must_be_more].as_u64().unwrap() > 0, "{must_be_more}: {summary}");
    }
    assert_eq!(summary["parity_before_flip"], true, "{summary}");
    assert_eq!(summary["ownership_delta"].as_f64(), Some(0.0), "{summary}");
    // One entry a key: the ring, the key that is written now, and others only while the backfill carries them.
    let outbox = summary["outbox_max"].as_u64().unwrap();
    assert!(outbox < summary["cas"].as_u64().unwrap() / 5, "{summary}");
}

#[test]
fn five_nodes_move_their_ring_from_memory_to_gossip_and_lose_nothing() {
    let Some(output) = run(&[]) else { return };
    assert_nothing_was_lost(&output);
}

#[test]
fn five_processes_move_their_ring_from_a_real_consul_to_gossip_and_lose_nothing() {
    let Some(consul) = Consul::start() else { return };
    let Some(output) = run(&["--processes", "--old-store", &format!("consul={}", consul.url())]) else { return };
    assert_nothing_was_lost(&output);
    let left = consul.request("GET", "/v1/kv/?keys", b"");
    assert!(!left.contains("annulus-demo"), "the demonstration cleans up after itself: {left}");
}

#[test]
fn five_nodes_move_their_ring_from_a_real_etcd_to_gossip_and_lose_nothing() {
    let Some(etcd) = Etcd::start() else { return };
    let Some(output) = run(&["--old-store", &format!("etcd=http://{}", etcd.host())]) else { return };
    assert_nothing_was_lost(&output);
    let left = etcd.call("/v3/kv/range", &serde_json::json!({ "key": "AA==", "range_end": "AA==", "keys_only": true }));
    assert!(left["kvs"].is_null(), "the demonstration cleans up after itself: {left}");
}

#[test]
fn processes_cannot_share_memory_and_are_told_so() {
    let Some(output) = run(&["--processes"]) else { return };
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--old-store consul="));
}
