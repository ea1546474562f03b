//! A proxy in front of Consul that counts requests and bytes. Connections stay open as long as both sides keep them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

/// Longest head of a request.
const MAX_HEAD: usize = 64 * 1024;

/// What went through.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Blocking queries of watches.
    watches: AtomicU64,
    /// Reads of compare-and-swaps and of comparisons.
    reads: AtomicU64,
    /// Attempts to write.
    writes: AtomicU64,
    bytes: AtomicU64,
}

impl Counts {
    /// Counts so far: watches, reads, writes, bytes.
    fn now(&self) -> [u64; 4] {
        [&self.watches, &self.reads, &self.writes, &self.bytes].map(|count| count.load(Ordering::Relaxed))
    }

    /// Begins to count anew: call the result for the rates since.
    pub(crate) fn since_now(self: &Arc<Self>) -> impl FnOnce() -> Value + use<> {
        let (counts, before, began) = (self.clone(), self.now(), std::time::Instant::now());
        move || {
            let seconds = began.elapsed().as_secs_f64();
            let after = counts.now();
            let rate = |index: usize| (after[index] - before[index]) as f64 / seconds;
            json!({
                "consul_requests_per_s": rate(0) + rate(1) + rate(2),
                "consul_watches_per_s": rate(0),
                "consul_reads_per_s": rate(1),
                "consul_writes_per_s": rate(2),
                "consul_kb_per_s": rate(3) / 1e3,
            })
        }
    }
}

/// Starts a proxy on a port of its own.
pub(crate) async fn start(consul: SocketAddr) -> Result<(SocketAddr, Arc<Counts>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let (address, counts) = (listener.local_addr()?, Arc::<Counts>::default());
    let shared = counts.clone();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let counts = shared.clone();
            tokio::spawn(async move { serve(client, consul, &counts).await });
        }
    });
    Ok((address, counts))
}

async fn serve(client: TcpStream, consul: SocketAddr, counts: &Counts) -> Result<()> {
    let server = TcpStream::connect(consul).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    tokio::select! {
        done = requests(from_client, to_server, counts) => done,
        done = answers(from_server, to_client, counts) => done,
    }
}

async fn answers(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, counts: &Counts) -> Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        counts.bytes.fetch_add(length as u64, Ordering::Relaxed);
        to.write_all(&buffer[..length]).await?;
    }
}

/// Passes requests on one by one, so that each can be looked at.
async fn requests(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, counts: &Counts) -> Result<()> {
    let mut buffer = Vec::new();
    loop {
        let head = loop {
            if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            if buffer.len() > MAX_HEAD {
                bail!("a head without an end");
            }
            if from.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        };
        let text = std::str::from_utf8(&buffer[..head]).context("a head that is no text")?;
        let line = text.lines().next().unwrap_or_default();
        let counter = match line.split(' ').next() {
            Some("GET") if line.contains("index=") => &counts.watches,
            Some("GET") => &counts.reads,
            _ => &counts.writes,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        let headers = text.lines().filter_map(|line| line.split_once(':'));
        let mut lengths = headers.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
        let length = lengths.next().map_or(Ok(0), |(_, value)| value.trim().parse::<usize>())?;
        while buffer.len() < head + length {
            if from.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        }
        counts.bytes.fetch_add((head + length) as u64, Ordering::Relaxed);
        to.write_all(&buffer[..head + length]).await?;
        buffer.drain(..head + length);
    }
}
