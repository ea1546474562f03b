//! Members, and the table of all that this node has heard of.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::RngExt;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;

use crate::wire::message::{Alive, MemberState, NodeName, PushNode, Vsn, WireIp};

/// The most members that a table takes: as many as one push/pull. Beyond it new names take the places of the dead, or are
/// refused and counted, so that forged announcements cannot use up the memory.
pub const MAX_MEMBERS: usize = crate::wire::stream::MAX_PUSH_NODES;

/// A member of the cluster as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name, unique in the cluster.
    pub name: NodeName,
    /// Its address exactly as it announced it.
    pub addr: WireIp,
    /// Its port.
    pub port: u16,
    /// What its application says about it.
    pub meta: Bytes,
    /// The highest incarnation heard of.
    pub incarnation: u32,
    /// What we think of it.
    pub state: MemberState,
    /// Its protocol versions.
    pub vsn: Vsn,
    /// When `state` last changed.
    pub since: Instant,
}

impl Member {
    /// Where to reach it; `None` when it announced no address.
    #[must_use]
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        self.addr.to_ip().map(|ip| SocketAddr::new(ip, self.port))
    }

    /// Whether it is alive or suspect: a member that counts.
    #[must_use]
    pub fn is_live(&self) -> bool {
        matches!(self.state, MemberState::Alive | MemberState::Suspect)
    }

    /// Whether it speaks at least this protocol version.
    pub(super) fn speaks(&self, version: u8) -> bool {
        self.vsn[1] >= version
    }

    /// Whether it announced this address; the two forms of an IPv4 address count as one.
    pub(super) fn has_address(&self, addr: WireIp, port: u16) -> bool {
        self.port == port && (self.addr == addr || self.addr.to_ip() == addr.to_ip())
    }

    pub(super) fn to_alive(&self) -> Alive {
        Alive {
            incarnation: self.incarnation,
            node: self.name.clone(),
            addr: self.addr,
            port: self.port,
            meta: self.meta.clone(),
            vsn: Some(self.vsn),
        }
    }

    pub(super) fn to_push_node(&self) -> PushNode {
        PushNode {
            name: self.name.clone(),
            addr: self.addr,
            port: self.port,
            meta: self.meta.clone(),
            incarnation: self.incarnation,
            state: Some(self.state),
            vsn: Some(self.vsn),
        }
    }
}

/// Whether a node with the versions `own` and a member with those of `other` can understand each other: each speaks a
/// protocol and a delegate version that lies in the other's range.
pub(super) fn is_compatible(own: &Vsn, other: &Vsn) -> bool {
    let [pmin, pmax, pcur, dmin, dmax, dcur] = *other;
    let protocol = pmin > 0 && (pmin..=pmax).contains(&own[2]) && (own[0]..=own[1]).contains(&pcur);
    let delegate = (dmin..=dmax).contains(&own[5]) && (own[3]..=own[4]).contains(&dcur);
    protocol && delegate
}

/// All members in a random order, which is also the order in which they are probed.
///
/// Each is shared with those to whom the table was shown: in a process with many nodes that is half of their memory.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    members: Vec<Arc<Member>>,
    index: HashMap<NodeName, usize>,
}

impl Table {
    /// Everyone, the dead and those who left included: the size that the protocol's formulas use.
    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Member>> {
        self.members.iter()
    }

    pub(super) fn at(&self, position: usize) -> Option<&Arc<Member>> {
        self.members.get(position)
    }

    pub(super) fn get(&self, name: &NodeName) -> Option<&Arc<Member>> {
        self.members.get(*self.index.get(name)?)
    }

    /// Changes a member, and returns it as it is then. What was shown of it before stays as it was.
    pub(super) fn change(&mut self, name: &NodeName, change: impl FnOnce(&mut Member)) -> Option<Arc<Member>> {
        let member = self.members.get_mut(*self.index.get(name)?)?;
        change(Arc::make_mut(member));
        Some(Arc::clone(member))
    }

    /// Adds a member at a random place, so that two nodes never probe in the same order. The name must be new.
    pub(super) fn insert(&mut self, member: Arc<Member>, rng: &mut SmallRng) {
        let last = self.members.len();
        let place = rng.random_range(0..=last);
        self.members.push(member);
        self.members.swap(place, last);
        for position in [place, last] {
            self.index.insert(self.members[position].name.clone(), position);
        }
    }

    /// Forgets members that have been dead or left for longer than `after` (never `keep`), and shuffles the rest.
    /// Returns the forgotten.
    pub(super) fn reap(
        &mut self,
        keep: &NodeName,
        after: Duration,
        now: Instant,
        rng: &mut SmallRng,
    ) -> Vec<Arc<Member>> {
        let old = |m: &Arc<Member>| m.name != *keep && !m.is_live() && now.saturating_duration_since(m.since) > after;
        let (gone, mut kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.members).into_iter().partition(old);
        kept.shuffle(rng);
        self.index = kept.iter().enumerate().map(|(i, m)| (m.name.clone(), i)).collect();
        self.members = kept;
        gone
    }

    /// Forgets the half of the dead and the left (never `keep`) that has been so for longest, rounded up. Returns the
    /// forgotten.
    pub(super) fn forget_older_half_of_the_dead(&mut self, keep: &NodeName) -> Vec<Arc<Member>> {
        let mut ages: Vec<_> =
            self.members.iter().filter(|m| m.name != *keep && !m.is_live()).map(|m| m.since).collect();
        if ages.is_empty() {
            return Vec::new();
        }
        let middle = (ages.len() - 1) / 2;
        let (_, newest_to_go, _) = ages.select_nth_unstable(middle);
        let newest_to_go = *newest_to_go;
        let old = |m: &Arc<Member>| m.name != *keep && !m.is_live() && m.since <= newest_to_go;
        let (gone, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.members).into_iter().partition(old);
        self.index = kept.iter().enumerate().map(|(i, m)| (m.name.clone(), i)).collect();
        self.members = kept;
        gone
    }

    /// Up to `count` different random members that satisfy `wanted`.
    pub(super) fn random(
        &self,
        count: usize,
        rng: &mut SmallRng,
        wanted: impl Fn(&Member) -> bool,
    ) -> Vec<Arc<Member>> {
        let len = self.members.len();
        if count == 0 || len == 0 {
            return Vec::new();
        }
        // Walking the table once from a random place would favour neighbours of the unwanted; a partial shuffle of
        // positions does not. In large tables a bounded number of draws finds enough without touching all of it.
        if len < 3 * count.max(16) {
            let mut order: Vec<usize> = (0..len).collect();
            order.shuffle(rng);
            return order.into_iter().filter_map(|i| self.at(i)).filter(|m| wanted(m)).take(count).cloned().collect();
        }
        let mut chosen: Vec<usize> = Vec::with_capacity(count);
        for _ in 0..3 * len {
            if chosen.len() == count {
                break;
            }
            let i = rng.random_range(0..len);
            if !chosen.contains(&i) && wanted(&self.members[i]) {
                chosen.push(i);
            }
        }
        chosen.into_iter().filter_map(|i| self.at(i)).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;
    use crate::clock::Now;
    use crate::wire::message::VSN;

    fn member(i: usize, state: MemberState, since: Instant) -> Arc<Member> {
        Arc::new(Member {
            name: NodeName::from(format!("n{i}")),
            addr: WireIp::NONE,
            port: 1,
            meta: Bytes::new(),
            incarnation: 1,
            state,
            vsn: VSN,
            since,
        })
    }

    #[test]
    fn reaping_forgets_only_those_dead_or_left_for_long_and_never_oneself() {
        let mut rng = SmallRng::seed_from_u64(1);
        let old = Now::read();
        let now = old + Duration::from_secs(31);
        let recent = (old + Duration::from_secs(10)).mono;
        let mut table = Table::default();
        use MemberState::{Alive, Dead, Left, Suspect};
        let rows = [
            (Left, old.mono),
            (Dead, old.mono),
            (Left, old.mono),
            (Dead, recent),
            (Alive, old.mono),
            (Suspect, old.mono),
        ];
        for (i, (state, since)) in rows.into_iter().enumerate() {
            table.insert(member(i, state, since), &mut rng);
        }
        let mut gone: Vec<String> = table
            .reap(&NodeName::from("n0"), Duration::from_secs(30), now.mono, &mut rng)
            .into_iter()
            .map(|m| m.name.to_string())
            .collect();
        gone.sort();
        assert_eq!(gone, ["n1", "n2"]);
        for i in [0, 3, 4, 5] {
            let name = NodeName::from(format!("n{i}"));
            assert_eq!(table.get(&name).map(|m| m.name.clone()), Some(name));
        }
    }

    #[test]
    fn random_members_are_distinct_and_wanted_in_small_and_large_tables() {
        let mut rng = SmallRng::seed_from_u64(2);
        let now = Now::read().mono;
        for size in [3, 200] {
            let mut table = Table::default();
            for i in 0..size {
                let state = if i % 2 == 0 { MemberState::Alive } else { MemberState::Dead };
                table.insert(member(i, state, now), &mut rng);
            }
            for _ in 0..100 {
                let mut names: Vec<_> = table
                    .random(3, &mut rng, |m| m.state == MemberState::Alive)
                    .into_iter()
                    .map(|m| m.name.clone())
                    .collect();
                assert_eq!(names.len(), 3.min(size.div_ceil(2)));
                names.sort();
                names.dedup();
                assert_eq!(names.len(), 3.min(size.div_ceil(2)));
            }
        }
    }

    #[test]
    fn versions_must_overlap_both_ways() {
        assert!(is_compatible(&VSN, &VSN));
        assert!(is_compatible(&VSN, &[1, 2, 2, 0, 3, 0]));
        for bad in [
            [0, 0, 0, 0, 0, 0],
            [3, 5, 3, 0, 0, 0],
            [1, 1, 1, 0, 0, 0],
            [1, 5, 6, 0, 0, 0],
            [5, 1, 2, 0, 0, 0],
            [1, 5, 2, 2, 5, 5],
            [1, 5, 2, 0, 5, 4],
        ] {
            assert!(!is_compatible(&VSN, &bad), "{bad:?}");
        }
        let serf = crate::swim::SwimConfig { delegate_versions: [2, 5, 5], ..Default::default() }.vsn();
        assert_eq!(serf, [1, 5, 2, 2, 5, 5]);
        assert!(is_compatible(&serf, &[1, 5, 2, 2, 5, 4]) && !is_compatible(&serf, &VSN));
    }
}
