//! An image's volumes.
//!
//! An image names them, so their number and their paths are bounded. Each begins with the image's content at its path,
//! copied when the container is made.

use wharf_types::{ContainerPath, HostPath};

use crate::Refusal;
use crate::defaults::ImageVolumes;
use crate::description::Volume;
use crate::request::{Places, Request};

/// The most volumes that an image may have: each is a directory and a mount.
const VOLUMES_MAX: usize = 100;

/// Where the runtime itself mounts something.
const RUNTIMES: [&str; 3] = ["/proc", "/sys", "/dev"];

/// The image's volumes, except where the request mounts something and below the runtime's own mounts; none if the node
/// ignores them.
pub(crate) fn describe(request: &Request<'_>, places: &Places) -> Result<Vec<Volume>, Refusal> {
    let asked = match request.defaults.image_volumes {
        ImageVolumes::Bind => request.image.volumes().as_deref().unwrap_or_default(),
        ImageVolumes::Ignore => &[],
    };
    if asked.len() > VOLUMES_MAX {
        let problem = format!("it declares {} volumes; at most {VOLUMES_MAX} are allowed", asked.len());
        return Err(Refusal::field("image", problem));
    }
    let taken = request.container.mounts.iter().map(|mount| ContainerPath::new(&mount.container_path));
    let taken: Vec<ContainerPath> = taken.flatten().collect();
    let mut targets: Vec<ContainerPath> = Vec::new();
    for text in asked {
        let path = ContainerPath::new(&format!("/{text}")).ok().filter(|path| path.depth() > 0);
        let path = path.ok_or_else(|| {
            Refusal::field("image", format!("its volume {text:?} is not a path below the root"))
        })?;
        if !is_runtimes(&path) && !taken.contains(&path) && !targets.contains(&path) {
            targets.push(path);
        }
    }
    targets.into_iter().enumerate().map(|(number, target)| volume(places, number, target)).collect()
}

fn is_runtimes(path: &ContainerPath) -> bool {
    let own = RUNTIMES.iter().flat_map(|own| ContainerPath::new(own));
    own.into_iter().any(|own| *path == own || path.is_below(&own))
}

fn volume(places: &Places, number: usize, target: ContainerPath) -> Result<Volume, Refusal> {
    let directory = HostPath::new(&format!("{}/{number}", places.volumes));
    let directory = directory.map_err(|error| Refusal::field("image", error))?;
    Ok(Volume { target, directory })
}
