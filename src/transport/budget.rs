//! Shared budgets: how many streams others may keep open, and how many bytes all of them may make us hold.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::time::Instant;

use super::sources::Sources;
use super::{Limits, lock};

/// Bounds accepted streams: how many are open, in total and from each IP address, and how often they are opened.
#[derive(Debug)]
pub(super) struct StreamBudget {
    max_total: usize,
    max_per_ip: usize,
    limit_loopback: bool,
    pub(super) sources: Sources,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    total: usize,
    /// Holds only addresses with open streams, so it is no larger than `total`.
    per_ip: HashMap<IpAddr, usize>,
}

/// Which limit a stream is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StreamRefused {
    /// Open streams in total.
    Total,
    /// Open streams from its address.
    Source,
    /// Streams opened by its source in a short time.
    Rate,
}

/// One stream's place in the budget; dropping it frees the place.
#[derive(Debug)]
pub(super) struct StreamPermit {
    budget: Arc<StreamBudget>,
    ip: IpAddr,
}

impl StreamBudget {
    pub(super) fn new(limits: &Limits) -> Arc<Self> {
        Arc::new(Self {
            max_total: limits.max_streams,
            max_per_ip: limits.max_streams_per_ip,
            limit_loopback: limits.limit_loopback,
            sources: Sources::new(limits.streams, limits.limit_loopback),
            open: Mutex::new(Open::default()),
        })
    }

    /// A place for a stream from `ip`, or the limit that is reached.
    pub(super) fn try_take(self: &Arc<Self>, ip: IpAddr) -> Result<StreamPermit, StreamRefused> {
        let ip = ip.to_canonical();
        let mut open = lock(&self.open);
        let here = open.per_ip.get(&ip).copied().unwrap_or(0);
        if open.total >= self.max_total {
            return Err(StreamRefused::Total);
        }
        if here >= self.max_per_ip && (self.limit_loopback || !ip.is_loopback()) {
            return Err(StreamRefused::Source);
        }
        if !self.sources.allows(Instant::now(), ip) {
            return Err(StreamRefused::Rate);
        }
        open.total += 1;
        open.per_ip.insert(ip, here + 1);
        Ok(StreamPermit { budget: Arc::clone(self), ip })
    }
}

impl Drop for StreamPermit {
    fn drop(&mut self) {
        let mut open = lock(&self.budget.open);
        open.total -= 1;
        if let Some(here) = open.per_ip.get_mut(&self.ip) {
            *here -= 1;
            if *here == 0 {
                open.per_ip.remove(&self.ip);
            }
        }
    }
}

/// A ceiling on the bytes that all stream reads of a node hold at the same time.
///
/// Without it, the limit of a single stream times the number of streams is what strangers can make a node allocate.
/// Clones share the same budget.
#[derive(Clone, Debug)]
pub struct ByteBudget {
    free: Arc<AtomicUsize>,
}

/// Bytes taken from a [`ByteBudget`]; dropping it gives them back.
#[derive(Debug)]
pub struct BytePermit {
    free: Arc<AtomicUsize>,
    bytes: usize,
}

impl ByteBudget {
    /// The default ceiling: 256 MiB.
    pub const DEFAULT: usize = 256 * 1024 * 1024;

    /// A budget of this many bytes.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self { free: Arc::new(AtomicUsize::new(bytes)) }
    }

    /// Bytes that nobody has taken.
    #[must_use]
    pub fn free(&self) -> usize {
        self.free.load(Ordering::Relaxed)
    }

    /// A permit for no bytes yet, to grow as they arrive.
    #[must_use]
    pub fn permit(&self) -> BytePermit {
        BytePermit { free: Arc::clone(&self.free), bytes: 0 }
    }
}

impl Default for ByteBudget {
    fn default() -> Self {
        Self::new(Self::DEFAULT)
    }
}

impl BytePermit {
    /// Takes `more` bytes, and says whether they were there. If not, the permit is unchanged.
    #[must_use]
    pub fn try_grow(&mut self, more: usize) -> bool {
        let taken = self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |free| free.checked_sub(more)).is_ok();
        if taken {
            self.bytes += more;
        }
        taken
    }

    /// Bytes that this permit holds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for BytePermit {
    fn drop(&mut self) {
        self.free.fetch_add(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn one_address_cannot_take_the_places_of_the_others() {
        let budget = StreamBudget::new(&Limits { max_streams: 3, max_streams_per_ip: 2, ..Limits::default() });
        let (greedy, modest) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let first = budget.try_take(greedy).unwrap();
        let _second = budget.try_take(greedy).unwrap();
        let source = StreamRefused::Source;
        assert_eq!(budget.try_take(greedy).unwrap_err(), source, "two for one address");
        let mapped = "::ffff:10.0.0.1".parse().unwrap();
        assert_eq!(budget.try_take(mapped).unwrap_err(), source, "the same address in other clothes");
        let _third = budget.try_take(modest).unwrap();
        assert_eq!(budget.try_take(modest).unwrap_err(), StreamRefused::Total);
        drop(first);
        let _fourth = budget.try_take(modest).unwrap();
        assert_eq!(budget.try_take("10.0.0.3".parse().unwrap()).unwrap_err(), StreamRefused::Total);
    }

    #[test]
    fn the_loopback_interface_has_the_limit_in_total_only() {
        let limits = Limits { max_streams: 3, max_streams_per_ip: 1, ..Limits::default() };
        let (budget, loopback) = (StreamBudget::new(&limits), "127.0.0.1".parse().unwrap());
        let _open: Vec<_> = (0..3).map(|_| budget.try_take(loopback).unwrap()).collect();
        assert_eq!(budget.try_take(loopback).unwrap_err(), StreamRefused::Total);
        let budget = StreamBudget::new(&Limits { limit_loopback: true, ..limits });
        let _open = budget.try_take(loopback).unwrap();
        assert_eq!(budget.try_take(loopback).unwrap_err(), StreamRefused::Source);
    }

    #[tokio::test(start_paused = true)]
    async fn streams_that_are_over_at_once_are_still_limited_by_their_rate() {
        let mut limits = Limits::default();
        limits.streams.stranger = crate::transport::Rate { per_second: 1, burst: 5 };
        let (budget, hasty) = (StreamBudget::new(&limits), "10.0.0.1".parse().unwrap());
        assert_eq!((0..1000).filter(|_| budget.try_take(hasty).is_ok()).count(), 5);
        assert_eq!(budget.try_take(hasty).unwrap_err(), StreamRefused::Rate);
    }

    #[test]
    fn addresses_without_streams_are_forgotten() {
        let budget = StreamBudget::new(&Limits::default());
        drop(budget.try_take("10.0.0.1".parse().unwrap()).unwrap());
        assert!(lock(&budget.open).per_ip.is_empty());
        assert_eq!(lock(&budget.open).total, 0);
    }

    #[test]
    fn bytes_are_given_back_when_the_permit_is_dropped() {
        let budget = ByteBudget::new(10);
        let mut permit = budget.permit();
        assert!(permit.try_grow(6));
        assert!(!permit.try_grow(5), "only four are left");
        assert_eq!((permit.bytes(), budget.free()), (6, 4));
        drop(permit);
        assert_eq!(budget.free(), 10);
    }
}
