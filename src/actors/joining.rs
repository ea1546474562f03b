//! Joining: the first attempts, and following the seeds' names for ever after.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use actix::Addr;

use super::membership::{Join, Membership, MembershipParts, SetSeeds};
use super::seeds::Seeds;

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

/// How often names are resolved where regular rejoining is off.
const RESOLVE_ALONE: Duration = Duration::from_secs(30);

/// Joins, then resolves the names of the seeds again and again: behind a name there are other addresses tomorrow.
pub(crate) async fn follow_seeds(parts: Arc<MembershipParts>, membership: Addr<Membership>) {
    if parts.join_members.is_empty() {
        parts.joined.send_replace(Joined::Done);
        return;
    }
    let mut seeds = Seeds::new(parts.join_members.clone(), parts.dns_server);
    if *parts.joined.borrow() == Joined::Trying {
        first_join(&parts, &membership, &mut seeds).await;
    }
    let mut retry = QUICK_RETRY;
    let regular = match parts.join.resolve_every {
        // Who does not rejoin regularly still looks for others when it is alone.
        Duration::ZERO => RESOLVE_ALONE,
        regular => regular.max(Duration::from_secs(1)),
    };
    loop {
        let complete = resolve_seeds(&mut seeds, &membership).await.1.is_empty();
        tokio::time::sleep(if complete { regular } else { retry.min(regular) }).await;
        retry = if complete { QUICK_RETRY } else { retry * 2 };
    }
}

/// Tries to join: quickly at first, then with back-off, until a member answers or the attempts are used up.
async fn first_join(parts: &MembershipParts, membership: &Addr<Membership>, seeds: &mut Seeds) {
    let mut backoff = parts.join.min_backoff;
    for attempt in 1_u32.. {
        let problems = match try_join(membership, seeds).await {
            // Behind a name there may be others in a moment: those that start together with us are not in DNS yet.
            Ok(Company::None) if seeds.may_change() && attempt < QUICK_ATTEMPTS => String::new(),
            Ok(company) => {
                if company == Company::None {
                    tracing::info!("there is nobody but this node among the seeds: it begins a cluster of its own");
                }
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

/// Whom an attempt found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Company {
    /// A member.
    Some,
    /// Nobody but ourselves is among the seeds, and that is all of them.
    None,
}

/// One attempt. An error says what went wrong with every seed.
async fn try_join(membership: &Addr<Membership>, seeds: &mut Seeds) -> Result<Company, Vec<String>> {
    let (seeds, mut problems) = resolve_seeds(seeds, membership).await;
    match membership.send(Join(seeds)).await {
        Ok(Ok(outcome)) if outcome.joined > 0 => {
            tracing::info!(members = outcome.joined, "joined the cluster");
            return Ok(Company::Some);
        }
        Ok(Ok(outcome)) => problems.extend(outcome.errors),
        Ok(Err(())) | Err(_) => problems.push("the membership actor died over the join".to_owned()),
    }
    if problems.is_empty() { Ok(Company::None) } else { Err(problems) }
}

async fn resolve_seeds(seeds: &mut Seeds, membership: &Addr<Membership>) -> (Vec<SocketAddr>, Vec<String>) {
    let (seeds, errors) = seeds.resolve().await;
    for error in &errors {
        tracing::warn!(%error, "a seed could not be resolved");
    }
    if !seeds.is_empty() {
        let _ = membership.send(SetSeeds(seeds.clone())).await;
    }
    (seeds, errors)
}
