//! Tests of the msgpack reader and writer: every form that a peer may write, and what must be refused.

#![allow(clippy::unwrap_used)]

use super::*;

/// What the fields of this test's message can hold.
#[derive(Debug, Default, PartialEq)]
struct Probe {
    number: u32,
    truth: bool,
    bytes: Vec<u8>,
    text: String,
}

fn read(hex: &str) -> Result<Probe, WireError> {
    let mut probe = Probe::default();
    let fields = ["Number", "Truth", "Bytes", "Text"];
    Reader::new(&unhex(hex), &mut Budget::packet(), "probe").structure(&fields, |reader, field| {
        match field {
            "Number" => probe.number = reader.uint32()?,
            "Truth" => probe.truth = reader.boolean()?,
            "Bytes" => probe.bytes = reader.bytes(8)?,
            _ => probe.text = reader.string(8)?.to_owned(),
        }
        Ok(())
    })?;
    Ok(probe)
}

fn unhex(hex: &str) -> Vec<u8> {
    hex::decode(hex.replace(' ', "")).unwrap()
}

/// A message of one field, by the hex of its value.
fn number(value: &str) -> Result<u32, WireError> {
    read(&format!("81 a6 4e756d626572 {value}")).map(|probe| probe.number)
}

fn truth(value: &str) -> Result<bool, WireError> {
    read(&format!("81 a5 5472757468 {value}")).map(|probe| probe.truth)
}

fn bytes(value: &str) -> Result<Vec<u8>, WireError> {
    read(&format!("81 a5 4279746573 {value}")).map(|probe| probe.bytes)
}

fn text(value: &str) -> Result<String, WireError> {
    read(&format!("81 a4 54657874 {value}")).map(|probe| probe.text)
}

#[test]
fn every_form_of_a_number_is_read() {
    for form in ["2a", "cc2a", "cd002a", "ce0000002a", "cf000000000000002a"] {
        assert_eq!(number(form), Ok(42), "{form}");
    }
    for form in ["d02a", "d1002a", "d20000002a", "d3000000000000002a"] {
        assert_eq!(number(form), Ok(42), "{form}");
    }
    assert_eq!(number("c0"), Ok(0));
    assert_eq!(number("ceffffffff"), Ok(u32::MAX));
}

#[test]
fn numbers_that_do_not_fit_are_refused() {
    for form in ["ff", "d0ff", "d1ffff", "d2ffffffff", "d3ffffffffffffffff", "cf0000000100000000"] {
        assert_eq!(number(form), Err(WireError::OutOfRange { field: "Number" }), "{form}");
    }
    for form in ["ca40000000", "cb4000000000000000", "c3", "a131", "c40131", "90", "80"] {
        assert_eq!(number(form), Err(WireError::WrongType { field: "Number" }), "{form}");
    }
    assert_eq!(number("cd00"), Err(WireError::Truncated));
}

#[test]
fn truth_is_also_zero_or_one() {
    for (form, value) in [("c2", false), ("c3", true), ("00", false), ("01", true), ("c0", false)] {
        assert_eq!(truth(form), Ok(value), "{form}");
    }
    for form in ["02", "a0", "ff"] {
        assert_eq!(truth(form), Err(WireError::WrongType { field: "Truth" }), "{form}");
    }
}

#[test]
fn every_form_of_a_byte_string_is_read() {
    for form in ["a20aff", "d9020aff", "da00020aff", "db000000020aff", "c4020aff", "c500020aff", "c6000000020aff"] {
        assert_eq!(bytes(form), Ok(vec![10, 255]), "{form}");
    }
    for form in ["920accff", "dc00020accff", "dd000000020accff"] {
        assert_eq!(bytes(form), Ok(vec![10, 255]), "{form}");
    }
    for form in ["c0", "a0", "c400", "90"] {
        assert_eq!(bytes(form), Ok(vec![]), "{form}");
    }
    assert_eq!(bytes("91cd0100"), Err(WireError::OutOfRange { field: "Bytes" }));
    assert_eq!(bytes("a9000102030405060708"), Err(WireError::TooLong { field: "Bytes", len: 9, max: 8 }));
    assert_eq!(bytes("2a"), Err(WireError::WrongType { field: "Bytes" }));
}

#[test]
fn text_is_utf8_in_any_string_form() {
    for form in ["a2c3a9", "d902c3a9", "da0002c3a9", "c402c3a9"] {
        assert_eq!(text(form), Ok("é".to_owned()), "{form}");
    }
    assert_eq!(text("c0"), Ok(String::new()));
    assert_eq!(text("a1ff"), Err(WireError::NotUtf8 { field: "Text" }));
    assert_eq!(text("91cc41"), Err(WireError::WrongType { field: "Text" }));
}

#[test]
fn a_message_may_be_an_array_in_the_order_of_declaration() {
    let all = Probe { number: 1, truth: true, bytes: vec![2], text: "t".to_owned() };
    assert_eq!(read("94 01 c3 a102 a174"), Ok(all));
    assert_eq!(read("91 01"), Ok(Probe { number: 1, ..Probe::default() }), "missing fields are zero");
    assert_eq!(read("95 00 c2 c0 c0 81a17801"), Ok(Probe::default()), "fields that we do not know are skipped");
}

#[test]
fn a_message_may_be_nil() {
    assert_eq!(read("c0"), Ok(Probe::default()));
    assert_eq!(read("80"), Ok(Probe::default()));
    assert_eq!(read("2a"), Err(WireError::WrongType { field: "probe" }));
    assert_eq!(read(""), Err(WireError::Truncated));
}

#[test]
fn unknown_keys_are_skipped_whatever_they_hold() {
    let values = [
        "c0",
        "c3",
        "07",
        "ff",
        "cc80",
        "d3ffffffffffffffff",
        "ca00000000",
        "cb0000000000000000",
        "a161",
        "d90161",
        "c50001ff",
        "92c0a161",
        "82a16101a16202",
        "d401ff",
        "d501ffff",
        "d601ffffffff",
        "d701ffffffffffffffff",
        "d801ffffffffffffffffffffffffffffffff",
        "c70201ffff",
        "c8000101ff",
        "c90000000101ff",
        "dc0001c0",
        "de0001c0c0",
        "dd00000001c0",
        "df00000001c0c0",
    ];
    for value in values {
        let message = format!("82 a16b {value} a6 4e756d626572 2a");
        assert_eq!(read(&message).map(|probe| probe.number), Ok(42), "{value}");
    }
    assert_eq!(read("81 a16b c1"), Err(WireError::WrongType { field: "value" }));
}

#[test]
fn keys_are_case_sensitive_and_may_be_bin_or_str8() {
    assert_eq!(read("81 a6 6e756d626572 2a"), Ok(Probe::default()));
    assert_eq!(read("81 c406 4e756d626572 2a").map(|probe| probe.number), Ok(42));
    assert_eq!(read("81 d906 4e756d626572 2a").map(|probe| probe.number), Ok(42));
    assert_eq!(read("81 2a 2a"), Err(WireError::WrongType { field: "probe" }));
}

#[test]
fn the_last_of_two_equal_keys_wins() {
    assert_eq!(read("82 a6 4e756d626572 01 a6 4e756d626572 02").map(|probe| probe.number), Ok(2));
}

#[test]
fn bytes_after_the_message_are_ignored() {
    assert_eq!(read("80 ffff"), Ok(Probe::default()));
}

#[test]
fn eight_levels_are_the_deepest() {
    let nested = |levels: usize| read(&format!("81 a16b {} c0", "91".repeat(levels)));
    assert_eq!(nested(7), Ok(Probe::default()));
    assert_eq!(nested(8), Err(WireError::TooDeep));
    assert_eq!(nested(100_000), Err(WireError::TooDeep));
}

#[test]
fn lengths_are_claims_until_the_bytes_are_there() {
    assert_eq!(bytes("dbffffffff"), Err(WireError::TooLong { field: "Bytes", len: 0xffff_ffff, max: 8 }));
    assert_eq!(bytes("ddffffffff00"), Err(WireError::TooLong { field: "Bytes", len: 0xffff_ffff, max: 8 }));
    assert_eq!(bytes("98"), Err(WireError::Truncated));
    for value in ["dbffffffff", "c6ffffffff", "c9ffffffff01", "ddffffffffc0", "dfffffffffc0"] {
        assert_eq!(read(&format!("81 a16b {value}")), Err(WireError::Truncated), "{value}");
    }
    assert_eq!(read("df ffffffff"), Err(WireError::TooLong { field: "probe", len: 0xffff_ffff, max: 16 }));
    assert_eq!(read("de 0011"), Err(WireError::TooLong { field: "probe", len: 17, max: 16 }));
}

#[test]
fn one_budget_is_shared_by_all_that_is_read() {
    let message = unhex("81 a16b dc0400").into_iter().chain([0xc0; 1024]).collect::<Vec<_>>();
    let mut budget = Budget::packet();
    let mut read = || Reader::new(&message, &mut budget, "probe").structure(&[], |reader, _| reader.skip());
    let until_refused = (0..100).map_while(|_| read().ok()).count();
    assert_eq!(until_refused, 15, "16 384 values, 1 027 at a time");
    assert_eq!(read(), Err(WireError::OverBudget { what: "items" }));
}

#[test]
fn a_scan_continues_where_it_stopped() {
    let whole = unhex("83 a161 93 01 cd0200 a3414243 a162 c7020155aa a163 82 a178 c0 a179 d3ffffffffffffffff");
    let mut scanner = Scanner::new(1024, 0);
    let mut budget = Budget::stream();
    for len in 0..whole.len() {
        assert_eq!(scanner.scan(&whole[..len], &mut budget), Ok(None), "{len}");
    }
    let more = [&whole[..], b"and more"].concat();
    assert_eq!(scanner.scan(&more, &mut budget), Ok(Some(whole.len())));
    assert_eq!(scanner.scan(&more, &mut budget), Ok(Some(whole.len())), "and says so again");

    // However it was cut, each value was paid for once.
    let mut at_once = Budget::stream();
    assert_eq!(Scanner::new(1024, 0).scan(&more, &mut at_once), Ok(Some(whole.len())));
    assert_eq!(format!("{budget:?}"), format!("{at_once:?}"));
}

#[test]
fn a_scan_refuses_a_claim_without_waiting_for_it() {
    for value in ["dbffffffff", "ddffffffff", "dfffffffff", "c9ffffffff", "da0401"] {
        let error = Scanner::new(1024, 0).scan(&unhex(value), &mut Budget::stream()).unwrap_err();
        assert_eq!(error.reason(), "too_long", "{value}");
    }
    assert_eq!(Scanner::new(1024, 0).scan(&unhex("da03fd"), &mut Budget::stream()), Ok(None));
}

#[test]
fn strings_are_written_in_the_old_raw_forms() {
    for (len, head) in [(0, "a0"), (31, "bf"), (32, "da0020"), (65_535, "daffff"), (65_536, "db00010000")] {
        let mut writer = Writer::default();
        writer.text(&"x".repeat(len));
        let written = writer.into_bytes();
        assert_eq!(hex::encode(&written[..written.len() - len]), head, "{len}");
    }
}

#[test]
fn an_empty_byte_string_is_written_as_nil() {
    let mut writer = Writer::default();
    writer.bytes(b"");
    writer.bytes(b"x");
    assert_eq!(hex::encode(writer.into_bytes()), "c0a178");
}

#[test]
fn numbers_are_written_as_go_writes_them() {
    let unsigned = [(0, "00"), (127, "7f"), (128, "cc80"), (255, "ccff"), (256, "cd0100"), (65_535, "cdffff")];
    for (value, hex) in unsigned.into_iter().chain([(65_536, "ce00010000"), (u32::MAX, "ceffffffff")]) {
        let mut writer = Writer::default();
        writer.uint(value);
        assert_eq!(hex::encode(writer.into_bytes()), hex, "unsigned {value}");
    }
    let signed = [(0, "00"), (127, "7f"), (128, "d10080"), (32_767, "d17fff"), (32_768, "d200008000")];
    for (value, hex) in signed.into_iter().chain([(0x7fff_ffff, "d27fffffff"), (0x8000_0000, "d30000000080000000")]) {
        let mut writer = Writer::default();
        writer.int(value);
        assert_eq!(hex::encode(writer.into_bytes()), hex, "signed {value}");
    }
}
