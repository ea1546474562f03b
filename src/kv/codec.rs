//! Codecs: how a value becomes the bytes that a store or a peer keeps, and which codec belongs to which key.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use super::admission::{Admitted, Known};
use super::value::{Joined, TypeMismatch, Value};
use crate::clock::Now;

/// Translates one type of value.
///
/// The id travels with every gossiped value, so it is part of the protocol (`ringDesc` for rings).
pub trait Codec: Send + Sync + 'static {
    /// The name on the wire.
    fn id(&self) -> &str;

    /// Encodes a value.
    ///
    /// # Errors
    /// [`CodecError`] when the value is of another type.
    fn encode(&self, value: &Value) -> Result<Vec<u8>, CodecError>;

    /// Decodes bytes that may come from anywhere.
    ///
    /// # Errors
    /// [`CodecError`] when they are not a value of this codec or exceed its limits. Never panics, and never allocates
    /// more than the bytes justify.
    fn decode(&self, bytes: &[u8]) -> Result<Value, CodecError>;

    /// A value with nothing inside, which the gossip store keeps for a key that was deleted before it heard what was in
    /// it. `None`, the default, when the type has no such value: then such a delete is not passed on.
    fn empty(&self) -> Option<Value> {
        None
    }

    /// Joins an update into a stored value. The default is [`Value::join`].
    ///
    /// A codec of values that others store by rules of their own can follow those rules here: every store asks it when
    /// it writes. Updates on their way between two stores are joined by [`Value::join`] all the same, because there the
    /// order is nobody's.
    ///
    /// # Errors
    /// [`TypeMismatch`] when the two are of different types.
    fn join(&self, stored: &Value, update: &Value, now: Now) -> Result<Joined, TypeMismatch> {
        stored.join(update, now)
    }

    /// What of a value from another node may be joined; see [`super::admission`]. The default is all of it.
    fn admit(&self, incoming: Value, known: Known<'_>, now: Now) -> Admitted {
        let _ = (known, now);
        incoming.into()
    }

    /// The value for people and scripts.
    ///
    /// # Errors
    /// [`CodecError`] when the value is of another type.
    fn to_json(&self, value: &Value) -> Result<serde_json::Value, CodecError>;

    /// The value that a person or script sent; the inverse of [`Codec::to_json`] where that makes sense.
    ///
    /// # Errors
    /// [`CodecError`] when the codec does not take JSON, or not this.
    fn parse_json(&self, json: serde_json::Value) -> Result<Value, CodecError> {
        let _ = json;
        Err(CodecError::new(self.id(), "values of this codec cannot be written as JSON"))
    }
}

/// Bytes or a value that a codec does not take. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("codec {codec}: {reason}")]
pub struct CodecError {
    /// Which codec.
    pub codec: String,
    /// What is wrong.
    pub reason: String,
}

impl CodecError {
    /// An error of this codec.
    pub fn new(codec: &str, reason: impl Into<String>) -> Self {
        Self { codec: codec.to_owned(), reason: reason.into() }
    }
}

/// The codecs of one node, by id and by key.
#[derive(Default)]
pub struct Codecs {
    routes: RwLock<Vec<(String, Arc<dyn Codec>)>>,
    registered: AtomicU64,
}

impl Codecs {
    /// Registers `codec` for every key that begins with `prefix` (a whole key is a prefix of itself). The longest
    /// matching prefix wins; registering the same prefix again replaces its codec.
    pub fn register(&self, prefix: &str, codec: Arc<dyn Codec>) {
        let mut routes = self.routes.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        routes.retain(|(known, _)| known != prefix);
        routes.push((prefix.to_owned(), codec));
        routes.sort_by(|a, b| b.0.len().cmp(&a.0.len()).then_with(|| a.0.cmp(&b.0)));
        self.registered.fetch_add(1, Ordering::Release);
    }

    /// The codec for a key.
    #[must_use]
    pub fn for_key(&self, key: &str) -> Option<Arc<dyn Codec>> {
        let routes = self.routes.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        routes.iter().find(|(prefix, _)| key.starts_with(prefix.as_str())).map(|(_, codec)| codec.clone())
    }

    /// The codec for a key, if it is the one that the wire named.
    #[must_use]
    pub fn for_key_and_id(&self, key: &str, id: &str) -> Option<Arc<dyn Codec>> {
        self.for_key(key).filter(|codec| codec.id() == id)
    }

    /// How many times a codec was registered: whoever follows the prefixes sees by it that they may have changed.
    pub(crate) fn registered(&self) -> u64 {
        self.registered.load(Ordering::Acquire)
    }

    /// All registered prefixes: the part of a shared store that is ours.
    #[must_use]
    pub fn prefixes(&self) -> Vec<String> {
        let routes = self.routes.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        routes.iter().map(|(prefix, _)| prefix.clone()).collect()
    }
}

impl std::fmt::Debug for Codecs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.prefixes()).finish()
    }
}
