//! Memory that processes use, read from `/proc`, which shows only the rig's processes.

use std::collections::BTreeSet;
use std::fs;

use anyhow::Context;

use crate::client::Runtime;
use crate::results::{Results, Unit};

/// What the containers run. Its processes are the workload and are not counted.
pub(crate) const WORKLOAD: &[&str] = &["sleep", "86413"];

/// Measures the daemons before any call made them do something.
pub(crate) fn idle(runtimes: &[Runtime], results: &mut Results) -> anyhow::Result<()> {
    for runtime in runtimes {
        results.add("daemon RSS, just started", Unit::KiB, &runtime.name, resident_kib(runtime.daemon)?);
    }
    Ok(())
}

/// All process ids.
pub(crate) fn processes() -> anyhow::Result<BTreeSet<u32>> {
    let mut pids = BTreeSet::new();
    for entry in fs::read_dir("/proc").context("list /proc")? {
        if let Ok(pid) = entry.context("list /proc")?.file_name().to_string_lossy().parse() {
            pids.insert(pid);
        }
    }
    Ok(pids)
}

/// A process's resident memory.
pub(crate) fn resident_kib(pid: u32) -> anyhow::Result<f64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    sum_of(&text, &["VmRSS:"]).with_context(|| format!("no VmRSS in {path}"))
}

/// Memory that no other process shares, of all helpers together.
pub(crate) fn private_of_new_kib(before: &BTreeSet<u32>, daemon: u32) -> anyhow::Result<f64> {
    let mut total = 0.0;
    for pid in helpers(before, daemon)? {
        // A process that ends meanwhile counts as nothing.
        let Ok(rollup) = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) else { continue };
        total += sum_of(&rollup, &["Private_Clean:", "Private_Dirty:", "Private_Hugetlb:"]).unwrap_or(0.0);
    }
    Ok(total)
}

/// All processes that started after `before`, without the daemon and the workload.
pub(crate) fn helpers(before: &BTreeSet<u32>, daemon: u32) -> anyhow::Result<Vec<u32>> {
    let is_helper = |pid: &u32| {
        let command = fs::read(format!("/proc/{pid}/cmdline"));
        *pid != daemon && command.is_ok_and(|command| !is_workload(&command))
    };
    Ok(processes()?.difference(before).copied().filter(is_helper).collect())
}

fn is_workload(command: &[u8]) -> bool {
    command
        .split(|&byte| byte == 0)
        .filter(|word| !word.is_empty())
        .eq(WORKLOAD.iter().map(|word| word.as_bytes()))
}

/// The sum of the lines with these keys, or `None` without any such line.
fn sum_of(text: &str, keys: &[&str]) -> Option<f64> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            keys.contains(&words.next()?).then(|| words.next()?.parse::<f64>().ok()).flatten()
        })
        .reduce(|sum, value| sum + value)
}

#[cfg(test)]
mod tests {
    use super::{is_workload, private_of_new_kib, processes, resident_kib, sum_of};

    #[test]
    fn private_pages_are_summed() {
        let rollup = "Rss: 90 kB\nPrivate_Clean:       4 kB\nPrivate_Dirty:      12 kB\n";
        assert_eq!(sum_of(rollup, &["Private_Clean:", "Private_Dirty:"]), Some(16.0));
        assert_eq!(sum_of(rollup, &["Swap:"]), None);
    }

    #[test]
    fn the_workload_is_known_by_its_whole_command() {
        assert!(is_workload(b"sleep\x0086413\0"));
        assert!(!is_workload(b"sleep\x001\0"));
        assert!(!is_workload(b""));
    }

    #[test]
    fn a_process_has_resident_pages_and_is_not_new() {
        let own = std::process::id();
        let before = processes().unwrap();
        assert!(before.contains(&own) && resident_kib(own).unwrap() > 100.0);
        let without = before.into_iter().filter(|&pid| pid != own).collect();
        assert!(private_of_new_kib(&without, 0).unwrap() > 100.0);
        resident_kib(0).unwrap_err();
    }
}
