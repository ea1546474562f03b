//! Reads the runtime files again and again, and tells whether anything changed.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::document::Document;
use super::{RuntimeConfig, RuntimeError};
use crate::config::KvStore;
use crate::config::text::{self, ReadError};

/// What a look at the files gave.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Poll {
    /// The files are, byte for byte, those of the last good configuration.
    Unchanged,
    /// A new good configuration; the first good one is always new.
    Changed(RuntimeConfig),
    /// Something is wrong; the last good configuration stays in force, and the next poll tries again.
    Failed(RuntimeError),
}

/// Reads the files of the runtime configuration, by content every time.
///
/// By content, because Kubernetes replaces a ConfigMap by swapping a symbolic link: neither the time nor the size of
/// the path need change.
#[derive(Clone, Debug)]
pub struct RuntimeLoader {
    files: Vec<PathBuf>,
    stores: Vec<KvStore>,
    /// Digest of each file of the last good set, and what they said.
    good: Option<(Vec<[u8; 32]>, RuntimeConfig)>,
    error: Option<RuntimeError>,
}

impl RuntimeLoader {
    /// A loader for these files, merged from left to right. Without files it is always healthy and never has anything.
    #[must_use]
    pub fn new(files: Vec<PathBuf>) -> Self {
        Self { files, stores: Vec::new(), good: None, error: None }
    }

    /// Accepts as `primary` only the stores that this node has, see
    /// [`KvConfig::stores`](crate::config::KvConfig::stores). An empty list, which is also what a new loader has,
    /// accepts every store there is.
    #[must_use]
    pub fn with_stores(mut self, stores: Vec<KvStore>) -> Self {
        self.stores = stores;
        self
    }

    /// Reads all files, and takes them over if they are good and differ from the last good ones.
    pub fn poll(&mut self) -> Poll {
        if self.files.is_empty() {
            return Poll::Unchanged;
        }
        let outcome = self.look();
        self.error = match &outcome {
            Poll::Failed(error) => Some(error.clone()),
            Poll::Unchanged | Poll::Changed(_) => None,
        };
        outcome
    }

    fn look(&mut self) -> Poll {
        let sources = match self.files.iter().map(|file| read(file)).collect::<Result<Vec<_>, _>>() {
            Ok(sources) => sources,
            Err(error) => return Poll::Failed(error),
        };
        let digests: Vec<[u8; 32]> = sources.iter().map(|bytes| Sha256::digest(bytes).into()).collect();
        if self.good.as_ref().is_some_and(|(good, _)| *good == digests) {
            return Poll::Unchanged;
        }
        match self.merge(&sources) {
            Ok(config) => {
                self.good = Some((digests, config.clone()));
                Poll::Changed(config)
            }
            Err(error) => Poll::Failed(error),
        }
    }

    fn merge(&self, sources: &[Vec<u8>]) -> Result<RuntimeConfig, RuntimeError> {
        let mut merged = Document::default();
        for (file, bytes) in self.files.iter().zip(sources) {
            merged.merge(Document::parse(bytes, file)?);
        }
        let config = merged.into_config();
        if let Some(name) = &config.multi_kv_config.primary
            && !self.stores.is_empty()
            && !self.stores.iter().any(|store| store.name() == name)
        {
            let known = self.stores.iter().map(|store| store.name()).collect::<Vec<_>>().join(", ");
            let file = self.files.last().cloned().unwrap_or_default();
            return Err(RuntimeError::UnknownStore { file, name: name.clone(), known });
        }
        Ok(config)
    }

    /// The last good configuration, `None` before the first.
    #[must_use]
    pub fn last_good(&self) -> Option<&RuntimeConfig> {
        self.good.as_ref().map(|(_, config)| config)
    }

    /// True unless the last poll failed.
    #[must_use]
    pub fn healthy(&self) -> bool {
        self.error.is_none()
    }

    /// Why the last poll failed.
    #[must_use]
    pub fn last_error(&self) -> Option<&RuntimeError> {
        self.error.as_ref()
    }

    /// SHA-256, in hexadecimal, over names and contents of the last good files; empty before the first.
    ///
    /// Equal on all nodes that have taken over the same files under the same paths (metric `runtime_config_hash`). It
    /// is dskit's: for each file the length of its name as eight bytes, big endian, the name, and the SHA-256 of its
    /// content.
    #[must_use]
    pub fn hash(&self) -> String {
        let Some((digests, _)) = &self.good else { return String::new() };
        let mut hash = Sha256::new();
        for (file, digest) in self.files.iter().zip(digests) {
            let name = file.to_string_lossy();
            hash.update((name.len() as u64).to_be_bytes());
            hash.update(name.as_bytes());
            hash.update(digest);
        }
        hex(&hash.finalize())
    }
}

fn read(file: &Path) -> Result<Vec<u8>, RuntimeError> {
    let file = file.to_owned();
    text::read(&file).map_err(|error| match error {
        ReadError::NotFound => RuntimeError::NotFound { file },
        ReadError::Permission => RuntimeError::Permission { file },
        ReadError::TooLarge => RuntimeError::TooLarge { file },
        ReadError::Other(reason) => RuntimeError::Unreadable { file, reason },
    })
}

/// Bytes in hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
