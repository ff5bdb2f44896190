//! The server: it listens, accepts connections and issues URLs.
//!
//! A URL contains a token, and whoever uses the token first has the session: there is no other authentication beyond
//! TLS. The server knows nothing of pods; a [`Backend`] gives it descriptors.

use std::convert::Infallible;
use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use wharf_tasks::PendingConnections;

use crate::backend::Backend;
use crate::connection::{self, Shared};
use crate::error::Error;
use crate::grant::{AttachGrant, ExecGrant, Grant, PortForwardGrant};
use crate::sessions::{self, OpenSessions};
use crate::tls::{Tls, TlsFiles};
use crate::token::{PENDING_LIMIT, Tokens};

/// How long nothing is accepted after an accept has failed, which happens when descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How many connections may be in the TLS handshake, sending their request, or closing after a refusal.
const PENDING_PLACES: usize = 1024;

const _: () = assert!(PENDING_PLACES > PENDING_LIMIT, "clients that use all URLs in one moment have room");

/// How long sessions may take to end when the server shuts down.
const GOODBYE: Duration = Duration::from_secs(3);

/// The server's address and its limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where to listen; port 0 means any. An address other than loopback needs TLS.
    pub address: SocketAddr,
    /// The TLS files, if TLS is to be used.
    pub tls: Option<TlsFiles>,
    /// How often the TLS files are read again.
    pub reload: Duration,
    /// How long a session may be idle in both directions.
    pub idle: Duration,
    /// How long a client may take to open its streams.
    pub creation: Duration,
    /// How long a command waits for its terminal's size, which a client sends once its streams are open, a round trip
    /// later. A client that sends none is delayed by this.
    pub size: Duration,
    /// How long a client may accept none of the bytes sent to it. The user may have paused a pager.
    pub write: Duration,
    /// How long a WebSocket client whose input is stuck gets no frame: clients give up after a minute.
    pub heartbeat: Duration,
    /// How long forwarded connections that a pod does not read may hold up the others of their session, once 4 MiB are
    /// waiting. It is less than the half minute after which clients give up a stream without a reply.
    pub stall: Duration,
    /// How many sessions there may be at a time.
    pub sessions: usize,
    /// How many of them may be with one container, or with one pod's ports.
    pub sessions_each: usize,
    /// How many connections all sessions may forward at a time. Each costs the pod, the client and this process some
    /// memory.
    pub forwards: usize,
}

impl Default for Config {
    /// Loopback, any port, no TLS, 1 minute, 4 hours, 30 seconds, 250 milliseconds, 30 minutes, 15 seconds, 20 seconds,
    /// 1024 sessions, 256 each, and 2048 forwarded connections.
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

impl Config {
    /// Finds out whether a server could be made with this, without listening. Blocking: it reads the TLS files.
    ///
    /// # Errors
    /// The address cannot be part of a URL or is unprotected, or TLS cannot be set up.
    pub fn check(&self) -> Result<(), Error> {
        self.load().map(drop)
    }

    fn load(&self) -> Result<Option<Tls>, Error> {
        let address = self.address;
        if address.ip().is_unspecified() {
            return Err(Error::Unspecified { address });
        }
        if self.tls.is_none() && !address.ip().is_loopback() {
            return Err(Error::Unprotected { address });
        }
        self.tls.as_ref().map(Tls::load).transpose().map_err(|source| Error::Tls { source })
    }
}

/// A listening server.
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

/// Issues the URLs of a server.
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
    /// The scheme, the address and the actual port.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// A URL for one exec, valid for one use within one minute.
    ///
    /// # Errors
    /// The flags contradict each other, or too many URLs are unused.
    pub fn exec(&self, grant: ExecGrant) -> Result<String, Error> {
        self.issue(Grant::Exec(grant))
    }

    /// A URL for one attach, valid for one use within one minute.
    ///
    /// # Errors
    /// Those of [`Self::exec`].
    pub fn attach(&self, grant: AttachGrant) -> Result<String, Error> {
        self.issue(Grant::Attach(grant))
    }

    /// A URL for one port-forward, valid for one use within one minute.
    ///
    /// # Errors
    /// There are more ports than channels, or too many URLs are unused.
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
    /// Starts to listen. Reads the TLS files, which blocks for a moment.
    ///
    /// # Errors
    /// The server cannot listen on the address, the address cannot be part of a URL or is unprotected, or TLS cannot be
    /// set up.
    pub async fn bind(config: Config, backend: B) -> Result<Self, Error> {
        let address = config.address;
        let tls = config.load()?;
        let listen = async {
            let listener = TcpListener::bind(address).await?;
            let address = listener.local_addr()?;
            Ok((listener, address))
        };
        let (listener, bound) = listen.await.map_err(|source| Error::Listen { address, source })?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let tokens = Arc::new(Tokens::default());
        let urls = Urls { base: format!("{scheme}://{bound}").into(), tokens: Arc::clone(&tokens) };
        let sessions = sessions::bounded(config.sessions, config.sessions_each);
        let (tls, backend) = (tls.map(Arc::new), Arc::new(backend));
        let forwarded = Arc::new(Semaphore::new(config.forwards));
        let pending = PendingConnections::new(PENDING_PLACES);
        let shared = Shared {
            config,
            tls,
            backend,
            tokens,
            sessions,
            open: OpenSessions::default(),
            forwarded,
            pending,
        };
        Ok(Self { listener, shared: Arc::new(shared), urls })
    }

    /// What issues the URLs.
    #[must_use]
    pub fn urls(&self) -> Urls {
        self.urls.clone()
    }

    /// How many sessions are open from now on.
    #[must_use]
    pub fn open(&self) -> OpenSessions {
        self.shared.open.clone()
    }

    /// Serves until `shutdown` resolves. Then every session is told to end and has a few seconds to do so.
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
