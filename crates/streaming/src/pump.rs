//! Copies bytes between descriptors and a client's streams.
//!
//! It ends with the process, not with the descriptor: something in the background may hold that open forever. What is
//! in the pipe by then still arrives.

use std::io;
use std::pin::Pin;
use std::time::Duration;

use futures_util::future::{FusedFuture, Shared};
use wharf_types::Exit;

use tokio::sync::Notify;
use tokio::time::timeout;

use crate::channel::{Chunk, Inbound, Outbound, SendError};
use crate::descriptor::Descriptor;
use crate::wire::WireError;

/// The exit of a process, for everyone who waits for it.
pub(crate) type Ended = Shared<Pin<Box<dyn Future<Output = Result<Exit, String>> + Send>>>;

/// Sends a process's output until all writers have closed it, or until the process is gone and its output has been
/// sent.
///
/// A descendant in the background may keep the descriptor open and go on writing. So after the process has exited, no
/// more is sent than the descriptor can have held.
pub(crate) async fn output(from: Descriptor, to: &Outbound, mut ended: Ended) -> Result<(), WireError> {
    let mut chunk = Chunk::new();
    let mut left = usize::MAX;
    while left > 0 {
        let read = if ended.is_terminated() {
            from.read_now(chunk.room())
        } else {
            tokio::select! {
                biased;
                _ = &mut ended => {
                    left = from.capacity();
                    continue;
                }
                read = from.read(chunk.room()) => read,
            }
        };
        match read {
            Ok(0) => break,
            Ok(read) => chunk.filled(read),
            Err(error) => {
                tracing::warn!(%error, "cannot read the output of a process");
                break;
            }
        }
        left = left.saturating_sub(chunk.bytes().len());
        match to.send(&mut chunk).await {
            Ok(()) => {}
            Err(SendError::Reset) => break,
            Err(SendError::Wire(error)) => return Err(error),
        }
    }
    Ok(())
}

/// Writes what a client sends until it ends its stream, then closes the descriptor. If the reader is gone, the rest is
/// dropped.
pub(crate) async fn input(mut from: Inbound, to: Descriptor) {
    while let Some(bytes) = from.recv().await {
        if let Err(error) = to.write_all(&bytes).await {
            tracing::debug!(%error, "a process accepts no more input");
            return;
        }
    }
}

/// How long a client may be silent after the pod has closed its direction. Clients older than Kubernetes 1.28 wait for
/// the end of the connection before they close theirs.
const LINGER: Duration = Duration::from_secs(1);

/// Why a forwarded connection ended before both sides had closed it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ForwardError {
    /// The client reset the stream or left.
    #[error(transparent)]
    Send(#[from] SendError),
    /// The pod's side broke.
    #[error("the connection was lost")]
    Broken {
        #[source]
        source: io::Error,
    },
}

/// Moves bytes both ways between a client's stream and a socket, until both directions have ended, or until the pod's
/// has ended and the client is silent.
pub(crate) async fn forward(
    mut from: Inbound,
    to: &Outbound,
    socket: &Descriptor,
) -> Result<(), ForwardError> {
    let pod_ended = Notify::new();
    let upward = async {
        let mut patience = Duration::MAX;
        loop {
            let bytes = tokio::select! {
                received = timeout(patience, from.recv()) => match received {
                    Ok(Some(bytes)) => bytes,
                    Ok(None) | Err(_) => break,
                },
                () = pod_ended.notified() => {
                    patience = LINGER;
                    continue;
                }
            };
            let written = tokio::select! {
                written = socket.write_all(&bytes) => written,
                () = to.until_reset() => return Err(SendError::Reset.into()),
            };
            if written.is_err() {
                // The pod reads no more, but what it wrote before must still arrive.
                from.close();
                return Ok(());
            }
        }
        if to.is_reset() {
            return Err(SendError::Reset.into());
        }
        // This fails only if the other direction is broken as well, which then reports it.
        socket.end_writing().ok();
        Ok(())
    };
    let downward = async {
        let mut chunk = Chunk::new();
        loop {
            let read = socket.read(chunk.room()).await;
            match read.map_err(|source| ForwardError::Broken { source })? {
                0 => break,
                read => chunk.filled(read),
            }
            to.send(&mut chunk).await?;
        }
        to.finish().await.map_err(SendError::from)?;
        pod_ended.notify_one();
        Ok(())
    };
    tokio::try_join!(upward, downward).map(|_| ())
}
