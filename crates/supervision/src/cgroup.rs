//! The cgroup of all supervisors, beside those of the pods and of the daemon.
#![expect(clippy::disallowed_methods, reason = "only `blocking` leads here")]

use std::fs::File;

use wharf_cgroup::{Cgroup, Cgroups, Placement};
use wharf_types::{Stage as _, StageError};

/// The directory of the cgroup (v2) of all supervisors, which is made if it is missing; `None` on v1. In the daemon's
/// cgroup, they would be killed whenever the daemon's unit is stopped with all of its processes; in their pods'
/// cgroups, they could be OOM-killed.
pub(crate) fn cgroup(cgroups: &Cgroups, placement: &Placement) -> Result<Option<File>, StageError> {
    const STAGE: &str = "making the supervisors' cgroup";
    let path = placement.supervisors().stage(STAGE)?;
    let open = |cgroup: Cgroup| cgroup.entry().directory.map(File::open).transpose();
    // Another pod may be making it at this moment: once this call has made it as well, it is complete.
    if let Ok(Ok(directory)) = cgroups.open(&path).map(open) {
        return Ok(directory);
    }
    open(cgroups.create(&path).stage(STAGE)?).stage(STAGE)
}
