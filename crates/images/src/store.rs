//! The store: its layout on disk, the order of its writes, and its locks.
//!
//! ```text
//! <root>/lock                   held by the one process that has the store open
//! <root>/content/sha256/<hex>   manifests and configs
//! <root>/layers/<diff id>/      fs/, the lower directory for overlayfs; info, the layer's record; loose, the names
//!                               that only the layers below can settle (see `unpack::loose`)
//! <root>/layers/moved-<image>-<number>/
//!                               the copy of a layer for one image: see `relocate` and `complete`
//! <root>/layers/attrs-<image>/  the thin layer of one image: see `chain`
//! <root>/images/<image>         one record per image
//! <root>/profiles/              security profiles: see `profiles`
//! <root>/staging/               what is being made or arrives in an archive, and whole layers of pulls that are still
//!                               running
//! <root>/kept/<boot>/           whole layers of failed pulls: see `kept`
//! <root>/quarantine/            what is damaged
//! <root>/trash/                 what is being removed
//! ```
//!
//! An image exists from the moment its record is renamed into place, and everything that the record names was synced
//! before. It ceases to exist when the record is unlinked. Layers and content without a record mean nothing: a later
//! pull may use them, and [`Store::sweep`] removes them unless a container has them mounted. A record that could not be
//! read, or that was in quarantine when the store was opened, might name any layer: while there is one, only the layers
//! of images that were removed since are swept.
//!
//! Readers take the index's lock and never wait for the disk. Writers take a second lock in turn, do their work on disk
//! under it, and change the index at the end.

mod commit;
mod documents;
mod index;
mod kept;
mod mounted;
mod names;
mod open;
mod remove;
mod tenants;

use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, RwLock, RwLockReadGuard, RwLockWriteGuard};

use nix::errno::Errno;
use nix::fcntl::{Flock, OFlag};
use wharf_snapshots::Trash;
use wharf_snapshots::tree::Usage;
use wharf_sys::fs::{Resolve, open_below};
use wharf_types::{Digest, ErrorKind, Failure, Reference, Reserve, lock};

pub use commit::NewImage;
pub(crate) use commit::Prepared;
pub use remove::SweepFigures;
pub use tenants::Tenancy;

use crate::chain::ChainError;
use crate::image::Image;
use crate::layer::{Layer, LayerLease, UnpackedLayer};
use crate::limits::Limits;
use crate::manifest::ManifestError;
use crate::profiles::Profiles;
use crate::records::{RecordError, save_layer};
use crate::unpack::{LayerSource, UnpackError, is_full, unpack};
use index::{Index, Known};
use remove::Sweeps;
use tenants::Tenants;

/// Why the store could not be opened or changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has the store open.
    #[error("the image store {path} is in use by another process: stop that one first, or give this one a `root` of its own", path = .path.display())]
    InUse {
        /// Its directory.
        path: PathBuf,
    },
    /// The directory has files of others, which would be hidden from their users.
    #[error("{path} has files that are not wharf's: give wharf a `root` of its own, which may be a directory in this one", path = .path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
    },
    /// The kernel returned an error.
    #[error("the image store cannot {what}")]
    System {
        /// What was being done.
        what: &'static str,
        /// The call that failed.
        #[source]
        source: wharf_sys::Error,
    },
    /// A record could not be written or removed.
    #[error("cannot change the record of image {id}")]
    Record {
        /// The image.
        id: Digest,
        /// Why.
        #[source]
        source: RecordError,
    },
    /// The manifest or config is unusable.
    #[error("cannot use the {what} of the image")]
    Document {
        /// Which of the two.
        what: &'static str,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// The config of an image is not what its id says. A pull writes it again.
    #[error("the config of the image {id} is {problem} on disk: pull or load the image again")]
    Damaged {
        /// The image.
        id: Digest,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The image was removed meanwhile.
    #[error("the image {id} has been removed")]
    Removed {
        /// The image.
        id: Digest,
    },
    /// The parts of the image do not fit together.
    #[error("the image is inconsistent: {reason}")]
    Mismatch {
        /// The contradiction.
        reason: String,
    },
    /// A name with a digest was to be given to an image, or taken from it.
    #[error("{name} is not a tag: only tags can be added, because an image's digest is fixed")]
    NoTag {
        /// The name.
        name: Reference,
    },
    /// The only tag of an image was to be removed.
    #[error("{name} is the image's only tag: remove the image")]
    OnlyTag {
        /// The name.
        name: Reference,
    },
    /// The mounted layers could not be determined.
    #[error("cannot find out which layers are in use")]
    Mounts {
        /// The kernel's error.
        #[source]
        source: std::io::Error,
    },
    /// The security profiles could not be opened.
    #[error("the security profiles cannot be opened")]
    Profiles {
        /// Why.
        #[source]
        source: RecordError,
    },
    /// The record of a security profile could not be written or removed.
    #[error("cannot change the record of the security profile {digest}")]
    Profile {
        /// The profile.
        digest: Digest,
        /// Why.
        #[source]
        source: RecordError,
    },
    /// The layers cannot be put together.
    #[error("cannot mount the image")]
    Chain {
        /// Why.
        #[from]
        source: ChainError,
    },
}

impl StoreError {
    /// Whether there was too little room on the disk for what an image takes besides its layers.
    pub(crate) fn wants_disk(&self) -> bool {
        match self {
            Self::System { source, .. } | Self::Chain { source: ChainError::System { source, .. } } => {
                is_full(source)
            }
            Self::Chain { source: ChainError::Disk(_) } => true,
            _ => false,
        }
    }
}

impl Failure for StoreError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::InUse { .. } | Self::Foreign { .. } | Self::OnlyTag { .. } => ErrorKind::FailedPrecondition,
            Self::NoTag { .. } => ErrorKind::InvalidArgument,
            Self::System { source, .. } | Self::Chain { source: ChainError::System { source, .. } } => {
                source.kind()
            }
            Self::Record { source, .. } | Self::Profiles { source } | Self::Profile { source, .. } => {
                source.kind()
            }
            Self::Mounts { source } => Failure::kind(source),
            Self::Document { source, .. } => source.kind(),
            Self::Removed { .. } => ErrorKind::NotFound,
            Self::Mismatch { .. } | Self::Damaged { .. } => ErrorKind::DataLoss,
            Self::Chain {
                source: ChainError::TooMany { .. } | ChainError::TooMuchToLookUp | ChainError::TooMuchToCopy,
            } => ErrorKind::ResourceExhausted,
            Self::Chain { source: ChainError::Disk(source) } => source.kind(),
            Self::Chain { source: ChainError::NoTarget { .. } } => ErrorKind::InvalidArgument,
            Self::Chain { source: ChainError::HiddenLink { .. } } => ErrorKind::Unimplemented,
        }
    }
}

/// All images of a node. Clones are the same store.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) shared: Arc<Shared>,
}

/// What a store has, and what its sweeps have done.
#[derive(Debug, Clone, Copy)]
pub struct StoreFigures {
    /// Images.
    pub images: usize,
    /// Layers, also those that only a container or an interrupted pull still has.
    pub layers: usize,
    /// What all of these take on the disk.
    pub usage: Usage,
    /// The removals of what nobody uses.
    pub sweeps: SweepFigures,
}

/// What a store shares with the layers that it has handed out.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) layers_path: PathBuf,
    root_path: PathBuf,
    pub(crate) staging: OwnedFd,
    kept: OwnedFd,
    /// The kernel's id of this boot.
    boot: String,
    pub(crate) content: OwnedFd,
    pub(crate) layers: OwnedFd,
    images: OwnedFd,
    pub(crate) trash: Trash,
    pub(crate) limits: Limits,
    serial: AtomicU64,
    /// What is there, and who uses it. Locked for moments, so that lists never wait for a disk.
    index: RwLock<Index>,
    profiles: Profiles,
    /// Which records of images were known when the store was opened.
    known: Known,
    /// Held by whoever commits an image or removes something, disk included: between what is found unused in the index
    /// and its removal, nobody may begin to use it. Taken before `index`.
    writer: Mutex<()>,
    sweeps: Sweeps,
    tenants: Tenants,
    /// The kernel releases it when this process ends, however it ends.
    _lock: Flock<OwnedFd>,
}

impl Store {
    /// Everything that a store keeps in its directory, for a command that removes it. The last one makes the directory
    /// wharf's.
    pub const ENTRIES: [&str; 10] = [
        "content",
        "images",
        "layers",
        "profiles",
        "empty",
        "staging",
        "kept",
        "quarantine",
        "trash",
        "lock",
    ];

    /// What must stay free on its disk.
    #[must_use]
    pub fn reserve(&self) -> Reserve {
        self.shared.limits.reserve()
    }

    /// Whether a layer with that content is in the store and can be used by a commit.
    #[must_use]
    pub fn has_layer(&self, diff_id: &Digest) -> bool {
        self.shared.read().has_layer(diff_id.hex())
    }

    /// A layer in the store, leased for a commit; `None` if it must be unpacked.
    #[must_use]
    pub fn stored_layer(&self, diff_id: &Digest) -> Option<Layer> {
        let lease = self.lease_names(vec![diff_id.hex().to_owned()])?;
        Some(Layer::Stored { diff_id: diff_id.clone(), lease })
    }

    /// Leases all of these layers, or none if one is missing.
    pub(crate) fn lease_names(&self, names: Vec<String>) -> Option<LayerLease> {
        let held = self.shared.write().lease(&names);
        held.then(|| self.lease_of(names))
    }

    /// Unpacks and verifies a layer in one pass. It becomes visible when an image is committed. This blocks for as long
    /// as `input` does and uses two threads besides the caller's. Any number of layers may be unpacked at a time.
    ///
    /// # Errors
    /// [`UnpackError`]; nothing is left on disk.
    pub fn unpack(&self, source: &LayerSource, input: &mut dyn Read) -> Result<UnpackedLayer, UnpackError> {
        let failed = |source| UnpackError::System { path: String::new(), source };
        let shared = &self.shared;
        shared.expire_kept();
        let (staged, own) = shared.stage().map_err(failed)?;
        // From here on, every way out removes the directory.
        let mut layer = UnpackedLayer {
            shared: Arc::clone(shared),
            staged,
            source: source.clone(),
            usage: Usage::default(),
            lease: OnceLock::new(),
        };
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let fs = open_below(own.as_fd(), "fs", flags, Resolve::BeneathNoLinks).map_err(failed)?;
        let contents = unpack(source, input, (fs, own.as_fd()), &shared.limits).inspect_err(|error| {
            if error.wants_disk() {
                shared.give_up_kept();
            }
        })?;
        save_layer(&shared.staged_path(&layer.staged), &contents).map_err(|error| {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot write a layer's record");
            failed(wharf_sys::Error::new("write", "info", Errno::EIO))
        })?;
        layer.staged = shared.name_whole(&layer.staged, &source.diff_id).map_err(failed)?;
        layer.usage = contents.usage;
        Ok(layer)
    }

    /// All images, sorted by id.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Image>> {
        self.shared.read().images().cloned().collect()
    }

    /// The image that a text refers to: an id or a unique prefix of one, with or without `sha256:`, or a reference with
    /// a tag or a digest.
    #[must_use]
    pub fn find(&self, text: &str) -> Option<Arc<Image>> {
        self.shared.read().find(text)
    }

    /// The image whose id a text is, or the only one whose id begins so, with or without `sha256:`. No reference is
    /// found.
    #[must_use]
    pub fn find_by_id(&self, text: &str) -> Option<Arc<Image>> {
        self.shared.read().by_prefix(text.strip_prefix("sha256:").unwrap_or(text))
    }

    /// Leases the layers of an image, for a container that is made from it.
    #[must_use]
    pub fn lease(&self, id: &Digest) -> Option<LayerLease> {
        let mut index = self.shared.write();
        let names = index.image(id)?.record().chain.clone();
        let held = index.lease(&names);
        drop(index);
        held.then(|| self.lease_of(names))
    }

    /// Leases the layers with these directories, as [`Image::layers`] named them before a restart of the process. A
    /// container may outlive its image, and one damaged layer does not cost it the others. A layer that is not in the
    /// store needs no lease.
    #[must_use]
    pub fn lease_paths<'a>(&self, layers: impl IntoIterator<Item = &'a Path>) -> LayerLease {
        let name = |path: &Path| {
            let own = path.strip_prefix(&self.shared.layers_path).ok()?;
            own.parent()?.to_str().map(str::to_owned)
        };
        let names = self.shared.write().lease_present(layers.into_iter().filter_map(name));
        self.lease_of(names)
    }

    /// Leases a layer that was just made visible: the writer's lock is held, so it cannot have been removed.
    fn lease_shown(&self, diff_id: &Digest) -> LayerLease {
        let names = vec![diff_id.hex().to_owned()];
        self.shared.write().lease(&names);
        self.lease_of(names)
    }

    fn lease_of(&self, names: Vec<String>) -> LayerLease {
        LayerLease { shared: Arc::clone(&self.shared), names }
    }

    /// The disk usage of all images, each layer counted once; from memory.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.shared.read().usage()
    }

    /// How much there is, and how the sweeps have ended; from memory.
    #[must_use]
    pub fn figures(&self) -> StoreFigures {
        let index = self.shared.read();
        let ((images, layers), usage) = (index.counts(), index.usage());
        drop(index);
        StoreFigures { images, layers, usage, sweeps: self.shared.sweeps.figures() }
    }

    /// An empty directory that may be merged with layers: the kernel merges two at least.
    #[must_use]
    pub fn empty_layer(&self) -> PathBuf {
        self.shared.root_path.join("empty")
    }

    /// The security profiles.
    #[must_use]
    pub fn profiles(&self) -> &Profiles {
        &self.shared.profiles
    }

    /// The store's directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.shared.root_path
    }
}

impl Shared {
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Index> {
        lock::read(&self.index)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, Index> {
        lock::write(&self.index)
    }

    fn writer(&self) -> MutexGuard<'_, ()> {
        lock::lock(&self.writer)
    }

    fn next_serial(&self) -> u64 {
        self.serial.fetch_add(1, Ordering::Relaxed)
    }

    /// Makes a staging directory with an empty `fs` in it.
    pub(crate) fn stage(&self) -> wharf_sys::Result<(String, OwnedFd)> {
        let name = format!("{}", self.next_serial());
        wharf_snapshots::ensure_directory(self.staging.as_fd(), &name)?;
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let own = open_below(self.staging.as_fd(), OsStr::new(&name), flags, Resolve::BeneathNoLinks)?;
        wharf_snapshots::ensure_directory(own.as_fd(), "fs")?;
        Ok((name, own))
    }

    fn staged_path(&self, name: &str) -> PathBuf {
        self.root_path.join("staging").join(name)
    }

    fn image_path(&self, id: &Digest) -> PathBuf {
        self.root_path.join("images").join(id.hex())
    }
}

fn system(what: &'static str) -> impl Fn(wharf_sys::Error) -> StoreError {
    move |source| StoreError::System { what, source }
}
