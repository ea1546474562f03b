//! A relay of bytes in front of a server, for protocols that keep a connection: it breaks connections on demand.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What the relay does with connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// Relays them.
    Open,
    /// Relays nothing more, and keeps everything open.
    Stuck,
    /// Closes them at once, those that there are and new ones.
    Closed,
}

/// A place in what clients send at which they are held up.
#[derive(Debug)]
struct Hold {
    /// The bytes that are looked for. They must come in one piece.
    pattern: Vec<u8>,
    /// At the how many-th occurrence, counted from 1 over all connections.
    at: usize,
}

#[derive(Debug, Default)]
struct Seen {
    connections: AtomicUsize,
    occurrences: watch::Sender<usize>,
}

/// The relay. It ends when it is dropped.
pub struct Relay {
    addr: SocketAddr,
    line: watch::Sender<Line>,
    hold: watch::Sender<Option<Hold>>,
    seen: Arc<Seen>,
    task: JoinHandle<()>,
}

impl Relay {
    /// A relay on a port of its own. Must be called within a tokio runtime.
    ///
    /// # Panics
    /// When no port can be bound.
    pub async fn start(upstream: SocketAddr) -> Self {
        Self::launch(upstream, None).await
    }

    /// A relay that looks for a pattern in what clients send, and holds what contains its `at`-th occurrence, and all
    /// behind it, until [`Relay::release`].
    ///
    /// # Panics
    /// When no port can be bound.
    pub async fn holding(upstream: SocketAddr, pattern: &str, at: usize) -> Self {
        Self::launch(upstream, Some(Hold { pattern: pattern.as_bytes().to_vec(), at })).await
    }

    async fn launch(upstream: SocketAddr, hold: Option<Hold>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (line, lines) = watch::channel(Line::Open);
        let (hold, holds) = watch::channel(hold);
        let seen = Arc::<Seen>::default();
        let task = tokio::spawn(accept(listener, upstream, lines, holds, seen.clone()));
        Self { addr, line, hold, seen, task }
    }

    /// `HOST:PORT` for clients.
    pub fn host(&self) -> String {
        self.addr.to_string()
    }

    /// Sets what happens to connections from now on.
    pub fn set(&self, line: Line) {
        self.line.send_replace(line);
    }

    /// Breaks every connection that there is; new ones work.
    pub fn cut(&self) {
        self.set(Line::Closed);
        self.set(Line::Open);
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::SeqCst)
    }

    /// How often the pattern was seen.
    pub fn occurrences(&self) -> usize {
        *self.seen.occurrences.borrow()
    }

    /// Lets go of what is held. The pattern is counted on.
    pub fn release(&self) {
        self.hold.send_modify(|hold| {
            if let Some(hold) = hold {
                hold.at = usize::MAX;
            }
        });
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(
    listener: TcpListener,
    upstream: SocketAddr,
    lines: watch::Receiver<Line>,
    holds: watch::Receiver<Option<Hold>>,
    seen: Arc<Seen>,
) {
    while let Ok((mut client, _)) = listener.accept().await {
        let (mut lines, holds, seen) = (lines.clone(), holds.clone(), seen.clone());
        let line = *lines.borrow_and_update();
        if line == Line::Closed {
            continue;
        }
        seen.connections.fetch_add(1, Ordering::SeqCst);
        tokio::spawn(async move {
            if line == Line::Stuck {
                next(&mut lines).await;
                return;
            }
            let Ok(mut server) = TcpStream::connect(upstream).await else { return };
            tokio::select! {
                line = next(&mut lines) => {
                    if line == Line::Stuck {
                        // Keeps both ends open, and relays nothing, until the next change.
                        next(&mut lines).await;
                    }
                }
                _ = relay(&mut client, &mut server, holds, seen) => {}
            }
        });
    }
}

/// What the line is changed to. Closed may have become Open again before anybody looked.
async fn next(lines: &mut watch::Receiver<Line>) -> Line {
    if lines.changed().await.is_err() {
        return Line::Closed;
    }
    *lines.borrow_and_update()
}

async fn relay(
    client: &mut TcpStream,
    server: &mut TcpStream,
    mut holds: watch::Receiver<Option<Hold>>,
    seen: Arc<Seen>,
) -> std::io::Result<()> {
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let requests = async {
        let mut piece = vec![0; 64 * 1024];
        loop {
            let length = from_client.read(&mut piece).await?;
            if length == 0 {
                return to_server.shutdown().await;
            }
            if let Some(hold) = &*holds.borrow() {
                let found = piece[..length].windows(hold.pattern.len()).filter(|at| *at == hold.pattern).count();
                seen.occurrences.send_modify(|count| *count += found);
            }
            let free = |hold: &Option<Hold>| hold.as_ref().is_none_or(|hold| *seen.occurrences.borrow() < hold.at);
            let _ = holds.wait_for(free).await;
            to_server.write_all(&piece[..length]).await?;
        }
    };
    let answers = async { tokio::io::copy(&mut from_server, &mut to_client).await.map(drop) };
    tokio::try_join!(requests, answers).map(drop)
}
