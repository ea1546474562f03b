//! Calls to one of several etcd servers: which one, with whose token, and what its refusals mean.
//!
//! One server is asked until it fails; then it is the next one's turn. A call that changes something is never repeated
//! by itself, because a lost answer does not tell whether it happened.

use std::error::Error as _;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_core::Stream;
use prost::Message;
use tokio::time::Instant;
use tonic::client::Grpc;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;

use super::EtcdConfig;
use super::client::{malformed, unavailable};
use super::proto::{AuthenticateRequest, AuthenticateResponse, WatchRequest, WatchResponse, path};
use crate::kv::{StoreError, StoreKind};

/// The largest answer that is read: all keys under a prefix.
const ANSWER_LIMIT: usize = 32 * 1024 * 1024;
/// The largest answer of a watch: more than one value comes in fragments.
const WATCH_ANSWER_LIMIT: usize = 4 * 1024 * 1024;
/// etcd throws out who sends HTTP/2 pings more often than every 5 s.
const SHORTEST_KEEPALIVE: Duration = Duration::from_secs(6);
const LONGEST_KEEPALIVE: Duration = Duration::from_secs(10);
/// How much of an error's text is worth keeping.
const REASON_LIMIT: usize = 512;

/// What is called, and what it is called in messages.
pub(super) struct Call<'a> {
    pub(super) operation: &'static str,
    pub(super) key: &'a str,
    pub(super) path: &'static str,
    /// Whether doing it twice is the same as doing it once.
    pub(super) repeatable: bool,
}

type Token = MetadataValue<Ascii>;

/// What is known about how to prove who we are.
#[derive(Clone, Debug)]
enum Proof {
    /// Nothing yet.
    Unknown,
    /// The servers do not want to know.
    NotNeeded,
    Token(Token),
}

struct Account {
    name: String,
    password: String,
    proof: tokio::sync::Mutex<Proof>,
}

/// One server. Its channel connects by itself; it is replaced after a failure, because the runtime that drives it may
/// have been the one of a thread that ended.
struct Server {
    endpoint: Endpoint,
    channel: Mutex<Option<Channel>>,
}

/// The servers, and the account there.
pub(super) struct Calls {
    servers: Vec<Server>,
    current: AtomicUsize,
    account: Option<Account>,
    timeout: Duration,
}

impl std::fmt::Debug for Calls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let uris: Vec<_> = self.servers.iter().map(|server| server.endpoint.uri().to_string()).collect();
        f.debug_struct("Calls").field("servers", &uris).field("timeout", &self.timeout).finish()
    }
}

impl Calls {
    pub(super) fn new(config: &EtcdConfig) -> Result<Self, StoreError> {
        if config.endpoints.is_empty() {
            return Err(unavailable("no endpoints are configured"));
        }
        if config.dial_timeout.is_zero() || config.request_timeout.is_zero() {
            return Err(unavailable("the timeouts must not be zero"));
        }
        if config.username.is_empty() && !config.password.is_empty() {
            return Err(unavailable("there is a password without a user name"));
        }
        let servers = config.endpoints.iter().map(|address| {
            let endpoint = endpoint(address, config)?;
            Ok(Server { endpoint, channel: Mutex::default() })
        });
        let account = (!config.username.is_empty()).then(|| Account {
            name: config.username.clone(),
            password: config.password.clone(),
            proof: tokio::sync::Mutex::new(Proof::Unknown),
        });
        Ok(Self {
            servers: servers.collect::<Result<_, StoreError>>()?,
            current: AtomicUsize::new(0),
            account,
            timeout: config.request_timeout,
        })
    }

    /// A call with one answer.
    pub(super) async fn unary<Q, A>(&self, call: &Call<'_>, request: Q) -> Result<A, StoreError>
    where
        Q: Message + Clone + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let path = call.path;
        self.attempts(call, move |mut grpc, token| {
            let request = with_token(Request::new(request.clone()), token);
            async move {
                let answer = grpc.unary(request, uri_path(path)?, ProstCodec::<Q, A>::default()).await?;
                Ok(answer.into_inner())
            }
        })
        .await
    }

    /// A watch. Returns when the server has said that it is one.
    pub(super) async fn streaming<S>(
        &self,
        call: &Call<'_>,
        requests: impl Fn() -> S + Send,
    ) -> Result<Streaming<WatchResponse>, StoreError>
    where
        S: Stream<Item = WatchRequest> + Send + 'static,
    {
        let path = call.path;
        self.attempts(call, move |grpc, token| {
            let mut request = with_token(Request::new(requests()), token);
            // A server that has lost the others would otherwise stay silent for ever.
            request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
            let mut grpc = grpc.max_decoding_message_size(WATCH_ANSWER_LIMIT);
            async move { Ok(grpc.streaming(request, uri_path(path)?, ProstCodec::default()).await?.into_inner()) }
        })
        .await
    }

    pub(super) async fn forget_token(&self) {
        if let Some(account) = &self.account {
            *account.proof.lock().await = Proof::Unknown;
        }
    }

    /// Tries a call on one server, and where it may be repeated on each of the others, until the time is over.
    async fn attempts<A, F>(
        &self,
        call: &Call<'_>,
        attempt: impl Fn(Grpc<Channel>, Option<Token>) -> F + Send,
    ) -> Result<A, StoreError>
    where
        F: Future<Output = Result<A, Status>> + Send,
    {
        let end = Instant::now() + self.timeout;
        let mut left = if call.repeatable { self.servers.len() } else { 1 };
        let mut new_proof = false;
        loop {
            let at = self.current.load(Ordering::Relaxed);
            // A server that hangs must leave time for the others.
            let share = u32::try_from(left.max(1)).map_or(self.timeout, |left| (end - Instant::now()) / left);
            let answer = tokio::time::timeout(share, async {
                let token = self.token(at).await?;
                let grpc = self.grpc(at).await.map_err(Failure::Status)?;
                attempt(grpc, token).await.map_err(Failure::Status)
            });
            let error = match answer.await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(Failure::Status(status))) => {
                    if self.account.is_some() && !new_proof && is_about_token(&status) {
                        new_proof = true;
                        self.forget_token().await;
                        continue;
                    }
                    match meaning(&status) {
                        Meaning::Refusal => return Err(refused(call, &status)),
                        Meaning::Failure => unavailable(describe(&status)),
                    }
                }
                Ok(Err(Failure::Login(status))) => match meaning(&status) {
                    Meaning::Refusal => return Err(refused(&Call { operation: "log-in", ..*call }, &status)),
                    Meaning::Failure => unavailable(describe(&status)),
                },
                Ok(Err(Failure::BadToken)) => return Err(malformed("its token cannot be sent")),
                Err(_) => StoreError::Timeout { store: StoreKind::Etcd, after: self.timeout },
            };
            self.leave(at);
            left -= 1;
            if left == 0 || Instant::now() >= end {
                return Err(error);
            }
        }
    }

    /// The token to send to this server, after a log-in if need be; `None` where none is wanted.
    async fn token(&self, at: usize) -> Result<Option<Token>, Failure> {
        let Some(account) = &self.account else { return Ok(None) };
        let mut proof = account.proof.lock().await;
        if matches!(*proof, Proof::Unknown) {
            let request = AuthenticateRequest { name: account.name.clone(), password: account.password.clone() };
            let codec = ProstCodec::<_, AuthenticateResponse>::default();
            let path = uri_path(path::AUTHENTICATE).map_err(Failure::Login)?;
            let mut grpc = self.grpc(at).await.map_err(Failure::Login)?;
            *proof = match grpc.unary(Request::new(request), path, codec).await {
                Ok(answer) => {
                    let mut token: Token = answer.into_inner().token.parse().map_err(|_| Failure::BadToken)?;
                    token.set_sensitive(true);
                    Proof::Token(token)
                }
                Err(status) if status.message().contains("authentication is not enabled") => Proof::NotNeeded,
                Err(status) => return Err(Failure::Login(status)),
            };
        }
        Ok(match &*proof {
            Proof::Token(token) => Some(token.clone()),
            Proof::Unknown | Proof::NotNeeded => None,
        })
    }

    fn server(&self, at: usize) -> &Server {
        // There is at least one, or `new` would have refused.
        &self.servers[at % self.servers.len()]
    }

    /// A client of this server that takes one call. It connects when the call is made.
    async fn grpc(&self, at: usize) -> Result<Grpc<Channel>, Status> {
        let server = self.server(at);
        let channel = {
            let mut channel = server.channel.lock().unwrap_or_else(PoisonError::into_inner);
            channel.get_or_insert_with(|| server.endpoint.connect_lazy()).clone()
        };
        let mut grpc = Grpc::new(channel).max_decoding_message_size(ANSWER_LIMIT);
        grpc.ready().await.map_err(|error| Status::from_error(error.into()))?;
        Ok(grpc)
    }

    /// The server failed: the next one's turn, unless somebody else has moved on already.
    fn leave(&self, at: usize) {
        if self.current.compare_exchange(at, at.wrapping_add(1), Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            *self.server(at).channel.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }
}

/// Why an attempt failed.
enum Failure {
    /// The call itself.
    Status(Status),
    /// The log-in before it.
    Login(Status),
    BadToken,
}

/// What kind of error a status is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// The server understood and will not do it.
    Refusal,
    /// The server cannot do it now, or was not reached.
    Failure,
}

pub(super) fn meaning(status: &Status) -> Meaning {
    match status.code() {
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::Unimplemented => Meaning::Refusal,
        // "not leader" and the like.
        _ => Meaning::Failure,
    }
}

/// The token has expired, is another cluster's, was made before accounts changed, or is missing because accounts were
/// switched on only now. Nothing was done.
pub(super) fn is_about_token(status: &Status) -> bool {
    let about = ["invalid auth token", "revision of auth store is old", "user name is empty"];
    status.code() == Code::Unauthenticated || about.iter().any(|text| status.message().contains(text))
}

fn refused(call: &Call<'_>, status: &Status) -> StoreError {
    StoreError::Refused {
        store: StoreKind::Etcd,
        operation: call.operation,
        key: call.key.to_owned(),
        reason: describe(status),
    }
}

/// What a status says, with the causes of a broken connection, shortened and safe to log.
pub(super) fn describe(status: &Status) -> String {
    let mut text = if status.message().is_empty() { status.code().to_string() } else { status.message().to_owned() };
    let mut cause = status.source();
    while let Some(error) = cause {
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(REASON_LIMIT).collect()
}

fn with_token<T>(mut request: Request<T>, token: Option<Token>) -> Request<T> {
    if let Some(token) = token {
        request.metadata_mut().insert("token", token);
    }
    request
}

/// The path of a call, in whatever type the transport has for it.
fn uri_path<P: std::str::FromStr>(path: &str) -> Result<P, Status> {
    path.parse().map_err(|_| Status::internal("not a path"))
}

fn endpoint(address: &str, config: &EtcdConfig) -> Result<Endpoint, StoreError> {
    let bad = || unavailable(format!("an endpoint must be HOST:PORT, not {address:?}"));
    let host = match config.tls {
        Some(_) => address.strip_prefix("https://").unwrap_or(address),
        None => address.strip_prefix("http://").unwrap_or(address),
    };
    if host.is_empty() || host.contains(|c: char| c.is_whitespace() || "/@?#\\".contains(c)) {
        return Err(bad());
    }
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    let endpoint = Endpoint::from_shared(format!("{scheme}://{host}")).map_err(|_| bad())?;
    if endpoint.uri().port_u16().is_none_or(|port| port == 0) {
        return Err(bad());
    }
    let endpoint = endpoint
        .connect_timeout(config.dial_timeout)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(config.request_timeout.clamp(SHORTEST_KEEPALIVE, LONGEST_KEEPALIVE))
        .keep_alive_timeout(config.request_timeout)
        .keep_alive_while_idle(true);
    with_tls(endpoint, config)
}

#[cfg(feature = "etcd-tls")]
fn with_tls(endpoint: Endpoint, config: &EtcdConfig) -> Result<Endpoint, StoreError> {
    use tonic::transport::{Certificate, ClientTlsConfig, Identity};
    let Some(tls) = &config.tls else { return Ok(endpoint) };
    let read = |path: &std::path::Path| {
        std::fs::read(path).map_err(|error| unavailable(format!("cannot read {}: {error}", path.display())))
    };
    let mut settings = ClientTlsConfig::new();
    settings = match &tls.ca_path {
        Some(path) => settings.ca_certificate(Certificate::from_pem(read(path)?)),
        None => settings.with_native_roots(),
    };
    match (&tls.cert_path, &tls.key_path) {
        (Some(cert), Some(key)) => settings = settings.identity(Identity::from_pem(read(cert)?, read(key)?)),
        (None, None) => {}
        _ => return Err(unavailable("a certificate needs its key, and a key its certificate")),
    }
    if let Some(name) = &tls.server_name {
        settings = settings.domain_name(name.clone());
    }
    endpoint.tls_config(settings).map_err(|error| {
        let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
        unavailable(format!("these TLS settings cannot be used: {error}{cause}"))
    })
}

#[cfg(not(feature = "etcd-tls"))]
fn with_tls(endpoint: Endpoint, config: &EtcdConfig) -> Result<Endpoint, StoreError> {
    match config.tls {
        None => Ok(endpoint),
        Some(_) => Err(unavailable("TLS needs the crate's feature `etcd-tls`")),
    }
}
