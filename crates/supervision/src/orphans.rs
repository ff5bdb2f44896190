//! Supervisors without a pod that the daemon could use. The pod's directory is gone, because somebody has emptied the
//! state directory: nothing else is known of such a pod; whoever wanted it will make it anew, and its containers must
//! not run beside the new ones. Or its records cannot be read: then it is ended only if people ask for that.
//!
//! They are found in their cgroup, by the directory that each has as its argument. On v1 alone there is no such cgroup,
//! and they stay. A path says nothing about another mount namespace, or if the file system is not mounted: only that
//! the file of a supervisor's log has been removed proves that its directory has.
#![expect(clippy::disallowed_methods, reason = "only `blocking` leads here")]

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use wharf_cgroup::{CgroupPath, Cgroups, Placement};
use wharf_state::Layout;
use wharf_state::records::ids;
use wharf_sys::error::Named as _;
use wharf_sys::fs::kernel_text;
use wharf_sys::process::{self, open_pidfd};
use wharf_sys::socket;
use wharf_types::{ContainerId, ErrorKind, Failure as _, PodId, Stage as _, StageError, chain};

use crate::program::{PROGRAM, Program};

/// How long killed processes may take to exit.
const PATIENCE: Duration = Duration::from_secs(10);

const LOOKING: &str = "looking for supervisors";

/// The supervisor of a pod in this directory.
struct Supervisor {
    pod: PodId,
    pid: i32,
    process: OwnedFd,
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
        let orphans = supervisors(&self.cgroups, &self.placement).and_then(|pids| orphans(&pids, pods));
        let orphans = orphans.unwrap_or_else(|error| {
            tracing::warn!(error = chain(&error), "supervisors of pods without a record may be left");
            Vec::new()
        });
        let mut unseen = Vec::new();
        for (orphan, directory) in orphans {
            let pod = orphan.pod.short();
            if directory == Directory::Unseen {
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
            match orphan.end(&self.cgroups, &self.placement) {
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

    /// The pods of this directory that have a supervisor.
    ///
    /// # Errors
    /// The supervisors, or the pods, cannot be listed.
    pub fn supervised(&self, pods: &Path) -> Result<Vec<PodId>, StageError> {
        self.supervisors_in(pods, |supervisor| supervisor.pod)
    }

    /// Kills the supervisor of a pod in this directory, with all that it supervises or has supervised. None is fine.
    ///
    /// # Errors
    /// It cannot be found or killed, or processes are left.
    pub fn end_with_containers(&self, pods: &Path, pod: &PodId) -> Result<(), StageError> {
        let mut meant = self.supervisors_in(pods, |supervisor| supervisor)?;
        meant.retain(|supervisor| supervisor.pod == *pod);
        meant.iter().try_for_each(|supervisor| supervisor.end(&self.cgroups, &self.placement))?;
        // Its supervisor may be gone.
        end_cgroup(&self.cgroups, &self.placement, pod)
    }

    /// Kills what is left of containers, in whichever cgroups a kubelet's requests have placed them, and removes these.
    ///
    /// # Errors
    /// Cgroups cannot be listed, or one of them is left.
    pub fn end_containers(&self, containers: &HashSet<ContainerId>) -> Result<(), StageError> {
        const STAGE: &str = "removing the cgroups of containers";
        let is_one = |name: &str| containers.contains(name);
        let found = self.cgroups.find(&is_one).stage(STAGE)?;
        let ends = found.iter().map(|path| {
            let cgroup = self.cgroups.at(path);
            cgroup.kill(PATIENCE).and_then(|()| cgroup.remove(PATIENCE)).stage(STAGE)
        });
        // Each of them, whatever becomes of the others.
        ends.fold(Ok(()), Result::and)
    }

    /// What is asked of those in the supervisors' cgroup, and of those that can be reached: on v1 alone there is no
    /// such cgroup.
    fn supervisors_in<T>(
        &self,
        pods: &Path,
        mut ask: impl FnMut(Supervisor) -> T,
    ) -> Result<Vec<T>, StageError> {
        let (mut answers, mut found) = (Vec::new(), HashSet::new());
        for pid in supervisors(&self.cgroups, &self.placement)? {
            if let Some(supervisor) = supervisor_in(pid, pods)? {
                found.insert(supervisor.pod.clone());
                answers.push(ask(supervisor));
            }
        }
        for pod in ids::<PodId>(pods).stage("listing the pods")? {
            // A connection that is not accepted stays, and there is room for few.
            if !found.contains(&pod)
                && let Some(pid) = reached(&Layout::supervisor_socket(&pods.join(pod.as_str())))?
            {
                answers.extend(supervisor_in(pid, pods)?.map(&mut ask));
            }
        }
        Ok(answers)
    }

    /// Kills the supervisor of a pod's directory in which somebody has removed its socket: nobody can reach it any
    /// more, and what it would have to be told would be told to nobody. None is fine.
    ///
    /// # Errors
    /// The supervisors cannot be listed, or this one cannot be killed.
    pub fn end_unreachable(&self, directory: &Path) -> Result<(), StageError> {
        for pid in supervisors(&self.cgroups, &self.placement)? {
            if let Some(process) = supervisor_of(pid, |found| found == directory)? {
                tracing::warn!(
                    pid,
                    directory = %directory.display(),
                    "a pod's supervisor cannot be reached, because its socket has been removed: ending it"
                );
                process::kill(process.as_fd()).stage("killing a supervisor")?;
            }
        }
        Ok(())
    }
}

/// The pids of all supervisors, of whatever state directory.
fn supervisors(cgroups: &Cgroups, placement: &Placement) -> Result<Vec<i32>, StageError> {
    const STAGE: &str = "listing the supervisors";
    let path = placement.supervisors().stage(STAGE)?;
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

/// Nothing if there is no such process, or it does not respond. What this process is short of says nothing about
/// another one.
fn if_there<T>(found: wharf_sys::Result<T>) -> Result<Option<T>, StageError> {
    const SHORT: [Errno; 4] = [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM, Errno::ENOBUFS];
    match found {
        Err(error) if SHORT.contains(&error.errno) => Err(error).stage(LOOKING),
        found => Ok(found.ok()),
    }
}

fn read(path: String) -> wharf_sys::Result<Vec<u8>> {
    std::fs::read(&path).named("read", || path)
}

/// Those of these processes that are supervisors of pods that should be in this directory and are not.
fn orphans(pids: &[i32], pods: &Path) -> Result<Vec<(Supervisor, Directory)>, StageError> {
    let mut orphans = Vec::new();
    for &pid in pids {
        if let Some(supervisor) = supervisor_in(pid, pods)?
            && let Some(directory) = lost_directory(&supervisor, pods)
        {
            orphans.push((supervisor, directory));
        }
    }
    Ok(orphans)
}

/// What has become of a pod's directory, if it is not there.
fn lost_directory(supervisor: &Supervisor, pods: &Path) -> Option<Directory> {
    let is_there = pods.join(supervisor.pod.as_str()).try_exists();
    let log = std::fs::metadata(format!("/proc/{}/fd/2", supervisor.pid)).ok()?;
    let directory = if log.nlink() == 0 { Directory::Removed } else { Directory::Unseen };
    matches!(is_there, Ok(false)).then_some(directory)
}

/// The pid of whoever listens on this socket.
fn reached(socket: &Path) -> Result<Option<i32>, StageError> {
    let process = socket::connect(socket).and_then(|socket| socket::peer_process(socket.as_fd()));
    if_there(process)?.map_or(Ok(None), |process| pid_of(&process))
}

/// The process, if it is the supervisor of a pod in this directory.
fn supervisor_in(pid: i32, pods: &Path) -> Result<Option<Supervisor>, StageError> {
    let mut pod = None;
    let process = supervisor_of(pid, |directory| {
        pod = directory.file_name().and_then(|name| name.to_str()?.parse().ok());
        directory.parent() == Some(pods)
    })?;
    Ok(process.and_then(|process| Some(Supervisor { pod: pod?, pid, process })))
}

/// The pid of a process that exists.
fn pid_of(process: &OwnedFd) -> Result<Option<i32>, StageError> {
    let shown = kernel_text(format!("/proc/self/fdinfo/{}", process.as_raw_fd())).stage(LOOKING)?;
    let pid = shown.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
    Ok(pid.filter(|pid| *pid > 0))
}

/// The process, if it is the supervisor of such a directory. The pidfd comes first: all else is about that process, or
/// the process is gone.
fn supervisor_of(pid: i32, is_meant: impl FnOnce(&Path) -> bool) -> Result<Option<OwnedFd>, StageError> {
    let Some(process) = if_there(open_pidfd(pid))? else { return Ok(None) };
    let line = if_there(read(format!("/proc/{pid}/cmdline")))?;
    let directory = line.and_then(|line| pod_directory(&line));
    Ok((directory.is_some_and(|directory| is_meant(&directory)) && leads_session(pid)?).then_some(process))
}

/// Whether a process leads a session, as each supervisor does. Its children that call other runtimes are beside it in
/// the cgroup, and have its command line.
fn leads_session(pid: i32) -> Result<bool, StageError> {
    const SESSION: usize = 6;
    let session = if_there(process::stat_field(pid, SESSION))?.flatten();
    Ok(session.is_some_and(|session| session == pid.to_string()))
}

/// The directory in a supervisor's command line.
fn pod_directory(line: &[u8]) -> Option<PathBuf> {
    let mut words = line.split(|&byte| byte == 0);
    let directory = words.next().filter(|name| *name == PROGRAM.to_bytes()).and_then(|_name| words.next())?;
    Some(PathBuf::from(OsStr::from_bytes(directory)))
}

impl Supervisor {
    /// Its children are the first processes of containers, and a container ends with its first process, except for what
    /// shares a PID namespace with others: that is in the container's cgroup.
    fn end(&self, cgroups: &Cgroups, placement: &Placement) -> Result<(), StageError> {
        const STAGE: &str = "killing the containers of a supervisor";
        let children = kernel_text(format!("/proc/{0}/task/{0}/children", self.pid)).stage(STAGE)?;
        let children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
        let children = children.map(|pid| if_there(open_pidfd(pid)));
        let children: Vec<OwnedFd> = children.filter_map(Result::transpose).collect::<Result<_, _>>()?;
        let own = kernel_text("/proc/self/cgroup").stage(STAGE)?;
        let containers = children.iter().map(|child| container_of(child, &self.pod, &own));
        let containers: Vec<CgroupPath> =
            containers.filter_map(Result::transpose).collect::<Result<_, _>>()?;
        // First, so that it makes no others.
        process::kill(self.process.as_fd()).stage("killing a supervisor")?;
        for child in children {
            match process::kill(child.as_fd()) {
                Err(error) if error.errno == Errno::ESRCH => {}
                killed => killed.stage(STAGE)?,
            }
        }
        for container in containers {
            match cgroups.open(&container) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                opened => opened.and_then(|cgroup| cgroup.kill(PATIENCE)).stage(STAGE)?,
            }
        }
        end_cgroup(cgroups, placement, &self.pod)
    }
}

/// Kills what is left in a pod's cgroup, and removes that. The cgroups of a kubelet's pods are below one of the
/// kubelet's, which removes them.
fn end_cgroup(cgroups: &Cgroups, placement: &Placement, pod: &PodId) -> Result<(), StageError> {
    const STAGE: &str = "removing the pod's cgroup";
    let own = placement.pod(pod.as_str(), None).stage(STAGE)?;
    match cgroups.open(&own) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).stage(STAGE),
        Ok(cgroup) => cgroup.kill(PATIENCE).and_then(|()| cgroup.remove(PATIENCE)).stage(STAGE),
    }
}

/// The cgroup of the container to which a process of a pod belongs, if it does. `own` is the list of this process's.
fn container_of(process: &OwnedFd, pod: &PodId, own: &str) -> Result<Option<CgroupPath>, StageError> {
    let Some(pid) = pid_of(process)? else { return Ok(None) };
    let shown = if_there(read(format!("/proc/{pid}/cgroup")))?.unwrap_or_default();
    Ok(String::from_utf8_lossy(&shown)
        .lines()
        .find_map(|line| container_in(line.splitn(3, ':').nth(2)?, pod, own)))
}

/// The path down to the container's id: that cgroup has no process of anything else. It is the first id that is not the
/// pod's and not that of a container in which this process is itself. Further down, the container may have made cgroups
/// with any names.
fn container_in(path: &str, pod: &PodId, own: &str) -> Option<CgroupPath> {
    let is_containers = |name: &&str| {
        let id = Placement::id_in(name);
        id.parse::<ContainerId>().is_ok() && id != pod.as_str() && !own.contains(id)
    };
    let names: Vec<&str> = path.split('/').collect();
    let container = names.iter().position(is_containers)?;
    CgroupPath::new(&names[..=container].join("/")).ok()
}

#[cfg(test)]
mod tests {
    use wharf_sys::seccomp::{self, Call};

    use super::*;

    #[test]
    fn a_supervisors_command_line_names_its_directory() {
        let of = |line: &[u8]| pod_directory(line);
        assert_eq!(of(b"wharf-shim\0/run/wharf/pods/0123\0"), Some("/run/wharf/pods/0123".into()));
        assert_eq!((of(b"wharf-shim"), of(b"sh\0/run/wharf/pods/0123\0"), of(b"")), (None, None, None));
    }

    #[test]
    fn a_cgroup_is_a_containers_down_to_its_id() {
        let [pod, container, node, other] = ["a", "b", "c", "d"].map(|digit| digit.repeat(64));
        let (id, hosts) = (pod.parse().unwrap(), format!("0::/docker/{node}/system.slice/wharfd.service\n"));
        let path = |path: &str| container_in(path, &id, &hosts).map(|path| path.to_string());
        let own = format!("/wharf/{pod}/{container}");
        assert_eq!(path(&format!("/wharf/{pod}")), None);
        // Where this process is in a container, and where the container gives its cgroups such names.
        let deep = format!("/docker/{node}/kubepods/pod1/{container}");
        assert_eq!(path(&format!("{deep}/container/{other}")), Some(deep));
        assert_eq!(path(&format!("{own}/{other}")), Some(own.clone()));
        assert_eq!(path(&format!("{own}/container/wharf-{other}.scope/x")), Some(own.clone()));
        assert_eq!(
            path(&format!("/kubepods/pod1/{container}/container/x")),
            Some(format!("/kubepods/pod1/{container}"))
        );
        let scope = format!("/kubepods.slice/wharf-{container}.scope");
        assert_eq!(path(&format!("{scope}/container")), Some(scope));
        assert_eq!(path(&own), Some(own));
        assert_eq!((path("/wharf/supervisors"), path("/"), path("")), (None, None, None));
    }

    #[test]
    fn a_process_that_exists_has_a_pid() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(pid_of(&open_pidfd(own).unwrap()).unwrap(), Some(own));
    }

    /// Both have the same words: one is a supervisor, and the other one like its child that calls a runtime.
    #[test]
    fn a_supervisors_child_is_no_supervisor() {
        use std::process::{Command, Stdio};
        let pods = tempfile::tempdir().unwrap();
        let pod: PodId = "a".repeat(64).parse().unwrap();
        let directory = pods.path().join(pod.as_str());
        std::fs::write(&directory, "read -r line").unwrap();
        for (program, is_one) in [("setsid", true), ("env", false)] {
            let script = "exec -a wharf-shim sh \"$0\"";
            let mut command = Command::new(program);
            command.args(["bash", "-c", script]).arg(&directory).stdin(Stdio::piped());
            let mut process = command.spawn().unwrap();
            let pid = process.id().cast_signed();
            let line = || std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
            while pod_directory(&line()).as_deref() != Some(&directory) {
                std::thread::yield_now();
            }
            let found = supervisor_in(pid, pods.path()).unwrap().map(|supervisor| supervisor.pod);
            drop(process.stdin.take());
            process.wait().unwrap();
            assert_eq!(found, is_one.then(|| pod.clone()), "{program}");
        }
    }

    #[test]
    fn a_process_that_is_no_supervisor_is_no_orphan() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(orphans(&[own], Path::new("/run/wharf/pods")).unwrap().is_empty());
    }

    #[test]
    fn a_supervisor_that_accepts_no_connection_keeps_nobody_from_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let _listener = socket::listen(&path).unwrap();
        let waiting: Vec<OwnedFd> = std::iter::from_fn(|| socket::connect(&path).ok()).collect();
        assert!(!waiting.is_empty());
        assert_eq!(socket::connect(&path).unwrap_err().errno, Errno::EAGAIN);
        assert_eq!(reached(&path).unwrap(), None);
        drop(waiting);
    }

    #[test]
    fn who_is_short_of_descriptors_takes_no_supervisor_for_gone() {
        let own = i32::try_from(std::process::id()).unwrap();
        let pods = Path::new("/run/wharf/pods");
        assert!(supervisor_in(i32::MAX, pods).unwrap().is_none());
        assert_eq!(reached(Path::new("/no/such/socket")).unwrap(), None);
        let short = move || {
            for call in [Call::PIDFD_OPEN, Call::SOCKET] {
                seccomp::refuse(call, Errno::EMFILE).expect("these tests need root");
            }
            let supervisor = supervisor_in(own, pods).map(|supervisor| supervisor.is_some());
            [supervisor.unwrap_err(), reached(Path::new("/socket")).unwrap_err()].map(|error| chain(&error))
        };
        let told = std::thread::spawn(short).join().unwrap();
        assert!(told.iter().all(|told| told.contains("LimitNOFILE")), "{told:?}");
    }
}
