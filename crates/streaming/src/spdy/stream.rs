//! One stream of a SPDY connection, as its owner sees it, and the table of open streams.

use std::collections::HashMap;
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use tokio::sync::watch;
use wharf_types::lock::lock;

use crate::channel::{Chunk, Inbound, SendError};
use crate::spdy::frame::{self, Reset};
use crate::spdy::headers::{self, Headers};
use crate::spdy::room::{Room, Sink};
use crate::wire::{Wire, WireError};

/// How many streams of a connection may be open at a time: two for each forwarded connection.
const OPEN_LIMIT: usize = 1024;

/// What the demultiplexer and all streams of a connection share.
pub(crate) struct Connection {
    wire: Arc<Wire>,
    /// Whether the server's zlib stream has begun. Locked while a reply is written, because the order of replies
    /// matters.
    replied: tokio::sync::Mutex<bool>,
    /// The open streams. Locked for moments, never while a frame is read or written.
    table: Mutex<Table>,
    room: Room,
}

#[derive(Default)]
struct Table {
    open: HashMap<u32, Entry>,
    last: u32,
}

/// A stream that is open in at least one direction.
struct Entry {
    /// Where the client's bytes go, until the client ends its direction.
    theirs: Option<Arc<Sink>>,
    /// Its strong references: one for each queued piece of the client's bytes, and one for the sink.
    pieces: Weak<()>,
    /// Whether the server's direction is open.
    ours: bool,
    /// Becomes true when the stream is reset.
    reset: watch::Sender<bool>,
}

/// A stream that a client opened. It must be accepted or reset.
pub(crate) struct Stream {
    pub(crate) headers: Headers,
    pub(crate) inbound: Inbound,
    pub(crate) outlet: Outlet,
}

/// The server's direction of a stream.
pub(crate) struct Outlet {
    connection: Arc<Connection>,
    id: u32,
    reset: watch::Receiver<bool>,
}

impl Connection {
    /// A connection with room for this many queued pieces.
    pub(crate) fn new(wire: Arc<Wire>, pieces: usize) -> Arc<Self> {
        let replied = tokio::sync::Mutex::new(false);
        Arc::new(Self { wire, replied, table: Mutex::default(), room: Room::new(pieces) })
    }

    /// Adds a new stream to the table.
    pub(crate) fn open(self: &Arc<Self>, id: u32, headers: Headers) -> Result<Stream, Reset> {
        let mut table = self.table();
        if id.is_multiple_of(2) || id <= table.last {
            return Err(Reset::Protocol);
        }
        table.last = id;
        if table.open.len() >= OPEN_LIMIT {
            return Err(Reset::Refused);
        }
        let (sink, inbound) = self.room.stream();
        let (reset, resets) = watch::channel(false);
        let pieces = sink.pieces();
        table.open.insert(id, Entry { theirs: Some(sink), pieces, ours: true, reset });
        Ok(Stream { headers, inbound, outlet: Outlet { connection: Arc::clone(self), id, reset: resets } })
    }

    /// Where the client's bytes on a stream go; `None` if the stream is not open.
    pub(crate) fn inbound(&self, id: u32) -> Option<Arc<Sink>> {
        self.table().open.get(&id)?.theirs.clone()
    }

    /// The stream with the most queued pieces.
    pub(crate) fn fullest(&self) -> Option<u32> {
        let table = self.table();
        table.open.iter().max_by_key(|(_, entry)| entry.pieces.strong_count()).map(|(id, _)| *id)
    }

    /// Notes that the client has ended its direction.
    pub(crate) fn ended_by_client(&self, id: u32) {
        self.change(id, |entry| entry.theirs = None);
    }

    /// Notes that a stream has been reset, in both directions.
    pub(crate) fn forget(&self, id: u32) {
        if let Some(entry) = self.table().open.remove(&id) {
            entry.reset.send_replace(true);
        }
    }

    /// Resets a stream, in both directions.
    pub(crate) async fn reset(&self, id: u32, why: Reset) -> Result<(), WireError> {
        self.forget(id);
        self.wire.send(&frame::rst_stream(id, why)).await
    }

    /// Echoes a ping.
    pub(crate) async fn ping(&self, id: u32) -> Result<(), WireError> {
        self.wire.send(&frame::ping(id)).await
    }

    /// The last stream that the client opened.
    pub(crate) fn last(&self) -> u32 {
        self.table().last
    }

    fn change(&self, id: u32, change: impl FnOnce(&mut Entry)) {
        let mut table = self.table();
        let Some(entry) = table.open.get_mut(&id) else { return };
        change(entry);
        if entry.theirs.is_none() && !entry.ours {
            table.open.remove(&id);
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }
}

impl Outlet {
    /// The stream's number.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// Tells the client that the stream is accepted.
    pub(crate) async fn accept(&self) -> Result<(), WireError> {
        let mut replied = self.connection.replied.lock().await;
        let block = if *replied { headers::empty_block() } else { headers::first_empty_block() };
        self.connection.wire.send(&frame::syn_reply(self.id, &block)).await?;
        *replied = true;
        Ok(())
    }

    /// Sends a payload.
    pub(crate) async fn send(&self, chunk: &mut Chunk) -> Result<(), SendError> {
        if self.is_reset() {
            return Err(SendError::Reset);
        }
        chunk.prepend(&frame::data_head(self.id, chunk.bytes().len()));
        Ok(self.connection.wire.send(chunk.bytes()).await?)
    }

    /// Ends the server's direction; does nothing if it has already ended.
    pub(crate) async fn finish(&self) -> Result<(), WireError> {
        if self.is_reset() {
            return Ok(());
        }
        self.connection.change(self.id, |entry| entry.ours = false);
        self.connection.wire.send(&frame::fin(self.id)).await
    }

    /// Resets the stream in both directions; does nothing if it has already ended.
    pub(crate) async fn reset(&self, why: Reset) -> Result<(), WireError> {
        if !self.connection.table().open.contains_key(&self.id) {
            return Ok(());
        }
        self.connection.reset(self.id, why).await
    }

    /// Resolves when either side resets the stream.
    pub(crate) async fn until_reset(&self) {
        let ended_in_order = self.reset.clone().wait_for(|reset| *reset).await.is_err();
        if ended_in_order {
            pending().await
        }
    }

    /// Whether nothing more can be sent.
    pub(crate) fn is_reset(&self) -> bool {
        !self.connection.table().open.get(&self.id).is_some_and(|entry| entry.ours)
    }
}
