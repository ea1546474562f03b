//! The stores that are not gossip.

use std::sync::Arc;
#[cfg(any(feature = "consul", feature = "etcd"))]
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
    let keep_tombstones = config.kv.store == KvStore::Multi && config.kv.multi.keep_tombstones;
    match kind {
        KvStore::Inmemory => Ok(memory.store(codecs.clone())),
        KvStore::Consul => consul_store(config, codecs, keep_tombstones),
        KvStore::Etcd => etcd_store(config, codecs, keep_tombstones),
        KvStore::Memberlist | KvStore::Multi => refused("not a store on its own here"),
    }
}

/// A server that works may take this long for an answer.
#[cfg(any(feature = "consul", feature = "etcd"))]
const SHORTEST_TIMEOUT: Duration = Duration::from_secs(2);

/// The longest wait for one answer: a server that hangs must be noticed before its silence makes instances look dead.
#[cfg(any(feature = "consul", feature = "etcd"))]
fn request_timeout(config: &Config, longest: Duration) -> Duration {
    let shortest = config.rings.iter().map(|ring| ring.heartbeat_timeout / 3).min().unwrap_or(Duration::MAX);
    longest.min(shortest.max(SHORTEST_TIMEOUT))
}

#[cfg(any(feature = "consul", feature = "etcd"))]
fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(feature = "consul")]
fn consul_store(config: &Config, codecs: &Arc<Codecs>, multi: bool) -> Result<SharedStore, StartError> {
    use crate::stores::consul::{ConsulConfig, ConsulStore, ConsulTls};
    let consul = &config.kv.consul;
    let defaults = ConsulConfig::default();
    let tls = consul.uses_tls().then(|| ConsulTls {
        ca_path: some(&consul.tls_ca_path).map(Into::into),
        cert_path: some(&consul.tls_cert_path).map(Into::into),
        key_path: some(&consul.tls_key_path).map(Into::into),
        server_name: some(&consul.tls_server_name),
        insecure_skip_verify: consul.tls_insecure_skip_verify,
    });
    let settings = ConsulConfig {
        host: consul.host.clone(),
        tls,
        acl_token: consul.acl_token.expose().to_owned(),
        consistent_reads: consul.consistent_reads,
        watch_rate_limit: consul.watch_rate_limit,
        watch_burst_size: consul.watch_burst_size,
        // Two stores converge only when a removal is visible in both.
        keep_tombstones: multi,
        left_timeout: config.memberlist.left_ingesters_timeout,
        http_client_timeout: request_timeout(config, defaults.http_client_timeout),
        ..defaults
    };
    Ok(ConsulStore::new(settings, codecs.clone())?)
}

#[cfg(not(feature = "consul"))]
fn consul_store(_: &Config, _: &Arc<Codecs>, _: bool) -> Result<SharedStore, StartError> {
    Err(StartError::Config("kv.store consul needs the crate's feature `consul`".into()))
}

#[cfg(feature = "etcd")]
fn etcd_store(config: &Config, codecs: &Arc<Codecs>, multi: bool) -> Result<SharedStore, StartError> {
    use crate::stores::etcd::{EtcdConfig, EtcdStore, EtcdTls};
    let etcd = &config.kv.etcd;
    let defaults = EtcdConfig::default();
    let tls = etcd.tls_enabled.then(|| EtcdTls {
        ca_path: some(&etcd.tls_ca_path).map(Into::into),
        cert_path: some(&etcd.tls_cert_path).map(Into::into),
        key_path: some(&etcd.tls_key_path).map(Into::into),
        server_name: some(&etcd.tls_server_name),
    });
    let settings = EtcdConfig {
        endpoints: etcd.endpoints.clone(),
        username: etcd.username.clone(),
        password: etcd.password.expose().to_owned(),
        tls,
        dial_timeout: etcd.dial_timeout,
        max_retries: etcd.max_retries,
        max_request_bytes: usize::try_from(etcd.max_request_bytes.0).unwrap_or(usize::MAX),
        // Two stores converge only when a removal is visible in both.
        keep_tombstones: multi,
        left_timeout: config.memberlist.left_ingesters_timeout,
        request_timeout: request_timeout(config, defaults.request_timeout),
        ..defaults
    };
    Ok(EtcdStore::new(settings, codecs.clone())?)
}

#[cfg(not(feature = "etcd"))]
fn etcd_store(_: &Config, _: &Arc<Codecs>, _: bool) -> Result<SharedStore, StartError> {
    Err(StartError::Config("kv.store etcd needs the crate's feature `etcd`".into()))
}
