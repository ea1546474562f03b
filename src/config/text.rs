//! Bytes of a file to a tree of values, within limits.
//!
//! The parsers behind the `config` crate recurse, and the YAML one copies a node for every alias that names it, so a
//! small text can make them overflow the stack or fill the memory. The checks here come before the parser: size,
//! nesting, and an upper bound of what aliases would expand to. A panic inside a parser is an error for the caller,
//! never the end of the process.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs;
use std::io::{ErrorKind, Read};
use std::path::Path;

use ::config::{FileFormat, Format, Map, Value, ValueKind};

/// Most bytes that a configuration file may have, static or runtime: 1 MiB.
pub const MAX_FILE_BYTES: u64 = 1 << 20;

/// Deepest nesting of a file.
pub(super) const MAX_DEPTH: usize = 64;

/// Widest indentation of a line. Each level of nesting takes at least half a column, so this bounds the parser's
/// recursion.
const MAX_INDENT: usize = 256;

/// Most dots in one line of TOML, where `a.b.c` nests without brackets.
const MAX_TOML_DOTS: usize = 512;

/// Most characters that a YAML text may grow to when its aliases are followed.
const MAX_EXPANDED: usize = 4 << 20;

/// What stands in place of an alias that was not followed.
pub(super) const ALIAS_MARK: &str = "annulus_alias_not_followed_";

/// The top level of a file.
pub(super) type Table = Map<String, Value>;

/// Why a file could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ReadError {
    NotFound,
    Permission,
    TooLarge,
    Other(String),
}

/// Reads a regular file, through symbolic links, up to the limit.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, ReadError> {
    let explain = |e: std::io::Error| match e.kind() {
        ErrorKind::NotFound => ReadError::NotFound,
        ErrorKind::PermissionDenied => ReadError::Permission,
        _ => ReadError::Other(e.to_string()),
    };
    // Opening a pipe would wait for a writer, so the kind is looked at first.
    if !fs::metadata(path).map_err(explain)?.is_file() {
        return Err(ReadError::Other("it is not a regular file".to_owned()));
    }
    let mut bytes = Vec::new();
    fs::File::open(path).map_err(explain)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(explain)?;
    if bytes.len() as u64 > MAX_FILE_BYTES { Err(ReadError::TooLarge) } else { Ok(bytes) }
}

/// What to do with a text whose aliases would expand beyond the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Aliases {
    /// Refuse it.
    Refuse,
    /// Put [`ALIAS_MARK`] in place of each alias: the sections of other programs in the same file may use them freely.
    Mark,
}

/// Parses one document.
pub(super) fn parse(bytes: &[u8], format: FileFormat, aliases: Aliases) -> Result<Table, String> {
    let text = std::str::from_utf8(bytes).map_err(|e| format!("not UTF-8: {e}"))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if is_blank(text) {
        return Ok(Table::new());
    }
    let text = match format {
        FileFormat::Yaml => {
            check_indentation(text)?;
            tame_aliases(text, aliases)?
        }
        FileFormat::Toml => {
            check_dots(text)?;
            Cow::Borrowed(text)
        }
        // serde_json stops at 128 levels by itself.
        _ => Cow::Borrowed(text),
    };
    let parsed = std::panic::catch_unwind(|| format.parse(None, &text).map_err(|e| e.to_string()));
    let table = parsed.unwrap_or_else(|_| Err("the parser failed on this text".to_owned()))?;
    if table.values().any(|value| deeper_than(value, MAX_DEPTH - 1)) {
        return Err(format!("nested deeper than {MAX_DEPTH} levels"));
    }
    Ok(table)
}

/// Nothing but blank lines, comments and document marks.
fn is_blank(text: &str) -> bool {
    text.lines().map(str::trim).all(|line| line.is_empty() || line.starts_with('#') || line == "---" || line == "...")
}

fn deeper_than(value: &Value, levels: usize) -> bool {
    match &value.kind {
        ValueKind::Table(table) => levels == 0 || table.values().any(|v| deeper_than(v, levels - 1)),
        ValueKind::Array(items) => levels == 0 || items.iter().any(|v| deeper_than(v, levels - 1)),
        _ => false,
    }
}

fn check_indentation(text: &str) -> Result<(), String> {
    for (number, line) in text.split(['\n', '\r']).enumerate() {
        if line.bytes().take_while(|b| b" \t-?:".contains(b)).count() > MAX_INDENT {
            return Err(format!("line {}: indented by more than {MAX_INDENT} columns", number + 1));
        }
    }
    Ok(())
}

fn check_dots(text: &str) -> Result<(), String> {
    let deep = text.lines().position(|line| line.bytes().filter(|b| *b == b'.').count() > MAX_TOML_DOTS);
    deep.map_or(Ok(()), |line| Err(format!("line {}: more than {MAX_TOML_DOTS} dots", line + 1)))
}

/// A place where the YAML parser could see an anchor (`&name`) or an alias (`*name`), as byte range.
struct Mark<'a> {
    alias: bool,
    name: &'a str,
    start: usize,
}

/// All places that could be anchors or aliases. Quotes and comments are not understood, so there may be too many, never
/// too few.
fn marks(text: &str) -> impl Iterator<Item = Mark<'_>> {
    // After one of these the parser is inside a scalar, a name or a comment, where neither can begin.
    let inside = |c: char| c.is_alphanumeric() || "_\"'*&\\./#=+~$".contains(c);
    let in_name = |c: char| !c.is_ascii_whitespace() && !",[]{}\0\u{feff}".contains(c);
    let mut before = None;
    let mut skip_to = 0;
    text.char_indices().filter_map(move |(start, c)| {
        let previous = before.replace(c);
        if start < skip_to || !matches!(c, '*' | '&') || previous.is_some_and(inside) {
            return None;
        }
        let rest = text.get(start + 1..)?;
        let name = rest.get(..rest.find(|c| !in_name(c)).unwrap_or(rest.len()))?;
        if name.is_empty() {
            return None;
        }
        skip_to = start + 1 + name.len();
        Some(Mark { alias: c == '*', name, start })
    })
}

/// Makes sure that following the aliases cannot fill the memory.
///
/// Upper bound: an alias repeats a node that lies between its anchor and itself, so it adds at most what that stretch
/// had grown to; and the parser keeps one copy of every anchored node.
fn tame_aliases(text: &str, aliases: Aliases) -> Result<Cow<'_, str>, String> {
    let mut anchors: HashMap<&str, usize> = HashMap::new();
    let mut anchor_count = 0_usize;
    let mut repeated = 0_usize;
    for mark in marks(text) {
        let grown = mark.start.saturating_add(repeated);
        if !mark.alias {
            anchors.entry(mark.name).or_insert(grown);
            anchor_count += 1;
        } else if let Some(from) = anchors.get(mark.name) {
            repeated = repeated.saturating_add(grown - from);
        }
    }
    // Without anchors nothing is copied, and an alias is an error of the parser.
    if anchor_count == 0 || text.len().saturating_add(repeated).saturating_mul(anchor_count + 1) <= MAX_EXPANDED {
        return Ok(Cow::Borrowed(text));
    }
    match aliases {
        Aliases::Refuse => {
            Err("its anchors and aliases could expand beyond all measure; write the values out".to_owned())
        }
        Aliases::Mark => Ok(Cow::Owned(mark_aliases(text))),
    }
}

/// Replaces every alias by a plain scalar, and every anchor by a tag of its length, which keeps all columns.
fn mark_aliases(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut copied = 0;
    for (number, mark) in marks(text).enumerate() {
        out.push_str(text.get(copied..mark.start).unwrap_or_default());
        if mark.alias {
            out.push_str(ALIAS_MARK);
            out.push_str(&number.to_string());
        } else {
            out.push('!');
            out.extend(mark.name.chars().map(|_| 'a'));
        }
        copied = mark.start + 1 + mark.name.len();
    }
    out.push_str(text.get(copied..).unwrap_or_default());
    out
}

#[cfg(test)]
mod tests;
