//! A buffer for what a client has sent and nobody has read yet. A connection has no flow control per stream, so all its
//! streams share one limit: a stream that nobody reads blocks the others only once it fills the whole buffer.

use std::sync::{Arc, Weak};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::channel::Inbound;

/// The room of a connection, counted in pieces.
pub(crate) struct Room {
    pieces: usize,
    /// A permit for each piece that may still be queued.
    left: Arc<Semaphore>,
}

/// Where one stream's bytes go.
pub(crate) struct Sink {
    sender: mpsc::Sender<Bytes>,
    left: Arc<Semaphore>,
    /// Shared with every queued piece.
    pieces: Arc<()>,
}

/// A queued piece, which takes room until it is dropped.
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

    /// A new stream: its sink and its receiver.
    pub(crate) fn stream(&self) -> (Arc<Sink>, Inbound) {
        let (sender, inbound) = mpsc::channel(self.pieces);
        (Arc::new(Sink { sender, left: Arc::clone(&self.left), pieces: Arc::default() }), inbound)
    }
}

impl Sink {
    /// Waits for room and queues a piece. If the receiver is gone, the piece is dropped.
    pub(crate) async fn put(&self, bytes: Bytes) {
        if self.sender.is_closed() {
            return;
        }
        let room = Arc::clone(&self.left).acquire_owned().await.ok();
        let piece = Piece { bytes, _room: room, _counted: Arc::clone(&self.pieces) };
        // The queue has a slot for every piece for which there is room.
        self.sender.try_send(Bytes::from_owner(piece)).ok();
    }

    /// Counts the queued pieces by its strong references, even after the sink is gone.
    pub(crate) fn pieces(&self) -> Weak<()> {
        Arc::downgrade(&self.pieces)
    }
}
