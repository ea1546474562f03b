#![allow(clippy::unwrap_used)]
//! The file that is reloaded: what it may say, how files merge, and that nothing but a good file changes anything.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::config::KvStore;

/// A directory with runtime files, and a loader of them.
struct Files {
    dir: TempDir,
    loader: RuntimeLoader,
}

impl Files {
    fn new(texts: &[&str]) -> Self {
        let dir = TempDir::new().unwrap();
        let paths: Vec<PathBuf> = (0..texts.len()).map(|i| dir.path().join(format!("{i}.yaml"))).collect();
        let files = Self { dir, loader: RuntimeLoader::new(paths) };
        for (index, text) in texts.iter().enumerate() {
            files.write(index, text);
        }
        files
    }

    fn path(&self, index: usize) -> PathBuf {
        self.dir.path().join(format!("{index}.yaml"))
    }

    fn write(&self, index: usize, text: &str) {
        fs::write(self.path(index), text).unwrap();
    }

    fn error(&mut self) -> RuntimeError {
        match self.loader.poll() {
            Poll::Failed(error) => error,
            other => panic!("expected a failure, got {other:?}"),
        }
    }
}

fn config(mirror_enabled: Option<bool>, primary: Option<&str>) -> RuntimeConfig {
    RuntimeConfig { multi_kv_config: MultiKvConfig { mirror_enabled, primary: primary.map(str::to_owned) } }
}

fn parse(text: &str) -> Result<RuntimeConfig, RuntimeError> {
    RuntimeConfig::parse(text.as_bytes(), Path::new("r.yaml"))
}

#[test]
fn the_section_of_mimir_and_loki_is_read() {
    for (text, mirror, primary) in [
        ("multi_kv_config: { mirror_enabled: true, primary: memberlist }", Some(true), Some("memberlist")),
        ("multi_kv_config:\n  mirror_enabled: false\n", Some(false), None),
        ("multi_kv_config:\n  primary: consul\n", None, Some("consul")),
        ("multi_kv_config: {primary: '', mirror_enabled: }", None, None),
        ("multi_kv_config:", None, None),
        ("multi_kv_config: {}", None, None),
        ("", None, None),
        ("# nothing yet\n", None, None),
        ("\u{feff}multi_kv_config: {primary: etcd}", None, Some("etcd")),
        ("{\n\t\"multi_kv_config\": {\"primary\": \"inmemory\"}\n}", None, Some("inmemory")),
        (
            "overrides:\n  t1: {ingestion_rate: 5, x: [a, {b: c}]}\nmulti_kv_config: {mirror_enabled: true}\n",
            Some(true),
            None,
        ),
        ("x: &p memberlist\nmulti_kv_config: {primary: *p}\n", None, Some("memberlist")),
    ] {
        assert_eq!(parse(text).unwrap(), config(mirror, primary), "{text}");
    }
}

#[test]
fn a_mistake_in_the_section_is_an_error_that_names_the_key() {
    for (text, key) in [
        ("multi_kv_config: {mirror_enable: true}", "multi_kv_config.mirror_enable"),
        ("multi_kv_config: {secondary: consul}", "multi_kv_config.secondary"),
        ("multi_kv_config: {<<: {primary: consul}}", "multi_kv_config.<<"),
        ("<<: {multi_kv_config: {primary: consul}}", "<<"),
    ] {
        assert!(matches!(parse(text), Err(RuntimeError::UnknownKey { key: k, .. }) if k == key), "{text}");
    }
    for (text, key) in [
        ("multi_kv_config: 5", "multi_kv_config"),
        ("multi_kv_config: [mirror_enabled]", "multi_kv_config"),
        ("multi_kv_config: {mirror_enabled: 'true'}", "multi_kv_config.mirror_enabled"),
        ("multi_kv_config: {mirror_enabled: yes}", "multi_kv_config.mirror_enabled"),
        ("multi_kv_config: {mirror_enabled: 1}", "multi_kv_config.mirror_enabled"),
        ("multi_kv_config: {primary: [consul]}", "multi_kv_config.primary"),
        ("multi_kv_config: {primary: 1}", "multi_kv_config.primary"),
    ] {
        assert!(matches!(parse(text), Err(RuntimeError::WrongType { key: k, .. }) if k == key), "{text}");
    }
    for name in ["memberlst", "Memberlist", "multi", " consul", "consul "] {
        let text = format!("multi_kv_config: {{primary: '{name}'}}");
        assert!(matches!(parse(&text), Err(RuntimeError::UnknownStore { name: n, .. }) if n == name), "{text}");
    }
}

#[test]
fn a_file_cut_anywhere_is_an_error_or_says_less_but_never_something_else() {
    let whole = "multi_kv_config:\n  mirror_enabled: true\n  primary: memberlist\n";
    for cut in 0..whole.len() {
        if let Ok(config) = parse(whole.get(..cut).unwrap()) {
            let section = config.multi_kv_config;
            assert!(section.mirror_enabled != Some(false), "{cut}");
            assert!(section.primary.is_none_or(|primary| primary == "memberlist"), "{cut}");
        }
    }
    for text in [
        "mult",
        "multi_kv_config:\n  prim",
        "multi_kv_config: {primary: memberlist",
        "multi_kv_config:\n  primary: member",
    ] {
        assert!(parse(text).is_err(), "{text}");
    }
    for text in
        ["multi_kv_config:\n\tprimary: consul\n", "a: 1\n---\nb: 1\n", "multi_kv_config: {}\nmulti_kv_config: {}\n"]
    {
        assert!(matches!(parse(text), Err(RuntimeError::Syntax { .. })), "{text}");
    }
}

#[test]
fn a_bomb_of_aliases_in_another_section_does_no_harm_and_cannot_set_ours() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\np: &p memberlist\n".to_owned();
    for level in 1..40 {
        bomb.push_str(&format!("a{level}: &a{level} [{}]\n", vec![format!("*a{}", level - 1); 10].join(", ")));
    }
    assert_eq!(parse(&format!("{bomb}multi_kv_config: {{primary: consul}}\n")).unwrap(), config(None, Some("consul")));
    let ours = parse(&format!("{bomb}multi_kv_config: {{primary: *p}}\n"));
    assert!(ours.unwrap_err().to_string().contains("aliases"));
}

#[test]
fn later_files_go_over_earlier_ones_key_by_key() {
    for (files, mirror, primary) in [
        (
            vec!["multi_kv_config: {mirror_enabled: true}", "multi_kv_config: {primary: consul}"],
            Some(true),
            Some("consul"),
        ),
        (
            vec!["multi_kv_config: {primary: consul}", "multi_kv_config: {primary: memberlist}"],
            None,
            Some("memberlist"),
        ),
        // A null section is an empty one and takes nothing back; nor does an empty file.
        (vec!["multi_kv_config: {primary: consul}", "multi_kv_config:"], None, Some("consul")),
        (vec!["multi_kv_config: {primary: consul}", ""], None, Some("consul")),
        (vec!["multi_kv_config:", "multi_kv_config: {primary: consul}"], None, Some("consul")),
        // A null value replaces a value.
        (
            vec!["multi_kv_config: {primary: consul, mirror_enabled: true}", "multi_kv_config: {primary: }"],
            Some(true),
            None,
        ),
        (vec!["multi_kv_config: {primary: consul}", "multi_kv_config: {primary: ''}"], None, None),
        (vec!["overrides: {a: 1}", "overrides: 5", "multi_kv_config: {mirror_enabled: false}"], Some(false), None),
    ] {
        let mut files = Files::new(&files);
        assert_eq!(files.loader.poll(), Poll::Changed(config(mirror, primary)));
    }
}

#[test]
fn a_mistake_in_one_file_fails_the_set_and_names_that_file() {
    let mut files = Files::new(&["multi_kv_config: {primary: consul}", "multi_kv_config: consul"]);
    let second = files.path(1);
    assert!(matches!(files.error(), RuntimeError::WrongType { file, .. } if file == second));
    assert_eq!(files.loader.last_good(), None);
}

#[test]
fn the_same_bytes_are_no_change() {
    let mut files = Files::new(&["multi_kv_config: {mirror_enabled: true}\n"]);
    assert_eq!(files.loader.hash(), "");
    assert_eq!(files.loader.poll(), Poll::Changed(config(Some(true), None)));
    assert_eq!(files.loader.poll(), Poll::Unchanged);
    // Written again, as a tool does that knows nothing of changes.
    files.write(0, "multi_kv_config: {mirror_enabled: true}\n");
    assert_eq!(files.loader.poll(), Poll::Unchanged);
    let before = files.loader.hash();
    files.write(0, "multi_kv_config: {mirror_enabled: false}\n");
    assert_eq!(files.loader.poll(), Poll::Changed(config(Some(false), None)));
    assert_ne!(files.loader.hash(), before);
}

#[test]
fn an_emptied_file_is_a_change_to_no_opinion_and_not_an_error() {
    let mut files = Files::new(&["multi_kv_config: {primary: memberlist}"]);
    assert_eq!(files.loader.poll(), Poll::Changed(config(None, Some("memberlist"))));
    files.write(0, "");
    assert_eq!(files.loader.poll(), Poll::Changed(RuntimeConfig::default()));
    assert!(files.loader.healthy());
}

#[test]
fn a_bad_file_keeps_the_last_good_one_until_it_is_good_again() {
    let good = "multi_kv_config: {primary: consul}\n";
    let mut files = Files::new(&[good]);
    assert_eq!(files.loader.poll(), Poll::Changed(config(None, Some("consul"))));
    let hash = files.loader.hash();
    files.write(0, "multi_kv_config: {primary: consul");
    let error = files.error();
    assert!(matches!(error, RuntimeError::Syntax { .. }));
    assert_eq!((files.loader.healthy(), files.loader.last_error()), (false, Some(&error)));
    assert_eq!((files.loader.last_good(), files.loader.hash()), (Some(&config(None, Some("consul"))), hash.clone()));
    // Failing again is told again.
    assert_eq!(files.error(), error);
    // Back to the last good bytes: nothing to announce, but healthy.
    files.write(0, good);
    assert_eq!(files.loader.poll(), Poll::Unchanged);
    assert_eq!((files.loader.healthy(), files.loader.last_error(), files.loader.hash()), (true, None, hash));
    files.write(0, "multi_kv_config: {primary: memberlist}");
    assert_eq!(files.loader.poll(), Poll::Changed(config(None, Some("memberlist"))));
}

#[test]
fn a_missing_file_a_forbidden_one_and_a_huge_one_are_told_apart() {
    let mut files = Files::new(&["multi_kv_config: {primary: consul}"]);
    assert!(matches!(files.loader.poll(), Poll::Changed(_)));
    let path = files.path(0);
    fs::remove_file(&path).unwrap();
    assert_eq!(files.error(), RuntimeError::NotFound { file: path.clone() });
    fs::create_dir(&path).unwrap();
    assert!(matches!(files.error(), RuntimeError::Unreadable { .. }));
    fs::remove_dir(&path).unwrap();
    files.write(0, &"# x\n".repeat(300_000));
    assert_eq!(files.error(), RuntimeError::TooLarge { file: path.clone() });
    assert_eq!(files.loader.last_good(), Some(&config(None, Some("consul"))));
}

#[cfg(unix)]
#[test]
fn a_file_that_may_not_be_read_says_so() {
    use std::os::unix::fs::PermissionsExt;
    let mut files = Files::new(&["multi_kv_config: {}"]);
    let path = files.path(0);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    // The superuser may read everything, and then this cannot be shown.
    if fs::read(&path).is_err() {
        assert_eq!(files.error(), RuntimeError::Permission { file: path });
    }
}

#[test]
fn a_store_that_this_node_does_not_have_is_refused() {
    let mut files = Files::new(&["multi_kv_config: {primary: memberlist}"]);
    files.loader = files.loader.clone().with_stores(vec![KvStore::Consul, KvStore::Memberlist]);
    assert_eq!(files.loader.poll(), Poll::Changed(config(None, Some("memberlist"))));
    files.write(0, "multi_kv_config: {primary: inmemory, mirror_enabled: true}");
    let error = files.error().to_string();
    assert!(error.contains("no store `inmemory` here; use one of consul, memberlist"), "{error}");
    assert_eq!(files.loader.last_good(), Some(&config(None, Some("memberlist"))));
}

#[test]
fn without_files_there_is_nothing_to_load_and_nothing_wrong() {
    let mut loader = RuntimeLoader::new(Vec::new());
    assert_eq!(loader.poll(), Poll::Unchanged);
    assert!(loader.healthy() && loader.last_good().is_none());
}

#[test]
fn the_hash_depends_on_names_and_order() {
    let hash = |names: [&str; 2]| {
        let dir = Path::new("/proc/self");
        let mut loader = RuntimeLoader::new(names.iter().map(|name| dir.join(name)).collect());
        let _ = loader.poll();
        loader.hash()
    };
    // Nothing good was loaded, so there is no hash to compare with other nodes.
    assert_eq!(hash(["none-a", "none-b"]), "");
    let dir = TempDir::new().unwrap();
    for name in ["a", "b"] {
        fs::write(dir.path().join(name), format!("section_{name}: 1")).unwrap();
    }
    let hashes: Vec<String> = [["a", "b"], ["b", "a"], ["a", "a"], ["a", "b"]]
        .iter()
        .map(|names| {
            let mut loader = RuntimeLoader::new(names.iter().map(|name| dir.path().join(name)).collect());
            assert!(matches!(loader.poll(), Poll::Changed(_)));
            loader.hash()
        })
        .collect();
    assert_eq!(hashes[0], hashes[3]);
    assert!(hashes[0] != hashes[1] && hashes[0] != hashes[2]);
    assert_eq!(hashes[0].len(), 64);
}

/// Kubernetes: `runtime.yaml -> ..data/runtime.yaml`, `..data -> ..2026_1`, and an update renames a new `..data` over
/// the old.
#[cfg(unix)]
#[test]
fn the_swap_of_a_config_map_is_seen() {
    use std::os::unix::fs::symlink;
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    for (version, text) in
        [("..1", "multi_kv_config: {primary: consul}"), ("..2", "multi_kv_config: {primary: memberlist}")]
    {
        fs::create_dir(at(version)).unwrap();
        fs::write(at(version).join("runtime.yaml"), text).unwrap();
    }
    symlink("..1", at("..data")).unwrap();
    symlink("..data/runtime.yaml", at("runtime.yaml")).unwrap();
    let mut loader = RuntimeLoader::new(vec![at("runtime.yaml")]);
    assert_eq!(loader.poll(), Poll::Changed(config(None, Some("consul"))));
    symlink("..2", at("..data_tmp")).unwrap();
    fs::rename(at("..data_tmp"), at("..data")).unwrap();
    fs::remove_dir_all(at("..1")).unwrap();
    assert_eq!(loader.poll(), Poll::Changed(config(None, Some("memberlist"))));
    fs::remove_file(at("..data")).unwrap();
    assert!(matches!(loader.poll(), Poll::Failed(RuntimeError::NotFound { .. })));
}

#[test]
fn the_cache_gives_back_what_was_saved_and_is_replaced_as_a_whole() {
    let dir = TempDir::new().unwrap();
    assert!(load_last_good(dir.path()).unwrap().is_none());
    for config in [config(Some(true), Some("memberlist")), config(None, None), config(Some(false), None)] {
        save_last_good(dir.path(), &config).unwrap();
        assert_eq!(load_last_good(dir.path()).unwrap(), Some(config));
    }
    let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, [CACHE_FILE]);
}

#[test]
fn the_cache_remembers_which_primary_was_named_last() {
    let dir = TempDir::new().unwrap();
    assert!(last_named_primary(dir.path()).unwrap().is_none());
    for (primary, last) in [
        (None, None),
        (Some("memberlist"), Some("memberlist")),
        (None, Some("memberlist")),
        (None, Some("memberlist")),
        (Some("consul"), Some("consul")),
        (None, Some("consul")),
    ] {
        let config = config(None, primary);
        save_last_good(dir.path(), &config).unwrap();
        assert_eq!(last_named_primary(dir.path()).unwrap().as_deref(), last);
        assert_eq!(load_last_good(dir.path()).unwrap(), Some(config), "what is remembered is no part of it");
    }
    fs::write(dir.path().join(CACHE_FILE), "# last primary: etcd\n").unwrap();
    assert!(last_named_primary(dir.path()).is_err(), "no checksum, no belief");
}

#[test]
fn a_damaged_cache_is_refused() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join(CACHE_FILE);
    save_last_good(dir.path(), &config(Some(true), Some("memberlist"))).unwrap();
    let whole = fs::read(&file).unwrap();
    for cut in 0..whole.len() {
        fs::write(&file, &whole[..cut]).unwrap();
        assert!(matches!(load_last_good(dir.path()), Err(CacheError::Damaged { .. })), "cut at {cut}");
    }
    for at in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[at] ^= 1;
        fs::write(&file, &flipped).unwrap();
        assert!(load_last_good(dir.path()).is_err(), "bit flipped at {at}");
    }
    fs::write(&file, &whole).unwrap();
    assert!(load_last_good(dir.path()).unwrap().is_some());
}

#[test]
fn a_cache_of_a_newer_version_is_refused_with_the_reason() {
    let dir = TempDir::new().unwrap();
    let mut odd = config(None, Some("memberlist"));
    odd.multi_kv_config.primary = Some("quantum".to_owned());
    save_last_good(dir.path(), &odd).unwrap();
    assert!(matches!(load_last_good(dir.path()), Err(CacheError::Content(RuntimeError::UnknownStore { .. }))));
}

#[test]
fn a_cache_directory_that_does_not_exist_is_an_error_when_saving() {
    let dir = TempDir::new().unwrap();
    let error = save_last_good(&dir.path().join("none"), &RuntimeConfig::default()).unwrap_err();
    assert!(error.to_string().contains("node.data_dir"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = RuntimeConfig::parse(&bytes, Path::new("r.yaml"));
    }

    #[test]
    fn nothing_but_a_known_store_becomes_the_primary(text in "(multi_kv_config: ?)?[\\[\\]{}&*a-z:,' \\n\\t!|>?#-]{0,60}") {
        if let Ok(config) = parse(&text) {
            let primary = config.multi_kv_config.primary;
            prop_assert!(primary.is_none_or(|name| KvStore::from_name(&name).is_some()));
        }
    }

    #[test]
    fn what_is_written_is_read(mirror in any::<Option<bool>>(), primary in prop::option::of(prop::sample::select(vec!["consul", "memberlist", "etcd", "inmemory"]))) {
        let written = config(mirror, primary);
        prop_assert_eq!(parse(&written.to_yaml()).unwrap(), written);
    }
}
