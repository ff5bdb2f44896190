//! What is mounted: the kernel's file systems, what all containers of the pod have, the image's volumes and the request's
//! mounts, each in its turn.

mod describe;
mod plan;

pub(crate) use describe::{check, describe};
pub(crate) use plan::plan;

/// The files that the runtime gives to every container of a pod, by their names in `/etc`.
pub const ETC_FILES: [&str; 3] = ["hostname", "hosts", "resolv.conf"];
/// The directory of the pod's shared memory, beside those files.
pub const SHM: &str = "shm";
