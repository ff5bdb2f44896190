//! Parsers for the statistics files. They do no I/O; what cannot be parsed is `None`.

use super::{Bound, DeviceIo, MemoryStats, Pressure, PressureLine};

/// v1 writes "no limit" as the largest multiple of a page; pages are at most 64 KiB.
const V1_UNLIMITED: u64 = i64::MAX.cast_unsigned() - 65_535;

pub(super) fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

pub(super) fn bound(text: &str) -> Option<Bound> {
    match text.trim() {
        "max" => Some(Bound::Unlimited),
        text => number(text).map(v1_bound),
    }
}

fn v1_bound(limit: u64) -> Bound {
    if limit >= V1_UNLIMITED { Bound::Unlimited } else { Bound::At(limit) }
}

/// The limit on swap alone, from v1's two limits.
pub(super) fn swap_bound(memory: Bound, both: Bound) -> Bound {
    match (memory, both) {
        (Bound::At(memory), Bound::At(both)) => Bound::At(both.saturating_sub(memory)),
        (Bound::Unlimited, Bound::At(both)) => Bound::At(both),
        (_, Bound::Unlimited) => Bound::Unlimited,
    }
}

/// Calls `take` for each line of the form `key number`.
pub(super) fn pairs(text: &str, mut take: impl FnMut(&str, u64)) {
    for (key, value) in text.lines().filter_map(|line| line.split_once(' ')) {
        if let Some(value) = number(value) {
            take(key, value);
        }
    }
}

/// The other values in a `memory.stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct MemoryStatRest {
    pub(super) inactive_file: Option<u64>,
    pub(super) swap: Option<u64>,
    /// The lowest limit of the cgroup and its ancestors, on memory alone and with swap. v1 only.
    pub(super) least_limit: Option<Bound>,
    pub(super) least_both_limit: Option<Bound>,
}

/// v1's file; its `total_` lines include descendants, like everything in v2's.
pub(super) fn memory_stat_v1(text: &str, memory: &mut MemoryStats) -> MemoryStatRest {
    let mut rest = MemoryStatRest::default();
    pairs(text, |key, value| {
        let place = match key {
            "total_rss" => &mut memory.rss_bytes,
            "total_cache" => &mut memory.cache_bytes,
            "total_mapped_file" => &mut memory.mapped_file_bytes,
            "total_pgfault" => &mut memory.page_faults,
            "total_pgmajfault" => &mut memory.major_page_faults,
            "total_inactive_file" => &mut rest.inactive_file,
            "total_swap" => &mut rest.swap,
            "hierarchical_memory_limit" => return rest.least_limit = Some(v1_bound(value)),
            "hierarchical_memsw_limit" => return rest.least_both_limit = Some(v1_bound(value)),
            _ => return,
        };
        *place = Some(value);
    });
    rest
}

/// v2's file.
pub(super) fn memory_stat_v2(text: &str, memory: &mut MemoryStats) -> MemoryStatRest {
    let mut rest = MemoryStatRest::default();
    pairs(text, |key, value| {
        let place = match key {
            "anon" => &mut memory.rss_bytes,
            "file" => &mut memory.cache_bytes,
            "file_mapped" => &mut memory.mapped_file_bytes,
            "kernel" => &mut memory.kernel_bytes,
            "pgfault" => &mut memory.page_faults,
            "pgmajfault" => &mut memory.major_page_faults,
            "inactive_file" => &mut rest.inactive_file,
            _ => return,
        };
        *place = Some(value);
    });
    rest
}

pub(super) fn pressure(text: &str) -> Option<Pressure> {
    let line = |kind: &str| text.lines().find_map(|line| pressure_line(line.strip_prefix(kind)?));
    Some(Pressure { some: line("some ")?, full: line("full ") })
}

fn pressure_line(fields: &str) -> Option<PressureLine> {
    let mut values = fields.split(' ').map(|field| field.split_once('='));
    let mut next =
        |key: &str| values.next().flatten().filter(|(name, _)| *name == key).map(|(_, value)| value);
    Some(PressureLine {
        avg10: next("avg10")?.parse().ok()?,
        avg60: next("avg60")?.parse().ok()?,
        avg300: next("avg300")?.parse().ok()?,
        total_ns: next("total")?.parse::<u64>().ok()?.saturating_mul(1000),
    })
}

/// v2's `io.stat`: a line per device, `major:minor key=value …`.
pub(super) fn io_stat(text: &str) -> Option<Vec<DeviceIo>> {
    text.lines().map(io_line).collect()
}

fn io_line(line: &str) -> Option<DeviceIo> {
    let mut words = line.split_whitespace();
    let (major, minor) = device(words.next()?)?;
    let mut io = DeviceIo { major, minor, ..DeviceIo::default() };
    for (key, value) in words.filter_map(|word| word.split_once('=')) {
        let place = match key {
            "rbytes" => &mut io.read_bytes,
            "wbytes" => &mut io.write_bytes,
            "rios" => &mut io.reads,
            "wios" => &mut io.writes,
            _ => continue,
        };
        *place = value.parse().ok()?;
    }
    Some(io)
}

/// v1's pair of files: lines `major:minor Read n` and `major:minor Write n`, among others and totals.
pub(super) fn blkio(bytes: &str, requests: &str) -> Option<Vec<DeviceIo>> {
    let mut devices: Vec<DeviceIo> = Vec::new();
    for (text, is_bytes) in [(bytes, true), (requests, false)] {
        for line in text.lines() {
            let mut words = line.split(' ');
            let (Some(name), Some(kind), Some(value)) = (words.next(), words.next(), words.next()) else {
                continue;
            };
            let ((major, minor), value) = (device(name)?, number(value)?);
            let at =
                devices.iter().position(|io| (io.major, io.minor) == (major, minor)).unwrap_or_else(|| {
                    devices.push(DeviceIo { major, minor, ..DeviceIo::default() });
                    devices.len() - 1
                });
            let io = devices.get_mut(at)?;
            match (kind, is_bytes) {
                ("Read", true) => io.read_bytes = value,
                ("Write", true) => io.write_bytes = value,
                ("Read", false) => io.reads = value,
                ("Write", false) => io.writes = value,
                _ => {}
            }
        }
    }
    Some(devices)
}

fn device(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds() {
        assert_eq!(bound("max\n"), Some(Bound::Unlimited));
        assert_eq!(bound("9223372036854771712\n"), Some(Bound::Unlimited));
        assert_eq!(bound("9223372036854710272"), Some(Bound::Unlimited));
        assert_eq!(bound("0\n"), Some(Bound::At(0)));
        assert_eq!(bound(""), None);
        assert_eq!(bound("-1"), None);
        assert_eq!(swap_bound(Bound::At(10), Bound::At(15)), Bound::At(5));
        assert_eq!(swap_bound(Bound::At(10), Bound::Unlimited), Bound::Unlimited);
        assert_eq!(swap_bound(Bound::Unlimited, Bound::At(15)), Bound::At(15));
    }

    #[test]
    fn memory_of_v1_includes_descendants() {
        let text = "rss 1\ninactive_file 2\nhierarchical_memory_limit 70\nhierarchical_memsw_limit 9223372036854771712\n\
             total_rss 30\ntotal_inactive_file 40\ntotal_pgfault 50\ntotal_swap 60\n";
        let mut memory = MemoryStats::default();
        let rest = memory_stat_v1(text, &mut memory);
        let expected = MemoryStatRest {
            inactive_file: Some(40),
            swap: Some(60),
            least_limit: Some(Bound::At(70)),
            least_both_limit: Some(Bound::Unlimited),
        };
        assert_eq!(rest, expected);
        assert_eq!((memory.rss_bytes, memory.page_faults), (Some(30), Some(50)));
        assert_eq!(memory.cache_bytes, None);
    }

    #[test]
    fn memory_of_v2() {
        let text =
            "anon 1\nfile 2\nkernel 3\nfile_mapped 4\ninactive_file 5\npgfault 6\npgmajfault 7\nslab x\n";
        let mut memory = MemoryStats::default();
        assert_eq!(memory_stat_v2(text, &mut memory).inactive_file, Some(5));
        let expected = MemoryStats {
            rss_bytes: Some(1),
            cache_bytes: Some(2),
            kernel_bytes: Some(3),
            mapped_file_bytes: Some(4),
            page_faults: Some(6),
            major_page_faults: Some(7),
            ..MemoryStats::default()
        };
        assert_eq!(memory, expected);
    }

    #[test]
    fn pressure_is_in_nanoseconds() {
        let text = "some avg10=1.50 avg60=0.25 avg300=0.05 total=88\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        let read = pressure(text).unwrap();
        assert_eq!(read.some, PressureLine { avg10: 1.5, avg60: 0.25, avg300: 0.05, total_ns: 88_000 });
        assert_eq!(read.full.unwrap().total_ns, 7000);
        assert_eq!(pressure("some avg10=1.50 avg60=0.25 avg300=0.05 total=1\n").unwrap().full, None);
        for text in ["", "some avg10=1\n", "some total=1 avg10=1 avg60=1 avg300=1\n", "full avg10=x\n"] {
            assert_eq!(pressure(text), None, "{text:?}");
        }
    }

    #[test]
    fn io_of_both_versions_is_the_same() {
        let expected =
            DeviceIo { major: 259, minor: 70_000, read_bytes: 1, write_bytes: 2, reads: 3, writes: 4 };
        let v2 = "259:70000 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n";
        assert_eq!(io_stat(v2), Some(vec![expected]));
        let bytes = "259:70000 Read 1\n259:70000 Write 2\n259:70000 Sync 3\nTotal 3\n";
        let requests = "259:70000 Read 3\n259:70000 Write 4\n259:70000 Total 7\nTotal 7\n";
        assert_eq!(blkio(bytes, requests), Some(vec![expected]));
        assert_eq!(io_stat(""), Some(vec![]));
        // A device without any values has a line without values.
        assert_eq!(io_stat("8:0 \n"), Some(vec![DeviceIo { major: 8, ..DeviceIo::default() }]));
        assert_eq!(io_stat("sda rbytes=1\n"), None);
        assert_eq!(io_stat("8:0 rbytes=x\n"), None);
        assert_eq!(blkio("8:x Read 1\n", ""), None);
    }
}
