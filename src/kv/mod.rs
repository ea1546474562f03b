//! The key-value store: the contract of a store, mergeable values and their codecs, and the gossip store's core.
//!
//! - [`store`]: what every store keeps, whether it gossips, talks to Consul, or lives in this process.
//! - [`value`], [`codec`]: what is stored, and how it becomes bytes. [`lww`] is a value ready to use, [`cbor`] a codec
//!   for any value that serde knows.
//! - [`typed`]: the client that applications use.
//! - [`gossip`], [`pair`]: the gossip store and its wire form.

pub mod admission;
pub mod cbor;
pub mod codec;
pub mod gossip;
pub mod lww;
pub mod pair;
pub mod store;
pub mod typed;
pub mod value;

pub use admission::{Admitted, Known, Refused};
pub use cbor::CborCodec;
pub use codec::{Codec, CodecError, Codecs};
pub use gossip::{GossipConfig, GossipStore};
pub use lww::{LwwMap, LwwValue};
pub use store::{
    BoxFuture, CasAction, CasFn, CasOutcome, Entry, KeyChange, SharedStore, Store, StoreError, StoreKind, UnknownStore,
    ValueSize, Watch,
};
pub use typed::Kv;
pub use value::{Joined, Mergeable, TypeMismatch, Value};
