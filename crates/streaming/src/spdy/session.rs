//! Runs a SPDY connection: demultiplexes what the client sends, while the work on its streams runs.
//!
//! Whoever does the work gets streams and knows nothing of frames. There is no flow control by windows: once enough of
//! what was sent is unread, nothing more is read from the connection. A stream that then holds up the others is reset,
//! so that one reader that sleeps does not stop the session.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::error::SessionError;
use crate::spdy::frame::{self, Decoder, Farewell, Frame, FrameError, Reset};
use crate::spdy::headers::{HeadersError, Inflater};
use crate::spdy::stream::{Connection, Stream};
use crate::wire::{Receiver, Wire};

/// How many new streams may be queued.
const NEW_STREAMS: usize = 16;

/// How many streams in a row are refused before the connection ends.
const REFUSALS_LIMIT: u32 = 1000;

/// How a client violated the protocol.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpdyError {
    /// By an invalid frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// By invalid headers of a stream.
    #[error(transparent)]
    Headers(#[from] HeadersError),
    /// By opening streams without end.
    #[error("{REFUSALS_LIMIT} streams in a row had to be refused")]
    Streams,
}

/// Runs a connection until the work on its streams is done, or until the client leaves, which drops the work.
///
/// With `pieces` pieces queued, nothing more is read from the connection; after `stall`, the stream with the most of
/// them is reset.
pub(crate) async fn run<W>(
    mut receiver: Receiver,
    pieces: usize,
    stall: Duration,
    work: impl FnOnce(mpsc::Receiver<Stream>) -> W,
) -> Result<(), SessionError>
where
    W: Future<Output = Result<(), SessionError>>,
{
    let wire = Arc::clone(receiver.wire());
    let connection = Connection::new(Arc::clone(&wire), pieces);
    let (opened, streams) = mpsc::channel(NEW_STREAMS);
    let mut demultiplexer = Demultiplexer {
        connection: Arc::clone(&connection),
        wire: Arc::clone(&wire),
        inflater: Inflater::new(),
        refusals: 0,
        opened,
        stall,
    };
    let end = tokio::select! {
        biased;
        done = work(streams) => done,
        error = demultiplexer.run(&mut receiver) => Err(error),
        error = wire.over() => Err(error.into()),
    };
    let farewell = match &end {
        Ok(()) => Farewell::Done,
        Err(SessionError::Spdy(_)) => Farewell::Protocol,
        Err(_) => Farewell::Internal,
    };
    receiver.hang_up(&frame::go_away(connection.last(), farewell), &end).await;
    end
}

/// Demultiplexes what the client sends.
struct Demultiplexer {
    connection: Arc<Connection>,
    wire: Arc<Wire>,
    inflater: Inflater,
    /// How many streams in a row have been refused.
    refusals: u32,
    opened: mpsc::Sender<Stream>,
    stall: Duration,
}

impl Demultiplexer {
    async fn run(&mut self, receiver: &mut Receiver) -> SessionError {
        let mut decoder = Decoder::default();
        loop {
            let done = match decoder.decode(&mut receiver.buffer) {
                Ok(Some(frame)) => self.take(frame).await,
                Ok(None) => receiver.fill().await.map_err(SessionError::from),
                Err(error) => Err(SpdyError::from(error).into()),
            };
            if let Err(error) = done {
                return error;
            }
        }
    }

    async fn take(&mut self, frame: Frame) -> Result<(), SessionError> {
        let (stream, fin) = match frame {
            Frame::SynStream { stream, fin, block } => {
                self.open(stream, &block).await?;
                (stream, fin)
            }
            Frame::Headers { stream, fin, block } => {
                self.inflater.headers(&block).map_err(SpdyError::from)?;
                (stream, fin)
            }
            Frame::Data { stream, fin, bytes } => {
                self.deliver(stream, bytes).await?;
                (stream, fin)
            }
            Frame::Reset { stream } => {
                self.connection.forget(stream);
                return Ok(());
            }
            // A ping with the server's parity would be the reply to one of the server's own.
            Frame::Ping { id } if !id.is_multiple_of(2) => {
                return Ok(self.connection.ping(id).await?);
            }
            Frame::Ping { .. } | Frame::Ignored => return Ok(()),
        };
        if fin {
            self.connection.ended_by_client(stream);
        }
        Ok(())
    }

    async fn open(&mut self, id: u32, block: &[u8]) -> Result<(), SessionError> {
        let headers = self.inflater.headers(block).map_err(SpdyError::from)?;
        let refused = match self.connection.open(id, headers) {
            // The work accepts streams either only at its start or at any time.
            Ok(stream) => self.opened.send(stream).await.err().map(|_| Reset::Refused),
            Err(why) => Some(why),
        };
        let Some(why) = refused else {
            self.refusals = 0;
            return Ok(());
        };
        self.refusals += 1;
        if self.refusals > REFUSALS_LIMIT {
            return Err(SpdyError::Streams.into());
        }
        Ok(self.connection.reset(id, why).await?)
    }

    async fn deliver(&self, id: u32, bytes: Bytes) -> Result<(), SessionError> {
        // Bytes for a stream that has been reset may still arrive.
        while let Some(sink) = self.connection.inbound(id).filter(|_| !bytes.is_empty()) {
            if self.wire.hold(timeout(self.stall, sink.put(bytes.clone())), None).await?.is_ok() {
                break;
            }
            let stream = self.connection.fullest().unwrap_or(id);
            tracing::debug!(stream, "reset a stream that nobody reads");
            self.connection.reset(stream, Reset::FlowControl).await?;
        }
        Ok(())
    }
}
