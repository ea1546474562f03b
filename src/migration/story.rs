//! The story of a move, for logs and subscribers: what changed, told once when it changes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::core::MultiCore;
use super::message::{MigrationEvent, Phase};
use crate::clock::Now;

/// How often the gates are looked at. What does not last from one look to the next is no news.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Fewer keys in the outbox than this are never worth telling.
const FIRST_HIGH_WATER: usize = 16;

/// What was told last.
#[derive(Debug, Default)]
pub(super) struct Story {
    phase: Option<Phase>,
    /// The gates: what was told of each, and what was seen last.
    gates: BTreeMap<&'static str, (bool, bool)>,
    looked: Option<Instant>,
    /// The most keys that ever waited at once.
    pub(super) high_water: usize,
    /// The high water that was told last.
    told: usize,
}

impl MultiCore {
    /// Tells what changed since it was told last.
    pub(super) fn tell_story(&mut self, now: Now) {
        self.tell_phase();
        self.tell_high_water(now);
        self.tell_gates(now);
    }

    fn tell_phase(&mut self) {
        let to = self.view().phase;
        if let Some(from) = self.story.phase.replace(to).filter(|from| *from != to) {
            self.event(MigrationEvent::PhaseChanged { from, to });
        }
    }

    fn tell_high_water(&mut self, now: Now) {
        let keys = self.outbox_len();
        self.story.high_water = self.story.high_water.max(keys);
        if keys < (self.story.told * 2).max(FIRST_HIGH_WATER) {
            return;
        }
        self.story.told = keys;
        let oldest = self.durable.outbox.iter().filter_map(|outbox| outbox.oldest()).min();
        let oldest = oldest.map_or(Duration::ZERO, |at| now.mono.saturating_duration_since(at));
        self.event(MigrationEvent::OutboxHighWater { keys, oldest });
    }

    fn tell_gates(&mut self, now: Now) {
        if !self.durable.mirror && self.flip.is_none() {
            self.story.gates.clear();
            return;
        }
        if self.story.looked.is_some_and(|at| now.mono.saturating_duration_since(at) < LOOK_EVERY) {
            return;
        }
        self.story.looked = Some(now.mono);
        for gate in self.gates(now) {
            // Gates that were always open are no news.
            let (told, seen) = self.story.gates.entry(gate.name).or_insert((true, true));
            let lasts = std::mem::replace(seen, gate.open) == gate.open;
            if lasts && *told != gate.open {
                *told = gate.open;
                self.event(MigrationEvent::GateChanged { gate: gate.name, open: gate.open, reason: gate.reason });
            }
        }
    }
}
