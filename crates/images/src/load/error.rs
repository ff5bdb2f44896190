//! Why the images of an archive could not be loaded.

use wharf_types::{Digest, ErrorKind, Failure, ReferenceError};

use crate::manifest::ManifestError;
use crate::store::StoreError;
use crate::stream::refusal;
use crate::tar::TarError;
use crate::unpack::{UnpackError, is_full};

/// Why an archive was not loaded. No image of it is in the store, unless the store failed or the client went away while
/// the images were published.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It could not be read, or is malformed.
    #[error("cannot read the archive")]
    Tar {
        /// The position and the reason.
        #[from]
        source: TarError,
    },
    /// It could not be read, or is not compressed as its first bytes say.
    #[error("cannot read the archive")]
    Read {
        /// The reader's or the decompressor's error.
        #[source]
        source: std::io::Error,
    },
    /// An entry is of no use or makes the archive ambiguous.
    #[error("the archive's entry {name:?} {reason}")]
    Entry {
        /// Its name, shortened to 200 characters.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The content of a blob is not what its name says.
    #[error("the archive's blob {expected} has the digest {found}")]
    Blob {
        /// The digest in its name.
        expected: Digest,
        /// The content's.
        found: Digest,
    },
    /// A limit was exceeded.
    #[error("the archive has more than {limit} {what}")]
    Limit {
        /// Which limit.
        what: &'static str,
        /// How many are allowed.
        limit: u64,
    },
    /// It has no file by which its form is known, or no image.
    #[error(
        "there is no image in the archive: it is neither an OCI layout (oci-layout, index.json) nor of the form of \
         `docker save` (manifest.json), or lists none"
    )]
    NoImage,
    /// It lacks a file that another one names.
    #[error("the archive lacks {name}")]
    Missing {
        /// The file, shortened to 200 characters.
        name: String,
    },
    /// The size of a file is not what its descriptor says.
    #[error("the archive's blob {digest} has {found_bytes} bytes, but its descriptor says {expected_bytes}")]
    Size {
        /// The blob.
        digest: Digest,
        /// The descriptor's size.
        expected_bytes: u64,
        /// The file's.
        found_bytes: u64,
    },
    /// A document cannot be used.
    #[error("cannot use the archive's {name}")]
    Document {
        /// The file, shortened to 200 characters.
        name: String,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// A name in it is no reference to an image.
    #[error("the archive gives an image a name that it cannot have")]
    Name {
        /// Why.
        #[from]
        source: ReferenceError,
    },
    /// Two images of the archive have one name.
    #[error("the archive gives the name {name} to two images")]
    NameTwice {
        /// The name.
        name: String,
    },
    /// The name of an image has a digest, and the image has another one, or none that a registry knows.
    #[error(
        "the archive gives an image the name {name}, whose digest is not the image's: save it with a tag"
    )]
    NameDigest {
        /// The name.
        name: String,
    },
    /// A layer could not be unpacked.
    #[error("loading {image}: layer {number} of {count}, {digest}")]
    Unpack {
        /// The image: its first name or its id.
        image: String,
        /// The layer's number, from 1.
        number: usize,
        /// How many there are.
        count: usize,
        /// The layer's blob.
        digest: Digest,
        /// Why.
        #[source]
        source: Box<UnpackError>,
    },
    /// Only the disk's reserve is left.
    #[error("cannot keep the archive until it is whole")]
    Disk {
        /// The disk.
        #[from]
        source: UnpackError,
    },
    /// The kernel returned an error.
    #[error("cannot keep the archive until it is whole")]
    System {
        /// The call that failed.
        #[from]
        source: wharf_sys::Error,
    },
    /// The store refused the image, or failed. If it failed, images of the archive that it took before stay.
    #[error("loading {image}")]
    Store {
        /// The image: its first name or its id.
        image: String,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// Nobody wants the images any more. Those that were published before stay.
    #[error("the client has gone away")]
    Unwanted,
}

impl LoadError {
    /// Whether the archive could be loaded with more room on the disk.
    pub(crate) fn wants_disk(&self) -> bool {
        match self {
            Self::Unpack { source, .. } => source.wants_disk(),
            Self::Disk { source } => source.wants_disk(),
            Self::System { source } => is_full(source),
            Self::Store { source, .. } => source.wants_disk(),
            Self::Tar { source: TarError::Read { source, .. } } | Self::Read { source } => {
                refusal(source).is_some_and(UnpackError::wants_disk)
            }
            _ => false,
        }
    }
}

impl Failure for LoadError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Tar { source: TarError::Read { source, .. } } | Self::Read { source } => {
                refusal(source).map_or(ErrorKind::InvalidArgument, UnpackError::kind)
            }
            Self::Tar { .. }
            | Self::Entry { .. }
            | Self::NoImage
            | Self::Missing { .. }
            | Self::Name { .. }
            | Self::NameTwice { .. }
            | Self::NameDigest { .. } => ErrorKind::InvalidArgument,
            Self::Blob { .. } | Self::Size { .. } => ErrorKind::DataLoss,
            Self::Limit { .. } => ErrorKind::ResourceExhausted,
            Self::Document { source, .. } => source.kind(),
            Self::Unpack { source, .. } => source.kind(),
            Self::Disk { source } => source.kind(),
            Self::System { source } => source.kind(),
            Self::Store { source, .. } => source.kind(),
            Self::Unwanted => ErrorKind::Unavailable,
        }
    }
}
