//! Step 3, measured: when each node reads the other store, and whether any key changed its owners for it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::bail;
use futures_util::future::try_join_all;

use crate::checks::{self, Needed};
use crate::fleet::{Fleet, Slot};
use crate::peer::peer;
use crate::screen::{Screen, Summary, mark};
use crate::story::{PATIENCE, names, pause, rewrite};
use crate::workload::{Counts, sample_owners};

const GOSSIP: &str = "memberlist";

/// Half of the nodes swap; then the operator thinks better of it.
pub async fn half_and_back(
    fleet: &Fleet,
    counts: &Counts,
    screen: &Screen,
    summary: &mut Summary,
) -> anyhow::Result<()> {
    let (half, rest) = fleet.slots.split_at(fleet.slots.len() / 2);
    let old = fleet.old.name();
    let before = owners(&fleet.slots).await?;
    let lookups = counts.lookups.load(Ordering::Relaxed);
    let took = swap(fleet, screen, half, GOSSIP).await?;
    summary.flipped(&took);
    screen.tell(&format!("{} read gossip, {} still read {old}; all write both", names(half), names(rest)));
    summary.moved(&before, &owners(&fleet.slots).await?);
    pause(fleet).await;
    checks::look(half, screen, Needed::All).await?;
    let safe = checks::may_go_back(half).await?;
    screen.tell(&format!("back    {} the way back is {}", mark(safe), if safe { "safe" } else { "stale" }));

    let took = swap(fleet, screen, half, old).await?;
    summary.rollback_ms = slowest(&took);
    let moved = summary.moved(&before, &owners(&fleet.slots).await?);
    screen.tell(&format!("back: all read {old} again after {} ms", summary.rollback_ms));
    let (lookups, failed) =
        (counts.lookups.load(Ordering::Relaxed) - lookups, counts.lookups_failed.load(Ordering::Relaxed));
    screen.tell(&format!("owners changed there and back: {moved}; of {lookups} lookups meanwhile {failed} failed"));
    Ok(())
}

/// All nodes swap.
pub async fn all(fleet: &Fleet, screen: &Screen, summary: &mut Summary) -> anyhow::Result<()> {
    let before = owners(&fleet.slots).await?;
    let took = swap(fleet, screen, &fleet.slots, GOSSIP).await?;
    summary.flipped(&took);
    let each: Vec<_> = took.iter().map(|took| took.as_millis().to_string()).collect();
    screen.tell(&format!("all read gossip: {} ms after the file changed", each.join(", ")));
    let moved = summary.moved(&before, &owners(&fleet.slots).await?);
    screen.tell(&format!("owners changed by the flip: {moved}"));
    Ok(())
}

/// Has these nodes read that store. Says how long each of them took.
async fn swap(fleet: &Fleet, screen: &Screen, slots: &[Arc<Slot>], store: &str) -> anyhow::Result<Vec<Duration>> {
    rewrite(fleet, screen, slots, &format!("multi_kv_config: {{ mirror_enabled: true, primary: {store} }}\n"))?;
    let changed = Instant::now();
    let swaps = slots.iter().map(|slot| async move {
        let peer = peer(slot)?;
        while peer.migration().await?.is_none_or(|view| view.primary != store) {
            if changed.elapsed() > PATIENCE {
                bail!("{} does not read {store}", slot.id);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(changed.elapsed())
    });
    try_join_all(swaps).await
}

async fn owners(slots: &[Arc<Slot>]) -> anyhow::Result<Vec<Vec<Vec<String>>>> {
    try_join_all(slots.iter().map(|slot| async { sample_owners(&*peer(slot)?).await })).await
}

impl Summary {
    fn flipped(&mut self, took: &[Duration]) {
        self.flip_ms_max = self.flip_ms_max.max(slowest(took));
    }

    /// The most sampled keys with other owners on one node, which counts as changed by the flip.
    fn moved(&mut self, before: &[Vec<Vec<String>>], after: &[Vec<Vec<String>>]) -> u64 {
        let on_one = |(before, after): (&Vec<Vec<String>>, &Vec<Vec<String>>)| {
            before.iter().zip(after).filter(|(before, after)| before != after).count() as u64
        };
        let moved = before.iter().zip(after).map(on_one).max().unwrap_or(0);
        self.owners_changed_by_flip = self.owners_changed_by_flip.max(moved);
        moved
    }
}

fn slowest(took: &[Duration]) -> u64 {
    took.iter().max().map_or(0, |slowest| slowest.as_millis() as u64)
}
