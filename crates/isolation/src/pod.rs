//! The pod's namespaces, which its supervisor holds, and how a child of the supervisor leaves the host for them.

use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::sched::CloneFlags;
use wharf_sys::error::Named as _;
use wharf_types::HostPath;

use crate::error::{Error, Stage};
use crate::plan::Namespaces;

/// The pod's own namespaces, as descriptors.
#[derive(Debug, Clone, Copy)]
pub struct PodNamespaces<'a> {
    /// The network namespace.
    pub net: Option<BorrowedFd<'a>>,
    /// The IPC namespace.
    pub ipc: Option<BorrowedFd<'a>>,
    /// The UTS namespace.
    pub uts: Option<BorrowedFd<'a>>,
    /// The mount namespace. Its root is the pod's file system, and no mount of the host is visible in it.
    pub mounts: BorrowedFd<'a>,
}

impl<'a> PodNamespaces<'a> {
    /// The parent's descriptors that a child has to keep to enter the namespaces.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'a>> + use<'a> {
        [self.net, self.ipc, self.uts].into_iter().flatten().chain([self.mounts])
    }

    /// Moves this process into the wanted namespaces, and into a mount namespace of its own that shows only the pod's
    /// file system. The host's mounts are not copied: that would cost more with each of them.
    pub(crate) fn enter(&self, wanted: &Namespaces) -> Result<(), Error> {
        const STAGE: &str = "making the mount namespace";
        join(wanted.net.as_ref(), self.net, CloneFlags::CLONE_NEWNET)?;
        join(wanted.ipc.as_ref(), self.ipc, CloneFlags::CLONE_NEWIPC)?;
        join(wanted.uts.as_ref(), self.uts, CloneFlags::CLONE_NEWUTS)?;
        join_one(self.mounts, CloneFlags::CLONE_NEWNS)?;
        let mut own = CloneFlags::CLONE_NEWNS;
        own.set(CloneFlags::CLONE_NEWCGROUP, wanted.cgroup);
        nix::sched::unshare(own).named("unshare", || format!("{own:?}")).stage(STAGE)
    }
}

const JOIN_STAGE: &str = "joining the pod's namespaces";

fn join(wanted: Option<&HostPath>, held: Option<BorrowedFd<'_>>, kind: CloneFlags) -> Result<(), Error> {
    if wanted.is_none() {
        return Ok(());
    }
    let missing = || wharf_sys::Error::new("setns", format!("{kind:?}, which nobody holds"), Errno::ENOENT);
    join_one(held.ok_or_else(missing).stage(JOIN_STAGE)?, kind)
}

fn join_one(held: BorrowedFd<'_>, kind: CloneFlags) -> Result<(), Error> {
    nix::sched::setns(held, kind).named("setns", || format!("{kind:?}")).stage(JOIN_STAGE)
}
