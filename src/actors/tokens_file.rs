//! The file in which an instance keeps its tokens over restarts, in dskit's form: `{"tokens":[1,2,3]}`.

use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Largest file that is read: far above 4 096 tokens in decimal.
const MAX_SIZE: u64 = 1 << 20;

#[derive(Serialize, Deserialize)]
struct TokensFile {
    tokens: Vec<u32>,
}

/// Reads the tokens, sorted. A file that is missing or damaged counts as empty: the instance draws new tokens, and the
/// log says why.
pub(crate) fn load(path: &Path) -> Vec<u32> {
    let read = || -> std::io::Result<Vec<u32>> {
        let size = std::fs::metadata(path)?.len();
        if size > MAX_SIZE {
            return Err(std::io::Error::other(format!("{size} bytes is too large for a tokens file")));
        }
        let file: TokensFile = serde_json::from_slice(&std::fs::read(path)?)?;
        Ok(file.tokens)
    };
    match read() {
        Ok(mut tokens) => {
            tokens.sort_unstable();
            tokens.dedup();
            tokens
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "tokens file not used");
            Vec::new()
        }
    }
}

/// Writes the tokens to a temporary file, syncs it and renames it, so that the file is always whole.
pub(crate) fn save(path: &Path, tokens: &[u32]) -> std::io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = std::fs::File::create(&temporary)?;
    file.write_all(&serde_json::to_vec(&TokensFile { tokens: tokens.to_vec() })?)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn tokens_survive_and_damage_counts_as_empty() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens");
        assert!(load(&path).is_empty());
        save(&path, &[9, 5, 1]).unwrap();
        assert_eq!(load(&path), [1, 5, 9]);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), r#"{"tokens":[9,5,1]}"#);
        std::fs::write(&path, "{\"tokens\":[1,").unwrap();
        assert!(load(&path).is_empty());
    }
}
