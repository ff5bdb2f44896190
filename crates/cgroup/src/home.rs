//! Strays: processes that are in a container's cgroup in one hierarchy, and belong to something else. On v1 a container
//! can lend another one a descriptor of its cgroup, into which that one then moves a process of its own. There it holds
//! up the removal of the lender's cgroup.
//!
//! A stray goes home: to the cgroup that has, in this hierarchy, the path that its own has where processes are tracked.
//! It must never end up outside of its container, where neither limits nor a device filter hold it; and a container can
//! prepare the failure of every move, because it can make and empty cgroups and end at a chosen moment. So a home is
//! within the container ([`Homes`]), and a stray without one is killed. What is in no container is never killed: it is
//! the node's, moved by a container that may see it.

use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use wharf_sys::process::is_exiting;
use wharf_types::ContainerId;

use crate::detect::{Cgroups, Controller, Hierarchy, Kind};
use crate::error::{Error, errno};
use crate::files;
use crate::path::INSIDE;
use crate::placement::Placement;
use crate::systemd::units::PAYLOAD;
use crate::tree::note;

/// What became of a stray.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stray {
    /// It is at home, gone, or left where it is.
    Settled,
    /// It is a container's, and has no home in this hierarchy.
    Homeless,
}

impl Cgroups {
    /// Moves a stray home.
    pub(crate) fn bring_home(&self, pid: i32, hierarchy: &Hierarchy) -> Stray {
        let list = match cgroups_of(&Path::new("/proc").join(pid.to_string())) {
            Ok(Some(list)) => list,
            Ok(None) => return Stray::Settled,
            // Such a path is none of the node's. Kernels before 6.15 do not show it.
            Err(error) if error_of(&error) == Some(Errno::ENAMETOOLONG) => return Stray::Homeless,
            Err(error) => {
                note(Err(error));
                return Stray::Settled;
            }
        };
        let homes = Homes::of(&self.tracker().path_in(&list));
        for home in &homes.paths {
            let moved = files::write(&hierarchy.mount.join(home).join("cgroup.procs"), &pid.to_string());
            match moved {
                Err(error) if error_of(&error) != Some(Errno::ESRCH) => note(Err(error)),
                _moved_or_gone => return Stray::Settled,
            }
        }
        if homes.are_of_container { Stray::Homeless } else { Stray::Settled }
    }
}

fn error_of(error: &Error) -> Option<Errno> {
    match error {
        Error::Io { source, .. } | Error::Write { source, .. } => errno(source),
        _ => None,
    }
}

/// The list of a process's cgroups, by its directory of procfs; `None` once it exits. It is that of a thread that does
/// not exit yet: of one that does, the list has the root of each v1 hierarchy, and a first thread may have exited long
/// before the others.
fn cgroups_of(process: &Path) -> Result<Option<String>, Error> {
    let Ok(tasks) = std::fs::read_dir(process.join("task")) else { return Ok(None) };
    for task in tasks.map_while(Result::ok) {
        let list = files::read_if_there(&task.path().join("cgroup"));
        // Asked afterwards: what does not exit now did not exit then.
        if !is_exiting(&task.path()).unwrap_or(true) {
            return list;
        }
    }
    Ok(None)
}

impl Hierarchy {
    /// A process's path in this hierarchy, which has controllers or is unified, from the list in procfs; empty if it
    /// has none.
    fn path_in(&self, list: &str) -> PathBuf {
        let own = list.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            let is_own = match self.kind {
                Kind::Unified => controllers.is_empty(),
                Kind::V1 => {
                    let mut known = controllers.split(',').filter_map(Controller::of_v1);
                    known.any(|controller| self.controllers.contains(&controller))
                }
            };
            is_own.then(|| PathBuf::from(path))
        });
        own.unwrap_or_default()
    }
}

/// Where a process with a path may be moved in another hierarchy, innermost first; the paths are relative to its mount.
#[derive(Debug, PartialEq, Eq)]
struct Homes {
    paths: Vec<PathBuf>,
    /// Whether they are all within the process's container.
    are_of_container: bool,
}

impl Homes {
    /// For a process in a container: its path, and those around it up to the one that the container's first process
    /// entered. Other processes may be anywhere around theirs. A path that leads out of this process's cgroup namespace
    /// is the mount's.
    fn of(path: &Path) -> Self {
        let parts: Vec<Component<'_>> =
            path.components().filter(|part| *part != Component::RootDir).collect();
        let parts = if parts.contains(&Component::ParentDir) { Vec::new() } else { parts };
        let least = entered(&parts);
        let lengths = (least.unwrap_or(0)..=parts.len()).rev();
        let paths = lengths.map(|length| parts[..length].iter().collect()).collect();
        Self { paths, are_of_container: least.is_some() }
    }
}

/// How many components the path has of the cgroup that the first process of the container entered: the innermost one
/// that is called like a container, and what wharf makes below that.
fn entered(parts: &[Component<'_>]) -> Option<usize> {
    let is_container = |part: &Component<'_>| {
        let name = part.as_os_str().to_str();
        name.is_some_and(|name| Placement::id_in(name).parse::<ContainerId>().is_ok())
    };
    let container = parts.iter().rposition(is_container)? + 1;
    let is_next = |at: usize, name| parts.get(at).is_some_and(|part| part.as_os_str() == OsStr::new(name));
    let payload = container + usize::from(is_next(container, PAYLOAD));
    Some(payload + usize::from(is_next(payload, INSIDE)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_that_of_the_hierarchy_whatever_others_are_called() {
        let directory = tempfile::tempdir().unwrap();
        let open = |kind, controllers| Hierarchy::open(kind, directory.path().into(), controllers).unwrap();
        let list =
            "12:name=systemd:/a:freezer:/x\n5:cpu,freezer:/own:freezer:/y\n2:freezer_:/no\n0::/unified\n";
        let freezer = open(Kind::V1, vec![Controller::Freezer]);
        assert_eq!(freezer.path_in(list), Path::new("/own:freezer:/y"));
        assert_eq!(open(Kind::Unified, vec![]).path_in(list), Path::new("/unified"));
        assert_eq!(open(Kind::V1, vec![Controller::Pids]).path_in(list), Path::new(""));
    }

    fn homes(path: &str) -> (Vec<String>, bool) {
        let Homes { paths, are_of_container } = Homes::of(Path::new(path));
        (paths.iter().map(|path| path.display().to_string()).collect(), are_of_container)
    }

    #[test]
    fn a_home_is_never_outside_of_the_container() {
        let [one, other] = ["1", "2"].map(|digit| digit.repeat(64));
        for (inner, at_least) in [
            (format!("kubepods/pod7/{one}"), format!("kubepods/pod7/{one}")),
            (format!("wharf/{other}/{one}/container"), format!("wharf/{other}/{one}/container")),
            (format!("a.slice/wharf-{one}.scope/payload"), format!("a.slice/wharf-{one}.scope/payload")),
            (
                format!("a.slice/wharf-{one}.scope/payload/container"),
                format!("a.slice/wharf-{one}.scope/payload/container"),
            ),
            // What it makes of its own below that, whatever it calls it.
            (format!("p/{one}/container/payload"), format!("p/{one}/container")),
            (format!("p/{one}/container/{other}/x"), format!("p/{one}/container/{other}")),
        ] {
            let (paths, are_of_container) = homes(&format!("/{inner}"));
            assert!(are_of_container, "{inner}");
            assert_eq!((paths.first(), paths.last()), (Some(&inner), Some(&at_least)));
            assert!(paths.iter().all(|path| path.starts_with(&at_least)), "{paths:?}");
        }
    }

    #[test]
    fn what_is_in_no_container_may_be_anywhere_around_its_place() {
        let all = |paths: &[&str]| (paths.iter().map(|path| (*path).to_owned()).collect(), false);
        assert_eq!(homes("/wharf/supervisors"), all(&["wharf/supervisors", "wharf", ""]));
        assert_eq!(homes("/"), all(&[""]));
        assert_eq!(homes("/../../etc"), all(&[""]));
        assert_eq!(homes(""), all(&[""]));
    }

    #[test]
    fn a_process_is_where_its_living_threads_are() {
        let here = files::read(Path::new("/proc/self/cgroup")).unwrap();
        assert_eq!(cgroups_of(Path::new("/proc/self")).unwrap(), Some(here));
        assert_eq!(cgroups_of(Path::new("/proc/none")).unwrap(), None);
        let process = tempfile::tempdir().unwrap();
        let thread = |number: &str, flags: u32, list: &str| {
            let task = process.path().join("task").join(number);
            std::fs::create_dir_all(&task).unwrap();
            std::fs::write(task.join("stat"), format!("1 (a) b) S 1 1 1 0 -1 {flags} 0")).unwrap();
            std::fs::write(task.join("cgroup"), list).unwrap();
        };
        thread("1", 0x4, "2:devices:/\n");
        assert_eq!(cgroups_of(process.path()).unwrap(), None);
        thread("2", 0x40, "2:devices:/pod/container\n");
        assert_eq!(cgroups_of(process.path()).unwrap().unwrap(), "2:devices:/pod/container\n");
    }
}
