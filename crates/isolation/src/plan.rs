//! The plan: what is done to make one container. Only numbers, names and paths are left; no choice.

use wharf_sys::capabilities::Capabilities;
use wharf_sys::mount::{Attributes, Propagation};
use wharf_types::{ContainerId, ContainerPath, HostPath};

/// Everything needed to make one container and to execute its program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Which container.
    pub container: ContainerId,
    /// Its root file system.
    pub rootfs: Rootfs,
    /// Its namespaces.
    pub namespaces: Namespaces,
    /// Its cgroup.
    pub cgroup: CgroupPlan,
    /// What is mounted, in this order.
    pub mounts: Vec<MountPlan>,
    /// Nodes made in its `/dev`.
    pub devices: Vec<DeviceNode>,
    /// Paths that read as empty.
    pub masked_paths: Vec<ContainerPath>,
    /// Paths that cannot be written.
    pub readonly_paths: Vec<ContainerPath>,
    /// Its program.
    pub process: Process,
    /// Where its input and output go.
    pub stdio: Stdio,
}

/// What the supervisor has to know of a plan, which it keeps as long as the container lives. The rest is for the container's
/// first process alone, which reads it in memory of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outline {
    /// Which container.
    pub container: ContainerId,
    /// Its namespaces.
    pub namespaces: Namespaces,
    /// Its cgroup.
    pub cgroup: CgroupPlan,
    /// Its program, and whatever else is executed in it.
    pub process: Process,
    /// Where its input and output go.
    pub stdio: Stdio,
}

/// An overlay of layers with a writable directory of the container's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rootfs {
    /// Layers, topmost first.
    pub lowers: Vec<HostPath>,
    /// What the container writes.
    pub upper: HostPath,
    /// Overlay's scratch directory beside `upper`.
    pub work: HostPath,
    /// Whether the container may not write its root.
    pub read_only: bool,
}

/// Which namespaces the container's processes are in. `None` is the host's. Those of the pod are joined by the descriptors
/// of a [`PodNamespaces`]; the paths are for people, and for supervisors of an earlier release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespaces {
    /// The pod's network namespace.
    pub net: Option<HostPath>,
    /// The pod's IPC namespace.
    pub ipc: Option<HostPath>,
    /// The pod's UTS namespace.
    pub uts: Option<HostPath>,
    /// The PID namespace.
    pub pid: PidNamespace,
    /// Whether the container sees its own cgroup as the root.
    pub cgroup: bool,
}

/// Which PID namespace the container's processes are in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PidNamespace {
    /// Its own.
    Container,
    /// The pod's, whose first process is the pod's reaper.
    Pod,
    /// The host's.
    Host,
    /// That of another container of the pod.
    Target(ContainerId),
}

/// How the container's processes get into its cgroup, and how all of them are reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupPlan {
    /// A v2 directory that the first process is cloned into.
    pub directory: Option<HostPath>,
    /// `tasks` files of v1 hierarchies that a process writes itself into.
    pub entries: Vec<HostPath>,
    /// The directory whose `cgroup.kill`, or else `cgroup.procs`, reaches every process.
    pub kill_directory: HostPath,
    /// The file with the `oom_kill` counter.
    pub oom_file: Option<HostPath>,
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountPlan {
    /// Where, as the container sees it.
    pub target: ContainerPath,
    /// What.
    pub source: Source,
    /// What the mount forbids.
    pub attributes: Attributes,
    /// Whether mounts below a bound tree are read-only too.
    pub recursive_read_only: bool,
    /// How later mounts propagate.
    pub propagation: Propagation,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A file or directory of the host with all mounts below it.
    Tree(HostPath),
    /// A file or directory of the host alone.
    Single(HostPath),
    /// A file or directory of the pod's own file system, by the last component of its path. The whole path is for people,
    /// and for supervisors of an earlier release.
    OfPod(HostPath),
    /// An empty directory of the host alone, which gets first what the root file system has at the target.
    Volume(HostPath),
    /// A new file system of a type, with options; an empty value is a flag.
    Filesystem {
        /// `proc`, `sysfs`, `tmpfs`, `devpts`, `mqueue`, `cgroup2`.
        kind: String,
        /// Its options.
        options: Vec<(String, String)>,
    },
}

/// A device node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceNode {
    /// Where, as the container sees it.
    pub path: ContainerPath,
    /// `S_IFCHR` or `S_IFBLK`.
    pub kind: u32,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// A program and the rights it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// The program and its arguments; never empty.
    pub args: Vec<Vec<u8>>,
    /// `NAME=value` each.
    pub env: Vec<Vec<u8>>,
    /// The working directory, made if it is missing.
    pub cwd: ContainerPath,
    /// Who it runs as.
    pub user: User,
    /// Its capabilities.
    pub capabilities: Capabilities,
    /// Whether set-user-ID bits and file capabilities have no effect.
    pub no_new_privileges: bool,
    /// Resource limits to set.
    pub limits: Vec<Limit>,
    /// Its score for the out-of-memory killer, if it is to be set.
    pub oom_score_adj: Option<i32>,
    /// A seccomp program, 8 bytes an instruction; empty for none.
    pub seccomp: Vec<u8>,
    /// Flags of seccomp(2).
    pub seccomp_flags: u32,
}

/// Who a process runs as, before the root file system's own files are asked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct User {
    /// A number or a name; empty is root.
    pub user: String,
    /// A number or a name; empty is the user's own group.
    pub group: String,
    /// Groups beside.
    pub additional_groups: Vec<u32>,
    /// Whether the groups that the image gives the user are left out.
    pub strict: bool,
}

/// A resource limit by the kernel's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// `RLIMIT_*`.
    pub resource: u32,
    /// The soft half.
    pub soft: u64,
    /// The hard half.
    pub hard: u64,
}

/// Where input and output of the container go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stdio {
    /// The log, if there is one.
    pub log: Option<LogFile>,
    /// What its input is.
    pub input: Input,
    /// Whether it has a terminal.
    pub terminal: bool,
}

/// What a container reads from its standard input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// Nothing.
    Empty,
    /// What attached clients send; it stays open.
    Kept,
    /// What one attached client sends; it ends with that client's.
    Once,
}

/// A log file by directory and the name below it, so that no link leads elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFile {
    /// The pod's log directory.
    pub directory: HostPath,
    /// The file below it, without `..`.
    pub name: String,
}
