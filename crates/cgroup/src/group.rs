//! One cgroup: a directory in each hierarchy, one of which tracks the processes.
//!
//! It is a name, not a handle: the cgroup need not exist, and may be removed by others at any moment. That it is gone
//! is no error where nothing is left to do.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::delegate;
use crate::detect::{Cgroups, Controller, Hierarchy, Kind, Version};
use crate::error::Error;
use crate::files;
use crate::home::Stray;
use crate::path::CgroupPath;
use crate::placement::Driver;
use crate::systemd;
use crate::systemd::units::{Scope, Slice};
use crate::tree::{Deadline, Tree, note};

/// How a new process enters a cgroup. Both parts are needed, each once; together they cover every hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The unified directory, to be opened and passed to clone3 with CLONE_INTO_CGROUP, so that the process is never
    /// outside. Set on hybrid and v2.
    pub directory: Option<PathBuf>,
    /// The `tasks` file of each v1 hierarchy, to which the process writes `0` while it has one thread. Empty where none
    /// is mounted.
    ///
    /// `cgroup.procs` would have the same effect, but for a write to it the kernel stops all forks and exits on the
    /// machine, which takes it about 10 ms. A thread that moves itself does not need that (since Linux 5.4).
    ///
    /// The freezer's comes last. A container may have frozen its own cgroup; a process that stops on entering it is in
    /// all others by then, and charged to the container.
    pub tasks: Vec<PathBuf>,
}

/// How much of a cgroup was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    /// Everything.
    All,
    /// Some of the cgroups below it: the next call goes on.
    Some,
}

/// What becomes of a cgroup in which processes are found that are not its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum IfUsed {
    /// It is removed, and they are moved where they belong.
    Removed,
    /// It is kept.
    Kept,
}

/// The cgroup of a pod or container, in every hierarchy. Its path and little else: there is one for each container.
#[derive(Debug, Clone)]
pub struct Cgroup {
    path: CgroupPath,
    cgroups: Cgroups,
    /// Whether its processes are in another one below it: see `enclosed`.
    is_enclosed: bool,
}

impl Cgroup {
    pub(crate) fn new(path: CgroupPath, cgroups: Cgroups) -> Self {
        Self { path, cgroups, is_enclosed: false }
    }

    /// The same cgroup, with its processes in another one below it that has the same limits. So a container that is the
    /// host's root user cannot lift its limits, whatever it mounts.
    #[must_use]
    pub fn enclosed(self) -> Self {
        Self { is_enclosed: true, ..self }
    }

    /// The cgroup below it that has its processes, if they are not in it itself.
    pub(crate) fn inside(&self) -> Option<Self> {
        self.is_enclosed.then(|| Self::new(self.path.inside(), self.cgroups.clone()))
    }

    /// The path of the cgroup that has its processes.
    #[must_use]
    pub fn path_of_processes(&self) -> CgroupPath {
        self.inside().map_or_else(|| self.path.clone(), |inside| inside.path)
    }

    /// The path it was made with.
    #[must_use]
    pub fn path(&self) -> &CgroupPath {
        &self.path
    }

    /// The hierarchies it is in.
    pub(crate) fn cgroups(&self) -> &Cgroups {
        &self.cgroups
    }

    /// Whether its container can manage the cgroups below it: [`Cgroups::can_delegate`].
    #[must_use]
    pub fn can_be_delegated(&self) -> bool {
        self.cgroups.can_delegate()
    }

    /// Gives the cgroup that has the processes to a user, who may then make cgroups below it, within bounds, and move
    /// the processes there. Its limits are not given away; but a process that is root on the host can change them from
    /// below, unless the cgroup is enclosed.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn delegate(&self, uid: u32) -> Result<(), Error> {
        let Some(directory) = self.unified() else { return Ok(()) };
        let Some(inside) = self.inside() else {
            delegate::bound(&directory, 0)?;
            return delegate::to(&directory, uid);
        };
        delegate::bound(&directory, 1)?;
        inside.delegate(uid)
    }

    /// How a process enters.
    #[must_use]
    pub fn entry(&self) -> Entry {
        if let Some(inside) = self.inside() {
            return inside.entry();
        }
        let mut hierarchies: Vec<_> = self.v1().collect();
        hierarchies.sort_by_key(|hierarchy| hierarchy.controllers.contains(&Controller::Freezer));
        let tasks = hierarchies.into_iter().map(|hierarchy| self.directory(hierarchy).join("tasks"));
        Entry { directory: self.unified(), tasks: tasks.collect() }
    }

    /// The directory with its processes in each v1 hierarchy, by the name of that hierarchy's mount; empty on v2, even
    /// if a hierarchy without controllers is mounted there.
    #[must_use]
    pub fn v1_directories(&self) -> Vec<(String, PathBuf)> {
        if self.cgroups.version() == Version::V2 {
            return Vec::new();
        }
        if let Some(inside) = self.inside() {
            return inside.v1_directories();
        }
        let name = |mount: &Path| mount.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.v1().map(|hierarchy| (name(&hierarchy.mount), self.directory(hierarchy))).collect()
    }

    /// The mount point of the unified hierarchy, if there is one.
    #[must_use]
    pub fn unified_mount(&self) -> Option<&Path> {
        self.cgroups.unified().map(|hierarchy| hierarchy.mount.as_path())
    }

    /// Kills every process, those in sub-cgroups included: at once where there is `cgroup.kill`, else within
    /// `patience`. The processes may take a moment to exit: see [`Cgroup::is_populated`]. Frozen processes are thawed.
    ///
    /// # Errors
    /// [`Error::Late`] if some are left, [`Error::Parse`] if the kernel lists a process that this process cannot see.
    pub fn kill(&self, patience: Duration) -> Result<(), Error> {
        if !self.is_populated()? {
            return Ok(());
        }
        // What cannot be thawed is killed all the same, and ends when it thaws.
        note(self.thaw_by_v1());
        note(self.gather());
        self.tracker().kill(patience)?;
        note(self.thaw_by_v1());
        Ok(())
    }

    /// Moves its processes that are in the freezer of another container, which has lent a descriptor of it, to its own.
    /// Moved to a cgroup that is not frozen, they thaw.
    fn gather(&self) -> Result<(), Error> {
        let freezer = self.cgroups.home(Controller::Freezer).filter(|freezer| freezer.kind == Kind::V1);
        let Some(freezer) = freezer else { return Ok(()) };
        let own = self.tree(freezer).pids()?;
        let entered = self.path_of_processes().under(&freezer.mount).join("cgroup.procs");
        for pid in self.tracker().pids()?.difference(&own) {
            note(files::write(&entered, &pid.to_string()));
        }
        Ok(())
    }

    /// Thaws what v1's freezer has frozen, which holds back even SIGKILL, also on hybrid. A container may have frozen
    /// the one that has its processes, and others that it made below that.
    fn thaw_by_v1(&self) -> Result<(), Error> {
        match self.home(Controller::Freezer) {
            Some((kind @ Kind::V1, directory)) => Tree { kind, directory }.thaw_all(),
            _ => Ok(()),
        }
    }

    /// Waits until no process is left in the cgroup and below it.
    ///
    /// # Errors
    /// [`Error::Late`] if some are left after `patience`.
    pub fn await_empty(&self, patience: Duration) -> Result<(), Error> {
        self.tracker().await_empty(&Deadline::after(patience))
    }

    /// Whether any process is in the cgroup or below it; false if the cgroup is gone.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Parse`].
    pub fn is_populated(&self) -> Result<bool, Error> {
        self.tracker().is_populated()
    }

    /// The pids in the cgroup and below it, as this process's PID namespace has them, sorted; empty if the cgroup is
    /// gone.
    ///
    /// # Errors
    /// [`Error::Parse`] for a line that is not a positive number, which includes a process outside this PID namespace.
    pub fn pids(&self) -> Result<Vec<i32>, Error> {
        self.tracker().pids().map(|pids| pids.into_iter().collect())
    }

    /// The same in every hierarchy: on v1 and hybrid hosts, others have processes that are in some of them alone.
    ///
    /// # Errors
    /// Those of [`Cgroup::pids`].
    pub fn pids_in_all(&self) -> Result<Vec<i32>, Error> {
        let mut all = BTreeSet::new();
        for hierarchy in self.cgroups.hierarchies() {
            all.append(&mut self.tree(hierarchy).pids()?);
        }
        Ok(all.into_iter().collect())
    }

    /// Freezes every process until [`Cgroup::thaw`].
    ///
    /// # Errors
    /// [`Error::Late`] if not all are frozen in time; all are thawed again.
    pub fn freeze(&self, patience: Duration) -> Result<(), Error> {
        self.tracker().freeze(patience)
    }

    /// Thaws the processes.
    ///
    /// # Errors
    /// [`Error::Late`] if they are still frozen, for example because an ancestor is.
    pub fn thaw(&self, patience: Duration) -> Result<(), Error> {
        self.tracker().thaw(patience)
    }

    /// Removes the cgroup and the cgroups that the container made below it, in every hierarchy, once it has no process
    /// where its processes are looked for, and the scope that it is in. A process of something else that is in it in
    /// another hierarchy is moved where it belongs. A slice of systemd's is ended with all that is in it. Success if
    /// there is nothing to remove.
    ///
    /// # Errors
    /// [`Error::Late`] if processes are left after `patience`; [`Error::Systemd`] if a slice cannot be ended.
    pub fn remove(&self, patience: Duration) -> Result<(), Error> {
        self.remove_counted(patience, IfUsed::Removed, &mut 0)
    }

    /// The same for a cgroup in which others may have theirs: as long as there is a process in any hierarchy, none is
    /// killed, and it stays.
    ///
    /// # Errors
    /// Those of [`Cgroup::remove`].
    pub fn remove_unused(&self, patience: Duration) -> Result<(), Error> {
        self.remove_counted(patience, IfUsed::Kept, &mut 0)
    }

    /// The same, but if `patience` ends while the cgroups below are being removed, that is a success, too: where it has
    /// no bound, a container may have made so many that their removal takes long.
    ///
    /// # Errors
    /// [`Error::Late`] if processes are left after `patience`, or none of the cgroups was removed.
    pub fn remove_some(&self, patience: Duration) -> Result<Removed, Error> {
        let mut removed = 0;
        match self.remove_counted(patience, IfUsed::Removed, &mut removed) {
            Err(Error::Late { .. }) if removed > 0 => Ok(Removed::Some),
            all => all.map(|()| Removed::All),
        }
    }

    fn remove_counted(&self, patience: Duration, if_used: IfUsed, removed: &mut usize) -> Result<(), Error> {
        let deadline = Deadline::after(patience);
        if if_used == IfUsed::Kept {
            let mut trees = self.cgroups.hierarchies().iter().map(|hierarchy| self.tree(hierarchy));
            trees.try_for_each(|tree| tree.await_empty(&deadline))?;
        }
        let slice = Slice::of(&self.path).filter(|_slice| self.cgroups.driver() == Driver::Systemd);
        if let Some(slice) = slice {
            return systemd::end_slice(&self.cgroups, &slice, &self.path, &deadline);
        }
        self.tracker().await_empty(&deadline)?;
        for hierarchy in self.cgroups.tracker_first() {
            let evict = |pid| match if_used {
                IfUsed::Removed => self.cgroups.bring_home(pid, hierarchy),
                IfUsed::Kept => Stray::Settled,
            };
            self.tree(hierarchy).remove(&deadline, &evict, removed)?;
            if hierarchy.is_ours_alone {
                self.leave_parent(hierarchy);
            }
        }
        self.scope().map_or(Ok(()), |scope| systemd::end_scope(&self.cgroups, &scope, &deadline))
    }

    /// Removes the cgroup around this one, if that is empty: a pod's, which the kubelet has in no such hierarchy. What
    /// is made in it at the same time is made anew.
    fn leave_parent(&self, hierarchy: &Hierarchy) {
        let own = self.directory(hierarchy);
        if let Some(parent) = own.parent().filter(|parent| *parent != hierarchy.mount)
            && let Err(error) = std::fs::remove_dir(parent)
        {
            tracing::trace!(%error, parent = %parent.display(), "not removed from a hierarchy");
        }
    }

    /// The scope that it is in, if there is one for it.
    pub(crate) fn scope(&self) -> Option<Scope> {
        Scope::around(&self.path)
    }

    /// The file whose line `oom_kill N` counts the OOM-killed processes of this cgroup and, on v2, its descendants;
    /// `None` on a node without the memory controller.
    ///
    /// On v2 this is `memory.events`, not `memory.events.local`: a container may have moved its processes to cgroups
    /// below. On v1 a kill counts only in the cgroup of the killed process, whichever limit was the reason.
    #[must_use]
    pub fn oom_file(&self) -> Option<PathBuf> {
        match (self.home(Controller::Memory)?, self.inside()) {
            ((Kind::Unified, directory), _) => Some(directory.join("memory.events")),
            ((Kind::V1, _), Some(inside)) => inside.oom_file(),
            ((Kind::V1, directory), None) => Some(directory.join("memory.oom_control")),
        }
    }

    /// The count in [`Cgroup::oom_file`] since the cgroup was made; `None` on a node without the memory controller.
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

    /// The directory whose `cgroup.kill`, or `cgroup.procs` of it and of those below it on a kernel without that,
    /// reaches every process. It is the unified one on hybrid and v2.
    #[must_use]
    pub fn kill_directory(&self) -> PathBuf {
        self.directory(self.cgroups.tracker())
    }

    /// The directory of a controller's files for this cgroup.
    pub(crate) fn home(&self, controller: Controller) -> Option<(Kind, PathBuf)> {
        let hierarchy = self.cgroups.home(controller)?;
        Some((hierarchy.kind, self.directory(hierarchy)))
    }

    /// The unified directory.
    pub(crate) fn unified(&self) -> Option<PathBuf> {
        self.cgroups.unified().map(|hierarchy| self.directory(hierarchy))
    }

    fn v1(&self) -> impl Iterator<Item = &Hierarchy> {
        self.cgroups.hierarchies().iter().filter(|hierarchy| hierarchy.kind == Kind::V1)
    }

    fn directory(&self, hierarchy: &Hierarchy) -> PathBuf {
        self.path.under(&hierarchy.mount)
    }

    fn tree(&self, hierarchy: &Hierarchy) -> Tree {
        Tree { kind: hierarchy.kind, directory: self.directory(hierarchy) }
    }

    /// What tells of its processes, and reaches them.
    fn tracker(&self) -> Tree {
        self.tree(self.cgroups.tracker())
    }
}
