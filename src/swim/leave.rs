//! Going: a node that leaves says so, and the others need not find out.

use std::time::Instant;

use super::timers::Timer;
use super::{Output, Swim};
use crate::wire::message::Dead;

/// Whether this node said goodbye. There is no way back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leave {
    /// No.
    No,
    /// It does, and waits until enough members were told.
    Waiting,
    /// It did. It still answers others, but no longer announces itself.
    Done,
}

impl Swim {
    pub(super) fn on_leave(&mut self, now: Instant) {
        match self.leave {
            Leave::No => {
                self.leave = Leave::Waiting;
                self.say_goodbye(now);
            }
            Leave::Waiting => {}
            Leave::Done => self.outputs.push_back(Output::LeaveDone),
        }
    }

    /// Applies the goodbye here and queues it. The first members are told at once.
    fn say_goodbye(&mut self, now: Instant) {
        let name = self.local.name.clone();
        let Some(incarnation) = self.table.get(&name).map(|own| own.incarnation) else { return };
        self.dead(now, Dead { incarnation, node: name.clone(), from: name });
        if !self.config.leave_timeout.is_zero() {
            self.timers.schedule(now + self.config.leave_timeout, Timer::Leave);
        }
        self.gossip(now);
    }

    /// A core that had begun to leave before its actor died says goodbye again: nobody knows who heard it.
    pub(super) fn resume_leave(&mut self, now: Instant) {
        self.leave = Leave::Waiting;
        let name = self.local.name.clone();
        let Some(incarnation) = self.table.get(&name).map(|own| own.incarnation) else { return };
        let goodbye = Dead { incarnation, node: name.clone(), from: name.clone() };
        self.broadcast_member(name, &crate::wire::message::Message::Dead(goodbye));
        if !self.config.leave_timeout.is_zero() {
            self.timers.schedule(now + self.config.leave_timeout, Timer::Leave);
        }
    }

    /// Done when the goodbye has left the queue (it was sent often enough), or when there is nobody to tell.
    pub(super) fn check_leave_done(&mut self) {
        if self.leave == Leave::Waiting && (!self.broadcasts.members.has_group(&self.local.name) || !self.has_company())
        {
            self.leave_due();
        }
    }

    pub(super) fn leave_due(&mut self) {
        if self.leave == Leave::Waiting {
            self.leave = Leave::Done;
            self.outputs.push_back(Output::LeaveDone);
        }
    }
}
