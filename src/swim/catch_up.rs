//! Asking again after a join: who else came?
//!
//! Where many nodes start at once and join the same member, that member's answer to the first of them names hardly
//! anybody, and they are left to gossip, which is made for a few changes at a time: memberlist needs seconds for a
//! hundred nodes, and the profiles that gossip seldom, or repeat little, need the next push/pull. So for some time after
//! its join a node asks again, first the member through which it joined (which by then knows those who came later), then
//! random ones, for as long as that brings somebody new. A node that joins a quiet cluster asks once.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::RngExt;

use super::leave::Leave;
use super::push_pull::Purpose;
use super::timers::Timer;
use super::{Member, Swim};
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
}

impl Swim {
    /// This node joined through a member.
    pub(super) fn begin_catch_up(&mut self, now: Instant, through: SocketAddr) {
        let at = self.catch_up.at;
        self.catch_up = CatchUp { until: Some(now + WINDOW), at, pause: PAUSE, through: Some(through) };
        self.catch_up_soon(now);
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
            others.first().and_then(Member::socket_addr)
        });
        if let Some(to) = to {
            self.begin_push_pull(now, to, Purpose::CatchUp);
        }
    }
}
