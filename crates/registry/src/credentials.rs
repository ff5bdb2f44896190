//! The secrets of one pull. They exist only in memory, are wiped when dropped, and never appear in debug output.

use std::fmt;
use std::hash::{Hash, Hasher};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use wharf_types::{ErrorKind, Failure, Reference};
use zeroize::Zeroizing;

use crate::hosts::one_spelling;

/// The longest field of the credentials, in bytes.
const FIELD_LIMIT_BYTES: usize = 64 << 10;

/// Why credentials cannot be used. It names the field, never its content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the field {field} of the credentials {reason}")]
pub struct CredentialsError {
    /// The field, as the CRI's AuthConfig names it.
    pub field: &'static str,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl Failure for CredentialsError {
    /// The class of the error: always an invalid argument.
    fn kind(&self) -> ErrorKind {
        ErrorKind::InvalidArgument
    }
}

/// A text that is wiped when dropped and is shown as `***`.
#[derive(Clone, PartialEq, Eq, Default)]
pub(crate) struct Secret(Zeroizing<String>);

impl Secret {
    pub(crate) fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl Hash for Secret {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.as_str().hash(state);
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The fields of the CRI's AuthConfig as they came; empty means absent. All are secret except the server address.
#[derive(Default)]
pub struct AuthFields {
    /// The user name that belongs to `password`.
    pub username: String,
    /// The password.
    pub password: String,
    /// Base64 of `user:password`, in place of those two fields.
    pub auth: String,
    /// The registry that the credentials are for; if empty, the image's own.
    pub server_address: String,
    /// A refresh token, which a POST to the token host exchanges for a bearer token.
    pub identity_token: String,
    /// A bearer token, sent as it is.
    pub registry_token: String,
}

impl fmt::Debug for AuthFields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthFields").field("server_address", &self.server_address).finish_non_exhaustive()
    }
}

/// What a pull may send to prove its identity.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Credentials {
    server: Option<Box<str>>,
    proof: Proof,
}

/// The kinds of credentials.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Proof {
    /// A user name and a password.
    Password {
        /// The user name.
        username: Secret,
        /// The password.
        password: Secret,
    },
    /// A refresh token.
    Identity(Secret),
    /// A bearer token for the registry itself.
    Bearer(Secret),
}

impl Credentials {
    /// Takes the fields of an AuthConfig; `None` if all are empty. A registry token takes precedence over an identity
    /// token, and both over a password.
    ///
    /// # Errors
    /// [`CredentialsError`] if a field is too long, has control characters, or is not of the form that its name
    /// implies.
    pub fn from_fields(fields: AuthFields) -> Result<Option<Self>, CredentialsError> {
        for (field, text) in [
            ("username", &fields.username),
            ("password", &fields.password),
            ("auth", &fields.auth),
            ("server_address", &fields.server_address),
            ("identity_token", &fields.identity_token),
            ("registry_token", &fields.registry_token),
        ] {
            check(field, text)?;
        }
        let server = server_host(&fields.server_address);
        let proof = if !fields.registry_token.is_empty() {
            Proof::Bearer(Secret::new(fields.registry_token))
        } else if !fields.identity_token.is_empty() {
            Proof::Identity(Secret::new(fields.identity_token))
        } else if !fields.username.is_empty() || !fields.password.is_empty() {
            if fields.username.contains(':') {
                return Err(CredentialsError { field: "username", reason: "has a colon" });
            }
            let [username, password] = [fields.username, fields.password].map(Secret::new);
            Proof::Password { username, password }
        } else if !fields.auth.is_empty() {
            decode(&Secret::new(fields.auth))?
        } else {
            return Ok(None);
        };
        Ok(Some(Self { server, proof }))
    }

    /// Whether they may be for what a client's name means. A client that names no server means the registry of the name
    /// as it wrote that, and knows nothing of what `registries.conf` makes of it.
    #[must_use]
    pub fn may_be_for(&self, meaning: &Reference, written: &Reference) -> bool {
        self.server.is_some() || one_spelling(meaning.host()) == one_spelling(written.host())
    }

    pub(crate) fn proof(&self) -> &Proof {
        &self.proof
    }

    /// The host that the credentials are for, if they name one; `docker.io` for all names of Docker Hub.
    pub(crate) fn server(&self) -> Option<&str> {
        self.server.as_deref()
    }
}

fn check(field: &'static str, text: &str) -> Result<(), CredentialsError> {
    if text.len() > FIELD_LIMIT_BYTES {
        return Err(CredentialsError { field, reason: "is longer than 64 KiB" });
    }
    if text.contains(['\0', '\n', '\r']) {
        return Err(CredentialsError { field, reason: "has a line break or a NUL" });
    }
    Ok(())
}

fn decode(auth: &Secret) -> Result<Proof, CredentialsError> {
    let wrong = |reason| CredentialsError { field: "auth", reason };
    let text = auth.expose().trim();
    let decoded = STANDARD.decode(text).or_else(|_padded| STANDARD_NO_PAD.decode(text));
    let bytes = Zeroizing::new(decoded.map_err(|_content| wrong("is not base64"))?);
    let text = std::str::from_utf8(&bytes).map_err(|_content| wrong("is not base64 of UTF-8"))?;
    let (username, password) = text.split_once(':').ok_or(wrong("is not base64 of user:password"))?;
    // Some programs that write Docker's file pad the password with NULs.
    let password = password.trim_matches('\0');
    check("auth", username)?;
    check("auth", password)?;
    let [username, password] = [username, password].map(|text| Secret::new(text.to_owned()));
    Ok(Proof::Password { username, password })
}

/// `https://index.docker.io/v1/` → `docker.io`; `host:5000` stays.
fn server_host(address: &str) -> Option<Box<str>> {
    let address = address.trim();
    let rest = address.split_once("://").map_or(address, |(_scheme, rest)| rest);
    let host = one_spelling(rest.split('/').next().unwrap_or_default());
    (!host.is_empty()).then(|| host.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(set: impl FnOnce(&mut AuthFields)) -> AuthFields {
        let mut fields = AuthFields::default();
        set(&mut fields);
        fields
    }

    fn password(user: &str, word: &str) -> Proof {
        Proof::Password { username: Secret::new(user.into()), password: Secret::new(word.into()) }
    }

    #[test]
    fn each_kind_of_proof_is_taken() {
        assert_eq!(Credentials::from_fields(AuthFields::default()), Ok(None));
        let proof = |fields| Credentials::from_fields(fields).unwrap().unwrap().proof;
        let both = fields(|f| (f.username, f.password) = ("u".into(), "p:q".into()));
        assert_eq!(proof(both), password("u", "p:q"));
        assert_eq!(proof(fields(|f| f.auth = "dTpwOnE=".into())), password("u", "p:q"));
        assert_eq!(proof(fields(|f| f.auth = "dTpwOnE".into())), password("u", "p:q"));
        assert_eq!(
            proof(fields(|f| f.identity_token = "i".into())),
            Proof::Identity(Secret::new("i".into()))
        );
        assert_eq!(proof(fields(|f| f.registry_token = "r".into())), Proof::Bearer(Secret::new("r".into())));
    }

    #[test]
    fn bad_fields_are_refused_without_their_content() {
        for bad in [
            fields(|f| f.auth = "hunter2!".into()),
            fields(|f| f.auth = "aHVudGVyMg==".into()),
            fields(|f| f.username = "hunter2:x".into()),
            fields(|f| f.password = "hunter2\r\nX: y".into()),
            fields(|f| f.registry_token = "hunter2".repeat(20_000)),
        ] {
            let error = Credentials::from_fields(bad).unwrap_err();
            assert!(!error.to_string().contains("hunter2"), "{error}");
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        }
    }

    #[test]
    fn nothing_secret_shows() {
        let all = fields(|f| (f.username, f.password) = ("hunter1".into(), "hunter2".into()));
        assert!(!format!("{all:?}").contains("hunter"));
        let credentials = Credentials::from_fields(all).unwrap().unwrap();
        assert!(!format!("{credentials:?}").contains("hunter"));
    }

    #[test]
    fn the_server_is_a_host() {
        for (text, want) in [
            ("", None),
            ("https://index.docker.io/v1/", Some("docker.io")),
            ("registry-1.docker.io", Some("docker.io")),
            ("http://A.b:5000/x", Some("a.b:5000")),
        ] {
            assert_eq!(server_host(text).as_deref(), want);
        }
    }
}
