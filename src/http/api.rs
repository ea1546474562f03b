//! From a request to its handler.

use std::sync::Arc;

use futures_util::FutureExt;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::admin::Admin;
use super::request::{Method, Request};
use super::response::{Refusal, Response};
use super::route::Route;
use super::{actors, health, keys, kv, labels, members, migration, rings, settings, stream};
use crate::actors::supervisor::Exit;
use crate::node::Node;

/// Most streams of server-sent events at the same time.
const MAX_STREAMS: usize = 256;

/// Answers requests about one node. Cheap to clone; clones answer alike.
#[derive(Clone)]
pub struct Api {
    pub(super) node: Node,
    admin: Arc<Admin>,
    pub(super) streams: Arc<Semaphore>,
    pub(super) closing: CancellationToken,
}

impl Api {
    /// An API for this node. Reads the file of `http.admin_token_file`, if one is set; when it cannot be read, every
    /// change is refused. To learn of that at start, use [`Admin::from_config`] and [`Api::with_admin`].
    #[must_use]
    pub fn new(node: Node) -> Self {
        let admin = Admin::from_config(&node.config().http).unwrap_or_else(|error| {
            tracing::error!(%error, "changes over HTTP are refused");
            Admin::nobody(&error)
        });
        Self::with_admin(node, admin)
    }

    /// An API for this node, with a decision already made on who may change state.
    #[must_use]
    pub fn with_admin(node: Node, admin: Admin) -> Self {
        let streams = Arc::new(Semaphore::new(MAX_STREAMS));
        Self { node, admin: Arc::new(admin), streams, closing: CancellationToken::new() }
    }

    /// Ends all streams, so that a server can shut down. Further streams end at once.
    pub fn close(&self) {
        self.closing.cancel();
    }

    /// Answers a request. Never fails: an error is a response as well.
    pub async fn handle(&self, request: Request) -> Response {
        match self.admit(&request) {
            Ok(route) => self.answer(route, &request).await.unwrap_or_else(Response::from),
            Err(response) => response,
        }
    }

    /// Whether the request leads somewhere and may go there; the body is not looked at. An adapter asks this before it
    /// reads a body that may be large.
    ///
    /// # Errors
    /// The response that says why not.
    pub fn check(&self, request: &Request) -> Result<(), Response> {
        self.admit(request).map(drop)
    }

    fn admit(&self, request: &Request) -> Result<Route, Response> {
        let route = match Route::find(&request.path) {
            Ok(Some(route)) => route,
            Ok(None) => return Err(Response::error(404, "there is nothing at this path; `/` lists what there is")),
            Err(malformed) => return Err(Refusal::from(malformed).into()),
        };
        let (methods, names) = route.methods();
        if !methods.contains(&request.method) {
            let message = format!("this path takes {names}, not {}", request.method.as_str());
            return Err(Response::error(405, &message).with_header("allow", names));
        }
        if request.method.changes_state() {
            self.admin.check(request)?;
        }
        Ok(route)
    }

    async fn answer(&self, route: Route, request: &Request) -> Result<Response, Refusal> {
        let node = &self.node;
        match route {
            Route::Index => Ok(health::index(node)),
            Route::Ready => Ok(health::ready(node)),
            Route::Metrics => Ok(health::metrics(node)),
            Route::Members => Ok(members::list(node)),
            Route::LabelStatus => labels::status(node),
            Route::LabelPlan => labels::plan(node, request).await,
            Route::GossipKeys => keys::keys(node, request).await,
            Route::GossipKey(id) => keys::remove(node, &id, request).await,
            Route::UseGossipKey(id) => keys::use_key(node, &id, request).await,
            Route::Rings => Ok(rings::all(node)),
            Route::Ring(name) => rings::one(node, &name),
            Route::Lookup(name) => rings::lookup(node, &name, request),
            Route::Forget(name, id) => rings::forget(node, &name, &id).await,
            Route::Keys => kv::list(self, request).await,
            Route::Key(key) => match request.method {
                Method::Put => kv::put(node, &key, request).await,
                Method::Delete => kv::delete(node, &key, request).await,
                _ => kv::get(self, &key, request).await,
            },
            Route::Migration => Ok(migration::status(node)),
            Route::Parity => migration::parity(node).await,
            Route::Preflight => migration::preflight(node),
            Route::Actors => Ok(actors::list(node)),
            Route::Drill(actor) => actors::drill(node, &actor, request),
            Route::Config => Ok(settings::config(node)),
            Route::RuntimeConfig => settings::runtime_config(node),
            Route::Events => stream::events(self),
        }
    }
}

/// How the node ended, if it has.
pub(super) fn ended(node: &Node) -> Option<Exit> {
    node.closed().now_or_never()
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").field("node", &self.node).field("admin", &self.admin).finish_non_exhaustive()
    }
}
