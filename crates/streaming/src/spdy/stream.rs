//! One stream of a SPDY connection as its owner has it, and the table of those that are open.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::channel::{Chunk, Inbound, PIECES, SendError};
use crate::spdy::frame::{self, Reset};
use crate::spdy::headers::{self, Headers};
use crate::wire::{Wire, WireError};

/// How many streams of a connection may be open at a time: two for each forwarded connection.
const OPEN_LIMIT: usize = 1024;

/// What the demultiplexer and all streams of a connection share.
pub(crate) struct Connection {
    wire: Arc<Wire>,
    /// Whether our zlib stream has begun. Locked while a reply is written, because replies have an order.
    replied: tokio::sync::Mutex<bool>,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    open: HashMap<u32, Entry>,
    last: u32,
}

/// A stream that is open in at least one direction.
struct Entry {
    /// Where the client's bytes go, until it ends its direction.
    theirs: Option<mpsc::Sender<Bytes>>,
    /// Whether our direction is open.
    ours: bool,
}

/// A stream that a client opened. It has to be accepted or reset.
pub(crate) struct Stream {
    pub(crate) headers: Headers,
    pub(crate) inbound: Inbound,
    pub(crate) outlet: Outlet,
}

/// Our direction of a stream.
pub(crate) struct Outlet {
    connection: Arc<Connection>,
    id: u32,
}

impl Connection {
    pub(crate) fn new(wire: Arc<Wire>) -> Arc<Self> {
        let replied = tokio::sync::Mutex::new(false);
        Arc::new(Self { wire, replied, table: Mutex::default() })
    }

    /// Takes a new stream into the table.
    pub(crate) fn open(self: &Arc<Self>, id: u32, headers: Headers) -> Result<Stream, Reset> {
        let mut table = self.table();
        if id.is_multiple_of(2) || id <= table.last {
            return Err(Reset::Protocol);
        }
        table.last = id;
        if table.open.len() >= OPEN_LIMIT {
            return Err(Reset::Refused);
        }
        let (sender, inbound) = mpsc::channel(PIECES);
        table.open.insert(id, Entry { theirs: Some(sender), ours: true });
        Ok(Stream { headers, inbound, outlet: Outlet { connection: Arc::clone(self), id } })
    }

    /// Where the client's bytes of a stream go; `None` if it is not open.
    pub(crate) fn inbound(&self, id: u32) -> Option<mpsc::Sender<Bytes>> {
        self.table().open.get(&id)?.theirs.clone()
    }

    /// The client ended its direction.
    pub(crate) fn ended_by_client(&self, id: u32) {
        self.change(id, |entry| entry.theirs = None);
    }

    /// A stream is over in both directions.
    pub(crate) fn forget(&self, id: u32) {
        self.table().open.remove(&id);
    }

    /// Gives up a stream in both directions.
    pub(crate) async fn reset(&self, id: u32, why: Reset) -> Result<(), WireError> {
        self.forget(id);
        self.wire.send(&frame::rst_stream(id, why)).await
    }

    /// Echoes a ping.
    pub(crate) async fn ping(&self, id: u32) -> Result<(), WireError> {
        self.wire.send(&frame::ping(id)).await
    }

    /// The last stream that was opened.
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
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Outlet {
    /// The stream's number.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// Tells the client that the stream is taken.
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

    /// Ends our direction; nothing if it is ended.
    pub(crate) async fn finish(&self) -> Result<(), WireError> {
        if self.is_reset() {
            return Ok(());
        }
        self.connection.change(self.id, |entry| entry.ours = false);
        self.connection.wire.send(&frame::fin(self.id)).await
    }

    /// Gives up the stream in both directions; nothing if it is over.
    pub(crate) async fn reset(&self, why: Reset) -> Result<(), WireError> {
        if !self.connection.table().open.contains_key(&self.id) {
            return Ok(());
        }
        self.connection.reset(self.id, why).await
    }

    /// Whether nothing can be sent any more.
    pub(crate) fn is_reset(&self) -> bool {
        !self.connection.table().open.get(&self.id).is_some_and(|entry| entry.ours)
    }
}
