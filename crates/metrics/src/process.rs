//! The figures of this process, with the names that all programs have for them. They come from `/proc/self`, which the
//! kernel answers from memory.

use std::fmt;
use std::fs;

use nix::sys::resource::{Resource, getrlimit};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{SysconfVar, sysconf};

use crate::page::{Page, Source};

/// This process.
#[derive(Debug)]
pub(crate) struct Process {
    ticks_per_s: f64,
    page_bytes: u64,
    /// When it started, in seconds since 1970; `None` if the kernel does not say it.
    started_s: Option<f64>,
}

/// What is used of `/proc/self/stat`; see proc_pid_stat(5).
#[derive(Debug, PartialEq)]
struct Stat {
    cpu_ticks: f64,
    threads: u64,
    /// Since the machine's start.
    started_ticks: f64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Process {
    pub(crate) fn new() -> Self {
        let number =
            |variable| sysconf(variable).ok().flatten().and_then(|number| u32::try_from(number).ok());
        let ticks_per_s = f64::from(number(SysconfVar::CLK_TCK).unwrap_or(100));
        let page_bytes = u64::from(number(SysconfVar::PAGE_SIZE).unwrap_or(4096));
        let started_s = stat().and_then(|stat| Some(machine_started_s()? + stat.started_ticks / ticks_per_s));
        Self { ticks_per_s, page_bytes, started_s }
    }
}

impl Source for Process {
    fn write(&self, page: &mut Page<'_>) -> fmt::Result {
        if let Some(stat) = stat() {
            let cpu_s = stat.cpu_ticks / self.ticks_per_s;
            page.counter("process_cpu_seconds", "Time on processors, the kernel's included", cpu_s)?;
            let resident_bytes = stat.resident_pages * self.page_bytes;
            page.gauge("process_resident_memory_bytes", "Memory that is in use", resident_bytes)?;
            page.gauge("process_virtual_memory_bytes", "Addresses that are in use", stat.virtual_bytes)?;
            page.gauge("process_threads", "Threads", stat.threads)?;
        }
        if let Some(started_s) = self.started_s {
            page.gauge("process_start_time_seconds", "When it started, since 1970", started_s)?;
        }
        if let Some(open) = open_descriptors() {
            page.gauge("process_open_fds", "Open file descriptors", open)?;
        }
        if let Ok((soft, _hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
            page.gauge("process_max_fds", "The limit of open file descriptors", soft)?;
        }
        Ok(())
    }
}

fn stat() -> Option<Stat> {
    parse(&wharf_sys::fs::kernel_text("/proc/self/stat").ok()?)
}

/// Parses the line. The name, the second field, may contain anything, and ends with the last parenthesis.
fn parse(line: &str) -> Option<Stat> {
    let fields: Vec<&str> = line.rsplit_once(") ")?.1.split_ascii_whitespace().collect();
    // As the manual counts them, of which the first two are cut off.
    let field = |number: usize| fields.get(number - 3).copied();
    let count = |number| field(number)?.parse::<u64>().ok();
    let ticks = |number| field(number)?.parse::<f64>().ok();
    Some(Stat {
        cpu_ticks: ticks(14)? + ticks(15)?,
        threads: count(20)?,
        started_ticks: ticks(22)?,
        virtual_bytes: count(23)?,
        resident_pages: count(24)?,
    })
}

/// When the machine started, in seconds since 1970, by the clock as it is set now.
fn machine_started_s() -> Option<f64> {
    let seconds = |clock| Some(std::time::Duration::from(clock_gettime(clock).ok()?).as_secs_f64());
    Some(seconds(ClockId::CLOCK_REALTIME)? - seconds(ClockId::CLOCK_BOOTTIME)?)
}

/// How many descriptors are open. Since Linux 6.2 that is the size of the directory; before, it is read.
#[expect(clippy::disallowed_methods, reason = "procfs does not wait, and the server's thread is no worker")]
fn open_descriptors() -> Option<u64> {
    const DIRECTORY: &str = "/proc/self/fd";
    match fs::metadata(DIRECTORY).ok()?.len() {
        // The last of them is the directory itself.
        0 => u64::try_from(fs::read_dir(DIRECTORY).ok()?.count().saturating_sub(1)).ok(),
        open => Some(open),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_whatever_the_name_in_it() {
        let rest = "S 1 1 1 0 -1 4194560 1 2 3 4 250 50 0 0 20 0 7 0 1000 8192 3 18446744073709551615 1";
        let stat = parse(&format!("42 (a) b) {rest}")).unwrap();
        let expected = Stat {
            cpu_ticks: 300.0,
            threads: 7,
            started_ticks: 1000.0,
            virtual_bytes: 8192,
            resident_pages: 3,
        };
        assert_eq!(stat, expected);
        assert_eq!(parse("42 (a) S 1"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn this_process_has_all_figures() {
        let process = Process::new();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        let started = process.started_s.unwrap();
        assert!((now - 3600.0..now + 1.0).contains(&started), "{started} {now}");
        assert!(open_descriptors().unwrap() >= 3);
        assert!(stat().unwrap().resident_pages * process.page_bytes > 1 << 20);
    }
}
