//! Keys: what a cluster encrypts with, and the order in which they are tried.
//!
//! A key is 16, 24 or 32 bytes, for AES-128, AES-192 and AES-256. A [`Keyring`] holds several so that a cluster can
//! change its key without a moment in which two members do not understand each other: first every member gets the new
//! key behind the old one, then every member makes it the first, then the old one is removed.

use std::fmt;
use std::sync::Arc;

use aes_gcm::aead::consts::U12;
use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::aes::{Aes128, Aes192, Aes256};
use aes_gcm::{AeadInOut, AesGcm, KeyInit};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

/// The longest key, in bytes.
const MAX_KEY: usize = 32;
/// Bytes of a nonce.
pub(super) const NONCE: usize = 12;
/// Bytes of a tag.
pub(super) const TAG: usize = 16;

/// Most keys of one [`Keyring`]. Every packet that none of them fits costs the work of trying them all, so a stranger
/// must not be able to make a node do that many times over. A change of keys needs two.
pub const MAX_KEYS: usize = 8;

/// Why a key, or a change of a [`Keyring`], was refused. Never says anything about the bytes of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// Neither 16 nor 24 nor 32 bytes.
    #[error("a key has 16, 24 or 32 bytes, this one has {0}")]
    Length(usize),
    /// Not standard base64 with padding.
    #[error("not base64")]
    NotBase64,
    /// The keyring holds [`MAX_KEYS`] keys already.
    #[error("there are {MAX_KEYS} keys already")]
    Full,
    /// The key is not in the keyring.
    #[error("no such key is installed")]
    Unknown,
    /// The first key is the one that encrypts: another must become the first before it can go.
    #[error("the key that encrypts cannot be removed")]
    Primary,
}

/// A key of AES-GCM. Cheap to clone.
///
/// It keeps the expanded key, which is overwritten when the last clone is dropped, and a digest to tell keys apart; the
/// bytes that it was made from are not kept. `Debug` shows the kind of key and nothing of its value.
#[derive(Clone)]
pub struct Key(Arc<Inner>);

struct Inner {
    cipher: Cipher,
    digest: [u8; 32],
}

// The sizes differ, but a key lives behind an `Arc`, and there are few.
#[allow(clippy::large_enum_variant)]
enum Cipher {
    Aes128(AesGcm<Aes128, U12>),
    Aes192(AesGcm<Aes192, U12>),
    Aes256(AesGcm<Aes256, U12>),
}

impl Key {
    /// A key of these bytes.
    ///
    /// # Errors
    ///
    /// [`KeyError::Length`] unless there are 16, 24 or 32.
    pub fn new(bytes: &[u8]) -> Result<Self, KeyError> {
        let wrong = |_| KeyError::Length(bytes.len());
        let cipher = match bytes.len() {
            16 => Cipher::Aes128(AesGcm::new_from_slice(bytes).map_err(wrong)?),
            24 => Cipher::Aes192(AesGcm::new_from_slice(bytes).map_err(wrong)?),
            32 => Cipher::Aes256(AesGcm::new_from_slice(bytes).map_err(wrong)?),
            len => return Err(KeyError::Length(len)),
        };
        Ok(Self(Arc::new(Inner { cipher, digest: Sha256::digest(bytes).into() })))
    }

    /// A key as operators write it: standard base64 with padding, as `serf keygen` and `consul keygen` print it.
    ///
    /// # Errors
    ///
    /// [`KeyError::NotBase64`], or [`KeyError::Length`].
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        let text = text.trim();
        // base64 asks for room for whole groups of three.
        let mut bytes = [0; MAX_KEY + 3];
        let longest = base64::encoded_len(MAX_KEY, true).unwrap_or(usize::MAX);
        if text.len() > longest {
            return Err(match STANDARD.decode(text) {
                Ok(bytes) => KeyError::Length(bytes.len()),
                Err(_) => KeyError::NotBase64,
            });
        }
        let len = STANDARD.decode_slice(text, &mut bytes).map_err(|_| KeyError::NotBase64)?;
        let key = Self::new(bytes.get(..len).unwrap_or_default());
        bytes.fill(0);
        // Keeps the compiler from leaving out a write that nobody reads.
        std::hint::black_box(&bytes);
        key
    }

    /// What the key is called where it must not be shown: the first four bytes of its SHA-256 in hexadecimal. Enough to
    /// tell the keys of a keyring apart, and all nodes call a key the same.
    #[must_use]
    pub fn id(&self) -> String {
        self.0.digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect()
    }

    /// How long the key is, in bits: 128, 192 or 256.
    #[must_use]
    pub fn bits(&self) -> usize {
        match self.0.cipher {
            Cipher::Aes128(_) => 128,
            Cipher::Aes192(_) => 192,
            Cipher::Aes256(_) => 256,
        }
    }

    /// Encrypts in place and gives the tag. `None` beyond the 64 GiB that AES-GCM allows, and nothing is left there.
    pub(super) fn encrypt(&self, nonce: &[u8; NONCE], aad: &[u8], text: &mut [u8]) -> Option<[u8; TAG]> {
        let (nonce, text) = (nonce.into(), InOutBuf::from(text));
        let tag = match &self.0.cipher {
            Cipher::Aes128(cipher) => cipher.encrypt_inout_detached(nonce, aad, text),
            Cipher::Aes192(cipher) => cipher.encrypt_inout_detached(nonce, aad, text),
            Cipher::Aes256(cipher) => cipher.encrypt_inout_detached(nonce, aad, text),
        };
        tag.ok().map(Into::into)
    }

    /// Decrypts in place, if the tag is right; the tag is compared in constant time, and before anything is decrypted.
    pub(super) fn decrypt(&self, nonce: &[u8; NONCE], aad: &[u8], text: &mut [u8], tag: &[u8; TAG]) -> bool {
        let (nonce, text, tag) = (nonce.into(), InOutBuf::from(text), tag.into());
        match &self.0.cipher {
            Cipher::Aes128(cipher) => cipher.decrypt_inout_detached(nonce, aad, text, tag),
            Cipher::Aes192(cipher) => cipher.decrypt_inout_detached(nonce, aad, text, tag),
            Cipher::Aes256(cipher) => cipher.decrypt_inout_detached(nonce, aad, text, tag),
        }
        .is_ok()
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.0.digest == other.0.digest
    }
}

impl Eq for Key {}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0.cipher {
            Cipher::Aes128(_) => "Key(AES-128)",
            Cipher::Aes192(_) => "Key(AES-192)",
            Cipher::Aes256(_) => "Key(AES-256)",
        })
    }
}

/// The keys of a node, in order: the first, called primary, encrypts; all of them decrypt. Cheap to clone.
///
/// An empty keyring, which is the default, means that nothing is encrypted. The rules of the changes are those of
/// memberlist.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keyring(Arc<Vec<Key>>);

impl Keyring {
    /// A keyring of these keys, the primary first. A key that comes twice counts once.
    ///
    /// # Errors
    ///
    /// [`KeyError::Full`] for more than [`MAX_KEYS`].
    pub fn new(keys: impl IntoIterator<Item = Key>) -> Result<Self, KeyError> {
        let mut ring = Self::default();
        for key in keys {
            ring.add(key)?;
        }
        Ok(ring)
    }

    /// Whether there is no key, and so no encryption.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many keys there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The key that encrypts.
    #[must_use]
    pub fn primary(&self) -> Option<&Key> {
        self.0.first()
    }

    /// All keys, the primary first: the order in which they are tried.
    pub fn iter(&self) -> impl Iterator<Item = &Key> {
        self.0.iter()
    }

    /// The key of this [`id`](Key::id).
    ///
    /// # Errors
    ///
    /// [`KeyError::Unknown`] when no key has it, or two have.
    pub fn find(&self, id: &str) -> Result<&Key, KeyError> {
        let mut found = self.0.iter().filter(|key| key.id() == id);
        found.next().filter(|_| found.next().is_none()).ok_or(KeyError::Unknown)
    }

    /// Installs a key behind the others; it becomes the primary of an empty keyring. Does nothing when it is there.
    ///
    /// # Errors
    ///
    /// [`KeyError::Full`] when there are [`MAX_KEYS`].
    pub fn add(&mut self, key: Key) -> Result<(), KeyError> {
        if self.0.contains(&key) {
            return Ok(());
        }
        if self.0.len() >= MAX_KEYS {
            return Err(KeyError::Full);
        }
        Arc::make_mut(&mut self.0).push(key);
        Ok(())
    }

    /// Makes an installed key the primary.
    ///
    /// # Errors
    ///
    /// [`KeyError::Unknown`] when it is not installed.
    pub fn use_key(&mut self, key: &Key) -> Result<(), KeyError> {
        let place = self.0.iter().position(|installed| installed == key).ok_or(KeyError::Unknown)?;
        if let Some(until_key) = Arc::make_mut(&mut self.0).get_mut(..=place) {
            until_key.rotate_right(1);
        }
        Ok(())
    }

    /// Removes a key. Does nothing when it is not installed.
    ///
    /// # Errors
    ///
    /// [`KeyError::Primary`] for the key that encrypts.
    pub fn remove(&mut self, key: &Key) -> Result<(), KeyError> {
        if self.primary() == Some(key) {
            return Err(KeyError::Primary);
        }
        if self.0.contains(key) {
            Arc::make_mut(&mut self.0).retain(|installed| installed != key);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn key(fill: u8) -> Key {
        Key::new(&[fill; 16]).unwrap()
    }

    #[test]
    fn a_key_has_16_24_or_32_bytes() {
        for len in 0..=64 {
            let made = Key::new(&vec![7; len]);
            let text = Key::from_base64(&STANDARD.encode(vec![7; len]));
            assert_eq!(made, text, "{len}");
            match len {
                16 | 24 | 32 => assert!(made.is_ok(), "{len}"),
                _ => assert_eq!(made, Err(KeyError::Length(len))),
            }
        }
    }

    #[test]
    fn a_key_is_written_in_padded_base64() {
        let text = "MDEyMzQ1Njc4OWFiY2RlZg==";
        assert_eq!(Key::from_base64(text), Key::new(b"0123456789abcdef"));
        assert_eq!(Key::from_base64(&format!(" {text}\n")), Key::new(b"0123456789abcdef"));
        for wrong in ["MDEyMzQ1Njc4OWFiY2RlZg", "hunter2", "MDEy*zQ1Njc4OWFiY2RlZg==", &"!".repeat(100)] {
            assert_eq!(Key::from_base64(wrong), Err(KeyError::NotBase64), "{wrong}");
        }
        assert_eq!(Key::from_base64(""), Err(KeyError::Length(0)));
    }

    #[test]
    fn a_key_never_shows_its_bytes() {
        let ring = Keyring::new([key(0x41), Key::new(&[0x42; 32]).unwrap()]).unwrap();
        assert_eq!(format!("{ring:?}"), "Keyring([Key(AES-128), Key(AES-256)])");
    }

    #[test]
    fn the_first_key_encrypts_and_can_be_changed_but_not_removed() {
        let (a, b, c) = (key(1), key(2), key(3));
        let order = |ring: &Keyring| ring.iter().cloned().collect::<Vec<_>>();
        let mut ring = Keyring::default();
        assert!(ring.is_empty() && ring.primary().is_none());
        for key in [&a, &b, &c, &b] {
            ring.add(key.clone()).unwrap();
        }
        assert_eq!(order(&ring), [a.clone(), b.clone(), c.clone()]);
        let before = ring.clone();
        ring.use_key(&c).unwrap();
        assert_eq!(order(&ring), [c.clone(), a.clone(), b.clone()]);
        assert_eq!(order(&before), [a.clone(), b.clone(), c.clone()], "a clone is its own keyring");
        assert_eq!(ring.remove(&c), Err(KeyError::Primary));
        ring.remove(&a).unwrap();
        ring.remove(&a).unwrap();
        assert_eq!(ring.use_key(&a), Err(KeyError::Unknown));
        assert_eq!(order(&ring), [c, b]);
    }

    #[test]
    fn a_key_is_found_by_an_id_that_tells_nothing_of_its_bytes() {
        let ring = Keyring::new([key(1), Key::new(&[1; 32]).unwrap()]).unwrap();
        // The beginning of the SHA-256 of sixteen bytes 01.
        assert_eq!(key(1).id(), "cc8cd41c");
        assert_eq!(ring.find(&key(1).id()), Ok(&key(1)));
        assert_eq!(ring.find(&key(2).id()), Err(KeyError::Unknown));
        assert_eq!(ring.iter().map(Key::bits).collect::<Vec<_>>(), [128, 256]);
    }

    #[test]
    fn a_keyring_holds_eight_keys() {
        let keys = || (0..9).map(key);
        assert_eq!(Keyring::new(keys().take(8)).unwrap().len(), 8);
        assert_eq!(Keyring::new(keys()), Err(KeyError::Full));
        assert_eq!(Keyring::new(keys().take(8).chain([key(3)])).unwrap().len(), 8, "a key that is there takes no room");
    }
}
