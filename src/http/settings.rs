//! What this node was told to do.

use super::response::{Refusal, Response};
use crate::node::Node;

/// Secrets hide themselves when they are serialised.
pub(super) fn config(node: &Node) -> Response {
    Response::json(node.config())
}

pub(super) fn runtime_config(node: &Node) -> Result<Response, Refusal> {
    match node.runtime_config() {
        Some(view) => Ok(Response::json(&*view)),
        None => Err(Refusal::new(404, "no runtime file is configured; runtime_config.file names them")),
    }
}
