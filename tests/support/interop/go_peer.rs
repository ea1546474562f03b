//! Members on memberlist itself: `interop/memberlist-peer`, built against HashiCorp's library and against Grafana's fork.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use serde_json::Value;

use super::loopback::Loopback;
use super::matrix::Peer;
use super::process::Process;
use super::until;
use crate::support::{go, skip_or_fail};

/// Which memberlist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// The newest of hashicorp/memberlist.
    Hashicorp,
    /// Grafana's fork, as dskit pins it.
    Grafana,
}

impl Library {
    /// Its column in the table.
    pub fn peer(self) -> Peer {
        match self {
            Self::Hashicorp => Peer::Hashicorp,
            Self::Grafana => Peer::Grafana,
        }
    }

    /// The peer program, built once in a process. `None`, with a message, where there is no Go.
    ///
    /// # Panics
    /// When there is Go and it does not build, or when there is none and everything is required.
    pub fn program(self) -> Option<&'static Path> {
        static HASHICORP: OnceLock<Option<PathBuf>> = OnceLock::new();
        static GRAFANA: OnceLock<Option<PathBuf>> = OnceLock::new();
        let (cell, name, options): (_, _, &[&str]) = match self {
            Self::Hashicorp => (&HASHICORP, "memberlist-peer-hashicorp", &["-modfile=upstream.mod", "-tags=upstream"]),
            Self::Grafana => (&GRAFANA, "memberlist-peer-grafana", &[]),
        };
        let program = cell.get_or_init(|| go::build(name, "memberlist-peer", options));
        if program.is_none() {
            skip_or_fail("there is no go here to build interop/ with");
        }
        program.as_deref()
    }
}

/// How a peer is started.
#[derive(Clone, Debug)]
pub struct Settings {
    arguments: Vec<String>,
}

impl Settings {
    /// Short timings, without compression, keys or label.
    pub fn fast() -> Self {
        Self { arguments: Vec::new() }
            .with("gossip-interval", "100ms")
            .with("probe-interval", "500ms")
            .with("probe-timeout", "200ms")
            .with("push-pull-interval", "1s")
            .with("tcp-timeout", "5s")
    }

    /// With an option of the program.
    #[must_use]
    pub fn with(mut self, option: &str, value: impl ToString) -> Self {
        self.arguments.push(format!("-{option}={}", value.to_string()));
        self
    }
}

/// A running peer. Killed when dropped.
pub struct GoPeer {
    process: Process,
    input: Mutex<ChildStdin>,
    asking: tokio::sync::Mutex<()>,
    lines: Arc<Mutex<Vec<Value>>>,
    name: String,
    addr: SocketAddr,
    version: String,
}

impl GoPeer {
    /// Starts a peer on this address and any port, and waits until it listens. `None` where there is no Go.
    pub async fn start(library: Library, name: &str, at: &Loopback, settings: Settings) -> Option<Self> {
        let mut command = Command::new(library.program()?);
        command.args([format!("-name={name}"), format!("-bind={}", at.ip())]).args(settings.arguments);
        let (process, input, output) = Process::start_interactive(&mut command);
        let lines = Arc::new(Mutex::new(Vec::new()));
        let heard = lines.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let line = serde_json::from_str(&line).unwrap_or(Value::String(line));
                heard.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        let mut peer = Self {
            process,
            input: Mutex::new(input),
            asking: tokio::sync::Mutex::default(),
            lines,
            name: name.to_owned(),
            addr: at.port(0),
            version: String::new(),
        };
        until(&format!("{name} is ready"), async || peer.process_log(), |_| peer.find("ready").is_some()).await;
        let ready = peer.find("ready").unwrap();
        peer.addr = ready["node"]["addr"].as_str().unwrap().parse().unwrap();
        peer.version = version(ready["version"].as_str().unwrap());
        Some(peer)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The version of its library.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// What its library logged.
    pub fn process_log(&self) -> String {
        self.process.log()
    }

    fn lines(&self) -> Vec<Value> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn find(&self, event: &str) -> Option<Value> {
        self.lines().into_iter().find(|line| line["event"] == event)
    }

    /// Gives a command and waits for the answer.
    pub async fn ask(&self, command: &str) -> Value {
        let _alone = self.asking.lock().await;
        let before = self.lines().len();
        {
            let mut input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
            writeln!(input, "{command}").unwrap_or_else(|error| panic!("{}: {error}", self.name));
        }
        let answer = || self.lines().into_iter().skip(before).find(|line| line["event"] == "done");
        until(&format!("{} answers {command:.40}", self.name), async || answer(), Option::is_some).await;
        answer().unwrap()
    }

    /// As [`GoPeer::ask`]; fails the test when the peer reports an error.
    pub async fn tell(&self, command: &str) -> Value {
        let answer = self.ask(command).await;
        assert!(answer["error"].is_null(), "{} on {command:.40}: {answer}", self.name);
        answer
    }

    /// Joins through a member.
    ///
    /// # Errors
    /// Why that did not work.
    pub async fn join(&self, seed: SocketAddr) -> Result<(), String> {
        let answer = self.ask(&format!("join {seed}")).await;
        match answer["error"].as_str() {
            None => Ok(()),
            Some(error) => Err(error.to_owned()),
        }
    }

    /// Those that are alive or suspect, by name, with address and metadata.
    pub async fn members(&self) -> Vec<(String, String, String)> {
        let answer = self.tell("members").await;
        let text = |member: &Value, what: &str| member[what].as_str().unwrap_or_default().to_owned();
        let members = answer["members"].as_array().unwrap();
        let mut members: Vec<_> = members.iter().map(|m| (text(m, "name"), text(m, "addr"), text(m, "meta"))).collect();
        members.sort();
        members
    }

    /// The names of those that are alive or suspect.
    pub async fn names(&self) -> Vec<String> {
        self.members().await.into_iter().map(|(name, ..)| name).collect()
    }

    /// Waits until exactly these are members.
    pub async fn sees(&self, names: &[&str]) -> Duration {
        let mut wanted: Vec<String> = names.iter().map(ToString::to_string).collect();
        wanted.sort();
        until(&format!("{} sees {wanted:?}", self.name), async || self.names().await, |seen| *seen == wanted).await
    }

    /// Waits until it printed such a line.
    pub async fn reports(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Duration {
        let what = format!("{} reports {what}", self.name);
        until(&what, async || self.process_log(), |_| self.lines().iter().any(&wanted)).await
    }

    /// Whether it ever said that a member is gone: it does not tell the dead from those that left.
    pub fn lost(&self, name: &str) -> bool {
        self.lines().iter().any(|line| line["event"] == "leave" && line["node"]["name"] == name)
    }

    /// Waits until it was told this by a member.
    pub async fn hears(&self, text: &str) -> Duration {
        self.reports("a message", |line| line["event"] == "message" && line["text"] == text).await
    }

    /// Waits until it was given this state in a push/pull.
    pub async fn receives_state(&self, text: &str) -> Duration {
        self.reports("a state", |line| line["event"] == "state" && line["text"] == text).await
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

/// The version as people write it: without the date of a pseudo-version, but with its commit.
fn version(module: &str) -> String {
    match module.rsplit_once('-') {
        Some((_, commit)) if commit.len() == 12 => commit.to_owned(),
        _ => module.trim_start_matches('v').to_owned(),
    }
}
