//! The errors of one request and of a pull as a whole.

use std::fmt;
use std::time::Duration;

use wharf_images::manifest::ManifestError;
use wharf_images::{StoreError, UnpackError};
use wharf_tasks::ThreadError;
use wharf_types::{Digest, ErrorKind, Failure, Reference};

use crate::hosts::HostsError;

/// The cause of a failed request, from the HTTP or TLS library.
pub(crate) type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why one host did not serve a request. No message contains a query string or a secret.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No connection could be made: no address, or it was refused, or the TLS handshake failed.
    #[error("cannot connect to {host}")]
    Connect {
        /// Host and port.
        host: String,
        /// The cause.
        #[source]
        source: Cause,
    },
    /// TLS could not be agreed on: one side does not trust the other, or the host does not speak it.
    #[error("cannot establish TLS with {host}: {advice}")]
    Tls {
        /// Host and port.
        host: String,
        /// What the reader can do about it.
        advice: &'static str,
        /// The cause.
        #[source]
        source: Cause,
    },
    /// The connection broke, or the response is not HTTP within the limits.
    #[error("the connection to {host} was lost during the response")]
    Broken {
        /// Host and port.
        host: String,
        /// The cause.
        #[source]
        source: Cause,
    },
    /// No byte arrived within the stall timeout.
    #[error("{host} sent nothing for {after_ms} ms")]
    Stalled {
        /// Host and port.
        host: String,
        /// The timeout.
        after_ms: u128,
    },
    /// Bytes arrive, but below the lowest rate allowed.
    #[error("{host} sent fewer than {floor_bytes} bytes per second")]
    Slow {
        /// Host and port.
        host: String,
        /// The lowest rate allowed, in bytes per second.
        floor_bytes: u64,
    },
    /// So little arrives that the place is another pull's, which has none.
    #[error(
        "{host} sent fewer than {floor_bytes} bytes per second, and other pulls wait for the place of this download"
    )]
    Overtaken {
        /// Host and port.
        host: String,
        /// The lowest rate allowed while others wait, in bytes per second.
        floor_bytes: u64,
    },
    /// The host does not have the object.
    #[error("{host} responded with not found{said}")]
    NotFound {
        /// Host and port.
        host: String,
        /// The registry's own text, shortened; may be empty.
        said: String,
    },
    /// The host refused the credentials, or requires some.
    #[error("{host} denies access ({status}){said}")]
    Denied {
        /// Host and port.
        host: String,
        /// The HTTP status.
        status: u16,
        /// The registry's own text, shortened; may be empty.
        said: String,
    },
    /// Any other unsuccessful response.
    #[error("{host} responded with {status}{said}")]
    Status {
        /// Host and port.
        host: String,
        /// The HTTP status.
        status: u16,
        /// The registry's own text, shortened; may be empty.
        said: String,
        /// How long the host asked to wait.
        retry_after: Option<Duration>,
    },
    /// A document is longer than its limit.
    #[error("{host} sent more than the {limit_bytes} bytes allowed")]
    TooLarge {
        /// Host and port.
        host: String,
        /// The limit.
        limit_bytes: u64,
    },
    /// The host announces or sends a number of bytes that differs from the descriptor's size.
    #[error("{host} sent at least {actual_bytes} bytes, but the manifest says {expected_bytes}")]
    WrongLength {
        /// Host and port.
        host: String,
        /// The descriptor's size.
        expected_bytes: u64,
        /// The announced length, or the number of bytes received before the client closed the connection.
        actual_bytes: u64,
    },
    /// The response ended properly before all bytes had arrived.
    #[error("{host} ended its response after {actual_bytes} of {expected_bytes} bytes")]
    Truncated {
        /// Host and port.
        host: String,
        /// The descriptor's size.
        expected_bytes: u64,
        /// How many arrived.
        actual_bytes: u64,
    },
    /// The bytes do not have the requested digest.
    #[error("{host} sent content with digest {actual} instead of {expected}")]
    WrongDigest {
        /// Host and port.
        host: String,
        /// The requested or announced digest.
        expected: Digest,
        /// The digest of the received bytes.
        actual: Digest,
    },
    /// A header is missing or contradicts the request.
    #[error("the response of {host} {reason}")]
    Malformed {
        /// Host and port.
        host: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A redirect that is not followed.
    #[error("{host} redirects, but the target {reason}")]
    Redirect {
        /// Host and port of the sender of the redirect.
        host: String,
        /// Why it is not followed.
        reason: &'static str,
    },
    /// The token host that the registry names must not be asked.
    #[error("{host} names a token address that {reason}")]
    Realm {
        /// The registry.
        host: String,
        /// What is wrong with the address.
        reason: &'static str,
    },
    /// The token host did not issue a token.
    #[error("cannot get a token for {host}")]
    Token {
        /// The registry.
        host: String,
        /// The token host's error.
        #[source]
        source: Box<FetchError>,
    },
    /// The host denies access, and the credentials were withheld from the token host that it names.
    #[error(
        "the credentials were not sent to {token_host}, which issues the tokens of {host}: it is in another domain; if \
         both are yours, set `\"{host}\" = [\"{token_host}\"]` in [registry.token_hosts] of wharfd's configuration"
    )]
    Withheld {
        /// The registry.
        host: String,
        /// Its token host.
        token_host: String,
        /// The host's response.
        #[source]
        source: Box<FetchError>,
    },
    /// The document is not a manifest.
    #[error("the manifest that {host} sent cannot be used")]
    Document {
        /// Host and port.
        host: String,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// The bytes of a layer are not the layer that the image lists.
    #[error("the layer that {host} sent cannot be used")]
    Layer {
        /// Host and port.
        host: String,
        /// Why.
        #[source]
        source: Box<UnpackError>,
    },
}

impl Failure for FetchError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Connect { .. }
            | Self::Tls { .. }
            | Self::Broken { .. }
            | Self::Stalled { .. }
            | Self::Slow { .. }
            | Self::Overtaken { .. }
            | Self::Status { .. } => ErrorKind::Unavailable,
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Denied { .. } | Self::Realm { .. } => ErrorKind::PermissionDenied,
            Self::TooLarge { .. }
            | Self::WrongLength { .. }
            | Self::Truncated { .. }
            | Self::WrongDigest { .. }
            | Self::Malformed { .. }
            | Self::Redirect { .. } => ErrorKind::DataLoss,
            Self::Layer { source, .. } => source.kind(),
            Self::Token { source, .. } | Self::Withheld { source, .. } => source.kind(),
            Self::Document { source, .. } => source.kind(),
        }
    }
}

impl FetchError {
    /// Whether the same request to the same host is likely to succeed a little later.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Broken { .. } | Self::Stalled { .. } | Self::Slow { .. } | Self::Truncated { .. } => true,
            Self::Status { status, .. } => *status == 429 || *status >= 500,
            Self::Token { source, .. } | Self::Withheld { source, .. } => source.is_passing(),
            _ => false,
        }
    }

    /// Whether the error shows that the host speaks the scheme of the request. A TLS server answers plain HTTP with
    /// 400, if at all.
    pub(crate) fn is_answer(&self) -> bool {
        !matches!(
            self,
            Self::Connect { .. }
                | Self::Tls { .. }
                | Self::Broken { .. }
                | Self::Stalled { .. }
                | Self::Status { status: 400, .. }
        )
    }

    /// How long the host asked to wait.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            Self::Token { source, .. } | Self::Withheld { source, .. } => source.retry_after(),
            _ => None,
        }
    }
}

/// The failures of all hosts that were asked, in order. Its text has all of them, each with its causes.
#[derive(Debug, Default)]
pub struct Failures(pub(crate) Vec<FetchError>);

impl Failures {
    /// The failures, in the order of the requests.
    #[must_use]
    pub fn all(&self) -> &[FetchError] {
        &self.0
    }

    /// The class of the last failure: the registry itself is asked after its mirrors.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.last().map_or(ErrorKind::FailedPrecondition, Failure::kind)
    }
}

impl fmt::Display for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("hosts.toml leaves no host that may be asked");
        }
        for (at, failure) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{failure}")?;
            let mut cause = std::error::Error::source(failure);
            while let Some(error) = cause {
                write!(f, ": {error}")?;
                cause = error.source();
            }
        }
        Ok(())
    }
}

/// A stage of a pull.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// From the reference to a manifest or an index.
    Resolve,
    /// The manifest of this platform.
    Manifest,
    /// The image's config.
    Config,
    /// A layer.
    Layer {
        /// Its number, from 1.
        number: usize,
        /// How many there are.
        count: usize,
        /// The blob's digest.
        digest: Digest,
    },
    /// The image's record.
    Commit,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resolve => f.write_str("resolve"),
            Self::Manifest => f.write_str("manifest"),
            Self::Config => f.write_str("config"),
            Self::Layer { number, count, digest } => write!(f, "layer {number} of {count}, {digest}"),
            Self::Commit => f.write_str("commit"),
        }
    }
}

/// Why a pull failed. All callers that waited for the pull share it.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The settings of the registry cannot be used.
    #[error("pulling {reference}")]
    Hosts {
        /// The image.
        reference: Reference,
        /// Which file, and why.
        #[source]
        source: HostsError,
    },
    /// No host served what is needed.
    #[error("pulling {reference}: {stage}: {failures}")]
    Fetch {
        /// The image.
        reference: Reference,
        /// What was being fetched.
        stage: Stage,
        /// The failure of each host.
        failures: Failures,
    },
    /// The manifest has no image for this machine.
    #[error("pulling {reference}: {stage}")]
    Manifest {
        /// The image.
        reference: Reference,
        /// The document.
        stage: Stage,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// A layer could not be unpacked, and its sender is not at fault.
    #[error("pulling {reference}: {stage}")]
    Unpack {
        /// The image.
        reference: Reference,
        /// Which layer.
        stage: Stage,
        /// Why.
        #[source]
        source: UnpackError,
    },
    /// There is no thread for what may take long, or it is stuck.
    #[error("pulling {reference}: {stage}")]
    Thread {
        /// The image.
        reference: Reference,
        /// What was about to be done.
        stage: Stage,
        /// Why.
        #[source]
        source: ThreadError,
    },
    /// The store refused the data, or failed.
    #[error("pulling {reference}: {stage}")]
    Store {
        /// The image.
        reference: Reference,
        /// What was being stored.
        stage: Stage,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// A thread of the pull ended without a result: a bug in wharf, or the daemon is shutting down.
    #[error("pulling {reference}: {stage}: its task ended without a result")]
    Lost {
        /// The image.
        reference: Reference,
        /// The stage that was running.
        stage: Stage,
    },
}

impl Failure for PullError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Hosts { source, .. } => source.kind(),
            Self::Fetch { failures, .. } => failures.kind(),
            Self::Manifest { source, .. } => source.kind(),
            Self::Store { source, .. } => source.kind(),
            Self::Unpack { source, .. } => source.kind(),
            Self::Thread { source, .. } => source.kind(),
            Self::Lost { .. } => ErrorKind::Internal,
        }
    }
}

impl PullError {
    /// Whether a layer was given up only for its place.
    pub(crate) fn is_overtaken(&self) -> bool {
        let Self::Fetch { failures, .. } = self else { return false };
        matches!(failures.0.last(), Some(FetchError::Overtaken { .. }))
    }

    /// The word with which the CRI wants the message to start, so that the kubelet shows a specific reason.
    #[must_use]
    pub fn cri_prefix(&self) -> Option<&'static str> {
        let is_registrys = matches!(self, Self::Fetch { .. });
        (self.kind() == ErrorKind::Unavailable && is_registrys).then_some("RegistryUnavailable")
    }
}
