//! What load balancers, scrapers and passers-by ask.

use serde_json::json;

use super::api::ended;
use super::response::{Body, Response};
use super::route::ROUTES;
use crate::actors::supervisor::Exit;
use crate::node::Node;

/// The content type that the OpenMetrics specification asks for.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub(super) fn index(node: &Node) -> Response {
    let state = match (ended(node), node.ready()) {
        (Some(Exit::Stopped), _) => "stopped",
        (Some(Exit::Failed { .. }), _) => "failed",
        (None, Ok(())) => "ready",
        (None, Err(_)) => "starting",
    };
    let links: Vec<_> = ROUTES
        .iter()
        .map(|route| json!({ "methods": route.methods, "path": route.path, "about": route.about }))
        .collect();
    Response::json(&json!({
        "name": node.id(), "version": env!("CARGO_PKG_VERSION"), "state": state, "links": links,
    }))
}

pub(super) fn ready(node: &Node) -> Response {
    let reasons = match ended(node) {
        Some(Exit::Stopped) => vec!["the node has stopped".to_owned()],
        Some(Exit::Failed { actor, cause }) => vec![format!("the node has failed: {actor}: {cause}")],
        None => node.ready().err().unwrap_or_default(),
    };
    if reasons.is_empty() { Response::text("ready") } else { Response::text(reasons.join("\n")).with_status(503) }
}

pub(super) fn metrics(node: &Node) -> Response {
    Response::new(OPEN_METRICS, Body::Bytes(node.metrics().into()))
}
