//! A process that others can see and that must not be worth attacking: it leaves the host before it does anything else.
//!
//! It is the reaper of a pod's shared PID namespace, which lives as long as the pod (`supervisor/src/pod_reaper.rs`),
//! and one that lends it a cgroup namespace. Here are cgroups, namespaces and mounts, as far as the pod's first
//! container has them. Giving up its user, its capabilities and its calls is up to itself.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sched::{CloneFlags, setns, unshare};
use wharf_sys::error::Named as _;
use wharf_sys::mount;

use crate::create::enter_cgroup;
use crate::error::{Error, Stage};
use crate::paths;
use crate::plan::{Namespaces, Outline};
use crate::pod::PodNamespaces;

/// Enters the cgroups of a container as its own processes do, and makes a cgroup namespace there, for
/// [`leave_host`]. In the unified hierarchy, this process has been cloned into its cgroup.
///
/// # Errors
/// The kernel's error.
pub fn enter_cgroups(of: &Outline) -> Result<(), Error> {
    enter_cgroup(&of.cgroup.entries)?;
    unshare(CloneFlags::CLONE_NEWCGROUP)
        .named("unshare", || "CLONE_NEWCGROUP".into())
        .stage("making a cgroup namespace")
}

/// Proof that this process has left the host. What it does next, containers may see.
#[derive(Debug)]
pub struct LeftHost(());

/// Moves this process into the namespaces of a pod that its `first` container has, and into a mount namespace of its
/// own whose root is an empty directory that cannot be written. Containers see it, so it has the label of their files.
///
/// Its cgroups are the supervisor's. Whoever may enter its cgroup namespace can mount the cgroup file system from the
/// root of that: it is the one of another process, the `lender` (a pidfd), whose cgroups are the first container's.
///
/// # Errors
/// The kernel's error.
pub fn leave_host(
    pod: PodNamespaces<'_>,
    first: &Outline,
    lender: BorrowedFd<'_>,
) -> Result<LeftHost, Error> {
    const STAGE: &str = "leaving the host for an empty root";
    let empty = paths::empty_directory(first.mount_label.as_ref()).stage(STAGE)?;
    setns(lender, CloneFlags::CLONE_NEWCGROUP).named("setns", || "CLONE_NEWCGROUP".into()).stage(STAGE)?;
    let wanted = Namespaces { cgroup: false, ..first.namespaces.clone() };
    pod.enter(&wanted)?;
    pod.leave_files(&wanted)?;
    mount::take_root(empty.as_fd()).stage(STAGE)?;
    Ok(LeftHost(()))
}
