//! What a call is about, for its trace: pods, containers and images, by their names and ids. Nothing else of a request
//! is told: it may have secrets.

use wharf_cri_api::v1::{ContainerConfig, PodSandboxConfig};
use wharf_types::Reference;
use wharf_types::trace::about;

/// A pod to be made.
pub(crate) fn new_pod(config: &PodSandboxConfig) {
    let Some(metadata) = &config.metadata else { return };
    about("k8s.pod.name", &metadata.name);
    about("k8s.namespace.name", &metadata.namespace);
    about("k8s.pod.uid", &metadata.uid);
}

/// A container to be made.
pub(crate) fn new_container(config: &ContainerConfig) {
    let name = config.metadata.as_ref().map_or("", |metadata| &metadata.name);
    about("k8s.container.name", name);
}

pub(crate) fn pod(id: &str) {
    about("wharf.pod.id", id);
}

pub(crate) fn container(id: &str) {
    about("container.id", id);
}

/// An image, whose name has neither a user nor a password.
pub(crate) fn image(reference: &Reference) {
    about("container.image.name", &reference.to_string());
}
