//! Keeps the rooms of `src/` apart: who may import whom, and what the pure cores may not touch.
//!
//! `docs/architecture.md` has the picture. Left may import right, never back:
//!
//! ```text
//! bin → http → node → actors → { transport, stores, migration } → { swim, kv, ring } → wire → clock
//! ```
//!
//! The test reads the sources. It knows enough of Rust's grammar to leave comments and texts out, to follow `use`
//! trees and `super::`, and to tell code that is only built for tests; it does not follow names that were renamed.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What each room may import of the others. Files of the same room always may.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("clock", &[]),
    ("wire", &["clock"]),
    // Plain data: whoever needs it turns it into its own types.
    ("config", &["clock"]),
    ("swim", &["wire", "clock", "config"]),
    ("kv", &["wire", "clock", "config"]),
    ("ring", &["kv", "wire", "clock", "config"]),
    ("migration", &["swim", "kv", "ring", "wire", "clock", "config"]),
    ("transport", &["clock"]),
    ("stores", &["swim", "kv", "ring", "wire", "clock", "config"]),
    ("actors", &["transport", "stores", "migration", "swim", "kv", "ring", "wire", "clock", "config"]),
    ("node", &["actors", "transport", "stores", "migration", "swim", "kv", "ring", "wire", "clock", "config"]),
    ("http", &["node", "actors", "transport", "stores", "migration", "swim", "kv", "ring", "wire", "clock", "config"]),
    ("sim", &["migration", "swim", "kv", "ring", "wire", "clock", "config"]),
];

/// Rooms that decide and do nothing else: no sockets, clocks, tasks, threads, or randomness of their own.
const PURE: &[&str] = &["wire", "swim", "kv", "ring", "migration"];

/// Crates that a pure room never mentions, not even in its tests.
const RUNTIMES: &[&str] = &[
    "actix",
    "actix_rt",
    "actix_web",
    "axum",
    "futures_core",
    "futures_util",
    "reqwest",
    "socket2",
    "tokio",
    "tokio_util",
];

/// The contract of stores is asynchronous, so these files may name the traits of it.
const RUNTIME_EXCEPTIONS: &[(&str, &[&str])] =
    &[("kv/store.rs", &["futures_core"]), ("kv/typed.rs", &["futures_core", "futures_util"])];

/// Files at the top of `src/` or below `src/bin/` that may import everything.
const FREE: &[&str] = &["lib", "bin", "main"];

#[test]
fn every_room_imports_only_what_lies_below_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    let sources: Vec<Source> = files
        .iter()
        .map(|file| {
            let path = file.strip_prefix(&root).unwrap().to_str().unwrap().replace('\\', "/");
            Source::read(&path, &fs::read_to_string(file).unwrap())
        })
        .collect();
    for room in PURE {
        assert!(sources.iter().any(|source| source.room() == *room), "there is no room `{room}` to check");
    }
    let faults = check(&sources);
    assert!(faults.is_empty(), "{} imports against the rules:\n{}", faults.len(), faults.join("\n"));
}

fn collect(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
    into.sort();
}

/// Everything that is wrong, one line each.
fn check(sources: &[Source]) -> Vec<String> {
    let test_files: Vec<&String> = sources.iter().flat_map(|source| &source.test_modules).collect();
    let mut faults = BTreeSet::new();
    for source in sources {
        let is_test_file = source.path.ends_with("/tests.rs")
            || test_files.iter().any(|module| {
                let rest = source.path.strip_prefix(module.as_str());
                rest.is_some_and(|rest| rest.is_empty() || rest == ".rs" || rest.starts_with('/'))
            });
        for used in &source.paths {
            if let Some(fault) = fault(source, used, is_test_file || used.in_test) {
                let path = used.segments.join("::");
                faults.insert(format!("src/{}:{}: `{path}`: {fault}", source.path, used.line));
            }
        }
    }
    faults.into_iter().collect()
}

/// What is wrong with one path in one file.
fn fault(source: &Source, used: &Used, in_test: bool) -> Option<String> {
    let room = source.room();
    if FREE.contains(&room) {
        return None;
    }
    let Some((_, allowed)) = MAY_IMPORT.iter().find(|(name, _)| *name == room) else {
        return Some(format!("the room `{room}` is not in the table of who may import whom"));
    };
    let is_room = |name: &str| MAY_IMPORT.iter().any(|(room, _)| *room == name);
    if let Some(other) = source.import(&used.segments) {
        if !is_room(&other) && matches!(used.segments[0].as_str(), "crate" | "annulus") {
            return Some("say which room the name comes from".to_owned());
        }
        if is_room(&other) && other != room && !allowed.contains(&other.as_str()) {
            return Some(format!("`{room}` must not import `{other}`"));
        }
    }
    if !PURE.contains(&room) {
        return None;
    }
    let segments: Vec<&str> = used.segments.iter().map(String::as_str).collect();
    let excepted =
        RUNTIME_EXCEPTIONS.iter().any(|(path, crates)| *path == source.path && crates.contains(&segments[0]));
    if RUNTIMES.contains(&segments[0]) && !excepted {
        return Some(format!("`{room}` must not mention `{}`", segments[0]));
    }
    // A test needs a starting point in time, and may bring its own threads and randomness.
    (!in_test && is_impure(&segments)).then(|| format!("`{room}` must be given this by its caller"))
}

/// Whether a path reads a clock, starts a thread, opens a socket, or draws random numbers out of nowhere.
fn is_impure(segments: &[&str]) -> bool {
    let read_clock = matches!(segments, [.., "Instant" | "SystemTime", "now"] | [.., "Now", "read"]);
    let threads_or_sockets = matches!(
        segments,
        ["std", "thread" | "process", ..]
            | ["thread", "spawn" | "sleep" | "scope" | "park", ..]
            | ["std", "net", "TcpListener" | "TcpStream" | "UdpSocket", ..]
    );
    let random = matches!(segments, ["rand", "rng" | "random" | "make_rng" | "random_range" | "random_bool", ..])
        || segments.iter().any(|name| matches!(*name, "thread_rng" | "ThreadRng" | "SysRng" | "OsRng"));
    read_clock || threads_or_sockets || random
}

/// What the checker needs to know of one source file.
#[derive(Debug)]
struct Source {
    /// Below `src/`, with slashes.
    path: String,
    /// Every path of names in the code, `use` trees taken apart.
    paths: Vec<Used>,
    /// Modules that are only built for tests, as a path without `.rs`, or with it when named by an attribute.
    test_modules: Vec<String>,
}

#[derive(Debug)]
struct Used {
    line: usize,
    segments: Vec<String>,
    /// Whether it stands in an item under `#[cfg(test)]`.
    in_test: bool,
}

impl Source {
    fn read(path: &str, text: &str) -> Self {
        let tokens = lex(text);
        let (in_test, names) = test_items(&tokens);
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let stem = path.strip_suffix(".rs").unwrap_or(path);
        // `a/mod.rs` has its modules in `a/`, and `a/b.rs` has them in `a/b/`.
        let own_folder = if path.ends_with("/mod.rs") { folder } else { stem };
        let test_modules = names
            .into_iter()
            .map(|name| match name {
                TestModule::Named(name) => format!("{own_folder}/{name}"),
                TestModule::At(file) => format!("{folder}/{file}"),
            })
            .collect();
        Self { path: path.to_owned(), paths: used_paths(&tokens, &in_test), test_modules }
    }

    fn modules(&self) -> Vec<&str> {
        let stem = self.path.strip_suffix(".rs").unwrap_or(&self.path);
        let mut modules: Vec<&str> = stem.split('/').collect();
        if modules.last() == Some(&"mod") {
            modules.pop();
        }
        modules
    }

    fn room(&self) -> &str {
        self.modules().first().copied().unwrap_or("")
    }

    /// The first name below the crate's root that a path leads to, if it leads there.
    fn import(&self, segments: &[String]) -> Option<String> {
        let ups = segments.iter().take_while(|segment| *segment == "super").count();
        let from_root = match segments[0].as_str() {
            "crate" | "annulus" => 1,
            // A module inside the file takes one `super` more; then this finds a room too early, or none.
            "super" if ups >= self.modules().len() => ups,
            _ => return None,
        };
        segments.get(from_root).filter(|name| *name != "self" && *name != "*").cloned()
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Name(String),
    Text(String),
    /// `::`
    PathSeparator,
    Other(char),
}

#[derive(Debug)]
struct Lexed {
    line: usize,
    token: Token,
}

/// Cuts a source text into tokens; comments go, and texts become one token.
fn lex(text: &str) -> Vec<Lexed> {
    let chars: Vec<char> = text.chars().collect();
    let at = |index: usize| chars.get(index).copied().unwrap_or('\0');
    let is_name = |c: char| c == '_' || c.is_alphanumeric();
    let mut tokens = Vec::new();
    let (mut index, mut line) = (0, 1);
    while index < chars.len() {
        let start = index;
        let mut token = None;
        let c = at(index);
        if c == '/' && at(index + 1) == '/' {
            while index < chars.len() && at(index) != '\n' {
                index += 1;
            }
        } else if c == '/' && at(index + 1) == '*' {
            let mut depth = 0;
            loop {
                match (at(index), at(index + 1)) {
                    ('/', '*') => (depth, index) = (depth + 1, index + 2),
                    ('*', '/') => (depth, index) = (depth - 1, index + 2),
                    _ => index += 1,
                }
                if depth == 0 || index >= chars.len() {
                    break;
                }
            }
        } else if c == '"' {
            index += 1;
            while index < chars.len() && at(index) != '"' {
                index += if at(index) == '\\' { 2 } else { 1 };
            }
            token = Some(Token::Text(chars[start + 1..index.min(chars.len())].iter().collect()));
            index += 1;
        } else if c == '\'' {
            // A lifetime is a quote and a name without a second quote.
            if at(index + 1) == '\\' {
                index += 3;
                while index < chars.len() && at(index) != '\'' {
                    index += 1;
                }
                index += 1;
            } else if at(index + 2) == '\'' {
                index += 3;
            } else {
                index += 1;
                while is_name(at(index)) {
                    index += 1;
                }
            }
        } else if is_name(c) {
            while is_name(at(index)) {
                index += 1;
            }
            let name: String = chars[start..index].iter().collect();
            let hashes = (index..).take_while(|index| at(*index) == '#').count();
            if matches!(name.as_str(), "r" | "br" | "cr") && at(index + hashes) == '"' {
                let end: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
                let inner = index + hashes + 1;
                index = (inner..chars.len()).find(|index| chars[*index..].starts_with(&end)).unwrap_or(chars.len());
                token = Some(Token::Text(chars[inner.min(index)..index].iter().collect()));
                index = (index + end.len()).min(chars.len());
            } else if name == "r" && hashes == 1 {
                index += 1; // the name behind `r#` follows as a token of its own
            } else if !(matches!(name.as_str(), "b" | "c") && matches!(at(index), '"' | '\'')) {
                token = Some(Token::Name(name));
            }
        } else if c == ':' && at(index + 1) == ':' {
            index += 2;
            token = Some(Token::PathSeparator);
        } else {
            index += 1;
            token = (!c.is_whitespace()).then_some(Token::Other(c));
        }
        tokens.extend(token.map(|token| Lexed { line, token }));
        line += chars[start..index.min(chars.len())].iter().filter(|c| **c == '\n').count();
    }
    tokens
}

#[derive(Debug, PartialEq)]
enum TestModule {
    /// `#[cfg(test)] mod name;`
    Named(String),
    /// The same, with `#[path = "file"]`.
    At(String),
}

/// For each token whether it belongs to an item under `#[cfg(test)]`, and the modules in other files that do.
fn test_items(tokens: &[Lexed]) -> (Vec<bool>, Vec<TestModule>) {
    let mut in_test = vec![false; tokens.len()];
    let mut modules = Vec::new();
    let other = |index: usize, c: char| tokens.get(index).is_some_and(|lexed| lexed.token == Token::Other(c));
    let mut index = 0;
    while index < tokens.len() {
        let whole_file = other(index, '#') && other(index + 1, '!') && other(index + 2, '[');
        let bracket = if whole_file { index + 2 } else { index + 1 };
        if !(other(index, '#') && other(bracket, '[')) {
            index += 1;
            continue;
        }
        let mut end = item_part_end(tokens, bracket);
        if !is_test_only(&tokens[bracket..end]) {
            index = end;
            continue;
        }
        if whole_file {
            in_test.fill(true);
            break;
        }
        let mut file = None;
        loop {
            if other(end, '#') && other(end + 1, '[') {
                let attribute_end = item_part_end(tokens, end + 1);
                if tokens[end + 2].token == Token::Name("path".to_owned())
                    && let Some(Token::Text(text)) = tokens.get(end + 4).map(|lexed| &lexed.token)
                {
                    file = Some(text.clone());
                }
                end = attribute_end;
            } else {
                break;
            }
        }
        let names: Vec<&Token> = tokens[end..].iter().take(6).map(|lexed| &lexed.token).collect();
        let module = names.windows(3).find_map(|three| match three {
            [Token::Name(keyword), Token::Name(name), Token::Other(';')] if keyword == "mod" => Some(name.clone()),
            _ => None,
        });
        let mut depth = 0;
        while end < tokens.len() {
            match tokens[end].token {
                Token::Other('(' | '[' | '{') => depth += 1,
                Token::Other(')' | ']' | '}') => depth -= 1,
                _ => {}
            }
            if depth < 0 {
                break;
            }
            end += 1;
            if depth == 0 && matches!(tokens[end - 1].token, Token::Other(';' | '}')) {
                break;
            }
        }
        in_test[index..end].fill(true);
        modules.extend(module.map(|name| file.map_or(TestModule::Named(name), TestModule::At)));
        index = end;
    }
    (in_test, modules)
}

/// The index behind the bracket that closes the one at `open`.
fn item_part_end(tokens: &[Lexed], open: usize) -> usize {
    let mut depth = 0;
    for (offset, lexed) in tokens[open..].iter().enumerate() {
        match lexed.token {
            Token::Other('(' | '[' | '{') => depth += 1,
            Token::Other(')' | ']' | '}') => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return open + offset + 1;
        }
    }
    tokens.len()
}

/// Whether an attribute is `cfg(test)` or `cfg(all(test, …))`.
fn is_test_only(attribute: &[Lexed]) -> bool {
    let names: Vec<&str> = attribute
        .iter()
        .filter_map(|lexed| if let Token::Name(name) = &lexed.token { Some(name.as_str()) } else { None })
        .collect();
    names.first() == Some(&"cfg") && names.contains(&"test") && !names.contains(&"not") && !names.contains(&"any")
}

/// Every path of names in the code; a `use` tree gives one for each of its leaves.
fn used_paths(tokens: &[Lexed], in_test: &[bool]) -> Vec<Used> {
    let mut paths = Vec::new();
    let mut index = 0;
    while index < tokens.len() {
        let is_use = tokens[index].token == Token::Name("use".to_owned());
        let start = if is_use { index + 1 } else { index };
        let mut found = Vec::new();
        index = match &tokens[index].token {
            _ if is_use => use_tree(tokens, start, &[], &mut found),
            Token::Name(_) => plain_path(tokens, start, &mut found),
            _ => index + 1,
        };
        for (at, segments) in found {
            paths.push(Used { line: tokens[at].line, segments, in_test: in_test[at] });
        }
    }
    paths
}

type Found = Vec<(usize, Vec<String>)>;

fn plain_path(tokens: &[Lexed], start: usize, found: &mut Found) -> usize {
    let mut segments = Vec::new();
    let mut index = start;
    while let Some(Token::Name(name)) = tokens.get(index).map(|lexed| &lexed.token) {
        segments.push(name.clone());
        index += 1;
        let goes_on = tokens.get(index).is_some_and(|lexed| lexed.token == Token::PathSeparator)
            && matches!(tokens.get(index + 1).map(|lexed| &lexed.token), Some(Token::Name(_)));
        if !goes_on {
            break;
        }
        index += 1;
    }
    // A field or method called like a crate is not that crate.
    if !(start > 0 && tokens[start - 1].token == Token::Other('.')) {
        found.push((start, segments));
    }
    index
}

/// Reads `a::{b, c::*} as d`, and returns the index behind it.
fn use_tree(tokens: &[Lexed], start: usize, before: &[String], found: &mut Found) -> usize {
    let mut segments = before.to_vec();
    let mut index = start;
    while let Some(lexed) = tokens.get(index) {
        match &lexed.token {
            Token::Name(name) if name == "as" => index += 1,
            Token::Name(name) => segments.push(name.clone()),
            Token::PathSeparator => {}
            Token::Other('*') => segments.push("*".to_owned()),
            Token::Other('{') => {
                index += 1;
                while tokens.get(index).is_some_and(|lexed| lexed.token != Token::Other('}')) {
                    index = use_tree(tokens, index, &segments, found);
                    if tokens.get(index).is_some_and(|lexed| lexed.token == Token::Other(',')) {
                        index += 1;
                    }
                }
                return index + 1;
            }
            _ => break,
        }
        index += 1;
    }
    if !segments.is_empty() {
        found.push((start, segments));
    }
    // Always forwards, also through something that is no `use` at all.
    index.max(start + usize::from(before.is_empty()))
}

#[cfg(test)]
mod planted {
    use super::*;

    /// What the checker says about one file.
    fn faults(path: &str, text: &str) -> Vec<String> {
        check(&[Source::read(path, text)])
    }

    #[track_caller]
    fn refused(path: &str, text: &str, because: &str) {
        let faults = faults(path, text);
        assert!(faults.iter().any(|fault| fault.contains(because)), "{text:?} in {path} gave {faults:?}");
    }

    #[track_caller]
    fn accepted(path: &str, text: &str) {
        assert_eq!(faults(path, text), Vec::<String>::new(), "{text:?} in {path}");
    }

    #[test]
    fn an_import_upwards_is_found_with_its_line() {
        let found = faults("swim/probe.rs", "//! Probing.\n\nuse crate::actors::Membership;\n");
        assert_eq!(found, ["src/swim/probe.rs:3: `crate::actors::Membership`: `swim` must not import `actors`"]);
    }

    #[test]
    fn an_import_is_found_in_every_form_it_can_take() {
        for text in [
            "use crate::{clock::Now, actors::{self, Guard}};",
            "use super::super::actors::Guard;",
            "use { crate::actors };",
            "pub use crate::actors as hidden;",
            "fn f() { crate::actors::start(); }",
            "fn f(x: &'a crate::actors::Guard, c: char) {}",
            "macro_rules! m { () => { $crate::actors::start() } }",
            "const C: char = '\"'; use crate::actors::Guard; const D: char = '\"';",
            "const S: &str = r#\"\"quoted\\\"#; use crate::actors::Guard;",
            "const B: &[u8] = b\"\\\"\"; const Q: u8 = b'\\''; use crate::r#actors::Guard;",
            "/* a /* nested */ comment */ use crate::actors::*;",
        ] {
            refused("swim/probe.rs", text, "`swim` must not import `actors`");
        }
        refused("swim/mod.rs", "use super::actors::Guard;", "`swim` must not import `actors`");
    }

    #[test]
    fn comments_texts_and_neighbours_in_the_same_room_are_no_imports() {
        for text in [
            "//! See [`crate::actors`].\n/* use crate::actors; */ // tokio::spawn",
            "const S: &str = \"use crate::actors; tokio::spawn\";",
            "const S: &str = r##\"crate::actors \"# tokio::spawn\"##;",
            "use super::actors::Guard; use super::{core, wire}; use self::tokio_like;",
            "fn f(x: X) { x.tokio(); x.actix; }",
            "use crate::swim::member; use crate::wire::Message; pub(crate) fn f() {} pub(in crate::swim) fn g() {}",
        ] {
            accepted("swim/probe.rs", text);
        }
    }

    #[test]
    fn each_arrow_of_the_picture_points_one_way() {
        for (above, below) in [
            ("http/api.rs", "node"),
            ("node.rs", "actors"),
            ("actors/gossip.rs", "transport"),
            ("actors/gossip.rs", "stores"),
            ("actors/gossip.rs", "migration"),
            ("migration/core.rs", "swim"),
            ("migration/core.rs", "ring"),
            ("ring/desc.rs", "kv"),
            ("kv/gossip.rs", "wire"),
            ("wire/packet.rs", "clock"),
            ("transport/net.rs", "clock"),
        ] {
            accepted(above, &format!("use crate::{below}::Thing;"));
            let room = Source::read(above, "").room().to_owned();
            refused(&format!("{below}/mod.rs"), &format!("use crate::{room}::Thing;"), "must not import");
        }
        for protocol in ["wire", "swim", "kv", "ring", "migration", "actors"] {
            refused("transport/net.rs", &format!("use crate::{protocol}::Thing;"), "`transport` must not import");
        }
        refused("swim/core.rs", "use crate::kv::Value;", "`swim` must not import `kv`");
        refused("wire/packet.rs", "use crate::config::Limits;", "`wire` must not import `config`");
        refused("config/mod.rs", "use crate::kv::StoreKind;", "`config` must not import `kv`");
        accepted("bin/annulus/main.rs", "use annulus::http::serve; use tokio::runtime::Runtime;");
    }

    #[test]
    fn a_name_from_the_root_must_say_its_room_and_a_room_must_be_in_the_table() {
        refused("wire/packet.rs", "use crate::Node;", "say which room");
        refused("swim/core.rs", "use annulus::Node;", "say which room");
        refused("cellar/mod.rs", "use std::fmt;", "`cellar` is not in the table");
    }

    #[test]
    fn a_pure_room_mentions_no_runtime() {
        for room in PURE {
            for text in ["use tokio::sync::mpsc;", "fn f() { ::tokio::spawn(x); }", "use {actix::Addr};"] {
                refused(&format!("{room}/core.rs"), text, "must not mention");
            }
            let in_a_test = "#[cfg(test)] mod tests { #[tokio::test] async fn f() {} }";
            refused(&format!("{room}/core.rs"), in_a_test, "must not mention `tokio`");
        }
        accepted("transport/net.rs", "use tokio::net::UdpSocket;");
        accepted("kv/store.rs", "use futures_core::Stream;");
        accepted("kv/typed.rs", "use futures_util::StreamExt; use futures_core::Stream;");
        refused("kv/store.rs", "use futures_util::StreamExt;", "`kv` must not mention `futures_util`");
        refused("kv/gossip.rs", "use futures_core::Stream;", "`kv` must not mention `futures_core`");
        refused("kv/store.rs", "use tokio::time;", "`kv` must not mention `tokio`");
    }

    #[test]
    fn a_pure_room_reads_no_clock_starts_no_thread_and_draws_no_random_numbers() {
        for text in [
            "fn f() { let t = Instant::now(); }",
            "fn f() { let t = std::time::SystemTime::now(); }",
            "fn f() { let t = Now::read(); }",
            "use std::thread;",
            "use std::{fmt, thread::{self, spawn}};",
            "fn f() { std::thread::sleep(d); }",
            "use std::net::{IpAddr, UdpSocket};",
            "fn f() { let n = rand::rng().random(); }",
            "use rand::rng;",
            "fn f() { let r = thread_rng(); }",
            "fn f() { let n: u8 = rand::random(); }",
        ] {
            refused("ring/desc.rs", text, "must be given this by its caller");
            accepted("actors/gossip.rs", text);
        }
        accepted("ring/desc.rs", "use rand::{Rng, RngExt, rngs::SmallRng}; fn f(now: Now, at: std::time::Instant) {}");
        accepted("ring/desc.rs", "use std::net::{IpAddr, SocketAddr}; use std::time::Instant;");
    }

    #[test]
    fn only_code_that_is_built_for_tests_alone_may_read_the_clock() {
        let call = "{ let t = Instant::now(); }";
        accepted("swim/core.rs", &format!("#[cfg(test)] mod tests {{ fn f() {call} }}"));
        accepted("swim/core.rs", &format!("#[cfg(test)]\n#[allow(unused)]\nfn f<T: Into<U>>() {call}"));
        accepted("swim/core.rs", &format!("#[cfg(all(test, unix))] fn f() {call}"));
        accepted("swim/tests.rs", &format!("fn f() {call}"));
        accepted("swim/helpers.rs", &format!("#![cfg(test)] fn f() {call}"));
        refused("swim/core.rs", &format!("#[cfg(test)] mod tests {{ }} fn f() {call}"), "its caller");
        refused("swim/core.rs", &format!("#[cfg(test)] mod tests; fn f() {call}"), "its caller");
        refused("swim/core.rs", &format!("#[cfg(not(test))] fn f() {call}"), "its caller");
        refused("swim/core.rs", &format!("#[cfg(any(test, unix))] fn f() {call}"), "its caller");
        refused("swim/contests.rs", &format!("fn f() {call}"), "its caller");
    }

    #[test]
    fn files_of_test_modules_count_as_tests() {
        let read = "fn f() { let t = Instant::now(); }";
        for (parent, declared, file) in [
            ("swim/mod.rs", "#[cfg(test)] mod probe_tests;", "swim/probe_tests.rs"),
            ("swim/core.rs", "#[cfg(test)] mod laws;", "swim/core/laws.rs"),
            ("swim/mod.rs", "#[cfg(test)] mod laws;", "swim/laws/deep.rs"),
            ("swim/core.rs", "#[cfg(test)] #[path = \"core_laws.rs\"] mod laws;", "swim/core_laws.rs"),
        ] {
            let with = check(&[Source::read(parent, declared), Source::read(file, read)]);
            assert_eq!(with, Vec::<String>::new(), "{declared} in {parent}");
            let without =
                check(&[Source::read(parent, &declared.replace("#[cfg(test)]", "")), Source::read(file, read)]);
            assert_eq!(without.len(), 1, "{declared} in {parent} without the attribute");
        }
    }
}
