//! The walk: wire, mirror, swap half and go back, swap all, tear down, clean; then a kill and a panic.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::checks::{self, Needed};
use crate::fleet::{Fleet, Slot, Wiring};
use crate::peer::{MigrationView, Peer, peer};
use crate::screen::{Screen, Summary};
use crate::swap;
use crate::workload::{Workload, sample_owners};

/// Longest wait for any single condition.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub async fn tell(fleet: Fleet, screen: Screen) -> anyhow::Result<Summary> {
    let fleet = Arc::new(fleet);
    let mut summary = Summary { nodes: fleet.slots.len(), phase: "starting".to_owned(), ..Summary::default() };

    screen.chapter(&format!("step 0: {} nodes, three zones, RF 3, the ring in {}", summary.nodes, fleet.old.name()));
    for slot in &fleet.slots {
        fleet.start(slot, Wiring::Old).await?;
    }
    for slot in &fleet.slots {
        complete_ring(slot, fleet.slots.len()).await?;
        slot.settled.store(true, Ordering::Release);
    }
    screen.tell("every node sees the whole ring; the workload begins and does not stop until the end");
    let mut workload = Workload::start(&fleet.slots);
    let ticker = tokio::spawn(show_status(fleet.clone(), workload.counts.clone(), screen.clone()));
    pause(&fleet).await;

    screen.chapter("step 1: wire both stores (a rolling restart with `store: multi`)");
    rollout(&fleet, Wiring::Both, &screen).await?;
    for slot in &fleet.slots {
        let members = fleet.slots.len();
        until(|| async { Ok(living_members(&*peer(slot)?).await? == members) }, "all members see each other").await?;
    }
    screen.tell("gossip runs on every node, empty of rings; everything still reads and writes the old store");
    checks::look(&fleet.slots, &screen, Needed::Members).await?;
    pause(&fleet).await;

    screen.chapter("step 2: mirror (no restart)");
    rewrite(&fleet, &screen, &fleet.slots, "multi_kv_config: { mirror_enabled: true }\n")?;
    for slot in &fleet.slots {
        let mirrored = |view: &MigrationView| view.mirror_enabled && view.backfill.verified && view.outbox_len == 0;
        until(|| async { Ok(migration(slot).await?.as_ref().is_some_and(mirrored)) }, "the mirror is complete").await?;
    }
    screen.tell("every key was brought to gossip and verified; every write now goes to both");
    let compared = checks::look(&fleet.slots, &screen, Needed::All).await?;
    (summary.parity_before_flip, summary.ownership_delta) = (compared.equal(), compared.ownership_delta);

    screen.chapter("step 3, at first: half of the nodes swap, and go back (no restart)");
    swap::half_and_back(&fleet, &workload.counts, &screen, &mut summary).await?;
    let compared = checks::look(&fleet.slots, &screen, Needed::All).await?;
    summary.parity_before_flip &= compared.equal();
    summary.ownership_delta = summary.ownership_delta.max(compared.ownership_delta);

    screen.chapter("step 3: all nodes swap (no restart)");
    swap::all(&fleet, &screen, &mut summary).await?;
    pause(&fleet).await;
    checks::look(&fleet.slots, &screen, Needed::All).await?;

    screen.chapter("step 4: tear down (a rolling restart with `store: memberlist`)");
    // The section stays until the last node is on gossip alone: one that crashes before and comes back with its old static
    // configuration learns from it what to read. Those on gossip alone do not look at it.
    rollout(&fleet, Wiring::Gossip { teardown: true }, &screen).await?;
    for slot in &fleet.slots {
        anyhow::ensure!(migration(slot).await?.is_none(), "{} still has two stores", slot.id);
    }
    screen.tell(&format!("nothing uses {} any more, so the section may go", fleet.old.name()));
    rewrite(&fleet, &screen, &fleet.slots, "# multi_kv_config is gone\n")?;
    tokio::time::sleep(fleet.timings.reload * 2).await;

    screen.chapter("step 5: clean (flags gone; takes effect with the next rollout, nothing to wait for)");
    rollout(&fleet, Wiring::Gossip { teardown: false }, &screen).await?;
    pause(&fleet).await;

    kill(&fleet, &workload, &screen, &mut summary).await?;
    pause(&fleet).await;
    panic(&fleet, &workload, &screen).await?;
    pause(&fleet).await;

    workload.stop().await;
    ticker.abort();
    screen.chapter("looking for every acknowledged write");
    summary.lost_writes = workload.lost_writes(&fleet.living(), Duration::from_secs(20)).await?;
    for slot in fleet.living() {
        summary.actor_restarts += peer(&slot)?.restarts().await?;
    }
    let counts = &workload.counts;
    summary.lookups = counts.lookups.load(Ordering::Relaxed);
    summary.lookups_failed = counts.lookups_failed.load(Ordering::Relaxed);
    summary.cas = counts.cas.load(Ordering::Relaxed);
    summary.cas_failed = counts.cas_failed.load(Ordering::Relaxed);
    let lost = workload.lost_instances.lock().map(|lost| lost.clone()).unwrap_or_default();
    summary.instances_lost = lost.len() as u64;
    for (node, instance) in lost {
        eprintln!("lost: {node} did not see {instance}");
    }
    for failure in counts.failures.lock().map(|failures| failures.clone()).unwrap_or_default() {
        eprintln!("failed: {failure}");
    }
    summary.outbox_max = counts.outbox_max.load(Ordering::Relaxed);
    summary.phase = "done".to_owned();
    screen.tell(&format!("{} writes were acknowledged, {} are missing", summary.cas, summary.lost_writes));
    for slot in fleet.living() {
        if let Some(peer) = slot.peer.swap(None) {
            peer.kill().await;
        }
    }
    fleet.clean_up().await?;
    Ok(summary)
}

/// A node dies without a word.
async fn kill(fleet: &Fleet, workload: &Workload, screen: &Screen, summary: &mut Summary) -> anyhow::Result<()> {
    let victim = fleet.slots.last().context("no node to kill")?.clone();
    screen.chapter(&format!("{} is killed", victim.id));
    let witness = peer(&fleet.slots[0])?;
    let owned_before = owned_by(&witness, &victim.id).await?;
    if let Ok(mut expected) = workload.expected.lock() {
        expected.remove(&victim.id);
    }
    victim.killed.store(true, Ordering::Release);
    let dying = peer(&victim)?;
    let killed = Instant::now();
    dying.kill().await;
    for slot in fleet.living() {
        let gone = || async { Ok(peer(&slot)?.members().await?.get(&victim.id).is_none_or(|state| state == "dead")) };
        until(gone, "the dead member is noticed").await?;
    }
    summary.detect_ms = killed.elapsed().as_millis() as u64;
    screen.tell(&format!("all others know it after {} ms", summary.detect_ms));
    for slot in fleet.living() {
        let moved = || async { Ok(!peer(&slot)?.ring().await?.iter().any(|instance| instance.id == victim.id)) };
        until(moved, "the dead instance is taken out of the ring").await?;
    }
    let owned_after = owned_by(&witness, &victim.id).await?;
    anyhow::ensure!(owned_before > 0 && owned_after == 0, "owners did not move: {owned_before} → {owned_after}");
    screen.tell(&format!(
        "its keys have new owners after {} ms ({owned_before} of the sampled keys moved)",
        killed.elapsed().as_millis()
    ));
    Ok(())
}

async fn owned_by(peer: &Peer, id: &str) -> anyhow::Result<usize> {
    Ok(sample_owners(peer).await?.iter().filter(|owners| owners.iter().any(|owner| owner == id)).count())
}

/// An actor panics in the middle of its work.
async fn panic(fleet: &Fleet, workload: &Workload, screen: &Screen) -> anyhow::Result<()> {
    let slot = &fleet.slots[1];
    screen.chapter(&format!("the gossip store of {} panics", slot.id));
    let before = peer(slot)?.restarts().await?;
    let writes = workload.counts.cas.load(Ordering::Relaxed);
    peer(slot)?.panic("gossip").await?;
    until(|| async { Ok(peer(slot)?.restarts().await? > before) }, "the actor is started again").await?;
    until(|| async { Ok(workload.counts.cas.load(Ordering::Relaxed) > writes + 20) }, "writes go on").await?;
    screen.tell("it was started again in place, with everything it had; writes and lookups went on");
    Ok(())
}

/// `node-1, node-2`.
pub fn names(slots: &[Arc<Slot>]) -> String {
    slots.iter().map(|slot| slot.id.as_str()).collect::<Vec<_>>().join(", ")
}

/// Restarts every node with another static configuration, one after the other, as a rollout does.
async fn rollout(fleet: &Fleet, wiring: Wiring, screen: &Screen) -> anyhow::Result<()> {
    for slot in fleet.living() {
        slot.settled.store(false, Ordering::Release);
        {
            // No new work on this node, and what is in flight is finished: what a load balancer does in a rollout.
            let _drained = slot.working.write().await;
            peer(&slot)?.leave().await.with_context(|| format!("{} did not leave in peace", slot.id))?;
            fleet.start(&slot, wiring).await?;
        }
        complete_ring(&slot, fleet.living().len()).await?;
        slot.settled.store(true, Ordering::Release);
        for other in fleet.living() {
            let back = || async {
                let ring = peer(&other)?.ring().await?;
                Ok(ring.iter().any(|instance| instance.id == slot.id && instance.state == "ACTIVE" && instance.healthy))
            };
            until(back, "the restarted instance is ACTIVE everywhere").await?;
        }
        screen.tell(&format!("{} restarted", slot.id));
    }
    Ok(())
}

/// Waits until a node sees as many healthy ACTIVE instances as there should be.
async fn complete_ring(slot: &Slot, instances: usize) -> anyhow::Result<()> {
    let complete = || async {
        let ring = peer(slot)?.ring().await?;
        Ok(ring.iter().filter(|instance| instance.state == "ACTIVE" && instance.healthy).count() >= instances)
    };
    until(complete, "the ring is complete").await.with_context(|| slot.id.clone())
}

pub fn rewrite(fleet: &Fleet, screen: &Screen, slots: &[Arc<Slot>], text: &str) -> anyhow::Result<()> {
    let of = if slots.len() == fleet.slots.len() { String::new() } else { format!(" of {}", names(slots)) };
    screen.tell(&format!("runtime.yaml{of} is now: {}", text.trim_end()));
    fleet.write_runtime(slots, text)
}

async fn migration(slot: &Slot) -> anyhow::Result<Option<MigrationView>> {
    peer(slot)?.migration().await
}

async fn living_members(peer: &Peer) -> anyhow::Result<usize> {
    Ok(peer.members().await?.values().filter(|state| *state == "alive").count())
}

/// Waits for a condition, with a deadline.
async fn until<F>(condition: impl Fn() -> F, what: &str) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<bool>>,
{
    let deadline = Instant::now() + PATIENCE;
    while !condition().await? {
        anyhow::ensure!(Instant::now() < deadline, "waited {PATIENCE:?} in vain until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

pub async fn pause(fleet: &Fleet) {
    tokio::time::sleep(fleet.timings.pause).await;
}

/// One line a second: phases, members, ring, rates, lag.
async fn show_status(fleet: Arc<Fleet>, counts: Arc<crate::workload::Counts>, screen: Screen) {
    let (mut lookups, mut cas) = (0, 0);
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    loop {
        ticks.tick().await;
        let (mut phases, mut members, mut active, mut lag) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for slot in fleet.living() {
            let Some(peer) = slot.peer.load_full() else { continue };
            match peer.migration().await {
                Ok(Some(view)) => {
                    lag = lag.max(view.mirror_lag_ms);
                    phases.push(view.phase);
                }
                Ok(None) => phases.push("single".to_owned()),
                Err(_) => phases.push("away".to_owned()),
            }
            members.push(living_members(&peer).await.unwrap_or(0));
            let ring = peer.ring().await.unwrap_or_default();
            active.push(ring.iter().filter(|instance| instance.state == "ACTIVE" && instance.healthy).count());
        }
        let now = (counts.lookups.load(Ordering::Relaxed), counts.cas.load(Ordering::Relaxed));
        let failed = counts.lookups_failed.load(Ordering::Relaxed) + counts.cas_failed.load(Ordering::Relaxed);
        screen.status(&format!(
            "{}  members {}  ring {} ACTIVE  {} lookups/s  {} cas/s  lag {lag} ms  failed {failed}",
            grouped(&phases),
            range(&members),
            range(&active),
            now.0 - lookups,
            now.1 - cas,
        ));
        (lookups, cas) = now;
    }
}

/// `dual×3 wired×2`.
fn grouped(phases: &[String]) -> String {
    let mut groups: Vec<(&str, usize)> = Vec::new();
    for phase in phases {
        match groups.iter_mut().find(|(name, _)| name == phase) {
            Some((_, count)) => *count += 1,
            None => groups.push((phase, 1)),
        }
    }
    groups.iter().map(|(name, count)| format!("{name}×{count}")).collect::<Vec<_>>().join(" ")
}

/// `5`, or `4-5` while views differ.
fn range(counts: &[usize]) -> String {
    match (counts.iter().min(), counts.iter().max()) {
        (Some(low), Some(high)) if low != high => format!("{low}-{high}"),
        (Some(low), _) => low.to_string(),
        _ => "-".to_owned(),
    }
}
