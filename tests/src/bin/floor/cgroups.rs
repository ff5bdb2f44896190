//! A container's directory in each mounted cgroup hierarchy.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::errno::Errno;

use crate::stages::CgroupKind;

/// The directory that holds those of all pods.
const PARENT: &str = "floor";

/// How long an empty cgroup may still be busy: processes leave it a moment after their parent learns of their end.
const PATIENCE: Duration = Duration::from_secs(2);

/// The mounted hierarchies with controllers, and in each of them a parent directory for this program.
#[derive(Debug)]
pub(crate) struct Hierarchies {
    v1: Vec<PathBuf>,
    v2: Option<PathBuf>,
}

/// One container's directories.
#[derive(Debug)]
pub(crate) struct Directories {
    v1: Vec<PathBuf>,
    v2: Option<PathBuf>,
}

impl Hierarchies {
    /// Finds the hierarchies, and makes the parent directories.
    pub(crate) fn open() -> anyhow::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("read the mounts")?;
        let mut found = Self { v1: Vec::new(), v2: None };
        for line in mounts.lines() {
            let Some((place, kind)) = line.split_once(" - ") else { continue };
            let Some(mount) = place.split(' ').nth(4) else { continue };
            let parent = Path::new(mount).join(PARENT);
            match kind.split(' ').next() {
                // A named hierarchy has no controllers; it is systemd's.
                Some("cgroup") if !kind.contains("name=") => found.v1.push(parent),
                Some("cgroup2") => found.v2 = Some(parent),
                _ => {}
            }
        }
        for parent in found.v1.iter().chain(&found.v2) {
            make(parent)?;
            fill_cpuset(parent)?;
        }
        Ok(found)
    }

    /// How this machine's cgroups are mounted, and then the other kinds that the samples also show.
    pub(crate) fn kinds(&self) -> Vec<CgroupKind> {
        match (self.v1.is_empty(), &self.v2) {
            (false, Some(_)) => vec![CgroupKind::Hybrid, CgroupKind::V1, CgroupKind::V2],
            (false, None) => vec![CgroupKind::V1],
            (true, _) => vec![CgroupKind::V2],
        }
    }

    /// A container's directories, which are not made yet.
    pub(crate) fn directories(&self, number: u32) -> Directories {
        let below = |parent: &PathBuf| parent.join(number.to_string());
        Directories { v1: self.v1.iter().map(below).collect(), v2: self.v2.as_ref().map(below) }
    }

    /// Removes the parent directories.
    pub(crate) fn leave(&self) -> anyhow::Result<()> {
        self.v1.iter().chain(&self.v2).try_for_each(|parent| remove(parent))
    }
}

impl Directories {
    pub(crate) fn make_v1(&self) -> anyhow::Result<()> {
        self.v1.iter().try_for_each(|directory| make(directory))
    }

    pub(crate) fn make_v2(&self) -> anyhow::Result<()> {
        self.v2.iter().try_for_each(|directory| make(directory))
    }

    /// Moves this process, which has one thread, into the v1 cgroups. Such a move takes no lock.
    pub(crate) fn enter_v1(&self) -> anyhow::Result<()> {
        for directory in &self.v1 {
            wharf_sys::fs::write_value(directory.join("tasks"), "0")?;
        }
        Ok(())
    }

    /// Opens the v2 cgroup, for a clone into it.
    pub(crate) fn open_v2(&self) -> anyhow::Result<Option<File>> {
        self.v2.as_ref().map(|directory| File::open(directory).context("open the cgroup of v2")).transpose()
    }

    pub(crate) fn remove_v1(&self) -> anyhow::Result<()> {
        self.v1.iter().try_for_each(|directory| remove(directory))
    }

    pub(crate) fn remove_v2(&self) -> anyhow::Result<()> {
        self.v2.iter().try_for_each(|directory| remove(directory))
    }
}

fn make(directory: &Path) -> anyhow::Result<()> {
    fs::create_dir(directory).with_context(|| format!("make {}", directory.display()))
}

/// The v1 cpuset controller accepts no process before these are set. Those of pods are copies: what is written costs
/// more with each cpuset on the machine.
fn fill_cpuset(parent: &Path) -> anyhow::Result<()> {
    let Some(above) = parent.parent().filter(|_| is_v1_cpuset(parent)) else { return Ok(()) };
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let of_above = above.join(name);
        let value = fs::read_to_string(&of_above).with_context(|| format!("read {}", of_above.display()))?;
        wharf_sys::fs::write_value(parent.join(name), value.trim())?;
    }
    Ok(wharf_sys::fs::write_value(parent.join("cgroup.clone_children"), "1")?)
}

/// Whether this is in the v1 cpuset hierarchy: such a mount is named after its controllers.
fn is_v1_cpuset(directory: &Path) -> bool {
    let mut names = directory.components().filter_map(|name| name.as_os_str().to_str());
    names.any(|name| name.split(',').any(|controller| controller == "cpuset"))
}

fn remove(directory: &Path) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match fs::remove_dir(directory) {
            Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) && Instant::now() < deadline => {
                nix::sched::sched_yield().context("yield")?;
            }
            other => return other.with_context(|| format!("remove {}", directory.display())),
        }
    }
}
