//! An HTTP proxy in front of a server, which makes the network and the server misbehave on demand.
//!
//! It forwards one request for each connection, so a fault holds from the next request on, and breaks those that are
//! being answered at the moment.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What goes wrong.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Nothing.
    None,
    /// Connections are refused.
    Refuse,
    /// Requests are read, then the connection is closed without an answer.
    Cut,
    /// Requests with this method are handled, but their answers come later.
    Late { method: &'static str, by: Duration },
    /// As [`Fault::Late`], but only a share of them, 0 to 1, chosen by a seed and the number of the request.
    SomeLate { method: &'static str, by: Duration, share: f64, seed: u64 },
    /// Requests with this method do not reach the server; this is answered instead: status line, headers, body.
    Answer { method: &'static str, status: &'static str, headers: String, body: String },
    /// Requests with this method are handled, and the connection is reset in the middle of the answer.
    Torn { method: &'static str },
    /// Requests with this method are handled, and every other answer waits until a later one has overtaken it, or for this
    /// long.
    Overtaken { method: &'static str, at_most: Duration },
    /// Requests are read and never reach the server. The connection stays open, and nothing comes back.
    Unheard,
    /// Requests are handled. The connection stays open, and nothing comes back.
    Unanswered,
}

impl Fault {
    /// An answer without special headers.
    pub fn answer(method: &'static str, status: &'static str, body: &str) -> Self {
        Self::Answer { method, status, headers: String::new(), body: body.to_owned() }
    }
}

#[derive(Debug, Default)]
struct Seen {
    requests: Mutex<Vec<String>>,
    /// Requests since the fault was set that it could have hit.
    matched: AtomicU64,
    /// Answers that overtook another.
    overtook: watch::Sender<u64>,
    injected: AtomicU64,
}

/// The proxy. It ends when it is dropped.
pub struct FaultProxy {
    addr: SocketAddr,
    fault: watch::Sender<Fault>,
    seen: Arc<Seen>,
    task: JoinHandle<()>,
}

impl FaultProxy {
    /// A proxy on a port of its own. Must be called within a tokio runtime.
    ///
    /// # Panics
    /// When no port can be bound.
    pub async fn start(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (fault, faults) = watch::channel(Fault::None);
        let seen = Arc::<Seen>::default();
        let task = tokio::spawn(accept(listener, upstream, faults, seen.clone()));
        Self { addr, fault, seen, task }
    }

    /// `HOST:PORT` for clients.
    pub fn host(&self) -> String {
        self.addr.to_string()
    }

    /// Sets what goes wrong from now on.
    pub fn set(&self, fault: Fault) {
        self.seen.matched.store(0, Ordering::Relaxed);
        self.fault.send_replace(fault);
    }

    /// Request line and headers of every request so far.
    pub fn requests(&self) -> Vec<String> {
        self.seen.requests.lock().unwrap().clone()
    }

    /// Requests that something went wrong with. Refused connections are not among them: they never came.
    pub fn injected(&self) -> u64 {
        self.seen.injected.load(Ordering::Relaxed)
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, upstream: SocketAddr, mut faults: watch::Receiver<Fault>, seen: Arc<Seen>) {
    let addr = listener.local_addr().unwrap();
    let mut listener = Some(listener);
    loop {
        if matches!(*faults.borrow_and_update(), Fault::Refuse) {
            listener = None;
        } else if listener.is_none() {
            listener = TcpListener::bind(addr).await.ok();
        }
        let accepted = async {
            match &listener {
                Some(listener) => listener.accept().await.ok(),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = faults.changed() => if changed.is_err() { return },
            Some((client, _)) = accepted => {
                let (mut faults, seen) = (faults.clone(), seen.clone());
                tokio::spawn(async move {
                    let fault = faults.borrow_and_update().clone();
                    tokio::select! {
                        () = broken(&mut faults, &seen) => {}
                        _ = serve(client, upstream, fault, &seen) => {}
                    }
                });
            }
        }
    }
}

/// Resolves when the fault becomes one that breaks connections (or the proxy ends).
async fn broken(faults: &mut watch::Receiver<Fault>, seen: &Seen) {
    while faults.changed().await.is_ok() {
        if matches!(*faults.borrow_and_update(), Fault::Refuse | Fault::Cut) {
            seen.injected.fetch_add(1, Ordering::Relaxed);
            return;
        }
    }
}

/// A request: its head as text, where its body begins, and all of it. `None`: the client went away.
async fn request(client: &mut TcpStream) -> std::io::Result<Option<(String, usize, Vec<u8>)>> {
    let mut request = Vec::new();
    let head = loop {
        if client.read_buf(&mut request).await? == 0 {
            return Ok(None);
        }
        if let Some(end) = request.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
    };
    let text = String::from_utf8_lossy(&request[..head]).into_owned();
    let length = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map_or(0, |(_, value)| value.trim().parse::<usize>().unwrap());
    while request.len() < head + length {
        if client.read_buf(&mut request).await? == 0 {
            return Ok(None);
        }
    }
    Ok(Some((text, head, request)))
}

async fn serve(mut client: TcpStream, upstream: SocketAddr, fault: Fault, seen: &Seen) -> std::io::Result<()> {
    let Some((text, head, mut request)) = request(&mut client).await? else { return Ok(()) };
    seen.requests.lock().unwrap().push(text.clone());
    let method = text.split(' ').next().unwrap_or_default();
    let hit = || seen.injected.fetch_add(1, Ordering::Relaxed);
    match fault {
        Fault::Cut | Fault::Refuse => {
            hit();
            return Ok(());
        }
        Fault::Unheard => {
            hit();
            return until_gone(&mut client).await;
        }
        Fault::Answer { method: which, status, headers, body } if which == method => {
            hit();
            let length = body.len();
            let answer =
                format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}");
            return client.write_all(answer.as_bytes()).await;
        }
        _ => {}
    }
    let number = seen.matched.fetch_add(u64::from(concerns(&fault, method)), Ordering::Relaxed);
    let mut server = TcpStream::connect(upstream).await?;
    let body = request.split_off(head);
    request.truncate(head - 2);
    request.extend_from_slice(b"Connection: close\r\n\r\n");
    server.write_all(&request).await?;
    server.write_all(&body).await?;
    if !concerns(&fault, method) {
        tokio::io::copy(&mut server, &mut client).await?;
        return Ok(());
    }
    let mut answer = Vec::new();
    server.read_to_end(&mut answer).await?;
    match fault {
        Fault::Late { by, .. } => {
            hit();
            tokio::time::sleep(by).await;
        }
        Fault::SomeLate { by, share, seed, .. }
            if SmallRng::seed_from_u64((seed << 32) ^ number).random_bool(share) =>
        {
            hit();
            tokio::time::sleep(by).await;
        }
        Fault::Torn { .. } => {
            hit();
            answer.truncate(answer.len() / 2);
            client.write_all(&answer).await?;
            client.flush().await?;
            // Closed with a reset, not in good order.
            return socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO));
        }
        Fault::Overtaken { at_most, .. } if number.is_multiple_of(2) => {
            hit();
            let mut overtook = seen.overtook.subscribe();
            let _ = tokio::time::timeout(at_most, overtook.changed()).await;
        }
        Fault::Overtaken { .. } => {
            client.write_all(&answer).await?;
            client.shutdown().await?;
            seen.overtook.send_modify(|count| *count += 1);
            return Ok(());
        }
        Fault::Unanswered => {
            hit();
            return until_gone(&mut client).await;
        }
        _ => {}
    }
    client.write_all(&answer).await
}

/// Whether something may go wrong with requests of this method after the server was asked.
fn concerns(fault: &Fault, method: &str) -> bool {
    match fault {
        Fault::Late { method: which, .. }
        | Fault::SomeLate { method: which, .. }
        | Fault::Torn { method: which }
        | Fault::Overtaken { method: which, .. } => *which == method,
        Fault::Unanswered => true,
        _ => false,
    }
}

/// Says nothing until the client gives up.
async fn until_gone(client: &mut TcpStream) -> std::io::Result<()> {
    let mut rest = [0; 64];
    while client.read(&mut rest).await? > 0 {}
    Ok(())
}
