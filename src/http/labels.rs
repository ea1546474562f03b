//! Who sends which label, and what comes next in a change of label.

use super::request::Request;
use super::response::{Refusal, Response};
use crate::node::Node;
use crate::wire::Label;

pub(super) fn status(node: &Node) -> Result<Response, Refusal> {
    match node.labels() {
        Some(status) => Ok(Response::json(&status)),
        None => Err(Refusal::new(404, "this node's store is not memberlist, so it has no label")),
    }
}

pub(super) async fn plan(node: &Node, request: &Request) -> Result<Response, Refusal> {
    request.allow_only(&["to"])?;
    let to = request.parameter("to").map(Label::new).transpose();
    let to = to.map_err(|error| Refusal::new(400, error.to_string()))?;
    match node.plan_label(to).await {
        Ok(plan) => Ok(Response::json(&plan)),
        Err(reason) => Err(Refusal::new(409, reason)),
    }
}
