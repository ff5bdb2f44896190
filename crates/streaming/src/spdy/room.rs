//! Buffers what a client sent and nobody has read yet. There is no flow control in a connection, so one bound holds for all
//! of its streams together: a stream that nobody reads blocks the others only once it fills the whole buffer.

use std::sync::{Arc, Weak};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::channel::Inbound;

/// The room of a connection, in pieces.
pub(crate) struct Room {
    pieces: usize,
    left: Arc<Semaphore>,
}

/// Where the bytes of one stream go.
pub(crate) struct Sink {
    sender: mpsc::Sender<Bytes>,
    left: Arc<Semaphore>,
    /// Shared with every piece that waits.
    pieces: Arc<()>,
}

/// A piece, which takes room until it is dropped.
struct Piece {
    bytes: Bytes,
    _room: Option<OwnedSemaphorePermit>,
    _counted: Arc<()>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Room {
    pub(crate) fn new(pieces: usize) -> Self {
        Self { pieces, left: Arc::new(Semaphore::new(pieces)) }
    }

    /// A new stream, from both sides.
    pub(crate) fn stream(&self) -> (Arc<Sink>, Inbound) {
        let (sender, inbound) = mpsc::channel(self.pieces);
        (Arc::new(Sink { sender, left: Arc::clone(&self.left), pieces: Arc::default() }), inbound)
    }
}

impl Sink {
    /// Waits for room, and puts a piece there. If nobody wants it, it is dropped.
    pub(crate) async fn put(&self, bytes: Bytes) {
        if self.sender.is_closed() {
            return;
        }
        let room = Arc::clone(&self.left).acquire_owned().await.ok();
        let piece = Piece { bytes, _room: room, _counted: Arc::clone(&self.pieces) };
        // There is a slot for every piece that there is room for.
        self.sender.try_send(Bytes::from_owner(piece)).ok();
    }

    /// What tells how many pieces there are, also after the sink is gone: by its strong references.
    pub(crate) fn pieces(&self) -> Weak<()> {
        Arc::downgrade(&self.pieces)
    }
}
