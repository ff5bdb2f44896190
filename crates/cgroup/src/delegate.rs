//! Giving a v2 cgroup to a user, and bounds on the cgroups below one.
//!
//! A user who has been given a cgroup may make others below it and move processes among them. Which containers get
//! theirs is the planner's decision, and the files of its limits stay root's; where that binds nobody, the level above
//! does ([`to`]).

use std::io::ErrorKind;
use std::os::unix::fs::chown;
use std::path::Path;

use crate::error::Error;
use crate::files;

/// The kernel's list of the files that may be given away.
const LIST: &str = "/sys/kernel/cgroup/delegate";
/// What was on it when it was introduced, for kernels before 4.15.
const USUAL: &str = "cgroup.procs\ncgroup.threads\ncgroup.subtree_control\n";

/// How many cgroups a container may make, and how deep: each costs the kernel memory that no limit counts as its own.
/// Commands (exec) have cgroups there, too. No path becomes longer than PATH_MAX: kernels before about 6.15 would not
/// tell any more in which cgroups a process is, and so not to which container it belongs.
const BOUNDS: [(&str, u32); 2] = [("cgroup.max.descendants", 4096), ("cgroup.max.depth", 14)];

/// Bounds the cgroups below one, of which `own` are wharf's, one below the other.
pub(crate) fn bound(directory: &Path, own: u32) -> Result<(), Error> {
    BOUNDS.iter().try_for_each(|(name, most)| files::write(&directory.join(name), &(most + own).to_string()))
}

/// Makes a user the owner of a cgroup's directory, and of its files that are no limits. The group stays.
///
/// The files of the limits stay root's. That binds nobody who is root in the host's user namespace: such a container
/// needs no capability to write them from a cgroup below, since the kernel draws the boundary at the writer's cgroup
/// namespace. What binds it all the same are the limits one level above: its own, if its cgroup is enclosed, else its
/// pod's.
pub(crate) fn to(directory: &Path, uid: u32) -> Result<(), Error> {
    let list = files::read_if_there(Path::new(LIST))?;
    give(directory, list.as_deref().unwrap_or(USUAL), uid)
}

fn give(directory: &Path, list: &str, uid: u32) -> Result<(), Error> {
    let own = |path: &Path| chown(path, Some(uid), None).map_err(Error::io("chown", path));
    own(directory)?;
    // What comes with a controller that is not enabled here does not exist.
    let given = list.lines().filter(|name| !name.is_empty() && !name.contains('/'));
    given.map(|name| directory.join(name)).try_for_each(|path| match own(&path) {
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(()),
        owned => owned,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn no_container_nests_cgroups_until_their_path_is_too_long() {
        // Holds while the path above the container is at most this long: twice what it is on a node that is itself a
        // container.
        const ABOVE: u32 = 512;
        let [_descendants, (_name, depth)] = BOUNDS;
        let longest = ABOVE + depth * (1 + 255);
        assert!(longest <= 4096, "{longest}");
    }

    #[test]
    fn what_is_listed_and_there_is_given_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for name in ["cgroup.procs", "memory.max"] {
            std::fs::write(path(name), "").unwrap();
        }
        give(directory.path(), "cgroup.procs\nmemory.oom.group\n../escape\n\n", 4321).unwrap();
        let owner = |name: &str| std::fs::metadata(path(name)).unwrap().uid();
        assert_eq!((owner(""), owner("cgroup.procs")), (4321, 4321));
        assert_ne!(owner("memory.max"), 4321);
        assert!(give(&path("missing"), USUAL, 4321).is_err());
    }
}
