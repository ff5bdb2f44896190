//! Port-forward: many connections into one pod over one connection of a client.
//!
//! Each forwarded connection has two streams: its bytes, and a text for people if it fails. One that fails hurts no
//! other.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use wharf_types::{PodId, chain};

use crate::backend::Backend;
use crate::channel::{Inbound, Outbound};
use crate::descriptor::Descriptor;
use crate::error::SessionError;
use crate::grant::PortForwardGrant;
use crate::pump::{self, ForwardError};
use crate::spdy;
use crate::websocket;
use crate::wire::WireError;

mod pairs;

use pairs::Pairs;

/// How many connections of a session may be on their way into the pod at a time. A client can give up the streams of one at
/// once and open the next ones, while a connection that was begun takes its time.
const CONNECTING_LIMIT: usize = 128;

/// A forwarded connection as its client has it.
struct Forwarded {
    port: u16,
    inbound: Inbound,
    data: Outbound,
    error: Outbound,
}

/// Serves a client over SPDY, which opens a pair of streams for each connection it wants, at any time. Ends with the pod, once
/// what is left of its connections has been sent.
pub(crate) async fn over_spdy<B: Backend>(
    mut streams: mpsc::Receiver<spdy::Stream>,
    backend: Arc<B>,
    pod: PodId,
    creation: Duration,
) -> Result<(), SessionError> {
    let mut pairs = Pairs::new(creation);
    let mut connections = JoinSet::new();
    let begun = Arc::new(Semaphore::new(CONNECTING_LIMIT));
    let (mut pod_ends, mut pod_has_ended) = (pin!(backend.ended(&pod)), false);
    while !(pod_has_ended && connections.is_empty()) {
        tokio::select! {
            () = &mut pod_ends, if !pod_has_ended => pod_has_ended = true,
            stream = streams.recv() => {
                let Some(stream) = stream else { return Err(WireError::Left.into()) };
                if let Some(pair) = pairs.take(stream).await? {
                    connections.spawn(connect(Arc::clone(&backend), pod.clone(), pair, Arc::clone(&begun)));
                }
            }
            half = pairs.expired() => half.refuse("the other stream of the connection did not come in time").await?,
            Some(_) = connections.join_next() => {}
        }
    }
    Ok(())
}

/// Serves a client over the channels of a WebSocket: two for each port that the RPC named.
pub(crate) async fn over_websocket<B: Backend>(
    channels: websocket::Channels,
    backend: Arc<B>,
    grant: PortForwardGrant,
) -> Result<(), SessionError> {
    let mut connections = JoinSet::new();
    let begun = Arc::new(Semaphore::new(CONNECTING_LIMIT));
    for (port, channel) in grant.ports.into_iter().zip((0..=u8::MAX).step_by(2)) {
        let (data, error) = (channels.outbound(channel), channels.outbound(channel + 1));
        for stream in [&data, &error] {
            stream.tell(&port.to_le_bytes()).await?;
        }
        let inbound = channels.inbound(channel);
        let forwarded = Forwarded { port, inbound, data, error };
        connections.spawn(connect(Arc::clone(&backend), grant.pod.clone(), forwarded, Arc::clone(&begun)));
    }
    while connections.join_next().await.is_some() {}
    Ok(())
}

/// Connects a client to a port, stays until both sides have ended the connection, and tells the client what went wrong.
async fn connect<B: Backend>(backend: Arc<B>, pod: PodId, forwarded: Forwarded, begun: Arc<Semaphore>) {
    let Forwarded { port, inbound, data, error } = forwarded;
    let place = tokio::select! {
        place = begun.acquire() => place,
        // The client left it before its turn.
        () = data.until_reset() => return drop(error.finish().await),
    };
    let connected = socket(&*backend, &pod, port).await;
    drop(place);
    let failure = match connected {
        Ok(socket) => match pump::forward(inbound, &data, &socket).await {
            Ok(()) | Err(ForwardError::Send(_)) => None,
            Err(broken) => Some(chain(&broken)),
        },
        Err(why) => Some(why),
    };
    let told = match failure {
        None => error.finish().await,
        Some(why) => refuse(&error, Some(&data), &format!("cannot forward to port {port}: {why}")).await,
    };
    if let Err(error) = told {
        tracing::debug!(%error, port, "a forwarded connection ended with its session");
    }
}

async fn socket<B: Backend>(backend: &B, pod: &PodId, port: u16) -> Result<Descriptor, String> {
    let socket = backend.connect(pod, port).await.map_err(|error| chain(&*error))?;
    Descriptor::new(socket).map_err(|error| error.to_string())
}

/// Ends a connection with a text for people. Only the data is reset: a reset could overtake the text.
async fn refuse(error: &Outbound, data: Option<&Outbound>, why: &str) -> Result<(), WireError> {
    error.conclude(why).await?;
    match data {
        Some(data) => data.reset().await,
        None => Ok(()),
    }
}
