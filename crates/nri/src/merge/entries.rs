//! Lists and maps whose entries plugins add, replace and remove by name.

use std::collections::BTreeMap;

use crate::Error;
use crate::api::{Field, KeyValue, LinuxDevice, Mount, PosixRlimit};
use crate::owners::Claims;

/// Names that remove an entry.
pub(crate) mod mark {
    /// Whether a name removes the entry of that name.
    pub(crate) fn is_removal(name: &str) -> bool {
        name.starts_with('-')
    }

    /// The name of the entry that is removed, or the same name.
    pub(crate) fn bare(name: &str) -> &str {
        name.strip_prefix('-').unwrap_or(name)
    }
}

/// An entry of a list.
pub(crate) trait Entry: Clone {
    /// Its name; one of [`mark`] removes the entry of that name.
    fn name(&self) -> &str;
}

impl Entry for Mount {
    fn name(&self) -> &str {
        &self.destination
    }
}

impl Entry for LinuxDevice {
    fn name(&self) -> &str {
        &self.path
    }
}

impl Entry for KeyValue {
    fn name(&self) -> &str {
        &self.key
    }
}

impl Entry for PosixRlimit {
    fn name(&self) -> &str {
        &self.r#type
    }
}

/// The names that entries remove.
pub(crate) fn names_removed<T: Entry>(entries: &[T]) -> impl Iterator<Item = &str> {
    entries.iter().map(Entry::name).filter(|name| mark::is_removal(name)).map(mark::bare)
}

/// Merges a plugin's entries into those collected so far, and into those that the next plugin is shown. A removal
/// takes away what an earlier plugin set; so the remover may set it anew.
pub(crate) fn merge_list<T: Entry>(
    claims: &mut Claims<'_>,
    field: Field,
    new: Vec<T>,
    [collected, shown]: [&mut Vec<T>; 2],
) -> Result<(), Error> {
    let (removals, additions): (Vec<T>, Vec<T>) =
        new.into_iter().partition(|entry| mark::is_removal(entry.name()));
    for removal in removals {
        let name = mark::bare(removal.name()).to_owned();
        let is_it = |entry: &T| entry.name() == name;
        if collected.iter().any(is_it) {
            claims.clear_entry(field, &name);
        } else {
            claims.claim_entry(field, &name)?;
        }
        collected.retain(|entry| !is_it(entry));
        shown.retain(|entry| !is_it(entry));
        collected.push(removal);
    }
    for addition in additions {
        claims.claim_entry(field, addition.name())?;
        let is_it = |entry: &T| entry.name() == addition.name();
        collected.retain(|entry| !is_it(entry));
        shown.retain(|entry| !is_it(entry));
        collected.push(addition.clone());
        shown.push(addition);
    }
    Ok(())
}

/// The same for a map.
pub(crate) fn merge_map<T: Clone + Default>(
    claims: &mut Claims<'_>,
    field: Field,
    new: BTreeMap<String, T>,
    [collected, shown]: [&mut BTreeMap<String, T>; 2],
) -> Result<(), Error> {
    let (removals, additions): (BTreeMap<_, _>, BTreeMap<_, _>) =
        new.into_iter().partition(|(name, _)| mark::is_removal(name));
    for (removal, value) in removals {
        let name = mark::bare(&removal);
        match collected.remove(name) {
            Some(_) => claims.clear_entry(field, name),
            None => claims.claim_entry(field, name)?,
        }
        shown.remove(name);
        collected.insert(removal, value);
    }
    for (name, value) in additions {
        claims.claim_entry(field, &name)?;
        shown.insert(name.clone(), value.clone());
        collected.insert(name, value);
    }
    Ok(())
}

/// Variables, `NAME=value`, as pairs.
pub(crate) fn pairs(environment: &[String]) -> Vec<KeyValue> {
    let pair = |text: &String| {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        KeyValue { key: key.to_owned(), value: value.to_owned() }
    };
    environment.iter().map(pair).collect()
}

/// Pairs as variables.
pub(crate) fn texts(environment: &[KeyValue]) -> Vec<String> {
    environment.iter().map(|KeyValue { key, value }| format!("{key}={value}")).collect()
}
