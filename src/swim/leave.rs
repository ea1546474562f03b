//! Going: a node that leaves says so, and the others need not find out.

use std::net::SocketAddr;
use std::time::Instant;

use super::timers::Timer;
use super::{Output, Swim};
use crate::wire::encode_message;
use crate::wire::message::{Dead, Message};

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
                self.give_up_unsent_contacts(now);
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
        self.broadcast_member(name, &Message::Dead(goodbye));
        if !self.config.leave_timeout.is_zero() {
            self.timers.schedule(now + self.config.leave_timeout, Timer::Leave);
        }
    }

    /// A contact ended that was in flight when this node left. Whoever it was may have taken us in from what we sent,
    /// whether its answer came or not, and may be in nobody's table but ours: it is told directly.
    pub(super) fn say_goodbye_to(&mut self, to: SocketAddr) {
        if self.leave == Leave::No {
            return;
        }
        let name = self.local.name.clone();
        let Some(incarnation) = self.table.get(&name).map(|own| own.incarnation) else { return };
        let goodbye = Message::Dead(Dead { incarnation, node: name.clone(), from: name });
        self.send_parts(to, &[encode_message(&goodbye)], false);
    }

    /// Done when the goodbye has left the queue (it was sent often enough), or when there is nobody to tell: nobody is
    /// known, and nobody that was contacted may yet answer.
    pub(super) fn check_leave_done(&mut self) {
        if self.leave != Leave::Waiting {
            return;
        }
        let waits =
            if self.has_company() { self.broadcasts.members.has_group(&self.local.name) } else { self.has_contacts() };
        if !waits {
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
