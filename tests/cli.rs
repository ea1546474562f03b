//! The promise: `annulus` does what its help says, tells in one line what went wrong and what to do, and its exit codes can
//! be relied on: 0 done, 1 refused or failed, 2 wrong usage.

#![cfg(all(feature = "cli", unix))]
#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_secs(30);

const GOOD: &str = "\
node: { id: n1, address: '10.0.0.5:9095', zone: z }
memberlist: { bind_addr: [127.0.0.1], bind_port: 0 }
rings: [{ name: ingester, replication_factor: 1, num_tokens: 4, min_ready_duration: 0s }]
http: { listen: '127.0.0.1:0' }
";

/// The command, in an environment that does not matter to it.
fn annulus(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_annulus"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ANNULUS") || name == "RUST_LOG" {
            command.env_remove(name);
        }
    }
    command.args(arguments).stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    annulus(arguments).output().unwrap()
}

#[track_caller]
fn assert_ends(output: &Output, code: i32, stderr: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    for part in stderr {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

fn stdout(output: &Output) -> String {
    assert_ends(output, 0, &[]);
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// A directory with a configuration in it.
fn written(text: &str) -> (TempDir, String) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("annulus.yaml");
    fs::write(&path, text).unwrap();
    (dir, path.to_str().unwrap().to_owned())
}

/// An agent that runs. Killed if the test ends before it does.
struct Agent {
    child: Child,
    url: String,
    /// What it logs after it has started.
    log: mpsc::Receiver<String>,
    _dir: TempDir,
}

impl Agent {
    /// Starts it on ports that the system chooses, and reads from its log which they are.
    fn start(config: &str) -> Self {
        let (dir, path) = written(config);
        let mut child = annulus(&["agent", "--config", &path, "--log-format", "json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (lines, log) = mpsc::channel();
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| lines.send(line)));
        let mut agent = Self { child, url: String::new(), log, _dir: dir };
        let address = agent.wait_for_log(|line| {
            let line: Value = serde_json::from_str(line).ok()?;
            let said = line["fields"]["message"] == "HTTP is listening";
            said.then(|| line["fields"]["address"].as_str().unwrap().to_owned())
        });
        agent.url = format!("http://{address}");
        agent.eventually(&["ring", "--output", "json"], |rings| rings["rings"][0]["instances"][0]["state"] == "ACTIVE");
        agent
    }

    fn wait_for_log<T>(&self, find: impl Fn(&str) -> Option<T>) -> T {
        let end = Instant::now() + DEADLINE;
        let mut seen = String::new();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let line = self.log.recv_timeout(left).unwrap_or_else(|_| panic!("not in the log:\n{seen}"));
            if let Some(found) = find(&line) {
                return found;
            }
            seen = seen + &line + "\n";
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = annulus(arguments);
        command.env("ANNULUS_NODE", &self.url);
        command
    }

    fn ask(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn text(&self, arguments: &[&str]) -> String {
        stdout(&self.ask(arguments))
    }

    /// What it prints with `--output json`: one object and nothing else.
    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.text(&[arguments, &["--output", "json"]].concat())).unwrap()
    }

    fn eventually(&self, arguments: &[&str], condition: impl Fn(&Value) -> bool) {
        let end = Instant::now() + DEADLINE;
        loop {
            let output = self.ask(arguments);
            let answer = serde_json::from_slice(&output.stdout).unwrap_or_default();
            if output.status.success() && condition(&answer) {
                return;
            }
            assert!(Instant::now() < end, "{arguments:?}: {output:?}");
        }
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    fn ends_with(&mut self) -> Option<i32> {
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < end, "the agent does not end");
            std::thread::yield_now();
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn wrong_usage_exits_2() {
    let wrong: &[&[&str]] = &[
        &[],
        &["nonsense"],
        &["agent"],
        &["members", "--nope"],
        &["ring", "lookup", "ingester"],
        &["ring", "lookup", "ingester", "k", "--op", "wrtie"],
        &["kv"],
        &["kv", "put", "k"],
        &["config", "check"],
        &["members", "--output", "xml"],
        &["decode", "--transport", "quic"],
        &["agent", "--config", "x.yaml", "--log", "annulus=loud"],
    ];
    for arguments in wrong {
        let output = run(arguments);
        assert_ends(&output, 2, &["--help"]);
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn commands_that_are_not_built_do_not_exist() {
    for command in ["simulate", "completions"] {
        assert_ends(&run(&[command]), 2, &["unrecognized subcommand"]);
    }
    for step in ["flip", "rollback", "seal"] {
        assert_ends(&run(&["migrate", step]), 2, &["unrecognized subcommand"]);
    }
}

#[test]
fn a_good_configuration_is_ok() {
    let (_dir, path) = written(GOOD);
    assert_eq!(stdout(&run(&["config", "check", "--config", &path])), format!("{path}: ok\n"));
    let answer: Value =
        serde_json::from_str(&stdout(&run(&["config", "check", "--config", &path, "--output", "json"]))).unwrap();
    assert_eq!(answer, json!({ "file": path, "ok": true, "problems": [] }));
}

#[test]
fn a_wrong_configuration_is_refused_with_the_key_and_the_reason() {
    let cases: &[(&str, &[&str])] = &[
        (
            "node: { id: n1 }\nmemberlist: { bnid_port: 1 }\n",
            &["memberlist.bnid_port", "did you mean `memberlist.bind_port`?"],
        ),
        ("node: { id: n1 }\nmemberlist: { bind_port: many }\n", &["memberlist.bind_port", "must be"]),
        ("node: { id: [\n", &["annulus.yaml"]),
        ("node: { id: n1 }\nkv: { store: multi, multi: { primary: memberlist } }\n", &["kv.multi"]),
    ];
    for (text, expected) in cases {
        let (_dir, path) = written(text);
        let output = run(&["config", "check", "--config", &path]);
        assert_ends(&output, 1, expected);
        assert!(output.stdout.is_empty(), "{text}");
    }
}

#[test]
fn every_problem_is_told_at_once() {
    let (_dir, path) = written("http: { listen: nowhere }\nrings: [{ name: r }]\n");
    let output = run(&["config", "check", "--config", &path, "--output", "json"]);
    assert_ends(&output, 1, &["node.id: ", "node.address: ", "http.listen: "]);
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["ok"], false);
    let keys: Vec<_> = answer["problems"].as_array().unwrap().iter().map(|problem| problem["key"].clone()).collect();
    assert!(["node.id", "node.address", "http.listen"].iter().all(|key| keys.contains(&json!(key))), "{keys:?}");
}

#[test]
fn files_that_cannot_be_read_are_told_so() {
    assert_ends(&run(&["config", "check", "--config", "/nonexistent/a.yaml"]), 1, &["there is no such file"]);
    assert_ends(
        &run(&["agent", "--config", "/nonexistent/a.yaml"]),
        1,
        &["annulus: /nonexistent/a.yaml: there is no such file"],
    );
    assert_ends(&run(&["agent", "--config", "/"]), 1, &["annulus: /: "]);
    let (_dir, path) = written(GOOD);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    // The superuser may read everything.
    if fs::read(&path).is_err() {
        assert_ends(&run(&["agent", "--config", &path]), 1, &["permission denied"]);
    }
}

#[test]
fn the_effective_configuration_is_printed_with_origins_and_without_secrets() {
    let (_dir, path) = written(&format!("{GOOD}kv: {{ consul: {{ acl_token: hunter2 }} }}\n"));
    let arguments = ["config", "print", "--config", &path, "--set", "memberlist.gossip_nodes=5"];
    let text = stdout(&annulus(&arguments).env("ANNULUS__NODE__ZONE", "zone-e").output().unwrap());
    for line in [
        format!("id: \"n1\"  # file {path}"),
        "zone: \"zone-e\"  # environment variable ANNULUS__NODE__ZONE".to_owned(),
        "gossip_nodes: 5  # --set".to_owned(),
        "prefix: \"collectors/\"  # default".to_owned(),
    ] {
        assert!(text.contains(&line), "{line:?} is not in\n{text}");
    }
    assert!(!text.contains("hunter2"));
    let output = run(&[&arguments[..], &["--output", "json"]].concat());
    let answer: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let rows = answer["settings"].as_array().unwrap();
    assert!(rows.contains(&json!({ "key": "memberlist.gossip_nodes", "value": 5, "origin": "set" })));
    assert!(!answer.to_string().contains("hunter2"));
    assert_ends(&run(&["config", "print", "--config", &path, "--set", "node"]), 1, &["section.key=value"]);
}

#[test]
fn the_reference_is_the_page_in_the_documentation() {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/configuration.md")).unwrap();
    assert_eq!(stdout(&run(&["config", "reference"])), page);
}

#[test]
fn an_agent_answers_every_command_and_leaves_when_told_to() {
    let mut agent = Agent::start(GOOD);

    let members = agent.json(&["members"]);
    assert_eq!((&members["members"][0]["name"], &members["members"][0]["state"]), (&json!("n1"), &json!("alive")));
    let text = agent.text(&["members"]);
    assert!(text.starts_with("NAME") && text.contains("n1    alive  127.0.0.1:"), "{text}");

    let ring = agent.json(&["ring", "ingester"]);
    assert_eq!((&ring["name"], &ring["instances"][0]["id"]), (&json!("ingester"), &json!("n1")));
    let text = agent.text(&["ring"]);
    assert!(text.contains("ring ingester") && text.contains("100.0 %") && text.contains("10.0.0.5:9095"), "{text}");
    assert_ends(&agent.ask(&["ring", "nope"]), 1, &["annulus: there is no ring \"nope\"; this node has: ingester"]);

    let found = agent.json(&["ring", "lookup", "ingester", "tenant-7/a b?&#", "--op", "write_no_extend"]);
    assert_eq!((&found["key"], &found["operation"]), (&json!("tenant-7/a b?&#"), &json!("write_no_extend")));
    assert_eq!(found["instances"][0]["id"], "n1");
    assert!(agent.text(&["ring", "lookup", "ingester", "k"]).contains("n1     ACTIVE  z"));
    assert_ends(&agent.ask(&["ring", "forget", "ingester", "gone"]), 1, &["there is no instance gone"]);

    let key = "annulus/kv/a b/../c?";
    assert_ends(&agent.ask(&["kv", "get", key]), 1, &["there is no key"]);
    assert!(agent.text(&["kv", "put", key, r#"{"colour": "red"}"#]).starts_with("written, version "));
    let read = agent.json(&["kv", "get", key]);
    assert_eq!((&read["key"], &read["value"]["colour"]["value"]), (&json!(key), &json!("red")));
    assert!(agent.text(&["kv", "get", key]).contains("\"value\": \"red\""));
    assert_ends(&agent.ask(&["kv", "put", key, "{}", "--if-version", "0"]), 1, &["has version"]);
    assert_ends(&agent.ask(&["kv", "put", key, "{"]), 1, &["VALUE is not JSON"]);
    assert_eq!(agent.text(&["kv", "list", "annulus/"]), format!("{key}\n"));

    let mut put = agent.command(&["kv", "put", key, "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    put.stdin.take().unwrap().write_all(br#"{"colour": "blue"}"#).unwrap();
    assert!(put.wait().unwrap().success());
    assert_eq!(agent.json(&["kv", "get", key])["value"]["colour"]["value"], "blue");

    assert_eq!(agent.json(&["kv", "delete", key]), json!({ "deleted": true }));
    assert_eq!(agent.text(&["kv", "list", "annulus/"]), "");

    let status = agent.json(&["migrate", "status"]);
    assert_eq!((&status["phase"], &status["store"]), (&json!("solo"), &json!("memberlist")));
    assert!(agent.text(&["migrate", "status"]).contains("primary  memberlist"));

    agent.signal("TERM");
    assert_eq!(agent.ends_with(), Some(0));
    let mut printed = String::new();
    agent.child.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
    assert_eq!(printed, "", "an agent prints nothing but its log");
}

#[test]
fn a_new_key_is_another_each_time_and_as_long_as_was_asked_for() {
    let made: Value = serde_json::from_str(&stdout(&run(&["keygen", "--output", "json"]))).unwrap();
    assert_eq!((made["bits"].as_u64(), made["key"].as_str().unwrap().len()), (Some(256), 44));
    let (first, second) = (stdout(&run(&["keygen", "--bits", "128"])), stdout(&run(&["keygen", "--bits", "128"])));
    assert_eq!((first.trim().len(), second.trim().len()), (24, 24));
    assert_ne!(first, second);
    assert_ends(&run(&["keygen", "--bits", "100"]), 2, &["--bits"]);
}

/// Two agents of one cluster, and how both are named on the command line.
fn encrypted_pair() -> (Agent, Agent, String) {
    let keyed = "bind_port: 0, encryption_keys: ['MDEyMzQ1Njc4OWFiY2RlZg=='], cluster_label: lab";
    let first = Agent::start(&GOOD.replace("bind_port: 0", keyed));
    let address = first.json(&["members"])["members"][0]["address"].as_str().unwrap().to_owned();
    let second = GOOD.replace("bind_port: 0", &format!("{keyed}, join_members: ['{address}']")).replace("n1", "n2");
    let second = Agent::start(&second);
    for agent in [&first, &second] {
        let two = |answer: &Value| answer["members"].as_array().is_some_and(|members| members.len() == 2);
        agent.eventually(&["members", "--output", "json"], two);
    }
    let both = format!("{},{}", first.url, second.url);
    (first, second, both)
}

#[test]
fn keys_are_changed_on_all_nodes_or_on_none() {
    let (first, second, both) = encrypted_pair();
    let on_both = |arguments: &[&str]| run(&[arguments, &["--node", &both, "--output", "json"]].concat());
    let key = stdout(&run(&["keygen"]));
    let install = |node: &str| {
        let mut child = annulus(&["keys", "install", "--node", node, "--output", "json"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(key.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    assert_ends(&install(&first.url), 1, &["nothing was changed", "n2 is also in the cluster", "--partial"]);
    let installed: Value = serde_json::from_str(&stdout(&install(&both))).unwrap();
    let new = installed["nodes"][0]["keys"][1]["id"].as_str().unwrap().to_owned();
    let old = installed["nodes"][0]["keys"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(installed["nodes"][1]["keys"][1]["id"], new.as_str());

    assert_ends(&on_both(&["keys", "remove", &old]), 1, &["nothing was changed", "encrypts with this key"]);
    assert_ends(&on_both(&["keys", "use", "00000000"]), 1, &["nothing was changed", "does not have this key"]);
    stdout(&on_both(&["keys", "use", &new]));
    let listed = stdout(&on_both(&["keys", "remove", &old]));
    let left: Value = serde_json::from_str(&listed).unwrap();
    for (node, name) in [(0, "n1"), (1, "n2")] {
        let status = &left["nodes"][node];
        assert_eq!((&status["node"], &status["keys"][0]["id"]), (&json!(name), &json!(new)));
        assert_eq!(status["keys"].as_array().unwrap().len(), 1);
        assert_eq!(status["keys"][0]["configured"], false, "a restart would undo it, and the list says so");
    }
    let text = run(&["keys", "list", "--node", &first.url, "--node", &second.url]);
    assert!(stdout(&text).contains(&format!("n2    {new}  256   yes")), "{text:?}");
    assert_ends(&run(&["members", "--node", &both]), 1, &["asks one node"]);

    // A key is shown nowhere, not even where a wrong one was given.
    first.signal("TERM");
    let log: Vec<String> = first.log.iter().collect();
    assert!(log.iter().any(|line| line.contains("gossip key installed")), "{log:?}");
    assert!(!log.iter().any(|line| line.contains(key.trim())), "{log:?}");
    assert!(!listed.contains(key.trim()));
}

/// A runtime file that a test changes while agents run.
struct RuntimeFile(TempDir);

impl RuntimeFile {
    fn new() -> Self {
        let file = Self(TempDir::new().unwrap());
        file.write("multi_kv_config: {}\n");
        file
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("runtime.yaml")
    }

    fn write(&self, text: &str) {
        let next = self.0.path().join("next");
        fs::write(&next, text).unwrap();
        fs::rename(&next, self.path()).unwrap();
    }

    /// A configuration with two stores that follows this file.
    fn config(&self, primary: &str, secondary: &str) -> String {
        let stores = format!("kv: {{ store: multi, multi: {{ primary: {primary}, secondary: {secondary} }} }}\n");
        let follows = format!("runtime_config: {{ file: ['{}'], period: 100ms }}\n", self.path().display());
        // A write that waits for the mirror closes a gate for a moment. Here nobody writes meanwhile.
        let quiet = GOOD.replace("num_tokens: 4", "num_tokens: 4, heartbeat_period: 10m, heartbeat_timeout: 1h");
        format!("{quiet}{stores}{follows}")
    }
}

const MIRROR: &str = "multi_kv_config: { mirror_enabled: true }\n";

fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn text_of(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The lines of a text with one blank between its words, however wide its columns are.
fn lines_of(text: &str) -> Vec<String> {
    text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn parity_and_preflight_of_one_node_exit_1_until_the_stores_are_equal() {
    let runtime = RuntimeFile::new();
    let agent = Agent::start(&runtime.config("inmemory", "memberlist"));
    let (parity, preflight) = (["migrate", "parity"], ["migrate", "preflight"]);
    let as_json = |command: &[&str]| agent.ask(&[command, &["--output", "json"]].concat());

    // The other store is empty. What differs is an answer, not an error.
    let output = as_json(&parity);
    assert_ends(&output, 1, &[]);
    assert!(output.stderr.is_empty(), "{output:?}");
    let report = json_of(&output);
    assert_eq!((&report["equal"], &report["secondary"]), (&json!(false), &json!("memberlist")));
    assert_eq!(report["only_primary"], json!({ "count": 1, "ids": ["collectors/ring"] }));
    assert_eq!(report["ownership_delta"], 1.0);
    let output = agent.ask(&parity);
    assert_ends(&output, 1, &[]);
    let lines = lines_of(&text_of(&output));
    for line in [
        "verdict DIFFERENT",
        "a flip moves 100.00 % of the ring, replica sets 100.00 %",
        "keys missing in secondary 1: collectors/ring",
    ] {
        assert!(lines.contains(&line.to_owned()), "{line:?} is not in {lines:#?}");
    }
    let output = as_json(&preflight);
    assert_ends(&output, 1, &[]);
    let report = json_of(&output);
    assert_eq!((&report["safe"], &report["nodes"][0]["node"]), (&json!(false), &json!("n1")));
    let reasons = report["in_the_way"].as_array().unwrap();
    assert!(reasons.iter().any(|reason| *reason == "n1: mirroring is off"), "{report}");
    let output = agent.ask(&preflight);
    assert_ends(&output, 1, &[]);
    let text = text_of(&output);
    assert!(text.contains("NOT SAFE YET:\n") && text.contains("  n1: mirroring is off\n"), "{text}");
    assert!(!text.contains("safe: nothing"), "{text}");

    runtime.write(MIRROR);
    agent.eventually(&["migrate", "preflight", "--output", "json"], |report| report["safe"] == true);
    agent.eventually(&["migrate", "parity", "--output", "json"], |report| report["equal"] == true);
    let lines = lines_of(&agent.text(&parity));
    for line in [
        "verdict equal",
        "a flip moves 0.00 % of the ring, replica sets 0.00 %",
        "keys missing in secondary 0",
        "collectors/ring: instances 1 = 1",
    ] {
        assert!(lines.contains(&line.to_owned()), "{line:?} is not in {lines:#?}");
    }
    let text = agent.text(&preflight);
    assert!(
        text.contains("n1    dual   inmemory  memberlist") && text.contains("\nsafe: nothing is in the way\n"),
        "{text}"
    );
}

#[test]
fn a_node_with_one_store_has_neither_parity_nor_preflight() {
    let agent = Agent::start(GOOD);
    for command in ["parity", "preflight"] {
        let output = agent.ask(&["migrate", command]);
        assert_ends(&output, 1, &["annulus: this node has one store; kv.store: multi has two"]);
        assert!(output.stdout.is_empty(), "{output:?}");
    }
}

#[test]
fn preflight_of_a_fleet_counts_everybody_who_was_not_asked_unless_it_is_partial() {
    let runtime = RuntimeFile::new();
    let config = runtime.config("memberlist", "inmemory");
    let first = Agent::start(&config);
    let address = first.json(&["members"])["members"][0]["address"].as_str().unwrap().to_owned();
    let joins = format!("bind_port: 0, join_members: ['{address}']");
    let second = Agent::start(&config.replace("bind_port: 0", &joins).replace("n1", "n2"));
    // A member that cannot be asked, as those of the Grafana family.
    let third = Agent::start(&GOOD.replace("bind_port: 0", &joins).replace("n1", "n3"));
    for agent in [&first, &second, &third] {
        let all = |answer: &Value| answer["rings"][0]["instances"].as_array().is_some_and(|all| all.len() == 3);
        agent.eventually(&["ring", "--output", "json"], all);
        let all = |answer: &Value| answer["members"].as_array().is_some_and(|all| all.len() == 3);
        agent.eventually(&["members", "--output", "json"], all);
    }
    let both = format!("{},{}", first.url, second.url);
    let preflight = |nodes: &str, more: &[&str]| run(&[&["migrate", "preflight", "--node", nodes], more].concat());
    let in_the_way = |output: &Output| -> Vec<String> {
        let report = json_of(output);
        report["in_the_way"].as_array().unwrap().iter().map(|reason| reason.as_str().unwrap().to_owned()).collect()
    };

    let output = preflight(&both, &["--partial", "--output", "json"]);
    assert_ends(&output, 1, &[]);
    for reason in ["n1: mirroring is off", "n2: mirroring is off"] {
        assert!(in_the_way(&output).contains(&reason.to_owned()), "{output:?}");
    }
    runtime.write(MIRROR);
    let partial = ["migrate", "preflight", "--node", &both, "--partial", "--output", "json"];
    first.eventually(&partial, |report| report["safe"] == true);

    let forgotten = "not asked, though in the cluster: n3";
    let report = json_of(&preflight(&both, &partial[4..]));
    assert_eq!((&report["in_the_way"], &report["warnings"]), (&json!([]), &json!([forgotten])));
    let text = stdout(&preflight(&both, &["--partial"]));
    assert!(
        text.contains("\nsafe: nothing is in the way\n") && text.contains(&format!("warning: {forgotten}\n")),
        "{text}"
    );
    assert!(
        text.lines().any(|line| line.starts_with("n1 ")) && text.lines().any(|line| line.starts_with("n2 ")),
        "{text}"
    );

    let output = preflight(&both, &[]);
    assert_ends(&output, 1, &[]);
    let text = text_of(&output);
    assert!(text.contains("NOT SAFE YET:\n") && text.contains(forgotten) && text.contains("give --partial"), "{text}");

    // Whoever asks one node is told of that node, and whom it does not speak for.
    let report = json_of(&preflight(&first.url, &["--output", "json"]));
    assert_eq!(
        (&report["safe"], &report["warnings"]),
        (&json!(true), &json!(["not asked, though in the cluster: n2, n3"]))
    );

    // A node that was named and does not answer is in the way, partial or not.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let output = preflight(&format!("{both},{free}"), &["--partial", "--output", "json"]);
    assert_ends(&output, 1, &[]);
    let reasons = in_the_way(&output);
    assert!(matches!(&reasons[..], [reason] if reason.contains("cannot reach the node at")), "{reasons:?}");
    let output = preflight(&format!("{both},{}", third.url), &["--output", "json"]);
    assert_ends(&output, 1, &[]);
    assert!(in_the_way(&output).iter().any(|reason| reason.contains("has one store")), "{output:?}");

    assert_ends(&run(&["migrate", "parity", "--node", &both]), 1, &["asks one node"]);
}

#[test]
fn label_status_counts_and_label_plan_says_what_comes_next() {
    let (first, _second, _) = encrypted_pair();
    first.eventually(&["label", "status", "--output", "json"], |status| status["sent"]["lab"] == 2);
    let text = first.text(&["label", "status"]);
    assert!(text.contains("lab by 2 members") && text.contains("verification  on"), "{text}");
    let done = first.json(&["label", "plan"]);
    assert_eq!((&done["step"], &done["safe"], &done["to"]), (&json!("done"), &json!(true), &json!("lab")));
    let next = first.text(&["label", "plan", "--to", "prod"]);
    assert!(next.contains("accepted_labels") && next.contains("safe"), "{next}");
    assert_eq!(first.json(&["members"])["members"][1]["label"], "lab");
}

#[test]
fn a_plan_that_is_not_safe_exits_1() {
    let first = Agent::start(&GOOD.replace("bind_port: 0", "bind_port: 0, accepted_labels: [prod]"));
    let address = first.json(&["members"])["members"][0]["address"].as_str().unwrap().to_owned();
    let joins = format!("bind_port: 0, join_members: ['{address}']");
    let _second = Agent::start(&GOOD.replace("bind_port: 0", &joins).replace("n1", "n2"));
    let two = |answer: &Value| answer["members"].as_array().is_some_and(|members| members.len() == 2);
    first.eventually(&["members", "--output", "json"], two);
    let plan = first.ask(&["label", "plan", "--to", "prod"]);
    assert_ends(&plan, 1, &[]);
    let text = String::from_utf8(plan.stdout).unwrap();
    assert!(text.contains("NOT SAFE YET") && text.contains("n2: does not answer under the label"), "{text}");
}

#[test]
fn watches_print_what_is_there_and_then_each_change() {
    let agent = Agent::start(GOOD);
    let watch = |arguments: &[&str]| {
        let mut child = agent.command(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        (child, lines.map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap()))
    };
    let (mut kv, mut changes) = watch(&["kv", "watch", "annulus/kv/k", "--output", "json"]);
    assert_eq!(changes.next().unwrap()["value"], Value::Null);
    agent.text(&["kv", "put", "annulus/kv/k", r#"{"a": 1}"#]);
    assert_eq!(changes.next().unwrap()["value"]["a"]["value"], 1);

    let (mut ring, mut changes) = watch(&["ring", "watch", "ingester", "--output", "json"]);
    assert_eq!(changes.next().unwrap()["instances"][0]["id"], "n1");
    agent.text(&["ring", "forget", "ingester", "n1"]);
    assert!(changes.next().unwrap()["instances"].is_array());

    drop(agent);
    assert_eq!(kv.wait().unwrap().code(), Some(1));
    assert_eq!(ring.wait().unwrap().code(), Some(1));
}

#[test]
fn a_change_on_a_node_with_an_admin_token_needs_it() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("token");
    fs::write(&file, "s3cret\n").unwrap();
    let file = file.to_str().unwrap();
    let config = GOOD.replace("'127.0.0.1:0' }", &format!("'127.0.0.1:0', admin_token_file: '{file}' }}"));
    let agent = Agent::start(&config);
    let put = ["kv", "put", "annulus/kv/k", r#"{"a": 1}"#];
    assert_ends(&agent.ask(&put), 1, &["admin token", "--token-file"]);
    agent.text(&[&put[..], &["--token-file", file]].concat());
    assert_ends(&agent.ask(&["kv", "get", "annulus/kv/k", "--token-file", "/nonexistent"]), 1, &["token file"]);
}

#[test]
fn a_node_that_is_not_there_is_told_so_in_one_line() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{free}");
    let output = run(&["members", "--node", &url]);
    assert_ends(&output, 1, &["cannot reach the node at http://127.0.0.1:", "--node"]);
    assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), 1);
    assert_ends(&run(&["members", "--node", "https://127.0.0.1"]), 1, &["only http://"]);
    assert_ends(&run(&["members", "--node", "http://["]), 1, &["is not a URL"]);
}

#[test]
fn ports_in_use_are_told_so_in_one_line() {
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = holder.local_addr().unwrap().port();
    for (set, expected) in [
        (format!("http.listen=127.0.0.1:{port}"), format!("http.listen 127.0.0.1:{port}: the port is in use")),
        (format!("memberlist.bind_port={port}"), format!("TCP port {port} is in use")),
    ] {
        let (_dir, path) = written(GOOD);
        let output = run(&["agent", "--config", &path, "--log", "off", "--set", &set]);
        assert_ends(&output, 1, &[&expected]);
        assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), 1);
    }
}

#[test]
fn an_agent_without_its_admin_token_does_not_start() {
    let (_dir, path) = written(GOOD);
    let output = run(&["agent", "--config", &path, "--log", "off", "--set", "http.admin_token_file=/nonexistent/t"]);
    assert_ends(&output, 1, &["http.admin_token_file /nonexistent/t: "]);
}

#[test]
fn an_agent_whose_node_fails_ends_with_the_cause() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (_dir, path) = written(GOOD);
    let join = format!("memberlist.join_members={closed}");
    let sets = [&join, "memberlist.abort_if_cluster_join_fails=true", "memberlist.max_join_retries=1"];
    let mut arguments = vec!["agent", "--config", &path, "--log", "off"];
    arguments.extend(sets.iter().flat_map(|set| ["--set", *set]));
    assert_ends(&run(&arguments), 1, &["the node failed: membership: joined nobody"]);
}

/// What `annulus decode` says to this input.
fn decode(arguments: &[&str], input: &[u8]) -> Output {
    let mut command = annulus(&[&["decode", "--output", "json"], arguments].concat());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

fn decoded(arguments: &[&str], input: &[u8]) -> Value {
    serde_json::from_str(&stdout(&decode(arguments, input))).unwrap()
}

/// The golden bytes of this name, in hex.
fn golden(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/wire/{name}.json"));
    let vector: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    vector["hex"].as_str().unwrap().to_owned()
}

#[test]
fn golden_bytes_are_explained_as_one_json_object() {
    let alive = decoded(&[], golden("udp-alive-plain").as_bytes());
    assert_eq!((&alive["ok"], &alive["error"]), (&json!(true), &Value::Null));
    let crc = json!({ "layer": "crc", "crc32": &golden("udp-alive-plain")[2..10] });
    assert_eq!(alive["layers"][0], crc);
    assert_eq!(alive["layers"][1]["layer"], "compound");
    let message = &alive["messages"][0];
    assert_eq!((&message["type"], &message["Vsn"]), (&json!("alive"), &json!("010502000000")), "{alive}");
    assert!(message["Node"].is_string() && message["Incarnation"].is_u64() && message["Addr"].is_string(), "{alive}");

    let names = |answer: &Value| -> Vec<String> {
        let layers = answer["layers"].as_array().unwrap();
        layers.iter().map(|layer| layer["layer"].as_str().unwrap().to_owned()).collect()
    };
    let key = ["--key", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="];
    let ping = decoded(&key, golden("udp-ping-enc32-label-compress").as_bytes());
    assert_eq!(ping["layers"][0], json!({ "layer": "label", "label": "lab", "hex": "6c6162" }));
    assert_eq!(names(&ping)[..2], ["label", "encryption"], "{ping}");
    assert_eq!((&ping["layers"][1]["version"], &ping["messages"][0]["type"]), (&json!(1), &json!("ping")));

    let push_pull = decoded(&["--transport", "tcp"], golden("tcp-pushpull-req-label").as_bytes());
    assert_eq!(push_pull["messages"][0]["type"], "push_pull");
    assert!(push_pull["messages"][0]["nodes"][0]["Name"].is_string(), "{push_pull}");
    let reply = decoded(&["--stream", "--reply"], golden("tcp-pushpull-resp-left").as_bytes());
    assert_eq!(reply["messages"][0]["Nodes"], 3, "{reply}");

    let store = decoded(&["--transport", "grafana"], golden("dskit-packet-kv-cas-plain").as_bytes());
    assert_eq!(names(&store)[0], "grafana");
    assert!(store["messages"][0]["kv"]["codec"].is_string(), "{store}");
}

#[test]
fn what_is_refused_exits_1_and_says_where() {
    let refused = |arguments: &[&str], name: &str, layer: &str, stderr: &str| {
        let output = decode(arguments, golden(name).as_bytes());
        assert_ends(&output, 1, &[stderr]);
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&answer["ok"], &answer["error"]["layer"]), (&json!(false), &json!(layer)), "{answer}");
        let fields: Vec<_> = answer["error"].as_object().unwrap().keys().cloned().collect();
        assert_eq!(fields, ["layer", "offset", "reason"]);
    };
    refused(&[], "rej-crc-mismatch", "crc", "annulus: crc, byte 1: checksum is ");
    refused(&[], "udp-ping-enc16", "encryption", "annulus: encryption, byte 0: encrypted, and no key was given");
    refused(&["--key", "AQIDBAUGBwgJCgsMDQ4PEA=="], "udp-ping-enc16", "encryption", "no key here decrypts it");
    refused(&["--label", "prod"], "udp-ping-label", "label", "label \"lab\" is not accepted");
    refused(&["--label", "lab"], "udp-ping-plain", "label", "there is no label, and one is required");
    refused(&[], "rej-unknown-type", "message", "unknown message type");
    refused(&["--transport", "grafana"], "in-dskit-packet-bad-md5", "grafana", "digest does not fit");
}

#[test]
fn bytes_are_read_as_hex_or_as_they_are_from_a_file_or_standard_input() {
    let nack = decoded(&[], b"0x0b 81 a5 53 65 71\n4e 6f 2a\n");
    assert_eq!(nack["messages"], json!([{ "type": "nack", "SeqNo": 42 }]));
    assert_eq!(decoded(&[], b"\x0b\x81\xa5SeqNo\x2a"), nack, "no text, so no hex");
    assert_eq!(decoded(&["--raw"], b"\x0b\x81\xa5SeqNo\x2a"), nack);
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("packet.hex");
    fs::write(&path, "0b81a55365714e6f2a").unwrap();
    assert_eq!(decoded(&[path.to_str().unwrap()], b""), nack);
    let text = annulus(&["decode", path.to_str().unwrap()]).output().unwrap();
    assert_eq!(serde_json::from_str::<Value>(&stdout(&text)).unwrap(), nack, "text is the same, to read");
    assert!(stdout(&text).lines().count() > 5);

    assert_ends(&decode(&[], b"0b8"), 1, &["\"0b8\" has an odd number of digits", "--raw"]);
    assert_ends(&decode(&[], b"hello"), 1, &["'h' is no hex digit"]);
    assert_ends(&decode(&[], b""), 1, &["label, byte 0: nothing there"]);
    assert_ends(&decode(&["/nonexistent/x"], b""), 1, &["cannot read /nonexistent/x"]);
    assert_ends(&decode(&["--key", "x"], b""), 1, &["--key number 1", "not base64"]);
}

#[test]
fn a_second_signal_ends_an_agent_at_once() {
    let config = GOOD.replace("min_ready_duration: 0s", "min_ready_duration: 0s, final_sleep: 10m");
    let mut agent = Agent::start(&config);
    agent.signal("INT");
    agent.wait_for_log(|line| line.contains("leaving; a second signal").then_some(()));
    agent.signal("TERM");
    assert_eq!(agent.ends_with(), Some(1));
}

/// The help of a command and of all below it, in the order in which the help lists them.
fn helps(command: &str) -> Vec<(String, String)> {
    let arguments: Vec<_> = command.split_whitespace().chain(["--help"]).collect();
    let help = stdout(&run(&arguments));
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    // A name is indented by two; what does not fit behind it goes on in lines that are indented further.
    let names = listed.filter_map(|line| line.strip_prefix("  ")?.split(' ').next()).filter(|name| !name.is_empty());
    let below: Vec<_> = names.filter(|name| *name != "help").map(|name| format!("{command} {name}")).collect();
    let mut all = vec![(command.trim().to_owned(), help)];
    all.extend(below.iter().flat_map(|command| helps(command)));
    all
}

#[test]
fn the_help_leads_to_every_command() {
    let commands: Vec<_> = helps("").into_iter().map(|(command, _)| command).collect();
    for known in ["", "agent", "ring lookup", "migrate preflight", "label plan", "keygen", "keys remove", "decode"] {
        assert!(commands.contains(&known.to_owned()), "{known:?} is not in {commands:?}");
    }
    assert!(!commands.iter().any(|command| command.ends_with("help")), "{commands:?}");
}

/// `ANNULUS_WRITE_DOCS=1 cargo test --test cli` writes the page anew.
#[test]
fn the_page_in_the_documentation_is_the_help() {
    let mut page = "\
# The command line

<!-- Generated: ANNULUS_WRITE_DOCS=1 cargo test --test cli. Do not edit: change src/bin/annulus. -->

`annulus agent` runs one node. `config` reads files, `decode` explains bytes. The other commands ask a running node over HTTP: `--node URL`.

Exit codes: 0 done, 1 refused or failed (a line on standard error says why), 2 wrong usage. `--output json` prints one object and
nothing else; commands that watch print one a line. Names that come from the network are escaped in text.
"
    .to_owned();
    for (command, help) in helps("") {
        write!(page, "\n## {}\n\n```text\n{}\n```\n", format!("annulus {command}").trim(), help.trim_end()).unwrap();
    }
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/cli.md"));
    if std::env::var_os("ANNULUS_WRITE_DOCS").is_some() {
        fs::write(&path, &page).unwrap();
    }
    assert_eq!(fs::read_to_string(&path).unwrap_or_default(), page, "docs/reference/cli.md is not the help");
}
