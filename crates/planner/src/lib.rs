//! Choices made from data alone: which capabilities, which mounts and masks a container gets by default, and what a
//! seccomp profile means as BPF. Pure: no I/O, nothing of the kernel asked.

pub mod capabilities;
pub mod defaults;
pub mod seccomp;
