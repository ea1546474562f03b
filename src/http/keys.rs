//! The gossip keys: what they are called, never what they are.

use serde::Deserialize;
use serde_json::json;

use super::request::{Method, Request};
use super::response::{Refusal, Response};
use crate::actors::keys::KeyChangeError;
use crate::node::Node;
use crate::wire::{Key, KeyError};

/// What is posted to install a key. No `Debug`: the key must not reach a log.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Install {
    key: String,
}

pub(super) async fn keys(node: &Node, request: &Request) -> Result<Response, Refusal> {
    request.allow_only(&[])?;
    if request.method == Method::Post {
        // The parser's message would quote the body.
        let install: Install = serde_json::from_slice(&request.body)
            .map_err(|_| Refusal::new(400, r#"the body must be {"key": "…"} with a key in base64"#))?;
        let key = Key::from_base64(&install.key).map_err(|error| Refusal::new(400, format!("the key: {error}")))?;
        node.install_key(key).await?;
    }
    Ok(list(node))
}

pub(super) async fn use_key(node: &Node, id: &str, request: &Request) -> Result<Response, Refusal> {
    request.allow_only(&[])?;
    node.use_key(id).await?;
    Ok(list(node))
}

pub(super) async fn remove(node: &Node, id: &str, request: &Request) -> Result<Response, Refusal> {
    request.allow_only(&[])?;
    node.remove_key(id).await?;
    Ok(list(node))
}

fn list(node: &Node) -> Response {
    let memberlist = &node.config().memberlist;
    let members = node.members();
    let live: Vec<_> = members.list.iter().filter(|member| member.is_live()).map(|m| m.name.as_str()).collect();
    Response::json(&json!({
        "node": node.id(),
        "verify_incoming": memberlist.gossip_verify_incoming,
        "verify_outgoing": memberlist.gossip_verify_outgoing,
        "keys": node.keys(),
        "members": live,
    }))
}

impl From<KeyChangeError> for Refusal {
    fn from(error: KeyChangeError) -> Self {
        let status = match error {
            KeyChangeError::Key(KeyError::Unknown) => 404,
            KeyChangeError::Closed | KeyChangeError::Interrupted => 503,
            _ => 409,
        };
        Self::new(status, error.to_string())
    }
}
