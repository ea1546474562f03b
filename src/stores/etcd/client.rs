//! etcd's version 3 API, as far as the store needs it: requests out, checked answers back.
//!
//! Answers are hostile input: gRPC messages have a size limit, and whatever is not exactly an answer to the question is
//! an error.

use futures_util::{StreamExt as _, stream};
use prost::Message as _;
use tonic::Streaming;

use super::EtcdConfig;
use super::channel::{Call, Calls};
use super::proto::{
    COMPARE_MOD, Compare, DeleteRangeRequest, DeleteRangeResponse, EVENT_DELETE, Event, KeyValue, PutRequest,
    RangeRequest, RangeResponse, RequestOp, ResponseHeader, TxnRequest, TxnResponse, WatchCreateRequest, WatchRequest,
    WatchResponse, path,
};
use crate::kv::{StoreError, StoreKind};
use crate::stores::remote::{Pair, Target};

/// What etcd adds to a request before it compares it with its limit: a header with the name of the user.
const REQUEST_OVERHEAD: usize = 128;

/// Where an answer stands in the history of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) cluster: u64,
    /// Never 0.
    pub(super) revision: u64,
}

/// The answer to a read: no pair when nothing is there.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) position: Position,
    pub(super) pairs: Vec<Pair>,
}

/// Something that happened to a key: written or, with no pair, deleted.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) key: String,
    pub(super) pair: Option<Pair>,
    pub(super) revision: u64,
}

/// An answer of a watch.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Report {
    /// What happened; nothing, when the server only shows that it is there.
    Changes(Vec<Change>),
    /// The history from where the watch should begin is gone.
    Compacted,
    /// The server ended the watch.
    Cancelled(String),
}

/// The client of one store.
#[derive(Debug)]
pub(super) struct Client {
    calls: Calls,
    overhead: usize,
    max_request: usize,
}

impl Client {
    pub(super) fn new(config: &EtcdConfig) -> Result<Self, StoreError> {
        let overhead = REQUEST_OVERHEAD + config.username.len();
        Ok(Self { calls: Calls::new(config)?, overhead, max_request: config.max_request_bytes })
    }

    /// Reads a key or all keys under a prefix.
    pub(super) async fn read(&self, target: &Target) -> Result<Reply, StoreError> {
        self.range("read", target, false).await
    }

    /// The keys under a prefix, in order, without their values.
    pub(super) async fn keys(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let reply = self.range("list", &Target::Prefix(prefix.into()), true).await?;
        Ok(reply.pairs.into_iter().map(|pair| pair.key).collect())
    }

    async fn range(&self, operation: &'static str, target: &Target, keys_only: bool) -> Result<Reply, StoreError> {
        let (key, range_end) = range_of(operation, target)?;
        let request = RangeRequest { key, range_end, serializable: false, keys_only };
        let call = Call { operation, key: target.name(), path: path::RANGE, repeatable: true };
        let answer: RangeResponse = self.calls.unary(&call, request).await?;
        checked_range(answer, target)
    }

    /// Writes a value if the key's `mod_revision` still is `revision` (0: if the key does not exist). Returns the
    /// revision of the write, or `None` if it was not written.
    pub(super) async fn write(&self, key: &str, value: Vec<u8>, revision: u64) -> Result<Option<u64>, StoreError> {
        let size = value.len();
        let request = write_request(key, value, revision)?;
        let limit = self.limit_of(&request, size);
        if size > limit {
            return Err(StoreError::TooLarge { store: StoreKind::Etcd, key: key.to_owned(), size, limit });
        }
        let call = Call { operation: "write", key, path: path::TXN, repeatable: false };
        let answer: TxnResponse = match self.calls.unary(&call, request).await {
            // The server has a lower limit than usual. It does not say which.
            Err(StoreError::Refused { reason, .. }) if reason.contains("request is too large") => {
                let limit = size.saturating_sub(1);
                return Err(StoreError::TooLarge { store: StoreKind::Etcd, key: key.to_owned(), size, limit });
            }
            answer => answer?,
        };
        let position = position_of(answer.header)?;
        Ok(answer.succeeded.then_some(position.revision))
    }

    /// The most that a value of about this size may have.
    pub(super) fn value_limit(&self, key: &str, size: usize) -> usize {
        write_request(key, vec![0; size], u64::MAX >> 1).map_or(0, |request| self.limit_of(&request, size))
    }

    fn limit_of(&self, request: &TxnRequest, size: usize) -> usize {
        let around = (request.encoded_len() - size).saturating_add(self.overhead);
        self.max_request.saturating_sub(around)
    }

    /// Deletes a key, whatever its value.
    pub(super) async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let (bytes, _) = range_of("delete", &Target::Key(key.into()))?;
        let call = Call { operation: "delete", key, path: path::DELETE_RANGE, repeatable: false };
        let answer: DeleteRangeResponse = self.calls.unary(&call, DeleteRangeRequest { key: bytes }).await?;
        position_of(answer.header).map(drop)
    }

    /// Follows what happens to a key or to the keys under a prefix from a revision on.
    pub(super) async fn watch(&self, target: &Target, start: u64) -> Result<Reports, StoreError> {
        let (key, range_end) = range_of("watch", target)?;
        let start_revision = i64::try_from(start).map_err(|_| malformed("a revision is out of range"))?;
        let create = WatchCreateRequest { key, range_end, start_revision, progress_notify: true, fragment: true };
        let request = WatchRequest { create_request: Some(create) };
        let call = Call { operation: "watch", key: target.name(), path: path::WATCH, repeatable: true };
        // The end of the requests would end the watch.
        let requests = || stream::once(std::future::ready(request.clone())).chain(stream::pending());
        Ok(Reports { answers: self.calls.streaming(&call, requests).await?, target: target.clone() })
    }

    /// The account may have changed: prove who we are before the next call.
    pub(super) async fn forget_token(&self) {
        self.calls.forget_token().await;
    }
}

/// The answers of one watch.
#[derive(Debug)]
pub(super) struct Reports {
    answers: Streaming<WatchResponse>,
    target: Target,
}

impl Reports {
    /// The next answer; an error when the connection is gone.
    pub(super) async fn next(&mut self) -> Result<Report, StoreError> {
        match self.answers.message().await {
            Ok(Some(answer)) => checked_watch(answer, &self.target),
            Ok(None) => Err(unavailable("it closed a watch")),
            Err(status) => Err(unavailable(format!("a watch broke off: {}", super::channel::describe(&status)))),
        }
    }
}

/// A write on the condition that the key's `mod_revision` is this one.
fn write_request(key: &str, value: Vec<u8>, revision: u64) -> Result<TxnRequest, StoreError> {
    let (bytes, _) = range_of("write", &Target::Key(key.into()))?;
    let compare = Compare {
        result: 0,
        target: COMPARE_MOD,
        key: bytes.clone(),
        mod_revision: Some(i64::try_from(revision).map_err(|_| malformed("a revision is out of range"))?),
    };
    let put = RequestOp { request_put: Some(PutRequest { key: bytes, value }) };
    Ok(TxnRequest { compare: vec![compare], success: vec![put] })
}

/// Reads etcd's answer to a read of `target`, which must not be about anything else.
pub(super) fn checked_range(answer: RangeResponse, target: &Target) -> Result<Reply, StoreError> {
    let position = position_of(answer.header)?;
    if matches!(target, Target::Key(_)) && answer.kvs.len() > 1 {
        return Err(malformed("it is about more than one key"));
    }
    let mut pairs = Vec::with_capacity(answer.kvs.len());
    for kv in answer.kvs {
        let revision = revision_of(&kv, target)?;
        // Names in the store are texts. Somebody else's keys may be anything.
        if let Ok(key) = String::from_utf8(kv.key) {
            pairs.push(Pair { key, value: kv.value, version: revision });
        }
    }
    pairs.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    Ok(Reply { position, pairs })
}

/// Reads an answer to a watch of `target`, which must not be about anything else.
pub(super) fn checked_watch(answer: WatchResponse, target: &Target) -> Result<Report, StoreError> {
    if answer.compact_revision != 0 {
        return Ok(Report::Compacted);
    }
    if answer.canceled {
        let reason = answer.cancel_reason.chars().map(|c| if c.is_control() { ' ' } else { c }).take(512).collect();
        return Ok(Report::Cancelled(reason));
    }
    let mut changes = Vec::with_capacity(answer.events.len());
    for Event { kind, kv } in answer.events {
        let kv = kv.ok_or_else(|| malformed("an event is about no key"))?;
        let revision = revision_of(&kv, target)?;
        let Ok(key) = String::from_utf8(kv.key) else { continue };
        let pair = match kind {
            0 => Some(Pair { key: key.clone(), value: kv.value, version: revision }),
            EVENT_DELETE => None,
            _ => return Err(malformed("an event is neither a write nor a deletion")),
        };
        changes.push(Change { key, pair, revision });
    }
    Ok(Report::Changes(changes))
}

fn revision_of(kv: &KeyValue, target: &Target) -> Result<u64, StoreError> {
    match target {
        Target::Key(key) if kv.key != key.as_bytes() => Err(malformed("it is not about the key that was asked for")),
        Target::Prefix(prefix) if !kv.key.starts_with(prefix.as_bytes()) => {
            Err(malformed("it has keys outside of the prefix"))
        }
        _ => positive(kv.mod_revision),
    }
}

fn position_of(header: Option<ResponseHeader>) -> Result<Position, StoreError> {
    let header = header.ok_or_else(|| malformed("it has no header"))?;
    Ok(Position { cluster: header.cluster_id, revision: positive(header.revision)? })
}

fn positive(revision: i64) -> Result<u64, StoreError> {
    u64::try_from(revision).ok().filter(|revision| *revision > 0).ok_or_else(|| malformed("a revision is not positive"))
}

/// `key` and `range_end` of a request.
pub(super) fn range_of(operation: &'static str, target: &Target) -> Result<(Vec<u8>, Vec<u8>), StoreError> {
    match target {
        Target::Key(key) if key.is_empty() => Err(StoreError::Refused {
            store: StoreKind::Etcd,
            operation,
            key: String::new(),
            reason: "keys must not be empty".to_owned(),
        }),
        Target::Key(key) => Ok((key.as_bytes().to_vec(), Vec::new())),
        // From the smallest key on, without an end.
        Target::Prefix(prefix) if prefix.is_empty() => Ok((vec![0], vec![0])),
        Target::Prefix(prefix) => {
            let mut end = prefix.as_bytes().to_vec();
            // The last byte of a text is never 255, so there is always a next one.
            if let Some(last) = end.last_mut() {
                *last = last.saturating_add(1);
            }
            Ok((prefix.as_bytes().to_vec(), end))
        }
    }
}

pub(super) fn unavailable(reason: impl Into<String>) -> StoreError {
    StoreError::Unavailable { store: StoreKind::Etcd, reason: reason.into() }
}

pub(super) fn malformed(what: &str) -> StoreError {
    unavailable(format!("its answer makes no sense: {what}"))
}
