//! The only way a core learns the time.
//!
//! Cores never read a clock: their caller hands them a [`Now`] with every input. The running system reads the real
//! clocks in its actors; a test or a simulation makes its own [`Now`] and moves it forward as it likes.
//!
//! ```
//! use annulus::clock::Now;
//! use std::time::Duration;
//!
//! let start = Now::read();
//! let later = start + Duration::from_secs(90);
//! assert_eq!(later.unix_secs(), start.unix_secs() + 90);
//! ```

use std::ops::Add;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A moment on both clocks that the protocols need.
///
/// `mono` never goes back and drives every timer. `unix` is the wall clock; it may jump, and is used only where the
/// wire carries wall time (heartbeats, tombstones).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Monotonic time, for deadlines and durations.
    pub mono: Instant,
    /// Time since the Unix epoch, for values that other nodes compare.
    pub unix: Duration,
}

impl Now {
    /// Reads both clocks. For actors and tests; a core is given its `Now`.
    #[must_use]
    pub fn read() -> Self {
        Self {
            mono: Instant::now(),
            // A wall clock before 1970 reads as 1970: every comparison stays defined.
            unix: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
        }
    }

    /// Whole seconds since the Unix epoch, the unit of heartbeats in a ring value.
    #[must_use]
    pub fn unix_secs(&self) -> i64 {
        i64::try_from(self.unix.as_secs()).unwrap_or(i64::MAX)
    }

    /// Milliseconds since the Unix epoch, the unit of key tombstones on the wire.
    #[must_use]
    pub fn unix_millis(&self) -> i64 {
        i64::try_from(self.unix.as_millis()).unwrap_or(i64::MAX)
    }
}

impl Add<Duration> for Now {
    type Output = Self;

    /// The same moment, later on both clocks.
    fn add(self, by: Duration) -> Self {
        Self { mono: self.mono + by, unix: self.unix + by }
    }
}
