//! The changes of several plugins, merged into one. Plugins are asked one after another, and each sees the container
//! with the changes of those before it.
//!
//! All of it is pure.

pub(crate) mod entries;
mod resources;

use crate::Error;
use crate::api::{
    Container, ContainerAdjustment, ContainerEviction, ContainerUpdate, CreateContainerResponse, Field,
    Hooks, LinuxContainerAdjustment, LinuxRdt, LinuxResources, StopContainerResponse,
    UpdateContainerResponse,
};
use crate::merge::entries::{mark, merge_list, merge_map, names_removed};
use crate::merge::resources::merge as merge_resources;
use crate::owners::{Claims, Owners};

/// The changes that plugins have asked for in response to one request.
#[derive(Debug, Default)]
pub struct Merged {
    /// The container that is being created, as it is now.
    container: Container,
    /// What is to be adjusted in it.
    adjust: ContainerAdjustment,
    /// The container that is being updated, with its resources as they will be.
    updated: Option<(String, LinuxResources)>,
    /// Updates of other containers.
    updates: Vec<ContainerUpdate>,
    evictions: Vec<ContainerEviction>,
    owners: Owners,
    /// The plugins that adjusted something.
    authors: Vec<String>,
}

/// The result of the merging.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Changes {
    /// What is to be adjusted in the container that is being created.
    pub adjust: ContainerAdjustment,
    /// The new resources of the container that is being updated.
    pub resources: Option<LinuxResources>,
    /// Updates of other containers, each container once.
    pub updates: Vec<ContainerUpdate>,
    /// Containers to stop.
    pub evictions: Vec<ContainerEviction>,
    /// The plugins that adjusted something, by index and name.
    pub authors: Vec<String>,
}

impl Merged {
    /// Begins with a container that is being created.
    #[must_use]
    pub fn creating(container: Container) -> Self {
        Self { container, ..Self::default() }
    }

    /// Begins with a container that is being updated to these resources.
    #[must_use]
    pub fn updating(id: &str, resources: LinuxResources) -> Self {
        Self { updated: Some((id.to_owned(), resources)), ..Self::default() }
    }

    /// The container that is being created, with the changes so far.
    #[must_use]
    pub fn container(&self) -> &Container {
        &self.container
    }

    /// The resources of the container that is being updated, with the changes so far.
    #[must_use]
    pub fn resources(&self) -> Option<&LinuxResources> {
        self.updated.as_ref().map(|(_, resources)| resources)
    }

    pub(crate) fn owners(&self) -> &Owners {
        &self.owners
    }

    pub(crate) fn adjustment(&self) -> &ContainerAdjustment {
        &self.adjust
    }

    pub(crate) fn updates(&self) -> &[ContainerUpdate] {
        &self.updates
    }

    /// The merged changes of all plugins.
    #[must_use]
    pub fn changes(self) -> Changes {
        Changes {
            adjust: self.adjust,
            resources: self.updated.map(|(_, resources)| resources),
            updates: self.updates,
            evictions: self.evictions,
            authors: self.authors,
        }
    }

    /// Adds a plugin's changes at a container's creation.
    ///
    /// # Errors
    /// [`Error::Conflict`], [`Error::Early`].
    pub fn created(&mut self, plugin: &str, response: CreateContainerResponse) -> Result<(), Error> {
        let own = self.container.id.as_str();
        if let Some(early) = response.update.iter().find(|update| update.container_id == own) {
            return Err(Error::Early { plugin: plugin.to_owned(), id: early.container_id.clone() });
        }
        if let Some(adjust) = response.adjust.filter(|adjust| *adjust != ContainerAdjustment::default()) {
            self.authors.push(plugin.to_owned());
            self.adjusted(plugin, adjust)?;
        }
        self.evictions.extend(response.evict);
        self.update(plugin, response.update)
    }

    /// Adds a plugin's changes at a container's update.
    ///
    /// # Errors
    /// [`Error::Conflict`].
    pub fn updated(&mut self, plugin: &str, response: UpdateContainerResponse) -> Result<(), Error> {
        self.evictions.extend(response.evict);
        self.update(plugin, response.update)
    }

    /// Adds a plugin's changes after a container has stopped.
    ///
    /// # Errors
    /// [`Error::Conflict`].
    pub fn stopped(&mut self, plugin: &str, response: StopContainerResponse) -> Result<(), Error> {
        self.update(plugin, response.update)
    }

    fn adjusted(&mut self, plugin: &str, new: ContainerAdjustment) -> Result<(), Error> {
        let id = self.container.id.clone();
        let claims = &mut self.owners.of(&id, plugin);
        let (container, adjust) = (&mut self.container, &mut self.adjust);
        merge_map(
            claims,
            Field::Annotations,
            new.annotations,
            [&mut adjust.annotations, &mut container.annotations],
        )?;
        merge_list(claims, Field::Mounts, new.mounts, [&mut adjust.mounts, &mut container.mounts])?;
        let mut environment = entries::pairs(&container.env);
        merge_list(claims, Field::Env, new.env, [&mut adjust.env, &mut environment])?;
        container.env = entries::texts(&environment);
        if !new.args.is_empty() {
            arguments(claims, new.args, [&mut adjust.args, &mut container.args])?;
        }
        if let Some(new) = new.hooks.filter(|hooks| *hooks != Hooks::default()) {
            claims.share(Field::OciHooks);
            hooks(new.clone(), adjust.hooks.get_or_insert_default());
            hooks(new, container.hooks.get_or_insert_default());
        }
        for device in new.cdi_devices {
            claims.claim_entry(Field::CdiDevices, &device.name)?;
            adjust.cdi_devices.push(device);
        }
        merge_list(claims, Field::Rlimits, new.rlimits, [&mut adjust.rlimits, &mut container.rlimits])?;
        match new.linux {
            Some(new) => linux(claims, new, (container, adjust.linux.get_or_insert_default())),
            None => Ok(()),
        }
    }

    fn update(&mut self, plugin: &str, updates: Vec<ContainerUpdate>) -> Result<(), Error> {
        for ContainerUpdate { container_id, linux, ignore_failure } in updates {
            let Some(new) = linux.and_then(|linux| linux.resources) else { continue };
            let mut owners = self.owners.clone();
            let target = match &mut self.updated {
                Some((id, resources)) if *id == container_id => resources,
                _ => {
                    let other = update_of(&mut self.updates, &container_id);
                    other.ignore_failure &= ignore_failure;
                    other.linux.get_or_insert_default().resources.get_or_insert_default()
                }
            };
            // An update whose failure may be ignored changes nothing if it conflicts.
            let mut merged = target.clone();
            match merge_resources(&mut owners.of(&container_id, plugin), new, &mut merged) {
                Ok(()) => (*target, self.owners) = (merged, owners),
                Err(error) if ignore_failure => {
                    tracing::warn!(%error, "an update by an NRI plugin is left out")
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The update of another container. Its failure may be ignored if all plugins that request it say so.
fn update_of<'a>(updates: &'a mut Vec<ContainerUpdate>, id: &str) -> &'a mut ContainerUpdate {
    let place = updates.iter().position(|update| update.container_id == id).unwrap_or_else(|| {
        let container_id = id.to_owned();
        updates.push(ContainerUpdate { container_id, linux: None, ignore_failure: true });
        updates.len() - 1
    });
    &mut updates[place]
}

/// The arguments are one value. A plugin that replaces those of an earlier one says so by an empty first argument.
fn arguments(
    claims: &mut Claims<'_>,
    mut new: Vec<String>,
    [adjust, container]: [&mut Vec<String>; 2],
) -> Result<(), Error> {
    if new.first().is_some_and(String::is_empty) {
        claims.clear(Field::Args);
        new.remove(0);
    }
    claims.claim(Field::Args)?;
    container.clone_from(&new);
    *adjust = new;
    Ok(())
}

fn hooks(new: Hooks, all: &mut Hooks) {
    all.prestart.extend(new.prestart);
    all.create_runtime.extend(new.create_runtime);
    all.create_container.extend(new.create_container);
    all.start_container.extend(new.start_container);
    all.poststart.extend(new.poststart);
    all.poststop.extend(new.poststop);
}

fn linux(
    claims: &mut Claims<'_>,
    new: LinuxContainerAdjustment,
    (container, adjust): (&mut Container, &mut LinuxContainerAdjustment),
) -> Result<(), Error> {
    let shown = container.linux.get_or_insert_default();
    merge_list(claims, Field::Devices, new.devices, [&mut adjust.devices, &mut shown.devices])?;
    if let Some(new) = new.resources {
        merge_resources(claims, new.clone(), shown.resources.get_or_insert_default())?;
        merge_resources(claims, new, adjust.resources.get_or_insert_default())?;
    }
    if !new.cgroups_path.is_empty() {
        claims.claim(Field::CgroupsPath)?;
        shown.cgroups_path.clone_from(&new.cgroups_path);
        adjust.cgroups_path = new.cgroups_path;
    }
    value(
        claims,
        Field::OomScoreAdj,
        new.oom_score_adj,
        [&mut adjust.oom_score_adj, &mut shown.oom_score_adj],
    )?;
    value(claims, Field::IoPriority, new.io_priority, [&mut adjust.io_priority, &mut shown.io_priority])?;
    value(
        claims,
        Field::SeccompPolicy,
        new.seccomp_policy,
        [&mut adjust.seccomp_policy, &mut shown.seccomp_policy],
    )?;
    // The one list without conflicts between a removal and what it removes.
    for namespace in new.namespaces {
        let kind = mark::bare(&namespace.r#type).to_owned();
        claims.claim_entry(Field::Namespace, &kind)?;
        shown.namespaces.retain(|shown| shown.r#type != kind);
        if !mark::is_removal(&namespace.r#type) {
            shown.namespaces.push(namespace.clone());
        }
        adjust.namespaces.push(namespace);
    }
    merge_map(claims, Field::Sysctl, new.sysctl, [&mut adjust.sysctl, &mut shown.sysctl])?;
    merge_map(claims, Field::NetDevices, new.net_devices, [&mut adjust.net_devices, &mut shown.net_devices])?;
    value(claims, Field::Scheduler, new.scheduler, [&mut adjust.scheduler, &mut shown.scheduler])?;
    if let Some(new) = new.rdt {
        rdt(claims, new.clone(), shown.rdt.get_or_insert_default())?;
        rdt(claims, new, adjust.rdt.get_or_insert_default())?;
    }
    // Plugins are not shown the memory policy.
    let mut hidden = None;
    value(claims, Field::MemoryPolicy, new.memory_policy, [&mut adjust.memory_policy, &mut hidden])
}

/// Sets a value of which there is one.
fn value<T: Clone>(
    claims: &mut Claims<'_>,
    field: Field,
    new: Option<T>,
    [adjust, shown]: [&mut Option<T>; 2],
) -> Result<(), Error> {
    if new.is_some() {
        claims.claim(field)?;
        shown.clone_from(&new);
        *adjust = new;
    }
    Ok(())
}

fn rdt(claims: &mut Claims<'_>, new: LinuxRdt, all: &mut LinuxRdt) -> Result<(), Error> {
    const FIELDS: [Field; 3] = [Field::RdtClosId, Field::RdtSchemata, Field::RdtEnableMonitoring];
    if new.remove {
        FIELDS.into_iter().for_each(|field| claims.clear(field));
        *all = LinuxRdt { remove: true, ..LinuxRdt::default() };
    }
    let [class, schemata, monitoring] = FIELDS;
    all.remove &= new.clos_id.is_none() && new.schemata.is_none() && new.enable_monitoring.is_none();
    resources::set(claims, class, new.clos_id, &mut all.clos_id)?;
    resources::set(claims, schemata, new.schemata, &mut all.schemata)?;
    resources::set(claims, monitoring, new.enable_monitoring, &mut all.enable_monitoring)
}

/// Whether an adjustment removes the entry of a list with this name.
pub(crate) fn removes<T: entries::Entry>(entries: &[T], name: &str) -> bool {
    names_removed(entries).any(|removed| removed == name)
}

#[cfg(test)]
mod tests;
