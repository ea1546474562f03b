//! What happens in a run.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::consul::Ages;
use crate::process::{Fleet, Side};
use crate::support::consul::Consul;
use crate::support::proxy::{Fault, FaultProxy};
use crate::{FleetOptions, Hazard};

/// Nodes that join while answers are late.
const JOINERS: u32 = 10;

/// In which they join.
const JOINING: Duration = Duration::from_secs(45);

/// How late an answer is.
const LATE: Duration = Duration::from_secs(2);

/// The share of answers that are late.
const SHARE: f64 = 0.02;

/// For how long Consul is looked at after the flip.
const AFTER_THE_FLIP: Duration = Duration::from_secs(45);

const OBSERVERS: usize = 3;

/// One run of one side, on a Consul of its own.
pub(crate) async fn run(hazard: Hazard, side: &Side, seed: u64) -> Result<Value> {
    let consul = tokio::task::spawn_blocking(Consul::start).await?;
    let consul = consul.context("there is no consul; scripts/fetch-peers gets one")?;
    let proxy = FaultProxy::start(consul.addr()).await;
    let begin = Instant::now();
    let mut result = match hazard {
        Hazard::Late => late(side, seed, &consul, &proxy).await,
        Hazard::Cut => cut(side, &consul, &proxy).await,
    }
    .with_context(|| format!("{hazard:?}, {}, seed {seed}", side.name))?;
    result["hazard"] = json!(format!("{hazard:?}").to_lowercase());
    result["side"] = json!(side.name);
    result["seed"] = json!(seed);
    result["seconds"] = json!(begin.elapsed().as_secs());
    Ok(result)
}

fn options(proxy: &FaultProxy, nodes: usize, isolated: bool) -> FleetOptions {
    FleetOptions { nodes, observers: OBSERVERS, isolated, consul: proxy.host() }
}

/// Twelve nodes that mirror; ten more join while some answers of Consul are late.
async fn late(side: &Side, seed: u64, consul: &Consul, proxy: &FaultProxy) -> Result<Value> {
    let mut fleet = Fleet::start(side, &options(proxy, 12, false)).await?;
    fleet.ask("mirror").await?;
    let quiet = fleet.ask("count").await?;
    anyhow::ensure!(quiet["false_left"] == 0, "LEFT before anything was late: {quiet}");
    proxy.set(Fault::SomeLate { method: "PUT", by: LATE, share: SHARE, seed });
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut ages = Ages::default();
    for _ in 0..JOINERS {
        watch(consul, &mut ages, JOINING.mul_f64(rng.random_range(0.8..1.2)) / JOINERS).await?;
        fleet.ask("join").await?;
    }
    // The last of them has joined, and the last late answer has come.
    watch(consul, &mut ages, LATE + Duration::from_secs(4)).await?;
    proxy.set(Fault::None);
    let mut result = fleet.ask("count").await?;
    result["late_answers"] = json!(proxy.injected());
    result["left_in_consul"] = json!(ages.left.len());
    // Observers who see nothing LEFT must be able to.
    fleet.ask("leave").await?;
    Ok(result)
}

/// Ten nodes, one of which never reaches the gossip cluster, after the flip.
async fn cut(side: &Side, consul: &Consul, proxy: &FaultProxy) -> Result<Value> {
    let mut fleet = Fleet::start(side, &options(proxy, 10, true)).await?;
    fleet.ask("mirror").await?;
    sleep(Duration::from_secs(5)).await;
    fleet.ask("flip").await?;
    let mut ages = Ages::default();
    watch(consul, &mut ages, AFTER_THE_FLIP).await?;
    let mut result = fleet.ask("count").await?;
    result["looks"] = json!(ages.looks);
    result["stale_looks"] = json!(ages.stale_looks);
    result["most_stale"] = json!(ages.most_stale);
    result["oldest_s"] = json!(ages.oldest);
    result["fewest"] = json!(ages.fewest);
    result["left_in_consul"] = json!(ages.left.len());
    Ok(result)
}

/// Looks at the ring in Consul four times a second for a while.
async fn watch(consul: &Consul, ages: &mut Ages, length: Duration) -> Result<()> {
    let end = Instant::now() + length;
    loop {
        tokio::task::block_in_place(|| ages.look(consul))?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        sleep(left.min(Duration::from_millis(250))).await;
    }
}
