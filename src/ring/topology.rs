//! What a ring look-up needs and heartbeats leave alone: sorted tokens, their owners, and the replicas of each token.
//!
//! The replicas of a key depend only on the token it falls to, so they are worked out once for each token and each
//! set of states that extend (see [`Operation`]); a look-up is then a binary search and a read. Where that would take
//! much time or memory (a zone of many instances all LEAVING makes sets of hundreds), a look-up walks instead.

use smallvec::SmallVec;

use super::desc::InstanceState;
use super::operation::{Operation, has_bit};
use super::replication::Members;
use super::tokens;

/// The zone index of an instance without a zone.
const NO_ZONE: u32 = u32::MAX;

/// What the topology needs to know of an instance.
pub(super) struct Site<'a> {
    pub(super) tokens: &'a [u32],
    pub(super) state: InstanceState,
    pub(super) zone: &'a str,
}

/// The part of a snapshot that stays the same while only heartbeats arrive.
#[derive(Debug)]
pub(super) struct Topology {
    replication_factor: usize,
    zone_aware: bool,
    /// All tokens, sorted and distinct, and their owners at the same place.
    tokens: Vec<u32>,
    owners: Vec<u32>,
    /// By instance: its state and zone.
    states: Vec<InstanceState>,
    zone_of: Vec<u32>,
    /// How many zones there are, those of instances without tokens included.
    zone_count: usize,
    /// How many instances of each zone own a token; how many without a zone do; how many at all.
    owners_in_zone: Vec<u32>,
    owners_without_zone: u32,
    owning: usize,
    /// The replicas when no state extends, and for the operations that extend on some state that is present.
    plain: Table,
    write: Option<Table>,
    read: Option<Table>,
}

/// The replicas of every token.
#[derive(Debug)]
enum Table {
    /// `members[starts[i]..starts[i + 1]]` for token `i`.
    Ready { starts: Vec<u32>, members: Vec<u32> },
    /// Too large; walk.
    Walk,
}

/// What a walk remembers. Nothing of it allocates for up to eight replicas and zones and 1024 instances.
#[derive(Default)]
pub(super) struct Scratch {
    seen: SmallVec<[u64; 16]>,
    zones: SmallVec<[Zone; 8]>,
    pub(super) members: Members,
}

#[derive(Clone, Copy, Default)]
struct Zone {
    found: u32,
    examined: u32,
    done: bool,
}

impl Topology {
    /// Builds the indexes. `sites` are in the order of ids; `replication_factor` is at least 1.
    pub(super) fn build(sites: &[Site<'_>], replication_factor: usize, zone_aware: bool) -> Self {
        let owned = tokens::owners(sites.iter().map(|site| (site.tokens, site.state)));
        let mut zones: Vec<&str> = sites.iter().map(|site| site.zone).collect();
        zones.sort_unstable();
        zones.dedup();
        let zone_count = zones.len();
        zones.retain(|zone| !zone.is_empty());
        let zone_index = |zone: &str| zones.binary_search(&zone).map_or(NO_ZONE, |index| index as u32);

        let mut topology = Self {
            replication_factor,
            zone_aware,
            tokens: owned.iter().map(|(token, _)| *token).collect(),
            owners: owned.iter().map(|(_, owner)| *owner).collect(),
            states: sites.iter().map(|site| site.state).collect(),
            zone_of: sites.iter().map(|site| zone_index(site.zone)).collect(),
            zone_count,
            owners_in_zone: vec![0; zones.len()],
            owners_without_zone: 0,
            owning: 0,
            plain: Table::Walk,
            write: None,
            read: None,
        };
        let mut owns = vec![false; sites.len()];
        for owner in &topology.owners {
            owns[*owner as usize] = true;
        }
        for (zone, _) in topology.zone_of.iter().zip(&owns).filter(|(_, owns)| **owns) {
            topology.owning += 1;
            match topology.owners_in_zone.get_mut(*zone as usize) {
                Some(count) => *count += 1,
                None => topology.owners_without_zone += 1,
            }
        }
        topology.plain = topology.table(0);
        topology.write = topology.extended_table(Operation::Write);
        topology.read = topology.extended_table(Operation::Read);
        topology
    }

    /// The tokens, sorted.
    pub(super) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// How many zones there are, those without tokens included, and `""` if somebody has no zone.
    pub(super) fn zone_count(&self) -> usize {
        self.zone_count
    }

    /// The place of the token that a key falls to: the first one greater than the key, around the circle.
    pub(super) fn search(&self, key: u32) -> Option<usize> {
        let at = self.tokens.partition_point(|token| *token <= key);
        if at < self.tokens.len() { Some(at) } else { (!self.tokens.is_empty()).then_some(0) }
    }

    /// The replicas of the token at this place, healthy or not.
    pub(super) fn replicas<'a>(&'a self, at: usize, op: Operation, scratch: &'a mut Scratch) -> &'a [u32] {
        let extended = match op {
            Operation::Write => self.write.as_ref(),
            Operation::Read => self.read.as_ref(),
            Operation::WriteNoExtend | Operation::Reporting => None,
        };
        match extended.unwrap_or(&self.plain) {
            Table::Ready { starts, members } => &members[starts[at] as usize..starts[at + 1] as usize],
            Table::Walk => {
                self.walk(at, op.extension(), scratch);
                &scratch.members
            }
        }
    }

    /// A table of its own for an operation, if it extends on a state that some instance is in.
    fn extended_table(&self, op: Operation) -> Option<Table> {
        self.states.iter().any(|state| op.extends(*state)).then(|| self.table(op.extension()))
    }

    fn table(&self, extension: u32) -> Table {
        let most_steps = self.tokens.len().saturating_mul(64).max(1 << 20);
        let most_members = self.tokens.len().saturating_mul(16).max(1 << 16);
        let mut steps = 0;
        let mut starts = Vec::with_capacity(self.tokens.len() + 1);
        let mut members = Vec::with_capacity(self.tokens.len().saturating_mul(self.replication_factor.min(8)));
        let mut scratch = Scratch::default();
        starts.push(0);
        for at in 0..self.tokens.len() {
            steps += self.walk(at, extension, &mut scratch);
            members.extend_from_slice(&scratch.members);
            if steps > most_steps || members.len() > most_members {
                return Table::Walk;
            }
            starts.push(members.len() as u32);
        }
        Table::Ready { starts, members }
    }

    /// Collects the replicas of the token at `start` by walking the circle: distinct instances, with zone awareness
    /// one a zone, and one more for each that is in a state of `extension`. Returns how many tokens it looked at.
    ///
    /// It ends when the set is full or when no further token could add to it; dskit walks the rest of the circle in
    /// the latter case, for the same result.
    fn walk(&self, start: usize, extension: u32, scratch: &mut Scratch) -> usize {
        let Scratch { seen, zones, members } = scratch;
        members.clear();
        seen.clear();
        seen.resize(self.states.len().div_ceil(64), 0);
        zones.clear();
        zones.resize(self.owners_in_zone.len(), Zone::default());
        let mut limit = self.replication_factor;
        let mut open_zones = self.owners_in_zone.iter().filter(|owners| **owners > 0).count();
        let mut open_without_zone = self.owners_without_zone;

        let (before, after) = self.owners.split_at(start);
        for (step, owner) in after.iter().chain(before).enumerate() {
            if members.len() >= limit.min(self.owning) || (self.zone_aware && open_zones == 0 && open_without_zone == 0)
            {
                return step;
            }
            let index = *owner as usize;
            let (word, bit) = (index / 64, 1_u64 << (index % 64));
            if seen[word] & bit != 0 {
                continue;
            }
            let extends = has_bit(extension, self.states[index]);
            match zones.get_mut(self.zone_of[index] as usize) {
                Some(zone) if self.zone_aware => {
                    if zone.found > 0 {
                        continue;
                    }
                    zone.examined += 1;
                    // One that is coming or going does not fill its zone's place: the extra one comes from there.
                    zone.found += u32::from(!extends);
                    let owners = self.owners_in_zone[self.zone_of[index] as usize];
                    if !zone.done && (zone.found > 0 || zone.examined >= owners) {
                        zone.done = true;
                        open_zones -= 1;
                    }
                }
                Some(_) => {}
                None => open_without_zone -= 1,
            }
            seen[word] |= bit;
            members.push(*owner);
            limit += usize::from(extends);
        }
        self.owners.len()
    }

    /// How much of the circle each instance owns, out of 2^32, counted within its zone as dskit does: the width from
    /// the previous token of the same zone. Over all instances of one zone it adds up to 2^32.
    pub(super) fn owned_widths(&self) -> Vec<u64> {
        let mut widths = vec![0; self.states.len()];
        // By zone: the first and the last token seen. `""` comes last.
        let mut ends: Vec<Option<(u32, u32, u32)>> = vec![None; self.owners_in_zone.len() + 1];
        let slot = |owner: u32| (self.zone_of[owner as usize] as usize).min(self.owners_in_zone.len());
        for (token, owner) in self.tokens.iter().zip(&self.owners) {
            let end = &mut ends[slot(*owner)];
            match end {
                Some((_, _, last)) => {
                    widths[*owner as usize] += u64::from(token - *last);
                    *last = *token;
                }
                None => *end = Some((*token, *owner, *token)),
            }
        }
        for (first, owner, last) in ends.into_iter().flatten() {
            widths[owner as usize] += (1_u64 << 32) - u64::from(last - first);
        }
        widths
    }
}
