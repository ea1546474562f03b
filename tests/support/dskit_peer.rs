//! Members that are Grafana's own code: `interop/dskit-peer`, built where there is Go; and nodes of ours that gossip as they
//! do.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "every test uses its own part of this")]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use annulus::config::{Config, Profile, TransportKind};
use annulus::{Node, Operation};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::fleet::{self, RING, RING_KEY, until};
use crate::support::{go, skip_or_fail, wait_until};

/// How long a request may take. A compare-and-swap that changes nothing takes dskit nine seconds.
const ANSWER: Duration = Duration::from_secs(30);

/// The peer program, built once in a process. `None`, with a message, where there is no Go.
///
/// # Panics
/// When there is Go and it does not build, or when there is none and everything is required.
pub fn program() -> Option<&'static Path> {
    static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();
    let program = PROGRAM.get_or_init(|| go::build("dskit-peer", "dskit-peer", &[]));
    if program.is_none() {
        skip_or_fail("there is no go here to build interop/ with");
    }
    program.as_deref()
}

/// Which dskit it is: the commit that `interop/go.mod` names.
pub fn version() -> String {
    let modules = Path::new(env!("CARGO_MANIFEST_DIR")).join("interop/go.mod");
    let modules = std::fs::read_to_string(modules).unwrap();
    let line = modules.lines().find(|line| line.contains("github.com/grafana/dskit ")).expect("dskit is required");
    line.rsplit('-').next().unwrap().to_owned()
}

/// Lets a node gossip as the Grafana databases do, over their transport, with the timings of [`DskitPeer::start`].
pub fn gossip_like_grafana(config: &mut Config, label: &str) {
    let memberlist = &mut config.memberlist;
    memberlist.transport = TransportKind::Tcp;
    memberlist.profile = Profile::Grafana;
    memberlist.gossip_interval = Some(Duration::from_millis(100));
    memberlist.pull_push_interval = Some(Duration::from_secs(2));
    memberlist.probe_interval = Some(Duration::from_secs(2));
    memberlist.probe_timeout = Some(Duration::from_secs(1));
    memberlist.suspicion_mult = Some(4);
    memberlist.rejoin_interval = Duration::from_secs(2);
    memberlist.cluster_label = label.to_owned();
    config.rings[0].heartbeat_timeout = Duration::from_secs(60);
}

/// Tokens and registration by id: what makes an instance the same one.
pub type Identities = BTreeMap<String, (Vec<u32>, i64)>;

/// The ring as a node of ours sees it.
pub fn ours(node: &Node) -> Identities {
    fleet::identities(node).into_iter().map(|(id, (tokens, registered))| (id, (tokens.to_vec(), registered))).collect()
}

/// The ring as dskit sees it, without those that left.
pub async fn theirs(peer: &DskitPeer) -> Identities {
    let ring = peer.ring(RING_KEY).await.into_iter();
    ring.filter(|(_, it)| it.state != "LEFT").map(|(id, it)| (id, (it.tokens, it.registered))).collect()
}

/// Waits until both find the same owners for many keys. Each follows its store with a delay of its own.
pub async fn same_owners(node: &Node, peer: &DskitPeer) {
    let keys: Vec<u32> = (0..400_u32).map(|n| n.wrapping_mul(0x9E37_79B9)).collect();
    let find = |key: &u32| {
        let owners = node.ring(RING).get(*key, Operation::Write).unwrap();
        let mut ids: Vec<String> = owners.ids().map(str::to_owned).collect();
        ids.sort();
        ids
    };
    let ours = || keys.iter().map(find).collect::<Vec<_>>();
    until("dskit finds the owners that we find", async || peer.owners(&keys).await == ours()).await;
}

/// An instance as dskit sees it in a ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    pub state: &'static str,
    pub address: String,
    pub zone: String,
    pub tokens: Vec<u32>,
    pub registered: i64,
    pub timestamp: i64,
    pub read_only: bool,
}

/// A running peer. Killed when dropped.
pub struct DskitPeer {
    child: Child,
    http: SocketAddr,
    gossip: SocketAddr,
    log: tempfile::NamedTempFile,
}

impl DskitPeer {
    /// Starts a peer on ports of its own, with short timings, and waits until it is ready. `None` where there is no Go.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start(arguments: &[&str]) -> Option<Self> {
        let program = program()?;
        let log = tempfile::NamedTempFile::new().unwrap();
        let mut child = Command::new(program)
            .args(["-memberlist.bind-addr=127.0.0.1", "-memberlist.bind-port=0", "-memberlist.leave-timeout=5s"])
            .args(["-memberlist.gossip-interval=100ms", "-memberlist.pullpush-interval=2s"])
            .args(["-memberlist.rejoin-interval=2s", "-memberlist.packet-dial-timeout=500ms"])
            .args(["-heartbeat=1s", "-heartbeat-timeout=1m", "-log=debug"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log.reopen().unwrap())
            .spawn()
            .unwrap();
        let output = child.stdout.take().unwrap();
        let first = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            BufReader::new(output).read_line(&mut line).map(|_| line)
        });
        let line = first.await.unwrap().unwrap();
        let ready: Value = serde_json::from_str(&line).unwrap_or_else(|error| {
            panic!("{arguments:?} is not ready: {error}: {}", std::fs::read_to_string(log.path()).unwrap_or_default())
        });
        let http = ready["http"].as_str().unwrap().parse().unwrap();
        let port = u16::try_from(ready["gossip_port"].as_u64().unwrap()).unwrap();
        Some(Self { child, http, gossip: SocketAddr::from(([127, 0, 0, 1], port)), log })
    }

    /// Where it gossips.
    pub fn gossip(&self) -> SocketAddr {
        self.gossip
    }

    /// What it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log.path()).unwrap_or_default()
    }

    /// Asks it something.
    ///
    /// # Errors
    /// What it said when it could not.
    pub async fn ask(&self, path: &str) -> Result<Value, String> {
        let answer = tokio::time::timeout(ANSWER, self.request(path)).await;
        let answer =
            answer.map_err(|_| format!("{path:.80}: no answer"))?.map_err(|error| format!("{path}: {error}"))?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or("no HTTP")?;
        if head.split(' ').nth(1) != Some("200") {
            return Err(format!("{path:.80}: {}", body.trim()));
        }
        serde_json::from_str(body).map_err(|error| format!("{path:.80}: {error}: {body:.200}"))
    }

    async fn request(&self, path: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(self.http).await?;
        // Some pages are dskit's, and for people unless they are told otherwise.
        stream.write_all(format!("GET {path} HTTP/1.0\r\nAccept: application/json\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    /// As [`Self::ask`]; fails the test when it could not.
    ///
    /// # Panics
    /// Then.
    pub async fn tell(&self, path: &str) -> Value {
        self.ask(path).await.unwrap_or_else(|error| panic!("{error}; its log ends: {}", tail(&self.log())))
    }

    /// Its page of metrics.
    pub async fn metrics(&self) -> String {
        self.request("/metrics").await.unwrap()
    }

    /// The ring under a key, as its store has it now. Over gossip, instances that left are not in it.
    pub async fn ring(&self, key: &str) -> BTreeMap<String, Instance> {
        let ring = self.tell(&format!("/get?key={key}")).await;
        let empty = serde_json::Map::new();
        ring["ingesters"].as_object().unwrap_or(&empty).iter().map(|(id, it)| (id.clone(), instance(it))).collect()
    }

    /// The members that it takes for alive or suspects, itself included: name and address.
    pub async fn members(&self) -> BTreeMap<String, String> {
        let page = self.tell("/memberlist").await;
        let member = |it: &Value| {
            let (name, ip) = (it["Name"].as_str().unwrap(), it["Addr"].as_str().unwrap());
            (name.to_owned(), format!("{ip}:{}", it["Port"]))
        };
        page["SortedMembers"].as_array().unwrap().iter().map(member).collect()
    }

    /// Tells it to join through a node of ours.
    ///
    /// # Errors
    /// What it said when it could not.
    pub async fn join(&self, node: &Node) -> Result<Value, String> {
        self.ask(&format!("/join?through={}", node.gossip_addr().unwrap())).await
    }

    /// Who owns each of these keys, names in order; an error is one text.
    pub async fn owners(&self, keys: &[u32]) -> Vec<Vec<String>> {
        let keys = keys.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        let answer = self.tell(&format!("/owners?keys={keys}")).await;
        let names = |it: &Value| match it {
            Value::Array(names) => names.iter().map(|name| name.as_str().unwrap().to_owned()).collect(),
            other => vec![other.to_string()],
        };
        answer.as_array().unwrap().iter().map(names).collect()
    }

    /// Lets it leave, and waits until it has ended.
    ///
    /// # Panics
    /// When it does not end.
    pub async fn leave(mut self) {
        let _ = self.ask("/leave").await;
        let ended = wait_until(ANSWER, async || self.child.try_wait().unwrap().is_some()).await;
        assert!(ended, "dskit-peer does not end: {}", tail(&self.log()));
    }
}

impl Drop for DskitPeer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

fn instance(it: &Value) -> Instance {
    let text = |name: &str| it[name].as_str().unwrap_or_default().to_owned();
    let number = |name: &str| it[name].as_i64().unwrap_or_default();
    let tokens = it["tokens"].as_array().into_iter().flatten();
    Instance {
        state: ["ACTIVE", "LEAVING", "PENDING", "JOINING", "LEFT"][usize::try_from(number("state")).unwrap()],
        address: text("addr"),
        zone: text("zone"),
        tokens: tokens.map(|token| u32::try_from(token.as_u64().unwrap()).unwrap()).collect(),
        registered: number("registered_timestamp"),
        timestamp: number("timestamp"),
        read_only: it["read_only"].as_bool().unwrap_or_default(),
    }
}
