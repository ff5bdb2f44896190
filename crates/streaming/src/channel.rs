//! The streams of a session, independent of the protocol that carries them.
//!
//! Sessions are written once against these types. SPDY has streams of its own, and WebSocket numbers its messages;
//! both become channels here.

use std::future::pending;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::wire::WireError;
use crate::{spdy, websocket};

/// Space before a payload for the head of any frame, in bytes.
const HEAD: usize = 16;

/// The longest payload of a frame that the server sends, in bytes: what a pipe holds.
const PAYLOAD: usize = 64 * 1024;

/// The longest piece of a client's data, in bytes.
pub(crate) const PIECE: usize = 16 * 1024;

/// How many pieces of a command's streams, or of one channel, may be queued. TCP's flow control is the only one: with
/// so many queued, nothing more is read from the connection.
pub(crate) const PIECES: usize = 8;

/// The data that a client sends on one stream; it ends when the client ends the stream.
pub(crate) type Inbound = mpsc::Receiver<Bytes>;

/// A payload with space before it, so that a frame is written in one piece without copying or allocating.
pub(crate) struct Chunk {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Chunk {
    /// An empty payload with room for the longest that a frame carries.
    pub(crate) fn new() -> Self {
        Self { bytes: vec![0; HEAD + PAYLOAD].into_boxed_slice(), start: HEAD, end: HEAD }
    }

    /// A payload of exactly this size.
    pub(crate) fn of(payload: &[u8]) -> Self {
        let mut bytes = vec![0; HEAD];
        bytes.extend_from_slice(payload);
        Self { start: HEAD, end: bytes.len(), bytes: bytes.into_boxed_slice() }
    }

    /// The room to read the next payload into.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        &mut self.bytes[HEAD..]
    }

    /// Sets the length of the payload that was read into the room, and drops what was prepended to the last one.
    pub(crate) fn filled(&mut self, len: usize) {
        (self.start, self.end) = (HEAD, HEAD + len);
    }

    /// Prepends bytes, at most 16 in all.
    pub(crate) fn prepend(&mut self, head: &[u8]) {
        let end = self.start;
        self.start -= head.len();
        self.bytes[self.start..end].copy_from_slice(head);
    }

    /// What was prepended, and the payload.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }
}

/// Why nothing can be sent on a stream.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    /// The client has reset this stream; the others continue.
    #[error("the client reset the stream")]
    Reset,
    /// The connection has ended.
    #[error(transparent)]
    Wire(#[from] WireError),
}

/// The server's direction of one stream.
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

    /// Ends the stream in this direction, if the protocol can express that.
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

    /// Resolves when the stream is reset in both directions, if the protocol has resets.
    pub(crate) async fn until_reset(&self) {
        match self {
            Self::Spdy(outlet) => outlet.until_reset().await,
            Self::WebSocket(_) => pending().await,
        }
    }

    /// Whether the client has reset this stream.
    pub(crate) fn is_reset(&self) -> bool {
        match self {
            Self::Spdy(outlet) => outlet.is_reset(),
            Self::WebSocket(_) => false,
        }
    }

    /// Sends a few bytes, or drops them if the client has reset this stream.
    pub(crate) async fn tell(&self, bytes: &[u8]) -> Result<(), WireError> {
        match self.send(&mut Chunk::of(bytes)).await {
            Ok(()) | Err(SendError::Reset) => Ok(()),
            Err(SendError::Wire(error)) => Err(error),
        }
    }

    /// Sends a text unless it is empty, and ends the stream.
    pub(crate) async fn conclude(&self, text: &str) -> Result<(), WireError> {
        if !text.is_empty() {
            self.tell(text.as_bytes()).await?;
        }
        self.finish().await
    }
}
