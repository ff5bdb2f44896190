//! One cgroup: a directory in each hierarchy, of which one tracks its processes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::detect::{Controller, Hierarchy, Kind};
use crate::error::Error;
use crate::files;
use crate::path::CgroupPath;
use crate::tree::{Deadline, Tree};

/// The cgroup's directory in one hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Directory {
    pub(crate) kind: Kind,
    pub(crate) controllers: Vec<Controller>,
    pub(crate) path: PathBuf,
    /// Where the hierarchy is mounted.
    pub(crate) mount: PathBuf,
}

/// How a new process gets into a cgroup. Both parts, each once; together they cover every hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The unified directory, to be opened and passed to clone3 with CLONE_INTO_CGROUP: the process is never outside.
    /// Set on hybrid and v2.
    pub directory: Option<PathBuf>,
    /// The `tasks` of each v1 hierarchy, into each of which the process writes `0` while it has one thread. Empty on v2.
    ///
    /// `cgroup.procs` would do the same, but there the kernel stops all forks and exits of the machine, for which it waits
    /// about 10 ms; a thread that moves itself needs none of that (since Linux 5.4).
    pub tasks: Vec<PathBuf>,
}

/// The cgroup of a pod or container, in every hierarchy.
#[derive(Debug, Clone)]
pub struct Cgroup {
    path: CgroupPath,
    directories: Vec<Directory>,
    tracker: Tree,
}

impl Cgroup {
    pub(crate) fn new(path: CgroupPath, hierarchies: &[Hierarchy], tracker: &Hierarchy) -> Self {
        let directory = |hierarchy: &Hierarchy| Directory {
            kind: hierarchy.kind,
            controllers: hierarchy.controllers.clone(),
            path: path.under(&hierarchy.mount),
            mount: hierarchy.mount.clone(),
        };
        let directories = hierarchies.iter().map(directory).collect();
        let tracker = Tree { kind: tracker.kind, directory: path.under(&tracker.mount) };
        Self { path, directories, tracker }
    }

    /// The path it was made with.
    #[must_use]
    pub fn path(&self) -> &CgroupPath {
        &self.path
    }

    /// How a process gets in.
    #[must_use]
    pub fn entry(&self) -> Entry {
        let of_kind = |kind| self.directories.iter().filter(move |directory| directory.kind == kind);
        Entry {
            directory: of_kind(Kind::Unified).map(|directory| directory.path.clone()).next(),
            tasks: of_kind(Kind::V1).map(|directory| directory.path.join("tasks")).collect(),
        }
    }

    /// Its directory in each v1 hierarchy, by the name of that hierarchy's mount; none on v2.
    #[must_use]
    pub fn v1_directories(&self) -> Vec<(String, &Path)> {
        let v1 = self.directories.iter().filter(|directory| directory.kind == Kind::V1);
        let name = |mount: &Path| mount.file_name().unwrap_or_default().to_string_lossy().into_owned();
        v1.map(|directory| (name(&directory.mount), directory.path.as_path())).collect()
    }

    /// Where the unified hierarchy is mounted, if there is one.
    #[must_use]
    pub fn unified_mount(&self) -> Option<&Path> {
        let unified = self.directories.iter().find(|directory| directory.kind == Kind::Unified)?;
        Some(&unified.mount)
    }

    /// Kills every process, also in sub-cgroups; at once where there is `cgroup.kill`, else within `patience`. They may
    /// take a moment to end: see [`Cgroup::is_populated`]. Processes that were frozen are not any more.
    ///
    /// # Errors
    /// [`Error::Late`] if some are left, [`Error::Parse`] if the kernel names a process that this one cannot see.
    pub fn kill(&self, patience: Duration) -> Result<(), Error> {
        self.tracker.kill(patience)?;
        // On hybrid, v1's freezer keeps even SIGKILL waiting.
        if let Some((Kind::V1, directory)) = self.home(Controller::Freezer) {
            // It fails only if the cgroup is gone.
            drop(files::write(&directory.join("freezer.state"), "THAWED"));
        }
        Ok(())
    }

    /// Waits until no process is in the cgroup or below.
    ///
    /// # Errors
    /// [`Error::Late`] if some are left after `patience`.
    pub fn await_empty(&self, patience: Duration) -> Result<(), Error> {
        self.tracker.await_empty(&Deadline::after(patience))
    }

    /// Whether any process is in the cgroup or below; false if it is gone.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Parse`].
    pub fn is_populated(&self) -> Result<bool, Error> {
        self.tracker.is_populated()
    }

    /// The pids in the cgroup and below, in this process' PID namespace, sorted; none if it is gone.
    ///
    /// # Errors
    /// [`Error::Parse`] for a line that is not a positive number, also for a process of another PID namespace.
    pub fn pids(&self) -> Result<Vec<i32>, Error> {
        self.tracker.pids().map(|pids| pids.into_iter().collect())
    }

    /// Stops every process until [`Cgroup::thaw`].
    ///
    /// # Errors
    /// [`Error::Late`] if not all have stopped in time; then none stays stopped.
    pub fn freeze(&self, patience: Duration) -> Result<(), Error> {
        self.tracker.freeze(patience)
    }

    /// Lets the processes go on.
    ///
    /// # Errors
    /// [`Error::Late`] if they are still stopped, as when an ancestor is frozen.
    pub fn thaw(&self, patience: Duration) -> Result<(), Error> {
        self.tracker.thaw(patience)
    }

    /// Removes the cgroup and what the container made below it, in every hierarchy, once it has no process. Success if
    /// there is nothing to remove.
    ///
    /// # Errors
    /// [`Error::Late`] if processes are left after `patience`.
    pub fn remove(&self, patience: Duration) -> Result<(), Error> {
        let deadline = Deadline::after(patience);
        self.tracker.await_empty(&deadline)?;
        for directory in &self.directories {
            Tree { kind: directory.kind, directory: directory.path.clone() }.remove(&deadline)?;
        }
        Ok(())
    }

    /// The file with a line `oom_kill N`, which counts the processes of this cgroup and its descendants that were killed
    /// for want of memory; `None` on a node without the memory controller.
    ///
    /// On v2 this is `memory.events` and not `memory.events.local`: a container may have put its processes below.
    #[must_use]
    pub fn oom_file(&self) -> Option<PathBuf> {
        let (kind, directory) = self.home(Controller::Memory)?;
        Some(directory.join(if kind == Kind::V1 { "memory.oom_control" } else { "memory.events" }))
    }

    /// The count of [`Cgroup::oom_file`] since the cgroup was made; `None` on a node without it.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read, [`Error::Parse`] if the line is missing.
    pub fn oom_kills(&self) -> Result<Option<u64>, Error> {
        let Some(file) = self.oom_file() else { return Ok(None) };
        let text = files::read(&file)?;
        match files::keyed(&text, "oom_kill").and_then(|count| count.parse().ok()) {
            Some(count) => Ok(Some(count)),
            None => Err(Error::Parse { file, text }),
        }
    }

    /// The directory whose `cgroup.kill`, or where the kernel has none `cgroup.procs`, reaches every process; an exec's
    /// leaf is a child of it. Unified on hybrid and v2.
    #[must_use]
    pub fn kill_directory(&self) -> PathBuf {
        self.tracker.directory.clone()
    }

    /// Where a controller's files for this cgroup are.
    pub(crate) fn home(&self, controller: Controller) -> Option<(Kind, &Path)> {
        let directory =
            self.directories.iter().find(|directory| directory.controllers.contains(&controller))?;
        Some((directory.kind, &directory.path))
    }

    /// The unified directory.
    pub(crate) fn unified(&self) -> Option<&Path> {
        let directory = self.directories.iter().find(|directory| directory.kind == Kind::Unified)?;
        Some(&directory.path)
    }
}
