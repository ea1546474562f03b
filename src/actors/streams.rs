//! Reading and writing one message of the stream protocol.

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::wire::{PacketOptions, StreamDecoder, StreamMessage, StreamSide, WireError};

/// Bytes read at a time: what a push/pull of a middling cluster needs in one go.
const CHUNK: usize = 16 * 1024;

/// Why a stream exchange failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("refused: {0}")]
    Wire(#[from] WireError),
    #[error("closed by the peer without an answer")]
    Closed,
}

/// Reads one message. Memory grows with what has arrived, up to the decoder's limits. The caller sets the deadline.
pub(crate) async fn read(
    stream: &mut (impl AsyncRead + Unpin),
    options: &PacketOptions,
    side: StreamSide,
) -> Result<StreamMessage, StreamError> {
    let mut decoder = StreamDecoder::new(options, side);
    let mut chunk = BytesMut::with_capacity(CHUNK);
    let mut anything = false;
    loop {
        chunk.clear();
        if stream.read_buf(&mut chunk).await? == 0 {
            if anything {
                decoder.finish()?;
            }
            return Err(StreamError::Closed);
        }
        anything = true;
        decoder.feed(&chunk)?;
        if let Some(message) = decoder.poll()? {
            return Ok(message);
        }
    }
}

/// Writes everything. The write side stays open: peers answer on the same stream.
pub(crate) async fn write(stream: &mut (impl AsyncWrite + Unpin), bytes: &Bytes) -> Result<(), StreamError> {
    stream.write_all(bytes).await?;
    stream.flush().await?;
    Ok(())
}
