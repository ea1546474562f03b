//! Whether everything that the primary holds fits into the other store, known before the mirror is switched on.
//!
//! Consul and etcd take values up to a limit, gossip practically any. Each key of the primary is read once in a while, and
//! what it would be as bytes in the other store is compared with that store's limit. Where the other store has no limit,
//! nothing is read. A server can be set to a lower limit than usual: what it refuses teaches the real one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::config::Side;
use super::core::{Job, MultiCore};
use super::message::{MigrationEvent, Task, TaskResult};
use crate::clock::Now;
use crate::kv::{StoreError, StoreKind, Value, ValueSize};

/// Reads and listings in flight at once.
const MAX_IN_FLIGHT: usize = 4;

/// Time between two looks. A server as primary is asked for every key, so it is asked less often.
const PERIOD: Duration = Duration::from_secs(60);
const PERIOD_OF_SERVERS: Duration = Duration::from_secs(300);

/// How soon after a look that failed the next one comes.
const RETRY: Duration = Duration::from_secs(10);

/// And after one that found something too large: somebody is about to make it smaller, and waits for us to see it.
const WHILE_TOO_LARGE: Duration = Duration::from_secs(30);

/// How many keys a message names.
pub(super) const NAMED: usize = 3;

type Measure = dyn Fn(Side, &str, &Value) -> Option<ValueSize> + Send + Sync;

/// Computes how large a value would be in the store of a side. Asks no store.
#[derive(Clone)]
pub struct Sizer {
    /// Whether the store of this side has a limit at all.
    limited: [bool; 2],
    measure: Arc<Measure>,
}

impl Sizer {
    /// A sizer for two stores, which says of each whether it has a limit, and computes sizes for those that have one.
    pub fn new(
        limited: [bool; 2],
        measure: impl Fn(Side, &str, &Value) -> Option<ValueSize> + Send + Sync + 'static,
    ) -> Self {
        Self { limited, measure: Arc::new(measure) }
    }
}

impl Default for Sizer {
    /// No store has a limit.
    fn default() -> Self {
        Self::new([false, false], |_, _, _| None)
    }
}

impl fmt::Debug for Sizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sizer").field("limited", &self.limited).finish_non_exhaustive()
    }
}

/// A value of the primary that is near or above the limit of the other store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LargeValue {
    /// Its key.
    pub key: String,
    /// Bytes that it has, or would have, in the other store.
    pub size: usize,
    /// The most that the other store takes for this key.
    pub limit: usize,
}

/// What is known about sizes in the present direction.
#[derive(Debug, Default)]
pub(super) struct Sizes {
    run: Option<Run>,
    due: Option<Instant>,
    /// Whether a look was finished since the direction changed.
    looked: bool,
    /// Values near or above the limit.
    large: BTreeMap<Arc<str>, ValueSize>,
    /// Why the last look failed.
    error: Option<String>,
    /// A limit that a store has shown by refusing. Holds until it takes more, or the mirror is turned on again.
    learned: [Option<usize>; 2],
}

#[derive(Debug)]
struct Run {
    lists: Vec<String>,
    keys: BTreeSet<Arc<str>>,
    queue: Vec<Arc<str>>,
    in_flight: usize,
    large: BTreeMap<Arc<str>, ValueSize>,
}

impl MultiCore {
    fn limited(&self, side: Side) -> bool {
        self.config.sizer.limited[side.index()]
    }

    /// The size of a value in the store that is not primary, when that is near or above its limit.
    fn large(&self, key: &str, value: &Value) -> Option<ValueSize> {
        let side = self.durable.primary.other();
        if !self.limited(side) {
            return None;
        }
        let mut size = (self.config.sizer.measure)(side, key, value)?;
        size.limit = self.sizes.learned[side.index()].map_or(size.limit, |learned| learned.min(size.limit));
        size.is_near().then_some(size)
    }

    /// The size of a value that the other store would not take.
    pub(super) fn too_large(&self, key: &str, value: &Value) -> Option<ValueSize> {
        self.large(key, value).filter(ValueSize::is_over)
    }

    /// The direction changed, or there are other keys to look at.
    pub(super) fn restart_sizes(&mut self) {
        self.tasks.retain(|_, job| !matches!(job, Job::SizeList | Job::SizeRead(_)));
        self.sizes = Sizes { learned: self.sizes.learned, ..Sizes::default() };
    }

    pub(super) fn sizes_deadline(&self, now: Instant) -> Option<Instant> {
        self.sizes.due.filter(|due| self.sizes.run.is_none() && *due > now)
    }

    /// Begins a look that is due, goes on with the one in progress, or ends it.
    pub(super) fn step_sizes(&mut self, now: Now) {
        let primary = self.durable.primary;
        if !self.limited(primary.other()) || self.durable.waiting {
            return;
        }
        if self.sizes.run.is_none() {
            if *self.sizes.due.get_or_insert(now.mono) > now.mono {
                return;
            }
            self.sizes.run = Some(Run {
                lists: self.config.prefixes.clone(),
                keys: BTreeSet::new(),
                queue: Vec::new(),
                in_flight: 0,
                large: BTreeMap::new(),
            });
        }
        while let Some(run) = self.sizes.run.as_mut() {
            if run.in_flight >= MAX_IN_FLIGHT {
                return;
            }
            let (job, task) = if let Some(prefix) = run.lists.pop() {
                (Job::SizeList, Task::List { prefix })
            } else if let Some(key) = run.queue.pop() {
                (Job::SizeRead(key.clone()), Task::Get { key })
            } else if run.in_flight > 0 {
                return;
            } else {
                return self.end_sizes(now);
            };
            run.in_flight += 1;
            self.start_task(job, primary, task);
        }
    }

    pub(super) fn size_task_done(&mut self, now: Now, job: Job, result: Result<TaskResult, StoreError>) {
        let Some(run) = self.sizes.run.as_mut() else { return };
        run.in_flight = run.in_flight.saturating_sub(1);
        match (job, result) {
            (Job::SizeList, Ok(TaskResult::Keys(keys))) => {
                for key in keys {
                    let key: Arc<str> = key.into();
                    if run.keys.insert(key.clone()) {
                        run.queue.push(key);
                    }
                }
            }
            (Job::SizeRead(key), Ok(TaskResult::Value(Some(value)))) => {
                if let Some(size) = self.large(&key, &value)
                    && let Some(run) = self.sizes.run.as_mut()
                {
                    run.large.insert(key, size);
                }
            }
            (Job::SizeRead(_), Ok(TaskResult::Value(None))) => {}
            // Nobody can read this one, so nobody can mirror it: the backfill says so.
            (Job::SizeRead(_), Err(error)) if !super::outbox::is_outage(&error) => {}
            (_, Err(error)) => self.fail_sizes(now, error.to_string()),
            (_, Ok(_)) => self.fail_sizes(now, "a store answered another question".to_owned()),
        }
    }

    fn fail_sizes(&mut self, now: Now, error: String) {
        self.sizes.run = None;
        self.tasks.retain(|_, job| !matches!(job, Job::SizeList | Job::SizeRead(_)));
        self.sizes.error = Some(error);
        self.sizes.due = Some(now.mono + RETRY);
    }

    fn end_sizes(&mut self, now: Now) {
        let Some(run) = self.sizes.run.take() else { return };
        self.sizes.looked = true;
        self.sizes.error = None;
        let period = match self.config.kind(self.durable.primary) {
            _ if run.large.values().any(ValueSize::is_over) => WHILE_TOO_LARGE,
            StoreKind::Consul | StoreKind::Etcd => PERIOD_OF_SERVERS,
            _ => PERIOD,
        };
        self.sizes.due = Some(now.mono + period);
        let before = std::mem::replace(&mut self.sizes.large, run.large.clone());
        for (key, size) in run.large {
            self.tell_size(before.get(&key), &key, size);
        }
        let over = |large: &BTreeMap<Arc<str>, ValueSize>| {
            large.iter().filter(|(_, size)| size.is_over()).map(|(key, _)| key.clone()).collect::<BTreeSet<_>>()
        };
        let fits: Vec<_> = over(&before).difference(&over(&self.sizes.large)).cloned().collect();
        for key in &fits {
            self.fits_now(key);
        }
        // A run that had given up a value, which became smaller before the run was over, has to be made good as well.
        if over(&self.sizes.large).is_empty() {
            self.copy_what_was_too_large();
        }
    }

    /// A run of the backfill went on without some values: look soon whether they are still too large.
    pub(super) fn look_at_sizes_soon(&mut self, now: Now) {
        let soon = now.mono + WHILE_TOO_LARGE;
        self.sizes.due = Some(self.sizes.due.map_or(soon, |due| due.min(soon)));
    }

    fn copy_what_was_too_large(&mut self) {
        if self.durable.mirror && self.backfill.is_none() && self.backfilled.too_large > 0 {
            self.start_backfill();
        }
    }

    /// A value that was too large is smaller now, or gone: what waits for it is sent, and it is copied.
    fn fits_now(&mut self, key: &Arc<str>) {
        let store = self.config.kind(self.durable.primary.other());
        self.event(MigrationEvent::ValueFits { store, key: key.to_string() });
        self.durable.outbox[self.durable.primary.other().index()].retry_key_now(key);
        self.copy_what_was_too_large();
    }

    /// The other store refused a value for its size, or would.
    pub(super) fn note_too_large(&mut self, side: Side, key: &Arc<str>, size: ValueSize, refused: bool) {
        if refused {
            let learned = &mut self.sizes.learned[side.index()];
            *learned = Some(learned.map_or(size.limit, |limit| limit.min(size.limit)));
        }
        if side != self.durable.primary {
            let before = self.sizes.large.insert(key.clone(), size);
            self.tell_size(before.as_ref(), key, size);
        }
    }

    /// The other store took a value, whatever was thought of its size.
    pub(super) fn note_taken(&mut self, side: Side, key: &Arc<str>) {
        if side != self.durable.primary
            && let Some(taken) = self.sizes.large.get(key).copied().filter(ValueSize::is_over)
        {
            self.sizes.large.remove(key);
            // It takes more than it did when it refused: somebody has set it to another limit.
            self.sizes.learned[side.index()].take_if(|learned| *learned < taken.size);
            self.fits_now(key);
        }
    }

    /// Whoever turns the mirror on may have set a store to another limit before.
    pub(super) fn forget_learned_limits(&mut self) {
        self.sizes.learned = [None, None];
    }

    /// Tells of a value that is near or above the limit, once.
    fn tell_size(&mut self, before: Option<&ValueSize>, key: &Arc<str>, size: ValueSize) {
        if before.is_some_and(|before| before.is_over() == size.is_over()) {
            return;
        }
        let (store, key) = (self.config.kind(self.durable.primary.other()), key.to_string());
        let ValueSize { size, limit } = size;
        self.event(if size > limit {
            MigrationEvent::ValueTooLarge { store, key, size, limit }
        } else {
            MigrationEvent::ValueLarge { store, key, size, limit }
        });
    }

    /// Values near or above the limit of the other store, the largest part of their limit first.
    #[must_use]
    pub(super) fn large_values(&self) -> Vec<LargeValue> {
        let large = self.sizes.large.iter();
        let mut large: Vec<_> =
            large.map(|(key, &ValueSize { size, limit })| LargeValue { key: key.to_string(), size, limit }).collect();
        large.sort_by_key(|value| std::cmp::Reverse(value.size.saturating_mul(1000) / value.limit.max(1)));
        large
    }

    /// The state of the gate, and what to be warned of; `None` where there is no limit.
    pub(super) fn size_gate(&self) -> Option<(Result<String, String>, Option<String>)> {
        let other = self.durable.primary.other();
        let (over, near): (Vec<_>, Vec<_>) =
            self.large_values().into_iter().partition(|value| value.size > value.limit);
        if !self.limited(other) && over.is_empty() {
            return None;
        }
        let store = self.config.kind(other);
        let warning = (!near.is_empty()).then(|| format!("near the limit of {store}: {}", named(&near)));
        let state = match (&self.sizes.error, self.sizes.looked) {
            _ if !over.is_empty() => Err(format!(
                "{} too large for {store}: {}; make {} smaller (fewer tokens or instances), or delete what nobody needs",
                match over.len() {
                    1 => "a value is".to_owned(),
                    n => format!("{n} values are"),
                },
                named(&over),
                if over.len() == 1 { "it" } else { "them" },
            )),
            (Some(error), false) => Err(format!("it is not known whether all values fit {store}: {error}")),
            (None, false) => Err(format!("it is not known yet whether all values fit {store}")),
            (_, true) => Ok(format!("every value fits {store}")),
        };
        Some((state, warning))
    }
}

/// The first few, with their sizes.
pub(super) fn named(values: &[LargeValue]) -> String {
    let shown: Vec<_> = values
        .iter()
        .take(NAMED)
        .map(|LargeValue { key, size, limit }| format!("{key:?} has {size} bytes of at most {limit}"))
        .collect();
    let more = match values.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    format!("{}{more}", shown.join(", "))
}
