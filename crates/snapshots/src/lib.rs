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

mod reaper;
mod snapshots;
pub mod tree;

pub use reaper::Reaper;
pub use snapshots::{Snapshot, SnapshotError, Snapshots};
