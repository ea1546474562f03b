//! How long a ring look-up takes, and that it allocates nothing. `cargo bench --bench ring_get`
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use annulus::ring::{Desc, Instance, Operation, RingOptions, Snapshot};
use divan::{AllocProfiler, Bencher, black_box};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

#[global_allocator]
static ALLOC: AllocProfiler = AllocProfiler::system();

const NOW: Duration = Duration::from_secs(1_000_000);

fn main() {
    divan::main();
}

/// Three zones, 128 random tokens an instance.
fn ring(instances: usize) -> Desc {
    let mut rng = SmallRng::seed_from_u64(1);
    let mut desc = Desc::default();
    for index in 0..instances {
        let mut instance = Instance {
            addr: format!("10.0.{}.{}:9095", index / 256, index % 256),
            timestamp: 999_990,
            tokens: (0..128).map(|_| rng.random()).collect(),
            zone: format!("zone-{}", index % 3),
            ..Instance::default()
        };
        instance.normalize();
        desc.instances.insert(format!("instance-{index}").into(), instance);
    }
    desc
}

fn options() -> RingOptions {
    RingOptions { zone_awareness: true, ..RingOptions::default() }
}

// Many look-ups a sample: single ones measure cold caches and the timer.
#[divan::bench(args = [5, 60, 300, 1000], sample_size = 10_000)]
fn get(bencher: Bencher<'_, '_>, instances: usize) {
    let snapshot = Arc::new(Snapshot::build(&ring(instances), &options(), NOW));
    let mut rng = SmallRng::seed_from_u64(2);
    bencher
        .with_inputs(|| rng.random::<u32>())
        .bench_local_values(|key| snapshot.get(black_box(key), Operation::Write).unwrap().len());
}

/// What a changed ring costs its keeper.
#[divan::bench(args = [60, 1000], sample_count = 20)]
fn build(bencher: Bencher<'_, '_>, instances: usize) {
    let desc = ring(instances);
    bencher.bench_local(|| Snapshot::build(&desc, &options(), NOW));
}

/// What heartbeats cost it.
#[divan::bench(args = [60, 1000], sample_count = 20)]
fn heartbeat(bencher: Bencher<'_, '_>, instances: usize) {
    let desc = ring(instances);
    let snapshot = Snapshot::build(&desc, &options(), NOW);
    bencher.bench_local(|| snapshot.with_health(&desc, NOW));
}
