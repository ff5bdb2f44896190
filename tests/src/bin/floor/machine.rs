//! What all pods of a run share: the image, the directory for writable layers, the host's namespaces and the cgroup
//! hierarchies.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::Context;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use wharf_sys::clone::SingleThreaded;
use wharf_sys::launch::Launcher;

use crate::cgroups::Hierarchies;
use crate::messages::Socket;
use crate::stages::CgroupKind;

/// The prepared machine.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) root: PathBuf,
    pub(crate) dir: PathBuf,
    pub(crate) hierarchies: Hierarchies,
    /// The socket for the host's links.
    pub(crate) links: Socket,
    /// The directory with the files that each container gets in its `/etc`.
    pub(crate) etc: PathBuf,
    pub(crate) single: SingleThreaded,
    /// The program of the pods' supervisors.
    pub(crate) supervisor: Launcher,
    /// An empty mount namespace from which those of containers are copied.
    pub(crate) mounts: OwnedFd,
    namespaces: Vec<(File, CloneFlags)>,
}

impl Machine {
    /// Prepares the machine: this process has one thread, and gets mounts of its own.
    pub(crate) fn open(root: &Path, dir: &Path) -> anyhow::Result<Self> {
        let mounts = wharf_sys::mount::empty_namespace()?;
        let single = SingleThreaded::check()?;
        unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace: this needs root")?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).context("make the mounts private")?;
        let etc = dir.join("etc");
        fs::create_dir(&etc).with_context(|| format!("make {}", etc.display()))?;
        for name in ETC {
            fs::write(etc.join(name), "").context("write a file for /etc")?;
        }
        let path = root.join("bin/sleep");
        let program = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        let own = [
            ("net", CloneFlags::CLONE_NEWNET),
            ("ipc", CloneFlags::CLONE_NEWIPC),
            ("uts", CloneFlags::CLONE_NEWUTS),
        ];
        let namespaces = own.map(|(kind, flag)| Ok::<_, anyhow::Error>((namespace(kind)?, flag)));
        Ok(Self {
            root: root.to_owned(),
            dir: dir.to_owned(),
            hierarchies: Hierarchies::open()?,
            links: Socket::open()?,
            etc,
            single,
            supervisor: Launcher::new(program.into())?,
            mounts,
            namespaces: namespaces.into_iter().collect::<Result<_, _>>()?,
        })
    }

    /// How this machine's cgroups are mounted, and the other kinds that the samples also show.
    pub(crate) fn cgroup_kinds(&self) -> Vec<CgroupKind> {
        self.hierarchies.kinds()
    }

    /// Returns this process to the host's namespaces.
    pub(crate) fn come_back(&self) -> anyhow::Result<()> {
        self.namespaces
            .iter()
            .try_for_each(|(own, kind)| setns(own, *kind).context("return to the host's namespaces"))
    }

    /// Removes what was prepared.
    pub(crate) fn leave(&self) -> anyhow::Result<()> {
        fs::remove_dir_all(&self.etc).context("remove the files for /etc")?;
        self.hierarchies.leave()
    }
}

/// The files that Kubernetes puts into the `/etc` of every container.
pub(crate) const ETC: [&str; 3] = ["hosts", "hostname", "resolv.conf"];

/// Opens a namespace of this process.
pub(crate) fn namespace(kind: &str) -> anyhow::Result<File> {
    let path = format!("/proc/self/ns/{kind}");
    File::open(&path).with_context(|| format!("open {path}"))
}
