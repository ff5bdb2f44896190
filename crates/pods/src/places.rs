//! Where people and tools find what a pod has: among the descriptors of its supervisor, or where an earlier release
//! pinned it.

use wharf_host::host_path;
use wharf_planner::Pins;
use wharf_state::Layout;
use wharf_supervision::HeldPaths;
use wharf_types::PodId;
use wharf_wire::v1;

use crate::error::Error;

/// The paths of a pod's namespaces, including those that it does not have.
pub(crate) fn pins(layout: &Layout, pod: &PodId, held: &HeldPaths) -> Result<Pins, Error> {
    let place = |of, kind| host_path(&held.path(of).unwrap_or_else(|| layout.namespace(pod, kind)));
    Ok(Pins {
        net: place(v1::Held::Network, "net")?,
        ipc: place(v1::Held::Ipc, "ipc")?,
        uts: place(v1::Held::Uts, "uts")?,
        user: place(v1::Held::User, "user")?,
    })
}
