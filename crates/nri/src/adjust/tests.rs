//! Each adjustment, as it is in the spec afterwards.

use std::path::Path;

use super::*;
use crate::api::{
    IoPrioClass, LinuxIoPriority, LinuxResources, LinuxScheduler, LinuxSchedulerFlag, LinuxSchedulerPolicy,
    OptionalInt, OptionalString, OptionalUInt32, PosixRlimit,
};

fn linux_with(change: impl FnOnce(&mut LinuxContainerAdjustment)) -> Result<oci::Linux, String> {
    let mut spec = oci::Spec::default().linux().clone().unwrap_or_default();
    let mut new = LinuxContainerAdjustment::default();
    change(&mut new);
    let adjusted = linux(&mut spec, &new);
    adjusted.map(|()| spec).map_err(|problem| format!("{}: {}", problem.field, problem.problem))
}

fn process_with(change: impl FnOnce(&mut ContainerAdjustment)) -> Result<oci::Process, String> {
    let mut process = oci::Process::default();
    let mut new = ContainerAdjustment::default();
    change(&mut new);
    let adjusted = process::adjust(&mut process, &new);
    adjusted.map(|()| process).map_err(|problem| format!("{}: {}", problem.field, problem.problem))
}

#[test]
fn a_device_is_a_node_and_a_rule() {
    let device = |path: &str, mode| LinuxDevice {
        path: path.to_owned(),
        r#type: "c".to_owned(),
        major: 1,
        minor: 3,
        file_mode: Some(OptionalUInt32 { value: mode }),
        ..LinuxDevice::default()
    };
    for (mode, letters) in [(0o444, "rm"), (0o600, "rwm"), (0o200, "wm"), (0, "m")] {
        let spec = linux_with(|new| new.devices = vec![device("/dev/x", mode)]).unwrap();
        let nodes = spec.devices().clone().unwrap();
        let node = nodes.iter().find(|node| node.path() == Path::new("/dev/x")).unwrap();
        assert_eq!((node.major(), node.minor(), node.file_mode()), (1, 3, Some(mode)));
        let rules = spec.resources().clone().unwrap().devices().clone().unwrap();
        assert_eq!(rules.last().unwrap().access().as_deref(), Some(letters));
    }
    let removed = linux_with(|new| new.devices = vec![device("/dev/x", 0), device("-/dev/x", 0)]).unwrap();
    assert!(!removed.devices().iter().flatten().any(|node| node.path() == Path::new("/dev/x")));
    let refused = linux_with(|new| new.devices = vec![LinuxDevice { r#type: "z".into(), ..device("/d", 0) }]);
    assert_eq!(refused.unwrap_err(), "devices: \"z\" is not known");
}

#[test]
fn namespaces_are_replaced_and_removed() {
    let namespace = |kind: &str, path: &str| LinuxNamespace { r#type: kind.into(), path: path.into() };
    let spec = linux_with(|new| {
        new.namespaces =
            vec![namespace("network", "/run/netns/x"), namespace("-ipc", ""), namespace("time", "")];
    });
    let spec = spec.unwrap();
    let found = |kind| spec.namespaces().iter().flatten().find(|known| known.typ() == kind).cloned();
    let network = found(oci::LinuxNamespaceType::Network).unwrap();
    assert_eq!(network.path().as_deref(), Some(Path::new("/run/netns/x")));
    assert!(found(oci::LinuxNamespaceType::Ipc).is_none());
    assert_eq!(found(oci::LinuxNamespaceType::Time).unwrap().path(), &None);
    let refused = linux_with(|new| new.namespaces = vec![namespace("space", "")]).unwrap_err();
    assert_eq!(refused, "namespaces: \"space\" is not known");
}

#[test]
fn a_policy_is_the_specs() {
    let policy = |action: &str, op: &str| LinuxSeccomp {
        default_action: action.to_owned(),
        default_errno: Some(OptionalUInt32 { value: 38 }),
        architectures: vec!["SCMP_ARCH_X86_64".to_owned()],
        flags: vec!["SECCOMP_FILTER_FLAG_LOG".to_owned()],
        syscalls: vec![LinuxSyscall {
            names: vec!["personality".to_owned()],
            action: "SCMP_ACT_ERRNO".to_owned(),
            errno_ret: Some(OptionalUInt32 { value: 1 }),
            args: vec![crate::api::LinuxSeccompArg { index: 0, value: 8, value_two: 0, op: op.to_owned() }],
        }],
        ..LinuxSeccomp::default()
    };
    let spec = linux_with(|new| new.seccomp_policy = Some(policy("SCMP_ACT_ERRNO", "SCMP_CMP_EQ"))).unwrap();
    let seccomp = spec.seccomp().clone().unwrap();
    assert_eq!(seccomp.default_action(), oci::LinuxSeccompAction::ScmpActErrno);
    assert_eq!(seccomp.default_errno_ret(), Some(38));
    let syscalls = seccomp.syscalls().clone().unwrap();
    assert_eq!((syscalls[0].names()[0].as_str(), syscalls[0].errno_ret()), ("personality", Some(1)));
    for (action, op) in [("SCMP_ACT_DANCE", "SCMP_CMP_EQ"), ("SCMP_ACT_ALLOW", "EQUALS")] {
        let refused = linux_with(|new| new.seccomp_policy = Some(policy(action, op))).unwrap_err();
        assert!(refused.starts_with("seccomp_policy: ") && refused.ends_with(" is not known"), "{refused}");
    }
}

#[test]
fn classes_of_the_cache_and_policies_of_memory_are_passed_on() {
    let spec = linux_with(|new| {
        let clos_id = Some(OptionalString { value: "gold".into() });
        new.rdt = Some(LinuxRdt { clos_id, ..LinuxRdt::default() });
        new.memory_policy = Some(LinuxMemoryPolicy {
            mode: MpolMode::MpolBind.into(),
            nodes: "0".into(),
            flags: vec![MpolFlag::MpolFStaticNodes.into()],
        });
    });
    let spec = spec.unwrap();
    assert_eq!(spec.intel_rdt().as_ref().unwrap().clos_id().as_deref(), Some("gold"));
    let policy = spec.memory_policy().clone().unwrap();
    assert_eq!(policy.mode(), oci::MemoryPolicyModeType::MpolBind);
    let removed = linux_with(|new| new.rdt = Some(LinuxRdt { remove: true, ..LinuxRdt::default() }));
    assert_eq!(removed.unwrap().intel_rdt(), &None);
    let class = |name: &str| {
        linux_with(|new| {
            let rdt_class = Some(OptionalString { value: name.to_owned() });
            new.resources = Some(LinuxResources { rdt_class, ..LinuxResources::default() });
        })
    };
    assert!(class("gold").unwrap().intel_rdt().is_some() && class("").unwrap().intel_rdt().is_none());
}

#[test]
fn priorities_and_limits_are_the_programs() {
    let process = process_with(|new| {
        new.args = vec!["program".into()];
        new.rlimits = vec![PosixRlimit { r#type: "RLIMIT_CORE".into(), hard: 2, soft: 1 }];
        new.linux = Some(LinuxContainerAdjustment {
            oom_score_adj: Some(OptionalInt { value: -5 }),
            io_priority: Some(LinuxIoPriority { class: IoPrioClass::IoprioClassIdle.into(), priority: 0 }),
            scheduler: Some(LinuxScheduler {
                policy: LinuxSchedulerPolicy::SchedBatch.into(),
                nice: 3,
                flags: vec![LinuxSchedulerFlag::SchedFlagResetOnFork.into()],
                ..LinuxScheduler::default()
            }),
            ..LinuxContainerAdjustment::default()
        });
    });
    let process = process.unwrap();
    let limits = process.rlimits().clone().unwrap();
    assert!(limits.iter().any(|limit| (limit.hard(), limit.soft()) == (2, 1)));
    assert_eq!(process.oom_score_adj(), Some(-5));
    assert_eq!(process.io_priority().unwrap().class(), oci::IOPriorityClass::IoprioClassIdle);
    assert_eq!(process.scheduler().clone().unwrap().nice(), &Some(3));
    let refused = process_with(|new| {
        new.rlimits = vec![PosixRlimit { r#type: "RLIMIT_X".into(), ..Default::default() }]
    });
    assert_eq!(refused.unwrap_err(), "rlimits: \"RLIMIT_X\" is not known");
}

#[test]
fn mounts_nearer_to_the_root_come_first() {
    let mount = |destination: &str| Mount {
        destination: destination.to_owned(),
        r#type: "tmpfs".to_owned(),
        source: "tmpfs".to_owned(),
        ..Mount::default()
    };
    let mut spec = oci::Spec::default();
    spec.set_mounts(Some(vec![mount_of(&mount("/a/b")), mount_of(&mount("/old"))]));
    mounts(&mut spec, &[mount("/a"), mount("-/old"), mount("/a/b/c")]);
    let order: Vec<_> = spec.mounts().iter().flatten().map(|mount| mount.destination().clone()).collect();
    assert_eq!(order, ["/a", "/a/b", "/a/b/c"].map(PathBuf::from));
}

#[test]
fn hooks_and_annotations_are_added() {
    let mut spec = oci::Spec::default();
    let hook = Hook { path: "/bin/x".into(), timeout: Some(OptionalInt { value: 3 }), ..Hook::default() };
    let all = crate::api::Hooks {
        prestart: vec![hook.clone()],
        create_runtime: vec![hook.clone()],
        create_container: vec![hook.clone()],
        start_container: vec![hook.clone()],
        poststart: vec![hook.clone()],
        poststop: vec![hook],
    };
    let mut adjust = ContainerAdjustment { hooks: Some(all), ..ContainerAdjustment::default() };
    adjust.annotations = [("key".to_owned(), "value".to_owned()), ("-gone".to_owned(), String::new())].into();
    spec.set_annotations(Some([("gone".to_owned(), "x".to_owned())].into()));
    hooks(&mut spec, &adjust);
    annotations(&mut spec, &adjust);
    assert_eq!(spec.annotations().clone().unwrap(), [("key".to_owned(), "value".to_owned())].into());
    let text = serde_json::to_string(&spec).unwrap();
    for kind in ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"] {
        assert!(
            text.contains(&format!("\"{kind}\":[{{\"path\":\"/bin/x\",\"timeout\":3}}]")),
            "{kind}: {text}"
        );
    }
}
