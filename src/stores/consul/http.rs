//! HTTP to one Consul: a pool of connections, with or without TLS, and a deadline for every answer.
//!
//! Redirects are not followed, proxies from the environment are not used, and every answer is read piece by piece by
//! whoever asked, up to a limit.

use std::error::Error as StdError;
use std::fmt::Write as _;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::Instant;

use super::ConsulConfig;
use super::connect::Connector;
use super::tls::Tls;
use crate::kv::{StoreError, StoreKind};

const TOKEN: HeaderName = HeaderName::from_static("x-consul-token");

/// The HTTP client of one store.
pub(super) struct Http {
    client: legacy::Client<Connector, Full<Bytes>>,
    /// `http://HOST:PORT`, or with `https`.
    base: String,
    token: Option<HeaderValue>,
    tls: Tls,
    timeout: Duration,
}

impl std::fmt::Debug for Http {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Http").field("base", &self.base).field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

/// What Consul answered; the body is still to be read, and only as long as the request had time.
pub(super) struct Answer {
    response: Response<Incoming>,
    end: Instant,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Failed {
    /// It took too long.
    Late,
    /// Anything else, in words.
    Other(String),
}

impl Http {
    pub(super) fn new(config: &ConsulConfig) -> Result<Self, StoreError> {
        let (secure, host) = match config.host.strip_prefix("https://") {
            Some(host) => (true, host),
            None => (config.tls.is_some(), config.host.strip_prefix("http://").unwrap_or(&config.host)),
        };
        if host.is_empty() || host.contains(|c: char| c.is_whitespace() || "/@?#\\".contains(c)) {
            return Err(unavailable(format!("the host must be HOST:PORT, not {:?}", config.host)));
        }
        if secure && config.host.starts_with("http://") {
            return Err(unavailable("there are TLS settings, and the host begins with http://; take that away"));
        }
        if config.http_client_timeout.is_zero() {
            return Err(unavailable("the HTTP client timeout must not be zero"));
        }
        let base = format!("{}://{host}", if secure { "https" } else { "http" });
        let uri = base.parse::<Uri>().ok().filter(|uri| uri.port_u16().is_some_and(|port| port > 0));
        let uri = uri.ok_or_else(|| unavailable(format!("the host must be HOST:PORT, not {:?}", config.host)))?;
        let token = match config.acl_token.as_str() {
            "" => None,
            token => {
                let mut token = HeaderValue::from_str(token)
                    .map_err(|_| unavailable("the ACL token has characters that cannot be sent"))?;
                token.set_sensitive(true);
                Some(token)
            }
        };
        let tls = match secure {
            true => Tls::new(config.tls.clone().unwrap_or_default(), uri.host().unwrap_or_default())?,
            false => Tls::none(),
        };
        let client = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .build(Connector::new(tls.clone()));
        Ok(Self { client, base, token, tls, timeout: config.http_client_timeout })
    }

    /// Sends a request to a path (with its query) and waits for the head of the answer.
    pub(super) async fn send(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Answer, Failed> {
        let mut request = Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = method;
        *request.uri_mut() =
            format!("{}{path}", self.base).parse().map_err(|_| Failed::Other("this key cannot be asked for".into()))?;
        request.headers_mut().extend(self.token.clone().map(|token| (TOKEN, token)));
        let end = Instant::now() + self.timeout;
        match tokio::time::timeout_at(end, self.client.request(request)).await {
            Ok(Ok(response)) => Ok(Answer { response, end }),
            Ok(Err(error)) => Err(self.failed(&error)),
            Err(_) => Err(Failed::Late),
        }
    }

    /// The next piece of an answer, or `None` at its end.
    pub(super) async fn chunk(&self, answer: &mut Answer) -> Result<Option<Bytes>, Failed> {
        loop {
            match tokio::time::timeout_at(answer.end, answer.response.body_mut().frame()).await {
                Ok(None) => return Ok(None),
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
                Ok(Some(Err(error))) => return Err(self.failed(&error)),
                Err(_) => return Err(Failed::Late),
            }
        }
    }

    /// What a failed request is in terms of the store.
    pub(super) fn error(&self, failed: Failed) -> StoreError {
        match failed {
            Failed::Late => StoreError::Timeout { store: StoreKind::Consul, after: self.timeout },
            Failed::Other(reason) => unavailable(reason),
        }
    }

    fn failed(&self, error: &(dyn StdError + 'static)) -> Failed {
        let causes: Vec<_> = std::iter::successors(Some(error), |error| (*error).source()).collect();
        let io = || causes.iter().filter_map(|error| error.downcast_ref::<io::Error>());
        if let Some(reason) = io().find_map(|error| self.tls.explain(error)) {
            return Failed::Other(reason);
        }
        // The outermost alone ("client error") says nothing.
        let mut text = String::new();
        for cause in &causes {
            let _ = write!(text, "{}{cause}", if text.is_empty() { "" } else { ": " });
        }
        Failed::Other(text)
    }
}

impl Answer {
    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// The length of the body, where Consul says it.
    pub(super) fn length(&self) -> Option<u64> {
        self.headers().get(hyper::header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
    }
}

fn unavailable(reason: impl Into<String>) -> StoreError {
    StoreError::Unavailable { store: StoreKind::Consul, reason: reason.into() }
}
