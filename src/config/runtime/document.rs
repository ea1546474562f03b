//! One runtime file: its text to our section, strictly; and the merge of several.

use std::path::Path;

use ::config::{FileFormat, ValueKind};

use super::{MultiKvConfig, RuntimeConfig, RuntimeError};
use crate::config::KvStore;
use crate::config::text::{self, ALIAS_MARK, Aliases};

const SECTION: &str = "multi_kv_config";

/// Our section of one file, still telling a key that is absent (`None`) from one that is null (`Some(None)`).
///
/// The merge needs the difference: a later null takes back an earlier value of the same key, while a null section, like
/// an absent one, takes back nothing (dskit merges it as an empty map).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Document {
    mirror_enabled: Option<Option<bool>>,
    primary: Option<Option<String>>,
}

impl Document {
    pub(super) fn parse(bytes: &[u8], file: &Path) -> Result<Self, RuntimeError> {
        let table = parse_text(bytes).map_err(|reason| RuntimeError::Syntax { file: file.to_owned(), reason })?;
        let wrong = |key: &str, expected: &'static str, got: &ValueKind| RuntimeError::WrongType {
            file: file.to_owned(),
            key: key.to_owned(),
            expected,
            got: describe(got),
        };
        let unknown = |key: String| RuntimeError::UnknownKey { file: file.to_owned(), key };
        // YAML's merge key could bring our section in from elsewhere; this parser would not follow it, dskit's would.
        if table.contains_key("<<") {
            return Err(unknown("<<".to_owned()));
        }
        let section = match table.get(SECTION).map(|value| &value.kind) {
            None | Some(ValueKind::Nil) => return Ok(Self::default()),
            Some(ValueKind::Table(section)) => section,
            Some(other) => return Err(wrong(SECTION, "a section with keys under it", other)),
        };
        let mut document = Self::default();
        let mut keys: Vec<&String> = section.keys().collect();
        keys.sort_unstable();
        for key in keys {
            let Some(value) = section.get(key).map(|value| &value.kind) else { continue };
            let dotted = format!("{SECTION}.{key}");
            match (key.as_str(), value) {
                ("mirror_enabled", ValueKind::Nil) => document.mirror_enabled = Some(None),
                ("mirror_enabled", ValueKind::Boolean(on)) => document.mirror_enabled = Some(Some(*on)),
                ("mirror_enabled", other) => return Err(wrong(&dotted, "true or false", other)),
                ("primary", ValueKind::Nil) => document.primary = Some(None),
                ("primary", ValueKind::String(name)) if name.is_empty() => document.primary = Some(None),
                ("primary", ValueKind::String(name)) if name.starts_with(ALIAS_MARK) => {
                    return Err(wrong(
                        &dotted,
                        "written out, because this file has too many YAML aliases to follow",
                        value,
                    ));
                }
                ("primary", ValueKind::String(name)) => document.primary = Some(Some(name.clone())),
                ("primary", other) => return Err(wrong(&dotted, "the name of a store", other)),
                _ => return Err(unknown(dotted)),
            }
        }
        if let Some(Some(name)) = &document.primary
            && !KvStore::from_name(name).is_some_and(|store| store != KvStore::Multi)
        {
            let known = "memberlist, consul, etcd, inmemory".to_owned();
            return Err(RuntimeError::UnknownStore { file: file.to_owned(), name: name.clone(), known });
        }
        Ok(document)
    }

    /// Lays a later file over this one.
    pub(super) fn merge(&mut self, later: Self) {
        self.mirror_enabled = later.mirror_enabled.or(self.mirror_enabled);
        self.primary = later.primary.or_else(|| self.primary.take());
    }

    pub(super) fn into_config(self) -> RuntimeConfig {
        RuntimeConfig {
            multi_kv_config: MultiKvConfig {
                mirror_enabled: self.mirror_enabled.flatten(),
                primary: self.primary.flatten(),
            },
        }
    }
}

/// YAML, except that a text which begins with a brace is tried as JSON first, as in dskit: JSON may be indented with
/// tabs.
fn parse_text(bytes: &[u8]) -> Result<text::Table, String> {
    let brace = bytes.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{');
    if brace && let Ok(table) = text::parse(bytes, FileFormat::Json, Aliases::Mark) {
        return Ok(table);
    }
    text::parse(bytes, FileFormat::Yaml, Aliases::Mark)
}

fn describe(value: &ValueKind) -> String {
    match value {
        ValueKind::Nil => "nothing".to_owned(),
        ValueKind::Table(_) => "a section".to_owned(),
        ValueKind::Array(_) => "a list".to_owned(),
        ValueKind::String(text) => format!("the text {:?}", text.chars().take(60).collect::<String>()),
        other => other.to_string(),
    }
}
