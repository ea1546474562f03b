//! How often each source may knock: token buckets for packets and for streams.
//!
//! Members get buckets of their own, and large ones: what they say is why this node listens. Strangers get small ones, and
//! all strangers together one more, so that a flood from forged addresses leaves the members' share alone. The table of
//! strangers is bounded. A bucket that has filled up again is the same as a new one, so those are dropped for new
//! sources; a source that finds no place shares one bucket with all others that find none. Nobody is thrown out of the
//! table for somebody new, so a flood cannot wash out what is known about a source.
//!
//! An IPv4 address is one source. So is an IPv6 network of 64 bits, which any of its hosts can fill with addresses; members
//! in it keep their own. Ports do not count: a stranger has 65 536 of them. Addresses of the loopback interface are not
//! limited unless [`Limits::limit_loopback`](super::Limits::limit_loopback) is set: nobody else can send from them, and
//! many nodes of a test or a demonstration live there.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::lock;

/// Strangers that have a bucket of their own. A flood from more addresses shares.
const MAX_STRANGERS: usize = 4096;

/// Pause between two searches of the whole table for buckets that are full again.
const SWEEP_PAUSE: Duration = Duration::from_secs(1);

/// How much may come: so many a second, after so many at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Events a second.
    pub per_second: u32,
    /// Events at once, when there were none for a while.
    pub burst: u32,
}

/// The rates of one kind of event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rates {
    /// For a member; if several have the same IP address, for each of them.
    pub member: Rate,
    /// For one source that is no member.
    pub stranger: Rate,
    /// For all sources together that are no members.
    pub strangers: Rate,
}

impl Rates {
    /// Packets. A busy member sends some tens in a second to each other; one that writes to the store in a loop sends a
    /// few for each write, some ten thousand.
    pub const PACKETS: Self = Self {
        member: Rate { per_second: 20_000, burst: 40_000 },
        stranger: Rate { per_second: 1_000, burst: 2_000 },
        strangers: Rate { per_second: 10_000, burst: 20_000 },
    };

    /// Streams. A member opens one in some seconds, and a few more when packets are lost or broadcasts are large.
    pub const STREAMS: Self = Self {
        member: Rate { per_second: 50, burst: 250 },
        stranger: Rate { per_second: 20, burst: 100 },
        strangers: Rate { per_second: 1_000, burst: 2_000 },
    };
}

/// At which addresses the members are, and how many at each.
///
/// ```
/// # use annulus::transport::MemberAddresses;
/// let members: MemberAddresses = ["10.0.0.1", "10.0.0.2", "::ffff:10.0.0.1"].map(|ip| ip.parse().unwrap()).into_iter().collect();
/// assert_eq!(members.count("10.0.0.1".parse().unwrap()), 2);
/// assert_eq!(members.count("10.0.0.3".parse().unwrap()), 0);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberAddresses(Box<[(IpAddr, u32)]>);

impl MemberAddresses {
    /// How many members have this address. The two forms of an IPv4 address are one.
    #[must_use]
    pub fn count(&self, ip: IpAddr) -> u32 {
        let position = self.0.binary_search_by_key(&ip.to_canonical(), |(ip, _)| *ip);
        position.map_or(0, |position| self.0[position].1)
    }
}

impl FromIterator<IpAddr> for MemberAddresses {
    /// One item a member.
    fn from_iter<I: IntoIterator<Item = IpAddr>>(members: I) -> Self {
        let mut counts: Vec<_> = members.into_iter().map(|ip| (ip.to_canonical(), 1)).collect();
        counts.sort_unstable();
        counts.dedup_by(|another, first| {
            let same = another.0 == first.0;
            first.1 += u32::from(same);
            same
        });
        Self(counts.into_boxed_slice())
    }
}

/// What was used of a rate and not earned back yet.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    used: f64,
    at: Instant,
}

impl Bucket {
    fn new(now: Instant) -> Self {
        Self { used: 0.0, at: now }
    }

    fn used(&self, now: Instant, rate: Rate, shares: f64) -> f64 {
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * f64::from(rate.per_second) * shares;
        (self.used - earned).max(0.0)
    }

    fn take(&mut self, now: Instant, rate: Rate, shares: f64) -> bool {
        self.used = self.used(now, rate, shares);
        self.at = self.at.max(now);
        let free = self.used + 1.0 <= f64::from(rate.burst) * shares;
        self.used += f64::from(u8::from(free));
        free
    }
}

/// The buckets of one kind of event.
#[derive(Debug)]
pub(super) struct Sources {
    rates: Rates,
    limit_loopback: bool,
    table: Mutex<Table>,
}

#[derive(Debug)]
struct Table {
    members: Arc<MemberAddresses>,
    /// Of members that sent something lately. A full bucket is as good as none.
    busy: HashMap<IpAddr, Bucket>,
    strangers: HashMap<IpAddr, Bucket>,
    /// For strangers without a place in the table.
    crowd: Bucket,
    all_strangers: Bucket,
    swept: Option<Instant>,
}

impl Sources {
    pub(super) fn new(rates: Rates, limit_loopback: bool) -> Self {
        let bucket = Bucket::new(Instant::now());
        let table = Table {
            members: Arc::default(),
            busy: HashMap::new(),
            strangers: HashMap::new(),
            crowd: bucket,
            all_strangers: bucket,
            swept: None,
        };
        Self { rates, limit_loopback, table: Mutex::new(table) }
    }

    /// Says who the members are.
    pub(super) fn set_members(&self, members: &Arc<MemberAddresses>) {
        let mut table = lock(&self.table);
        table.busy.retain(|ip, _| members.count(*ip) > 0);
        table.members = Arc::clone(members);
    }

    /// Whether another event from this address is within the rates; if so, it is counted against them.
    pub(super) fn allows(&self, now: Instant, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        if ip.is_loopback() && !self.limit_loopback {
            return true;
        }
        let Rates { member, stranger, strangers } = self.rates;
        let table = &mut *lock(&self.table);
        let members = table.members.count(ip);
        if members > 0 {
            return table.bucket_of_member(now, ip, member).take(now, member, f64::from(members));
        }
        let source = network_of(ip);
        if !table.strangers.contains_key(&source) {
            table.make_room(now, stranger);
            if table.strangers.len() < MAX_STRANGERS {
                table.strangers.insert(source, Bucket::new(now));
            }
        }
        let own = table.strangers.get_mut(&source).unwrap_or(&mut table.crowd);
        own.take(now, stranger, 1.0) && table.all_strangers.take(now, strangers, 1.0)
    }
}

impl Table {
    /// The bucket of a member. Before there would be more than there is room for, those that are full again go.
    fn bucket_of_member(&mut self, now: Instant, ip: IpAddr, rate: Rate) -> &mut Bucket {
        if self.busy.len() == self.busy.capacity() && !self.busy.contains_key(&ip) {
            let members = &self.members;
            self.busy.retain(|ip, bucket| bucket.used(now, rate, f64::from(members.count(*ip))) > 0.0);
        }
        self.busy.entry(ip).or_insert_with(|| Bucket::new(now))
    }

    /// Drops the buckets that are full again, if the table has no place left.
    fn make_room(&mut self, now: Instant, rate: Rate) {
        let recently = self.swept.is_some_and(|last| now.saturating_duration_since(last) < SWEEP_PAUSE);
        if self.strangers.len() >= MAX_STRANGERS && !recently {
            self.swept = Some(now);
            self.strangers.retain(|_, bucket| bucket.used(now, rate, 1.0) > 0.0);
        }
    }
}

/// What counts as one source among strangers.
fn network_of(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << 64))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const RATES: Rates = Rates {
        member: Rate { per_second: 10, burst: 100 },
        stranger: Rate { per_second: 1, burst: 10 },
        strangers: Rate { per_second: 1_000_000, burst: 1_000_000 },
    };

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn numbered(number: u32) -> IpAddr {
        IpAddr::from((0x0b00_0000 + number).to_be_bytes())
    }

    fn members(ips: &[&str]) -> Arc<MemberAddresses> {
        Arc::new(ips.iter().map(|text| ip(text)).collect())
    }

    /// How many of `tries` events at the same moment are allowed.
    fn allowed(sources: &Sources, now: Instant, from: IpAddr, tries: usize) -> usize {
        (0..tries).filter(|_| sources.allows(now, from)).count()
    }

    #[test]
    fn a_source_gets_its_burst_and_then_its_rate_and_others_are_not_touched() {
        let (sources, now) = (Sources::new(RATES, false), Instant::now());
        assert_eq!(allowed(&sources, now, ip("10.0.0.1"), 50), 10);
        assert_eq!(allowed(&sources, now, ip("::ffff:10.0.0.1"), 50), 0, "the same source in other clothes");
        assert_eq!(allowed(&sources, now, ip("10.0.0.2"), 50), 10);
        assert_eq!(allowed(&sources, now + Duration::from_secs(3), ip("10.0.0.1"), 50), 3);
        assert_eq!(
            allowed(&sources, now + Duration::from_secs(3600), ip("10.0.0.1"), 50),
            10,
            "no more than the burst"
        );
    }

    #[test]
    fn an_ipv6_network_is_one_source_but_a_member_in_it_is_not_held_up() {
        let (sources, now) = (Sources::new(RATES, false), Instant::now());
        sources.set_members(&members(&["2001:db8::5"]));
        assert_eq!(allowed(&sources, now, ip("2001:db8::1"), 10), 10);
        assert_eq!(allowed(&sources, now, ip("2001:db8::2"), 10), 0);
        assert_eq!(allowed(&sources, now, ip("2001:db8:0:1::2"), 10), 10);
        assert_eq!(allowed(&sources, now, ip("2001:db8::5"), 50), 50);
    }

    #[test]
    fn members_have_more_each_of_them_and_keep_their_buckets_when_others_come() {
        let (sources, now) = (Sources::new(RATES, false), Instant::now());
        sources.set_members(&members(&["10.0.0.2", "10.0.0.1", "10.0.0.2", "::ffff:10.0.0.2"]));
        assert_eq!(allowed(&sources, now, ip("10.0.0.1"), 1000), 100);
        assert_eq!(allowed(&sources, now, ip("10.0.0.2"), 1000), 300, "three nodes on one host");
        sources.set_members(&members(&["10.0.0.1", "10.0.0.9"]));
        assert_eq!(allowed(&sources, now, ip("10.0.0.1"), 1000), 0, "its bucket is still empty");
        assert_eq!(allowed(&sources, now, ip("10.0.0.9"), 1000), 100);
        assert_eq!(allowed(&sources, now, ip("10.0.0.2"), 1000), 10, "a stranger now");
    }

    #[test]
    fn members_that_send_within_their_rate_take_no_memory() {
        let (sources, start) = (Sources::new(RATES, false), Instant::now());
        sources.set_members(&Arc::new((0..1000).map(numbered).collect()));
        for number in 0..10_000 {
            // Each bucket is full again before the next member sends.
            assert!(sources.allows(start + Duration::from_secs(1) * number, numbered(number % 1000)));
        }
        assert!(lock(&sources.table).busy.len() < 10);
        // All at once: each has its own.
        let now = start + Duration::from_secs(100_000);
        for number in 0..1000 {
            assert_eq!(allowed(&sources, now, numbered(number), 1000), 100);
        }
    }

    #[test]
    fn a_flood_from_forged_addresses_grows_no_table_and_takes_nothing_from_members_or_known_strangers() {
        let (sources, now) = (Sources::new(RATES, false), Instant::now());
        sources.set_members(&members(&["10.0.0.1"]));
        assert_eq!(allowed(&sources, now, ip("10.0.0.2"), 4), 4);
        for number in 0..100_000 {
            sources.allows(now, numbered(number));
        }
        assert_eq!(lock(&sources.table).strangers.len(), MAX_STRANGERS);
        assert_eq!(allowed(&sources, now, ip("10.0.0.1"), 1000), 100);
        assert_eq!(allowed(&sources, now, ip("10.0.0.2"), 1000), 6, "it kept its place, and what it had left");
        assert_eq!(allowed(&sources, now, numbered(3_000_000), 10), 0, "newcomers share one bucket");
        // When the flood is over, there is room again.
        assert_eq!(allowed(&sources, now + Duration::from_secs(60), numbered(3_000_000), 50), 10);
        assert_eq!(lock(&sources.table).strangers.len(), 1);
    }

    #[test]
    fn all_strangers_together_have_a_limit_and_members_do_not_count() {
        let rates = Rates { strangers: Rate { per_second: 1, burst: 25 }, ..RATES };
        let (sources, now) = (Sources::new(rates, false), Instant::now());
        sources.set_members(&members(&["10.0.0.1"]));
        let total: usize = (0..10).map(|number| allowed(&sources, now, numbered(number), 10)).sum();
        assert_eq!(total, 25);
        assert_eq!(allowed(&sources, now, ip("10.0.0.1"), 1000), 100);
    }

    #[test]
    fn loopback_is_not_limited_unless_asked_for() {
        let now = Instant::now();
        for loopback in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(allowed(&Sources::new(RATES, false), now, ip(loopback), 5000), 5000, "{loopback}");
            assert_eq!(allowed(&Sources::new(RATES, true), now, ip(loopback), 5000), 10, "{loopback}");
        }
    }
}
