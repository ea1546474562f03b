//! What every store promises, as one suite that runs on any two clients of one store.
//!
//! It asks for no more than the weakest store keeps: two nodes of a gossip store see each other's writes some time
//! later, so everything that one client wrote is awaited, by a watch with a deadline, before the other relies on it.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use annulus::clock::Now;
use annulus::kv::{CasAction, CasOutcome, Codecs, Entry, KeyChange, Kv, LwwMap, SharedStore, StoreError, Value, Watch};
use futures_util::{Stream, StreamExt, future};

/// The type of value that the suite stores.
pub type Map = LwwMap<i64>;

/// How long one step may take on the slowest store.
const DEADLINE: Duration = Duration::from_secs(20);

/// Codecs for the keys of the suite. Each client needs its own.
pub fn codecs() -> Arc<Codecs> {
    let codecs = Arc::new(Codecs::default());
    codecs.register("suite/", Arc::new(Map::codec()));
    codecs
}

/// Runs [`run`] and what a store in one place promises on top: compare-and-swap is atomic over all clients (invariant
/// 35), also when the key is deleted and created anew in between (invariant 39).
pub async fn run_linearizable(store_a: SharedStore, store_b: SharedStore) {
    run(store_a.clone(), store_b.clone()).await;
    concurrent_increments_are_one_history(&store_a, &store_b).await;
    a_write_never_reaches_a_key_that_was_created_anew(&store_a, &store_b).await;
}

/// Runs the suite of what every store promises. The store must hold no key below `suite/` yet. Panics at the first broken promise.
pub async fn run(store_a: SharedStore, store_b: SharedStore) {
    a_missing_key_is_absent(&store_a).await;
    a_write_is_seen_by_both_clients(&store_a, &store_b).await;
    keeping_and_giving_up_write_nothing(&store_a).await;
    each_increment_sees_the_one_before(&store_a).await;
    concurrent_writers_lose_nothing(&store_a, &store_b).await;
    what_a_writer_leaves_out_is_gone(&store_a, &store_b).await;
    list_gives_the_keys_below_a_prefix_in_order(&store_a).await;
    a_deleted_key_is_gone_and_can_be_created_again(&store_a, &store_b).await;
    a_watch_begins_with_the_current_value(&store_a).await;
    a_watch_delivers_the_last_value_and_never_goes_back(&store_a, &store_b).await;
    watches_of_two_writers_go_forward_to_the_same_end(&store_a, &store_b).await;
    a_watch_begins_with_nothing_older_than_what_was_read(&store_a).await;
    a_prefix_watch_delivers_its_keys_and_no_others(&store_a, &store_b).await;
    a_join_neither_removes_nor_ages(&store_a, &store_b).await;
    the_typed_client_hides_tombstones_and_the_prefix(&store_a, &store_b).await;
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("{what}: nothing within {DEADLINE:?}"))
}

fn content(entry: Option<&Entry>) -> Option<BTreeMap<String, i64>> {
    let map = entry?.value.downcast_ref::<Map>().expect("a map");
    Some(map.iter().map(|(name, value)| (name.to_owned(), *value)).collect())
}

fn expected(entries: &[(&str, i64)]) -> Option<BTreeMap<String, i64>> {
    Some(entries.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect())
}

async fn read(store: &SharedStore, key: &str) -> Option<BTreeMap<String, i64>> {
    content(store.get(key).await.expect("get").as_ref())
}

/// Applies `edit` to the map under a key; an empty one if there is none.
async fn edit(
    store: &SharedStore,
    key: &str,
    mut edit: impl FnMut(&mut Map, Now) + Send + 'static,
) -> Result<CasOutcome, StoreError> {
    let callback = move |old: Option<&Value>| {
        let mut map = old.map(|old| old.downcast_ref::<Map>().expect("a map").clone()).unwrap_or_default();
        edit(&mut map, Now::read());
        CasAction::Write(Value::new(map))
    };
    store.cas(key, Box::new(callback)).await
}

async fn set(store: &SharedStore, key: &str, name: &'static str, value: i64) -> CasOutcome {
    edit(store, key, move |map, now| map.insert(now, name, value)).await.expect("cas")
}

/// Reads a watch until a report satisfies `enough`, and returns it.
async fn until(what: &str, watch: &mut Watch, mut enough: impl FnMut(&KeyChange) -> bool) -> KeyChange {
    let mut reports = watch.filter(|change| future::ready(change.fresh && enough(change)));
    within(what, reports.next()).await.expect("a watch does not end")
}

/// Waits until a client sees exactly this under a key.
async fn await_content(store: &SharedStore, key: &str, wanted: Option<BTreeMap<String, i64>>) {
    let what = format!("{key} becoming {wanted:?}");
    until(&what, &mut store.watch_key(key), |change| content(change.entry.as_ref()) == wanted).await;
    assert_eq!(read(store, key).await, wanted, "get disagrees with the watch");
}

async fn a_missing_key_is_absent(store: &SharedStore) {
    assert!(store.get("suite/missing").await.expect("get").is_none());
    assert!(store.list("suite/").await.expect("list").is_empty());
    store.delete("suite/missing").await.expect("deleting a missing key succeeds");
}

async fn a_write_is_seen_by_both_clients(a: &SharedStore, b: &SharedStore) {
    let key = "suite/write";
    let outcome = set(a, key, "x", 1).await;
    let CasOutcome::Written { delta, version } = outcome else { panic!("not written: {outcome:?}") };
    assert_eq!(delta.content(), ["x"]);
    assert_eq!(a.get(key).await.expect("get").map(|entry| entry.version), Some(version));
    assert_eq!(read(a, key).await, expected(&[("x", 1)]), "a client reads its own writes");
    await_content(b, key, expected(&[("x", 1)])).await;
    let outcome = set(b, key, "y", 2).await;
    let CasOutcome::Written { delta, .. } = outcome else { panic!("not written: {outcome:?}") };
    assert_eq!(delta.content(), ["y"], "the difference is the change, not the whole value");
    await_content(a, key, expected(&[("x", 1), ("y", 2)])).await;
}

async fn keeping_and_giving_up_write_nothing(store: &SharedStore) {
    let key = "suite/keep";
    let outcome = store.cas(key, Box::new(|_| CasAction::Keep)).await.expect("cas");
    assert!(matches!(outcome, CasOutcome::Unchanged), "{outcome:?}");
    assert!(store.get(key).await.expect("get").is_none(), "keeping nothing creates nothing");
    set(store, key, "x", 1).await;
    let before = store.get(key).await.expect("get").map(|entry| entry.version);
    let error = store.cas(key, Box::new(|_| CasAction::Abort("enough".to_owned()))).await.expect_err("aborted");
    assert!(matches!(&error, StoreError::Aborted(reason) if reason == "enough"), "{error}");
    let same = |old: Option<&Value>| CasAction::Write(old.expect("a value").clone());
    let outcome = store.cas(key, Box::new(same)).await.expect("cas");
    assert!(matches!(outcome, CasOutcome::Unchanged), "writing what is there is no change: {outcome:?}");
    assert_eq!(store.get(key).await.expect("get").map(|entry| entry.version), before);
}

async fn each_increment_sees_the_one_before(store: &SharedStore) {
    let key = "suite/count";
    let mut version = 0;
    for number in 0..10 {
        let seen = Arc::new(Mutex::new(None));
        let record = seen.clone();
        let outcome = edit(store, key, move |map, now| {
            let old = map.get("count").copied().unwrap_or(0);
            *record.lock().expect("lock") = Some(old);
            map.insert(now, "count", old + 1);
        });
        let outcome = outcome.await.expect("cas");
        assert_eq!(*seen.lock().expect("lock"), Some(number));
        let CasOutcome::Written { version: new, .. } = outcome else { panic!("not written: {outcome:?}") };
        assert!(new > version, "versions grow");
        version = new;
    }
    assert_eq!(read(store, key).await, expected(&[("count", 10)]));
}

async fn concurrent_writers_lose_nothing(a: &SharedStore, b: &SharedStore) {
    let key = "suite/race";
    let writer = |store: SharedStore, name: &'static str| {
        tokio::spawn(async move {
            for number in 0..10 {
                loop {
                    match edit(&store, key, move |map, now| map.insert(now, format!("{name}{number}"), number)).await {
                        Err(StoreError::Conflict { .. }) => tokio::task::yield_now().await,
                        outcome => break drop(outcome.expect("cas")),
                    }
                }
            }
        })
    };
    let (left, right) = tokio::join!(writer(a.clone(), "a"), writer(b.clone(), "b"));
    left.and(right).expect("no writer panics");
    let wanted: BTreeMap<_, _> =
        ["a", "b"].iter().flat_map(|name| (0..10).map(move |number| (format!("{name}{number}"), number))).collect();
    await_content(a, key, Some(wanted.clone())).await;
    await_content(b, key, Some(wanted)).await;
}

async fn what_a_writer_leaves_out_is_gone(a: &SharedStore, b: &SharedStore) {
    let key = "suite/remove";
    set(a, key, "stays", 1).await;
    set(a, key, "goes", 1).await;
    await_content(b, key, expected(&[("goes", 1), ("stays", 1)])).await;
    let outcome = edit(b, key, |map, _| {
        let stays = map.get("stays").copied().expect("it is there");
        let stamp = map.stamp("stays");
        *map = serde_json::from_value(serde_json::json!({"stays": {"value": stays, "stamp": stamp}})).expect("a map");
    });
    let outcome = outcome.await.expect("cas");
    let CasOutcome::Written { delta, .. } = outcome else { panic!("not written: {outcome:?}") };
    assert_eq!(delta.content(), ["goes"], "a removal is a change of its own");
    await_content(a, key, expected(&[("stays", 1)])).await;
    let entry = a.get(key).await.expect("get").expect("an entry");
    assert_eq!(entry.value.content(), ["goes", "stays"], "values come with their tombstones");
}

async fn list_gives_the_keys_below_a_prefix_in_order(store: &SharedStore) {
    for key in ["suite/list/c", "suite/list/a", "suite/list/b", "suite/listen", "suite/lis"] {
        set(store, key, "x", 1).await;
    }
    let listed = store.list("suite/list/").await.expect("list");
    assert_eq!(listed, ["suite/list/a", "suite/list/b", "suite/list/c"]);
    store.delete("suite/list/b").await.expect("delete");
    assert_eq!(store.list("suite/list/").await.expect("list"), ["suite/list/a", "suite/list/c"]);
}

async fn a_deleted_key_is_gone_and_can_be_created_again(a: &SharedStore, b: &SharedStore) {
    let key = "suite/delete";
    set(a, key, "old", 1).await;
    await_content(b, key, expected(&[("old", 1)])).await;
    a.delete(key).await.expect("delete");
    a.delete(key).await.expect("delete again");
    assert_eq!(read(a, key).await, None);
    await_content(b, key, None).await;
    let seen_nothing = Arc::new(Mutex::new(false));
    let record = seen_nothing.clone();
    let callback = move |old: Option<&Value>| {
        *record.lock().expect("lock") = old.is_none();
        let mut map = Map::new();
        map.insert(Now::read(), "new", 2);
        CasAction::Write(Value::new(map))
    };
    b.cas(key, Box::new(callback)).await.expect("cas");
    assert!(*seen_nothing.lock().expect("lock"), "a deleted key is absent for a writer");
    for store in [a, b] {
        await_content(store, key, expected(&[("new", 2)])).await;
    }
}

async fn a_watch_begins_with_the_current_value(store: &SharedStore) {
    let key = "suite/first";
    let mut missing = store.watch_key(key);
    let first = within("a report of a missing key", missing.next()).await.expect("a report");
    assert!(first.entry.is_none() && first.fresh && &*first.key == key, "{first:?}");
    set(store, key, "x", 1).await;
    until("the creation", &mut missing, |change| content(change.entry.as_ref()) == expected(&[("x", 1)])).await;
    let first = within("a report of an existing key", store.watch_key(key).next()).await.expect("a report");
    assert_eq!(content(first.entry.as_ref()), expected(&[("x", 1)]));
}

async fn a_watch_delivers_the_last_value_and_never_goes_back(a: &SharedStore, b: &SharedStore) {
    let key = "suite/last";
    let mut watch = b.watch_key(key);
    within("the first report", watch.next()).await.expect("a report");
    for number in 1..=50 {
        set(a, key, "n", number).await;
    }
    let mut last = (0, 0);
    until("the last value", &mut watch, |change| {
        let Some(entry) = &change.entry else { return false };
        let map = entry.value.downcast_ref::<Map>().expect("a map");
        let next = (entry.version, map.get("n").copied().expect("a number"));
        assert!(next.0 >= last.0 && next.1 >= last.1, "the watch went back from {last:?} to {next:?}");
        last = next;
        next.1 == 50
    })
    .await;
}

/// Invariants 36 and 38: no watch goes back, and all of them end with the last value.
async fn watches_of_two_writers_go_forward_to_the_same_end(a: &SharedStore, b: &SharedStore) {
    const WRITES: i64 = 20;
    let key = "suite/forward";
    let follow = |store: &SharedStore| {
        let mut watch = store.watch_key(key);
        tokio::spawn(async move {
            let (mut version, mut seen) = (0, BTreeMap::new());
            until("the last value of both writers", &mut watch, |change| {
                let Some(entry) = &change.entry else {
                    assert!(seen.is_empty(), "the watch went back from {seen:?} to nothing");
                    return false;
                };
                assert!(entry.version >= version, "the watch went back from {version} to {}", entry.version);
                version = entry.version;
                let new = content(Some(entry)).expect("a map");
                for (name, number) in &seen {
                    assert!(new.get(name) >= Some(number), "the watch went back from {seen:?} to {new:?}");
                }
                seen = new;
                seen.len() == 2 && seen.values().all(|number| *number == WRITES)
            })
            .await;
        })
    };
    let followers = [follow(a), follow(b), follow(b)];
    let write = |store: &SharedStore, name: &'static str| {
        let store = store.clone();
        async move {
            for number in 1..=WRITES {
                while let Err(error) = edit(&store, key, move |map, now| map.insert(now, name, number)).await {
                    assert!(matches!(error, StoreError::Conflict { .. }), "{error}");
                }
            }
        }
    };
    tokio::join!(write(a, "a"), write(b, "b"));
    for follower in followers {
        follower.await.expect("no watch goes back");
    }
}

/// Invariant 37, while somebody writes: a new watch begins at once, and not with the past.
async fn a_watch_begins_with_nothing_older_than_what_was_read(store: &SharedStore) {
    let key = "suite/begin";
    for number in 1..=10 {
        set(store, key, "n", number).await;
        let read = store.get(key).await.expect("get").expect("an entry");
        let first = within("the first report", store.watch_key(key).next()).await.expect("a report");
        let entry = first.entry.expect("it exists");
        assert!(entry.version >= read.version, "{} was read, {} was shown", read.version, entry.version);
        assert_eq!(content(Some(&entry)), expected(&[("n", number)]));
    }
}

/// Invariant 35: each increment sees the one before, whoever made it, and none is lost.
pub async fn concurrent_increments_are_one_history(a: &SharedStore, b: &SharedStore) {
    const EACH: usize = 25;
    let key = "suite/history";
    let count = |store: &SharedStore| {
        let store = store.clone();
        async move {
            // What each acknowledged increment began with, and the version that it got.
            let mut history = Vec::new();
            while history.len() < EACH {
                let seen = Arc::new(Mutex::new(0));
                let record = seen.clone();
                let outcome = edit(&store, key, move |map, now| {
                    let old = map.get("count").copied().unwrap_or(0);
                    *record.lock().expect("lock") = old;
                    map.insert(now, "count", old + 1);
                });
                match outcome.await {
                    Ok(CasOutcome::Written { version, .. }) => history.push((*seen.lock().expect("lock"), version)),
                    Ok(outcome) => panic!("not written: {outcome:?}"),
                    Err(StoreError::Conflict { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            history
        }
    };
    let (of_a, of_b, also_of_b) = tokio::join!(count(a), count(b), count(b));
    for own in [&of_a, &of_b, &also_of_b] {
        assert!(own.is_sorted(), "numbers and versions grow for each writer: {own:?}");
    }
    let mut began: Vec<_> = [of_a, of_b, also_of_b].concat().into_iter().map(|(number, _)| number).collect();
    began.sort_unstable();
    assert_eq!(began, (0..3 * EACH as i64).collect::<Vec<_>>(), "two increments began with the same number");
    assert_eq!(read(a, key).await, expected(&[("count", 3 * EACH as i64)]));
}

/// Invariant 39: who read a key before it was deleted and created anew does not write over the new one.
async fn a_write_never_reaches_a_key_that_was_created_anew(a: &SharedStore, b: &SharedStore) {
    const LIVES: i64 = 25;
    let key = "suite/lives";
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writer = |store: SharedStore, done: Arc<std::sync::atomic::AtomicBool>| {
        tokio::spawn(async move {
            while !done.load(std::sync::atomic::Ordering::SeqCst) {
                let callback = |old: Option<&Value>| {
                    // Only what exists is changed, so that a life begins with the one who created it.
                    let Some(old) = old else { return CasAction::Keep };
                    let mut map = old.downcast_ref::<Map>().expect("a map").clone();
                    let touched = map.get("touched").copied().unwrap_or(0);
                    map.insert(Now::read(), "touched", touched + 1);
                    CasAction::Write(Value::new(map))
                };
                match store.cas(key, Box::new(callback)).await {
                    Ok(_) | Err(StoreError::Conflict { .. }) => tokio::task::yield_now().await,
                    Err(error) => panic!("{error}"),
                }
            }
        })
    };
    let writers = [writer(b.clone(), done.clone()), writer(b.clone(), done.clone())];
    for life in 1..=LIVES {
        a.delete(key).await.expect("delete");
        let callback = move |old: Option<&Value>| {
            assert!(old.is_none(), "somebody wrote to a deleted key");
            let mut map = Map::new();
            map.insert(Now::read(), "life", life);
            CasAction::Write(Value::new(map))
        };
        a.cas(key, Box::new(callback)).await.expect("cas");
        // Each look gives the writers a chance to come too late.
        for _ in 0..3 {
            let found = read(a, key).await.expect("it exists");
            assert_eq!(found.get("life"), Some(&life), "a write that was meant for another life: {found:?}");
        }
    }
    done.store(true, std::sync::atomic::Ordering::SeqCst);
    for writer in writers {
        writer.await.expect("no writer panics");
    }
}

async fn a_prefix_watch_delivers_its_keys_and_no_others(a: &SharedStore, b: &SharedStore) {
    let prefix = "suite/prefix/";
    set(a, "suite/prefix/old", "x", 1).await;
    await_content(b, "suite/prefix/old", expected(&[("x", 1)])).await;
    let mut watch = b.watch_prefix(prefix);
    let first = within("the existing key", watch.next()).await.expect("a report");
    assert_eq!((&*first.key, content(first.entry.as_ref())), ("suite/prefix/old", expected(&[("x", 1)])));
    set(a, "suite/prefixes", "x", 1).await;
    set(a, "suite/prefix/new", "x", 2).await;
    let inside = |change: &KeyChange| assert!(change.key.starts_with(prefix), "{} is outside", change.key);
    until("a new key", &mut watch, |change| {
        inside(change);
        &*change.key == "suite/prefix/new" && content(change.entry.as_ref()) == expected(&[("x", 2)])
    })
    .await;
    a.delete("suite/prefix/old").await.expect("delete");
    until("a deleted key", &mut watch, |change| {
        inside(change);
        &*change.key == "suite/prefix/old" && change.entry.is_none()
    })
    .await;
}

async fn a_join_neither_removes_nor_ages(a: &SharedStore, b: &SharedStore) {
    let key = "suite/join";
    let before = Now::read();
    let mut older = Map::new();
    older.insert(before, "x", -1);
    let outcome = a.join(key, Value::new(older.clone())).await.expect("join");
    assert!(matches!(outcome, CasOutcome::Written { .. }), "joining into nothing creates: {outcome:?}");
    set(a, key, "x", 1).await;
    set(a, key, "y", 1).await;
    await_content(b, key, expected(&[("x", 1), ("y", 1)])).await;
    older.insert(before, "z", 3);
    let mut delta = Map::new();
    delta.insert(before, "x", -1);
    delta.insert(before, "z", 3);
    let outcome = b.join(key, Value::new(delta.clone())).await.expect("join");
    let CasOutcome::Written { delta: change, .. } = outcome else { panic!("not written: {outcome:?}") };
    assert_eq!(change.content(), ["z"]);
    for store in [a, b] {
        await_content(store, key, expected(&[("x", 1), ("y", 1), ("z", 3)])).await;
    }
    let outcome = b.join(key, Value::new(delta)).await.expect("join");
    assert!(matches!(outcome, CasOutcome::Unchanged), "{outcome:?}");

    // And the same decided by a callback: only where the key is there.
    let join = |delta: &Map| {
        let delta = delta.clone();
        Box::new(move |found: Option<&Value>| {
            found.map_or(CasAction::Keep, |_| CasAction::Join(Value::new(delta.clone())))
        })
    };
    let outcome = a.cas("suite/join-absent", join(&older)).await.expect("join");
    assert!(matches!(outcome, CasOutcome::Unchanged), "it is not there: {outcome:?}");
    assert!(read(a, "suite/join-absent").await.is_none());
    let before = read(b, key).await;
    let outcome = b.cas(key, join(&older)).await.expect("join");
    assert!(matches!(outcome, CasOutcome::Unchanged), "joining what is older: {outcome:?}");
    let mut more = Map::default();
    more.insert(Now::read(), "later", 7);
    let outcome = b.cas(key, join(&more)).await.expect("join");
    assert!(matches!(outcome, CasOutcome::Written { .. }), "joining what is new: {outcome:?}");
    let mut wanted = before.expect("it is there");
    wanted.insert("later".to_owned(), 7);
    assert_eq!(read(b, key).await, Some(wanted));
}

async fn the_typed_client_hides_tombstones_and_the_prefix(a: &SharedStore, b: &SharedStore) {
    let (here, there) = (Kv::<Map>::new(a.clone(), "suite/typed/"), Kv::<Map>::new(b.clone(), "suite/typed/"));
    assert_eq!(here.get("k").await.expect("get"), None);
    let mut watch = there.watch_key("k");
    assert_eq!(within("the first value", watch.next()).await, Some(None));
    for name in ["x", "y"] {
        let insert = move |old: Option<Map>| {
            let mut map = old.unwrap_or_default();
            map.insert(Now::read(), name, 1);
            Ok(Some(map))
        };
        here.cas("k", insert).await.expect("cas");
    }
    let remove = |old: Option<Map>| {
        let mut map = old.ok_or("nothing there")?;
        map.remove(Now::read(), "x");
        Ok(Some(map))
    };
    here.cas("k", remove).await.expect("cas");
    let map = here.get("k").await.expect("get").expect("a map");
    assert_eq!((map.len(), map.stamp("x")), (1, None), "the tombstone shows");
    let here_now = Some(map);
    let arrived = async { while next(&mut watch).await != here_now {} };
    within("the value at the other client", arrived).await;
    assert_eq!(there.list().await.expect("list"), ["k"]);
    let mut prefix = there.watch_prefix();
    assert_eq!(within("the prefix", prefix.next()).await, Some(("k".to_owned(), here_now)));
    let error = here.cas("k", |_| Err("no".to_owned())).await.expect_err("aborted");
    assert!(matches!(error, StoreError::Aborted(reason) if reason == "no"));
    let other = Kv::<LwwMap<String>>::new(a.clone(), "suite/typed/");
    assert!(matches!(other.get("k").await, Err(StoreError::Type { .. })));
    let error = other.cas("k", |_| Ok(Some(LwwMap::new()))).await.expect_err("another type");
    assert!(matches!(error, StoreError::Type { .. }), "{error}");
    here.delete("k").await.expect("delete");
    within("the delete at the other client", async { while next(&mut watch).await.is_some() {} }).await;
}

async fn next<T>(watch: &mut (impl Stream<Item = T> + Unpin)) -> T {
    watch.next().await.expect("a watch does not end")
}
