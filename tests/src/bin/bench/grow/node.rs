//! What pods cost a node: descriptors, mounts, memory, and CPU time while nobody asks for anything.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;

/// The number of a process's open descriptors.
pub(crate) fn descriptors(pid: u32) -> anyhow::Result<usize> {
    let path = format!("/proc/{pid}/fd");
    Ok(fs::read_dir(&path).with_context(|| format!("list {path}"))?.count())
}

/// The number of mounts in the rig's mount namespace, which is also the daemons'.
pub(crate) fn mounts() -> anyhow::Result<usize> {
    Ok(read("/proc/self/mountinfo")?.lines().count())
}

/// The memory of the whole machine that is available to programs.
pub(crate) fn available_kib() -> anyhow::Result<f64> {
    let text = read("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).context("no MemAvailable")?;
    let count = line.split_whitespace().next().context("MemAvailable has no value")?;
    count.parse().with_context(|| format!("{count} is no count of KiB"))
}

/// What threads have done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Activity {
    pub(crate) cpu: Duration,
    /// How often one of them left the CPU, which is also how often one was woken.
    pub(crate) wakes: u64,
}

/// What each thread of some processes has done so far, by its directory in `/proc`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Activities(BTreeMap<PathBuf, Activity>);

impl Activities {
    /// The activities of all threads of these processes.
    pub(crate) fn of(processes: &[u32]) -> anyhow::Result<Self> {
        let mut all = BTreeMap::new();
        for pid in processes {
            let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
            for thread in threads {
                let directory = thread.context("list threads")?.path();
                let schedule = fs::read_to_string(directory.join("schedstat")).unwrap_or_default();
                let status = fs::read_to_string(directory.join("status")).unwrap_or_default();
                let cpu = Duration::from_nanos(on_processor(&schedule));
                all.insert(directory, Activity { cpu, wakes: switches(&status) });
            }
        }
        Ok(Self(all))
    }

    /// The sum since an earlier measurement, of the threads that are still there: the kernel forgets one that ended.
    pub(crate) fn since(&self, before: &Self) -> Activity {
        let mut sum = Activity::default();
        for (thread, now) in &self.0 {
            let then = before.0.get(thread).copied().unwrap_or_default();
            sum.cpu += now.cpu.saturating_sub(then.cpu);
            sum.wakes += now.wakes.saturating_sub(then.wakes);
        }
        sum
    }
}

/// The first number of a schedstat file: nanoseconds on the CPU.
fn on_processor(schedule: &str) -> u64 {
    schedule.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or_default()
}

/// Counts only voluntary switches: a thread that was preempted did not sleep.
fn switches(status: &str) -> u64 {
    let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    count.and_then(|count| count.trim().parse().ok()).unwrap_or_default()
}

fn read(path: &str) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {path}"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Activities, Activity, available_kib, descriptors, mounts, on_processor, switches};

    #[test]
    fn files_of_the_kernel_are_read() {
        assert_eq!(on_processor("123 456 7\n"), 123);
        assert_eq!(switches("x:\t1\nvoluntary_ctxt_switches:\t42\nnonvoluntary_ctxt_switches:\t7\n"), 42);
        assert!(mounts().unwrap() > 1 && available_kib().unwrap() > 1000.0);
    }

    #[test]
    fn a_descriptor_and_work_are_seen() {
        let own = std::process::id();
        let (before, start) = (descriptors(own).unwrap(), Activities::of(&[own]).unwrap());
        let files: Vec<_> = (0..100).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        assert!(descriptors(own).unwrap() >= before + files.len() - 20);
        // Nobody sends: this thread leaves the CPU, and a timer wakes it.
        let (_sender, receiver) = std::sync::mpsc::channel::<()>();
        receiver.recv_timeout(Duration::from_millis(1)).unwrap_err();
        let done = Activities::of(&[own]).unwrap().since(&start);
        assert!(done.cpu > Duration::ZERO && done.wakes > 0, "{done:?}");
        assert_eq!(Activities::of(&[u32::MAX]).unwrap(), Activities::default());
    }

    #[test]
    fn a_thread_that_ended_takes_nothing_from_the_others() {
        let of = |threads: &[(&str, u64)]| {
            let activity = |wakes| Activity { wakes, ..Activity::default() };
            Activities(threads.iter().map(|(name, wakes)| (name.into(), activity(*wakes))).collect())
        };
        let before = of(&[("old", 5), ("ended", 100)]);
        assert_eq!(of(&[("old", 7), ("new", 3)]).since(&before).wakes, 5);
    }
}
