//! A container's mounts: the kernel's file systems, what all containers of the pod share, the image's volumes and the
//! request's mounts, in the right order.

mod describe;
mod image;
mod plan;

pub(crate) use describe::{check, describe};
pub(crate) use image::describe as images;
pub(crate) use plan::{check_added, plan};

/// The files that the runtime provides to every container of a pod, by their names in `/etc`.
pub const ETC_FILES: [&str; 3] = ["hostname", "hosts", "resolv.conf"];
/// The directory for the pod's shared memory, beside those files.
pub const SHM: &str = "shm";
