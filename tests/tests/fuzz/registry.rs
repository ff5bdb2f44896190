//! What registries send besides documents, and what people write about registries.

use wharf_registry::{AuthFields, Credentials, decode};
use wharf_types::Reference;

use crate::harness::Target;

const HOSTS: &str = r#"
server = "https://registry.example"
capabilities = ["pull", "resolve"]
[host."https://mirror.example:5000/v2/cache"]
capabilities = ["pull"]
ca = ["ca.pem", "other.pem"]
client = [["client.cert", "client.key"]]
skip_verify = true
override_path = true
dial_timeout = "500ms"
[host."https://mirror.example:5000/v2/cache".header]
x-one = "1"
x-more = ["2", "3"]
"#;

const REGISTRIES: &str = r#"
unqualified-search-registries = ["registry.example", "docker.io"]
short-name-mode = "permissive"
[[registry]]
prefix = "registry.example/team"
location = "inside.example:5000/team"
insecure = true
[[registry.mirror]]
location = "mirror.example/cache"
pull-from-mirror = "digest-only"
[[registry]]
prefix = "*.example.net"
blocked = true
[aliases]
app = "registry.example/team/app"
"#;
const AUTH_FILE: &str = r#"{
    "auths": {
        "registry.example/team": { "auth": "bWU6aHVudGVyMg==" },
        "https://index.docker.io/v1/": { "identitytoken": "t", "registrytoken": "r", "username": "u", "password": "p" }
    },
    "credHelpers": { "gcr.io": "gcloud" },
    "credsStore": "secretservice"
}"#;

pub(crate) fn targets() -> Vec<Target> {
    let challenges = [
        ("bearer", r#"Bearer realm="https://a.b/token?x=1,2",service="a.b",scope="repository:x/y:pull""#),
        ("several", r#"Basic realm=x, BEARER Realm = "y\"z" ,service=s, Negotiate"#),
        ("bad-none", "realm=\"x\""),
    ];
    let locations = [
        ("absolute", "https://c.d/e?f=g#h"),
        ("host", "//c.d/e"),
        ("path", "/e?u=http://x/"),
        ("query", "?z"),
        ("bad-scheme", "file:///etc/passwd"),
        ("bad-user", "https://u:p@a.b/"),
    ];
    let ranges = [("rest", "bytes 10-99/100"), ("unknown", "bytes 10-99/*"), ("bad-other", "bytes 9-99/100")];
    let tokens = [
        ("token", r#"{"token":"abc","access_token":"def","expires_in":300}"#),
        ("access", r#"{"token":"","access_token":"def","issued_at":"2020-01-01T00:00:00Z"}"#),
        ("bad-none", r#"{"token":null}"#),
    ];
    let words = [
        ("error", r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"see https://a.b/c?sig=d now"}]}"#),
        ("bad-none", r#"{"errors":[]}"#),
    ];
    vec![
        Target::of_text("hosts-toml", decode::hosts_toml, &[("all", HOSTS), ("bad-key", "sever = \"x\"")]),
        Target::of_text(
            "registries-conf",
            decode::registries_conf,
            &[("all", REGISTRIES), ("bad-key", "x = 1")],
        ),
        Target::of_text(
            "auth-file",
            decode::auth_file,
            &[("all", AUTH_FILE), ("bad-auths", r#"{"auths":[]}"#)],
        ),
        Target::of_text("challenge", decode::challenges, &challenges),
        Target::of_text("location", decode::location, &locations),
        Target::of_text("content-range", decode::content_range, &ranges),
        Target::of_text("token", decode::token, &tokens),
        Target::of_text("words", decode::words, &words),
        Target::of_text("login", login, &[("pair", "bWU6aHVudGVyMg=="), ("bad-base64", "bWU6=")]),
        Target::of_text("reference", reference, &references()),
    ]
}

/// A user name and a password, in the form of Docker's configuration.
fn login(bytes: &[u8]) -> Result<usize, String> {
    let auth = text(bytes)?.to_owned();
    let fields = AuthFields { auth, ..AuthFields::default() };
    let credentials = Credentials::from_fields(fields).map_err(|error| error.to_string())?;
    Ok(credentials.iter().count())
}

/// Checks that the text of a parsed reference has the same meaning.
fn reference(bytes: &[u8]) -> Result<usize, String> {
    let reference: Reference = text(bytes)?.parse().map_err(|error| format!("{error}"))?;
    let again: Reference = reference.to_string().parse().unwrap();
    assert_eq!(again, reference);
    Ok(reference.repository().len())
}

fn references() -> [(&'static str, &'static str); 6] {
    [
        ("short", "nginx"),
        ("port", "127.0.0.1:5000/a/b_c:v1.2-3"),
        ("address", "[::1]:5000/a"),
        ("digest", "a.b/c:t@sha256:abababababababababababababababababababababababababababababababab"),
        ("bad-case", "a/B"),
        ("bad-path", "a.b/../c"),
    ]
}

fn text(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|error| error.to_string())
}
