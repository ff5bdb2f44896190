//! The system calls for which no safe library exists, each as a safe function with a typed error.
//!
//! This is the only crate with `unsafe`, and the only one that names `libc` and `rustix`. It decides nothing: no path
//! of wharf's, no policy, no default. Every descriptor that it returns is owned and close-on-exec.

pub mod bare;
pub mod bpf;
pub mod capabilities;
pub mod clock;
pub mod clone;
pub mod deep;
pub mod descriptors;
pub mod error;
pub mod fs;
pub mod heap;
pub mod keyring;
pub mod launch;
pub mod limits;
mod mapping;
pub mod mount;
pub mod open_files;
pub mod overlay;
pub mod process;
pub mod random;
mod raw;
pub mod scheduling;
pub mod script;
pub mod seccomp;
pub mod signals;
pub mod socket;
pub mod terminal;
pub mod thread;
#[cfg(all(panic = "abort", target_env = "musl"))]
mod unwinder;
pub mod user_namespace;
pub mod xattr;

pub use error::{Error, Result};
