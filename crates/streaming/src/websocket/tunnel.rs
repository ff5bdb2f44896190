//! A byte stream in binary messages whose boundaries have no meaning. A SPDY connection runs in it.

use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

use crate::channel::Chunk;
use crate::error::SessionError;
use crate::websocket::frame::{self, Decoder, Event, Kind};
use crate::websocket::session::{WebSocketError, close, event};
use crate::wire::{self, Receiver, WireError};

/// How many bytes may be between the tunnel and what runs in it.
const PIPE: usize = 64 * 1024;

/// Runs something in a tunnel until it closes its end, or until the client leaves.
pub(crate) async fn run<W>(
    mut receiver: Receiver,
    work: impl FnOnce(Receiver) -> W,
) -> Result<(), SessionError>
where
    W: Future<Output = Result<(), SessionError>>,
{
    let (inner, outer) = tokio::io::duplex(PIPE);
    let inner = wire::split(Box::new(inner), BytesMut::new(), receiver.wire().limits().clone());
    let (done, carried) = tokio::join!(work(inner), carry(&mut receiver, outer));
    // If the tunnel broke, what ran in it knows only that its client left.
    let end = carried.and(done);
    receiver.hang_up(close(&end).bytes(), &end).await;
    end
}

/// Carries bytes both ways until the inner side closes. Then the outer end of the pipe is closed.
async fn carry(receiver: &mut Receiver, outer: DuplexStream) -> Result<(), SessionError> {
    let wire = receiver.wire().clone();
    let (mut from_inner, mut to_inner) = tokio::io::split(outer);
    let inward = async {
        let mut decoder = Decoder::default();
        loop {
            match event(receiver, &mut decoder).await? {
                Event::Message { kind: Kind::Text, .. } => return Err(WebSocketError::Text.into()),
                Event::Message { bytes, .. } => {
                    to_inner.write_all(&bytes).await.map_err(|source| WireError::Broken { source })?;
                }
                _ => {}
            }
        }
    };
    let outward = async {
        let mut chunk = Chunk::new();
        loop {
            let read = from_inner.read(chunk.room()).await;
            match read.map_err(|source| WireError::Broken { source })? {
                0 => return Ok(()),
                read => chunk.filled(read),
            }
            frame::message(Kind::Binary, &mut chunk);
            wire.send(chunk.bytes()).await?;
        }
    };
    tokio::select! {
        done = outward => done,
        done = inward => done,
    }
}
