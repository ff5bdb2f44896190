//! What wharf keeps on disk: where ([`Layout`]), and how ([`record`] for the bytes, [`records`] for the contents).
//!
//! Every record is replaced whole by a rename, names its kind and version, and carries a checksum. So a reader finds
//! the old record, the new one, or a reason to put it aside, but never half of one. This crate knows the content of
//! only one record, the exit of a container, because the supervisor writes it and the daemon reads it.

mod exit;
mod layout;
pub mod record;
pub mod records;

pub use exit::ExitRecord;
pub use layout::Layout;
