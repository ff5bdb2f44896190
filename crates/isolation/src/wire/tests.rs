//! A plan arrives as it was sent, or is refused.

use super::*;
use wharf_types::{ContainerId, OwnerId, Reserve};

fn host(path: &str) -> HostPath {
    HostPath::new(path).unwrap()
}

fn inside(path: &str) -> ContainerPath {
    ContainerPath::new(path).unwrap()
}

fn id(byte: u8) -> ContainerId {
    ContainerId::from_random([byte; 32])
}

fn mount(target: &str, source: Source, propagation: Propagation) -> MountPlan {
    let attributes = Attributes::READ_ONLY.and(Attributes::NO_SUID);
    let (target, ids) = (inside(target), Ids::Containers);
    MountPlan { target, source, attributes, recursive_read_only: true, propagation, ids }
}

/// A plan in which everything is set.
fn full() -> Plan {
    let options = vec![("size".to_owned(), "64k".to_owned()), ("newinstance".to_owned(), String::new())];
    Plan {
        container: id(1),
        rootfs: Rootfs {
            lowers: vec![host("/layers/top"), host("/layers/base")],
            upper: host("/snapshots/upper"),
            work: host("/snapshots/work"),
            read_only: true,
            propagation: Propagation::Shared,
        },
        namespaces: Namespaces {
            net: Some(host("/pod/net")),
            ipc: Some(host("/pod/ipc")),
            uts: Some(host("/pod/uts")),
            user: Some(users()),
            pid: PidNamespace::Target(id(2)),
            cgroup: true,
        },
        cgroup: CgroupPlan {
            directory: Some(host("/cgroup/unified")),
            entries: vec![host("/cgroup/memory/tasks")],
            kill_directory: host("/cgroup/unified"),
            oom_file: Some(host("/cgroup/memory/memory.oom_control")),
        },
        mounts: vec![
            mount("/tree", Source::Tree(host("/a")), Propagation::Private),
            mount("/single", Source::Single(host("/b")), Propagation::Slave),
            mount("/volume", Source::Volume(host("/c")), Propagation::Shared),
            mount("/etc/hosts", Source::OfPod(host("/pod/hosts")), Propagation::Private),
            mount("/new", Source::Filesystem { kind: "tmpfs".to_owned(), options }, Propagation::Private),
        ],
        devices: vec![DeviceNode {
            path: inside("/dev/fuse"),
            kind: 0o020_000,
            major: 10,
            minor: 229,
            mode: 0o666,
            uid: OwnerId::new(1).unwrap(),
            gid: OwnerId::new(2).unwrap(),
        }],
        mount_label: Some(SelinuxLabel::new("system_u:object_r:container_file_t:s0:c1,c2").unwrap()),
        masked_paths: vec![inside("/proc/keys")],
        readonly_paths: vec![inside("/proc/sys")],
        process: process(),
        stdio: Stdio {
            log: Some(LogFile {
                directory: host("/logs"),
                name: "main/0.log".to_owned(),
                limits: LogLimits { line_bytes: 1024, file_bytes: 1 << 20 },
            }),
            input: Input::Once,
            terminal: true,
        },
        reserve: Reserve { bytes: 512 << 20, inodes: 10_000 },
        runtime: Some(runtime()),
        runtime_spec: b"{\"hooks\":{}}".to_vec(),
    }
}

fn runtime() -> Runtime {
    Runtime {
        program: host("/usr/sbin/runc"),
        options: vec!["--debug".to_owned()],
        state_directory: host("/pod/runtime/state"),
        bundle_directory: host("/pod/runtime/bundle"),
        process: b"{}".to_vec(),
        sandbox: Some(Sandbox {
            id: "pod".to_owned(),
            spec: b"{\"root\":{}}".to_vec(),
            cgroup: CgroupPlan {
                directory: Some(host("/sys/fs/cgroup/pod/sandbox")),
                entries: vec![host("/sys/fs/cgroup/cpu/pod/sandbox/tasks")],
                kill_directory: host("/sys/fs/cgroup/pod/sandbox"),
                oom_file: Some(host("/sys/fs/cgroup/pod/sandbox/memory.events")),
            },
        }),
    }
}

fn users() -> UserNamespace {
    let range = |first, count| IdRange::new(first, count).unwrap();
    let ids = IdMaps { users: range(100_000, 65_536), groups: range(200_000, 1000) };
    UserNamespace { path: host("/pod/user"), ids }
}

fn process() -> Process {
    Process {
        args: vec![b"/bin/sh".to_vec(), b"-c".to_vec(), b"\xff".to_vec()],
        env: vec![b"A=\xfe".to_vec()],
        cwd: inside("/srv"),
        user: User {
            user: "me".to_owned(),
            group: "7".to_owned(),
            additional_groups: [8, 9].map(|id| OwnerId::new(id).unwrap()).to_vec(),
            strict: true,
        },
        capabilities: Capabilities { bounding: 1, effective: 2, permitted: 3, inheritable: 4, ambient: 5 },
        no_new_privileges: true,
        limits: vec![Limit { resource: 7, soft: 1024, hard: u64::MAX }],
        oom_score_adj: Some(-998),
        traits: Traits {
            umask: 0o077,
            scheduling: Some(Scheduling { policy: 1, nice: -3, priority: 5 }),
            io_priority: Some((2, 7)),
            personality: Some(8),
        },
        apparmor: Some(ProfileName::new("mine").unwrap()),
        selinux: Some(SelinuxLabel::new("system_u:system_r:container_t:s0:c1,c2").unwrap()),
        seccomp: vec![6, 0, 0, 0, 0, 0, 0xff, 0x7f],
        seccomp_flags: 2,
    }
}

fn sent(plan: &Plan) -> Result<Plan, String> {
    Plan::try_from(v1::Plan::from(plan))
}

#[test]
fn a_plan_arrives_as_it_was_sent() {
    let plan = full();
    assert_eq!(sent(&plan), Ok(plan.clone()));
    let mut plain = plan;
    let pid = PidNamespace::Host;
    plain.namespaces = Namespaces { net: None, ipc: None, uts: None, user: None, pid, cgroup: false };
    plain.mounts.iter_mut().for_each(|mount| mount.ids = Ids::Hosts);
    plain.cgroup = CgroupPlan { directory: None, entries: Vec::new(), oom_file: None, ..plain.cgroup };
    plain.stdio = Stdio { log: None, input: Input::Empty, terminal: false };
    (plain.runtime, plain.runtime_spec) = (None, Vec::new());
    plain.process.oom_score_adj = None;
    plain.process.traits = Traits::default();
    plain.process.apparmor = None;
    plain.rootfs.propagation = Propagation::Private;
    assert_eq!(sent(&plain), Ok(plain.clone()));
    for pid in [PidNamespace::Container, PidNamespace::Pod] {
        plain.namespaces.pid = pid;
        assert_eq!(sent(&plain), Ok(plain.clone()));
    }
    plain.stdio.input = Input::Kept;
    assert_eq!(sent(&plain), Ok(plain));
}

/// A daemon of an earlier release says nothing of them.
#[test]
fn what_is_not_sent_is_as_usual() {
    let mut message = v1::Plan::from(&full());
    message.process.as_mut().unwrap().traits = None;
    let stdio = message.stdio.as_mut().unwrap();
    (stdio.log_line_bytes, stdio.log_file_bytes) = (0, 0);
    let plan = Plan::try_from(message).unwrap();
    assert_eq!(plan.process.traits, Traits::default());
    assert_eq!(plan.stdio.log.unwrap().limits, LogLimits::default());
}

#[test]
fn the_supervisor_keeps_what_commands_need() {
    let Plan { container, namespaces, cgroup, process, stdio, runtime, mount_label, .. } = full();
    let kept = Outline { container, namespaces, cgroup, process, stdio, runtime, mount_label };
    let v1::Plan { container, namespaces, cgroup, process, stdio, runtime, mount_label, .. } =
        v1::Plan::from(&full());
    let message = v1::Outline { container, namespaces, cgroup, process, stdio, runtime, mount_label };
    assert_eq!(Outline::try_from(message), Ok(kept));
}

/// A supervisor of an earlier release knows no files of the pod, and binds them by their path.
#[test]
fn files_of_the_pod_are_single_files_for_an_earlier_release() {
    let file = v1::Plan::from(&full()).mounts.swap_remove(3);
    assert!(file.of_pod && file.single);
    let earlier = v1::Mount { of_pod: false, ..file };
    assert_eq!(mount_in(earlier).unwrap().source, Source::Single(host("/pod/hosts")));
}

/// What is changed in a message, and what is said of it.
type Case = (fn(&mut v1::Plan), &'static str);

const REFUSED: &[Case] = &[
    (|plan| plan.container.clear(), "id"),
    (|plan| plan.container = "../x".to_owned(), "id"),
    (|plan| plan.rootfs = None, "no rootfs"),
    (|plan| plan.rootfs.as_mut().unwrap().lowers[1] = "relative".to_owned(), "relative"),
    (|plan| plan.rootfs.as_mut().unwrap().upper.clear(), "path"),
    (|plan| plan.namespaces = None, "no namespaces"),
    (|plan| plan.namespaces.as_mut().unwrap().net = "net".to_owned(), "net"),
    (|plan| plan.namespaces.as_mut().unwrap().pid = 9, "9"),
    (|plan| plan.namespaces.as_mut().unwrap().pid_target.clear(), "id"),
    (|plan| plan.cgroup = None, "no cgroup"),
    (|plan| plan.cgroup.as_mut().unwrap().kill_directory.clear(), "path"),
    (|plan| plan.mounts[0].target = "relative".to_owned(), "relative"),
    (|plan| plan.mounts[0].source.clear(), "path"),
    (|plan| plan.mounts[0].propagation = 9, "9"),
    (|plan| plan.devices[0].path.clear(), "path"),
    (|plan| plan.masked_paths[0] = "keys".to_owned(), "keys"),
    (|plan| plan.readonly_paths[0].clear(), "path"),
    (|plan| plan.process = None, "no process"),
    (|plan| plan.process.as_mut().unwrap().args.clear(), "no program"),
    (|plan| plan.process.as_mut().unwrap().capabilities = None, "no capabilities"),
    (|plan| plan.process.as_mut().unwrap().cwd = "srv".to_owned(), "srv"),
    (|plan| plan.stdio = None, "no stdio"),
    (|plan| plan.runtime.as_mut().unwrap().program = "runc".to_owned(), "runc"),
    (|plan| plan.runtime.as_mut().unwrap().bundle_directory.clear(), "path"),
    (|plan| sandbox_of(plan).id.clear(), "no sandbox"),
    (|plan| sandbox_of(plan).id = "--root".to_owned(), "--root"),
    (|plan| sandbox_of(plan).cgroup = None, "no cgroup"),
    (|plan| plan.stdio.as_mut().unwrap().log_directory.clear(), "path"),
];

fn sandbox_of(plan: &mut v1::Plan) -> &mut v1::Sandbox {
    plan.runtime.as_mut().unwrap().sandbox.as_mut().unwrap()
}

#[test]
fn a_message_that_is_no_plan_is_refused_with_what_is_wrong() {
    for (at, (change, said)) in REFUSED.iter().enumerate() {
        let mut message = v1::Plan::from(&full());
        change(&mut message);
        let problem = Plan::try_from(message).unwrap_err();
        assert!(problem.contains(said), "{at}: {problem:?} does not say {said:?}");
    }
    let garbage = Plan::decode(b"\xff").unwrap_err();
    assert!(matches!(garbage, Error::Plan { .. }), "{garbage}");
    assert!(matches!(Outline::decode(b"\xff"), Err(Error::Plan { .. })));
}
