//! The server that `annulus agent` runs: axum around the [`Api`].
//!
//! Binding is a step of its own, so that a port in use is an error before anything else has started.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::body::Body as AxumBody;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response as AxumResponse;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use tokio::net::TcpListener;

use super::admin::{Admin, AdminError};
use super::api::Api;
use super::connection::{self, Patience};
use super::request::{MAX_BODY, Method, Request};
use super::response::{Body, Refusal, Response};
use crate::node::Node;

/// How long requests that are being answered have after the server was told to end.
const GRACE: Duration = Duration::from_secs(5);

/// How long the body of a request may take to arrive.
const BODY: Duration = Duration::from_secs(20);

/// How long an answer may take to be found. Operations on stores have limits of their own, which are shorter; a write waits
/// for the first attempts to join.
const ANSWER: Duration = Duration::from_secs(120);

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// Another process has the port.
    #[error("http.listen {listen}: the port is in use; stop the process that has it, or set http.listen to another")]
    PortInUse {
        /// The address that was asked for.
        listen: SocketAddr,
    },
    /// The process may not have the port.
    #[error(
        "http.listen {listen}: permission denied; ports below 1024 need a privilege (CAP_NET_BIND_SERVICE on Linux), \
         higher ones do not"
    )]
    PermissionDenied {
        /// The address that was asked for.
        listen: SocketAddr,
    },
    /// The address is not one of this host.
    #[error("http.listen {listen}: this host has no such address; use one of its own, or 0.0.0.0 or [::] for all")]
    AddressNotAvailable {
        /// The address that was asked for.
        listen: SocketAddr,
    },
    /// Something else is wrong with the address.
    #[error("http.listen {listen}: {source}")]
    Listen {
        /// The address that was asked for.
        listen: SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
    /// The admin token cannot be had.
    #[error(transparent)]
    Admin(#[from] AdminError),
}

/// A bound port, on which nothing is answered yet.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    local: SocketAddr,
}

/// Binds a port; port 0 lets the system choose one.
///
/// # Errors
/// [`ServeError`]: the port cannot be had.
pub async fn bind(listen: SocketAddr) -> Result<Server, ServeError> {
    let explain = |source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => ServeError::PortInUse { listen },
        io::ErrorKind::PermissionDenied => ServeError::PermissionDenied { listen },
        io::ErrorKind::AddrNotAvailable => ServeError::AddressNotAvailable { listen },
        _ => ServeError::Listen { listen, source },
    };
    let listener = TcpListener::bind(listen).await.map_err(explain)?;
    let local = listener.local_addr().map_err(explain)?;
    Ok(Server { listener, local })
}

/// Binds and answers until `shutdown` is ready; see [`bind`] and [`Server::run`].
///
/// # Errors
/// [`ServeError`].
pub async fn serve(
    node: Node,
    listen: SocketAddr,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    bind(listen).await?.run(node, shutdown).await
}

impl Server {
    /// The address that was bound.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Answers until `shutdown` is ready. Then streams end, and requests that are being answered have five seconds.
    ///
    /// # Errors
    /// [`ServeError`]: the admin token cannot be read.
    pub async fn run(self, node: Node, shutdown: impl Future<Output = ()> + Send + 'static) -> Result<(), ServeError> {
        let admin = Admin::from_config(&node.config().http)?;
        let api = Api::with_admin(node, admin);
        let answering = api.clone();
        let answer = move |peer, request| answer(answering.clone(), peer, request);
        tokio::select! {
            () = connection::serve(self.listener, Patience::default(), api.closing.clone(), answer) => {}
            () = async { shutdown.await; api.close(); tokio::time::sleep(GRACE).await } => {}
        }
        Ok(())
    }
}

async fn answer(api: Api, peer: SocketAddr, request: axum::extract::Request) -> AxumResponse {
    let response = match translate(&api, peer, request).await {
        Ok(request) => tokio::time::timeout(ANSWER, api.handle(request))
            .await
            .unwrap_or_else(|_| Refusal::new(504, "no answer was found in time").into()),
        Err(response) => response,
    };
    let body = match response.body {
        Body::Bytes(bytes) => AxumBody::from(bytes),
        Body::Stream(stream) => AxumBody::from_stream(stream.map(Ok::<_, std::convert::Infallible>)),
    };
    let mut answer = AxumResponse::new(body);
    *answer.status_mut() = StatusCode::from_u16(response.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(response.content_type));
    for (name, value) in response.headers {
        headers.insert(name, HeaderValue::from_static(value));
    }
    answer
}

/// Reads the body only of a request that may be carried out.
async fn translate(api: &Api, peer: SocketAddr, request: axum::extract::Request) -> Result<Request, Response> {
    let (head, body) = request.into_parts();
    let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
    let mut request = Request::new(Method::parse(head.method.as_str()), target).map_err(Refusal::from)?;
    let text = |name| header_text(&head.headers, name);
    request.authorization = text(header::AUTHORIZATION);
    request.origin = text(header::ORIGIN);
    request.host = text(header::HOST);
    request.forwarded = head.headers.contains_key(header::FORWARDED) || head.headers.contains_key("x-forwarded-for");
    request.peer = Some(peer.ip());
    api.check(&request)?;
    if request.method.changes_state() {
        let late = |_| Refusal::new(408, "the body did not arrive in time");
        request.body = tokio::time::timeout(BODY, read(body)).await.map_err(late)??;
    }
    Ok(request)
}

/// A header that is there but is not text must not pass for one that is not there.
fn header_text(headers: &HeaderMap, name: header::HeaderName) -> Option<String> {
    headers.get(name).map(|value| value.to_str().unwrap_or("not text").to_owned())
}

async fn read(body: AxumBody) -> Result<Bytes, Refusal> {
    let mut stream = body.into_data_stream();
    let mut bytes = BytesMut::new();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|error| Refusal::new(400, format!("the body cannot be read: {error}")))?;
        if bytes.len() + chunk.len() > MAX_BODY {
            return Err(Refusal::new(413, format!("the body has more than {MAX_BODY} bytes")));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.freeze())
}
