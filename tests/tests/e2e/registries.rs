//! Registries with requirements for their clients: trust, certificates, passwords, fallback from failing mirrors.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use nix::pty::openpty;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tonic::{Code, Status};
use wharf_cri_api::v1::{AuthConfig, Image, ImageStatusRequest, PullImageRequest};

use crate::authority::{Authority, Clients};
use crate::client::{Client, image};
use crate::image::{Content, noise, plain};
use crate::place;
use crate::server::{Reply, Request, Server};
use crate::world::{World, run, run_on};

/// The image on the registry of that name and on the servers of these tests.
const IMAGE: &str = "registry.example/app:v1";
/// base64 of `me:hunter2`
const BASIC: &str = "bWU6aHVudGVyMg==";

fn content() -> Content {
    Content::oci("v1", &[plain("file", &noise(10_000))])
}

/// Writes files about a registry below certs.d.
fn hosts(world: &World, host: &str, files: &[(&str, &str)]) {
    let dir = world.dir.join("certs.d").join(host);
    fs::create_dir_all(&dir).unwrap();
    for (name, text) in files {
        fs::write(dir.join(name), text).unwrap();
    }
}

/// Checks that a pull by either name is refused with these words and with the server's own name.
async fn refused(client: &Client, server: &Server, words: &[&str]) {
    let error = client.pull(IMAGE).await.unwrap_err();
    assert_eq!(error.code(), Code::Unknown, "{error}");
    assert!(error.message().starts_with("RegistryUnavailable: "), "{error}");
    for word in [&*server.address.to_string()].into_iter().chain(words.iter().copied()) {
        assert!(error.message().contains(word), "{word} is missing in: {}", error.message());
    }
}

#[test]
fn an_authority_of_hosts_toml_is_trusted() {
    run(async |world| {
        let authority = Authority::generate();
        let acceptor = authority.server(&["127.0.0.1"], Clients::Anybody);
        let server = Server::tls(content(), acceptor, |_| None).await;
        let (own, settings) =
            (server.address.to_string(), format!("server = \"https://{}\"\n", server.address));
        let trusting = format!("{settings}ca = \"ca.pem\"\n");
        let words = ["`ca` in its hosts.toml", "certificate"];
        hosts(world, "registry.example", &[("hosts.toml", &settings)]);
        refused(&world.client, &server, &words).await;
        let other = Authority::generate().pem();
        hosts(world, "registry.example", &[("hosts.toml", &trusting), ("ca.pem", &other)]);
        refused(&world.client, &server, &words).await;
        let good = [("hosts.toml", trusting.as_str()), ("ca.pem", &authority.pem())];
        hosts(world, "registry.example", &good);
        let id = world.client.pull(IMAGE).await.unwrap();
        hosts(world, &own, &good);
        assert_eq!(world.client.pull(&format!("{own}/app:v1")).await.unwrap(), id);
    });
}

#[test]
fn a_proxy_in_the_daemons_environment_is_asked() {
    run(async |world| {
        let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = proxy.local_addr().unwrap();
        world.daemon.end().await;
        world.daemon.start_with(&[("HTTPS_PROXY", &format!("http://{address}"))]);
        world.connect().await;
        // Afterwards nobody listens any more.
        let asked = async move {
            let mut told = [0; 37];
            proxy.accept().await.unwrap().0.read_exact(&mut told).await.unwrap();
            String::from_utf8(told.to_vec()).unwrap()
        };
        let (told, pulled) = tokio::join!(asked, world.client.pull(IMAGE));
        assert_eq!(told, "CONNECT registry.example:443 HTTP/1.1");
        let error = pulled.unwrap_err();
        assert!(error.message().contains(&address.to_string()), "{error}");
    });
}

#[test]
fn a_registry_gets_the_certificate_that_it_wants() {
    run(async |world| {
        let authority = Authority::generate();
        let acceptor = authority.server(&["127.0.0.1"], Clients::Certified);
        let server = Server::tls(content(), acceptor, |_| None).await;
        let settings = format!("server = \"https://{}\"\nca = \"ca.pem\"\n", server.address);
        hosts(world, "registry.example", &[("hosts.toml", &settings), ("ca.pem", &authority.pem())]);
        refused(&world.client, &server, &["`client` in its hosts.toml"]).await;
        let (certificate, key) = authority.client();
        let settings = format!("{settings}client = [[\"client.pem\", \"client.key\"]]\n");
        let files = [("hosts.toml", settings.as_str()), ("client.pem", &certificate), ("client.key", &key)];
        hosts(world, "registry.example", &files);
        world.client.pull(IMAGE).await.unwrap();
    });
}

/// What a status says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    Plain,
    Verbose,
}

/// The status of the image, as a kubelet asks for it or as `wharf inspect` does.
async fn status(client: &Client, extent: Extent) -> Result<Option<Image>, Status> {
    let request = ImageStatusRequest { image: Some(image(IMAGE)), verbose: extent == Extent::Verbose };
    Ok(client.images.clone().image_status(request).await?.into_inner().image)
}

#[test]
fn an_image_that_is_damaged_stays_and_is_pulled_again() {
    run(async |world| {
        let (client, server) = (&world.client, Server::honest(content()).await);
        hosts(
            world,
            "registry.example",
            &[("hosts.toml", &format!("server = \"http://{}\"\n", server.address))],
        );
        let id = client.pull(IMAGE).await.unwrap();
        let config = world.dir.join("root/content/sha256").join(id.trim_start_matches("sha256:"));
        let pod = client.run(&client.pod("main")).await.unwrap();
        let mut container = client.container("main", "true");
        container.image = Some(image(IMAGE));
        for is_made in [false, true] {
            let whole = fs::read(&config).unwrap();
            fs::write(&config, whole.to_ascii_uppercase()).unwrap();
            let found = match is_made {
                true => client.create(&pod, &container).await.map(drop),
                false => status(client, Extent::Verbose).await.map(drop),
            };
            assert_eq!(found.unwrap_err().code(), Code::DataLoss, "{is_made}");
            let listed = client.image_list().await;
            assert!(listed.iter().any(|image| image.id == id), "a read removes nothing: {listed:?}");
            assert_eq!(status(client, Extent::Plain).await.unwrap(), None, "a kubelet pulls what is missing");
            assert_eq!(client.pull(IMAGE).await.unwrap(), id);
            assert!(
                status(client, Extent::Plain).await.unwrap().is_some() && fs::read(&config).unwrap() == whole
            );
        }
        client.create(&pod, &container).await.unwrap();
        client.down(&pod).await.unwrap();
    });
}

#[test]
fn mirrors_that_are_of_no_use_are_passed_over() {
    run(async |world| {
        let (stranger, empty) = (Authority::generate(), Server::honest(Content::default()).await);
        let untrusted = stranger.server(&["127.0.0.1"], Clients::Anybody);
        let untrusted = Server::tls(content(), untrusted, |_| None).await;
        let broken = Server::start(content(), |_| Some(Reply::new(503, ""))).await;
        let (good, registry) = (Server::honest(content()).await, Server::honest(content()).await);
        // Nobody listens on the discard port.
        let down = "[host.\"http://127.0.0.1:9\"]\n".to_owned();
        let mirror = |scheme: &str, server: &Server| format!("[host.\"{scheme}://{}\"]\n", server.address);
        let bad = down + &mirror("https", &untrusted) + &mirror("http", &empty) + &mirror("http", &broken);
        let server = format!("server = \"http://{}\"\n", registry.address);
        hosts(
            world,
            "registry.example",
            &[("hosts.toml", &format!("{server}{bad}{}", mirror("http", &good)))],
        );
        world.client.pull(IMAGE).await.unwrap();
        assert_eq!(good.requests().len(), 3, "manifest, config, layer");
        assert!(registry.requests().is_empty());
        world.client.remove_image(IMAGE).await.unwrap();
        hosts(world, "registry.example", &[("hosts.toml", &format!("{server}{bad}"))]);
        world.client.pull(IMAGE).await.unwrap();
        assert_eq!(registry.requests().len(), 3, "the registry itself comes last");
    });
}

// ---- Passwords ----

/// A registry that requires one authorization, and says how to get it.
async fn guarded(wanted: String, challenge: String) -> Server {
    Server::start(content(), move |request| {
        let refused = || Reply::new(401, "").header("WWW-Authenticate", challenge.clone());
        (request.header("authorization") != Some(&wanted)).then(refused)
    })
    .await
}

async fn with_password() -> Server {
    guarded(format!("Basic {BASIC}"), "Basic realm=\"x\"".to_owned()).await
}

/// A registry that requires tokens, and the host that issues them for a password or an identity token.
async fn with_tokens() -> (Server, Server) {
    let knows = |request: &Request| {
        request.header("authorization") == Some(&format!("Basic {BASIC}"))
            || request.body.contains("refresh_token=hunter2")
    };
    let given = move |request: &Request| {
        Some(if knows(request) { Reply::new(200, r#"{"token": "t1"}"#) } else { Reply::new(401, "") })
    };
    let tokens = Server::start(Content::default(), given).await;
    let challenge = format!("Bearer realm=\"http://{}/token\",service=\"here\"", tokens.address);
    (guarded("Bearer t1".to_owned(), challenge).await, tokens)
}

async fn pull_as(client: &Client, server: &Server, auth: Option<AuthConfig>) -> Result<(), Status> {
    let name = format!("{}/app:v1", server.address);
    let request = PullImageRequest { image: Some(image(&name)), auth, sandbox_config: None };
    client.images.clone().pull_image(request).await.map(drop)
}

fn auth(set: impl FnOnce(&mut AuthConfig)) -> Option<AuthConfig> {
    let mut auth = AuthConfig::default();
    set(&mut auth);
    Some(auth)
}

#[test]
fn the_credentials_of_a_pull_open_its_registry() {
    run(async |world| {
        let (simple, (bearer, _tokens)) = (with_password().await, with_tokens().await);
        let password =
            |word: &str| auth(|auth| (auth.username, auth.password) = ("me".to_owned(), word.to_owned()));
        let encoded = auth(|auth| auth.auth = BASIC.to_owned());
        for server in [&simple, &bearer] {
            for good in [password("hunter2"), encoded.clone()] {
                pull_as(&world.client, server, good).await.unwrap();
            }
            for bad in [None, password("hunter3")] {
                let error = pull_as(&world.client, server, bad).await.unwrap_err();
                assert_eq!(error.code(), Code::PermissionDenied, "{error}");
                assert!(error.message().contains(&server.address.to_string()), "{error}");
                assert!(!error.message().contains("hunter"), "{error}");
            }
        }
        pull_as(&world.client, &bearer, auth(|auth| auth.identity_token = "hunter2".to_owned()))
            .await
            .unwrap();
        pull_as(&world.client, &bearer, auth(|auth| auth.registry_token = "t1".to_owned())).await.unwrap();
        for secret in ["hunter", BASIC, "t1\""] {
            assert!(!world.daemon.has_logged_value(secret), "{secret} is in the log");
        }
    });
}

/// `wharf pull`, with its own home directory.
fn wharf_pull(world: &World, arguments: &[&str]) -> Command {
    wharf(world, &[&["pull"], arguments].concat())
}

fn wharf(world: &World, arguments: &[&str]) -> Command {
    let mut command = place::command(&place::built().wharf);
    command.arg("--socket").arg(world.daemon.socket()).args(arguments);
    for name in ["REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "DOCKER_CONFIG"] {
        command.env_remove(name);
    }
    command.env("HOME", &world.dir).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

const BY_THE_CONF: &str = r#"
[registry]
registries_conf = "DIR/registries.conf"
auth_files = ["DIR/node.json"]
"#;

#[test]
fn registries_conf_says_where_images_are_and_what_names_mean() {
    let configured = |dir: &Path| {
        fs::create_dir(dir.join("config.toml.d")).unwrap();
        let text = BY_THE_CONF.replace("DIR", &dir.display().to_string());
        fs::write(dir.join("config.toml.d/registry.toml"), text).unwrap();
    };
    run_on(configured, async |world| {
        let server = with_password().await;
        let conf = |text: &str| fs::write(world.dir.join("registries.conf"), text).unwrap();
        let place =
            format!("[[registry]]\nprefix = \"registry.example\"\nlocation = \"{}\"\n", server.address);
        conf(&format!("{place}[aliases]\nshort = \"registry.example/app\"\n"));
        let refused = world.client.pull(IMAGE).await.unwrap_err();
        assert!(refused.message().contains("denies access"), "{refused}");
        let login = format!(r#"{{"auths": {{"{}/app": {{"auth": "{BASIC}"}}}}}}"#, server.address);
        fs::write(world.dir.join("node.json"), login).unwrap();
        let id = world.client.pull("short:v1").await.unwrap();
        let request = ImageStatusRequest { image: Some(image("short:v1")), verbose: false };
        let answer = world.client.images.clone().image_status(request).await.unwrap().into_inner();
        let named = answer.image.expect("it is here by the alias");
        assert_eq!((named.id, named.repo_tags), (id.clone(), vec![IMAGE.to_owned()]));

        let explained = wharf(world, &["registry", "explain", "short:v1"]).output().unwrap();
        let shown = String::from_utf8(explained.stdout).unwrap();
        for word in [IMAGE, &server.address.to_string(), "not encrypted", "node.json", "registries.conf"] {
            assert!(shown.contains(word), "{word}: {shown}");
        }
        assert!(!shown.contains("hunter2") && !shown.contains(BASIC), "{shown}");

        conf(&format!("{place}blocked = true\n"));
        let blocked = world.client.pull("registry.example/app:v2").await.unwrap_err();
        assert_eq!(blocked.code(), Code::FailedPrecondition, "{blocked}");
        assert!(blocked.message().contains("is blocked by"), "{blocked}");
        let nobody = wharf(world, &["registry", "explain", IMAGE]).output().unwrap();
        assert_eq!(nobody.status.code(), Some(1), "{nobody:?}");
        conf("[[registry]]\nlocation = \"https://x\"\n");
        let wrong = complaint(&wharf_pull(world, &[IMAGE]).output().unwrap());
        assert!(wrong.contains("registries.conf") && wrong.contains("has a scheme"), "{wrong}");
        let doctor = wharf(world, &["doctor"]).output().unwrap();
        let told = String::from_utf8_lossy(&doctor.stdout).into_owned();
        assert!(told.contains("registries") && told.contains("has a scheme"), "{told}");
        world.client.remove_image(&id).await.unwrap();
    });
}

/// Its error message when it is refused.
fn complaint(output: &Output) -> String {
    assert!(!output.status.success(), "{output:?}");
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn wharf_pull_says_who_it_is() {
    run(async |world| {
        let server = with_password().await;
        let name = &*format!("{}/app:v1", server.address);
        let refused = complaint(&wharf_pull(world, &[name]).output().unwrap());
        assert!(refused.contains("denies access") && refused.contains("--creds USER"), "{refused}");
        let wrong = complaint(&wharf_pull(world, &["--creds", "me:hunter3", name]).output().unwrap());
        assert!(wrong.contains("denies access") && !wrong.contains("hunter"), "{wrong}");
        let good = wharf_pull(world, &["--creds", "me:hunter2", name]).output().unwrap();
        assert!(good.status.success(), "{good:?}");

        let mut reads = wharf_pull(world, &["--creds", "me", name]).stdin(Stdio::piped()).spawn().unwrap();
        reads.stdin.take().unwrap().write_all(b"hunter2\n").unwrap();
        assert!(reads.wait().unwrap().success());
        let nothing = complaint(&wharf_pull(world, &["--creds", "me", name]).output().unwrap());
        assert!(nothing.contains("no password was given"), "{nothing}");

        let login = format!(r#"{{"auths": {{"{}": {{"auth": "{BASIC}"}}}}}}"#, server.address);
        let file = world.dir.join("auth.json");
        fs::write(&file, &login).unwrap();
        let by_file = wharf_pull(world, &[name]).env("REGISTRY_AUTH_FILE", &file).output().unwrap();
        assert!(by_file.status.success(), "{by_file:?}");
        fs::create_dir(world.dir.join(".docker")).unwrap();
        fs::write(world.dir.join(".docker/config.json"), &login).unwrap();
        assert!(wharf_pull(world, &[name]).output().unwrap().status.success());
        fs::write(world.dir.join(".docker/config.json"), "{").unwrap();
        let broken = complaint(&wharf_pull(world, &[name]).output().unwrap());
        assert!(broken.contains(".docker/config.json"), "{broken}");
    });
}

#[test]
fn a_password_that_is_typed_is_not_seen() {
    run(async |world| {
        let server = with_password().await;
        let name = format!("{}/app:v1", server.address);
        let terminal = openpty(None, None).unwrap();
        let mut command = wharf_pull(world, &["--creds", "me", &name]);
        command.stdin(Stdio::from(terminal.slave.try_clone().unwrap())).stderr(Stdio::from(terminal.slave));
        let mut pull = command.spawn().unwrap();
        // It has the other end, and so the end of what is displayed.
        drop(command);
        let mut person = File::from(terminal.master);
        let mut shown = Vec::new();
        let mut byte = [0];
        while !shown.ends_with(b"Password of me: ") {
            person.read_exact(&mut byte).unwrap();
            shown.push(byte[0]);
        }
        person.write_all(b"hunter2\n").unwrap();
        while person.read_exact(&mut byte).is_ok() {
            shown.push(byte[0]);
        }
        assert!(pull.wait().unwrap().success());
        let shown = String::from_utf8(shown).unwrap();
        assert!(shown.contains("pulled") && !shown.contains("hunter2"), "{shown}");
    });
}
