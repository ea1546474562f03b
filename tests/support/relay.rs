//! A relay of bytes in front of a server, for protocols that keep a connection: it breaks and slows connections on demand.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// What the relay does with connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Line {
    /// Relays them.
    #[default]
    Open,
    /// Relays nothing more, and keeps everything open.
    Stuck,
    /// Closes them at once, those that there are and new ones.
    Closed,
    /// Everything comes this much later, both ways.
    Slow(Duration),
    /// As [`Line::Slow`], but only on every other connection: what comes later on the others overtakes it.
    Uneven(Duration),
    /// Resets every connection in the middle of this piece of what the server answers.
    Torn(usize),
    /// Half-open: what clients send does not come through. Everything stays open.
    Unheard,
    /// Half-open: what the server answers does not come through. Everything stays open.
    Unanswered,
}

impl Line {
    /// Whether nothing comes through this way. A connection on which something was held does not recover.
    fn silences(self, way: Way) -> bool {
        self == Self::Stuck || matches!((self, way), (Self::Unheard, Way::Request) | (Self::Unanswered, Way::Answer))
    }

    fn is_silent(self) -> bool {
        self.silences(Way::Request) || self.silences(Way::Answer)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Request,
    Answer,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    line: Line,
    /// How often everything was closed: it may be open again before anybody looked.
    closed: usize,
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
    injected: AtomicUsize,
}

impl Seen {
    fn hit(&self) {
        self.injected.fetch_add(1, Ordering::Relaxed);
    }
}

/// The relay. It ends when it is dropped.
pub struct Relay {
    addr: SocketAddr,
    state: watch::Sender<State>,
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
        let (state, states) = watch::channel(State::default());
        let (hold, holds) = watch::channel(hold);
        let seen = Arc::<Seen>::default();
        let task = tokio::spawn(accept(listener, upstream, states, holds, seen.clone()));
        Self { addr, state, hold, seen, task }
    }

    /// `HOST:PORT` for clients.
    pub fn host(&self) -> String {
        self.addr.to_string()
    }

    /// Sets what happens to connections from now on.
    pub fn set(&self, line: Line) {
        self.state.send_modify(|state| {
            state.line = line;
            state.closed += usize::from(line == Line::Closed);
        });
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

    /// Connections that were broken or silenced, and pieces that came late.
    pub fn injected(&self) -> usize {
        self.seen.injected.load(Ordering::Relaxed)
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
    states: watch::Receiver<State>,
    holds: watch::Receiver<Option<Hold>>,
    seen: Arc<Seen>,
) {
    while let Ok((mut client, _)) = listener.accept().await {
        let (mut states, holds, seen) = (states.clone(), holds.clone(), seen.clone());
        let state = *states.borrow_and_update();
        if state.line == Line::Closed {
            seen.hit();
            continue;
        }
        let number = seen.connections.fetch_add(1, Ordering::SeqCst);
        tokio::spawn(async move {
            if state.line == Line::Stuck {
                seen.hit();
                let _ = states.changed().await;
                return;
            }
            let Ok(mut server) = TcpStream::connect(upstream).await else { return };
            let relayed = states.clone();
            tokio::select! {
                () = broken(&mut states, state) => seen.hit(),
                _ = relay(&mut client, &mut server, number, relayed, holds, &seen) => {}
            }
        });
    }
}

/// Resolves when a connection is over: everything was closed, or it was silent and is not to be any more.
async fn broken(states: &mut watch::Receiver<State>, mut before: State) {
    while states.changed().await.is_ok() {
        let now = *states.borrow_and_update();
        if now.closed != before.closed || before.line.is_silent() {
            return;
        }
        before = now;
    }
}

async fn relay(
    client: &mut TcpStream,
    server: &mut TcpStream,
    number: usize,
    states: watch::Receiver<State>,
    holds: watch::Receiver<Option<Hold>>,
    seen: &Seen,
) -> std::io::Result<()> {
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let requests = pump(Way::Request, from_client, to_server, number, states.clone(), Some(holds), seen);
    let answers = pump(Way::Answer, from_server, to_client, number, states, None, seen);
    tokio::try_join!(requests, answers).map(drop)
}

/// Moves what comes one way, as the line is. What is late does not hold up what comes behind it any longer.
async fn pump(
    way: Way,
    mut from: ReadHalf<'_>,
    to: WriteHalf<'_>,
    number: usize,
    states: watch::Receiver<State>,
    mut holds: Option<watch::Receiver<Option<Hold>>>,
    seen: &Seen,
) -> std::io::Result<()> {
    let (pieces, queue) = mpsc::unbounded_channel();
    let state = states.clone();
    let taken = async move {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let length = from.read(&mut buffer).await?;
            if length == 0 {
                return Ok(());
            }
            let piece = buffer[..length].to_vec();
            if let Some(holds) = &mut holds {
                held(&piece, holds, seen).await;
            }
            let late = match state.borrow().line {
                Line::Slow(by) => Some(by),
                Line::Uneven(by) if number.is_multiple_of(2) => Some(by),
                _ => None,
            };
            seen.injected.fetch_add(usize::from(late.is_some()), Ordering::Relaxed);
            if pieces.send((Instant::now() + late.unwrap_or_default(), piece)).is_err() {
                return Ok(());
            }
        }
    };
    tokio::try_join!(taken, give(way, queue, to, states, seen)).map(drop)
}

async fn give(
    way: Way,
    mut queue: mpsc::UnboundedReceiver<(Instant, Vec<u8>)>,
    mut to: WriteHalf<'_>,
    mut states: watch::Receiver<State>,
    seen: &Seen,
) -> std::io::Result<()> {
    let mut pieces = 0;
    while let Some((due, piece)) = queue.recv().await {
        tokio::time::sleep_until(due).await;
        let _ = states.wait_for(|state| !state.line.silences(way)).await;
        pieces += usize::from(way == Way::Answer);
        let line = states.borrow().line;
        if let Line::Torn(at) = line
            && pieces >= at
            && way == Way::Answer
        {
            seen.hit();
            to.write_all(&piece[..piece.len() / 2]).await?;
            // Closed with a reset, not in good order.
            socket2::SockRef::from(to.as_ref()).set_linger(Some(Duration::ZERO))?;
            return Err(std::io::ErrorKind::ConnectionReset.into());
        }
        to.write_all(&piece).await?;
    }
    to.shutdown().await
}

/// Counts the pattern, and waits while it is held.
async fn held(piece: &[u8], holds: &mut watch::Receiver<Option<Hold>>, seen: &Seen) {
    if let Some(hold) = &*holds.borrow() {
        let found = piece.windows(hold.pattern.len()).filter(|at| *at == hold.pattern).count();
        seen.occurrences.send_modify(|count| *count += found);
    }
    let free = |hold: &Option<Hold>| hold.as_ref().is_none_or(|hold| *seen.occurrences.borrow() < hold.at);
    let _ = holds.wait_for(free).await;
}
