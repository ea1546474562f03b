//! Joining: the first attempts, and following the seeds' names for ever after.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use actix::Addr;

use super::membership::{Join, Membership, MembershipParts, SetSeeds};
use super::seeds;

/// How hard a node tries to join.
#[derive(Clone, Copy, Debug)]
pub(crate) struct JoinPolicy {
    /// Attempts after the quick ones at the start; 0 is without end.
    pub(crate) max_retries: u32,
    /// First pause between them.
    pub(crate) min_backoff: Duration,
    /// Longest pause between them.
    pub(crate) max_backoff: Duration,
    /// Whether a node that joins nobody ends instead of beginning a cluster of its own.
    pub(crate) abort: bool,
    /// How often the names of the seeds are resolved again.
    pub(crate) resolve_every: Duration,
}

/// How the first attempt to join stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Joined {
    /// Not over yet.
    Trying,
    /// Over: we have the state of a member, or there is none to have.
    Done,
    /// Nobody answered, and the configuration says that this ends the node.
    Aborted(String),
}

/// Quick attempts to join before writes are let through (the slower ones follow, and seeds are tried again for ever in
/// the background). Several, so that instances that start together find each other before they register.
const QUICK_ATTEMPTS: u32 = 4;
const QUICK_RETRY: Duration = Duration::from_millis(250);

/// Joins, then resolves the names of the seeds again and again: behind a name there are other addresses tomorrow.
pub(crate) async fn follow_seeds(parts: Arc<MembershipParts>, membership: Addr<Membership>) {
    if parts.join_members.is_empty() {
        parts.joined.send_replace(Joined::Done);
        return;
    }
    if *parts.joined.borrow() == Joined::Trying {
        first_join(&parts, &membership).await;
    }
    let mut retry = QUICK_RETRY;
    loop {
        let regular = parts.join.resolve_every.max(Duration::from_secs(1));
        let complete = resolve_seeds(&parts, &membership).await.1.is_empty();
        tokio::time::sleep(if complete { regular } else { retry.min(regular) }).await;
        retry = if complete { QUICK_RETRY } else { retry * 2 };
    }
}

/// Tries to join: quickly at first, then with back-off, until a member answers or the attempts are used up.
async fn first_join(parts: &MembershipParts, membership: &Addr<Membership>) {
    let mut backoff = parts.join.min_backoff;
    for attempt in 1_u32.. {
        let problems = match try_join(parts, membership).await {
            Ok(()) => {
                parts.joined.send_replace(Joined::Done);
                return;
            }
            Err(problems) => problems.join("; "),
        };
        let slow_attempts = attempt.saturating_sub(QUICK_ATTEMPTS);
        if slow_attempts > 0 && slow_attempts >= parts.join.max_retries && parts.join.max_retries > 0 {
            if parts.join.abort {
                parts.joined.send_replace(Joined::Aborted(problems));
            } else {
                tracing::warn!(%problems, "joined nobody; the seeds are tried again in the background");
            }
            return;
        }
        if attempt == QUICK_ATTEMPTS && !parts.join.abort {
            tracing::warn!(%problems, "joined nobody yet: this node begins a cluster of its own and goes on trying");
            parts.joined.send_replace(Joined::Done);
        }
        if attempt < QUICK_ATTEMPTS {
            tokio::time::sleep(QUICK_RETRY).await;
        } else {
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(parts.join.max_backoff);
        }
    }
}

/// One attempt. Succeeds when a member answered, or when there is nobody but ourselves among the seeds.
async fn try_join(parts: &MembershipParts, membership: &Addr<Membership>) -> Result<(), Vec<String>> {
    let (seeds, mut problems) = resolve_seeds(parts, membership).await;
    match membership.send(Join(seeds)).await {
        Ok(Ok(outcome)) if outcome.joined > 0 => {
            tracing::info!(members = outcome.joined, "joined the cluster");
            return Ok(());
        }
        Ok(Ok(outcome)) => problems.extend(outcome.errors),
        Ok(Err(())) | Err(_) => problems.push("the membership actor died over the join".to_owned()),
    }
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}

async fn resolve_seeds(parts: &MembershipParts, membership: &Addr<Membership>) -> (Vec<SocketAddr>, Vec<String>) {
    let (seeds, errors) = seeds::resolve(&parts.join_members).await;
    for error in &errors {
        tracing::warn!(%error, "a seed could not be resolved");
    }
    if !seeds.is_empty() {
        let _ = membership.send(SetSeeds(seeds.clone())).await;
    }
    (seeds, errors)
}
