//! What a backfill makes of the other store's answer for a key, and of a key that cannot be copied.

use std::sync::Arc;

use super::super::core::MultiCore;
use super::super::lacks::{Lack, lacks};
use super::super::message::MigrationEvent;
use super::super::outbox::{Backoff as _, Reason};
use super::super::sizes::{self, LargeValue};
use super::At;
use crate::clock::Now;
use crate::kv::{StoreError, Value};

impl MultiCore {
    /// The stores answer, and one key cannot be read: it is tried again, later and later, and the others go on.
    pub(super) fn key_in_trouble(&mut self, now: Now, key: &Arc<str>, error: &StoreError) {
        let reason = error.to_string();
        self.durable.totals.last_error = Some(reason.clone());
        let Some(step) = self.backfill.as_mut().and_then(|run| run.keys.get_mut(key)) else { return };
        if matches!(step.at, At::Reading | At::Checking(_)) {
            step.failures = step.failures.saturating_add(1);
            step.read_again_at(now.mono + self.backoff.delay(step.failures));
            self.note_trouble(key, reason);
        }
    }

    /// What keeps a key from being copied is told once, and shown as long as it does.
    fn note_trouble(&mut self, key: &Arc<str>, reason: String) {
        let Some(step) = self.backfill.as_mut().and_then(|run| run.keys.get_mut(key)) else { return };
        if step.trouble.replace(reason.clone()).is_none() {
            self.event(MigrationEvent::KeyNotCopied { key: key.to_string(), reason });
        }
    }

    /// The keys that keep the present run from its end although the stores answer, in words.
    pub(in super::super) fn backfill_troubles(&self) -> Option<String> {
        let keys = self.backfill.iter().flat_map(|run| &run.keys);
        let mut troubles = keys.filter_map(|(key, step)| Some(format!("{key:?} ({})", step.trouble.as_ref()?)));
        let first: Vec<_> = troubles.by_ref().take(sizes::NAMED).collect();
        let more = match troubles.count() {
            0 => String::new(),
            more => format!(", and {more} more"),
        };
        (!first.is_empty()).then(|| format!("{}{more}", first.join(", ")))
    }

    /// The other store has told what it has of a key.
    pub(super) fn compare(&mut self, now: Now, key: &Arc<str>, found: Option<Value>) {
        let Some(run) = self.backfill.as_mut() else { return };
        let Some(step) = run.keys.get_mut(key) else { return };
        let At::Checking(wanted) = &step.at else { return };
        let wanted = wanted.clone();
        let lack = lacks(found.as_ref(), &wanted, now);
        #[cfg(test)]
        let lack = match &found {
            Some(found) if self.fault == super::super::core::Fault::RemovalByAbsence => {
                let delta = wanted.delta(Some(found), now).ok().flatten();
                delta.map(|delta| Lack { seen: delta.content().into_iter().collect(), delta })
            }
            _ => lack,
        };
        let Some(Lack { delta, seen }) = lack else { return run.key_done(key) };
        if let (None, Some(settle), false) = (&found, run.settle, step.settled) {
            // Read again before it is created: it may be gone by then.
            step.settled = true;
            return step.read_again_at(now.mono + settle);
        }
        if step.sent && !seen.is_empty() {
            step.failures = step.failures.saturating_add(1);
            step.read_again_at(now.mono + self.backoff.delay(step.failures));
            if step.failures > 1 {
                let store = self.config.kind(self.durable.primary.other());
                let entries = seen.into_iter().take(sizes::NAMED).collect::<Vec<_>>();
                self.note_trouble(key, format!("{store} takes and does not keep {entries:?}"));
            }
            return;
        }
        let all = found.and_then(|found| found.join(&wanted, now).ok());
        let all = all.map_or_else(|| wanted.clone(), |all| all.value);
        let other = self.durable.primary.other();
        let too_large = self.too_large(key, &all);
        if seen.is_empty() {
            // Tombstones of what is not there. They keep older writes of those entries out, where they are kept at all.
            if too_large.is_none() {
                self.enqueue(other, key, &delta, Reason::Owed, now);
            }
            if let Some(run) = self.backfill.as_mut() {
                run.key_done(key);
            }
            return;
        }
        if let Some(size) = too_large {
            self.note_too_large(other, key, size, false);
            if let Some(run) = self.backfill.as_mut() {
                run.give_up(key, LargeValue { key: key.to_string(), size: size.size, limit: size.limit });
            }
            return;
        }
        let Some(run) = self.backfill.as_mut() else { return };
        let Some(step) = run.keys.get_mut(key) else { return };
        run.joined += usize::from(!std::mem::replace(&mut step.counted, true));
        step.at = At::Sending(wanted);
        self.enqueue(other, key, &delta, Reason::Owed, now);
    }
}
