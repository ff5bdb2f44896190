//! The TLS settings of one registry: rustls with ring, TLS 1.2 or newer, with the system's roots and those of
//! `hosts.toml`.

mod verifier;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::{ResolvesClientCert, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use rustls::{AlertDescription, CertificateError, ClientConfig, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use verifier::{OrNamed, Unverified, is_of_an_authority};
use wharf_sys::fs::read_regular;

/// The longest file of certificates or keys, in bytes: all CAs of a system together have a tenth of that.
const PEM_LIMIT_BYTES: usize = 4 << 20;

/// Why the TLS files of a registry cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or is not PEM.
    #[error("cannot read PEM of {}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    /// A file contains no certificate.
    #[error("{} contains no certificate", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A certificate or a key is invalid.
    #[error("cannot use {}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// The TLS library refuses the settings.
    #[error("cannot set up TLS")]
    Setup {
        /// Why.
        #[source]
        source: rustls::Error,
    },
}

/// What the reader can do about a failure, if it is one of TLS.
pub(crate) fn advice(failure: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    let mut causes = std::iter::successors(Some(failure), |error| error.source());
    Some(match causes.find_map(tls_error)? {
        Error::InvalidCertificate(wrong) => match wrong {
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "its certificate is for another name: ask for it by that name"
            }
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => {
                "its certificate has expired or is not valid yet, or the clock of this machine is wrong"
            }
            wrong if is_of_an_authority(wrong) => {
                "its certificate is a CA's own: name that certificate as `ca` in its hosts.toml"
            }
            _ => "name the CA of its certificate as `ca` in its hosts.toml",
        },
        Error::AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA,
        ) => "it requires a client certificate: name one and its key as `client` in its hosts.toml",
        Error::InvalidMessage(_) => "it seems to speak plain HTTP: name it with http:// in its hosts.toml",
        _ => return None,
    })
}

/// An error of rustls. I/O errors, even nested ones, hide it from `source`.
fn tls_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Error> {
    let hidden = || tls_error(error.downcast_ref::<std::io::Error>()?.get_ref()?);
    error.downcast_ref().or_else(hidden)
}

/// The TLS settings of one host in `hosts.toml`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    /// Certificate authorities that are trusted in addition to the system's.
    pub(crate) ca: Vec<PathBuf>,
    /// Client certificates and their keys.
    pub(crate) client: Vec<(PathBuf, PathBuf)>,
    /// Whether the server's certificate is verified.
    pub(crate) trust: Trust,
}

/// Whether a server must prove its identity.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Trust {
    /// It must.
    #[default]
    Verified,
    /// `skip_verify`: it need not.
    Blind,
}

/// The settings for a host itself and for hosts that it redirects us to. The latter get neither our client certificates
/// nor blind trust.
#[derive(Debug, Clone)]
pub(crate) struct TlsPair {
    pub(crate) own: ClientConfig,
    pub(crate) foreign: ClientConfig,
}

/// The system's roots. A damaged certificate among them is skipped, as elsewhere.
pub(crate) fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    let (_added, ignored) = roots.add_parsable_certificates(found.certs);
    if ignored > 0 || !found.errors.is_empty() {
        tracing::warn!(
            ignored,
            errors = found.errors.len(),
            "some of the system's root certificates cannot be used"
        );
    }
    roots
}

/// Reads the files and makes the settings. Blocking.
pub(crate) fn load(files: &TlsFiles, system: &RootCertStore) -> Result<TlsPair, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut authorities = Authorities { roots: system.clone(), named: Vec::new() };
    for path in &files.ca {
        for certificate in certificates(path)? {
            authorities.named.push(certificate.clone());
            let added = authorities.roots.add(certificate);
            added.map_err(|source| TlsError::Unusable { path: path.clone(), source })?;
        }
    }
    let mut keys = Vec::new();
    for (certificate, key) in &files.client {
        keys.push(Arc::new(certified_key(certificate, key, &provider)?));
    }
    let foreign = config(&provider, &authorities, Trust::Verified, Vec::new())?;
    let own = if keys.is_empty() && files.trust == Trust::Verified {
        foreign.clone()
    } else {
        config(&provider, &authorities, files.trust, keys)?
    };
    Ok(TlsPair { own, foreign })
}

/// The trusted certificate authorities.
struct Authorities {
    roots: RootCertStore,
    /// Those that the host's own settings name.
    named: Vec<CertificateDer<'static>>,
}

/// Reads a file, and waits for nothing that has no end, such as a FIFO in its place.
fn read_pem(path: &Path) -> Result<Vec<u8>, TlsError> {
    let read = read_regular(path, PEM_LIMIT_BYTES);
    read.map_err(|source| TlsError::Pem { path: path.to_owned(), source: pem::Error::Io(source) })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read_pem(path)?).collect();
    let found = found.map_err(|source| TlsError::Pem { path: path.to_owned(), source })?;
    if found.is_empty() { Err(TlsError::Empty { path: path.to_owned() }) } else { Ok(found) }
}

fn certified_key(
    certificate: &Path,
    key: &Path,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, TlsError> {
    let chain = certificates(certificate)?;
    let der = PrivateKeyDer::from_pem_slice(&read_pem(key)?);
    let der = der.map_err(|source| TlsError::Pem { path: key.to_owned(), source })?;
    CertifiedKey::from_der(chain, der, provider)
        .map_err(|source| TlsError::Unusable { path: key.to_owned(), source })
}

fn config(
    provider: &Arc<CryptoProvider>,
    authorities: &Authorities,
    trust: Trust,
    keys: Vec<Arc<CertifiedKey>>,
) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|source| TlsError::Setup { source })?;
    let builder = match trust {
        Trust::Verified if authorities.named.is_empty() => {
            builder.with_root_certificates(authorities.roots.clone())
        }
        Trust::Verified => {
            let roots = Arc::new(authorities.roots.clone());
            let chains = WebPkiServerVerifier::builder_with_provider(roots, provider.clone()).build();
            let chains =
                chains.map_err(|error| TlsError::Setup { source: Error::General(error.to_string()) })?;
            let verifier = OrNamed { chains, named: authorities.named.clone() };
            builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
        }
        Trust::Blind => {
            let verifier = Arc::new(Unverified { provider: provider.clone() });
            builder.dangerous().with_custom_certificate_verifier(verifier)
        }
    };
    Ok(if keys.is_empty() {
        builder.with_no_client_auth()
    } else {
        builder.with_client_cert_resolver(Arc::new(Keys(keys)))
    })
}

/// Our client certificates; the first whose key the server can verify is used.
#[derive(Debug)]
struct Keys(Vec<Arc<CertifiedKey>>);

impl ResolvesClientCert for Keys {
    fn resolve(&self, _issuers: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.iter().find(|key| key.key.choose_scheme(schemes).is_some()).cloned()
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test makes files, and has nothing else to do")]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd as _;

    #[test]
    fn what_has_no_end_is_an_error_and_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        // It is open for writing, and nothing is ever written.
        let (reader, _writer) = std::io::pipe().unwrap();
        let pipe = format!("/proc/self/fd/{}", reader.as_raw_fd());
        std::os::unix::fs::symlink(pipe, path("pipe.pem")).unwrap();
        std::fs::write(path("long.pem"), "\n".repeat(PEM_LIMIT_BYTES + 1)).unwrap();
        for (name, why) in [("pipe.pem", "not a regular file"), ("long.pem", "longer than 4096 KiB")] {
            let ca = TlsFiles { ca: vec![path(name)], ..TlsFiles::default() };
            let client = TlsFiles { client: vec![(path(name), path(name))], ..TlsFiles::default() };
            for files in [ca, client] {
                let error = load(&files, &RootCertStore::empty()).unwrap_err();
                let text = wharf_types::chain(&error);
                assert!(text.contains(name) && text.contains(why), "{text}");
            }
        }
    }
}
