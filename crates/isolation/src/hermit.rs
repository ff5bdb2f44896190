//! A process that others can see and that must not be worth attacking: it leaves the host before it does anything else.

use std::os::fd::AsFd;

use wharf_sys::mount;

use crate::error::{Error, Stage};
use crate::paths;
use crate::plan::Namespaces;
use crate::pod::PodNamespaces;

/// Moves this process into a pod's namespaces, and into a mount namespace of its own whose root is an empty directory
/// that cannot be written.
///
/// # Errors
/// The kernel's error.
pub fn leave_host(pod: PodNamespaces<'_>, namespaces: &Namespaces) -> Result<(), Error> {
    const STAGE: &str = "leaving the host for an empty root";
    let empty = paths::empty_directory().stage(STAGE)?;
    // Its cgroup is the supervisor's, whose path must not be visible.
    let wanted = Namespaces { cgroup: true, ..namespaces.clone() };
    pod.enter(&wanted)?;
    pod.leave_files(&wanted)?;
    mount::take_root(empty.as_fd()).stage(STAGE)
}
