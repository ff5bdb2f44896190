//! Names without a registry.

use std::path::Path;

use wharf_types::Reference;

use super::super::HostsError;
use super::file::{Conf, ShortNames};

/// What a name may mean, in the order in which it is tried. A name with a registry means itself. One without means what
/// an alias says, or is looked for in the registries of `unqualified-search-registries`; if the files have neither, it
/// is Docker's, as it is without these files.
pub(in super::super) fn candidates(conf: &Path, name: &str) -> Result<Vec<String>, HostsError> {
    match bare(name) {
        Some((repository, rest)) => of_short(&super::read(conf)?, conf, (repository, rest)),
        None => Ok(vec![name.to_owned()]),
    }
}

fn of_short(conf: &Conf, path: &Path, (repository, rest): (&str, &str)) -> Result<Vec<String>, HostsError> {
    if let Some(target) = conf.aliases.get(repository) {
        return Ok(vec![format!("{target}{rest}")]);
    }
    let search = conf.search.as_deref().unwrap_or_default();
    let asks = matches!(conf.mode, None | Some(ShortNames::Enforcing));
    if search.len() > 1 && asks {
        let (path, name) = (path.to_owned(), format!("{repository}{rest}"));
        return Err(HostsError::Ambiguous { path, name, registries: search.join(", ") });
    }
    if search.is_empty() {
        return Ok(vec![format!("{repository}{rest}")]);
    }
    Ok(search.iter().map(|host| format!("{host}/{repository}{rest}")).collect())
}

/// A short name's repository, and its tag and digest; `None` if it has a registry or is none at all.
pub(in super::super) fn bare(name: &str) -> Option<(&str, &str)> {
    let reference: Reference = name.parse().ok()?;
    let first = name.split_once('/').map(|(first, _)| first);
    if reference.host() != "docker.io" || first.is_some_and(|first| first.contains('.')) {
        return None;
    }
    let slash = name.rfind('/').map_or(0, |at| at + 1);
    let end = name[slash..].find([':', '@']).map_or(name.len(), |at| slash + at);
    Some(name.split_at(end))
}
