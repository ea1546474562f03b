#![allow(clippy::unwrap_used)]

use std::time::Instant;

use proptest::prelude::*;

use super::client::{escape, parse_pairs};
use super::limit::RateLimit;
use super::watch::{Position, Progress};
use super::*;
use crate::stores::remote::Pair;

fn pair(key: &str, value: &str, version: u64) -> Pair {
    Pair { key: key.to_owned(), value: value.as_bytes().to_vec(), version }
}

#[test]
fn the_position_follows_the_index_and_asks_the_leader_before_it_goes_back() {
    let mut position = Position::default();
    assert_eq!(position.wait_for(), None);
    for nothing in [None, Some(0)] {
        let mut position = Position::default();
        assert_eq!(position.answered(nothing), Progress::Forward);
        assert_eq!(position.wait_for(), Some(1), "waiting for 0 would not wait");
    }
    assert_eq!(position.answered(Some(10)), Progress::Forward);
    assert_eq!(position.wait_for(), Some(10));
    assert_eq!(position.answered(Some(10)), Progress::Same);

    assert_eq!(position.answered(Some(4)), Progress::Behind);
    assert!(position.asks_leader() && position.wait_for().is_none());
    position.failed();
    assert!(position.asks_leader(), "a failure is no answer of the leader");
    assert_eq!(position.answered(Some(12)), Progress::Forward);
    assert!(!position.asks_leader());

    position.failed();
    assert_eq!(position.wait_for(), None);
    assert_eq!(position.answered(None), Progress::Behind);
    assert_eq!(position.answered(Some(3)), Progress::Back);
    assert_eq!(position.wait_for(), Some(3));
    assert!(!position.asks_leader());
    assert_eq!(position.answered(Some(u64::MAX)), Progress::Forward);
}

#[test]
fn the_rate_limit_lets_a_burst_through_and_then_the_rate() {
    let start = Instant::now();
    let mut limit = RateLimit::new(2.0, 3, start).unwrap();
    let waits: Vec<_> = (0..5).map(|_| limit.take(start)).collect();
    let half = Duration::from_millis(500);
    assert_eq!(waits, [Duration::ZERO, Duration::ZERO, Duration::ZERO, half, half * 2]);
    assert_eq!(limit.take(start + Duration::from_secs(3600)), Duration::ZERO);
    assert!(RateLimit::new(0.0, 3, start).is_none());
    assert!(RateLimit::new(f64::NAN, 3, start).is_none());
    let mut one = RateLimit::new(1.0, 0, start).unwrap();
    assert_eq!((one.take(start), one.take(start)), (Duration::ZERO, Duration::from_secs(1)));
}

#[test]
fn answers_are_believed_only_if_they_fit_the_question() {
    let key = Target::Key("key".into());
    let read = |body: &str| parse_pairs(body.as_bytes(), &key);
    let good =
        r#"[{"LockIndex":0,"Key":"key","Flags":18446744073709551615,"Value":"YT0x","CreateIndex":1,"ModifyIndex":9}]"#;
    assert_eq!(read(good).unwrap(), [pair("key", "a=1", 9)]);
    let empty = r#"[{"Key":"key","Value":null,"ModifyIndex":9}]"#;
    assert_eq!(read(empty).unwrap(), [pair("key", "", 9)]);
    for bad in [
        "null",
        "[]",
        "{}",
        "true",
        r#"[{"Key":"kez","Value":"YT0x","ModifyIndex":9}]"#,
        r#"[{"Key":"key","Value":"YT0","ModifyIndex":9}]"#,
        r#"[{"Key":"key","Value":"YT0x","ModifyIndex":0}]"#,
        r#"[{"Key":"key","Value":"YT0x","ModifyIndex":-1}]"#,
        r#"[{"Key":"key","Value":"YT0x"}]"#,
        r#"[{"Key":"key","ModifyIndex":9},{"Key":"key","ModifyIndex":9}]"#,
    ] {
        assert!(matches!(read(bad), Err(StoreError::Unavailable { .. })), "{bad}");
    }
    let deep = "[".repeat(100_000);
    assert!(read(&deep).is_err());
    let prefix = Target::Prefix("key".into());
    let two = r#"[{"Key":"key1","Value":"YT0x","ModifyIndex":9},{"Key":"key2","Value":"","ModifyIndex":9}]"#;
    assert_eq!(parse_pairs(two.as_bytes(), &prefix).unwrap().len(), 2);
    assert!(parse_pairs(br#"[{"Key":"other","Value":"","ModifyIndex":9}]"#, &prefix).is_err());
}

proptest! {
    #[test]
    fn no_answer_makes_the_parser_panic(body in any::<Vec<u8>>(), text in r#"[\[\]{}":,a-zA-Z0-9=]{0,80}"#) {
        for body in [&body[..], text.as_bytes()] {
            let _ = parse_pairs(body, &Target::Key("key".into()));
            let _ = parse_pairs(body, &Target::Prefix("".into()));
        }
    }

    #[test]
    fn an_escaped_key_has_no_character_with_a_meaning_and_unescapes_to_itself(key in any::<String>()) {
        let escaped = escape(&key);
        prop_assert!(escaped.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.~/%".contains(&b)));
        let mut bytes = Vec::new();
        let mut rest = escaped.as_bytes();
        while let [first, tail @ ..] = rest {
            rest = tail;
            if *first == b'%' {
                let (hex, tail) = rest.split_at(2);
                bytes.push(u8::from_str_radix(std::str::from_utf8(hex).unwrap(), 16).unwrap());
                rest = tail;
            } else {
                bytes.push(*first);
            }
        }
        prop_assert_eq!(bytes, key.as_bytes());
    }
}

#[test]
fn the_configuration_does_not_show_the_token() {
    let config = ConsulConfig { acl_token: "d0c5f6ab".to_owned(), ..ConsulConfig::default() };
    let text = format!("{config:?}");
    assert!(text.contains("acl_token: \"set\"") && !text.contains("d0c5f6ab"), "{text}");
}
