//! What can be set, and how it is loaded.
//!
//! There are two kinds of configuration. The **static** one ([`Config`]) is read once at start: a file (YAML, TOML or
//! JSON), over it the environment (`ANNULUS__SECTION__KEY`), over it `--set section.key=value`. The **runtime** one
//! ([`RuntimeConfig`]) is a small file read again every few seconds, which moves a running node from one store to the
//! other ([`runtime`]).
//!
//! Strictness is the point of this module: an unknown key, a value of the wrong kind and a combination that cannot work
//! are refused at start, with the place, the key, the reason and what to do. A typing mistake in a migration must not
//! be discovered during the migration.
//!
//! ```
//! use annulus::config::Config;
//!
//! let config = Config::builder("ingester-1")
//!     .address("10.0.0.5:9095")
//!     .join_members(["dns+gossip.ns.svc:7946"])
//!     .ring("ingester")
//!     .build()?;
//! assert_eq!(config.memberlist.bind_port, 7946);
//! # Ok::<(), annulus::config::ConfigError>(())
//! ```
//!
//! # Layout
//!
//! | file | what |
//! |---|---|
//! | `memberlist.rs`, `kv.rs`, `rings.rs` | the sections, as plain data |
//! | `profile.rs` | timings of the membership profiles |
//! | `units.rs` | durations, sizes, secrets, lists |
//! | `networks.rs` | the allow-list of networks |
//! | `schema.rs` | the table of all keys; `reference.rs` prints it |
//! | `text.rs` | bytes of a file to a tree of values, within limits |
//! | `layer.rs` | one source of values, checked against the table |
//! | `load.rs`, `validate.rs` | layers to a [`Config`]; combinations that cannot work |
//! | `builder.rs` | a [`Config`] written in code |
//! | `runtime/` | the reloaded file, its merge, and the cache of the last good one |

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

mod builder;
mod error;
mod kv;
mod layer;
mod load;
mod memberlist;
mod networks;
pub mod profile;
pub mod reference;
mod rings;
pub mod runtime;
mod schema;
mod text;
mod units;
mod validate;

pub use builder::ConfigBuilder;
pub use error::{ConfigError, Origin, Problem};
pub use kv::{ConsulConfig, EtcdConfig, KvConfig, KvStore, MultiConfig};
pub use load::{Loaded, Loader, Row};
pub use memberlist::{Compression, MemberlistConfig, TransportKind};
pub use networks::{Networks, NotANetwork};
pub use profile::{Profile, ProfileSettings};
pub use rings::{MergeStrategy, RingConfig, TokenStrategy};
pub use runtime::{MultiKvConfig, Poll, RuntimeConfig, RuntimeError, RuntimeLoader};
pub use text::MAX_FILE_BYTES;
pub use units::{ByteSize, SECRET_MASK, Secret, format_duration, parse_duration};

/// The whole static configuration. Every field is public: it can be filled in code as well as loaded.
///
/// `Debug` and `Serialize` hide secrets, so what they give cannot be loaded again if a secret is set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Who this node is.
    pub node: NodeConfig,
    /// The gossip cluster.
    pub memberlist: MemberlistConfig,
    /// The store of the rings.
    pub kv: KvConfig,
    /// The rings that this node reads or joins.
    pub rings: Vec<RingConfig>,
    /// Where the runtime configuration is read from.
    pub runtime_config: RuntimeConfigFiles,
    /// The move from one store to another.
    pub migration: MigrationConfig,
    /// Pages and API of the agent.
    pub http: HttpConfig,
}

impl Config {
    /// Loads a file, then what the environment overrides.
    ///
    /// # Errors
    ///
    /// See [`ConfigError`]; nothing is half loaded.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        Ok(Self::loader().file(path.as_ref()).environment().load()?.config)
    }

    /// Loads from several sources, and tells where each value came from.
    pub fn loader() -> Loader {
        Loader::default()
    }

    /// Starts a configuration in code, for a node with this name.
    pub fn builder(id: impl Into<String>) -> ConfigBuilder {
        ConfigBuilder::new(id)
    }

    /// Looks for combinations that cannot work.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Invalid`] with all of them, not only the first.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let problems = validate::problems(self);
        if problems.is_empty() { Ok(()) } else { Err(ConfigError::Invalid(problems)) }
    }

    /// The ring with this name.
    #[must_use]
    pub fn ring(&self, name: &str) -> Option<&RingConfig> {
        self.rings.iter().find(|ring| ring.name == name)
    }
}

/// Who this node is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodeConfig {
    /// Name of this node and of its instance in every ring. Required, unique in the cluster, at most 255 bytes.
    pub id: String,
    /// Availability zone. Required when a joined ring has zone awareness.
    pub zone: String,
    /// `host:port` that peers of the application dial. Required when a ring is joined.
    pub address: String,
    /// Directory for what survives a restart; empty keeps nothing.
    pub data_dir: String,
}

/// Where the runtime configuration is read from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RuntimeConfigFiles {
    /// Files, merged from left to right. Empty turns reloading off.
    #[serde(deserialize_with = "units::list")]
    pub file: Vec<String>,
    /// How often they are read.
    #[serde(with = "units::duration")]
    pub period: Duration,
}

impl Default for RuntimeConfigFiles {
    fn default() -> Self {
        Self { file: Vec::new(), period: Duration::from_secs(10) }
    }
}

/// The move from one store to another.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MigrationConfig {
    /// The guided migration over the fleet; `true` is refused, because this version does not have it.
    pub enabled: bool,
    /// Says to people and tools that the old store is going: the way back of a node with two stores is shown as impossible.
    /// Changes nothing else.
    pub teardown: bool,
    /// A node flips only while every gate is open; until then it stays on the old primary, says why, and keeps trying.
    pub require_parity: bool,
    /// Share of lookups, 0 to 1, that are answered from both stores and compared. 0 turns it off.
    pub shadow_lookups: f64,
}

/// Pages and API of the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpConfig {
    /// IP address and port; empty opens none.
    pub listen: String,
    /// File with the token that changes need. Empty: changes from loopback only.
    pub admin_token_file: String,
    /// Allow requests that break things on purpose, for exercises.
    pub drills_enabled: bool,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self { listen: "127.0.0.1:8080".to_owned(), admin_token_file: String::new(), drills_enabled: false }
    }
}

impl HttpConfig {
    /// The address to listen on; `None` when there is none, or when it was not validated and cannot be parsed.
    #[must_use]
    pub fn listen_address(&self) -> Option<SocketAddr> {
        self.listen.parse().ok()
    }
}
