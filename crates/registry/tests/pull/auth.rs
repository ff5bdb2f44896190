//! Registries that require authentication, and hosts that must not see credentials.

use std::sync::Arc;

use wharf_registry::{AuthFields, Config, Credentials, Puller};
use wharf_types::{ErrorKind, Failure};

use crate::authority::{Authority, Clients};
use crate::image::{Content, gzip};
use crate::mirrors::NAMES;
use crate::server::{Reply, Request, Server, honest};
use crate::world::{World, certificates, password, patient};

/// base64 of `me:hunter2`
pub(crate) const BASIC: &str = "Basic bWU6aHVudGVyMg==";

fn content() -> Content {
    Content::oci("v1", &[gzip("a", b"one")])
}

/// A registry that accepts only one `Authorization` and names a way to get it.
pub(crate) async fn guarded(
    wanted: &'static str,
    challenge: impl Fn(&Request) -> String + Send + Sync + 'static,
) -> Server {
    Server::start(content(), move |request| {
        let granted = request.header("authorization") == Some(wanted);
        let refused = || {
            let body = r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
            Reply::new(401, body).header("WWW-Authenticate", challenge(request))
        };
        (!granted && request.path().starts_with("/v2/")).then(refused)
    })
    .await
}

/// A token host that issues the token `t1` for the requests that `allows` accepts.
async fn token_host(allows: impl Fn(&Request) -> bool + Send + Sync + 'static) -> Server {
    Server::start(Content::default(), move |request| {
        Some(if allows(request) {
            Reply::new(200, r#"{"token":"t1"}"#)
        } else {
            Reply::new(403, "no hunter2")
        })
    })
    .await
}

async fn pull_with(server: &Server, credentials: Option<Credentials>) -> Result<(), (ErrorKind, String)> {
    let world = World::new();
    let pulled = world.puller.pull(&server.reference(":v1"), credentials).await;
    pulled.map(|_| ()).map_err(|error| (error.kind(), wharf_types::chain(&*error)))
}

fn only(set: impl FnOnce(&mut AuthFields)) -> Option<Credentials> {
    let mut fields = AuthFields::default();
    set(&mut fields);
    Credentials::from_fields(fields).unwrap()
}

#[tokio::test]
async fn basic() {
    let server = guarded(BASIC, |_| "Basic realm=\"x\"".into()).await;
    pull_with(&server, password("me", "hunter2")).await.unwrap();
    let requests = server.requests();
    assert!(requests[0].header("authorization").is_none(), "nothing is sent unasked");
    assert_eq!(
        requests.iter().filter(|a| a.header("authorization").is_none()).count(),
        1,
        "it is remembered"
    );
}

#[tokio::test]
async fn wrong_or_no_credentials_are_an_error_that_hides_them() {
    let server = guarded(BASIC, |_| "Basic realm=\"x\"".into()).await;
    let (kind, text) = pull_with(&server, password("me", "hunter3")).await.unwrap_err();
    assert_eq!(kind, ErrorKind::PermissionDenied);
    assert!(text.contains("authentication required") && !text.contains("hunter"), "{text}");
    assert_eq!(server.requests().len(), 2, "one answer to one 401");
    let (kind, _) = pull_with(&server, None).await.unwrap_err();
    assert_eq!(kind, ErrorKind::PermissionDenied);
}

#[tokio::test]
async fn bearer_tokens_for_nobody_and_for_somebody() {
    let tokens = token_host(|request| {
        request.target == "/token?scope=repository%3Aapp%3Apull&service=reg"
            && request.header("authorization").is_none_or(|value| value == BASIC)
    })
    .await;
    let realm = format!("Bearer realm=\"http://{}/token\",service=\"reg\"", tokens.address);
    let server = guarded("Bearer t1", move |_| realm.clone()).await;
    pull_with(&server, None).await.unwrap();
    assert!(tokens.requests()[0].header("authorization").is_none());
    pull_with(&server, password("me", "hunter2")).await.unwrap();
    assert_eq!(tokens.requests()[1].header("authorization"), Some(BASIC));
    let (kind, text) = pull_with(&server, password("me", "hunter3")).await.unwrap_err();
    assert_eq!(kind, ErrorKind::PermissionDenied);
    assert!(
        text.contains("cannot get a token") && !text.contains("hunter") && !text.contains("scope"),
        "{text}"
    );
}

#[tokio::test]
async fn identity_tokens_are_posted_and_registry_tokens_sent_as_they_are() {
    let tokens = token_host(|request| {
        request.method == "POST"
            && request.body.contains("refresh_token=id%2F1")
            && request.body.contains("scope=repository")
    })
    .await;
    let realm = format!("Bearer realm=\"http://{}/token\",service=\"reg\"", tokens.address);
    let server = guarded("Bearer t1", move |_| realm.clone()).await;
    pull_with(&server, only(|f| f.identity_token = "id/1".into())).await.unwrap();
    let server = guarded("Bearer r1", |_| "Bearer realm=\"http://127.0.0.1:1/\"".into()).await;
    pull_with(&server, only(|f| f.registry_token = "r1".into())).await.unwrap();
    assert_eq!(server.requests()[0].header("authorization"), Some("Bearer r1"));
    assert!(pull_with(&server, only(|f| f.registry_token = "r2".into())).await.is_err());
}

#[tokio::test]
async fn a_token_that_expired_is_renewed() {
    let tokens = Server::start(Content::default(), |request| {
        Some(Reply::new(200, format!(r#"{{"access_token":"t{}"}}"#, request.nth)))
    })
    .await;
    let realm = format!("Bearer realm=\"http://{}/token\"", tokens.address);
    let shared = content();
    let server = Server::start(Content::default(), move |request| {
        let wanted = if request.path().contains("manifests") { "Bearer t0" } else { "Bearer t1" };
        let refused = || Reply::new(401, "").header("WWW-Authenticate", realm.clone());
        Some(if request.header("authorization") == Some(wanted) {
            honest(&shared, request)
        } else {
            refused()
        })
    })
    .await;
    pull_with(&server, None).await.unwrap();
    assert_eq!(tokens.requests().len(), 2);
}

#[tokio::test]
async fn a_token_host_without_encryption_is_not_asked() {
    let tokens = token_host(|_| true).await;
    // The same machine under another name is in another domain.
    let realm = format!("http://localhost:{}/token", tokens.address.port());
    let challenge = format!("Bearer realm=\"{realm}\"");
    let server = guarded("Bearer t1", move |_| challenge.clone()).await;
    let (kind, text) = pull_with(&server, password("me", "hunter2")).await.unwrap_err();
    assert_eq!(kind, ErrorKind::PermissionDenied);
    assert!(text.contains("not encrypted"), "{text}");
    assert!(tokens.requests().is_empty());
}

#[tokio::test]
async fn a_token_host_may_not_send_us_on() {
    let other = token_host(|_| true).await;
    let target = format!("http://{}/token", other.address);
    let tokens = Server::start(Content::default(), move |_| {
        Some(Reply::new(302, "").header("Location", target.clone()))
    });
    let tokens = tokens.await;
    let challenge = format!("Bearer realm=\"http://{}/token\"", tokens.address);
    let server = guarded("Bearer t1", move |_| challenge.clone()).await;
    assert!(pull_with(&server, password("me", "hunter2")).await.is_err());
    assert!(other.requests().is_empty());
}

#[tokio::test]
async fn a_redirect_carries_no_credentials_to_another_host() {
    let content = content();
    let storage = Server::honest(content.clone()).await;
    let address = storage.address;
    let server = Server::start(content, move |request| {
        if request.header("authorization") != Some(BASIC) {
            return Some(Reply::new(401, "").header("WWW-Authenticate", "Basic realm=x"));
        }
        let target = format!("http://{address}{}", request.target);
        request.path().contains("blobs").then(|| Reply::new(307, "").header("Location", target))
    })
    .await;
    pull_with(&server, password("me", "hunter2")).await.unwrap();
    assert_eq!(storage.requests().len(), 2, "config and layer");
    assert!(storage.requests().iter().all(|request| request.header("authorization").is_none()));
}

#[tokio::test]
async fn a_redirect_back_home_is_a_strangers_request() {
    let home: Arc<std::sync::OnceLock<std::net::SocketAddr>> = Arc::default();
    let back = Arc::clone(&home);
    let storage = Server::start(Content::default(), move |request| {
        let target = format!("http://{}{}", back.get().unwrap(), request.target.replace("/v2/", "/other/"));
        Some(Reply::new(302, "").header("Location", target))
    })
    .await;
    let away = storage.address;
    let server = Server::start(content(), move |request| {
        if request.path().starts_with("/other/") {
            return Some(Reply::new(403, "secret of the registry"));
        }
        if request.header("authorization") != Some(BASIC) {
            return Some(Reply::new(401, "").header("WWW-Authenticate", "Basic realm=x"));
        }
        Some(Reply::new(302, "").header("Location", format!("http://{away}{}", request.target)))
    })
    .await;
    home.set(server.address).unwrap();
    let (_, text) = pull_with(&server, password("me", "hunter2")).await.unwrap_err();
    assert!(!text.contains("secret"), "{text}");
    let strangers: Vec<_> =
        server.requests().into_iter().filter(|a| a.path().starts_with("/other/")).collect();
    assert!(strangers.len() == 1 && strangers[0].header("authorization").is_none());
}

#[tokio::test]
async fn credentials_that_name_another_host_stay_here() {
    let server = guarded(BASIC, |_| "Basic realm=x".into()).await;
    let named = |host: String| {
        only(|f| {
            (f.username, f.password, f.server_address) = ("me".into(), "hunter2".into(), host);
        })
    };
    assert!(pull_with(&server, named("https://other.example/v1/".into())).await.is_err());
    assert!(server.requests().iter().all(|request| request.header("authorization").is_none()));
    pull_with(&server, named(format!("http://{}", server.address))).await.unwrap();
}

/// Pulls from a registry at 127.0.0.1 whose token host is `localhost`, a different domain; both use TLS with one
/// authority. Returns what the token host was shown, and how the pull ended.
async fn shown_to_localhost(
    token_hosts: &[&str],
    allows: impl Fn(&Request) -> bool + Send + Sync + 'static,
) -> (Option<String>, Result<(), String>) {
    let authority = Authority::generate();
    let (pem, acceptor) = (authority.pem(), authority.server(NAMES, Clients::Anybody));
    let tokens = Server::tls(Content::default(), acceptor.clone(), move |request| {
        Some(if allows(request) { Reply::new(200, r#"{"token":"t1"}"#) } else { Reply::new(401, "") })
    });
    let tokens = tokens.await;
    let challenge = format!("Bearer realm=\"https://localhost:{}/token\"", tokens.address.port());
    let server = Server::tls(content(), acceptor, move |request| {
        let refused = || Reply::new(401, "").header("WWW-Authenticate", challenge.clone());
        (request.header("authorization") != Some("Bearer t1")).then(refused)
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let certs = dir.path().join("certs.d");
    std::fs::create_dir_all(certs.join("_default")).unwrap();
    std::fs::write(certs.join("_default/ca.pem"), pem).unwrap();
    let hosts = format!("server = \"https://{}\"\nca = \"ca.pem\"\n", server.address);
    std::fs::write(certs.join("_default/hosts.toml"), hosts).unwrap();
    let store = Arc::new(wharf_images::Store::open(&dir.path().join("store")).unwrap());
    let allowed = token_hosts.iter().map(|&host| host.to_owned()).collect();
    let token_hosts = [("127.0.0.1".to_owned(), allowed)].into();
    let config = Config { files: certificates(certs), token_hosts, limits: patient(), ..Config::default() };
    let puller = Puller::new(store, config);
    let pulled = puller.pull(&server.reference(":v1"), password("me", "hunter2")).await;
    let shown = tokens.requests()[0].header("authorization").map(str::to_owned);
    (shown, pulled.map(|_| ()).map_err(|error| wharf_types::chain(&*error)))
}

#[tokio::test]
async fn a_token_host_of_another_domain_is_asked_anonymously() {
    let (shown, pulled) = shown_to_localhost(&[], |_| true).await;
    assert_eq!((shown, pulled), (None, Ok(())));
}

#[tokio::test]
async fn the_error_of_a_withheld_password_names_the_key_that_allows_it() {
    let (shown, pulled) =
        shown_to_localhost(&[], |request| request.header("authorization") == Some(BASIC)).await;
    let error = pulled.unwrap_err();
    assert_eq!(shown, None);
    for word in ["not sent to localhost", "\"127.0.0.1\" = [\"localhost\"]", "[registry.token_hosts]", "401"]
    {
        assert!(error.contains(word), "{word} is missing in: {error}");
    }
}

#[tokio::test]
async fn a_token_host_that_the_configuration_allows_is_shown_the_password() {
    let (shown, pulled) = shown_to_localhost(&["localhost"], |_| true).await;
    assert_eq!((shown.as_deref(), pulled), (Some(BASIC), Ok(())));
}

#[tokio::test]
async fn a_registry_behind_a_gateway_gets_an_anonymous_token() {
    let tokens = token_host(|request| request.target.contains("scope=repository%3Areal%2Fapp%3Apull")).await;
    let challenge =
        format!("Bearer realm=\"http://{}/token\",scope=\"repository:real/app:pull\"", tokens.address);
    let real = guarded("Bearer t1", move |_| challenge.clone()).await;
    let address = real.address;
    let gateway = Server::start(Content::default(), move |request| {
        if request.header("authorization") != Some(BASIC) {
            return Some(Reply::new(401, "").header("WWW-Authenticate", "Basic realm=x"));
        }
        Some(Reply::new(307, "").header("Location", format!("http://{address}{}", request.target)))
    })
    .await;
    pull_with(&gateway, password("me", "hunter2")).await.unwrap();
    assert_eq!(tokens.requests().len(), 1, "one token for all");
    assert!(tokens.requests()[0].header("authorization").is_none());
    assert!(
        real.requests()
            .iter()
            .all(|request| request.header("authorization").is_none_or(|it| it == "Bearer t1"))
    );
    assert!(
        gateway.requests().iter().all(|request| request.header("authorization").is_none_or(|it| it == BASIC))
    );
}

#[tokio::test]
async fn a_registry_behind_a_gateway_that_wants_a_password_gets_none() {
    let real = guarded(BASIC, |_| "Basic realm=\"x\"".into()).await;
    let address = real.address;
    let gateway = Server::start(Content::default(), move |request| {
        Some(Reply::new(307, "").header("Location", format!("http://{address}{}", request.target)))
    })
    .await;
    let (kind, _) = pull_with(&gateway, password("me", "hunter2")).await.unwrap_err();
    assert_eq!(kind, ErrorKind::PermissionDenied);
    assert!(real.requests().len() == 1 && real.requests()[0].header("authorization").is_none());
}
