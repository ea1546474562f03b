//! TLS to a real Consul: it is proven both ways, what is wrong is said with what to do about it, and certificates can be
//! replaced under a running node.
#![cfg(feature = "consul-tls")]
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use annulus::kv::{CasAction, CasOutcome, Codecs, Store as _, StoreError, Value};
use annulus::stores::consul::{ConsulConfig, ConsulStore, ConsulTls};
use futures_util::StreamExt as _;
use support::consul::{Consul, certificates};
use support::notes::{Notes, NotesCodec};

const PATIENCE: Duration = Duration::from_secs(30);

fn codecs() -> Arc<Codecs> {
    let codecs = Codecs::default();
    codecs.register("", Arc::new(NotesCodec));
    Arc::new(codecs)
}

fn open(host: String, tls: ConsulTls) -> Result<Arc<ConsulStore>, StoreError> {
    let config = ConsulConfig {
        host,
        tls: Some(tls),
        http_client_timeout: Duration::from_secs(5),
        watch_rate_limit: 0.0,
        ..ConsulConfig::default()
    };
    ConsulStore::new(config, codecs())
}

/// Who knows the authority of these certificates.
fn knows(certificates: &Path) -> ConsulTls {
    ConsulTls { ca_path: Some(certificates.join("consul-agent-ca.pem")), ..ConsulTls::default() }
}

/// Who also has a client's certificate of them.
fn client(certificates: &Path) -> ConsulTls {
    let file = |name: &str| Some(certificates.join(name));
    ConsulTls {
        cert_path: file("dc1-client-consul-0.pem"),
        key_path: file("dc1-client-consul-0-key.pem"),
        ..knows(certificates)
    }
}

async fn set(store: &ConsulStore, text: &'static str) -> Result<CasOutcome, StoreError> {
    let write = move |current: Option<&Value>| {
        let mut notes = Notes::of(current);
        notes.set("a", text);
        CasAction::Write(Value::new(notes))
    };
    store.cas("key", Box::new(write)).await
}

/// Why Consul cannot be used.
async fn reason(host: String, tls: ConsulTls) -> String {
    match open(host, tls).unwrap().get("key").await {
        Err(StoreError::Unavailable { reason, .. }) => reason,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn a_ring_can_be_kept_in_a_consul_behind_tls() {
    let Some(ours) = certificates() else { return };
    let Some(consul) = Consul::start_tls(ours.path(), false) else { return };
    let store = open(consul.https_host(), knows(ours.path())).unwrap();
    let mut watch = store.watch_key("key");
    assert!(watch.next().await.unwrap().entry.is_none());
    set(&store, "1").await.unwrap();
    let seen = tokio::time::timeout(PATIENCE, watch.next()).await.unwrap().unwrap();
    assert_eq!(Notes::of(seen.entry.map(|entry| entry.value).as_ref()).get("a"), Some("1"));
    assert!(consul.request("GET", "/v1/kv/key?raw", b"").contains('1'), "it is in that Consul");

    // The scheme alone asks for TLS, and by the name in the certificate it is the same server.
    let named = ConsulTls { server_name: Some("server.dc1.consul".to_owned()), ..knows(ours.path()) };
    let store = open(format!("https://{}", consul.https_host()), named).unwrap();
    set(&store, "2").await.unwrap();
    assert_eq!(store.list("").await.unwrap(), ["key"]);
    store.delete("key").await.unwrap();
}

#[tokio::test]
async fn what_is_wrong_is_said_with_what_to_do() {
    let (Some(ours), Some(theirs)) = (certificates(), certificates()) else { return };
    let Some(consul) = Consul::start_tls(ours.path(), true) else { return };
    let host = || consul.https_host();
    set(&open(host(), client(ours.path())).unwrap(), "1").await.unwrap();

    let stranger = ConsulTls { ca_path: knows(theirs.path()).ca_path, ..client(ours.path()) };
    let text = reason(host(), stranger).await;
    assert!(text.contains("not signed by the authorities in") && text.contains("consul-agent-ca.pem"), "{text}");
    let misnamed = ConsulTls { server_name: Some("consul.elsewhere".to_owned()), ..client(ours.path()) };
    let text = reason(host(), misnamed).await;
    assert!(text.contains("not for consul.elsewhere") && text.contains("server.dc1.consul"), "{text}");
    assert!(text.contains("kv.consul.tls_server_name"), "{text}");
    let text = reason(host(), knows(ours.path())).await;
    assert!(text.contains("wants a certificate from us: set kv.consul.tls_cert_path"), "{text}");
    let theirs = ConsulTls { ca_path: knows(ours.path()).ca_path, ..client(theirs.path()) };
    let text = reason(host(), theirs).await;
    assert!(text.contains("does not accept our certificate in"), "{text}");
    let text = reason(consul.host(), client(ours.path())).await;
    assert!(text.contains("speaks no TLS at this port"), "{text}");

    // No TLS where it is wanted.
    let plain = ConsulConfig { host: host(), ..ConsulConfig::default() };
    let refused = ConsulStore::new(plain, codecs()).unwrap().get("key").await.unwrap_err().to_string();
    assert!(refused.contains("HTTPS"), "{refused}");

    let unchecked = ConsulTls { ca_path: None, insecure_skip_verify: true, ..client(ours.path()) };
    let unchecked = ConsulTls { server_name: Some("consul.elsewhere".to_owned()), ..unchecked };
    set(&open(host(), unchecked).unwrap(), "2").await.unwrap();
}

#[tokio::test]
async fn replaced_certificates_are_used_for_the_next_connection() {
    let (Some(ours), Some(theirs)) = (certificates(), certificates()) else { return };
    let Some(consul) = Consul::start_tls(ours.path(), false) else { return };
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("ca.pem");
    let ca = |of: &tempfile::TempDir| std::fs::copy(of.path().join("consul-agent-ca.pem"), &path).unwrap();
    ca(&theirs);
    let tls = ConsulTls { ca_path: Some(path.clone()), ..ConsulTls::default() };
    let store = open(consul.https_host(), tls).unwrap();
    store.get("key").await.unwrap_err();
    ca(&ours);
    store.get("key").await.unwrap();
    // Half a file changes nothing.
    std::fs::write(&path, "-----BEGIN CERTIFICATE-----\n").unwrap();
    let mut others = (0..4).map(|_| store.get("key")).collect::<futures_util::stream::FuturesUnordered<_>>();
    while let Some(read) = others.next().await {
        read.unwrap();
    }
}

#[test]
fn settings_that_cannot_work_are_refused_at_once_and_keys_are_not_shown() {
    let Some(ours) = certificates() else { return };
    let good = || client(ours.path());
    let host = || "consul.example:8501".to_owned();
    let file = |name: &str| Some(ours.path().join(name));
    for (unusable, says) in [
        (ConsulTls { ca_path: file("missing.pem"), ..good() }, "missing.pem"),
        (ConsulTls { key_path: None, ..good() }, "needs its key"),
        (ConsulTls { key_path: file("consul-agent-ca.pem"), ..good() }, "no private key"),
        (ConsulTls { ca_path: file("dc1-client-consul-0-key.pem"), ..good() }, "no certificate"),
        (ConsulTls { key_path: file("dc1-server-consul-0-key.pem"), ..good() }, "cannot be used"),
        (ConsulTls { server_name: Some("not a name".to_owned()), ..good() }, "set the server name"),
    ] {
        let refused = open(host(), unusable.clone()).unwrap_err().to_string();
        assert!(refused.contains(says), "{unusable:?}: {refused}");
    }
    assert!(open(format!("http://{}", host()), good()).is_err(), "TLS settings and no TLS");
    let key = std::fs::read_to_string(file("dc1-client-consul-0-key.pem").unwrap()).unwrap();
    let secret = key.lines().nth(1).unwrap();
    let shown = format!("{:?}", open(host(), good()).unwrap());
    assert!(!shown.contains(secret) && !shown.contains("PRIVATE"), "{shown}");
}
