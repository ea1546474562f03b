//! Tokens: hashing keys onto the circle, drawing tokens for an instance, and settling who owns a contested one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rand::{Rng, RngExt};

use super::desc::{Desc, InstanceState};

/// Where a key lies on the circle: FNV-1a with 32 bits, then it belongs to the first token after it.
///
/// All nodes of a ring must hash their keys alike. Applications with a hash of their own pass that to the ring
/// instead.
#[must_use]
pub fn key_hash(key: impl AsRef<[u8]>) -> u32 {
    key.as_ref().iter().fold(0x811C_9DC5, |hash: u32, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// Draws `count` tokens evenly at random, each distinct and none of them in `taken`. Sorted.
///
/// Drawing stops early when the circle has no free token left.
pub fn random_tokens(count: usize, taken: &BTreeSet<u32>, rng: &mut impl Rng) -> Vec<u32> {
    let free = (1_u64 << 32).saturating_sub(taken.len() as u64);
    let count = usize::try_from(free).map_or(count, |free| count.min(free));
    let mut drawn = BTreeSet::new();
    while drawn.len() < count {
        let token = rng.random::<u32>();
        if !taken.contains(&token) {
            drawn.insert(token);
        }
    }
    drawn.into_iter().collect()
}

/// All tokens that instances other than `except` claim.
#[must_use]
pub fn taken_tokens(desc: &Desc, except: &str) -> BTreeSet<u32> {
    desc.live().filter(|(id, _)| ***id != *except).flat_map(|(_, instance)| instance.tokens.iter().copied()).collect()
}

/// The owner of every token: for each `(tokens, state)` given, in the order of ids, its index.
///
/// A token that several claim belongs to one that is not LEAVING, if there is one, and among those to the smallest
/// id. The result depends on the entries only, not on how they got here, so equal rings have equal owners. Sorted by
/// token.
pub(super) fn owners<'a>(instances: impl Iterator<Item = (&'a [u32], InstanceState)>) -> Vec<(u32, u32)> {
    let mut claims: Vec<(u32, bool, u32)> = Vec::new();
    for (index, (tokens, state)) in (0_u32..).zip(instances) {
        let leaving = state == InstanceState::Leaving;
        claims.extend(tokens.iter().map(|token| (*token, leaving, index)));
    }
    // Not the unstable sort: this one takes the sorted runs as they are.
    claims.sort();
    claims.dedup_by_key(|claim| claim.0);
    claims.into_iter().map(|(token, _, index)| (token, index)).collect()
}

/// The owner of every token of a ring, by the rule of [`crate::ring`]: a projection of the entries, whatever their
/// order and history. The same entries have the same owners on every node, a Grafana node included.
#[must_use]
pub fn owner_map(desc: &Desc) -> BTreeMap<u32, Arc<str>> {
    let ids: Vec<&Arc<str>> = desc.live().map(|(id, _)| id).collect();
    let owners = owners(desc.live().map(|(_, instance)| (&*instance.tokens, instance.state)));
    owners.into_iter().filter_map(|(token, index)| Some((token, Arc::clone(ids.get(index as usize)?)))).collect()
}

/// Which of the tokens that `id` claims belong to somebody else.
#[must_use]
pub fn lost_tokens(desc: &Desc, id: &str) -> Vec<u32> {
    let Some(own) = desc.instances.get(id) else { return Vec::new() };
    let beats = |other: &str, state: InstanceState| {
        let (theirs, ours) = (state == InstanceState::Leaving, own.state == InstanceState::Leaving);
        (theirs, other) < (ours, id)
    };
    let mut lost = BTreeSet::new();
    for (other, instance) in desc.live() {
        if **other != *id && beats(other, instance.state) {
            lost.extend(instance.tokens.iter().filter(|token| own.tokens.binary_search(token).is_ok()));
        }
    }
    lost.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::desc::Instance;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    #[test]
    fn key_hash_is_fnv_1a() {
        // From the reference's test suite.
        assert_eq!(key_hash(""), 0x811c_9dc5);
        assert_eq!(key_hash("a"), 0xe40c_292c);
        assert_eq!(key_hash(b"foobar"), 0xbf9c_f968);
    }

    #[test]
    fn random_tokens_are_sorted_distinct_and_free() {
        let mut rng = SmallRng::seed_from_u64(1);
        let taken = random_tokens(500, &BTreeSet::new(), &mut rng).into_iter().collect::<BTreeSet<_>>();
        assert_eq!(taken.len(), 500);
        // The same seed would draw the same tokens again, were they not taken.
        let fresh = random_tokens(500, &taken, &mut SmallRng::seed_from_u64(1));
        assert_eq!(fresh.len(), 500);
        assert!(fresh.is_sorted_by(|a, b| a < b));
        assert!(fresh.iter().all(|token| !taken.contains(token)));
    }

    #[test]
    fn a_contested_token_goes_to_who_stays_and_then_to_the_smaller_id() {
        use InstanceState::{Active, Joining, Leaving};
        let lists: [(&[u32], InstanceState); 4] =
            [(&[1, 2, 3], Leaving), (&[2, 4], Joining), (&[3, 4], Active), (&[3], Leaving)];
        assert_eq!(owners(lists.iter().copied()), [(1, 0), (2, 1), (3, 2), (4, 1)]);
        let mut desc = Desc::default();
        for (id, (tokens, state)) in ["a", "b", "c", "d"].into_iter().zip(lists) {
            desc.instances.insert(id.into(), Instance { tokens: tokens.into(), state, ..Instance::default() });
        }
        assert_eq!(lost_tokens(&desc, "a"), [2, 3]);
        assert!(lost_tokens(&desc, "b").is_empty());
        assert_eq!(lost_tokens(&desc, "c"), [4]);
        assert_eq!(lost_tokens(&desc, "d"), [3]);
        assert!(lost_tokens(&desc, "e").is_empty());
    }
}
