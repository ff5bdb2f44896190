//! Removal of images, and of layers that nothing uses.
//!
//! Apart from `wharfd clean --images`, only this file deletes a layer of an image. It asks the index for images and leases, and in a sweep
//! also the kernel for what is mounted, because a container may outlive the daemon that leased its layers.

use std::ffi::OsStr;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::unistd::{UnlinkatFlags, unlinkat};
use wharf_snapshots::tree::Usage;
use wharf_sys::Error;

use super::{Shared, Store, StoreError, mounted, system};

impl Store {
    /// Removes the image that a text refers to (see [`Store::find`]), with all its names; `false` if there is none. On
    /// return the image is gone. Its disk space is freed later, that of leased layers after their leases end.
    ///
    /// # Errors
    /// [`StoreError::System`] if the record cannot be removed; the image stays.
    pub fn remove(&self, text: &str) -> Result<bool, StoreError> {
        let shared = &self.shared;
        let _writer = shared.writer();
        let Some(image) = shared.read().find(text) else { return Ok(false) };
        match unlinkat(&shared.images, image.id().hex(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => {
                let source = Error::new("unlinkat", image.id().to_string(), errno);
                return Err(StoreError::System { what: "remove the record of an image", source });
            }
        }
        let unused = shared.write().remove_image(image.id());
        // If a power cut brought the record back, its layers would have to be whole, or visibly missing.
        nix::unistd::fsync(&shared.images)
            .map_err(|errno| system("sync its records")(Error::new("fsync", "images", errno)))?;
        shared.discard_layers(&unused);
        let manifests = image.record().manifests.iter().filter_map(|digest| digest.strip_prefix("sha256:"));
        for hex in manifests.chain([image.id().hex()]) {
            if let Err(errno) = unlinkat(&shared.content, hex, UnlinkatFlags::NoRemoveDir)
                && errno != Errno::ENOENT
            {
                tracing::warn!(hex, %errno, "cannot remove a document of a removed image");
            }
        }
        tracing::info!(image = %image.id(), "image removed");
        Ok(true)
    }

    /// Removes every layer that has no image and no lease and that no container has mounted, as crashes and failed
    /// pulls leave them. Nothing is removed if a record could not be read or is in quarantine, because it might name
    /// any layer. Returns what was freed or soon will be.
    ///
    /// # Errors
    /// [`StoreError::Mounts`] if the kernel does not say what is mounted; nothing is removed.
    pub fn sweep(&self) -> Result<Usage, StoreError> {
        let shared = &self.shared;
        if !shared.read().has_orphans() || !shared.whole {
            return Ok(Usage::default());
        }
        let mounted = mounted::names().map_err(|source| StoreError::Mounts { source })?;
        let _writer = shared.writer();
        let orphans = shared.write().take_orphans(&mounted);
        let names: Vec<_> = orphans.iter().map(|(name, _)| name.clone()).collect();
        shared.discard_layers(&names);
        Ok(orphans.iter().map(|(_, usage)| *usage).sum())
    }
}

impl Shared {
    /// Ends a lease.
    pub(crate) fn release(&self, names: &[String]) {
        let unused = self.write().release(names);
        if unused {
            let _writer = self.writer();
            let unused = self.write().take_unused(names);
            self.discard_layers(&unused);
        }
    }

    /// Moves layers that have left the index to the trash. The writer's lock is held, so that no commit finds the
    /// directory of such a layer and takes it for a whole one.
    pub(super) fn discard_layers(&self, names: &[String]) {
        for name in names {
            if let Err(error) = self.trash.discard(self.layers.as_fd(), OsStr::new(name)) {
                tracing::warn!(layer = %name, %error, "cannot remove a layer");
            }
        }
    }
}
