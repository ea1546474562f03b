//! Consul's key-value API over HTTP, as far as the store needs it: requests out, checked answers back.
//!
//! Answers are hostile input: they are read piece by piece up to a limit, redirects are not followed, and whatever is
//! not exactly an answer to the question is an error.

use std::fmt::Write as _;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hyper::{Method, StatusCode};
use serde::Deserialize;

use super::http::{Answer, Http};
use super::{ConsulConfig, VALUE_LIMIT};
use crate::kv::{StoreError, StoreKind};
use crate::stores::remote::{Pair, Target};

/// The answer for one key: 512 KiB in base64 are 700 KB, and servers may be configured for somewhat more.
const KEY_BODY_LIMIT: usize = 2 * 1024 * 1024;
/// The answer for all keys under a prefix.
const PREFIX_BODY_LIMIT: usize = 32 * 1024 * 1024;
/// How much of an error's text is worth reading.
const ERROR_BODY_LIMIT: usize = 512;

/// From which server a read may be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Consistency {
    /// Any server, however far behind.
    Stale,
    /// The one that holds itself to be the leader.
    Leader,
    /// The leader, after it made sure that it still is.
    Consistent,
}

/// The answer to a read: no pair when nothing is there.
#[derive(Debug)]
pub(super) struct Reply {
    /// `X-Consul-Index`, if it was there and a number.
    pub(super) index: Option<u64>,
    pub(super) pairs: Vec<Pair>,
}

/// A blocking query: answer when the index grows beyond this one, or when the time is over.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    pub(super) index: u64,
    pub(super) wait: Duration,
}

/// Where all keys are.
const BASE: &str = "/v1/kv/";

/// The client of one store.
#[derive(Debug)]
pub(super) struct Client {
    http: Http,
}

/// Consul's JSON. Fields that nobody needs are not looked at.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawPair {
    key: String,
    /// Base64; null for an empty value.
    value: Option<String>,
    modify_index: u64,
}

impl Client {
    pub(super) fn new(config: &ConsulConfig) -> Result<Self, StoreError> {
        Ok(Self { http: Http::new(config)? })
    }

    /// Reads a key or all keys under a prefix, at once or when something has changed.
    pub(super) async fn read(
        &self,
        target: &Target,
        consistency: Consistency,
        block: Option<Block>,
    ) -> Result<Reply, StoreError> {
        let mut url = self.url("read", target.name())?;
        let limit = match target {
            Target::Key(_) => KEY_BODY_LIMIT,
            Target::Prefix(_) => PREFIX_BODY_LIMIT,
        };
        let mut query = match target {
            Target::Key(_) => Vec::new(),
            Target::Prefix(_) => vec!["recurse".to_owned()],
        };
        query.extend(consistency.parameter().map(str::to_owned));
        if let Some(Block { index, wait }) = block {
            query.push(format!("index={index}&wait={}ms", wait.as_millis().max(1)));
        }
        append_query(&mut url, &query);
        let response = self.send(Method::GET, &url).await?;
        let index = index_of(&response);
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(Reply { index, pairs: Vec::new() });
        }
        let response = self.check("read", target.name(), response).await?;
        let body = self.body(response, limit).await?;
        Ok(Reply { index, pairs: parse_pairs(&body, target)? })
    }

    /// The keys under a prefix, without their values, and the index of the latest change below it.
    pub(super) async fn keys(
        &self,
        prefix: &str,
        consistency: Consistency,
    ) -> Result<(Vec<String>, Option<u64>), StoreError> {
        let mut url = self.url("list", prefix)?;
        let mut query = vec!["keys".to_owned()];
        query.extend(consistency.parameter().map(str::to_owned));
        append_query(&mut url, &query);
        let response = self.send(Method::GET, &url).await?;
        let index = index_of(&response);
        if response.status() == StatusCode::NOT_FOUND {
            return Ok((Vec::new(), index));
        }
        let response = self.check("list", prefix, response).await?;
        let body = self.body(response, PREFIX_BODY_LIMIT).await?;
        let keys = serde_json::from_slice(&body).map_err(|error| malformed(&error.to_string()))?;
        Ok((keys, index))
    }

    /// The `ModifyIndex` of a key that exists, without reading its value where that can be avoided.
    pub(super) async fn modify_index(&self, key: &str) -> Result<Option<u64>, StoreError> {
        if let (keys, Some(index)) = self.keys(key, Consistency::Leader).await?
            && keys == [key]
        {
            return Ok(Some(index));
        }
        // Other keys begin with this one, and the index may be theirs.
        let reply = self.read(&Target::Key(key.into()), Consistency::Leader, None).await?;
        Ok(reply.pairs.first().map(|pair| pair.version))
    }

    /// Writes a value if the key's `ModifyIndex` still is `index` (0: if the key does not exist). Returns whether it
    /// was written.
    pub(super) async fn write(&self, key: &str, value: Vec<u8>, index: u64) -> Result<bool, StoreError> {
        let size = value.len();
        let too_large = |limit| StoreError::TooLarge { store: StoreKind::Consul, key: key.to_owned(), size, limit };
        if size > VALUE_LIMIT {
            return Err(too_large(VALUE_LIMIT));
        }
        let url = format!("{}?cas={index}", self.key_url("write", key)?);
        // A connection that was reset says nothing of the size, however large the value: the server may have been stopped
        // just then, after the write. One that refuses answers before it has read the body, and keeps the connection open
        // for long enough that the refusal arrives.
        let response = self.http.send(Method::PUT, &url, value).await.map_err(|failed| self.http.error(failed))?;
        if response.status() == StatusCode::PAYLOAD_TOO_LARGE {
            let text = self.error_text(response).await;
            // "Request body(600000 bytes) too large, max size: 524288 bytes. …"
            let limit = text.split("max size: ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok());
            return Err(too_large(limit.unwrap_or_else(|| size.saturating_sub(1))));
        }
        let response = self.check("write", key, response).await?;
        self.verdict(response).await
    }

    /// Deletes a key, whatever its value.
    pub(super) async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let response = self.send(Method::DELETE, &self.key_url("delete", key)?).await?;
        let response = self.check("delete", key, response).await?;
        match self.verdict(response).await? {
            true => Ok(()),
            false => Err(unavailable("the key was not deleted")),
        }
    }

    /// The URL of one key, which must not be the empty name: that means all of them.
    fn key_url(&self, operation: &'static str, key: &str) -> Result<String, StoreError> {
        if key.is_empty() { Err(bad_key(operation, key)) } else { self.url(operation, key) }
    }

    fn url(&self, operation: &'static str, key: &str) -> Result<String, StoreError> {
        // Dots and empty parts would be "normalised" on the way, and so address another key.
        let mut parts = key.split('/').peekable();
        while let Some(part) = parts.next() {
            let last = parts.peek().is_none();
            if part == "." || part == ".." || (part.is_empty() && !last) || part.contains(char::is_control) {
                return Err(bad_key(operation, key));
            }
        }
        Ok(format!("{BASE}{}", escape(key)))
    }

    async fn send(&self, method: Method, url: &str) -> Result<Answer, StoreError> {
        self.http.send(method, url, Vec::new()).await.map_err(|failed| self.http.error(failed))
    }

    /// Turns every status but 200 into an error.
    async fn check(&self, operation: &'static str, key: &str, response: Answer) -> Result<Answer, StoreError> {
        let status = response.status();
        if status == StatusCode::OK {
            return Ok(response);
        }
        let reason = format!("{status}: {}", self.error_text(response).await);
        if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS && status != StatusCode::REQUEST_TIMEOUT
        {
            return Err(StoreError::Refused { store: StoreKind::Consul, operation, key: key.to_owned(), reason });
        }
        Err(unavailable(reason))
    }

    async fn verdict(&self, response: Answer) -> Result<bool, StoreError> {
        match self.body(response, ERROR_BODY_LIMIT).await?.trim_ascii() {
            b"true" => Ok(true),
            b"false" => Ok(false),
            _ => Err(malformed("neither true nor false")),
        }
    }

    async fn body(&self, mut response: Answer, limit: usize) -> Result<Vec<u8>, StoreError> {
        let too_long = || malformed(&format!("more than {limit} bytes"));
        if response.length().is_some_and(|length| length > limit as u64) {
            return Err(too_long());
        }
        let mut body = Vec::new();
        while let Some(chunk) = self.http.chunk(&mut response).await.map_err(|failed| self.http.error(failed))? {
            if body.len() + chunk.len() > limit {
                return Err(too_long());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// The text of an error answer, shortened and safe to log.
    async fn error_text(&self, mut response: Answer) -> String {
        let mut text = Vec::new();
        while text.len() < ERROR_BODY_LIMIT {
            let Ok(Some(chunk)) = self.http.chunk(&mut response).await else { break };
            text.extend_from_slice(&chunk);
        }
        text.truncate(ERROR_BODY_LIMIT);
        String::from_utf8_lossy(&text).trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
    }
}

impl Consistency {
    fn parameter(self) -> Option<&'static str> {
        match self {
            Self::Stale => Some("stale"),
            Self::Leader => None,
            Self::Consistent => Some("consistent"),
        }
    }
}

/// Reads Consul's answer to a read of `target`, which must not be about anything else.
pub(super) fn parse_pairs(body: &[u8], target: &Target) -> Result<Vec<Pair>, StoreError> {
    let raw: Vec<RawPair> = serde_json::from_slice(body).map_err(|error| malformed(&error.to_string()))?;
    match target {
        Target::Key(key) if raw.len() != 1 || raw.iter().any(|pair| pair.key != **key) => {
            return Err(malformed("it is not about the key that was asked for"));
        }
        Target::Prefix(prefix) if raw.iter().any(|pair| !pair.key.starts_with(&**prefix)) => {
            return Err(malformed("it has keys outside of the prefix"));
        }
        _ => {}
    }
    raw.into_iter()
        .map(|RawPair { key, value, modify_index }| {
            if modify_index == 0 {
                return Err(malformed("a ModifyIndex is 0"));
            }
            let value = BASE64_STANDARD
                .decode(value.unwrap_or_default())
                .map_err(|error| malformed(&format!("the value is not base64: {error}")))?;
            Ok(Pair { key, value, version: modify_index })
        })
        .collect()
}

fn index_of(response: &Answer) -> Option<u64> {
    response.headers().get("X-Consul-Index")?.to_str().ok()?.parse().ok()
}

/// Escapes everything but the characters that URLs never give a meaning to, and the slash between the parts of a key.
pub(super) fn escape(key: &str) -> String {
    let mut escaped = String::with_capacity(key.len());
    for &byte in key.as_bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

fn append_query(url: &mut String, query: &[String]) {
    if !query.is_empty() {
        url.push('?');
        url.push_str(&query.join("&"));
    }
}

fn unavailable(reason: impl Into<String>) -> StoreError {
    StoreError::Unavailable { store: StoreKind::Consul, reason: reason.into() }
}

fn malformed(what: &str) -> StoreError {
    unavailable(format!("its answer makes no sense: {what}"))
}

fn bad_key(operation: &'static str, key: &str) -> StoreError {
    StoreError::Refused {
        store: StoreKind::Consul,
        operation,
        key: key.to_owned(),
        reason: "keys must not be empty, begin with a slash, or have empty parts, dots alone, or control characters"
            .to_owned(),
    }
}
