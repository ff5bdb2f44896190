//! The documents of images: they are read from disk whenever they are used, and verified each time.

use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use oci_spec::image::ImageConfiguration;
use wharf_sys::fs::{Resolve, open_below, read_bounded};
use wharf_types::{Digest, Untrusted};

use super::{Shared, Store, StoreError, system};
use crate::config::parse_config;
use crate::image::Image;
use crate::manifest::{CONFIG_LIMIT_BYTES, digest_of};

/// For a file that somebody may have replaced by a FIFO.
const WITHOUT_WAITING: OFlag = OFlag::O_RDONLY.union(OFlag::O_NONBLOCK).union(OFlag::O_NOCTTY);

impl Store {
    /// What an image says about running it. Blocks for the disk. This only reads: an image that is damaged stays, and
    /// [`Image::is_damaged`] from then on, so that it is pulled again.
    ///
    /// # Errors
    /// [`StoreError::Removed`], [`StoreError::Damaged`], [`StoreError::System`] if it cannot be read now, or
    /// [`StoreError::Document`] if an earlier release has stored it and it is beyond a limit of this one.
    pub fn config(&self, image: &Image) -> Result<Untrusted<ImageConfiguration>, StoreError> {
        let bytes = self.config_bytes(image)?;
        let (config, _diff_ids) =
            parse_config(&bytes).map_err(|source| StoreError::Document { what: "config", source })?;
        Ok(Untrusted::new(config))
    }

    /// Whether an image is as it was pulled, as far as that can be told without its layers. Blocks for the disk.
    #[must_use]
    pub fn is_whole(&self, image: &Image) -> bool {
        let read = self.config_bytes(image);
        if let Err(error) = &read {
            tracing::warn!(error = wharf_types::chain(error), "an image cannot be used");
        }
        read.is_ok()
    }

    /// The config as it was pulled: its digest is the image's id.
    pub(crate) fn config_bytes(&self, image: &Image) -> Result<Vec<u8>, StoreError> {
        let read = self.read_config(image);
        match &read {
            Ok(_) => image.found_whole(),
            Err(StoreError::Damaged { .. }) => image.found_damaged(),
            Err(_) => {}
        }
        read
    }

    fn read_config(&self, image: &Image) -> Result<Vec<u8>, StoreError> {
        let id = || image.id().clone();
        let bytes = self.shared.read_document(image.id(), CONFIG_LIMIT_BYTES);
        let bytes = bytes.map_err(|error| match error.errno {
            // A removal forgets the image before it removes the file.
            Errno::ENOENT if self.shared.read().image(image.id()).is_none() => {
                StoreError::Removed { id: id() }
            }
            Errno::ENOENT => StoreError::Damaged { id: id(), problem: "missing" },
            Errno::ENOTDIR | Errno::ELOOP | Errno::EFBIG | Errno::EINVAL | Errno::ENXIO => {
                StoreError::Damaged { id: id(), problem: "damaged" }
            }
            _ => system("read the config of an image")(error),
        })?;
        if digest_of(&bytes) != *image.id() {
            return Err(StoreError::Damaged { id: id(), problem: "damaged" });
        }
        Ok(bytes)
    }
}

impl Shared {
    /// The bytes of a document, unverified.
    pub(crate) fn read_document(&self, digest: &Digest, limit_bytes: usize) -> wharf_sys::Result<Vec<u8>> {
        open_below(self.content.as_fd(), digest.hex(), WITHOUT_WAITING, Resolve::BeneathNoLinks)
            .and_then(|fd| read_bounded(&fd, limit_bytes))
    }
}
