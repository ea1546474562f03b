//! `annulus migrate preflight`: whether a fleet may flip, node by node and as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

use serde_json::{Value, json};

use crate::client::{Scope, Target};
use crate::migrate::rollback;
use crate::output::{Output, Table, cell, escape, items};

pub(crate) async fn run(target: &Target, scope: &Scope, output: Output) -> anyhow::Result<ExitCode> {
    let mut nodes = Vec::new();
    let mut silent = Vec::new();
    let clients = target.clients()?;
    let alone = clients.len() == 1;
    for client in clients {
        match client.get("/api/v1/migration/preflight").await {
            Ok(answer) => nodes.push(answer),
            // One node of many that does not answer is something to know before a flip, not the end of the question.
            Err(error) if !alone => silent.push(format!("{error:#}")),
            Err(error) => return Err(error),
        }
    }
    let mut in_the_way = in_the_way(&nodes, silent);
    let mut warnings = warnings(&nodes);
    if let Some(missing) = not_asked(&nodes) {
        // Whoever asks one node wants to know of that one.
        if scope.partial || alone {
            warnings.push(format!("not asked, though in the cluster: {missing}"));
        } else {
            in_the_way.push(format!(
                "not asked, though in the cluster: {missing}; name every node with --node, or give --partial when they \
                 are changed in another way"
            ));
        }
    }
    let answer = json!({
        "safe": in_the_way.is_empty(), "in_the_way": in_the_way, "warnings": warnings, "nodes": nodes,
    });
    output.print(&answer, || text(&answer))?;
    Ok(if in_the_way.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Everything that speaks against a flip, one sentence each.
fn in_the_way(nodes: &[Value], silent: Vec<String>) -> Vec<String> {
    let mut found = silent;
    for node in nodes {
        let name = node["node"].as_str().unwrap_or_default();
        for gate in items(&node["gates"]).iter().filter(|gate| gate["open"] != true) {
            found.push(format!("{name}: {}", gate["reason"].as_str().unwrap_or_default()));
        }
        if node["runtime_config_healthy"] == false {
            found.push(format!("{name}: its runtime configuration cannot be read; it would not hear of the flip"));
        }
    }
    for (field, what) in [
        ("primary", "the nodes read different stores"),
        ("to", "the nodes would flip to different stores"),
        ("runtime_config_hash", "the nodes have different runtime configurations"),
        ("version", "the nodes run different versions"),
        ("rings", "the nodes see different rings"),
    ] {
        let mut by_value = BTreeMap::<String, Vec<&str>>::new();
        for node in nodes {
            by_value.entry(node[field].to_string()).or_default().push(node["node"].as_str().unwrap_or_default());
        }
        if by_value.len() > 1 {
            let groups: Vec<String> = by_value.values().map(|names| names.join(", ")).collect();
            found.push(format!("{what}: {}", groups.join(" / ")));
        }
    }
    found
}

/// The members of the cluster that gave no answer of their own: forgotten, or programs of another kind, which have none.
fn not_asked(nodes: &[Value]) -> Option<String> {
    let named: BTreeSet<&str> = nodes.iter().filter_map(|node| node["node"].as_str()).collect();
    let members = nodes.iter().flat_map(|node| items(&node["members"])).filter_map(Value::as_str);
    let missing: BTreeSet<&str> = members.filter(|member| !named.contains(member)).collect();
    (!missing.is_empty()).then(|| missing.into_iter().collect::<Vec<_>>().join(", "))
}

/// What is not in the way yet and will be when it goes on like this.
fn warnings(nodes: &[Value]) -> Vec<String> {
    let of = |node: &Value| {
        let name = node["node"].as_str().unwrap_or_default().to_owned();
        let warnings = items(&node["gates"]).iter().filter_map(|gate| gate["warning"].as_str());
        warnings.map(|warning| format!("{name}: {warning}")).collect::<Vec<_>>()
    };
    nodes.iter().flat_map(of).collect()
}

fn text(answer: &Value) -> String {
    let mut table = Table::new(&["NODE", "PHASE", "PRIMARY", "WOULD FLIP TO", "GATES", "ROLLBACK"]);
    for node in items(&answer["nodes"]) {
        let gates = items(&node["gates"]);
        let open = gates.iter().filter(|gate| gate["open"] == true).count();
        table.row(vec![
            cell(&node["node"]),
            cell(&node["phase"]),
            cell(&node["primary"]),
            cell(&node["to"]),
            format!("{open} of {} open", gates.len()),
            rollback(&node["rollback"]),
        ]);
    }
    let mut text = table.to_text();
    let in_the_way = items(&answer["in_the_way"]);
    text.push_str(if in_the_way.is_empty() { "\nsafe: nothing is in the way\n" } else { "\nNOT SAFE YET:\n" });
    for reason in in_the_way {
        text.push_str(&format!("  {}\n", escape(reason.as_str().unwrap_or_default())));
    }
    for warning in items(&answer["warnings"]) {
        text.push_str(&format!("warning: {}\n", escape(warning.as_str().unwrap_or_default())));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, open: bool, primary: &str, members: &[&str]) -> Value {
        json!({
            "node": name, "primary": primary, "to": "x", "version": "1", "rings": {}, "runtime_config_hash": "",
            "gates": [{ "name": "outbox", "open": open, "reason": "3 keys wait" }], "members": members,
        })
    }

    #[test]
    fn a_fleet_is_as_ready_as_its_last_node() {
        let ready = [node("a", true, "consul", &["a", "b"]), node("b", true, "consul", &["a", "b"])];
        assert!(in_the_way(&ready, Vec::new()).is_empty());
        let one_waits = [node("a", true, "consul", &["a", "b"]), node("b", false, "consul", &["a", "b"])];
        assert_eq!(in_the_way(&one_waits, Vec::new()), ["b: 3 keys wait"]);
        let apart = [node("a", true, "consul", &["a", "b"]), node("b", true, "memberlist", &["a", "b"])];
        assert_eq!(in_the_way(&apart, Vec::new()), ["the nodes read different stores: a / b"]);
        let forgotten = [node("a", true, "consul", &["a", "b", "c"]), node("b", true, "consul", &["a", "b"])];
        assert_eq!(not_asked(&forgotten).as_deref(), Some("c"));
        assert_eq!(not_asked(&ready), None);
        assert_eq!(in_the_way(&ready, vec!["no answer".to_owned()]), ["no answer"]);
        assert!(warnings(&ready).is_empty());
        let mut near = ready;
        near[1]["gates"][0]["warning"] = json!("near the limit of consul");
        assert_eq!(warnings(&near), ["b: near the limit of consul"]);
    }
}
