//! What is printed: aligned tables for people, JSON for scripts.

use std::io::{self, Write};

use serde_json::Value;

/// The form of what is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Output {
    /// For people.
    #[default]
    Text,
    /// One JSON object.
    Json,
}

impl Output {
    /// Prints an answer in this form.
    pub(crate) fn print(self, json: &Value, text: impl FnOnce() -> String) -> anyhow::Result<()> {
        match self {
            Self::Text => say(&text()),
            Self::Json => say(&json.to_string()),
        }
    }
}

/// Prints text and the end of its last line; nothing for an empty text.
pub(crate) fn say(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    if !text.is_empty() && !text.ends_with('\n') {
        stdout.write_all(b"\n")?;
    }
    Ok(stdout.flush()?)
}

pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Text from the network, safe for a terminal: what could move the cursor, change colours or reverse the writing
/// direction is shown as its code.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for symbol in text.chars() {
        match symbol {
            '"' | '\'' => out.push(symbol),
            _ => out.extend(symbol.escape_debug()),
        }
    }
    out
}

/// JSON on one line, safe for a terminal: JSON itself escapes control characters below 0x20 only.
pub(crate) fn shown(value: &Value) -> String {
    unescaped_controls(&value.to_string())
}

/// JSON over several lines, safe for a terminal.
pub(crate) fn pretty(value: &Value) -> String {
    unescaped_controls(&serde_json::to_string_pretty(value).unwrap_or_default())
}

/// Escapes what JSON leaves as it is and a terminal would obey.
fn unescaped_controls(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for symbol in json.chars() {
        match symbol {
            '\n' | '"' | '\'' | '\\' => out.push(symbol),
            _ if u32::from(symbol) < 0x10000 && symbol.escape_debug().len() > 1 => {
                out.push_str(&format!("\\u{:04x}", u32::from(symbol)));
            }
            _ => out.push(symbol),
        }
    }
    out
}

/// The text of a JSON field for a table: texts without quotes, nothing as `-`.
pub(crate) fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => escape(text),
        other => escape(&other.to_string()),
    }
}

/// The items of a JSON list; none when it is not a list.
pub(crate) fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// A table with aligned columns.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(head: &[&str]) -> Self {
        Self { rows: vec![head.iter().map(|&name| name.to_owned()).collect()] }
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    pub(crate) fn to_text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut out = String::new();
        for row in &self.rows {
            let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}"));
            out.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
            out.push('\n');
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_from_the_network_cannot_steer_the_terminal() {
        assert_eq!(escape("a\u{1b}[31mb\r\n\u{202e}c"), "a\\u{1b}[31mb\\r\\n\\u{202e}c");
        assert_eq!(escape("zürich-\"1\""), "zürich-\"1\"");
    }

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(&["NAME", "STATE"]);
        table.row(vec!["zürich".to_owned(), "up".to_owned()]);
        assert_eq!(table.to_text(), "NAME    STATE\nzürich  up\n");
    }

    #[test]
    fn what_is_printed_is_json_that_cannot_steer_the_terminal() {
        let value = json!({ "a": "\u{9b}31m\u{202e}\u{1b}", "ü": "\"\\" });
        let text = pretty(&value);
        assert!(!text.chars().any(|symbol| symbol != '\n' && (symbol.is_control() || symbol == '\u{202e}')), "{text}");
        assert_eq!(serde_json::from_str::<Value>(&text).ok(), Some(value));
    }
}
