//! What a node shows and takes over HTTP: JSON under `/api/v1`, metrics, readiness.
//!
//! The handlers know no web framework. [`Api::handle`] turns a [`Request`] into a [`Response`], and a thin adapter
//! does the rest; [`server`] is the one that `annulus agent` runs. So a host with a server of its own can answer these
//! routes there, and all of them are tested without a socket as well as with one.
//!
//! ```
//! use annulus::http::{Api, Method, Request};
//! use annulus::{Config, Node, config::KvStore};
//!
//! # tokio::runtime::Runtime::new()?.block_on(async {
//! let mut config = Config::default();
//! config.kv.store = KvStore::Inmemory;
//! let node = Node::builder("ingester-1").config(config).start().await?;
//! let response = Api::new(node.clone()).handle(Request::new(Method::Get, "/api/v1/rings")?).await;
//! assert_eq!(response.status, 200);
//! node.stop().await;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Layout
//!
//! | file | what |
//! |---|---|
//! | `request.rs`, `response.rs` | a request and a response, and how bytes of a URL become text |
//! | `route.rs` | the table of all routes |
//! | `admin.rs` | who may change state |
//! | `api.rs` | from a route to its handler |
//! | `health.rs`, `members.rs`, `rings.rs`, `kv.rs`, `keys.rs`, `labels.rs`, `migration.rs`, `actors.rs`, `settings.rs` | the handlers, one subject a file |
//! | `stream.rs` | server-sent events |
//! | `server.rs` | the server of the agent |

mod actors;
pub mod admin;
mod api;
mod connection;
mod health;
mod keys;
mod kv;
mod labels;
mod members;
mod migration;
mod request;
mod response;
mod rings;
mod route;
pub mod server;
mod settings;
mod stream;

pub use self::admin::{Admin, AdminError};
pub use self::api::Api;
pub use self::request::{MAX_BODY, Malformed, Method, Request};
pub use self::response::{Body, Response};
pub use self::route::{ROUTES, RouteInfo};
pub use self::server::{ServeError, Server, bind, serve};
