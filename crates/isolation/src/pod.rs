//! The pod's namespaces, which its supervisor holds, and how a child of the supervisor leaves the host for them.
//!
//! Network, IPC and UTS namespaces are entered as they are. The pod's mount namespace is entered only to copy its files
//! from there: each container has mounts of its own, in a copy of an empty namespace. The user namespace is joined
//! last, because it ends the right to mount. PID namespaces are not the pod's: see `birth`.

use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::unistd::{Gid, Uid};
use wharf_sys::error::Named as _;
use wharf_sys::mount::{self, Attributes, Depth};
use wharf_sys::user_namespace;
use wharf_types::{HostPath, IdMaps};

use crate::error::{Error, Stage};
use crate::plan::{Namespaces, UserNamespace};

/// The pod's own namespaces, as descriptors.
#[derive(Debug, Clone, Copy)]
pub struct PodNamespaces<'a> {
    /// The network namespace.
    pub net: Option<BorrowedFd<'a>>,
    /// The IPC namespace.
    pub ipc: Option<BorrowedFd<'a>>,
    /// The UTS namespace.
    pub uts: Option<BorrowedFd<'a>>,
    /// The user namespace, to which the three belong as far as they are the pod's own.
    pub user: Option<BorrowedFd<'a>>,
    /// The mount namespace. Its root is the pod's file system, and no mount of the host is visible in it.
    pub mounts: BorrowedFd<'a>,
    /// A mount namespace without mounts.
    pub empty: BorrowedFd<'a>,
}

impl<'a> PodNamespaces<'a> {
    /// The parent's descriptors that a child has to keep to enter the namespaces.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'a>> + use<'a> {
        [self.net, self.ipc, self.uts, self.user].into_iter().flatten().chain([self.mounts, self.empty])
    }

    /// Moves this process into the wanted namespaces, and into the pod's mount namespace, which shows only the pod's
    /// file system and is not to be changed.
    pub(crate) fn enter(&self, wanted: &Namespaces) -> Result<(), Error> {
        // By descriptors, so these three could come in any order.
        join_wanted(wanted.net.as_ref(), self.net, CloneFlags::CLONE_NEWNET)?;
        join_wanted(wanted.ipc.as_ref(), self.ipc, CloneFlags::CLONE_NEWIPC)?;
        join_wanted(wanted.uts.as_ref(), self.uts, CloneFlags::CLONE_NEWUTS)?;
        // From here on no path leads to the host.
        self.enter_files()
    }

    /// Moves this process into the pod's mount namespace alone, which shows only the pod's file system.
    pub(crate) fn enter_files(&self) -> Result<(), Error> {
        join_one(self.mounts, CloneFlags::CLONE_NEWNS)
    }

    /// Moves this process into a mount namespace of its own without mounts. It is no copy of the pod's, because a mount
    /// is not simply dropped from one: the kernel then waits until no processor looks at the old mounts, which takes
    /// long on a busy machine. Nor is it one of the host's, which costs more with each mount there.
    pub(crate) fn leave_files(&self, wanted: &Namespaces) -> Result<(), Error> {
        join_one(self.empty, CloneFlags::CLONE_NEWNS)?;
        unshare_own(wanted)
    }
}

/// Copies the mount namespace, and makes this process's cgroup the root if that is wanted.
fn unshare_own(wanted: &Namespaces) -> Result<(), Error> {
    let mut own = CloneFlags::CLONE_NEWNS;
    own.set(CloneFlags::CLONE_NEWCGROUP, wanted.cgroup);
    nix::sched::unshare(own).named("unshare", || format!("{own:?}")).stage("making the mount namespace")
}

/// The user namespace of a container, joined last. Until then this process is the host's root user, who may mount the
/// container's file systems, but makes files as the root user of the namespace.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Users<'a> {
    pub(crate) namespace: BorrowedFd<'a>,
    pub(crate) ids: IdMaps,
}

impl<'a> Users<'a> {
    /// The user namespace that a container wants; `None` if it has the host's.
    pub(crate) fn of(pod: PodNamespaces<'a>, wanted: &Namespaces) -> Result<Option<Self>, Error> {
        let Some(UserNamespace { ids, .. }) = wanted.user else { return Ok(None) };
        let namespace = pod.user.ok_or_else(|| not_held(CloneFlags::CLONE_NEWUSER)).stage(JOIN_STAGE)?;
        Ok(Some(Self { namespace, ids }))
    }

    /// Forbids device nodes in a tree whose ids are mapped for the namespace: they would belong to its root user,
    /// whoever the host lets open the devices. Those that the container is meant to have are in its `/dev`.
    pub(crate) fn forbid_nodes(self, tree: BorrowedFd<'_>, depth: Depth) -> wharf_sys::Result<()> {
        mount::forbid(tree, Attributes::NO_DEV, depth)
    }

    /// Makes files from here on the root user's of the namespace.
    pub(crate) fn own_files(self) -> Result<(), Error> {
        let IdMaps { users, groups } = self.ids;
        user_namespace::own_files(users.first(), groups.first()).stage("owning the container's files")
    }

    /// Becomes the root user of the namespace, without a right outside of it. The mounts are copied once more: in the
    /// copy, which belongs to the namespace, the container may mount, but can neither undo what was mounted for it nor
    /// lift a restriction. This process's root and working directory are in the copy, and what it has open is not.
    pub(crate) fn join(self, wanted: &Namespaces) -> Result<(), Error> {
        join_one(self.namespace, CloneFlags::CLONE_NEWUSER)?;
        become_root().stage("becoming the root user of the user namespace")?;
        unshare_own(wanted)
    }
}

/// Becomes the root user of the user namespace that this process has entered, in which its own ids are not mapped.
pub(crate) fn become_root() -> wharf_sys::Result<()> {
    let (root, group) = (Uid::from_raw(0), Gid::from_raw(0));
    nix::unistd::setresgid(group, group, group).named("setresgid", || "0".into())?;
    nix::unistd::setresuid(root, root, root).named("setresuid", || "0".into())
}

const JOIN_STAGE: &str = "joining the pod's namespaces";

fn join_wanted(
    wanted: Option<&HostPath>,
    held: Option<BorrowedFd<'_>>,
    kind: CloneFlags,
) -> Result<(), Error> {
    if wanted.is_none() {
        return Ok(());
    }
    join_one(held.ok_or_else(|| not_held(kind)).stage(JOIN_STAGE)?, kind)
}

fn not_held(kind: CloneFlags) -> wharf_sys::Error {
    wharf_sys::Error::new("setns", format!("{kind:?}, which nobody holds"), Errno::ENOENT)
}

fn join_one(held: BorrowedFd<'_>, kind: CloneFlags) -> Result<(), Error> {
    nix::sched::setns(held, kind).named("setns", || format!("{kind:?}")).stage(JOIN_STAGE)
}
