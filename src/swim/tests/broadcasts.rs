//! The queues, and how they share packets.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::swim::broadcast::Broadcasts;
use crate::swim::{MAX_USER_QUEUE, UserBroadcast, push_pull_interval, retransmit_limit};
use crate::wire::COMPOUND_PART;

fn user(key: &str, content: &[&str], version: u64, len: usize) -> UserBroadcast {
    let content = content.iter().map(|part| (*part).to_owned()).collect();
    UserBroadcast { key: Arc::from(key), content, version, local: true, payload: Bytes::from(vec![b'u'; len]) }
}

fn member(broadcasts: &mut Broadcasts, i: usize, len: usize) {
    broadcasts.push_member(format!("n{i}").into(), Bytes::from(vec![b'm'; len]));
}

#[test]
fn the_retransmit_limit_follows_memberlist_but_is_higher_in_small_clusters() {
    for (members, limit) in [(1, 9), (9, 9), (10, 8), (99, 8), (100, 12), (999, 12), (1000, 16)] {
        assert_eq!(retransmit_limit(4, members, 3), limit, "{members} members");
    }
    assert_eq!(retransmit_limit(4, 5, 1), 4, "never below memberlist's");
}

#[test]
fn push_pull_slows_down_above_thirty_two_members() {
    let base = Duration::from_secs(30);
    for (members, seconds) in [(0, 30), (32, 30), (33, 60), (64, 60), (65, 90), (128, 90), (129, 120), (1000, 180)] {
        assert_eq!(push_pull_interval(base, members).as_secs(), seconds, "{members} members");
    }
}

#[test]
fn news_about_a_member_replaces_older_news_about_it() {
    let mut broadcasts = Broadcasts::new();
    member(&mut broadcasts, 1, 10);
    member(&mut broadcasts, 2, 10);
    member(&mut broadcasts, 1, 20);
    assert_eq!(broadcasts.len(), 2);
    assert_eq!(broadcasts.fetch(1000, 3).iter().map(Bytes::len).collect::<Vec<_>>(), [20, 10]);
}

#[test]
fn a_user_broadcast_replaces_those_that_it_makes_superfluous() {
    // (queued, new, replaced)
    let rows: [(UserBroadcast, UserBroadcast, bool); 6] = [
        (user("k", &["a"], 1, 9), user("k", &["a"], 1, 9), true),
        (user("k", &["a"], 1, 9), user("k", &["a", "b"], 2, 9), true),
        (user("k", &["a", "b"], 1, 9), user("k", &["a"], 2, 9), false),
        (user("k", &["a"], 2, 9), user("k", &["a"], 1, 9), false),
        (user("k", &["a"], 1, 9), user("other", &["a"], 2, 9), false),
        (user("k", &["a"], 1, 9), UserBroadcast { local: false, ..user("k", &["a"], 2, 9) }, false),
    ];
    for (queued, new, replaced) in rows {
        let mut broadcasts = Broadcasts::new();
        broadcasts.push_user(queued.clone());
        broadcasts.push_user(new.clone());
        assert_eq!(broadcasts.len(), if replaced { 1 } else { 2 }, "{queued:?} {new:?}");
    }
}

#[test]
fn each_broadcast_is_sent_as_often_as_the_limit_says() {
    let mut broadcasts = Broadcasts::new();
    for i in 0..5 {
        member(&mut broadcasts, i, 100 + i);
    }
    let mut times = BTreeMap::new();
    for _ in 0..100 {
        for message in broadcasts.fetch(250, 4) {
            *times.entry(message.len()).or_insert(0) += 1;
        }
    }
    assert_eq!(times, (100..105).map(|len| (len, 4)).collect());
    assert_eq!(broadcasts.len(), 0);
}

#[test]
fn the_least_sent_goes_first_then_the_largest_that_fits() {
    let mut broadcasts = Broadcasts::new();
    for (i, len) in [300, 100, 200].into_iter().enumerate() {
        member(&mut broadcasts, i, len);
    }
    let lens = |parts: Vec<Bytes>| parts.iter().map(Bytes::len).collect::<Vec<_>>();
    assert_eq!(lens(broadcasts.fetch(410, 9)), [300, 100]);
    assert_eq!(lens(broadcasts.fetch(410, 9)), [200, 100]);
    assert_eq!(lens(broadcasts.fetch(99, 9)), [0; 0]);
}

#[test]
fn neither_members_nor_the_application_starve_while_both_wait() {
    let budget = 1400;
    for user_len in [20, 400, 1000] {
        let mut broadcasts = Broadcasts::new();
        let (mut members, mut users) = (0, 0);
        for round in 0..50 {
            for i in 0..30 {
                member(&mut broadcasts, i, 90);
                broadcasts.push_user(user(&format!("k{i}"), &["a"], round, user_len));
            }
            let parts = broadcasts.fetch(budget, 4);
            assert!(parts.iter().map(|part| part.len() + COMPOUND_PART).sum::<usize>() <= budget);
            for part in parts {
                if part[0] == b'm' { members += part.len() } else { users += part.len() }
            }
        }
        let all = 50 * budget;
        assert!(users >= all / 3, "messages of {user_len} bytes: {users} of {all}");
        assert!(members >= all / 4, "members beside messages of {user_len} bytes: {members} of {all}");
    }
}

#[test]
fn ones_own_changes_go_before_those_passed_on() {
    let mut broadcasts = Broadcasts::new();
    broadcasts.push_user(UserBroadcast { local: false, ..user("relayed", &["a"], 1, 300) });
    broadcasts.push_user(user("own", &["a"], 1, 200));
    assert_eq!(broadcasts.fetch(400, 4)[0].len(), 201, "the payload and its type byte");
}

#[test]
fn too_large_a_broadcast_blocks_nothing_and_is_handed_out_apart() {
    let mut broadcasts = Broadcasts::new();
    broadcasts.push_user(user("large", &["a"], 1, 5000));
    broadcasts.push_user(user("small", &["a"], 1, 50));
    assert_eq!(broadcasts.fetch(1400, 9).len(), 1);
    assert_eq!(broadcasts.fetch_oversized(1400, 4, 2).iter().map(Bytes::len).collect::<Vec<_>>(), [5001]);
    assert_eq!(broadcasts.fetch_oversized(1400, 4, 2).len(), 1);
    assert_eq!(broadcasts.fetch_oversized(1400, 4, 2).len(), 0, "sent as often as the limit says");
    assert_eq!(broadcasts.len(), 1);
}

#[test]
fn a_full_queue_drops_what_was_sent_most() {
    let mut broadcasts = Broadcasts::new();
    broadcasts.push_user(user("sent", &["a"], 1, 10));
    broadcasts.fetch(1400, 9);
    for i in 1..MAX_USER_QUEUE {
        assert!(broadcasts.push_user(user(&format!("k{i}"), &["a"], 1, 10)));
    }
    assert!(!broadcasts.push_user(user("one more", &["a"], 1, 10)));
    assert_eq!(broadcasts.len(), MAX_USER_QUEUE);
    broadcasts.push_user(user("sent", &["a"], 2, 10));
    assert_eq!(broadcasts.len(), MAX_USER_QUEUE, "the one sent before is gone, so this one is new");
}
