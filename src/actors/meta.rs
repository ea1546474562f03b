//! What the members are told about this node, and its changes.

use actix::{Context, Handler};
use bytes::Bytes;

use super::membership::Membership;
use super::message::message;
use crate::swim::Input;
use crate::wire::MAX_META;

/// Why this node says about itself what it said before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MetaError {
    /// The node does not gossip.
    #[error("this node's store is not memberlist, so it has no members to tell")]
    NoGossip,
    /// It is longer than what the protocol carries.
    #[error("{len} bytes are more than the {MAX_META} that members take")]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// The node is leaving, or has ended.
    #[error("the node has left, or has ended")]
    Closed,
    /// The membership actor died over it each time that it was asked. It may be done or not; ask again.
    #[error("the membership actor died over it; ask again")]
    Interrupted,
}

/// Says something else about this node. Safe to repeat.
#[derive(Clone)]
pub(crate) struct SetMeta(pub(crate) Bytes);
message!(SetMeta => Result<(), MetaError>);

impl Handler<SetMeta> for Membership {
    type Result = Result<(), MetaError>;

    fn handle(&mut self, SetMeta(meta): SetMeta, ctx: &mut Context<Self>) -> Self::Result {
        if meta.len() > MAX_META {
            return Err(MetaError::TooLong { len: meta.len() });
        }
        if self.core().has_left() {
            return Err(MetaError::Closed);
        }
        // Published with this, so a core that takes over says it too.
        self.input(Input::UpdateMeta(meta), ctx);
        Ok(())
    }
}
