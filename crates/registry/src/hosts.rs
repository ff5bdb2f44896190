//! Which hosts are asked for an image, and how: containerd's `certs.d/<host>/hosts.toml`, parsed strictly; where there
//! is none, `registries.conf`, and then `certs.d/_default/hosts.toml`; and Docker's certificates, which may be in the
//! same directories as `hosts.toml`. What `registries.conf` blocks is blocked in any case.
//!
//! The mirrors come first, in the order of the file, then the registry itself (`server`, `location`, or the image's
//! host). Each pull reads the files anew: they are small, and an edit takes effect at once.

mod certificates;
mod file;
mod problems;
mod registries;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::HeaderMap;
use wharf_sys::fs::read_regular;
use wharf_types::{ErrorKind, Failure, Reference, is_docker_hub};

use crate::auth_files::AuthFileError;
use crate::proxy::Proxies;
use crate::tls::{TlsError, TlsFiles, Trust};
use crate::url::{Url, Wire};

/// The longest `hosts.toml`, in bytes.
const FILE_LIMIT_BYTES: usize = 1 << 20;

/// Why the settings of a registry cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HostsError {
    /// The file exists but cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("cannot parse {}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where, and what was expected.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A key is unknown, or its value has the wrong type.
    #[error("{}: in {section}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// `the top level`, or the host's table.
        section: String,
        /// Which key, and what was expected.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A value has the right type but makes no sense.
    #[error("{}: in {section}: {key} {reason}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// `the top level`, or the host's table.
        section: String,
        /// The key.
        key: &'static str,
        /// What is wrong with its value.
        reason: &'static str,
    },
    /// The images below a prefix are not to be pulled.
    #[error("{reference} is blocked by {}, below the prefix {prefix:?}", path.display())]
    Blocked {
        /// The file.
        path: PathBuf,
        /// The prefix.
        prefix: String,
        /// The image.
        reference: Box<Reference>,
    },
    /// A name without a registry may be in several, and nobody can be asked which one is meant.
    #[error(
        "{name} may be in several registries ({registries}): name one, or set its alias or short-name-mode in {}",
        path.display()
    )]
    Ambiguous {
        /// The file.
        path: PathBuf,
        /// The name.
        name: String,
        /// The registries.
        registries: String,
    },
    /// The node's own credentials cannot be used.
    #[error(transparent)]
    Credentials(#[from] AuthFileError),
    /// The host's TLS files cannot be used.
    #[error("cannot use the TLS settings for {host}")]
    Tls {
        /// Host and port.
        host: String,
        /// Which file, and why.
        #[source]
        source: TlsError,
    },
}

impl Failure for HostsError {
    /// Somebody must correct a file.
    fn kind(&self) -> ErrorKind {
        ErrorKind::FailedPrecondition
    }
}

/// What a host may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "String")]
pub(crate) enum Capability {
    /// Anything by digest.
    Pull,
    /// Manifests by tag.
    Resolve,
    /// Wharf never pushes, but the file may say it.
    Push,
    /// Wharf does not use it either.
    Referrers,
}

impl TryFrom<String> for Capability {
    type Error = String;

    fn try_from(word: String) -> Result<Self, String> {
        match word.to_ascii_lowercase().as_str() {
            "pull" => Ok(Self::Pull),
            "resolve" => Ok(Self::Resolve),
            "push" => Ok(Self::Push),
            "referrers" => Ok(Self::Referrers),
            _ => Err(format!("unknown capability {word:?}, expected pull, resolve, push or referrers")),
        }
    }
}

/// A host's role for an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// The registry that the image's name refers to. It gets the pull's credentials.
    Registry,
    /// Any other host. It gets the credentials only if they name it.
    Mirror,
}

/// The capabilities of a host whose table has no such key.
const ALL: [Capability; 2] = [Capability::Pull, Capability::Resolve];

/// One host to ask.
#[derive(Debug, Clone)]
pub(crate) struct HostSpec {
    /// The API's root URL, with `/v2` and without a trailing slash.
    pub(crate) root: Url,
    pub(crate) role: Role,
    pub(crate) capabilities: Vec<Capability>,
    pub(crate) tls: TlsFiles,
    pub(crate) dial_timeout: Option<Duration>,
    /// Replaces the node's proxies.
    pub(crate) proxies: Option<Proxies>,
    /// Sent with every request to this host, and to no other.
    pub(crate) headers: HeaderMap,
    /// The image's repository there, if a file says it: such a host serves one registry under its own names, and is
    /// not told which.
    pub(crate) repository: Option<String>,
    /// The file that names the host.
    pub(crate) source: Option<PathBuf>,
}

impl HostSpec {
    /// The image's repository at this host.
    pub(crate) fn repository<'a>(&'a self, reference: &'a Reference) -> &'a str {
        self.repository.as_deref().unwrap_or(reference.repository())
    }
}

/// Where the settings of registries are.
#[derive(Debug, Clone, Default)]
pub struct HostFiles {
    /// The directories that hold `<host>/hosts.toml`, or certificates as Docker lays them out. The first directory with
    /// an entry for a host decides.
    pub certs_dirs: Vec<PathBuf>,
    /// A `registries.conf`, which is read with `*.conf` in the directory beside it. What it blocks is blocked; its
    /// other entries count where `certs_dirs` have no `hosts.toml` of the host's own, and go before that of `_default`.
    pub registries_conf: Option<PathBuf>,
    /// The node's own credentials, in the format of Docker's `config.json`, for pulls that come without any.
    pub auth_files: Vec<PathBuf>,
}

impl fmt::Display for HostFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.certs_dirs.iter().chain(&self.registries_conf).chain(&self.auth_files);
        let all: Vec<_> = all.map(|path| path.display().to_string()).collect();
        match all.split_last() {
            Some((last, [])) => f.write_str(last),
            Some((last, others)) => write!(f, "{} and {last}", others.join(", ")),
            None => f.write_str("no file"),
        }
    }
}

/// The hosts to ask for an image, in order; at least one. Blocking.
pub(crate) fn load(files: &HostFiles, reference: &Reference) -> Result<Vec<HostSpec>, HostsError> {
    let conf = files.registries_conf.as_deref();
    // First, so that what is blocked is so whatever the directories have.
    let Some(chosen) = conf.map(|conf| registries::choose(conf, reference)).transpose()?.flatten() else {
        return Ok(match of_directories(&files.certs_dirs, reference, names)? {
            Some(Found::Hosts(specs) | Found::Certificates(specs)) => specs,
            None => direct(reference.host()),
        });
    };
    match of_directories(&files.certs_dirs, reference, own_names)? {
        Some(Found::Hosts(specs)) => Ok(specs),
        Some(Found::Certificates(_)) | None => chosen.hosts(&files.certs_dirs, reference),
    }
}

/// A registry's host in one spelling, whatever the case; Docker Hub has three names.
pub(crate) fn one_spelling(host: &str) -> String {
    let host = host.to_ascii_lowercase();
    if is_docker_hub(&host) { "docker.io".to_owned() } else { host }
}

/// Whether a name has no registry, and is not the id of an image.
pub(crate) fn is_short(name: &str) -> bool {
    registries::bare(name).is_some() && !name.starts_with("sha256:")
}

/// What a name that a client sent may mean, in the order in which it is tried: itself, unless it has no registry.
/// Blocking.
pub(crate) fn candidates(files: &HostFiles, name: &str) -> Result<Vec<String>, HostsError> {
    match &files.registries_conf {
        Some(conf) => registries::candidates(conf, name),
        None => Ok(vec![name.to_owned()]),
    }
}

/// What the first directory with an entry for a host has.
enum Found {
    /// A `hosts.toml`.
    Hosts(Vec<HostSpec>),
    /// The registry itself, with its certificates if there are any.
    Certificates(Vec<HostSpec>),
}

fn of_directories(
    certs_dirs: &[PathBuf],
    reference: &Reference,
    names: fn(&str) -> Vec<String>,
) -> Result<Option<Found>, HostsError> {
    let names = names(reference.host());
    for directory in certs_dirs.iter().flat_map(|dir| names.iter().map(|name| dir.join(name))) {
        let path = directory.join("hosts.toml");
        match read_text(&path) {
            Ok(text) if !text.trim().is_empty() => {
                return file::parse(&path, &text, reference).map(Found::Hosts).map(Some);
            }
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(HostsError::Read { path, source });
            }
            Ok(_) | Err(_) => {}
        }
        if let Some(specs) = certificates::load(&directory, reference)? {
            return Ok(Some(Found::Certificates(specs)));
        }
    }
    Ok(None)
}

fn read_text(path: &Path) -> io::Result<String> {
    let text = read_regular(path, FILE_LIMIT_BYTES)?;
    String::from_utf8(text).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Parses the text of a registry's `hosts.toml` and returns the number of hosts to ask.
pub(crate) fn count_hosts(text: &str, reference: &Reference) -> Result<usize, HostsError> {
    file::parse(Path::new("hosts.toml"), text, reference).map(|hosts| hosts.len())
}

/// Parses the text of a `registries.conf` and returns the number of prefixes in it.
pub(crate) fn count_prefixes(text: &str) -> Result<usize, HostsError> {
    registries::count(text)
}

/// The names of the directories that may have something to say of a host.
fn names(host: &str) -> Vec<String> {
    own_names(host).into_iter().chain(["_default".to_owned()]).collect()
}

/// The names of a host's own directory. Like containerd, this accepts `host_port_` for file systems without colons.
fn own_names(host: &str) -> Vec<String> {
    let port = host.rsplit_once(':').filter(|(_, port)| !port.contains(']'));
    let portable = port.map(|(name, port)| format!("{name}_{port}_"));
    portable.into_iter().chain([host.to_owned()]).collect()
}

/// The registry itself, over https. A loopback host is tried over plain http first: a TLS server refuses plain http at
/// once, whereas a plain server might wait forever for the rest of a TLS handshake. Ports 80 and 443 leave no doubt. A
/// loopback host need not prove its identity: nobody is in between.
fn direct(host: &str) -> Vec<HostSpec> {
    let host = if host == "docker.io" { "registry-1.docker.io" } else { host };
    let port = host.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')).map(|(_, port)| port);
    let urls = ["http", "https"].map(|scheme| Url::parse(&format!("{scheme}://{host}/v2")));
    let wanted = urls.into_iter().flatten().filter(|url| match (port, url.wire()) {
        (Some("80"), wire) => wire == Wire::Plain,
        (_, Wire::Plain) => port != Some("443") && is_loopback(&url.host()),
        (_, Wire::Tls) => true,
    });
    let spec = |root: Url| HostSpec {
        tls: TlsFiles {
            trust: if is_loopback(&root.host()) { Trust::Blind } else { Trust::Verified },
            ..TlsFiles::default()
        },
        root,
        role: Role::Registry,
        capabilities: ALL.to_vec(),
        dial_timeout: None,
        proxies: None,
        headers: HeaderMap::new(),
        repository: None,
        source: None,
    };
    wanted.map(spec).collect()
}

/// Puts TLS first for hosts that are tried over both schemes and have TLS settings, which are meant to be used.
fn by_tls_first(mut specs: Vec<HostSpec>) -> Vec<HostSpec> {
    specs.sort_by_key(|spec| spec.root.wire() == Wire::Plain);
    specs
}

/// Whether a host is the image's own, so that its requests need no `?ns=`.
pub(crate) fn is_own(root: &Url, image_host: &str) -> bool {
    direct(image_host).iter().any(|own| own.root.host() == root.host() && own.root.port() == root.port())
        || root.host_and_port().eq_ignore_ascii_case(image_host)
}

/// `localhost` or an address of the loopback network.
pub(crate) fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests make files, and have nothing else to do")]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd as _;

    fn roots(reference: &str) -> Vec<String> {
        let specs = load(&HostFiles::default(), &reference.parse().unwrap()).unwrap();
        specs.iter().map(|spec| spec.root.uri().to_string()).collect()
    }

    fn within(dir: &Path) -> HostFiles {
        HostFiles { certs_dirs: vec![dir.to_owned()], ..HostFiles::default() }
    }

    #[test]
    fn without_a_file_the_registry_itself_is_asked() {
        assert_eq!(roots("nginx"), ["https://registry-1.docker.io/v2"]);
        assert_eq!(roots("a.b:5000/c"), ["https://a.b:5000/v2"]);
        assert_eq!(roots("a.b:80/c"), ["http://a.b:80/v2"]);
        for host in ["localhost:5000", "127.1.2.3:5000", "[::1]:5000"] {
            let want = ["http", "https"].map(|scheme| format!("{scheme}://{host}/v2"));
            assert_eq!(roots(&format!("{host}/c")), want);
        }
        assert_eq!(roots("localhost:443/c"), ["https://localhost:443/v2"]);
    }

    #[test]
    fn an_images_own_host_is_known_by_any_scheme() {
        for (root, host, own) in [
            ("https://a.b/v2", "a.b", true),
            ("https://A.b:443/mirror", "a.b", true),
            ("http://a.b/v2", "a.b", true),
            ("https://a.b:5000/v2", "a.b", false),
            ("https://registry-1.docker.io/v2", "docker.io", true),
            ("https://docker.io/v2", "docker.io", true),
            ("https://c.d/v2", "a.b", false),
        ] {
            assert_eq!(is_own(&Url::parse(root).unwrap(), host), own, "{root} for {host}");
        }
    }

    #[test]
    fn the_hosts_own_file_goes_before_the_default() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, server: &str| {
            std::fs::create_dir_all(dir.path().join(name)).unwrap();
            let text = format!("server = \"https://{server}\"\n");
            std::fs::write(dir.path().join(name).join("hosts.toml"), text).unwrap();
        };
        let first = |reference: &str| {
            let specs = load(&within(dir.path()), &reference.parse().unwrap()).unwrap();
            specs[0].root.host()
        };
        put("_default", "default.x");
        assert_eq!(first("a.b:5000/c"), "default.x");
        put("a.b:5000", "own.x");
        assert_eq!(first("a.b:5000/c"), "own.x");
        put("a.b_5000_", "portable.x");
        assert_eq!(first("a.b:5000/c"), "portable.x");
        assert_eq!(first("nginx"), "default.x");
        std::fs::create_dir(dir.path().join("shielded.x")).unwrap();
        assert_eq!(first("shielded.x/c"), "shielded.x", "a directory of its own, though empty");
    }

    #[test]
    fn the_first_of_several_directories_that_knows_the_host_counts() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for (dir, host, server) in
            [(&two, "a.b", "second.x"), (&two, "c.d", "other.x"), (&one, "a.b", "first.x")]
        {
            std::fs::create_dir_all(dir.path().join(host)).unwrap();
            let text = format!("server = \"https://{server}\"\n");
            std::fs::write(dir.path().join(host).join("hosts.toml"), text).unwrap();
        }
        let certs_dirs = vec![one.path().to_owned(), two.path().to_owned(), "/nowhere".into()];
        let dirs = HostFiles { certs_dirs, ..HostFiles::default() };
        for (reference, want) in [("a.b/x", "first.x"), ("c.d/x", "other.x"), ("e.f/x", "e.f")] {
            assert_eq!(load(&dirs, &reference.parse().unwrap()).unwrap()[0].root.host(), want);
        }
    }

    #[test]
    fn what_has_no_end_is_an_error_and_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a.b")).unwrap();
        let path = dir.path().join("a.b/hosts.toml");
        let fails = || {
            let error = load(&within(dir.path()), &"a.b/c".parse().unwrap()).unwrap_err();
            assert!(matches!(error, HostsError::Read { .. }), "{error}");
            std::error::Error::source(&error).unwrap().to_string()
        };
        // It is open for writing, and nothing is ever written.
        let (reader, _writer) = io::pipe().unwrap();
        std::os::unix::fs::symlink(format!("/proc/self/fd/{}", reader.as_raw_fd()), &path).unwrap();
        assert_eq!(fails(), "it is not a regular file");
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "#".repeat(FILE_LIMIT_BYTES + 1)).unwrap();
        assert_eq!(fails(), "it is longer than 1024 KiB");
        std::fs::write(&path, [b'#', 0xff]).unwrap();
        assert!(fails().contains("utf-8"), "{}", fails());
    }

    #[test]
    fn an_unreadable_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a.b/hosts.toml")).unwrap();
        let error = load(&within(dir.path()), &"a.b/c".parse().unwrap()).unwrap_err();
        assert!(matches!(error, HostsError::Read { .. }), "{error}");
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    }
}
