//! Agents of Serf, and what a node needs to say to live among them.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Output};
use std::time::Duration;

use annulus::swim::SwimConfig;
use bytes::Bytes;
use serde_json::Value;

use super::loopback::Loopback;
use super::matrix::Peer;
use super::process::Process;
use super::{fetched, package_version, until};

/// Which Serf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// 0.9: memberlist 0.2.2.
    V09,
    /// 0.10: memberlist 0.5.0.
    V010,
}

impl Version {
    /// Its column in the table.
    pub fn peer(self) -> Peer {
        match self {
            Self::V09 => Peer::Serf09,
            Self::V010 => Peer::Serf010,
        }
    }

    fn fetched_as(self) -> &'static str {
        match self {
            Self::V09 => "serf-0.9",
            Self::V010 => "serf-0.10",
        }
    }

    /// Whether it was fetched. Says so where it was not.
    pub fn is_here(self) -> bool {
        fetched(self.fetched_as(), "serf").is_some()
    }

    /// The package's version.
    pub fn number(self) -> String {
        package_version(self.fetched_as())
    }
}

/// What an agent's gossip is set to: memberlist's preset for one machine, and Serf's version of its own messages.
pub fn swim_config() -> SwimConfig {
    SwimConfig { delegate_versions: [2, 5, 5], stream_timeout: Duration::from_secs(10), ..SwimConfig::local() }
}

/// A running agent. Killed when dropped.
pub struct Serf {
    process: Process,
    program: std::path::PathBuf,
    rpc: SocketAddr,
    addr: SocketAddr,
    name: String,
    events: tempfile::NamedTempFile,
}

impl Serf {
    /// Starts an agent on this address, and waits until it answers. `None`, with a message, where there is none.
    pub async fn start(version: Version, name: &str, at: &Loopback, port: u16, options: &[&str]) -> Option<Self> {
        let program = fetched(version.fetched_as(), "serf")?;
        let events = tempfile::NamedTempFile::new().unwrap();
        let handler = format!("{{ printf '%s ' \"$SERF_USER_EVENT\"; cat; echo; }} >> {}", events.path().display());
        let (addr, rpc) = (at.port(port), at.port(7373));
        let mut command = Command::new(&program);
        command
            .args(["agent", "-profile=local", "-log-level=debug"])
            .args([format!("-node={name}"), format!("-bind={addr}"), format!("-rpc-addr={rpc}")])
            .arg(format!("-event-handler=user={handler}"))
            .args(options);
        let process = Process::start(&mut command);
        let serf = Self { process, program, rpc, addr, name: name.to_owned(), events };
        until(&format!("{name} answers"), async || (serf.members().len(), serf.log()), |(count, _)| *count > 0).await;
        Some(serf)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its gossip listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its log.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Runs one of its commands: the first word, then the arguments.
    pub fn run(&self, words: &[&str]) -> Output {
        let rpc = format!("-rpc-addr={}", self.rpc);
        Command::new(&self.program).arg(words[0]).arg(rpc).args(&words[1..]).output().unwrap()
    }

    /// As [`Serf::run`].
    ///
    /// # Errors
    /// What it printed.
    pub fn try_run(&self, words: &[&str]) -> Result<String, String> {
        let output = self.run(words);
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if output.status.success() { Ok(text) } else { Err(text) }
    }

    /// Tells it to join through a member.
    ///
    /// # Errors
    /// Why that did not work.
    pub fn join(&self, seed: SocketAddr) -> Result<String, String> {
        self.try_run(&["join", &seed.to_string()])
    }

    /// What `serf members` knows: name, status, address, tags.
    pub fn members(&self) -> Vec<(String, String, String, Value)> {
        let output = self.run(&["members", "-format=json"]);
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let text = |member: &Value, what: &str| member[what].as_str().unwrap_or_default().to_owned();
        let members = answer["members"].as_array().cloned().unwrap_or_default();
        let mut members: Vec<_> =
            members.iter().map(|m| (text(m, "name"), text(m, "status"), text(m, "addr"), m["tags"].clone())).collect();
        members.sort_by(|a, b| a.0.cmp(&b.0));
        members
    }

    /// Waits until it shows a member with a status: `alive`, `leaving`, `left`, `failed`.
    pub async fn shows(&self, name: &str, status: &str) -> Duration {
        let what = format!("{} shows {name} as {status}", self.name);
        until(&what, async || self.members(), |all| all.iter().any(|m| m.0 == name && m.1 == status)).await
    }

    /// Whether it ever logged that it takes a member for failed.
    pub fn saw_failure_of(&self, name: &str) -> bool {
        self.log().contains(&format!("EventMemberFailed: {name} "))
    }

    /// Waits until its handler was told of a user event.
    pub async fn hears(&self, event: &str, payload: &str) -> Duration {
        let wanted = format!("{event} {payload}");
        let what = format!("{} hears {event}", self.name);
        until(&what, async || self.events(), |text| text.lines().any(|line| line == wanted)).await
    }

    /// The user events that its handler was told of: `name payload` a line.
    pub fn events(&self) -> String {
        std::fs::read_to_string(self.events.path()).unwrap_or_default()
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

/// Tags, as the meta of a member carries them.
pub fn tags(tags: &[(&str, &str)]) -> Bytes {
    let mut out = vec![0xff];
    rmp::encode::write_map_len(&mut out, tags.len().try_into().unwrap()).unwrap();
    for (key, value) in tags {
        text(&mut out, key);
        text(&mut out, value);
    }
    out.into()
}

/// What a node says to every agent before its goodbye, so that they show it as left and not as failed. `clock` must be
/// above what they know of the member: see [`highest_clock`].
pub fn leave_intent(node: &str, clock: u32) -> Bytes {
    let mut out = message(0, 3);
    field_uint(&mut out, "LTime", clock);
    field_text(&mut out, "Node", node);
    text(&mut out, "Prune");
    rmp::encode::write_bool(&mut out, false).unwrap();
    out.into()
}

/// A user event.
pub fn user_event(name: &str, payload: &str, clock: u32) -> Bytes {
    let mut out = message(3, 4);
    text(&mut out, "CC");
    rmp::encode::write_bool(&mut out, false).unwrap();
    field_uint(&mut out, "LTime", clock);
    field_text(&mut out, "Name", name);
    field_text(&mut out, "Payload", payload);
    out.into()
}

/// The state of a node that knows nothing but one user event.
pub fn state_with_event(name: &str, payload: &str, clock: u32) -> Bytes {
    let mut out = message(2, 6);
    field_uint(&mut out, "EventLTime", clock + 1);
    text(&mut out, "Events");
    rmp::encode::write_array_len(&mut out, 1).unwrap();
    rmp::encode::write_map_len(&mut out, 2).unwrap();
    text(&mut out, "Events");
    rmp::encode::write_array_len(&mut out, 1).unwrap();
    rmp::encode::write_map_len(&mut out, 2).unwrap();
    field_text(&mut out, "Name", name);
    field_text(&mut out, "Payload", payload);
    field_uint(&mut out, "LTime", clock);
    field_uint(&mut out, "LTime", 1);
    text(&mut out, "LeftMembers");
    rmp::encode::write_array_len(&mut out, 0).unwrap();
    field_uint(&mut out, "QueryLTime", 1);
    text(&mut out, "StatusLTimes");
    rmp::encode::write_map_len(&mut out, 0).unwrap();
    out.into()
}

/// The highest Lamport time in what agents said: in `LTime` of their messages and states. It may be that of another of
/// Serf's three clocks, which does no harm: a time that is too high is only a time that is passed sooner.
pub fn highest_clock(said: &[Bytes]) -> u32 {
    let mut highest = 0;
    for bytes in said {
        // A fixstr of five bytes: the whole key, not the end of EventLTime.
        for at in find_all(bytes, b"\xa5LTime") {
            let mut rest = &bytes[at + 6..];
            highest = highest.max(rmp::decode::read_int(&mut rest).unwrap_or(0));
        }
    }
    highest
}

fn find_all<'a>(bytes: &'a [u8], pattern: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    bytes.windows(pattern.len()).enumerate().filter(move |(_, window)| *window == pattern).map(|(at, _)| at)
}

/// A message of Serf: its type, then a map with sorted keys.
fn message(kind: u8, fields: u32) -> Vec<u8> {
    let mut out = vec![kind];
    rmp::encode::write_map_len(&mut out, fields).unwrap();
    out
}

fn field_uint(out: &mut Vec<u8>, key: &str, value: u32) {
    text(out, key);
    rmp::encode::write_uint(out, value.into()).unwrap();
}

fn field_text(out: &mut Vec<u8>, key: &str, value: &str) {
    text(out, key);
    text(out, value);
}

/// Strings as the older of its msgpack libraries reads them: there is no str8.
fn text(out: &mut Vec<u8>, text: &str) {
    match u8::try_from(text.len()) {
        Ok(len @ 0..32) => out.push(0xa0 | len),
        _ => {
            out.push(0xda);
            out.write_all(&u16::try_from(text.len()).unwrap().to_be_bytes()).unwrap();
        }
    }
    out.extend_from_slice(text.as_bytes());
}
