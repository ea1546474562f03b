//! What a running node says about itself to the members.

use bytes::Bytes;

use super::Node;
use crate::actors::meta::{MetaError, SetMeta};

/// How often the membership actor is asked when it dies over the question.
const ATTEMPTS: usize = 3;

impl Node {
    /// Tells the members something else about this node: at most 512 bytes, in place of what
    /// [`NodeBuilder::meta`](super::NodeBuilder::meta) or an earlier call said. They hear of it by gossip; what each says is
    /// in [`Member::meta`](crate::swim::Member::meta). When this returns, [`Node::members`] shows it, and it outlives the
    /// membership actor; not the node.
    ///
    /// # Errors
    /// [`MetaError`]; nothing changes then, but for [`MetaError::Interrupted`].
    pub async fn set_meta(&self, meta: impl Into<Bytes>) -> Result<(), MetaError> {
        let Some(membership) = &self.system.membership else { return Err(MetaError::NoGossip) };
        let request = SetMeta(meta.into());
        for _ in 0..ATTEMPTS {
            match membership.send(request.clone()).await {
                Ok(answer) => return answer,
                Err(_) if membership.connected() => {}
                Err(_) => return Err(MetaError::Closed),
            }
        }
        Err(MetaError::Interrupted)
    }
}
