//! A pod's share of this host: facts about the machine, the pod's namespaces, and the files and images of its containers.
//!
//! What a request asks of the host is decided first (`namespace_plan`, `files_plan`) and made from these plans. All of
//! it blocks. It knows nothing about pods as the daemon has them: the caller passes paths and contents.

pub mod directories;
pub mod earlier;
mod error;
mod facts;
pub mod files;
mod images;
pub mod namespaces;
mod pod;
mod ports;
mod probe;
mod readiness;
mod sysctls;

pub use error::Error;
pub use facts::{Machine, facts};
pub use images::{ImageView, Images};
pub use pod::{files_plan, namespace_plan, namespaces as namespaces_of};
pub use ports::port_mappings;
pub use probe::UserNamespaces;
pub use readiness::{Extent, Unready, unready};
