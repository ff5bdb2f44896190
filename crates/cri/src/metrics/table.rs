//! The families of a container.
//!
//! A row is a name, what it means, the labels of its own, and a rule from a [`Reading`] to samples. Names, units and
//! labels are cAdvisor's, because dashboards and alerts are written for those. No row does I/O or keeps anything; what
//! a node lacks is left out one level above.

use wharf_cgroup::{Bound, DeviceIo, Pressure, PressureLine};
use wharf_cri_api::v1::MetricType::{self, Counter, Gauge};

use super::reading::{Disk, Processes, Reading};
use super::{Family, NANOSECONDS_PER_SECOND, Needs, Sample, Value};

type Read = fn(&Reading) -> Vec<Sample>;

const fn family(
    kind: MetricType,
    name: &'static str,
    help: &'static str,
    keys: &'static [&'static str],
    samples: Read,
) -> Family<Reading> {
    Family { name, help, kind, keys, needs: Needs::Nothing, samples }
}

const fn pressure(name: &'static str, help: &'static str, samples: Read) -> Family<Reading> {
    Family { name, help, kind: Counter, keys: &[], needs: Needs::Pressure, samples }
}

fn one(count: Option<u64>) -> Vec<Sample> {
    labelled([], count)
}

fn labelled<const N: usize>(labels: [&str; N], count: Option<u64>) -> Vec<Sample> {
    sample(labels, count.map(Value::Whole))
}

fn seconds<const N: usize>(labels: [&str; N], nanoseconds: Option<u64>) -> Vec<Sample> {
    sample(labels, nanoseconds.map(Value::Nanoseconds))
}

fn sample<const N: usize>(labels: [&str; N], value: Option<Value>) -> Vec<Sample> {
    value.map(|value| Sample { labels: labels.map(String::from).into(), value }).into_iter().collect()
}

fn positive(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

fn processes(reading: &Reading, total: fn(&Processes) -> Option<u64>) -> Option<u64> {
    reading.processes.as_ref().and_then(total)
}

fn on_disk(reading: &Reading, value: fn(&Disk) -> u64) -> Vec<Sample> {
    reading.disk.iter().flat_map(|disk| labelled([&disk.device], Some(value(disk)))).collect()
}

fn by_device(reading: &Reading, value: fn(&DeviceIo) -> u64) -> Vec<Sample> {
    let devices = reading.stats.io.iter().flatten();
    devices
        .map(|io| Sample {
            labels: vec![format!("{}:{}", io.major, io.minor)],
            value: Value::Whole(value(io)),
        })
        .collect()
}

fn block_io(reading: &Reading) -> Vec<Sample> {
    let devices = reading.stats.io.iter().flatten();
    let sample = |io: &DeviceIo, operation: &str, value| Sample {
        labels: vec![
            format!("{}:{}", io.major, io.minor),
            io.major.to_string(),
            io.minor.to_string(),
            operation.to_owned(),
        ],
        value: Value::Whole(value),
    };
    devices.flat_map(|io| [sample(io, "Read", io.read_bytes), sample(io, "Write", io.write_bytes)]).collect()
}

/// A container's cgroup has no others below it except those of its execs, so both scopes are the same.
fn faults(reading: &Reading) -> Vec<Sample> {
    let memory = &reading.stats.memory;
    let kinds = [("pgfault", memory.page_faults), ("pgmajfault", memory.major_page_faults)];
    let scoped = |(kind, count)| ["container", "hierarchy"].map(|scope| labelled([kind, scope], count));
    kinds.into_iter().flat_map(scoped).flatten().collect()
}

fn some(pressure: Option<&Pressure>) -> Vec<Sample> {
    seconds([], pressure.map(|pressure| pressure.some.total_ns))
}

/// If the kernel does not report it, as for CPUs at the root, all tasks were never waiting at the same time.
fn full(pressure: Option<&Pressure>) -> Vec<Sample> {
    let total = |line: &PressureLine| line.total_ns;
    seconds([], pressure.map(|pressure| pressure.full.as_ref().map_or(0, total)))
}

fn huge_pages(reading: &Reading) -> Vec<Sample> {
    let sizes = reading.stats.hugepages.iter();
    sizes.flat_map(|size| labelled([&size.page_size], size.usage_bytes)).collect()
}

fn past_huge_pages(reading: &Reading) -> Vec<Sample> {
    let sizes = reading.stats.hugepages.iter();
    sizes.flat_map(|size| labelled([&size.page_size], size.max_usage_bytes)).collect()
}

/// What is reserved is asked for by the name of v2's file.
fn reserved(reading: &Reading) -> u64 {
    reading.limits.unified.get("memory.min").and_then(|bytes| bytes.parse().ok()).unwrap_or(0)
}

fn tasks_limit(reading: &Reading) -> Option<u64> {
    reading.stats.pids.limit.map(|limit| match limit {
        Bound::At(limit) => limit,
        Bound::Unlimited => 0,
    })
}

/// Every family of a container.
pub(super) const FAMILIES: &[Family<Reading>] = &[
    family(Counter, "container_cpu_usage_seconds_total", "Processor time used", &["cpu"], |r| {
        seconds(["total"], r.stats.cpu.usage_ns)
    }),
    family(Counter, "container_cpu_user_seconds_total", "Processor time used in programs", &[], |r| {
        seconds([], r.stats.cpu.user_ns)
    }),
    family(Counter, "container_cpu_system_seconds_total", "Processor time used in the kernel", &[], |r| {
        seconds([], r.stats.cpu.system_ns)
    }),
    family(Counter, "container_cpu_cfs_periods_total", "Quota periods with something to run", &[], |r| {
        one(r.stats.cpu.periods)
    }),
    family(Counter, "container_cpu_cfs_throttled_periods_total", "Periods the quota ran out in", &[], |r| {
        one(r.stats.cpu.throttled_periods)
    }),
    family(Counter, "container_cpu_cfs_throttled_seconds_total", "Time spent throttled", &[], |r| {
        seconds([], r.stats.cpu.throttled_ns)
    }),
    family(Gauge, "container_memory_usage_bytes", "Memory in use, page cache included", &[], |r| {
        one(r.stats.memory.usage_bytes)
    }),
    family(Gauge, "container_memory_working_set_bytes", "Memory that cannot be dropped at once", &[], |r| {
        one(r.stats.memory.working_set_bytes)
    }),
    family(Gauge, "container_memory_rss", "Anonymous memory in bytes", &[], |r| {
        one(r.stats.memory.rss_bytes)
    }),
    family(Gauge, "container_memory_cache", "Page cache in bytes", &[], |r| one(r.stats.memory.cache_bytes)),
    family(Gauge, "container_memory_mapped_file", "Mapped files in bytes", &[], |r| {
        one(r.stats.memory.mapped_file_bytes)
    }),
    family(Gauge, "container_memory_kernel_usage", "Memory of the kernel in bytes", &[], |r| {
        one(r.stats.memory.kernel_bytes)
    }),
    family(Gauge, "container_memory_max_usage_bytes", "The highest memory use so far", &[], |r| {
        one(r.stats.memory.max_usage_bytes)
    }),
    family(Gauge, "container_memory_swap", "Swap in use in bytes", &[], |r| {
        one(r.stats.swap.usage_bytes.or(Some(0)))
    }),
    family(Counter, "container_memory_failcnt", "How often the memory limit was hit", &[], |r| {
        one(r.stats.memory.limit_hits)
    }),
    family(Counter, "container_memory_failures_total", "Page faults", &["failure_type", "scope"], faults),
    family(Counter, "container_oom_events_total", "Processes that were OOM-killed", &[], |r| {
        one(r.stats.memory.oom_kills)
    }),
    family(Gauge, "container_fs_usage_bytes", "Bytes of the writable layer", &["device"], |r| {
        let device = r.disk.as_ref().map_or("", |disk| &disk.device);
        labelled([device], r.written.map(|written| written.bytes))
    }),
    family(Gauge, "container_fs_limit_bytes", "Bytes its file system has room for", &["device"], |r| {
        on_disk(r, |disk| disk.bytes)
    }),
    family(Gauge, "container_fs_inodes_total", "Inodes its file system has", &["device"], |r| {
        on_disk(r, |disk| disk.inodes)
    }),
    family(Gauge, "container_fs_inodes_free", "Inodes its file system has left", &["device"], |r| {
        on_disk(r, |disk| disk.inodes_free)
    }),
    family(Counter, "container_fs_reads_total", "Read requests", &["device"], |r| {
        by_device(r, |io| io.reads)
    }),
    family(Counter, "container_fs_reads_bytes_total", "Bytes read", &["device"], |r| {
        by_device(r, |io| io.read_bytes)
    }),
    family(Counter, "container_fs_writes_total", "Write requests", &["device"], |r| {
        by_device(r, |io| io.writes)
    }),
    family(Counter, "container_fs_writes_bytes_total", "Bytes written", &["device"], |r| {
        by_device(r, |io| io.write_bytes)
    }),
    family(
        Counter,
        "container_blkio_device_usage_total",
        "Bytes moved to and from block devices",
        &["device", "major", "minor", "operation"],
        block_io,
    ),
    Family {
        name: "container_hugetlb_usage_bytes",
        help: "Huge pages in use in bytes",
        kind: Gauge,
        keys: &["pagesize"],
        needs: Needs::HugePages,
        samples: huge_pages,
    },
    Family {
        name: "container_hugetlb_max_usage_bytes",
        help: "The most huge pages so far in bytes",
        kind: Gauge,
        keys: &["pagesize"],
        needs: Needs::PastHugePages,
        samples: past_huge_pages,
    },
    pressure("container_pressure_cpu_waiting_seconds_total", "Time some task waited for a processor", |r| {
        some(r.stats.cpu.pressure.as_ref())
    }),
    pressure("container_pressure_cpu_stalled_seconds_total", "Time all tasks waited for a processor", |r| {
        full(r.stats.cpu.pressure.as_ref())
    }),
    pressure("container_pressure_io_waiting_seconds_total", "Time some task waited for a device", |r| {
        some(r.stats.io_pressure.as_ref())
    }),
    pressure("container_pressure_io_stalled_seconds_total", "Time all tasks waited for a device", |r| {
        full(r.stats.io_pressure.as_ref())
    }),
    pressure("container_pressure_memory_waiting_seconds_total", "Time some task waited for memory", |r| {
        some(r.stats.memory.pressure.as_ref())
    }),
    pressure("container_pressure_memory_stalled_seconds_total", "Time all tasks waited for memory", |r| {
        full(r.stats.memory.pressure.as_ref())
    }),
    family(Gauge, "container_processes", "Processes", &[], |r| one(processes(r, |all| Some(all.count)))),
    family(Gauge, "container_threads", "Threads", &[], |r| one(r.stats.pids.current)),
    family(Gauge, "container_threads_max", "Threads there may be; 0 for no limit", &[], |r| {
        one(tasks_limit(r))
    }),
    family(Gauge, "container_file_descriptors", "Open files", &[], |r| {
        one(processes(r, |all| all.descriptors))
    }),
    family(Gauge, "container_sockets", "Open sockets", &[], |r| one(processes(r, |all| all.sockets))),
    family(Gauge, "container_ulimits_soft", "Soft limits of the first process", &["ulimit"], |r| {
        labelled(["max_open_files"], processes(r, |all| all.open_files_limit))
    }),
    family(Gauge, "container_spec_cpu_period", "The quota's period in microseconds", &[], |r| {
        one(Some(match r.limits.cpu_period {
            0 => 100_000,
            period => positive(period),
        }))
    }),
    family(Gauge, "container_spec_cpu_quota", "Microseconds of a period; none without a limit", &[], |r| {
        // Alerts divide by it.
        one(Some(positive(r.limits.cpu_quota)).filter(|&quota| quota > 0))
    }),
    family(Gauge, "container_spec_cpu_shares", "The share of contended processors", &[], |r| {
        one(Some(match r.limits.cpu_shares {
            0 => 1024,
            shares => positive(shares),
        }))
    }),
    family(Gauge, "container_spec_memory_limit_bytes", "The memory limit; 0 for none", &[], |r| {
        one(Some(positive(r.limits.memory_limit_in_bytes)))
    }),
    family(
        Gauge,
        "container_spec_memory_reservation_limit_bytes",
        "The memory that is not reclaimed; 0 for none",
        &[],
        |r| one(Some(reserved(r))),
    ),
    family(
        Gauge,
        "container_spec_memory_swap_limit_bytes",
        "The limit of memory with swap; 0 for none",
        &[],
        |r| one(Some(positive(r.limits.memory_swap_limit_in_bytes))),
    ),
    family(Gauge, "container_start_time_seconds", "When it started, since 1970", &[], |r| {
        one(Some(positive(r.started_at_ns) / NANOSECONDS_PER_SECOND))
    }),
    family(Gauge, "container_last_seen", "When this was read, since 1970", &[], |r| {
        one(Some(positive(r.now_ns) / NANOSECONDS_PER_SECOND))
    }),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn reading() -> Reading {
        let line = PressureLine { avg10: 0.0, avg60: 0.0, avg300: 0.0, total_ns: 2_500_000_000 };
        let mut reading = Reading::default();
        reading.stats.cpu.usage_ns = Some(3_900_000_000);
        reading.stats.cpu.pressure = Some(Pressure { some: line, full: None });
        reading.stats.pids.limit = Some(Bound::Unlimited);
        reading.stats.io = Some(vec![DeviceIo { major: 8, minor: 1, read_bytes: 5, ..DeviceIo::default() }]);
        reading.stats.memory.page_faults = Some(7);
        reading
    }

    fn samples(name: &str) -> Vec<Sample> {
        let family = FAMILIES.iter().find(|family| family.name == name).unwrap();
        let samples = (family.samples)(&reading());
        assert!(samples.iter().all(|sample| sample.labels.len() == family.keys.len()), "{name}");
        samples
    }

    fn values(name: &str) -> Vec<(Vec<String>, u64)> {
        samples(name).into_iter().map(|sample| (sample.labels, sample.value.whole())).collect()
    }

    #[test]
    fn every_family_has_a_name_of_its_own_a_help_and_as_many_labels_as_keys() {
        let names: BTreeSet<_> = FAMILIES.iter().map(|family| family.name).collect();
        assert_eq!(names.len(), FAMILIES.len());
        for family in FAMILIES {
            assert!(!family.help.is_empty(), "{}", family.name);
            values(family.name);
        }
    }

    #[test]
    fn time_has_a_fraction_beside_whole_seconds() {
        assert_eq!(values("container_cpu_usage_seconds_total"), [(vec!["total".to_owned()], 3)]);
        assert_eq!(values("container_pressure_cpu_waiting_seconds_total"), [(vec![], 2)]);
        assert_eq!(values("container_pressure_cpu_stalled_seconds_total"), [(vec![], 0)]);
        let exact = |name| samples(name)[0].value.exact();
        assert_eq!(exact("container_cpu_usage_seconds_total"), Some(3.9));
        assert_eq!(exact("container_pressure_cpu_waiting_seconds_total"), Some(2.5));
        assert_eq!(exact("container_pressure_cpu_stalled_seconds_total"), Some(0.0));
        assert_eq!(exact("container_memory_failures_total"), None, "a count");
        for family in FAMILIES.iter().filter(|family| family.name.ends_with("_seconds_total")) {
            let times = (family.samples)(&reading()).into_iter();
            assert!(times.into_iter().all(|sample| sample.value.exact().is_some()), "{}", family.name);
        }
    }

    #[test]
    fn what_is_not_limited_is_0_and_what_is_not_known_is_left_out() {
        assert_eq!(values("container_threads_max"), [(vec![], 0)]);
        assert_eq!(values("container_spec_memory_limit_bytes"), [(vec![], 0)]);
        assert_eq!(values("container_spec_memory_reservation_limit_bytes"), [(vec![], 0)]);
        let mut reading = reading();
        reading.limits.unified.insert("memory.min".to_owned(), "4096".to_owned());
        assert_eq!(reserved(&reading), 4096);
        assert_eq!(values("container_memory_rss"), []);
        let quota = FAMILIES.iter().find(|family| family.name == "container_spec_cpu_quota").unwrap();
        for (asked, shown) in [(0, None), (-1, None), (20_000, Some(20_000))] {
            reading.limits.cpu_quota = asked;
            let values = (quota.samples)(&reading).into_iter().map(|sample| sample.value.whole());
            assert_eq!(values.collect::<Vec<_>>(), Vec::from_iter(shown));
        }
        assert_eq!(values("container_pressure_io_waiting_seconds_total"), []);
    }

    #[test]
    fn too_many_to_be_counted_are_not_known() {
        let mut reading = reading();
        reading.processes = Some(Processes { count: 9, descriptors: Some(7), ..Processes::default() });
        let one = |name| {
            let family = FAMILIES.iter().find(|family| family.name == name).unwrap();
            (family.samples)(&reading).first().map(|sample| sample.value.whole())
        };
        let names = ["container_processes", "container_file_descriptors", "container_sockets"];
        assert_eq!(names.map(one), [Some(9), Some(7), None]);
    }

    #[test]
    fn a_device_has_a_sample_for_each_operation() {
        let labels = |operation: &str| ["8:1", "8", "1", operation].map(String::from).to_vec();
        let expected = [(labels("Read"), 5), (labels("Write"), 0)];
        assert_eq!(values("container_blkio_device_usage_total"), expected);
        assert_eq!(values("container_memory_failures_total").len(), 2);
    }
}
