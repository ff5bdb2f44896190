//! The distribution client: it turns an image's reference into an image in the store.
//!
//! [`Puller`] is its whole interface; it also pulls the security profiles that are kept beside images. A pull reads
//! `hosts.toml` anew, asks the mirrors and then the registry for the manifest, verifies it, and streams all missing
//! layers at once from the network into the store's unpacking; compressed bytes are never written to disk. What a
//! registry sends is hostile until its digest and size are verified, and every wait, size, count and retry has a bound
//! ([`Limits`]).
//!
//! Credentials go to the host that they are for and to nobody else: redirects are followed by hand, and a token host
//! gets a password only if it is in the registry's own domain or the configuration allows it.
//!
//! The modules: `hosts` decides which hosts to ask, `explain` tells it; `auth_files` has the node's own credentials;
//! `proxy`, `dial`, `tls` and `transport` connect to one; `endpoint` is the state of one host during a pull; `request`
//! and `auth` make one request with its credentials; `session` fetches documents; `profile` pulls a security profile;
//! `blob` streams a layer across broken connections; `layer` passes it to the store; `flights` and `puller` share work
//! between pulls; `disks` and `lookup` bound what may be stuck; `progress` and `totals` show what pulls have done.

mod auth;
mod auth_files;
mod blob;
mod challenge;
mod config;
mod credentials;
pub mod decode;
mod dial;
mod disks;
mod endpoint;
mod error;
mod explain;
mod flights;
mod hosts;
mod layer;
mod lookup;
mod places;
mod profile;
mod progress;
mod proxy;
mod pull;
mod puller;
mod request;
mod session;
mod tls;
mod totals;
mod transport;
mod url;

pub use auth_files::AuthFileError;
pub use config::{Config, Limits};
pub use credentials::{AuthFields, Credentials, CredentialsError};
pub use error::{Failures, FetchError, PullError, Stage};
pub use explain::{Asked, NameError};
pub use hosts::{HostFiles, HostsError};
pub use profile::{Part, ProfileError, ProfileOrigin};
pub use progress::{LayerProgress, Phase, PullProgress};
pub use proxy::{Proxies, ProxyError};
pub use puller::Puller;
pub use tls::TlsError;
pub use totals::PullFigures;
