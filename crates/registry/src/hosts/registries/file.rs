//! The parser of one file. An unknown key is an error: what it was meant to say would be ignored otherwise.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use wharf_types::Reference;

use super::super::{HostsError, one_spelling};

/// What the files say together.
#[derive(Debug, Default)]
pub(super) struct Conf {
    pub(super) entries: Vec<Entry>,
    /// Where a name without a registry is looked for, in order, if any file says it.
    pub(super) search: Option<Vec<String>>,
    pub(super) mode: Option<ShortNames>,
    /// A name without a registry → repository with one.
    pub(super) aliases: BTreeMap<String, String>,
}

/// What is done with a name that may be in several registries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ShortNames {
    /// Nobody is there to be asked which one is meant, so it is refused.
    Enforcing,
    /// They are tried in order.
    Permissive,
    /// Likewise.
    Disabled,
    /// As if the file did not say it.
    #[serde(rename = "")]
    Unset,
}

/// What is said about all images below a prefix.
#[derive(Debug)]
pub(super) struct Entry {
    /// The file.
    pub(super) path: PathBuf,
    /// With its host in one spelling.
    pub(super) prefix: String,
    pub(super) is_blocked: bool,
    pub(super) place: Place,
    pub(super) mirrors: Vec<Place>,
}

/// How a name is below a prefix.
#[derive(Debug, Clone, Copy)]
pub(super) struct Match {
    /// The length of the prefix, and whether it has no wildcard: the highest decides.
    pub(super) rank: (usize, bool),
    /// How much of the name is the prefix's, in bytes.
    pub(super) end: usize,
}

/// Where images are.
#[derive(Debug)]
pub(super) struct Place {
    /// What stands for the prefix; `None` if images have their own names there.
    pub(super) location: Option<String>,
    pub(super) is_insecure: bool,
    pub(super) when: When,
}

/// For which references a place is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    Always,
    Digest,
    Tag,
}

impl Conf {
    /// Adds what a later file says. It replaces entries of the same prefix, and aliases of the same name.
    pub(super) fn merge(&mut self, later: Self) {
        self.entries.retain(|entry| later.entries.iter().all(|other| other.prefix != entry.prefix));
        self.entries.extend(later.entries);
        self.search = later.search.or(self.search.take());
        self.mode = later.mode.or(self.mode);
        self.aliases.extend(later.aliases);
        // An alias for nothing takes back an earlier one.
        self.aliases.retain(|_name, target| !target.is_empty());
    }
}

impl Entry {
    /// How an image's full name, with its host in one spelling, is below the prefix, if it is.
    pub(super) fn matches(&self, name: &str) -> Option<Match> {
        let Some(domain) = self.prefix.strip_prefix('*') else {
            // `docker.io/nginx` is a namespace, and also how people write the repository `docker.io/library/nginx`.
            let short = self.prefix.strip_prefix("docker.io/").filter(|short| !short.contains('/'));
            let official = short.map(|short| format!("docker.io/library/{short}"));
            let begins = |prefix: &&String| name.starts_with(*prefix) && self.is_word(name, prefix.len());
            let end = [Some(&self.prefix), official.as_ref()].into_iter().flatten().find(begins)?.len();
            return Some(Match { rank: (end, true), end });
        };
        let host = name.split('/').next().unwrap_or_default();
        let bare = host.split(':').next().unwrap_or_default();
        let host = if domain.contains(':') { host } else { bare };
        let end = host.len();
        let is_below = host.ends_with(domain) && self.is_word(name, end);
        is_below.then_some(Match { rank: (self.prefix.len(), false), end })
    }

    /// Whether a word ends there. A colon behind a repository comes before a tag; behind a host it makes another one,
    /// and only a block is for all ports.
    fn is_word(&self, name: &str, end: usize) -> bool {
        match name.as_bytes().get(end) {
            None | Some(b'/' | b'@') => true,
            Some(b':') => self.is_blocked || name[..end].contains('/'),
            Some(_) => false,
        }
    }
}

impl Place {
    /// The repository at this place, with the registry spelt out.
    pub(super) fn reference(&self, target: &str) -> Result<Reference, &'static str> {
        spelt_out(target)
    }
}

/// A repository whose registry is spelt out.
fn spelt_out(target: &str) -> Result<Reference, &'static str> {
    let reference: Reference = target.parse().map_err(|_syntax| "makes no repository of the image's")?;
    let host = target.split('/').next().unwrap_or_default();
    let is_spelt_out = reference.host() == host || host == "index.docker.io";
    is_spelt_out.then_some(reference).ok_or("has no registry's host: a name with a dot, a port, or localhost")
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawConf {
    unqualified_search_registries: Option<Vec<String>>,
    short_name_mode: Option<ShortNames>,
    /// Programs with passwords, for the whole file.
    #[serde(default)]
    credential_helpers: Vec<String>,
    #[serde(default)]
    registry: Vec<RawEntry>,
    #[serde(default)]
    aliases: BTreeMap<String, String>,
    /// Of version 1.
    registries: Option<toml::Table>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[expect(clippy::struct_excessive_bools, reason = "the file has them")]
struct RawEntry {
    prefix: Option<String>,
    location: Option<String>,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror_by_digest_only: bool,
    #[serde(default)]
    mirror: Vec<RawMirror>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawMirror {
    location: String,
    #[serde(default)]
    insecure: bool,
    pull_from_mirror: Option<String>,
}

/// Parses the text of the file at `path`.
pub(super) fn parse(path: &Path, text: &str) -> Result<Conf, HostsError> {
    let raw: RawConf = toml::from_str(text)
        .map_err(|source| HostsError::Syntax { path: path.to_owned(), source: Box::new(source) })?;
    let top = Section { path, name: "the top level" };
    if raw.registries.is_some() {
        return Err(top.value("registries", "is of version 1, which is obsolete: use [[registry]]"));
    }
    if raw.credential_helpers.iter().any(|helper| helper != "containers-auth.json") {
        let reason = "has a program: name programs in a file of `auth_files`, as credHelpers";
        return Err(top.value("credential-helpers", reason));
    }
    let mut entries: Vec<Entry> = Vec::new();
    for raw in raw.registry {
        let made = entry(path, raw)?;
        match entries.iter().find(|other| other.prefix == made.prefix) {
            Some(first) => check_twice(path, first, &made)?,
            None => entries.push(made),
        }
    }
    let aliases = raw.aliases.into_iter().map(|alias| check_alias(path, alias)).collect::<Result<_, _>>()?;
    let search = raw.unqualified_search_registries;
    let search = search.map(|hosts| hosts.iter().map(|host| searched(path, host)).collect()).transpose()?;
    let mode = raw.short_name_mode.filter(|mode| *mode != ShortNames::Unset);
    Ok(Conf { entries, search, mode, aliases })
}

/// Of two entries with one prefix the first counts. What blocks nothing by that is refused.
fn check_twice(path: &Path, first: &Entry, second: &Entry) -> Result<(), HostsError> {
    let agree = first.is_blocked == second.is_blocked && first.place.is_insecure == second.place.is_insecure;
    if agree || first.place.location != second.place.location {
        return Ok(());
    }
    let name = format!("the registry with the prefix {:?}", first.prefix);
    let reason = "is there twice, and the entries differ in blocked or insecure";
    Err(Section { path, name: &name }.value("prefix", reason))
}

/// A registry in which names are looked for, without a slash at its end.
fn searched(path: &Path, host: &str) -> Result<String, HostsError> {
    let trimmed = host.trim_end_matches('/');
    if trimmed.contains('/') || spelt_out(&format!("{trimmed}/x")).is_err() {
        let section = Section { path, name: &format!("the entry {host:?}") };
        return Err(section.value("unqualified-search-registries", "has what is no registry's host"));
    }
    Ok(trimmed.to_owned())
}

/// A part of the file, for error messages.
struct Section<'a> {
    path: &'a Path,
    name: &'a str,
}

impl Section<'_> {
    fn value(&self, key: &'static str, reason: &'static str) -> HostsError {
        HostsError::Value { path: self.path.to_owned(), section: self.name.to_owned(), key, reason }
    }
}

fn entry(path: &Path, raw: RawEntry) -> Result<Entry, HostsError> {
    let prefix = raw.prefix.as_deref().filter(|prefix| !prefix.is_empty()).or(raw.location.as_deref());
    let prefix = prefix.unwrap_or_default().trim_end_matches('/');
    let (host, below) = prefix.split_at(prefix.find('/').unwrap_or(prefix.len()));
    let prefix = format!("{}{below}", one_spelling(host));
    let name = format!("the registry with the prefix {prefix:?}");
    let section = Section { path, name: &name };
    let has_wildcard = prefix.contains('*');
    let domain = prefix.strip_prefix("*.");
    if prefix.is_empty() {
        return Err(section.value("prefix", "is missing, and so is location"));
    }
    if has_wildcard && domain.is_none_or(|domain| domain.is_empty() || domain.contains(['*', '/'])) {
        return Err(section.value("prefix", "has a * elsewhere than in *.DOMAIN"));
    }
    let location = raw.location.filter(|location| !location.is_empty());
    let location = match location {
        None if has_wildcard => None,
        None => Some(prefix.clone()),
        Some(location) => Some(checked(&section, &location)?),
    };
    let when = if raw.mirror_by_digest_only { When::Digest } else { When::Always };
    let mirrors = raw.mirror.into_iter().map(|raw| mirror(&section, raw, when)).collect::<Result<_, _>>()?;
    let place = Place { location, is_insecure: raw.insecure, when: When::Always };
    Ok(Entry { path: path.to_owned(), prefix, is_blocked: raw.blocked, place, mirrors })
}

/// A mirror, which is asked `when` the entry says, unless it says otherwise itself.
fn mirror(section: &Section<'_>, raw: RawMirror, when: When) -> Result<Place, HostsError> {
    let own = match raw.pull_from_mirror.as_deref() {
        None | Some("") => None,
        Some("all") => Some(When::Always),
        Some("digest-only") => Some(When::Digest),
        Some("tag-only") => Some(When::Tag),
        Some(_) => return Err(section.value("pull-from-mirror", "is not all, digest-only or tag-only")),
    };
    if own.is_some() && when == When::Digest {
        return Err(section.value("pull-from-mirror", "cannot be beside mirror-by-digest-only"));
    }
    let location = Some(checked(section, &raw.location)?);
    Ok(Place { location, is_insecure: raw.insecure, when: own.unwrap_or(when) })
}

/// A location without a slash at its end, below which images can be.
fn checked(section: &Section<'_>, location: &str) -> Result<String, HostsError> {
    let location = location.trim_end_matches('/');
    let (host, path) = location.split_once('/').unwrap_or((location, ""));
    if location.contains("://") {
        return Err(section.value("location", "has a scheme: it is a host, or a host and a path"));
    }
    if host.is_empty() || path.contains([':', '@']) {
        return Err(section.value("location", "is not a host, or a host and a path"));
    }
    spelt_out(&format!("{location}/x")).map_err(|reason| section.value("location", reason))?;
    Ok(location.to_owned())
}

/// A short name, and the repository that it stands for; empty if it stands for none.
fn check_alias(path: &Path, (name, target): (String, String)) -> Result<(String, String), HostsError> {
    let shown = format!("the alias {name:?} of {target:?}");
    let section = Section { path, name: &shown };
    if super::short::bare(&name) != Some((name.as_str(), "")) {
        return Err(section.value("aliases", "has a name that is not short: no registry, no tag, no digest"));
    }
    if target.is_empty() {
        return Ok((name, target));
    }
    let is_name = target.contains('/') && !target.rsplit('/').next().unwrap_or_default().contains([':', '@']);
    match spelt_out(&target) {
        Ok(named) if is_name => Ok((name, named.name())),
        Ok(_) | Err(_) => {
            Err(section.value("aliases", "has a target that is not a repository with its registry"))
        }
    }
}
