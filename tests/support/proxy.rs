//! An HTTP proxy in front of a server, which makes the network and the server misbehave on demand.
//!
//! It forwards one request for each connection, so a fault holds from the next request on, and breaks those that are
//! being answered at the moment.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

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
    /// Requests with this method do not reach the server; this is answered instead: status line, headers, body.
    Answer { method: &'static str, status: &'static str, headers: String, body: String },
}

impl Fault {
    /// An answer without special headers.
    pub fn answer(method: &'static str, status: &'static str, body: &str) -> Self {
        Self::Answer { method, status, headers: String::new(), body: body.to_owned() }
    }
}

/// The proxy. It ends when it is dropped.
pub struct FaultProxy {
    addr: SocketAddr,
    fault: watch::Sender<Fault>,
    requests: Arc<Mutex<Vec<String>>>,
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
        let requests = Arc::default();
        let task = tokio::spawn(accept(listener, upstream, faults, Arc::clone(&requests)));
        Self { addr, fault, requests, task }
    }

    /// `HOST:PORT` for clients.
    pub fn host(&self) -> String {
        self.addr.to_string()
    }

    /// Sets what goes wrong from now on.
    pub fn set(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }

    /// Request line and headers of every request so far.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(
    listener: TcpListener,
    upstream: SocketAddr,
    mut faults: watch::Receiver<Fault>,
    requests: Arc<Mutex<Vec<String>>>,
) {
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
                let (mut faults, requests) = (faults.clone(), requests.clone());
                tokio::spawn(async move {
                    let fault = faults.borrow_and_update().clone();
                    tokio::select! {
                        _ = broken(&mut faults) => {}
                        _ = serve(client, upstream, fault, requests) => {}
                    }
                });
            }
        }
    }
}

/// Resolves when the fault becomes one that breaks connections (or the proxy ends).
async fn broken(faults: &mut watch::Receiver<Fault>) {
    while faults.changed().await.is_ok() {
        if matches!(*faults.borrow_and_update(), Fault::Refuse | Fault::Cut) {
            return;
        }
    }
}

async fn serve(
    mut client: TcpStream,
    upstream: SocketAddr,
    fault: Fault,
    requests: Arc<Mutex<Vec<String>>>,
) -> std::io::Result<()> {
    let mut request = Vec::new();
    let head = loop {
        if client.read_buf(&mut request).await? == 0 {
            return Ok(());
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
            return Ok(());
        }
    }
    requests.lock().unwrap().push(text.clone());
    let method = text.split(' ').next().unwrap_or_default();
    match fault {
        Fault::Cut | Fault::Refuse => return Ok(()),
        Fault::Answer { method: which, status, headers, body } if which == method => {
            let length = body.len();
            let answer =
                format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}");
            return client.write_all(answer.as_bytes()).await;
        }
        _ => {}
    }
    let mut server = TcpStream::connect(upstream).await?;
    let body = request.split_off(head);
    request.truncate(head - 2);
    request.extend_from_slice(b"Connection: close\r\n\r\n");
    server.write_all(&request).await?;
    server.write_all(&body).await?;
    if let Fault::Late { method: which, by } = fault
        && which == method
    {
        let mut answer = Vec::new();
        server.read_to_end(&mut answer).await?;
        tokio::time::sleep(by).await;
        return client.write_all(&answer).await;
    }
    tokio::io::copy(&mut server, &mut client).await?;
    Ok(())
}
