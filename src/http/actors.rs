//! The supervision tree, and drills.

use serde_json::json;

use super::request::Request;
use super::response::{Refusal, Response};
use crate::actors::message::Fault;
use crate::node::Node;

pub(super) fn list(node: &Node) -> Response {
    let uptime = u64::try_from(node.uptime().as_millis()).unwrap_or(u64::MAX);
    Response::json(&json!({ "actors": node.actors(), "uptime_ms": uptime }))
}

pub(super) fn drill(node: &Node, actor: &str, request: &Request) -> Result<Response, Refusal> {
    if !node.config().http.drills_enabled {
        return Err(Refusal::new(403, "drills are off; set http.drills_enabled to allow them"));
    }
    request.allow_only(&["fault"])?;
    let fault = match request.parameter("fault") {
        Some("panic") => Fault::Panic,
        Some("stop") => Fault::Stop,
        _ => return Err(Refusal::new(400, "give fault=panic or fault=stop")),
    };
    node.drill(actor, fault).map_err(|reason| Refusal::new(404, reason))?;
    Ok(Response::json(&json!({ "actor": actor, "fault": fault })))
}
