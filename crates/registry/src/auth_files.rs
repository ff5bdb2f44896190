//! The node's own credentials, for pulls that come without any: files in the format of Docker's `config.json` and
//! Podman's `auth.json`, and the credential helpers that they name. A pull's credentials that are for none of the hosts
//! count as none.
//!
//! The files are read anew for each pull. An entry for part of a registry goes before one for all of it, and a file
//! before those after it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde::Deserialize;
use wharf_programs::{ExecError, Output};
use wharf_sys::fs::read_regular;
use wharf_types::{ErrorKind, Failure, Reference, login_scope};
use zeroize::Zeroizing;

use crate::credentials::{AuthFields, Credentials, CredentialsError};
use crate::hosts::{HostSpec, one_spelling};

/// The longest file, in bytes.
const FILE_LIMIT_BYTES: usize = 4 << 20;
/// How long a credential helper may take.
const HELPER_PATIENCE: Duration = Duration::from_secs(30);
/// What Docker Hub is called in these files, by everybody.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";
/// A user name that says that the password is an identity token.
const TOKEN_USER: &str = "<token>";

/// Why the node's credentials cannot be used. It never has any of them.
#[derive(Debug, thiserror::Error)]
pub enum AuthFileError {
    /// A file exists but cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is not JSON of the right form.
    #[error("cannot parse {} at line {line}, column {column}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where, from 1.
        line: usize,
        /// Where, from 1.
        column: usize,
    },
    /// The entry for a registry makes no sense.
    #[error("{}: the entry {key:?}", path.display())]
    Entry {
        /// The file.
        path: PathBuf,
        /// The entry.
        key: String,
        /// What is wrong with it.
        #[source]
        source: CredentialsError,
    },
    /// A credential helper has failed.
    #[error("{}: the credential helper {program} for {key} {reason}", path.display())]
    Helper {
        /// The file.
        path: PathBuf,
        /// Its program.
        program: String,
        /// The registry.
        key: String,
        /// What it did.
        reason: String,
    },
}

impl Failure for AuthFileError {
    /// Somebody must correct a file or a program.
    fn kind(&self) -> ErrorKind {
        ErrorKind::FailedPrecondition
    }
}

/// Credentials that a node has for a repository.
#[derive(Debug, Clone)]
pub(crate) struct Own {
    pub(crate) credentials: Credentials,
    /// Where they are from: `/etc/wharf/auth.json, "registry.example"`.
    pub(crate) origin: String,
}

/// The files of a node, read.
#[derive(Debug, Default)]
pub(crate) struct AuthFiles(Vec<(PathBuf, Content)>);

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Content {
    auths: BTreeMap<String, RawAuth>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawAuth {
    username: Zeroizing<String>,
    password: Zeroizing<String>,
    auth: Zeroizing<String>,
    identitytoken: Zeroizing<String>,
    registrytoken: Zeroizing<String>,
}

impl std::fmt::Debug for RawAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// What a credential helper answers.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: Zeroizing<String>,
    secret: Zeroizing<String>,
}

impl AuthFiles {
    /// Reads the files; one that does not exist says nothing. Blocking.
    pub(crate) fn read(paths: &[PathBuf]) -> Result<Self, AuthFileError> {
        let mut files = Vec::new();
        for path in paths {
            match read_regular(path, FILE_LIMIT_BYTES) {
                Ok(text) => files.push((path.clone(), parse(path, &Zeroizing::new(text))?)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(AuthFileError::Read { path: path.clone(), source }),
            }
        }
        Ok(Self(files))
    }

    /// The credentials for an image at a host, if any file has some. Blocking: a helper may take half a minute.
    pub(crate) fn of(&self, spec: &HostSpec, reference: &Reference) -> Result<Option<Own>, AuthFileError> {
        self.find(spec.root.host_and_port(), spec.repository(reference))
    }

    /// What makes no sense in the files, and would be found out by a pull that needs it. No helper is asked.
    pub(crate) fn wrong(&self) -> Vec<AuthFileError> {
        self.0.iter().flat_map(|(path, content)| content.wrong(path)).collect()
    }

    fn find(&self, host: &str, repository: &str) -> Result<Option<Own>, AuthFileError> {
        let host = &place(host);
        for (path, content) in &self.0 {
            let found = match content.helper(host) {
                Some(helper) => ask(path, helper, host)?,
                None => match content.entry(path, host, repository)? {
                    Some(own) => Some(own),
                    None if content.creds_store.is_empty() => None,
                    None => ask(path, &content.creds_store, host)?,
                },
            };
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }
}

/// Parses a text, and counts its entries. An error has nothing of the text, which may be a password.
pub(crate) fn count_entries(text: &[u8]) -> Result<usize, AuthFileError> {
    parse(Path::new("auth.json"), text).map(|content| content.auths.len() + content.cred_helpers.len())
}

fn parse(path: &Path, text: &[u8]) -> Result<Content, AuthFileError> {
    serde_json::from_slice(text).map_err(|error| AuthFileError::Syntax {
        path: path.to_owned(),
        line: error.line(),
        column: error.column(),
    })
}

impl Content {
    fn wrong(&self, path: &Path) -> Vec<AuthFileError> {
        let entries = self.auths.iter().filter_map(|(key, raw)| of_entry(path, key, raw).err());
        let store = ("any registry", self.creds_store.as_str());
        let helpers = self.cred_helpers.iter().map(|(key, helper)| (key.as_str(), helper.as_str()));
        let helpers =
            helpers.chain([store]).filter_map(|(key, helper)| check_helper(path, helper, key).err());
        entries.chain(helpers).collect()
    }

    /// The helper for this registry alone.
    fn helper(&self, host: &str) -> Option<&str> {
        let own = self.cred_helpers.iter().find(|(key, _helper)| place(key) == host);
        own.map(|(_key, helper)| helper.as_str()).filter(|helper| !helper.is_empty())
    }

    /// The entry for the longest part of the repository's name.
    fn entry(&self, path: &Path, host: &str, repository: &str) -> Result<Option<Own>, AuthFileError> {
        let name = format!("{host}/{repository}");
        let is_of = |key: &str| {
            let rest = name.strip_prefix(&place(key));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let entries = self.auths.iter().filter(|(key, raw)| is_of(key) && !raw.is_empty());
        let Some((key, raw)) = entries.max_by_key(|(key, _)| place(key).len()) else { return Ok(None) };
        let credentials = of_entry(path, key, raw)?;
        Ok(credentials.map(|credentials| Own { credentials, origin: origin(path, key) }))
    }
}

impl RawAuth {
    /// Docker leaves an empty entry for what its store of credentials has.
    fn is_empty(&self) -> bool {
        let fields = [&self.username, &self.password, &self.auth, &self.identitytoken, &self.registrytoken];
        fields.iter().all(|field| field.is_empty())
    }

    fn fields(&self) -> AuthFields {
        AuthFields {
            username: self.username.to_string(),
            password: self.password.to_string(),
            auth: self.auth.to_string(),
            server_address: String::new(),
            identity_token: self.identitytoken.to_string(),
            registry_token: self.registrytoken.to_string(),
        }
    }
}

/// A key as the start of a repository's full name.
fn place(key: &str) -> String {
    let (host, part) = login_scope(key);
    let host = one_spelling(host);
    if part.is_empty() { host } else { format!("{host}/{part}") }
}

fn of_entry(path: &Path, key: &str, raw: &RawAuth) -> Result<Option<Credentials>, AuthFileError> {
    let wrong = |source| AuthFileError::Entry { path: path.to_owned(), key: key.to_owned(), source };
    Credentials::from_fields(raw.fields()).map_err(wrong)
}

/// Refuses the name of a helper that is no name of a program.
fn check_helper(path: &Path, helper: &str, key: &str) -> Result<(), AuthFileError> {
    if helper.contains('/') {
        let (path, program, key) = (path.to_owned(), helper.to_owned(), key.to_owned());
        return Err(AuthFileError::Helper { path, program, key, reason: "has a slash in its name".into() });
    }
    Ok(())
}

fn origin(path: &Path, key: &str) -> String {
    format!("{}, {key:?}", path.display())
}

/// Asks a credential helper for a registry's credentials; `None` if it has none.
fn ask(path: &Path, helper: &str, host: &str) -> Result<Option<Own>, AuthFileError> {
    check_helper(path, helper, host)?;
    ask_program(path, Path::new(&format!("docker-credential-{helper}")), host)
}

#[expect(clippy::disallowed_methods, reason = "a credential helper, which a file of the node names")]
fn ask_program(path: &Path, program: &Path, host: &str) -> Result<Option<Own>, AuthFileError> {
    let key = if host == "docker.io" { DOCKER_HUB } else { host };
    let failed = |reason: String| AuthFileError::Helper {
        path: path.to_owned(),
        program: program.display().to_string(),
        key: key.to_owned(),
        reason,
    };
    let input =
        wharf_programs::input(key.as_bytes()).map_err(|error| failed(format!("gets no input: {error}")))?;
    let mut command = Command::new(program);
    let output = wharf_programs::run(command.arg("get"), input, Instant::now() + HELPER_PATIENCE);
    let Output { status, stdout, .. } = output.map_err(|error| failed(failure(&error)))?;
    let stdout = Zeroizing::new(stdout);
    if !status.success() {
        // All helpers say it in these words, on their standard output.
        let said = String::from_utf8_lossy(&stdout);
        let has_none = said.contains("credentials not found") || said.contains("no credentials");
        return if has_none { Ok(None) } else { Err(failed(format!("has failed: {status}"))) };
    }
    let answer: Answer =
        serde_json::from_slice(&stdout).map_err(|_secret| failed("does not answer in JSON".into()))?;
    let mut fields = AuthFields::default();
    match answer.username.as_str() {
        TOKEN_USER => fields.identity_token = answer.secret.to_string(),
        user => (fields.username, fields.password) = (user.to_owned(), answer.secret.to_string()),
    }
    let credentials =
        Credentials::from_fields(fields).map_err(|error| failed(format!("answers: {error}")))?;
    let origin = format!("{}, {}", path.display(), program.display());
    Ok(credentials.map(|credentials| Own { credentials, origin }))
}

fn failure(error: &ExecError) -> String {
    match error {
        ExecError::Io(error) => format!("cannot be executed: {error}"),
        ExecError::Deadline => format!("has not answered within {} s", HELPER_PATIENCE.as_secs()),
        ExecError::TooLong => "answers with more than 1 MiB".into(),
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests make files, and have nothing else to do")]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    use crate::credentials::Proof;

    /// The proof that a file with this text has for a repository, as text, and where that is from.
    fn find(text: &str, name: &str) -> Option<(String, String)> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("auth.json");
        std::fs::write(&path, text).unwrap();
        let (host, repository) = name.split_once('/').unwrap();
        let own = AuthFiles::read(&[path]).unwrap().find(host, repository).unwrap()?;
        Some((proof(&own), own.origin.split_once("auth.json, ").unwrap().1.to_owned()))
    }

    fn proof(own: &Own) -> String {
        match own.credentials.proof() {
            Proof::Password { username, password } => format!("{}:{}", username.expose(), password.expose()),
            Proof::Identity(token) => format!("identity {}", token.expose()),
            Proof::Bearer(token) => format!("bearer {}", token.expose()),
        }
    }

    #[test]
    fn the_longest_part_of_a_name_decides() {
        let text = r#"{"auths": {
            "a.b": {"auth": "YTpi"},
            "a.b/x": {"username": "x", "password": "y"},
            "a.b/x/y": {"identitytoken": "t"},
            "https://index.docker.io/v1/": {"auth": "aHViOmh1Yg=="},
            "http://c.d:5000/v2/": {"registrytoken": "r"},
            "empty.x": {}
        }, "HttpHeaders": {"X": "y"}}"#;
        let proof = |name| find(text, name).map(|(proof, _origin)| proof);
        for (name, want) in [
            ("a.b/app", "a:b"),
            ("a.b/xy", "a:b"),
            ("a.b/x", "x:y"),
            ("a.b/x/z", "x:y"),
            ("a.b/x/y/z", "identity t"),
            ("docker.io/library/nginx", "hub:hub"),
            ("registry-1.docker.io/library/nginx", "hub:hub"),
            ("c.d:5000/e", "bearer r"),
        ] {
            assert_eq!(proof(name).as_deref(), Some(want), "{name}");
        }
        for none in ["c.d/e", "a.b.c/x", "empty.x/y"] {
            assert_eq!(proof(none), None, "{none}");
        }
        assert_eq!(find(text, "a.b/x/z").unwrap().1, "\"a.b/x\"");
    }

    #[test]
    fn the_first_file_that_has_some_counts_and_a_missing_one_says_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("one"), r#"{"auths": {"a.b": {"auth": "YTox"}}}"#).unwrap();
        std::fs::write(path("two"), r#"{"auths": {"a.b": {"auth": "YToy"}, "c.d": {"auth": "YToz"}}}"#)
            .unwrap();
        let files = AuthFiles::read(&[path("none"), path("one"), path("two")]).unwrap();
        let found = |host| files.find(host, "x").unwrap().map(|own| proof(&own));
        assert_eq!((found("a.b").as_deref(), found("c.d").as_deref()), (Some("a:1"), Some("a:3")));
    }

    #[test]
    fn errors_name_the_place_and_never_a_secret() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("auth.json");
        for (text, want) in [
            ("{\"auths\": {\"a.b\": {\"auth\": \"hunter2\" x", "at line 1, column 38"),
            (r#"{"auths": {"a.b": {"auth": "hunter2!"}}}"#, "the entry \"a.b\""),
            (r#"{"auths": {"a.b": "hunter2"}}"#, "at line 1"),
            (r#"{"credHelpers": {"a.b": "../hunter"}}"#, "has a slash in its name"),
            (
                r#"{"credHelpers": {"a.b": "wharf-missing"}}"#,
                "docker-credential-wharf-missing for a.b cannot be executed",
            ),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = AuthFiles::read(std::slice::from_ref(&path)).and_then(|files| files.find("a.b", "x"));
            let shown = wharf_types::chain(&error.unwrap_err());
            assert!(shown.contains(want) && shown.contains("/auth.json"), "{shown}");
            assert!(!shown.contains("hunter2"), "{shown}");
        }
    }

    #[test]
    fn helpers_are_asked_and_what_they_do_wrong_is_said() {
        let dir = tempfile::tempdir().unwrap();
        for (script, want) in [
            (
                "read key; echo '{\"Username\":\"me\",\"Secret\":\"'$key'\"}'",
                Ok(Some("me:https://index.docker.io/v1/")),
            ),
            ("echo '{\"Username\":\"<token>\",\"Secret\":\"t\"}'", Ok(Some("identity t"))),
            ("echo credentials not found in native keychain; exit 1", Ok(None)),
            ("echo hunter2; exit 3", Err("has failed: exit status: 3")),
            ("echo hunter2", Err("does not answer in JSON")),
            ("[ \"$1\" = get ] || exit 1; head -c 2000000 /dev/zero", Err("more than 1 MiB")),
        ] {
            let path = dir.path().join("docker-credential-test");
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            let asked = ask_program(Path::new("auth.json"), &path, "docker.io");
            match (asked, want) {
                (Ok(own), Ok(want)) => assert_eq!(own.as_ref().map(proof).as_deref(), want),
                (Err(error), Err(want)) => {
                    let shown = error.to_string();
                    assert!(shown.contains(want) && !shown.contains("hunter2"), "{shown}");
                }
                (asked, want) => panic!("{script}: {asked:?} for {want:?}"),
            }
        }
    }
}
