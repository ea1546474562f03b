//! The merge as dskit does it, bit for bit, with its rough edges: what a Grafana node in the same ring computes.
//!
//! Annulus itself merges with [`super::lattice`]. The two agree except where dskit's result depends on the order of
//! merges: entries with the same second and different content, and tokens claimed twice. This one serves to predict
//! what such a peer will hold, and to prove the agreement elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::desc::{Desc, InstanceState};

/// Merges `other` into `this` by the rules of dskit's `Desc.Merge`, and returns what it would gossip.
///
/// `local_cas` says that `other` is the result of a local compare-and-swap: instances that it lacks become LEFT at
/// `now` (Unix seconds). `this` must be normalised, `other` need not be. Nothing changed: `None`.
pub fn merge_dskit(this: &mut Desc, other: Desc, local_cas: bool, now: i64) -> Option<Desc> {
    let mut updated: BTreeSet<Arc<str>> = BTreeSet::new();
    let mut tokens_changed = false;
    let present: BTreeSet<Arc<str>> =
        if local_cas { other.instances.keys().cloned().collect() } else { BTreeSet::new() };

    for (id, mut theirs) in other.instances {
        theirs.normalize();
        let (timestamp, left, same_tokens) = match this.instances.get(&id) {
            Some(ours) => (ours.timestamp, ours.state.is_left(), ours.tokens == theirs.tokens),
            None => (0, false, theirs.tokens.is_empty()),
        };
        let newer = theirs.timestamp > timestamp;
        if newer || (theirs.timestamp == timestamp && theirs.state.is_left() && !left) {
            tokens_changed |= !same_tokens;
            updated.insert(id.clone());
            this.instances.insert(id, theirs);
        }
    }
    if local_cas {
        for (id, ours) in &mut this.instances {
            if !ours.state.is_left() && !present.contains(id) {
                ours.state = InstanceState::Left;
                ours.tokens = Arc::default();
                ours.timestamp = now;
                updated.insert(id.clone());
            }
        }
    }
    let unknown = this.unknown.join(&other.unknown);
    if updated.is_empty() && unknown.is_none() {
        return None;
    }
    if tokens_changed {
        resolve_conflicts(this);
    }
    let changed = |(id, instance): (&Arc<str>, _)| updated.contains(id).then(|| (id.clone(), Clone::clone(instance)));
    Some(Desc { instances: this.instances.iter().filter_map(changed).collect(), unknown: unknown.unwrap_or_default() })
}

/// Takes every token that is claimed twice away from the losers: non-LEAVING beats LEAVING, then the smaller id.
fn resolve_conflicts(desc: &mut Desc) {
    let mut claims: Vec<(u32, bool, Arc<str>)> = Vec::new();
    for (id, instance) in desc.live() {
        let leaving = instance.state == InstanceState::Leaving;
        claims.extend(instance.tokens.iter().map(|token| (*token, leaving, id.clone())));
    }
    let total = claims.len();
    claims.sort();
    claims.dedup_by_key(|claim| claim.0);
    if claims.len() == total {
        return;
    }
    let mut kept: BTreeMap<Arc<str>, Vec<u32>> = BTreeMap::new();
    for (token, _, id) in claims {
        kept.entry(id).or_default().push(token);
    }
    for (id, instance) in &mut desc.instances {
        if !instance.state.is_left() {
            instance.tokens = kept.remove(id).unwrap_or_default().into();
        }
    }
}

#[cfg(test)]
mod tests;
