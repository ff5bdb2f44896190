//! Removal of images, and of layers that nothing uses.
//!
//! Apart from `wharfd clean --images`, only a sweep deletes a layer of an image. It asks the index for images and
//! leases, and the kernel for what is mounted: a container outlives the daemon that leased its layers, and some
//! containers are unknown to this one. What is mounted now is removed by a later sweep.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::sync::Mutex;

use nix::errno::Errno;
use nix::unistd::{UnlinkatFlags, unlinkat};
use wharf_snapshots::tree::Usage;
use wharf_sys::Error;
use wharf_types::lock::lock;

use super::{Shared, Store, StoreError, mounted, system};

impl Store {
    /// Removes the image that a text refers to (see [`Store::find`]), with all its names; `false` if there is none. On
    /// return the image is gone. Its disk space is freed later, that of leased layers after their leases end.
    ///
    /// # Errors
    /// [`StoreError::System`] if the record cannot be removed; the image stays.
    pub fn remove(&self, text: &str) -> Result<bool, StoreError> {
        let shared = &self.shared;
        let writer = shared.writer();
        let Some(image) = shared.read().find(text) else { return Ok(false) };
        match unlinkat(&shared.images, image.id().hex(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => {
                let source = Error::new("unlinkat", image.id().to_string(), errno);
                return Err(StoreError::System { what: "remove the record of an image", source });
            }
        }
        shared.write().remove_image(image.id());
        // If a power cut brought the record back, its layers would have to be whole, or visibly missing.
        nix::unistd::fsync(&shared.images)
            .map_err(|errno| system("sync its records")(Error::new("fsync", "images", errno)))?;
        let manifests = image.record().manifests.iter().filter_map(|digest| digest.strip_prefix("sha256:"));
        for hex in manifests.chain([image.id().hex()]) {
            if let Err(errno) = unlinkat(&shared.content, hex, UnlinkatFlags::NoRemoveDir)
                && errno != Errno::ENOENT
            {
                tracing::warn!(hex, %errno, "cannot remove a document of a removed image");
            }
        }
        drop(writer);
        shared.sweep_and_log();
        tracing::info!(image = %image.id(), "image removed");
        Ok(true)
    }

    /// Removes every layer that has no image and no lease and that no container has mounted. If a record could not be
    /// read or is in quarantine, it might name any layer, so that only those go whose image was removed. Returns what
    /// was freed or soon will be.
    ///
    /// # Errors
    /// [`StoreError::Mounts`] if the kernel does not say what is mounted; nothing is removed. [`StoreError::System`] if
    /// a layer cannot be removed; the others are, and the next sweep tries again.
    pub fn sweep(&self) -> Result<Usage, StoreError> {
        self.shared.sweep()
    }

    /// Sweeps, and logs the result. If that fails, the next sweep removes what is left. While another call sweeps, this
    /// one has it sweep again, and returns.
    pub fn sweep_and_log(&self) {
        self.shared.sweep_and_log();
    }
}

impl Shared {
    /// Moves unused layers to the trash. A layer whose lease ends while this looks at the mounts was no candidate, so
    /// it is not removed even if its container was mounted only after that.
    fn sweep(&self) -> Result<Usage, StoreError> {
        let mut unused = self.read().unused(self.known);
        if unused.is_empty() {
            return Ok(Usage::default());
        }
        mounted::leave_unmounted(self.layers.as_fd(), &self.tenants, &mut unused)
            .map_err(|source| StoreError::Mounts { source })?;
        // No commit may find the directory of such a layer and take it for a whole one.
        let _writer = self.writer();
        let unused = self.write().take_unused(&unused, self.known);
        let (mut removed, mut failure) = (Vec::new(), None);
        for (name, usage) in unused {
            match self.trash.discard(self.layers.as_fd(), OsStr::new(&name)) {
                Ok(()) => removed.push(usage),
                Err(error) => {
                    self.write().put_back(name, usage);
                    failure.get_or_insert(error);
                }
            }
        }
        let removed: Usage = removed.into_iter().sum();
        self.sweeps.freed(removed.bytes);
        if removed.inodes > 0 {
            tracing::info!(bytes = removed.bytes, "removed layers that no image uses");
        }
        failure.map_or(Ok(removed), |error| Err(system("remove a layer")(error)))
    }

    pub(super) fn sweep_and_log(&self) {
        let mut goes_on = self.sweeps.begin();
        while goes_on {
            match self.sweep() {
                Ok(_removed) => self.sweeps.succeeded(),
                Err(error) => {
                    let error = wharf_types::chain(&error);
                    if self.sweeps.failed(&error) {
                        tracing::warn!(
                            error,
                            "layers that no image uses could not be removed; each sweep tries again"
                        );
                    }
                }
            }
            goes_on = self.sweeps.goes_on();
        }
    }
}

/// The calls that sweep. A sweep looks at the mounts of the whole machine, so there is one at a time. One that has
/// begun may have passed over what others want removed, so it is followed by another, for all of them.
#[derive(Debug, Default)]
pub(super) struct Sweeps {
    /// How far the present one has come.
    progress: Mutex<Progress>,
    /// Taken before `failure`.
    figures: Mutex<SweepFigures>,
    /// Why the last one failed; empty if it succeeded.
    failure: Mutex<String>,
}

/// The sweeps since the store was opened.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct SweepFigures {
    /// How many have succeeded, whether or not there was anything to remove.
    pub succeeded: u64,
    /// How many have failed.
    pub failed: u64,
    /// When the last one succeeded, in nanoseconds since 1970; 0 if none has.
    pub succeeded_at_ns: i64,
    /// When the last one failed, in nanoseconds since 1970; 0 if none has.
    pub failed_at_ns: i64,
    /// How many bytes they have freed.
    pub freed_bytes: u64,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Progress {
    #[default]
    Idle,
    Sweeping,
    SweepingAndWanted,
}

impl Sweeps {
    pub(super) fn figures(&self) -> SweepFigures {
        *lock(&self.figures)
    }

    fn freed(&self, bytes: u64) {
        lock(&self.figures).freed_bytes += bytes;
    }

    fn succeeded(&self) {
        let mut figures = lock(&self.figures);
        figures.succeeded += 1;
        figures.succeeded_at_ns = wharf_sys::clock::now_ns();
        lock(&self.failure).clear();
    }

    /// Whether this failure is another one than that of the sweep before.
    fn failed(&self, error: &str) -> bool {
        let mut figures = lock(&self.figures);
        figures.failed += 1;
        figures.failed_at_ns = wharf_sys::clock::now_ns();
        let mut last = lock(&self.failure);
        let is_new = *last != error;
        error.clone_into(&mut last);
        is_new
    }

    /// Whether the caller is to sweep; otherwise another one does.
    fn begin(&self) -> bool {
        let mut progress = lock(&self.progress);
        let was = *progress;
        *progress = if was == Progress::Idle { Progress::Sweeping } else { Progress::SweepingAndWanted };
        was == Progress::Idle
    }

    /// Whether the caller, which has swept, is to do so again.
    fn goes_on(&self) -> bool {
        let mut progress = lock(&self.progress);
        let is_wanted = *progress == Progress::SweepingAndWanted;
        *progress = if is_wanted { Progress::Sweeping } else { Progress::Idle };
        is_wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_sweeps_at_a_time_and_once_for_all_who_came_meanwhile() {
        let sweeps = Sweeps::default();
        assert!(sweeps.begin());
        assert!(!sweeps.begin() && !sweeps.begin());
        assert!(sweeps.goes_on(), "for those two");
        assert!(!sweeps.goes_on());
        assert!(sweeps.begin());
    }

    #[test]
    fn how_sweeps_have_ended_is_remembered() {
        let sweeps = Sweeps::default();
        assert_eq!(sweeps.figures(), SweepFigures::default());
        sweeps.freed(5);
        sweeps.succeeded();
        sweeps.succeeded();
        let SweepFigures { succeeded, failed, succeeded_at_ns, failed_at_ns, freed_bytes } = sweeps.figures();
        assert_eq!((succeeded, failed, failed_at_ns, freed_bytes), (2, 0, 0, 5));
        assert!(sweeps.failed("x"));
        let now = sweeps.figures();
        assert_eq!((now.succeeded_at_ns, now.failed), (succeeded_at_ns, 1));
        assert!(now.failed_at_ns >= succeeded_at_ns && succeeded_at_ns > 0);
    }
    #[test]
    fn a_failure_is_told_of_when_it_is_new() {
        let sweeps = Sweeps::default();
        assert_eq!(["x", "x", "y", "x"].map(|error| sweeps.failed(error)), [true, false, true, true]);
        sweeps.succeeded();
        assert!(sweeps.failed("x"));
    }
}
