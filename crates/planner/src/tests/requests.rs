//! The requests whose descriptions and plans are saved as text: each is the plainest one, changed in one point.

use wharf_cri_api::v1::security_profile::ProfileType;
use wharf_cri_api::v1::security_profile_base::BaseType;
use wharf_cri_api::v1::{
    Capability, CgroupMountMode, CgroupNamespace, Device, HugepageLimit, IdMapping, ImageSpec, Int64Value,
    KeyValue, LinuxContainerResources, LinuxContainerSecurityContext, LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext, Mount, MountPropagation, NamespaceMode, NamespaceOption, PodSandboxMetadata,
    SecurityProfile, SecurityProfileBase, Signal, SupplementalGroupsPolicy, UserNamespace,
};
use wharf_isolation::DeviceNode;
use wharf_sys::mount::Propagation;
use wharf_types::{ContainerPath, OwnerId};

use super::{Asked, host};
use crate::{MountSource, Switch, Unread};

/// A change of the plainest request.
pub(crate) struct Case {
    /// The file in which it is saved.
    pub(crate) topic: &'static str,
    pub(crate) name: &'static str,
    pub(crate) change: fn(&mut Asked),
}

pub(super) const fn case(topic: &'static str, name: &'static str, change: fn(&mut Asked)) -> Case {
    Case { topic, name, change }
}

pub(crate) const CASES: &[Case] = &[
    // The program.
    case("process", "a command replaces the image's", |asked| {
        asked.container.command = words("/bin/sh -c x")
    }),
    case("process", "arguments replace the image's", |asked| asked.container.args = words("--none")),
    case("process", "a command and arguments", |asked| {
        asked.container.command = words("/bin/sh");
        asked.container.args = words("-c x");
    }),
    case("process", "an image without an entrypoint", |asked| {
        asked.image.set_entrypoint(None);
    }),
    case("process", "the image's directory", |asked| {
        asked.image.set_working_dir(text("/srv//app/."));
    }),
    case("process", "the request's directory", |asked| {
        asked.image.set_working_dir(text("/srv"));
        asked.container.working_dir = "/data/../tmp".to_owned();
    }),
    case("process", "no new privileges", |asked| asked.security().no_new_privs = true),
    case("process", "a read-only root", |asked| asked.security().readonly_rootfs = true),
    case("process", "the image's stop signal", |asked| {
        asked.image.set_stop_signal(text("3"));
    }),
    case("process", "the request's stop signal", |asked| {
        asked.image.set_stop_signal(text("SIGQUIT"));
        asked.container.stop_signal = Signal::Sigrtminplus3.into();
    }),
    // The environment.
    case("environment", "the image's and the request's", |asked| {
        asked.image.set_env(Some(words("PATH=/bin A=image B=image NOTHING =odd")));
        asked.container.envs = vec![variable("B", b"asked"), variable("C", b"a=b"), variable("EMPTY", b"")];
    }),
    case("environment", "of a terminal", |asked| asked.container.tty = true),
    case("environment", "a terminal of another kind", |asked| {
        asked.container.tty = true;
        asked.container.envs = vec![variable("TERM", b"dumb")];
    }),
    case("environment", "a value that is not text", |asked| {
        asked.container.envs = vec![variable("RAW", b"a\xff"), variable("TEXT", b"b")];
    }),
    case("environment", "a pod without a name takes the machine's", |asked| asked.pod.hostname.clear()),
    case("environment", "a variable of the image that no program can have", |asked| {
        asked.image.set_env(Some(vec![format!("A={}", "x".repeat(128 << 10))]));
    }),
    case("environment", "more of the image than any program can have", |asked| {
        let variable = |number| format!("A{number}={}", "x".repeat(1000));
        asked.image.set_env(Some((0..3800).map(variable).collect()));
    }),
    case("process", "too many arguments", |asked| asked.container.args = vec!["x".repeat(1000); 3000]),
    // The user.
    case("user", "a number", |asked| asked.security().run_as_user = number(1000)),
    case("user", "a number and a group", |asked| {
        asked.security().run_as_user = number(1000);
        asked.security().run_as_group = number(0);
    }),
    case("user", "a name and a group", |asked| {
        asked.security().run_as_username = "me".to_owned();
        asked.security().run_as_group = number(50);
    }),
    case("user", "the image's names", |asked| {
        asked.image.set_user(text("me:staff"));
    }),
    case("user", "the image's numbers", |asked| {
        asked.image.set_user(text("1000:1001"));
    }),
    case("user", "what only looks like a number", |asked| {
        asked.image.set_user(text("+1"));
    }),
    case("user", "a name that is too long", |asked| asked.security().run_as_username = "u".repeat(256)),
    case("user", "a group's name that is too long", |asked| {
        asked.image.set_user(Some(format!("me:{}", "g".repeat(256))));
    }),
    case("user", "more groups", |asked| asked.security().supplemental_groups = vec![7, 5]),
    case("user", "no groups of the image", |asked| {
        asked.security().supplemental_groups_policy = SupplementalGroupsPolicy::Strict.into();
    }),
    // Capabilities.
    case("capabilities", "one more", |asked| capabilities(asked, "NET_ADMIN", "", "")),
    case("capabilities", "one less", |asked| capabilities(asked, "", "cap_net_raw", "")),
    case("capabilities", "none but one", |asked| capabilities(asked, "NET_BIND_SERVICE", "ALL", "")),
    case("capabilities", "an ambient one", |asked| capabilities(asked, "", "ALL", "NET_BIND_SERVICE")),
    case("capabilities", "all that the daemon has", |asked| {
        asked.facts.bounding = 0b1011;
        capabilities(asked, "ALL", "", "");
    }),
    case("capabilities", "a privileged container", privileged),
    // Mounts.
    case("mounts", "a directory", |asked| mount(asked, plain_mount("/data"), Propagation::Private)),
    case("mounts", "a read-only one", |asked| {
        let wanted = Mount { readonly: true, ..plain_mount("/data") };
        mount(asked, wanted, Propagation::Private);
    }),
    case("mounts", "read-only with all below it", |asked| {
        let wanted = Mount { readonly: true, recursive_read_only: true, ..plain_mount("/data") };
        mount(asked, wanted, Propagation::Private);
    }),
    case("mounts", "without programs and devices", |asked| {
        let wanted = Mount { mount_options: words("noexec nodev nosuid"), ..plain_mount("/data") };
        mount(asked, wanted, Propagation::Private);
    }),
    case("mounts", "what the host mounts later", |asked| {
        mount(asked, propagated(MountPropagation::PropagationHostToContainer), Propagation::Shared);
    }),
    case("mounts", "what either side mounts later", |asked| {
        privileged(asked);
        mount(asked, propagated(MountPropagation::PropagationBidirectional), Propagation::Shared);
    }),
    case("mounts", "deep ones come after those that they are in", |asked| {
        for place in ["/a/b/c", "/a", "/etc"] {
            mount(asked, plain_mount(place), Propagation::Private);
        }
    }),
    case("mounts", "one for a file of the pod's", |asked| {
        mount(asked, plain_mount("/etc/hosts"), Propagation::Private);
    }),
    case("mounts", "one for the whole of /dev", |asked| {
        mount(asked, plain_mount("/dev/"), Propagation::Private);
    }),
    case("mounts", "one for /sys", |asked| mount(asked, plain_mount("/sys"), Propagation::Private)),
    case("mounts", "volumes of the image", |asked| {
        asked.image.set_volumes(Some(words("/data /data/ cache /dev/x")));
    }),
    case("mounts", "a volume that the request mounts something over", |asked| {
        asked.image.set_volumes(Some(words("/data /cache")));
        mount(asked, plain_mount("/data"), Propagation::Private);
    }),
    case("mounts", "an image of one layer", |asked| image(asked, image_volume("/data"), &["/layers/one/fs"])),
    case("mounts", "a directory of an image of several layers, without programs", |asked| {
        let wanted = Mount {
            image_sub_path: "./etc//".to_owned(),
            mount_options: words("noexec"),
            recursive_read_only: true,
            ..image_volume("/etc/below")
        };
        image(asked, wanted, &["/layers/two/fs", "/layers/one/fs"]);
    }),
    case("mounts", "a sub path of what is no image", |asked| {
        let wanted = Mount { image_sub_path: "etc".to_owned(), ..plain_mount("/data") };
        mount(asked, wanted, Propagation::Private);
    }),
    case("mounts", "hierarchies of v1", |asked| {
        asked.places.cgroup.v1 = vec![
            ("cpu".to_owned(), host("/sys/fs/cgroup/cpu/wharf/p/c")),
            ("memory".to_owned(), host("/sys/fs/cgroup/memory/wharf/p/c")),
        ];
        asked.places.cgroup.unified = None;
    }),
    // Devices.
    case("devices", "one", |asked| device(asked, "rw", vec![node("/dev/fuse", 0o020_000, 10, 229)])),
    case("devices", "those of a directory, to be read", |asked| {
        let nodes = vec![node("/dev/a/1", 0o060_000, 8, 1), node("/dev/a/2", 0o060_000, 8, 2)];
        device(asked, "r", nodes);
    }),
    case("devices", "the machine's, and one", |asked| {
        privileged(asked);
        asked.facts.host_devices = vec![node("/dev/kmsg", 0o020_000, 1, 11)];
        device(asked, "rwm", vec![node("/dev/null", 0o020_000, 1, 7)]);
    }),
    // Namespaces.
    case("namespaces", "the host's network", |asked| {
        pods_namespaces(asked, NamespaceOption { network: NODE, ..NamespaceOption::default() });
    }),
    case("namespaces", "the host's IPC", |asked| {
        pods_namespaces(asked, NamespaceOption { ipc: NODE, ..NamespaceOption::default() });
    }),
    case("namespaces", "the host's processes", |asked| {
        pods_namespaces(asked, NamespaceOption { pid: NODE, ..NamespaceOption::default() });
    }),
    case("namespaces", "processes of its own, whatever the pod has", |asked| {
        pods_namespaces(asked, NamespaceOption { pid: NODE, ..NamespaceOption::default() });
        asked.security().namespace_options =
            Some(NamespaceOption { pid: NamespaceMode::Container.into(), ..NamespaceOption::default() });
    }),
    case("namespaces", "the processes of another container", |asked| {
        asked.security().namespace_options = Some(NamespaceOption {
            pid: NamespaceMode::Target.into(),
            target_id: "cd".repeat(32),
            ..NamespaceOption::default()
        });
    }),
    case("namespaces", "the host's cgroups", |asked| cgroups(asked, NODE)),
    case("namespaces", "a privileged container with cgroups of its own", |asked| {
        privileged(asked);
        cgroups(asked, NamespaceMode::Container.into());
    }),
    case("namespaces", "cgroups to be written", |asked| {
        asked.security().cgroup_mount_mode = CgroupMountMode::ReadWrite.into();
    }),
    // User namespaces.
    case("users", "a user namespace", |asked| users(asked, 65_536)),
    case("users", "one on the host's network", |asked| {
        let (network, userns_options) = (NODE, user_namespace(65_536));
        pods_namespaces(asked, NamespaceOption { network, userns_options, ..NamespaceOption::default() });
    }),
    case("users", "one without the group of terminals", |asked| users(asked, 5)),
    case("users", "paths of its own in one", |asked| {
        users(asked, 65_536);
        asked.security().masked_paths = words("/proc/kcore");
    }),
    case("users", "a volume whose ids are mapped, and one with the host's", |asked| {
        users(asked, 65_536);
        let (uid_mappings, gid_mappings) = (vec![ids(65_536)], vec![ids(65_536)]);
        let mapped = Mount { uid_mappings, gid_mappings, ..plain_mount("/mapped") };
        mount(asked, mapped, Propagation::Private);
        mount(asked, plain_mount("/data"), Propagation::Private);
    }),
    case("users", "a device keeps its owner", |asked| {
        users(asked, 65_536);
        device(asked, "rw", vec![node("/dev/kvm", 0o020_000, 10, 232)]);
    }),
    case("users", "a privileged container in one", |asked| {
        users(asked, 65_536);
        privileged(asked);
    }),
    // Limits.
    case("limits", "processor time", |asked| {
        asked.linux().resources = Some(LinuxContainerResources {
            cpu_shares: 512,
            cpu_period: 100_000,
            cpu_quota: 50_000,
            cpuset_cpus: "0-1".to_owned(),
            cpuset_mems: "0".to_owned(),
            ..LinuxContainerResources::default()
        });
    }),
    case("limits", "memory is a limit of swap too", |asked| {
        asked.linux().resources = Some(LinuxContainerResources {
            memory_limit_in_bytes: 1 << 20,
            oom_score_adj: 999,
            ..LinuxContainerResources::default()
        });
    }),
    case("limits", "memory without a limit, and swap with one", |asked| {
        asked.linux().resources = Some(LinuxContainerResources {
            memory_limit_in_bytes: -1,
            memory_swap_limit_in_bytes: 1 << 30,
            oom_score_adj: -500,
            ..LinuxContainerResources::default()
        });
    }),
    case("limits", "huge pages and files of v2", |asked| {
        let limit = |size: &str, limit| HugepageLimit { page_size: size.to_owned(), limit };
        asked.linux().resources = Some(LinuxContainerResources {
            hugepage_limits: vec![limit("2MB", 0), limit("1GB", u64::MAX)],
            unified: [("memory.high".to_owned(), "1M".to_owned())].into(),
            ..LinuxContainerResources::default()
        });
    }),
    // Confinement.
    case("confinement", "the runtime's seccomp profile", |asked| {
        asked.security().seccomp = profile(ProfileType::RuntimeDefault, "");
    }),
    case("confinement", "no AppArmor profile, where there is AppArmor", |asked| {
        asked.facts.modules.apparmor = Switch::On;
    }),
    case("confinement", "an AppArmor profile of the node", |asked| {
        asked.facts.modules.apparmor = Switch::On;
        asked.security().apparmor = profile(ProfileType::Localhost, "mine");
    }),
    case("confinement", "an AppArmor profile of the node, and no AppArmor", |asked| {
        asked.security().apparmor = profile(ProfileType::Localhost, "mine");
    }),
    case("confinement", "no AppArmor profile wanted", |asked| {
        asked.facts.modules.apparmor = Switch::On;
        asked.security().apparmor = profile(ProfileType::Unconfined, "");
    }),
    case("confinement", "a seccomp profile of the host", |asked| {
        asked.security().seccomp = profile(ProfileType::Localhost, "/profiles/p.json");
        asked.facts.seccomp_profile = Some(Ok(LOCAL_PROFILE.as_bytes().to_vec()));
    }),
    case("confinement", "a seccomp profile from a registry", |asked| {
        asked.security().seccomp = from_registry(None);
        asked.profile = Some(ARTIFACT.as_bytes().to_vec());
    }),
    case("confinement", "a seccomp profile from a registry on one of the host", |asked| {
        asked.security().seccomp = from_registry(Some((BaseType::Localhost, "/profiles/p.json")));
        asked.profile = Some(ARTIFACT.as_bytes().to_vec());
        asked.facts.seccomp_profile = Some(Ok(LOCAL_PROFILE.as_bytes().to_vec()));
    }),
    case("confinement", "paths of its own", |asked| {
        asked.security().masked_paths = words("/proc/kcore");
        asked.security().readonly_paths = words("/proc/sys /proc/bus");
    }),
    case("confinement", "a privileged container has none", |asked| {
        privileged(asked);
        asked.security().seccomp = profile(ProfileType::RuntimeDefault, "");
        asked.security().masked_paths = words("/proc/kcore");
    }),
    // Streams.
    case("streams", "a log", |asked| {
        asked.pod.log_directory = "/var/log/pods/p".to_owned();
        asked.container.log_path = "main/0.log".to_owned();
    }),
    case("streams", "no log without a directory", |asked| asked.container.log_path = "0.log".to_owned()),
    case("streams", "input that stays open", |asked| asked.container.stdin = true),
    case("streams", "input of one client", |asked| {
        asked.container.stdin = true;
        asked.container.stdin_once = true;
    }),
    case("streams", "a terminal", |asked| {
        asked.container.tty = true;
        asked.container.stdin = true;
    }),
    case("streams", "names for people and machines", |asked| {
        asked.pod.metadata = Some(PodSandboxMetadata {
            name: "web".to_owned(),
            namespace: "shop".to_owned(),
            uid: "u-1".to_owned(),
            attempt: 0,
        });
    }),
    // What cannot be decided.
    case("refused", "no program", |asked| {
        asked.image.set_entrypoint(None).set_cmd(None);
    }),
    case("refused", "an image without layers", |asked| asked.places.layers.lowers.clear()),
    case("refused", "a directory that is relative", |asked| asked.container.working_dir = "srv".to_owned()),
    case("refused", "a variable without a name", |asked| asked.container.envs = vec![variable("", b"x")]),
    case("refused", "a group without a user", |asked| asked.security().run_as_group = number(5)),
    case("refused", "a user that is nobody's number", |asked| {
        asked.security().run_as_user = number(u32::MAX.into());
    }),
    case("refused", "a capability that is none", |asked| capabilities(asked, "MAGIC", "", "")),
    case("refused", "a volume for the root", |asked| {
        asked.image.set_volumes(Some(words("/")));
    }),
    case("refused", "a mount of nothing", |asked| {
        asked.container.mounts.push(plain_mount("/data"));
        asked.facts.mounts.push(Err(Unread::invalid("host path \"/x\": No such file or directory")));
    }),
    case("refused", "propagation from what is private", |asked| {
        mount(asked, propagated(MountPropagation::PropagationHostToContainer), Propagation::Private);
    }),
    case("refused", "propagation to the host of an ordinary container", |asked| {
        mount(asked, propagated(MountPropagation::PropagationBidirectional), Propagation::Shared);
    }),
    case("refused", "an image that can be written", |asked| {
        image(asked, Mount { readonly: false, ..image_volume("/data") }, &["/layers/one/fs"]);
    }),
    case("refused", "an image without a name", |asked| {
        image(
            asked,
            Mount { image: Some(ImageSpec::default()), ..image_volume("/data") },
            &["/layers/one/fs"],
        );
    }),
    case("refused", "an image and a path of the host", |asked| {
        image(asked, Mount { host_path: "/x".to_owned(), ..image_volume("/data") }, &["/layers/one/fs"]);
    }),
    case("refused", "an image whose mounts propagate to the host", |asked| {
        privileged(asked);
        let propagation = MountPropagation::PropagationBidirectional.into();
        image(asked, Mount { propagation, ..image_volume("/data") }, &["/layers/one/fs"]);
    }),
    case("refused", "a path from the root in place of one of an image", |asked| {
        image(
            asked,
            Mount { image_sub_path: "/etc".to_owned(), ..image_volume("/data") },
            &["/layers/one/fs"],
        );
    }),
    case("refused", "a path of an image that leads up", |asked| {
        let image_sub_path = "a/../../etc".to_owned();
        image(asked, Mount { image_sub_path, ..image_volume("/data") }, &["/layers/one/fs"]);
    }),
    case("refused", "a path of an image that is too long", |asked| {
        let image_sub_path = "a/".repeat(2048);
        image(asked, Mount { image_sub_path, ..image_volume("/data") }, &["/layers/one/fs"]);
    }),
    case("refused", "two images in one place", |asked| {
        image(asked, image_volume("/data"), &["/layers/one/fs"]);
        image(asked, image_volume("/data/"), &["/layers/two/fs"]);
    }),
    case("refused", "an image over the root", |asked| image(asked, image_volume("/"), &["/layers/one/fs"])),
    case("refused", "propagation to the host out of a user namespace", |asked| {
        users(asked, 65_536);
        privileged(asked);
        mount(asked, propagated(MountPropagation::PropagationBidirectional), Propagation::Shared);
    }),
    case("refused", "a volume with other ids than the pod", |asked| {
        users(asked, 65_536);
        let (uid_mappings, gid_mappings) = (vec![ids(65_536)], vec![ids(1000)]);
        let mapped = Mount { uid_mappings, gid_mappings, ..plain_mount("/mapped") };
        mount(asked, mapped, Propagation::Private);
    }),
    case("refused", "a device that is none", |asked| {
        device(asked, "rw", Vec::new());
        asked.facts.devices = vec![Err(Unread::invalid("is not a device"))];
    }),
    case("refused", "permissions that are none", |asked| {
        device(asked, "rx", vec![node("/dev/fuse", 0o020_000, 10, 229)]);
    }),
    case("refused", "a masked path that is relative", |asked| asked.security().masked_paths = words("proc")),
    case("refused", "a seccomp profile that is not JSON", |asked| {
        asked.security().seccomp = profile(ProfileType::Localhost, "/profiles/p.json");
        asked.facts.seccomp_profile = Some(Ok(b"x".to_vec()));
    }),
    case("refused", "a seccomp profile that cannot be read", |asked| {
        asked.security().seccomp = profile(ProfileType::Localhost, "/profiles/p.json");
        asked.facts.seccomp_profile = Some(Err(Unread::invalid("No such file or directory")));
    }),
    case("refused", "a seccomp profile by a relative path", |asked| {
        asked.security().seccomp = profile(ProfileType::Localhost, "p.json");
    }),
    case("refused", "a seccomp profile from a registry that was not read", |asked| {
        asked.security().seccomp = from_registry(None);
    }),
    case("refused", "a seccomp profile from a registry that is invalid", |asked| {
        asked.security().seccomp = from_registry(None);
        asked.profile = Some(b"{}".to_vec());
    }),
    case("refused", "a seccomp profile from a registry on one that cannot be read", |asked| {
        asked.security().seccomp = from_registry(Some((BaseType::Localhost, "/profiles/p.json")));
        asked.profile = Some(ARTIFACT.as_bytes().to_vec());
        asked.facts.seccomp_profile = Some(Err(Unread::invalid("No such file or directory")));
    }),
    case("refused", "cgroups to be written where the host's are not kept apart", |asked| {
        asked.security().cgroup_mount_mode = CgroupMountMode::ReadWrite.into();
        asked.places.cgroup.delegation = Switch::Off;
    }),
    case("refused", "a target that is no container", |asked| {
        asked.security().namespace_options =
            Some(NamespaceOption { pid: NamespaceMode::Target.into(), ..NamespaceOption::default() });
    }),
    case("refused", "a log above its directory", |asked| asked.container.log_path = "../0.log".to_owned()),
];

const NODE: i32 = NamespaceMode::Node as i32;

/// It allows a call that the other profiles refuse, and refuses one that they allow.
const ARTIFACT: &str = r#"{
    "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X32"],
    "syscalls": [
        {"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13},
        {"names": ["unshare"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["socket"], "action": "SCMP_ACT_KILL_PROCESS",
         "args": [{"index": 0, "value": 2, "op": "SCMP_CMP_GE"}, {"index": 1, "value": 3, "op": "SCMP_CMP_EQ"}]}]}"#;

const LOCAL_PROFILE: &str = r#"{
    "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "architectures": ["SCMP_ARCH_X86_64"],
    "flags": ["SECCOMP_FILTER_FLAG_LOG"],
    "syscalls": [
        {"names": ["read", "write", "exit_group"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["socket"], "action": "SCMP_ACT_ALLOW",
         "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 2, "op": "SCMP_CMP_EQ"}]},
        {"names": ["clone"], "action": "SCMP_ACT_ALLOW",
         "args": [{"index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]},
        {"names": ["ptrace"], "action": "SCMP_ACT_KILL_PROCESS"},
        {"names": ["mseal"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}}
    ]
}"#;

pub(super) fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn text(text: &str) -> Option<String> {
    Some(text.to_owned())
}

pub(super) fn number(value: i64) -> Option<Int64Value> {
    Some(Int64Value { value })
}

pub(super) fn variable(key: &str, value: &[u8]) -> KeyValue {
    KeyValue { key: key.to_owned(), value: value.to_vec() }
}

pub(super) fn capabilities(asked: &mut Asked, add: &str, drop: &str, ambient: &str) {
    asked.security().capabilities = Some(Capability {
        add_capabilities: words(add),
        drop_capabilities: words(drop),
        add_ambient_capabilities: words(ambient),
    });
}

pub(crate) fn privileged(asked: &mut Asked) {
    asked.linux().security_context =
        Some(LinuxContainerSecurityContext { privileged: true, ..LinuxContainerSecurityContext::default() });
}

pub(super) fn plain_mount(place: &str) -> Mount {
    Mount { container_path: place.to_owned(), host_path: "/host".to_owned(), ..Mount::default() }
}

fn propagated(propagation: MountPropagation) -> Mount {
    Mount { propagation: propagation.into(), ..plain_mount("/data") }
}

pub(crate) fn mount(asked: &mut Asked, mount: Mount, propagation: Propagation) {
    asked.container.mounts.push(mount);
    asked.facts.mounts.push(Ok(MountSource { path: host("/host/real"), propagation }));
}

fn image_volume(place: &str) -> Mount {
    let image = Some(ImageSpec { image: "some/image:1".to_owned(), ..ImageSpec::default() });
    Mount { container_path: place.to_owned(), readonly: true, image, ..Mount::default() }
}

fn image(asked: &mut Asked, mount: Mount, layers: &[&str]) {
    asked.container.mounts.push(mount);
    asked.facts.mounts.push(Err(Unread::invalid("its host path is empty")));
    asked.mounted.resize(asked.container.mounts.len() - 1, None);
    asked.mounted.push(Some(layers.iter().map(|layer| host(layer)).collect()));
}

pub(super) fn device(asked: &mut Asked, permissions: &str, nodes: Vec<DeviceNode>) {
    asked.container.devices.push(Device {
        container_path: "/dev/x".to_owned(),
        host_path: "/dev/x".to_owned(),
        permissions: permissions.to_owned(),
    });
    asked.facts.devices.push(Ok(nodes));
}

pub(super) fn node(path: &str, kind: u32, major: u32, minor: u32) -> DeviceNode {
    let path = ContainerPath::new(path).unwrap();
    let gid = OwnerId::new(6).unwrap();
    DeviceNode { path, kind, major, minor, mode: 0o660, uid: OwnerId::ROOT, gid }
}

fn pods_namespaces(asked: &mut Asked, options: NamespaceOption) {
    asked.pod.linux = Some(LinuxPodSandboxConfig {
        security_context: Some(LinuxSandboxSecurityContext {
            namespace_options: Some(options),
            ..LinuxSandboxSecurityContext::default()
        }),
        ..LinuxPodSandboxConfig::default()
    });
}

pub(crate) fn users(asked: &mut Asked, length: u32) {
    let userns_options = user_namespace(length);
    pods_namespaces(asked, NamespaceOption { userns_options, ..NamespaceOption::default() });
}

fn user_namespace(length: u32) -> Option<UserNamespace> {
    let mode = NamespaceMode::Pod.into();
    Some(UserNamespace { mode, uids: vec![ids(length)], gids: vec![ids(length)] })
}

fn ids(length: u32) -> IdMapping {
    IdMapping { host_id: 100_000, container_id: 0, length }
}

fn cgroups(asked: &mut Asked, mode: i32) {
    let cgroupns_options = Some(CgroupNamespace { mode });
    asked.security().namespace_options =
        Some(NamespaceOption { cgroupns_options, ..NamespaceOption::default() });
}

fn from_registry(base: Option<(BaseType, &str)>) -> Option<SecurityProfile> {
    let base =
        base.map(|(kind, path)| SecurityProfileBase { r#type: kind.into(), localhost_ref: path.to_owned() });
    let oci_ref = format!("registry.test/profile@sha256:{}", "ab".repeat(32));
    Some(SecurityProfile {
        profile_type: ProfileType::Oci.into(),
        oci_ref,
        base_profile: base,
        ..Default::default()
    })
}

fn profile(kind: ProfileType, path: &str) -> Option<SecurityProfile> {
    let (profile_type, localhost_ref) = (kind.into(), path.to_owned());
    Some(SecurityProfile { profile_type, localhost_ref, ..SecurityProfile::default() })
}
