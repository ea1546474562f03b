//! The shadow of a ring: the same ring, read from the store that is not primary.
//!
//! A share of the lookups is answered from it as well, and the answers are compared: what a flip would change for the
//! requests that are really made. Nobody waits for it, and nothing is written through it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use serde::Serialize;

use crate::clock::Now;
use crate::ring::{Operation, ReplicationSet, RingError, Snapshot};

/// A ring as the other store has it, and how its answers compare.
pub(crate) struct ShadowRing {
    snapshot: Arc<ArcSwap<Snapshot>>,
    /// One lookup in so many is compared.
    every: u64,
    lookups: AtomicU64,
    compared: AtomicU64,
    mismatched: AtomicU64,
    last: Mutex<Option<Mismatch>>,
}

/// How the answers of both stores compare.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ShadowStatus {
    /// The ring.
    pub ring: String,
    /// Lookups that were answered from both stores.
    pub compared: u64,
    /// Of those, the ones with other owners, or with an error from one store only. While instances join, leave or fail,
    /// the stores are a moment apart, and a few are to be expected.
    pub mismatched: u64,
    /// The last of these.
    pub last: Option<Mismatch>,
}

/// A lookup that the two stores answered differently.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mismatch {
    /// When, in milliseconds since the Unix epoch.
    pub at_unix_ms: u64,
    /// The hashed key.
    pub key: u32,
    /// What the lookup was for.
    pub operation: Operation,
    /// The owners in the primary, or the error.
    pub primary: String,
    /// The owners in the other store, or the error.
    pub secondary: String,
}

type Answer = Result<ReplicationSet, RingError>;

impl ShadowRing {
    /// Compares this share of the lookups, above 0 and up to 1, with what this snapshot says.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "validated: 0 < share ≤ 1")]
    pub(crate) fn new(snapshot: Arc<ArcSwap<Snapshot>>, share: f64) -> Self {
        Self {
            snapshot,
            every: (1.0 / share).round().max(1.0) as u64,
            lookups: AtomicU64::new(0),
            compared: AtomicU64::new(0),
            mismatched: AtomicU64::new(0),
            last: Mutex::new(None),
        }
    }

    /// Looks at one lookup and its answer; compares it if its turn has come.
    pub(crate) fn saw(&self, key: u32, operation: Operation, answer: &Answer) {
        if !self.lookups.fetch_add(1, Ordering::Relaxed).is_multiple_of(self.every) {
            return;
        }
        let shadow = self.snapshot.load_full().get(key, operation);
        self.compared.fetch_add(1, Ordering::Relaxed);
        if same(answer, &shadow) {
            return;
        }
        self.mismatched.fetch_add(1, Ordering::Relaxed);
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Mismatch {
            at_unix_ms: u64::try_from(Now::read().unix.as_millis()).unwrap_or(u64::MAX),
            key,
            operation,
            primary: describe(answer),
            secondary: describe(&shadow),
        });
    }

    pub(crate) fn status(&self, ring: &str) -> ShadowStatus {
        ShadowStatus {
            ring: ring.to_owned(),
            compared: self.compared.load(Ordering::Relaxed),
            mismatched: self.mismatched.load(Ordering::Relaxed),
            last: self.last.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

fn same(primary: &Answer, secondary: &Answer) -> bool {
    match (primary, secondary) {
        (Ok(ours), Ok(theirs)) => ours.ids().eq(theirs.ids()),
        (Err(_), Err(_)) => true,
        _ => false,
    }
}

fn describe(answer: &Answer) -> String {
    match answer {
        Ok(set) => set.ids().collect::<Vec<_>>().join(", "),
        Err(error) => error.to_string(),
    }
}
