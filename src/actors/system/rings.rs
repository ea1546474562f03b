//! The actors of one ring.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use actix::Addr;
use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::{RingEntry, Spawner, ring_key};
use crate::actors::events::EventHub;
use crate::actors::heartbeat::{Heartbeat, HeartbeatParts, OwnInstance};
use crate::actors::multi::Shadow;
use crate::actors::ring_keeper::{RingKeeper, RingParts, Source};
use crate::actors::shadow::ShadowRing;
use crate::actors::tokens_file;
use crate::config::{Config, RingConfig};
use crate::kv::SharedStore;
use crate::ring::lifecycle::LifecycleConfig;
use crate::ring::{Freshness, InstanceState, RingOptions};

pub(super) fn start_ring(
    spawner: &Spawner,
    config: &Config,
    ring: &RingConfig,
    store: &SharedStore,
    shadow: Option<&Arc<Shadow>>,
    events: &EventHub,
) -> RingEntry {
    let key = ring_key(config, ring);
    let options = options(ring);
    let grace = Freshness::new(ring.heartbeat_timeout + ring.heartbeat_period);
    let shadow = shadow.map(|shadow| start_shadow(spawner, config, ring, &options, shadow, events));
    let source = Source::Store(store.clone());
    let parts = RingParts::new(ring.name.clone(), key.clone(), &options, grace, source, events.clone());
    let (heartbeat, heartbeat_address) = if ring.join {
        let (parts, address) = start_heartbeat(spawner, config, ring, key, store, events);
        (Some(parts), Some(address))
    } else {
        (None, None)
    };
    let _ = parts.heartbeat.set(heartbeat_address.clone());
    spawner.spawn(format!("ring-keeper/{}", ring.name), RingKeeper::new(parts.clone()));
    RingEntry { config: ring.clone(), parts, shadow, heartbeat, heartbeat_address }
}

/// How a ring is read.
pub(super) fn options(ring: &RingConfig) -> RingOptions {
    RingOptions {
        replication_factor: usize::try_from(ring.replication_factor).unwrap_or(usize::MAX),
        zone_awareness: ring.zone_awareness_enabled,
        excluded_zones: ring.excluded_zones.clone(),
        heartbeat_timeout: ring.heartbeat_timeout,
    }
}

/// A keeper of the same ring in the other store of a migration.
fn start_shadow(
    spawner: &Spawner,
    config: &Config,
    ring: &RingConfig,
    options: &RingOptions,
    shadow: &Arc<Shadow>,
    events: &EventHub,
) -> Arc<ShadowRing> {
    let grace = Freshness::new(ring.heartbeat_timeout + ring.heartbeat_period);
    let source = Source::Shadow(shadow.clone());
    let parts = RingParts::new(ring.name.clone(), ring_key(config, ring), options, grace, source, events.clone());
    let _ = parts.heartbeat.set(None);
    spawner.spawn(format!("shadow-keeper/{}", ring.name), RingKeeper::new(parts.clone()));
    Arc::new(ShadowRing::new(parts.snapshot.clone(), config.migration.shadow_lookups))
}

fn start_heartbeat(
    spawner: &Spawner,
    config: &Config,
    ring: &RingConfig,
    key: String,
    store: &SharedStore,
    events: &EventHub,
) -> (Arc<HeartbeatParts>, Addr<Heartbeat>) {
    let tokens_file = (!ring.tokens_file_path.is_empty()).then(|| PathBuf::from(&ring.tokens_file_path));
    let tokens = tokens_file.as_deref().map(tokens_file::load).unwrap_or_default();
    let parts = Arc::new(HeartbeatParts {
        ring: ring.name.clone(),
        key,
        config: LifecycleConfig {
            id: config.node.id.clone(),
            addr: config.node.address.clone(),
            zone: config.node.zone.clone(),
            num_tokens: usize::try_from(ring.num_tokens).unwrap_or(128),
            heartbeat_period: ring.heartbeat_period,
            heartbeat_timeout: ring.heartbeat_timeout,
            observe_period: ring.observe_period,
            join_after: ring.join_after,
            min_ready_duration: ring.min_ready_duration,
            final_sleep: ring.final_sleep,
            unregister_on_shutdown: ring.unregister_on_shutdown,
            auto_forget_unhealthy_periods: ring.auto_forget_unhealthy_periods,
            tokens,
        },
        tokens_file,
        store: store.clone(),
        own: ArcSwap::from_pointee(OwnInstance {
            state: InstanceState::Pending,
            tokens: 0,
            not_ready: Some("not registered yet".to_owned()),
            heartbeats: 0,
            last_error: None,
        }),
        events: events.clone(),
        durable: Mutex::new(None),
        finished: watch::Sender::new(false),
    });
    let address = spawner.spawn(format!("heartbeat/{}", ring.name), Heartbeat::new(parts.clone()));
    (parts, address)
}
