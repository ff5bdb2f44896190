//! Keeping a container out of the cgroup with its limits, and giving its cgroup to its user.
//!
//! The planner decides about both. What only this host knows is where a cgroup is, and which of its users the
//! container's is. No cgroup is made here: a description is changed, and one that exists is given away.

use wharf_cgroup::{Cgroup, CgroupPath, Cgroups, Limits};
use wharf_cri_api::v1::NamespaceOption;
use wharf_planner::{Description, Switch, is_enclosed, user_namespace};
use wharf_types::{Stage as _, StageError};

use crate::error::Error;
use crate::places::cgroup_places;

/// Describes a container as enclosed if it could lift its limits otherwise; returns whether it is. `path` is that of
/// the cgroup with the limits, which need not exist.
///
/// # Errors
/// Those of [`ContainerPlaces::places`](crate::ContainerPlaces::places).
pub(crate) fn enclose(
    description: &mut Description,
    limits: &Limits,
    cgroups: &Cgroups,
    path: &CgroupPath,
) -> Result<bool, StageError> {
    let is_enclosed = is_enclosed(description, limits);
    if is_enclosed {
        description.extra.cgroup = cgroup_places(&cgroups.at(path).enclosed())?;
    }
    Ok(is_enclosed)
}

/// Gives a cgroup to the user of its container, if the container is to manage what is below it. `uid` is a number of
/// the container's user namespace.
///
/// # Errors
/// The kernel's error.
pub fn delegate(
    cgroup: &Cgroup,
    delegation: Switch,
    (uid, pod): (u32, &NamespaceOption),
) -> Result<(), Error> {
    if delegation == Switch::Off {
        return Ok(());
    }
    let ids = user_namespace(pod)?;
    // A number beyond the mapping is nobody's on the host, too: then the cgroup stays root's.
    let Some(owner) = ids.map_or(Some(uid), |ids| ids.users.on_host(uid)) else { return Ok(()) };
    cgroup.delegate(owner).stage("giving the container its cgroup").map_err(Error::from)
}
