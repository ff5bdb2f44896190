//! Which plugin set which field. A second one that sets it is refused, unless it removes the first one's value itself.
//!
//! Plugins do not know of each other. Without this, the result would depend on their order, and the value of one would
//! silently replace another's.

use std::collections::BTreeMap;

use crate::Error;
use crate::api::{CompoundFieldOwners, Field, FieldOwners, OwningPlugins};
use crate::error::words;

/// The owners of all fields of all containers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Owners(OwningPlugins);

/// One plugin's claims on the fields of one container.
pub(crate) struct Claims<'a> {
    pub(crate) plugin: &'a str,
    fields: &'a mut FieldOwners,
}

impl Owners {
    pub(crate) fn of<'a>(&'a mut self, container: &str, plugin: &'a str) -> Claims<'a> {
        Claims { plugin, fields: self.0.owners.entry(container.to_owned()).or_default() }
    }

    /// The owner of a field, or of an entry of it.
    pub(crate) fn owner(&self, container: &str, field: Field, entry: Option<&str>) -> Option<&str> {
        let fields = self.0.owners.get(container)?;
        let owner = match entry {
            None => fields.simple.get(&i32::from(field)),
            Some(entry) => fields.compound.get(&i32::from(field))?.owners.get(entry),
        };
        owner.map(String::as_str)
    }

    /// The owners of all entries of a field.
    pub(crate) fn owners(&self, container: &str, field: Field) -> BTreeMap<String, String> {
        let fields = self.0.owners.get(container);
        let entries = fields.and_then(|fields| fields.compound.get(&i32::from(field)));
        entries.map(|entries| entries.owners.clone()).unwrap_or_default()
    }

    /// The message for validators.
    pub(crate) fn message(&self) -> OwningPlugins {
        self.0.clone()
    }
}

impl Claims<'_> {
    /// Claims a field.
    pub(crate) fn claim(&mut self, field: Field) -> Result<(), Error> {
        let plugin = self.plugin;
        let owner = self.fields.simple.entry(field.into()).or_insert_with(|| plugin.to_owned());
        take(owner, plugin, || words(field))
    }

    /// Claims an entry of a field.
    pub(crate) fn claim_entry(&mut self, field: Field, entry: &str) -> Result<(), Error> {
        let plugin = self.plugin;
        let owner = self.entries(field).owners.entry(entry.to_owned()).or_insert_with(|| plugin.to_owned());
        take(owner, plugin, || format!("{} {entry}", words(field)))
    }

    /// Adds the plugin to those that set a field that several may set.
    pub(crate) fn share(&mut self, field: Field) {
        let plugin = self.plugin;
        let owners = self.fields.simple.entry(field.into()).or_default();
        if !owners.is_empty() {
            owners.push(',');
        }
        owners.push_str(plugin);
    }

    /// Notes that the plugin has removed a field's value: only it may set another.
    pub(crate) fn clear(&mut self, field: Field) {
        self.fields.simple.insert(field.into(), removed_by(self.plugin));
    }

    /// The same for an entry.
    pub(crate) fn clear_entry(&mut self, field: Field, entry: &str) {
        let removed = removed_by(self.plugin);
        self.entries(field).owners.insert(entry.to_owned(), removed);
    }

    fn entries(&mut self, field: Field) -> &mut CompoundFieldOwners {
        self.fields.compound.entry(field.into()).or_default()
    }
}

fn removed_by(plugin: &str) -> String {
    format!("-{plugin}")
}

/// Takes a field over from nobody, from oneself, or from somebody whose value one has removed.
fn take(owner: &mut String, plugin: &str, what: impl FnOnce() -> String) -> Result<(), Error> {
    if owner != plugin && *owner != removed_by(plugin) {
        let one = owner.trim_start_matches('-').to_owned();
        return Err(Error::Conflict { one, other: plugin.to_owned(), what: what() });
    }
    plugin.clone_into(owner);
    Ok(())
}
