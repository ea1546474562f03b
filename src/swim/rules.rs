//! What alive, suspect and dead messages do to the table.
//!
//! The rules work because a member's incarnation is raised by that member only. An announcement needs a higher
//! incarnation than what is known; an accusation needs one at least as high. So an accused member that lives always has
//! the last word, by announcing itself with a higher incarnation than that of the accusation.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::admission::Origin;
use super::leave::Leave;
use super::member::is_compatible;
use super::suspicion::{Suspicion, confirmations_needed, min_timeout};
use super::{MAX_META, Member, MemberEvent, Swim};
use crate::wire::encode_message;
use crate::wire::message::{Alive, Dead, MemberState, Message, NodeName, Suspect};

impl Swim {
    /// Somebody is announced as alive.
    pub(super) fn alive(&mut self, now: Instant, mut alive: Alive, origin: Origin) {
        if self.is_self(&alive.node) && self.leave != Leave::No {
            return;
        }
        let Some(vsn) = alive.vsn else { return self.stats.refuse_message("alive_without_versions") };
        if !is_compatible(&self.config.vsn(), &vsn) {
            return self.stats.refuse_message("alive_incompatible");
        }
        if alive.addr.is_none() || alive.node.is_empty() || alive.meta.len() > MAX_META {
            return self.stats.refuse_message("alive_malformed");
        }
        if !self.may_come_from(&alive, origin) {
            return;
        }
        if alive.port == 0 {
            alive.port = self.local.addr.port();
        }
        let Some(known) = self.table.get(&alive.node).cloned() else {
            return self.alive_unknown(now, alive, vsn, origin);
        };

        let moved = !known.has_address(alive.addr, alive.port);
        if moved {
            let reclaim = self.config.dead_reclaim_time;
            let is_free = match known.state {
                MemberState::Left => true,
                MemberState::Dead => !reclaim.is_zero() && now.saturating_duration_since(known.since) > reclaim,
                MemberState::Alive | MemberState::Suspect => false,
            };
            if !is_free {
                self.stats.refuse_message("alive_conflict");
                if self.conflicts.is_news(now, &alive.node) {
                    self.event(MemberEvent::Conflict { existing: known, other: alive });
                }
                return;
            }
        }
        if self.is_self(&alive.node) {
            let echo = alive.incarnation == known.incarnation && alive.meta == known.meta && vsn == known.vsn;
            if alive.incarnation >= known.incarnation && !echo {
                self.refute(alive.incarnation);
            }
            return;
        }
        if !moved && alive.incarnation <= known.incarnation {
            if known.state != MemberState::Alive {
                self.tell_stale(now, &known);
            }
            return;
        }

        self.note_incarnation(&alive.node, alive.incarnation);
        self.end_suspicion(&alive.node);
        self.told.remove(&alive.node);
        self.rejoin.failed.remove(&alive.node);
        self.stats.alive_accepted += 1;
        self.changes += 1;
        self.broadcast_member(alive.node.clone(), &Message::Alive(alive.clone()));
        let changed = self.table.change(&alive.node, |member| {
            member.incarnation = alive.incarnation;
            member.addr = alive.addr;
            member.port = alive.port;
            member.meta = alive.meta;
            member.vsn = vsn;
            if member.state != MemberState::Alive {
                member.state = MemberState::Alive;
                member.since = now;
            }
        });
        let Some(member) = changed else { return };
        match known.state {
            MemberState::Dead | MemberState::Left => self.event(MemberEvent::Joined(member)),
            MemberState::Alive | MemberState::Suspect => {
                if known.state == MemberState::Suspect {
                    self.event(MemberEvent::Recovered(member.clone()));
                }
                if known.meta != member.meta {
                    self.event(MemberEvent::Updated(member));
                }
            }
        }
    }

    fn alive_unknown(&mut self, now: Instant, alive: Alive, vsn: crate::wire::message::Vsn, origin: Origin) {
        // No member ever has incarnation 0; memberlist would keep such an entry as a dead ghost.
        if alive.incarnation == 0 {
            return self.stats.refuse_message("alive_incarnation_zero");
        }
        if !self.may_be_added(now, origin) {
            return;
        }
        self.rejoin.failed.remove(&alive.node);
        self.stats.alive_accepted += 1;
        self.changes += 1;
        if !self.catch_up.is_known {
            self.broadcast_member(alive.node.clone(), &Message::Alive(alive.clone()));
        }
        let member = Arc::new(Member {
            name: alive.node,
            addr: alive.addr,
            port: alive.port,
            meta: alive.meta,
            incarnation: alive.incarnation,
            state: MemberState::Alive,
            vsn,
            since: now,
        });
        self.table.insert(member.clone(), &mut self.rng);
        self.event(MemberEvent::Joined(member));
        self.catch_up_soon(now);
    }

    /// Somebody is suspected.
    pub(super) fn suspect(&mut self, now: Instant, suspect: Suspect) {
        self.note_incarnation(&suspect.node, suspect.incarnation);
        let Some(member) = self.table.get(&suspect.node) else { return };
        if suspect.incarnation < member.incarnation {
            return self.repeat_refutation(&suspect.node);
        }
        let state = member.state;
        // A higher incarnation confirms too, and changes nothing else, as in memberlist: whoever could restart the time of
        // a suspicion by raising it could keep a dead member in the cluster.
        if state == MemberState::Suspect {
            let Some(suspicion) = self.suspicions.get_mut(&suspect.node) else { return };
            if suspicion.confirm(&suspect.from, &mut self.timers, &suspect.node) {
                self.broadcast_member(suspect.node.clone(), &Message::Suspect(suspect));
            }
            return;
        }
        if matches!(state, MemberState::Dead | MemberState::Left) {
            return;
        }
        if self.is_self(&suspect.node) {
            return self.refute(suspect.incarnation);
        }
        self.stats.suspect_accepted += 1;
        self.changes += 1;
        self.broadcast_member(suspect.node.clone(), &Message::Suspect(suspect.clone()));
        let changed = self.table.change(&suspect.node, |member| {
            member.incarnation = suspect.incarnation;
            member.state = MemberState::Suspect;
            member.since = now;
        });
        if let Some(member) = changed {
            self.event(MemberEvent::Suspected(member));
        }
        self.start_suspicion(now, suspect.node, suspect.from);
    }

    pub(super) fn start_suspicion(&mut self, now: Instant, name: NodeName, from: NodeName) {
        let members = self.table.len();
        // A node that never probes still gives suspects time to refute.
        let interval = self.config.probe_interval;
        let unit = if interval.is_zero() { Duration::from_secs(1) } else { interval };
        let needed = confirmations_needed(self.config.suspicion_mult, members);
        let min = min_timeout(self.config.suspicion_mult, members, unit);
        let max = min.saturating_mul(self.config.suspicion_max_mult.max(1));
        self.end_suspicion(&name);
        let suspicion = Suspicion::new(now, from, (needed, min, max), &mut self.timers, &name);
        self.suspicions.insert(name, suspicion);
    }

    fn end_suspicion(&mut self, name: &NodeName) {
        if let Some(suspicion) = self.suspicions.remove(name) {
            self.timers.cancel(suspicion.timer());
        }
    }

    pub(super) fn suspicion_due(&mut self, now: Instant, name: NodeName) {
        let Some(suspicion) = self.suspicions.get(&name) else { return };
        self.stats.suspicions_unconfirmed += u64::from(suspicion.is_unconfirmed());
        let Some(incarnation) = self.table.get(&name).map(|member| member.incarnation) else { return };
        self.dead(now, Dead { incarnation, node: name, from: self.local.name.clone() });
    }

    /// Somebody is declared dead, or says goodbye.
    pub(super) fn dead(&mut self, now: Instant, dead: Dead) {
        let is_self = self.is_self(&dead.node);
        let is_leave = dead.node == dead.from;
        self.note_incarnation(&dead.node, dead.incarnation);
        let Some(member) = self.table.get(&dead.node) else { return };
        if dead.incarnation < member.incarnation {
            return self.repeat_refutation(&dead.node);
        }
        if !member.is_live() {
            // Old news, but perhaps higher evidence: without keeping it, an announcement between the two incarnations
            // would revive the dead.
            if dead.incarnation > member.incarnation {
                self.table.change(&dead.node, |member| member.incarnation = dead.incarnation);
                self.changes += 1;
                self.broadcast_member(dead.node.clone(), &Message::Dead(dead));
            }
            return;
        }
        if is_self && self.leave == Leave::No {
            return self.refute(dead.incarnation);
        }
        let changed = self.table.change(&dead.node, |member| {
            member.incarnation = dead.incarnation;
            member.state = if is_leave { MemberState::Left } else { MemberState::Dead };
            member.since = now;
        });
        let Some(member) = changed else { return };
        self.end_suspicion(&dead.node);
        self.stats.dead_accepted += 1;
        self.changes += 1;
        self.broadcast_member(dead.node.clone(), &Message::Dead(dead));
        if is_leave {
            self.event(MemberEvent::Left(member));
        } else {
            self.remember_failed(now, &member);
            self.event(MemberEvent::Failed(member));
        }
        if !is_self && !self.has_company() {
            self.rejoin_soon(now);
        }
    }

    /// This node lives, whatever was said about its incarnation `accused`: it announces itself with a higher one.
    pub(super) fn refute(&mut self, accused: u32) {
        self.stats.refutations += 1;
        self.awareness.worsen(1);
        let Some(own) = self.table.get(&self.local.name) else { return };
        if accused == u32::MAX || own.incarnation == u32::MAX {
            self.stats.refutations_exhausted += 1;
        }
        self.table.change(&self.local.name, |own| own.incarnation = own.incarnation.max(accused).saturating_add(1));
        self.changes += 1;
        self.announce();
    }

    /// Somebody still accuses us of something that we refuted: our announcement did not get there, so it is sent again.
    fn repeat_refutation(&mut self, accused: &NodeName) {
        if self.is_self(accused) && !self.broadcasts.members.has_group(accused) {
            self.announce();
        }
    }

    /// Queues this node's own announcement.
    pub(super) fn announce(&mut self) {
        let Some(own) = self.table.get(&self.local.name).filter(|own| own.is_live()) else { return };
        let alive = own.to_alive();
        self.broadcast_member(alive.node.clone(), &Message::Alive(alive));
    }

    pub(super) fn on_update_meta(&mut self, meta: Bytes) {
        if meta.len() > MAX_META {
            return self.stats.refuse_message("own_meta_too_long");
        }
        let is_news = self.table.get(&self.local.name).is_some_and(|own| own.meta != meta);
        if self.leave != Leave::No || !is_news {
            return;
        }
        let changed = self.table.change(&self.local.name, |own| {
            own.meta = meta.clone();
            own.incarnation = own.incarnation.saturating_add(1);
        });
        let Some(own) = changed else { return };
        self.local.meta = meta;
        self.changes += 1;
        self.event(MemberEvent::Updated(own));
        self.announce();
    }

    /// A member announced itself with an incarnation that is not above what is held against it: it restarted, or never
    /// heard of it. Gossip may never reach it (those who left get none), so it is told directly, and can refute.
    fn tell_stale(&mut self, now: Instant, member: &Member) {
        let every = self.config.probe_interval;
        if self.told.get(&member.name).is_some_and(|last| now.saturating_duration_since(*last) < every) {
            return;
        }
        let Some(to): Option<SocketAddr> = member.socket_addr() else { return };
        self.told.insert(member.name.clone(), now);
        self.stats.stale_members_told += 1;
        let (incarnation, node, from) = (member.incarnation, member.name.clone(), self.local.name.clone());
        let message = if member.state == MemberState::Suspect {
            Message::Suspect(Suspect { incarnation, node, from })
        } else {
            Message::Dead(Dead { incarnation, node, from })
        };
        self.send_parts(to, &[encode_message(&message)], member.speaks(5));
    }
}
