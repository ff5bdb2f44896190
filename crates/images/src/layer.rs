//! Layers in the hands of a caller: unpacked but not yet visible, or leased.
//!
//! Both keep what is on disk until they are dropped, which may wait for the disk. No other part of wharf may rely on a
//! layer that it does not hold in one of these ways.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use wharf_snapshots::tree::Usage;
use wharf_types::Digest;

use crate::store::Shared;
use crate::unpack::LayerSource;

/// A layer that is unpacked and verified but not yet visible. A commit makes it visible, and from then on this value
/// leases it like a [`LayerLease`]. If it is dropped before that, the layer is kept a few hours for a retry, see
/// [`Store::kept_layer`](crate::Store::kept_layer).
#[derive(Debug)]
pub struct UnpackedLayer {
    pub(crate) shared: Arc<Shared>,
    pub(crate) staged: String,
    pub(crate) source: LayerSource,
    pub(crate) usage: Usage,
    /// Set once the layer is visible.
    pub(crate) lease: OnceLock<LayerLease>,
}

impl UnpackedLayer {
    /// The digest of its uncompressed archive.
    #[must_use]
    pub fn diff_id(&self) -> &Digest {
        &self.source.diff_id
    }
}

impl Drop for UnpackedLayer {
    fn drop(&mut self) {
        let is_whole = self.usage != Usage::default();
        if is_whole && self.lease.get().is_none() {
            self.shared.keep(&self.staged, &self.source.diff_id);
        } else {
            self.shared.discard_staged(&self.staged);
        }
    }
}

/// Keeps layers on disk until it is dropped, whatever happens to their images. After that, a sweep may remove them.
#[derive(Debug)]
pub struct LayerLease {
    pub(crate) shared: Arc<Shared>,
    pub(crate) names: Vec<String>,
}

impl LayerLease {
    /// The directories of the leased layers, as overlayfs takes them.
    #[must_use]
    pub fn paths(&self) -> Vec<PathBuf> {
        self.names.iter().map(|name| self.shared.layers_path.join(name).join("fs")).collect()
    }
}

impl Drop for LayerLease {
    fn drop(&mut self) {
        self.shared.write().release(&self.names);
    }
}

/// A layer for a commit.
#[derive(Debug)]
pub enum Layer {
    /// A layer that was just unpacked, possibly for several images.
    Unpacked(Arc<UnpackedLayer>),
    /// A layer that another image already has.
    Stored {
        /// The digest of its uncompressed archive.
        diff_id: Digest,
        /// Keeps it until the commit.
        lease: LayerLease,
    },
}

impl Layer {
    /// The digest of its uncompressed archive.
    #[must_use]
    pub fn diff_id(&self) -> &Digest {
        match self {
            Self::Unpacked(layer) => layer.diff_id(),
            Self::Stored { diff_id, .. } => diff_id,
        }
    }
}

impl From<UnpackedLayer> for Layer {
    fn from(layer: UnpackedLayer) -> Self {
        Self::Unpacked(Arc::new(layer))
    }
}

impl Shared {
    /// Removes something that will never be visible from the staging directory.
    pub(crate) fn discard_staged(&self, name: &str) {
        if let Err(error) = self.trash.discard(self.staging.as_fd(), OsStr::new(name)) {
            tracing::warn!(name, %error, "cannot remove a staged layer; the next start of wharfd retries");
        }
    }
}
