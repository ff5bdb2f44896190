//! From the mounts of a description to those of a plan: options become what the kernel is told.
//!
//! An option that the kernel has no flag for is the file system's own, and a mount that the plan cannot express is
//! refused: none is left out, because its author relies on it.

use std::path::Path;

use oci_spec::runtime as oci;
use wharf_isolation::{Ids, MountPlan, Namespaces, Source};
use wharf_sys::mount::{Attributes, Propagation};
use wharf_types::{ContainerPath, IdMaps};

use super::image;
use crate::description::{Extra, ImageVolume};
use crate::plan::{container_path, host_path};
use crate::request::CgroupPlaces;
use crate::{Refusal, user_namespace};

/// The mounts of the plan, for a container with these namespaces. The cgroup mount becomes one mount for each of the
/// machine's hierarchies.
pub(crate) fn plan(
    mounts: &[oci::Mount],
    namespaces: &Namespaces,
    extra: &Extra,
) -> Result<Vec<MountPlan>, Refusal> {
    let ids = namespaces.user.as_ref().map(|user| user.ids);
    let mut plans = Vec::with_capacity(mounts.len());
    for mount in mounts {
        let target = container_path("mounts", mount.destination())?;
        let words = Words::read(mount, ids)?;
        match mount.typ().as_deref() {
            Some("cgroup") => plans.extend(cgroup_mounts(&target, words, (&extra.cgroup, namespaces))?),
            _ => plans.push(plan_one(target, words, mount, extra)?),
        }
    }
    Ok(plans)
}

/// Checks the options of a mount that is added to a description.
pub(crate) fn check_added(mount: &oci::Mount, ids: Option<IdMaps>) -> Result<(), Refusal> {
    Words::read(mount, ids).map(drop)
}

/// A mount's parsed options. A word that mount(8) does not define is the file system's own.
#[derive(Clone)]
struct Words {
    attributes: Attributes,
    recursive_read_only: bool,
    propagation: Propagation,
    bind: Bind,
    ids: Ids,
    /// The file system's own options, each with its value or an empty one.
    others: Vec<(String, String)>,
}

/// How much of a tree is bound.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bind {
    No,
    Single,
    Tree,
}

impl Words {
    fn read(mount: &oci::Mount, ids: Option<IdMaps>) -> Result<Self, Refusal> {
        let mut words = Self {
            attributes: Attributes::NONE,
            recursive_read_only: false,
            propagation: Propagation::Private,
            bind: Bind::No,
            ids: ids_on(mount, ids)?,
            others: Vec::new(),
        };
        mount.options().iter().flatten().for_each(|option| words.take(option));
        words
            .others
            .iter_mut()
            .try_for_each(|other| put_on_host(other, ids))
            .map_err(|problem| spec_problem(mount, &problem))?;
        let binds = words.bind != Bind::No || mount.typ().as_deref() == Some("bind");
        match words.others.first() {
            Some((word, _)) if binds => {
                Err(spec_problem(mount, &format!("{word:?} is not an option of a bind mount")))
            }
            _ => Ok(words),
        }
    }

    fn take(&mut self, option: &str) {
        match option {
            "rw" | "defaults" => {}
            "ro" => self.forbid(Attributes::READ_ONLY),
            "rro" => {
                self.forbid(Attributes::READ_ONLY);
                self.recursive_read_only = true;
            }
            "nosuid" => self.forbid(Attributes::NO_SUID),
            "nodev" => self.forbid(Attributes::NO_DEV),
            "noexec" => self.forbid(Attributes::NO_EXEC),
            "private" | "rprivate" => self.propagation = Propagation::Private,
            "slave" | "rslave" => self.propagation = Propagation::Slave,
            "shared" | "rshared" => self.propagation = Propagation::Shared,
            "bind" => self.bind = Bind::Single,
            "rbind" => self.bind = Bind::Tree,
            other => {
                let (key, value) = other.split_once('=').unwrap_or((other, ""));
                self.others.push((key.to_owned(), value.to_owned()));
            }
        }
    }

    fn forbid(&mut self, attributes: Attributes) {
        self.attributes = self.attributes.and(attributes);
    }

    fn mount(self, target: ContainerPath, source: Source) -> MountPlan {
        MountPlan {
            target,
            source,
            attributes: self.attributes,
            recursive_read_only: self.recursive_read_only,
            propagation: self.propagation,
            ids: self.ids,
        }
    }
}

/// A mount that names ids must name all of the container's: there is no other user namespace to map them by.
fn ids_on(mount: &oci::Mount, ids: Option<IdMaps>) -> Result<Ids, Refusal> {
    let named = user_namespace::parse_spec(mount.uid_mappings(), mount.gid_mappings());
    match named.map_err(|problem| spec_problem(mount, &problem))? {
        None => Ok(Ids::Hosts),
        named if named == ids => Ok(Ids::Containers),
        Some(_others) => Err(spec_problem(mount, "the mappings are not those of the container")),
    }
}

/// Replaces the id in an option by what it is on the host, whose user mounts the file system.
fn put_on_host((key, value): &mut (String, String), ids: Option<IdMaps>) -> Result<(), String> {
    let Some(ids) = ids else { return Ok(()) };
    let range = match key.as_str() {
        "uid" => ids.users,
        "gid" => ids.groups,
        _ => return Ok(()),
    };
    let on_host = value.parse().ok().and_then(|id| range.on_host(id));
    *value = on_host.ok_or_else(|| format!("{key}={value} is not in the user namespace"))?.to_string();
    Ok(())
}

fn spec_problem(mount: &oci::Mount, problem: &str) -> Refusal {
    Refusal::spec("mounts", format!("{}: {problem}", mount.destination().display()))
}

fn plan_one(
    target: ContainerPath,
    mut words: Words,
    mount: &oci::Mount,
    extra: &Extra,
) -> Result<MountPlan, Refusal> {
    let (kind, source) = (mount.typ().as_deref(), mount.source());
    let bound = || {
        let source = source.as_deref().unwrap_or(Path::new(""));
        host_path("mounts", source)
    };
    let image = extra.images.iter().find(|image| image.target == target);
    let source = match (words.bind, kind, image) {
        (Bind::Tree, ..) => Source::Tree(bound()?),
        (Bind::Single, _, Some(image)) if image::is_bind_of(image, source.as_deref()) => of_image(image),
        (Bind::Single, ..) if extra.volumes.iter().any(|volume| volume.target == target) => {
            Source::Volume(bound()?)
        }
        (Bind::Single, ..) if source.as_deref().and_then(Path::parent) == Some(extra.pod_files.as_path()) => {
            Source::OfPod(bound()?)
        }
        (Bind::Single, ..) => Source::Single(bound()?),
        (Bind::No, Some(image::OVERLAY), Some(image)) if image::is_overlay_of(image, &words.others) => {
            of_image(image)
        }
        (Bind::No, Some(image::OVERLAY), Some(_)) => {
            let problem = format!("{target}: the layers of an image cannot be changed");
            return Err(Refusal::spec("mounts", problem));
        }
        (Bind::No, Some(kind), _) if kind != "bind" => {
            Source::Filesystem { kind: kind.to_owned(), options: std::mem::take(&mut words.others) }
        }
        (Bind::No, ..) => {
            return Err(Refusal::spec(
                "mounts",
                format!("{target}: it has neither a type nor the option bind"),
            ));
        }
    };
    Ok(words.mount(target, source))
}

fn of_image(image: &ImageVolume) -> Source {
    Source::Image { layers: image.layers.clone(), sub_path: image.sub_path.clone() }
}

/// The cgroup file systems: on v1, one bind per hierarchy, named after its mount; otherwise the unified one.
fn cgroup_mounts(
    target: &ContainerPath,
    words: Words,
    (cgroup, namespaces): (&CgroupPlaces, &Namespaces),
) -> Result<Vec<MountPlan>, Refusal> {
    let new = |kind: &str, options: &[(&str, &str)]| Source::Filesystem {
        kind: kind.to_owned(),
        options: options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
    };
    if cgroup.v1.is_empty() {
        // In the host's cgroup namespace, the options of a new mount would also apply to the host's own.
        let source = match &cgroup.unified {
            Some(unified) if !namespaces.cgroup => Source::Single(unified.clone()),
            _ => new("cgroup2", &[]),
        };
        return Ok(vec![words.mount(target.clone(), source)]);
    }
    let directory = new("tmpfs", &[("mode", "755"), ("size", "64k")]);
    let mut plans = vec![words.clone().mount(target.clone(), directory)];
    for (name, directory) in &cgroup.v1 {
        let place = ContainerPath::new(&format!("{target}/{name}"));
        let place = place.map_err(|error| Refusal::spec("mounts", error))?;
        plans.push(words.clone().mount(place, Source::Single(directory.clone())));
    }
    Ok(plans)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Switch;
    use wharf_isolation::PidNamespace;
    use wharf_types::HostPath;

    fn words(options: &[&str]) -> Words {
        let mut mount = oci::Mount::default();
        mount.set_options(Some(options.iter().map(|&option| option.to_owned()).collect()));
        Words::read(&mount, None).unwrap()
    }

    fn cgroups(options: &[&str], v1: &[&str], own: Switch) -> Vec<MountPlan> {
        let mut places = crate::tests::places().cgroup;
        let host = |path: &str| HostPath::new(path).unwrap();
        places.v1 = v1.iter().map(|name| ((*name).to_owned(), host("/cgroup"))).collect();
        let pid = PidNamespace::Host;
        let namespaces =
            Namespaces { net: None, ipc: None, uts: None, user: None, pid, cgroup: own == Switch::On };
        let target = ContainerPath::new("/sys/fs/cgroup").unwrap();
        cgroup_mounts(&target, words(options), (&places, &namespaces)).unwrap()
    }

    #[test]
    fn the_hosts_cgroup2_is_never_mounted_anew() {
        let unified = HostPath::new("/sys/fs/cgroup").unwrap();
        for access in ["ro", "rw"] {
            let source = |own| cgroups(&[access], &[], own)[0].source.clone();
            assert_eq!(source(Switch::Off), Source::Single(unified.clone()));
            assert!(matches!(source(Switch::On), Source::Filesystem { kind, .. } if kind == "cgroup2"));
        }
    }

    #[test]
    fn the_directory_of_v1_hierarchies_is_read_only_with_them() {
        for (access, read_only) in [("ro", true), ("rw", false)] {
            let mounts = cgroups(&[access], &["cpu", "memory"], Switch::On);
            assert_eq!(mounts.len(), 3);
            assert!(mounts.iter().all(|mount| mount.attributes.has(Attributes::READ_ONLY) == read_only));
        }
    }

    #[test]
    fn a_word_is_the_kernels_or_the_file_systems() {
        let read = words(&["rro", "nosuid", "rbind", "rslave"]);
        assert_eq!(read.attributes, Attributes::READ_ONLY.and(Attributes::NO_SUID));
        assert!(read.recursive_read_only && read.bind == Bind::Tree);
        assert_eq!(read.propagation, Propagation::Slave);
        let others = words(&["size=64k", "newinstance"]).others;
        assert_eq!(others, [("size".into(), "64k".into()), ("newinstance".into(), String::new())]);
        let mut bind = oci::Mount::default();
        bind.set_options(Some(vec!["bind".to_owned(), "relatime".to_owned()]));
        assert!(Words::read(&bind, None).is_err_and(|error| error.to_string().contains("relatime")));
    }
}
