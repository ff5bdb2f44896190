//! The state of one pull: the image, its hosts, and which of them responded last. Documents are fetched here; layers,
//! which are too big to hold in memory, are fetched in [`crate::blob`].

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Method, Response};
use hyper::body::Incoming;
use wharf_images::manifest::{
    ACCEPTED, CONFIG_LIMIT_BYTES, Descriptor, Document, MANIFEST_LIMIT_BYTES, digest_of,
    parse_index_or_manifest,
};
use wharf_types::{Digest, Reference};

use crate::auth_files::AuthFiles;
use crate::config::Config;
use crate::credentials::Credentials;
use crate::endpoint::{Endpoint, belong};
use crate::error::{Failures, FetchError};
use crate::hosts::{self, Capability, HostsError};
use crate::request::{ApiRequest, ApiResponse, Patience, ask};
use crate::tls;
use crate::transport::read_all;

/// The hosts of one pull.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) config: Config,
    endpoints: Vec<Endpoint>,
    /// The index of the host that served the last document, which is asked first; beyond the end while there is none.
    preferred: AtomicUsize,
}

/// A manifest or an index, as received.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) bytes: Bytes,
    pub(crate) digest: Digest,
    pub(crate) document: Document,
}

/// What a tag or a digest refers to.
#[derive(Debug)]
pub(crate) enum Resolved {
    /// The digest is known; nothing was fetched.
    Known(Digest),
    Fetched(Fetched),
}

/// How a document is requested.
enum DocumentName<'a> {
    /// The reference's tag.
    Tag(&'a str),
    /// The reference's digest.
    Digest(&'a Digest),
    /// An entry of an index.
    Entry(&'a Descriptor),
}

impl DocumentName<'_> {
    /// What its content must have; a tag says nothing about it.
    fn digest(&self) -> Option<&Digest> {
        match self {
            Self::Tag(_) => None,
            Self::Digest(digest) => Some(digest),
            Self::Entry(descriptor) => Some(&descriptor.digest),
        }
    }

    /// As it stands in a request.
    fn text(&self) -> String {
        match self {
            Self::Tag(tag) => (*tag).to_owned(),
            Self::Digest(digest) => digest.to_string(),
            Self::Entry(descriptor) => descriptor.digest.to_string(),
        }
    }
}

impl Session {
    /// Reads the settings of the image's registry. Blocking.
    pub(crate) fn open(
        config: &Config,
        reference: &Reference,
        credentials: Option<&Credentials>,
        roots: &rustls::RootCertStore,
    ) -> Result<Self, HostsError> {
        let (mut endpoints, node) = (Vec::new(), AuthFiles::read(&config.files.auth_files)?);
        let specs = hosts::load(&config.files, reference)?;
        // Those that are for none of the hosts are none at all.
        let given = credentials.filter(|all| specs.iter().any(|spec| belong(all, spec, reference)));
        for spec in specs {
            let credentials = match given {
                // Who has a password gets no image by way of the node's.
                Some(given) => belong(given, &spec, reference).then(|| given.clone()),
                None => node.of(&spec, reference)?.map(|own| own.credentials),
            };
            let host = spec.root.host_and_port().to_owned();
            let pair = tls::load(&spec.tls, roots).map_err(|source| HostsError::Tls { host, source })?;
            endpoints.push(Endpoint::new(spec, pair, reference, credentials, config));
        }
        Ok(Self { config: config.clone(), endpoints, preferred: AtomicUsize::new(usize::MAX) })
    }

    /// The hosts that may be asked by digest; the last that responded comes first.
    pub(crate) fn pull_order(&self) -> Vec<&Endpoint> {
        let preferred = self.endpoints.get(self.preferred.load(Ordering::Relaxed));
        let mut order: Vec<_> =
            preferred.into_iter().filter(|endpoint| endpoint.may(Capability::Pull)).collect();
        // The same place over another scheme is not another place.
        let differs = |endpoint: &&Endpoint| preferred.is_none_or(|it| it.place() != endpoint.place());
        order.extend(self.endpoints.iter().filter(|endpoint| endpoint.may(Capability::Pull)).filter(differs));
        order
    }

    /// Resolves the reference: to the document, or to its digest alone if that is one of `known`.
    pub(crate) async fn resolve(
        &self,
        reference: &Reference,
        known: &[Digest],
    ) -> Result<Resolved, Failures> {
        let (name, order) = match (reference.digest(), reference.tag()) {
            (Some(digest), _) => (DocumentName::Digest(digest), self.pull_order()),
            (None, tag) => {
                let may = |endpoint: &&Endpoint| endpoint.may(Capability::Resolve);
                (DocumentName::Tag(tag.unwrap_or("latest")), self.endpoints.iter().filter(may).collect())
            }
        };
        let mut round = Round::new(order);
        while let Some((endpoint, patience)) = round.next() {
            match self.resolve_at(endpoint, &name, known, patience).await {
                Ok(resolved) => return Ok(self.prefer(endpoint, resolved)),
                Err(error) => round.failed(endpoint, error),
            }
        }
        Err(round.failures)
    }

    /// Asks this host first from now on, because it responded.
    fn prefer<T>(&self, endpoint: &Endpoint, answer: T) -> T {
        let at = self.endpoints.iter().position(|each| std::ptr::eq(each, endpoint));
        self.preferred.store(at.unwrap_or(usize::MAX), Ordering::Relaxed);
        answer
    }

    /// The document that an index entry names.
    pub(crate) async fn entry(&self, descriptor: &Descriptor) -> Result<Fetched, Failures> {
        self.document(&DocumentName::Entry(descriptor)).await
    }

    async fn document(&self, name: &DocumentName<'_>) -> Result<Fetched, Failures> {
        let mut round = Round::new(self.pull_order());
        while let Some((endpoint, patience)) = round.next() {
            match self.document_of(endpoint, name, patience).await {
                Ok(fetched) => return Ok(self.prefer(endpoint, fetched)),
                Err(error) => round.failed(endpoint, error),
            }
        }
        Err(round.failures)
    }

    /// Resolves by a HEAD request what is here already. A tag rarely changes, and registries count manifests that they
    /// serve but not HEAD requests. The response counts only if it names a digest that is here already: the one asked
    /// for, or one that the tag had; otherwise the document itself decides. So a lying host that may resolve tags can
    /// keep an image from being updated. It could do so with an old document, too: for every client, the meaning of a
    /// tag is that host's word. It cannot make a tag refer to an image that is here for another reason.
    async fn resolve_at(
        &self,
        endpoint: &Endpoint,
        name: &DocumentName<'_>,
        known: &[Digest],
        patience: Patience,
    ) -> Result<Resolved, FetchError> {
        if !known.is_empty() {
            let api_request = manifest(Method::HEAD, &name.text(), Patience::Leave);
            match ask(endpoint, &self.config, &api_request).await {
                Ok(ApiResponse { response, .. }) => {
                    let asked = || name.digest().cloned();
                    let announced = announced(&response).or_else(asked);
                    if let Some(digest) = announced.filter(|digest| known.contains(digest)) {
                        return Ok(Resolved::Known(digest));
                    }
                }
                Err(error) if error.is_answer() => {
                    tracing::debug!(%error, "a registry does not respond to a HEAD request");
                }
                Err(error) => return Err(error),
            }
        }
        self.document_of(endpoint, name, patience).await.map(Resolved::Fetched)
    }

    /// The manifest with this digest, of at most so many bytes and unparsed, with the registry's word for its type.
    pub(crate) async fn manifest_bytes(
        &self,
        digest: &Digest,
        limit_bytes: usize,
    ) -> Result<(Bytes, Option<String>), Failures> {
        let mut round = Round::new(self.pull_order());
        while let Some((endpoint, patience)) = round.next() {
            let sent = self.manifest_of(endpoint, (&digest.to_string(), limit_bytes), patience).await;
            match sent.and_then(|sent| sent.verified(digest)) {
                Ok(sent) => return Ok(self.prefer(endpoint, (sent.bytes, sent.content_type))),
                Err(error) => round.failed(endpoint, error),
            }
        }
        Err(round.failures)
    }

    async fn manifest_of(
        &self,
        endpoint: &Endpoint,
        (name, limit_bytes): (&str, usize),
        patience: Patience,
    ) -> Result<Sent, FetchError> {
        let api_request = manifest(Method::GET, name, patience);
        let ApiResponse { response, host } = ask(endpoint, &self.config, &api_request).await?;
        let content_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let content_type = content_type.map(str::to_owned);
        let announced = announced(&response);
        let stall_timeout = self.config.limits.stall_timeout;
        let bytes = read_all(response.into_body(), &host, limit_bytes, stall_timeout).await?;
        Ok(Sent { digest: digest_of(&bytes), bytes, host, content_type, announced })
    }

    async fn document_of(
        &self,
        endpoint: &Endpoint,
        name: &DocumentName<'_>,
        patience: Patience,
    ) -> Result<Fetched, FetchError> {
        let sent = self.manifest_of(endpoint, (&name.text(), MANIFEST_LIMIT_BYTES), patience).await?;
        let sent = match name.digest().cloned().or_else(|| sent.announced.clone()) {
            Some(expected) => sent.verified(&expected)?,
            None => sent,
        };
        let Sent { bytes, digest, host, content_type, .. } = sent;
        let unusable = |source| FetchError::Document { host: host.clone(), source };
        let mut document = parse_index_or_manifest(&bytes, content_type.as_deref()).map_err(unusable)?;
        if let DocumentName::Entry(descriptor) = name {
            check_length(&host, descriptor, bytes.len())?;
            // The index, the header and the document itself must agree on the media type.
            document = parse_index_or_manifest(&bytes, Some(&descriptor.media_type)).map_err(unusable)?;
        }
        Ok(Fetched { bytes, digest, document })
    }

    /// The image's config, verified by digest and size.
    pub(crate) async fn config_blob(&self, descriptor: &Descriptor) -> Result<Bytes, Failures> {
        self.small_blob(descriptor, CONFIG_LIMIT_BYTES).await
    }

    /// A blob of at most so many bytes, verified by digest and size.
    pub(crate) async fn small_blob(
        &self,
        descriptor: &Descriptor,
        limit_bytes: usize,
    ) -> Result<Bytes, Failures> {
        let mut round = Round::new(self.pull_order());
        while let Some((endpoint, patience)) = round.next() {
            match self.blob_of(endpoint, (descriptor, limit_bytes), patience).await {
                Ok(bytes) => return Ok(self.prefer(endpoint, bytes)),
                Err(error) => round.failed(endpoint, error),
            }
        }
        Err(round.failures)
    }

    async fn blob_of(
        &self,
        endpoint: &Endpoint,
        (descriptor, limit_bytes): (&Descriptor, usize),
        patience: Patience,
    ) -> Result<Bytes, FetchError> {
        let path = format!("blobs/{}", descriptor.digest);
        let api_request =
            ApiRequest { method: Method::GET, path, accept: String::new(), from_byte: 0, patience };
        let ApiResponse { response, host } = ask(endpoint, &self.config, &api_request).await?;
        let stall_timeout = self.config.limits.stall_timeout;
        let bytes = read_all(response.into_body(), &host, limit_bytes, stall_timeout).await?;
        check_length(&host, descriptor, bytes.len())?;
        let actual = digest_of(&bytes);
        if actual != descriptor.digest {
            return Err(FetchError::WrongDigest { host, expected: descriptor.digest.clone(), actual });
        }
        Ok(bytes)
    }
}

/// A manifest or an index as a host sends it, with what the host says about it.
struct Sent {
    bytes: Bytes,
    digest: Digest,
    host: String,
    content_type: Option<String>,
    /// The digest that it is said to have.
    announced: Option<Digest>,
}

impl Sent {
    fn verified(self, expected: &Digest) -> Result<Self, FetchError> {
        if self.digest == *expected {
            return Ok(self);
        }
        Err(FetchError::WrongDigest { host: self.host, expected: expected.clone(), actual: self.digest })
    }
}

/// The hosts that one request is sent to, one after another.
struct Round<'a> {
    left: Vec<&'a Endpoint>,
    answered: Vec<String>,
    failures: Failures,
}

impl<'a> Round<'a> {
    fn new(mut order: Vec<&'a Endpoint>) -> Self {
        order.reverse();
        Self { left: order, answered: Vec::new(), failures: Failures::default() }
    }

    /// The next host, except one that has already responded over another scheme.
    fn next(&mut self) -> Option<(&'a Endpoint, Patience)> {
        loop {
            let endpoint = self.left.pop()?;
            if !self.answered.contains(&endpoint.place()) {
                return Some((endpoint, Patience::for_one_before(endpoint, &self.left)));
            }
        }
    }

    fn failed(&mut self, endpoint: &Endpoint, error: FetchError) {
        if error.is_answer() {
            self.answered.push(endpoint.place());
        }
        self.failures.0.push(error);
    }
}

fn manifest(method: Method, name: &str, patience: Patience) -> ApiRequest {
    ApiRequest {
        method,
        path: format!("manifests/{name}"),
        accept: ACCEPTED.join(", "),
        from_byte: 0,
        patience,
    }
}

/// The digest that a registry announces for a manifest.
fn announced(response: &Response<Incoming>) -> Option<Digest> {
    response.headers().get("docker-content-digest")?.to_str().ok()?.parse().ok()
}

fn check_length(host: &str, descriptor: &Descriptor, actual: usize) -> Result<(), FetchError> {
    if descriptor.size_bytes == actual as u64 {
        return Ok(());
    }
    Err(FetchError::WrongLength {
        host: host.to_owned(),
        expected_bytes: descriptor.size_bytes,
        actual_bytes: actual as u64,
    })
}
