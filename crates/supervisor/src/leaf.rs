//! An exec's own cgroup: a leaf, as the kernel's documentation calls a cgroup with processes and none below it. It is
//! below its container's, and everything that the command starts is reached through it.
//!
//! It has no limits of its own. A command that leaves a process running leaves its cgroup, too; that is removed with
//! the container at the latest.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use wharf_isolation::CgroupPlan;
use wharf_sys::error::Named as _;
use wharf_sys::{Error, Result};

use crate::diagnostics::OrWarn as _;
use crate::failure::Failure;

/// The cgroup of an exec that is being made.
#[derive(Debug)]
pub(crate) struct Leaf {
    pub(crate) path: PathBuf,
    entry: Entry,
}

/// The cgroup, opened in the way in which it is entered.
#[derive(Debug)]
enum Entry {
    /// In the unified hierarchy: the exec is cloned into it.
    Directory(OwnedFd),
    /// In a v1 hierarchy: the exec enters it as its first step.
    Tasks(OwnedFd),
}

impl Leaf {
    /// Makes the cgroup below that of the container's first process.
    pub(crate) fn make(container: &CgroupPlan, exec: u64) -> Result<Self> {
        // cAdvisor takes any other cgroup for a container, with metrics of its own.
        let path = parent(container).join(format!("exec-{exec}.mount"));
        let made = std::fs::create_dir(&path);
        made.named("mkdir", || format!("{}, the exec's cgroup", path.display()))?;
        let opened = match container.directory {
            Some(_) => open_directory(&path).map(Entry::Directory),
            None => wharf_sys::fs::open(path.join("tasks"), OFlag::O_WRONLY).map(Entry::Tasks),
        };
        match opened {
            Ok(entry) => Ok(Self { path, entry }),
            Err(error) => {
                discard(&path);
                Err(error)
            }
        }
    }

    /// The directory to clone the exec into.
    pub(crate) fn directory(&self) -> Option<BorrowedFd<'_>> {
        match &self.entry {
            Entry::Directory(directory) => Some(directory.as_fd()),
            Entry::Tasks(_) => None,
        }
    }

    /// The file through which the exec enters.
    pub(crate) fn tasks(&self) -> Option<BorrowedFd<'_>> {
        match &self.entry {
            Entry::Tasks(tasks) => Some(tasks.as_fd()),
            Entry::Directory(_) => None,
        }
    }
}

/// Why no process could be cloned into an exec's cgroup. A container that has a threaded cgroup below its own has made
/// that a domain of threads, below which a new cgroup takes no process.
pub(crate) fn refused(error: Error) -> Failure {
    match error.errno {
        Errno::EOPNOTSUPP => Failure::precondition(format!(
            "the container has made threaded cgroups (cgroup.type) in its own, where no command can be executed until \
             they are removed: {error}"
        )),
        _ => error.into(),
    }
}

/// The directory of the container's first process in the hierarchy in which execs have cgroups of their own. It is that
/// through which the container is killed, or one below it.
pub(crate) fn parent(container: &CgroupPlan) -> &Path {
    let whole = container.kill_directory.as_path();
    let mut entered = container.entries.iter().filter_map(|entry| entry.as_path().parent());
    match &container.directory {
        Some(directory) => directory.as_path(),
        None => entered.find(|entered| entered.starts_with(whole)).unwrap_or(whole),
    }
}

/// Opens a cgroup of the unified hierarchy, to clone a process into it.
pub(crate) fn open_directory(path: &Path) -> Result<OwnedFd> {
    wharf_sys::fs::open(path, OFlag::O_PATH | OFlag::O_DIRECTORY)
}

/// Removes an exec's cgroup, unless that is gone already.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Removes the cgroup of an exec from which nothing can be left.
pub(crate) fn discard(path: &Path) {
    remove(path).or_warn(format_args!("removing cgroup {}", path.display()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use wharf_types::HostPath;

    fn plan(directory: &Path) -> CgroupPlan {
        let kill_directory = HostPath::new(directory.to_str().unwrap()).unwrap();
        CgroupPlan { directory: None, entries: Vec::new(), kill_directory, oom_file: None }
    }

    fn unified(directory: &Path) -> CgroupPlan {
        let plan = plan(directory);
        CgroupPlan { directory: Some(plan.kill_directory.clone()), ..plan }
    }

    #[test]
    fn a_cgroup_is_entered_by_its_directory_or_by_its_tasks() {
        let dir = tempfile::tempdir().unwrap();
        let leaf = Leaf::make(&unified(dir.path()), 3).unwrap();
        assert!(leaf.directory().is_some() && leaf.tasks().is_none() && leaf.path.ends_with("exec-3.mount"));
        let again = Leaf::make(&unified(dir.path()), 3).unwrap_err().to_string();
        assert!(again.contains("exec-3.mount, the exec's cgroup"), "{again}");
        discard(&leaf.path);
        assert!(!leaf.path.exists());
        remove(&leaf.path).unwrap();
    }

    #[test]
    fn a_cgroup_is_made_where_the_first_process_is() {
        let host = |path: &str| HostPath::new(path).unwrap();
        let of = |directory: Option<&str>, entries: &[&str]| CgroupPlan {
            directory: directory.map(host),
            entries: entries.iter().map(|entry| host(entry)).collect(),
            kill_directory: host("/freezer/c"),
            oom_file: None,
        };
        let v1 = |inside| of(None, &["/cpu/c/tasks", inside]);
        for (plan, expected) in [
            (of(Some("/unified/c/container"), &["/cpu/c/container/tasks"]), "/unified/c/container"),
            (v1("/freezer/c/tasks"), "/freezer/c"),
            (v1("/freezer/c/container/tasks"), "/freezer/c/container"),
            (v1("/freezer/cc/tasks"), "/freezer/c"),
        ] {
            assert_eq!(parent(&plan), Path::new(expected));
        }
    }

    #[test]
    fn a_container_with_threaded_cgroups_is_in_the_wrong_state() {
        let of = |errno| refused(Error::new("clone3", "exec-3", errno));
        let failure = of(Errno::EOPNOTSUPP);
        assert_eq!(failure.kind, wharf_wire::v1::failure::Kind::Precondition);
        assert!(failure.message.contains("cgroup.type"), "{}", failure.message);
        assert_eq!(of(Errno::ENOMEM).kind, wharf_wire::v1::failure::Kind::Exhausted);
    }

    #[test]
    fn a_cgroup_that_cannot_be_entered_is_removed_again() {
        // A directory that is not a cgroup has no tasks.
        let dir = tempfile::tempdir().unwrap();
        let error = Leaf::make(&plan(dir.path()), 3).unwrap_err().to_string();
        assert!(error.contains("exec-3.mount/tasks"), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
