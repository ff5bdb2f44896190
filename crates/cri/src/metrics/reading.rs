//! Everything from which the samples of one container are computed, at one moment.
#![expect(clippy::disallowed_methods, reason = "only `spawn_blocking` leads here")]

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use wharf_cgroup::Stats;
use wharf_cri_api::v1::LinuxContainerResources;
use wharf_pods::{Container, Engine};
use wharf_snapshots::tree::Usage;
use wharf_types::ContainerState;

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

/// The totals of the container's processes.
#[derive(Debug, Default)]
pub(super) struct Processes {
    pub(super) count: u64,
    pub(super) descriptors: u64,
    pub(super) sockets: u64,
    /// The limit on open files of the first process.
    pub(super) open_files_limit: Option<u64>,
}

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
    ) -> Option<Self> {
        let ContainerState::Running { started_at_ns } = container.shown() else { return None };
        let linux = container.with_config(|config| config.linux.clone());
        Some(Self {
            stats: container.usage(wharf_cgroup::Extent::Everything)?,
            limits: linux.and_then(|linux| linux.resources).unwrap_or_default(),
            processes: Processes::of(container),
            written: engine.written(container),
            disk,
            started_at_ns,
            now_ns,
        })
    }
}

impl Processes {
    /// `None` if the processes cannot be listed: nobody may take that for none.
    fn of(container: &Container) -> Option<Self> {
        let first = container.pid();
        let mut all = Self { open_files_limit: open_files_limit(first), ..Self::default() };
        for pid in container.pids()? {
            all.count += 1;
            // A process that has exited by now has nothing open.
            let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
            for entry in entries.flatten() {
                all.descriptors += 1;
                let target = fs::read_link(entry.path());
                all.sockets += u64::from(
                    target.is_ok_and(|target| target.as_os_str().as_bytes().starts_with(b"socket:")),
                );
            }
        }
        Some(all)
    }
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
