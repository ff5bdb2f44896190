//! `registries.conf` in version 2, as containers-registries.conf(5) has it, with the files of its directory: where the
//! images below a prefix really are, which mirrors are asked before, and what is blocked.
#![expect(clippy::disallowed_methods, reason = "only `Disks::settings` leads here")]

mod file;
mod short;

use std::io;
use std::path::{Path, PathBuf};

use wharf_types::Reference;

use self::file::{Conf, Entry, Place, When};
use super::{HostSpec, HostsError, Role, certificates, direct, is_loopback, one_spelling, read_text};
use crate::tls::{TlsFiles, Trust};
use crate::url::{Url, Wire};

pub(super) use self::short::{bare, candidates};

/// The entry for an image.
pub(super) struct Chosen {
    entry: Entry,
    /// What is behind the prefix in the image's name: `/app`, or nothing.
    rest: String,
}

/// The entry for an image, if the files have one: that with the longest prefix. An error if it blocks the image.
pub(super) fn choose(conf: &Path, reference: &Reference) -> Result<Option<Chosen>, HostsError> {
    let names = spellings(reference);
    let behind_name = reference.to_string().len() - reference.name().len();
    let matching = read(conf)?.entries.into_iter().filter_map(|entry| {
        let found = names.iter().filter_map(|name| Some((entry.matches(name)?, name)));
        let (found, name) = found.max_by_key(|(found, _name)| found.rank)?;
        let rest = name.get(found.end..name.len() - behind_name).unwrap_or_default().to_owned();
        Some((found.rank, Chosen { entry, rest }))
    });
    let Some((_rank, chosen)) = matching.max_by_key(|(rank, _chosen)| *rank) else { return Ok(None) };
    if chosen.entry.is_blocked {
        let Entry { path, prefix, .. } = chosen.entry;
        return Err(HostsError::Blocked { path, prefix, reference: Box::new(reference.clone()) });
    }
    Ok(Some(chosen))
}

/// An image's full name in each spelling that a prefix may have: with a host in lower case, and by the other name that
/// the host has, if it is Docker Hub.
fn spellings(reference: &Reference) -> Vec<String> {
    let (text, host) = (reference.to_string(), reference.host());
    let (own, other) = (host.to_ascii_lowercase(), one_spelling(host));
    let other = Some(other).filter(|other| *other != own);
    [Some(own), other].into_iter().flatten().map(|it| format!("{it}{}", &text[host.len()..])).collect()
}

impl Chosen {
    /// The hosts of the image: the mirrors, then the place itself.
    pub(super) fn hosts(
        &self,
        certs_dirs: &[PathBuf],
        reference: &Reference,
    ) -> Result<Vec<HostSpec>, HostsError> {
        let (entry, name) = (&self.entry, reference.name());
        let parts = (name.as_str(), self.rest.as_str());
        let wanted = |place: &&Place| match place.when {
            When::Always => true,
            When::Digest => reference.digest().is_some(),
            When::Tag => reference.digest().is_none(),
        };
        let mut specs = Vec::new();
        for place in entry.mirrors.iter().filter(wanted) {
            specs.extend(place_specs((entry, place), Role::Mirror, parts, certs_dirs)?);
        }
        specs.extend(place_specs((entry, &entry.place), Role::Registry, parts, certs_dirs)?);
        Ok(specs)
    }
}

/// Whether the files can be used.
pub(super) fn check(conf: &Path) -> Result<(), HostsError> {
    read(conf).map(drop)
}

/// Whether there are files in its directory, which can be read without the file itself.
pub(super) fn has_directory(conf: &Path) -> bool {
    files(conf).is_ok_and(|files| files.len() > 1)
}

/// Parses a text, and counts its prefixes.
pub(super) fn count(text: &str) -> Result<usize, HostsError> {
    file::parse(Path::new("registries.conf"), text).map(|conf| conf.entries.len())
}

/// Reads the file and those of its directory, of which later ones go before. A file that does not exist says nothing.
fn read(path: &Path) -> Result<Conf, HostsError> {
    let mut conf = Conf::default();
    for path in files(path)? {
        match read_text(&path) {
            Ok(text) => conf.merge(file::parse(&path, &text)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(HostsError::Read { path, source }),
        }
    }
    Ok(conf)
}

/// The file itself, and `*.conf` in the directory of its name with `.d`, by name.
fn files(path: &Path) -> Result<Vec<PathBuf>, HostsError> {
    let mut directory = path.as_os_str().to_owned();
    directory.push(".d");
    let directory = PathBuf::from(directory);
    let failed = |source| HostsError::Read { path: directory.clone(), source };
    let entries = match std::fs::read_dir(&directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![path.to_owned()]),
        entries => entries.map_err(failed)?,
    };
    let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>();
    let mut paths = paths.map_err(failed)?;
    paths.retain(|path| path.extension().is_some_and(|it| it == "conf"));
    paths.sort();
    paths.insert(0, path.to_owned());
    Ok(paths)
}

/// A place as the hosts that are tried for it: over https, and over http as well if it may be insecure.
fn place_specs(
    (entry, place): (&Entry, &Place),
    role: Role,
    (name, rest): (&str, &str),
    certs_dirs: &[PathBuf],
) -> Result<Vec<HostSpec>, HostsError> {
    let target = match &place.location {
        Some(location) => format!("{location}{rest}"),
        None => name.to_owned(),
    };
    let wrong = |reason| HostsError::Value {
        path: entry.path.clone(),
        section: format!("the registry with the prefix {:?}", entry.prefix),
        key: "location",
        reason,
    };
    let target = place.reference(&target).map_err(wrong)?;
    let tls = certificates::of_host(certs_dirs, target.host())?;
    let trust = |own: Trust| match (place.is_insecure, &tls) {
        (true, _) => Trust::Blind,
        // Certificates are meant to be used.
        (false, Some(_)) => Trust::Verified,
        (false, None) => own,
    };
    let spec = |spec: HostSpec| HostSpec {
        role,
        repository: Some(target.repository().to_owned()),
        tls: TlsFiles { trust: trust(spec.tls.trust), ..tls.clone().unwrap_or_default() },
        source: Some(entry.path.clone()),
        ..spec
    };
    Ok(roots(target.host(), place).into_iter().map(spec).collect())
}

/// The roots of a host. One that may be insecure is tried over http as well, unless it is known to be of this machine,
/// where that is so anyway.
fn roots(host: &str, place: &Place) -> Vec<HostSpec> {
    let mut specs = direct(host);
    let lacks_plain = !specs.iter().any(|spec| spec.root.wire() == Wire::Plain);
    let is_wanted = |spec: &&HostSpec| place.is_insecure && lacks_plain && !is_loopback(&spec.root.host());
    if let Some(first) = specs.first().filter(is_wanted) {
        let plain = first.root.uri().to_string().replacen("https://", "http://", 1);
        if let Ok(root) = Url::parse(&plain) {
            specs.push(HostSpec { root, ..first.clone() });
        }
    }
    specs
}

#[cfg(test)]
mod tests;
