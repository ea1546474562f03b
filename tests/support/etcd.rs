//! A real etcd server of one's own, on free ports of the loopback interface, gone with the test.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::{PortLease, skip_or_fail};

/// How long a server may take to start and elect itself. It needs about a second on an idle machine.
const START_DEADLINE: Duration = Duration::from_secs(90);

/// The versions that there may be here, by the names that `scripts/fetch-peers` knows, newest first.
pub const VERSIONS: [&str; 2] = ["etcd-3.5", "etcd-3.4"];

/// A running etcd with a directory of its own, so that a restart keeps everything.
pub struct Etcd {
    program: PathBuf,
    /// Clients, other servers, health (without TLS).
    ports: Vec<u16>,
    arguments: Vec<String>,
    child: Child,
    directory: tempfile::TempDir,
    /// Sent with requests once there are accounts.
    token: Option<String>,
}

impl Etcd {
    /// Starts the newest server there is. See [`Etcd::start_version`].
    pub fn start() -> Option<Self> {
        let version = VERSIONS.into_iter().find(|version| program(version).is_some()).unwrap_or(VERSIONS[0]);
        Self::start_version(version)
    }

    /// Starts a server and waits until it leads. `None`, with a message, where there is none of this version.
    ///
    /// # Panics
    /// When it does not start, or when there is none and everything is required.
    pub fn start_version(version: &str) -> Option<Self> {
        Self::start_with(version, &[])
    }

    /// As [`Etcd::start_version`], with further arguments.
    ///
    /// # Panics
    /// As [`Etcd::start_version`].
    pub fn start_with(version: &str, arguments: &[String]) -> Option<Self> {
        let Some(program) = program(version) else {
            skip_or_fail(&format!("there is no {version} here; scripts/fetch-peers gets one"));
            return None;
        };
        let mut problem = String::new();
        for _ in 0..5 {
            let directory = tempfile::tempdir().unwrap();
            let ports = PortLease::new(3).release();
            match Self::launch(&program, ports, arguments.to_vec(), directory) {
                Ok(etcd) => return Some(etcd),
                Err((reason, _)) => problem = reason,
            }
        }
        panic!("{version} did not start: {problem}");
    }

    fn launch(
        program: &Path,
        ports: Vec<u16>,
        arguments: Vec<String>,
        directory: tempfile::TempDir,
    ) -> Result<Self, (String, tempfile::TempDir)> {
        let log = std::fs::File::create(directory.path().join("log")).unwrap();
        let url = |index: usize| format!("http://127.0.0.1:{}", ports[index]);
        let tls = arguments.iter().any(|argument| argument.starts_with("--cert-file="));
        let clients = if tls { url(0).replace("http:", "https:") } else { url(0) };
        let spawned = Command::new(program)
            .arg(format!("--data-dir={}", directory.path().join("data").display()))
            .args([format!("--listen-client-urls={clients}"), format!("--advertise-client-urls={clients}")])
            .arg(format!("--listen-metrics-urls={}", url(2)))
            .args([format!("--listen-peer-urls={}", url(1)), format!("--initial-advertise-peer-urls={}", url(1))])
            .arg(format!("--initial-cluster=default={}", url(1)))
            .args(["--logger=zap", "--log-level=warn"])
            .args(&arguments)
            .env_remove("ETCD_NAME")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        let child = match spawned {
            Ok(child) => child,
            Err(error) => return Err((format!("{}: {error}", program.display()), directory)),
        };
        let mut etcd = Self { program: program.to_owned(), ports, arguments, child, directory, token: None };
        match etcd.wait_for_leader() {
            Ok(()) => Ok(etcd),
            Err(reason) => {
                etcd.stop();
                let directory = std::mem::replace(&mut etcd.directory, tempfile::tempdir().unwrap());
                Err((reason, directory))
            }
        }
    }

    fn wait_for_leader(&mut self) -> Result<(), String> {
        let end = Instant::now() + START_DEADLINE;
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Err(format!("it ended with {status}: {}", self.log()));
            }
            if self.exchange(2, "GET", "/health", "").is_ok_and(|answer| answer.contains(r#""health":"true""#)) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err(format!("it found no leader in time: {}", self.log()))
    }

    /// A call over the JSON gateway, without any of the libraries under test. Blocks for a moment.
    ///
    /// # Panics
    /// When the server cannot be reached, or answers with anything but success.
    pub fn call(&self, path: &str, body: &Value) -> Value {
        let answer = self.exchange(0, "POST", path, &body.to_string()).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.0 200"), "{path}: {answer}");
        serde_json::from_str(body).unwrap_or_else(|error| panic!("{path}: {error}: {body}"))
    }

    fn exchange(&self, port: usize, method: &str, path: &str, body: &str) -> std::io::Result<String> {
        let addr = SocketAddr::from(([127, 0, 0, 1], self.ports[port]));
        let mut stream = TcpStream::connect_timeout(&addr, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let token = self.token.as_ref().map_or_else(String::new, |token| format!("Authorization: {token}\r\n"));
        write!(stream, "{method} {path} HTTP/1.0\r\n{token}Content-Length: {}\r\n\r\n{body}", body.len())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// Writes bytes as they are.
    pub fn put(&self, key: &str, value: &[u8]) {
        self.call("/v3/kv/put", &json!({ "key": encode(key.as_bytes()), "value": encode(value) }));
    }

    /// Deletes a key.
    pub fn delete(&self, key: &str) {
        self.call("/v3/kv/deleterange", &json!({ "key": encode(key.as_bytes()) }));
    }

    /// The stored bytes of a key, with `version` and `mod_revision`.
    pub fn bytes(&self, key: &str) -> Option<(Vec<u8>, u64, u64)> {
        let answer = self.call("/v3/kv/range", &json!({ "key": encode(key.as_bytes()) }));
        let kv = answer["kvs"].get(0)?;
        let number = |name: &str| kv[name].as_str().unwrap().parse().unwrap();
        let value = BASE64_STANDARD.decode(kv["value"].as_str().unwrap_or_default()).unwrap();
        Some((value, number("version"), number("mod_revision")))
    }

    /// The revision of the store.
    pub fn revision(&self) -> u64 {
        let answer = self.call("/v3/kv/range", &json!({ "key": encode(b"no such key") }));
        answer["header"]["revision"].as_str().unwrap().parse().unwrap()
    }

    /// Forgets all history before the present revision.
    pub fn compact(&self) {
        self.call("/v3/kv/compaction", &json!({ "revision": self.revision().to_string(), "physical": true }));
    }

    /// Switches accounts on: root, who may do everything, and another user, who may read and write below a prefix.
    pub fn enable_accounts(&mut self, user: &str, password: &str, prefix: &str) {
        self.call("/v3/auth/user/add", &json!({ "name": "root", "password": "root" }));
        self.call("/v3/auth/role/add", &json!({ "name": "root" }));
        self.call("/v3/auth/user/grant", &json!({ "user": "root", "role": "root" }));
        self.call("/v3/auth/user/add", &json!({ "name": user, "password": password }));
        self.call("/v3/auth/role/add", &json!({ "name": "ring" }));
        let mut end = prefix.as_bytes().to_vec();
        *end.last_mut().unwrap() += 1;
        let permission =
            json!({ "permType": "READWRITE", "key": encode(prefix.as_bytes()), "range_end": encode(&end) });
        self.call("/v3/auth/role/grant", &json!({ "name": "ring", "perm": permission }));
        self.call("/v3/auth/user/grant", &json!({ "user": user, "role": "ring" }));
        self.call("/v3/auth/enable", &json!({}));
        let answer = self.call("/v3/auth/authenticate", &json!({ "name": "root", "password": "root" }));
        self.token = Some(answer["token"].as_str().unwrap().to_owned());
    }

    /// Address for clients.
    pub fn addr(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.ports[0]))
    }

    /// `HOST:PORT` for clients.
    pub fn host(&self) -> String {
        self.addr().to_string()
    }

    /// What the server wrote since its last start.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Kills the server. Its ports refuse connections from then on.
    pub fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Kills the server and starts it again with its data.
    ///
    /// # Panics
    /// When it does not start again.
    pub fn restart(&mut self) {
        self.stop();
        self.relaunch();
    }

    /// Kills the server and starts an empty one in its place: revisions start anew.
    ///
    /// # Panics
    /// When it does not start.
    pub fn replace(&mut self) {
        self.stop();
        std::fs::remove_dir_all(self.directory.path().join("data")).unwrap();
        self.relaunch();
    }

    fn relaunch(&mut self) {
        let mut directory = std::mem::replace(&mut self.directory, tempfile::tempdir().unwrap());
        for _ in 0..5 {
            match Self::launch(&self.program, self.ports.clone(), self.arguments.clone(), directory) {
                Ok(mut fresh) => {
                    fresh.token = self.token.take();
                    *self = fresh;
                    return;
                }
                Err((reason, same)) => {
                    println!("etcd did not start again: {reason}");
                    directory = same;
                }
            }
        }
        panic!("etcd did not start again");
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.stop();
    }
}

fn encode(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(bytes)
}

/// `$ANNULUS_ETCD_3_5` and the like, or what `scripts/fetch-peers` fetched.
fn program(version: &str) -> Option<PathBuf> {
    let variable = format!("ANNULUS_{}", version.to_uppercase().replace(['-', '.'], "_"));
    if let Some(program) = std::env::var_os(variable) {
        return Some(program.into());
    }
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/peers").join(version).join("usr/bin/etcd");
    fetched.is_file().then_some(fetched)
}
