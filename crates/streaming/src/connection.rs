//! One connection: it responds to the request, then runs the session that the token grants over the negotiated
//! protocol.
//!
//! A connection that has no valid token gets an error and nothing else. A session is one future: when it is dropped,
//! for whatever reason, everything that it holds is closed.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use wharf_tasks::PendingConnections;
use wharf_types::StreamOptions;
use wharf_types::chain;

use crate::backend::{Backend, BackendError, Session};
use crate::channel::PIECES;
use crate::error::SessionError;
use crate::grant::{Grant, PortForwardGrant};
use crate::hangup::Hangup;
use crate::head::{self, Head, Refusal};
use crate::port_forward::{self, Forwarder};
use crate::remote_command;
use crate::resize::{self, Sizes};
use crate::server::Config;
use crate::sessions::{Full, OpenSessions, Place, Sessions};
use crate::tls::Tls;
use crate::token::Tokens;
use crate::upgrade::{Carrier, Protocol, Service, negotiate};
use crate::wire::{self, Limits, Stream, Wire, WireError};
use crate::{spdy, websocket};

/// How long a request may take, including the TLS handshake before it.
const HEAD_TIME: Duration = Duration::from_secs(10);

/// How long a peer may be silent before the kernel probes it, in seconds.
const KEEPALIVE_S: u32 = 30;

/// How many pieces of all forwarded connections of a session may wait for pods to read them: 4 MiB.
const FORWARDED_PIECES: usize = 256;

/// The same for all sessions together, which limits each when there are many: 64 MiB.
const ALL_FORWARDED_PIECES: usize = 16 * FORWARDED_PIECES;

/// What all connections share.
pub(crate) struct Shared<B> {
    pub(crate) config: Config,
    pub(crate) tls: Option<Arc<Tls>>,
    pub(crate) backend: Arc<B>,
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) sessions: Sessions,
    pub(crate) open: OpenSessions,
    /// Permits for forwarded connections.
    pub(crate) forwarded: Arc<Semaphore>,
    pub(crate) pending: Arc<PendingConnections>,
}

/// Runs a connection from its acceptance to its end. `server` is closed when the server shuts down.
pub(crate) async fn run<B: Backend>(shared: Arc<Shared<B>>, socket: TcpStream, server: watch::Receiver<()>) {
    if let Err(error) = tune(&socket) {
        tracing::debug!(%error, "cannot tune a streaming connection");
    }
    let client = match Hangup::watch(&socket) {
        Ok(client) => client,
        Err(error) => return tracing::warn!(%error, "cannot watch a streaming connection"),
    };
    let request = async {
        let mut stream: Box<dyn Stream> = match &shared.tls {
            Some(tls) => Box::new(tls.acceptor().accept(socket).await.ok()?),
            None => Box::new(socket),
        };
        let (head, rest) = head::read(&mut stream).await?;
        Some((stream, head, rest))
    };
    let mut waiting = shared.pending.enter();
    let request = tokio::select! {
        request = timeout(HEAD_TIME, request) => request.ok().flatten(),
        () = waiting.lost() => None,
    };
    let Some((mut stream, head, rest)) = request else {
        tracing::debug!("a streaming client sent no request in time");
        return;
    };
    let Config { idle, write, heartbeat, .. } = shared.config;
    let limits = Limits { idle, write, heartbeat, client, server };
    let (grant, protocol, answer, _place) = match shared.admit(&head) {
        Ok(admitted) => admitted,
        Err(refusal) => {
            let (receiver, answer) = (wire::split(stream, rest, limits), refusal.to_response());
            // A refused client, too, may stay silent, so its connection counts as pending until it closes.
            tokio::select! {
                () = receiver.hang_up(answer.as_bytes(), &Err(())) => {}
                () = waiting.lost() => {}
            }
            return;
        }
    };
    drop(waiting);
    if let Err(error) = stream.write_all(answer.as_bytes()).await {
        tracing::debug!(%error, "a streaming client disconnected before the response");
        return;
    }
    let path = grant.path();
    let _open = shared.open.enter(grant.purpose());
    match shared.run(grant, protocol, wire::split(stream, rest, limits)).await {
        Ok(()) => tracing::debug!(path, "a streaming session ended"),
        Err(error) => tracing::debug!(path, error = chain(&error), "a streaming session was cut off"),
    }
}

/// What an admitted request gets: its grant, its protocol, the response that says so, and a place among the sessions.
type Admitted = (Grant, Protocol, String, Place);

impl<B: Backend> Shared<B> {
    /// Redeems the request's token and chooses the protocol.
    fn admit(&self, head: &Head) -> Result<Admitted, Refusal> {
        let redeem = |(path, token)| self.tokens.redeem(path, token, Instant::now());
        let Some(grant) = head.path.strip_prefix('/').and_then(|path| path.split_once('/')).and_then(redeem)
        else {
            return Err(Refusal::new("404 Not Found", "no such URL, or it was used or has expired"));
        };
        let place = self.sessions.enter(&grant.id().to_owned()).map_err(|crowded| {
            let mut refusal = Refusal::new("503 Service Unavailable", Full::from(crowded).to_string());
            refusal.headers.push(("Retry-After", "60".into()));
            refusal
        })?;
        let service = match &grant {
            Grant::Exec(_) | Grant::Attach(_) => Service::Command,
            Grant::PortForward(_) => Service::PortForward,
        };
        let (protocol, answer) = negotiate(head, service)?;
        Ok((grant, protocol, answer, place))
    }

    async fn run(
        &self,
        grant: Grant,
        protocol: Protocol,
        receiver: wire::Receiver,
    ) -> Result<(), SessionError> {
        let work = |receiver| self.serve(grant, protocol, receiver);
        match protocol.carrier {
            Carrier::Tunnel => websocket::tunnel::run(receiver, work).await,
            Carrier::Spdy | Carrier::WebSocket(_) => work(receiver).await,
        }
    }

    /// Serves the grant. In a tunnel, the connection is the inner one.
    async fn serve(
        &self,
        grant: Grant,
        protocol: Protocol,
        receiver: wire::Receiver,
    ) -> Result<(), SessionError> {
        let backend = &self.backend;
        match grant {
            Grant::Exec(grant) => {
                let wanted = grant.wanted;
                let start = async |sizes| {
                    let patience = if wanted.terminal { self.config.size } else { Duration::ZERO };
                    backend.exec(grant, resize::first(sizes, patience).await).await
                };
                self.command(protocol, receiver, wanted, start).await
            }
            Grant::Attach(grant) => {
                let wanted = grant.wanted;
                self.command(protocol, receiver, wanted, |_sizes| backend.attach(grant)).await
            }
            Grant::PortForward(grant) => self.port_forward(protocol, receiver, grant).await,
        }
    }

    async fn command<F>(
        &self,
        Protocol { carrier, version }: Protocol,
        receiver: wire::Receiver,
        wanted: StreamOptions,
        start: impl FnOnce(Sizes) -> F,
    ) -> Result<(), SessionError>
    where
        F: Future<Output = Result<Session, BackendError>>,
    {
        let wire = Arc::clone(receiver.wire());
        let start = |sizes| start_until(wire, start(sizes));
        if let Carrier::WebSocket(shape) = carrier {
            let work = |channels| remote_command::over_websocket(channels, wanted, version.status, start);
            return websocket::session::run(receiver, shape, work).await;
        }
        let creation = self.config.creation;
        let work = |streams| remote_command::over_spdy(streams, wanted, version, creation, start);
        // Input that the process does not read holds up only its own session.
        spdy::session::run(receiver, PIECES, Duration::MAX, work).await
    }

    async fn port_forward(
        &self,
        protocol: Protocol,
        receiver: wire::Receiver,
        grant: PortForwardGrant,
    ) -> Result<(), SessionError> {
        let PortForwardGrant { pod, ports } = grant;
        let forwarder = Forwarder::new(Arc::clone(&self.backend), pod, Arc::clone(&self.forwarded));
        let wire = Arc::clone(receiver.wire());
        if let Carrier::WebSocket(shape) = protocol.carrier {
            let work = |channels| until_end(wire, port_forward::over_websocket(channels, forwarder, ports));
            return websocket::session::run(receiver, shape, work).await;
        }
        let creation = self.config.creation;
        let work = |streams| until_end(wire, port_forward::over_spdy(streams, forwarder, creation));
        let pieces = forwarded_pieces(self.sessions.count());
        spdy::session::run(receiver, pieces, self.config.stall, work).await
    }
}

/// How many pieces of all forwarded connections of a session may wait for pods to read them: fewer if there are many
/// sessions.
fn forwarded_pieces(sessions: usize) -> usize {
    (ALL_FORWARDED_PIECES / sessions.max(1)).clamp(PIECES, FORWARDED_PIECES)
}

/// Starts a process. For its client, the process ends when the server does.
async fn start_until(
    wire: Arc<Wire>,
    start: impl Future<Output = Result<Session, BackendError>>,
) -> Result<Session, BackendError> {
    let session = start.await?;
    let exit = Box::pin(async move {
        tokio::select! {
            exit = session.exit => exit,
            () = wire.server_ends() => Err(WireError::Ending.to_string()),
        }
    });
    Ok(Session { exit, ..session })
}

/// Runs some work until the server shuts down.
async fn until_end(
    wire: Arc<Wire>,
    work: impl Future<Output = Result<(), SessionError>>,
) -> Result<(), SessionError> {
    tokio::select! {
        done = work => done,
        () = wire.server_ends() => Err(WireError::Ending.into()),
    }
}

/// Sends small writes at once, and has the kernel detect a peer that has vanished.
fn tune(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    setsockopt(socket, sockopt::KeepAlive, &true)?;
    setsockopt(socket, sockopt::TcpKeepIdle, &KEEPALIVE_S)?;
    setsockopt(socket, sockopt::TcpKeepInterval, &KEEPALIVE_S)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_sessions_have_little_room_each() {
        assert_eq!([0, 1, 16].map(forwarded_pieces), [FORWARDED_PIECES; 3]);
        assert_eq!((forwarded_pieces(64), forwarded_pieces(1024)), (64, PIECES));
    }
}
