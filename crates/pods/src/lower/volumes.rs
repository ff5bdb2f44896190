//! The volumes that an image asks for.

use wharf_isolation::{MountPlan, Source};
use wharf_sys::mount::{Attributes, Propagation};
use wharf_types::{ContainerPath, HostPath};

use super::Context;
use crate::error::Error;

/// The most volumes that an image may ask for: each is a directory and a mount.
const VOLUMES_MAX: usize = 100;

/// Where the image wants volumes: not where the request mounts something, nor among what the runtime mounts itself.
pub(crate) fn volumes(context: &Context<'_>) -> Result<Vec<ContainerPath>, Error> {
    let fail = |problem: String| Error::invalid("image", problem);
    let volumes = context.image.volumes();
    if volumes.len() > VOLUMES_MAX {
        return Err(fail(format!("it asks for {} volumes, of {VOLUMES_MAX} at most", volumes.len())));
    }
    let runtimes = ["/proc", "/sys", "/dev"].map(ContainerPath::new);
    let asked = context.config.mounts.iter().map(|mount| ContainerPath::new(&mount.container_path));
    let taken: Vec<ContainerPath> = asked.flatten().collect();
    let mut found = Vec::new();
    for text in volumes {
        let path = ContainerPath::new(&format!("/{text}"))
            .ok()
            .filter(|path| path.depth() > 0)
            .ok_or_else(|| fail(format!("its volume {text:?} is not a path below the root")))?;
        let kernels = runtimes.iter().flatten().any(|own| path == *own || path.is_below(own));
        if !kernels && !taken.contains(&path) && !found.contains(&path) {
            found.push(path);
        }
    }
    Ok(found)
}

/// A volume in a directory of the container's own.
pub(super) fn plan((target, directory): &(ContainerPath, HostPath)) -> MountPlan {
    MountPlan {
        target: target.clone(),
        source: Source::Volume(directory.clone()),
        attributes: Attributes::NONE,
        recursive_read_only: false,
        propagation: Propagation::Private,
    }
}
