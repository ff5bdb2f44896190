//! One registry host during one pull: its HTTP clients, and the authorizations obtained for it.
//!
//! Credentials and tokens belong to one pull and one host. They are never shared with another pull, whose caller may
//! have fewer rights, nor sent to a host to which a response leads.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};

use http::{HeaderMap, HeaderValue};
use tokio::sync::OnceCell;
use wharf_types::Reference;
use wharf_types::lock::lock;

use crate::config::Config;
use crate::credentials::{Credentials, Proof};
use crate::dial::{Reach, Route};
use crate::error::FetchError;
use crate::hosts::{Capability, HostSpec, Role, is_own, one_spelling};
use crate::proxy::Proxies;
use crate::tls::TlsPair;
use crate::transport::{Transport, resolves_inside};
use crate::url::Url;

/// Which host answers a request to an endpoint. Once a redirect has left the endpoint, the endpoint too counts as
/// foreign: it gets no credentials by way of another host.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Standing {
    /// The endpoint itself.
    Home,
    /// A host that it redirected to, named by its origin.
    Abroad(String),
}

/// A host that a pull may send requests to: a mirror, or the registry itself.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) root: Url,
    capabilities: Vec<Capability>,
    pub(crate) headers: HeaderMap,
    /// Present only if they are for this host.
    pub(crate) credentials: Option<Credentials>,
    /// `?ns=`, for every host except the image's own, because such a host may serve several registries.
    pub(crate) namespace: Option<String>,
    pub(crate) repository: String,
    /// Hosts in other domains that may see the credentials to issue a token.
    pub(crate) token_hosts: Vec<String>,
    /// The image's own host.
    registry: Arc<str>,
    own: Transport,
    foreign: OnceCell<Transport>,
    foreign_tls: rustls::ClientConfig,
    proxies: Arc<Proxies>,
    /// The last `Authorization` that each host accepted or that was obtained for it; for a foreign host never one of
    /// our credentials.
    authorizations: Mutex<HashMap<Standing, HeaderValue>>,
    /// The token host from which the credentials were withheld.
    withheld: OnceLock<String>,
}

impl Endpoint {
    pub(crate) fn new(
        spec: HostSpec,
        tls: TlsPair,
        reference: &Reference,
        credentials: Option<Credentials>,
        config: &Config,
    ) -> Self {
        let limits = &config.limits;
        let dial_timeout = spec.dial_timeout.unwrap_or(limits.dial_timeout);
        let proxies = Arc::new(spec.proxies.unwrap_or_else(|| config.proxies.clone()));
        let registry: Arc<str> = reference.host().into();
        let route = Route {
            reach: Reach::Anywhere,
            registry: Arc::clone(&registry),
            proxies: Arc::clone(&proxies),
            proxy_tls: tls.foreign.clone(),
            dial_timeout,
        };
        let authorization = credentials.as_ref().and_then(|all| match all.proof() {
            Proof::Bearer(token) => sensitive(&format!("Bearer {}", token.expose())),
            _ => None,
        });
        Self {
            namespace: (spec.repository.is_none() && !is_own(&spec.root, reference.host()))
                .then(|| reference.host().to_owned()),
            repository: spec.repository.unwrap_or_else(|| reference.repository().to_owned()),
            token_hosts: config.token_hosts.get(&spec.root.host()).cloned().unwrap_or_default(),
            registry,
            own: Transport::new(tls.own, route, limits.stall_timeout),
            foreign: OnceCell::new(),
            foreign_tls: tls.foreign,
            proxies,
            authorizations: Mutex::new(
                authorization.map(|value| (Standing::Home, value)).into_iter().collect(),
            ),
            withheld: OnceLock::new(),
            root: spec.root,
            capabilities: spec.capabilities,
            headers: spec.headers,
            credentials,
        }
    }

    /// Host, port, path and repository: two endpoints with the same place differ only in the scheme.
    pub(crate) fn place(&self) -> String {
        format!("{}{}/{}", self.root.host_and_port(), self.root.uri().path(), self.repository)
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

    /// The client for hosts that this endpoint redirects to.
    pub(crate) async fn foreign(&self, config: &Config) -> &Transport {
        let make = || async {
            // A host behind a proxy is outside, and its name may not resolve here.
            let patience = config.limits.dial_timeout;
            let inside = self.proxies.to(&self.root).is_none()
                && resolves_inside(&self.root, &self.registry, patience).await;
            let route = Route {
                reach: if inside { Reach::Anywhere } else { Reach::Outside },
                registry: Arc::clone(&self.registry),
                proxies: Arc::clone(&self.proxies),
                proxy_tls: self.foreign_tls.clone(),
                dial_timeout: config.limits.dial_timeout,
            };
            Transport::new(self.foreign_tls.clone(), route, config.limits.stall_timeout)
        };
        self.foreign.get_or_init(make).await
    }

    pub(crate) fn authorization(&self, standing: &Standing) -> Option<HeaderValue> {
        lock(&self.authorizations).get(standing).cloned()
    }

    pub(crate) fn authorize(&self, standing: &Standing, value: HeaderValue) {
        lock(&self.authorizations).insert(standing.clone(), value);
    }

    /// Records that the credentials were withheld from the token host.
    pub(crate) fn withhold_from(&self, token_host: String) {
        // A registry normally has one token host; of several, the first is reported.
        let _noted = self.withheld.set(token_host);
    }

    /// A refusal, with its likely reason.
    pub(crate) fn explain(&self, error: FetchError) -> FetchError {
        let refused = matches!(error, FetchError::Denied { .. } | FetchError::Token { .. });
        match self.withheld.get().filter(|_| refused) {
            Some(token_host) => FetchError::Withheld {
                host: self.root.host(),
                token_host: token_host.clone(),
                source: Box::new(error),
            },
            None => error,
        }
    }
}

/// A header value that debug output hides; `None` if the text is not a valid value.
pub(crate) fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Whether a pull's credentials are for this host: those that name one are for that alone, others for the image's
/// registry.
pub(crate) fn belong(credentials: &Credentials, spec: &HostSpec, reference: &Reference) -> bool {
    match credentials.server() {
        None => spec.role == Role::Registry,
        Some(server) if server == one_spelling(reference.host()) => spec.role == Role::Registry,
        Some(server) => server == spec.root.host_and_port(),
    }
}
