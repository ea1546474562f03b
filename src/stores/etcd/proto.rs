//! The messages of etcd's version 3 API that the store needs, written by hand.
//!
//! Names and field numbers are those of `api/etcdserverpb/rpc.proto` and `api/mvccpb/kv.proto` in etcd (checked with
//! 3.5.16; the same since 3.4). Fields that nobody here sends or reads are left out: a reader skips what it does not
//! know. Where etcd has a `oneof`, the one branch that is used stands here as an optional field, which looks the same on
//! the wire, also for a zero.

use prost::Message;

/// The paths of the calls.
pub(super) mod path {
    pub(in super::super) const RANGE: &str = "/etcdserverpb.KV/Range";
    pub(in super::super) const TXN: &str = "/etcdserverpb.KV/Txn";
    pub(in super::super) const DELETE_RANGE: &str = "/etcdserverpb.KV/DeleteRange";
    pub(in super::super) const WATCH: &str = "/etcdserverpb.Watch/Watch";
    pub(in super::super) const AUTHENTICATE: &str = "/etcdserverpb.Auth/Authenticate";
}

/// Part of every answer.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(super) struct ResponseHeader {
    #[prost(uint64, tag = "1")]
    pub(super) cluster_id: u64,
    /// Of the whole store when the answer was made.
    #[prost(int64, tag = "3")]
    pub(super) revision: i64,
}

/// mvccpb.KeyValue
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct KeyValue {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) key: Vec<u8>,
    /// Revision of the last write to the key. `version`, field 4, counts from 1 again after a deletion: not for us.
    #[prost(int64, tag = "3")]
    pub(super) mod_revision: i64,
    #[prost(bytes = "vec", tag = "5")]
    pub(super) value: Vec<u8>,
}

/// Reads a key, or all from `key` up to, but without, `range_end`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct RangeRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) range_end: Vec<u8>,
    /// `true` would let any member answer with what it has: never set here, reads are linearizable.
    #[prost(bool, tag = "7")]
    pub(super) serializable: bool,
    #[prost(bool, tag = "8")]
    pub(super) keys_only: bool,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct RangeResponse {
    #[prost(message, optional, tag = "1")]
    pub(super) header: Option<ResponseHeader>,
    #[prost(message, repeated, tag = "2")]
    pub(super) kvs: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) value: Vec<u8>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct DeleteRangeRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) key: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(super) struct DeleteRangeResponse {
    #[prost(message, optional, tag = "1")]
    pub(super) header: Option<ResponseHeader>,
}

/// Compare.CompareTarget MOD. Compare.CompareResult EQUAL is 0.
pub(super) const COMPARE_MOD: i32 = 2;

#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct Compare {
    /// Compare.CompareResult
    #[prost(int32, tag = "1")]
    pub(super) result: i32,
    /// Compare.CompareTarget
    #[prost(int32, tag = "2")]
    pub(super) target: i32,
    #[prost(bytes = "vec", tag = "3")]
    pub(super) key: Vec<u8>,
    /// 0: the key does not exist.
    #[prost(int64, optional, tag = "6")]
    pub(super) mod_revision: Option<i64>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct RequestOp {
    #[prost(message, optional, tag = "2")]
    pub(super) request_put: Option<PutRequest>,
}

/// If all comparisons hold, `success` is done, all of it at one revision.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct TxnRequest {
    #[prost(message, repeated, tag = "1")]
    pub(super) compare: Vec<Compare>,
    #[prost(message, repeated, tag = "2")]
    pub(super) success: Vec<RequestOp>,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(super) struct TxnResponse {
    #[prost(message, optional, tag = "1")]
    pub(super) header: Option<ResponseHeader>,
    #[prost(bool, tag = "2")]
    pub(super) succeeded: bool,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct WatchCreateRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) range_end: Vec<u8>,
    /// 0 would mean from now on, and is a way to lose events: never sent.
    #[prost(int64, tag = "3")]
    pub(super) start_revision: i64,
    /// Answers without events from time to time, so that a quiet watch is known to live.
    #[prost(bool, tag = "4")]
    pub(super) progress_notify: bool,
    /// Events that do not fit into one answer come in several.
    #[prost(bool, tag = "8")]
    pub(super) fragment: bool,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct WatchRequest {
    #[prost(message, optional, tag = "1")]
    pub(super) create_request: Option<WatchCreateRequest>,
}

/// Event.EventType DELETE. PUT is 0.
pub(super) const EVENT_DELETE: i32 = 1;

/// mvccpb.Event
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct Event {
    /// Event.EventType
    #[prost(int32, tag = "1")]
    pub(super) kind: i32,
    /// Of a deletion: key and revision, without a value.
    #[prost(message, optional, tag = "2")]
    pub(super) kv: Option<KeyValue>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct WatchResponse {
    #[prost(message, optional, tag = "1")]
    pub(super) header: Option<ResponseHeader>,
    #[prost(bool, tag = "3")]
    pub(super) created: bool,
    /// The watch has ended.
    #[prost(bool, tag = "4")]
    pub(super) canceled: bool,
    /// Not 0: the watch ended because the revision to start from was older than this, and is forgotten.
    #[prost(int64, tag = "5")]
    pub(super) compact_revision: i64,
    #[prost(string, tag = "6")]
    pub(super) cancel_reason: String,
    #[prost(message, repeated, tag = "11")]
    pub(super) events: Vec<Event>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct AuthenticateRequest {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) password: String,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct AuthenticateResponse {
    #[prost(string, tag = "2")]
    pub(super) token: String,
}
