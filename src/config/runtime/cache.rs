//! The last good runtime configuration on disk, so that a node which restarts in the middle of a migration knows the
//! primary before its first write, even when the runtime file is missing at that moment.
//!
//! The file is YAML with a last line `# sha256: …` over everything before it. It is written beside, synced, and
//! renamed, so it is old or new and never half; and a file that was damaged anyway is refused instead of believed.
//!
//! When the section goes away, a comment remembers the primary that it named last: a running node keeps that one, and a
//! node that starts does not ([`last_named_primary`]).

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::loader::hex;
use super::{RuntimeConfig, RuntimeError};
use crate::config::text::{self, ReadError};

/// Name of the file in `node.data_dir`.
pub const CACHE_FILE: &str = "runtime-config.last-good.yaml";

const CHECKSUM: &str = "# sha256: ";
const LAST_NAMED: &str = "# last primary: ";

/// Why the cache could not be written or read. The node goes on without it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// Writing or reading failed.
    #[error("{}: {source}; check that node.data_dir exists and is writable", file.display())]
    Io {
        /// The cache file.
        file: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The checksum is missing or does not fit: the file was cut or edited. It is not used.
    #[error("{}: damaged (its checksum does not fit), not used; delete it", file.display())]
    Damaged {
        /// The cache file.
        file: PathBuf,
    },
    /// The checksum fits but the content is not understood, as after a downgrade. It is not used.
    #[error("cached {0}")]
    Content(#[from] RuntimeError),
}

/// Writes `config` to `dir` in one step: readers see the old file or the new one, also after a crash.
///
/// # Errors
///
/// [`CacheError::Io`]; the old file is then still there.
pub fn save_last_good(dir: &Path, config: &RuntimeConfig) -> Result<(), CacheError> {
    let file = dir.join(CACHE_FILE);
    let temporary = dir.join(format!("{CACHE_FILE}.tmp"));
    let mut body = config.to_yaml();
    if config.multi_kv_config.primary.is_none()
        // An earlier file that cannot be believed has nothing to say.
        && let Ok(Some(primary)) = last_named_primary(dir)
    {
        body.push_str(&format!("{LAST_NAMED}{primary}\n"));
    }
    let text = format!("{body}{CHECKSUM}{}\n", hex(&Sha256::digest(body.as_bytes())));
    replace(&temporary, &file, dir, text.as_bytes()).map_err(|source| {
        // What is left of the attempt has no use; the error to report is the first one.
        let _ = fs::remove_file(&temporary);
        CacheError::Io { file, source }
    })
}

fn replace(temporary: &Path, file: &Path, dir: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut out = fs::File::create(temporary)?;
    out.write_all(bytes)?;
    // Content first, then the name, then the directory: in any other order a crash could leave an empty file.
    out.sync_all()?;
    fs::rename(temporary, file)?;
    if cfg!(unix) { fs::File::open(dir)?.sync_all() } else { Ok(()) }
}

/// Reads what [`save_last_good`] wrote; `None` when there is none yet.
///
/// # Errors
///
/// [`CacheError`] when there is one that cannot be read or trusted.
pub fn load_last_good(dir: &Path) -> Result<Option<RuntimeConfig>, CacheError> {
    let file = dir.join(CACHE_FILE);
    match load(&file)? {
        Some(body) => Ok(Some(RuntimeConfig::parse(&body, &file)?)),
        None => Ok(None),
    }
}

/// The primary that the cached configuration names, or, where it names none, the last one that did. `None` when no
/// configuration has named one yet.
///
/// # Errors
///
/// [`CacheError`] when there is a cache that cannot be read or trusted.
pub fn last_named_primary(dir: &Path) -> Result<Option<String>, CacheError> {
    let file = dir.join(CACHE_FILE);
    let Some(body) = load(&file)? else { return Ok(None) };
    if let Some(primary) = RuntimeConfig::parse(&body, &file)?.multi_kv_config.primary {
        return Ok(Some(primary));
    }
    let text = String::from_utf8_lossy(&body);
    Ok(text.lines().find_map(|line| line.strip_prefix(LAST_NAMED)).map(str::to_owned))
}

/// What is before the checksum line, which fits it.
fn load(file: &Path) -> Result<Option<Vec<u8>>, CacheError> {
    let io = |kind: io::Error| CacheError::Io { file: file.to_owned(), source: kind };
    let damaged = || CacheError::Damaged { file: file.to_owned() };
    let bytes = match text::read(file) {
        Ok(bytes) => bytes,
        Err(ReadError::NotFound) => return Ok(None),
        Err(ReadError::Permission) => return Err(io(io::ErrorKind::PermissionDenied.into())),
        Err(ReadError::TooLarge) => return Err(damaged()),
        Err(ReadError::Other(reason)) => return Err(io(io::Error::other(reason))),
    };
    Ok(Some(verified(&bytes).ok_or_else(damaged)?.to_vec()))
}

/// The text before a checksum line that fits it.
fn verified(bytes: &[u8]) -> Option<&[u8]> {
    let text = std::str::from_utf8(bytes).ok()?;
    let start = text.rfind(CHECKSUM)?;
    let (body, line) = (text.get(..start)?, text.get(start..)?);
    let sum = line.strip_prefix(CHECKSUM)?.strip_suffix('\n')?;
    (sum == hex(&Sha256::digest(body.as_bytes()))).then_some(body.as_bytes())
}
