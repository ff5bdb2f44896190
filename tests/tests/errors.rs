//! The class of an error, at every stage at which the kernel may refuse something: a machine that ran short of
//! something is told from one that refuses, and neither is ever taken for a fault of the request. `cri/src/status.rs`
//! turns each class into one gRPC code.
#![expect(
    clippy::tests_outside_test_module,
    clippy::panic,
    reason = "an integration test is nothing but tests"
)]

use std::path::PathBuf;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use wharf_cri_api::v1::{
    ContainerConfig, Device, PodSandboxConfig, SecurityProfile, security_profile::ProfileType,
};
use wharf_host::Machine;
use wharf_planner::{Defaults, Refusal, Request, Switch, Unread};
use wharf_supervision::SupervisorError;
use wharf_types::{ContainerId, ErrorKind, Failure, PodId, StageError, Subject, chain};
use wharf_wire::v1;

/// What the errno of a call means when the request names nothing that the call is about, and when it does.
const TABLE: [(Errno, ErrorKind, ErrorKind); 13] = [
    (Errno::ENOSPC, ErrorKind::ResourceExhausted, ErrorKind::ResourceExhausted),
    (Errno::EDQUOT, ErrorKind::ResourceExhausted, ErrorKind::ResourceExhausted),
    (Errno::ENOMEM, ErrorKind::ResourceExhausted, ErrorKind::ResourceExhausted),
    (Errno::EMFILE, ErrorKind::ResourceExhausted, ErrorKind::ResourceExhausted),
    (Errno::ENFILE, ErrorKind::ResourceExhausted, ErrorKind::ResourceExhausted),
    (Errno::EAGAIN, ErrorKind::ResourceExhausted, ErrorKind::ResourceExhausted),
    (Errno::EACCES, ErrorKind::Internal, ErrorKind::InvalidArgument),
    (Errno::EPERM, ErrorKind::Internal, ErrorKind::InvalidArgument),
    (Errno::EROFS, ErrorKind::Internal, ErrorKind::InvalidArgument),
    (Errno::EFBIG, ErrorKind::Internal, ErrorKind::InvalidArgument),
    (Errno::EIO, ErrorKind::Internal, ErrorKind::Internal),
    (Errno::ESTALE, ErrorKind::Internal, ErrorKind::Internal),
    (Errno::EBADF, ErrorKind::Internal, ErrorKind::Internal),
];

type Causes = Vec<(&'static str, Arc<dyn Failure>)>;

fn io(errno: Errno) -> std::io::Error {
    errno.into()
}

fn call(errno: Errno) -> wharf_sys::Error {
    wharf_sys::Error::new("open", "/x", errno)
}

fn path() -> PathBuf {
    "/x".into()
}

/// The errno in the form in which each crate passes it on, where the request names nothing that the call is about.
fn machines(errno: Errno) -> Causes {
    let mut causes: Causes = vec![
        ("an errno", Arc::new(errno)),
        ("an I/O error", Arc::new(io(errno))),
        ("sys", Arc::new(call(errno))),
        (
            "state",
            Arc::new(wharf_state::record::Error::Io {
                operation: "writing",
                path: path(),
                source: io(errno),
            }),
        ),
        (
            "cgroup: a file",
            Arc::new(wharf_cgroup::Error::Io { action: "create", path: path(), source: io(errno) }),
        ),
        (
            "cgroup: a value",
            Arc::new(wharf_cgroup::Error::Write { file: path(), value: "1".into(), source: io(errno) }),
        ),
        ("cgroup: a process", Arc::new(wharf_cgroup::Error::Kill { pid: 2, source: call(errno) })),
        ("cgroup: a score", Arc::new(wharf_cgroup::Error::OomScore { pid: 2, source: call(errno) })),
        (
            "cgroup: devices",
            Arc::new(wharf_cgroup::Error::DeviceFilter { path: path(), source: call(errno) }),
        ),
        (
            "snapshots",
            Arc::new(wharf_snapshots::SnapshotError {
                what: "prepare",
                name: "x".into(),
                source: call(errno),
            }),
        ),
        ("network: links", Arc::new(wharf_network::Error::Netlink(netlink(errno)))),
        ("network: records", Arc::new(wharf_network::Error::Store(store(errno)))),
        (
            "network: settings",
            Arc::new(wharf_network::Error::Builtin(wharf_network::BuiltinError::Sysctl(
                wharf_network::SysctlError { operation: "set x".into(), source: io(errno) },
            ))),
        ),
        (
            "network: a plugin",
            Arc::new(wharf_network::Error::Cni(wharf_network::CniError::Run {
                plugin: "bridge".into(),
                command: "ADD",
                source: io(errno),
            })),
        ),
        ("network: a namespace", Arc::new(wharf_network::NetnsError::Pin { path: path(), source: errno })),
        ("isolation", Arc::new(wharf_isolation::Error::Stage { stage: "making it", source: call(errno) })),
        (
            "isolation: a mount",
            Arc::new(wharf_isolation::Error::Mount {
                what: "tmpfs".into(),
                target: "/x".into(),
                source: call(errno),
            }),
        ),
        (
            "isolation: an image",
            Arc::new(wharf_isolation::Error::ImageVolume { target: "/x".into(), source: call(errno) }),
        ),
        ("host: a stage", Arc::new(wharf_host::Error::Stage(StageError::at("making it", call(errno))))),
        ("the supervisor", Arc::new(sent(&call(errno)))),
    ];
    causes.extend(of_images(errno));
    causes
}

fn of_images(errno: Errno) -> Causes {
    vec![
        ("images", Arc::new(wharf_images::StoreError::System { what: "sweep", source: call(errno) })),
        ("images: an archive", Arc::new(wharf_images::LoadError::System { source: call(errno) })),
        (
            "images: saved",
            Arc::new(wharf_images::SaveError::System { path: "x".into(), source: call(errno) }),
        ),
    ]
}

fn netlink(errno: Errno) -> wharf_network::NetlinkError {
    wharf_network::NetlinkError { operation: "add a link".into(), errno }
}

fn store(errno: Errno) -> wharf_network::StoreError {
    wharf_network::StoreError::Input { operation: "write", path: path(), source: io(errno) }
}

/// The same where the request names what the call is about.
fn named(errno: Errno) -> Causes {
    let host = wharf_isolation::Error::HostPath { path: "/x".into(), source: call(errno) };
    let container =
        wharf_isolation::Error::ContainerPath { what: "the path", path: "/x".into(), source: call(errno) };
    let part = wharf_isolation::Error::SubPath { target: "/x".into(), path: "y".into(), source: call(errno) };
    let place =
        wharf_isolation::Error::MountPoint { what: "tmpfs".into(), target: "/x".into(), source: call(errno) };
    let unread = Unread { kind: wharf_types::failure::named(errno), problem: errno.desc().into() };
    vec![
        ("by a supervisor: a path of the host", Arc::new(sent(&host))),
        ("isolation: a path of the host", Arc::new(host)),
        ("isolation: a path in the container", Arc::new(container)),
        ("isolation: the place of a mount", Arc::new(place)),
        ("isolation: a part of an image", Arc::new(part)),
        ("host, planner", Arc::new(Refusal::unread("mounts", unread))),
    ]
}

/// A failure as a supervisor sends it and the daemon receives it.
fn sent(error: &dyn Failure) -> SupervisorError {
    let failure = v1::Failure {
        kind: v1::failure::Kind::from(error.kind()).into(),
        subject: v1::failure::Subject::from(error.subject()).into(),
        message: chain(error),
    };
    failure.into()
}

#[test]
fn at_each_stage_a_machine_that_ran_short_is_told_from_one_that_refuses() {
    for (errno, of_machine, of_request) in TABLE {
        for (causes, kind) in [(machines(errno), of_machine), (named(errno), of_request)] {
            for (place, cause) in causes {
                assert_eq!(cause.kind(), kind, "{place}: {cause:?}");
                let why = chain(&cause);
                let error = wharf_pods::Error::from(StageError { stage: "making it", cause });
                assert_eq!(error.kind(), kind, "{place}: {error:?}");
                assert_eq!(chain(&error), format!("making it: {why}"), "{place}");
            }
        }
    }
}

#[test]
fn what_the_work_misses_is_not_what_the_request_names() {
    for (place, cause) in machines(Errno::ENOENT) {
        let kind = wharf_pods::Error::from(StageError { stage: "making it", cause }).kind();
        assert!(matches!(kind, ErrorKind::Internal | ErrorKind::FailedPrecondition), "{place}: {kind:?}");
    }
}

#[test]
fn what_it_is_about_arrives_with_it() {
    let image = wharf_isolation::Error::ImageVolume { target: "/x".into(), source: call(Errno::EIO) };
    assert_eq!(sent(&image).subject(), Subject::ImageVolume);
    assert_eq!(sent(&call(Errno::EIO)).subject(), Subject::Other);
    // A supervisor of an earlier release names no subject.
    let earlier = v1::Failure { kind: 6, message: "image volume /x: no room".into(), ..Default::default() };
    let earlier = SupervisorError::from(earlier);
    assert_eq!((earlier.kind(), earlier.subject()), (ErrorKind::ResourceExhausted, Subject::Other));
}

/// The facts for a container that names a device and a profile, as the planner takes them.
fn planned(machine: &Machine, device: &str, profile: &str) -> (ErrorKind, ErrorKind) {
    let (pod_id, id) = (PodId::from_random([1; 32]), ContainerId::from_random([2; 32]));
    let mut container = ContainerConfig {
        devices: vec![Device {
            host_path: device.to_owned(),
            container_path: "/dev/x".to_owned(),
            permissions: "r".to_owned(),
        }],
        ..ContainerConfig::default()
    };
    let security = container.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.seccomp = Some(SecurityProfile {
        profile_type: ProfileType::Localhost.into(),
        localhost_ref: profile.to_owned(),
        ..SecurityProfile::default()
    });
    let request = Request {
        pod_id: &pod_id,
        pod: &PodSandboxConfig::default(),
        id: &id,
        container: &container,
        image: &Default::default(),
        mounted: &[],
        profile: None,
        defaults: &Defaults::default(),
        unasked_apparmor: Switch::On,
        selinux: wharf_planner::Selinux::Off,
    };
    let Ok(facts) = wharf_host::facts(&request, machine) else { panic!("the facts cannot be had") };
    let kind = |unread: &Unread| Refusal::unread("x", unread.clone()).kind();
    let ([Err(device)], Some(Err(profile))) = (&facts.devices[..], &facts.seccomp_profile) else {
        panic!("{facts:?}")
    };
    (kind(device), kind(profile))
}

/// This is the only test here that opens files, because it leaves this process none to open.
#[test]
fn a_process_without_a_free_descriptor_does_not_blame_the_request() {
    let directory = tempfile::tempdir().unwrap();
    let profile = directory.path().join("profile");
    std::fs::write(&profile, "{}").unwrap();
    let (directory, profile) = (directory.path().to_str().unwrap(), profile.to_str().unwrap());
    let missing = format!("{directory}/none");
    let machine = Machine::look().unwrap();
    let blamed = ErrorKind::InvalidArgument;
    assert_eq!(planned(&machine, &missing, &missing), (blamed, blamed));
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 0, hard).unwrap();
    let short = planned(&machine, directory, profile);
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    assert_eq!(short, (ErrorKind::ResourceExhausted, ErrorKind::ResourceExhausted));
}
