//! The runtime file during a migration: whatever is wrong with it changes nothing, and is told.

#![allow(clippy::unwrap_used)]

mod support;

#[path = "support/checker.rs"]
mod checker;
#[path = "support/fleet.rs"]
mod fleet;

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::{Arc, Mutex};

use annulus::clock::Now;
use annulus::config::KvStore;
use annulus::kv::{LwwMap, StoreKind};
use annulus::migration::MigrationStatus;
use annulus::stores::memory::Memory;
use annulus::{Fault, JSON_PREFIX, Node, NodeEvent, Operation};
use checker::Workload;
use fleet::{Fleet, RING, RING_KEY, RuntimeFile, two_stores, until};
use futures_util::StreamExt as _;
use serde_json::{Value, json};

const MIRROR: &str = "multi_kv_config: { mirror_enabled: true }\n";
const FLIPPED: &str = "multi_kv_config: { mirror_enabled: true, primary: memberlist }\n";
const FLIPPED_BACK: &str = "multi_kv_config: { mirror_enabled: true, primary: inmemory }\n";

fn customise(path: String) -> impl Fn(usize, &mut annulus::Config) + Send + Sync + 'static {
    move |_, config| {
        two_stores(config, KvStore::Inmemory, KvStore::Memberlist);
        config.runtime_config.file = vec![path.clone()];
    }
}

/// Everything that happened on a node since this was called.
fn record(node: &Node) -> Arc<Mutex<Vec<NodeEvent>>> {
    let (events, seen) = (node.events(), Arc::<Mutex<Vec<NodeEvent>>>::default());
    let into = seen.clone();
    tokio::spawn(events.for_each(move |event| {
        into.lock().unwrap().push(event);
        std::future::ready(())
    }));
    seen
}

/// What must not change while the file is bad.
fn standing(node: &Node) -> (StoreKind, bool, u64) {
    let status: Arc<MigrationStatus> = node.migration().unwrap();
    (status.primary, status.mirror_enabled, status.flips_total)
}

/// A bad file: how it is made, and what must be said about it.
struct Bad {
    what: &'static str,
    make: fn(&RuntimeFile),
    told: &'static [&'static str],
}

const BAD: [Bad; 6] = [
    Bad {
        what: "half-written",
        make: |file| file.scribble("multi_kv_config: { mirror_enabled: true, pri"),
        told: &["runtime.yaml"],
    },
    Bad { what: "missing", make: RuntimeFile::remove, told: &["runtime.yaml", "no such file"] },
    Bad {
        what: "unknown store",
        make: |file| file.write("multi_kv_config: { primary: zookeeper }\n"),
        told: &["runtime.yaml", "zookeeper", "memberlist"],
    },
    Bad {
        what: "a store that this node does not have",
        make: |file| file.write("multi_kv_config: { primary: consul, mirror_enabled: false }\n"),
        told: &["runtime.yaml", "consul", "inmemory"],
    },
    Bad {
        what: "wrong type",
        make: |file| file.write("multi_kv_config: { mirror_enabled: maybe }\n"),
        told: &["runtime.yaml", "mirror_enabled", "true or false"],
    },
    Bad {
        what: "unknown key",
        make: |file| file.write("multi_kv_config: { mirror_enable: false }\n"),
        told: &["runtime.yaml", "multi_kv_config.mirror_enable"],
    },
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_file_at_any_step_changes_nothing_is_told_and_a_good_one_is_taken_again() {
    let file = RuntimeFile::new("multi_kv_config: {}\n");
    let fleet = Fleet::start(2, customise(file.path())).await;
    let workload = Workload::start(&fleet.nodes);
    for (good, expected) in [
        ("multi_kv_config: {}\n", (StoreKind::InMemory, false, 0)),
        (MIRROR, (StoreKind::InMemory, true, 0)),
        (FLIPPED, (StoreKind::Memberlist, true, 1)),
        (FLIPPED_BACK, (StoreKind::InMemory, true, 2)),
        (FLIPPED, (StoreKind::Memberlist, true, 3)),
    ] {
        file.write(good);
        for node in &fleet.nodes {
            until(&format!("{good} is in force"), async || standing(node) == expected).await;
        }
        for bad in &BAD {
            let seen: Vec<_> = fleet.nodes.iter().map(record).collect();
            (bad.make)(&file);
            for (node, seen) in fleet.nodes.iter().zip(&seen) {
                let view = || node.runtime_config().unwrap();
                until(&format!("{} is noticed", bad.what), async || {
                    view().last_error.as_ref().is_some_and(|error| bad.told.iter().all(|text| error.contains(text)))
                })
                .await;
                let view = view();
                assert!(!view.healthy, "{}", bad.what);
                let reason = view.last_error.clone().unwrap();
                until(&format!("{} is told as an event", bad.what), async || {
                    let told = |event: &NodeEvent| matches!(event, NodeEvent::RuntimeConfigRefused { reason: told } if *told == reason);
                    seen.lock().unwrap().iter().any(told)
                })
                .await;
                assert_eq!(standing(node), expected, "{} changed something", bad.what);
                let page = node.metrics();
                assert!(page.lines().any(|line| line == "runtime_config_last_reload_successful 0"), "{page}");
            }
            workload.goes_on().await;
            for node in &fleet.nodes {
                assert_eq!(standing(node), expected, "{} changed something", bad.what);
            }
            file.write(good);
            for node in &fleet.nodes {
                until("the good file is taken again", async || node.runtime_config().unwrap().healthy).await;
                assert!(node.runtime_config().unwrap().last_error.is_none());
                assert_eq!(standing(node), expected);
            }
        }
    }
    let report = workload.stop().await;
    report.assert_flawless();
    report.assert_nothing_lost(&fleet.nodes).await;
    fleet.complete().await;
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_file_and_one_without_the_section_change_nothing() {
    let file = RuntimeFile::new(FLIPPED);
    let fleet = Fleet::start(1, customise(file.path())).await;
    let node = &fleet.nodes[0];
    for text in ["", "\n", "# nothing\n", "overrides: { tenant: { limit: 1 } }\n", "multi_kv_config:\n", "{}\n"] {
        let reloads = node.runtime_config().unwrap().reloads;
        file.write(text);
        until(&format!("{text:?} is read"), async || node.runtime_config().unwrap().reloads > reloads).await;
        let status = node.migration().unwrap();
        assert_eq!((status.primary, status.mirror_enabled), (StoreKind::Memberlist, true), "{text:?}");
    }
    fleet.stop().await;
}

/// Does what the kubelet does: a new directory, and `..data` swapped to it by a rename. The path of the file and the
/// link behind it stay the same.
fn swap_config_map(directory: &Path, version: &str, text: &str) {
    let data = directory.join(format!("..{version}"));
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("runtime.yaml"), text).unwrap();
    symlink(format!("..{version}"), directory.join("..data_tmp")).unwrap();
    std::fs::rename(directory.join("..data_tmp"), directory.join("..data")).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_symlink_swap_of_a_config_map_is_noticed() {
    let file = RuntimeFile::missing();
    let directory = file.directory().to_owned();
    swap_config_map(&directory, "2026_01", MIRROR);
    symlink("..data/runtime.yaml", directory.join("runtime.yaml")).unwrap();
    let fleet = Fleet::start(2, customise(file.path())).await;
    fleet.mirrored().await;
    for (version, text, primary) in [
        ("2026_02", FLIPPED, StoreKind::Memberlist),
        ("2026_03", FLIPPED_BACK, StoreKind::InMemory),
        ("2026_04", FLIPPED, StoreKind::Memberlist),
    ] {
        swap_config_map(&directory, version, text);
        fleet.primary(primary).await;
    }
    fleet.complete().await;
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_is_not_missed_when_the_watcher_dies_over_it() {
    let file = RuntimeFile::new(MIRROR);
    let fleet = Fleet::start(1, customise(file.path())).await;
    let node = &fleet.nodes[0];
    for round in 0..8 {
        let (text, primary) =
            if round % 2 == 0 { (FLIPPED, StoreKind::Memberlist) } else { (FLIPPED_BACK, StoreKind::InMemory) };
        file.write(text);
        // The reading is under way on another thread when the actor that asked for it dies.
        node.reload_runtime_config();
        node.drill("config-watcher", Fault::Panic).unwrap();
        fleet.primary(primary).await;
    }
    fleet.stop().await;
}

/// Whether the present complaint about the runtime file contains this.
fn told(node: &Node, text: &str) -> bool {
    node.runtime_config().unwrap().last_error.as_ref().is_some_and(|error| error.contains(text))
}

async fn write(node: &Node, key: &str) {
    let insert = |old: Option<LwwMap<Value>>| {
        let mut map = old.unwrap_or_default();
        map.insert(Now::read(), "x", json!(1));
        Ok(Some(map))
    };
    node.kv::<LwwMap<Value>>(JSON_PREFIX).cas(key, insert).await.unwrap();
}

/// Whether the in-memory store was ever written to.
fn touched(memory: &Memory) -> bool {
    memory.bytes(RING_KEY).is_some() || memory.bytes("annulus/kv/first").is_some()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_starts_without_its_file_holds_writes_until_it_appears() {
    let file = RuntimeFile::missing();
    let mut fleet = Fleet::empty(customise(file.path()));
    let node = fleet.add(1).await;
    until("the missing file is told", async || told(&node, "runtime.yaml")).await;
    let writer = tokio::spawn({
        let node = node.clone();
        async move { write(&node, "first").await }
    });
    until("the write is held", async || node.migration().unwrap().in_flight >= 2).await;
    assert!(node.migration().unwrap().waiting_for_runtime);
    assert!(node.ready().is_err() && node.ring(RING).get(1, Operation::Read).is_err());
    // A bad file is no permission to begin.
    file.write("multi_kv_config: { primary: zookeeper }\n");
    until("the bad file is told", async || told(&node, "zookeeper")).await;
    assert!(node.migration().unwrap().waiting_for_runtime && !writer.is_finished());
    assert!(!touched(&fleet.memory), "nothing may be written before it is known where to");

    file.write("multi_kv_config: { primary: memberlist, mirror_enabled: false }\n");
    writer.await.unwrap();
    fleet.complete().await;
    assert_eq!(standing(&node), (StoreKind::Memberlist, false, 1));
    assert!(!touched(&fleet.memory), "the static primary is not the one that the file names");
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_starts_after_its_section_went_away_says_that_it_is_on_another_store_than_before() {
    let data = tempfile::tempdir().unwrap();
    let file = RuntimeFile::new("multi_kv_config: {}\n");
    let (shared, data_dir) = (customise(file.path()), data.path().display().to_string());
    let mut fleet = Fleet::empty(move |number, config| {
        shared(number, config);
        config.node.data_dir.clone_from(&data_dir);
    });
    let warning = |node: &Node| node.runtime_config().unwrap().warning.clone();
    for (text, primary, warned) in [
        // Nothing was named yet.
        ("multi_kv_config: {}\n", StoreKind::InMemory, false),
        (FLIPPED, StoreKind::Memberlist, false),
        // Gone while it ran, or while it did not: it starts on the static primary all the same.
        ("# gone\n", StoreKind::InMemory, true),
        ("", StoreKind::InMemory, true),
        (MIRROR, StoreKind::InMemory, true),
        (FLIPPED_BACK, StoreKind::InMemory, false),
        ("# gone\n", StoreKind::InMemory, false),
    ] {
        file.write(text);
        let node = fleet.add(1).await;
        until("the file is read", async || !node.runtime_config().unwrap().hash.is_empty()).await;
        until(&format!("{text:?} is in force"), async || standing(&node).0 == primary).await;
        assert_eq!(warning(&node).is_some(), warned, "{text:?}: {:?}", warning(&node));
        if warned {
            let text = warning(&node).unwrap();
            assert!(text.contains("named memberlist") && text.contains("on inmemory"), "{text}");
        }
        if text == FLIPPED {
            let reloads = node.runtime_config().unwrap().reloads;
            file.write("# gone\n");
            until("the section is gone", async || node.runtime_config().unwrap().reloads > reloads).await;
            assert_eq!((standing(&node).0, warning(&node)), (primary, None), "a running node keeps its primary");
        }
        node.leave().await;
        fleet.take("node-1");
    }
    // It is put back: so is the primary, and there is nothing to say any more.
    file.write(FLIPPED);
    let node = fleet.add(1).await;
    node.leave().await;
    fleet.take("node-1");
    file.write("# gone\n");
    let node = fleet.add(1).await;
    until("it says so", async || warning(&node).is_some()).await;
    let cache = std::fs::read_dir(data.path()).unwrap().next().expect("the cache").unwrap().path();
    let without_section = std::fs::read(&cache).unwrap();
    file.write(FLIPPED);
    fleet.primary(StoreKind::Memberlist).await;
    assert_eq!(warning(&node), None);
    node.leave().await;
    fleet.take("node-1");

    // As an event, too: here it learns all that after it has started, so that there is somebody to hear it.
    std::fs::remove_file(&cache).unwrap();
    file.remove();
    let node = fleet.add(1).await;
    let seen = record(&node);
    std::fs::write(&cache, without_section).unwrap();
    file.write("# gone\n");
    until("the event comes", async || {
        let gone = |event: &NodeEvent| {
            matches!(event, NodeEvent::RuntimePrimaryGone { last, primary } if last == "memberlist" && primary == "inmemory")
        };
        seen.lock().unwrap().iter().any(gone)
    })
    .await;
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_starts_with_a_bad_file_goes_by_the_last_good_one_that_it_kept() {
    let data = tempfile::tempdir().unwrap();
    let file = RuntimeFile::new("multi_kv_config: { primary: memberlist, mirror_enabled: false }\n");
    let (path, data_dir) = (file.path(), data.path().display().to_string());
    let shared = customise(path);
    let mut fleet = Fleet::empty(move |number, config| {
        shared(number, config);
        config.node.data_dir.clone_from(&data_dir);
    });
    let node = fleet.add(1).await;
    fleet.complete().await;
    node.leave().await;
    fleet.take("node-1");

    let bad: [fn(&RuntimeFile); 2] = [|file| file.scribble("multi_kv_config: { primary: memb"), RuntimeFile::remove];
    for make in bad {
        make(&file);
        let node = fleet.add(1).await;
        write(&node, "first").await;
        assert_eq!(standing(&node), (StoreKind::Memberlist, false, 1));
        let view = node.runtime_config().unwrap();
        assert!(!view.healthy && view.last_error.is_some(), "{view:?}");
        assert_eq!(view.config.multi_kv_config.primary.as_deref(), Some("memberlist"));
        fleet.complete().await;
        assert!(!touched(&fleet.memory));
        node.leave().await;
        fleet.take("node-1");
    }

    // A damaged cache is not believed: better to wait.
    let cache = std::fs::read_dir(data.path()).unwrap().next().expect("the cache").unwrap().path();
    let text = std::fs::read_to_string(&cache).unwrap().replace("memberlist", "inmemory");
    std::fs::write(&cache, text).unwrap();
    let node = fleet.add(1).await;
    until("the missing file is told", async || node.runtime_config().unwrap().last_error.is_some()).await;
    assert!(node.migration().unwrap().waiting_for_runtime);
    assert!(!touched(&fleet.memory));
    file.write(FLIPPED_BACK);
    fleet.complete().await;
    assert_eq!(standing(&node), (StoreKind::InMemory, true, 0));
    fleet.stop().await;
}
