//! The plan's mounts. Sources on the host are opened while this process is still in the host's mount namespace, those
//! of the pod in the pod's. All are attached once the root file system is there.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};
use wharf_sys::fs::{Resolve, open_below, split_last};
use wharf_sys::mount::{self, Attributes, Depth, Propagation};
use wharf_types::HostPath;

use crate::birth::{Origin, Place};
use crate::error::{Error, Stage as _};
use crate::plan::{Ids, MountPlan, Plan, Source};
use crate::pod::Users;
use crate::root::{Make, Root, is_directory};
use crate::volumes::{self, Copies};
use crate::{images, procfs, selinux};

/// A detached copy of each bound tree. `None` for a new file system, and until it is made for an image or a tree of the
/// pod.
#[derive(Debug)]
pub(crate) struct Sources(Vec<Option<OwnedFd>>);

/// Copies every tree of the host that will be bound. Must run in the host's mount namespace: only a copy made there is
/// a peer of the host's mount, so that later mounts on either side can propagate.
pub(crate) fn open_sources(plans: &[MountPlan], users: Option<Users<'_>>) -> Result<Sources, Error> {
    plans.iter().map(|plan| open_source(plan, users)).collect::<Result<_, _>>().map(Sources)
}

fn open_source(plan: &MountPlan, users: Option<Users<'_>>) -> Result<Option<OwnedFd>, Error> {
    let (path, depth) = match &plan.source {
        Source::Tree(path) => (path, Depth::Recursive),
        Source::Single(path) | Source::Volume(path) => (path, Depth::One),
        Source::OfPod(_) | Source::Image { .. } | Source::Filesystem { .. } => return Ok(None),
    };
    let copied = mount::copy_tree(path.as_path(), depth).and_then(|tree| prepared(tree, plan, depth));
    let tree = copied.map_err(|source| Error::HostPath { path: path.to_string(), source })?;
    let Some(users) = users else { return Ok(Some(tree)) };
    if plan.ids == Ids::Containers {
        mount::map_ids(tree.as_fd(), users.namespace).map_err(|source| unmapped(path, source))?;
    }
    // A volume of the image begins with what the image has there.
    if plan.ids == Ids::Containers || matches!(plan.source, Source::Volume(_)) {
        users
            .forbid_nodes(tree.as_fd(), depth)
            .map_err(|source| Error::HostPath { path: path.to_string(), source })?;
    }
    Ok(Some(tree))
}

/// What to say of a volume whose ids cannot be mapped. EINVAL means that its file system cannot do it.
fn unmapped(path: &HostPath, source: wharf_sys::Error) -> Error {
    let filesystem = filesystem_at(path.as_path()).filter(|_| source.errno == Errno::EINVAL);
    let path = path.to_string();
    match filesystem {
        Some(filesystem) => Error::NotMappable { path, filesystem },
        None => Error::HostPath { path, source },
    }
}

/// The type of the file system at a path without links: that of the mount with the longest path above it, the last one
/// of several.
fn filesystem_at(path: &Path) -> Option<String> {
    let table = wharf_sys::fs::kernel_text("/proc/self/mountinfo").ok()?;
    let mounts = table.lines().filter_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let point = mount.split(' ').nth(4)?;
        path.starts_with(point).then(|| (point.len(), filesystem.split(' ').next().unwrap_or_default()))
    });
    mounts.max_by_key(|(length, _)| *length).map(|(_, filesystem)| filesystem.to_owned())
}

impl Sources {
    /// Merges the layers of every image. They are paths of the host. With many layers this leaves the host's mount
    /// namespace before Linux 6.8.
    pub(crate) fn add_images(&mut self, whole: &Plan, users: Option<Users<'_>>) -> Result<(), Error> {
        for (plan, source) in whole.mounts.iter().zip(&mut self.0) {
            let Source::Image { layers, .. } = &plan.source else { continue };
            let fail = |source| Error::ImageVolume { target: plan.target.to_string(), source };
            let merged = images::merged(layers, users, whole.mount_label.as_ref());
            let tree = merged.and_then(|tree| prepared(tree, plan, Depth::One));
            *source = Some(tree.map_err(fail)?);
        }
        Ok(())
    }

    /// Replaces each image of which only a part is mounted by that part. Here the first mount happens, so this must run
    /// in the container's own mount namespace.
    pub(crate) fn narrow_images(&mut self, plans: &[MountPlan]) -> Result<(), Error> {
        for (plan, source) in plans.iter().zip(&mut self.0) {
            let (Source::Image { sub_path, .. }, Some(tree)) = (&plan.source, &mut *source) else { continue };
            if sub_path.depth() > 0 {
                let fail = |source| Error::SubPath {
                    target: plan.target.to_string(),
                    path: sub_path.relative().to_owned(),
                    source,
                };
                *tree = images::part(tree.as_fd(), sub_path).map_err(fail)?;
            }
        }
        Ok(())
    }

    /// The trees in the order of the plan.
    pub(crate) fn trees(&self) -> impl Iterator<Item = Option<&OwnedFd>> {
        self.0.iter().map(Option::as_ref)
    }

    /// Adds the trees from the pod's own file system, which is now the root of this process's mount namespace. They
    /// could not be copied from elsewhere.
    pub(crate) fn add_pods(&mut self, plans: &[MountPlan]) -> Result<(), Error> {
        let directory = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let files = wharf_sys::fs::open("/", directory).stage("opening the pod's files")?;
        for (plan, source) in plans.iter().zip(&mut self.0) {
            let Source::OfPod(path) = &plan.source else { continue };
            let fail = |source| Error::HostPath { path: path.to_string(), source };
            let (_pod, name) = split_last(path.as_str());
            let opened = open_below(files.as_fd(), name, OFlag::O_PATH, Resolve::BeneathNoLinks);
            let tree = opened.and_then(|file| mount::copy_tree_fd(file.as_fd(), Depth::One));
            *source = Some(tree.and_then(|tree| prepared(tree, plan, Depth::One)).map_err(fail)?);
        }
        Ok(())
    }
}

/// Gives a detached tree the propagation and the restrictions of its plan.
fn prepared(tree: OwnedFd, plan: &MountPlan, depth: Depth) -> wharf_sys::Result<OwnedFd> {
    match (plan.propagation, depth) {
        (Propagation::Shared, _) => forbid(&tree, plan)?,
        // Most mounts, and one call for both.
        (propagation, Depth::One) => {
            mount::forbid_and_propagate(tree.as_fd(), restrictions(plan), propagation)?;
        }
        (propagation, Depth::Recursive) => {
            mount::propagate(tree.as_fd(), propagation, depth)?;
            forbid(&tree, plan)?;
        }
    }
    Ok(tree)
}

/// The restrictions of a mount without others below it.
fn restrictions(plan: &MountPlan) -> Attributes {
    if plan.recursive_read_only { plan.attributes.and(Attributes::READ_ONLY) } else { plan.attributes }
}

fn forbid(tree: &OwnedFd, plan: &MountPlan) -> wharf_sys::Result<()> {
    if plan.recursive_read_only {
        mount::forbid(tree.as_fd(), Attributes::READ_ONLY, Depth::Recursive)?;
    }
    if plan.attributes == Attributes::NONE {
        return Ok(());
    }
    mount::forbid(tree.as_fd(), plan.attributes, Depth::One)
}

/// Attaches every mount, in the plan's order. A new file system becomes read-only when everything is mounted: until
/// then, mount points of other mounts are made in it.
pub(crate) fn attach_all(
    root: &Root,
    whole: &Plan,
    sources: Sources,
    origin: &Origin<'_>,
) -> Result<(), Error> {
    fill_volumes(root, whole, &sources)?;
    let mut read_only = Vec::new();
    for (plan, source) in whole.mounts.iter().zip(sources.0) {
        let fail = move |source| unattached(plan, source);
        let is_new = source.is_none();
        let tree = match source {
            Some(tree) => tree,
            None => new_filesystem(plan, whole, origin).map_err(fail)?,
        };
        attach_one(root, plan, &tree)?;
        if is_new && plan.attributes.has(Attributes::READ_ONLY) {
            read_only.push((tree, fail));
        }
    }
    read_only.into_iter().try_for_each(|(tree, fail)| {
        mount::forbid(tree.as_fd(), Attributes::READ_ONLY, Depth::One).map_err(fail)
    })
}

/// Fills each volume, before anything is mounted over the root file system: it begins with what is there.
pub(crate) fn fill_volumes(root: &Root, plan: &Plan, sources: &Sources) -> Result<(), Error> {
    let mut copies = Copies::within(plan.reserve);
    let mut sources_of = plan.mounts.iter().zip(&sources.0);
    sources_of.try_for_each(|(plan, source)| fill(root, plan, source.as_ref(), &mut copies))
}

/// Attaches a copy of the mount that is at this number in the working directory. A new file system is an empty one: it
/// holds no user's name, and places of other mounts.
pub(crate) fn attach_copy(root: &Root, plan: &MountPlan, number: usize) -> Result<(), Error> {
    let tree = match plan.source {
        Source::Filesystem { .. } => mount::new_filesystem("tmpfs", &[], Attributes::NONE),
        _ => mount::copy_tree(Path::new(&number.to_string()), Depth::Recursive),
    };
    attach_one(root, plan, &tree.map_err(|source| unattached(plan, source))?)
}

fn attach_one(root: &Root, plan: &MountPlan, tree: &OwnedFd) -> Result<(), Error> {
    let is_directory = is_directory(tree.as_fd()).map_err(|source| unattached(plan, source))?;
    let make = if is_directory { Make::Directory } else { Make::File };
    let target = match plan.source {
        // Where a link leads can change with the mounts that follow. What is masked and read-only in a procfs is found
        // by its path in the end, so an image with such a link would have one of which nothing is.
        Source::Filesystem { .. } => root.ensure_without_links(&plan.target, make),
        _ => root.ensure(&plan.target, make),
    };
    let target = target.map_err(|source| misplaced(plan, source))?;
    root.attach(tree.as_fd(), target.as_fd()).map_err(|error| match error.errno {
        Errno::EINVAL => match fault_of_place(root, target.as_fd(), make) {
            Some(errno) => misplaced(plan, wharf_sys::Error { errno, ..error }),
            None => unattached(plan, error),
        },
        _ => misplaced(plan, error),
    })
}

/// Why the kernel refuses a place as invalid; `None` if it is not for the place.
fn fault_of_place(root: &Root, target: BorrowedFd<'_>, make: Make) -> Option<Errno> {
    match (make, is_directory(target)) {
        _ if root.is_at(target).unwrap_or_default() => Some(Errno::EINVAL),
        (Make::File, Ok(true)) => Some(Errno::EISDIR),
        (Make::Directory, Ok(false)) => Some(Errno::ENOTDIR),
        _ => {
            let filesystem = fstatfs(target).map(|status| status.filesystem_type());
            (filesystem == Ok(PROC_SUPER_MAGIC)).then_some(Errno::EINVAL)
        }
    }
}

fn misplaced(plan: &MountPlan, source: wharf_sys::Error) -> Error {
    Error::MountPoint { what: describe(&plan.source), target: plan.target.to_string(), source }
}

/// The error for a mount that could not be made at all.
pub(crate) fn unattached(plan: &MountPlan, source: wharf_sys::Error) -> Error {
    Error::Mount { what: describe(&plan.source), target: plan.target.to_string(), source }
}

fn fill(root: &Root, plan: &MountPlan, source: Option<&OwnedFd>, copies: &mut Copies) -> Result<(), Error> {
    let (Source::Volume(_), Some(volume)) = (&plan.source, source) else { return Ok(()) };
    let filled = root.ensure(&plan.target, Make::Directory).and_then(|_target| {
        let image = root.open(&plan.target, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
        volumes::fill(volume.as_fd(), image.as_fd(), copies)
    });
    filled.map_err(|source| misplaced(plan, source))
}

fn new_filesystem(plan: &MountPlan, whole: &Plan, origin: &Origin<'_>) -> wharf_sys::Result<OwnedFd> {
    let Source::Filesystem { kind, options } = &plan.source else {
        return Err(wharf_sys::Error::new("fsopen", describe(&plan.source), Errno::EINVAL));
    };
    let attributes = plan.attributes.without(Attributes::READ_ONLY);
    match (origin.place, kind.as_str()) {
        (Place::Of(process, _), "proc") => procfs::of(process, attributes, origin),
        _ => {
            let label = selinux::option(kind, whole.mount_label.as_ref());
            let options = options.iter().map(|(key, value)| (key.as_str(), value.as_str()));
            let made = mount::new_filesystem(kind, &options.chain(label).collect::<Vec<_>>(), attributes)?;
            if kind == "mqueue" {
                selinux::label_queues(made.as_fd(), whole)?;
            }
            Ok(made)
        }
    }
}

fn describe(source: &Source) -> String {
    match source {
        Source::Tree(path) | Source::Single(path) | Source::OfPod(path) | Source::Volume(path) => {
            path.to_string()
        }
        Source::Image { sub_path, .. } => format!("{sub_path} of an image"),
        Source::Filesystem { kind, .. } => kind.clone(),
    }
}
