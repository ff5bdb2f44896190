//! Processes that are not where they belong: a container can lend another one a descriptor of its cgroup, into which
//! that one then moves a process of its own, in a single v1 hierarchy. There it holds up the removal of the lender's
//! cgroup, and a freezer that is not its container's holds up its end. It is moved back. So nothing is done to the
//! cgroups of others, whatever their names are.

use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;

use crate::detect::{Cgroups, Controller, Hierarchy, Kind};
use crate::error::{Error, errno};
use crate::files;

impl Cgroups {
    /// Moves a process to the cgroup of a hierarchy that has the path of its cgroup where processes are tracked, or to
    /// the nearest one around that. One that is gone needs nothing.
    pub(crate) fn bring_home(&self, pid: i32, hierarchy: &Hierarchy) -> Result<(), Error> {
        let list = Path::new("/proc").join(pid.to_string()).join("cgroup");
        let Some(list) = files::read_if_there(&list)? else { return Ok(()) };
        let mut result = Ok(());
        for directory in homes(&self.tracker().path_in(&list), &hierarchy.mount) {
            result = files::write(&directory.join("cgroup.procs"), &pid.to_string());
            match &result {
                Err(Error::Write { source, .. }) if errno(source) == Some(Errno::ESRCH) => return Ok(()),
                Err(Error::Write { .. }) => {}
                _ => return result,
            }
        }
        result
    }
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

/// The directories at a path and around it, innermost first, and the mount itself. A path that leads out of this
/// process's cgroup namespace has no directory.
fn homes(path: &Path, mount: &Path) -> Vec<PathBuf> {
    let leads_out = path.components().any(|part| part == Component::ParentDir);
    let inside = path.ancestors().filter(|_| !leads_out);
    let inside = inside.map(|path| mount.join(path.strip_prefix("/").unwrap_or(path)));
    inside.chain([mount.to_path_buf()]).collect()
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

    #[test]
    fn a_home_is_within_the_hierarchy() {
        let all = |path: &str| homes(Path::new(path), Path::new("/m"));
        assert_eq!(all("/a/b"), ["/m/a/b", "/m/a", "/m/", "/m"].map(PathBuf::from));
        assert_eq!(all("/../../etc"), [PathBuf::from("/m")]);
        assert_eq!(all("").last(), Some(&PathBuf::from("/m")));
    }
}
