//! Why a configuration was refused.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// This file.
    File(PathBuf),
    /// This environment variable.
    Environment(String),
    /// A `--set` on the command line, or [`Loader::set`](super::Loader::set).
    Set,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Set => f.write_str("--set"),
        }
    }
}

/// One thing that cannot work, found by [`Config::validate`](super::Config::validate).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Problem {
    /// The dotted key, such as `kv.multi.secondary` or `rings[0].name`.
    pub key: String,
    /// What is wrong, and what to do.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.reason)
    }
}

/// Why a configuration could not be loaded. Nothing was changed by the attempt.
///
/// No message holds the value of a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// There is no file at this path.
    #[error("{}: there is no such file; check the path given with --config", file.display())]
    NotFound {
        /// The path as it was given.
        file: PathBuf,
    },
    /// The file exists but this user may not read it.
    #[error("{}: permission denied; let the user that runs this process read it", file.display())]
    Permission {
        /// The path as it was given.
        file: PathBuf,
    },
    /// The path is a directory, a device or a pipe, or reading it failed.
    #[error("{}: cannot be read: {reason}", file.display())]
    Unreadable {
        /// The path as it was given.
        file: PathBuf,
        /// What the operating system said.
        reason: String,
    },
    /// The file is larger than a configuration can be.
    #[error("{}: larger than {limit} bytes, which is the limit for a configuration file", file.display())]
    TooLarge {
        /// The path as it was given.
        file: PathBuf,
        /// The limit in bytes.
        limit: u64,
    },
    /// The name does not end in a known extension.
    #[error("{}: the name must end in .yaml, .yml, .toml or .json, so that its format is known", file.display())]
    Format {
        /// The path as it was given.
        file: PathBuf,
    },
    /// The text is not what its extension promises, or holds more than one document.
    #[error("{}: {reason}", file.display())]
    Syntax {
        /// The path as it was given.
        file: PathBuf,
        /// What the parser said, with the line where it knows it.
        reason: String,
    },
    /// A key that does not exist. Ignoring it would hide a typing mistake.
    #[error("{origin}: unknown key `{key}`{}", hint(suggestion))]
    UnknownKey {
        /// Where the key stands.
        origin: Origin,
        /// The dotted key.
        key: String,
        /// The existing key that looks most like it.
        suggestion: Option<String>,
    },
    /// A value of the wrong kind.
    #[error("{origin}: `{key}` must be {expected}, but is {got}")]
    WrongType {
        /// The dotted key.
        key: String,
        /// What is accepted.
        expected: String,
        /// What stands there; secrets are described, not shown.
        got: String,
        /// Where the value stands.
        origin: Origin,
    },
    /// A `--set` that has no `=`, or no key.
    #[error("--set `{argument}`: write it as section.key=value")]
    BadSet {
        /// The part of the argument before any `=`.
        argument: String,
    },
    /// Values that are well formed but cannot work, all of them.
    #[error("the configuration cannot work:{}", bullets(.0))]
    Invalid(Vec<Problem>),
}

fn hint(suggestion: &Option<String>) -> String {
    match suggestion {
        Some(key) => format!(", did you mean `{key}`?"),
        None => "; `annulus config reference` lists all keys".to_owned(),
    }
}

fn bullets(problems: &[Problem]) -> String {
    problems.iter().map(|problem| format!("\n  - {problem}")).collect()
}
