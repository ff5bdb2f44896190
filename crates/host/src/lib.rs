//! What a pod has of this host: what has to be known of the machine, its namespaces, and the files of its containers.
//!
//! All of it blocks. Of pods as the daemon holds them it knows nothing: who calls says where, and what.

pub mod earlier;
mod error;
mod facts;
pub mod files;
pub mod namespaces;
mod readiness;

pub use error::Error;
pub use facts::{Machine, facts, hostname};
pub use readiness::{Extent, Unready, unready};
