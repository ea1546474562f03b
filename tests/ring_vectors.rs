//! The ring against dskit: its bytes, its merge, and its look-ups, as its own ring package printed them.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use annulus::kv::{Codec, Value};
use annulus::ring::{
    Desc, Instance, InstanceState, Operation, RingCodec, RingError, RingOptions, Snapshot, Strategy, merge_dskit,
    owner_map,
};
use serde::Deserialize;

fn read(name: &str) -> String {
    std::fs::read_to_string(format!("{}/tests/data/ring/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn lines<T: for<'a> Deserialize<'a>>(name: &str) -> Vec<T> {
    read(name).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[derive(Deserialize)]
struct VectorInstance {
    #[serde(default)]
    addr: String,
    #[serde(default)]
    ts: i64,
    state: String,
    #[serde(default)]
    tokens: Vec<u32>,
    #[serde(default)]
    zone: String,
    #[serde(default)]
    registered_ts: i64,
    #[serde(default)]
    ro_ts: i64,
    #[serde(default)]
    ro: bool,
    #[serde(default)]
    versions: BTreeMap<u64, u64>,
}

type VectorDesc = BTreeMap<String, VectorInstance>;

fn state(name: &str) -> InstanceState {
    (0..5).map(InstanceState::from_number).find(|state| state.to_string() == name).unwrap()
}

fn desc(vector: VectorDesc) -> Desc {
    let instance = |one: VectorInstance| Instance {
        addr: one.addr,
        timestamp: one.ts,
        state: state(&one.state),
        tokens: one.tokens.into(),
        zone: one.zone,
        registered_timestamp: one.registered_ts,
        read_only_updated_timestamp: one.ro_ts,
        read_only: one.ro,
        versions: one.versions,
        ..Instance::default()
    };
    Desc { instances: vector.into_iter().map(|(id, one)| (id.into(), instance(one))).collect(), ..Desc::default() }
}

#[derive(Deserialize)]
struct CodecVector {
    codec_id: String,
    desc: VectorDesc,
    desc_proto_hex: String,
    desc_snappy_hex: String,
    empty_desc_snappy_hex: String,
    zero_instance_proto_hex: String,
}

#[test]
fn the_codec_reads_and_writes_dskits_bytes() {
    let vector: CodecVector = serde_json::from_str(&read("codec.json")).unwrap();
    assert_eq!(RingCodec.id(), vector.codec_id);
    let expected = desc(vector.desc);
    let decode = |bytes: &[u8]| RingCodec.decode(bytes).unwrap().downcast_ref::<Desc>().unwrap().clone();
    let snappy = |proto: &str| snap::raw::Encoder::new().compress_vec(&hex::decode(proto).unwrap()).unwrap();

    assert_eq!(decode(&hex::decode(&vector.desc_snappy_hex).unwrap()), expected);
    let written = RingCodec.encode(&Value::new(expected)).unwrap();
    // Compressors may differ; what they hold may not.
    let proto = snap::raw::Decoder::new().decompress_vec(&written).unwrap();
    assert_eq!(hex::encode(proto), vector.desc_proto_hex);

    assert_eq!(hex::encode(RingCodec.encode(&Value::new(Desc::default())).unwrap()), vector.empty_desc_snappy_hex);
    assert_eq!(decode(&hex::decode(&vector.empty_desc_snappy_hex).unwrap()), Desc::default());
    let zero = decode(&snappy(&vector.zero_instance_proto_hex));
    assert_eq!(zero.instances.into_iter().collect::<Vec<_>>(), [("x".into(), Instance::default())]);
}

#[derive(Deserialize)]
struct MergeVector {
    this: VectorDesc,
    other: VectorDesc,
    local_cas: bool,
    now: i64,
    result: VectorDesc,
    change: Option<VectorDesc>,
}

#[test]
fn the_compatible_merge_does_what_dskit_does() {
    let vectors: Vec<MergeVector> = lines("merge_fuzz.jsonl");
    assert!(vectors.len() >= 1000, "{}", vectors.len());
    for (number, vector) in vectors.into_iter().enumerate() {
        let mut this = desc(vector.this);
        let change = merge_dskit(&mut this, desc(vector.other), vector.local_cas, vector.now);
        assert_eq!(this, desc(vector.result), "result of line {}", number + 1);
        assert_eq!(change, vector.change.map(desc), "change of line {}", number + 1);
    }
}

/// The same inputs, the same owners: the lattice keeps contested tokens in both entries, dskit edits the loser's, and a
/// reader sees no difference. Two entries of one instance with the same second are the exception: dskit keeps the one
/// that came first.
#[test]
fn the_lattice_and_dskit_name_the_same_owners_for_the_same_inputs() {
    let vectors: Vec<MergeVector> = lines("merge_fuzz.jsonl");
    let (mut compared, mut contested) = (0, 0);
    for (number, vector) in vectors.into_iter().enumerate().filter(|(_, vector)| !vector.local_cas) {
        let normal = |vector| {
            let mut desc = desc(vector);
            desc.instances.values_mut().for_each(Instance::normalize);
            desc
        };
        let (mut ours, other, result) = (normal(vector.this), normal(vector.other), desc(vector.result));
        let ties = |(id, theirs): (&Arc<str>, &Instance)| match ours.instances.get(id) {
            Some(known) => known.timestamp == theirs.timestamp && known != theirs,
            // dskit does not take these, and nobody writes them.
            None => theirs.timestamp <= 0,
        };
        if other.instances.iter().any(ties) {
            continue;
        }
        let now = annulus::clock::Now::read();
        annulus::kv::Mergeable::join(&mut ours, &other, now);
        assert_eq!(owner_map(&ours), owner_map(&result), "line {}", number + 1);
        compared += 1;
        contested += usize::from(ours != result);
    }
    assert!(compared > 200 && contested > 50, "{compared} compared, {contested} of them with contested tokens");
}

/// When heartbeats are judged in the vectors; unhealthy instances last beat long before.
const NOW: u64 = 1_000_000;

/// The ring that vectors describe: instance `ing-<zone>-<i>`, tokens spread evenly, ACTIVE and fresh unless listed.
fn reference_ring(
    zones: &[String],
    per_zone: usize,
    tokens: usize,
    states: &BTreeMap<String, String>,
    unhealthy: &[String],
) -> Desc {
    let spread = spread_tokens(per_zone);
    let mut desc = Desc::default();
    for (zone_index, zone) in zones.iter().enumerate() {
        for (index, all) in spread.iter().enumerate() {
            let id = format!("ing-{zone}-{index}");
            let timestamp = if unhealthy.contains(&id) { 1 } else { NOW as i64 };
            let instance = Instance {
                addr: format!("addr-{id}"),
                timestamp,
                state: states.get(&id).map_or(InstanceState::Active, |name| state(name)),
                tokens: all.iter().take(tokens).map(|token| token + zone_index as u32).collect(),
                zone: zone.clone(),
                ..Instance::default()
            };
            desc.instances.insert(id.into(), instance);
        }
    }
    desc
}

/// dskit's spread-minimizing tokens of zone 0 for the first instances, each list sorted (dskit-ring §4.4): every new
/// instance takes its share from the largest tokens of the largest instances.
fn spread_tokens(instances: usize) -> Vec<Vec<u32>> {
    const TOKENS: u32 = 512;
    // Heaps of (width, token) by instance, and of (width, instance); widths are whole numbers throughout.
    let mut ranges: Vec<BinaryHeap<(u64, u32)>> = vec![(0..TOKENS).map(|at| (1 << 23, at << 23)).collect()];
    let mut lists: Vec<Vec<u32>> = vec![(0..TOKENS).map(|at| at << 23).collect()];
    let mut donors: BinaryHeap<(u64, usize)> = [(1 << 32, 0)].into();
    for newcomer in 1..instances {
        let goal = 2_f64.powi(32) / (newcomer as f64 + 1.0);
        let (mut own, mut list, mut heap, mut aside) = (0_u64, Vec::new(), BinaryHeap::new(), Vec::new());
        for cut in 0..TOKENS {
            let want = u64::from((goal - own as f64) as u32 / (TOKENS - cut) / 8 * 8);
            let (donor_width, donor, width, token) = loop {
                let (donor_width, donor) = donors.pop().unwrap();
                assert!(donor_width > want);
                match ranges[donor].peek().copied() {
                    Some((width, token)) if width > want => break (donor_width, donor, width, token),
                    _ => aside.push((donor_width, donor)),
                }
            };
            ranges[donor].pop();
            // All tokens are multiples of eight, so plain arithmetic on the circle does.
            let fresh = token.wrapping_sub(width as u32).wrapping_add(want as u32);
            ranges[donor].push((width - want, token));
            donors.push((donor_width - want, donor));
            heap.push((want, fresh));
            list.push(fresh);
            own += want;
        }
        donors.extend(aside);
        donors.push((own, newcomer));
        ranges.push(heap);
        list.sort_unstable();
        lists.push(list);
    }
    lists
}

#[derive(Deserialize)]
struct SpreadVector {
    zone_id: u32,
    instance_id: usize,
    first8: Vec<u32>,
}

#[test]
fn the_reference_rings_have_dskits_tokens() {
    let vectors: Vec<SpreadVector> = lines("spread_minimizing.jsonl");
    let spread = spread_tokens(6);
    let mut compared = 0;
    for vector in vectors.iter().filter(|vector| vector.instance_id < spread.len()) {
        let tokens = spread[vector.instance_id].iter().map(|token| token + vector.zone_id);
        assert_eq!(tokens.take(8).collect::<Vec<_>>(), vector.first8, "instance {}", vector.instance_id);
        compared += 1;
    }
    assert!(compared >= 9, "only {compared} token lists compared");
}

fn operation(name: &str) -> Operation {
    Operation::ALL.into_iter().find(|op| format!("{op:?}") == name).unwrap()
}

#[derive(Deserialize)]
struct GetScenario {
    name: String,
    zones: Vec<String>,
    per_zone: usize,
    tokens_per_instance: usize,
    rf: usize,
    zone_aware: bool,
    strategy: String,
    #[serde(default)]
    states: BTreeMap<String, String>,
    #[serde(default)]
    unhealthy: Vec<String>,
    gets: Vec<GetVector>,
}

#[derive(Deserialize)]
struct GetVector {
    key: u32,
    op: String,
    rf: Option<usize>,
    #[serde(default)]
    ids: Vec<String>,
    max_errors: usize,
    err: Option<String>,
}

#[test]
fn look_ups_select_what_dskit_selects() {
    let mut compared = 0;
    for scenario in lines::<GetScenario>("ring_get.jsonl") {
        let GetScenario { zones, per_zone, tokens_per_instance, states, unhealthy, .. } = &scenario;
        let desc = reference_ring(zones, *per_zone, *tokens_per_instance, states, unhealthy);
        let options = RingOptions {
            replication_factor: scenario.rf,
            zone_awareness: scenario.zone_aware,
            ..RingOptions::default()
        };
        let snapshot = Arc::new(Snapshot::build(&desc, &options, Duration::from_secs(NOW)));
        let strategy = if scenario.strategy == "default" { Strategy::Quorum } else { Strategy::IgnoreUnhealthy };
        // A replication factor for one call is not offered.
        for vector in scenario.gets.iter().filter(|vector| vector.rf.is_none()) {
            let what = format!("{}: {} {}", scenario.name, vector.key, vector.op);
            let result = snapshot.get_with(vector.key, operation(&vector.op), strategy);
            match (&vector.err, result) {
                (None, Ok(set)) => {
                    assert_eq!(set.ids().collect::<Vec<_>>(), vector.ids, "{what}");
                    assert_eq!(set.max_errors(), vector.max_errors, "{what}");
                }
                (Some(text), Err(error)) => assert_eq!(error.to_string(), *text, "{what}"),
                (expected, got) => panic!("{what}: expected {expected:?}, got {got:?}"),
            }
            compared += 1;
        }
    }
    assert!(compared >= 7 * 84, "only {compared} look-ups compared");
}

#[derive(Deserialize)]
struct SetVector {
    zones: Vec<String>,
    per_zone: usize,
    rf: usize,
    zone_aware: bool,
    #[serde(default)]
    states: BTreeMap<String, String>,
    #[serde(default)]
    unhealthy: Vec<String>,
    op: String,
    #[serde(default)]
    ids: Vec<String>,
    max_errors: usize,
    max_unavailable_zones: usize,
    err: Option<String>,
}

#[test]
fn sets_of_the_whole_ring_are_what_dskit_returns() {
    let vectors: Vec<SetVector> = lines("replication_set_for_operation.jsonl");
    for (number, vector) in vectors.iter().enumerate() {
        let desc = reference_ring(&vector.zones, vector.per_zone, 4, &vector.states, &vector.unhealthy);
        let options =
            RingOptions { replication_factor: vector.rf, zone_awareness: vector.zone_aware, ..RingOptions::default() };
        let snapshot = Arc::new(Snapshot::build(&desc, &options, Duration::from_secs(NOW)));
        match (&vector.err, snapshot.get_all(operation(&vector.op))) {
            (None, Ok(set)) => {
                assert_eq!(set.ids().collect::<Vec<_>>(), vector.ids, "line {}", number + 1);
                assert_eq!(set.max_errors(), vector.max_errors, "line {}", number + 1);
                assert_eq!(set.max_unavailable_zones(), vector.max_unavailable_zones, "line {}", number + 1);
            }
            (Some(text), Err(error)) => assert_eq!(error.to_string(), *text, "line {}", number + 1),
            (expected, got) => panic!("line {}: expected {expected:?}, got {got:?}", number + 1),
        }
    }
    assert!(vectors.len() > 900, "{}", vectors.len());
    assert_eq!(RingError::Empty.to_string(), "empty ring");
}
