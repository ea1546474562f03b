//! What an instance writes into the ring value: plain data, applied inside a store's compare-and-swap.
//!
//! A compare-and-swap may call back many times and elsewhere, so an [`Edit`] carries all it needs, random seed
//! included, and applying it twice to the same value gives the same result. An edit touches the instance's own entry
//! only; forgetting the dead is the one exception.

use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;

use crate::clock::Now;
use crate::ring::desc::{Desc, Instance, InstanceState};
use crate::ring::tokens::{lost_tokens, random_tokens, taken_tokens};

/// A change of one instance's entry.
#[derive(Clone, Debug, PartialEq)]
pub struct Edit {
    /// Whose entry.
    pub id: Arc<str>,
    /// The entry as the instance remembers it. Its timestamp is the one last written.
    pub entry: Instance,
    /// What to do with it.
    pub action: Action,
    /// How many tokens the instance wants.
    pub num_tokens: usize,
    /// The Unix time in seconds by a clock that does not go back: the latest time ever read, and what has passed since.
    pub passed: i64,
    /// Seed for drawing tokens.
    pub seed: u64,
}

/// What an [`Edit`] does.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Enter the ring, or take up the entry of an earlier life.
    Register,
    /// Draw the missing tokens and go on to this state.
    Join {
        /// JOINING or ACTIVE.
        to: InstanceState,
    },
    /// ACTIVE if nobody else has our tokens; else new ones for those that are lost, and JOINING as before.
    Verify,
    /// Write the remembered entry: a heartbeat, a new state, or the entry again after it vanished.
    Publish {
        /// Also remove others whose heartbeat is older than the first; the second is the heartbeat timeout.
        forget: Option<(Duration, Duration)>,
    },
    /// Leave the ring.
    Unregister,
}

impl Edit {
    /// The ring with the edit applied, or `None` when there is nothing to write. `current` may hold tombstones; the
    /// result keeps them. What it lacks is to be removed.
    #[must_use]
    pub fn apply(&self, current: Option<&Desc>, now: Now) -> Option<Desc> {
        let stored = current.and_then(|desc| desc.instances.get(&self.id));
        // A tombstone is not an entry, but what is written must be newer than it.
        let live = stored.filter(|entry| !entry.state.is_left());
        let wanted = match &self.action {
            Action::Unregister => {
                live?;
                let mut desc = current?.clone();
                desc.instances.remove(&self.id);
                return Some(desc);
            }
            Action::Register => self.registered(current, live, now),
            Action::Join { to } => {
                let mut entry = self.entry.clone();
                self.top_up(&mut entry, current);
                entry.state = *to;
                entry
            }
            Action::Verify => self.verified(current, live),
            Action::Publish { .. } => self.entry.clone(),
        };

        let mut desc = current.cloned().unwrap_or_default();
        let forgotten = match &self.action {
            Action::Publish { forget: Some((after, timeout)) } => self.forget(&mut desc, *after, *timeout, now),
            _ => false,
        };
        let entry = self.stamped(wanted, stored, current, now);
        if !forgotten && stored == Some(&entry) {
            return None;
        }
        desc.instances.insert(self.id.clone(), entry);
        Some(desc)
    }

    /// The entry of a new life, given what the last one left.
    fn registered(&self, current: Option<&Desc>, live: Option<&Instance>, now: Now) -> Instance {
        let mut entry = self.entry.clone();
        let Some(old) = live else {
            entry.registered_timestamp = now.unix_secs();
            let complete = self.num_tokens > 0 && entry.tokens.len() >= self.num_tokens;
            entry.state = if complete { InstanceState::Active } else { InstanceState::Pending };
            return entry;
        };
        // Known as 0 is known: an unknown start must not become "now", which would move tenants.
        entry.registered_timestamp = old.registered_timestamp;
        entry.read_only = old.read_only;
        entry.read_only_updated_timestamp = old.read_only_updated_timestamp;
        entry.versions.clone_from(&old.versions);
        entry.unknown.clone_from(&old.unknown);
        entry.tokens = old.tokens.clone();
        entry.state = match old.state {
            // It stopped on its way in and begins the way again, with the tokens that it had chosen.
            InstanceState::Joining | InstanceState::Unknown(_) => InstanceState::Pending,
            InstanceState::Leaving => {
                self.adjust(&mut entry, current);
                InstanceState::Active
            }
            InstanceState::Active if old.tokens.is_empty() => {
                // Nothing later gives an ACTIVE instance tokens, and without any it is of no use.
                self.top_up(&mut entry, current);
                InstanceState::Active
            }
            state => state,
        };
        entry
    }

    /// Keeps the tokens that are ours alone, replaces the others.
    fn verified(&self, current: Option<&Desc>, live: Option<&Instance>) -> Instance {
        let mut entry = self.entry.clone();
        let lost = current.map_or_else(Vec::new, |desc| {
            let mut seen = desc.clone();
            seen.instances.insert(self.id.clone(), entry.clone());
            lost_tokens(&seen, &self.id)
        });
        // Others saw other tokens than these, or none: they get the time to object to these.
        let others_saw = live.is_some_and(|stored| stored.tokens == entry.tokens);
        if lost.is_empty() && others_saw {
            entry.state = InstanceState::Active;
        } else {
            entry.tokens = entry.tokens.iter().copied().filter(|token| lost.binary_search(token).is_err()).collect();
            self.top_up(&mut entry, current);
        }
        entry
    }

    /// Draws the tokens that are missing.
    fn top_up(&self, entry: &mut Instance, current: Option<&Desc>) {
        let missing = self.num_tokens.saturating_sub(entry.tokens.len());
        if missing == 0 {
            return;
        }
        let mut taken = current.map(|desc| taken_tokens(desc, &self.id)).unwrap_or_default();
        taken.extend(entry.tokens.iter().copied());
        let mut tokens = entry.tokens.to_vec();
        tokens.extend(random_tokens(missing, &taken, &mut SmallRng::seed_from_u64(self.seed)));
        tokens.sort_unstable();
        entry.tokens = tokens.into();
    }

    /// Draws the tokens that are missing, or drops some at random: not the smallest, that would unbalance the ring.
    fn adjust(&self, entry: &mut Instance, current: Option<&Desc>) {
        if entry.tokens.len() > self.num_tokens {
            let mut tokens = entry.tokens.to_vec();
            tokens.shuffle(&mut SmallRng::seed_from_u64(self.seed));
            tokens.truncate(self.num_tokens);
            tokens.sort_unstable();
            entry.tokens = tokens.into();
        } else {
            self.top_up(entry, current);
        }
    }

    /// Dates the entry: not before now, and after what is stored if it says something else. Two writes within a
    /// second, or a clock that went back, would otherwise lose.
    fn stamped(&self, mut entry: Instance, stored: Option<&Instance>, current: Option<&Desc>, now: Now) -> Instance {
        entry.normalize();
        let now = now.unix_secs().max(self.reached(current, now));
        entry.timestamp = match stored {
            None => now,
            Some(stored) if stored.same_content(&entry) => now.max(stored.timestamp),
            Some(stored) => now.max(stored.timestamp.saturating_add(1)),
        };
        entry
    }

    /// How far time has come at least, whatever our clock says: not behind what we wrote last.
    ///
    /// When our clock has gone back behind that, either it was wrong before or it is wrong now. The heartbeats of the
    /// others tell: as far as they have come, ours go on by the time that has really passed, or the others would see
    /// us die. If ours are ahead of them all, they stay where they are until the clock gets there.
    fn reached(&self, current: Option<&Desc>, now: Now) -> i64 {
        let written = self.entry.timestamp;
        if now.unix_secs() >= written {
            return written;
        }
        let passed = self.passed.max(written);
        let others = current.into_iter().flat_map(Desc::live).filter(|(id, _)| **id != self.id);
        others.map(|(_, other)| other.timestamp).max().map_or(passed, |newest| newest.clamp(written, passed))
    }

    /// Removes others that are long dead, unless so many are that our own view is what is wrong.
    fn forget(&self, desc: &mut Desc, after: Duration, timeout: Duration, now: Now) -> bool {
        let age = |instance: &Instance| {
            now.unix.saturating_sub(Duration::from_secs(u64::try_from(instance.timestamp).unwrap_or(0)))
        };
        let others = || desc.live().filter(|(id, _)| **id != self.id);
        let fresh = others().filter(|(_, instance)| age(instance) <= timeout).count();
        let dead: Vec<Arc<str>> =
            others().filter(|(_, instance)| age(instance) > after).map(|(id, _)| id.clone()).collect();
        if dead.is_empty() || fresh * 2 <= others().count() {
            return false;
        }
        desc.instances.retain(|id, _| !dead.contains(id));
        true
    }
}
