//! Rings, and who owns a key.

use serde_json::json;

use super::request::Request;
use super::response::{Refusal, Response};
use crate::node::{Node, RingHandle};
use crate::ring::{Operation, key_hash};

pub(super) fn all(node: &Node) -> Response {
    let rings: Vec<_> = node.rings().iter().map(RingHandle::status).collect();
    Response::json(&json!({ "rings": rings }))
}

pub(super) fn one(node: &Node, name: &str) -> Result<Response, Refusal> {
    Ok(Response::json(&ring(node, name)?.status()))
}

pub(super) fn lookup(node: &Node, name: &str, request: &Request) -> Result<Response, Refusal> {
    request.allow_only(&["key", "hash", "op"])?;
    let operation = request.parameter("op").map_or(Ok(Operation::Write), operation)?;
    let key = request.parameter("key");
    let hash = match (key, request.number::<u32>("hash")?) {
        (Some(key), None) => key_hash(key),
        (None, Some(hash)) => hash,
        _ => return Err(Refusal::new(400, "give either key=… or hash=…")),
    };
    let set = ring(node, name)?.get(hash, operation).map_err(|error| Refusal::new(503, error.to_string()))?;
    let instances = set.instances().map(|instance| {
        json!({ "id": &*instance.id, "address": &*instance.addr, "zone": &*instance.zone, "state": instance.state })
    });
    Ok(Response::json(&json!({
        "key": key,
        "hash": hash,
        "operation": operation,
        "instances": instances.collect::<Vec<_>>(),
        "max_errors": set.max_errors(),
    })))
}

pub(super) async fn forget(node: &Node, name: &str, id: &str) -> Result<Response, Refusal> {
    let forgotten = ring(node, name)?.forget(id).await?;
    Ok(Response::json(&json!({ "forgotten": forgotten })))
}

fn ring(node: &Node, name: &str) -> Result<RingHandle, Refusal> {
    let known = node.config().ring(name).map(|ring| node.ring(&ring.name));
    known.ok_or_else(|| {
        let names: Vec<_> = node.config().rings.iter().map(|ring| ring.name.as_str()).collect();
        let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        Refusal::new(404, format!("there is no ring {name:?}; this node has: {names}"))
    })
}

fn operation(name: &str) -> Result<Operation, Refusal> {
    match name {
        "write" => Ok(Operation::Write),
        "read" => Ok(Operation::Read),
        "write_no_extend" => Ok(Operation::WriteNoExtend),
        "reporting" => Ok(Operation::Reporting),
        _ => Err(Refusal::new(400, format!("unknown op {name:?}; there are write, read, write_no_extend, reporting"))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn operations_are_read_as_they_are_written() {
        for op in Operation::ALL {
            let name = serde_json::to_value(op).unwrap();
            assert_eq!(operation(name.as_str().unwrap()), Ok(op));
        }
    }
}
