//! The writable layers of containers: the upper and work directories of their overlay mounts.
//!
//! ```text
//! <root>/<container>/fs     the upper directory; its mode and owner are those of the merged root
//! <root>/<container>/work   overlayfs's own
//! <root>/.trash/            what is being removed
//! ```
//!
//! A snapshot is not durable and has no record: the directory is the truth. A rename makes it appear whole, and a
//! rename makes it disappear. Nothing is mounted here: the container's first process mounts the overlay.

mod snapshots;
mod trash;
pub mod tree;

pub use snapshots::{Activity, Snapshot, SnapshotError, Snapshots};
pub use trash::{Trash, ensure_directory, list_names, make_private};
