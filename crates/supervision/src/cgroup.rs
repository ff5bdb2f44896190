//! The cgroup of all supervisors, beside those of the pods and of the daemon. Only the unified hierarchy has them
//! there: in those of v1 they stay in the daemon's. To enter all of these, each supervisor would take 0.2 ms at its
//! start.

use std::os::fd::OwnedFd;

use nix::fcntl::OFlag;
use wharf_cgroup::{Cgroup, Cgroups, Placement};
use wharf_sys::fs;
use wharf_types::{Stage as _, StageError};

/// The directory of the cgroup (v2) of all supervisors, which is made if it is missing; `None` on v1. In the daemon's
/// cgroup, they would be killed whenever the daemon's unit is stopped with all of its processes; in their pods'
/// cgroups, they could be OOM-killed.
pub(crate) fn cgroup(cgroups: &Cgroups, placement: &Placement) -> Result<Option<OwnedFd>, StageError> {
    const STAGE: &str = "making the supervisors' cgroup";
    let path = placement.supervisors().stage(STAGE)?;
    // That makes no event by which a process that watches this file system would get a descriptor, too.
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
    let open = |cgroup: Cgroup| cgroup.entry().directory.map(|path| fs::open(path, flags)).transpose();
    // Another pod may be making it at this moment: once this call has made it as well, it is complete.
    if let Ok(Ok(directory)) = cgroups.open(&path).map(open) {
        return Ok(directory);
    }
    open(cgroups.create(&path).stage(STAGE)?).stage(STAGE)
}
