//! A container for tests: its root is an overlay of a directory with links to the machine's `/usr`, which is bound
//! there.

use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns, unshare};
use wharf_isolation::{
    CgroupPlan, DeviceNode, Ids, Input, MountPlan, Namespaces, PidNamespace, Plan, Process, Rootfs, Source,
    Stdio, Traits, User,
};
use wharf_sys::capabilities::Capabilities;
use wharf_sys::mount::{self, Attributes, Propagation};
use wharf_types::{ContainerPath, HostPath, OwnerId, Reserve};

pub(crate) fn host(path: impl AsRef<Path>) -> HostPath {
    HostPath::new(path.as_ref().to_str().unwrap()).unwrap()
}

pub(crate) fn inner(path: &str) -> ContainerPath {
    ContainerPath::new(path).unwrap()
}

pub(crate) fn mount(target: &str, source: Source) -> MountPlan {
    MountPlan {
        target: inner(target),
        source,
        attributes: Attributes::NONE,
        recursive_read_only: false,
        propagation: Propagation::Private,
        ids: Ids::Hosts,
    }
}

fn filesystem(target: &str, kind: &str, options: &[(&str, &str)]) -> MountPlan {
    let options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    mount(target, Source::Filesystem { kind: kind.to_owned(), options })
}

fn null_device() -> DeviceNode {
    let path = inner("/dev/null");
    DeviceNode {
        path,
        kind: 0o020_000,
        major: 1,
        minor: 3,
        mode: 0o666,
        uid: OwnerId::ROOT,
        gid: OwnerId::ROOT,
    }
}

/// A container that runs a line of shell, in its own directory.
pub(crate) fn plan(directory: &Path, script: &str) -> Plan {
    let layer = directory.join("layer");
    for name in ["layer/etc", "upper", "work"] {
        fs::create_dir_all(directory.join(name)).unwrap();
    }
    for name in ["bin", "sbin", "lib", "lib64"] {
        symlink(format!("usr/{name}"), layer.join(name)).unwrap();
    }
    fs::write(layer.join("etc/passwd"), "me:x:1000:1001::/users/me:/bin/sh\n").unwrap();
    let all = wharf_sys::capabilities::bounding().unwrap();
    Plan {
        container: "c".repeat(64).parse().unwrap(),
        rootfs: Rootfs {
            lowers: vec![host(&layer)],
            upper: host(directory.join("upper")),
            work: host(directory.join("work")),
            read_only: false,
            propagation: Propagation::Private,
        },
        namespaces: Namespaces {
            net: None,
            ipc: None,
            uts: None,
            user: None,
            pid: PidNamespace::Container,
            cgroup: true,
        },
        cgroup: CgroupPlan {
            directory: None,
            entries: Vec::new(),
            kill_directory: host("/nowhere"),
            oom_file: None,
        },
        mounts: vec![
            filesystem("/proc", "proc", &[]),
            filesystem("/dev", "tmpfs", &[("mode", "755")]),
            mount("/usr", Source::Tree(host("/usr"))),
        ],
        devices: vec![null_device()],
        mount_label: None,
        masked_paths: Vec::new(),
        readonly_paths: Vec::new(),
        process: Process {
            args: ["sh", "-c", script].map(|word| word.as_bytes().to_vec()).to_vec(),
            env: vec![b"PATH=/no:/bin".to_vec(), b"KEY=value".to_vec()],
            cwd: inner("/new/directory"),
            user: User::default(),
            capabilities: Capabilities {
                bounding: all,
                effective: all,
                permitted: all,
                inheritable: 0,
                ambient: 0,
            },
            no_new_privileges: false,
            limits: Vec::new(),
            oom_score_adj: None,
            traits: Traits::default(),
            apparmor: None,
            selinux: None,
            seccomp: Vec::new(),
            seccomp_flags: 0,
        },
        stdio: Stdio { log: None, input: Input::Empty, terminal: false },
        reserve: Reserve::default(),
        runtime: None,
        runtime_spec: Vec::new(),
    }
}

/// A pod's mount namespace with one file in it, and an empty one.
pub(crate) fn pod() -> [OwnedFd; 2] {
    let files = mount::new_filesystem("tmpfs", &[("mode", "755")], Attributes::NO_DEV).unwrap();
    fs::write(wharf_sys::fs::proc_path(files.as_fd()).join("hosts"), "of the pod").unwrap();
    let empty = mount::empty_namespace().unwrap();
    let make = || {
        let thread = mount::OwnThread::open().unwrap();
        unshare(CloneFlags::CLONE_FS).unwrap();
        setns(&empty, CloneFlags::CLONE_NEWNS).unwrap();
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let root = wharf_sys::fs::open("/", OFlag::O_PATH | OFlag::O_DIRECTORY).unwrap();
        mount::attach(files.as_fd(), root.as_fd()).unwrap();
        thread.namespace("mnt").unwrap()
    };
    let mounts = std::thread::scope(|scope| scope.spawn(make).join()).unwrap();
    [mounts, empty]
}
