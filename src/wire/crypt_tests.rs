//! Tests of the encryption layer by itself: the bytes of Go both ways, and what is refused.

#![allow(clippy::unwrap_used)]

use super::*;

const KEY: &[u8] = b"0123456789abcdef";

/// "hello" as Go encrypts it: version, what is authenticated with it, blob.
const HELLO: [(EncryptionVersion, &[u8], &str); 3] = [
    (EncryptionVersion::V1, b"", "0192ed0773f27932656f3b4e8a131e4d30c5d20be0e4cbc3f5ed259fcb2c4076055d"),
    (EncryptionVersion::V1, b"lbl", "0146fd5340d86c3ebf99097e3f5e80b04e2a2dc2bfb3bd85e772eb237d48b7560b75"),
    (
        EncryptionVersion::V0,
        b"",
        "001dd7bb233ba1318fa97742e179a2e47e5bca087de5084231a5cd1865b701ef357ab38f5e8ac09e85a5c39cd6",
    ),
];

fn ring(keys: &[&[u8]]) -> Keyring {
    Keyring::new(keys.iter().map(|key| Key::new(key).unwrap())).unwrap()
}

fn open_bytes(blob: &[u8], keys: &Keyring, aad: &[u8]) -> Result<Vec<u8>, WireError> {
    open(BytesMut::from(blob), keys, aad).map(|(plain, _)| plain.to_vec())
}

fn sealed(plain: &[u8], key: &[u8], version: EncryptionVersion, aad: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    seal(&mut out, plain, &Key::new(key).unwrap(), version, [9; NONCE], aad);
    out
}

#[test]
fn what_go_encrypted_is_read_and_written_byte_for_byte() {
    for (version, aad, hex) in HELLO {
        let blob = hex::decode(hex).unwrap();
        assert_eq!(open_bytes(&blob, &ring(&[KEY]), aad).unwrap(), b"hello", "{version:?}");
        let mut again = Vec::new();
        let nonce = blob[1..13].try_into().unwrap();
        seal(&mut again, b"hello", &Key::new(KEY).unwrap(), version, nonce, aad);
        assert_eq!(hex::encode(again), hex, "{version:?}");
    }
}

#[test]
fn every_length_goes_through_with_every_kind_of_key() {
    for key_len in [16, 24, 32] {
        let key = vec![key_len as u8; key_len];
        for len in 0..=65usize {
            let plain: Vec<u8> = (0..len as u8).collect();
            for version in [EncryptionVersion::V0, EncryptionVersion::V1] {
                let blob = sealed(&plain, &key, version, b"aad");
                assert_eq!(blob.len(), version.sealed_len(len));
                assert!(blob.len() <= len + version.overhead());
                assert_eq!(open_bytes(&blob, &ring(&[&key]), b"aad").unwrap(), plain, "{key_len} {len} {version:?}");
            }
        }
    }
}

#[test]
fn any_installed_key_decrypts_and_others_do_not() {
    let keys: Vec<Vec<u8>> = (1..=8).map(|fill| vec![fill; 16]).collect();
    let all = ring(&keys.iter().map(Vec::as_slice).collect::<Vec<_>>());
    for version in [EncryptionVersion::V0, EncryptionVersion::V1] {
        for key in &keys {
            assert_eq!(open_bytes(&sealed(b"hi", key, version, b""), &all, b"").unwrap(), b"hi");
        }
        for stranger in [vec![9; 16], vec![1; 24], vec![1; 32]] {
            let blob = sealed(b"hi", &stranger, version, b"");
            assert_eq!(open_bytes(&blob, &all, b""), Err(WireError::NotDecrypted));
        }
        let blob = sealed(b"hi", &keys[0], version, b"a");
        for aad in [&b""[..], b"b", b"aa"] {
            assert_eq!(open_bytes(&blob, &all, aad), Err(WireError::NotDecrypted), "{aad:?}");
        }
    }
}

#[test]
fn whatever_is_cut_off_or_changed_is_refused() {
    for version in [EncryptionVersion::V0, EncryptionVersion::V1] {
        let blob = sealed(b"some plaintext of more than a block", KEY, version, b"");
        let keys = ring(&[KEY]);
        assert_eq!(open_bytes(&[], &keys, b""), Err(WireError::Empty));
        for len in 1..blob.len() {
            assert_eq!(open_bytes(&blob[..len], &keys, b""), Err(WireError::NotDecrypted), "{len}");
        }
        for at in 1..blob.len() {
            for bit in 0..8 {
                let mut damaged = blob.clone();
                damaged[at] ^= 1 << bit;
                assert_eq!(open_bytes(&damaged, &keys, b""), Err(WireError::NotDecrypted), "byte {at} bit {bit}");
            }
        }
        let mut other = blob.clone();
        for kind in 2..=255 {
            other[0] = kind;
            assert_eq!(open_bytes(&other, &keys, b""), Err(WireError::NotEncrypted), "version {kind}");
        }
    }
}

/// What a holder of the key can write as version 0: any blocks, with any padding.
fn padded(text: &[u8]) -> Result<Vec<u8>, WireError> {
    let mut blob = sealed(text, KEY, EncryptionVersion::V1, b"");
    blob[0] = 0;
    open_bytes(&blob, &ring(&[KEY]), b"")
}

#[test]
fn a_padding_that_is_not_in_order_is_refused() {
    assert_eq!(padded(&[b'x'; 15].into_iter().chain([1]).collect::<Vec<_>>()).unwrap(), [b'x'; 15]);
    assert_eq!(padded(&[16; 16]).unwrap(), b"");
    assert_eq!(padded(&[16; 32]).unwrap(), [16; 16]);
    let ending = |end: &[u8]| [&[b'x'; 32][end.len()..], end].concat();
    for wrong in [
        ending(&[0]),
        ending(&[17]),
        ending(&[255]),
        ending(&[3, 2, 3]),
        ending(&[2, 3, 3]),
        [17; 32].to_vec(),
        // No whole blocks.
        [1; 17].to_vec(),
        [1; 31].to_vec(),
    ] {
        assert_eq!(padded(&wrong), Err(WireError::NotDecrypted), "{wrong:?}");
    }
}

#[test]
fn the_overhead_is_that_of_memberlist() {
    assert_eq!((EncryptionVersion::V0.overhead(), EncryptionVersion::V1.overhead()), (45, 29));
}
