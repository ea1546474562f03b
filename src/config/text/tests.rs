#![allow(clippy::unwrap_used)]
//! The parser's limits, each with a text that would hurt without it.

use super::*;

fn yaml(text: &str) -> Result<Table, String> {
    parse(text.as_bytes(), FileFormat::Yaml, Aliases::Refuse)
}

/// The "billion laughs": each line repeats the one before ten times.
fn bomb(levels: usize) -> String {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..=levels {
        let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
        text.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
    }
    text
}

#[test]
fn aliases_are_followed_while_they_stay_small() {
    let table = yaml("base: &b { x: 1 }\nother: *b\n# *stars* & co in a comment\n").unwrap();
    assert_eq!(table.get("base"), table.get("other"));
}

#[test]
fn an_alias_bomb_is_refused_before_the_parser_sees_it() {
    let error = yaml(&bomb(30)).unwrap_err();
    assert!(error.contains("aliases"), "{error}");
}

#[test]
fn an_alias_bomb_in_a_shared_file_is_defused() {
    let text = format!("{}ours: true\n", bomb(30));
    let table = parse(text.as_bytes(), FileFormat::Yaml, Aliases::Mark).unwrap();
    assert_eq!(table.get("ours").unwrap().kind, ValueKind::Boolean(true));
}

#[test]
fn a_bomb_is_seen_wherever_an_alias_may_stand() {
    // Block lists, flow maps, merge keys, behind quotes that are not quotes, and without blanks.
    for alias in ["- *a", "[*a,*a]", "{? *a : 1}", "{\"k\":*a}", "it's *a", "<<: *a", "\t*a"] {
        let text = format!("&a x\n{alias}\n");
        assert!(marks(&text).any(|mark| mark.alias && mark.name.starts_with('a')), "{alias}");
    }
}

#[test]
fn anchors_are_replaced_without_moving_a_column() {
    let text = "k: &anchor\n  - &b x: 1\n    y: *anchor\n";
    let marked = mark_aliases(text);
    assert_eq!(marked, format!("k: !aaaaaa\n  - !a x: 1\n    y: {ALIAS_MARK}2\n"));
    assert!(yaml(&marked).is_ok());
}

#[test]
fn deep_nesting_is_an_error_and_no_stack_overflow() {
    let cases = [
        "- ".repeat(500_000),
        "? ".repeat(500_000),
        "-\t".repeat(500_000),
        "[".repeat(500_000),
        "{a: ".repeat(200_000),
        format!("a: {}{}", "[".repeat(250), "]".repeat(250)),
        (0..1400).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect(),
        (0..200).map(|depth| format!("{}-\n", " ".repeat(depth))).collect(),
        "- ".repeat(120),
    ];
    for text in cases {
        for format in [FileFormat::Yaml, FileFormat::Json, FileFormat::Toml] {
            assert!(parse(text.as_bytes(), format, Aliases::Mark).is_err(), "{}", text.get(..20).unwrap());
        }
    }
    let toml = [format!("a{} = 1", ".a".repeat(400_000)), format!("[a{}]", ".a".repeat(400)), "a=[".repeat(100_000)];
    for text in toml {
        assert!(parse(text.as_bytes(), FileFormat::Toml, Aliases::Refuse).is_err());
    }
}

#[test]
fn nesting_up_to_the_limit_is_fine() {
    let text: String = (0..MAX_DEPTH).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
    assert!(yaml(&text).is_ok());
    assert!(yaml(&format!("{text}{}b: 1\n", " ".repeat(MAX_DEPTH))).is_err());
}

#[test]
fn two_documents_tabs_and_scalars_at_the_top_are_errors() {
    assert!(yaml("a: 1\n---\nb: 2\n").unwrap_err().contains("documents"));
    assert!(yaml("a:\n\tb: 1\n").is_err());
    assert!(yaml("just text").is_err());
    assert!(yaml("- a\n- b\n").is_err());
    assert!(parse(b"\xff\xfe", FileFormat::Yaml, Aliases::Refuse).unwrap_err().contains("UTF-8"));
}

#[test]
fn an_empty_document_is_an_empty_table() {
    for text in ["", "\u{feff}", "# only a comment\n", "---\n", "---\n# c\n...\n", "{}"] {
        assert_eq!(yaml(text).unwrap(), Table::new(), "{text:?}");
    }
}

#[test]
fn a_byte_order_mark_is_skipped() {
    assert!(yaml("\u{feff}a: 1\n").unwrap().contains_key("a"));
}
