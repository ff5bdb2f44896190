//! Authentication: from a 401 to an `Authorization` header.
//!
//! A registry names the host that issues its tokens, so a lying or broken registry could make wharf send a password
//! to anyone. Static credentials therefore go only to a token host in the registry's own domain, or to one that the
//! configuration allows for it (CVE-2020-15157). Any other token host is asked anonymously, over TLS, and only at an
//! address outside this machine. A host that a registry redirects us to may want a token as well, as the real registry
//! behind a gateway does: it gets an anonymous one.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Request, StatusCode};
use http_body_util::Full;
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::challenge::Challenge;
use crate::config::{Config, TEXT_LIMIT_BYTES};
use crate::credentials::{Credentials, Proof};
use crate::endpoint::{Endpoint, Standing, sensitive};
use crate::error::FetchError;
use crate::request::failure_of;
use crate::transport::{Transport, read_all};
use crate::url::{Url, Wire, encode, same_domain};

/// The longest scope that a registry may ask for, in bytes.
const SCOPE_LIMIT_BYTES: usize = 1024;
const CLIENT_ID: &str = "wharf";

#[derive(Deserialize)]
struct TokenResponse {
    token: Option<Zeroizing<String>>,
    access_token: Option<Zeroizing<String>>,
}

/// The host that sent the 401.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Challenger<'a> {
    pub(crate) endpoint: &'a Endpoint,
    pub(crate) config: &'a Config,
    /// The URL that it refused.
    pub(crate) url: &'a Url,
    pub(crate) standing: &'a Standing,
}

impl Challenger<'_> {
    /// Answers the challenges of a 401 with a new `Authorization`; `None` if we have nothing to answer with.
    pub(crate) async fn answer(&self, challenges: &[Challenge]) -> Result<Option<HeaderValue>, FetchError> {
        let proof = self.credentials().map(Credentials::proof);
        if let Some(Proof::Bearer(_)) = proof {
            // It was already sent with the first request.
            return Ok(None);
        }
        if let Some(bearer) = challenges.iter().find(|c| c.scheme == "bearer" && c.param("realm").is_some()) {
            return self.token(bearer).await.map(Some);
        }
        match proof {
            Some(Proof::Password { username, password })
                if challenges.iter().any(|c| c.scheme == "basic") =>
            {
                Ok(basic(username.expose(), password.expose()))
            }
            _ => Ok(None),
        }
    }

    /// The credentials, which only the endpoint itself may see.
    fn credentials(&self) -> Option<&Credentials> {
        self.endpoint.credentials.as_ref().filter(|_| *self.standing == Standing::Home)
    }

    async fn token(&self, challenge: &Challenge) -> Result<HeaderValue, FetchError> {
        let host = || self.url.host_and_port().to_owned();
        let wrong_realm = |reason| FetchError::Realm { host: host(), reason };
        let realm = Url::parse(challenge.param("realm").unwrap_or_default()).map_err(wrong_realm)?;
        let same_host = realm.host() == self.url.host();
        if realm.wire() == Wire::Plain && !(same_host && self.url.wire() == Wire::Plain) {
            return Err(wrong_realm("is not encrypted"));
        }
        let proof = self.proof_for(&realm);
        let transport = match self.standing {
            Standing::Home if same_host => self.endpoint.own(),
            _ => self.endpoint.foreign(self.config).await,
        };
        let request = self.token_request(challenge, &realm, proof).map_err(wrong_realm)?;
        let token = exchange(transport, request, &realm)
            .await
            .map_err(|source| FetchError::Token { host: host(), source: Box::new(source) })?;
        sensitive(&Zeroizing::new(format!("Bearer {}", token.as_str()))).ok_or_else(|| {
            FetchError::Malformed { host: realm.host_and_port().to_owned(), reason: "has no usable token" }
        })
    }

    /// The proof of identity that the token host may see.
    fn proof_for(&self, realm: &Url) -> Option<&Proof> {
        let proof = self.credentials().map(Credentials::proof)?;
        let (token_host, own) = (realm.host(), self.endpoint.root.host());
        if same_domain(&token_host, &own) || self.endpoint.token_hosts.contains(&token_host) {
            return Some(proof);
        }
        self.endpoint.withhold_from(token_host);
        None
    }

    /// A refresh token is sent by POST; everything else, an anonymous request included, by GET.
    fn token_request(
        &self,
        challenge: &Challenge,
        realm: &Url,
        proof: Option<&Proof>,
    ) -> Result<(Url, Request<Full<Bytes>>), &'static str> {
        let own_scope = || format!("repository:{}:pull", self.endpoint.repository);
        let asked = challenge.param("scope").filter(|scope| scope.len() <= SCOPE_LIMIT_BYTES);
        let scope = asked.map_or_else(own_scope, str::to_owned);
        let service = challenge.param("service").unwrap_or_default();
        if let Some(Proof::Identity(token)) = proof {
            let form = Zeroizing::new(format!(
                "grant_type=refresh_token&client_id={CLIENT_ID}&service={}&scope={}&refresh_token={}",
                encode(service),
                encode(&scope),
                encode(token.expose()),
            ));
            let body = Full::new(Bytes::copy_from_slice(form.as_bytes()));
            let request = Request::post(realm.uri())
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .header(ACCEPT, "application/json")
                .body(body)
                .map_err(|_error| "is malformed")?;
            return Ok((realm.clone(), request));
        }
        let mut url = realm.with_query("scope", &scope)?;
        if !service.is_empty() {
            url = url.with_query("service", service)?;
        }
        let mut request = Request::get(url.uri()).header(ACCEPT, "application/json");
        if let Some(Proof::Password { username, password }) = proof
            && let Some(value) = basic(username.expose(), password.expose())
        {
            request = request.header(AUTHORIZATION, value);
        }
        let request = request.body(Full::default()).map_err(|_error| "is malformed")?;
        Ok((url, request))
    }
}

/// HTTP Basic authentication, for registries and for proxies.
pub(crate) fn basic(username: &str, password: &str) -> Option<HeaderValue> {
    let pair = Zeroizing::new(format!("{username}:{password}"));
    let text = Zeroizing::new(format!("Basic {}", STANDARD.encode(pair.as_bytes())));
    sensitive(&text)
}

async fn exchange(
    transport: &Transport,
    (url, request): (Url, Request<Full<Bytes>>),
    realm: &Url,
) -> Result<Zeroizing<String>, FetchError> {
    let host = realm.host_and_port();
    let response = transport.send(request, &url).await?;
    if response.status().is_redirection() {
        return Err(FetchError::Redirect {
            host: host.to_owned(),
            reason: "is not followed from a token address",
        });
    }
    if response.status() != StatusCode::OK {
        // The host's own text is not shown: it may repeat what was sent to it.
        return Err(failure_of(&response, host, String::new()));
    }
    let body = read_all(response.into_body(), host, TEXT_LIMIT_BYTES, transport.stall_timeout()).await?;
    token_in(&body).map_err(|reason| FetchError::Malformed { host: host.to_owned(), reason })
}

/// The token in a response, under either of its names.
pub(crate) fn token_in(body: &[u8]) -> Result<Zeroizing<String>, &'static str> {
    // The parser's error could repeat a secret.
    let parsed: TokenResponse = serde_json::from_slice(body).map_err(|_secret| "is not JSON with a token")?;
    let tokens = [parsed.token, parsed.access_token].into_iter().flatten();
    tokens.into_iter().find(|token| !token.is_empty()).ok_or("has no token")
}
