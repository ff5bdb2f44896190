//! Delegating a container's cgroup to the container's user.

use wharf_cgroup::Cgroup;
use wharf_cri_api::v1::NamespaceOption;
use wharf_planner::{Switch, user_namespace};
use wharf_types::Stage as _;

use crate::error::Error;

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
