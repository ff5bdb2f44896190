//! Runs a WebSocket connection: demultiplexes what the client sends into channels, while the work on them runs.

use std::sync::Arc;

use wharf_types::chain;

use crate::channel::Chunk;
use crate::error::SessionError;
use crate::websocket::channels::{ChannelError, Channels, Shape, Sorter};
use crate::websocket::frame::{self, CloseCode, Decoder, Event, FrameError};
use crate::wire::{Receiver, WireError};

/// How a client violated the protocol.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WebSocketError {
    /// By an invalid frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// By an invalid message.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// By a text message where only binary ones are allowed.
    #[error("a text message in a tunnel of bytes")]
    Text,
}

/// Runs a connection until the work on its channels is done, or until the client leaves, which drops the work.
pub(crate) async fn run<W>(
    mut receiver: Receiver,
    shape: Shape,
    work: impl FnOnce(Channels) -> W,
) -> Result<(), SessionError>
where
    W: Future<Output = Result<(), SessionError>>,
{
    let wire = Arc::clone(receiver.wire());
    let channels = Channels::new(Arc::clone(&wire), shape);
    let mut sorter = Sorter::new(shape, channels.sinks());
    let end = tokio::select! {
        biased;
        done = work(channels) => done,
        error = sort(&mut receiver, &mut sorter) => Err(error),
        error = wire.over() => Err(error.into()),
    };
    receiver.hang_up(close(&end).bytes(), &end).await;
    end
}

/// The frame that says why a connection ended.
pub(crate) fn close(end: &Result<(), SessionError>) -> Chunk {
    let code = match end {
        Ok(()) | Err(SessionError::Wire(WireError::Left)) => return frame::close(CloseCode::Done, ""),
        Err(SessionError::Wire(WireError::Ending)) => CloseCode::GoingAway,
        Err(SessionError::WebSocket(WebSocketError::Channel(ChannelError::Base64))) => CloseCode::Data,
        Err(SessionError::WebSocket(_)) => CloseCode::Protocol,
        Err(_) => CloseCode::Internal,
    };
    frame::close(code, &end.as_ref().err().map(|error| chain(error)).unwrap_or_default())
}

async fn sort(receiver: &mut Receiver, sorter: &mut Sorter) -> SessionError {
    let mut decoder = Decoder::default();
    loop {
        let event = match event(receiver, &mut decoder).await {
            Ok(event) => event,
            Err(error) => return error,
        };
        let Event::Message { bytes, end, .. } = event else { continue };
        match sorter.take(bytes, end) {
            // If the receiver is gone, the bytes are dropped.
            Ok(Some((sink, bytes))) => {
                // An unsolicited pong is allowed: RFC 6455, section 5.5.3.
                let pong = frame::pong(b"");
                match receiver.wire().hold(sink.send(bytes), Some(pong.bytes())).await {
                    Ok(_taken_or_dropped) => {}
                    Err(error) => return error.into(),
                }
            }
            Ok(None) => {}
            Err(error) => return WebSocketError::from(error).into(),
        }
    }
}

/// The next event that is not a ping; pings are answered here.
pub(crate) async fn event(receiver: &mut Receiver, decoder: &mut Decoder) -> Result<Event, SessionError> {
    loop {
        match decoder.decode(&mut receiver.buffer).map_err(WebSocketError::from)? {
            None => receiver.fill().await?,
            Some(Event::Ping(payload)) => receiver.wire().send(frame::pong(&payload).bytes()).await?,
            Some(Event::Close) => return Err(WireError::Left.into()),
            Some(event) => return Ok(event),
        }
    }
}
