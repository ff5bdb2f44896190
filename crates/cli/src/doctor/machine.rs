//! Checks of the kernel and the machine, which read `/proc` and `/sys` and need no wharfd.

use std::io;
use std::path::Path;

use nix::sys::statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, FsType, statfs};

use super::mend::{CommandLine, Remedy, program};
use super::{Check, Verdict, bounded, network, source};

/// The oldest kernel that has every call that wharf makes: mount_setattr, and clone into a cgroup.
const OLDEST: (u32, u32) = (5, 12);

const RELEASE: &str = "/proc/sys/kernel/osrelease";

/// Where cgroups are mounted.
const HIERARCHY: &str = "/sys/fs/cgroup";

const CGROUPS: &str = "cgroups";
const SERVERS: &str = "name servers";

/// All checks of the machine, the most fundamental first. The leases are those of pods on wharfd's network, and the pid
/// is that of wharfd, if it is known.
pub(super) fn checks(leases: &Path, wharfd: Option<i32>) -> Vec<Check> {
    let (modules, unread) = match modules() {
        Ok(modules) => (modules, None),
        Err(unread) => (String::new(), Some(unread)),
    };
    // What a kernel lacks may be a module.
    let known = |check: Check| match &unread {
        Some(unread) if check.verdict != Verdict::Ok => {
            Check::warn(check.what, "unknown", format!("see {}", unread.what))
        }
        _ => check,
    };
    let mut checks = vec![
        root(nix::unistd::geteuid().as_raw()),
        source::check("kernel", RELEASE, |release| kernel(release.trim())),
        source::check(CGROUPS, "/proc/self/mountinfo", |mounts| match unified_controllers() {
            Ok(unified) => source::check_if_any(CGROUPS, "/proc/cgroups", |controllers| {
                cgroups(mounts, &unified, controllers, kind_of(HIERARCHY))
            }),
            Err(error) => Check::unknown(CGROUPS, Path::new(HIERARCHY), &error),
        }),
        known(source::check("overlayfs", "/proc/filesystems", |kinds| overlayfs(kinds, &modules))),
        namespaces(Path::new("/proc/self/ns")),
        source::check_if_any("seccomp", "/proc/sys/kernel/seccomp/actions_avail", seccomp),
        known(nftables(&modules)),
    ];
    checks.extend(bounded::no_threads());
    checks.extend(unread);
    checks.extend(network::checks(leases, wharfd));
    checks.extend([
        bounded::check(SERVERS, Path::new("/etc/resolv.conf"), |file| {
            source::check_if_any(SERVERS, file, |servers| {
                let behind = "/run/systemd/resolve/resolv.conf";
                source::check_if_any(SERVERS, behind, |behind| resolver(servers, behind))
            })
        }),
        bounded::check("AppArmor", Path::new("/usr/sbin"), |_programs| {
            let parser = program("apparmor_parser");
            let profiles = Path::new("/sys/kernel/security/apparmor/profiles");
            source::check_if_any("AppArmor", "/sys/module/apparmor/parameters/enabled", |enabled| {
                apparmor(enabled.trim(), profiles, parser.as_deref())
            })
        }),
        source::check_if_any("SELinux", "/sys/fs/selinux/enforce", |enforce| selinux(enforce.trim())),
    ]);
    checks
}

/// The list of the modules that the kernel can load, which is empty if it has none.
fn modules() -> Result<String, Check> {
    const WHAT: &str = "modules";
    let unknown = |place: &Path, error| Check::unknown(WHAT, place, &error);
    let release = source::text(Path::new(RELEASE)).map_err(|error| unknown(Path::new(RELEASE), error))?;
    let list = format!("/lib/modules/{}/modules.dep", release.trim());
    let list = Path::new(&list);
    let read = bounded::attempt(WHAT, list, |list| source::if_any(source::text(list)))?;
    read.map_err(|error| unknown(list, error))
}

fn root(uid: u32) -> Check {
    match uid {
        0 => Check::ok("root", "yes"),
        uid => Check::warn(
            "root",
            format!("no, uid {uid}"),
            "use sudo: the checks below then see what wharfd sees",
        ),
    }
}

fn kernel(release: &str) -> Check {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= OLDEST {
        return Check::ok("kernel", release);
    }
    let advice = format!("Linux {}.{} or later is needed: upgrade the kernel", OLDEST.0, OLDEST.1);
    Check::fail("kernel", release, advice)
}

/// The controllers of the unified hierarchy, wherever it is mounted.
fn unified_controllers() -> io::Result<String> {
    let read = |below: &str| source::text(&Path::new(HIERARCHY).join(below));
    let first = source::if_any(read("cgroup.controllers").map(Some))?;
    first.map_or_else(|| source::if_any(read("unified/cgroup.controllers")), Ok)
}

/// The kind of file system at a place; `None` if that cannot be found out.
fn kind_of(place: &str) -> Option<FsType> {
    statfs(place).ok().map(|disk| disk.filesystem_type())
}

/// The file system type and the super block's options of each mount.
fn mounts(mountinfo: &str) -> impl Iterator<Item = (&str, &str)> {
    mountinfo.lines().filter_map(|line| {
        let mut fields = line.split_once(" - ")?.1.split(' ');
        Some((fields.next()?, fields.nth(1)?))
    })
}

/// Whether a mount at [`HIERARCHY`] covers nothing: there are no cgroups, and no mounts below it.
fn covers_nothing(mountinfo: &str, kind: Option<FsType>) -> bool {
    let mut points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4));
    let has_below = points.any(|point| point != HIERARCHY && Path::new(point).starts_with(HIERARCHY));
    !has_below && kind.is_some_and(|kind| ![CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC].contains(&kind))
}

/// Whether a controller belongs to a hierarchy of v1, mounted or not: that is its second column, 0 for v2.
fn has_v1(controllers: &str) -> bool {
    let mut lines = controllers.lines().filter(|line| !line.starts_with('#'));
    lines.any(|line| line.split_whitespace().nth(1) != Some("0"))
}

/// `kind` is that of the file system at [`HIERARCHY`]. They are mounted only if no controller belongs to v1.
fn cgroups(mountinfo: &str, unified: &str, controllers: &str, kind: Option<FsType>) -> Check {
    const WHAT: &str = CGROUPS;
    let v1 =
        mounts(mountinfo).filter(|(kind, _)| *kind == "cgroup").flat_map(|(_, options)| options.split(','));
    let v1: Vec<&str> = v1.collect();
    let v2 = mounts(mountinfo).any(|(kind, _)| kind == "cgroup2");
    let version = match (v1.is_empty(), v2) {
        (true, false) if has_v1(controllers) || !covers_nothing(mountinfo, kind) => {
            let advice = format!(
                "something else is there, which a mount would cover, or v1 has controllers: look (findmnt -R {HIERARCHY}, \
                 stat -f {HIERARCHY}, /proc/cgroups), and mount the cgroups where your distribution has them"
            );
            return Check::fail(WHAT, "no mount of them is listed", advice);
        }
        (true, false) => {
            let mount = CommandLine::new("mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 /sys/fs/cgroup");
            return Check::fail(WHAT, "not mounted", "mount them").mended_by(vec![mount]);
        }
        (true, true) => "v2",
        (false, true) => "hybrid",
        (false, false) => "v1",
    };
    let known: Vec<&str> = unified.split_whitespace().chain(v1).collect();
    let missing: Vec<&str> =
        ["cpu", "memory", "pids"].into_iter().filter(|wanted| !known.contains(wanted)).collect();
    if missing.is_empty() {
        return Check::ok(WHAT, format!("{version}, with cpu, memory and pids"));
    }
    let missing = missing.join(", ");
    Check::warn(
        WHAT,
        format!("{version} without {missing}"),
        "limits and statistics of these will be missing: enable the controllers in the kernel",
    )
}

/// Whether a kernel has a module, which it then loads by itself when it is needed. Its `modules.dep` has lines like
/// `kernel/fs/overlayfs/overlay.ko.xz: ...`.
fn has_module(modules: &str, module: &str) -> bool {
    let files = modules.lines().filter_map(|line| line.split(':').next()?.rsplit('/').next());
    files.filter_map(|file| file.split_once(".ko")).any(|(name, _compression)| name == module)
}

fn overlayfs(filesystems: &str, modules: &str) -> Check {
    const WHAT: &str = "overlayfs";
    let present = filesystems.lines().any(|line| line.split_whitespace().last() == Some("overlay"));
    if present {
        return Check::ok(WHAT, "yes");
    }
    if has_module(modules, "overlay") {
        return Check::ok(WHAT, "a module; the first container loads it");
    }
    Check::fail(
        WHAT,
        "this kernel lacks it",
        "install the modules of the running kernel, or use another kernel",
    )
}

fn namespaces(directory: &Path) -> Check {
    const KINDS: [&str; 6] = ["mnt", "pid", "net", "ipc", "uts", "cgroup"];
    let missing: Vec<&str> = KINDS.into_iter().filter(|kind| !directory.join(kind).exists()).collect();
    if missing.is_empty() {
        return Check::ok("namespaces", KINDS.join(", "));
    }
    Check::fail(
        "namespaces",
        format!("no {}", missing.join(", ")),
        "the kernel was built without them: use another kernel",
    )
}

fn seccomp(actions: &str) -> Check {
    if actions.split_whitespace().any(|action| action == "errno") {
        return Check::ok("seccomp", "yes");
    }
    Check::fail(
        "seccomp",
        "no filters",
        "the kernel was built without CONFIG_SECCOMP_FILTER: use another kernel",
    )
}

/// The module, or what stands for it in a kernel that has it built in.
fn nftables(modules: &str) -> Check {
    const WHAT: &str = "nftables";
    if Path::new("/sys/module/nf_tables").exists() {
        return Check::ok(WHAT, "yes");
    }
    source::check_if_any(WHAT, "/proc/kallsyms", |symbols| {
        if symbols.contains(" nft_do_chain") {
            return Check::ok(WHAT, "yes");
        }
        if has_module(modules, "nf_tables") {
            return Check::ok(WHAT, "a module; the first pod loads it");
        }
        let advice = "the built-in network needs it: use another kernel, or CNI plugins";
        Check::warn(WHAT, "this kernel lacks it", advice)
    })
}

/// `behind` has the servers that systemd-resolved asks. wharfd gives them to pods if the file names only loopback
/// addresses.
fn resolver(resolv_conf: &str, behind: &str) -> Check {
    const WHAT: &str = SERVERS;
    const STUBS: [&str; 2] = ["127.0.0.53", "127.0.0.54"];
    let line = |line: &'_ str| line.trim().strip_prefix("nameserver").map(|server| server.trim().to_owned());
    let mut servers: Vec<String> = resolv_conf.lines().filter_map(line).collect();
    let are_stubs = !servers.is_empty() && servers.iter().all(|server| STUBS.contains(&&**server));
    if are_stubs && !behind.is_empty() {
        servers = behind.lines().filter_map(line).collect();
    }
    if servers.is_empty() {
        return Check::warn(
            WHAT,
            "none in /etc/resolv.conf",
            "names will not resolve in pods: add a nameserver line",
        );
    }
    let local = |server: &String| server.parse::<std::net::IpAddr>().is_ok_and(|server| server.is_loopback());
    if servers.iter().all(local) {
        let advice =
            "pods have a loopback of their own and cannot reach it: add a server that they can reach";
        return Check::warn(WHAT, servers.join(", "), advice);
    }
    Check::ok(WHAT, servers.join(", "))
}

/// wharfd looks for the same when it starts: the kernel's list of profiles, and the program that loads them.
fn apparmor(enabled: &str, profiles: &Path, parser: Option<&Path>) -> Check {
    const WHAT: &str = "AppArmor";
    match (enabled, parser) {
        ("Y", _) if !profiles.exists() => Check::warn(
            WHAT,
            "enabled, but its profiles cannot be seen: containers are not confined",
            "mount -t securityfs securityfs /sys/kernel/security, and restart wharfd",
        )
        .left_as(Remedy::Restart),
        ("Y", None) => Check::warn(
            WHAT,
            "enabled, but there is no apparmor_parser: containers are not confined",
            "install the package apparmor, and restart wharfd",
        ),
        ("Y", Some(_)) => Check::ok(WHAT, "enabled; wharf-default confines containers that ask for no other"),
        _ => Check::ok(WHAT, "off"),
    }
}

/// What wharfd makes of it, its configuration says.
fn selinux(enforce: &str) -> Check {
    const WHAT: &str = "SELinux";
    match enforce {
        "1" => Check::ok(WHAT, "enforcing; containers are labelled if containers.selinux is true"),
        "0" => Check::ok(WHAT, "permissive; containers are labelled if containers.selinux is true"),
        _ => Check::ok(WHAT, "off"),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;

    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    use nix::sched::{CloneFlags, unshare};
    use nix::sys::statfs::{SYSFS_MAGIC, TMPFS_MAGIC};

    use super::*;

    #[test]
    fn kernels_are_compared_by_number() {
        let verdict = |release| kernel(release).verdict;
        assert_eq!([verdict("5.12.0"), verdict("6.1.0-13-amd64"), verdict("10.0")], [Verdict::Ok; 3]);
        assert_eq!([verdict("5.9.16"), verdict("4.19"), verdict("")], [Verdict::Fail; 3]);
    }

    #[test]
    fn cgroups_are_told_apart() {
        let v1 = "1 0 0:1 / /c rw - cgroup cgroup rw,cpu,cpuacct\n2 0 0:2 / /m rw - cgroup cgroup rw,memory\n3 0 0:3 / /p rw - cgroup cgroup rw,pids\n";
        let v2 = "4 0 0:4 / /u rw - cgroup2 cgroup2 rw\n";
        let told = |mounts: &str, unified| cgroups(mounts, unified, "", Some(SYSFS_MAGIC));
        assert_eq!(told(v1, "").found, "v1, with cpu, memory and pids");
        assert_eq!(told(&format!("{v1}{v2}"), "").found, "hybrid, with cpu, memory and pids");
        assert_eq!(told(v2, "cpu io memory pids\n").verdict, Verdict::Ok);
        assert_eq!(told(v2, "cpu pids").found, "v2 without memory");
        let mount = CommandLine::new("mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 /sys/fs/cgroup");
        let none = told("", "");
        assert_eq!((none.verdict, none.remedy), (Verdict::Fail, Remedy::Commands(vec![mount])));
    }

    #[test]
    fn cgroups_are_mounted_only_where_that_covers_nothing() {
        let beside =
            "1 0 0:1 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n2 0 0:2 / /sys/fs/cgroups/a rw - tmpfs x rw\n";
        let below = "2 0 0:2 / /sys/fs/cgroup/memory rw - fuse x rw\n";
        let remedy = |mounts, kind| cgroups(mounts, "", "", kind).remedy;
        for (mounts, kind) in [
            (beside, None),
            (beside, Some(CGROUP2_SUPER_MAGIC)),
            (beside, Some(CGROUP_SUPER_MAGIC)),
            (below, Some(TMPFS_MAGIC)),
        ] {
            assert_eq!(remedy(mounts, kind), Remedy::Judgement, "{mounts} {kind:?}");
        }
        assert!(matches!(remedy(beside, Some(TMPFS_MAGIC)), Remedy::Commands(_)));
    }

    #[test]
    fn controllers_of_v1_are_seen_although_nothing_is_mounted() {
        let head = "#subsys_name\thierarchy\tnum_cgroups\tenabled\n";
        assert!(!has_v1("") && !has_v1(&format!("{head}cpu\t0\t9\t1\nmemory\t0\t9\t1\n")));
        assert!(has_v1(&format!("{head}cpu\t0\t9\t1\nmemory\t4\t9\t1\n")) && has_v1("odd"));
        let told = cgroups("", "", "memory\t4\t9\t1\n", Some(SYSFS_MAGIC));
        assert_eq!((told.verdict, told.remedy), (Verdict::Fail, Remedy::Judgement));
    }

    #[test]
    fn a_mount_whose_name_is_not_utf8_hides_no_cgroups() {
        let in_namespace = || {
            unshare(CloneFlags::CLONE_NEWNS).expect("these tests need root");
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
                .unwrap();
            let dir = tempfile::tempdir().unwrap();
            let point = dir.path().join(OsStr::from_bytes(b"bad\xff"));
            std::fs::create_dir(&point).unwrap();
            mount(Some("odd"), &point, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
            // This thread's mounts, which are not its process's.
            let checks = source::check(CGROUPS, "/proc/thread-self/mountinfo", |it| {
                cgroups(it, "", "", Some(SYSFS_MAGIC))
            });
            umount2(&point, MntFlags::MNT_DETACH).unwrap();
            checks
        };
        let told = std::thread::scope(|scope| scope.spawn(in_namespace).join()).unwrap();
        assert!(told.verdict != Verdict::Fail && told.remedy == Remedy::Judgement, "{told:?}");
    }

    #[test]
    fn apparmor_needs_more_than_its_kernel() {
        let (there, nowhere) = (Path::new("/"), Path::new("/nowhere"));
        let verdict = |enabled, profiles, parser| apparmor(enabled, profiles, parser).verdict;
        assert_eq!([verdict("Y", there, Some(there)), verdict("N", there, None)], [Verdict::Ok; 2]);
        assert_eq!([verdict("Y", nowhere, Some(there)), verdict("Y", there, None)], [Verdict::Warn; 2]);
    }

    #[test]
    fn selinux_is_as_the_kernel_says() {
        let found = ["1", "0", ""].map(|enforce| selinux(enforce).found);
        assert!(found[0].starts_with("enforcing") && found[1].starts_with("permissive") && found[2] == "off");
    }

    #[test]
    fn a_resolver_of_ones_own_is_no_help_to_pods() {
        assert_eq!(resolver("nameserver 127.0.0.53\n", "").verdict, Verdict::Warn);
        assert_eq!(resolver("search x\n nameserver 1.1.1.1\nnameserver ::1\n", "").verdict, Verdict::Ok);
        assert_eq!(resolver("", "").verdict, Verdict::Warn);
        let resolved = resolver("nameserver 127.0.0.53\n", "nameserver 9.9.9.9\n");
        assert_eq!((resolved.verdict, &*resolved.found), (Verdict::Ok, "9.9.9.9"));
        assert_eq!(resolver("nameserver ::1\n", "nameserver 9.9.9.9\n").verdict, Verdict::Warn);
    }

    #[test]
    fn a_module_that_is_not_loaded_yet_is_no_failure() {
        let list = "kernel/fs/overlayfs/overlay.ko.xz:\nkernel/net/nf_tables.ko: kernel/net/nfnetlink.ko\n";
        assert!(has_module(list, "overlay") && has_module(list, "nf_tables"));
        assert!(!has_module(list, "over") && !has_module(list, "nfnetlink") && !has_module("", "overlay"));
        assert_eq!(overlayfs("nodev\ttmpfs\n", list).verdict, Verdict::Ok);
    }

    #[test]
    fn what_is_missing_fails_with_advice() {
        let found =
            [overlayfs("nodev\ttmpfs\n\text4\n", ""), namespaces(Path::new("/nowhere")), seccomp("allow")];
        for check in found {
            assert!(check.verdict == Verdict::Fail && !check.advice.is_empty(), "{check:?}");
        }
        assert_eq!(overlayfs("nodev\toverlay\n", "").verdict, Verdict::Ok);
        assert_eq!((root(0).verdict, root(7).verdict), (Verdict::Ok, Verdict::Warn));
    }

    #[test]
    fn this_machine_can_run_the_tests_of_wharf() {
        let failed: Vec<_> = checks(Path::new("/no/leases"), None)
            .into_iter()
            .filter(|check| check.verdict == Verdict::Fail)
            .collect();
        assert_eq!(failed, []);
    }
}
