//! TLS: only clients with a certificate from the authority are served.
#![expect(clippy::disallowed_methods, reason = "a test may wait for a disk")]

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use wharf_streaming::{Config, TlsFiles};
use wharf_types::{ErrorKind, Failure};

use crate::http::SPDY;
use crate::rig::{OUTPUT, Rig, soon};

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A certificate and its key, in PEM.
fn certificate(authority: &Authority, usage: ExtendedKeyUsagePurpose) -> (String, String) {
    let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    params.extended_key_usages = vec![usage];
    let key = KeyPair::generate().unwrap();
    (params.signed_by(&key, authority).unwrap().pem(), key.serialize_pem())
}

fn files(directory: &TempDir, authority: &Authority) -> TlsFiles {
    let write = |name: &str, text: &str| {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let (pem, key) = certificate(authority, ExtendedKeyUsagePurpose::ServerAuth);
    TlsFiles {
        certificate: write("server.pem", &pem),
        key: write("server.key", &key),
        client_authorities: write("authority.pem", &authority.pem()),
    }
}

/// The status of an exec request, as a client with a certificate from this authority gets it.
async fn ask(url: &str, trusted: &Authority, vouched: Option<&Authority>) -> Option<String> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match vouched {
        Some(authority) => {
            let (pem, key) = certificate(authority, ExtendedKeyUsagePurpose::ClientAuth);
            let chain = vec![CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()];
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    let (address, path) = url.strip_prefix("https://").unwrap().split_once('/').unwrap();
    let socket = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut stream = soon(TlsConnector::from(Arc::new(config)).connect(name, socket)).await.ok()?;
    let request =
        format!("POST /{path} HTTP/1.1\r\n{SPDY}X-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut status = [0; 12];
    soon(stream.read_exact(&mut status)).await.ok()?;
    Some(String::from_utf8_lossy(&status[9..]).into_owned())
}

#[tokio::test]
async fn only_clients_with_a_certificate_are_served() {
    let (directory, ours, theirs) = (TempDir::new().unwrap(), authority(), authority());
    let rig = Rig::with(Config { tls: Some(files(&directory, &ours)), ..Config::default() }).await;
    let url = rig.exec(OUTPUT);
    assert_eq!(ask(&url, &ours, None).await, None);
    assert_eq!(ask(&url, &ours, Some(&theirs)).await, None);
    assert_eq!(ask(&url, &ours, Some(&ours)).await.as_deref(), Some("101"));
}

#[tokio::test]
async fn certificates_are_rotated_and_bad_ones_change_nothing() {
    let (directory, old, new) = (TempDir::new().unwrap(), authority(), authority());
    let tls = files(&directory, &old);
    let (key, reload) = (tls.key.clone(), Duration::from_millis(1));
    let rig = Rig::with(Config { tls: Some(tls), reload, ..Config::default() }).await;
    let good = fs::read(&key).unwrap();
    fs::write(&key, "no key").unwrap();
    for _ in 0..10 {
        assert_eq!(ask(&rig.exec(OUTPUT), &old, Some(&old)).await.as_deref(), Some("101"));
    }
    fs::write(&key, good).unwrap();
    files(&directory, &new);
    let rotated = async { while ask(&rig.exec(OUTPUT), &new, Some(&new)).await.is_none() {} };
    soon(rotated).await;
    assert_eq!(ask(&rig.exec(OUTPUT), &old, Some(&old)).await, None);
}

#[tokio::test]
async fn files_that_are_no_certificates_are_refused() {
    let directory = TempDir::new().unwrap();
    let good = files(&directory, &authority());
    let absent = directory.path().join("absent");
    for bad in [
        TlsFiles { certificate: good.key.clone(), ..good.clone() },
        TlsFiles { key: good.certificate.clone(), ..good.clone() },
        TlsFiles { client_authorities: absent, ..good.clone() },
        TlsFiles { client_authorities: good.key.clone(), ..good },
    ] {
        let error = Rig::refused(Config { tls: Some(bad.clone()), ..Config::default() }).await;
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{bad:?}: {error}");
    }
}
