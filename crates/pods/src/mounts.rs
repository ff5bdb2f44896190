//! The request's mounts: checked, resolved on the host, and put among the container's own.

use wharf_cri_api::v1::{Mount, MountPropagation};
use wharf_isolation::{MountPlan, Source};
use wharf_sys::mount::{Attributes, Propagation};
use wharf_types::{ContainerPath, HostPath};

use crate::error::Error;

/// One mount of a request as a plan.
pub(crate) fn plan(mount: &Mount) -> Result<MountPlan, Error> {
    let fail = |problem: String| Error::invalid("mounts", format!("{}: {problem}", mount.container_path));
    if mount.image.is_some() {
        return Err(Error::Stage {
            stage: "mounting an image",
            message: "ImageVolumeMountFailed: image volumes are not supported yet".to_owned(),
            kind: wharf_types::ErrorKind::Unimplemented,
        });
    }
    let target = ContainerPath::new(&mount.container_path).map_err(|error| fail(error.to_string()))?;
    if target.depth() == 0 {
        return Err(fail("nothing can be mounted over the container's root".to_owned()));
    }
    // Links are followed once, here: what is mounted is what the path leads to now.
    let source = std::fs::canonicalize(&mount.host_path)
        .map_err(|error| fail(format!("host path {:?}: {error}", mount.host_path)))?;
    let source = source.to_str().ok_or_else(|| fail("the host path is not UTF-8".to_owned()))?;
    let source = HostPath::new(source).map_err(|error| fail(error.to_string()))?;
    let propagation = match mount.propagation() {
        MountPropagation::PropagationPrivate => Propagation::Private,
        MountPropagation::PropagationHostToContainer => Propagation::Slave,
        MountPropagation::PropagationBidirectional => Propagation::Shared,
    };
    if mount.recursive_read_only && (!mount.readonly || propagation != Propagation::Private) {
        return Err(fail("recursive_read_only needs readonly and private propagation".to_owned()));
    }
    let attributes = if mount.readonly { Attributes::READ_ONLY } else { Attributes::NONE };
    Ok(MountPlan {
        target,
        source: Source::Tree(source),
        attributes,
        recursive_read_only: mount.recursive_read_only,
        propagation,
    })
}

/// Puts the request's mounts after the container's own, in the order of depth; a path that the request names is not
/// mounted twice.
pub(crate) fn merge(own: Vec<MountPlan>, mut asked: Vec<MountPlan>) -> Vec<MountPlan> {
    asked.sort_by_key(|mount| mount.target.depth());
    let named = |target: &ContainerPath| asked.iter().any(|mount| mount.target == *target);
    let mut all: Vec<MountPlan> = own.into_iter().filter(|mount| !named(&mount.target)).collect();
    all.extend(asked);
    all
}
