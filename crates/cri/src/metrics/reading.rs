//! Everything from which the samples of one container are computed, at one moment.
//!
//! The families of the table compute from it alone, so that a family costs no reading of its own. What could not be
//! read is absent, and gives no sample. How many processes and descriptors there are is up to the container, so
//! counting them has a bound.
#![expect(clippy::disallowed_methods, reason = "only a thread that may wait leads here")]

use std::cell::Cell;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use wharf_cgroup::Stats;
use wharf_cri_api::v1::LinuxContainerResources;
use wharf_pods::{Container, Engine};
use wharf_snapshots::tree::Usage;
use wharf_types::ContainerState;

/// How many processes and descriptors of one container are looked at. Each costs some microseconds, and a program shows
/// millions with little memory: processes that share their descriptors, as after clone(CLONE_FILES), show all of them.
const MOST_OF_ONE: usize = 1 << 13;
/// How many of all containers of one gathering, which then takes about a second.
const MOST_OF_ALL: usize = 1 << 17;

/// One container at this moment.
#[derive(Debug, Default)]
pub(super) struct Reading {
    pub(super) stats: Stats,
    pub(super) limits: LinuxContainerResources,
    pub(super) processes: Option<Processes>,
    pub(super) written: Option<Usage>,
    pub(super) disk: Option<Disk>,
    pub(super) started_at_ns: i64,
    pub(super) now_ns: i64,
}

/// The totals of the container's processes; `None` of what are too many to be counted.
#[derive(Debug, Default)]
pub(super) struct Processes {
    pub(super) count: u64,
    pub(super) descriptors: Option<u64>,
    pub(super) sockets: Option<u64>,
    /// The limit on open files of the first process.
    pub(super) open_files_limit: Option<u64>,
}

/// How many processes and descriptors may still be looked at.
#[derive(Debug)]
pub(super) struct Allowance(Cell<usize>);

/// The file system with the writable layers.
#[derive(Debug, Clone)]
pub(super) struct Disk {
    pub(super) device: String,
    pub(super) bytes: u64,
    pub(super) inodes: u64,
    pub(super) inodes_free: u64,
}

impl Reading {
    /// Reads a running container; `None` if it does not run.
    pub(super) fn take(
        engine: &Engine,
        container: &Container,
        disk: Option<Disk>,
        now_ns: i64,
        allowance: &Allowance,
    ) -> Option<Self> {
        let ContainerState::Running { started_at_ns } = container.shown() else { return None };
        let linux = container.with_config(|config| config.linux.clone());
        Some(Self {
            stats: container.usage(wharf_cgroup::Extent::Everything)?,
            limits: linux.and_then(|linux| linux.resources).unwrap_or_default(),
            processes: Processes::of(container, allowance),
            written: engine.written(container),
            disk,
            started_at_ns,
            now_ns,
        })
    }
}

impl Processes {
    /// `None` if the processes cannot be listed: nobody may take that for none.
    fn of(container: &Container, allowance: &Allowance) -> Option<Self> {
        let pids = container.pids()?;
        let (descriptors, sockets) = allowance.count(&pids);
        Some(Self {
            count: u64::try_from(pids.len()).ok()?,
            descriptors,
            sockets,
            open_files_limit: open_files_limit(container.pid()),
        })
    }
}

impl Allowance {
    pub(super) fn new() -> Self {
        Self(Cell::new(MOST_OF_ALL))
    }

    /// The open descriptors and sockets of one container's processes; `None` of what are too many to be counted.
    fn count(&self, pids: &[i32]) -> (Option<u64>, Option<u64>) {
        let all = self.0.get();
        let share = all.min(MOST_OF_ONE);
        let mut left = share;
        let descriptors = descriptors(pids, &mut left);
        let few = descriptors.is_some_and(|count| usize::try_from(count).is_ok_and(|count| count <= left));
        let sockets = if few { sockets(pids, &mut left) } else { None };
        self.0.set(all - (share - left));
        (descriptors, sockets)
    }
}

fn spend(left: &mut usize, count: usize) -> Option<()> {
    *left = left.checked_sub(count)?;
    Some(())
}

fn descriptors_of(pid: i32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/fd"))
}

fn descriptors(pids: &[i32], left: &mut usize) -> Option<u64> {
    spend(left, pids.len())?;
    pids.iter().map(|&pid| entries(&descriptors_of(pid), left)).sum()
}

/// How many entries a process's directory has. Since Linux 6.2 the one with its descriptors has that as its
/// size; before, it is read. A process that has exited by now has nothing open.
fn entries(directory: &Path, left: &mut usize) -> Option<u64> {
    match fs::metadata(directory).map_or(0, |found| found.len()) {
        0 => fs::read_dir(directory).into_iter().flatten().map(|_entry| spend(left, 1).map(|()| 1)).sum(),
        size => Some(size),
    }
}

fn sockets(pids: &[i32], left: &mut usize) -> Option<u64> {
    let mut sockets = 0;
    for &pid in pids {
        for entry in fs::read_dir(descriptors_of(pid)).into_iter().flatten().flatten() {
            spend(left, 1)?;
            let target = fs::read_link(entry.path());
            let is_socket = target.is_ok_and(|target| target.as_os_str().as_bytes().starts_with(b"socket:"));
            sockets += u64::from(is_socket);
        }
    }
    Some(sockets)
}

/// The soft limit in `/proc/<pid>/limits`; `None` if it is unlimited.
fn open_files_limit(pid: i32) -> Option<u64> {
    let limits = wharf_sys::fs::kernel_text(format!("/proc/{pid}/limits")).ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

impl Disk {
    /// The file system at a path.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let filesystem = nix::sys::statvfs::statvfs(path).ok()?;
        let device = nix::sys::stat::stat(path).ok()?.st_dev;
        let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
        // A file system without a device, such as tmpfs, has no entry there.
        let device = fs::read_link(format!("/sys/dev/block/{major}:{minor}")).ok();
        let device = device.and_then(|link| Some(format!("/dev/{}", link.file_name()?.to_str()?)));
        Some(Self {
            device: device.unwrap_or_else(|| format!("{major}:{minor}")),
            bytes: filesystem.blocks().saturating_mul(filesystem.fragment_size()),
            inodes: filesystem.files(),
            inodes_free: filesystem.files_free(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_of_open_files_is_the_processs_own() {
        let own = i32::try_from(std::process::id()).unwrap();
        let (soft, _hard) =
            nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!(open_files_limit(own), Some(soft));
        assert_eq!(open_files_limit(0), None, "a container that has exited has none");
    }

    fn own() -> i32 {
        i32::try_from(std::process::id()).unwrap()
    }

    #[test]
    fn descriptors_and_sockets_are_counted() {
        let sockets = std::os::unix::net::UnixStream::pair().unwrap();
        let allowance = Allowance::new();
        let (descriptors, found) = allowance.count(&[own(), own()]);
        assert!(descriptors.unwrap() >= 2 * 5 && found.unwrap() >= 2 * 2, "{descriptors:?} {found:?}");
        assert!(found < descriptors, "not all are sockets: {sockets:?}");
        assert_eq!(allowance.count(&[]), (Some(0), Some(0)));
        assert_eq!(allowance.count(&[i32::MAX]), (Some(0), Some(0)), "it has exited");
    }

    #[test]
    fn a_container_cannot_have_more_counted_than_its_share() {
        let allowance = Allowance::new();
        assert_eq!(allowance.count(&vec![own(); MOST_OF_ONE + 1]), (None, None));
        assert_eq!(allowance.0.get(), MOST_OF_ALL, "nothing was looked at");
        let many = MOST_OF_ONE / 2;
        let (descriptors, sockets) = allowance.count(&vec![own(); many]);
        assert!(sockets.is_none(), "{descriptors:?}: each process has more than one");
        assert!(MOST_OF_ALL - allowance.0.get() <= MOST_OF_ONE);
        assert!(allowance.count(&[own()]).1.is_some(), "the next has its own share");
    }

    #[test]
    fn all_containers_cannot_have_more_counted_than_a_gathering_allows() {
        let allowance = Allowance(Cell::new(1));
        let (descriptors, sockets) = allowance.count(&[own()]);
        assert_eq!((sockets, allowance.0.get()), (None, 0), "{descriptors:?}");
        assert_eq!(allowance.count(&[own()]), (None, None));
    }

    #[test]
    fn where_the_kernel_does_not_count_entries_are_read_up_to_a_bound() {
        // This directory has the same entries, and no kernel tells their number.
        let uncounted = Path::new("/proc/self/fdinfo");
        assert_eq!(fs::metadata(uncounted).unwrap().len(), 0);
        let mut left = MOST_OF_ONE;
        let count = entries(uncounted, &mut left).unwrap();
        assert!(count >= 3 && count == (MOST_OF_ONE - left) as u64, "{count} {left}");
        let mut left = 2;
        assert_eq!((entries(uncounted, &mut left), left), (None, 0));
    }

    #[test]
    fn a_file_system_is_named_by_its_device_if_it_has_one() {
        let memory = Disk::of(Path::new("/proc")).unwrap();
        assert!(memory.device.starts_with("0:"), "{}: nothing in /dev", memory.device);
        let directory = tempfile::tempdir().unwrap();
        let disk = Disk::of(directory.path()).unwrap();
        assert!(disk.bytes > 0 && disk.inodes >= disk.inodes_free);
        assert_eq!(disk.device, Disk::of(&directory.path().join(".")).unwrap().device);
        assert!(Disk::of(&directory.path().join("missing")).is_none());
    }
}
