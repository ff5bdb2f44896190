//! Supervisors whose pod's directory is gone, because somebody has emptied the state directory. Nothing else is known
//! of such a pod. Whoever wanted it will make it anew, and its containers must not run beside the new ones.
//!
//! They are found in their cgroup, by the directory that each has as its argument. On v1 alone there is no such cgroup,
//! and they stay. A path says nothing about another mount namespace, or if the file system is not mounted: only that
//! the file of a supervisor's log has been removed proves that its directory has.
#![expect(clippy::disallowed_methods, reason = "only `blocking` leads here")]

use std::ffi::OsStr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use wharf_cgroup::{CgroupPath, Cgroups};
use wharf_sys::process::{self, open_pidfd};
use wharf_types::{ErrorKind, Failure as _, PodId, Stage as _, StageError, chain};

use crate::cgroup::NAME;
use crate::program::{PROGRAM, Program};

/// How long killed processes may take to exit.
const PATIENCE: Duration = Duration::from_secs(10);

/// A supervisor of a pod of which nothing is known.
struct Orphan {
    pod: PodId,
    pid: i32,
    process: OwnedFd,
    directory: Directory,
}

/// What has become of a pod's directory that is not there.
#[derive(Debug, PartialEq, Eq)]
enum Directory {
    Removed,
    /// It may exist where this process cannot see it.
    Unseen,
}

impl Program {
    /// Kills supervisors of pods that have been removed from this directory, with all that they supervise. What cannot
    /// be ended is logged; the next daemon tries again. Returns the pods that may still have a directory, elsewhere.
    pub fn end_orphans(&self, pods: &Path) -> Vec<PodId> {
        let supervisors = supervisors(&self.cgroups, &self.cgroup_parent).unwrap_or_else(|error| {
            tracing::warn!(error = chain(&error), "supervisors of pods without a record may be left");
            Vec::new()
        });
        let mut unseen = Vec::new();
        for orphan in supervisors.into_iter().filter_map(|pid| orphan(pid, pods)) {
            let pod = orphan.pod.short();
            if orphan.directory == Directory::Unseen {
                tracing::warn!(
                    pod,
                    pid = orphan.pid,
                    directory = %pods.display(),
                    "a pod runs whose directory exists, but not here: mount the file system of the state directory again, \
                     and restart wharfd"
                );
                unseen.push(orphan.pod);
                continue;
            }
            match orphan.end(&self.cgroups, &self.cgroup_parent) {
                Ok(()) => tracing::warn!(
                    pod,
                    "ended a pod whose directory somebody has removed, with its containers"
                ),
                Err(error) => tracing::warn!(
                    pod,
                    error = chain(&error),
                    "processes of a pod whose directory somebody has removed may be left"
                ),
            }
        }
        unseen
    }

    /// Kills the supervisor of a pod's directory in which somebody has removed its socket: nobody can reach it any
    /// more, and what it would have to be told would be told to nobody. None is fine.
    ///
    /// # Errors
    /// The supervisors cannot be listed, or this one cannot be killed.
    pub fn end_unreachable(&self, directory: &Path) -> Result<(), StageError> {
        for pid in supervisors(&self.cgroups, &self.cgroup_parent)? {
            if let Some(process) = supervisor_of(pid, |found| found == directory) {
                tracing::warn!(
                    pid,
                    directory = %directory.display(),
                    "a pod's supervisor cannot be reached, because its socket has been removed: ending it"
                );
                process::signal(process.as_fd(), 9).stage("killing a supervisor")?;
            }
        }
        Ok(())
    }
}

/// The pids of all supervisors, of whatever state directory.
fn supervisors(cgroups: &Cgroups, parent: &str) -> Result<Vec<i32>, StageError> {
    const STAGE: &str = "listing the supervisors";
    let path = CgroupPath::new(parent).and_then(|parent| parent.child(NAME)).stage(STAGE)?;
    let cgroup = match cgroups.open(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.stage(STAGE)?,
    };
    let Some(directory) = cgroup.entry().directory else { return Ok(Vec::new()) };
    let processes = match std::fs::read_to_string(directory.join("cgroup.procs")) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        other => other.stage(STAGE)?,
    };
    Ok(processes.lines().filter_map(|line| line.parse().ok()).collect())
}

/// The process, if it is a supervisor of a pod that should be in this directory and is not.
fn orphan(pid: i32, pods: &Path) -> Option<Orphan> {
    let mut pod = None;
    let process = supervisor_of(pid, |directory| {
        pod = directory.file_name().and_then(|name| name.to_str()?.parse().ok());
        directory.parent() == Some(pods) && matches!(directory.try_exists(), Ok(false))
    })?;
    let pod = pod?;
    let log = std::fs::metadata(format!("/proc/{pid}/fd/2")).ok()?;
    let directory = if log.nlink() == 0 { Directory::Removed } else { Directory::Unseen };
    Some(Orphan { pod, pid, process, directory })
}

/// The process, if it is the supervisor of such a directory. The pidfd comes first: all else is about that process, or
/// the process is gone.
fn supervisor_of(pid: i32, is_meant: impl FnOnce(&Path) -> bool) -> Option<OwnedFd> {
    let process = open_pidfd(pid).ok()?;
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    is_meant(&pod_directory(&line)?).then_some(process)
}

/// The directory in a supervisor's command line.
fn pod_directory(line: &[u8]) -> Option<PathBuf> {
    let mut words = line.split(|&byte| byte == 0);
    let directory = words.next().filter(|name| *name == PROGRAM.to_bytes()).and_then(|_name| words.next())?;
    Some(PathBuf::from(OsStr::from_bytes(directory)))
}

impl Orphan {
    /// Its children are the first processes of containers, and a container ends with its first process.
    fn end(&self, cgroups: &Cgroups, parent: &str) -> Result<(), StageError> {
        const STAGE: &str = "killing the containers of a supervisor";
        let children =
            std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.pid)).stage(STAGE)?;
        let children = children.split_whitespace().filter_map(|pid| open_pidfd(pid.parse().ok()?).ok());
        let children: Vec<OwnedFd> = children.collect();
        // First, so that it makes no others.
        process::signal(self.process.as_fd(), 9).stage("killing a supervisor")?;
        for child in children {
            match process::signal(child.as_fd(), 9) {
                Err(error) if error.errno == nix::errno::Errno::ESRCH => {}
                killed => killed.stage(STAGE)?,
            }
        }
        // The cgroups of a kubelet's pods are below one of the kubelet's, which removes them.
        let own = CgroupPath::new(parent).and_then(|parent| parent.child(self.pod.as_str())).stage(STAGE)?;
        match cgroups.open(&own) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error).stage(STAGE),
            Ok(cgroup) => cgroup.remove(PATIENCE).stage("removing the pod's cgroup"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_supervisors_command_line_names_its_directory() {
        let of = |line: &[u8]| pod_directory(line);
        assert_eq!(of(b"wharf-shim\0/run/wharf/pods/0123\0"), Some("/run/wharf/pods/0123".into()));
        assert_eq!((of(b"wharf-shim"), of(b"sh\0/run/wharf/pods/0123\0"), of(b"")), (None, None, None));
    }

    #[test]
    fn a_process_that_is_no_supervisor_is_no_orphan() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(orphan(own, Path::new("/run/wharf/pods")).is_none());
    }
}
