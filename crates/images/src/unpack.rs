//! A layer's blob becomes a directory in the form overlayfs takes as a lower one.
//!
//! Every effect is relative to an open directory below the layer's own root: parents are opened by `openat2` beneath
//! that root, without links, magic links and mounts; the last component is made new or not at all. No path of the host
//! is ever made of an entry's name. What names mean:
//!
//! * `/a`, `./a` and `a` are one name. `..`, NUL, components above 255 bytes, paths above 4096 bytes and deeper than
//!   [`Limits::depth`](crate::Limits) are errors.
//! * A layer stands for itself: a parent it does not name is made (an *implied* directory), and takes its mode and owner
//!   from the layers below when the chain is put together.
//! * **A parent that is a symbolic link of the same layer** is resolved as a process with the layer as its root would
//!   (absolute links and `..` stay inside), and what is missing on that way is made as implied directories: the result
//!   is that of the peers, which resolve in the root of what is unpacked so far. A parent that is a file is an error.
//!   Links of lower layers are not seen here; where one is in the way, the layer is made once more when the chain is put
//!   together.
//! * The last component is never followed. An entry replaces what an earlier one of that name made, tree and all; only
//!   a directory over a directory keeps what is inside.
//! * A hard link's target is found in the same layer, before the link, or else in the layers below, when the chain is put
//!   together; it may be a symbolic link, but neither a directory nor a whiteout. A link to itself is an error. The
//!   target's attributes win.
//! * `.wh.NAME` makes a whiteout and `.wh..wh..opq` marks its directory opaque, whatever type the entries have. They
//!   speak of the layers below: something of that name in the same layer stays, before or after, and if it is a
//!   directory it becomes opaque. Other `.wh..wh.*` names are an old driver's and dropped; a parent named `.wh.*` is an
//!   error. A character device 0:0, which overlayfs would take for a whiteout, is dropped.
//! * Extended attributes: `security.capability` and `user.*` on files and directories, save `user.overlay.*`.

mod apply;
mod attributes;
mod loose;
mod name;
mod parents;

use std::io::Read;

use wharf_snapshots::tree::Usage;
use wharf_types::{Digest, ErrorKind, Failure};

pub(crate) use apply::apply;
pub(crate) use attributes::OPAQUE;
pub(crate) use parents::{LINKS_LIMIT, is_kind, is_whiteout, join, look, open_beneath, plain};

use crate::limits::Limits;
use crate::stream::{self, Compression};
use crate::tar::TarError;

/// A layer that is to be unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerSource {
    /// The digest of the uncompressed archive, from the image's config.
    pub diff_id: Digest,
    /// The digest of the blob, from the manifest.
    pub blob_digest: Digest,
    /// The size of the blob, from the manifest.
    pub blob_size_bytes: u64,
}

/// Why a layer could not be unpacked. Nothing of it stays on the disk.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The blob could not be read.
    #[error("cannot read the layer's blob")]
    Read {
        /// The reader's error.
        #[source]
        source: std::io::Error,
    },
    /// The blob is shorter or longer than its descriptor says.
    #[error("the layer's blob has at least {found_bytes} bytes, but its descriptor says {expected_bytes}")]
    Size {
        /// The descriptor's size.
        expected_bytes: u64,
        /// What came before the reading stopped.
        found_bytes: u64,
    },
    /// The blob is not the one asked for.
    #[error("the digest of the layer's blob is {found}, not {expected}")]
    BlobDigest {
        /// The descriptor's digest.
        expected: Digest,
        /// The blob's.
        found: Digest,
    },
    /// The archive is not the one the config names.
    #[error("the digest of the layer's content is {}, not {expected}", found.as_ref().map_or("incomplete", Digest::as_str))]
    DiffId {
        /// The config's digest.
        expected: Digest,
        /// The content's, if all of it was seen.
        found: Option<Digest>,
    },
    /// The blob is damaged, or not what it begins as.
    #[error("the layer's blob is not complete {compression:?} data")]
    Decompress {
        /// What its first bytes say.
        compression: Compression,
        /// The decompressor's error.
        #[source]
        source: std::io::Error,
    },
    /// The archive is malformed.
    #[error("cannot unpack the layer's archive")]
    Tar {
        /// Where and why.
        #[from]
        source: TarError,
    },
    /// An entry cannot be made as it says.
    #[error("the layer's entry {path:?} {reason}")]
    Entry {
        /// Its name, shortened to 200 characters.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A bound was reached.
    #[error("the layer has more than {limit} {what}")]
    Limit {
        /// Of what.
        what: &'static str,
        /// How many are allowed.
        limit: u64,
    },
    /// The disk is full but for its reserve.
    #[error("the disk of the images has fewer than {reserve} {what} free; remove images or enlarge the disk")]
    Disk {
        /// Bytes or inodes.
        what: &'static str,
        /// How many must stay.
        reserve: u64,
    },
    /// The kernel refused.
    #[error("cannot create the layer's entry {path:?}")]
    System {
        /// Its name, shortened to 200 characters.
        path: String,
        /// The call that failed.
        #[source]
        source: wharf_sys::Error,
    },
}

impl Failure for UnpackError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Read { .. } => ErrorKind::Unavailable,
            Self::Size { .. } | Self::BlobDigest { .. } | Self::DiffId { .. } | Self::Decompress { .. } => {
                ErrorKind::DataLoss
            }
            Self::Tar { .. } | Self::Entry { .. } => ErrorKind::InvalidArgument,
            Self::Limit { .. } | Self::Disk { .. } => ErrorKind::ResourceExhausted,
            Self::System { source, .. } => source.kind(),
        }
    }
}

/// What is known of a layer once it is unpacked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Contents {
    /// What it takes on disk, by its entries.
    pub(crate) usage: Usage,
    /// Directories it does not name, by their paths in it, in order; the root is the empty one.
    pub(crate) implied: Vec<Vec<u8>>,
    /// Hard links to what it does not have, in the order of their paths.
    pub(crate) links: Vec<HardLink>,
    pub(crate) effect: Effect,
}

impl Contents {
    /// Whether the layer has the directory without naming it.
    pub(crate) fn implies(&self, path: &[u8]) -> bool {
        self.implied.binary_search_by(|implied| implied.as_slice().cmp(path)).is_ok()
    }

    /// The bytes of all names in it.
    pub(crate) fn names_bytes(&self) -> usize {
        let links = self.links.iter().map(|link| link.path.len() + link.target.len());
        self.implied.iter().map(Vec::len).chain(links).sum()
    }
}

/// A hard link to a file of a lower layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HardLink {
    pub(crate) path: Vec<u8>,
    pub(crate) target: Vec<u8>,
}

/// What a layer does to the layers below it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Effect {
    /// It has no entry.
    Nothing,
    /// It adds, replaces and removes.
    #[default]
    Merges,
    /// It hides all of them: its root is opaque.
    HidesAll,
}

/// Unpacks a blob into an empty directory, in one pass that also verifies it.
pub(crate) fn unpack(
    source: &LayerSource,
    input: &mut dyn Read,
    root: std::os::fd::OwnedFd,
    limits: &Limits,
) -> Result<Contents, UnpackError> {
    limits.check_disk(&root)?;
    stream::run(source, input, limits, |content| apply(content, root, limits))
}

/// A hostile name for people: printable, and at most 200 characters.
pub(crate) fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).chars().take(200).collect()
}
