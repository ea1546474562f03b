//! The ring value: all instances with their tokens, states and heartbeats, as one store key holds them.
//!
//! It keeps what each instance wrote, unresolved: a token that two instances claim is in both lists, and only a
//! reader decides who owns it ([`super::tokens`]). That is what lets copies of the value merge in any order.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};

use super::codec::UnknownFields;

/// A ring: its instances by id.
///
/// Two things hold for every instance inside, and whoever writes the map by hand keeps them (see
/// [`Instance::normalize`]): tokens are sorted and distinct, and a LEFT entry has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desc {
    /// The instances by id, tombstones (LEFT) included.
    pub instances: BTreeMap<Arc<str>, Instance>,
    /// Fields of the ring itself that this version does not know.
    pub unknown: UnknownFields,
}

impl Desc {
    /// The instances that are in the ring: all but tombstones, in the order of their ids.
    pub fn live(&self) -> impl Iterator<Item = (&Arc<str>, &Instance)> {
        self.instances.iter().filter(|(_, instance)| !instance.state.is_left())
    }

    /// A fingerprint of everything but heartbeats and tombstones: the sum of [`Instance::digest`] over the instances
    /// that are in the ring. Equal rings have equal digests on every node, in every store and version of Annulus with
    /// the same rules.
    ///
    /// A sum has no order, and it is kept up by wrapping subtraction and addition when one instance changes.
    #[must_use]
    pub fn digest(&self) -> u128 {
        self.live().fold(0, |sum, (id, instance)| sum.wrapping_add(instance.digest(id)))
    }
}

/// The fingerprint of a ring value; see [`Desc::digest`].
#[must_use]
pub fn digest(desc: &Desc) -> u128 {
    desc.digest()
}

/// One instance of a ring. Its id is the key under which [`Desc`] keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Instance {
    /// Where others reach it, `host:port`.
    pub addr: String,
    /// Its last heartbeat, in seconds since the Unix epoch. The newer entry wins a merge.
    pub timestamp: i64,
    /// Its state.
    pub state: InstanceState,
    /// Its tokens as it wrote them: sorted, distinct; none when LEFT.
    #[serde(serialize_with = "serialize_tokens")]
    pub tokens: Arc<[u32]>,
    /// Its failure domain; empty when it has none.
    pub zone: String,
    /// When it first registered, in Unix seconds; 0 when that is not known, and then it stays 0.
    pub registered_timestamp: i64,
    /// When `read_only` was last switched, either way, in Unix seconds; 0 when never or not known.
    pub read_only_updated_timestamp: i64,
    /// Whether it takes reads only. Independent of the state; look-ups in the whole ring ignore it.
    pub read_only: bool,
    /// Versions of application features, by feature id.
    pub versions: BTreeMap<u64, u64>,
    /// Fields that this version does not know. They belong to the entry like the others and travel with it.
    #[serde(skip)]
    pub unknown: UnknownFields,
}

impl Instance {
    /// Sorts the tokens, drops repeated ones, and drops all of a LEFT instance.
    pub fn normalize(&mut self) {
        if self.state.is_left() {
            if !self.tokens.is_empty() {
                self.tokens = Arc::default();
            }
        } else if !self.tokens.is_sorted_by(|a, b| a < b) {
            let mut tokens = self.tokens.to_vec();
            tokens.sort_unstable();
            tokens.dedup();
            self.tokens = tokens.into();
        }
    }

    /// Orders two entries of the same instance: the greater one is the newer one and wins.
    ///
    /// By heartbeat, then LEFT over the rest, then how far the state is along its path, then content. The last step
    /// means nothing, but makes the order total: two entries are `Equal` only when they are the same. dskit keeps the
    /// local entry on equal heartbeats; it takes ours with the next one.
    #[must_use]
    pub fn version_cmp(&self, other: &Self) -> Ordering {
        self.timestamp
            .cmp(&other.timestamp)
            .then_with(|| self.state.is_left().cmp(&other.state.is_left()))
            .then_with(|| self.state.rank().cmp(&other.state.rank()))
            .then_with(|| self.state.number().cmp(&other.state.number()))
            .then_with(|| self.registered_timestamp.cmp(&other.registered_timestamp))
            .then_with(|| self.read_only_updated_timestamp.cmp(&other.read_only_updated_timestamp))
            .then_with(|| self.read_only.cmp(&other.read_only))
            .then_with(|| self.addr.cmp(&other.addr))
            .then_with(|| self.zone.cmp(&other.zone))
            .then_with(|| self.tokens.cmp(&other.tokens))
            .then_with(|| self.versions.cmp(&other.versions))
            .then_with(|| self.unknown.cmp(&other.unknown))
    }

    /// The tombstone that removes this entry at `now` (Unix seconds): newer than the entry whatever the clocks say.
    #[must_use]
    pub fn tombstone(&self, now: i64) -> Self {
        Self {
            state: InstanceState::Left,
            timestamp: now.max(self.timestamp.saturating_add(1)),
            tokens: Arc::default(),
            ..self.clone()
        }
    }

    /// Whether two entries differ in nothing but the heartbeat.
    #[must_use]
    pub fn same_content(&self, other: &Self) -> bool {
        self.state == other.state
            && self.addr == other.addr
            && self.zone == other.zone
            && self.registered_timestamp == other.registered_timestamp
            && self.read_only == other.read_only
            && self.read_only_updated_timestamp == other.read_only_updated_timestamp
            && self.versions == other.versions
            && self.unknown == other.unknown
            && (Arc::ptr_eq(&self.tokens, &other.tokens) || self.tokens == other.tokens)
    }

    /// What [`Desc::digest`] adds up: a hash of the instance under its id, without the heartbeat. Equal exactly when
    /// the two have the same id, address, zone, state, tokens, registration time, reads-only flag with its time, and
    /// feature versions. Fields that this version does not know are left out: one may change with every heartbeat.
    #[must_use]
    pub fn digest(&self, id: &str) -> u128 {
        let mut bytes = Vec::with_capacity(128 + 4 * self.tokens.len());
        // Each list after its length, so that no two instances have the same bytes.
        for text in [id, &self.addr, &self.zone] {
            bytes.extend((text.len() as u64).to_le_bytes());
            bytes.extend(text.as_bytes());
        }
        bytes.extend(self.state.number().to_le_bytes());
        bytes.extend(self.registered_timestamp.to_le_bytes());
        bytes.push(u8::from(self.read_only));
        bytes.extend(self.read_only_updated_timestamp.to_le_bytes());
        bytes.extend((self.versions.len() as u64).to_le_bytes());
        for (feature, version) in &self.versions {
            bytes.extend(feature.to_le_bytes());
            bytes.extend(version.to_le_bytes());
        }
        for token in self.tokens.iter() {
            bytes.extend(token.to_le_bytes());
        }
        Sha256::digest(&bytes).iter().take(16).fold(0, |sum, byte| sum << 8 | u128::from(*byte))
    }
}

/// Where an instance is on its way through a ring. Numbers as on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum InstanceState {
    /// 0: takes reads and writes.
    #[default]
    Active,
    /// 1: about to go; still takes reads.
    Leaving,
    /// 2: registered, without tokens of its own as yet.
    Pending,
    /// 3: has chosen its tokens and watches whether somebody else has them too.
    Joining,
    /// 4: gone. The entry is a tombstone, and readers leave it out.
    Left,
    /// Any other number, as it came. Passed on as it is and never taken for ACTIVE. (Cortex has READONLY = 5.)
    Unknown(i32),
}

impl InstanceState {
    /// The state with this number on the wire.
    #[must_use]
    pub const fn from_number(number: i32) -> Self {
        match number {
            0 => Self::Active,
            1 => Self::Leaving,
            2 => Self::Pending,
            3 => Self::Joining,
            4 => Self::Left,
            other => Self::Unknown(other),
        }
    }

    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> i32 {
        match self {
            Self::Active => 0,
            Self::Leaving => 1,
            Self::Pending => 2,
            Self::Joining => 3,
            Self::Left => 4,
            Self::Unknown(other) => other,
        }
    }

    /// Whether the entry is a tombstone.
    #[must_use]
    pub const fn is_left(self) -> bool {
        matches!(self, Self::Left)
    }

    /// How far along its path the state is; of two entries with the same heartbeat the farther one is the later one.
    #[must_use]
    pub const fn rank(self) -> u8 {
        match self {
            Self::Unknown(_) => 0,
            Self::Pending => 1,
            Self::Joining => 2,
            Self::Active => 3,
            Self::Leaving => 4,
            Self::Left => 5,
        }
    }
}

impl fmt::Display for InstanceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Active => f.pad("ACTIVE"),
            Self::Leaving => f.pad("LEAVING"),
            Self::Pending => f.pad("PENDING"),
            Self::Joining => f.pad("JOINING"),
            Self::Left => f.pad("LEFT"),
            Self::Unknown(number) => write!(f, "UNKNOWN({number})"),
        }
    }
}

impl Serialize for InstanceState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Shared slices need a feature of serde that nothing else here uses.
pub(super) fn serialize_tokens<S: Serializer>(tokens: &Arc<[u32]>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(tokens.iter())
}
