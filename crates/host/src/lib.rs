//! A pod's share of this host: facts about the machine, the pod's namespaces, and the files of its containers.
//!
//! All of it blocks. It knows nothing about pods as the daemon has them: the caller passes paths and contents.

pub mod earlier;
mod error;
mod facts;
pub mod files;
pub mod namespaces;
mod readiness;

pub use error::Error;
pub use facts::{Machine, facts, hostname};
pub use readiness::{Extent, Unready, unready};
