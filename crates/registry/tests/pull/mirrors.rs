//! Several hosts for one registry, and TLS.

use std::net::SocketAddr;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use wharf_types::{ErrorKind, Failure, Reference};

use crate::authority::{Authority, Clients, Valid, self_signed};
use crate::image::{Content, gzip, noise};
use crate::server::{Reply, Request, Server};
use crate::world::{World, file_of, password, patient, short};

/// The names of a server on loopback.
pub(crate) const NAMES: &[&str] = &["127.0.0.1", "localhost"];

fn content() -> Content {
    Content::oci("v1", &[gzip("a", &noise(100_000))])
}

fn reference() -> Reference {
    "registry.example/app:v1".parse().unwrap()
}

fn hosts(servers: &[&Server], last: &Server) -> String {
    let mirrors: String =
        servers.iter().map(|server| format!("[host.\"http://{}\"]\n", server.address)).collect();
    format!("server = \"http://{}\"\n{mirrors}", last.address)
}

fn world(text: &str) -> World {
    World::with(patient(), &[("registry.example/hosts.toml", text)])
}

#[tokio::test]
async fn the_first_mirror_that_has_it_gives_all() {
    let empty = Server::honest(Content::default()).await;
    let (good, origin) = (Server::honest(content()).await, Server::honest(content()).await);
    let world = world(&hosts(&[&empty, &good], &origin));
    let image = world.pull(&reference()).await.unwrap();
    assert_eq!(image.repo_tags(), ["registry.example/app:v1"], "the name is the registry's");
    assert_eq!(empty.requests().len(), 1);
    assert_eq!(empty.requests()[0].target, "/v2/app/manifests/v1?ns=registry.example");
    assert_eq!(good.requests().len(), 3, "manifest, config, layer");
    assert!(origin.requests().is_empty());
}

#[tokio::test]
async fn only_mirrors_are_sent_the_name_of_the_registry() {
    let origin = Server::honest(content()).await;
    let server = format!("server = \"http://{}\"\n", origin.address);
    let world = World::with(patient(), &[("_default/hosts.toml", &server)]);
    world.pull(&reference()).await.unwrap();
    assert!(origin.requests().iter().all(|request| request.target.ends_with("?ns=registry.example")));
    let own = Server::honest(content()).await;
    let mirror = format!("[host.\"http://{}\"]\n", own.address);
    let world = World::with(patient(), &[("_default/hosts.toml", &mirror)]);
    world.pull(&own.reference(":v1")).await.unwrap();
    assert!(own.requests().iter().all(|request| request.path() == request.target));
}

#[tokio::test]
async fn two_entries_of_one_host_are_two_when_their_paths_differ() {
    let shared = content();
    let server = Server::start(Content::default(), move |request: &Request| {
        let (kind, bytes) = shared.files.get(&request.path().replace("/two/", "/v2/"))?;
        Some(Reply::new(200, bytes.as_slice()).header("Content-Type", kind))
    })
    .await;
    let entry = |path: &str| format!("[host.\"http://{}/{path}\"]\noverride_path = true\n", server.address);
    let last = "server = \"http://127.0.0.1:9\"\n";
    world(&format!("{last}{}{}", entry("one"), entry("two"))).pull(&reference()).await.unwrap();
    assert_eq!(server.requests().iter().filter(|request| request.path().starts_with("/one/")).count(), 1);
}

#[tokio::test]
async fn dockers_certificates_are_those_of_the_registry() {
    let authority = Authority::generate();
    let server = Server::tls(content(), authority.server(NAMES, Clients::Certified), |_| None).await;
    let ((certificate, key), pem, host) = (authority.client(), authority.pem(), server.address.to_string());
    let files = [("ca.crt", &pem), ("client.cert", &certificate), ("client.key", &key)];
    let files: Vec<_> = files.iter().map(|(name, text)| (format!("{host}/{name}"), *text)).collect();
    let files: Vec<_> = files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    World::with(patient(), &files).pull(&server.reference(":v1")).await.unwrap();
}

#[tokio::test]
async fn a_busy_mirror_is_left_for_the_next_host_at_once() {
    for busy in [503, 429] {
        let mirror = Server::start(Content::default(), move |_| {
            Some(Reply::new(busy, "").header("Retry-After", "3600"))
        });
        let (mirror, origin) = (mirror.await, Server::honest(content()).await);
        world(&hosts(&[&mirror], &origin)).pull(&reference()).await.unwrap();
        assert_eq!(mirror.count("/v2/app/manifests/v1"), 1, "{busy}");
    }
}

#[tokio::test]
async fn when_all_fail_the_error_names_each() {
    let empty = Server::honest(Content::default()).await;
    let broken = Server::start(Content::default(), |_| Some(Reply::new(500, ""))).await;
    let denies = Server::start(Content::default(), |_| Some(Reply::new(403, ""))).await;
    let (error, text) = world(&hosts(&[&empty, &broken], &denies)).fail(&reference()).await;
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "the registry's own word counts");
    for (server, word) in
        [(&empty, "not found"), (&broken, "responded with 500"), (&denies, "denies access (403)")]
    {
        assert!(text.contains(&server.address.to_string()) && text.contains(word), "{text}");
    }
}

#[tokio::test]
async fn a_mirror_that_breaks_or_lies_is_replaced_in_the_middle() {
    let breaks = |request: &Request| {
        let layer = request.path().contains("blobs") && request.nth == 0;
        let cut = || {
            let (_, bytes) = &content().files[request.path()];
            Reply::new(200, bytes.as_slice()).cut(bytes.len() / 2)
        };
        match request.path() {
            path if path.contains("blobs") && content().files[path].1.len() > 10_000 => {
                Some(if layer { cut() } else { Reply::new(404, "") })
            }
            _ => None,
        }
    };
    let lies = |request: &Request| {
        let bytes = &content().files[request.path()].1;
        (bytes.len() > 10_000).then(|| Reply::new(200, vec![1; bytes.len()]))
    };
    let breaking = Server::start(content(), breaks).await;
    let lying = Server::start(content(), lies).await;
    let origin = Server::honest(content()).await;
    let broken = world(&hosts(&[&breaking], &origin));
    let image = broken.pull(&reference()).await.unwrap();
    assert_eq!(file_of(&image, "a"), noise(100_000));
    assert!(origin.requests()[0].header("range").is_some(), "the rest comes from the registry");
    let world = world(&hosts(&[&lying], &origin));
    assert_eq!(file_of(&world.pull(&reference()).await.unwrap(), "a"), noise(100_000));
}

#[tokio::test]
async fn a_half_from_a_liar_does_not_condemn_the_honest() {
    let half_a_lie = |request: &Request| {
        let bytes = &content().files[request.path()].1;
        let reply = || Reply::new(200, vec![1; bytes.len()]).cut(bytes.len() / 2);
        (bytes.len() > 10_000).then(|| if request.nth == 0 { reply() } else { Reply::new(404, "") })
    };
    let (lying, origin) = (Server::start(content(), half_a_lie).await, Server::honest(content()).await);
    let world = world(&hosts(&[&lying], &origin));
    let image = world.pull(&reference()).await.unwrap();
    assert_eq!(file_of(&image, "a"), noise(100_000));
}

#[tokio::test]
async fn tags_are_resolved_only_where_that_is_allowed() {
    let (mirror, origin) = (Server::honest(content()).await, Server::honest(content()).await);
    let text = format!("{}capabilities = [\"pull\"]\n", hosts(&[&mirror], &origin));
    world(&text).pull(&reference()).await.unwrap();
    assert_eq!(mirror.count("/v2/app/manifests/v1"), 0);
    let none = format!(
        "server = \"http://{}\"\ncapabilities = []\n[host.\"http://{}\"]\ncapabilities = [\"push\"]\n",
        origin.address, mirror.address
    );
    let (error, text) = world(&none).fail(&reference()).await;
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    assert!(text.contains("hosts.toml"), "{text}");
}

#[tokio::test]
async fn a_mirror_gets_its_header_and_no_credentials() {
    let wants = |request: &Request| {
        let refused = || Reply::new(401, "").header("WWW-Authenticate", "Basic realm=x");
        request.header("authorization").is_none().then(refused)
    };
    let (mirror, origin) = (Server::start(content(), wants).await, Server::start(content(), wants).await);
    let text = format!("{}header = {{ x-key = \"s3cret\" }}\n", hosts(&[&mirror], &origin));
    let world = world(&text);
    world.puller.pull(&reference(), password("me", "hunter2")).await.unwrap();
    assert!(mirror.requests().iter().all(|request| request.header("authorization").is_none()));
    assert!(mirror.requests().iter().all(|request| request.header("x-key") == Some("s3cret")));
    assert!(origin.requests().iter().all(|request| request.header("x-key").is_none()));
}

#[tokio::test]
async fn an_edited_file_counts_at_once_and_a_bad_one_is_named() {
    let (first, second) = (Server::honest(content()).await, Server::honest(content()).await);
    let world = world(&hosts(&[], &first));
    world.pull(&reference()).await.unwrap();
    let path = world.dir().join("certs.d/registry.example/hosts.toml");
    std::fs::write(&path, hosts(&[], &second)).unwrap();
    world.pull(&reference()).await.unwrap();
    assert_eq!(second.requests().len(), 1);
    std::fs::write(&path, "servr = \"x\"").unwrap();
    let (error, text) = world.fail(&reference()).await;
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    assert!(text.contains("registry.example/hosts.toml") && text.contains("servr"), "{text}");
}

/// The error text for a server that answers over TLS at `server` when hosts.toml has `setting` for it.
async fn refusal(server: SocketAddr, files: &[(&str, &str)], setting: &str) -> String {
    let text = format!("server = \"https://{server}\"\n{setting}\n");
    let files: Vec<_> =
        files.iter().map(|(name, text)| (format!("registry.example/{name}"), *text)).collect();
    let mut all: Vec<_> = files.iter().map(|(name, text)| (name.as_str(), *text)).collect();
    all.push(("registry.example/hosts.toml", &text));
    let (error, shown) = World::with(short(), &all).fail(&reference()).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(shown.contains(&format!("cannot establish TLS with {server}")), "{shown}");
    shown
}

#[tokio::test]
async fn tls_with_an_authority_of_our_own() {
    let authority = Authority::generate();
    let server = Server::tls(content(), authority.server(NAMES, Clients::Anybody), |_| None).await;
    let text = format!("server = \"https://{}\"\nca = \"ca.pem\"\n", server.address);
    let pem = authority.pem();
    let files = [("registry.example/hosts.toml", text.as_str()), ("registry.example/ca.pem", pem.as_str())];
    let world = World::with(patient(), &files);
    world.pull(&reference()).await.unwrap();
    // The same without the authority, or with a different one.
    let other = Authority::generate().pem();
    for setting in ["", "ca = \"ca.pem\""] {
        let shown = refusal(server.address, &[("ca.pem", &other)], setting).await;
        assert!(shown.contains("`ca` in its hosts.toml") && shown.contains("certificate"), "{shown}");
    }
    // And without any verification.
    let text = format!("server = \"https://{}\"\nskip_verify = true\n", server.address);
    crate::mirrors::world(&text).pull(&reference()).await.unwrap();
}

#[tokio::test]
async fn tls_with_a_certificate_that_is_its_own_authority() {
    let pull = async |names: &[&str], valid: Valid, named: Option<&str>| {
        let (pem, acceptor) = self_signed(names, valid);
        let server = Server::tls(content(), acceptor, |_| None).await;
        let ca = if named.is_some() { "ca = \"ca.pem\"\n" } else { "" };
        let text = format!("server = \"https://{}\"\n{ca}", server.address);
        let pem = named.filter(|named| !named.is_empty()).unwrap_or(&pem);
        let files = [("registry.example/hosts.toml", text.as_str()), ("registry.example/ca.pem", pem)];
        let world = World::with(short(), &files);
        world.pull(&reference()).await.map(|_| ()).map_err(|error| wharf_types::chain(&*error))
    };
    pull(NAMES, Valid::Now, Some("")).await.unwrap();
    let (other, _) = self_signed(NAMES, Valid::Now);
    for (what, tried, words) in [
        ("not named", pull(NAMES, Valid::Now, None).await, "name that certificate as `ca`"),
        ("another named", pull(NAMES, Valid::Now, Some(&other)).await, "name that certificate as `ca`"),
        ("another name", pull(&["other.example"], Valid::Now, Some("")).await, "for another name"),
        ("out of date", pull(NAMES, Valid::Once, Some("")).await, "has expired"),
    ] {
        let error = tried.expect_err(what);
        assert!(error.contains(words), "{what}: {error}");
    }
}

#[tokio::test]
async fn tls_with_a_certificate_of_our_own() {
    let authority = Authority::generate();
    let server = Server::tls(content(), authority.server(NAMES, Clients::Certified), |_| None).await;
    let ((certificate, key), pem) = (authority.client(), authority.pem());
    let text = format!(
        "server = \"https://{}\"\nca = \"ca.pem\"\nclient = [[\"client.pem\", \"client.key\"]]\n",
        server.address
    );
    let files = [
        ("registry.example/hosts.toml", text.as_str()),
        ("registry.example/ca.pem", pem.as_str()),
        ("registry.example/client.pem", certificate.as_str()),
        ("registry.example/client.key", key.as_str()),
    ];
    World::with(patient(), &files).pull(&reference()).await.unwrap();
    let shown = refusal(server.address, &[("ca.pem", &pem)], "ca = \"ca.pem\"").await;
    assert!(shown.contains("`client` in its hosts.toml"), "{shown}");
    assert_eq!(server.count("/v2/app/manifests/v1"), 1, "nothing came through");
}

#[tokio::test]
async fn what_else_can_be_wrong_with_tls_is_said() {
    let authority = Authority::generate();
    let other =
        Server::tls(content(), authority.server(&["other.example"], Clients::Anybody), |_| None).await;
    let shown = refusal(other.address, &[("ca.pem", &authority.pem())], "ca = \"ca.pem\"").await;
    assert!(shown.contains("for another name") && shown.contains("other.example"), "{shown}");
    let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = plain.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = plain.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    });
    let shown = refusal(address, &[], "").await;
    assert!(shown.contains("plain HTTP"), "{shown}");
}

#[tokio::test]
async fn a_loopback_registry_is_found_by_either_scheme() {
    let acceptor = Authority::generate().server(NAMES, Clients::Anybody);
    let server = Server::tls(content(), acceptor, |_| None).await;
    World::with(short(), &[]).pull(&server.reference(":v1")).await.unwrap();
    // A server for which an authority is configured must prove its identity.
    let host = server.address.to_string();
    let files = [(format!("{host}/ca.crt"), Authority::generate().pem())];
    let files: Vec<_> = files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let (_, text) = World::with(short(), &files).fail(&server.reference(":v1")).await;
    assert!(text.contains("certificate"), "{text}");
}

#[tokio::test]
async fn tls_files_that_are_not_there_are_named() {
    let text = "server = \"https://127.0.0.1:1\"\nca = \"missing.pem\"\n";
    let (error, shown) = world(text).fail(&reference()).await;
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    assert!(shown.contains("missing.pem"), "{shown}");
}
