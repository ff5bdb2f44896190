//! One host of one pull: its clients, and what it has been told about us.

use std::sync::{Mutex, PoisonError};

use http::{HeaderMap, HeaderValue};
use tokio::sync::OnceCell;
use wharf_types::Reference;

use crate::config::Config;
use crate::credentials::{Credentials, Proof};
use crate::hosts::{Capability, HostSpec, Role};
use crate::tls::TlsPair;
use crate::transport::{Reach, Transport, resolves_inside};
use crate::url::Url;

/// A host that may be asked in the course of a pull.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) root: Url,
    capabilities: Vec<Capability>,
    pub(crate) headers: HeaderMap,
    /// Set only if the pull's credentials belong to this host.
    pub(crate) credentials: Option<Credentials>,
    /// `?ns=` for a mirror that serves several registries.
    pub(crate) namespace: Option<String>,
    pub(crate) repository: String,
    /// Hosts of other domains that may see the credentials in exchange for a token.
    pub(crate) token_hosts: Vec<String>,
    own: Transport,
    foreign: OnceCell<Transport>,
    foreign_tls: rustls::ClientConfig,
    /// The `Authorization` that the host took or that we last got for it.
    authorization: Mutex<Option<HeaderValue>>,
}

impl Site {
    pub(crate) fn new(
        spec: HostSpec,
        tls: TlsPair,
        reference: &Reference,
        credentials: Option<&Credentials>,
        config: &Config,
    ) -> Self {
        let limits = &config.limits;
        let dial_timeout = spec.dial_timeout.unwrap_or(limits.dial_timeout);
        let credentials = credentials.filter(|all| belong(all, &spec, reference)).cloned();
        let authorization = credentials.as_ref().and_then(|all| match all.proof() {
            Proof::Bearer(token) => sensitive(&format!("Bearer {}", token.expose())),
            _ => None,
        });
        Self {
            namespace: (spec.role == Role::Mirror).then(|| reference.host().to_owned()),
            repository: reference.repository().to_owned(),
            token_hosts: config.token_hosts.get(&spec.root.host()).cloned().unwrap_or_default(),
            own: Transport::new(tls.own, Reach::Anywhere, dial_timeout, limits.stall_timeout),
            foreign: OnceCell::new(),
            foreign_tls: tls.foreign,
            authorization: Mutex::new(authorization),
            root: spec.root,
            capabilities: spec.capabilities,
            headers: spec.headers,
            credentials,
        }
    }

    /// Host and port, for messages.
    pub(crate) fn name(&self) -> String {
        self.root.host_and_port().to_owned()
    }

    pub(crate) fn may(&self, capability: Capability) -> bool {
        self.capabilities.contains(&capability)
    }

    pub(crate) fn own(&self) -> &Transport {
        &self.own
    }

    /// The client for hosts that this one sends us to.
    pub(crate) async fn foreign(&self, config: &Config) -> &Transport {
        let make = || async {
            let reach = if resolves_inside(&self.root).await { Reach::Anywhere } else { Reach::Outside };
            let limits = &config.limits;
            Transport::new(self.foreign_tls.clone(), reach, limits.dial_timeout, limits.stall_timeout)
        };
        self.foreign.get_or_init(make).await
    }

    pub(crate) fn authorization(&self) -> Option<HeaderValue> {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn authorize(&self, value: HeaderValue) {
        *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
    }
}

/// A header value that no debug output shows; `None` if the text can't be one.
pub(crate) fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Credentials that name a host belong to it alone; others to the registry of the image.
fn belong(credentials: &Credentials, spec: &HostSpec, reference: &Reference) -> bool {
    match credentials.server() {
        None => spec.role == Role::Registry,
        Some(server) if server == reference.host() => spec.role == Role::Registry,
        Some(server) => server == spec.root.host_and_port(),
    }
}
