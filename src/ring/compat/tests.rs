#![allow(clippy::unwrap_used)]

use super::*;
use crate::clock::Now;
use crate::kv::{Codec, Mergeable, Value};
use crate::ring::InstanceState::{Active, Joining, Leaving};
use crate::ring::{Instance, MergeStrategy, RingCodec, RingRules, owner_map};
use proptest::prelude::*;
use std::time::Duration;

fn now() -> Now {
    Now { unix: Duration::from_secs(1000), ..Now::read() }
}

fn entry(timestamp: i64, state: InstanceState, tokens: &[u32]) -> Instance {
    Instance { timestamp, state, tokens: tokens.into(), ..Instance::default() }
}

fn one(id: &str, entry: Instance) -> Desc {
    Desc { instances: [(id.into(), entry)].into(), ..Desc::default() }
}

fn dskit() -> impl Codec {
    RingRules { merge: MergeStrategy::Dskit, ..RingRules::default() }.codec()
}

/// What a store with this codec holds after these updates.
fn stored(codec: &dyn Codec, updates: &[Desc]) -> Desc {
    let empty = Value::new(Desc::default());
    let value = updates
        .iter()
        .fold(empty, |value, update| codec.join(&value, &Value::new(update.clone()), now()).unwrap().value);
    value.downcast_ref::<Desc>().unwrap().clone()
}

#[test]
fn the_codec_merges_by_its_strategy() {
    let updates = [one("b", entry(1, Active, &[1, 2, 3])), one("a", entry(2, Joining, &[2, 9]))];
    let (lattice, compatible) = (stored(&RingCodec, &updates), stored(&dskit(), &updates));
    assert_eq!(*lattice.instances["b"].tokens, [1, 2, 3]);
    assert_eq!(*compatible.instances["b"].tokens, [1, 3]);
    assert_eq!(owner_map(&lattice), owner_map(&compatible));
    // A tie within one second: the first to arrive stays, or the farther state wins.
    let tie = [one("a", entry(2, Active, &[2])), one("a", entry(2, Joining, &[2])), one("a", entry(2, Leaving, &[2]))];
    assert_eq!(stored(&dskit(), &tie).instances["a"].state, Active);
    assert_eq!(stored(&RingCodec, &tie).instances["a"].state, Leaving);
}

/// Why the lattice is the default: dskit's result depends on the order, and what a conflict took is gone.
#[test]
fn dskits_merge_is_no_lattice() {
    let b = one("b", entry(1, Active, &[1, 2, 3]));
    let a = one("a", entry(2, Joining, &[2, 9]));
    let gone = one("a", entry(3, InstanceState::Left, &[]));
    let in_order = stored(&dskit(), &[b.clone(), a.clone(), gone.clone()]);
    let late = stored(&dskit(), &[b.clone(), gone.clone(), a.clone()]);
    assert_eq!(*in_order.instances["b"].tokens, [1, 3]);
    assert_eq!(*late.instances["b"].tokens, [1, 2, 3]);
    assert_eq!(stored(&RingCodec, &[b.clone(), a.clone(), gone.clone()]), stored(&RingCodec, &[b, gone, a]));
}

/// A step of an instance: its new state, and whether it takes the contested tokens as well.
type Step = (usize, usize, bool);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Grafana's instances and ours contest tokens, change states, leave and come back; a Grafana node and one of ours
    /// hear the same. Owners may differ for a while, and no longer after two quiet rounds of heartbeats.
    #[test]
    fn grafana_nodes_and_ours_name_the_same_owners_after_two_rounds_of_heartbeats(
        steps in prop::collection::vec((0_usize..4, 0_usize..5, any::<bool>()), 0..30),
        grafana in prop::collection::vec(any::<bool>(), 4),
    ) {
        let states = [InstanceState::Pending, Joining, Active, Leaving, InstanceState::Left];
        let (mut theirs, mut ours) = (Desc::default(), Desc::default());
        // What each instance remembers of itself.
        let mut own: Vec<Instance> = (0..4_u32).map(|index| entry(0, Active, &[index * 10, 5, 15])).collect();
        let mut clock = 0;
        let quiet = own.len() * 2;
        let all: Vec<Step> = steps.into_iter().chain((0..quiet).map(|step| (step % 4, 9, true))).collect();
        for (instance, state, contested) in all {
            clock += 1;
            let id = format!("i{instance}");
            let index = instance as u32;
            if let Some(state) = states.get(state) {
                own[instance].state = *state;
                own[instance].tokens =
                    if contested { [5, 15, 100 + index].into() } else { [index * 10, 5, 15].into() };
            } else if grafana[instance] && let Some(held) = theirs.instances.get(&*id) {
                // Grafana's instances publish the tokens that they find in the ring; ours those that are theirs.
                own[instance].tokens = held.tokens.clone();
            }
            own[instance].timestamp = clock;
            own[instance].normalize();
            let update = one(&id, own[instance].clone());
            merge_dskit(&mut theirs, update.clone(), false, clock);
            ours.join(&update, now());
            // Whatever is stored, both read it alike.
            let resolved = |desc: &Desc| { let mut desc = desc.clone(); resolve_conflicts(&mut desc); desc };
            prop_assert_eq!(owner_map(&resolved(&theirs)), owner_map(&theirs));
            prop_assert_eq!(owner_map(&resolved(&ours)), owner_map(&ours));
        }
        prop_assert_eq!(owner_map(&ours), owner_map(&theirs));
    }
}
