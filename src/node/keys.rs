//! The gossip keys of a running node.

use serde::Serialize;

use super::Node;
use crate::actors::keys::{ChangeKeys, KeyChangeError};
use crate::wire::Key;

/// One key of a node's keyring; tells nothing about its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyStatus {
    /// What the key is called: [`Key::id`], the same on every node.
    pub id: String,
    /// Its length: 128, 192 or 256.
    pub bits: usize,
    /// Whether this node encrypts with it.
    pub primary: bool,
    /// Whether it stands in this node's configuration. One that does not is gone after the next restart.
    pub configured: bool,
}

impl Node {
    /// The keys that this node has now, the one that encrypts first. Empty when it does not encrypt, or not gossip.
    #[must_use]
    pub fn keys(&self) -> Vec<KeyStatus> {
        let Some(transport) = &self.system.transport else { return Vec::new() };
        let keyring = transport.wrapping.options().keyring.clone();
        let configured: Vec<Key> = self
            .config()
            .memberlist
            .encryption_keys
            .iter()
            .filter_map(|key| Key::from_base64(key.expose()).ok())
            .collect();
        let status = |(place, key): (usize, &Key)| KeyStatus {
            id: key.id(),
            bits: key.bits(),
            primary: place == 0,
            configured: configured.contains(key),
        };
        keyring.iter().enumerate().map(status).collect()
    }

    /// Installs a key behind the others: this node can then read what is encrypted with it. The first of three rounds
    /// over all nodes; [`use_key`](Self::use_key) and [`remove_key`](Self::remove_key) are the others.
    ///
    /// The configuration is not changed: put the key there as well, or the node forgets it at its next restart.
    ///
    /// # Errors
    /// [`KeyChangeError`]; a node without any key refuses its first.
    pub async fn install_key(&self, key: Key) -> Result<(), KeyChangeError> {
        self.change_keys(ChangeKeys::Install(key)).await
    }

    /// Encrypts with this key from now on. Do it when every node has the key.
    ///
    /// # Errors
    /// [`KeyChangeError`].
    pub async fn use_key(&self, id: &str) -> Result<(), KeyChangeError> {
        self.change_keys(ChangeKeys::Use(id.to_owned())).await
    }

    /// Removes a key: what is encrypted with it is refused from now on. Do it when every node uses another.
    ///
    /// # Errors
    /// [`KeyChangeError`]; the key that encrypts cannot be removed.
    pub async fn remove_key(&self, id: &str) -> Result<(), KeyChangeError> {
        self.change_keys(ChangeKeys::Remove(id.to_owned())).await
    }

    async fn change_keys(&self, change: ChangeKeys) -> Result<(), KeyChangeError> {
        let Some(membership) = &self.system.membership else { return Err(KeyChangeError::NoGossip) };
        membership.send(change).await.unwrap_or_else(|_| match membership.connected() {
            true => Err(KeyChangeError::Interrupted),
            false => Err(KeyChangeError::Closed),
        })
    }
}
