//! The plan: what is done to make one container. It has only numbers, names and paths, and leaves no choice.
//!
//! It is plain data, made by the planner and sent to the supervisor. It is not a request: nothing in it has a default,
//! and what it does not name does not happen.

use wharf_sys::capabilities::Capabilities;
use wharf_sys::mount::{Attributes, Propagation};
use wharf_sys::scheduling::Scheduling;
use wharf_types::{
    ContainerId, ContainerPath, HostPath, IdMaps, OwnerId, ProfileName, Reserve, SelinuxLabel,
};

/// Everything that is needed to make one container and to execute its program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The container's id.
    pub container: ContainerId,
    /// Its root file system.
    pub rootfs: Rootfs,
    /// Its namespaces.
    pub namespaces: Namespaces,
    /// Its cgroup.
    pub cgroup: CgroupPlan,
    /// Its mounts, in order.
    pub mounts: Vec<MountPlan>,
    /// The device nodes in its `/dev`.
    pub devices: Vec<DeviceNode>,
    /// The SELinux label of the files on the file systems that are made for it: its root, its `/dev`, images.
    pub mount_label: Option<SelinuxLabel>,
    /// Paths that read as empty.
    pub masked_paths: Vec<ContainerPath>,
    /// Paths that cannot be written.
    pub readonly_paths: Vec<ContainerPath>,
    /// Its program.
    pub process: Process,
    /// Where its input and output go.
    pub stdio: Stdio,
    /// What must stay free on the disk of its volumes.
    pub reserve: Reserve,
    /// The runtime that makes it, if that is another one.
    pub runtime: Option<Runtime>,
    /// The spec for that runtime, as an object in JSON without `process` and `mounts`.
    pub runtime_spec: Vec<u8>,
}

/// The part of a plan that the supervisor keeps as long as the container lives. The rest is only for the container's
/// first process, which decodes it in its own memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outline {
    /// Which container.
    pub container: ContainerId,
    /// Its namespaces.
    pub namespaces: Namespaces,
    /// Its cgroup.
    pub cgroup: CgroupPlan,
    /// The container's program, also the basis of other commands executed in it.
    pub process: Process,
    /// Where its input and output go.
    pub stdio: Stdio,
    /// The runtime that made it, if that is another one.
    pub runtime: Option<Runtime>,
    /// The SELinux label of the files on the file systems that are made for it.
    pub mount_label: Option<SelinuxLabel>,
}

/// A runtime with OCI's command line, for a container that it is to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime {
    /// Its program.
    pub program: HostPath,
    /// What comes before each of its commands.
    pub options: Vec<String>,
    /// The directory in which it keeps its state.
    pub state_directory: HostPath,
    /// An empty directory, over which bundles are mounted where only the runtime sees them.
    pub bundle_directory: HostPath,
    /// The process of its spec, as an object in JSON without what the container's own files and each command decide:
    /// the user, the arguments, the environment, and whether there is a terminal.
    pub process: Vec<u8>,
    /// The sandbox in which it runs all containers of the pod, if it does.
    pub sandbox: Option<Sandbox>,
}

/// A sandbox with a kernel of its own, in which a runtime runs a pod's containers: no process of theirs is the host's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    /// The name by which the runtime knows it.
    pub id: String,
    /// The whole spec of the container that stands for it, as JSON. Its program is [`PAUSE`](crate::bundle::PAUSE).
    pub spec: Vec<u8>,
    /// Its cgroup, in which all processes of the pod are.
    pub cgroup: CgroupPlan,
}

/// An overlay of layers with a writable directory of the container's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rootfs {
    /// Layers, topmost first.
    pub lowers: Vec<HostPath>,
    /// The container's writable layer.
    pub upper: HostPath,
    /// Overlayfs's work directory beside `upper`.
    pub work: HostPath,
    /// Whether the root file system is read-only.
    pub read_only: bool,
    /// Private or shared: whether mount namespaces that its programs make see what is mounted in it later.
    pub propagation: Propagation,
}

/// The namespaces of the container's processes; `None` is the host's. Those of the pod are joined through the
/// descriptors of a [`PodNamespaces`](crate::PodNamespaces). The paths are only for people and for supervisors of an
/// earlier release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespaces {
    /// The pod's network namespace.
    pub net: Option<HostPath>,
    /// The pod's IPC namespace.
    pub ipc: Option<HostPath>,
    /// The pod's UTS namespace.
    pub uts: Option<HostPath>,
    /// The pod's user namespace.
    pub user: Option<UserNamespace>,
    /// The PID namespace.
    pub pid: PidNamespace,
    /// Whether the container sees its own cgroup as the root.
    pub cgroup: bool,
}

/// A pod's user namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserNamespace {
    /// Where it is found, as for the others.
    pub path: HostPath,
    /// Its users and groups.
    pub ids: IdMaps,
}

/// The PID namespace of the container's processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PidNamespace {
    /// Its own.
    Container,
    /// The pod's, whose first process is the reaper.
    Pod,
    /// The host's.
    Host,
    /// That of another container in the pod.
    Target(ContainerId),
}

/// How the container's processes enter its cgroup, and how all of them are reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupPlan {
    /// The unified directory into which the first process is cloned.
    pub directory: Option<HostPath>,
    /// The `tasks` files of v1 hierarchies to which a process writes itself.
    pub entries: Vec<HostPath>,
    /// The directory whose `cgroup.kill`, or `cgroup.procs` if there is none, reaches every process.
    pub kill_directory: HostPath,
    /// The file with the `oom_kill` counter.
    pub oom_file: Option<HostPath>,
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountPlan {
    /// The mount point, as the container sees it.
    pub target: ContainerPath,
    /// What is mounted.
    pub source: Source,
    /// The mount attributes.
    pub attributes: Attributes,
    /// Whether mounts below a bound tree are also read-only.
    pub recursive_read_only: bool,
    /// How later mounts propagate.
    pub propagation: Propagation,
    /// Whose ids those of its files are.
    pub ids: Ids,
}

/// Whose ids those of the files on a mount are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ids {
    /// The host's.
    Hosts,
    /// The same numbers in the container's user namespace.
    Containers,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A file or directory of the host, with all mounts below it.
    Tree(HostPath),
    /// A file or directory of the host, without the mounts below it.
    Single(HostPath),
    /// A file or directory in the pod's own file system, named by the last component of its path. The whole path is
    /// only for people and for supervisors of an earlier release.
    OfPod(HostPath),
    /// An image, or a part of it, that cannot be written.
    Image {
        /// Its layers, topmost first.
        layers: Vec<HostPath>,
        /// The file or directory that is mounted, from the image's root.
        sub_path: ContainerPath,
    },
    /// An empty directory of the host, which first gets what the root file system has at the mount point.
    Volume(HostPath),
    /// A new file system with options; an option with an empty value is a flag.
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
    /// Its path, as the container sees it.
    pub path: ContainerPath,
    /// `S_IFCHR` or `S_IFBLK`.
    pub kind: u32,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner, in the host's numbers.
    pub uid: OwnerId,
    /// Group, in the host's numbers.
    pub gid: OwnerId,
}

/// A program and its rights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// The program and its arguments; never empty.
    pub args: Vec<Vec<u8>>,
    /// `NAME=value` each.
    pub env: Vec<Vec<u8>>,
    /// The working directory, made if it is missing.
    pub cwd: ContainerPath,
    /// The user who runs it.
    pub user: User,
    /// Its capabilities.
    pub capabilities: Capabilities,
    /// Whether set-user-ID bits and file capabilities are ignored.
    pub no_new_privileges: bool,
    /// Resource limits to set.
    pub limits: Vec<Limit>,
    /// Its `oom_score_adj`, if it is to be set.
    pub oom_score_adj: Option<i32>,
    /// How it runs beside others.
    pub traits: Traits,
    /// The AppArmor profile that confines it; without one it has the supervisor's own.
    pub apparmor: Option<ProfileName>,
    /// Its SELinux label; without one it has that which the policy gives to programs of the supervisor.
    pub selinux: Option<SelinuxLabel>,
    /// A seccomp program, 8 bytes per instruction; empty for none.
    pub seccomp: Vec<u8>,
    /// The flags for seccomp(2).
    pub seccomp_flags: u32,
}

/// What a program inherits that is neither a right nor a limit. Each but the umask is the supervisor's if it is not
/// set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traits {
    /// The permissions that new files do not get.
    pub umask: u32,
    /// The policy for processors.
    pub scheduling: Option<Scheduling>,
    /// The class (1 real-time, 2 best effort, 3 idle) and the level (0 to 7) of its reads and writes.
    pub io_priority: Option<(u32, u32)>,
    /// The execution domain: personality(2).
    pub personality: Option<u32>,
}

impl Default for Traits {
    fn default() -> Self {
        Self { umask: 0o022, scheduling: None, io_priority: None, personality: None }
    }
}

/// The user of a process, before it is resolved with the files of the root file system.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct User {
    /// A number or a name; empty means root.
    pub user: String,
    /// A number or a name; empty means the user's primary group.
    pub group: String,
    /// Additional groups.
    pub additional_groups: Vec<OwnerId>,
    /// Whether the groups that the image gives the user are left out.
    pub strict: bool,
}

/// A resource limit by the kernel's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// `RLIMIT_*`.
    pub resource: u32,
    /// The soft limit.
    pub soft: u64,
    /// The hard limit.
    pub hard: u64,
}

/// Where the container's input and output go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stdio {
    /// The log, if there is one.
    pub log: Option<LogFile>,
    /// What its standard input is.
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
    /// What one attached client sends; it ends when that client's input does.
    Once,
}

/// A log file, as a directory and a name below it, so that no link leads elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFile {
    /// The pod's log directory.
    pub directory: HostPath,
    /// The file below it, without `..`.
    pub name: String,
    /// How long its records and the file may be.
    pub limits: LogLimits,
}

/// The limits of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogLimits {
    /// The longest text of one record, in bytes; a longer line has several.
    pub line_bytes: u32,
    /// The size from which the file begins anew, in bytes; 0 for none.
    pub file_bytes: u64,
}

impl Default for LogLimits {
    fn default() -> Self {
        // containerd splits at the same length.
        Self { line_bytes: 16 << 10, file_bytes: 0 }
    }
}
