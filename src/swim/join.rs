//! Coming, and staying connected.
//!
//! A join contacts seeds, three at a time, until three have answered: each answer holds the whole membership. After
//! that the node looks now and then whether it still knows everyone that it should: seeds that are not among the live
//! members are contacted again, and so are members that failed, for a day. Without that, two halves of a cluster that
//! were cut apart for longer than they remember each other's members would stay apart for ever.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::seq::{IndexedRandom, SliceRandom};

use super::leave::Leave;
use super::push_pull::{Merged, Purpose};
use super::timers::Timer;
use super::{Member, Output, Swim};
use crate::wire::message::NodeName;

/// Seeds contacted at a time, and answers that are enough.
const JOIN_WIDTH: usize = 3;

/// How long a failed member is looked for. Its address may belong to somebody else by then.
const FAILED_KEPT: Duration = Duration::from_secs(24 * 3600);

/// How many failed members are looked for; beyond it, those that failed first are given up.
const FAILED_MAX: usize = 256;

/// First pause between attempts of a node that knows no other live member; it doubles each time.
const ALONE_BACKOFF: Duration = Duration::from_secs(1);

/// Longest such pause, where no rejoin interval says otherwise.
const ALONE_BACKOFF_MAX: Duration = Duration::from_secs(30);

/// Joins in progress.
#[derive(Debug, Default)]
pub(super) struct Joins {
    by_id: BTreeMap<u64, Join>,
}

#[derive(Debug, Default)]
struct Join {
    waiting: VecDeque<SocketAddr>,
    in_flight: usize,
    joined: usize,
    errors: Vec<String>,
}

/// Whom we should be connected to.
#[derive(Debug, Default)]
pub(super) struct Rejoin {
    pub(super) seeds: Vec<SocketAddr>,
    pub(super) failed: BTreeMap<NodeName, (Instant, SocketAddr)>,
    /// When to look next; a timer for another time is stale.
    at: Option<Instant>,
    backoff: Duration,
}

impl Swim {
    pub(super) fn on_join(&mut self, now: Instant, id: u64, mut seeds: Vec<SocketAddr>) {
        let mut join = Join::default();
        if self.leave == Leave::No {
            seeds.sort_unstable();
            seeds.dedup();
            seeds.retain(|seed| *seed != self.local.addr);
            seeds.shuffle(&mut self.rng);
            join.waiting = seeds.into();
        } else {
            join.errors.push("this node has left the cluster".to_owned());
        }
        self.joins.by_id.insert(id, join);
        self.join_next(now, id);
    }

    fn join_next(&mut self, now: Instant, id: u64) {
        loop {
            let Some(join) = self.joins.by_id.get_mut(&id) else { return };
            if join.joined >= JOIN_WIDTH || self.leave != Leave::No {
                join.waiting.clear();
            }
            if join.in_flight >= JOIN_WIDTH {
                return;
            }
            let Some(to) = join.waiting.pop_front() else { break };
            join.in_flight += 1;
            self.begin_push_pull(now, to, Purpose::Join(id));
        }
        if self.joins.by_id.get(&id).is_some_and(|join| join.in_flight == 0)
            && let Some(Join { joined, errors, .. }) = self.joins.by_id.remove(&id)
        {
            self.outputs.push_back(Output::JoinDone { id, joined, errors });
        }
    }

    pub(super) fn join_contact_ended(&mut self, now: Instant, id: u64, to: SocketAddr, result: Result<Merged, String>) {
        let Some(join) = self.joins.by_id.get_mut(&id) else { return };
        join.in_flight -= 1;
        match result {
            Ok(Merged::Yes) => {
                join.joined += 1;
                self.begin_catch_up(now, to);
            }
            // Neither a success nor a fault: seed lists are the same on all nodes.
            Ok(Merged::OurOwn) => {}
            Err(error) => join.errors.push(format!("{to}: {error}")),
        }
        self.join_next(now, id);
    }

    pub(super) fn on_set_seeds(&mut self, now: Instant, mut seeds: Vec<SocketAddr>) {
        seeds.sort_unstable();
        seeds.dedup();
        if seeds != self.rejoin.seeds {
            self.rejoin.seeds = seeds;
            self.rejoin_soon(now);
        }
    }

    /// Looks for others after about a second, and then with growing pauses while there are none.
    pub(super) fn rejoin_soon(&mut self, now: Instant) {
        self.rejoin.backoff = ALONE_BACKOFF;
        self.rejoin_after(now, ALONE_BACKOFF);
    }

    fn rejoin_after(&mut self, now: Instant, pause: Duration) {
        let at = now + pause.mul_f64(self.rng.random_range(0.75..1.25));
        self.rejoin.at = Some(at);
        self.timers.schedule(at, Timer::Rejoin);
    }

    pub(super) fn rejoin_due(&mut self, now: Instant, due: Instant) {
        if self.rejoin.at != Some(due) || self.leave != Leave::No {
            return;
        }
        self.rejoin.at = None;
        self.rejoin.failed.retain(|_, (since, _)| now.saturating_duration_since(*since) < FAILED_KEPT);
        let interval = self.config.rejoin_interval;

        let live: Vec<SocketAddr> =
            self.table.iter().filter(|m| m.is_live()).filter_map(|member| member.socket_addr()).collect();
        let missing = |addr: &SocketAddr| *addr != self.local.addr && !live.contains(addr);
        let seeds: Vec<SocketAddr> = self.rejoin.seeds.iter().copied().filter(missing).collect();
        let failed: Vec<SocketAddr> = self.rejoin.failed.values().map(|(_, addr)| *addr).filter(missing).collect();

        let mut targets: Vec<SocketAddr>;
        if self.has_company() {
            // Few at a time: all members do this, and one success is enough to bring two halves together.
            targets = seeds.sample(&mut self.rng, 2).copied().collect();
            targets.extend(failed.choose(&mut self.rng));
            self.rejoin.backoff = ALONE_BACKOFF;
            if !interval.is_zero() {
                self.rejoin_after(now, interval);
            }
        } else {
            let everyone: Vec<SocketAddr> = seeds.into_iter().chain(failed).collect();
            targets = everyone.sample(&mut self.rng, JOIN_WIDTH).copied().collect();
            let longest = if interval.is_zero() { ALONE_BACKOFF_MAX } else { interval };
            self.rejoin.backoff = self.rejoin.backoff.saturating_mul(2).min(longest);
            self.rejoin_after(now, self.rejoin.backoff);
        }
        targets.sort_unstable();
        targets.dedup();
        for to in targets {
            self.stats.rejoin_attempts += 1;
            self.begin_push_pull(now, to, Purpose::Rejoin);
        }
    }

    pub(super) fn remember_failed(&mut self, now: Instant, member: &Member) {
        let Some(addr) = member.socket_addr() else { return };
        let failed = &mut self.rejoin.failed;
        failed.insert(member.name.clone(), (now, addr));
        if failed.len() > FAILED_MAX
            && let Some(oldest) = failed.iter().min_by_key(|(_, (since, _))| *since).map(|(name, _)| name.clone())
        {
            failed.remove(&oldest);
        }
    }
}
