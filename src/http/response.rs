//! A response, and how errors become one.

use std::fmt;
use std::pin::Pin;

use bytes::Bytes;
use futures_core::Stream;
use serde::Serialize;

use super::request::Malformed;
use crate::kv::{CodecError, StoreError};

pub(super) const JSON: &str = "application/json";
pub(super) const TEXT: &str = "text/plain; charset=utf-8";

/// The body of a [`Response`].
pub enum Body {
    /// All of it.
    Bytes(Bytes),
    /// Server-sent events, as they happen. It ends when the node does, or when [`Api::close`](super::Api::close) is
    /// called.
    Stream(Pin<Box<dyn Stream<Item = Bytes> + Send>>),
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => f.debug_tuple("Bytes").field(bytes).finish(),
            Self::Stream(_) => f.write_str("Stream"),
        }
    }
}

/// A response.
#[derive(Debug)]
#[non_exhaustive]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The header `Content-Type`.
    pub content_type: &'static str,
    /// Further headers.
    pub headers: Vec<(&'static str, &'static str)>,
    /// The body.
    pub body: Body,
}

impl Response {
    pub(super) fn new(content_type: &'static str, body: Body) -> Self {
        // What a node knows is out of date at once; and values from the network are never to be taken for a page.
        let headers = vec![("cache-control", "no-store"), ("x-content-type-options", "nosniff")];
        Self { status: 200, content_type, headers, body }
    }

    pub(super) fn text(text: impl Into<Bytes>) -> Self {
        Self::new(TEXT, Body::Bytes(text.into()))
    }

    pub(super) fn json(value: &impl Serialize) -> Self {
        match serde_json::to_vec(value) {
            Ok(bytes) => Self::new(JSON, Body::Bytes(bytes.into())),
            Err(error) => Self::error(500, &format!("the answer cannot be written as JSON: {error}")),
        }
    }

    /// `{"error": …}` with a status, as all errors of this API are.
    #[must_use]
    pub fn error(status: u16, message: &str) -> Self {
        let body = serde_json::json!({ "error": message }).to_string();
        Self { status, ..Self::new(JSON, Body::Bytes(body.into())) }
    }

    pub(super) fn with_status(self, status: u16) -> Self {
        Self { status, ..self }
    }

    pub(super) fn with_header(mut self, name: &'static str, value: &'static str) -> Self {
        self.headers.push((name, value));
        self
    }
}

/// Why a request is not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) message: String,
}

impl Refusal {
    pub(super) fn new(status: u16, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }
}

impl From<Refusal> for Response {
    fn from(refusal: Refusal) -> Self {
        let response = Self::error(refusal.status, &refusal.message);
        if refusal.status == 401 { response.with_header("www-authenticate", "Bearer") } else { response }
    }
}

impl From<Malformed> for Refusal {
    fn from(malformed: Malformed) -> Self {
        Self::new(400, malformed.to_string())
    }
}

impl From<CodecError> for Refusal {
    fn from(error: CodecError) -> Self {
        Self::new(422, error.to_string())
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        let status = match &error {
            StoreError::Unavailable { .. } | StoreError::Timeout { .. } | StoreError::Closed(_) => 503,
            StoreError::Refused { .. } => 403,
            StoreError::TooLarge { .. } => 413,
            StoreError::Conflict { .. } | StoreError::Aborted(_) => 409,
            StoreError::Decode { .. } | StoreError::Type { .. } => 422,
            StoreError::NoCodec { .. } | StoreError::Absent { .. } => 404,
        };
        Self::new(status, error.to_string())
    }
}
