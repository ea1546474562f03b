//! Where the move from one store to the other stands.

use serde_json::json;

use super::response::Response;
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
        fields.insert("runtime_config".to_owned(), json!(node.runtime_config().as_deref()));
    }
    Response::json(&answer)
}
