//! A real Consul server of one's own, on free ports of the loopback interface, gone with the test.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{PortLease, skip_or_fail};

/// How long a server may take to start and elect itself. It needs a fraction of a second on an idle machine.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// A running Consul (`consul agent -dev`). It keeps its data in memory, so a restart loses everything.
pub struct Consul {
    program: PathBuf,
    /// HTTP, server RPC, serf LAN, serf WAN, and HTTPS where there are certificates.
    ports: Vec<u16>,
    /// Its `-hcl` settings.
    settings: Vec<String>,
    child: Child,
    log: tempfile::NamedTempFile,
}

impl Consul {
    /// Starts a server and waits until it leads. `None`, with a message, where there is no Consul.
    ///
    /// # Panics
    /// When there is a Consul and it does not start, or when there is none and everything is required.
    pub fn start() -> Option<Self> {
        Self::start_with(&[])
    }

    /// A server that speaks HTTPS as well, with what [`certificates`] made, and there wants a certificate of its clients
    /// if asked to. See [`Consul::https_host`].
    ///
    /// # Panics
    /// As [`Consul::start`].
    pub fn start_tls(certificates: &Path, verify_incoming: bool) -> Option<Self> {
        let file = |name: &str, path: &str| format!("{name} = \"{}\"", certificates.join(path).display());
        Self::start_with(&[
            file("ca_file", "consul-agent-ca.pem"),
            file("cert_file", "dc1-server-consul-0.pem"),
            file("key_file", "dc1-server-consul-0-key.pem"),
            format!("verify_incoming_https = {verify_incoming}"),
        ])
    }

    /// A server that takes values of at most so many bytes.
    ///
    /// # Panics
    /// As [`Consul::start`].
    pub fn start_taking(bytes: usize) -> Option<Self> {
        Self::start_with(&[format!("limits {{ kv_max_value_size = {bytes} }}")])
    }

    fn start_with(settings: &[String]) -> Option<Self> {
        let Some(program) = program() else {
            skip_or_fail("there is no consul here; scripts/fetch-peers gets one");
            return None;
        };
        let mut problem = String::new();
        for _ in 0..5 {
            let ports = PortLease::new(if settings.is_empty() { 4 } else { 5 }).release();
            match Self::launch(&program, ports, settings.to_vec()) {
                Ok(consul) => return Some(consul),
                Err(reason) => problem = reason,
            }
        }
        panic!("consul did not start: {problem}");
    }

    fn launch(program: &Path, ports: Vec<u16>, settings: Vec<String>) -> Result<Self, String> {
        let log = tempfile::NamedTempFile::new().unwrap();
        let port = |name: &str, index: usize| format!("-{name}-port={}", ports[index]);
        let child = Command::new(program)
            .args(["agent", "-dev", "-bind=127.0.0.1", "-client=127.0.0.1", "-log-level=warn"])
            .args(["-dns-port=-1", "-grpc-port=-1", "-disable-host-node-id"])
            .args([port("http", 0), port("server", 1), port("serf-lan", 2), port("serf-wan", 3)])
            .args(ports.get(4).map(|port| format!("-https-port={port}")))
            .args(settings.iter().flat_map(|setting| ["-hcl", setting]))
            .env_remove("CONSUL_HTTP_TOKEN")
            .stdin(Stdio::null())
            .stdout(log.reopen().unwrap())
            .stderr(log.reopen().unwrap())
            .spawn()
            .map_err(|error| format!("{}: {error}", program.display()))?;
        let mut consul = Self { program: program.to_owned(), ports, settings, child, log };
        consul.wait_for_leader()?;
        Ok(consul)
    }

    fn wait_for_leader(&mut self) -> Result<(), String> {
        let end = Instant::now() + START_DEADLINE;
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Err(format!("it ended with {status}: {}", self.log()));
            }
            // With a leader: its address in quotes; without: an empty string in quotes.
            if self.ask("/v1/status/leader").is_ok_and(|answer| answer.contains("\"127.0.0.1:")) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Err(format!("it found no leader in time: {}", self.log()))
    }

    fn ask(&self, path: &str) -> std::io::Result<String> {
        self.exchange("GET", path, b"")
    }

    /// A request without any HTTP library, so that nothing under test takes part in it. Blocks for a moment. Returns
    /// the whole answer, headers included.
    ///
    /// # Panics
    /// When the server cannot be reached.
    pub fn request(&self, method: &str, path: &str, body: &[u8]) -> String {
        self.exchange(method, path, body).unwrap()
    }

    /// All that the server has at this moment, for [`Consul::restore`].
    ///
    /// # Panics
    /// When the server cannot be reached or makes none.
    pub fn snapshot(&self) -> Vec<u8> {
        let mut answer = self.exchange_bytes("GET", "/v1/snapshot", b"").unwrap();
        let head = answer.windows(4).position(|window| window == b"\r\n\r\n").expect("an answer") + 4;
        assert!(answer.starts_with(b"HTTP/1.0 200"), "{}", String::from_utf8_lossy(&answer[..head]));
        answer.split_off(head)
    }

    /// Sets the server back to a snapshot: what was written since is gone, and the indexes are those of then.
    ///
    /// # Panics
    /// When the server cannot be reached or does not take it.
    pub fn restore(&self, snapshot: &[u8]) {
        let answer = self.request("PUT", "/v1/snapshot", snapshot);
        assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    }

    fn exchange(&self, method: &str, path: &str, body: &[u8]) -> std::io::Result<String> {
        let answer = self.exchange_bytes(method, path, body)?;
        String::from_utf8(answer).map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidData, error))
    }

    fn exchange_bytes(&self, method: &str, path: &str, body: &[u8]) -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect_timeout(&self.addr(), Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "{method} {path} HTTP/1.0\r\nContent-Length: {}\r\n\r\n", body.len())?;
        stream.write_all(body)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    }

    /// Address of the HTTP API.
    pub fn addr(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.ports[0]))
    }

    /// `HOST:PORT` of the HTTP API.
    pub fn host(&self) -> String {
        self.addr().to_string()
    }

    /// `HOST:PORT` of the HTTPS API.
    ///
    /// # Panics
    /// When it was not started with certificates.
    pub fn https_host(&self) -> String {
        SocketAddr::from(([127, 0, 0, 1], self.ports[4])).to_string()
    }

    /// `http://HOST:PORT` of the HTTP API.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr())
    }

    /// What the server wrote so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log.path()).unwrap_or_default()
    }

    /// Stops the process where it stands, a moment later: connections stay open, nothing answers.
    pub fn pause(&self) {
        self.signal("STOP");
    }

    /// Lets a paused process go on.
    pub fn resume(&self) {
        self.signal("CONT");
    }

    /// Kills the server. Its ports refuse connections from then on.
    pub fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Kills the server and starts an empty one on the same ports: its indexes start anew.
    ///
    /// # Panics
    /// When the new one does not start.
    pub fn restart(&mut self) {
        self.stop();
        let mut problem = String::new();
        for _ in 0..5 {
            match Self::launch(&self.program, self.ports.clone(), self.settings.clone()) {
                Ok(fresh) => {
                    *self = fresh;
                    return;
                }
                Err(reason) => problem = reason,
            }
        }
        panic!("consul did not start again: {problem}");
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("sh").args(["-c", &format!("kill -{name} {}", self.child.id())]).status().unwrap();
        assert!(sent.success(), "kill -{name} failed");
    }
}

impl Drop for Consul {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A new authority with certificates of its own for 127.0.0.1, in files: `consul-agent-ca.pem`, and
/// `dc1-server-consul-0.pem` and `dc1-client-consul-0.pem` with their keys beside them (`-key.pem`). Consul can make
/// them. `None`, with a message, where there is no Consul.
///
/// # Panics
/// When there is a Consul and it makes none, or when there is none and everything is required.
pub fn certificates() -> Option<tempfile::TempDir> {
    let Some(program) = program() else {
        skip_or_fail("there is no consul here to make certificates; scripts/fetch-peers gets one");
        return None;
    };
    let directory = tempfile::tempdir().unwrap();
    for arguments in [&["ca", "create"][..], &["cert", "create", "-server"], &["cert", "create", "-client"]] {
        let made = Command::new(&program).arg("tls").args(arguments).current_dir(directory.path()).output().unwrap();
        assert!(made.status.success(), "{arguments:?}: {made:?}");
    }
    Some(directory)
}

/// `$ANNULUS_CONSUL`, what `scripts/fetch-peers` fetched, or the first `consul` on the path.
fn program() -> Option<PathBuf> {
    if let Some(program) = std::env::var_os("ANNULUS_CONSUL") {
        return Some(program.into());
    }
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/peers/consul/usr/bin/consul");
    if fetched.is_file() {
        return Some(fetched);
    }
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join("consul")).find(|program| program.is_file())
}
