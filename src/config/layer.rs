//! One source of values, checked key by key against the table of all keys.
//!
//! A layer comes out normalised: every value has exactly the kind that its key takes, and knows where it stands. So an
//! error can name the file or the variable, and merging the layers cannot fail.

use std::net::IpAddr;

use ::config::{Map, Source, Value, ValueKind};

use super::error::{ConfigError, Origin};
use super::schema::{self, Kind};
use super::text::Table;
use super::units::{ByteSize, parse_duration, split_list};

/// Most rings that indexes in the environment can name.
const MAX_RINGS: usize = 64;

/// Checked values under their dotted names. Later layers go over earlier ones.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    values: Map<String, Value>,
}

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ::config::ConfigError> {
        Ok(self.values.clone())
    }
}

impl Layer {
    /// A parsed file. `mark` is what the values carry as their origin.
    pub(super) fn from_table(table: &Table, origin: &Origin, mark: &str) -> Result<Self, ConfigError> {
        let mut values = Map::new();
        Walk { origin, mark, written: Written::Typed }.section("", "", table, &mut |key, value| {
            values.insert(key, value);
        })?;
        Ok(Self { values })
    }

    /// One value given as text, by the environment or by `--set`, under a dotted key.
    pub(super) fn from_text(key: &str, text: &str, origin: &Origin, mark: &str) -> Result<Self, ConfigError> {
        let key = with_brackets(key, origin)?;
        let schema_key = without_index(&key);
        let walk = Walk { origin, mark, written: Written::Text };
        let Some(found) = schema::find(&schema_key) else {
            if schema_key == "rings" || schema::is_section(&schema_key) {
                let expected = "a section; name a key in it".to_owned();
                return Err(ConfigError::WrongType { key, expected, got: "a text".to_owned(), origin: origin.clone() });
            }
            return Err(walk.unknown(&key, &schema_key));
        };
        let value = Value::new(None, text);
        let values = walk.value(&key, found.kind, &value)?.map(|value| (key, value)).into_iter().collect();
        Ok(Self { values })
    }
}

/// `rings.0.name` and `rings[0].name` to the second form; other keys as they are.
fn with_brackets(key: &str, origin: &Origin) -> Result<String, ConfigError> {
    let Some(rest) = key.strip_prefix("rings.").or_else(|| key.strip_prefix("rings[")) else {
        return Ok(key.to_owned());
    };
    let (index, rest) = rest.split_once('.').unwrap_or((rest, ""));
    let index = index.trim_end_matches(']');
    match index.parse::<usize>() {
        Ok(index) if index < MAX_RINGS => Ok(format!("rings[{index}].{rest}")),
        _ => Err(ConfigError::UnknownKey {
            origin: origin.clone(),
            key: key.to_owned(),
            suggestion: Some(format!("rings.0.{rest}")),
        }),
    }
}

/// `rings[3].name` to `rings[].name`, as the table has it.
fn without_index(key: &str) -> String {
    match (key.find('['), key.find(']')) {
        (Some(open), Some(close)) if open < close => {
            format!("{}[]{}", key.get(..open).unwrap_or_default(), key.get(close + 1..).unwrap_or_default())
        }
        _ => key.to_owned(),
    }
}

/// Whether values have types, as in a file, or are all text.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Written {
    Typed,
    Text,
}

struct Walk<'a> {
    origin: &'a Origin,
    mark: &'a str,
    written: Written,
}

impl Walk<'_> {
    /// Visits a section. `shown` is its name with indexes, `path` its name in the table.
    fn section(
        &self,
        shown: &str,
        path: &str,
        table: &Table,
        put: &mut dyn FnMut(String, Value),
    ) -> Result<(), ConfigError> {
        let mut names: Vec<&String> = table.keys().collect();
        // The map has no order of its own; errors should be the same every time.
        names.sort_unstable();
        for name in names {
            let Some(value) = table.get(name) else { continue };
            let (shown, path) = (join(shown, name), join(path, name));
            // A quoted "a.b" is one name, and no key has a dot in its name.
            let found = if name.contains(['.', '[']) { None } else { schema::find(&path) };
            if let Some(key) = found {
                if let Some(value) = self.value(&shown, key.kind, value)? {
                    put(shown, value);
                }
            } else if path == "rings" {
                if let Some(rings) = self.rings(value)? {
                    put(shown, rings);
                }
            } else if schema::is_section(&path) && !name.contains(['.', '[']) {
                match &value.kind {
                    ValueKind::Table(inner) => self.section(&shown, &path, inner, put)?,
                    ValueKind::Nil => {}
                    _ => return Err(self.wrong(&shown, "a section with keys under it", value, false)),
                }
            } else if let (true, Some((section, key))) = (schema::find(&path).is_some(), name.split_once('.')) {
                // `node.id: x` at the top of a file: the right name in the wrong shape.
                let suggestion = Some(format!("{section}: {{ {key}: … }}"));
                return Err(ConfigError::UnknownKey { origin: self.origin.clone(), key: shown, suggestion });
            } else {
                return Err(self.unknown(&shown, &path));
            }
        }
        Ok(())
    }

    /// The list of rings, which replaces the list of an earlier layer as a whole.
    fn rings(&self, value: &Value) -> Result<Option<Value>, ConfigError> {
        let items = match &value.kind {
            ValueKind::Array(items) => items,
            ValueKind::Nil => return Ok(None),
            _ => return Err(self.wrong("rings", "a list of rings", value, false)),
        };
        let mut rings = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let shown = format!("rings[{index}]");
            let ValueKind::Table(table) = &item.kind else {
                return Err(self.wrong(&shown, "a ring with keys under it", item, false));
            };
            let mut ring = Map::new();
            self.section(&shown, "rings[]", table, &mut |key, value| {
                let name = key.rsplit('.').next().unwrap_or_default().to_owned();
                ring.insert(name, value);
            })?;
            rings.push(self.made(ValueKind::Table(ring)));
        }
        Ok(Some(self.made(ValueKind::Array(rings))))
    }

    fn made(&self, kind: ValueKind) -> Value {
        Value::new(Some(&self.mark.to_owned()), kind)
    }

    fn wrong(&self, key: &str, expected: &str, got: &Value, secret: bool) -> ConfigError {
        ConfigError::WrongType {
            key: key.to_owned(),
            expected: expected.to_owned(),
            got: describe(got, secret),
            origin: self.origin.clone(),
        }
    }

    fn unknown(&self, shown: &str, path: &str) -> ConfigError {
        ConfigError::UnknownKey { origin: self.origin.clone(), key: shown.to_owned(), suggestion: suggest(path) }
    }

    /// The value in the form that its kind is stored in, or nothing when it is left empty.
    fn value(&self, key: &str, kind: Kind, value: &Value) -> Result<Option<Value>, ConfigError> {
        let text = match &value.kind {
            ValueKind::Nil => return Ok(None),
            ValueKind::String(text) => Some(text.as_str()),
            _ => None,
        };
        // `ANNULUS__MEMBERLIST__PROBE_INTERVAL=` unsets; a text or list may really be meant to be empty.
        let may_be_empty = matches!(
            kind,
            Kind::Text | Kind::Secret | Kind::TextList | Kind::AddressList | Kind::SecretList | Kind::Choice(_)
        );
        if self.written == Written::Text && text == Some("") && !may_be_empty {
            return Ok(None);
        }
        let expected = kind.describe();
        let wrong = || self.wrong(key, &expected, value, kind.is_secret());
        let kind = match kind {
            Kind::Bool => ValueKind::Boolean(self.boolean(value).ok_or_else(wrong)?),
            Kind::Integer(low, high) => {
                let number = self.integer(value).filter(|n| (low..=high).contains(n)).ok_or_else(wrong)?;
                ValueKind::U64(number)
            }
            Kind::Number => ValueKind::Float(self.number(value).filter(|n| n.is_finite()).ok_or_else(wrong)?),
            Kind::Duration => {
                // A plain 0 needs no unit.
                let text = if matches!(value.kind, ValueKind::I64(0)) { Some("0s") } else { text };
                let text = text.filter(|text| parse_duration(text).is_ok()).ok_or_else(wrong)?;
                ValueKind::String(text.to_owned())
            }
            Kind::Size => {
                let plain = self.integer(value).map(ByteSize);
                let size = plain.or_else(|| text.and_then(|text| text.parse().ok())).ok_or_else(wrong)?;
                ValueKind::String(size.to_string())
            }
            Kind::Text | Kind::Secret => ValueKind::String(text.ok_or_else(wrong)?.to_owned()),
            Kind::Choice(words) => {
                ValueKind::String(text.filter(|text| words.contains(text)).ok_or_else(wrong)?.to_owned())
            }
            Kind::TextList | Kind::SecretList => self.list(value, |_| true).ok_or_else(wrong)?,
            Kind::AddressList => self.list(value, |item| item.parse::<IpAddr>().is_ok()).ok_or_else(wrong)?,
        };
        Ok(Some(self.made(kind)))
    }

    fn boolean(&self, value: &Value) -> Option<bool> {
        match (&value.kind, self.written) {
            (ValueKind::Boolean(value), _) => Some(*value),
            (ValueKind::String(text), Written::Text) => text.trim().to_ascii_lowercase().parse().ok(),
            _ => None,
        }
    }

    fn integer(&self, value: &Value) -> Option<u64> {
        match (&value.kind, self.written) {
            (ValueKind::I64(number), _) => u64::try_from(*number).ok(),
            (ValueKind::U64(number), _) => Some(*number),
            (ValueKind::String(text), Written::Text) => text.trim().parse().ok(),
            _ => None,
        }
    }

    fn number(&self, value: &Value) -> Option<f64> {
        match (&value.kind, self.written) {
            (ValueKind::Float(number), _) => Some(*number),
            (ValueKind::String(text), Written::Text) => text.trim().parse().ok(),
            // Exact: no rate limit comes near 2³².
            _ => self.integer(value).and_then(|n| u32::try_from(n).ok()).map(f64::from),
        }
    }

    fn list(&self, value: &Value, accept: impl Fn(&str) -> bool) -> Option<ValueKind> {
        let items: Vec<&str> = match &value.kind {
            ValueKind::String(text) => split_list(text).collect(),
            ValueKind::Array(items) => items
                .iter()
                .map(|item| if let ValueKind::String(text) = &item.kind { Some(text.as_str()) } else { None })
                .collect::<Option<_>>()?,
            _ => return None,
        };
        if !items.iter().all(|item| accept(item)) {
            return None;
        }
        Some(ValueKind::Array(items.into_iter().map(|item| self.made(ValueKind::String(item.to_owned()))).collect()))
    }
}

fn join(section: &str, name: &str) -> String {
    if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") }
}

/// What a value is, in words. Long texts are cut, and secrets are not shown.
fn describe(value: &Value, secret: bool) -> String {
    match &value.kind {
        ValueKind::Nil => "nothing".to_owned(),
        ValueKind::Table(_) => "a section".to_owned(),
        ValueKind::Array(_) => "a list".to_owned(),
        _ if secret => "a value of another kind".to_owned(),
        ValueKind::String(text) => format!("the text {:?}", text.chars().take(60).collect::<String>()),
        ValueKind::Boolean(value) => value.to_string(),
        ValueKind::Float(value) => format!("the number {value}"),
        other => format!("the number {other}"),
    }
}

/// The existing key that an unknown one was probably meant to be.
fn suggest(path: &str) -> Option<String> {
    let (section, name) = path.rsplit_once('.').unwrap_or(("", path));
    let near = |candidate: &str| {
        let distance = edit_distance(name, candidate);
        (distance <= 2.max(candidate.len() / 3)).then_some(distance)
    };
    let sibling = schema::children(section)
        .into_iter()
        .filter_map(|candidate| near(candidate).map(|distance| (distance, join(section, candidate))))
        .min();
    // Perhaps the right name in the wrong section.
    let elsewhere =
        || schema::KEYS.iter().find(|key| key.path.rsplit('.').next() == Some(name)).map(|key| key.path.to_owned());
    sibling.map(|(_, key)| key).or_else(elsewhere)
}

/// Insertions, deletions and replacements between two short names (Levenshtein).
fn edit_distance(a: &str, b: &str) -> usize {
    // Far longer than any key: not a misspelling, and not worth a quadratic loop.
    if a.len() > 64 {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        if let Some(first) = row.first_mut() {
            *first = left;
        }
        for (cell, cb) in row.iter_mut().skip(1).zip(b.chars()) {
            let replaced = diagonal + usize::from(ca != cb);
            diagonal = *cell;
            left = replaced.min(diagonal + 1).min(left + 1);
            *cell = left;
        }
    }
    row.last().copied().unwrap_or(usize::MAX)
}
