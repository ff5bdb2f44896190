//! An image in the store.
//!
//! It is a value of its moment: it says nothing about whether its layers are still there, for which a lease is needed,
//! and a new tag makes a new value.
//!
//! All images are in memory, so an image has nothing whose length is up to its author. Its config is on disk
//! ([`Store::config`](crate::Store::config)).

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use wharf_types::Digest;

use crate::config::ImageUser;
use crate::records::ImageRecord;

/// An image in the store, whole and durable. It is immutable: a new tag makes a new value. Only that its config has
/// been damaged on disk is noted here, by whoever reads that.
#[derive(Debug)]
pub struct Image {
    id: Digest,
    layers: Vec<PathBuf>,
    record: ImageRecord,
    is_damaged: AtomicBool,
}

impl Image {
    pub(crate) fn new(id: Digest, record: ImageRecord, layers_root: &Path) -> Self {
        let layers = record.chain.iter().map(|name| layers_root.join(name).join("fs")).collect();
        Self { id, layers, record, is_damaged: AtomicBool::new(false) }
    }

    /// The digest of the config: the one name that the image has in every registry.
    #[must_use]
    pub fn id(&self) -> &Digest {
        &self.id
    }

    /// The normalised references with a tag that refer to this image now. Empty if it was pulled by digest, or if all
    /// its tags have moved.
    #[must_use]
    pub fn repo_tags(&self) -> &[String] {
        &self.record.repo_tags
    }

    /// `repository@digest` for every repository that it was pulled from. The digest is that of the index or manifest to
    /// which the pull resolved the reference.
    #[must_use]
    pub fn repo_digests(&self) -> &[String] {
        &self.record.repo_digests
    }

    /// What its layers and documents use on disk, in bytes; more than 0.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.record.size_bytes
    }

    /// Whether the kubelet should never collect it.
    #[must_use]
    pub fn is_pinned(&self) -> bool {
        self.record.pinned
    }

    /// The user that it names, if it names one. It is short, and hostile all the same.
    #[must_use]
    pub fn user(&self) -> Option<&ImageUser> {
        self.record.config.as_ref()?.user.as_ref()
    }

    /// The lower directories of its overlay mount, top first: 1 to 500, each once. The merged root should have the mode
    /// and owner of the first.
    #[must_use]
    pub fn layers(&self) -> &[PathBuf] {
        &self.layers
    }

    /// Whether whoever read its config last found it damaged. A pull or a load makes a new value, which is not.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        self.is_damaged.load(Ordering::Relaxed)
    }

    pub(crate) fn found_damaged(&self) {
        self.is_damaged.store(true, Ordering::Relaxed);
    }

    pub(crate) fn found_whole(&self) {
        self.is_damaged.store(false, Ordering::Relaxed);
    }

    pub(crate) fn record(&self) -> &ImageRecord {
        &self.record
    }

    /// The same image with another record.
    pub(crate) fn with_record(&self, record: ImageRecord) -> Self {
        let is_damaged = AtomicBool::new(self.is_damaged());
        Self { id: self.id.clone(), layers: self.layers.clone(), record, is_damaged }
    }
}
