//! Connections of the agent's server: how many there may be, and how slow they may be.
//!
//! A client that says nothing, says it one byte at a time, or does not read its answer costs a connection and its buffers.
//! So each must send its head in 20 s, is closed when it takes nothing of an answer for 30 s, and only 512 are accepted at a
//! time; more wait in the system's queue. Streams of events stay open as long as
//! their reader keeps reading.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::Request;
use axum::response::Response;
use futures_util::FutureExt;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections at a time: twice as many as streams of events are allowed.
const MAX_CONNECTIONS: usize = 512;

/// How long a client may take to send the head of a request, from when the connection is free for it: also how long a
/// connection may stay open between two requests.
const HEAD: Duration = Duration::from_secs(20);

/// How long a client may take nothing of an answer that waits for it.
const STALLED: Duration = Duration::from_secs(30);

/// Pause after a failed accept that is not of one client's making, such as a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// What the server allows its clients.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    pub(super) connections: usize,
    pub(super) head: Duration,
    pub(super) stalled: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { connections: MAX_CONNECTIONS, head: HEAD, stalled: STALLED }
    }
}

/// Accepts connections and answers their requests until `closing`, then waits for those that are being answered.
pub(super) async fn serve<F, Answer>(listener: TcpListener, patience: Patience, closing: CancellationToken, answer: F)
where
    F: Fn(SocketAddr, Request) -> Answer + Clone + Send + Sync + 'static,
    Answer: Future<Output = Response> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(patience.connections));
    let open = TaskTracker::new();
    loop {
        let accept = async {
            // Never closed, so there is a place as soon as one is free.
            let place = places.clone().acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            accepted = accept => accepted,
            () = closing.cancelled() => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) if is_of_the_client(&error) => continue,
            Err(error) => {
                tracing::warn!(%error, "no connection could be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (closing, answer) = (closing.clone(), answer.clone());
        open.spawn(async move {
            let _place = place;
            // Events are small and rare: each should go out when it happens.
            let _ = stream.set_nodelay(true);
            let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                answer(peer, request.map(axum::body::Body::new)).map(Ok::<_, Infallible>)
            });
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(patience.head);
            let stream = TokioIo::new(Impatient::new(stream, patience.stalled));
            let mut connection = std::pin::pin!(builder.serve_connection(stream, service));
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = closing.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%peer, %error, "an HTTP connection was given up");
            }
        });
    }
    open.close();
    open.wait().await;
}

fn is_of_the_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// A stream whose writes fail when the other side takes nothing for a while.
struct Impatient {
    stream: TcpStream,
    patience: Duration,
    /// Runs while a write waits.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl Impatient {
    fn new(stream: TcpStream, patience: Duration) -> Self {
        Self { stream, patience, waiting: None }
    }

    fn limit<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.waiting = None;
            return polled;
        }
        let patience = self.patience;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        waiting.as_mut().poll(cx).map(|()| Err(io::Error::new(io::ErrorKind::TimedOut, "the client reads no more")))
    }
}

impl AsyncRead for Impatient {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Impatient {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.limit(cx, polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        self.limit(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.limit(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.limit(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use axum::body::{Body, Bytes};
    use futures_util::stream;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Fails a test that hangs; nothing is asserted about less.
    const IN_TIME: Duration = Duration::from_secs(30);

    struct Served {
        addr: SocketAddr,
        closing: CancellationToken,
        task: tokio::task::JoinHandle<()>,
    }

    /// Answers `/endless` without end, `/events` with an event each 10 ms, and all else at once.
    async fn served(patience: Patience) -> Served {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let closing = CancellationToken::new();
        let task = tokio::spawn(serve(listener, patience, closing.clone(), |_, request: Request| async move {
            let events = |event: &'static [u8], pause| {
                Body::from_stream(stream::unfold((), move |()| async move {
                    tokio::time::sleep(pause).await;
                    Some((Ok::<_, Infallible>(Bytes::from_static(event)), ()))
                }))
            };
            Response::new(match request.uri().path() {
                "/endless" => events(&[b'x'; 65_536], Duration::ZERO),
                "/events" => events(b"event\n", Duration::from_millis(10)),
                _ => Body::from("hello"),
            })
        }));
        Served { addr, closing, task }
    }

    async fn soon<T>(work: impl Future<Output = T>) -> T {
        tokio::time::timeout(IN_TIME, work).await.expect("this should have happened long ago")
    }

    async fn ask(served: &Served, head: &str) -> TcpStream {
        let mut stream = TcpStream::connect(served.addr).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    }

    async fn rest(stream: &mut TcpStream) -> String {
        let mut text = Vec::new();
        // A reset is an end as well.
        let _ = soon(stream.read_to_end(&mut text)).await;
        String::from_utf8_lossy(&text).into_owned()
    }

    const SHORT: Patience =
        Patience { connections: 2, head: Duration::from_millis(100), stalled: Duration::from_millis(100) };

    #[tokio::test]
    async fn a_client_that_does_not_finish_its_head_is_hung_up_on_and_its_place_is_free_again() {
        let served = served(SHORT).await;
        let mut slow = [ask(&served, "GET / HTTP/1.1\r\nhost: a\r\nx-").await, ask(&served, "").await];
        // Both places are taken, so this one waits for one of them.
        let mut third = ask(&served, "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
        assert!(rest(&mut third).await.ends_with("hello"));
        for stream in &mut slow {
            assert!(!rest(stream).await.contains("hello"));
        }
        served.closing.cancel();
        soon(served.task).await.unwrap();
    }

    #[tokio::test]
    async fn a_client_that_reads_nothing_is_hung_up_on() {
        let served = served(Patience { connections: 1, ..SHORT }).await;
        let mut deaf = ask(&served, "GET /endless HTTP/1.1\r\nhost: a\r\n\r\n").await;
        // It reads nothing, and holds the only place until the server gives up.
        let mut next = ask(&served, "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
        assert!(rest(&mut next).await.ends_with("hello"));
        // What was under way arrives; then it is over, although the answer had no end.
        rest(&mut deaf).await;
    }

    #[tokio::test]
    async fn a_stream_of_events_outlives_every_patience_and_ends_with_the_server() {
        let served =
            served(Patience { head: Duration::from_millis(50), stalled: Duration::from_millis(50), ..SHORT }).await;
        let mut reader = ask(&served, "GET /events HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let mut text = String::new();
        let mut buffer = [0; 1024];
        // Forty events take far longer than each of the limits.
        while text.matches("event").count() < 40 {
            let length = soon(reader.read(&mut buffer)).await.unwrap();
            assert!(length > 0, "closed after {text}");
            text.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
        served.closing.cancel();
        assert!(!served.task.is_finished(), "it is still being answered");
        served.task.abort();
    }
}
