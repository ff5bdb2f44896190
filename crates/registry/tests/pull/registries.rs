//! Pulls by `registries.conf`, and with the node's own credentials.

use std::sync::Arc;

use wharf_registry::{AuthFields, Config, Credentials, HostFiles, Puller};
use wharf_types::{ErrorKind, Failure, Reference};

use crate::auth::{BASIC, guarded};
use crate::image::{Content, gzip};
use crate::server::Server;
use crate::world::{World, password, patient};

/// base64 of `me:hunter2`, as a file has it.
const AUTH: &str = "bWU6aHVudGVyMg==";

/// A puller into the world's store, with files of this text.
fn puller(world: &World, conf: &str, auth: &str) -> Puller {
    let [conf_path, auth_path] = ["registries.conf", "auth.json"].map(|name| world.dir().join(name));
    std::fs::write(&conf_path, conf).unwrap();
    std::fs::write(&auth_path, auth).unwrap();
    let files =
        HostFiles { registries_conf: Some(conf_path), auth_files: vec![auth_path], ..HostFiles::default() };
    Puller::new(Arc::clone(&world.store), Config { files, limits: patient(), ..Config::default() })
}

fn content() -> Content {
    Content::oci("v1", &[gzip("a", b"one")])
}

/// The same image below another repository.
async fn at(repository: &'static str) -> Server {
    let mut content = content();
    let files = std::mem::take(&mut content.files);
    content.files = files
        .into_iter()
        .map(|(path, file)| (path.replace("/app/", &format!("/{repository}/")), file))
        .collect();
    Server::honest(content).await
}

fn fields(username: &str, password: &str) -> AuthFields {
    AuthFields { username: username.into(), password: password.into(), ..AuthFields::default() }
}

fn reference() -> Reference {
    "registry.example/team/app:v1".parse().unwrap()
}

#[tokio::test]
async fn an_image_comes_from_its_location_under_the_name_that_was_asked_for() {
    let (mirror, origin) = (Server::honest(Content::default()).await, at("inside/app").await);
    let conf = format!(
        "[[registry]]\nprefix = \"registry.example/team\"\nlocation = \"{}/inside\"\ninsecure = true\n\
         [[registry.mirror]]\nlocation = \"{}/cache\"\ninsecure = true\n",
        origin.address, mirror.address
    );
    let world = World::new();
    let puller = puller(&world, &conf, "{}");
    let image = puller.pull(&reference(), None).await.unwrap();
    assert_eq!(image.repo_tags(), ["registry.example/team/app:v1"]);
    let targets = |server: &Server| server.requests().iter().map(|it| it.target.clone()).collect::<Vec<_>>();
    assert_eq!(targets(&mirror), ["/v2/cache/app/manifests/v1"], "without the name of the registry");
    assert_eq!(targets(&origin)[0], "/v2/inside/app/manifests/v1");
    let asked = puller.explain(&reference()).await.unwrap();
    let shown: Vec<_> = asked.iter().map(|it| format!("{} {} {}", it.url, it.is_mirror, it.proof)).collect();
    let want = [(&mirror, "cache", true), (&origin, "inside", false)].map(|(server, path, is_mirror)| {
        let place = format!("{}/v2/{path}/app {is_mirror}", server.address);
        [format!("http://{place} plain"), format!("https://{place} unverified")]
    });
    assert_eq!(shown, want.concat());
    assert!(asked.iter().all(|it| it.file == Some(world.dir().join("registries.conf"))));
}

#[tokio::test]
async fn two_repositories_of_one_host_are_two_places() {
    let server = at("prod/app").await;
    let conf = format!(
        "[[registry]]\nprefix = \"registry.example/team\"\nlocation = \"{0}/prod\"\n\
         [[registry.mirror]]\nlocation = \"{0}/cache\"\n",
        server.address
    );
    let world = World::new();
    puller(&world, &conf, "{}").pull(&reference(), None).await.unwrap();
    let asked: Vec<_> = server.requests().iter().map(|it| it.target.clone()).collect();
    assert_eq!(asked[..2], ["/v2/cache/app/manifests/v1", "/v2/prod/app/manifests/v1"]);
}

#[tokio::test]
async fn a_pull_with_credentials_of_its_own_gets_none_of_the_nodes() {
    let mirror = guarded(BASIC, |_| "Basic realm=\"x\"".into()).await;
    let origin = guarded("Basic bWU6b3RoZXI=", |_| "Basic realm=\"x\"".into()).await;
    let conf = format!(
        "[[registry]]\nprefix = \"registry.example/team\"\nlocation = \"{}\"\n\
         [[registry.mirror]]\nlocation = \"{}\"\n",
        origin.address, mirror.address
    );
    let auth = format!(r#"{{"auths": {{"{}": {{"auth": "{AUTH}"}}}}}}"#, mirror.address);
    let pull = async |credentials| {
        let world = World::new();
        let pulled = puller(&world, &conf, &auth).pull(&reference(), credentials).await;
        pulled.map(|_image| ()).map_err(|error| error.kind())
    };
    assert_eq!(pull(password("me", "wrong")).await, Err(ErrorKind::PermissionDenied));
    pull(password("me", "other")).await.unwrap();
    pull(None).await.unwrap();
    let elsewhere = AuthFields { server_address: "other.example".into(), ..fields("me", "wrong") };
    pull(Credentials::from_fields(elsewhere).unwrap()).await.unwrap();
}

#[tokio::test]
async fn a_blocked_image_is_refused_before_anybody_is_asked() {
    let world = World::new();
    let puller = puller(&world, "[[registry]]\nlocation = \"registry.example\"\nblocked = true", "{}");
    let error = puller.pull(&reference(), None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    assert!(wharf_types::chain(&*error).contains("is blocked by /"), "{error}");
}

#[tokio::test]
async fn an_edit_takes_effect_at_once() {
    let (one, two) = (at("one/app").await, at("two/app").await);
    let world = World::new();
    let conf = |server: &Server, path: &str| {
        format!(
            "[[registry]]\nprefix = \"registry.example/team\"\nlocation = \"{}/{path}\"\n",
            server.address
        )
    };
    let puller = puller(&world, &conf(&one, "one"), "{}");
    puller.pull(&reference(), None).await.unwrap();
    std::fs::write(world.dir().join("registries.conf"), conf(&two, "two")).unwrap();
    puller.pull(&reference(), None).await.unwrap();
    assert!(!one.requests().is_empty() && !two.requests().is_empty());
}

#[tokio::test]
async fn the_nodes_credentials_are_for_their_host_and_those_of_the_pull_go_before() {
    let server = guarded(BASIC, |_| "Basic realm=\"x\"".into()).await;
    let auth = |host: &str, auth: &str| format!(r#"{{"auths": {{"{host}": {{"auth": "{auth}"}}}}}}"#);
    let address = server.address.to_string();
    let pull = async |auth: &str, credentials| {
        let world = World::new();
        let pulled = puller(&world, "", auth).pull(&server.reference(":v1"), credentials).await;
        pulled.map(|_image| ()).map_err(|error| error.kind())
    };
    pull(&auth(&address, AUTH), None).await.unwrap();
    pull(&auth(&format!("{address}/app"), AUTH), None).await.unwrap();
    assert_eq!(pull(&auth(&format!("{address}/other"), AUTH), None).await, Err(ErrorKind::PermissionDenied));
    assert_eq!(pull(&auth("127.0.0.1", AUTH), None).await, Err(ErrorKind::PermissionDenied));
    let wrong = "bWU6d3Jvbmc=";
    assert_eq!(pull(&auth(&address, wrong), None).await, Err(ErrorKind::PermissionDenied));
    pull(&auth(&address, wrong), password("me", "hunter2")).await.unwrap();
    assert_eq!(pull("{", None).await, Err(ErrorKind::FailedPrecondition));
}

#[tokio::test]
async fn a_name_without_a_registry_may_have_several_meanings() {
    let world = World::new();
    let conf = "unqualified-search-registries = [\"a.b\", \"c.d\"]\nshort-name-mode = \"permissive\"\n";
    let puller = puller(&world, conf, "{}");
    let names = |names: Vec<Reference>| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(names(puller.names("app:v1").await.unwrap()), ["a.b/app:v1", "c.d/app:v1"]);
    assert_eq!(names(puller.names("e.f/app").await.unwrap()), ["e.f/app:latest"]);
    assert_eq!(puller.names("UPPER").await.unwrap_err().kind(), ErrorKind::InvalidArgument);
}
