//! The table of the requests to both runtimes, one per line.

use wharf_cri_api::v1::{
    DnsConfig, HugepageLimit, MountPropagation, NamespaceMode, SecurityProfile, Signal,
    SupplementalGroupsPolicy, security_profile::ProfileType,
};

use crate::request::{Asked, Request, number, words};

/// Images with another user than root, and others that the test images have for Kubernetes' own suite.
const STAGING: &str = "gcr.io/k8s-staging-cri-tools";

/// A request's name, and its change.
type Line = (&'static str, fn(&mut Asked));

/// All requests.
pub(crate) fn all() -> Vec<Request> {
    let tables: [&[Line]; 6] = [IDENTITY, CAPABILITIES, NAMESPACES, FILES, RESOURCES, PROGRAMS];
    let lines = tables.into_iter().flatten();
    lines.map(|&(name, change)| Request { name, change }).collect()
}

fn staged(asked: &mut Asked, name: &str) {
    asked.image(&format!("{STAGING}/{name}:latest"));
}

fn groups(asked: &mut Asked, groups: &[i64], policy: SupplementalGroupsPolicy) {
    asked.security().supplemental_groups = groups.to_vec();
    asked.security().supplemental_groups_policy = policy.into();
}

/// Users, groups, environments.
const IDENTITY: &[Line] = &[
    ("as the kubelet asks", |_| {}),
    ("user by number", |asked| asked.user(33)),
    ("user by name", |asked| asked.security().run_as_username = "www-data".to_owned()),
    ("user that passwd does not know", |asked| asked.user(12345)),
    ("user and group", |asked| {
        asked.user(33);
        asked.security().run_as_group = number(100);
    }),
    ("supplementary groups", |asked| groups(asked, &[4000, 10], SupplementalGroupsPolicy::Merge)),
    ("supplementary groups, strict", |asked| groups(asked, &[4000], SupplementalGroupsPolicy::Strict)),
    ("image: user by number", |asked| staged(asked, "test-image-user-uid")),
    ("image: user by name", |asked| staged(asked, "test-image-user-username")),
    ("image: user and group", |asked| staged(asked, "test-image-user-uid-group")),
    ("image: names of user and group", |asked| staged(asked, "test-image-user-username-group")),
    ("image: user with groups", |asked| {
        staged(asked, "test-image-predefined-group");
        groups(asked, &[4000], SupplementalGroupsPolicy::Merge);
    }),
    ("image: user with groups, strict", |asked| {
        staged(asked, "test-image-predefined-group");
        groups(asked, &[4000], SupplementalGroupsPolicy::Strict);
    }),
    ("image: its user is overridden", |asked| {
        staged(asked, "test-image-user-uid-group");
        asked.user(0);
    }),
    ("image: unknown user", |asked| asked.odd_image("unknown-user")),
    ("environment", |asked| asked.env(&[("A", "1"), ("B", ""), ("A", "2"), ("C", "x=y $(A)")])),
    ("environment: HOME, PATH, HOSTNAME", |asked| {
        asked.env(&[("HOME", "/tmp"), ("PATH", "/bin"), ("HOSTNAME", "h")]);
    }),
    ("environment of a user", |asked| {
        asked.user(33);
        asked.env(&[("USER", "me")]);
    }),
    ("image: no environment", |asked| asked.odd_image("no-environment")),
    ("image: odd environment", |asked| asked.odd_image("odd-environment")),
    ("terminal", |asked| asked.container.tty = true),
    ("terminal with input", |asked| (asked.container.tty, asked.container.stdin) = (true, true)),
    ("terminal of a user", |asked| {
        asked.container.tty = true;
        asked.user(33);
    }),
    ("input", |asked| asked.container.stdin = true),
];

/// Capabilities, privileges, filters.
const CAPABILITIES: &[Line] = &[
    ("capabilities: none", |asked| asked.capabilities("", "ALL")),
    ("capabilities: one only", |asked| asked.capabilities("NET_BIND_SERVICE", "ALL")),
    ("capabilities: more", |asked| asked.capabilities("NET_ADMIN CAP_SYS_TIME", "")),
    ("capabilities: fewer", |asked| asked.capabilities("", "MKNOD CHOWN")),
    ("capabilities: all", |asked| asked.capabilities("ALL", "")),
    ("capabilities: all but one", |asked| asked.capabilities("ALL", "NET_RAW")),
    ("capabilities: all and none", |asked| asked.capabilities("ALL", "ALL")),
    ("capabilities: added and dropped", |asked| asked.capabilities("SYS_TIME", "SYS_TIME")),
    ("capabilities: small letters", |asked| asked.capabilities("sys_time", "")),
    ("capabilities: of a user", |asked| {
        asked.user(33);
        asked.capabilities("NET_ADMIN", "");
    }),
    ("capabilities: ambient", |asked| {
        asked.user(33);
        asked.capabilities("", "");
        asked.security().capabilities.get_or_insert_default().add_ambient_capabilities =
            words("NET_BIND_SERVICE");
    }),
    ("capabilities: an unknown one", |asked| asked.capabilities("FLY", "")),
    ("no new privileges", |asked| asked.security().no_new_privs = true),
    ("privileged", Asked::privileged),
    ("privileged, of a user", |asked| {
        asked.privileged();
        asked.user(33);
    }),
    ("privileged in a pod that is not", |asked| asked.security().privileged = true),
    ("privileged pod alone", |asked| asked.pod_security().privileged = true),
    ("seccomp: unconfined", |asked| {
        let profile_type = ProfileType::Unconfined.into();
        asked.security().seccomp = Some(SecurityProfile { profile_type, ..SecurityProfile::default() });
    }),
    ("seccomp: nothing said", |asked| asked.security().seccomp = None),
    ("no masked and read-only paths", |asked| {
        asked.security().masked_paths.clear();
        asked.security().readonly_paths.clear();
    }),
    ("no security context", |asked| {
        asked.container.linux.get_or_insert_default().security_context = None;
    }),
];

/// Namespaces, names, name servers, kernel parameters.
const NAMESPACES: &[Line] = &[
    ("the machine's network", |asked| {
        asked.pod.hostname.clear();
        asked.namespaces(|all| all.network = NamespaceMode::Node.into());
    }),
    ("the machine's processes", |asked| asked.namespaces(|all| all.pid = NamespaceMode::Node.into())),
    ("the machine's IPC", |asked| asked.namespaces(|all| all.ipc = NamespaceMode::Node.into())),
    ("processes of the pod", |asked| asked.namespaces(|all| all.pid = NamespaceMode::Pod.into())),
    ("privileged, all of the machine's", |asked| {
        asked.privileged();
        asked.on_the_host();
    }),
    ("no host name", |asked| asked.pod.hostname.clear()),
    ("name servers", |asked| {
        asked.pod.dns_config = Some(DnsConfig {
            servers: words("10.0.0.10 fd00::10"),
            searches: words("default.svc.cluster.local svc.cluster.local"),
            options: words("ndots:5"),
        });
    }),
    ("empty name servers", |asked| asked.pod.dns_config = Some(DnsConfig::default())),
    ("kernel parameters", |asked| {
        let sysctls = &mut asked.pod.linux.get_or_insert_default().sysctls;
        for (name, value) in [("net.core.somaxconn", "64"), ("kernel.shm_rmid_forced", "1")] {
            sysctls.insert(name.to_owned(), value.to_owned());
        }
    }),
    ("a kernel parameter of the machine", |asked| {
        let sysctls = &mut asked.pod.linux.get_or_insert_default().sysctls;
        sysctls.insert("kernel.panic".to_owned(), "7".to_owned());
    }),
    ("labels and annotations", |asked| {
        for map in [&mut asked.pod.labels, &mut asked.container.labels, &mut asked.container.annotations] {
            map.insert("io.kubernetes.pod.name".to_owned(), "compare".to_owned());
        }
    }),
];

/// Mounts, devices, root file systems, working directories.
const FILES: &[Line] = &[
    ("mount", |asked| asked.mount("tree", "/data")),
    ("mount, read-only", |asked| asked.mounted("tree", "/data").readonly = true),
    ("mount, recursively read-only", |asked| {
        let mount = asked.mounted("tree", "/data");
        (mount.readonly, mount.recursive_read_only) = (true, true);
    }),
    ("mount, propagation from the host", |asked| {
        asked.mounted("tree", "/data").propagation = MountPropagation::PropagationHostToContainer.into();
    }),
    ("mount, propagation both ways", |asked| {
        asked.privileged();
        asked.mounted("tree", "/data").propagation = MountPropagation::PropagationBidirectional.into();
    }),
    ("mount of a file", |asked| asked.mount("file", "/data/deep/file")),
    ("mount of what is missing", |asked| asked.mount("missing", "/data")),
    ("mount of a link", |asked| asked.mount("tree/link", "/data")),
    ("mount onto a link", |asked| asked.mount("tree", "/var/run/data")),
    ("mount by a path with dots", |asked| asked.mount("tree", "/data/../other/")),
    ("mount on /etc", |asked| asked.mount("tree", "/etc")),
    ("mount on a pod's own file", |asked| asked.mount("file", "/etc/hosts")),
    ("mount on /dev/shm", |asked| asked.mount("tree", "/dev/shm")),
    ("mount of /dev", |asked| asked.mount("/dev", "/dev")),
    ("mount of /sys", |asked| asked.mount("/sys", "/sys")),
    ("mounts in each other, the inner first", |asked| {
        asked.mount("file", "/data/inner");
        asked.mount("tree", "/data");
    }),
    ("mount for a termination message", |asked| asked.mount("file", "/dev/termination-log")),
    ("read-only root", |asked| asked.security().readonly_rootfs = true),
    ("read-only root with a volume of the image", |asked| {
        asked.odd_image("volume");
        asked.security().readonly_rootfs = true;
    }),
    ("image: volume", |asked| asked.odd_image("volume")),
    ("device", |asked| asked.device("/dev/null", "/dev/other", "rwm")),
    ("device, to be read", |asked| asked.device("/dev/zero", "/dev/other", "r")),
    ("devices of a directory", |asked| asked.device("/dev/net", "/dev/net", "rw")),
    ("device that is missing", |asked| asked.device("/dev/missing", "/dev/missing", "rwm")),
    ("working directory", |asked| asked.container.working_dir = "/tmp".to_owned()),
    ("working directory that is missing", |asked| asked.container.working_dir = "/a/b".to_owned()),
    ("working directory of a user, missing", |asked| {
        asked.user(33);
        asked.container.working_dir = "/a/b".to_owned();
    }),
    ("image: working directory", |asked| asked.odd_image("working-directory")),
    ("image: relative working directory", |asked| asked.odd_image("relative-working-directory")),
    ("image: dangling link for /etc/resolv.conf", |asked| asked.odd_image("dangling-resolv-conf")),
];

/// Limits.
const RESOURCES: &[Line] = &[
    ("no resources", |asked| asked.container.linux.get_or_insert_default().resources = None),
    ("memory", |asked| asked.resources().memory_limit_in_bytes = 64 << 20),
    ("memory and swap", |asked| {
        asked.resources().memory_limit_in_bytes = 64 << 20;
        asked.resources().memory_swap_limit_in_bytes = 96 << 20;
    }),
    ("processor time", |asked| {
        let resources = asked.resources();
        (resources.cpu_period, resources.cpu_quota, resources.cpu_shares) = (50_000, 25_000, 512);
    }),
    ("processors", |asked| asked.resources().cpuset_cpus = "0".to_owned()),
    ("killed late", |asked| asked.resources().oom_score_adj = 500),
    ("huge pages", |asked| {
        let limit = HugepageLimit { page_size: "2MB".to_owned(), limit: 0 };
        asked.resources().hugepage_limits.push(limit);
    }),
];

/// Programs, how they end, and what they log.
const PROGRAMS: &[Line] = &[
    ("ends well", |asked| asked.ends("echo out; echo err >&2")),
    ("ends with a code", |asked| asked.ends("exit 37")),
    ("ends by a signal", |asked| asked.ends("kill -KILL $$")),
    ("last line without its end", |asked| asked.ends("printf 'a\\nb'")),
    ("long line", |asked| asked.ends("head -c 40000 /dev/zero | tr '\\0' x; echo")),
    ("logs by a terminal", |asked| {
        asked.container.tty = true;
        asked.ends("echo a; printf b");
    }),
    ("needs more memory than it may", |asked| {
        asked.resources().memory_limit_in_bytes = 16 << 20;
        asked.ends("head -c 100000000 /dev/zero | tail -c 100000000 | wc -c");
    }),
    ("program that is missing", |asked| asked.program("missing-program")),
    ("program by a path that is missing", |asked| asked.program("/missing/program")),
    ("program that cannot be run", |asked| asked.program("/etc/passwd")),
    ("program that is a directory", |asked| asked.program("/etc")),
    ("input that has ended", |asked| asked.ends("cat; echo end")),
    ("no log", |asked| {
        asked.container.log_path.clear();
        asked.ends("echo unseen");
    }),
    ("arguments without a command", |asked| {
        asked.odd_image("entry-point");
        asked.as_the_image_says();
        asked.container.args = words("from the request");
        asked.until = crate::request::Until::Ends;
    }),
    ("command without arguments", |asked| {
        asked.odd_image("entry-point");
        asked.program("/bin/true");
    }),
    ("image: entry point and arguments", |asked| {
        asked.odd_image("entry-point");
        asked.as_the_image_says();
        asked.until = crate::request::Until::Ends;
    }),
    ("image: no program", |asked| {
        asked.odd_image("no-program");
        asked.as_the_image_says();
    }),
    ("image: stop signal", |asked| asked.odd_image("stop-signal")),
    ("stop signal", |asked| asked.container.stop_signal = Signal::Sigusr1.into()),
    ("image: a server", |asked| {
        asked.image("docker.io/library/nginx:latest");
        asked.as_the_image_says();
    }),
    ("image: an interpreter", |asked| {
        asked.image("docker.io/library/python:latest");
        asked.as_the_image_says();
    }),
    ("image: a database", |asked| {
        asked.image("docker.io/library/redis:latest");
        asked.as_the_image_says();
    }),
    ("image: without a shell", |asked| {
        asked.image("registry.k8s.io/pause:3.9");
        asked.as_the_image_says();
    }),
];
