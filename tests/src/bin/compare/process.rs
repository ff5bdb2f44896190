//! What the kernel says about a container's first process, read from outside. That works for a container without a
//! shell, too, and what the process was given is not mixed up with what a command inside is given.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::facts::Facts;

/// The lines of `status` with what the process was given.
const STATUS: &[&str] = &[
    "Uid",
    "Gid",
    "Groups",
    "Umask",
    "NoNewPrivs",
    "Seccomp",
    "CapInh",
    "CapPrm",
    "CapEff",
    "CapBnd",
    "CapAmb",
];
const NAMESPACES: &[&str] = &["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];
/// Super block options that a runtime chooses; all others belong to the file system below.
const CHOSEN: &[&str] = &["size=", "mode=", "gid=", "ptmxmode=", "hidepid=", "subset=", "nr_inodes="];
/// The settings of the controllers, on v1 and v2.
const CGROUP_FILES: &[&str] = &[
    "blkio.weight",
    "cpu.cfs_period_us",
    "cpu.cfs_quota_us",
    "cpu.max",
    "cpu.shares",
    "cpu.weight",
    "cpuset.cpus",
    "cpuset.mems",
    "devices.list",
    "hugetlb.2MB.limit_in_bytes",
    "hugetlb.2MB.max",
    "memory.high",
    "memory.limit_in_bytes",
    "memory.low",
    "memory.max",
    "memory.memsw.limit_in_bytes",
    "memory.min",
    "memory.oom.group",
    "memory.oom_control",
    "memory.soft_limit_in_bytes",
    "memory.swap.max",
    "memory.swappiness",
    "pids.max",
];

/// Adds what the kernel says about a process.
pub(crate) fn look(pid: u32, facts: &mut Facts) -> anyhow::Result<()> {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let read = |name: &str| {
        fs::read_to_string(proc.join(name)).with_context(|| format!("read {name} of process {pid}"))
    };
    for pair in fs::read(proc.join("environ"))?.split(|&byte| byte == 0).filter(|pair| !pair.is_empty()) {
        let pair = String::from_utf8_lossy(pair);
        let (name, value) = pair.split_once('=').unwrap_or((&pair, ""));
        facts.add(format!("process: environment {name}"), value);
    }
    for line in read("status")?.lines() {
        if let Some((name, value)) = line.split_once(':').filter(|(name, _)| STATUS.contains(name)) {
            facts.add(format!("process: {name}"), value.split_whitespace().collect::<Vec<_>>().join(" "));
        }
    }
    for line in read("limits")?.lines().skip(1) {
        // The name contains spaces; the columns are separated by more than one.
        let columns: Vec<&str> =
            line.split("  ").map(str::trim).filter(|column| !column.is_empty()).collect();
        if let [name, soft, hard, ..] = columns[..] {
            facts.add(format!("process: {name}"), format!("{soft} {hard}"));
        }
    }
    facts.add("process: oom_score_adj", read("oom_score_adj")?);
    facts.add("process: working directory", link(&proc.join("cwd")));
    facts.add("process: leads its session", session(&read("stat")?));
    namespaces(&proc, facts);
    descriptors(&proc, facts)?;
    mounts(&read("mountinfo")?, facts);
    cgroups(&read("cgroup")?, facts)
}

/// The target of a link in `/proc`, without the inode number of an anonymous object.
fn link(path: &Path) -> String {
    let target = fs::read_link(path).unwrap_or_default();
    let text = String::from_utf8_lossy(target.as_os_str().as_bytes()).into_owned();
    text.split_once(":[").map_or(text.clone(), |(kind, _number)| kind.to_owned())
}

/// Whether a process leads its session, and whether that has a terminal. The fields come after the name in brackets.
fn session(stat: &str) -> String {
    let pid = stat.split(' ').next().unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ').collect();
    let leads = fields.get(3) == Some(&pid);
    let terminal = fields.get(4).is_some_and(|number| *number != "0");
    format!("{leads}, with a terminal: {terminal}")
}

fn namespaces(proc: &Path, facts: &mut Facts) {
    for kind in NAMESPACES {
        let of = |proc: &Path| fs::read_link(proc.join("ns").join(kind)).ok();
        let own = if of(proc) == of(Path::new("/proc/self")) { "the machine's" } else { "its own" };
        facts.add(format!("process: {kind} namespace"), own);
    }
}

fn descriptors(proc: &Path, facts: &mut Facts) -> anyhow::Result<()> {
    for entry in fs::read_dir(proc.join("fd"))?.flatten() {
        let number = entry.file_name().to_string_lossy().into_owned();
        // What a program opens by itself is not the runtime's doing; the descriptors it was given are the lowest.
        if number.parse::<u32>().is_ok_and(|number| number < 3) {
            facts.add(format!("process: descriptor {number}"), link(&entry.path()));
        }
    }
    Ok(())
}

fn mounts(mountinfo: &str, facts: &mut Facts) {
    for line in mountinfo.lines() {
        let Some((mount, system)) = line.split_once(" - ") else { continue };
        let (mount, system): (Vec<&str>, Vec<&str>) =
            (mount.split(' ').collect(), system.split(' ').collect());
        let (&[_, _, _, root, point, options, ref tags @ ..], &[kind, _, of_system, ..]) =
            (&mount[..], &system[..])
        else {
            continue;
        };
        let part = if ["proc", "sysfs"].contains(&kind) { format!(" {root}") } else { String::new() };
        let options: BTreeSet<&str> = options.split(',').collect();
        let chosen = of_system.split(',').filter(|option| CHOSEN.iter().any(|own| option.starts_with(own)));
        let tags = tags.iter().map(|tag| tag.split(':').next().unwrap_or_default());
        let words: Vec<&str> = options.into_iter().chain(chosen).chain(tags).collect();
        facts.add(format!("mount {point}"), format!("{kind}{part} {}", words.join(",")));
    }
}

fn cgroups(memberships: &str, facts: &mut Facts) -> anyhow::Result<()> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("read the mounts of this process")?;
    for line in memberships.lines() {
        let mut fields = line.splitn(3, ':');
        let (_, Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let Some(point) = hierarchy(&table, controllers) else { continue };
        let directory = point.join(path.trim_start_matches('/'));
        for name in CGROUP_FILES {
            let Ok(text) = fs::read_to_string(directory.join(name)) else { continue };
            let mut lines: Vec<&str> = text.lines().collect();
            lines.sort_unstable();
            lines.dedup();
            facts.add(format!("cgroup {name}"), lines.join("; "));
        }
    }
    Ok(())
}

/// The mount point of the hierarchy with these controllers; v2's has none.
fn hierarchy(mountinfo: &str, controllers: &str) -> Option<PathBuf> {
    let first = controllers.split(',').next().unwrap_or_default();
    mountinfo.lines().find_map(|line| {
        let (mount, system) = line.split_once(" - ")?;
        let mut system = system.split(' ');
        let found = match system.next()? {
            "cgroup2" => first.is_empty(),
            "cgroup" => !first.is_empty() && system.nth(1)?.split(',').any(|option| option == first),
            _ => false,
        };
        found.then(|| mount.split(' ').nth(4)).flatten().map(PathBuf::from)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hierarchy_is_found_by_its_controllers() {
        let table = "1 2 0:3 / /c/cpu rw - cgroup cgroup rw,cpu,cpuacct\n4 2 0:5 / /c/unified rw - cgroup2 cgroup2 rw\n";
        assert_eq!(hierarchy(table, "cpuacct,cpu"), Some("/c/cpu".into()));
        assert_eq!(hierarchy(table, ""), Some("/c/unified".into()));
        assert_eq!(hierarchy(table, "memory"), None);
    }

    #[test]
    fn a_session_is_read_behind_the_name() {
        assert_eq!(session("7 (a) b) S 1 7 7 34816 7"), "true, with a terminal: true");
        assert_eq!(session("7 (a) S 1 7 1 0 7"), "false, with a terminal: false");
    }

    #[test]
    fn this_process_has_facts_of_every_kind() {
        let mut facts = Facts::default();
        look(std::process::id(), &mut facts).unwrap();
        let none = facts.differences(&Facts::default(), "r");
        for name in ["process: Uid", "process: Max open files", "process: mnt namespace", "mount /proc"] {
            assert!(none.iter().any(|one| one.fact == name), "{name}");
        }
    }
}
