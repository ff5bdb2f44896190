//! Where supervisors are.
#![expect(clippy::disallowed_methods, reason = "only `blocking` leads here")]

use std::fs::File;

use wharf_cgroup::{Cgroup, CgroupPath, Cgroups};
use wharf_types::{Stage as _, StageError};

/// The name of the supervisors' cgroup below the configured parent.
const NAME: &str = "supervisors";

/// The directory of the cgroup (v2) of all supervisors, made if it is not there; `None` on v1. In that of the daemon they
/// would end with it wherever a unit is ended with all of its processes, and in their pods' they would be OOM-killed.
pub fn cgroup(cgroups: &Cgroups, parent: &str) -> Result<Option<File>, StageError> {
    const STAGE: &str = "making the supervisors' cgroup";
    let path = CgroupPath::new(parent).and_then(|parent| parent.child(NAME)).stage(STAGE)?;
    let open = |cgroup: Cgroup| cgroup.entry().directory.map(File::open).transpose();
    // Another pod may be making it right now: then it is whole once this one has made it, too.
    if let Ok(Ok(directory)) = cgroups.open(&path).map(open) {
        return Ok(directory);
    }
    open(cgroups.create(&path).stage(STAGE)?).stage(STAGE)
}
