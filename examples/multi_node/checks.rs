//! What an operator looks at before each step: do both stores hold the same, and do the nodes say that it is safe?

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use futures_util::future::try_join_all;

use crate::fleet::Slot;
use crate::peer::{ParityView, PreflightView, peer};
use crate::screen::{Screen, mark};
use crate::story::PATIENCE;

/// How the stores compare on the node where they differ most.
#[derive(Clone, Debug)]
pub struct Comparison {
    report: ParityView,
    /// Keys that differ.
    differing: BTreeSet<String>,
    /// The part of the ring, 0 to 1, that would get another owner.
    pub ownership_delta: f64,
}

impl Comparison {
    /// Whether nothing differs.
    pub fn equal(&self) -> bool {
        self.differing.is_empty()
    }

    fn text(&self) -> String {
        let ParityView { primary, secondary, keys, .. } = &self.report;
        let verdict = match self.differing.len() {
            0 => "equal".to_owned(),
            1 => "1 differs".to_owned(),
            many => format!("{many} differ"),
        };
        format!(
            "{} {verdict}: {} keys in {primary}, {} in {secondary}; a flip would move {:.2} % of the ring",
            mark(self.equal()),
            keys.primary,
            keys.secondary,
            100.0 * self.ownership_delta
        )
    }
}

/// What must be so before the next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needed {
    /// The nodes see each other; that the stores are not equal yet is why there is a next step.
    Members,
    /// All gates are open and nothing differs.
    All,
}

impl Needed {
    fn met(self, node: &PreflightView) -> bool {
        node.gates.iter().all(|gate| gate.open || self == Self::Members && gate.name != "members")
    }
}

/// Has every node compare its stores, and shows that and the gates as the nodes report them. Waits for what is
/// needed, but not for ever: a machine too busy for its mirror's lag can still be shown that nothing is lost.
pub async fn look(slots: &[Arc<Slot>], screen: &Screen, needed: Needed) -> anyhow::Result<Comparison> {
    let deadline = Instant::now() + PATIENCE;
    let compared = try_join_all(slots.iter().map(|slot| compare(slot, needed, deadline))).await?;
    let ownership_delta = compared.iter().map(|one| one.ownership_delta).fold(0.0, f64::max);
    let worst = compared.into_iter().max_by_key(|one| one.differing.len()).context("there are no nodes")?;
    let worst = Comparison { ownership_delta, ..worst };
    screen.tell(&format!("parity  {}", worst.text()));
    let mut said = ask(slots).await?;
    while !said.iter().all(|one| needed.met(one)) && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(50)).await;
        // A node compares its stores every few seconds, and at once when it is asked.
        let waiting = slots.iter().zip(&said).filter(|(_, said)| !needed.met(said));
        try_join_all(waiting.map(|(slot, _)| compare(slot, Needed::Members, deadline))).await?;
        said = ask(slots).await?;
    }
    screen.tell(&format!("gates   {}", gates(&said)));
    Ok(worst)
}

/// Whether every one of these nodes says that the way back is open.
pub async fn may_go_back(slots: &[Arc<Slot>]) -> anyhow::Result<bool> {
    Ok(ask(slots).await?.iter().all(|one| one.rollback["state"] == "safe"))
}

async fn ask(slots: &[Arc<Slot>]) -> anyhow::Result<Vec<PreflightView>> {
    try_join_all(slots.iter().map(|slot| async { peer(slot)?.preflight().await })).await
}

/// Asks again while something differs that must not, and while a store is too busy to answer.
async fn compare(slot: &Slot, needed: Needed, deadline: Instant) -> anyhow::Result<Comparison> {
    let node = peer(slot)?;
    loop {
        let report = match node.parity().await {
            Err(_) if Instant::now() < deadline => continue,
            answer => answer.with_context(|| slot.id.clone())?,
        };
        let compared = Comparison { ownership_delta: report.ownership_delta, differing: report.differing(), report };
        let same = compared.equal() && compared.ownership_delta == 0.0;
        if same || needed == Needed::Members || Instant::now() > deadline {
            return Ok(compared);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// `mirror ✓  backfill ✓  parity ✗ on 2 of 5: …`, with the first reason in a node's own words.
fn gates(said: &[PreflightView]) -> String {
    let names = said.first().map(|one| one.gates.iter().map(|gate| &gate.name)).into_iter().flatten();
    let texts = names.map(|name| {
        let open = said.iter().filter(|one| one.gates.iter().any(|gate| gate.name == *name && gate.open)).count();
        let part = match said.len() - open {
            closed if closed == 0 || open == 0 => String::new(),
            closed => format!(" on {closed} of {}", said.len()),
        };
        format!("{name} {}{part}", mark(open == said.len()))
    });
    let closed = said.iter().flat_map(|one| &one.gates).find(|gate| !gate.open);
    let why = closed.map(|gate| format!(": {}", gate.reason)).unwrap_or_default();
    texts.collect::<Vec<_>>().join("  ") + &why
}
