//! Where the move from one store to the other stands.

use serde_json::json;

use super::response::{Refusal, Response};
use crate::node::Node;

pub(super) fn status(node: &Node) -> Response {
    let mut answer = match node.migration() {
        Some(status) => serde_json::to_value(&*status).unwrap_or_default(),
        // The only store there is is the primary.
        None => {
            let store = node.store().kind();
            json!({ "store": store, "phase": "solo", "primary": store, "mirror_enabled": false })
        }
    };
    if let Some(fields) = answer.as_object_mut() {
        fields.entry("store").or_insert_with(|| json!("multi"));
        fields.insert("shadow_lookups".to_owned(), json!(node.shadow_lookups()));
        fields.insert("runtime_config".to_owned(), json!(node.runtime_config().as_deref()));
    }
    Response::json(&answer)
}

const ONE_STORE: &str = "this node has one store; kv.store: multi has two, and a migration is between them";

pub(super) async fn parity(node: &Node) -> Result<Response, Refusal> {
    match node.parity().await {
        None => Err(Refusal::new(404, ONE_STORE)),
        Some(Ok(report)) => Ok(Response::json(&*report)),
        Some(Err(reason)) => Err(Refusal::new(503, format!("the stores cannot be compared: {reason}"))),
    }
}

pub(super) fn preflight(node: &Node) -> Result<Response, Refusal> {
    match node.preflight() {
        None => Err(Refusal::new(404, ONE_STORE)),
        Some(preflight) => Ok(Response::json(&preflight)),
    }
}
