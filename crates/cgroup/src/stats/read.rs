//! Which file has which statistics, in v1's hierarchies and in the unified one.
//!
//! A value whose file is missing or cannot be read is `None`, and stays so up to the CRI: nobody may take it for zero.
//! No error is returned, because a cgroup may be removed between any two files.

use std::fs;

use super::reading::{Reading, metric, tasks, usage};
use super::{CpuStats, DeviceIo, Extent, HugepageStats, MemoryStats, PidsStats, Stats, SwapStats, parse};
use crate::detect::{Controller, Hierarchy, Kind};
use crate::group::Cgroup;
use crate::meter::{MemoryLimits, Meter};
use crate::stats::Bound;

impl Cgroup {
    /// Reads this much of the present usage. If the cgroup is gone, every value is `None`.
    #[must_use]
    pub fn stats(&self, extent: Extent) -> Stats {
        self.metered_stats(extent, &mut Meter::default())
    }

    /// The same, with what the meter of this cgroup remembers of earlier readings: less has to be read then.
    pub fn metered_stats(&self, extent: Extent, meter: &mut Meter) -> Stats {
        let reading = &mut Reading::of(self, extent);
        let (memory, swap) = self.memory_stats(reading, meter);
        let mut stats = Stats {
            cpu: self.cpu_stats(reading),
            memory,
            swap,
            pids: self.pids_stats(reading),
            io: self.io_stats(reading),
            io_pressure: reading.pressure(self.cgroups().unified(), usage("io.pressure")),
            hugepages: self.hugepage_stats(reading),
        };
        if let Some(inside) = self.inside().filter(|_| extent == Extent::Everything) {
            inside.complete(&mut stats);
        }
        stats
    }

    /// Adds to the statistics of an enclosed cgroup what the kernel counts only in the one inside.
    fn complete(&self, stats: &mut Stats) {
        let reading = &mut Reading::of(self, Extent::Everything);
        // Both have the same quota and the same periods, in which either may be throttled, or both.
        let mut cpu = CpuStats::default();
        let quota = self.cgroups().home(Controller::Cpu);
        reading.pairs(quota, metric("cpu.stat"), |key, value| throttled(&mut cpu, key, value));
        let greater = |above: &mut Option<u64>, inside: Option<u64>| {
            *above = above.zip(inside).map(|(above, inside)| above.max(inside));
        };
        greater(&mut stats.cpu.periods, cpu.periods);
        greater(&mut stats.cpu.throttled_periods, cpu.throttled_periods);
        greater(&mut stats.cpu.throttled_ns, cpu.throttled_ns);
        // A limit is hit in one of them. A killed process is counted where it was.
        let home = self.cgroups().home(Controller::Memory).filter(|home| home.kind == Kind::V1);
        if home.is_some() {
            let hits = reading.number(home, metric("memory.failcnt"));
            stats.memory.limit_hits = stats.memory.limit_hits.zip(hits).map(|(above, inside)| above + inside);
            stats.memory.oom_kills = oom_kills_v1(reading, home);
        }
    }

    /// The CPU time since the cgroup was made, in nanoseconds; `None` if the cgroup is gone.
    #[must_use]
    pub fn cpu_ns(&self) -> Option<u64> {
        self.cpu_time(&mut Reading::of(self, Extent::Usage)).usage_ns
    }

    fn cpu_stats<'a>(&'a self, reading: &mut Reading<'a>) -> CpuStats {
        let mut cpu = self.cpu_time(reading);
        cpu.pressure = reading.pressure(self.cgroups().unified(), usage("cpu.pressure"));
        cpu
    }

    fn cpu_time<'a>(&'a self, reading: &mut Reading<'a>) -> CpuStats {
        let mut cpu = CpuStats::default();
        match self.cgroups().home(Controller::Cpuacct) {
            // On v1, `cpuacct` counts the time and `cpu` the throttling. They usually share a hierarchy, but need not.
            Some(time) => {
                cpu.usage_ns = reading.number(Some(time), usage("cpuacct.usage"));
                cpu.user_ns = reading.number(Some(time), metric("cpuacct.usage_user"));
                cpu.system_ns = reading.number(Some(time), metric("cpuacct.usage_sys"));
                let throttling = self.cgroups().home(Controller::Cpu);
                reading.pairs(throttling, metric("cpu.stat"), |key, value| throttled(&mut cpu, key, value));
            }
            // Without `cpuacct`, the unified hierarchy counts the time even if the `cpu` controller is elsewhere.
            None => reading.pairs(self.cgroups().unified(), usage("cpu.stat"), |key, value| {
                throttled(&mut cpu, key, value);
                used(&mut cpu, key, value);
            }),
        }
        cpu
    }

    fn memory_stats<'a>(&'a self, reading: &mut Reading<'a>, meter: &mut Meter) -> (MemoryStats, SwapStats) {
        let (mut memory, swap, inactive) = match self.cgroups().home(Controller::Memory) {
            None => (MemoryStats::default(), SwapStats::default(), None),
            Some(home) if home.kind == Kind::V1 => memory_v1(reading, home, meter),
            Some(home) => memory_v2(reading, home),
        };
        memory.working_set_bytes =
            memory.usage_bytes.zip(inactive).map(|(usage, inactive)| usage.saturating_sub(inactive));
        memory.pressure = reading.pressure(self.cgroups().unified(), usage("memory.pressure"));
        (memory, swap)
    }

    fn pids_stats<'a>(&'a self, reading: &mut Reading<'a>) -> PidsStats {
        let home = self.cgroups().home(Controller::Pids).or(self.cgroups().unified());
        let current = reading.number(home, tasks("pids.current"));
        PidsStats { current, limit: reading.bound(home, metric("pids.max")) }
    }

    fn io_stats<'a>(&'a self, reading: &mut Reading<'a>) -> Option<Vec<DeviceIo>> {
        let home = self.cgroups().home(Controller::Io)?;
        if home.kind == Kind::Unified {
            return reading.text(Some(home), metric("io.stat")).and_then(parse::io_stat);
        }
        let bytes = reading.text(Some(home), metric("blkio.throttle.io_service_bytes_recursive"))?.to_owned();
        parse::blkio(&bytes, reading.text(Some(home), metric("blkio.throttle.io_serviced_recursive"))?)
    }

    fn hugepage_stats<'a>(&'a self, reading: &mut Reading<'a>) -> Vec<HugepageStats> {
        let Some(home) = self.cgroups().home(Controller::Hugetlb) else { return Vec::new() };
        if reading.extent() < Extent::Everything {
            return Vec::new();
        }
        let mut read = |(page_size, file): (String, String)| HugepageStats {
            usage_bytes: reading.number(Some(home), metric(&file)),
            max_usage_bytes: (home.kind == Kind::V1)
                .then(|| format!("hugetlb.{page_size}.max_usage_in_bytes"))
                .and_then(|file| reading.number(Some(home), metric(&file))),
            page_size,
        };
        self.hugepage_files(home).into_iter().map(&mut read).collect()
    }

    /// The file for each page size of the node, with the size: `hugetlb.2MB.current`, on v1
    /// `hugetlb.2MB.usage_in_bytes`.
    fn hugepage_files(&self, home: &Hierarchy) -> Vec<(String, String)> {
        let suffix = if home.kind == Kind::V1 { ".usage_in_bytes" } else { ".current" };
        let entries = fs::read_dir(self.path().under(&home.mount)).into_iter().flatten();
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let size = |name: &str| {
            let size = name.strip_prefix("hugetlb.")?.strip_suffix(suffix)?;
            (!size.contains('.')).then(|| size.to_owned())
        };
        let mut files: Vec<_> = names.filter_map(|name| Some((size(&name)?, name))).collect();
        files.sort();
        files
    }
}

fn throttled(cpu: &mut CpuStats, key: &str, value: u64) {
    match key {
        "nr_periods" => cpu.periods = Some(value),
        "nr_throttled" => cpu.throttled_periods = Some(value),
        "throttled_time" => cpu.throttled_ns = Some(value),
        "throttled_usec" => cpu.throttled_ns = Some(value.saturating_mul(1000)),
        _ => {}
    }
}

fn used(cpu: &mut CpuStats, key: &str, microseconds: u64) {
    let time = match key {
        "usage_usec" => &mut cpu.usage_ns,
        "user_usec" => &mut cpu.user_ns,
        "system_usec" => &mut cpu.system_ns,
        _ => return,
    };
    *time = Some(microseconds.saturating_mul(1000));
}

fn oom_kills_v1<'a>(reading: &mut Reading<'a>, home: Option<&'a Hierarchy>) -> Option<u64> {
    let mut kills = None;
    reading.pairs(home, metric("memory.oom_control"), |key, value| {
        if key == "oom_kill" {
            kills = Some(value);
        }
    });
    kills
}

/// Reads v1's controller; returns the inactive page cache as well.
fn memory_v1<'a>(
    reading: &mut Reading<'a>,
    home: &'a Hierarchy,
    meter: &mut Meter,
) -> (MemoryStats, SwapStats, Option<u64>) {
    let home = Some(home);
    let mut memory = MemoryStats {
        usage_bytes: reading.number(home, usage("memory.usage_in_bytes")),
        kernel_bytes: reading.number(home, metric("memory.kmem.usage_in_bytes")),
        max_usage_bytes: reading.number(home, metric("memory.max_usage_in_bytes")),
        limit_hits: reading.number(home, metric("memory.failcnt")),
        ..MemoryStats::default()
    };
    memory.oom_kills = oom_kills_v1(reading, home);
    let text = reading.text(home, usage("memory.stat")).unwrap_or_default();
    let rest = parse::memory_stat_v1(text, &mut memory);
    let least = MemoryLimits { memory: rest.least_limit, both: rest.least_both_limit };
    // If neither this cgroup nor one above it has a limit, its own file need not be read.
    let mut own = |least: Option<Bound>, name: &str| match least {
        Some(Bound::Unlimited) => Some(Bound::Unlimited),
        _ => reading.bound(home, usage(name)),
    };
    let MemoryLimits { memory: limit, both } = meter.limits(least, || MemoryLimits {
        memory: own(least.memory, "memory.limit_in_bytes"),
        both: own(least.both, "memory.memsw.limit_in_bytes"),
    });
    memory.limit = limit;
    let limit = memory.limit.zip(both).map(|(limit, both)| parse::swap_bound(limit, both));
    (memory, SwapStats { usage_bytes: rest.swap, limit }, rest.inactive_file)
}

/// Reads v2's controller; returns the inactive page cache as well.
fn memory_v2<'a>(reading: &mut Reading<'a>, home: &'a Hierarchy) -> (MemoryStats, SwapStats, Option<u64>) {
    let home = Some(home);
    let mut memory = MemoryStats {
        usage_bytes: reading.number(home, usage("memory.current")),
        limit: reading.bound(home, usage("memory.max")),
        max_usage_bytes: reading.number(home, metric("memory.peak")),
        ..MemoryStats::default()
    };
    reading.pairs(home, metric("memory.events"), |key, value| match key {
        "max" => memory.limit_hits = Some(value),
        "oom_kill" => memory.oom_kills = Some(value),
        _ => {}
    });
    let text = reading.text(home, usage("memory.stat")).unwrap_or_default();
    let rest = parse::memory_stat_v2(text, &mut memory);
    let swap = SwapStats {
        usage_bytes: reading.number(home, usage("memory.swap.current")),
        limit: reading.bound(home, usage("memory.swap.max")),
    };
    (memory, swap, rest.inactive_file)
}
