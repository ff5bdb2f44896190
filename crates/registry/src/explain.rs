//! How an image would be pulled now: which hosts would be asked, in order, and which file says so.

use std::path::PathBuf;

use wharf_tasks::ThreadError;
use wharf_types::{ErrorKind, Failure, Reference, ReferenceError};

use crate::auth_files::AuthFiles;
use crate::config::Config;
use crate::hosts::{self, Capability, HostSpec, HostsError, Role};
use crate::proxy::Proxy;
use crate::tls::Trust;
use crate::url::Wire;

/// Why it cannot be said what a name means, or who would be asked for it.
#[derive(Debug, thiserror::Error)]
pub enum NameError {
    /// It is not the name of an image.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The files with the settings of registries cannot be used.
    #[error(transparent)]
    Hosts(#[from] HostsError),
    /// No thread could read the files in time.
    #[error(transparent)]
    Thread(#[from] ThreadError),
}

impl Failure for NameError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Reference(error) => error.kind(),
            Self::Hosts(error) => error.kind(),
            Self::Thread(error) => error.kind(),
        }
    }
}

/// A host that would be asked for an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The address, with the image's repository there: `https://mirror.example/v2/library/nginx`.
    pub url: String,
    /// Whether it is a mirror; otherwise the registry itself.
    pub is_mirror: bool,
    /// What it may be asked for: `pull` (anything by digest), `resolve` (tags), `push`.
    pub capabilities: Vec<&'static str>,
    /// The file that names it; `None` if none does.
    pub file: Option<PathBuf>,
    /// Certificate authorities that are trusted beside the system's.
    pub authorities: Vec<PathBuf>,
    /// Certificates that are shown to it.
    pub client_certificates: Vec<PathBuf>,
    /// How it proves that it is that host: `verified` by a certificate, `unverified`, or `plain` for http.
    pub proof: &'static str,
    /// The proxy on the way, without its password.
    pub proxy: Option<String>,
    /// Where the node's credentials for it are from; `None` if it has none. A pull with credentials of its own gets
    /// none of them.
    pub credentials: Option<String>,
}

/// What would be asked for an image, in order. Blocking.
pub(crate) fn explain(config: &Config, reference: &Reference) -> Result<Vec<Asked>, HostsError> {
    let node = AuthFiles::read(&config.files.auth_files)?;
    let specs = hosts::load(&config.files, reference)?;
    let asked = |spec: &HostSpec| {
        let own = node.of(spec, reference)?;
        Ok(asked(config, spec, reference, own.map(|own| own.origin)))
    };
    specs.iter().map(asked).collect()
}

fn asked(config: &Config, spec: &HostSpec, reference: &Reference, credentials: Option<String>) -> Asked {
    let proxies = spec.proxies.as_ref().unwrap_or(&config.proxies);
    let root = spec.root.uri().to_string();
    Asked {
        url: format!("{}/{}", root.trim_end_matches('/'), spec.repository(reference)),
        is_mirror: spec.role == Role::Mirror,
        capabilities: spec.capabilities.iter().map(|capability| word(*capability)).collect(),
        file: spec.source.clone(),
        authorities: spec.tls.ca.clone(),
        client_certificates: spec.tls.client.iter().map(|(certificate, _key)| certificate.clone()).collect(),
        proof: match (spec.root.wire(), spec.tls.trust) {
            (Wire::Plain, _) => "plain",
            (Wire::Tls, Trust::Blind) => "unverified",
            (Wire::Tls, Trust::Verified) => "verified",
        },
        proxy: proxies.to(&spec.root).map(Proxy::name),
        credentials,
    }
}

fn word(capability: Capability) -> &'static str {
    match capability {
        Capability::Pull => "pull",
        Capability::Resolve => "resolve",
        Capability::Push => "push",
        Capability::Referrers => "referrers",
    }
}
