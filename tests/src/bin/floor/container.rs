//! A container: what its first process does between its clone and its program.

use std::ffi::CStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknodat};
use wharf_sys::clone::{Clone, clone};
use wharf_sys::fs::{Resolve, open_below};
use wharf_sys::mount::{self, Attributes, Depth, Propagation};
use wharf_sys::overlay::Overlay;
use wharf_sys::process::exit_now;

use crate::cgroups::Directories;
use crate::machine::{ETC, Machine};
use crate::network::Namespaces;
use crate::stages::{Laps, Stage, Where, Whole, stage, stage_of};

/// The stages that the child reports, in order.
const STAGES: [Stage; 7] = [
    stage(Whole::PodUp, "container: clone3"),
    stage_of(Where::V1, Whole::PodUp, "container: cgroups of v1 entered"),
    stage(Whole::PodUp, "container: overlay, mounts from the host"),
    stage(Whole::PodUp, "container: namespaces joined, root entered"),
    stage(Whole::PodUp, "container: file systems and files of /etc"),
    stage(Whole::PodUp, "container: device nodes and links"),
    stage(Whole::PodUp, "container: masked and read-only paths"),
];

/// A file system's type, place and options.
type Filesystem = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

const FILESYSTEMS: [Filesystem; 6] = [
    ("proc", "proc", &[]),
    ("tmpfs", "dev", &[("mode", "755"), ("size", "65536k")]),
    ("devpts", "dev/pts", &[("newinstance", ""), ("ptmxmode", "0666"), ("mode", "0620")]),
    ("mqueue", "dev/mqueue", &[]),
    ("tmpfs", "dev/shm", &[("mode", "1777"), ("size", "65536k")]),
    ("sysfs", "sys", &[("ro", "")]),
];
const NODES: [(&str, u64, u64); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];
const MASKED: [&str; 3] = ["proc/kcore", "proc/keys", "proc/timer_list"];
const HIDDEN: [&str; 2] = ["proc/acpi", "sys/firmware"];
const READ_ONLY: [&str; 5] = ["proc/bus", "proc/fs", "proc/irq", "proc/sys", "proc/sysrq-trigger"];

/// The writable layer of one container.
#[derive(Debug)]
pub(crate) struct Layer {
    place: PathBuf,
}

impl Layer {
    pub(crate) fn make(machine: &Machine, number: u32) -> anyhow::Result<Self> {
        let place = machine.dir.join(number.to_string());
        for directory in [&place, &place.join("upper"), &place.join("work")] {
            std::fs::create_dir(directory).with_context(|| format!("make {}", directory.display()))?;
        }
        Ok(Self { place })
    }

    pub(crate) fn remove(self) -> anyhow::Result<()> {
        std::fs::remove_dir_all(&self.place).with_context(|| format!("remove {}", self.place.display()))
    }
}

/// Makes the container, and returns its first process once that has executed its program.
pub(crate) fn start(
    machine: &Machine,
    namespaces: &Namespaces,
    cgroups: &Directories,
    layer: &Layer,
    laps: &mut Laps<'_>,
) -> anyhow::Result<OwnedFd> {
    let child = Child { machine, namespaces, cgroups, layer };
    laps.skip();
    let birth = Birth { machine, flags: CloneFlags::CLONE_NEWPID, cgroups, stages: &STAGES };
    let process = birth.run(laps, |report| child.become_container(report))?;
    laps.ended(stage(Whole::PodUp, "container: exec"));
    Ok(process)
}

/// What a child reports: when each stage ended.
pub(crate) struct Report {
    line: File,
    begin: Instant,
    ends: Vec<u64>,
}

impl Report {
    pub(crate) fn ended(&mut self) {
        let nanoseconds = self.begin.elapsed().as_nanos();
        self.ends.push(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
    }

    /// Sends the report and executes a program, which closes the pipe and shows the reader its end.
    pub(crate) fn execute(mut self, program: &CStr, arguments: &[&CStr]) -> anyhow::Result<()> {
        let bytes: Vec<u8> = self.ends.iter().flat_map(|end| end.to_ne_bytes()).collect();
        self.line.write_all(&bytes).context("tell the parent")?;
        let environment: [&CStr; 0] = [];
        nix::unistd::execve(program, arguments, &environment).context("execute the program")?;
        Ok(())
    }
}

/// How to start a child.
pub(crate) struct Birth<'a> {
    pub(crate) machine: &'a Machine,
    pub(crate) flags: CloneFlags,
    /// The child starts in the v2 cgroup among these.
    pub(crate) cgroups: &'a Directories,
    /// The stages that the child reports.
    pub(crate) stages: &'a [Stage],
}

impl Birth<'_> {
    /// Clones a child that runs `become_it`, waits until it has executed its program, and notes its stages.
    pub(crate) fn run(
        &self,
        laps: &mut Laps<'_>,
        become_it: impl FnOnce(Report) -> anyhow::Result<()>,
    ) -> anyhow::Result<OwnedFd> {
        let unified = self.cgroups.open_v2()?;
        let (read, line) = nix::unistd::pipe2(OFlag::O_CLOEXEC).context("make a pipe")?;
        let mut report = Report { line: line.into(), begin: Instant::now(), ends: Vec::new() };
        match clone(&self.machine.single, self.flags, unified.as_ref().map(AsFd::as_fd))? {
            Clone::Child(_child) => {
                report.ended();
                let failed = become_it(report).err();
                let said = failed.map(|error| writeln!(std::io::stderr(), "floor: {error:#}"));
                exit_now(if said.is_some_and(|said| said.is_ok()) { 1 } else { 2 })
            }
            Clone::Parent { pidfd, .. } => {
                drop(report);
                note(read.into(), laps, self.stages)?;
                Ok(pidfd)
            }
        }
    }
}

/// Reads a child's report until the child has executed its program.
fn note(mut read: File, laps: &mut Laps<'_>, stages: &[Stage]) -> anyhow::Result<()> {
    let mut bytes = Vec::new();
    read.read_to_end(&mut bytes).context("read what the child reports")?;
    let (ends, rest) = bytes.as_chunks();
    anyhow::ensure!(
        ends.len() == stages.len() && rest.is_empty(),
        "the child reported {} bytes",
        bytes.len()
    );
    let mut before = 0;
    laps.of_child(stages.iter().zip(ends).map(|(stage, end)| {
        let end = u64::from_ne_bytes(*end);
        let length = Duration::from_nanos(end - before);
        before = end;
        (*stage, length)
    }));
    Ok(())
}

struct Child<'a> {
    machine: &'a Machine,
    namespaces: &'a Namespaces,
    cgroups: &'a Directories,
    layer: &'a Layer,
}

impl Child<'_> {
    fn become_container(&self, mut report: Report) -> anyhow::Result<()> {
        nix::sys::stat::umask(Mode::empty());
        self.cgroups.enter_v1()?;
        report.ended();
        let etc = ETC.map(|name| mount::copy_tree(&self.machine.etc.join(name), Depth::One));
        let root = self.root()?;
        report.ended();
        self.join_namespaces()?;
        mount::take_root(root.as_fd())?;
        report.ended();
        attach_filesystems(root.as_fd())?;
        for (name, file) in ETC.iter().zip(etc) {
            bind_file(root.as_fd(), &format!("etc/{name}"), file?.as_fd())?;
        }
        report.ended();
        make_nodes(root.as_fd())?;
        report.ended();
        cover(root.as_fd())?;
        report.ended();
        report.execute(c"/bin/sleep", &[c"sleep", c"86413"])
    }

    fn join_namespaces(&self) -> anyhow::Result<()> {
        let Namespaces { net, ipc, uts } = self.namespaces;
        setns(net, CloneFlags::CLONE_NEWNET).context("join the network")?;
        setns(ipc, CloneFlags::CLONE_NEWIPC).context("join the IPC namespace")?;
        setns(uts, CloneFlags::CLONE_NEWUTS).context("join the UTS namespace")?;
        setns(&self.machine.mounts, CloneFlags::CLONE_NEWNS).context("join the empty mount namespace")?;
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWCGROUP).context("copy the mounts")
    }

    fn root(&self) -> anyhow::Result<OwnedFd> {
        let (upper, work) = (self.layer.place.join("upper"), self.layer.place.join("work"));
        let lowers: &[&Path] = &[&self.machine.root];
        let overlay = Overlay { lowers, upper: &upper, work: &work, user_namespace: None, label: None };
        Ok(overlay.detached(&self.layer.place)?)
    }
}

fn attach_filesystems(root: BorrowedFd<'_>) -> anyhow::Result<()> {
    for (kind, target, options) in FILESYSTEMS {
        let tree = mount::new_filesystem(kind, options, Attributes::NO_SUID)?;
        mount::attach(tree.as_fd(), directory(root, target)?.as_fd())?;
    }
    Ok(())
}

/// Opens a directory, and makes it if it is missing.
fn directory(root: BorrowedFd<'_>, path: &str) -> anyhow::Result<OwnedFd> {
    match open_path(root, path) {
        Ok(opened) => Ok(opened),
        Err(_missing) => {
            nix::sys::stat::mkdirat(root, path, Mode::from_bits_truncate(0o755))
                .with_context(|| format!("make {path}"))?;
            Ok(open_path(root, path)?)
        }
    }
}

fn open_path(root: BorrowedFd<'_>, path: &str) -> wharf_sys::Result<OwnedFd> {
    open_below(root, path, OFlag::O_PATH, Resolve::InRoot)
}

fn bind_file(root: BorrowedFd<'_>, path: &str, file: BorrowedFd<'_>) -> anyhow::Result<()> {
    if open_path(root, path).is_err() {
        let flags = OFlag::O_CREAT | OFlag::O_CLOEXEC;
        nix::fcntl::openat(root, path, flags, Mode::from_bits_truncate(0o644))
            .with_context(|| format!("make {path}"))?;
    }
    Ok(mount::attach(file, open_path(root, path)?.as_fd())?)
}

fn make_nodes(root: BorrowedFd<'_>) -> anyhow::Result<()> {
    let dev = open_path(root, "dev")?;
    for (name, major, minor) in NODES {
        mknodat(&dev, name, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(major, minor))
            .with_context(|| format!("make {name}"))?;
    }
    for (name, target) in LINKS {
        nix::unistd::symlinkat(target, dev.as_fd(), name).with_context(|| format!("make {name}"))?;
    }
    Ok(())
}

/// Covers the paths that Kubernetes covers. A path that this machine lacks needs no cover.
fn cover(root: BorrowedFd<'_>) -> anyhow::Result<()> {
    let null = open_path(root, "dev/null")?;
    for path in MASKED.iter().filter_map(|path| open_path(root, path).ok()) {
        mount::attach(mount::copy_tree_fd(null.as_fd(), Depth::One)?.as_fd(), path.as_fd())?;
    }
    for path in HIDDEN.iter().filter_map(|path| open_path(root, path).ok()) {
        let empty = mount::new_filesystem("tmpfs", &[("size", "0")], Attributes::READ_ONLY)?;
        mount::attach(empty.as_fd(), path.as_fd())?;
    }
    for path in READ_ONLY.iter().filter_map(|path| open_path(root, path).ok()) {
        let copy = mount::copy_tree_fd(path.as_fd(), Depth::Recursive)?;
        mount::propagate(copy.as_fd(), Propagation::Private, Depth::Recursive)?;
        mount::forbid(copy.as_fd(), Attributes::READ_ONLY, Depth::Recursive)?;
        mount::attach(copy.as_fd(), path.as_fd())?;
    }
    Ok(())
}
