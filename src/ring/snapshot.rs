//! An immutable ring for look-ups: readers share one, take no lock, read no clock and wait for nobody.
//!
//! Who publishes it ([`Snapshot::with_health`]) makes a new one when the ring value changes or an instance's
//! heartbeat runs out ([`Snapshot::next_health_change`]); most of it, the tokens and their replicas, is shared between the two
//! unless something other than heartbeats changed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::desc::{Desc, Instance, InstanceState};
use super::operation::Operation;
use super::replication::{Members, ReplicationSet, RingError, Strategy};
use super::topology::{Scratch, Site, Topology};

/// How a ring is read. Every reader of a ring should use the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingOptions {
    /// How many replicas a key has. Default 3; 0 counts as 1.
    pub replication_factor: usize,
    /// Whether the replicas of a key are all in different zones. Default no.
    pub zone_awareness: bool,
    /// Instances of these zones are left out. Default none.
    pub excluded_zones: Vec<String>,
    /// An instance is unhealthy when its heartbeat is older than this. Default one minute.
    pub heartbeat_timeout: Duration,
}

impl Default for RingOptions {
    fn default() -> Self {
        Self {
            replication_factor: 3,
            zone_awareness: false,
            excluded_zones: Vec::new(),
            heartbeat_timeout: Duration::from_secs(60),
        }
    }
}

/// One instance in a [`Snapshot`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RingInstance {
    /// Its id.
    #[serde(serialize_with = "serialize_text")]
    pub id: Arc<str>,
    /// Where others reach it, `host:port`.
    #[serde(serialize_with = "serialize_text")]
    pub addr: Arc<str>,
    /// Its failure domain; empty when it has none.
    #[serde(serialize_with = "serialize_text")]
    pub zone: Arc<str>,
    /// Its state; never LEFT.
    pub state: InstanceState,
    /// Its last heartbeat, in Unix seconds.
    pub timestamp: i64,
    /// Whether that heartbeat was recent enough when the snapshot was made.
    pub fresh: bool,
    /// When it first registered, in Unix seconds; 0 when not known.
    pub registered_timestamp: i64,
    /// Whether it takes reads only.
    pub read_only: bool,
    /// When that was last switched, in Unix seconds; 0 when never or not known.
    pub read_only_updated_timestamp: i64,
    /// Versions of application features, by feature id.
    pub versions: BTreeMap<u64, u64>,
    /// The tokens that it claims, contested ones included.
    #[serde(serialize_with = "super::desc::serialize_tokens")]
    pub tokens: Arc<[u32]>,
}

impl RingInstance {
    /// Whether it serves the operation: its heartbeat is recent and its state fits.
    #[must_use]
    pub fn is_healthy(&self, op: Operation) -> bool {
        self.fresh && op.serves(self.state)
    }

    fn new(id: &Arc<str>, instance: &Instance) -> Self {
        Self {
            id: id.clone(),
            addr: instance.addr.as_str().into(),
            zone: instance.zone.as_str().into(),
            state: instance.state,
            timestamp: instance.timestamp,
            fresh: false,
            registered_timestamp: instance.registered_timestamp,
            read_only: instance.read_only,
            read_only_updated_timestamp: instance.read_only_updated_timestamp,
            versions: instance.versions.clone(),
            tokens: instance.tokens.clone(),
        }
    }

    /// Whether the entry of the ring value says the same about this instance, heartbeat aside.
    fn matches(&self, id: &str, instance: &Instance) -> bool {
        *self.id == *id
            && *self.addr == *instance.addr
            && *self.zone == *instance.zone
            && self.state == instance.state
            && self.registered_timestamp == instance.registered_timestamp
            && self.read_only == instance.read_only
            && self.read_only_updated_timestamp == instance.read_only_updated_timestamp
            && self.versions == instance.versions
            && (Arc::ptr_eq(&self.tokens, &instance.tokens) || self.tokens == instance.tokens)
    }
}

fn serialize_text<S: Serializer>(text: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

/// A ring at one moment. Tombstones and excluded zones are not in it.
#[derive(Debug)]
pub struct Snapshot {
    options: Arc<RingOptions>,
    topology: Arc<Topology>,
    digest: u128,
    /// In the order of ids.
    instances: Vec<RingInstance>,
    /// By instance: for which operations it is healthy.
    health: Vec<u8>,
    health_at: Duration,
    next_health_change: Option<Duration>,
}

impl Snapshot {
    /// Builds a snapshot from scratch. Heartbeats are judged by `health_at`, a time since the Unix epoch.
    #[must_use]
    pub fn build(desc: &Desc, options: &RingOptions, health_at: Duration) -> Self {
        let options = Arc::new(options.clone());
        let kept = kept(desc, &options).map(|(id, entry)| (id.clone(), entry.clone()));
        let kept = Desc { instances: kept.collect(), ..Desc::default() };
        let instances: Vec<RingInstance> =
            kept.instances.iter().map(|(id, instance)| RingInstance::new(id, instance)).collect();
        let sites: Vec<Site<'_>> = instances
            .iter()
            .map(|instance| Site { tokens: &instance.tokens, state: instance.state, zone: &instance.zone })
            .collect();
        let topology = Arc::new(Topology::build(&sites, options.replication_factor.max(1), options.zone_awareness));
        Self::judge(options, topology, kept.digest(), instances, health_at)
    }

    /// The snapshot of another value of the same ring, or of another moment. When only heartbeats and time differ,
    /// which is the usual case, the indexes of this one are used again.
    #[must_use]
    pub fn with_health(&self, desc: &Desc, health_at: Duration) -> Self {
        let mut instances = self.instances.clone();
        let mut entries = kept(desc, &self.options);
        for instance in &mut instances {
            match entries.next() {
                Some((id, entry)) if instance.matches(id, entry) => instance.timestamp = entry.timestamp,
                _ => return Self::build(desc, &self.options, health_at),
            }
        }
        if entries.next().is_some() {
            return Self::build(desc, &self.options, health_at);
        }
        Self::judge(self.options.clone(), self.topology.clone(), self.digest, instances, health_at)
    }

    fn judge(
        options: Arc<RingOptions>,
        topology: Arc<Topology>,
        digest: u128,
        mut instances: Vec<RingInstance>,
        health_at: Duration,
    ) -> Self {
        let mut next_health_change: Option<Duration> = None;
        let mut health = Vec::with_capacity(instances.len());
        for instance in &mut instances {
            // A heartbeat from the future is healthy, as with dskit; one from before 1970 never is.
            let good_until = u64::try_from(instance.timestamp)
                .ok()
                .map(|heartbeat| Duration::from_secs(heartbeat).saturating_add(options.heartbeat_timeout));
            instance.fresh = good_until.is_some_and(|until| health_at <= until);
            if let Some(until) = good_until.filter(|_| instance.fresh) {
                let change = until.saturating_add(Duration::from_nanos(1));
                next_health_change = Some(next_health_change.map_or(change, |known| known.min(change)));
            }
            let mask = |op: &Operation| if instance.is_healthy(*op) { op.health_bit() } else { 0 };
            health.push(Operation::ALL.iter().map(mask).sum());
        }
        Self { options, topology, digest, instances, health, health_at, next_health_change }
    }

    /// The healthy replicas of a key, a majority of them at least ([`Strategy::Quorum`]).
    ///
    /// Takes no lock, reads no clock, and does not allocate for sets of up to eight.
    ///
    /// # Errors
    /// [`RingError`] when the ring is empty or too few replicas are healthy.
    pub fn get(self: &Arc<Self>, key: u32, op: Operation) -> Result<ReplicationSet, RingError> {
        self.get_with(key, op, Strategy::Quorum)
    }

    /// [`Snapshot::get`] with another rule of how many replicas must be healthy.
    ///
    /// # Errors
    /// As [`Snapshot::get`].
    pub fn get_with(
        self: &Arc<Self>,
        key: u32,
        op: Operation,
        strategy: Strategy,
    ) -> Result<ReplicationSet, RingError> {
        let mut scratch = Scratch::default();
        let at = self.topology.search(key).ok_or(RingError::Empty)?;
        let replicas = self.topology.replicas(at, op, &mut scratch);
        let healthy = |index: &&u32| self.health[**index as usize] & op.health_bit() != 0;
        let members: Members = replicas.iter().filter(healthy).copied().collect();
        let required = match strategy {
            Strategy::Quorum => replicas.len().max(self.options.replication_factor.max(1)) / 2 + 1,
            Strategy::IgnoreUnhealthy => 1,
        };
        if members.len() < required {
            return Err(self.too_few(replicas, op, required, strategy));
        }
        let max_errors = members.len() - required;
        Ok(ReplicationSet { snapshot: self.clone(), members, max_errors, max_unavailable_zones: 0 })
    }

    #[cold]
    fn too_few(&self, replicas: &[u32], op: Operation, required: usize, strategy: Strategy) -> RingError {
        let instances = || replicas.iter().map(|index| &self.instances[*index as usize]);
        let unhealthy: Vec<Arc<str>> =
            instances().filter(|one| !one.is_healthy(op)).map(|one| one.addr.clone()).collect();
        match strategy {
            Strategy::Quorum => RingError::TooFewReplicas {
                required,
                found: replicas.len() - unhealthy.len(),
                zone_aware: self.options.zone_awareness,
                unhealthy,
            },
            Strategy::IgnoreUnhealthy => RingError::NoReplica { unhealthy },
        }
    }

    /// The instances that together hold all keys: for work on the whole ring. With zone awareness, a zone in which
    /// one instance is unhealthy is left out whole, and counts against [`ReplicationSet::max_unavailable_zones`].
    ///
    /// # Errors
    /// [`RingError`] when the ring is empty, or so many instances or zones are unhealthy that keys may be missing.
    pub fn get_all(self: &Arc<Self>, op: Operation) -> Result<ReplicationSet, RingError> {
        if self.topology.tokens().is_empty() {
            return Err(RingError::Empty);
        }
        let rf = self.options.replication_factor.max(1);
        let all = || (0_u32..).zip(&self.instances);
        let set = |members: Members, max_errors, max_unavailable_zones| ReplicationSet {
            snapshot: self.clone(),
            members,
            max_errors,
            max_unavailable_zones,
        };
        if self.options.zone_awareness {
            let mut failing: Vec<&str> =
                all().filter(|(_, one)| !one.is_healthy(op)).map(|(_, one)| &*one.zone).collect();
            failing.sort_unstable();
            failing.dedup();
            let tolerated = self.topology.zone_count().min(rf) / 2;
            let left = tolerated.checked_sub(failing.len()).ok_or(RingError::TooManyUnhealthy)?;
            let holds = |one: &RingInstance| failing.binary_search(&&*one.zone).is_err();
            let members = all().filter(|(_, one)| holds(one)).map(|(index, _)| index).collect();
            return Ok(set(members, 0, left));
        }
        let members: Members = all().filter(|(_, one)| one.is_healthy(op)).map(|(index, _)| index).collect();
        let required = self.instances.len().max(rf) - rf / 2;
        let max_errors = members.len().checked_sub(required).ok_or(RingError::TooManyUnhealthy)?;
        Ok(set(members, max_errors, 0))
    }

    /// All instances, in the order of their ids.
    #[must_use]
    pub fn instances(&self) -> &[RingInstance] {
        &self.instances
    }

    /// One instance.
    #[must_use]
    pub fn instance(&self, id: &str) -> Option<&RingInstance> {
        self.instances.binary_search_by(|one| (*one.id).cmp(id)).ok().map(|index| &self.instances[index])
    }

    /// How the ring is read.
    #[must_use]
    pub fn options(&self) -> &RingOptions {
        &self.options
    }

    /// The time since the Unix epoch by which heartbeats were judged.
    #[must_use]
    pub fn health_at(&self) -> Duration {
        self.health_at
    }

    /// When, on that clock, the next instance turns unhealthy if no heartbeat comes. `None` when all already are.
    #[must_use]
    pub fn next_health_change(&self) -> Option<Duration> {
        self.next_health_change
    }

    /// The fingerprint of everything but heartbeats; see [`Desc::digest`].
    #[must_use]
    pub fn digest(&self) -> u128 {
        self.digest
    }

    /// Which part of the circle each instance owns, from 0 to 1, counted within its zone: the instances of one zone
    /// add up to 1. Contested tokens count for their owner only.
    #[must_use]
    pub fn ownership(&self) -> Vec<(Arc<str>, f64)> {
        let widths = self.topology.owned_widths();
        self.instances.iter().zip(widths).map(|(one, width)| (one.id.clone(), width as f64 / 2_f64.powi(32))).collect()
    }

    /// How many of the 2^32 keys have other replicas here than in `other`: other ids, or another order. Health does
    /// not count. This is what a change of the ring, or of the store it is read from, moves.
    #[must_use]
    pub fn owners_changed(&self, other: &Self) -> u64 {
        if Arc::ptr_eq(&self.topology, &other.topology) {
            return 0;
        }
        let mut starts: Vec<u32> = Vec::with_capacity(self.topology.tokens().len() + other.topology.tokens().len() + 1);
        starts.push(0);
        starts.extend(self.topology.tokens());
        starts.extend(other.topology.tokens());
        starts.sort();
        starts.dedup();
        // Ours by their index: comparing ids once, not in every segment.
        let ours = |theirs: &RingInstance| {
            self.instances.binary_search_by(|one| one.id.cmp(&theirs.id)).map_or(u32::MAX, |index| index as u32)
        };
        let ours: Vec<u32> = other.instances.iter().map(ours).collect();
        let (mut left, mut right) = (Scratch::default(), Scratch::default());
        let ends = starts.iter().skip(1).map(|end| u64::from(*end)).chain([1 << 32]);
        let mut changed = 0;
        for (start, end) in starts.iter().zip(ends) {
            let here = self.replicas(*start, &mut left);
            let there = other.replicas(*start, &mut right);
            if !here.iter().copied().eq(there.iter().map(|index| ours[*index as usize])) {
                changed += end - u64::from(*start);
            }
        }
        changed
    }

    /// The replicas of a key for writes, whatever their health.
    fn replicas<'a>(&'a self, key: u32, scratch: &'a mut Scratch) -> &'a [u32] {
        match self.topology.search(key) {
            Some(at) => self.topology.replicas(at, Operation::Write, scratch),
            None => &[],
        }
    }
}

/// The entries that a ring read with these options shows.
fn kept<'a>(desc: &'a Desc, options: &'a RingOptions) -> impl Iterator<Item = (&'a Arc<str>, &'a Instance)> {
    desc.live().filter(|(_, instance)| !options.excluded_zones.contains(&instance.zone))
}

#[cfg(test)]
mod tests;
