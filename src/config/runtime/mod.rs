//! The configuration that changes while a node runs.
//!
//! It is the `multi_kv_config` section of the file that Mimir and Loki reload (dskit `runtimeconfig`), with the same
//! keys and the same effects, so that one file can drive a mixed fleet. Sections of other programs in that file are
//! ignored; inside its own section everything is strict, because a typing mistake there would silently keep a node on
//! the wrong store.
//!
//! [`RuntimeLoader`] reads the files and remembers the last good set. It starts nothing and reads no clock: whoever
//! owns it calls [`RuntimeLoader::poll`] every `runtime_config.period`.
//!
//! ```no_run
//! use annulus::config::{Poll, RuntimeLoader};
//!
//! let mut loader = RuntimeLoader::new(vec!["runtime.yaml".into()]);
//! match loader.poll() {
//!     Poll::Changed(config) => println!("primary is now {:?}", config.multi_kv_config.primary),
//!     Poll::Unchanged => {}
//!     Poll::Failed(error) => eprintln!("kept the last good configuration: {error}"),
//! }
//! ```

use std::path::{Path, PathBuf};

use serde::Serialize;

mod cache;
mod document;
mod loader;

pub use cache::{CACHE_FILE, CacheError, last_named_primary, load_last_good, save_last_good};
pub use loader::{Poll, RuntimeLoader};

/// What the runtime files say, merged. Everything left out means "no change".
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RuntimeConfig {
    /// The section of the multi store.
    pub multi_kv_config: MultiKvConfig,
}

/// Which store is read, and whether both are written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MultiKvConfig {
    /// Write to both stores; `None` leaves it as it is.
    pub mirror_enabled: Option<bool>,
    /// Name of the store that is read; `None` (also when the file has `""`) leaves it as it is.
    pub primary: Option<String>,
}

impl RuntimeConfig {
    /// Parses one document, as [`RuntimeLoader`] does with a single file.
    ///
    /// # Errors
    ///
    /// [`RuntimeError`] with `file` as the place.
    pub fn parse(bytes: &[u8], file: &Path) -> Result<Self, RuntimeError> {
        Ok(document::Document::parse(bytes, file)?.into_config())
    }

    /// Writes it the way it is read: what is `None` is left out.
    #[must_use]
    pub fn to_yaml(&self) -> String {
        let section = &self.multi_kv_config;
        if *section == MultiKvConfig::default() {
            return "multi_kv_config: {}\n".to_owned();
        }
        let mut out = "multi_kv_config:\n".to_owned();
        if let Some(on) = section.mirror_enabled {
            out.push_str(&format!("  mirror_enabled: {on}\n"));
        }
        if let Some(primary) = &section.primary {
            // A JSON text is a YAML text, whatever a caller put into the field.
            out.push_str(&format!("  primary: {}\n", serde_json::Value::from(primary.as_str())));
        }
        out
    }
}

/// Why the runtime configuration could not be taken over. The last good one stays in force.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// The file is not there. With Kubernetes: the ConfigMap is not mounted, or has no such key.
    #[error("{}: there is no such file; the last good runtime config stays in force", file.display())]
    NotFound {
        /// Its path.
        file: PathBuf,
    },
    /// The file is there but this user may not read it.
    #[error("{}: permission denied; let the user that runs this process read it", file.display())]
    Permission {
        /// Its path.
        file: PathBuf,
    },
    /// Reading failed, or the path is no regular file.
    #[error("{}: cannot be read: {reason}", file.display())]
    Unreadable {
        /// Its path.
        file: PathBuf,
        /// What the operating system said.
        reason: String,
    },
    /// The file is larger than 1 MiB.
    #[error("{}: larger than {} bytes", file.display(), super::MAX_FILE_BYTES)]
    TooLarge {
        /// Its path.
        file: PathBuf,
    },
    /// The text does not parse (half written?), or is not exactly one document with sections.
    #[error("{}: {reason}", file.display())]
    Syntax {
        /// Its path.
        file: PathBuf,
        /// What the parser said.
        reason: String,
    },
    /// A key in our section that does not exist.
    #[error("{}: unknown key `{key}`; multi_kv_config has mirror_enabled and primary", file.display())]
    UnknownKey {
        /// Its path.
        file: PathBuf,
        /// The dotted key.
        key: String,
    },
    /// A value of the wrong kind in our section.
    #[error("{}: `{key}` must be {expected}, but is {got}", file.display())]
    WrongType {
        /// Its path.
        file: PathBuf,
        /// The dotted key.
        key: String,
        /// What is accepted.
        expected: &'static str,
        /// What stands there.
        got: String,
    },
    /// `primary` names a store that does not exist, or that this node does not have.
    #[error("{}: multi_kv_config.primary: there is no store `{name}` here; use one of {known}", file.display())]
    UnknownStore {
        /// The file, or the last of the files that were merged.
        file: PathBuf,
        /// The name in the file.
        name: String,
        /// The names that would be accepted.
        known: String,
    },
}

#[cfg(test)]
mod tests;
