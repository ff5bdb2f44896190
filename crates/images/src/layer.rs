//! Layers in the hands of a caller: unpacked and not yet visible, or kept from removal.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use wharf_snapshots::tree::Usage;
use wharf_types::Digest;

use crate::store::Shared;
use crate::unpack::LayerSource;

/// A layer that was unpacked and verified, and is not visible yet: a commit makes it so, and from then on it is kept as by
/// a [`Hold`]. Dropped before that, it waits some hours for a retry, see [`Store::kept_layer`](crate::Store::kept_layer).
#[derive(Debug)]
pub struct UnpackedLayer {
    pub(crate) shared: Arc<Shared>,
    pub(crate) staged: String,
    pub(crate) source: LayerSource,
    pub(crate) usage: Usage,
    /// Set once it is visible.
    pub(crate) hold: OnceLock<Hold>,
}

impl UnpackedLayer {
    /// The digest of its content.
    #[must_use]
    pub fn diff_id(&self) -> &Digest {
        &self.source.diff_id
    }
}

impl Drop for UnpackedLayer {
    fn drop(&mut self) {
        let is_whole = self.usage != Usage::default();
        if is_whole && self.hold.get().is_none() {
            self.shared.keep(&self.staged, &self.source.diff_id);
        } else {
            self.shared.discard_staged(&self.staged);
        }
    }
}

/// Keeps layers on disk until it is dropped, whatever becomes of the images they belong to.
#[derive(Debug)]
pub struct Hold {
    pub(crate) shared: Arc<Shared>,
    pub(crate) names: Vec<String>,
}

impl Hold {
    /// The directories that are kept, as overlayfs takes them.
    #[must_use]
    pub fn paths(&self) -> Vec<PathBuf> {
        self.names.iter().map(|name| self.shared.layers_path.join(name).join("fs")).collect()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.shared.release(&self.names);
    }
}

/// A layer for a commit.
#[derive(Debug)]
pub enum Layer {
    /// One that was just unpacked, maybe for several images.
    Unpacked(Arc<UnpackedLayer>),
    /// One that another image has already.
    Stored {
        /// The digest of its content.
        diff_id: Digest,
        /// What keeps it until the commit.
        hold: Hold,
    },
}

impl Layer {
    /// The digest of its content.
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
    /// Takes something that will never be visible out of the staging directory.
    pub(crate) fn discard_staged(&self, name: &str) {
        if let Err(error) = self.trash.discard(self.staging.as_fd(), OsStr::new(name)) {
            tracing::warn!(name, %error, "cannot remove a staged layer; the next start of wharfd retries");
        }
    }
}
