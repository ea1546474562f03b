#![allow(clippy::unwrap_used)]

use super::*;
use crate::kv::gossip::{Broadcast, GossipConfig, GossipStore, Input, Output};
use crate::kv::{CasAction, Codecs, Mergeable, Refused, Value};
use crate::ring::InstanceState::{self, Active, Left};
use crate::ring::RingCodec;
use bytes::Bytes;
use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: i64 = 3600;
/// The time in these tests, in Unix seconds.
const NOW: i64 = 1_700_000_000;

fn now() -> Now {
    Now { unix: Duration::from_secs(NOW as u64), ..Now::read() }
}

fn entry(timestamp: i64, state: InstanceState) -> Instance {
    let mut entry = Instance { timestamp, state, tokens: [1, 2].into(), ..Instance::default() };
    entry.normalize();
    entry
}

fn ring<const N: usize>(entries: [(&str, i64, InstanceState); N]) -> Desc {
    let entries = entries.into_iter().map(|(id, timestamp, state)| (id.into(), entry(timestamp, state)));
    Desc { instances: entries.collect(), ..Desc::default() }
}

fn ids(desc: &Desc) -> Vec<&str> {
    desc.instances.keys().map(|id| &**id).collect()
}

#[test]
fn entries_without_a_date_never_enter() {
    let incoming =
        ring([("a", 0, Active), ("b", i64::MIN, Active), ("c", -1, Left), ("d", 1, Active), ("e", NOW, Active)]);
    let admission = admit(&incoming, None, None, &RingRules::default(), now()).unwrap();
    assert_eq!(ids(&admission.admitted), ["d", "e"]);
    assert_eq!(admission.refused, Refused { undated: 3, ..Refused::default() });
    // Not even when all are like that: no clock explains it.
    let ghosts = ring([("a", 0, Active), ("b", 0, Active), ("c", 0, Active)]);
    assert!(admit(&ghosts, None, None, &RingRules::default(), now()).unwrap().admitted.is_empty());
}

#[test]
fn entries_are_taken_up_to_half_an_hour_ahead_and_not_a_second_more() {
    let rules = RingRules::default();
    let known = ring([("b", NOW, Active), ("c", NOW, Active)]);
    let taken = |timestamp| admit(&ring([("a", timestamp, Active)]), Some(&known), None, &rules, now()).is_none();
    assert!(taken(NOW + HOUR / 2));
    assert!(!taken(NOW + HOUR / 2 + 1));
    assert!(!taken(i64::MAX));
    let year = admit(&ring([("a", NOW + 9000 * HOUR, Active)]), Some(&known), None, &rules, now()).unwrap();
    assert_eq!((year.refused.future, year.admitted.instances.len()), (1, 0));
}

#[test]
fn the_removal_of_an_entry_from_the_future_is_taken_and_no_other_tombstone_from_there() {
    let rules = RingRules::default();
    let ahead = NOW + 1000 * HOUR;
    let known = ring([("a", ahead, Active), ("b", NOW, Active), ("c", NOW, Active)]);
    let tombstone = known.instances["a"].tombstone(NOW);
    assert_eq!(tombstone.timestamp, ahead + 1);
    let removal = Desc { instances: [("a".into(), tombstone)].into(), ..Desc::default() };
    assert_eq!(admit(&removal, Some(&known), None, &rules, now()), None);
    let mut after = known.clone();
    after.join(&removal, now());
    assert!(after.instances["a"].state.is_left());
    // Of one that was never there, or not with such a date.
    for unfounded in [ring([("x", ahead, Left)]), ring([("b", ahead, Left)])] {
        assert!(admit(&unfounded, Some(&known), None, &rules, now()).unwrap().admitted.is_empty());
    }
}

#[test]
fn a_node_whose_own_clock_is_hours_off_loses_nobody_and_says_so() {
    for off in [-2 * HOUR, 2 * HOUR] {
        let here = now();
        let here = Now { unix: Duration::from_secs((NOW + off) as u64), ..here };
        let rules = RingRules::default().forgetting(MINUTE * 4, MINUTE * 5);
        let fleet = ring([("a", NOW, Active), ("b", NOW - 10, Active), ("c", NOW - 15, Active)]);
        let own = ring([("me", NOW + off, Active)]);
        let admission = admit(&fleet, Some(&own), None, &rules, here).unwrap();
        assert_eq!(admission.admitted, fleet);
        assert_eq!(admission.refused, Refused { own_clock: 3, ..Refused::default() });
        // Later, one at a time.
        let mut known = fleet.clone();
        known.join(&own, here);
        let beat = admit(&ring([("a", NOW + 15, Active)]), Some(&known), None, &rules, here);
        assert!(beat.is_none_or(|beat| beat.admitted.instances.len() == 1));
    }
}

#[test]
fn one_clock_that_is_hours_off_does_not_decide_for_the_others() {
    let known = ring([("a", NOW, Active), ("b", NOW, Active), ("bad", NOW - 20, Active)]);
    let admission =
        admit(&ring([("bad", NOW + 2 * HOUR, Active)]), Some(&known), None, &RingRules::default(), now()).unwrap();
    assert_eq!(admission.refused, Refused { future: 1, ..Refused::default() });
    // What was known of it stays: refusing removes nobody.
    let mut after = known.clone();
    after.join(&admission.admitted, now());
    assert_eq!(after, known);
}

#[test]
fn where_the_dead_are_forgotten_by_time_nobody_who_is_long_dead_is_added() {
    let rules = RingRules::default().forgetting(MINUTE * 4, MINUTE * 5);
    let known = ring([("a", NOW, Active), ("b", NOW, Active), ("old", NOW - 9000, Active)]);
    let taken =
        |id: &str, age, state| admit(&ring([(id, NOW - age, state)]), Some(&known), None, &rules, now()).is_none();
    assert!(taken("new", 389, Active));
    assert!(!taken("new", 391, Active));
    assert!(taken("old", 8000, Active), "known here");
    assert!(taken("new", 9000, Left), "a removal");
    let others = RingRules::default();
    assert_eq!(admit(&ring([("new", 1, Active)]), Some(&known), None, &others, now()), None, "nobody forgets it here");
    // A whole ring that is dead is no sign that it was removed.
    let dead = ring([("x", NOW - 9000, Active), ("y", NOW - 9000, Active), ("z", NOW - 9000, Active)]);
    assert_eq!(admit(&dead, None, None, &rules, now()).unwrap().admitted, dead);
}

/// A gossip store with one ring.
struct Node {
    store: GossipStore,
    told: Vec<Refused>,
}

impl Node {
    fn new() -> Self {
        let codecs = Arc::new(Codecs::default());
        codecs.register("ring", Arc::new(RingCodec));
        Self { store: GossipStore::new(GossipConfig::default(), codecs), told: Vec::new() }
    }

    fn write(&mut self, now: Now, edit: impl Fn(&mut Desc)) {
        let outcome = self.store.cas(now, "ring", &mut |current| {
            let mut desc = current.and_then(Value::downcast_ref::<Desc>).cloned().unwrap_or_default();
            edit(&mut desc);
            CasAction::Write(Value::new(desc))
        });
        outcome.unwrap();
    }

    fn ring(&self) -> Desc {
        let entry = self.store.get("ring");
        entry.and_then(|entry| entry.value.downcast_ref::<Desc>().cloned()).unwrap_or_default()
    }

    fn pull(&mut self, now: Now, other: &Self) {
        self.store.handle(now, Input::RemoteState { bytes: other.store.local_state(), join: false });
    }

    fn hear(&mut self, now: Now, update: &Bytes) {
        self.store.handle(now, Input::UserMessage(update.clone()));
    }

    /// What it broadcasts.
    fn broadcasts(&mut self) -> Vec<Bytes> {
        let mut payloads = Vec::new();
        while let Some(output) = self.store.poll_output() {
            match output {
                Output::Broadcast(Broadcast { payload, .. }) => payloads.push(payload),
                Output::Refused { refused, .. } => self.told.push(refused),
                Output::Changed { .. } => {}
            }
        }
        payloads
    }
}

/// Two nodes that know `a` and `b`; then the first one removes `a` while the other is cut off, for longer than tombstones
/// are kept.
fn cut_off_over_a_removal() -> (Node, Node, Now) {
    let (mut here, mut there) = (Node::new(), Node::new());
    let mut now = now();
    here.write(now, |desc| *desc = ring([("a", NOW, Active), ("b", NOW, Active)]));
    there.pull(now, &here);
    assert_eq!(there.ring(), here.ring());
    now = now + MINUTE;
    here.write(now, |desc| drop(desc.instances.remove("a")));
    for _ in 0..20 {
        now = now + MINUTE;
        here.store.handle(now, Input::Tick);
    }
    assert_eq!(ids(&here.ring()), ["b"], "the tombstone is forgotten");
    here.broadcasts();
    there.broadcasts();
    (here, there, now)
}

#[test]
fn a_removed_instance_stays_removed_over_a_partition_longer_than_its_tombstone() {
    let (mut here, mut there, mut now) = cut_off_over_a_removal();
    here.pull(now, &there);
    assert_eq!(ids(&here.ring()), ["b"]);
    assert_eq!(here.store.stats().entries_refused.removed, 1);
    // The other one is told, passes it on, and both agree.
    let reply = here.broadcasts();
    assert_eq!(reply.len(), 1);
    there.hear(now, &reply[0]);
    assert!(there.ring().instances["a"].state.is_left());
    assert_eq!(there.broadcasts().len(), 1);
    now = now + MINUTE * 2;
    there.store.handle(now, Input::Tick);
    assert_eq!(there.ring(), here.ring());
    // Whoever has not known the instance takes no notice of its old tombstone.
    let mut third = Node::new();
    third.pull(now, &here);
    third.broadcasts();
    third.hear(now, &reply[0]);
    assert_eq!((third.ring(), third.broadcasts().len()), (here.ring(), 0));
}

#[test]
fn a_removed_instance_that_registers_again_is_welcome() {
    let (mut here, mut there, now) = cut_off_over_a_removal();
    let back = now.unix_secs();
    there.write(now, |desc| drop(desc.instances.insert("a".into(), entry(back, Active))));
    here.pull(now, &there);
    assert_eq!(here.ring().instances["a"].timestamp, back);
    assert!(here.store.stats().entries_refused.is_empty());
}

#[test]
fn an_old_instance_that_nobody_removed_reaches_a_new_node() {
    // Dead for a day, and kept for its tokens: all readers must have it, or they see different owners.
    let (mut here, mut new) = (Node::new(), Node::new());
    here.write(now(), |desc| *desc = ring([("dead", NOW - 24 * HOUR, Active), ("b", NOW, Active)]));
    new.pull(now(), &here);
    assert_eq!(new.ring(), here.ring());
    assert!(new.store.stats().entries_refused.is_empty());
}

#[test]
fn an_instance_from_the_future_can_be_removed_everywhere() {
    // It came in before this rule did, or while its node's clock was the only one.
    let ahead = NOW + 9000 * HOUR;
    let (mut here, mut there) = (Node::new(), Node::new());
    for node in [&mut here, &mut there] {
        node.write(now(), |desc| *desc = ring([("a", ahead, Active), ("b", NOW, Active), ("c", NOW, Active)]));
        node.broadcasts();
    }
    here.write(now(), |desc| drop(desc.instances.remove("a")));
    for update in here.broadcasts() {
        there.hear(now(), &update);
    }
    assert!(there.ring().instances["a"].state.is_left());
    // And nothing that its writer said before brings it back.
    let mut stale = Node::new();
    stale.write(now(), |desc| *desc = ring([("a", ahead, Active)]));
    there.pull(now(), &stale);
    assert!(there.ring().instances["a"].state.is_left());
}

#[test]
fn what_is_refused_is_counted_and_told_once_a_minute() {
    let mut node = Node::new();
    let mut now = now();
    node.write(now, |desc| *desc = ring([("a", NOW, Active), ("b", NOW, Active)]));
    let mut ghost = Node::new();
    ghost.write(now, |desc| *desc = ring([("ghost", 0, Active), ("ahead", NOW + 9000 * HOUR, Active)]));
    for _ in 0..180 {
        node.pull(now, &ghost);
        now = now + Duration::from_secs(1);
    }
    node.broadcasts();
    assert_eq!(ids(&node.ring()), ["a", "b"]);
    assert_eq!(node.store.stats().entries_refused, Refused { future: 180, undated: 180, ..Refused::default() });
    let told: Vec<u64> = node.told.iter().map(|refused| refused.future).collect();
    assert_eq!(told, [1, 60, 60]);
}

#[test]
fn what_this_node_writes_or_mirrors_is_not_judged() {
    let mut node = Node::new();
    node.store.join(now(), "ring", &Value::new(ring([("old", 1, Active), ("ahead", NOW + 9 * HOUR, Active)]))).unwrap();
    assert_eq!(ids(&node.ring()), ["ahead", "old"]);
}

#[test]
fn the_memory_of_removals_is_bounded_and_keeps_the_latest() {
    let graves = |from: i64, to: i64| Desc {
        instances: (from..to).map(|number| (format!("i{number}").into(), entry(number, Left))).collect(),
        ..Desc::default()
    };
    let first = graves(1, 9001).forgotten(None, None).unwrap();
    let both = graves(9001, 12_001).forgotten(Some(&first), Some(12_000)).unwrap();
    assert_eq!(both.instances.len(), 10_000);
    assert!(both.instances.contains_key("i11999"));
    assert!(!both.instances.contains_key("i12000"), "not expired");
    assert!(!both.instances.contains_key("i1999"));
    assert_eq!(ring([("a", 1, Active)]).forgotten(None, None), None);
}
