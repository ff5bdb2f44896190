//! The server: it listens and hands out URLs.

use std::convert::Infallible;
use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::backend::Backend;
use crate::connection::{self, Shared};
use crate::error::Error;
use crate::grant::{AttachGrant, ExecGrant, Grant, PortForwardGrant};
use crate::sessions::Sessions;
use crate::tls::{Tls, TlsFiles};
use crate::token::Tokens;

/// How long nothing is accepted after that has failed, which happens when descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long sessions may take to end when the server does.
const GOODBYE: Duration = Duration::from_secs(3);

/// How the server listens, and its bounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where to listen; port 0 means any. Other addresses than loopback need TLS.
    pub address: SocketAddr,
    /// The files of TLS, if it is to be spoken.
    pub tls: Option<TlsFiles>,
    /// How often the files of TLS are read anew.
    pub reload: Duration,
    /// How long a session may last without anything passing in either direction.
    pub idle: Duration,
    /// How long a client may take to open its streams.
    pub creation: Duration,
    /// How long a command waits for the size of its terminal, which a client tells when its streams are there: after the
    /// way to it and back. One that does not is slower by this.
    pub size: Duration,
    /// How long a client may take no byte of what is sent to it. Someone may have paused a pager.
    pub write: Duration,
    /// How long a client of a WebSocket whose input is stuck is left without a word: clients give up after a minute.
    pub heartbeat: Duration,
    /// How long forwarded connections whose pod does not read may hold up the others of their session, once 4 MiB wait. Less
    /// than the half minute after which clients give up a stream that gets no reply.
    pub stall: Duration,
    /// How many sessions there may be.
    pub sessions: usize,
    /// How many of them may be with one container, or one pod's ports.
    pub sessions_each: usize,
    /// How many connections all sessions may forward at a time. Each costs its pod, its client and this process some memory.
    pub forwards: usize,
}

impl Default for Config {
    /// Loopback, any port, no TLS, 1 minute, 4 hours, 30 seconds, 250 milliseconds, 30 minutes, 15 seconds, 20 seconds, 1024 sessions,
    /// 256 each, and 2048 forwarded connections.
    fn default() -> Self {
        Self {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            tls: None,
            reload: Duration::from_mins(1),
            idle: Duration::from_hours(4),
            creation: Duration::from_secs(30),
            size: Duration::from_millis(250),
            write: Duration::from_mins(30),
            heartbeat: Duration::from_secs(15),
            stall: Duration::from_secs(20),
            sessions: 1024,
            sessions_each: 256,
            forwards: 2048,
        }
    }
}

/// A server that listens.
pub struct Server<B> {
    listener: TcpListener,
    shared: Arc<Shared<B>>,
    urls: Urls,
}

impl<B> std::fmt::Debug for Server<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("urls", &self.urls).finish_non_exhaustive()
    }
}

/// Hands out the URLs of a server.
#[derive(Clone)]
pub struct Urls {
    base: Arc<str>,
    tokens: Arc<Tokens>,
}

impl std::fmt::Debug for Urls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Urls").field("base", &self.base).finish_non_exhaustive()
    }
}

impl Urls {
    /// The scheme, the address and the real port.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// A URL for one exec, good for one use within one minute.
    ///
    /// # Errors
    /// If the flags make no sense together, or too many URLs wait to be used.
    pub fn exec(&self, grant: ExecGrant) -> Result<String, Error> {
        self.issue(Grant::Exec(grant))
    }

    /// A URL for one attach, good for one use within one minute.
    ///
    /// # Errors
    /// As for [`Self::exec`].
    pub fn attach(&self, grant: AttachGrant) -> Result<String, Error> {
        self.issue(Grant::Attach(grant))
    }

    /// A URL for one port-forward, good for one use within one minute.
    ///
    /// # Errors
    /// If more ports are named than there are channels for, or too many URLs wait to be used.
    pub fn port_forward(&self, grant: PortForwardGrant) -> Result<String, Error> {
        self.issue(Grant::PortForward(grant))
    }

    fn issue(&self, grant: Grant) -> Result<String, Error> {
        grant.check()?;
        let path = grant.path();
        Ok(format!("{}/{path}/{}", self.base, self.tokens.issue(grant, Instant::now())?))
    }
}

impl<B: Backend> Server<B> {
    /// Listens. Reads the files of TLS, which blocks for a moment.
    ///
    /// # Errors
    /// If the address can't be listened on, can't stand in a URL or is unprotected, or if TLS can't be set up.
    pub async fn bind(config: Config, backend: B) -> Result<Self, Error> {
        let address = config.address;
        if address.ip().is_unspecified() {
            return Err(Error::Unspecified { address });
        }
        if config.tls.is_none() && !address.ip().is_loopback() {
            return Err(Error::Unprotected { address });
        }
        let tls = config.tls.as_ref().map(Tls::load).transpose().map_err(|source| Error::Tls { source })?;
        let listen = async {
            let listener = TcpListener::bind(address).await?;
            let address = listener.local_addr()?;
            Ok((listener, address))
        };
        let (listener, bound) = listen.await.map_err(|source| Error::Listen { address, source })?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let tokens = Arc::new(Tokens::default());
        let urls = Urls { base: format!("{scheme}://{bound}").into(), tokens: Arc::clone(&tokens) };
        let sessions = Sessions::new(config.sessions, config.sessions_each);
        let (tls, backend) = (tls.map(Arc::new), Arc::new(backend));
        let forwarded = Arc::new(Semaphore::new(config.forwards));
        let shared = Shared { config, tls, backend, tokens, sessions, forwarded, pending: Arc::default() };
        Ok(Self { listener, shared: Arc::new(shared), urls })
    }

    /// What hands out the URLs.
    #[must_use]
    pub fn urls(&self) -> Urls {
        self.urls.clone()
    }

    /// Serves until `shutdown` resolves. Then every session is told to end, and has a few seconds for it.
    pub async fn serve(self, shutdown: impl Future<Output = ()> + Send) {
        let (ending, server) = watch::channel(());
        let mut connections = JoinSet::new();
        let accept = accept(&self.listener, |socket| {
            connections.spawn(connection::run(Arc::clone(&self.shared), socket, server.clone()));
            while connections.try_join_next().is_some() {}
        });
        let tls = async {
            match self.shared.tls.clone() {
                Some(tls) => tls.keep_fresh(self.shared.config.reload).await,
                None => pending().await,
            }
        };
        tokio::select! {
            () = shutdown => {}
            never = accept => match never {},
            never = tls => match never {},
        }
        drop((self.listener, ending));
        let all = async { while connections.join_next().await.is_some() {} };
        if timeout(GOODBYE, all).await.is_err() {
            tracing::info!("stopped waiting for the clients of streaming sessions to disconnect");
        }
    }
}

async fn accept(listener: &TcpListener, mut serve: impl FnMut(TcpStream)) -> Infallible {
    loop {
        match listener.accept().await {
            Ok((socket, _address)) => serve(socket),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a streaming connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
