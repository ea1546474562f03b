//! A codec for any mergeable value that serde can serialise: CBOR on the wire, JSON for people.

use std::marker::PhantomData;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::codec::{Codec, CodecError};
use super::pair::MAX_VALUE_LEN;
use super::value::{Mergeable, Value};

/// Encodes values of type `T` as CBOR.
///
/// Two replicas are compared by their bytes in places, so the encoding should be canonical: keep maps in a
/// `BTreeMap`, not a `HashMap`.
///
/// ```
/// use annulus::kv::{CborCodec, Codec, LwwMap, Value};
///
/// let codec = CborCodec::<LwwMap<u32>>::new("my-app.limits");
/// let value = codec.parse_json(serde_json::json!({"burst": {"value": 10, "stamp": 1}}))?;
/// assert_eq!(value.downcast_ref::<LwwMap<u32>>().and_then(|map| map.get("burst")), Some(&10));
/// let bytes = codec.encode(&value)?;
/// assert_eq!(codec.to_json(&codec.decode(&bytes)?)?, codec.to_json(&value)?);
/// # Ok::<(), annulus::kv::CodecError>(())
/// ```
pub struct CborCodec<T> {
    id: String,
    value: PhantomData<fn() -> T>,
}

impl<T> CborCodec<T> {
    /// A codec with this id. The id travels with every value: all nodes must use the same one for the same type.
    pub fn new(id: impl Into<String>) -> Self {
        Self { id: id.into(), value: PhantomData }
    }

    fn error(&self, reason: impl ToString) -> CodecError {
        CodecError::new(&self.id, reason.to_string())
    }
}

impl<T: Mergeable> CborCodec<T> {
    fn typed<'a>(&self, value: &'a Value) -> Result<&'a T, CodecError> {
        value.downcast_ref().ok_or_else(|| self.error("the value is of another type"))
    }
}

impl<T: Mergeable + Serialize + DeserializeOwned> Codec for CborCodec<T> {
    fn id(&self) -> &str {
        &self.id
    }

    fn encode(&self, value: &Value) -> Result<Vec<u8>, CodecError> {
        serde_cbor::to_vec(self.typed(value)?).map_err(|error| self.error(error))
    }

    fn decode(&self, bytes: &[u8]) -> Result<Value, CodecError> {
        if bytes.len() > MAX_VALUE_LEN {
            return Err(self.error(format!("{} bytes are more than the limit of {MAX_VALUE_LEN}", bytes.len())));
        }
        // The decoder limits nesting to 128 levels, and serde caps what it allocates on the word of a length.
        serde_cbor::from_slice::<T>(bytes).map(Value::new).map_err(|error| self.error(error))
    }

    fn empty(&self) -> Option<Value> {
        // `T` need not have a default, but what holds entries is a map or a list to serde.
        const EMPTY_MAP: &[u8] = &[0xa0];
        const EMPTY_LIST: &[u8] = &[0x80];
        let decode = |bytes: &&[u8]| serde_cbor::from_slice::<T>(bytes).ok().filter(T::is_empty);
        [EMPTY_MAP, EMPTY_LIST].iter().find_map(decode).map(Value::new)
    }

    fn to_json(&self, value: &Value) -> Result<serde_json::Value, CodecError> {
        serde_json::to_value(self.typed(value)?).map_err(|error| self.error(error))
    }

    fn parse_json(&self, json: serde_json::Value) -> Result<Value, CodecError> {
        serde_json::from_value::<T>(json).map(Value::new).map_err(|error| self.error(error))
    }
}

impl<T> Clone for CborCodec<T> {
    fn clone(&self) -> Self {
        Self::new(self.id.clone())
    }
}

impl<T> std::fmt::Debug for CborCodec<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CborCodec").field("id", &self.id).field("type", &std::any::type_name::<T>()).finish()
    }
}
