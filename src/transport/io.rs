//! Reading from and writing to streams within bounds, whatever the other side does.
//!
//! A stranger can open a stream and then say nothing, say it one byte at a time, or never stop. [`read_until`] ends
//! all three: it reads until its caller, who knows the format, has seen enough. [`feed_until`] does the same for a
//! caller with a decoder that takes bytes piece by piece.

use std::io;
use std::ops::Deref;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

use super::budget::{ByteBudget, BytePermit};

/// The buffer grows by at least this many bytes, and otherwise by as many as have arrived.
const CHUNK: usize = 4096;
/// Bytes that [`feed_until`] hands on at a time: this many at first, and more, up to the most, while pieces come full.
/// Most exchanges are short, and a node may have a hundred at a time.
const FIRST_PIECE: usize = 2 * 1024;
const LARGEST_PIECE: usize = 16 * 1024;

/// What one side of an exchange may cost the reader.
#[derive(Clone, Copy, Debug)]
pub struct ReadLimits {
    /// When the exchange must be over, whatever arrived.
    pub deadline: Instant,
    /// Most bytes to read.
    pub max_bytes: usize,
    /// How long to wait for the first byte. Default 2 s.
    pub first_byte: Duration,
    /// Bytes a second that the other side must keep up on average after `first_byte`; 0 allows any rate.
    /// Default 64 KiB/s.
    pub min_rate: u32,
}

impl ReadLimits {
    /// Limits with the default patience: 2 s for the first byte, then 64 KiB/s.
    #[must_use]
    pub fn new(deadline: Instant, max_bytes: usize) -> Self {
        Self { deadline, max_bytes, first_byte: Duration::from_secs(2), min_rate: 64 * 1024 }
    }

    /// When the next byte must be there, if `received` bytes have arrived since `start`.
    ///
    /// One rule covers the first byte and the rate: the time for the first byte, and on top of it the time that the
    /// bytes received so far would take at the lowest rate.
    fn next_byte_by(&self, start: Instant, received: usize) -> Instant {
        let patience = if received > 0 && self.min_rate == 0 {
            None
        } else {
            let earned = Duration::from_secs_f64(received as f64 / f64::from(self.min_rate.max(1)));
            self.first_byte.checked_add(earned)
        };
        let by = patience.and_then(|patience| start.checked_add(patience));
        by.map_or(self.deadline, |by| by.min(self.deadline))
    }
}

/// Why a read ended early. Nothing that was read is kept; the stream is of no further use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError<E> {
    /// No byte came in time.
    #[error("the other side sent nothing in time")]
    Silent,
    /// Bytes came, but more slowly than the lowest rate allowed.
    #[error("the other side is too slow: {received} bytes received")]
    TooSlow {
        /// Bytes received until then.
        received: usize,
    },
    /// The deadline of the whole exchange passed.
    #[error("the deadline passed after {received} bytes")]
    Deadline {
        /// Bytes received until then.
        received: usize,
    },
    /// The limit of bytes was reached and the caller still wanted more.
    #[error("the other side sent more than {max} bytes")]
    TooLarge {
        /// The limit.
        max: usize,
    },
    /// All streams together hold as many bytes as the node allows. Not the fault of this stream.
    #[error("too many bytes are being received at the same time")]
    Overloaded,
    /// The other side closed before the caller had enough. With `received` 0 it closed without a word.
    #[error("the stream ended after {received} bytes")]
    Closed {
        /// Bytes received until then.
        received: usize,
    },
    /// The stream failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The caller refused what arrived.
    #[error("{0}")]
    Refused(E),
}

/// Bytes that were read. They count against their [`ByteBudget`] until this is dropped.
#[derive(Debug)]
pub struct Received {
    bytes: Bytes,
    _permit: BytePermit,
}

impl Received {
    /// The bytes as a handle of their own, which may outlive the accounting.
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        self.bytes.clone()
    }
}

impl Deref for Received {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Reads until `step` says that it has enough.
///
/// After every read, `step` sees all bytes so far, and answers `Ok(true)` when they are enough, `Ok(false)` when more
/// are needed, and an error when it can already tell that they are wrong. Bytes that arrived behind what `step` needed
/// are in the result too.
///
/// Memory grows with what has arrived (at most twice that and a small start), never with what a header announces, and
/// is taken from `budget` before it is allocated. Not cancel safe: what was read is lost with the future.
///
/// # Errors
/// See [`ReadError`].
pub async fn read_until<S, E>(
    stream: &mut S,
    limits: &ReadLimits,
    budget: &ByteBudget,
    mut step: impl FnMut(&[u8]) -> Result<bool, E>,
) -> Result<Received, ReadError<E>>
where
    S: AsyncRead + Unpin + ?Sized,
{
    let start = Instant::now();
    let mut buffer = BytesMut::new();
    let mut permit = budget.permit();
    loop {
        let received = buffer.len();
        let room = limits.max_bytes.saturating_sub(received);
        if room == 0 {
            return Err(ReadError::TooLarge { max: limits.max_bytes });
        }
        if buffer.capacity() == received {
            let more = received.max(CHUNK).min(room);
            if !permit.try_grow(more) {
                return Err(ReadError::Overloaded);
            }
            buffer.reserve(more);
        }
        read_some(stream, &mut buffer, limits, start, received).await?;
        if step(&buffer).map_err(ReadError::Refused)? {
            return Ok(Received { bytes: buffer.freeze(), _permit: permit });
        }
        // A stream that always has bytes ready must not keep everybody else waiting.
        tokio::task::coop::consume_budget().await;
    }
}

/// Like [`read_until`], but hands `step` only the bytes that are new, for a decoder that keeps what it needs itself.
/// Returns how many bytes were read.
///
/// Every byte is taken from the budget of `permit` before `step` sees it, and stays taken as long as the caller keeps
/// the permit: as long as its decoder and the message live.
///
/// # Errors
/// See [`ReadError`].
pub async fn feed_until<S, E>(
    stream: &mut S,
    limits: &ReadLimits,
    permit: &mut BytePermit,
    mut step: impl FnMut(&[u8]) -> Result<bool, E>,
) -> Result<usize, ReadError<E>>
where
    S: AsyncRead + Unpin + ?Sized,
{
    let start = Instant::now();
    let mut piece = BytesMut::with_capacity(FIRST_PIECE);
    let mut received = 0;
    loop {
        if received >= limits.max_bytes {
            return Err(ReadError::TooLarge { max: limits.max_bytes });
        }
        piece.clear();
        let more = read_some(stream, &mut piece, limits, start, received).await?;
        if !permit.try_grow(more) {
            return Err(ReadError::Overloaded);
        }
        received += more;
        if step(&piece).map_err(ReadError::Refused)? {
            return Ok(received);
        }
        if piece.len() == piece.capacity() && piece.len() < LARGEST_PIECE {
            piece = BytesMut::with_capacity(piece.len() * 2);
        }
        tokio::task::coop::consume_budget().await;
    }
}

/// Reads at least one byte into the room that the buffer has, within the limits.
async fn read_some<S, E>(
    stream: &mut S,
    buffer: &mut BytesMut,
    limits: &ReadLimits,
    start: Instant,
    received: usize,
) -> Result<usize, ReadError<E>>
where
    S: AsyncRead + Unpin + ?Sized,
{
    // The allocator may have rounded the buffer up; the limit of bytes holds nevertheless.
    let room = limits.max_bytes.saturating_sub(received);
    let mut limited = (&mut *stream).take(room as u64);
    match timeout_at(limits.next_byte_by(start, received), limited.read_buf(buffer)).await {
        Err(_) if Instant::now() >= limits.deadline => Err(ReadError::Deadline { received }),
        Err(_) if received == 0 => Err(ReadError::Silent),
        Err(_) => Err(ReadError::TooSlow { received }),
        Ok(Err(error)) => Err(ReadError::Io(error)),
        Ok(Ok(0)) => Err(ReadError::Closed { received }),
        Ok(Ok(more)) => Ok(more),
    }
}

/// Writes all bytes and flushes, or fails with `TimedOut` at the deadline. Then part of them may have been written.
///
/// # Errors
/// `TimedOut`, or what the stream says.
pub async fn write_all_deadline<S>(stream: &mut S, bytes: &[u8], deadline: Instant) -> io::Result<()>
where
    S: AsyncWrite + Unpin + ?Sized,
{
    let write = async {
        stream.write_all(bytes).await?;
        stream.flush().await
    };
    timeout_at(deadline, write).await.map_err(|_| timed_out("the other side did not take the bytes in time"))?
}

/// Connects by the deadline; a deadline that has passed already is never met.
pub(super) async fn connect_by<T>(deadline: Instant, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let late = || timed_out("the other side did not answer in time");
    if Instant::now() >= deadline {
        return Err(late());
    }
    timeout_at(deadline, work).await.map_err(|_| late())?
}

fn timed_out(text: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, text)
}
