//! Logins for registries: from `--creds`, or from a file in which docker, podman or skopeo stored them.
//!
//! Credential helpers, which keep logins elsewhere, are not run: root would execute a program that a user configured.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Deserialize;
use wharf_cri_api::v1::AuthConfig;
use wharf_types::{Reference, is_docker_hub, login_scope};

use crate::error::Error;
use crate::output;
use crate::terminal::{self, Input, Terminal};

/// The longest password and the longest login file, in bytes.
const LIMIT_BYTES: usize = 1 << 20;

/// A user name, and the password if one was given: `USER[:PASSWORD]`.
#[derive(Clone)]
pub(crate) struct Creds {
    user: String,
    password: Option<String>,
}

impl fmt::Debug for Creds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Creds").field("user", &self.user).finish_non_exhaustive()
    }
}

impl FromStr for Creds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (user, password) = match text.split_once(':') {
            Some((user, password)) => (user, Some(password.to_owned())),
            None => (text, None),
        };
        if user.is_empty() {
            return Err("write USER, or USER:PASSWORD".to_owned());
        }
        Ok(Self { user: user.to_owned(), password })
    }
}

impl Creds {
    /// Makes the login; asks for the password if none was given.
    pub(crate) async fn complete(self) -> Result<AuthConfig, Error> {
        let password = match self.password {
            Some(password) => password,
            None => ask(&self.user).await?,
        };
        Ok(AuthConfig { username: self.user, password, ..AuthConfig::default() })
    }
}

/// Reads one line from standard input; a terminal does not echo it.
async fn ask(user: &str) -> Result<String, Error> {
    let silent = Terminal::silent();
    if silent.is_some() {
        output::prompt(&format!("Password of {user}: "));
    }
    let mut input = Some(Input::start()?);
    let mut line = Vec::new();
    while !line.contains(&b'\n') && line.len() < LIMIT_BYTES {
        let Some(piece) = terminal::next(&mut input).await else { break };
        line.extend_from_slice(&piece);
    }
    let line = line.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let password = String::from_utf8_lossy(line).trim_end_matches('\r').to_owned();
    if password.is_empty() { Err(Error::NoPassword) } else { Ok(password) }
}

/// The login for the registry of an image, if there is one.
pub(crate) fn stored(image: &str) -> Result<Option<AuthConfig>, Error> {
    // wharfd says what is wrong with an invalid name.
    let Ok(reference) = image.parse::<Reference>() else { return Ok(None) };
    for path in files(|name| std::env::var_os(name)) {
        let logins = read(&path).map_err(|cause| Error::File { path, cause })?;
        if let Some(login) = logins.of(&reference) {
            return Ok(Some(login.clone().into()));
        }
    }
    Ok(None)
}

/// The files to search for logins: the one that the environment names, or else podman's and then docker's.
fn files(environment: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let path = |name| environment(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(file) = path("REGISTRY_AUTH_FILE") {
        return vec![file];
    }
    let podman = path("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json"));
    let docker = path("DOCKER_CONFIG").or_else(|| Some(path("HOME")?.join(".docker")));
    podman.into_iter().chain(docker.map(|dir| dir.join("config.json"))).collect()
}

/// Reads a login file; a missing one has no logins.
fn read(path: &Path) -> io::Result<Logins> {
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Logins::default()),
        file => file?,
    };
    Ok(serde_json::from_reader(file.take(LIMIT_BYTES as u64))?)
}

/// The relevant part of docker's `config.json` and podman's `auth.json`.
#[derive(Default, Deserialize)]
struct Logins {
    #[serde(default)]
    auths: BTreeMap<String, Login>,
}

/// One login; all fields are empty if a credential helper has it.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Login {
    username: String,
    password: String,
    auth: String,
    #[serde(rename = "identitytoken")]
    identity_token: String,
    #[serde(rename = "registrytoken")]
    registry_token: String,
}

impl From<Login> for AuthConfig {
    fn from(login: Login) -> Self {
        let Login { username, password, auth, identity_token, registry_token } = login;
        Self { username, password, auth, server_address: String::new(), identity_token, registry_token }
    }
}

impl Logins {
    /// The login for an image. A login for the repository takes precedence over one for a part of its name, and that
    /// over one for the registry.
    fn of(&self, reference: &Reference) -> Option<&Login> {
        let name = reference.name();
        let mut part = Some(name.as_str());
        while let Some(scope) = part {
            let mut matching = self.auths.iter().filter(|(key, _)| self::scope(key) == scope);
            if let Some((_key, login)) = matching.find(|(_, login)| **login != Login::default()) {
                return Some(login);
            }
            part = scope.rsplit_once('/').map(|(rest, _last)| rest);
        }
        None
    }
}

/// What a key applies to: `https://index.docker.io/v1/` → `docker.io`; `quay.io/org` stays.
fn scope(key: &str) -> String {
    let (host, part) = login_scope(key);
    let host = if is_docker_hub(host) { "docker.io" } else { host };
    if part.is_empty() { host.to_owned() } else { format!("{host}/{part}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_colon_ends_the_user() {
        let creds = |text: &str| text.parse::<Creds>().map(|creds| (creds.user, creds.password));
        assert_eq!(creds("me"), Ok(("me".to_owned(), None)));
        assert_eq!(creds("me:a:b"), Ok(("me".to_owned(), Some("a:b".to_owned()))));
        assert_eq!(creds("me:"), Ok(("me".to_owned(), Some(String::new()))));
        assert!(creds("").is_err() && creds(":a").is_err());
        assert!(!format!("{:?}", "me:hunter2".parse::<Creds>()).contains("hunter2"));
    }

    #[test]
    fn the_file_that_is_named_counts_alone() {
        let with = |set: &[(&str, &str)]| {
            let set: BTreeMap<String, OsString> =
                set.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value))).collect();
            files(|name| set.get(name).cloned())
        };
        let all = [("HOME", "/root"), ("XDG_RUNTIME_DIR", "/run/user/0"), ("REGISTRY_AUTH_FILE", "")];
        let both = ["/run/user/0/containers/auth.json", "/root/.docker/config.json"].map(PathBuf::from);
        assert_eq!(with(&all), both);
        assert_eq!(
            with(&[("HOME", "/root"), ("DOCKER_CONFIG", "/etc/docker")]),
            [PathBuf::from("/etc/docker/config.json")]
        );
        assert_eq!(with(&[("HOME", "/root"), ("REGISTRY_AUTH_FILE", "/a")]), [PathBuf::from("/a")]);
        assert_eq!(with(&[]), Vec::<PathBuf>::new());
    }

    #[test]
    fn the_nearest_login_counts() {
        let logins: Logins = serde_json::from_str(
            r#"{"credsStore": "desktop", "auths": {
                "https://index.docker.io/v1/": {"auth": "hub"},
                "quay.io": {"auth": "quay"},
                "quay.io/org": {"username": "of", "password": "org"},
                "quay.io/org/app": {},
                "http://127.0.0.1:5000": {"identitytoken": "local", "email": "x"},
                "ghcr.io": {}}}"#,
        )
        .unwrap();
        let of =
            |image: &str| logins.of(&image.parse().unwrap()).map(|login| AuthConfig::from(login.clone()));
        let auth = |auth: &str| Some(AuthConfig { auth: auth.to_owned(), ..AuthConfig::default() });
        assert_eq!(of("nginx"), auth("hub"));
        assert_eq!(of("docker.io/org/app:1"), auth("hub"));
        assert_eq!(of("quay.io/other"), auth("quay"));
        let org =
            AuthConfig { username: "of".to_owned(), password: "org".to_owned(), ..AuthConfig::default() };
        assert_eq!((of("quay.io/org/app"), of("quay.io/organ")), (Some(org), auth("quay")));
        assert_eq!(of("127.0.0.1:5000/app").unwrap().identity_token, "local");
        assert_eq!((of("ghcr.io/app"), of("127.0.0.1/app")), (None, None), "kept by a helper; not there");
    }

    #[test]
    fn a_file_may_be_missing_but_not_broken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        assert!(read(&path).unwrap().auths.is_empty());
        for (text, is_good) in [("{}", true), (r#"{"auths": {}}"#, true), ("", false), ("[1]", false)] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(read(&path).is_ok(), is_good, "{text}");
        }
    }
}
