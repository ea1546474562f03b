//! What one store lacks of what the other one holds, and whether anybody could see that.
//!
//! A store need not keep all that it takes: gossip drops tombstones of entries after a while, Consul and etcd write none
//! when they are set so, and a key whose value is empty exists in one kind of store and not in another. Whoever waited
//! for such things to arrive would wait for ever. So a tombstone counts only where it would hide an entry that is alive
//! there, and a value in which nothing is alive counts as much as none.

use std::collections::BTreeSet;

use crate::clock::Now;
use crate::kv::Value;

/// What is missing in a store.
#[derive(Clone, Debug)]
pub(super) struct Lack {
    /// What joining would change there, old tombstones included.
    pub(super) delta: Value,
    /// The entries of it that readers of that store would see come, change or go. Empty: nobody would see anything.
    pub(super) seen: BTreeSet<String>,
}

/// What a store that has `found` lacks of `wanted`, or `None` when there is nothing to join: it has everything, or it has
/// nothing and there is nothing alive to be had.
pub(super) fn lacks(found: Option<&Value>, wanted: &Value, now: Now) -> Option<Lack> {
    let all = || Lack { delta: wanted.clone(), seen: alive(wanted) };
    let Some(found) = found else { return Some(all()).filter(|lack| !lack.seen.is_empty()) };
    let delta = match found.join(wanted, now) {
        Ok(joined) => joined.change?,
        // Of two types, which a codec rules out, the primary's is the one that readers see.
        Err(_) => return Some(all()),
    };
    let (mut seen, alive_there) = (alive(&delta), alive(found));
    seen.extend(delta.content().into_iter().filter(|name| alive_there.contains(name)));
    Some(Lack { delta, seen })
}

/// Whether a store that holds this has something that readers could see.
pub(super) fn lives(value: Option<&Value>) -> bool {
    value.is_some_and(|value| !alive(value).is_empty())
}

/// Names of the entries that are no tombstones.
fn alive(value: &Value) -> BTreeSet<String> {
    value.without_tombstones(None).0.content().into_iter().collect()
}
