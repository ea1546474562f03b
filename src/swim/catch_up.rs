//! Asking again after a join: who else came?
//!
//! Where many nodes start at once and join the same member, that member's answer to the first of them names hardly
//! anybody, and they are left to gossip, which is made for a few changes at a time: memberlist needs seconds for a
//! hundred nodes, and the profiles that gossip seldom, or repeat little, need the next push/pull. So for some time after
//! its join a node asks again, first the member through which it joined (which by then knows those who came later), then
//! random ones, for as long as that brings somebody new. A node that joins a quiet cluster asks once.
//!
//! What a newcomer learns from these answers is news to nobody but itself, so it does not pass it on: in a crowd, that
//! would be most of the traffic. A node that joined through several members, or through which others joined, may stand
//! between two clusters, and passes on all.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::RngExt;

use super::Swim;
use super::leave::Leave;
use super::push_pull::Purpose;
use super::timers::Timer;
use crate::wire::message::MemberState;

/// For how long after its join a node asks again whenever it hears of somebody new.
const WINDOW: Duration = Duration::from_secs(10);

/// First pause before asking, on average; it grows by half each time.
const PAUSE: Duration = Duration::from_millis(150);

/// Above this many members the pauses grow in proportion: the answers do.
const SCALE_ABOVE: usize = 200;

/// Where the asking stands.
#[derive(Debug, Default)]
pub(super) struct CatchUp {
    /// When it is over; `None` before the first join.
    until: Option<Instant>,
    /// When to ask next; a timer for another time is stale.
    at: Option<Instant>,
    pause: Duration,
    /// The member through which we joined, until it was asked again.
    through: Option<SocketAddr>,
    /// Through how many members we joined.
    joins: u32,
    /// Whether somebody joined through us.
    is_host: bool,
    /// Whether what is being merged is news to us alone.
    pub(super) is_known: bool,
}

impl Swim {
    /// This node joined through a member.
    pub(super) fn begin_catch_up(&mut self, now: Instant, through: SocketAddr) {
        self.catch_up.joins = self.catch_up.joins.saturating_add(1);
        self.catch_up.until = Some(now + WINDOW);
        self.catch_up.pause = PAUSE;
        self.catch_up.through = Some(through);
        self.catch_up_soon(now);
    }

    /// Somebody joins through us.
    pub(super) fn hosts(&mut self) {
        self.catch_up.is_host = true;
    }

    /// Whether an answer to an exchange of ours tells only what the others know.
    pub(super) fn is_known_to_others(&self, purpose: Purpose) -> bool {
        let others = match purpose {
            Purpose::Join(_) => self.catch_up.joins,
            Purpose::CatchUp => self.catch_up.joins.saturating_sub(1),
            Purpose::Periodic | Purpose::Rejoin => return false,
        };
        others == 0 && !self.catch_up.is_host
    }

    /// Somebody new is known, or an answer failed to come: there may be more to learn.
    pub(super) fn catch_up_soon(&mut self, now: Instant) {
        let open = self.catch_up.until.is_some_and(|until| now < until);
        if !open || self.catch_up.at.is_some() || self.leave != Leave::No {
            return;
        }
        let scale = self.table.len().div_ceil(SCALE_ABOVE).max(1) as f64;
        let pause = self.catch_up.pause.mul_f64(scale * self.rng.random_range(0.5..1.5));
        self.catch_up.pause = self.catch_up.pause.mul_f64(1.5);
        self.catch_up.at = Some(now + pause);
        self.timers.schedule(now + pause, Timer::CatchUp);
    }

    pub(super) fn catch_up_due(&mut self, now: Instant, due: Instant) {
        if self.catch_up.at != Some(due) {
            return;
        }
        self.catch_up.at = None;
        if self.leave != Leave::No {
            return;
        }
        let own = &self.local.name;
        let to = self.catch_up.through.take().or_else(|| {
            let others = self.table.random(1, &mut self.rng, |m| m.state == MemberState::Alive && m.name != *own);
            others.first().and_then(|member| member.socket_addr())
        });
        if let Some(to) = to {
            self.begin_push_pull(now, to, Purpose::CatchUp);
        }
    }
}
