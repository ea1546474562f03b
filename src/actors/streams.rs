//! Reading and writing one message of the stream protocol.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use crate::transport::BytePermit;
use crate::transport::io::{ReadError, ReadLimits, feed_until};
use crate::wire::{Label, PacketOptions, StreamDecoder, StreamMessage, StreamSide, WireError};

/// Why a stream exchange failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("refused: {0}")]
    Wire(#[from] WireError),
    #[error(transparent)]
    Read(#[from] ReadError<WireError>),
    #[error("the stream ended without a message")]
    NoMessage,
}

impl StreamError {
    /// Why, for a counter.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Io(_) | Self::Read(ReadError::Io(_)) => "io",
            Self::Wire(error) | Self::Read(ReadError::Refused(error)) => error.reason(),
            Self::Read(ReadError::Silent) => "silent",
            Self::Read(ReadError::TooSlow { .. }) => "too_slow",
            Self::Read(ReadError::Deadline { .. }) => "deadline",
            Self::Read(ReadError::TooLarge { .. }) => "too_large",
            Self::Read(ReadError::Overloaded) => "overloaded",
            Self::Read(ReadError::Closed { .. }) | Self::NoMessage => "no_message",
        }
    }

    /// What was wrong with the bytes, if that is why.
    pub(crate) fn wire(&self) -> Option<&WireError> {
        match self {
            Self::Wire(error) | Self::Read(ReadError::Refused(error)) => Some(error),
            _ => None,
        }
    }
}

/// A stream without a message.
#[derive(Debug)]
pub(crate) struct Unread {
    /// Why.
    pub(crate) error: StreamError,
    /// The label that it came under, if that is one that this node accepts.
    pub(crate) label: Option<Label>,
}

impl Unread {
    /// What to say about it to a peer of our own cluster, and under which label: what was wrong with its bytes.
    pub(crate) fn complaint(&self) -> Option<(&Label, String)> {
        Some((self.label.as_ref()?, self.error.wire()?.to_string()))
    }
}

/// What became of the streams that others opened.
#[derive(Debug, Default)]
pub(crate) struct StreamCounts {
    active: AtomicU64,
    refused: Mutex<BTreeMap<&'static str, u64>>,
}

impl StreamCounts {
    /// Counts a stream that is being served, until what is returned is dropped.
    pub(crate) fn begin(self: &Arc<Self>) -> impl Drop + use<> {
        self.active.fetch_add(1, Ordering::Relaxed);
        Active(self.clone())
    }

    pub(crate) fn refuse(&self, reason: &'static str) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner).entry(reason).or_default() += 1;
    }

    /// Streams that are being served.
    pub(crate) fn active(&self) -> u64 {
        self.active.load(Ordering::Relaxed)
    }

    /// Streams that were not answered, by reason.
    pub(crate) fn refused(&self) -> BTreeMap<&'static str, u64> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

struct Active(Arc<StreamCounts>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Reads one message, and says under which label it came. Memory grows with what has arrived, up to the decoder's limits
/// and to what is left of the budget that all streams share; keep the permit for as long as the message.
pub(crate) async fn read(
    stream: &mut (impl AsyncRead + Unpin),
    options: &PacketOptions,
    side: StreamSide,
    limits: &ReadLimits,
    permit: &mut BytePermit,
) -> Result<(Label, StreamMessage), Unread> {
    let mut decoder = StreamDecoder::new(options, side);
    let mut message = None;
    let fed = feed_until(stream, limits, permit, |piece| {
        decoder.feed(piece)?;
        message = decoder.poll()?;
        Ok(message.is_some())
    });
    let fed = fed.await;
    let label = decoder.is_admitted().then(|| decoder.label().clone());
    let error = match (fed, message) {
        // Compressed data became a message at one blow, so it can be paid for afterwards: only one stream at a time is
        // in debt.
        (Ok(_), _) if !permit.try_grow(decoder.decompressed()) => ReadError::Overloaded.into(),
        (Ok(_), Some(message)) => return Ok((decoder.label().clone(), message)),
        // The decoder knows what was missing when the other side closed.
        (Err(ReadError::Closed { received }), _) if received > 0 => {
            decoder.finish().map_or_else(StreamError::from, |()| StreamError::NoMessage)
        }
        (Ok(_), None) => StreamError::NoMessage,
        (Err(error), _) => error.into(),
    };
    Err(Unread { error, label })
}

/// Writes everything. The write side stays open: peers answer on the same stream.
pub(crate) async fn write(stream: &mut (impl AsyncWrite + Unpin), bytes: &Bytes) -> Result<(), StreamError> {
    stream.write_all(bytes).await?;
    stream.flush().await?;
    Ok(())
}
