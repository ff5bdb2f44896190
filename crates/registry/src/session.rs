//! What one pull knows: the image, its hosts, and which of them answered last. Documents are fetched here; layers, which
//! are too big to be held, in [`crate::blob`].

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use sha2::{Digest as _, Sha256};
use wharf_images::manifest::{
    ACCEPTED, CONFIG_LIMIT_BYTES, Descriptor, Document, MANIFEST_LIMIT_BYTES, parse_index_or_manifest,
};
use wharf_types::{Digest, Reference};

use crate::config::Config;
use crate::credentials::Credentials;
use crate::error::{Failures, FetchError};
use crate::hosts::{self, Capability, HostsError};
use crate::request::{Answer, Ask, ask};
use crate::site::Site;
use crate::tls;
use crate::transport::read_all;

/// One pull's hosts.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) config: Config,
    sites: Vec<Site>,
    /// The host that gave the last document; it is asked first. None yet: beyond the end.
    preferred: AtomicUsize,
}

/// A manifest or an index as it came.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) bytes: Bytes,
    pub(crate) digest: Digest,
    pub(crate) document: Document,
}

/// What a document is asked by.
enum Wanted<'a> {
    /// The reference's tag.
    Tag(&'a str),
    /// The reference's digest.
    Digest(&'a Digest),
    /// An entry of an index.
    Entry(&'a Descriptor),
}

impl Session {
    /// Reads the settings for the image's registry. Blocking.
    pub(crate) fn open(
        config: &Config,
        reference: &Reference,
        credentials: Option<&Credentials>,
        roots: &rustls::RootCertStore,
    ) -> Result<Self, HostsError> {
        let mut sites = Vec::new();
        for spec in hosts::load(config.certs_dir.as_deref(), reference)? {
            let host = spec.root.host_and_port().to_owned();
            let pair = tls::load(&spec.tls, roots).map_err(|source| HostsError::Tls { host, source })?;
            sites.push(Site::new(spec, pair, reference, credentials, config));
        }
        Ok(Self { config: config.clone(), sites, preferred: AtomicUsize::new(usize::MAX) })
    }

    /// The hosts that may be asked by digest, the last that answered first.
    pub(crate) fn pull_order(&self) -> Vec<&Site> {
        let preferred = self.sites.get(self.preferred.load(Ordering::Relaxed));
        let mut order: Vec<_> = preferred.into_iter().filter(|site| site.may(Capability::Pull)).collect();
        // The same place by another scheme is no other place.
        let differs = |site: &&Site| preferred.is_none_or(|it| it.place() != site.place());
        order.extend(self.sites.iter().filter(|site| site.may(Capability::Pull)).filter(differs));
        order
    }

    /// The document that the reference names.
    pub(crate) async fn resolve(&self, reference: &Reference) -> Result<Fetched, Failures> {
        match (reference.digest(), reference.tag()) {
            (Some(digest), _) => self.document(&Wanted::Digest(digest)).await,
            (None, tag) => self.document(&Wanted::Tag(tag.unwrap_or("latest"))).await,
        }
    }

    /// The document that an entry of an index names.
    pub(crate) async fn entry(&self, descriptor: &Descriptor) -> Result<Fetched, Failures> {
        self.document(&Wanted::Entry(descriptor)).await
    }

    async fn document(&self, wanted: &Wanted<'_>) -> Result<Fetched, Failures> {
        let order: Vec<_> = match wanted {
            Wanted::Tag(_) => self.sites.iter().filter(|site| site.may(Capability::Resolve)).collect(),
            Wanted::Digest(_) | Wanted::Entry(_) => self.pull_order(),
        };
        let mut failures = Failures::default();
        let mut answered = Vec::new();
        for site in order {
            if answered.contains(&site.place()) {
                continue;
            }
            match self.document_of(site, wanted).await {
                Ok(fetched) => {
                    let at = self.sites.iter().position(|each| std::ptr::eq(each, site));
                    self.preferred.store(at.unwrap_or(usize::MAX), Ordering::Relaxed);
                    return Ok(fetched);
                }
                Err(error) => {
                    if error.is_answer() {
                        answered.push(site.place());
                    }
                    failures.0.push(error);
                }
            }
        }
        Err(failures)
    }

    async fn document_of(&self, site: &Site, wanted: &Wanted<'_>) -> Result<Fetched, FetchError> {
        let name = match wanted {
            Wanted::Tag(tag) => (*tag).to_owned(),
            Wanted::Digest(digest) => digest.to_string(),
            Wanted::Entry(descriptor) => descriptor.digest.to_string(),
        };
        let question = Ask { path: format!("manifests/{name}"), accept: ACCEPTED.join(", "), from_byte: 0 };
        let Answer { response, host } = ask(site, &self.config, &question).await?;
        let header = |name| response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let content_type: Option<String> = header(CONTENT_TYPE.as_str());
        let announced = header("docker-content-digest").and_then(|text| text.parse::<Digest>().ok());
        let stall_timeout = self.config.limits.stall_timeout;
        let bytes = read_all(response.into_body(), &host, MANIFEST_LIMIT_BYTES, stall_timeout).await?;
        let digest = sha256(&bytes);
        let expected = match wanted {
            Wanted::Tag(_) => announced,
            Wanted::Digest(digest) => Some((*digest).clone()),
            Wanted::Entry(descriptor) => Some(descriptor.digest.clone()),
        };
        if let Some(expected) = expected.filter(|expected| *expected != digest) {
            return Err(FetchError::WrongDigest { host, expected, actual: digest });
        }
        let unusable = |source| FetchError::Document { host: host.clone(), source };
        let mut document = parse_index_or_manifest(&bytes, content_type.as_deref()).map_err(unusable)?;
        if let Wanted::Entry(descriptor) = wanted {
            check_length(&host, descriptor, bytes.len())?;
            // The index, the header and the document itself must call it the same.
            document = parse_index_or_manifest(&bytes, Some(&descriptor.media_type)).map_err(unusable)?;
        }
        Ok(Fetched { bytes, digest, document })
    }

    /// The image's config, verified by digest and size.
    pub(crate) async fn config_blob(&self, descriptor: &Descriptor) -> Result<Bytes, Failures> {
        let mut failures = Failures::default();
        for site in self.pull_order() {
            match self.config_of(site, descriptor).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => failures.0.push(error),
            }
        }
        Err(failures)
    }

    async fn config_of(&self, site: &Site, descriptor: &Descriptor) -> Result<Bytes, FetchError> {
        let question =
            Ask { path: format!("blobs/{}", descriptor.digest), accept: String::new(), from_byte: 0 };
        let Answer { response, host } = ask(site, &self.config, &question).await?;
        let stall_timeout = self.config.limits.stall_timeout;
        let bytes = read_all(response.into_body(), &host, CONFIG_LIMIT_BYTES, stall_timeout).await?;
        check_length(&host, descriptor, bytes.len())?;
        let actual = sha256(&bytes);
        if actual != descriptor.digest {
            return Err(FetchError::WrongDigest { host, expected: descriptor.digest.clone(), actual });
        }
        Ok(bytes)
    }
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

pub(crate) fn sha256(bytes: &[u8]) -> Digest {
    Digest::from_sha256(Sha256::digest(bytes).into())
}
