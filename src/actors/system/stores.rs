//! The stores that are not gossip.

use std::sync::Arc;
#[cfg(feature = "consul")]
use std::time::Duration;

use super::StartError;
use crate::config::{Config, KvStore};
use crate::kv::{Codecs, SharedStore};
use crate::stores::memory::Memory;

/// The store that is not gossip, if the configuration names one.
pub(super) fn base_store(
    config: &Config,
    codecs: &Arc<Codecs>,
    memory: Option<&Memory>,
) -> Result<Option<SharedStore>, StartError> {
    let multi = config.kv.store == KvStore::Multi;
    for kind in config.kv.stores() {
        match kind {
            KvStore::Inmemory => {
                return Ok(Some(memory.cloned().unwrap_or_default().store(codecs.clone())));
            }
            KvStore::Consul => return consul_store(config, codecs, multi).map(Some),
            KvStore::Etcd => return Err(StartError::Config("kv.store etcd is not available in this version".into())),
            KvStore::Memberlist | KvStore::Multi => {}
        }
    }
    Ok(None)
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
