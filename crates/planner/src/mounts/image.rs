//! Images as volumes. In the spec an image is the mount that any runtime would make of its layers, in the host's paths.
//! The part that is mounted is kept beside the spec, because the image decides which links are on the way to it.

use std::path::Path;

use wharf_cri_api::v1::{Mount, MountPropagation};
use wharf_types::{ContainerPath, HostPath};

use super::describe::{Placed, SINGLE, access, problem_of};
use crate::Refusal;
use crate::description::ImageVolume;
use crate::request::Request;

/// The kernel's type of a mount of several layers.
pub(super) const OVERLAY: &str = "overlay";
/// Its option for the layers.
const LAYERS: &str = "lowerdir";

/// Checks a mount of an image as far as possible without looking at the image; the caller checks what all mounts have
/// in common.
pub(super) fn check(mount: &Mount) -> Result<(), Refusal> {
    let problem = match &mount.image {
        Some(image) if image.image.is_empty() => "it names no image",
        _ if !mount.host_path.is_empty() => "it has both an image and a host_path",
        // The kubelet always sets it. Who would write must learn that nothing can be written.
        _ if !mount.readonly => "images are mounted read-only: set readonly",
        // Nothing on the host is below an image, so there is nothing to follow from there.
        _ if mount.propagation() == MountPropagation::PropagationBidirectional => {
            "mounts below an image cannot propagate to the host: leave propagation out"
        }
        _ => return sub_path(mount).map(drop),
    };
    Err(problem_of(mount, problem))
}

/// What is mounted, from the image's root. A kubelet that sets the field on a mount without an image means nothing by
/// it.
fn sub_path(mount: &Mount) -> Result<ContainerPath, Refusal> {
    let text = &mount.image_sub_path;
    let fail = |problem: &str| problem_of(mount, &format!("image_sub_path {text:?} {problem}"));
    let path = ContainerPath::new(&format!("/{text}"));
    let path = path.map_err(|error| problem_of(mount, &format!("image_sub_path: {error}")))?;
    if text.starts_with('/') {
        return Err(fail("is not relative to the image"));
    }
    if text.split('/').any(|part| part == "..") {
        return Err(fail("has a .. in it"));
    }
    Ok(path)
}

/// The images that are mounted, in the order of the request's mounts.
pub(crate) fn describe(request: &Request<'_>) -> Result<Vec<Option<ImageVolume>>, Refusal> {
    let mounts = &request.container.mounts;
    let mut targets = Vec::new();
    let describe = |(at, mount): (usize, &Mount)| {
        if mount.image.is_none() {
            return Ok(None);
        }
        let layers = request.mounted.get(at).cloned().flatten().unwrap_or_default();
        if layers.is_empty() {
            return Err(problem_of(mount, "the image has no layers"));
        }
        let target = ContainerPath::new(&mount.container_path);
        let target = target.map_err(|error| problem_of(mount, &error.to_string()))?;
        if targets.contains(&target) {
            return Err(problem_of(mount, "another image is mounted there"));
        }
        targets.push(target.clone());
        Ok(Some(ImageVolume { target, layers, sub_path: sub_path(mount)? }))
    };
    mounts.iter().enumerate().map(describe).collect()
}

/// The mount of the spec.
pub(super) fn mount(mount: &Mount, image: &ImageVolume) -> Result<Placed, Refusal> {
    let target = image.target.as_str();
    let placed = match &image.layers[..] {
        // The kernel merges two at least.
        [only] => Placed::new("mounts", target, "bind", only.as_str())?.with(SINGLE),
        layers => {
            let option = format!("{LAYERS}={}", joined(layers));
            Placed::new("mounts", target, OVERLAY, OVERLAY)?.with([option.as_str()])
        }
    };
    Ok(placed.with(access(mount)))
}

/// The layers in the form of the kernel's option, in which some characters have a meaning.
fn joined(layers: &[HostPath]) -> String {
    let escaped = layers.iter().map(|layer| {
        let escape = |c: char| matches!(c, '\\' | ':' | ',').then_some('\\').into_iter().chain([c]);
        layer.as_str().chars().flat_map(escape).collect::<String>()
    });
    escaped.collect::<Vec<_>>().join(":")
}

/// Whether a bind of the spec is that of an image with one layer.
pub(super) fn is_bind_of(image: &ImageVolume, source: Option<&Path>) -> bool {
    matches!(&image.layers[..], [only] if Some(only.as_path()) == source)
}

/// Whether options are those of the mount of an image with several layers, apart from those that any mount can have.
pub(super) fn is_overlay_of(image: &ImageVolume, options: &[(String, String)]) -> bool {
    matches!(options, [(key, value)] if key == LAYERS && *value == joined(&image.layers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_joined_as_the_kernel_splits_them() {
        let host = |path: &str| HostPath::new(path).unwrap();
        assert_eq!(joined(&[host("/a:b"), host(r"/c,d\e")]), r"/a\:b:/c\,d\\e");
    }
}
