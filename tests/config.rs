#![allow(clippy::unwrap_used)]
//! The promise: a wrong configuration is refused at start, with the place, the key and what to do; a right one is loaded from
//! file, environment and `--set`, each over the one before; and no secret is ever printed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use annulus::config::{ByteSize, Config, ConfigError, KvStore, Loaded, Loader, Origin, Profile, RingConfig, reference};
use proptest::prelude::*;
use tempfile::TempDir;

const MINIMAL: &str = "node: { id: n1, address: '10.0.0.5:9095' }\n";

/// The block of the interface contract, key for key. (There, several keys stand on a line.)
const ALL_KEYS: &str = r#"
node: { id: ingester-1, zone: zone-a, address: 10.0.0.5:9095 }
memberlist:
  transport: udp
  bind_addr: [0.0.0.0]
  bind_port: 7946
  advertise_addr: ""
  advertise_port: 0
  join_members: [dns+gossip.ns.svc:7946]
  rejoin_interval: 30s
  min_join_backoff: 1s
  max_join_backoff: 1m
  max_join_retries: 10
  abort_if_cluster_join_fails: false
  cluster_label: prod.mimir
  cluster_label_verification_disabled: false
  accepted_labels: []
  encryption_keys: []
  gossip_verify_incoming: true
  gossip_verify_outgoing: true
  compression: none
  profile: lan
  gossip_interval: 200ms
  gossip_nodes: 3
  retransmit_factor: 4
  pull_push_interval: 30s
  gossip_to_dead_nodes_time: 30s
  left_ingesters_timeout: 5m
  leave_timeout: 20s
  cidrs_allowed: []
  tls_enabled: false
  tls_cert_path: ""
  tls_key_path: ""
  tls_ca_path: ""
  tls_server_name: ""
kv:
  store: memberlist
  prefix: collectors/
  consul: { host: localhost:8500, acl_token: "", consistent_reads: false, watch_rate_limit: 1, watch_burst_size: 1 }
  etcd: { endpoints: [], username: "", password: "", tls_enabled: false, tls_cert_path: "", tls_key_path: "",
          tls_ca_path: "", tls_server_name: "", dial_timeout: 10s, max_retries: 10 }
  multi: { primary: consul, secondary: memberlist, mirror_enabled: false, mirror_timeout: 2s }
rings:
  - { name: ingester, key: ring, join: true, replication_factor: 3, zone_awareness_enabled: true, num_tokens: 128,
      tokens_file_path: "", token_generation_strategy: random, heartbeat_period: 15s, heartbeat_timeout: 1m,
      observe_period: 0s, join_after: 0s, min_ready_duration: 15s, final_sleep: 0s, unregister_on_shutdown: true,
      excluded_zones: [], merge_strategy: lattice, auto_forget_unhealthy_periods: 0 }
runtime_config: { file: [runtime.yaml], period: 10s }
migration: { enabled: false, teardown: false }
http: { listen: 127.0.0.1:8080, admin_token_file: "" }
"#;

/// Whether etcd is in this build.
const ETCD: bool = cfg!(feature = "etcd");
const CONSUL_TLS: bool = cfg!(feature = "consul-tls");

/// A directory with one file in it.
fn written(name: &str, text: &str) -> (TempDir, PathBuf) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, text).unwrap();
    (dir, path)
}

fn load_yaml(text: &str) -> Result<Loaded, ConfigError> {
    let (_dir, path) = written("annulus.yaml", text);
    Config::loader().file(path).load()
}

fn sets(assignments: &[&str]) -> Result<Loaded, ConfigError> {
    let start = Config::loader().set("node.id=n1").set("node.address=10.0.0.5:9095");
    assignments.iter().fold(start, |loader: Loader, set| loader.set(*set)).load()
}

/// The keys of all problems that loading with these `--set`s finds.
fn problems(assignments: &[&str]) -> Vec<String> {
    match sets(assignments) {
        Err(ConfigError::Invalid(problems)) => problems.into_iter().map(|problem| problem.key).collect(),
        other => panic!("expected problems, got {other:?}"),
    }
}

#[test]
fn every_key_of_the_contract_loads() {
    let config = load_yaml(ALL_KEYS).unwrap().config;
    let mut expected = Config::default();
    expected.node.id = "ingester-1".to_owned();
    expected.node.zone = "zone-a".to_owned();
    expected.node.address = "10.0.0.5:9095".to_owned();
    expected.memberlist.join_members = vec!["dns+gossip.ns.svc:7946".to_owned()];
    expected.memberlist.cluster_label = "prod.mimir".to_owned();
    expected.memberlist.gossip_interval = Some(Duration::from_millis(200));
    expected.memberlist.gossip_nodes = Some(3);
    expected.memberlist.retransmit_factor = Some(4);
    expected.memberlist.pull_push_interval = Some(Duration::from_secs(30));
    expected.memberlist.gossip_to_dead_nodes_time = Some(Duration::from_secs(30));
    expected.rings = vec![RingConfig { zone_awareness_enabled: true, ..RingConfig::named("ingester") }];
    expected.runtime_config.file = vec!["runtime.yaml".to_owned()];
    // All other values of the contract are the defaults.
    assert_eq!(config, expected);
}

#[test]
fn toml_and_json_say_the_same_as_yaml() {
    let yaml =
        "node: {id: a}\nmemberlist: {bind_port: 7000, join_members: 'x:1,y:2'}\nrings: [{name: r, join: false}]\n";
    let toml = "node.id = 'a'\n[memberlist]\nbind_port = 7000\njoin_members = ['x:1', 'y:2']\n[[rings]]\nname = 'r'\njoin = false\n";
    let json = r#"{"node":{"id":"a"},"memberlist":{"bind_port":7000,"join_members":["x:1","y:2"]},"rings":[{"name":"r","join":false}]}"#;
    let configs: Vec<Config> = [("a.yaml", yaml), ("a.toml", toml), ("a.json", json), ("a.YML", yaml)]
        .iter()
        .map(|(name, text)| {
            let (_dir, path) = written(name, text);
            Config::loader().file(path).load().unwrap().config
        })
        .collect();
    assert!(configs.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(configs[0].memberlist.join_members, ["x:1", "y:2"]);
    assert_eq!(configs[0].ring("r").unwrap().num_tokens, 128);
}

#[test]
fn sets_go_over_the_environment_over_files_over_defaults() {
    let (_dir, path) =
        written("a.yaml", &format!("{MINIMAL}memberlist: {{bind_port: 1, advertise_port: 1, max_join_retries: 1}}\n"));
    // The order of the calls does not matter.
    let loaded = Config::loader()
        .set("memberlist.max_join_retries=3")
        .environment_from([
            ("ANNULUS__MEMBERLIST__ADVERTISE_PORT", "2"),
            ("ANNULUS__MEMBERLIST__MAX_JOIN_RETRIES", "2"),
            ("ANNULUS_LOG", "not ours"),
        ])
        .file(&path)
        .load()
        .unwrap();
    let m = &loaded.config.memberlist;
    assert_eq!((m.bind_port, m.advertise_port, m.max_join_retries, m.leave_timeout.as_secs()), (1, 2, 3, 20));
    let origin = |key: &str| loaded.origins.get(key).unwrap().clone();
    assert_eq!(origin("memberlist.bind_port"), Origin::File(path.clone()));
    assert_eq!(
        origin("memberlist.advertise_port"),
        Origin::Environment("ANNULUS__MEMBERLIST__ADVERTISE_PORT".to_owned())
    );
    assert_eq!(origin("memberlist.max_join_retries"), Origin::Set);
    assert_eq!(origin("memberlist.leave_timeout"), Origin::Default);
    assert_eq!(origin("node.id"), Origin::File(path));
}

#[test]
fn a_later_file_goes_over_an_earlier_one_and_a_list_replaces_a_list() {
    let (_a, first) = written(
        "a.yaml",
        &format!("{MINIMAL}memberlist: {{join_members: [a, b], bind_port: 1}}\nrings: [{{name: x}}]\n"),
    );
    let (_b, second) = written("b.toml", "[memberlist]\njoin_members = ['c']\n[[rings]]\nname = 'y'\n");
    let loaded = Config::loader().file(&first).file(&second).load().unwrap();
    assert_eq!(loaded.config.memberlist.join_members, ["c"]);
    assert_eq!(loaded.config.memberlist.bind_port, 1);
    assert_eq!(loaded.config.rings, [RingConfig::named("y")]);
    assert_eq!(loaded.origins.get("memberlist.join_members"), Some(&Origin::File(second.clone())));
    assert_eq!(loaded.origins.get("rings[0].name"), Some(&Origin::File(second)));
    assert_eq!(loaded.origins.get("rings[0].num_tokens"), Some(&Origin::Default));
}

#[test]
fn the_environment_reaches_lists_numbers_and_single_rings() {
    let (_dir, path) = written("a.yaml", &format!("{MINIMAL}rings: [{{name: a}}, {{name: b}}]\n"));
    let loaded = Config::loader()
        .file(path)
        .environment_from([
            ("ANNULUS__MEMBERLIST__JOIN_MEMBERS", "a:1, b:2,"),
            ("ANNULUS__MEMBERLIST__BIND_ADDR", "10.0.0.1,::1"),
            ("ANNULUS__MEMBERLIST__UDP_BUFFER_SIZE", "1KiB"),
            ("ANNULUS__MEMBERLIST__PROBE_INTERVAL", ""),
            ("ANNULUS__KV__CONSUL__WATCH_RATE_LIMIT", "0.5"),
            ("ANNULUS__KV__CONSUL__CONSISTENT_READS", "TRUE"),
            ("ANNULUS__RINGS__1__NUM_TOKENS", "64"),
            ("ANNULUS__NODE__ID", "true"),
        ])
        .load()
        .unwrap();
    let config = &loaded.config;
    assert_eq!(config.memberlist.join_members, ["a:1", "b:2"]);
    assert_eq!(config.memberlist.bind_addr, ["10.0.0.1".parse::<std::net::IpAddr>().unwrap(), "::1".parse().unwrap()]);
    assert_eq!(config.memberlist.udp_buffer_size, Some(ByteSize(1024)));
    assert_eq!(config.memberlist.probe_interval, None);
    assert_eq!((config.kv.consul.watch_rate_limit, config.kv.consul.consistent_reads), (0.5, true));
    assert_eq!((config.rings[0].num_tokens, config.rings[1].num_tokens), (128, 64));
    assert_eq!(config.node.id, "true");
    let origin = Origin::Environment("ANNULUS__RINGS__1__NUM_TOKENS".to_owned());
    assert_eq!(loaded.origins.get("rings[1].num_tokens"), Some(&origin));
}

#[test]
fn rings_can_be_made_by_index_but_not_with_gaps() {
    let config = sets(&["rings.0.name=a", "rings[1].name=b", "rings[1].join=false"]).unwrap().config;
    assert_eq!(config.rings, [RingConfig::named("a"), RingConfig { join: false, ..RingConfig::named("b") }]);
    assert_eq!(problems(&["rings.1.name=b"]), ["rings[0]"]);
    assert!(matches!(sets(&["rings.99999999.name=b"]), Err(ConfigError::UnknownKey { .. })));
    assert!(matches!(sets(&["rings.x.name=b"]), Err(ConfigError::UnknownKey { .. })));
}

#[test]
fn an_unknown_key_is_refused_with_its_place_and_a_suggestion() {
    let (_dir, path) = written("a.yaml", "memberlist:\n  bind_prot: 1\n");
    let error = Config::loader().file(&path).load().unwrap_err();
    let expected = ConfigError::UnknownKey {
        origin: Origin::File(path.clone()),
        key: "memberlist.bind_prot".to_owned(),
        suggestion: Some("memberlist.bind_port".to_owned()),
    };
    assert_eq!(error, expected);
    assert_eq!(
        error.to_string(),
        format!("file {}: unknown key `memberlist.bind_prot`, did you mean `memberlist.bind_port`?", path.display())
    );
    for (text, key, suggestion) in [
        ("membrelist: {}", "membrelist", Some("memberlist")),
        (
            "rings: [{name: a}, {replication_facto: 2}]",
            "rings[1].replication_facto",
            Some("rings[].replication_factor"),
        ),
        ("kv: {consul: {hots: x}}", "kv.consul.hots", Some("kv.consul.host")),
        ("kv: {acl_token: x}", "kv.acl_token", Some("kv.consul.acl_token")),
        ("node.id: x", "node.id", Some("node: { id: … }")),
        ("zzzzzzzzzz: 1", "zzzzzzzzzz", None),
    ] {
        match load_yaml(text) {
            Err(ConfigError::UnknownKey { key: k, suggestion: s, .. }) => {
                assert_eq!((k.as_str(), s.as_deref()), (key, suggestion), "{text}");
            }
            other => panic!("{text}: {other:?}"),
        }
    }
    let from_environment = Config::loader().environment_from([("ANNULUS__MEMBERLIST__LABEL", "x")]).load();
    assert!(matches!(from_environment, Err(ConfigError::UnknownKey { origin: Origin::Environment(_), .. })));
    assert!(matches!(sets(&["nonsense"]), Err(ConfigError::BadSet { .. })));
    assert!(matches!(sets(&["=1"]), Err(ConfigError::BadSet { .. })));
}

#[test]
fn a_value_of_the_wrong_kind_is_refused_with_what_was_expected() {
    for (text, key, got) in [
        ("memberlist: {bind_port: many}", "memberlist.bind_port", "the text \"many\""),
        ("memberlist: {bind_port: 70000}", "memberlist.bind_port", "the number 70000"),
        ("memberlist: {bind_port: -1}", "memberlist.bind_port", "the number -1"),
        ("memberlist: {bind_port: '7946'}", "memberlist.bind_port", "the text \"7946\""),
        ("memberlist: {tls_enabled: 'true'}", "memberlist.tls_enabled", "the text \"true\""),
        ("memberlist: {leave_timeout: 20}", "memberlist.leave_timeout", "the number 20"),
        ("memberlist: {leave_timeout: soon}", "memberlist.leave_timeout", "the text \"soon\""),
        ("memberlist: {udp_buffer_size: 1400bytes}", "memberlist.udp_buffer_size", "the text \"1400bytes\""),
        ("memberlist: {bind_addr: [localhost]}", "memberlist.bind_addr", "a list"),
        ("memberlist: {join_members: [1]}", "memberlist.join_members", "a list"),
        ("memberlist: {profile: LAN}", "memberlist.profile", "the text \"LAN\""),
        ("memberlist: 5", "memberlist", "the number 5"),
        ("kv: {store: redis}", "kv.store", "the text \"redis\""),
        ("kv: {consul: localhost}", "kv.consul", "the text \"localhost\""),
        ("kv: {consul: {acl_token: 12345}}", "kv.consul.acl_token", "a value of another kind"),
        ("kv: {consul: {watch_rate_limit: .nan}}", "kv.consul.watch_rate_limit", ""),
        ("node: {id: 12}", "node.id", "the number 12"),
        ("rings: {name: x}", "rings", "a section"),
        ("rings: [x]", "rings[0]", "the text \"x\""),
    ] {
        match load_yaml(text) {
            Err(ConfigError::WrongType { key: k, got: g, origin: Origin::File(_), .. }) => {
                assert_eq!((k.as_str(), g.as_str()), (key, got));
            }
            // The YAML parser does not read special numbers; refused either way.
            Err(ConfigError::Syntax { .. }) if got.is_empty() => {}
            other => panic!("{text}: {other:?}"),
        }
    }
    assert!(matches!(sets(&["memberlist.bind_port=x"]), Err(ConfigError::WrongType { origin: Origin::Set, .. })));
    assert!(matches!(sets(&["memberlist=x"]), Err(ConfigError::WrongType { .. })));
    assert!(matches!(sets(&["rings=x"]), Err(ConfigError::WrongType { .. })));
}

#[test]
fn combinations_that_cannot_work_are_refused() {
    let long = "x".repeat(256);
    let label = format!("memberlist.cluster_label={long}");
    let id = format!("node.id={long}");
    for (assignments, key) in [
        (vec!["kv.store=multi", "kv.multi.secondary=consul"], "kv.multi.secondary"),
        (vec!["kv.store=multi", "kv.multi.primary=multi"], "kv.multi.primary"),
        // Without the feature the store itself is refused, with it the servers are missing.
        (vec!["kv.store=multi", "kv.multi.primary=etcd"], if ETCD { "kv.etcd.endpoints" } else { "kv.multi.primary" }),
        (vec!["kv.store=etcd"], if ETCD { "kv.etcd.endpoints" } else { "kv.store" }),
        (vec!["kv.store=etcd", "kv.etcd.endpoints=host"], if ETCD { "kv.etcd.endpoints[0]" } else { "kv.store" }),
        (vec!["kv.store=etcd", "kv.etcd.password=x"], if ETCD { "kv.etcd.username" } else { "kv.store" }),
        (vec!["kv.store=etcd", "kv.etcd.tls_key_path=x"], if ETCD { "kv.etcd.tls_key_path" } else { "kv.store" }),
        (vec!["kv.store=consul", "kv.consul.host=consul"], "kv.consul.host"),
        // Without the feature TLS itself is refused, with it a key without its certificate.
        (
            vec!["kv.store=consul", "kv.consul.host=https://c:1", "kv.consul.tls_key_path=x"],
            if CONSUL_TLS { "kv.consul.tls_key_path" } else { "kv.consul.host" },
        ),
        (vec!["kv.store=consul", "kv.consul.host=http://c:1", "kv.consul.tls_enabled=true"], "kv.consul.host"),
        (vec!["kv.store=consul", "kv.consul.tls_ca_path=x"], "kv.consul.tls_enabled"),
        (vec!["kv.store=consul", "kv.consul.watch_rate_limit=-1"], "kv.consul.watch_rate_limit"),
        (vec!["kv.prefix=/x"], "kv.prefix"),
        (vec!["rings.0.name=a", "rings.0.replication_factor=0"], "rings[0].replication_factor"),
        (vec!["rings.0.name=a", "rings.0.heartbeat_timeout=15s"], "rings[0].heartbeat_timeout"),
        (vec!["rings.0.name=a", "rings.0.heartbeat_period=500ms"], "rings[0].heartbeat_period"),
        (vec!["rings.0.name=a", "rings.0.num_tokens=0"], "rings[0].num_tokens"),
        (vec!["rings.0.name=a", "rings.0.num_tokens=4097"], "rings[0].num_tokens"),
        (vec!["rings.0.name=a", "rings.1.name=a"], "rings[1].name"),
        (vec!["rings.0.key=a"], "rings[0].name"),
        (vec!["rings.0.name=a", "rings.0.key="], "rings[0].key"),
        (vec!["rings.0.name=a", "rings.0.zone_awareness_enabled=true"], "rings[0].zone_awareness_enabled"),
        (vec!["rings.0.name=a", "node.address="], "node.address"),
        (
            vec!["node.id=x", "rings.0.name=a", "rings.0.token_generation_strategy=spread-minimizing"],
            "rings[0].token_generation_strategy",
        ),
        (vec!["node.address=nowhere"], "node.address"),
        (vec!["node.address=::1:80"], "node.address"),
        (vec!["node.address=h:0"], "node.address"),
        (vec!["node.id="], "node.id"),
        (vec!["node.id=a\nb"], "node.id"),
        (vec![id.as_str()], "node.id"),
        (vec![label.as_str()], "memberlist.cluster_label"),
        (vec!["memberlist.transport=tcp", "memberlist.udp_buffer_size=11MiB"], "memberlist.udp_buffer_size"),
        (vec!["memberlist.transport=tcp", "memberlist.max_concurrent_writes=1"], "memberlist.max_concurrent_writes"),
        (vec!["memberlist.transport=tcp", "memberlist.packet_dial_timeout=0s"], "memberlist.packet_dial_timeout"),
        (vec!["memberlist.tls_enabled=true"], "memberlist.tls_enabled"),
        (vec!["memberlist.advertise_addr=gossip.local"], "memberlist.advertise_addr"),
        (vec!["memberlist.join_members=ok:1,dns+noport"], "memberlist.join_members[1]"),
        (vec!["memberlist.cidrs_allowed=10.0.0.0/8,10.0.0.1"], "memberlist.cidrs_allowed[1]"),
        (
            vec!["memberlist.cidrs_allowed=10.0.0.0/8", "memberlist.advertise_addr=192.0.2.1"],
            "memberlist.cidrs_allowed",
        ),
        (vec!["memberlist.join_members=dnssrv+"], "memberlist.join_members[0]"),
        (vec!["memberlist.join_members=dnssrvnoa+a/b"], "memberlist.join_members[0]"),
        (
            vec!["rings.0.name=a", "rings.0.token_generation_strategy=spread-minimizing"],
            "rings[0].token_generation_strategy",
        ),
        (vec!["rings.0.name=a", "rings.0.merge_strategy=dskit", "kv.store=multi"], "rings[0].merge_strategy"),
        (vec!["memberlist.min_join_backoff=2m"], "memberlist.min_join_backoff"),
        (vec!["memberlist.probe_interval=0s", "memberlist.probe_timeout=1ms"], "memberlist.probe_interval"),
        (vec!["memberlist.probe_timeout=1s"], "memberlist.probe_timeout"),
        (vec!["memberlist.udp_buffer_size=1MiB"], "memberlist.udp_buffer_size"),
        (vec!["runtime_config.file=a.yaml", "runtime_config.period=0s"], "runtime_config.period"),
        (vec!["runtime_config.file=http://x/y"], "runtime_config.file[0]"),
        (vec!["migration.enabled=true"], "migration.enabled"),
        (vec!["http.listen=localhost:8080"], "http.listen"),
    ] {
        let found = problems(&assignments);
        assert!(found.iter().any(|found| found == key), "{assignments:?}: {found:?}");
    }
}

#[test]
fn gossip_keys_that_cannot_work_are_refused() {
    let key = "MDEyMzQ1Njc4OWFiY2RlZg==";
    let keys = |keys: &[&str]| format!("memberlist.encryption_keys={}", keys.join(","));
    for (assignments, refused) in [
        (vec![keys(&["c2VjcmV0"])], "memberlist.encryption_keys[0]"),
        (vec![keys(&[key, "hunter2"])], "memberlist.encryption_keys[1]"),
        (vec![keys(&[key; 9])], "memberlist.encryption_keys"),
        (vec![keys(&[key]), "memberlist.gossip_verify_outgoing=false".to_owned()], "memberlist.gossip_verify_outgoing"),
    ] {
        let found = problems(&assignments.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(found, [refused], "{assignments:?}");
    }
}

#[test]
fn all_problems_are_listed_at_once() {
    let error = sets(&["memberlist.udp_buffer_size=1B", "memberlist.tls_enabled=true", "http.listen=x", "node.id="])
        .unwrap_err();
    let text = error.to_string();
    for part in [
        "node.id: ",
        "memberlist.udp_buffer_size: ",
        "memberlist.tls_enabled: TLS between nodes is not built yet, see CHANGELOG",
        "http.listen: ",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn what_works_is_accepted() {
    for assignments in [
        vec![],
        vec!["kv.store=multi"],
        vec!["kv.store=inmemory", "http.listen=", "node.address="],
        vec!["kv.store=consul", "kv.consul.host=http://[::1]:8500"],
        vec!["memberlist.profile=grafana", "memberlist.advertise_addr=10.1.2.3"],
        vec!["memberlist.join_members=a,b:1,dns+c:2,10.0.0.1,[::1]:7946"],
        vec!["rings.0.name=a", "http.listen=[::]:0"],
        vec!["memberlist.encryption_keys=MDEyMzQ1Njc4OWFiY2RlZg==,MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="],
        vec![
            "memberlist.encryption_keys=MDEyMzQ1Njc4OWFiY2RlZg==",
            "memberlist.gossip_verify_incoming=false",
            "memberlist.gossip_verify_outgoing=false",
        ],
        vec!["memberlist.gossip_verify_outgoing=false"],
        vec!["memberlist.compression=lzw"],
        vec!["memberlist.compression=snappy"],
    ] {
        if let Err(error) = sets(&assignments) {
            panic!("{assignments:?}: {error}");
        }
    }
}

#[test]
fn a_profile_gives_what_is_not_set() {
    let config = sets(&["memberlist.profile=wan", "memberlist.gossip_nodes=9"]).unwrap().config;
    let settings = config.memberlist.settings();
    assert_eq!((settings.gossip_nodes, settings.gossip_interval), (9, Duration::from_millis(500)));
    assert_eq!((settings.probe_interval.as_secs(), settings.suspicion_mult), (5, 6));
    let grafana = Profile::Grafana.settings();
    assert_eq!(
        (grafana.probe_timeout.as_secs(), grafana.stream_timeout.as_secs(), grafana.stream_ping_fallback),
        (2, 2, false)
    );
    // Its packets of 10 MiB are for TCP.
    assert_eq!(sets(&["memberlist.profile=grafana"]).unwrap().config.memberlist.settings().udp_buffer_size, 1400);
    assert_eq!(Profile::Local.settings().retransmit_factor, 2);
}

#[test]
fn unreadable_files_are_told_apart() {
    let dir = TempDir::new().unwrap();
    let load = |path: &Path| Config::loader().file(path).load().unwrap_err();
    assert!(matches!(load(&dir.path().join("none.yaml")), ConfigError::NotFound { .. }));
    let sub = dir.path().join("dir.yaml");
    fs::create_dir(&sub).unwrap();
    assert!(matches!(load(&sub), ConfigError::Unreadable { .. }));
    let (_d, ini) = written("a.ini", "x=1");
    assert!(matches!(load(&ini), ConfigError::Format { .. }));
    let (_d, large) = written("a.yaml", &"# x\n".repeat(300_000));
    assert!(matches!(load(&large), ConfigError::TooLarge { .. }));
    let (_d, two) = written("a.yaml", "node: {id: a}\n---\nnode: {id: b}\n");
    assert!(load(&two).to_string().contains("documents"));
    for (name, text) in [("a.yaml", "node: {id: a"), ("a.toml", "node = "), ("a.json", "{\"node\":")] {
        let (_d, path) = written(name, text);
        assert!(matches!(load(&path), ConfigError::Syntax { .. }), "{name}");
    }
    assert!(Config::load(dir.path().join("none.yaml")).is_err());
}

#[test]
fn secrets_are_never_printed() {
    let text = format!("{MINIMAL}kv: {{consul: {{acl_token: hunter2}}, etcd: {{password: hunter2}}}}\n");
    let loaded = load_yaml(&text).unwrap();
    assert_eq!(loaded.config.kv.consul.acl_token.expose(), "hunter2");
    let rows = serde_json::to_string(&loaded.rows()).unwrap();
    let printed =
        [format!("{loaded:?}"), loaded.to_yaml(), rows, serde_json::to_string(&loaded.config).unwrap()].join("\n");
    assert!(printed.contains("********") && !printed.contains("hunter2"));
    // Nor in errors, where the value is the very subject.
    let wrong = load_yaml(&format!("{MINIMAL}memberlist: {{encryption_keys: [hunter2, 5]}}\n")).unwrap_err();
    let refused = load_yaml(&format!("{MINIMAL}memberlist: {{encryption_keys: [hunter2]}}\n")).unwrap_err();
    let misspelt = sets(&["kv.consul.acl_tokn=hunter2"]).unwrap_err();
    for error in [wrong, refused, misspelt] {
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
    }
}

#[test]
fn what_is_printed_loads_to_the_same_configuration() {
    let (_dir, path) = written("all.yaml", ALL_KEYS);
    let loaded = Config::loader().file(&path).set("rings.1.name=second").set("kv.store=multi").load().unwrap();
    let yaml = loaded.to_yaml();
    assert!(yaml.contains("id: \"ingester-1\"  # file "), "{yaml}");
    assert!(yaml.contains("store: \"multi\"  # --set"), "{yaml}");
    assert_eq!(load_yaml(&yaml).unwrap().config, loaded.config);
    let rows = loaded.rows();
    assert_eq!(rows.len(), loaded.origins.len());
    assert_eq!(rows[0].key, "node.id");
}

#[test]
fn a_configuration_can_be_written_in_code() {
    let built = Config::builder("ingester-1")
        .zone("zone-a")
        .address("10.0.0.5:9095")
        .bind("127.0.0.1".parse().unwrap(), 0)
        .join_members(["a:1"])
        .cluster_label("prod")
        .profile(Profile::Local)
        .multi(KvStore::Consul, KvStore::Memberlist)
        .consul_host("consul:8500")
        .ring("ingester")
        .ring_with(RingConfig { num_tokens: 64, ..RingConfig::named("b") })
        .runtime_config_file("runtime.yaml")
        .http_listen("")
        .with(|config| config.memberlist.max_join_retries = 0)
        .build()
        .unwrap();
    let loaded = load_yaml(
        "node: {id: ingester-1, zone: zone-a, address: '10.0.0.5:9095'}\n\
         memberlist: {bind_addr: 127.0.0.1, bind_port: 0, join_members: 'a:1', cluster_label: prod, profile: local, max_join_retries: 0}\n\
         kv: {store: multi, multi: {primary: consul, secondary: memberlist}, consul: {host: 'consul:8500'}}\n\
         rings: [{name: ingester}, {name: b, num_tokens: 64}]\n\
         runtime_config: {file: runtime.yaml}\nhttp: {listen: ''}\n",
    );
    assert_eq!(built, loaded.unwrap().config);
    assert!(matches!(Config::builder("").build(), Err(ConfigError::Invalid(_))));
}

#[test]
fn a_host_may_carry_the_configuration_inside_its_own() {
    #[derive(serde::Deserialize)]
    struct Host {
        annulus: Config,
    }
    let text = r#"{"annulus": {"node": {"id": "a"}, "memberlist": {"join_members": "a,b", "leave_timeout": "5s", "udp_buffer_size": "1KiB"}}}"#;
    let host: Host = serde_json::from_str(text).unwrap();
    assert_eq!(host.annulus.memberlist.join_members, ["a", "b"]);
    assert_eq!(host.annulus.memberlist.leave_timeout, Duration::from_secs(5));
    assert!(serde_json::from_str::<Host>(r#"{"annulus": {"kv": {"consul": {"hots": "x"}}}}"#).is_err());
}

#[test]
fn the_checked_in_reference_is_the_generated_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference/configuration.md");
    let expected = reference::markdown();
    if std::env::var_os("ANNULUS_BLESS").is_some() {
        fs::write(&path, &expected).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap();
    assert_eq!(found, expected, "run this test with ANNULUS_BLESS=1 to write {}", path.display());
}

/// Texts that look like configuration, so that they get further than noise does.
fn fragments() -> impl Strategy<Value = String> {
    let words = prop::sample::select(vec![
        "memberlist",
        "kv",
        "rings",
        "multi_kv_config",
        "primary",
        "mirror_enabled",
        ":",
        " ",
        "\n",
        "  ",
        "- ",
        "[",
        "]",
        "{",
        "}",
        ",",
        "&a ",
        "*a",
        "\"",
        "'",
        "#",
        "|",
        ">",
        "!!int ",
        "? ",
        "---",
        "\t",
        "true",
        "7946",
        "0x",
        ".inf",
        "~",
        "<<",
        "%",
        "\r",
        "=",
        "\u{feff}",
        "é",
    ]);
    prop::collection::vec(words, 0..60).prop_map(|words| words.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn no_bytes_and_no_fragments_panic(noise in prop::collection::vec(any::<u8>(), 0..200), text in fragments(), set in ".{0,40}") {
        let dir = TempDir::new().unwrap();
        for name in ["a.yaml", "a.toml", "a.json"] {
            let path = dir.path().join(name);
            for bytes in [noise.as_slice(), text.as_bytes()] {
                fs::write(&path, bytes).unwrap();
                let _ = Config::loader().file(&path).load();
            }
        }
        let _ = Config::loader().set(set.as_str()).set(format!("rings.{set}=1")).load();
    }
}
