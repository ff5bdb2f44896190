//! An image in the store.
//!
//! It is a value of its moment: it says nothing about whether its layers are still there, for which a lease is needed,
//! and a new tag makes a new value.

use std::path::{Path, PathBuf};

use oci_spec::image::ImageConfiguration;
use wharf_types::{Digest, Untrusted};

use crate::records::ImageRecord;

/// An image in the store, whole and durable. It is immutable: a new tag makes a new value.
#[derive(Debug)]
pub struct Image {
    id: Digest,
    layers: Vec<PathBuf>,
    config: Untrusted<ImageConfiguration>,
    record: ImageRecord,
}

impl Image {
    pub(crate) fn new(
        id: Digest,
        record: ImageRecord,
        config: ImageConfiguration,
        layers_root: &Path,
    ) -> Self {
        let layers = record.chain.iter().map(|name| layers_root.join(name).join("fs")).collect();
        Self { id, layers, config: Untrusted::new(config), record }
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

    /// What the image says about running it.
    #[must_use]
    pub fn config(&self) -> &Untrusted<ImageConfiguration> {
        &self.config
    }

    /// The lower directories of its overlay mount, top first: 1 to 500, each once. The merged root should have the mode
    /// and owner of the first.
    #[must_use]
    pub fn layers(&self) -> &[PathBuf] {
        &self.layers
    }

    pub(crate) fn record(&self) -> &ImageRecord {
        &self.record
    }

    /// The same image with another record.
    pub(crate) fn with_record(&self, record: ImageRecord) -> Self {
        let config = Untrusted::new(self.config.admit(Clone::clone));
        Self { id: self.id.clone(), layers: self.layers.clone(), config, record }
    }
}
