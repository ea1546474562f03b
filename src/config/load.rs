//! Layers to a [`Config`]: default, file, environment, `--set`, each over the one before.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use ::config::{FileFormat, Value, ValueKind};
use serde::Serialize;

use super::error::{ConfigError, Origin, Problem};
use super::layer::Layer;
use super::text::{self, Aliases, ReadError};
use super::{Config, schema};

/// What the names of environment variables begin with; `__` also stands between section and key.
const PREFIX: &str = "ANNULUS__";

/// Loads a [`Config`] from several sources, see [`Config::loader`].
///
/// However the methods are called, the environment goes over files and `--set` over both; among files, and among
/// `--set`s, the later goes over the earlier. A list replaces a list; an empty value (`key:`) sets nothing.
///
/// In the environment and in `--set` everything is text: lists are written with commas, and a ring is reached by its
/// index, `ANNULUS__RINGS__0__REPLICATION_FACTOR=2` or `--set rings.0.replication_factor=2`.
#[derive(Clone, Debug, Default)]
#[must_use = "a loader does nothing until `load` is called"]
pub struct Loader {
    files: Vec<PathBuf>,
    environment: Vec<(OsString, OsString)>,
    sets: Vec<String>,
}

/// A configuration, and where each value came from.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Loaded {
    /// The validated configuration.
    pub config: Config,
    /// The origin of every key, by its dotted name (`memberlist.bind_port`, `rings[0].name`).
    pub origins: BTreeMap<String, Origin>,
}

/// One line of `annulus config print`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Row {
    /// Dotted name.
    pub key: String,
    /// Value as JSON, secrets hidden; `null` when the profile supplies it.
    pub value: serde_json::Value,
    /// Where it came from.
    pub origin: Origin,
}

impl Loader {
    /// Adds a file; its extension names the format.
    pub fn file(mut self, path: impl AsRef<Path>) -> Self {
        self.files.push(path.as_ref().to_owned());
        self
    }

    /// Adds the variables `ANNULUS__SECTION__KEY` of this process.
    pub fn environment(self) -> Self {
        self.environment_from(std::env::vars_os())
    }

    /// Adds variables from elsewhere, for tests and for hosts with an environment of their own.
    pub fn environment_from<K, V>(mut self, variables: impl IntoIterator<Item = (K, V)>) -> Self
    where
        K: Into<OsString>,
        V: Into<OsString>,
    {
        self.environment.extend(variables.into_iter().map(|(name, value)| (name.into(), value.into())));
        self
    }

    /// Adds one `section.key=value`.
    pub fn set(mut self, assignment: impl Into<String>) -> Self {
        self.sets.push(assignment.into());
        self
    }

    /// Reads, merges, checks.
    ///
    /// # Errors
    ///
    /// The first file, key or value that is wrong; or, when each is well formed, all combinations that cannot work.
    pub fn load(self) -> Result<Loaded, ConfigError> {
        let mut sources = Sources::default();
        for path in &self.files {
            let table = parse_file(path)?;
            sources.add(Origin::File(path.clone()), |origin, mark| Layer::from_table(&table, origin, mark))?;
        }
        for (name, key, value) in variables(self.environment)? {
            sources.add(Origin::Environment(name), |origin, mark| Layer::from_text(&key, &value, origin, mark))?;
        }
        for assignment in &self.sets {
            let (key, value) =
                assignment.split_once('=').filter(|(key, _)| !key.trim().is_empty()).ok_or_else(|| {
                    ConfigError::BadSet { argument: assignment.split('=').next().unwrap_or("").to_owned() }
                })?;
            sources.add(Origin::Set, |origin, mark| Layer::from_text(key.trim(), value, origin, mark))?;
        }
        let loaded = sources.merge()?;
        loaded.config.validate()?;
        Ok(loaded)
    }
}

/// The layers in order, and the origins that their values refer to by number.
#[derive(Default)]
struct Sources {
    origins: Vec<Origin>,
    builder: ::config::ConfigBuilder<::config::builder::DefaultState>,
}

impl Sources {
    fn add(
        &mut self,
        origin: Origin,
        make: impl FnOnce(&Origin, &str) -> Result<Layer, ConfigError>,
    ) -> Result<(), ConfigError> {
        let layer = make(&origin, &self.origins.len().to_string())?;
        self.origins.push(origin);
        self.builder = std::mem::take(&mut self.builder).add_source(layer);
        Ok(())
    }

    fn merge(self) -> Result<Loaded, ConfigError> {
        // The layers are checked already, so what goes wrong from here on has no place in a file.
        let impossible = |e: ::config::ConfigError| {
            invalid("configuration", format!("cannot be assembled: {e}; please report this"))
        };
        let tree = self.builder.build().map_err(impossible)?.cache;
        check_ring_indexes(&tree)?;
        let config: Config = tree.clone().try_deserialize().map_err(impossible)?;
        let mut origins = BTreeMap::new();
        for (key, _) in leaves(&config) {
            let origin = origin_of(&tree, &key).and_then(|mark| mark.parse::<usize>().ok());
            let origin = origin.and_then(|index| self.origins.get(index)).unwrap_or(&Origin::Default);
            origins.insert(key, origin.clone());
        }
        Ok(Loaded { config, origins })
    }
}

impl Loaded {
    /// Every key with its value and origin, in the order of the reference.
    #[must_use]
    pub fn rows(&self) -> Vec<Row> {
        leaves(&self.config)
            .into_iter()
            .map(|(key, value)| Row { origin: self.origins.get(&key).cloned().unwrap_or(Origin::Default), key, value })
            .collect()
    }

    /// The effective configuration as YAML with the origin of each value behind it, secrets hidden.
    #[must_use]
    pub fn to_yaml(&self) -> String {
        let mut out = String::new();
        let mut open: Vec<String> = Vec::new();
        for row in self.rows() {
            let mut path: Vec<String> = row.key.replace('[', ".[").split('.').map(str::to_owned).collect();
            let name = path.pop().unwrap_or_default();
            let common = open.iter().zip(&path).take_while(|(a, b)| a == b).count();
            let mut dash = false;
            for (depth, section) in path.iter().enumerate().skip(common) {
                // A ring is an item of a list: its first key stands behind the dash.
                dash = section.starts_with('[');
                if !dash {
                    out.push_str(&format!("{}{section}:\n", "  ".repeat(depth)));
                }
            }
            let indent = "  ".repeat(path.len());
            let lead = if dash { format!("{}- ", "  ".repeat(path.len() - 1)) } else { indent };
            out.push_str(&format!("{lead}{name}: {}  # {}\n", row.value, row.origin));
            open = path;
        }
        out
    }
}

fn invalid(key: &str, reason: String) -> ConfigError {
    ConfigError::Invalid(vec![Problem { key: key.to_owned(), reason }])
}

fn parse_file(path: &Path) -> Result<text::Table, ConfigError> {
    let file = path.to_owned();
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    let format = match extension.as_str() {
        "yaml" | "yml" => FileFormat::Yaml,
        "toml" => FileFormat::Toml,
        "json" => FileFormat::Json,
        _ => return Err(ConfigError::Format { file }),
    };
    let bytes = match text::read(path) {
        Ok(bytes) => bytes,
        Err(ReadError::NotFound) => return Err(ConfigError::NotFound { file }),
        Err(ReadError::Permission) => return Err(ConfigError::Permission { file }),
        Err(ReadError::TooLarge) => return Err(ConfigError::TooLarge { file, limit: text::MAX_FILE_BYTES }),
        Err(ReadError::Other(reason)) => return Err(ConfigError::Unreadable { file, reason }),
    };
    text::parse(&bytes, format, Aliases::Refuse).map_err(|reason| ConfigError::Syntax { file, reason })
}

/// The variables that are meant for this program, as (name, dotted key, value), in the order of their names.
fn variables(environment: Vec<(OsString, OsString)>) -> Result<Vec<(String, String, String)>, ConfigError> {
    let mut found = BTreeMap::new();
    for (name, value) in environment {
        let Some(name) = name.to_str() else { continue };
        let Some(rest) = name.get(PREFIX.len()..).filter(|_| name.as_bytes().starts_with(PREFIX.as_bytes())) else {
            continue;
        };
        let key = rest.to_ascii_lowercase().replace("__", ".");
        let Some(value) = value.to_str() else {
            let (expected, got) = ("a text in UTF-8".to_owned(), "not UTF-8".to_owned());
            return Err(ConfigError::WrongType { key, expected, got, origin: Origin::Environment(name.to_owned()) });
        };
        found.insert(name.to_owned(), (key, value.to_owned()));
    }
    Ok(found.into_iter().map(|(name, (key, value))| (name, key, value)).collect())
}

/// `rings.2.name` without a ring 0 and 1 leaves holes, which are nobody's intention.
fn check_ring_indexes(tree: &Value) -> Result<(), ConfigError> {
    let ValueKind::Table(root) = &tree.kind else { return Ok(()) };
    let Some(ValueKind::Array(rings)) = root.get("rings").map(|rings| &rings.kind) else { return Ok(()) };
    match rings.iter().position(|ring| !matches!(ring.kind, ValueKind::Table(_))) {
        Some(hole) => Err(invalid(
            &format!("rings[{hole}]"),
            "nothing is set for this ring, but for one after it; number rings from 0 without gaps".to_owned(),
        )),
        None => Ok(()),
    }
}

/// All keys of a configuration with their values, in the order of the table.
fn leaves(config: &Config) -> Vec<(String, serde_json::Value)> {
    // A Config is made of texts, numbers and lists: this cannot fail.
    let tree = serde_json::to_value(config).unwrap_or_default();
    let find = |root: &serde_json::Value, path: &str| {
        path.split('.').try_fold(root, |node, name| node.get(name)).cloned().unwrap_or_default()
    };
    let mut rings = Vec::new();
    for index in 0..config.rings.len() {
        let ring = tree.get("rings").and_then(|rings| rings.get(index)).cloned().unwrap_or_default();
        for (key, name) in schema::KEYS.iter().filter_map(|key| Some((key, key.path.strip_prefix("rings[].")?))) {
            rings.push((key.path.replace("[]", &format!("[{index}]")), find(&ring, name)));
        }
    }
    let mut all = Vec::new();
    for key in schema::KEYS {
        if key.path.starts_with("rings[]") {
            all.append(&mut rings);
        } else {
            all.push((key.path.to_owned(), find(&tree, key.path)));
        }
    }
    all
}

/// The mark that a value of the merged tree carries.
fn origin_of<'a>(tree: &'a Value, key: &str) -> Option<&'a str> {
    let mut node = tree;
    for part in key.replace('[', ".[").split('.') {
        node = match (&node.kind, part.strip_prefix('[').and_then(|p| p.strip_suffix(']'))) {
            (ValueKind::Table(table), None) => table.get(part)?,
            (ValueKind::Array(items), Some(index)) => items.get(index.parse::<usize>().ok()?)?,
            _ => return None,
        };
    }
    node.origin()
}
