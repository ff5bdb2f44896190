//! The streams of a session, independent of the protocol that carries them.

use std::future::pending;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::wire::WireError;
use crate::{spdy, websocket};

/// Room in front of a payload for the heads of any frame, in bytes.
const HEAD: usize = 16;

/// The most a frame of ours carries, in bytes: what a pipe holds.
const PAYLOAD: usize = 64 * 1024;

/// The most a piece of what a client sends has, in bytes.
pub(crate) const PIECE: usize = 16 * 1024;

/// How many pieces of a command's streams, or of one channel, may wait to be taken. There is no flow control but that of TCP:
/// when there are as many, nothing more is read from the connection.
pub(crate) const PIECES: usize = 8;

/// What a client sends on one stream; ends when the client ends the stream.
pub(crate) type Inbound = mpsc::Receiver<Bytes>;

/// A payload with room in front, so that a frame is written in one piece without being copied or allocated.
pub(crate) struct Chunk {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Chunk {
    /// An empty payload with room for the most a frame carries.
    pub(crate) fn new() -> Self {
        Self { bytes: vec![0; HEAD + PAYLOAD].into_boxed_slice(), start: HEAD, end: HEAD }
    }

    /// A payload of its own size.
    pub(crate) fn of(payload: &[u8]) -> Self {
        let mut bytes = vec![0; HEAD];
        bytes.extend_from_slice(payload);
        Self { start: HEAD, end: bytes.len(), bytes: bytes.into_boxed_slice() }
    }

    /// Where the next payload is read into.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        &mut self.bytes[HEAD..]
    }

    /// Says how long the payload is that was read into the room, and forgets what was put in front of the last one.
    pub(crate) fn filled(&mut self, len: usize) {
        (self.start, self.end) = (HEAD, HEAD + len);
    }

    /// Puts bytes in front; at most 16 all together.
    pub(crate) fn prepend(&mut self, head: &[u8]) {
        let end = self.start;
        self.start -= head.len();
        self.bytes[self.start..end].copy_from_slice(head);
    }

    /// What was put in front, and the payload.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }
}

/// Why something can't be sent on a stream.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    /// The client wants no more of this stream; the others go on.
    #[error("the client reset the stream")]
    Reset,
    /// The connection is over.
    #[error(transparent)]
    Wire(#[from] WireError),
}

/// What is sent to the client on one stream.
pub(crate) enum Outbound {
    Spdy(spdy::Outlet),
    WebSocket(websocket::Outlet),
}

impl Outbound {
    /// Sends a payload.
    pub(crate) async fn send(&self, chunk: &mut Chunk) -> Result<(), SendError> {
        match self {
            Self::Spdy(outlet) => outlet.send(chunk).await,
            Self::WebSocket(outlet) => Ok(outlet.send(chunk).await?),
        }
    }

    /// Ends the stream in this direction, where the protocol can say so.
    pub(crate) async fn finish(&self) -> Result<(), WireError> {
        match self {
            Self::Spdy(outlet) => outlet.finish().await,
            Self::WebSocket(outlet) => {
                outlet.finish();
                Ok(())
            }
        }
    }

    /// Ends the stream in both directions at once.
    pub(crate) async fn reset(&self) -> Result<(), WireError> {
        match self {
            Self::Spdy(outlet) => outlet.reset(spdy::Reset::Cancel).await,
            Self::WebSocket(outlet) => {
                outlet.finish();
                Ok(())
            }
        }
    }

    /// Resolves when the stream is given up in both directions, where the protocol has that.
    pub(crate) async fn until_reset(&self) {
        match self {
            Self::Spdy(outlet) => outlet.until_reset().await,
            Self::WebSocket(_) => pending().await,
        }
    }

    /// Whether the client wants no more of this stream.
    pub(crate) fn is_reset(&self) -> bool {
        match self {
            Self::Spdy(outlet) => outlet.is_reset(),
            Self::WebSocket(_) => false,
        }
    }

    /// Sends a few bytes. If the client wants no more of this stream, they are dropped.
    pub(crate) async fn tell(&self, bytes: &[u8]) -> Result<(), WireError> {
        match self.send(&mut Chunk::of(bytes)).await {
            Ok(()) | Err(SendError::Reset) => Ok(()),
            Err(SendError::Wire(error)) => Err(error),
        }
    }

    /// Sends a text, unless it is empty, and ends the stream.
    pub(crate) async fn conclude(&self, text: &str) -> Result<(), WireError> {
        if !text.is_empty() {
            self.tell(text.as_bytes()).await?;
        }
        self.finish().await
    }
}
