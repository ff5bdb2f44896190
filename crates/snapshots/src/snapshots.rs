//! The directory of snapshots.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, fchmod, fstat, mkdirat};
use nix::unistd::{Gid, Uid, fchown};
use wharf_sys::error::Named;
use wharf_sys::fs::{Resolve, open, open_below};
use wharf_types::lock::lock;
use wharf_types::{ContainerId, ErrorKind, Failure};

use crate::trash::{Trash, ensure_directory, list_names};
use crate::tree::{Usage, measure, remove_tree};

const TRASH: &str = ".trash";
const VOLUMES: &str = "volumes";

/// Why a snapshot could not be made, measured or removed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} the snapshot {name}")]
pub struct SnapshotError {
    /// What was tried.
    pub what: &'static str,
    /// The container, or the directory of all snapshots.
    pub name: String,
    /// The call that failed.
    #[source]
    pub source: wharf_sys::Error,
}

impl Failure for SnapshotError {
    fn kind(&self) -> ErrorKind {
        match self.source.errno {
            Errno::ENOENT => ErrorKind::NotFound,
            _ => self.source.kind(),
        }
    }
}

/// The two directories of an overlay mount that are the container's own. Both are on one file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// What the container wrote.
    pub upper: PathBuf,
    /// For overlayfs.
    pub work: PathBuf,
}

/// All snapshots of a node.
#[derive(Debug)]
pub struct Snapshots {
    path: PathBuf,
    root: OwnedFd,
    trash: Trash,
    measured: Mutex<HashMap<ContainerId, (Usage, Instant)>>,
}

impl Snapshots {
    /// Opens the directory, making it if need be, and has what a crash left half made or half removed taken away in
    /// the background.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(path: &Path) -> Result<Self, SnapshotError> {
        let failed = |source| SnapshotError { what: "open", name: path.display().to_string(), source };
        std::fs::create_dir_all(path).named("mkdir", || path.display().to_string()).map_err(failed)?;
        let root = open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY).map_err(failed)?;
        fchmod(&root, Mode::S_IRWXU).named("fchmod", || path.display().to_string()).map_err(failed)?;
        let trash = Trash::open(root.as_fd(), TRASH).map_err(failed)?;
        let snapshots = Self { path: path.to_owned(), root, trash, measured: Mutex::new(HashMap::new()) };
        snapshots.sweep().map_err(failed)?;
        Ok(snapshots)
    }

    /// Makes the snapshot of a container, or returns the one it has. The root of a merged overlay shows the attributes
    /// of the upper directory, so `top` is opened and its mode and owner are copied: the root of the image's topmost
    /// layer.
    ///
    /// # Errors
    /// The kernel's.
    pub fn prepare(&self, container: &ContainerId, top: &Path) -> Result<Snapshot, SnapshotError> {
        let failed = |source| SnapshotError { what: "make", name: container.to_string(), source };
        let snapshot = self.at(container);
        let half = OsString::from(format!(".{container}"));
        let made = self.make_half(&half, top).and_then(|()| {
            let flags = nix::fcntl::RenameFlags::RENAME_NOREPLACE;
            match nix::fcntl::renameat2(&self.root, half.as_os_str(), &self.root, container.as_str(), flags) {
                Ok(()) => Ok(()),
                Err(Errno::EEXIST) => remove_tree(self.root.as_fd(), &half),
                Err(errno) => Err(wharf_sys::Error::new("rename", container.to_string(), errno)),
            }
        });
        if made.is_err() {
            // What cannot be removed now goes with the next start.
            drop(self.trash.discard(self.root.as_fd(), &half));
        }
        made.map_err(failed)?;
        // Nearly nothing to walk: from now on its usage is known.
        drop(self.usage(container, Duration::ZERO));
        Ok(snapshot)
    }

    fn make_half(&self, half: &OsStr, top: &Path) -> wharf_sys::Result<()> {
        let directory = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let like = fstat(open(top, directory)?).named("fstat", || top.display().to_string())?;
        remove_tree(self.root.as_fd(), half)?;
        mkdirat(&self.root, half, Mode::S_IRWXU).named("mkdirat", || half.display().to_string())?;
        let own = open_below(self.root.as_fd(), half, directory, Resolve::BeneathNoLinks)?;
        for name in ["fs", "work"] {
            ensure_directory(own.as_fd(), name)?;
        }
        let upper = open_below(own.as_fd(), "fs", directory, Resolve::BeneathNoLinks)?;
        let owner = (Uid::from_raw(like.st_uid), Gid::from_raw(like.st_gid));
        fchown(&upper, Some(owner.0), Some(owner.1)).named("fchown", || "fs".into())?;
        fchmod(&upper, Mode::from_bits_truncate(like.st_mode & 0o7777)).named("fchmod", || "fs".into())
    }

    /// Makes a directory beside the layer of a container that has a snapshot, empty, for a volume of its own. It goes with
    /// the snapshot, and counts as part of it.
    ///
    /// # Errors
    /// The kernel's, ENOENT without a snapshot.
    pub fn volume(&self, container: &ContainerId, number: usize) -> Result<PathBuf, SnapshotError> {
        let directory = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let number = number.to_string();
        open_below(self.root.as_fd(), container.as_str(), directory, Resolve::BeneathNoLinks)
            .and_then(|own| {
                ensure_directory(own.as_fd(), VOLUMES)?;
                let volumes = open_below(own.as_fd(), VOLUMES, directory, Resolve::BeneathNoLinks)?;
                ensure_directory(volumes.as_fd(), &number)
            })
            .map_err(|source| SnapshotError { what: "add to", name: container.to_string(), source })?;
        Ok(self.volumes(container).join(number))
    }

    /// The directory of a container's volumes, which are named by their numbers, whether it exists or not.
    #[must_use]
    pub fn volumes(&self, container: &ContainerId) -> PathBuf {
        self.path.join(container.as_str()).join(VOLUMES)
    }

    /// The directories of a container's snapshot, whether they exist or not.
    #[must_use]
    pub fn at(&self, container: &ContainerId) -> Snapshot {
        let own = self.path.join(container.as_str());
        Snapshot { upper: own.join("fs"), work: own.join("work") }
    }

    /// Takes a container's snapshot away; its disk space is freed in the background. That there is none is success.
    ///
    /// # Errors
    /// EBUSY if its directory itself is a mount point.
    pub fn remove(&self, container: &ContainerId) -> Result<(), SnapshotError> {
        self.trash
            .discard(self.root.as_fd(), OsStr::new(container.as_str()))
            .map_err(|source| SnapshotError { what: "remove", name: container.to_string(), source })?;
        // After it is gone: a walk that ends meanwhile looks for it before it notes what it found.
        lock(&self.measured).remove(container);
        Ok(())
    }

    /// The containers that have a snapshot.
    ///
    /// # Errors
    /// The kernel's.
    pub fn list(&self) -> Result<Vec<ContainerId>, SnapshotError> {
        let name = || self.path.display().to_string();
        let names = self.names().map_err(|source| SnapshotError { what: "list", name: name(), source })?;
        Ok(names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect())
    }

    /// What a container's snapshot takes on disk: what was found at most `max_age` ago, or a walk now.
    ///
    /// # Errors
    /// The kernel's, ENOENT if there is none.
    pub fn usage(&self, container: &ContainerId, max_age: Duration) -> Result<Usage, SnapshotError> {
        if let Some((usage, at)) = lock(&self.measured).get(container)
            && at.elapsed() <= max_age
        {
            return Ok(*usage);
        }
        let usage = self.measure(container).map_err(|source| SnapshotError {
            what: "measure",
            name: container.to_string(),
            source,
        })?;
        let mut measured = lock(&self.measured);
        if self.at(container).upper.exists() {
            measured.insert(container.clone(), (usage, Instant::now()));
        }
        drop(measured);
        Ok(usage)
    }

    fn measure(&self, container: &ContainerId) -> wharf_sys::Result<Usage> {
        let directory = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let own = open_below(self.root.as_fd(), container.as_str(), directory, Resolve::BeneathNoLinks)?;
        let open = |name| open_below(own.as_fd(), name, directory, Resolve::BeneathNoLinks);
        let layer = measure(open("fs")?.as_fd())?;
        match open(VOLUMES) {
            Err(error) if error.errno == Errno::ENOENT => Ok(layer),
            volumes => Ok(layer + measure(volumes?.as_fd())?),
        }
    }

    /// What the last walk found, from memory alone; `None` before the first.
    #[must_use]
    pub fn known_usage(&self, container: &ContainerId) -> Option<Usage> {
        lock(&self.measured).get(container).map(|(usage, _at)| *usage)
    }

    fn names(&self) -> wharf_sys::Result<Vec<OsString>> {
        list_names(self.root.as_fd())
    }

    fn sweep(&self) -> wharf_sys::Result<()> {
        for name in self.names()? {
            if name.to_str().is_some_and(|name| name.starts_with('.') && name != TRASH) {
                self.trash.discard(self.root.as_fd(), &name)?;
            }
        }
        Ok(())
    }
}
