#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use futures_util::{FutureExt as _, StreamExt as _};

use super::backoff::Backoff;
use super::mailbox::Watches;
use super::view::View;
use super::*;
use crate::kv::{CodecError, Entry, KeyChange, Mergeable, StoreKind};

/// Counters by name, of which the larger one wins; they have no tombstones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Counts(BTreeMap<String, u64>);

impl Mergeable for Counts {
    fn join(&mut self, other: &Self, _: Now) -> Option<Self> {
        let mut news = Self::default();
        for (name, &count) in &other.0 {
            if self.0.get(name).is_none_or(|&mine| mine < count) {
                self.0.insert(name.clone(), count);
                news.0.insert(name.clone(), count);
            }
        }
        (!news.is_empty()).then_some(news)
    }

    fn delta(&self, base: Option<&Self>, now: Now) -> Option<Self> {
        base.cloned().unwrap_or_default().join(self, now)
    }

    fn content(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    fn remove_tombstones(&mut self, _: Option<i64>) -> usize {
        0
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// `name=count`, comma separated.
struct CountsCodec;

impl Codec for CountsCodec {
    fn id(&self) -> &str {
        "counts"
    }

    fn encode(&self, value: &Value) -> Result<Vec<u8>, CodecError> {
        let counts = value.downcast_ref::<Counts>().ok_or_else(|| CodecError::new("counts", "not counts"))?;
        Ok(counts.0.iter().map(|(name, count)| format!("{name}={count}")).collect::<Vec<_>>().join(",").into())
    }

    fn decode(&self, bytes: &[u8]) -> Result<Value, CodecError> {
        let bad = || CodecError::new("counts", "not name=count");
        let text = std::str::from_utf8(bytes).map_err(|_| bad())?;
        let mut counts = Counts::default();
        for pair in text.split(',') {
            let (name, count) = pair.split_once('=').ok_or_else(bad)?;
            counts.0.insert(name.to_owned(), count.parse().map_err(|_| bad())?);
        }
        Ok(Value::new(counts))
    }

    fn to_json(&self, _: &Value) -> Result<serde_json::Value, CodecError> {
        Err(CodecError::new("counts", "no JSON"))
    }
}

fn pair(key: &str, value: &str, version: u64) -> Pair {
    Pair { key: key.to_owned(), value: value.as_bytes().to_vec(), version }
}

fn view(target: Target) -> View {
    let codecs = Codecs::default();
    codecs.register("", Arc::new(CountsCodec));
    View::new(StoreKind::Consul, target, Arc::new(codecs), Duration::from_secs(60))
}

fn one_key() -> View {
    view(Target::Key("key".into()))
}

/// The changes as text: `key name=count@version`, with `!` for those that are not fresh.
fn shown(changes: Vec<KeyChange>) -> Vec<String> {
    changes
        .into_iter()
        .map(|KeyChange { key, entry, fresh }| {
            let entry = entry.map_or_else(
                || "-".to_owned(),
                |Entry { value, version }| {
                    format!("{}@{version}", String::from_utf8(CountsCodec.encode(&value).unwrap()).unwrap())
                },
            );
            format!("{}{key} {entry}", if fresh { "" } else { "!" })
        })
        .collect()
}

#[test]
fn a_missing_key_is_shown_once_and_then_when_it_appears_or_goes() {
    let (mut view, now) = (one_key(), Now::read());
    assert_eq!(shown(view.found(vec![], false, now)), ["key -"]);
    assert!(view.found(vec![], false, now).is_empty());
    assert_eq!(shown(view.found(vec![pair("key", "a=1", 7)], false, now)), ["key a=1@7"]);
    assert!(view.found(vec![pair("key", "a=1", 7)], false, now).is_empty());
    assert_eq!(shown(view.found(vec![], false, now)), ["key -"]);
    assert_eq!(shown(view.found(vec![pair("key", "a=1", 9)], false, now)), ["key a=1@9"]);
}

#[test]
fn an_outage_shows_what_is_known_and_its_end_shows_it_again() {
    let (mut view, now) = (one_key(), Now::read());
    assert_eq!(shown(view.out_of_reach()), ["!key -"]);
    assert_eq!(shown(view.found(vec![pair("key", "a=1", 7)], true, now)), ["key a=1@7"]);
    assert_eq!(shown(view.out_of_reach()), ["!key a=1@7"]);
    assert_eq!(shown(view.found(vec![pair("key", "a=1", 7)], true, now)), ["key a=1@7"]);
}

#[test]
fn a_newer_value_of_a_linear_history_is_shown_as_it_is() {
    let (mut view, now) = (one_key(), Now::read());
    view.found(vec![pair("key", "a=5,b=5", 7)], false, now);
    // Somebody removed b: absence in a newer version is a removal.
    assert_eq!(shown(view.found(vec![pair("key", "a=5", 8)], false, now)), ["key a=5@8"]);
}

#[test]
fn after_the_index_went_back_nothing_older_is_shown_until_the_store_has_caught_up() {
    let (mut view, now) = (one_key(), Now::read());
    view.found(vec![pair("key", "a=5,b=5", 100)], false, now);
    view.index_went_back(now);
    assert_eq!(shown(view.found(vec![pair("key", "a=2", 40)], false, now)), ["key a=5,b=5@101"]);
    // The next write is built on the old value, but the index grows.
    assert_eq!(shown(view.found(vec![pair("key", "a=2,c=1", 41)], false, now)), ["key a=5,b=5,c=1@102"]);
    assert_eq!(shown(view.found(vec![pair("key", "a=6,b=6,c=1", 42)], false, now)), ["key a=6,b=6,c=1@103"]);
    // It has caught up: from now on removals show again.
    assert_eq!(shown(view.found(vec![pair("key", "a=6,c=1", 43)], false, now)), ["key a=6,c=1@104"]);
}

#[test]
fn a_store_that_lost_a_key_takes_it_from_its_reader_only_after_the_left_timeout() {
    let (mut view, now) = (one_key(), Now::read());
    view.found(vec![pair("key", "a=5", 100)], false, now);
    view.index_went_back(now);
    assert!(view.found(vec![], false, now + Duration::from_secs(59)).is_empty());
    assert_eq!(shown(view.found(vec![], true, now + Duration::from_secs(59))), ["key a=5@100"]);
    assert_eq!(shown(view.found(vec![], false, now + Duration::from_secs(60))), ["key -"]);
}

#[test]
fn a_key_that_was_there_after_the_index_went_back_can_be_deleted() {
    let (mut view, now) = (one_key(), Now::read());
    view.found(vec![pair("key", "a=5", 100)], false, now);
    view.index_went_back(now);
    view.found(vec![pair("key", "a=2", 40)], false, now);
    assert_eq!(shown(view.found(vec![], false, now)), ["key -"]);
}

#[test]
fn a_value_that_does_not_decode_leaves_the_last_one_marked_as_not_fresh() {
    let (mut view, now) = (one_key(), Now::read());
    assert_eq!(shown(view.found(vec![pair("key", "?", 5)], false, now)), ["!key -"]);
    assert!(view.found(vec![pair("key", "?", 5)], false, now).is_empty());
    assert_eq!(shown(view.found(vec![pair("key", "a=1", 6)], false, now)), ["key a=1@6"]);
    assert_eq!(shown(view.found(vec![pair("key", "?", 7)], false, now)), ["!key a=1@6"]);
    assert!(view.found(vec![pair("key", "?", 8)], false, now).is_empty(), "told once");
    assert_eq!(shown(view.found(vec![pair("key", "?", 8)], true, now)), ["!key a=1@6"]);
    assert_eq!(shown(view.found(vec![], false, now)), ["key -"]);
}

#[test]
fn a_prefix_shows_its_keys_and_forgets_those_that_went() {
    let (mut view, now) = (view(Target::Prefix("k".into())), Now::read());
    assert!(view.found(vec![], false, now).is_empty());
    assert_eq!(shown(view.out_of_reach()), ["!k -"]);
    assert_eq!(shown(view.found(vec![], true, now)), ["k -"]);
    let both = || vec![pair("ka", "a=1", 5), pair("kb", "b=1", 6)];
    assert_eq!(shown(view.found(both(), false, now)), ["ka a=1@5", "kb b=1@6"]);
    assert_eq!(shown(view.out_of_reach()), ["!ka a=1@5", "!kb b=1@6"]);
    assert_eq!(shown(view.found(vec![pair("kb", "b=1", 6)], false, now)), ["ka -"]);
    assert!(view.found(vec![pair("kb", "b=1", 6)], false, now).is_empty());
    assert_eq!(shown(view.found(both(), false, now)), ["ka a=1@5"]);
}

#[test]
fn pauses_grow_to_their_bound_and_are_random() {
    let longest = Duration::from_secs(1);
    let mut backoff = Backoff::new(Duration::from_millis(100), longest);
    let mut delays: Vec<_> = (0..50).map(|_| backoff.next_delay()).collect();
    assert!(delays[0] <= Duration::from_millis(100) && delays[1] <= Duration::from_millis(200));
    assert!(delays.iter().all(|delay| *delay <= longest));
    delays.dedup();
    assert!(delays.len() > 40);
    backoff.reset();
    assert!(backoff.next_delay() <= Duration::from_millis(100));
    assert_eq!(Backoff::new(longest, Duration::ZERO).next_delay(), Duration::ZERO);
}

#[test]
fn watches_are_as_old_as_the_one_that_has_waited_longest() {
    let start = Now::read();
    let after = |seconds| Now { mono: start.mono + Duration::from_secs(seconds), ..start };
    let watches = Watches::default();
    assert_eq!(watches.age(start), None, "nobody watches");
    let (busy, _busy) = watches.open(start);
    let (silent, reader) = watches.open(after(1));
    busy.heard(after(8));
    assert_eq!(watches.age(after(10)), Some(Duration::from_secs(9)), "one was never answered");
    silent.heard(after(9));
    assert_eq!(watches.age(after(10)), Some(Duration::from_secs(2)));
    busy.send(KeyChange { key: "a".into(), entry: None, fresh: false });
    assert_eq!(watches.age(after(10)), Some(Duration::from_secs(2)), "a report is no answer of the store");
    drop(busy);
    assert_eq!(watches.age(after(20)), Some(Duration::from_secs(12)), "its task died, and somebody still reads it");
    drop((silent, reader));
    drop(_busy);
    assert_eq!(watches.age(after(20)), None);
}

#[test]
fn a_slow_reader_gets_the_latest_of_each_key_and_then_the_end() {
    let (sender, mut receiver) = Watches::default().open(Now::read());
    let change = |key: &str, fresh| KeyChange { key: key.into(), entry: None, fresh };
    assert!(receiver.next().now_or_never().is_none());
    sender.send(change("a", false));
    sender.send(change("b", true));
    sender.send(change("a", true));
    drop(sender);
    let rest: Vec<_> = receiver.collect::<Vec<_>>().now_or_never().unwrap();
    assert_eq!(shown(rest), ["a -", "b -"]);
}
