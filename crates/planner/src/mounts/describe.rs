//! The mounts of a description, in mounting order.
//!
//! The kernel's file systems come first; then, by depth, the pod's files, the image's volumes and the request's mounts.
//! What the request names is the request's alone. Order matters: a mount hides what is below it.

use oci_spec::runtime as oci;
use wharf_cri_api::v1::{Mount, MountPropagation, NamespaceMode};
use wharf_sys::mount::Propagation;
use wharf_types::{ContainerPath, ErrorKind, IdMaps};

use super::{ETC_FILES, SHM, image};
use crate::cgroup_view::Access;
use crate::description::{ImageVolume, Volume};
use crate::refuse::propagation;
use crate::request::{HostFacts, MountSource, Places, Request, Unread};
use crate::{Refusal, cgroup_view, user_namespace};

/// Options for mounts that contain no programs and no devices.
const SAFE: [&str; 3] = ["nosuid", "noexec", "nodev"];
/// Options for binding one file or directory without the mounts below it.
pub(super) const SINGLE: [&str; 2] = ["bind", "rprivate"];

/// Each container has its own terminals, and only so many of the machine's: there are 4,096 for all containers.
const TERMINALS: [&str; 6] = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "max=512"];
/// The group `tty`, which lets users write to each other's terminals, has this number everywhere.
const TERMINALS_GROUP: (&str, u32) = ("gid=5", 5);

/// A mount of the spec, with its target in comparable form.
pub(super) struct Placed {
    target: ContainerPath,
    mount: oci::Mount,
}

impl Placed {
    pub(super) fn new(field: &'static str, target: &str, kind: &str, source: &str) -> Result<Self, Refusal> {
        let target = ContainerPath::new(target).map_err(|error| Refusal::field(field, error))?;
        let mut mount = oci::Mount::default();
        mount
            .set_destination(target.as_str().into())
            .set_typ(Some(kind.to_owned()))
            .set_source(Some(source.into()));
        Ok(Self { target, mount })
    }

    pub(super) fn with<'a>(mut self, options: impl IntoIterator<Item = &'a str>) -> Self {
        let all = self.mount.options_mut().get_or_insert_default();
        all.extend(options.into_iter().map(str::to_owned));
        self
    }
}

/// Every mount, in mounting order.
pub(crate) fn describe(
    request: &Request<'_>,
    facts: &HostFacts,
    places: &Places,
    volumes: &[Volume],
    images: &[Option<ImageVolume>],
) -> Result<Vec<oci::Mount>, Refusal> {
    let ids = user_namespace::of(request.pods_namespaces())?;
    let mut pods = volumes.iter().map(volume).collect::<Result<Vec<_>, _>>()?;
    pods.extend(pods_mounts(request, places)?);
    let asked = request.container.mounts.iter().zip(&facts.mounts).zip(images);
    let asked = asked.map(|((mount, source), image)| {
        check(mount, ids)?;
        match image {
            Some(image) => image::mount(mount, image),
            None => bound(mount, source, ids),
        }
    });
    let asked = asked.collect::<Result<Vec<_>, _>>()?;
    let propagations = request.container.mounts.iter().map(|mount| mount.propagation());
    let is_shared = propagations.into_iter().any(|one| one == MountPropagation::PropagationBidirectional);
    if is_shared && !request.is_privileged() {
        return Err(Refusal::field("mounts", "bidirectional propagation is for privileged containers"));
    }
    if is_shared && ids.is_some() {
        let problem = "bidirectional propagation: what is mounted in a user namespace stays there";
        return Err(Refusal::field("mounts", problem));
    }
    let all = merge(kernels_mounts(request, ids)?, pods, asked);
    Ok(all.into_iter().map(|placed| placed.mount).collect())
}

/// The kernel's file systems and `/dev`. Only a privileged container may change what they show of the machine; its
/// cgroup another may manage if it asks for that.
fn kernels_mounts(request: &Request<'_>, ids: Option<IdMaps>) -> Result<Vec<Placed>, Refusal> {
    let of = |target, kind: &str| Placed::new("mounts", target, kind, kind);
    let access = if request.is_privileged() { "rw" } else { "ro" };
    let cgroups = match cgroup_view::of(request.security())?.access {
        Access::ReadOnly => "ro",
        Access::ReadWrite => "rw",
    };
    let has_group = ids.is_none_or(|ids| ids.groups.on_host(TERMINALS_GROUP.1).is_some());
    Ok(vec![
        of("/proc", "proc")?.with(SAFE),
        of("/dev", "tmpfs")?.with(["nosuid", "mode=755", "size=65536k"]),
        of("/dev/pts", "devpts")?.with(TERMINALS).with(has_group.then_some(TERMINALS_GROUP.0)),
        of("/dev/mqueue", "mqueue")?.with(SAFE),
        of("/sys", "sysfs")?.with(SAFE).with([access]),
        of("/sys/fs/cgroup", "cgroup")?.with(SAFE).with([cgroups]),
    ])
}

/// A volume, in a directory of the container's own.
fn volume(volume: &Volume) -> Result<Placed, Refusal> {
    let placed = Placed::new("image", volume.target.as_str(), "bind", volume.directory.as_str())?;
    Ok(placed.with(SINGLE).with(["rw"]))
}

/// What the pod's containers share: shared memory, the time zone, and the files with their hostname and name servers.
fn pods_mounts(request: &Request<'_>, places: &Places) -> Result<Vec<Placed>, Refusal> {
    let files = &places.pod_files;
    let shm = match request.pods_namespaces().ipc() {
        NamespaceMode::Node => "/dev/shm".to_owned(),
        _ => format!("{files}/{SHM}"),
    };
    let mut mounts = vec![Placed::new("mounts", "/dev/shm", "bind", &shm)?.with(SINGLE).with(SAFE)];
    if let Some(zone) = &request.defaults.timezone {
        let mount = Placed::new("mounts", "/etc/localtime", "bind", zone.as_str())?;
        mounts.push(mount.with(SINGLE).with(SAFE).with(["ro"]));
    }
    let access = if request.has_read_only_root() { "ro" } else { "rw" };
    for name in ETC_FILES {
        let mount = Placed::new("mounts", &format!("/etc/{name}"), "bind", &format!("{files}/{name}"))?;
        mounts.push(mount.with(SINGLE).with([access]));
    }
    Ok(mounts)
}

/// Checks a request's mount as far as possible without looking at the host.
pub(crate) fn check(mount: &Mount, ids: Option<IdMaps>) -> Result<(), Refusal> {
    let fail = |problem: String| problem_of(mount, &problem);
    if mount.image.is_some() {
        image::check(mount)?;
    }
    user_namespace::is_mapped(mount, ids).map_err(fail)?;
    let target = ContainerPath::new(&mount.container_path).map_err(|error| fail(error.to_string()))?;
    if target.depth() == 0 {
        return Err(fail("nothing can be mounted over the container's root".to_owned()));
    }
    let propagation = propagation(mount.propagation).map_err(|error| fail(error.to_string()))?;
    let is_private = propagation == MountPropagation::PropagationPrivate;
    if mount.recursive_read_only && !(mount.readonly && is_private) {
        return Err(fail("recursive_read_only needs readonly and private propagation".to_owned()));
    }
    let options = mount.mount_options.iter();
    match options.map(String::as_str).find(|option| !SAFE.contains(option)) {
        Some(other) => Err(fail(format!("mount_options: {other:?} is not one of noexec, nodev and nosuid"))),
        None => Ok(()),
    }
}

pub(super) fn problem_of(mount: &Mount, problem: &str) -> Refusal {
    let target = &mount.container_path;
    match mount.image {
        Some(_) => {
            let (kind, problem) = (ErrorKind::InvalidArgument, problem.to_owned());
            Refusal::ImageVolume { kind, target: target.clone(), problem }
        }
        None => Refusal::field("mounts", format!("{target}: {problem}")),
    }
}

/// A mount of what a host path leads to.
fn bound(
    mount: &Mount,
    source: &Result<MountSource, Unread>,
    ids: Option<IdMaps>,
) -> Result<Placed, Refusal> {
    let unread = |unread: &Unread| Refusal::unread("mounts", unread.clone().of(&mount.container_path));
    let source = source.as_ref().map_err(unread)?;
    let propagation = asked_propagation(mount, source)?;
    let mut placed = Placed::new("mounts", &mount.container_path, "bind", source.path.as_str())?;
    let is_mapped = user_namespace::is_mapped(mount, ids).map_err(|problem| problem_of(mount, &problem))?;
    if let (true, Some(ids)) = (is_mapped, ids) {
        placed.mount.set_uid_mappings(Some(user_namespace::mappings(ids.users)?));
        placed.mount.set_gid_mappings(Some(user_namespace::mappings(ids.groups)?));
    }
    Ok(placed.with(["rbind", propagation]).with(access(mount)))
}

/// The options that say what is allowed in a mount.
pub(super) fn access(mount: &Mount) -> impl Iterator<Item = &str> {
    let access = match (mount.recursive_read_only, mount.readonly) {
        (true, _) => "rro",
        (false, true) => "ro",
        (false, false) => "rw",
    };
    std::iter::once(access).chain(mount.mount_options.iter().map(String::as_str))
}

/// The propagation of later mounts. If the source's own mount does not propagate, the request is refused, because the
/// mount would silently be private.
fn asked_propagation(mount: &Mount, source: &MountSource) -> Result<&'static str, Refusal> {
    let path = &source.path;
    match (propagation(mount.propagation)?, source.propagation) {
        (MountPropagation::PropagationPrivate, _) => Ok("rprivate"),
        (MountPropagation::PropagationBidirectional, Propagation::Shared) => Ok("rshared"),
        (MountPropagation::PropagationBidirectional, _) => {
            Err(problem_of(mount, &format!("{path} is on a mount that is not shared: mount --make-rshared")))
        }
        (_, Propagation::Shared | Propagation::Slave) => Ok("rslave"),
        (_, Propagation::Private) => {
            Err(problem_of(mount, &format!("{path} is on a mount that is neither shared nor slave")))
        }
    }
}

/// All mounts in their order. The usual ones come first, except those that a request names or that are below one that
/// it names: these are then up to the request. The pod's are sorted among the request's by depth, so that none hides
/// another.
fn merge(usual: Vec<Placed>, pods: Vec<Placed>, mut asked: Vec<Placed>) -> Vec<Placed> {
    let below = |mount: &Placed| asked.iter().any(|asked| mount.target.is_below(&asked.target));
    let named = |mount: &Placed| asked.iter().any(|asked| mount.target == asked.target);
    let mut all: Vec<Placed> = usual.into_iter().filter(|mount| !named(mount) && !below(mount)).collect();
    let mut rest: Vec<Placed> = pods.into_iter().filter(|mount| !named(mount)).collect();
    rest.append(&mut asked);
    rest.sort_by_key(|mount| mount.target.depth());
    all.append(&mut rest);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(usual: &[&str], pods: &[&str], asked: &[&str]) -> Vec<String> {
        let mounts = |targets: &[&str]| {
            let mount = |target: &&str| Placed::new("mounts", target, "bind", "/x").unwrap();
            targets.iter().map(mount).collect()
        };
        merge(mounts(usual), mounts(pods), mounts(asked))
            .iter()
            .map(|placed| placed.target.to_string())
            .collect()
    }

    #[test]
    fn none_hides_another() {
        let usual = ["/proc", "/dev", "/dev/pts", "/sys", "/sys/fs/cgroup"];
        let pods = ["/dev/shm", "/etc/hosts"];
        let all = targets(&usual, &pods, &["/deep/er", "/etc", "/data"]);
        let want = [
            "/proc",
            "/dev",
            "/dev/pts",
            "/sys",
            "/sys/fs/cgroup",
            "/etc",
            "/data",
            "/dev/shm",
            "/etc/hosts",
            "/deep/er",
        ];
        assert_eq!(all, want);
        let all = targets(&usual, &pods, &["/dev", "/sys", "/etc/hosts"]);
        assert_eq!(all, ["/proc", "/dev", "/sys", "/dev/shm", "/etc/hosts"]);
        assert_eq!(targets(&["/dev"], &[], &["/devices"]), ["/dev", "/devices"]);
    }

    #[test]
    fn the_kernels_file_systems_come_after_what_they_are_mounted_on() {
        let request = crate::tests::Asked::default();
        let mounts = kernels_mounts(&request.request(), None).unwrap();
        for (at, mount) in mounts.iter().enumerate() {
            let later = mounts[..at].iter().find(|before| before.target.is_below(&mount.target));
            assert!(later.is_none(), "{}", mount.target);
        }
    }
}
