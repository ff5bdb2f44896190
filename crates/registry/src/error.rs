//! What can go wrong with one request, and with a pull as a whole.

use std::fmt;
use std::time::Duration;

use wharf_images::manifest::ManifestError;
use wharf_images::{StoreError, UnpackError};
use wharf_types::{Digest, ErrorKind, Failure, Reference};

use crate::hosts::HostsError;

/// The cause below a failed request, as the HTTP and TLS libraries give it.
pub(crate) type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why one host did not give what was asked of it. No message has a query string or a secret.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No connection came about: no address, refused, no TLS handshake.
    #[error("cannot connect to {host}")]
    Connect {
        /// Host and port.
        host: String,
        /// The cause.
        #[source]
        source: Cause,
    },
    /// No common TLS: one of the two sides does not trust the other, or the host does not speak it.
    #[error("cannot establish TLS with {host}: {advice}")]
    Tls {
        /// Host and port.
        host: String,
        /// What can be done about it.
        advice: &'static str,
        /// The cause.
        #[source]
        source: Cause,
    },
    /// The connection broke, or what came is not HTTP within the bounds.
    #[error("the connection to {host} was lost during the response")]
    Broken {
        /// Host and port.
        host: String,
        /// The cause.
        #[source]
        source: Cause,
    },
    /// No byte came for the whole of the stall timeout.
    #[error("{host} sent nothing for {after_ms} ms")]
    Stalled {
        /// Host and port.
        host: String,
        /// The timeout.
        after_ms: u128,
    },
    /// Bytes come, but fewer than the least rate.
    #[error("{host} sent fewer than {floor_bytes} bytes per second")]
    Slow {
        /// Host and port.
        host: String,
        /// The least rate.
        floor_bytes: u64,
    },
    /// The host does not have the object.
    #[error("{host} answered not found{said}")]
    NotFound {
        /// Host and port.
        host: String,
        /// The registry's own words, shortened, or nothing.
        said: String,
    },
    /// The host refused the credentials, or wants some.
    #[error("{host} denies access ({status}){said}")]
    Denied {
        /// Host and port.
        host: String,
        /// The HTTP status.
        status: u16,
        /// The registry's own words, shortened, or nothing.
        said: String,
    },
    /// Any other answer than a good one.
    #[error("{host} answered {status}{said}")]
    Status {
        /// Host and port.
        host: String,
        /// The HTTP status.
        status: u16,
        /// The registry's own words, shortened, or nothing.
        said: String,
        /// How long the host asked to wait.
        retry_after: Option<Duration>,
    },
    /// A document is longer than its bound.
    #[error("{host} sent more than the {limit_bytes} bytes allowed")]
    TooLarge {
        /// Host and port.
        host: String,
        /// The bound.
        limit_bytes: u64,
    },
    /// The host announces, or sends, another number of bytes than the descriptor has.
    #[error("{host} sent at least {actual_bytes} bytes, but the manifest says {expected_bytes}")]
    WrongLength {
        /// Host and port.
        host: String,
        /// The descriptor's size.
        expected_bytes: u64,
        /// The announced length, or how many came before the client hung up.
        actual_bytes: u64,
    },
    /// The answer ended, in good order, before all bytes had come.
    #[error("{host} ended its response after {actual_bytes} of {expected_bytes} bytes")]
    Truncated {
        /// Host and port.
        host: String,
        /// The descriptor's size.
        expected_bytes: u64,
        /// How many came.
        actual_bytes: u64,
    },
    /// The bytes are not those that were asked for.
    #[error("{host} sent content with digest {actual} instead of {expected}")]
    WrongDigest {
        /// Host and port.
        host: String,
        /// The digest asked for or announced.
        expected: Digest,
        /// The digest of what came.
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
        /// Host and port that answered.
        host: String,
        /// Why the target is not taken.
        reason: &'static str,
    },
    /// The token host that the registry names may not be asked.
    #[error("{host} names a token address that {reason}")]
    Realm {
        /// The registry.
        host: String,
        /// What is wrong with the address.
        reason: &'static str,
    },
    /// The token host did not give a token.
    #[error("cannot get a token for {host}")]
    Token {
        /// The registry.
        host: String,
        /// What the token host did.
        #[source]
        source: Box<FetchError>,
    },
    /// The host denies access, and the credentials were kept from the token host that it names.
    #[error(
        "the credentials were not shown to {token_host}, where {host} has its tokens made: it is of another domain; if \
         both are yours, say `\"{host}\" = [\"{token_host}\"]` below [registry.token_hosts] of wharfd's configuration"
    )]
    Withheld {
        /// The registry.
        host: String,
        /// Where it has its tokens made.
        token_host: String,
        /// What it answered instead.
        #[source]
        source: Box<FetchError>,
    },
    /// The document is no manifest.
    #[error("the manifest that {host} sent cannot be used")]
    Document {
        /// Host and port.
        host: String,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// The bytes of a layer are not the layer that the image names.
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
    /// Whether the same request to the same host may well succeed a little later.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Broken { .. } | Self::Stalled { .. } | Self::Slow { .. } | Self::Truncated { .. } => true,
            Self::Status { status, .. } => *status == 429 || *status >= 500,
            Self::Token { source, .. } | Self::Withheld { source, .. } => source.is_passing(),
            _ => false,
        }
    }

    /// Whether the host speaks the scheme it was asked by. A TLS server answers plain HTTP by 400, if at all.
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

/// What every host that was asked did, in order. It shows them all, each with its causes.
#[derive(Debug, Default)]
pub struct Failures(pub(crate) Vec<FetchError>);

impl Failures {
    /// The failures in the order of asking.
    #[must_use]
    pub fn all(&self) -> &[FetchError] {
        &self.0
    }

    /// The class of the last one: the registry itself comes after its mirrors.
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

/// A part of a pull.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// From the reference to a manifest or an index.
    Resolve,
    /// The manifest of this platform.
    Manifest,
    /// The image's config.
    Config,
    /// One layer.
    Layer {
        /// Its number, from 1.
        number: usize,
        /// How many there are.
        count: usize,
        /// The blob.
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

/// Why a pull failed. It is shared by all who waited for it.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The settings of the registry can't be used.
    #[error("pull of {reference}")]
    Hosts {
        /// The image.
        reference: Reference,
        /// Which file, and why.
        #[source]
        source: HostsError,
    },
    /// No host gave what is needed.
    #[error("pull of {reference}: {stage}: {failures}")]
    Fetch {
        /// The image.
        reference: Reference,
        /// What was being fetched.
        stage: Stage,
        /// What each host did.
        failures: Failures,
    },
    /// The manifest has no image for this machine.
    #[error("pull of {reference}: {stage}")]
    Manifest {
        /// The image.
        reference: Reference,
        /// The document.
        stage: Stage,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// A layer could not be unpacked, and that is not the fault of who sent it.
    #[error("pull of {reference}: {stage}")]
    Unpack {
        /// The image.
        reference: Reference,
        /// Which layer.
        stage: Stage,
        /// Why.
        #[source]
        source: UnpackError,
    },
    /// The store refused what came, or failed.
    #[error("pull of {reference}: {stage}")]
    Store {
        /// The image.
        reference: Reference,
        /// What was being stored.
        stage: Stage,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// A thread of the pull ended without a result: a fault of wharf, or the daemon is stopping.
    #[error("pull of {reference}: {stage}: its task ended without a result")]
    Lost {
        /// The image.
        reference: Reference,
        /// What was being done.
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
            Self::Lost { .. } => ErrorKind::Internal,
        }
    }
}

impl PullError {
    /// The word that the CRI wants at the start of the message, so that the kubelet shows a reason of its own.
    #[must_use]
    pub fn cri_prefix(&self) -> Option<&'static str> {
        (self.kind() == ErrorKind::Unavailable).then_some("RegistryUnavailable")
    }
}
