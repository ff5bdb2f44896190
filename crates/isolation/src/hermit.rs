//! A process that others see and that must be worth no attack: it leaves the host before it does anything.

use std::os::fd::AsFd;
use std::path::Path;

use wharf_sys::error::Named as _;
use wharf_sys::mount;

use crate::create::{join_namespaces, leave_host_mounts};
use crate::error::{Error, Stage};
use crate::paths;
use crate::plan::Namespaces;

/// Moves this process into a pod's namespaces and a mount namespace of its own, where its root is an empty directory that
/// cannot be written. `over` is a directory of the host that the empty one is mounted over on the way.
///
/// # Errors
/// The kernel's.
pub fn leave_host(namespaces: &Namespaces, over: &Path) -> Result<(), Error> {
    const STAGE: &str = "leaving the host for an empty root";
    // Its cgroup is the supervisor's, whose path is nobody's business.
    join_namespaces(&Namespaces { cgroup: true, ..namespaces.clone() })?;
    leave_host_mounts()?;
    let directory = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_DIRECTORY;
    let over = wharf_sys::fs::open(over, directory).stage(STAGE)?;
    let empty = paths::empty_directory().stage(STAGE)?;
    mount::attach(empty.as_fd(), over.as_fd()).stage(STAGE)?;
    nix::unistd::fchdir(&empty).named("fchdir", || "the empty root".into()).stage(STAGE)?;
    mount::pivot_here().stage(STAGE)
}
