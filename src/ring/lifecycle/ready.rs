//! When an instance is ready to be given work.

use std::time::Instant;

use super::{Lifecycle, Output};
use crate::clock::Now;
use crate::ring::desc::InstanceState;

impl Lifecycle {
    /// Whether the instance is ready: it has been ACTIVE in the ring, with tokens and a recent heartbeat, for
    /// `min_ready_duration`. Once ready it stays ready.
    #[must_use]
    pub fn is_ready(&self, now: Now) -> bool {
        self.not_ready_reason(now).is_none()
    }

    /// Why it is not ready, for people. `None` when it is.
    #[must_use]
    pub fn not_ready_reason(&self, now: Now) -> Option<String> {
        if self.life.ready {
            return None;
        }
        if let Some(reason) = self.obstacle(now.mono) {
            return Some(reason);
        }
        let held =
            self.life.ready_since.map_or_else(Default::default, |since| now.mono.saturating_duration_since(since));
        (held < self.config.min_ready_duration).then(|| {
            let wait = humantime::format_duration(self.config.min_ready_duration);
            format!("instance {} is ACTIVE, but not yet for {wait}", self.id)
        })
    }

    /// Keeps track of how long nothing has been in the way.
    pub(super) fn watch_readiness(&mut self, now: Now) {
        if self.life.ready {
            return;
        }
        if self.obstacle(now.mono).is_some() {
            self.life.ready_since = None;
            return;
        }
        let since = *self.life.ready_since.get_or_insert(now.mono);
        if now.mono.saturating_duration_since(since) >= self.config.min_ready_duration {
            self.life.ready = true;
            self.outputs.push_back(Output::Ready);
        }
    }

    /// When readiness comes if nothing gets in its way.
    pub(super) fn ready_deadline(&self) -> Option<Instant> {
        let since = self.life.ready_since.filter(|_| !self.life.ready)?;
        Some(since + self.config.min_ready_duration)
    }

    fn obstacle(&self, now: Instant) -> Option<String> {
        let own = &self.life.own;
        if own.state != InstanceState::Active {
            return Some(format!("instance {} is {}", self.id, own.state));
        }
        if own.tokens.is_empty() {
            return Some(format!("instance {} owns no tokens", self.id));
        }
        match self.life.confirmed {
            None => Some(format!("instance {} is not in the ring yet", self.id)),
            Some(at) if now.saturating_duration_since(at) > self.config.heartbeat_timeout => {
                Some(format!("instance {} could not write a heartbeat in time", self.id))
            }
            Some(_) => None,
        }
    }
}
