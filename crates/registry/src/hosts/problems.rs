//! What is wrong with the files, before any pull needs them.
#![expect(clippy::disallowed_methods, reason = "whoever asks for it may wait for the disk")]

use std::path::Path;

use wharf_types::{Reference, chain};

use super::{HostFiles, HostsError, load, registries};
use crate::auth_files::AuthFiles;
use crate::tls;

impl HostFiles {
    /// What is wrong with the files, one text for each that pulls would fail by. Blocking.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut problems: Vec<_> = self.auth_files.iter().filter_map(|path| of_auth_file(path)).collect();
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

fn of_auth_file(path: &Path) -> Option<String> {
    AuthFiles::read(std::slice::from_ref(&path.to_owned())).err().map(|error| chain(&error))
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
        put("certs.d/a.b/hosts.toml", "server = \"https://up.x\"");
        put("certs.d/README", "not a directory");
        assert_eq!(files.problems(), Vec::<String>::new());
        put("certs.d/a.b_5000_/hosts.toml", "servr = 1");
        put("certs.d/_default/hosts.toml", "[host.\"ftp://x\"]");
        put("certs.d/c.d/ca.crt", "not PEM");
        put("registries.conf.d/1.conf", "x = 1");
        put("auth.json", "[");
        let problems = files.problems();
        let bad = ["a.b_5000_/hosts.toml", "_default/hosts.toml", "c.d/ca.crt", "1.conf", "auth.json"];
        assert_eq!(problems.len(), bad.len(), "{problems:#?}");
        for name in bad {
            assert!(problems.iter().any(|problem| problem.contains(name)), "{name}: {problems:#?}");
        }
    }
}
