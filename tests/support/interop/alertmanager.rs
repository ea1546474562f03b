//! Servers of Alertmanager: members of a plain memberlist cluster that share silences.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use annulus::swim::SwimConfig;
use serde_json::{Value, json};

use super::loopback::Loopback;
use super::matrix::Peer;
use super::process::Process;
use super::{fetched, package_version, until};
use crate::support::skip_or_fail;

/// Which Alertmanager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// 0.25: memberlist 0.2.2, no labels.
    V025,
    /// 0.28: memberlist 0.5.0.
    V028,
    /// What Debian's development branch has.
    Sid,
}

impl Version {
    /// Its column in the table.
    pub fn peer(self) -> Peer {
        match self {
            Self::V025 => Peer::Alertmanager025,
            Self::V028 => Peer::Alertmanager028,
            Self::Sid => Peer::AlertmanagerSid,
        }
    }

    fn fetched_as(self) -> &'static str {
        match self {
            Self::V025 => "alertmanager-0.25",
            Self::V028 => "alertmanager-0.28",
            Self::Sid => "alertmanager-sid",
        }
    }

    /// Whether it was fetched. Says so where it was not.
    pub fn is_here(self) -> bool {
        fetched(self.fetched_as(), "prometheus-alertmanager").is_some()
    }

    /// The package's version.
    pub fn number(self) -> String {
        package_version(self.fetched_as())
    }
}

/// The timings with which servers are started here.
pub fn swim_config() -> SwimConfig {
    SwimConfig {
        probe_interval: Duration::from_millis(500),
        probe_timeout: Duration::from_millis(200),
        gossip_interval: Duration::from_millis(100),
        push_pull_interval: Duration::from_secs(2),
        ..SwimConfig::lan()
    }
}

/// Debian's builds read their templates from here, whatever they are told, and end without them.
const TEMPLATES: &str = "/usr/share/prometheus/alertmanager";

/// Runs a program where `/usr/share` holds nothing but the templates of its own package: in a mount namespace, so that
/// nothing is written to the machine.
const WITH_TEMPLATES: &str = "mount -t tmpfs tmpfs /usr/share && mkdir -p /usr/share/prometheus && \
     cp -r \"$0\" /usr/share/prometheus/alertmanager && exec \"$@\"";

/// A command that starts a program which finds its templates. `None` where that cannot be done.
fn with_templates(program: &Path) -> Option<Command> {
    let templates = program.ancestors().nth(3)?.join(TEMPLATES.trim_start_matches('/'));
    // As an ordinary user in a user namespace, or as root without one: containers forbid one or the other.
    for namespaces in ["-Urm", "-m"] {
        let command = || {
            let mut command = Command::new("unshare");
            command.args([namespaces, "sh", "-c", WITH_TEMPLATES]).arg(&templates);
            command
        };
        let tried = command().arg("true").output();
        if templates.is_dir() && tried.is_ok_and(|output| output.status.success()) {
            let mut command = command();
            command.arg(program);
            return Some(command);
        }
    }
    Path::new(TEMPLATES).join("default.tmpl").is_file().then(|| Command::new(program))
}

/// A running server. Killed when dropped.
pub struct Alertmanager {
    process: Process,
    addr: SocketAddr,
    api: SocketAddr,
    http: reqwest::Client,
    _directory: tempfile::TempDir,
}

impl Alertmanager {
    /// Starts a server on this address, with short timings, and waits until it answers. `None`, with a message, where
    /// there is none.
    pub async fn start(version: Version, at: &Loopback, options: &[String]) -> Option<Self> {
        Self::start_probing(version, at, Duration::from_millis(500), options).await
    }

    /// As [`Alertmanager::start`], with a probe every so often: a suspicion lasts four times as long.
    pub async fn start_probing(version: Version, at: &Loopback, every: Duration, options: &[String]) -> Option<Self> {
        let program = fetched(version.fetched_as(), "prometheus-alertmanager")?;
        let Some(mut command) = with_templates(&program) else {
            skip_or_fail("alertmanager needs its templates in /usr/share, and no mount namespace can be had here");
            return None;
        };
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("alertmanager.yml");
        std::fs::write(&config, "route:\n  receiver: nobody\nreceivers:\n- name: nobody\n").unwrap();
        let (addr, api) = (at.port(9094), at.port(9093));
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.path={}", directory.path().join("data").display()))
            .args([format!("--web.listen-address={api}"), format!("--cluster.listen-address={addr}")])
            .args([format!("--cluster.probe-interval={}ms", every.as_millis())])
            .args(["--cluster.probe-timeout=200ms"])
            .args(["--cluster.gossip-interval=100ms", "--cluster.pushpull-interval=2s"])
            .args(["--cluster.settle-timeout=1s", "--cluster.reconnect-interval=1s", "--log.level=debug"])
            .args(options);
        let process = Process::start(&mut command);
        let http = reqwest::Client::builder().timeout(Duration::from_secs(5)).build().unwrap();
        let server = Self { process, addr, api, http, _directory: directory };
        until("alertmanager answers", async || (server.status().await, server.log()), |(status, _)| status.is_some())
            .await;
        Some(server)
    }

    /// Where its gossip listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its log.
    pub fn log(&self) -> String {
        self.process.log()
    }

    async fn get(&self, path: &str) -> Option<Value> {
        self.http.get(format!("http://{}/api/v2/{path}", self.api)).send().await.ok()?.json().await.ok()
    }

    async fn status(&self) -> Option<Value> {
        let status = self.get("status").await?;
        status["cluster"]["name"].is_string().then_some(status)
    }

    /// Its name in the cluster, which it makes up when it starts.
    pub async fn name(&self) -> String {
        self.status().await.unwrap()["cluster"]["name"].as_str().unwrap().to_owned()
    }

    /// Those that it takes for alive or suspect, itself included, by address.
    pub async fn members(&self) -> Vec<String> {
        let status = self.status().await.unwrap_or_default();
        let peers = status["cluster"]["peers"].as_array().cloned().unwrap_or_default();
        let mut peers: Vec<String> = peers.iter().map(|peer| peer["address"].as_str().unwrap().to_owned()).collect();
        peers.sort();
        peers
    }

    /// Waits until exactly these are members.
    pub async fn sees(&self, members: &[SocketAddr]) -> Duration {
        let mut wanted: Vec<String> = members.iter().map(ToString::to_string).collect();
        wanted.sort();
        until(&format!("{} sees {wanted:?}", self.addr), async || self.members().await, |seen| *seen == wanted).await
    }

    /// Sets a silence, of which it tells all others. Those with a long comment do not fit a packet.
    pub async fn silence(&self, comment: &str) {
        let silence = json!({
            "matchers": [{ "name": "alertname", "value": "none", "isRegex": false, "isEqual": true }],
            "startsAt": "2026-01-01T00:00:00Z", "endsAt": "2099-01-01T00:00:00Z",
            "createdBy": "interop", "comment": comment,
        });
        let request = self.http.post(format!("http://{}/api/v2/silences", self.api)).json(&silence);
        let answer = request.send().await.unwrap();
        assert!(answer.status().is_success(), "{:?}", answer.text().await);
    }

    /// Waits until it has a silence with this comment.
    pub async fn has_silence(&self, comment: &str) -> Duration {
        let comments = async || -> Vec<String> {
            let silences = self.get("silences").await.unwrap_or_default();
            let silences = silences.as_array().cloned().unwrap_or_default();
            silences.iter().map(|silence| silence["comment"].as_str().unwrap_or_default().to_owned()).collect()
        };
        let what = format!("{} has the silence {comment:.40}", self.addr);
        until(&what, comments, |comments| comments.iter().any(|one| one == comment)).await
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        self.process.runs()
    }

    /// Asks it to end: it says goodbye.
    pub fn terminate(&self) {
        self.process.terminate();
    }

    /// Stops it where it stands.
    pub fn pause(&self) {
        self.process.pause();
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.process.resume();
    }

    /// Kills it.
    pub fn kill(&mut self) {
        self.process.kill();
    }
}
