//! What a container writes: the upper and work directories of its overlay mount.
//!
//! ```text
//! <root>/<container>/fs     the upper directory; its mode and owner are those of the merged root
//! <root>/<container>/work   overlayfs' own
//! <root>/.trash/            on its way out
//! ```
//!
//! A snapshot is not durable and has no record: the directory is the truth. It appears whole, by a rename, and leaves
//! by one. Nothing is mounted here.

mod snapshots;
mod trash;
pub mod tree;

pub use snapshots::{Snapshot, SnapshotError, Snapshots};
pub use trash::{Trash, ensure_directory, list_names};
