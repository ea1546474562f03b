//! Comparing the two stores: all the time against what this node was shown, and thoroughly when somebody asks.
//!
//! The continuous comparison reads only the other store: what the primary holds is known from its watches, and from what
//! was read and written here. Of a key that nobody watches, another node may delete it untold: so what the other store
//! lacks is looked for in the primary, and forgotten when that does not have it either. While the other store is gossip,
//! a comparison costs nothing. It also works while the primary is away, and so tells whether the other
//! store has all that this node ever saw.
//!
//! The thorough one lists and reads both stores, the primary twice, because two stores cannot be read at one moment: only
//! what both readings of the primary show is a difference.
//!
//! Rings say themselves what was written a moment ago and may still be on its way. Other values do not: while writes are
//! mirrored, a difference of theirs counts only when it is still there at further looks, for as long as a write may take.
//!
//! What a comparison finds missing from the other store while mirroring is on is copied there (again), key by key, as a
//! backfill does it. The continuous one finds it for the keys that this node knows, the thorough one for all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::config::{MultiConfig, Side};
use super::core::{Job, MultiCore};
use super::lacks::{lacks, lives};
use super::message::{MigrationEvent, Output, Task, TaskResult};
use crate::clock::Now;
use crate::kv::{StoreError, StoreKind, Value};
use crate::ring::parity::{Ids, Sides};
use crate::ring::{Desc, RingOptions, RingParity};

/// Reads and listings in flight at once.
const MAX_IN_FLIGHT: usize = 8;

/// The pause before values that differ are looked at again. Each further one is twice as long.
const FIRST_LOOK: Duration = Duration::from_millis(250);

/// How much longer the time between continuous comparisons is when the other store is a server: each costs a read.
const REMOTE_FACTOR: u32 = 6;

/// How the two stores compared at one moment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ParityReport {
    /// When, in milliseconds since the Unix epoch.
    pub at_unix_ms: u64,
    /// The store that is read.
    pub primary: StoreKind,
    /// The other one.
    pub secondary: StoreKind,
    /// Whether both stores were listed and read. `false`: the other one was compared with what this node was shown.
    pub thorough: bool,
    /// Whether both hold the same, but for heartbeats, tombstones of what the other one does not have either, and what is
    /// on its way.
    pub equal: bool,
    /// Whether the secondary has all that the primary has. It may have more.
    pub secondary_has_all: bool,
    /// Keys in each.
    pub keys: Sides<usize>,
    /// Keys that only the primary has.
    pub only_primary: Ids,
    /// Keys that only the secondary has. Not looked for when not thorough.
    pub only_secondary: Ids,
    /// The rings, by key.
    pub rings: BTreeMap<String, RingParity>,
    /// Other values that differ, by key.
    pub values: BTreeMap<String, ValueParity>,
    /// The largest part of the circle, 0 to 1, whose first owner a flip would change.
    pub ownership_delta: f64,
    /// The largest part of the circle whose replicas a flip would change.
    pub replica_set_delta: f64,
}

/// How a value that is not a ring compares.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ValueParity {
    /// Entries of the primary's value that the secondary lacks, or has older. Tombstones count where they hide something.
    pub secondary_lacks: usize,
    /// Entries of the secondary's value that the primary lacks, or has older.
    pub primary_lacks: usize,
}

/// Comparisons of one multi store.
#[derive(Debug, Default)]
pub(super) struct Parity {
    run: Option<Run>,
    /// Who waits for a thorough comparison that has not begun.
    asked: Vec<u64>,
    /// When the next continuous one is due.
    due: Option<Instant>,
    /// The last comparison, and when it ended.
    pub(super) last: Option<(Instant, Arc<ParityReport>)>,
    /// Why the last attempt failed, if it did.
    pub(super) error: Option<String>,
}

/// A comparison in progress.
#[derive(Debug)]
struct Run {
    /// For whom, when it is thorough.
    thorough: Option<Vec<u64>>,
    primary: Side,
    lists: Vec<(Side, String)>,
    keys: BTreeMap<Arc<str>, Readings>,
    queue: Vec<(Arc<str>, Reading)>,
    in_flight: usize,
    looks: Looks,
}

/// Further looks at values that differed.
#[derive(Debug, Default)]
struct Looks {
    /// When the first reading was over.
    since: Option<Instant>,
    /// When the next look is due.
    due: Option<Instant>,
    /// The pause before it.
    pause: Duration,
}

/// What was read of a key.
#[derive(Debug, Default)]
struct Readings {
    first: Option<Value>,
    secondary: Option<Value>,
    last: Option<Value>,
    /// The same two as the latest look shows them.
    secondary_now: Option<Value>,
    last_now: Option<Value>,
}

/// Which reading of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    First,
    Secondary,
    Last,
    SecondaryAgain,
    LastAgain,
}

impl Run {
    fn thorough(asked: Vec<u64>, primary: Side, prefixes: &[String]) -> Self {
        let both = |prefix: &String| [(primary, prefix.clone()), (primary.other(), prefix.clone())];
        Self {
            thorough: Some(asked),
            primary,
            lists: prefixes.iter().flat_map(both).collect(),
            keys: BTreeMap::new(),
            queue: Vec::new(),
            in_flight: 0,
            looks: Looks::default(),
        }
    }

    fn continuous(primary: Side, known: &BTreeMap<Arc<str>, Value>, prefixes: &[String]) -> Self {
        let listed = known.iter().filter(|(key, _)| prefixes.iter().any(|prefix| key.starts_with(prefix.as_str())));
        let shown = |(key, value): (&Arc<str>, &Value)| {
            let [first, last, last_now] = [(); 3].map(|()| Some(value.clone()));
            (key.clone(), Readings { first, last, last_now, ..Readings::default() })
        };
        let keys: BTreeMap<_, _> = listed.map(shown).collect();
        let queue = keys.keys().map(|key| (key.clone(), Reading::Secondary)).collect();
        Self { thorough: None, primary, lists: Vec::new(), keys, queue, in_flight: 0, looks: Looks::default() }
    }

    fn found(&mut self, keys: Vec<String>) {
        for key in keys {
            let key: Arc<str> = key.into();
            if !self.keys.contains_key(&key) {
                self.keys.insert(key.clone(), Readings::default());
                self.queue.push((key, Reading::First));
            }
        }
    }

    fn read(&mut self, key: &Arc<str>, reading: Reading, value: Option<Value>) {
        let Some(readings) = self.keys.get_mut(key) else { return };
        let next = match reading {
            Reading::First => {
                readings.first = value;
                Reading::Secondary
            }
            Reading::Secondary => {
                readings.secondary = value.clone();
                readings.secondary_now = value;
                if self.thorough.is_none() {
                    return;
                }
                Reading::Last
            }
            Reading::Last => {
                readings.last = value.clone();
                return readings.last_now = value;
            }
            Reading::SecondaryAgain => {
                readings.secondary_now = value;
                if self.thorough.is_none() {
                    return;
                }
                Reading::LastAgain
            }
            Reading::LastAgain => return readings.last_now = value,
        };
        self.queue.push((key.clone(), next));
    }

    /// Everything was read. Whether some of it should be looked at again, and then when.
    fn look_again(&mut self, now: Now, grace: Duration) -> bool {
        if self.looks.due.is_none() {
            let since = *self.looks.since.get_or_insert(now.mono);
            self.looks.pause = (self.looks.pause * 2).max(FIRST_LOOK);
            if now.mono + self.looks.pause > since + grace || self.unsettled(now).next().is_none() {
                return false;
            }
            self.looks.due = Some(now.mono + self.looks.pause);
        }
        if self.looks.due.is_some_and(|due| due <= now.mono) {
            self.looks.due = None;
            let again = self.unsettled(now).map(|key| (key.clone(), Reading::SecondaryAgain));
            self.queue = again.collect();
        }
        true
    }

    /// Values that differ and may do so because a write is on its way. What the primary lacks is not read again when the
    /// comparison is with what this node was shown.
    fn unsettled(&self, now: Now) -> impl Iterator<Item = &Arc<str>> {
        let thorough = self.thorough.is_some();
        let unsettled = move |readings: &Readings| match readings.compare(now) {
            Difference::None => false,
            Difference::Entries(entries) if !thorough => entries.secondary_lacks > 0,
            _ => !readings.ring(),
        };
        self.keys.iter().filter(move |(_, readings)| unsettled(readings)).map(|(key, _)| key)
    }

    fn idle(&self) -> bool {
        self.lists.is_empty() && self.queue.is_empty()
    }

    fn next(&mut self) -> Option<(Job, Side, Task)> {
        if let Some((side, prefix)) = self.lists.pop() {
            return Some((Job::ParityList, side, Task::List { prefix }));
        }
        let (key, reading) = self.queue.pop()?;
        let there = matches!(reading, Reading::Secondary | Reading::SecondaryAgain);
        let side = if there { self.primary.other() } else { self.primary };
        Some((Job::ParityRead(key.clone(), reading), side, Task::Get { key }))
    }
}

impl MultiCore {
    /// Somebody wants a thorough comparison.
    pub(super) fn ask_parity(&mut self, id: u64) {
        self.parity.asked.push(id);
    }

    /// What was being compared is not what it was: the primary is another one.
    pub(super) fn restart_parity(&mut self) {
        if let Some(Run { thorough: Some(asked), .. }) = self.parity.run.take() {
            self.parity.asked.extend(asked);
        }
        self.tasks.retain(|_, job| !matches!(job, Job::ParityList | Job::ParityRead(..)));
        self.parity.last = None;
        self.parity.due = None;
    }

    /// The other store was brought up to date: look at it now.
    pub(super) fn compare_soon(&mut self, now: Now) {
        self.parity.due = Some(now.mono);
    }

    pub(super) fn parity_deadline(&self, now: Instant) -> Option<Instant> {
        let due = match &self.parity.run {
            Some(run) => run.looks.due,
            None => self.parity.due,
        };
        due.filter(|due| *due > now)
    }

    /// Begins a comparison that is due, goes on with the one in progress, or ends it.
    pub(super) fn step_parity(&mut self, now: Now) {
        if self.parity.run.is_none() {
            let primary = self.durable.primary;
            if !self.parity.asked.is_empty() {
                let asked = std::mem::take(&mut self.parity.asked);
                self.parity.run = Some(Run::thorough(asked, primary, &self.config.prefixes));
            } else if !self.durable.mirror {
                self.parity.due = None;
            } else if *self.parity.due.get_or_insert(now.mono + self.config.parity_period) <= now.mono {
                self.parity.run = Some(Run::continuous(primary, &self.durable.known, &self.config.prefixes));
            }
        }
        while let Some(run) = self.parity.run.as_mut() {
            if run.in_flight >= MAX_IN_FLIGHT {
                return;
            }
            if run.in_flight == 0 && run.idle() {
                // Without a mirror nothing is on its way.
                let grace = if self.durable.mirror { self.config.in_flight } else { Duration::ZERO };
                if run.look_again(now, grace) && run.queue.is_empty() {
                    return;
                }
            }
            match run.next() {
                Some((job, side, task)) => {
                    run.in_flight += 1;
                    self.start_task(job, side, task);
                }
                None if run.in_flight > 0 => return,
                None => self.end_parity(now),
            }
        }
    }

    pub(super) fn parity_task_done(&mut self, now: Now, job: Job, result: Result<TaskResult, StoreError>) {
        let Some(run) = self.parity.run.as_mut() else { return };
        run.in_flight = run.in_flight.saturating_sub(1);
        match (job, result) {
            (Job::ParityList, Ok(TaskResult::Keys(keys))) => run.found(keys),
            (Job::ParityRead(key, reading), Ok(TaskResult::Value(value))) => run.read(&key, reading, value),
            (_, Err(error)) => self.fail_parity(now, error.to_string()),
            (_, Ok(_)) => self.fail_parity(now, "a store answered another question".to_owned()),
        }
    }

    fn fail_parity(&mut self, now: Now, error: String) {
        let Some(run) = self.parity.run.take() else { return };
        self.tasks.retain(|_, job| !matches!(job, Job::ParityList | Job::ParityRead(..)));
        self.parity.error = Some(error.clone());
        self.parity.due = Some(now.mono + self.parity_period());
        if let Some(ids) = run.thorough {
            self.out.push_back(Output::Parity { ids, result: Err(error) });
        }
    }

    fn end_parity(&mut self, now: Now) {
        let Some(run) = self.parity.run.take() else { return };
        let report = Arc::new(report(&self.config, &run, now));
        let had_all = self.parity.last.as_ref().map(|(_, last)| last.secondary_has_all);
        if had_all != Some(report.secondary_has_all) && self.durable.mirror {
            let store = report.secondary;
            self.event(if report.secondary_has_all {
                MigrationEvent::ParityReached { store }
            } else {
                MigrationEvent::ParityLost { store, ownership_delta: report.ownership_delta }
            });
        }
        self.copy_what_is_missing(&run, &report, now);
        self.parity.error = None;
        self.parity.last = Some((now.mono, report.clone()));
        self.parity.due = Some(now.mono + self.parity_period());
        if let Some(ids) = run.thorough {
            self.out.push_back(Output::Parity { ids, result: Ok(report) });
        }
    }

    /// The other store had everything once, or is being brought there. When it lacks something all the same, it went back
    /// (a snapshot was restored) or somebody else overwrote it: nobody may write those keys again, so they are copied.
    fn copy_what_is_missing(&mut self, run: &Run, report: &ParityReport, now: Now) {
        if !self.durable.mirror || report.secondary_has_all {
            return;
        }
        for (key, readings) in &run.keys {
            let there = lives(readings.first.as_ref()) && lives(readings.last_now.as_ref());
            let absent = there && readings.secondary_now.is_none();
            let ring = report.rings.get(&**key).is_some_and(|ring| !ring.secondary_has_all());
            let value = report.values.get(&**key).is_some_and(|value| value.secondary_lacks > 0);
            if absent || ring || value {
                self.recheck(key);
            }
        }
        self.step_backfill(now);
    }

    /// The time between continuous comparisons.
    pub(super) fn parity_period(&self) -> Duration {
        match self.config.kind(self.durable.primary.other()) {
            StoreKind::Consul | StoreKind::Etcd => self.config.parity_period * REMOTE_FACTOR,
            _ => self.config.parity_period,
        }
    }
}

fn report(config: &MultiConfig, run: &Run, now: Now) -> ParityReport {
    let mut report = ParityReport {
        at_unix_ms: u64::try_from(now.unix.as_millis()).unwrap_or(u64::MAX),
        primary: config.kind(run.primary),
        secondary: config.kind(run.primary.other()),
        thorough: run.thorough.is_some(),
        equal: true,
        secondary_has_all: true,
        keys: Sides { primary: 0, secondary: 0 },
        only_primary: Ids::default(),
        only_secondary: Ids::default(),
        rings: BTreeMap::new(),
        values: BTreeMap::new(),
        ownership_delta: 0.0,
        replica_set_delta: 0.0,
    };
    for (key, readings) in &run.keys {
        report.keys.primary += usize::from(readings.last_now.is_some());
        report.keys.secondary += usize::from(readings.secondary_now.is_some());
        match readings.compare(now) {
            Difference::OnlyPrimary => report.only_primary.add(key),
            Difference::OnlySecondary => report.only_secondary.add(key),
            Difference::Entries(entries) => _ = report.values.insert(key.to_string(), entries),
            Difference::None => {}
        }
        if readings.ring() {
            report.rings.insert(key.to_string(), compare_rings(config, key, readings, now));
        }
    }
    let rings = report.rings.values();
    report.equal = report.only_primary.count == 0
        && report.only_secondary.count == 0
        && report.values.is_empty()
        && rings.clone().all(RingParity::is_equal);
    report.secondary_has_all = report.only_primary.count == 0
        && report.values.values().all(|value| value.secondary_lacks == 0)
        && rings.clone().all(RingParity::secondary_has_all);
    report.ownership_delta = rings.clone().map(|ring| ring.ownership_delta).fold(0.0, f64::max);
    report.replica_set_delta = rings.map(|ring| ring.replica_set_delta).fold(0.0, f64::max);
    report
}

/// How a key differs. What a ring's instances differ in is another question.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Difference {
    None,
    OnlyPrimary,
    OnlySecondary,
    Entries(ValueParity),
}

impl Readings {
    fn ring(&self) -> bool {
        self.last.as_ref().or(self.secondary.as_ref()).is_some_and(|value| value.is::<Desc>())
    }

    fn compare(&self, now: Now) -> Difference {
        let primary_never = self.first.is_none() && self.last.is_none() && self.last_now.is_none();
        let primary_always = self.first.is_some() && self.last.is_some() && self.last_now.is_some();
        let secondary_never = self.secondary.is_none() && self.secondary_now.is_none();
        let secondary_always = self.secondary.is_some() && self.secondary_now.is_some();
        // A value in which nothing is alive is as good as none: one kind of store keeps its key, another does not.
        if primary_always && secondary_never {
            return if lives(self.last_now.as_ref()) { Difference::OnlyPrimary } else { Difference::None };
        } else if primary_never && secondary_always {
            return if lives(self.secondary_now.as_ref()) { Difference::OnlySecondary } else { Difference::None };
        } else if self.ring() {
            return Difference::None;
        }
        // What joining would bring, by entry. What the first looks at one store showed, the latest at the other lacks.
        let lacks = |of: &Value, than: &Value| -> BTreeSet<String> {
            lacks(Some(of), than, now).map(|lack| lack.seen).unwrap_or_default()
        };
        let (mut secondary_lacks, mut primary_lacks) = (0, 0);
        if let (Some(first), Some(last), Some(secondary)) = (&self.first, &self.last, &self.secondary_now) {
            secondary_lacks = lacks(secondary, first).intersection(&lacks(secondary, last)).count();
        }
        if let (Some(first), Some(last), Some(secondary)) = (&self.first, &self.last_now, &self.secondary) {
            primary_lacks = lacks(first, secondary).intersection(&lacks(last, secondary)).count();
        }
        match secondary_lacks + primary_lacks {
            0 => Difference::None,
            _ => Difference::Entries(ValueParity { secondary_lacks, primary_lacks }),
        }
    }
}

fn compare_rings(config: &MultiConfig, key: &Arc<str>, readings: &Readings, now: Now) -> RingParity {
    let empty = Desc::default();
    let ring = |value: &Option<Value>| value.as_ref().and_then(|value| value.downcast_ref::<Desc>()).cloned();
    let [first, last, secondary] =
        [&readings.first, &readings.last, &readings.secondary].map(|value| ring(value).unwrap_or(empty.clone()));
    let default = RingOptions::default();
    let options = config.rings.get(&**key).unwrap_or(&default);
    RingParity::compare([&first, &last], &secondary, options, config.in_flight, now.unix)
}
