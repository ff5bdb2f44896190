//! Docker's layout of a host's directory: `*.crt` files are certificate authorities; `*.cert` files are client
//! certificates, with the key in a `*.key` file beside them or in the same file.
#![expect(clippy::disallowed_methods, reason = "only `Disks::settings` leads here")]

use std::io;
use std::path::{Path, PathBuf};

use wharf_types::Reference;

use super::{HostSpec, HostsError, by_tls_first, direct, own_names};
use crate::tls::{TlsFiles, Trust};

/// The registry itself, with the certificates of a directory; `None` if the directory does not exist.
pub(super) fn load(directory: &Path, reference: &Reference) -> Result<Option<Vec<HostSpec>>, HostsError> {
    let Some(tls) = files(directory)? else { return Ok(None) };
    let specs = direct(reference.host());
    if tls == TlsFiles::default() {
        return Ok(Some(specs));
    }
    let specs = specs.into_iter().map(|spec| HostSpec { tls: tls.clone(), ..spec }).collect();
    Ok(Some(by_tls_first(specs)))
}

/// The certificates for a host, if any of the directories has some.
pub(super) fn of_host(certs_dirs: &[PathBuf], host: &str) -> Result<Option<TlsFiles>, HostsError> {
    for directory in certs_dirs.iter().flat_map(|dir| own_names(host).into_iter().map(|name| dir.join(name)))
    {
        let found = files(&directory)?.filter(|tls| *tls != TlsFiles::default());
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// The certificates in a directory; `None` if it does not exist.
fn files(directory: &Path) -> Result<Option<TlsFiles>, HostsError> {
    let failed = |source| HostsError::Read { path: directory.to_owned(), source };
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed)?,
    };
    let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>();
    let mut paths = paths.map_err(failed)?;
    paths.sort();
    let of_kind =
        |kind: &'static str| paths.iter().filter(move |path| path.extension().is_some_and(|it| it == kind));
    let key_of = |path: &PathBuf| {
        let key = path.with_extension("key");
        (path.clone(), if key.exists() { key } else { path.clone() })
    };
    Ok(Some(TlsFiles {
        ca: of_kind("crt").cloned().collect(),
        client: of_kind("cert").map(key_of).collect(),
        trust: Trust::Verified,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_found_by_their_names() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["b.crt", "a.crt", "me.cert", "me.key", "both.cert", "README"] {
            std::fs::write(path(name), "").unwrap();
        }
        let specs = load(dir.path(), &"a.b:5000/c".parse().unwrap()).unwrap().unwrap();
        assert_eq!(specs.len(), 1);
        assert_eq!(specs[0].tls.ca, [path("a.crt"), path("b.crt")]);
        let want = [(path("both.cert"), path("both.cert")), (path("me.cert"), path("me.key"))];
        assert_eq!(specs[0].tls.client, want);
        let specs = load(dir.path(), &"localhost:5000/c".parse().unwrap()).unwrap().unwrap();
        let roots: Vec<_> = specs.iter().map(|spec| spec.root.uri().to_string()).collect();
        assert_eq!(roots, ["https://localhost:5000/v2", "http://localhost:5000/v2"]);
        assert!(specs.iter().all(|spec| spec.tls.trust == Trust::Verified));
    }

    #[test]
    fn no_directory_says_nothing_and_a_file_in_its_place_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let reference = "a.b/c".parse().unwrap();
        assert!(load(&dir.path().join("missing"), &reference).unwrap().is_none());
        std::fs::write(dir.path().join("file"), "").unwrap();
        let error = load(&dir.path().join("file"), &reference).unwrap_err();
        assert!(matches!(error, HostsError::Read { .. }), "{error}");
    }
}
