//! A ready-made mergeable value: a map whose entries are written last-writer-wins.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, DeserializeOwned, Deserializer};
use serde::ser::Serialize;

use super::cbor::CborCodec;
use super::value::Mergeable;
use crate::clock::Now;

/// Id of the codec that [`LwwMap::codec`] makes.
pub const LWW_MAP_CODEC: &str = "annulus.lwwmap";

/// Entries stamped further ahead of our clock than this (24 hours, in microseconds) are not taken: they would win
/// over every write for that long.
const MAX_AHEAD_MICROS: i64 = 24 * 60 * 60 * 1_000_000;

/// A map from names to values in which the latest write of each entry wins.
///
/// Each entry carries the time of its last write in microseconds since the Unix epoch. The greater stamp wins; on
/// equal stamps a removal wins over a value, and of two values the one whose CBOR encoding is greater. So any two
/// replicas agree, as long as equal values have equal encodings (no `HashMap` inside `V`). A removed entry stays
/// behind as a tombstone until the store forgets it. Entries stamped more than 24 hours ahead of our clock are not
/// taken from others.
///
/// In a compare-and-swap, change the map that the callback was given: [`LwwMap::insert`] then stamps later than the
/// write that it replaces, even if that came from a faster clock.
///
/// ```
/// use annulus::clock::Now;
/// use annulus::kv::{LwwMap, Mergeable};
///
/// let now = Now::read();
/// let (mut here, mut there) = (LwwMap::new(), LwwMap::new());
/// here.insert(now, "colour", "red".to_string());
/// there.insert(now, "size", "large".to_string());
/// here.join(&there, now);
/// assert_eq!(here.iter().count(), 2);
///
/// here.remove(now, "colour");
/// there.join(&here, now);
/// assert_eq!(there.get("colour"), None);
/// ```
#[derive(Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(transparent, bound(serialize = "V: Serialize", deserialize = "V: Deserialize<'de>"))]
pub struct LwwMap<V> {
    entries: BTreeMap<String, Slot<V>>,
}

/// One entry. Without a value it is a tombstone.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(bound(serialize = "V: Serialize", deserialize = "V: Deserialize<'de>"))]
struct Slot<V> {
    /// Left out for a tombstone. A value that serialises as null is not one: hence the presence, not the null, decides.
    #[serde(default = "Option::default", skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    value: Option<V>,
    /// Microseconds since the Unix epoch.
    stamp: i64,
}

fn present<'de, V: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<V>, D::Error> {
    V::deserialize(deserializer).map(Some)
}

/// What a value of a [`LwwMap`] must be able to do.
///
/// Implemented for every type that qualifies. `Serialize` must be deterministic.
pub trait LwwValue: Clone + fmt::Debug + PartialEq + Serialize + DeserializeOwned + Send + Sync + 'static {}

impl<V: Clone + fmt::Debug + PartialEq + Serialize + DeserializeOwned + Send + Sync + 'static> LwwValue for V {}

fn micros(now: Now) -> i64 {
    i64::try_from(now.unix.as_micros()).unwrap_or(i64::MAX)
}

impl<V: LwwValue> Slot<V> {
    /// The order of writes: total up to equality of encodings.
    fn order(&self, other: &Self) -> Ordering {
        self.stamp.cmp(&other.stamp).then_with(|| match (&self.value, &other.value) {
            (None, None) => Ordering::Equal,
            (None, Some(_)) => Ordering::Greater,
            (Some(_), None) => Ordering::Less,
            (Some(mine), Some(theirs)) if mine == theirs => Ordering::Equal,
            (Some(mine), Some(theirs)) => encoding(mine).cmp(&encoding(theirs)),
        })
    }
}

/// A value that does not encode sorts first; it cannot be sent either, so only one replica can hold it.
fn encoding<V: Serialize>(value: &V) -> Option<Vec<u8>> {
    serde_cbor::to_vec(value).ok()
}

impl<V> LwwMap<V> {
    /// An empty map.
    #[must_use]
    pub const fn new() -> Self {
        Self { entries: BTreeMap::new() }
    }

    /// The value of an entry.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&V> {
        self.entries.get(key).and_then(|slot| slot.value.as_ref())
    }

    /// All entries, in order of their names. Tombstones are left out.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &V)> {
        self.entries.iter().filter_map(|(key, slot)| Some((key.as_str(), slot.value.as_ref()?)))
    }

    /// How many entries there are, tombstones not counted. Takes time in proportion to the size.
    #[must_use]
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// Whether there is no entry. ([`Mergeable::is_empty`] counts tombstones as well.)
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// When an entry was last written or removed, in microseconds since the Unix epoch.
    #[must_use]
    pub fn stamp(&self, key: &str) -> Option<i64> {
        self.entries.get(key).map(|slot| slot.stamp)
    }

    /// Writes an entry. Its stamp is `now`, or just after the write that it replaces if that is later.
    pub fn insert(&mut self, now: Now, key: impl Into<String>, value: V) {
        self.write(now, key.into(), Some(value));
    }

    /// Removes an entry and returns its value. A tombstone remains; an entry that does not exist leaves none.
    pub fn remove(&mut self, now: Now, key: &str) -> Option<V> {
        let value = self.entries.get_mut(key)?.value.take()?;
        self.write(now, key.to_owned(), None);
        Some(value)
    }

    fn write(&mut self, now: Now, key: String, value: Option<V>) {
        let earliest = self.entries.get(&key).map_or(i64::MIN, |slot| slot.stamp.saturating_add(1));
        self.entries.insert(key, Slot { value, stamp: micros(now).max(earliest) });
    }
}

impl<V: LwwValue> LwwMap<V> {
    /// The codec for maps of this type: CBOR, with the id [`LWW_MAP_CODEC`].
    ///
    /// Its JSON form shows the stamps: `{"entry": {"value": …, "stamp": …}}`, without `value` for a tombstone. For
    /// plain JSON use [`LwwMap::from_plain_json`].
    #[must_use]
    pub fn codec() -> CborCodec<Self> {
        CborCodec::new(LWW_MAP_CODEC)
    }

    /// A map from plain JSON, `{"entry": value}`, every entry written `now`. To be joined, or given to a
    /// compare-and-swap.
    ///
    /// # Errors
    /// When a value is not a `V`.
    pub fn from_plain_json(now: Now, json: serde_json::Map<String, serde_json::Value>) -> serde_json::Result<Self> {
        let stamp = micros(now);
        let slot = |(key, json)| Ok((key, Slot { value: Some(serde_json::from_value(json)?), stamp }));
        Ok(Self { entries: json.into_iter().map(slot).collect::<serde_json::Result<_>>()? })
    }
}

impl<V: LwwValue> Mergeable for LwwMap<V> {
    fn join(&mut self, other: &Self, now: Now) -> Option<Self> {
        let latest = micros(now).saturating_add(MAX_AHEAD_MICROS);
        let mut change = BTreeMap::new();
        for (key, slot) in &other.entries {
            let newer = self.entries.get(key).is_none_or(|mine| slot.order(mine).is_gt());
            if newer && slot.stamp <= latest {
                self.entries.insert(key.clone(), slot.clone());
                change.insert(key.clone(), slot.clone());
            }
        }
        (!change.is_empty()).then_some(Self { entries: change })
    }

    fn delta(&self, base: Option<&Self>, now: Now) -> Option<Self> {
        let mut delta = Self::new();
        delta.join(self, now);
        if let Some(base) = base {
            delta.entries.retain(|key, slot| base.entries.get(key).is_none_or(|old| slot.order(old).is_gt()));
            for (key, old) in &base.entries {
                // An absent tombstone is not a removal: readers are given maps without them.
                if old.value.is_some() && !self.entries.contains_key(key) {
                    let stamp = micros(now).max(old.stamp.saturating_add(1));
                    delta.entries.insert(key.clone(), Slot { value: None, stamp });
                }
            }
        }
        (!delta.entries.is_empty()).then_some(delta)
    }

    fn content(&self) -> Vec<String> {
        self.entries.keys().cloned().collect()
    }

    fn remove_tombstones(&mut self, before_unix_secs: Option<i64>) -> usize {
        let before = before_unix_secs.map(|secs| secs.saturating_mul(1_000_000));
        let all = self.entries.len();
        self.entries.retain(|_, slot| slot.value.is_some() || before.is_some_and(|before| slot.stamp >= before));
        all - self.entries.len()
    }

    fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl<V> Default for LwwMap<V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<V: fmt::Debug> fmt::Debug for LwwMap<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries = self.entries.iter().map(|(key, slot)| (key, (slot.value.as_ref(), slot.stamp)));
        f.debug_map().entries(entries).finish()
    }
}

#[cfg(test)]
#[path = "lww_tests.rs"]
mod tests;
