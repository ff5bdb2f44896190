//! What is wrong with the files, before any pull needs them.
#![expect(clippy::disallowed_methods, reason = "whoever asks for it may wait for the disk")]

use std::io;
use std::path::{Path, PathBuf};

use wharf_types::{Reference, chain};

use super::{HostFiles, HostsError, load, registries};
use crate::auth_files::AuthFiles;
use crate::tls;

impl HostFiles {
    /// What is wrong with the files, one text for each that pulls would fail by. Blocking.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut problems: Vec<_> = self.auth_files.iter().flat_map(|path| of_auth_file(path)).collect();
        // With a bad one, it would be told again for every host.
        let conf = self.registries_conf.as_deref().map_or(Ok(()), registries::check);
        problems.extend(conf.err().map(|error| chain(&error)));
        let directories = Self { certs_dirs: self.certs_dirs.clone(), ..Self::default() };
        let hosts = self.certs_dirs.iter().flat_map(|dir| hosts_in(dir));
        problems.extend(hosts.filter_map(|host| directories.of_host(&host).err()).map(|error| chain(&error)));
        problems.sort();
        problems.dedup();
        problems
    }

    /// Files that the configuration names and that do not exist, one text for each. Pulls go on without them. Blocking.
    #[must_use]
    pub fn missing(&self) -> Vec<String> {
        let conf = self.registries_conf.as_deref().filter(|conf| !registries::has_directory(conf));
        let named = self.auth_files.iter().map(PathBuf::as_path).chain(conf);
        let missing = named.filter(|path| {
            std::fs::metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
        });
        missing.map(|path| format!("{} does not exist: pulls go on without it", path.display())).collect()
    }

    fn of_host(&self, host: &str) -> Result<(), HostsError> {
        let Ok(reference) = format!("{host}/x").parse::<Reference>() else { return Ok(()) };
        for spec in load(self, &reference)? {
            let host = spec.root.host_and_port().to_owned();
            let loaded = tls::load(&spec.tls, &rustls::RootCertStore::empty());
            loaded.map_err(|source| HostsError::Tls { host, source })?;
        }
        Ok(())
    }
}

fn of_auth_file(path: &Path) -> Vec<String> {
    let wrong = match AuthFiles::read(std::slice::from_ref(&path.to_owned())) {
        Ok(files) => files.wrong(),
        Err(error) => vec![error],
    };
    wrong.iter().map(|error| chain(error)).collect()
}

/// The hosts that have a directory here. The default one counts as that of a host without one.
fn hosts_in(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let entries = entries.filter(|entry| entry.path().is_dir());
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.map(|name| host_of(&name)).collect()
}

fn host_of(directory: &str) -> String {
    let portable = directory.strip_suffix('_').and_then(|name| name.rsplit_once('_'));
    match portable.filter(|(_host, port)| port.parse::<u16>().is_ok()) {
        Some((host, port)) => format!("{host}:{port}"),
        None if directory == "_default" => "any.invalid".to_owned(),
        None => directory.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bad_file_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            path
        };
        let files = HostFiles {
            certs_dirs: vec![dir.path().join("certs.d"), dir.path().join("none")],
            registries_conf: Some(put("registries.conf", "")),
            auth_files: vec![put("auth.json", "{}"), dir.path().join("missing.json")],
        };
        let [missing] = &*files.missing() else { panic!("{:?}", files.missing()) };
        assert!(missing.contains("missing.json does not exist"), "{missing}");
        put("certs.d/a.b/hosts.toml", "server = \"https://up.x\"");
        put("certs.d/README", "not a directory");
        assert_eq!(files.problems(), Vec::<String>::new());
        put("certs.d/a.b_5000_/hosts.toml", "servr = 1");
        put("certs.d/_default/hosts.toml", "[host.\"ftp://x\"]");
        put("certs.d/c.d/ca.crt", "not PEM");
        put("registries.conf.d/1.conf", "x = 1");
        put("auth.json", "[");
        std::fs::remove_file(dir.path().join("registries.conf")).unwrap();
        assert_eq!(files.missing().len(), 1, "the directory of registries.conf stands for it");
        let problems = files.problems();
        let bad = ["a.b_5000_/hosts.toml", "_default/hosts.toml", "c.d/ca.crt", "1.conf", "auth.json"];
        assert_eq!(problems.len(), bad.len(), "{problems:#?}");
        for name in bad {
            assert!(problems.iter().any(|problem| problem.contains(name)), "{name}: {problems:#?}");
        }
    }

    #[test]
    fn what_some_pulls_would_fail_by_is_told_before() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let files = HostFiles {
            registries_conf: Some(dir.path().join("registries.conf")),
            auth_files: vec![dir.path().join("auth.json")],
            ..HostFiles::default()
        };
        assert_eq!((files.problems().len(), files.missing().len()), (0, 2));
        put("registries.conf", "[[registry]]\nprefix = \"a.b\"\nlocation = \"corp/mirror\"");
        let auth = r#"{"auths": {"a.b": {"auth": "!!!"}, "c.d": {"auth": "YTpi"}, "e.f": {}},
            "credHelpers": {"g.h": "../no", "i.j": "fine"}, "credsStore": "a/b"}"#;
        put("auth.json", auth);
        assert_eq!(files.missing(), [""; 0]);
        let problems = files.problems();
        let bad =
            ["has no registry's host", "\"a.b\"", "../no for g.h has a slash", "a/b for any registry has"];
        assert_eq!(problems.len(), bad.len(), "{problems:#?}");
        for words in bad {
            assert!(problems.iter().any(|problem| problem.contains(words)), "{words}: {problems:#?}");
        }
        assert!(!problems.concat().contains("!!!"), "it may be a password");
    }
}
