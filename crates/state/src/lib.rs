//! What wharf keeps on disk: where ([`Layout`]) and how ([`record`] for bytes, [`records`] for contents).
//!
//! Every record is replaced whole by a rename, names its kind and version, and carries a checksum, so that a reader
//! finds the old one, the new one, or a reason to put it aside; never half of one. This crate knows no record's content
//! but the exit of a container, which the supervisor writes and the daemon reads.

mod exit;
mod layout;
pub mod record;
pub mod records;

pub use exit::ExitRecord;
pub use layout::Layout;
