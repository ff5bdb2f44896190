//! The directory of all snapshots: making, listing, measuring and removing them.
//!
//! A snapshot is made under another name and renamed, so each that is listed is whole. Its size is measured in the
//! background, a stretch at a time, and remembered as long as nothing can have run in the container.

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
use wharf_types::{ContainerId, ErrorKind, Failure, IdMaps};

use crate::trash::{Trash, ensure_directory, list_names, make_private};
use crate::tree::{Progress, Usage, Walk, remove_tree};

const TRASH: &str = ".trash";
const VOLUMES: &str = "volumes";
/// How many directories and files all walks that are to be gone on with may remember, at some 32 bytes each. Beyond
/// that, a container's walk begins again in the next round.
const REMEMBERED_LIMIT: usize = 4 << 20;

/// Why a snapshot could not be made, measured or removed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} the snapshot {name}")]
pub struct SnapshotError {
    /// What was tried.
    pub what: &'static str,
    /// The snapshot's directory, or that of all snapshots.
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

/// The container's own two directories of its overlay mount. Both are on one file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// What the container has written.
    pub upper: PathBuf,
    /// Overlayfs's work directory.
    pub work: PathBuf,
}

/// What has run in a container, and so may have written to its snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// It is not known.
    Unknown,
    /// It has used this much CPU time until now.
    Until {
        /// The time in nanoseconds.
        cpu_ns: u64,
    },
    /// Nothing will run any more.
    Over,
}

/// A measurement.
#[derive(Debug)]
struct Measured {
    /// While another one is going on, the larger of both.
    usage: Usage,
    at: Instant,
    /// As it was when the measurement began.
    activity: Activity,
    /// The walk, if that has not come to its end.
    rest: Option<Walk>,
}

/// All snapshots of a node.
#[derive(Debug)]
pub struct Snapshots {
    path: PathBuf,
    root: OwnedFd,
    trash: Trash,
    /// The last measurement of each. Not held while a tree is measured.
    measured: Mutex<HashMap<ContainerId, Measured>>,
}

impl Measured {
    /// Whether it still holds, unless somebody outside the container has written to its snapshot within `max_age`.
    fn holds(&self, activity: Activity, max_age: Duration) -> bool {
        self.rest.is_none()
            && self.activity == activity
            && match activity {
                Activity::Unknown => false,
                Activity::Until { .. } => self.at.elapsed() <= max_age,
                Activity::Over => true,
            }
    }
}

impl Snapshots {
    /// Opens the directory and makes it if it does not exist. What a crash left half made or half removed is removed in
    /// the background.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn open(path: &Path) -> Result<Self, SnapshotError> {
        let failed = |source| SnapshotError { what: "open", name: path.display().to_string(), source };
        std::fs::create_dir_all(path).named("mkdir", || path.display().to_string()).map_err(failed)?;
        let root = open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY).map_err(failed)?;
        make_private(&root, path).map_err(failed)?;
        let trash = Trash::open(root.as_fd(), TRASH).map_err(failed)?;
        let snapshots = Self { path: path.to_owned(), root, trash, measured: Mutex::new(HashMap::new()) };
        snapshots.sweep().map_err(failed)?;
        Ok(snapshots)
    }

    /// Makes a container's snapshot, or returns the one that exists. The root of a merged overlay shows the attributes
    /// of the upper directory, so the mode and owner of `top`, the root of the image's topmost layer, are copied to it.
    /// In a user namespace with `ids` the owner is what these are on the host, as for all that the container will
    /// write.
    ///
    /// # Errors
    /// The kernel's error; EOVERFLOW if the user namespace does not have the owner.
    pub fn prepare(
        &self,
        container: &ContainerId,
        top: &Path,
        ids: Option<IdMaps>,
    ) -> Result<Snapshot, SnapshotError> {
        let snapshot = self.at(container);
        let half = OsString::from(format!(".{container}"));
        let made = self.make_half(&half, top, ids).and_then(|usage| {
            match wharf_sys::fs::rename_new(&self.root, &half, &self.root, container.as_str()) {
                Ok(()) => {
                    let activity = Activity::Unknown;
                    self.remember(container, Measured { usage, at: Instant::now(), activity, rest: None });
                    Ok(())
                }
                Err(Errno::EEXIST) => remove_tree(self.root.as_fd(), &half),
                Err(errno) => Err(wharf_sys::Error::new("rename", container.to_string(), errno)),
            }
        });
        if made.is_err() {
            // What cannot be removed now is removed at the next start.
            drop(self.trash.discard(self.root.as_fd(), &half));
        }
        made.map_err(self.failed("make", container))?;
        Ok(snapshot)
    }

    /// Makes the directories, and returns the disk usage of the upper one.
    fn make_half(&self, half: &OsStr, top: &Path, ids: Option<IdMaps>) -> wharf_sys::Result<Usage> {
        let directory = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let like = fstat(open(top, directory)?).named("fstat", || top.display().to_string())?;
        remove_tree(self.root.as_fd(), half)?;
        mkdirat(&self.root, half, Mode::S_IRWXU).named("mkdirat", || half.display().to_string())?;
        let own = open_below(self.root.as_fd(), half, directory, Resolve::BeneathNoLinks)?;
        for name in ["fs", "work"] {
            ensure_directory(own.as_fd(), name)?;
        }
        let upper = open_below(own.as_fd(), "fs", directory, Resolve::BeneathNoLinks)?;
        let (user, group) = on_host((like.st_uid, like.st_gid), ids).named("fchown", || "fs".into())?;
        let owner = (Uid::from_raw(user), Gid::from_raw(group));
        fchown(&upper, Some(owner.0), Some(owner.1)).named("fchown", || "fs".into())?;
        fchmod(&upper, Mode::from_bits_truncate(like.st_mode & 0o7777)).named("fchmod", || "fs".into())?;
        Ok(Usage::of(&fstat(&upper).named("fstat", || "fs".into())?))
    }

    /// Makes an empty directory for one of the image's volumes beside the upper directory of a container's snapshot. It
    /// is removed with the snapshot and counts as part of it.
    ///
    /// # Errors
    /// The kernel's error; ENOENT if there is no snapshot.
    pub fn volume(&self, container: &ContainerId, number: usize) -> Result<PathBuf, SnapshotError> {
        let directory = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let number = number.to_string();
        open_below(self.root.as_fd(), container.as_str(), directory, Resolve::BeneathNoLinks)
            .and_then(|own| {
                ensure_directory(own.as_fd(), VOLUMES)?;
                let volumes = open_below(own.as_fd(), VOLUMES, directory, Resolve::BeneathNoLinks)?;
                ensure_directory(volumes.as_fd(), &number)
            })
            .map_err(self.failed("add to", container))?;
        Ok(self.volumes(container).join(number))
    }

    /// The directory that holds a container's volumes by number, whether it exists or not.
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

    /// Removes a container's snapshot; its disk space is freed in the background. A missing snapshot is success.
    ///
    /// # Errors
    /// The kernel's error; EBUSY if the directory itself is a mount point.
    pub fn remove(&self, container: &ContainerId) -> Result<(), SnapshotError> {
        self.trash
            .discard(self.root.as_fd(), OsStr::new(container.as_str()))
            .map_err(self.failed("remove", container))?;
        // Only after the rename: a walk that ends in between checks that the snapshot exists before it stores its
        // result.
        lock(&self.measured).remove(container);
        Ok(())
    }

    /// The containers that have a snapshot.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn list(&self) -> Result<Vec<ContainerId>, SnapshotError> {
        let name = || self.path.display().to_string();
        let names = self.names().map_err(|source| SnapshotError { what: "list", name: name(), source })?;
        Ok(names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect())
    }

    /// The disk usage of a container's snapshot: the last measurement, if nothing has run in the container since and it
    /// is at most `max_age` old, or else that of a walk. The walk takes one stretch; if that is not enough, the next
    /// call goes on with it, and until it has come to its end, the figure is the last one or, if that is larger, what
    /// it has seen. `activity` is what has run until now.
    ///
    /// # Errors
    /// The kernel's error; ENOENT if there is no snapshot.
    pub fn usage(
        &self,
        container: &ContainerId,
        activity: Activity,
        max_age: Duration,
        stretch: Duration,
    ) -> Result<Usage, SnapshotError> {
        let (known, begun) = match lock(&self.measured).get_mut(container) {
            Some(measured) if measured.holds(activity, max_age) => return Ok(measured.usage),
            Some(measured) => (measured.usage, measured.rest.take().map(|walk| (walk, measured.activity))),
            None => (Usage::default(), None),
        };
        let failed = self.failed("measure", container);
        let (mut walk, activity) = match begun {
            Some(begun) => begun,
            None => (self.walk(container).map_err(failed)?, activity),
        };
        let (usage, activity, rest) = match walk.go_on(stretch).map_err(failed)? {
            Progress::Whole(usage) => (usage, activity, None),
            Progress::Part(usage) if self.has_room_for(&walk) => (usage.max(known), activity, Some(walk)),
            Progress::Part(usage) | Progress::GivenUp(usage) => (usage.max(known), Activity::Unknown, None),
        };
        self.remember(container, Measured { usage, at: Instant::now(), activity, rest });
        Ok(usage)
    }

    /// The failure of a call about a container's snapshot.
    fn failed(
        &self,
        what: &'static str,
        container: &ContainerId,
    ) -> impl Fn(wharf_sys::Error) -> SnapshotError + Copy {
        move |source| {
            let name = self.path.join(container.as_str()).display().to_string();
            SnapshotError { what, name, source }
        }
    }

    /// Whether a walk may be kept for the next stretch, with what it remembers.
    fn has_room_for(&self, walk: &Walk) -> bool {
        let kept = lock(&self.measured);
        let kept: usize =
            kept.values().filter_map(|measured| measured.rest.as_ref()).map(Walk::remembered).sum();
        kept + walk.remembered() <= REMEMBERED_LIMIT
    }

    fn remember(&self, container: &ContainerId, new: Measured) {
        let mut measured = lock(&self.measured);
        if self.at(container).upper.exists() {
            measured.insert(container.clone(), new);
        }
    }

    /// A walk through what a container has written.
    fn walk(&self, container: &ContainerId) -> wharf_sys::Result<Walk> {
        let directory = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let own = open_below(self.root.as_fd(), container.as_str(), directory, Resolve::BeneathNoLinks)?;
        let open = |name| open_below(own.as_fd(), name, directory, Resolve::BeneathNoLinks);
        let mut tops = vec![open("fs")?];
        match open(VOLUMES) {
            Err(error) if error.errno == Errno::ENOENT => {}
            volumes => tops.push(volumes?),
        }
        Ok(Walk::new(tops))
    }

    /// The last figure, from memory; `None` before the first.
    #[must_use]
    pub fn known_usage(&self, container: &ContainerId) -> Option<Usage> {
        lock(&self.measured).get(container).map(|measured| measured.usage)
    }

    fn names(&self) -> wharf_sys::Result<Vec<OsString>> {
        list_names(self.root.as_fd())
    }

    fn sweep(&self) -> wharf_sys::Result<()> {
        for name in self.names()? {
            if name.to_str().is_some_and(|name| name.starts_with('.') && name != TRASH) {
                self.trash.discard_remains(self.root.as_fd(), &name);
            }
        }
        Ok(())
    }
}

/// The owner of a layer's file, as the host has it for a container with these ids.
fn on_host((user, group): (u32, u32), ids: Option<IdMaps>) -> nix::Result<(u32, u32)> {
    let Some(ids) = ids else { return Ok((user, group)) };
    ids.users.on_host(user).zip(ids.groups.on_host(group)).ok_or(Errno::EOVERFLOW)
}
