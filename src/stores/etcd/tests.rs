#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use prost::Message as _;
use tonic::{Code, Status};

use super::channel::{Meaning, describe, is_about_token, meaning};
use super::client::{Change, Position, Report, checked_range, checked_watch, range_of};
use super::proto::{
    COMPARE_MOD, Compare, Event, KeyValue, PutRequest, RangeResponse, RequestOp, ResponseHeader, TxnRequest,
    WatchResponse,
};
use super::watch::Place;
use super::*;
use crate::stores::remote::Pair;

fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader { cluster_id: 7, revision })
}

fn kv(key: &str, value: &str, mod_revision: i64) -> KeyValue {
    KeyValue { key: key.into(), value: value.into(), mod_revision }
}

fn pair(key: &str, value: &str, version: u64) -> Pair {
    Pair { key: key.to_owned(), value: value.into(), version }
}

#[test]
fn a_write_compares_the_mod_revision_also_when_it_is_zero() {
    let put = PutRequest { key: b"k".to_vec(), value: b"v".to_vec() };
    let compare = Compare { result: 0, target: COMPARE_MOD, key: b"k".to_vec(), mod_revision: Some(0) };
    let request = TxnRequest { compare: vec![compare], success: vec![RequestOp { request_put: Some(put) }] };
    // compare { target: MOD(2), key: "k", mod_revision(6): 0 }, success { request_put(2) { key: "k", value: "v" } }
    assert_eq!(hex::encode(request.encode_to_vec()), "0a0710021a016b3000120812060a016b120176");
}

#[test]
fn the_end_of_a_prefix_is_the_next_text() {
    let range = |target| range_of("list", &target).unwrap();
    assert_eq!(range(Target::Prefix("a/".into())), (b"a/".to_vec(), b"a0".to_vec()));
    assert_eq!(range(Target::Prefix("ä".into())), (vec![0xc3, 0xa4], vec![0xc3, 0xa5]));
    assert_eq!(range(Target::Prefix("".into())), (vec![0], vec![0]));
    assert_eq!(range(Target::Key("a".into())), (b"a".to_vec(), vec![]));
    assert!(range_of("list", &Target::Key("".into())).is_err());
}

#[test]
fn answers_to_a_read_are_believed_only_if_they_fit_the_question() {
    let (key, prefix) = (Target::Key("k".into()), Target::Prefix("k".into()));
    let answer = |header, kvs| RangeResponse { header, kvs };
    let one = checked_range(answer(header(9), vec![kv("k", "v", 5)]), &key).unwrap();
    assert_eq!((one.position, one.pairs), (Position { cluster: 7, revision: 9 }, vec![pair("k", "v", 5)]));
    assert!(checked_range(answer(header(1), vec![]), &key).unwrap().pairs.is_empty());
    let two = || vec![kv("kb", "v", 5), kv("ka", "v", 6)];
    assert_eq!(checked_range(answer(header(9), two()), &prefix).unwrap().pairs[0].key, "ka");
    let foreign = KeyValue { key: vec![b'k', 0xff], value: vec![], mod_revision: 4 };
    assert!(checked_range(answer(header(9), vec![foreign]), &prefix).unwrap().pairs.is_empty());
    for (header, kvs, target) in [
        (None, vec![], &key),
        (header(0), vec![], &key),
        (header(-1), vec![], &key),
        (header(9), two(), &key),
        (header(9), vec![kv("other", "v", 5)], &key),
        (header(9), vec![kv("other", "v", 5)], &prefix),
        (header(9), vec![kv("k", "v", 0)], &key),
        (header(9), vec![kv("k", "v", -5)], &key),
    ] {
        let outcome = checked_range(answer(header, kvs.clone()), target);
        assert!(matches!(outcome, Err(StoreError::Unavailable { .. })), "{header:?} {kvs:?}");
    }
}

#[test]
fn answers_of_a_watch_are_believed_only_if_they_fit_the_question() {
    let target = Target::Prefix("k".into());
    let check = |answer| checked_watch(answer, &target);
    let events = |events| WatchResponse { header: header(9), events, ..WatchResponse::default() };
    let event = |kind, kv| Event { kind, kv };
    let both = events(vec![event(0, Some(kv("ka", "v", 5))), event(1, Some(kv("kb", "", 6)))]);
    let expected = [
        Change { key: "ka".into(), pair: Some(pair("ka", "v", 5)), revision: 5 },
        Change { key: "kb".into(), pair: None, revision: 6 },
    ];
    assert_eq!(check(both).unwrap(), Report::Changes(expected.into()));
    let created = WatchResponse { created: true, ..events(vec![]) };
    assert_eq!(check(created).unwrap(), Report::Changes(vec![]));
    let compacted = WatchResponse { canceled: true, compact_revision: 4, ..events(vec![]) };
    assert_eq!(check(compacted).unwrap(), Report::Compacted);
    let cancelled = WatchResponse { canceled: true, cancel_reason: "no\nleader".into(), ..events(vec![]) };
    assert_eq!(check(cancelled).unwrap(), Report::Cancelled("no leader".into()));
    for bad in [
        event(0, None),
        event(2, Some(kv("k", "v", 5))),
        event(0, Some(kv("other", "v", 5))),
        event(1, Some(kv("k", "", 0))),
    ] {
        assert!(check(events(vec![bad.clone()])).is_err(), "{bad:?}");
    }
}

#[test]
fn a_watch_skips_what_it_has_read_and_notices_that_the_history_went_back() {
    let at = |revision| Position { cluster: 1, revision };
    let mut place = Place::default();
    assert!(!place.read(at(10)));
    assert!(!place.follows(10), "it was read already");
    assert!(place.follows(11) && place.follows(12));
    assert!(!place.read(at(12)), "a read may find what was followed");
    assert!(!place.follows(11), "a late event");
    assert!(place.follows(20));
    assert!(place.read(at(19)), "a backup was restored");
    assert!(place.follows(20), "another history has another revision 20");
    assert!(place.read(Position { cluster: 2, revision: 100 }), "another cluster");
}

#[test]
fn refusals_are_told_from_failures_and_stale_tokens_from_both() {
    for (code, expected) in [
        (Code::PermissionDenied, Meaning::Refusal),
        (Code::InvalidArgument, Meaning::Refusal),
        (Code::Unavailable, Meaning::Failure),
        (Code::ResourceExhausted, Meaning::Failure),
        (Code::Unknown, Meaning::Failure),
    ] {
        assert_eq!(meaning(&Status::new(code, "etcdserver: no")), expected, "{code:?}");
    }
    assert!(is_about_token(&Status::unauthenticated("etcdserver: invalid auth token")));
    assert!(is_about_token(&Status::invalid_argument("etcdserver: revision of auth store is old")));
    assert!(!is_about_token(&Status::permission_denied("etcdserver: permission denied")));
    assert_eq!(describe(&Status::internal("a\nb")), "a b");
}

#[test]
fn the_configuration_does_not_show_the_password() {
    let config = EtcdConfig { password: "hunter2".to_owned(), ..EtcdConfig::default() };
    let text = format!("{config:?}");
    assert!(text.contains("password: \"set\"") && !text.contains("hunter2"), "{text}");
}

proptest! {
    #[test]
    fn no_bytes_make_the_decoders_panic(bytes in any::<Vec<u8>>()) {
        for target in [Target::Key("k".into()), Target::Prefix("".into())] {
            let _ = RangeResponse::decode(&bytes[..]).map(|answer| checked_range(answer, &target));
            let _ = WatchResponse::decode(&bytes[..]).map(|answer| checked_watch(answer, &target));
        }
    }
}
