//! Image references, normalised as Docker does it: `docker.io/library/` and `:latest` are filled in.

use std::fmt;
use std::str::FromStr;

use crate::{Digest, DigestError, ErrorKind, Failure};

/// Why a text is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an image reference: {reason}")]
pub struct ReferenceError {
    /// The text, shortened to 300 characters.
    pub text: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl ReferenceError {
    fn of(text: &str, reason: &'static str) -> Self {
        Self { text: text.chars().take(300).collect(), reason }
    }
}

impl Failure for ReferenceError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::InvalidArgument
    }
}

/// A normalised reference: `host/repository[:tag][@digest]`. Without a tag and a digest it means `:latest`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    host: Box<str>,
    repository: Box<str>,
    tag: Option<Box<str>>,
    digest: Option<Digest>,
}

impl Reference {
    /// Parses a reference that always means the same artifact: with the registry spelt out, a digest and no tag.
    ///
    /// # Errors
    /// [`ReferenceError`], which says what is missing or too much.
    pub fn canonical(text: &str) -> Result<Self, ReferenceError> {
        let reference: Self = text.parse()?;
        let problem = match (&reference.tag, &reference.digest) {
            (_, None) => Some("it has no digest: end it with @sha256: and 64 hex"),
            (Some(_), Some(_)) => Some("it has a tag beside the digest: leave the tag out"),
            (None, Some(_)) if reference.to_string() != text => {
                Some("its registry and repository are not spelt out, as in docker.io/library/name")
            }
            (None, Some(_)) => None,
        };
        match problem {
            Some(reason) => Err(ReferenceError::of(text, reason)),
            None => Ok(reference),
        }
    }

    /// The registry's host, with its port if one was given: `docker.io`, `127.0.0.1:5000`.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The repository below the host: `library/nginx`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `None` only if there is a digest and no tag was given.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if one was given.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// `host/repository`, without tag and digest.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.host, self.repository)
    }

    /// `host/repository:tag`, if there is a tag and no digest, as `repo_tags` shows it.
    #[must_use]
    pub fn tagged(&self) -> Option<String> {
        match (&self.tag, &self.digest) {
            (Some(tag), None) => Some(format!("{}:{tag}", self.name())),
            _ => None,
        }
    }

    /// The same repository with a digest alone, as `repo_digests` shows it.
    #[must_use]
    pub fn with_digest(&self, digest: &Digest) -> Self {
        Self {
            host: self.host.clone(),
            repository: self.repository.clone(),
            tag: None,
            digest: Some(digest.clone()),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        parse(text).map_err(|reason| ReferenceError::of(text, reason))
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.len() > 1024 {
        return Err("it is longer than 1024 bytes");
    }
    if text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err("it is the id of an image, and no registry knows those; name the image's repository");
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest.parse().map_err(of_digest)?)),
        None => (text, None),
    };
    let slash = rest.rfind('/').map_or(0, |at| at + 1);
    let (name, tag) = match rest[slash..].find(':') {
        Some(colon) => (&rest[..slash + colon], Some(&rest[slash + colon + 1..])),
        None => (rest, None),
    };
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err("its tag may have letters, digits, _ . - and at most 128 characters");
    }
    let (host, repository) = split_host(name);
    if !is_host(&host) {
        return Err("its registry host is malformed");
    }
    if !repository.split('/').all(is_component) || host.len() + repository.len() > 254 {
        return Err("its repository may have lower-case letters, digits, and . _ - between them");
    }
    let tag = tag.map(Box::from).or_else(|| digest.is_none().then(|| "latest".into()));
    Ok(Reference { host: host.into(), repository: repository.into(), tag, digest })
}

fn of_digest(error: DigestError) -> &'static str {
    match error {
        DigestError::Malformed { .. } => "its digest is not sha256: and 64 hex",
        DigestError::Algorithm { .. } => {
            "its digest is by another algorithm than sha256, and cannot be verified"
        }
    }
}

/// Whether a host is Docker Hub, which has three names.
#[must_use]
pub fn is_docker_hub(host: &str) -> bool {
    matches!(host, "docker.io" | "index.docker.io" | "registry-1.docker.io")
}

/// What a key in Docker's `config.json` applies to: a registry's host as it is written, and the beginning of the names
/// of its repositories, which is empty if it is for all. A key that is a URL stands for its host.
#[must_use]
pub fn login_scope(key: &str) -> (&str, &str) {
    let (host, rest) = match key.split_once("://") {
        // The rest of a URL belongs to the registry's API.
        Some((_scheme, address)) => (address.split('/').next().unwrap_or_default(), ""),
        None => key.split_once('/').unwrap_or((key, "")),
    };
    match rest.trim_end_matches('/') {
        "v1" | "v2" => (host, ""),
        rest => (host, rest),
    }
}

/// The first component is a host only if it looks like one: it has a dot, a port or a capital letter, which no
/// repository has, or is `localhost`.
fn split_host(name: &str) -> (String, String) {
    let (host, repository) = match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.contains(|c: char| c.is_ascii_uppercase()) =>
        {
            (first, rest.to_owned())
        }
        _ => ("docker.io", name.to_owned()),
    };
    let host = if host == "index.docker.io" { "docker.io" } else { host };
    if host == "docker.io" && !repository.contains('/') {
        return (host.to_owned(), format!("library/{repository}"));
    }
    (host.to_owned(), repository)
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let bytes = tag.as_bytes();
    !bytes.is_empty()
        && bytes.len() <= 128
        && word(bytes[0])
        && bytes.iter().all(|&b| word(b) || b == b'.' || b == b'-')
}

fn is_host(host: &str) -> bool {
    if let Some(rest) = host.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else { return false };
        return address.parse::<std::net::Ipv6Addr>().is_ok() && (port.is_empty() || is_port(port));
    }
    let (name, port) = host.find(':').map_or((host, ""), |at| host.split_at(at));
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    name.split('.').all(label) && (port.is_empty() || is_port(port))
}

fn is_port(text: &str) -> bool {
    text.strip_prefix(':')
        .is_some_and(|port| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok())
}

/// Lower-case words, separated by one dot, by one or two underscores, or by any number of hyphens.
fn is_component(component: &str) -> bool {
    let mut last_word = false;
    let mut separator = String::new();
    for c in component.chars() {
        match c {
            'a'..='z' | '0'..='9' => {
                let joined = matches!(separator.as_str(), "" | "." | "_" | "__")
                    || separator.bytes().all(|b| b == b'-');
                if !joined || (!separator.is_empty() && !last_word) {
                    return false;
                }
                separator.clear();
                last_word = true;
            }
            '.' | '_' | '-' if last_word => separator.push(c),
            _ => return false,
        }
    }
    last_word && separator.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(text: &str) -> String {
        text.parse::<Reference>().unwrap().to_string()
    }

    #[test]
    fn names_are_normalised() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        for (text, want) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.22", "docker.io/library/nginx:1.22"),
            ("me/app", "docker.io/me/app:latest"),
            ("index.docker.io/nginx", "docker.io/library/nginx:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("MyReg/app", "MyReg/app:latest"),
            ("127.0.0.1:5000/a/b:c", "127.0.0.1:5000/a/b:c"),
            ("[::1]:5000/a", "[::1]:5000/a:latest"),
            (
                "registry.k8s.io/e2e-test-images/busybox:1.29-2",
                "registry.k8s.io/e2e-test-images/busybox:1.29-2",
            ),
            (&format!("a.b/c@{digest}"), &format!("a.b/c@{digest}")),
            (&format!("a.b/c:t@{digest}"), &format!("a.b/c:t@{digest}")),
        ] {
            assert_eq!(normal(text), want);
            assert_eq!(normal(want), want, "normal form is stable");
        }
    }

    #[test]
    fn a_canonical_name_has_all_but_a_tag() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        for good in ["a.b/c", "docker.io/library/nginx", "127.0.0.1:5000/a/b"] {
            Reference::canonical(&format!("{good}@{digest}")).unwrap();
        }
        for (bad, words) in [
            ("a.b/c".to_owned(), "no digest"),
            ("a.b/c:t".to_owned(), "no digest"),
            (format!("a.b/c:t@{digest}"), "tag"),
            (format!("nginx@{digest}"), "spelt out"),
            (format!("index.docker.io/library/nginx@{digest}"), "spelt out"),
            (format!("a.b/c@sha512:{}", "ab".repeat(64)), "another algorithm"),
            (String::new(), "empty"),
        ] {
            let error = Reference::canonical(&bad).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn malformed_names_are_refused() {
        for bad in [
            "",
            "/",
            "a//b",
            "A",
            "a/B",
            &"ab".repeat(32),
            "nginx:",
            "nginx:-x",
            "a@sha256:00",
            "-.com/a",
            "a.com:x/b",
            "a.com:99999/b",
            "a..b",
            "a/b-",
            "a___b",
            "a b",
            "a\n",
            "../etc",
            "a.b/../c",
            "http://a.b/c",
            &format!("a:{}", "x".repeat(129)),
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_key_of_a_login_is_a_host_or_a_part_of_it() {
        for (key, scope) in [
            ("https://index.docker.io/v1/", ("index.docker.io", "")),
            ("a.b:5000", ("a.b:5000", "")),
            ("a.b/v2/", ("a.b", "")),
            ("A.b/c/d/", ("A.b", "c/d")),
        ] {
            assert_eq!(login_scope(key), scope);
        }
        assert!(is_docker_hub("registry-1.docker.io") && !is_docker_hub("docker.io.evil"));
    }

    #[test]
    fn a_digest_replaces_the_tag() {
        let reference: Reference = "a.b/c:t".parse().unwrap();
        assert_eq!(reference.tagged().as_deref(), Some("a.b/c:t"));
        let digest = Digest::from_sha256([7; 32]);
        let pinned = reference.with_digest(&digest);
        assert_eq!(pinned.tagged(), None);
        assert_eq!(pinned.to_string(), format!("a.b/c@{digest}"));
    }
}
