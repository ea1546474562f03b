//! The stores that are not gossip.

use std::sync::Arc;
#[cfg(feature = "consul")]
use std::time::Duration;

use super::StartError;
use crate::config::{Config, KvStore};
use crate::kv::{Codecs, SharedStore};
use crate::stores::memory::Memory;

/// A store that is not gossip.
pub(super) fn other_store(
    kind: KvStore,
    config: &Config,
    codecs: &Arc<Codecs>,
    memory: &Memory,
) -> Result<SharedStore, StartError> {
    let refused = |reason: &str| Err(StartError::Config(format!("kv.store {}: {reason}", kind.name())));
    match kind {
        KvStore::Inmemory => Ok(memory.store(codecs.clone())),
        KvStore::Consul => {
            consul_store(config, codecs, config.kv.store == KvStore::Multi && config.kv.multi.keep_tombstones)
        }
        KvStore::Etcd => refused("not available in this version"),
        KvStore::Memberlist | KvStore::Multi => refused("not a store on its own here"),
    }
}

/// A Consul that works may take this long for an answer.
#[cfg(feature = "consul")]
const SHORTEST_CONSUL_TIMEOUT: Duration = Duration::from_secs(2);

#[cfg(feature = "consul")]
fn consul_store(config: &Config, codecs: &Arc<Codecs>, multi: bool) -> Result<SharedStore, StartError> {
    use crate::stores::consul::{ConsulConfig, ConsulStore};
    let consul = &config.kv.consul;
    let defaults = ConsulConfig::default();
    // A Consul that hangs must be noticed before its silence makes instances look dead.
    let shortest = config.rings.iter().map(|ring| ring.heartbeat_timeout / 3).min().unwrap_or(Duration::MAX);
    let http_client_timeout = defaults.http_client_timeout.min(shortest.max(SHORTEST_CONSUL_TIMEOUT));
    let settings = ConsulConfig {
        host: consul.host.clone(),
        acl_token: consul.acl_token.expose().to_owned(),
        consistent_reads: consul.consistent_reads,
        watch_rate_limit: consul.watch_rate_limit,
        watch_burst_size: consul.watch_burst_size,
        // Two stores converge only when a removal is visible in both.
        keep_tombstones: multi,
        left_timeout: config.memberlist.left_ingesters_timeout,
        http_client_timeout,
        ..defaults
    };
    Ok(ConsulStore::new(settings, codecs.clone())?)
}

#[cfg(not(feature = "consul"))]
fn consul_store(_: &Config, _: &Arc<Codecs>, _: bool) -> Result<SharedStore, StartError> {
    Err(StartError::Config("kv.store consul needs the crate's feature `consul`".into()))
}
