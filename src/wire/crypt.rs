//! The encryption layer: AES-GCM over everything inside the label.
//!
//! `version ‖ nonce (12) ‖ ciphertext ‖ tag (16)`. Version 0, which members of protocol version 1 write, pads the
//! plaintext to whole blocks first (PKCS#7); version 1 does not. A packet is such a blob as it is, with no type byte in
//! front; a stream carries it in a frame (see [`stream`](super::stream)). The label, and the header of the frame, are
//! authenticated with it, so what was sealed for one cluster or one transport is not taken by another.
//!
//! # Nonces
//!
//! Two messages under one key and one nonce would give both away, and the means to forge more. Every member of a cluster
//! uses the same key without asking the others, so nonces are drawn at random, from a generator that the caller passes
//! in: this room has no randomness of its own. The bound [`CryptoRng`] keeps a fast generator such as `SmallRng` out,
//! whose state is small enough to come twice and whose output tells its state. Whoever runs the core seeds one `StdRng`
//! (ChaCha12) from the operating system, anew whenever the core is made again: a copy of a generator would repeat its
//! nonces. With 96 random bits, the chance of a repetition stays below 2⁻³² for some four billion messages under a key
//! (NIST SP 800-38D); change the key before that.

use bytes::{Buf, BytesMut};
use rand::CryptoRng;

use super::error::WireError;
use super::keyring::{Key, Keyring, NONCE, TAG};
use super::trail::Opened;

/// Bytes before the ciphertext.
const HEADER: usize = 1 + NONCE;
/// Block of the padding.
const BLOCK: usize = 16;

/// How outgoing messages are encrypted. Both are read, whatever this says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EncryptionVersion {
    /// With padding, as members of memberlist's protocol version 1 write.
    V0,
    /// Without padding, as all others do.
    #[default]
    V1,
}

impl EncryptionVersion {
    /// Most bytes that encryption adds: 45 and 29.
    #[must_use]
    pub const fn overhead(self) -> usize {
        match self {
            Self::V0 => HEADER + BLOCK + TAG,
            Self::V1 => HEADER + TAG,
        }
    }

    /// How many bytes a plaintext of `len` bytes becomes.
    pub(super) const fn sealed_len(self, len: usize) -> usize {
        match self {
            Self::V0 => HEADER + len + padding(len) + TAG,
            Self::V1 => HEADER + len + TAG,
        }
    }

    const fn byte(self) -> u8 {
        match self {
            Self::V0 => 0,
            Self::V1 => 1,
        }
    }
}

/// Draws a nonce.
pub(super) fn nonce(rng: &mut impl CryptoRng) -> [u8; NONCE] {
    let mut nonce = [0; NONCE];
    rng.fill_bytes(&mut nonce);
    nonce
}

/// How many bytes the padding of a plaintext of `len` bytes takes: 1 to 16.
const fn padding(len: usize) -> usize {
    BLOCK - len % BLOCK
}

/// Appends `plain` sealed.
pub(super) fn seal(
    out: &mut Vec<u8>,
    plain: &[u8],
    key: &Key,
    version: EncryptionVersion,
    nonce: [u8; NONCE],
    aad: &[u8],
) {
    out.reserve(version.sealed_len(plain.len()));
    out.push(version.byte());
    out.extend_from_slice(&nonce);
    let start = out.len();
    out.extend_from_slice(plain);
    if version == EncryptionVersion::V0 {
        let padding = padding(plain.len());
        out.resize(out.len() + padding, padding as u8);
    }
    match key.encrypt(&nonce, aad, out.get_mut(start..).unwrap_or_default()) {
        Some(tag) => out.extend_from_slice(&tag),
        // Longer than AES-GCM can encrypt. What nobody can read is better than what everybody can.
        None => out.truncate(start),
    }
}

/// Opens a blob in place with whichever key fits, and says which.
///
/// # Errors
///
/// [`WireError::NotEncrypted`] when the first byte is no version of encryption, and [`WireError::NotDecrypted`] for
/// everything else, so that nobody learns from the answer how far it came.
pub(super) fn open(mut blob: BytesMut, keys: &Keyring, aad: &[u8]) -> Result<(BytesMut, Opened), WireError> {
    let version = match blob.first() {
        None => return Err(WireError::Empty),
        Some(0) => EncryptionVersion::V0,
        Some(1) => EncryptionVersion::V1,
        Some(_) => return Err(WireError::NotEncrypted),
    };
    if blob.len() < version.overhead() {
        return Err(WireError::NotDecrypted);
    }
    let (header, sealed) = blob.split_at_mut(HEADER);
    let nonce = header.last_chunk::<NONCE>().copied();
    let (Some(nonce), Some((text, tag))) = (nonce, sealed.split_last_chunk_mut::<TAG>()) else {
        return Err(WireError::NotDecrypted);
    };
    let fits = keys.iter().position(|key| key.decrypt(&nonce, aad, text, tag));
    let Some((key, plain)) = fits.and_then(|key| Some((key, plain_len(text, version)?))) else {
        // Nothing of it may be used; and after a wrong padding it is plaintext.
        blob.fill(0);
        return Err(WireError::NotDecrypted);
    };
    let opened = Opened { version: version.byte(), key, sealed: blob.len(), plain };
    blob.advance(HEADER);
    blob.truncate(plain);
    Ok((blob, opened))
}

/// How much of a decrypted text is message; `None` when its padding is not in order, which only a holder of the key can
/// bring about (and what makes memberlist panic).
fn plain_len(text: &[u8], version: EncryptionVersion) -> Option<usize> {
    match version {
        EncryptionVersion::V1 => Some(text.len()),
        EncryptionVersion::V0 => {
            let padding = *text.last()?;
            let plain = text.len().checked_sub(padding.into())?;
            let valid = (1..=BLOCK).contains(&usize::from(padding))
                && text.len().is_multiple_of(BLOCK)
                && text.get(plain..)?.iter().all(|byte| *byte == padding);
            valid.then_some(plain)
        }
    }
}

#[cfg(test)]
#[path = "crypt_tests.rs"]
mod tests;
