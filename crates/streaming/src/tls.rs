//! TLS of a server that listens beyond loopback: its certificate, and the authorities that sign its clients'
//! certificates.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;
use wharf_types::chain;
use wharf_types::lock::{read, write};

/// The PEM files for TLS. A client without a certificate from one of the authorities is turned away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate, and the chain from it to its authority.
    pub certificate: PathBuf,
    /// The key of the certificate.
    pub key: PathBuf,
    /// The certificate authorities that sign client certificates.
    pub client_authorities: PathBuf,
}

/// Why the TLS files cannot be used.
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
    /// A certificate or a key is invalid.
    #[error("cannot use {}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// Client certificates cannot be verified with these authorities.
    #[error("cannot check clients against {}", path.display())]
    Authorities {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: VerifierBuilderError,
    },
}

/// TLS with the files as last read.
pub(crate) struct Tls {
    files: TlsFiles,
    /// Replaced whole; connections that are open keep the old one.
    config: RwLock<Arc<ServerConfig>>,
}

impl Tls {
    /// Reads the files. Blocking.
    pub(crate) fn load(files: &TlsFiles) -> Result<Self, TlsError> {
        Ok(Self { files: files.clone(), config: RwLock::new(load(files)?) })
    }

    /// The acceptor for the next client.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        let config = read(&self.config);
        TlsAcceptor::from(Arc::clone(&config))
    }

    /// Reads the files again at intervals, because certificates are rotated. An error is logged and changes nothing: a
    /// rotation may be half done.
    pub(crate) async fn keep_fresh(self: Arc<Self>, pause: Duration) -> Infallible {
        loop {
            tokio::time::sleep(pause).await;
            let tls = Arc::clone(&self);
            match tokio::task::spawn_blocking(move || load(&tls.files)).await {
                Ok(Ok(config)) => *write(&self.config) = config,
                Ok(Err(error)) => {
                    tracing::warn!(
                        error = chain(&error),
                        "the new TLS files of streaming cannot be used; the old ones stay in effect"
                    );
                }
                Err(error) => tracing::error!(%error, "reading the TLS files of streaming failed"),
            }
        }
    }
}

fn load(files: &TlsFiles) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let unusable = |path: &Path| {
        let path = path.to_owned();
        move |source| TlsError::Unusable { path, source }
    };
    let mut authorities = RootCertStore::empty();
    for certificate in certificates(&files.client_authorities)? {
        authorities.add(certificate).map_err(unusable(&files.client_authorities))?;
    }
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), Arc::clone(&provider))
        .build()
        .map_err(|source| TlsError::Authorities { path: files.client_authorities.clone(), source })?;
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|source| TlsError::Pem { path: files.key.clone(), source })?;
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(unusable(&files.certificate))?
        .with_client_cert_verifier(clients)
        .with_single_cert(certificates(&files.certificate)?, key)
        .map_err(unusable(&files.certificate))?;
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    all.map_err(|source| TlsError::Pem { path: path.to_owned(), source })
}
