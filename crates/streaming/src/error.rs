//! Why the server cannot start, cannot issue a URL, or ends a session.

use std::io;
use std::net::SocketAddr;

use wharf_types::{ErrorKind, Failure};

use crate::spdy::session::SpdyError;
use crate::tls::TlsError;
use crate::websocket::session::WebSocketError;
use crate::wire::WireError;

/// A failed call on the server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is reachable from other machines, and nothing protects the connection.
    #[error(
        "streaming on {address} needs TLS with a client CA: set the three streaming.tls_ files, or listen on a loopback address"
    )]
    Unprotected {
        /// The address.
        address: SocketAddr,
    },
    /// The address cannot be part of a URL.
    #[error(
        "clients cannot connect to streaming URLs on {address}: set streaming.address to one address of this node"
    )]
    Unspecified {
        /// The address.
        address: SocketAddr,
    },
    /// The server cannot listen on the address.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The TLS files cannot be used.
    #[error("cannot set up TLS for streaming")]
    Tls {
        /// Why.
        #[source]
        source: TlsError,
    },
    /// The request can never work as it stands.
    #[error("{problem}")]
    Invalid {
        /// What is wrong and what to do.
        problem: &'static str,
    },
    /// Too many URLs have been issued and not used.
    #[error("{pending} streaming URLs have not been used yet; retry in a minute")]
    TooManyPending {
        /// How many.
        pending: usize,
    },
    /// The kernel returned no random bytes for a token.
    #[error("cannot generate a token for a streaming URL")]
    Random {
        /// Why.
        #[source]
        source: wharf_sys::Error,
    },
}

impl Failure for Error {
    /// The class of the failure.
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Unprotected { .. } | Self::Unspecified { .. } | Self::Tls { .. } | Self::Invalid { .. } => {
                ErrorKind::InvalidArgument
            }
            Self::Listen { .. } => ErrorKind::Unavailable,
            Self::TooManyPending { .. } => ErrorKind::ResourceExhausted,
            Self::Random { .. } => ErrorKind::Internal,
        }
    }
}

/// Why a session ended before its work was done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    /// The connection has ended.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The client violated SPDY.
    #[error(transparent)]
    Spdy(#[from] SpdyError),
    /// The client violated the WebSocket protocol.
    #[error(transparent)]
    WebSocket(#[from] WebSocketError),
    /// The client did not open the streams that it asked for.
    #[error("the client did not open its streams within {after_ms} ms")]
    Creation { after_ms: u128 },
}
