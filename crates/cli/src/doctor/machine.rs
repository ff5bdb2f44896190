//! Checks of the kernel and the machine, which read `/proc` and `/sys` and need no wharfd.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::mend::{CommandLine, Remedy, program};
use super::{Check, bounded};
use crate::listener;

/// The oldest kernel that has every call that wharf makes: mount_setattr, and clone into a cgroup.
const OLDEST: (u32, u32) = (5, 12);

/// All checks of the machine, the most fundamental first. The leases are those of pods on wharfd's network, and the pid
/// is that of wharfd, if it is known.
pub(super) fn checks(leases: &Path, wharfd: Option<i32>) -> Vec<Check> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let release = read("/proc/sys/kernel/osrelease");
    let modules = format!("/lib/modules/{}/modules.dep", release.trim());
    let (modules, unread) = match bounded::attempt("modules", Path::new(&modules), text) {
        Ok(modules) => (modules, None),
        Err(unread) => (String::new(), Some(unread)),
    };
    let mut checks = vec![
        root(nix::unistd::geteuid().as_raw()),
        kernel(release.trim()),
        cgroups(&read("/proc/self/mountinfo"), &unified_controllers()),
        overlayfs(&read("/proc/filesystems"), &modules),
        namespaces(Path::new("/proc/self/ns")),
        seccomp(&read("/proc/sys/kernel/seccomp/actions_avail")),
        nftables(&modules),
    ];
    checks.extend(bounded::no_threads());
    checks.extend(unread);
    checks.extend(network(leases, wharfd));
    checks.extend([
        bounded::check("name servers", Path::new("/etc/resolv.conf"), |file| {
            resolver(&text(file), &text(Path::new("/run/systemd/resolve/resolv.conf")))
        }),
        bounded::check("AppArmor", Path::new("/usr/sbin"), |_programs| {
            apparmor(
                text(Path::new("/sys/module/apparmor/parameters/enabled")).trim(),
                Path::new("/sys/kernel/security/apparmor/profiles"),
                program("apparmor_parser").as_deref(),
            )
        }),
        selinux(read("/sys/fs/selinux/enforce").trim()),
    ]);
    checks
}

/// What is in a file; nothing if it cannot be read.
fn text(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_default()
}

/// The checks of the network namespace that wharfd is in, as far as they can be made from this one.
fn network(leases: &Path, wharfd: Option<i32>) -> Vec<Check> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    if let Some(pid) = wharfd.filter(|&pid| listener::shares(pid, "net") == Some(false)) {
        let advice = format!("check it from there: nsenter --net=/proc/{pid}/ns/net wharf doctor");
        return vec![Check::warn(
            "forwarding, iptables",
            "unknown: wharfd is in another network namespace",
            advice,
        )];
    }
    vec![
        forwarding(
            read("/proc/sys/net/ipv4/ip_forward").trim(),
            bounded::read(leases, |leases| fs::read_dir(leases).map_or(0, Iterator::count)),
        ),
        legacy_iptables(&read("/proc/net/ip_tables_names"), || {
            CommandLine::new("iptables-legacy -S FORWARD").execute(Duration::from_secs(3)).ok()
        }),
    ]
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
fn unified_controllers() -> String {
    let places = ["/sys/fs/cgroup/cgroup.controllers", "/sys/fs/cgroup/unified/cgroup.controllers"];
    places.iter().find_map(|place| fs::read_to_string(place).ok()).unwrap_or_default()
}

/// The file system type and the super block's options of each mount.
fn mounts(mountinfo: &str) -> impl Iterator<Item = (&str, &str)> {
    mountinfo.lines().filter_map(|line| {
        let mut fields = line.split_once(" - ")?.1.split(' ');
        Some((fields.next()?, fields.nth(1)?))
    })
}

fn cgroups(mountinfo: &str, unified: &str) -> Check {
    const WHAT: &str = "cgroups";
    let v1 =
        mounts(mountinfo).filter(|(kind, _)| *kind == "cgroup").flat_map(|(_, options)| options.split(','));
    let v1: Vec<&str> = v1.collect();
    let v2 = mounts(mountinfo).any(|(kind, _)| kind == "cgroup2");
    let version = match (v1.is_empty(), v2) {
        (true, false) => {
            let mount = CommandLine::new("mount -t cgroup2 cgroup2 /sys/fs/cgroup");
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
    let loaded = Path::new("/sys/module/nf_tables").exists();
    let built_in =
        || fs::read_to_string("/proc/kallsyms").is_ok_and(|symbols| symbols.contains(" nft_do_chain"));
    if loaded || built_in() {
        return Check::ok("nftables", "yes");
    }
    if has_module(modules, "nf_tables") {
        return Check::ok("nftables", "a module; the first pod loads it");
    }
    let advice = "the built-in network needs it: use another kernel, or CNI plugins";
    Check::warn("nftables", "this kernel lacks it", advice)
}

/// wharfd turns forwarding on for the first pod on its network, and whoever turns it off later is not wharfd.
fn forwarding(value: &str, leases: usize) -> Check {
    const WHAT: &str = "forwarding";
    match (value, leases) {
        ("1", _) => Check::ok(WHAT, "on"),
        (_, 0) => Check::ok(WHAT, "off; wharfd turns it on for the first pod on its network"),
        _ => {
            let advice = "something else turned it off, so pods cannot reach other machines: check /etc/sysctl.d, and turn it on";
            let on = CommandLine::new("sysctl -w net.ipv4.ip_forward=1");
            Check::warn(WHAT, "off, although wharfd has turned it on for pods", advice).mended_by(vec![on])
        }
    }
}

/// What a FORWARD chain needs to let pods reach others: wharfd adds the same to chains of nf_tables that drop packets.
const ACCEPTED: [&str; 2] =
    ["-i wh+ -j ACCEPT", "-o wh+ -m conntrack --ctstate RELATED,ESTABLISHED,DNAT -j ACCEPT"];

/// The tables of iptables that are not in nf_tables, where wharf puts its own rules beside those of others. `chain` are
/// the rules of FORWARD there, if they can be seen.
fn legacy_iptables(tables: &str, chain: impl FnOnce() -> Option<String>) -> Check {
    const WHAT: &str = "iptables";
    if !tables.lines().any(|table| table == "filter") {
        return Check::ok(WHAT, "no tables of iptables-legacy");
    }
    let chain = chain().unwrap_or_default();
    let rules: Vec<&str> = chain.lines().filter_map(|line| line.strip_prefix("-A FORWARD ")).collect();
    let mut missing = ACCEPTED.to_vec();
    missing.retain(|rule| !rules.contains(rule));
    let has_policy =
        |policy: &str| chain.lines().any(|line| line.strip_prefix("-P FORWARD ") == Some(policy));
    if has_policy("DROP") && !missing.is_empty() {
        // At the end, so that all rules of others still decide first.
        let append = |rule: &&str| CommandLine::new(&format!("iptables-legacy -w -A FORWARD {rule}"));
        let advice = "pods cannot reach anything that its other rules do not accept: let them through";
        return Check::warn(WHAT, "the policy of iptables-legacy drops what is forwarded", advice)
            .mended_by(missing.iter().map(append).collect());
    }
    if missing.is_empty() && rules.starts_with(&ACCEPTED) || has_policy("ACCEPT") && rules.is_empty() {
        return Check::ok(WHAT, "iptables-legacy lets pods through");
    }
    let advice = "if its FORWARD chain drops packets (iptables-legacy -S FORWARD), pods cannot reach anything until you \
                  add -I FORWARD -i wh+ -j ACCEPT, and -I FORWARD -o wh+ -m conntrack --ctstate \
                  RELATED,ESTABLISHED,DNAT -j ACCEPT; or move its rules to iptables-nft";
    Check::warn(WHAT, "iptables-legacy filters packets", advice)
}

/// `behind` has the servers that systemd-resolved asks. wharfd gives them to pods if the file names only loopback
/// addresses.
fn resolver(resolv_conf: &str, behind: &str) -> Check {
    const WHAT: &str = "name servers";
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
    use super::super::Verdict;
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
        assert_eq!(cgroups(v1, "").found, "v1, with cpu, memory and pids");
        assert_eq!(cgroups(&format!("{v1}{v2}"), "").found, "hybrid, with cpu, memory and pids");
        assert_eq!(cgroups(v2, "cpu io memory pids\n").verdict, Verdict::Ok);
        assert_eq!(cgroups(v2, "cpu pids").found, "v2 without memory");
        let mount = CommandLine::new("mount -t cgroup2 cgroup2 /sys/fs/cgroup");
        let none = cgroups("", "");
        assert_eq!((none.verdict, none.remedy), (Verdict::Fail, Remedy::Commands(vec![mount])));
    }

    #[test]
    fn apparmor_needs_more_than_its_kernel() {
        let (there, nowhere) = (Path::new("/"), Path::new("/nowhere"));
        let verdict = |enabled, profiles, parser| apparmor(enabled, profiles, parser).verdict;
        assert_eq!([verdict("Y", there, Some(there)), verdict("N", there, None)], [Verdict::Ok; 2]);
        assert_eq!([verdict("Y", nowhere, Some(there)), verdict("Y", there, None)], [Verdict::Warn; 2]);
    }

    #[test]
    fn a_network_that_is_not_wharfds_is_not_checked() {
        let names = |wharfd| -> Vec<_> {
            network(Path::new("/no/leases"), wharfd).iter().map(|check| check.what).collect()
        };
        let process = i32::try_from(std::process::id()).unwrap();
        assert_eq!([names(Some(process)), names(None)], [["forwarding", "iptables"]; 2]);
        let elsewhere = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("these tests need root");
            names(Some(process))
        };
        let names = std::thread::scope(|scope| scope.spawn(elsewhere).join()).unwrap();
        assert_eq!(names, ["forwarding, iptables"]);
    }

    #[test]
    fn forwarding_that_somebody_has_turned_off_is_reported() {
        let verdicts =
            [("1", 2), ("0", 0), ("0", 2)].map(|(value, leases)| forwarding(value, leases).verdict);
        assert_eq!(verdicts, [Verdict::Ok, Verdict::Ok, Verdict::Warn]);
        let on = CommandLine::new("sysctl -w net.ipv4.ip_forward=1");
        assert_eq!(forwarding("0", 2).remedy, Remedy::Commands(vec![on]));
    }

    #[test]
    fn selinux_is_as_the_kernel_says() {
        let found = ["1", "0", ""].map(|enforce| selinux(enforce).found);
        assert!(found[0].starts_with("enforcing") && found[1].starts_with("permissive") && found[2] == "off");
    }

    #[test]
    fn tables_that_wharf_cannot_add_to_are_reported() {
        let told = |tables, chain: Option<&str>| legacy_iptables(tables, || chain.map(str::to_owned));
        assert_eq!([told("", None).verdict, told("nat\n", None).verdict], [Verdict::Ok; 2]);
        let unseen = told("nat\nfilter\n", None);
        assert_eq!((unseen.verdict, unseen.remedy), (Verdict::Warn, Remedy::Judgement));
        let of = |rules: &str| told("filter\n", Some(rules));
        assert_eq!(of("-P FORWARD ACCEPT").verdict, Verdict::Ok);
        let others = of("-P FORWARD ACCEPT\n-A FORWARD -j DROP");
        assert_eq!((others.verdict, others.remedy), (Verdict::Warn, Remedy::Judgement));
    }

    #[test]
    fn pods_are_let_through_legacy_tables_that_drop_by_their_policy() {
        let in_namespace = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("these tests need root");
            let run = |line: &str| CommandLine::new(line).execute(Duration::from_secs(60)).unwrap();
            let told = || legacy_iptables("filter\n", || Some(run("iptables-legacy -S FORWARD")));
            run("iptables-legacy -P FORWARD DROP");
            let Remedy::Commands(commands) = told().remedy else { panic!("{:?}", told()) };
            assert_eq!(commands.len(), 2);
            commands.iter().for_each(|command| drop(run(&command.to_string())));
            assert_eq!(told().verdict, Verdict::Ok, "{:?}", told());
            run("iptables-legacy -D FORWARD 1");
            let Remedy::Commands(missing) = told().remedy else { panic!("{:?}", told()) };
            assert_eq!(missing, commands[..1], "only what is missing");
            run("iptables-legacy -I FORWARD -j RETURN");
            commands.iter().for_each(|command| drop(run(&command.to_string())));
            assert_eq!(
                (told().verdict, told().remedy),
                (Verdict::Warn, Remedy::Judgement),
                "others decide first"
            );
        };
        std::thread::scope(|scope| scope.spawn(in_namespace).join()).unwrap();
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
