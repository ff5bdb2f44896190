//! A process that others can see and that must not be worth attacking: it leaves the host before it does anything else.

use std::os::fd::AsFd;

use wharf_sys::mount;

use crate::error::{Error, Stage};
use crate::paths;
use crate::plan::{Namespaces, Outline};
use crate::pod::PodNamespaces;

/// Moves this process into the namespaces of a pod that its `first` container has, and into a mount namespace of its
/// own whose root is an empty directory that cannot be written. Containers see it, so it has the label of their files.
///
/// # Errors
/// The kernel's error.
pub fn leave_host(pod: PodNamespaces<'_>, first: &Outline) -> Result<(), Error> {
    const STAGE: &str = "leaving the host for an empty root";
    let empty = paths::empty_directory(first.mount_label.as_ref()).stage(STAGE)?;
    // Its cgroup is the supervisor's, whose path must not be visible.
    let wanted = Namespaces { cgroup: true, ..first.namespaces.clone() };
    pod.enter(&wanted)?;
    pod.leave_files(&wanted)?;
    mount::take_root(empty.as_fd()).stage(STAGE)
}
