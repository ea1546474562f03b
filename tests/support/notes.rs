//! A small mergeable value for tests of stores: named texts, of which the one that was written last wins.

use std::collections::BTreeMap;

use annulus::clock::Now;
use annulus::kv::{Codec, CodecError, Mergeable, Value};
use serde::{Deserialize, Serialize};

/// Texts by name. A missing text is a tombstone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notes(BTreeMap<String, Note>);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Note {
    /// Milliseconds since the Unix epoch, or one more than the note that this one replaces.
    at: i64,
    text: Option<String>,
}

impl Notes {
    /// The notes of a value, none for a missing one.
    ///
    /// # Panics
    /// When the value is of another type.
    pub fn of(value: Option<&Value>) -> Self {
        value.map(|value| value.downcast_ref::<Self>().unwrap().clone()).unwrap_or_default()
    }

    /// One note, written at a moment.
    pub fn dated(name: &str, text: &str, at: i64) -> Self {
        Self(BTreeMap::from([(name.to_owned(), Note { at, text: Some(text.to_owned()) })]))
    }

    /// A tombstone.
    pub fn removed(name: &str, at: i64) -> Self {
        Self(BTreeMap::from([(name.to_owned(), Note { at, text: None })]))
    }

    /// The text under a name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.text.as_deref()
    }

    /// Changes a text; its date is set when the change is stored.
    pub fn set(&mut self, name: &str, text: &str) {
        self.0.insert(name.to_owned(), Note { at: 0, text: Some(text.to_owned()) });
    }

    /// Takes a name out, as if it had never been there.
    pub fn forget(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// Whether there is a tombstone of this name.
    pub fn is_removed(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|note| note.text.is_none())
    }
}

impl Mergeable for Notes {
    fn join(&mut self, other: &Self, _: Now) -> Option<Self> {
        let news: BTreeMap<_, _> = other
            .0
            .iter()
            .filter(|(name, note)| self.0.get(*name).is_none_or(|mine| mine < note))
            .map(|(name, note)| (name.clone(), note.clone()))
            .collect();
        self.0.extend(news.clone());
        (!news.is_empty()).then_some(Self(news))
    }

    fn delta(&self, base: Option<&Self>, now: Now) -> Option<Self> {
        let none = Self::default();
        let base = base.unwrap_or(&none);
        let stamp = |name: &String| base.0.get(name).map_or(0, |old| old.at + 1).max(now.unix_millis());
        let mut delta = BTreeMap::new();
        for (name, note) in &self.0 {
            if base.0.get(name).is_none_or(|old| old.text != note.text) {
                delta.insert(name.clone(), Note { at: note.at.max(stamp(name)), text: note.text.clone() });
            }
        }
        for (name, old) in &base.0 {
            if old.text.is_some() && !self.0.contains_key(name) {
                delta.insert(name.clone(), Note { at: stamp(name), text: None });
            }
        }
        (!delta.is_empty()).then_some(Self(delta))
    }

    fn content(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    fn remove_tombstones(&mut self, before_unix_secs: Option<i64>) -> usize {
        let count = self.0.len();
        self.0.retain(|_, note| note.text.is_some() || before_unix_secs.is_some_and(|before| note.at / 1000 >= before));
        count - self.0.len()
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// JSON as it is.
pub struct NotesCodec;

impl Codec for NotesCodec {
    fn id(&self) -> &str {
        "notes"
    }

    fn encode(&self, value: &Value) -> Result<Vec<u8>, CodecError> {
        let notes = value.downcast_ref::<Notes>().ok_or_else(|| CodecError::new("notes", "not notes"))?;
        serde_json::to_vec(notes).map_err(|error| CodecError::new("notes", error.to_string()))
    }

    fn decode(&self, bytes: &[u8]) -> Result<Value, CodecError> {
        let notes: Notes =
            serde_json::from_slice(bytes).map_err(|error| CodecError::new("notes", error.to_string()))?;
        Ok(Value::new(notes))
    }

    fn to_json(&self, value: &Value) -> Result<serde_json::Value, CodecError> {
        serde_json::from_slice(&self.encode(value)?).map_err(|error| CodecError::new("notes", error.to_string()))
    }
}
