//! Port-forward: many connections to one pod over one connection of a client.
//!
//! Each forwarded connection has two streams, one for data and one for an error message. A failure does not affect the
//! other connections.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use tokio::task::JoinSet;
use wharf_types::{PodId, chain};

use crate::backend::Backend;
use crate::channel::{Inbound, Outbound};
use crate::descriptor::Descriptor;
use crate::error::SessionError;
use crate::pump::{self, ForwardError};
use crate::spdy;
use crate::websocket;
use crate::wire::WireError;

mod pairs;

use pairs::Pairs;

/// How many connections of a session into the pod may be in the making at a time. A client can reset their streams and
/// open new ones at once, while a connection attempt takes its time.
const CONNECTING_LIMIT: usize = 128;

/// A forwarded connection, as its client sees it.
struct Forwarded {
    port: u16,
    inbound: Inbound,
    data: Outbound,
    error: Outbound,
}

/// Forwards the connections of one session into its pod.
pub(crate) struct Forwarder<B> {
    backend: Arc<B>,
    pod: PodId,
    /// Permits for connections in the making.
    begun: Semaphore,
    /// Permits for the connections of all sessions.
    all: Arc<Semaphore>,
}

/// Serves a client over SPDY. The client opens a pair of streams for each connection, at any time. The session ends
/// with the pod, once what is left of its connections has been sent.
pub(crate) async fn over_spdy<B: Backend>(
    mut streams: mpsc::Receiver<spdy::Stream>,
    forwarder: Arc<Forwarder<B>>,
    creation: Duration,
) -> Result<(), SessionError> {
    let mut pairs = Pairs::new(creation);
    let mut connections = JoinSet::new();
    let (mut pod_ends, mut pod_has_ended) = (pin!(forwarder.backend.ended(&forwarder.pod)), false);
    while !(pod_has_ended && connections.is_empty()) {
        tokio::select! {
            () = &mut pod_ends, if !pod_has_ended => pod_has_ended = true,
            stream = streams.recv() => {
                let Some(stream) = stream else { return Err(WireError::Left.into()) };
                if let Some(pair) = pairs.take(stream).await? {
                    connections.spawn(Arc::clone(&forwarder).connect(pair));
                }
            }
            half = pairs.expired() => half.refuse("the other stream of the connection did not come in time").await?,
            Some(_) = connections.join_next() => {}
        }
    }
    Ok(())
}

/// Serves a client over a WebSocket with two channels for each port that the RPC named.
pub(crate) async fn over_websocket<B: Backend>(
    channels: websocket::Channels,
    forwarder: Arc<Forwarder<B>>,
    ports: Vec<u16>,
) -> Result<(), SessionError> {
    let mut connections = JoinSet::new();
    for (port, channel) in ports.into_iter().zip((0..=u8::MAX).step_by(2)) {
        let (data, error) = (channels.outbound(channel), channels.outbound(channel + 1));
        for stream in [&data, &error] {
            stream.tell(&port.to_le_bytes()).await?;
        }
        let inbound = channels.inbound(channel);
        connections.spawn(Arc::clone(&forwarder).connect(Forwarded { port, inbound, data, error }));
    }
    while connections.join_next().await.is_some() {}
    Ok(())
}

impl<B: Backend> Forwarder<B> {
    /// `all` has the permits of all sessions.
    pub(crate) fn new(backend: Arc<B>, pod: PodId, all: Arc<Semaphore>) -> Arc<Self> {
        Arc::new(Self { backend, pod, begun: Semaphore::new(CONNECTING_LIMIT), all })
    }

    /// Connects a client to a port, stays until both sides have closed the connection, and tells the client what went
    /// wrong.
    async fn connect(self: Arc<Self>, forwarded: Forwarded) {
        let Forwarded { port, inbound, data, error } = forwarded;
        // Each of the session's connections has a reference, and so has the session itself.
        let others = Arc::strong_count(&self).saturating_sub(2);
        let failure = match self.place(others) {
            Some(_place) => self.carry(port, inbound, &data).await.err(),
            None => Some("as many connections are forwarded as may be at a time".to_owned()),
        };
        let told = match failure {
            None => error.finish().await,
            Some(why) => refuse(&error, Some(&data), &format!("cannot forward to port {port}: {why}")).await,
        };
        if let Err(error) = told {
            tracing::debug!(%error, port, "a forwarded connection ended with its session");
        }
    }

    /// A permit for one more connection of the session, which may not have more connections than there are permits
    /// left.
    fn place(&self, others: usize) -> Option<SemaphorePermit<'_>> {
        if others >= self.all.available_permits() {
            return None;
        }
        self.all.try_acquire().ok()
    }

    /// Moves bytes between a client and a port. An error is a text for people.
    async fn carry(&self, port: u16, inbound: Inbound, data: &Outbound) -> Result<(), String> {
        let begun = tokio::select! {
            begun = self.begun.acquire() => begun,
            // The client gave it up before its turn.
            () = data.until_reset() => return Ok(()),
        };
        let socket = self.backend.connect(&self.pod, port).await.map_err(|error| chain(&*error))?;
        drop(begun);
        let socket = Descriptor::new(socket).map_err(|error| error.to_string())?;
        match pump::forward(inbound, data, &socket).await {
            Ok(()) | Err(ForwardError::Send(_)) => Ok(()),
            Err(broken) => Err(chain(&broken)),
        }
    }
}

/// Ends a connection with a text for people. Only the data stream is reset: a reset could overtake the text.
async fn refuse(error: &Outbound, data: Option<&Outbound>, why: &str) -> Result<(), WireError> {
    error.conclude(why).await?;
    match data {
        Some(data) => data.reset().await,
        None => Ok(()),
    }
}
