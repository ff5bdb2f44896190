//! Unpacking: a layer's blob becomes a directory that overlayfs can use as a lower one.
//!
//! Every effect is relative to an open directory below the layer's own root: `openat2` opens parents beneath that root,
//! without links, magic links and mounts, and the last component is newly made or not at all. An entry's name never
//! becomes a path of the host. The rules for names:
//!
//! * `/a`, `./a` and `a` are the same name. `..`, NUL, components of more than 255 bytes, and paths that have more than
//!   4096 bytes or are deeper than [`Limits::depth`](crate::Limits) are errors.
//! * A layer is unpacked without the others: a parent that has no entry is made (an *implied* directory) and gets its
//!   mode and owner from the layers below when the chain is put together.
//! * **A parent that is a symbolic link of the same layer** is resolved as a process with the layer as its root would
//!   resolve it (absolute links and `..` stay inside), and missing directories on the way are made as implied ones. The
//!   result is that of other runtimes, which resolve links in what has been unpacked so far. A parent that is a file is
//!   an error. Links of lower layers are not visible here; where one is in the way, a copy of the layer is made when
//!   the chain is put together.
//! * The last component is never followed. An entry replaces what an earlier entry of the same name made, a whole tree
//!   included; only a directory over a directory keeps its contents.
//! * A hard link's target is found in the same layer before the link, or else in the layers below when the chain is put
//!   together. It may be a symbolic link, but neither a directory nor a whiteout. A link to itself is an error. The
//!   target's attributes apply.
//! * `.wh.NAME` makes a whiteout and `.wh..wh..opq` marks its directory opaque, whatever the type of the entry. They
//!   apply to the layers below: something of that name in the same layer stays, whether it comes before or after, and a
//!   directory becomes opaque. Other `.wh..wh.*` names belong to an old driver and are dropped; a parent named `.wh.*`
//!   is an error. A character device 0:0, which overlayfs would take for a whiteout, is dropped.
//! * Extended attributes: `security.capability` and `user.*` on files and directories, except `user.overlay.*`.

mod apply;
mod attributes;
mod loose;
mod name;
mod parents;

use std::io::Read;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use nix::errno::Errno;
use wharf_snapshots::tree::Usage;
use wharf_types::{Digest, ErrorKind, Failure, OnlyReserve};

pub(crate) use apply::{apply, apply_file};
pub(crate) use attributes::{OPAQUE, is_admitted};
pub(crate) use parents::{LINKS_LIMIT, is_kind, is_whiteout, join, look, open_beneath, plain};

use crate::limits::Limits;
use crate::stream::{self, Compression, Means};
use crate::tar::TarError;

/// A layer to unpack.
#[derive(Debug, Clone)]
pub struct LayerSource {
    /// The digest of the uncompressed archive, from the image's config; that of a file is made up, see
    /// [`Artifact`](crate::manifest::Artifact).
    pub diff_id: Digest,
    /// What becomes of the blob.
    pub form: Form,
    /// The digest of the blob, from the manifest.
    pub blob_digest: Digest,
    /// The size of the blob, from the manifest.
    pub blob_size_bytes: u64,
    /// Who sends it.
    pub sender: Sender,
}

/// Who sends a layer, and whether anybody still wants it.
#[derive(Debug, Clone, Default)]
pub struct Sender {
    /// The registry, as images name it; empty if it is none.
    pub(crate) registry: Arc<str>,
    pub(crate) is_given_up: Arc<AtomicBool>,
}

impl Sender {
    /// A registry.
    #[must_use]
    pub fn registry(name: &str) -> Self {
        Self { registry: Arc::from(name), is_given_up: Arc::default() }
    }

    /// Whoever unpacks the layer need not wait for anything any more.
    pub fn give_up(&self) {
        self.is_given_up.store(true, Relaxed);
    }
}

/// What becomes of a layer's blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Form {
    /// It is an archive, which may be compressed.
    Archive,
    /// It is one file as it stands, with this path in the layer.
    File(String),
}

/// Why a layer could not be unpacked. Nothing of it is left on disk.
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
        /// What was read before the reading stopped.
        found_bytes: u64,
    },
    /// The blob is not the requested one.
    #[error("the digest of the layer's blob is {found}, not {expected}")]
    BlobDigest {
        /// The descriptor's digest.
        expected: Digest,
        /// The blob's.
        found: Digest,
    },
    /// The archive is not the one that the config names.
    #[error("the digest of the layer's content is {}, not {expected}", found.as_ref().map_or("incomplete", Digest::as_str))]
    DiffId {
        /// The config's digest.
        expected: Digest,
        /// The content's digest, if all of it was read.
        found: Option<Digest>,
    },
    /// The blob is damaged, or is not compressed as its first bytes say.
    #[error("the layer's blob is not complete {compression:?} data")]
    Decompress {
        /// The compression that its first bytes indicate.
        compression: Compression,
        /// The decompressor's error.
        #[source]
        source: std::io::Error,
    },
    /// It takes more memory than this node allows.
    #[error(
        "it takes memory for a window (Zstandard) of {window_bytes} bytes, and images.zstd_window_mib allows \
         {limit_bytes}: raise that, or have the image compressed with a smaller window"
    )]
    Window {
        /// The size of the window.
        window_bytes: u64,
        /// The largest that is allowed.
        limit_bytes: u64,
    },
    /// Other layers had the memory that it takes for too long, or nobody wants it any more.
    #[error(
        "it takes memory for a window (Zstandard) of {window_bytes} bytes, which other layers have: try again later"
    )]
    NoWindow {
        /// The size of the window.
        window_bytes: u64,
    },
    /// The archive is malformed.
    #[error("cannot unpack the layer's archive")]
    Tar {
        /// The position and the reason.
        #[from]
        source: TarError,
    },
    /// An entry cannot be made as described.
    #[error("the layer's entry {path:?} {reason}")]
    Entry {
        /// Its name, shortened to 200 characters.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A limit was exceeded.
    #[error("the layer has more than {limit} {what}")]
    Limit {
        /// Which limit.
        what: &'static str,
        /// How many are allowed.
        limit: u64,
    },
    /// Only the disk's reserve is left.
    #[error(transparent)]
    Disk(#[from] OnlyReserve),
    /// There is no room for the threads that it takes.
    #[error("cannot start unpacking the layer")]
    Thread {
        /// The call that failed.
        #[source]
        source: wharf_sys::Error,
    },
    /// The kernel returned an error.
    #[error("cannot create the layer's entry {path:?}")]
    System {
        /// Its name, shortened to 200 characters.
        path: String,
        /// The call that failed.
        #[source]
        source: wharf_sys::Error,
    },
}

impl UnpackError {
    /// Whether it could be unpacked with more room on the disk.
    pub(crate) fn wants_disk(&self) -> bool {
        match self {
            Self::Disk(_) => true,
            Self::System { source, .. } => is_full(source),
            _ => false,
        }
    }
}

/// Whether a call failed for want of room on a disk.
pub(crate) fn is_full(error: &wharf_sys::Error) -> bool {
    matches!(error.errno, Errno::ENOSPC | Errno::EDQUOT)
}

impl Failure for UnpackError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Window { .. } => ErrorKind::FailedPrecondition,
            Self::Read { .. } | Self::NoWindow { .. } => ErrorKind::Unavailable,
            Self::Size { .. } | Self::BlobDigest { .. } | Self::DiffId { .. } | Self::Decompress { .. } => {
                ErrorKind::DataLoss
            }
            Self::Tar { .. } | Self::Entry { .. } => ErrorKind::InvalidArgument,
            Self::Limit { .. } | Self::Disk(_) => ErrorKind::ResourceExhausted,
            Self::Thread { source } | Self::System { source, .. } => source.kind(),
        }
    }
}

/// What is known about a layer once it is unpacked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Contents {
    /// Its disk usage, computed from its entries.
    pub(crate) usage: Usage,
    /// The directories that it implies, by their paths in it, sorted; the root is the empty path.
    pub(crate) implied: Vec<Vec<u8>>,
    /// Hard links to files that it does not have, sorted by their paths.
    pub(crate) links: Vec<HardLink>,
    pub(crate) effect: Effect,
}

impl Contents {
    /// Whether the layer has the directory without an entry for it.
    pub(crate) fn implies(&self, path: &[u8]) -> bool {
        self.implied.binary_search_by(|implied| implied.as_slice().cmp(path)).is_ok()
    }

    /// The total length of all names, in bytes.
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

/// A layer's effect on the layers below it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Effect {
    /// None: it has no entry.
    Nothing,
    /// It adds, replaces and removes.
    #[default]
    Merges,
    /// It hides all of them, because its root is opaque.
    HidesAll,
}

/// Unpacks a blob into an empty directory, and verifies it in the same pass. Another one is for what must arrive first.
pub(crate) fn unpack(
    source: &LayerSource,
    input: &mut dyn Read,
    (root, directory): (OwnedFd, BorrowedFd<'_>),
    limits: &Limits,
) -> Result<Contents, UnpackError> {
    limits.check_disk(&root)?;
    let means = Means { limits, sender: &source.sender, directory };
    stream::run(source, input, means, |content| match &source.form {
        Form::Archive => apply(content, root, limits),
        Form::File(path) => apply_file(content, (path, source.blob_size_bytes), root, limits),
    })
}

/// A hostile name made printable, in at most 200 characters.
pub(crate) fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).chars().take(200).collect()
}
