//! A client's connection after its upgrade. Only the demultiplexer reads from one half, and all streams write whole
//! frames to the other.
//!
//! Every wait here has a deadline: a write without progress, an idle connection, and the client's closing of the
//! connection at the end.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::hangup::Hangup;

/// How much is read from a client at a time, in bytes.
const READ: usize = 16 * 1024;

/// How long a client may take to close the connection after a violation of the protocol.
const FAREWELL: Duration = Duration::from_secs(5);

/// How long the work on a connection may take to end by itself when the server shuts down.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A byte stream to a client.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Why a connection has ended or must end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    /// The client closed the connection.
    #[error("the client disconnected")]
    Left,
    /// The connection broke.
    #[error("the connection was lost")]
    Broken {
        #[source]
        source: io::Error,
    },
    /// The client accepts no bytes.
    #[error("the client read nothing for {after_ms} ms")]
    Stuck { after_ms: u128 },
    /// Nothing has happened.
    #[error("the session was idle for {after_ms} ms")]
    Idle { after_ms: u128 },
    /// A frame was cut off, so nothing can follow it.
    #[error("a frame was cut off")]
    Torn,
    /// The server is shutting down.
    #[error("the container runtime is being stopped or restarted")]
    Ending,
}

/// What ends a connection that does not end by itself.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// How long it may be idle.
    pub(crate) idle: Duration,
    /// How long the client may accept no bytes.
    pub(crate) write: Duration,
    /// How long a client gets no frame while nothing is read from it, when its pings may be unread.
    pub(crate) heartbeat: Duration,
    /// Detects that the client has left.
    pub(crate) client: Hangup,
    /// Closed when the server shuts down.
    pub(crate) server: watch::Receiver<()>,
}

/// The half for writing.
pub(crate) struct Wire {
    /// Held while a frame is written, so that frames do not mix.
    half: Mutex<Half>,
    limits: Limits,
    start: Instant,
    /// When a frame last passed in either direction, in milliseconds since the start.
    active_ms: AtomicU64,
}

struct Half {
    io: WriteHalf<Box<dyn Stream>>,
    /// Whether a frame was begun and not finished, because its writer was dropped.
    torn: bool,
}

/// The half for reading.
pub(crate) struct Receiver {
    io: ReadHalf<Box<dyn Stream>>,
    wire: Arc<Wire>,
    /// What has been read and not decoded yet.
    pub(crate) buffer: BytesMut,
}

/// Takes over a connection from which some bytes may have been read already.
pub(crate) fn split(stream: Box<dyn Stream>, read_already: BytesMut, limits: Limits) -> Receiver {
    let (reading, writing) = tokio::io::split(stream);
    let half = Mutex::new(Half { io: writing, torn: false });
    let wire = Wire { half, limits, start: Instant::now(), active_ms: AtomicU64::new(0) };
    Receiver { io: reading, wire: Arc::new(wire), buffer: read_already }
}

impl Wire {
    /// The connection's limits.
    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Writes a whole frame.
    pub(crate) async fn send(&self, frame: &[u8]) -> Result<(), WireError> {
        self.write(frame).await?;
        self.touch();
        Ok(())
    }

    /// Waits for someone to take what the client sent. Nothing is read from the client in the meantime, so its leaving
    /// is detected from its socket. At intervals it gets a frame that shows that the connection is alive, if there is
    /// such a frame.
    pub(crate) async fn hold<T>(
        &self,
        taken: impl Future<Output = T>,
        heartbeat: Option<&[u8]>,
    ) -> Result<T, WireError> {
        let (mut taken, mut left) = (pin!(taken), pin!(self.limits.client.happened()));
        loop {
            tokio::select! {
                biased;
                done = &mut taken => return Ok(done),
                () = &mut left => return Err(WireError::Left),
                () = sleep(self.limits.heartbeat), if heartbeat.is_some() => {
                    self.write(heartbeat.unwrap_or_default()).await?;
                }
            }
        }
    }

    async fn write(&self, frame: &[u8]) -> Result<(), WireError> {
        let mut half = self.half.lock().await;
        if half.torn {
            return Err(WireError::Torn);
        }
        half.torn = true;
        let mut rest = frame;
        while !rest.is_empty() {
            match self.in_time(half.io.write(rest)).await? {
                0 => return Err(WireError::Left),
                written => rest = &rest[written..],
            }
        }
        self.in_time(half.io.flush()).await?;
        half.torn = false;
        Ok(())
    }

    async fn in_time<T>(&self, io: impl Future<Output = io::Result<T>>) -> Result<T, WireError> {
        match timeout(self.limits.write, io).await {
            Ok(done) => done.map_err(|source| WireError::Broken { source }),
            Err(_elapsed) => Err(WireError::Stuck { after_ms: self.limits.write.as_millis() }),
        }
    }

    /// Resolves when the connection must end: the server shuts down, or the connection has been idle too long.
    pub(crate) async fn over(&self) -> WireError {
        let ending = async {
            self.server_ends().await;
            sleep(LAST_WORDS).await;
        };
        tokio::select! {
            () = ending => WireError::Ending,
            idle = self.idle() => idle,
        }
    }

    /// Resolves when the server shuts down.
    pub(crate) async fn server_ends(&self) {
        // Nothing is ever sent: the only change is that the sender is dropped.
        drop(self.limits.server.clone().changed().await);
    }

    async fn idle(&self) -> WireError {
        let mut active = self.active();
        loop {
            sleep_until(active + self.limits.idle).await;
            let latest = self.active();
            if latest == active {
                return WireError::Idle { after_ms: self.limits.idle.as_millis() };
            }
            active = latest;
        }
    }

    fn touch(&self) {
        let passed = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.active_ms.store(passed, Ordering::Relaxed);
    }

    fn active(&self) -> Instant {
        self.start + Duration::from_millis(self.active_ms.load(Ordering::Relaxed))
    }
}

impl Receiver {
    /// The half for writing.
    pub(crate) fn wire(&self) -> &Arc<Wire> {
        &self.wire
    }

    /// Adds at least one byte to the buffer.
    pub(crate) async fn fill(&mut self) -> Result<(), WireError> {
        self.buffer.reserve(READ);
        match self.io.read_buf(&mut self.buffer).await {
            Ok(0) => Err(WireError::Left),
            Ok(_) => {
                self.wire.touch();
                Ok(())
            }
            Err(source) => Err(WireError::Broken { source }),
        }
    }

    /// Ends the connection: sends a last frame, and waits for the client to close. If this side closed first with bytes
    /// unread, the kernel would reset the connection, and the last frame would be lost.
    ///
    /// After an orderly end the client has as long as for any write: the user may have paused a pager.
    pub(crate) async fn hang_up<E>(mut self, farewell: &[u8], end: &Result<(), E>) {
        let time = if end.is_ok() { self.wire.limits.write } else { FAREWELL };
        let hang_up = async {
            self.wire.send(farewell).await?;
            let broken = |source| WireError::Broken { source };
            self.wire.half.lock().await.io.shutdown().await.map_err(broken)?;
            loop {
                self.buffer.clear();
                self.fill().await?;
            }
        };
        match timeout(time, hang_up).await {
            Ok(Ok::<Infallible, _>(never)) => match never {},
            Ok(Err(WireError::Left)) => {}
            Ok(Err(error)) => tracing::debug!(%error, "a client did not close its connection cleanly"),
            Err(_elapsed) => tracing::debug!("a client did not close its connection in time"),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use tokio::net::{TcpListener, TcpStream};

    /// A connection, and the client's end of it.
    pub(crate) async fn connected() -> (Arc<Wire>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (socket, _address) = listener.accept().await.unwrap();
        let limit = Duration::from_secs(60);
        let limits = Limits {
            idle: limit,
            write: limit,
            heartbeat: limit,
            client: Hangup::watch(&socket).unwrap(),
            server: watch::channel(()).1,
        };
        let receiver = split(Box::new(socket), BytesMut::new(), limits);
        (Arc::clone(receiver.wire()), client)
    }
}
