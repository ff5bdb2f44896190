//! The files of one cgroup. They are opened for each reading and nothing is kept open between two: twenty descriptors a
//! container would be the first bound on how many a node can have.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use super::parse;
use super::{Bound, CpuStats, HugepageStats, MemoryStats, PidsStats, Pressure, Stats, SwapStats};
use crate::detect::{Controller, Kind};
use crate::error::Error;
use crate::group::Cgroup;

/// Larger than any of the files but `io.stat` with some hundred devices, for which it grows.
const BUFFER_BYTES: usize = 8192;
const BUFFER_MAX: usize = 1 << 20;

/// The statistics files of one cgroup. After the cgroup was removed, all that is read is `None`.
#[derive(Debug)]
pub struct StatsReader {
    cpu: Option<CpuFiles>,
    cpu_pressure: Counter,
    memory: Option<MemoryFiles>,
    memory_pressure: Counter,
    pids: [Counter; 2],
    io: Option<IoFiles>,
    io_pressure: Counter,
    hugepages: Vec<(String, Counter)>,
}

/// A file, if the node has the controller; that there is none reads as nothing.
#[derive(Debug)]
struct Counter(Option<(Arc<Path>, Cow<'static, str>)>);

#[derive(Debug)]
enum CpuFiles {
    V1 { usage: Counter, user: Counter, system: Counter, stat: Counter },
    V2 { stat: Counter },
}

#[derive(Debug)]
enum MemoryFiles {
    V1 { files: Box<MemoryV1> },
    V2 { files: Box<MemoryV2> },
}

#[derive(Debug)]
struct MemoryV1 {
    usage: Counter,
    stat: Counter,
    limit: Counter,
    both_limit: Counter,
    max_usage: Counter,
    hits: Counter,
    kernel: Counter,
    oom: Counter,
}

#[derive(Debug)]
struct MemoryV2 {
    usage: Counter,
    stat: Counter,
    limit: Counter,
    peak: Counter,
    events: Counter,
    swap: Counter,
    swap_limit: Counter,
}

#[derive(Debug)]
enum IoFiles {
    V1 { bytes: Counter, requests: Counter },
    V2 { stat: Counter },
}

impl StatsReader {
    /// Finds out what the node has. Of a cgroup that is gone there is nothing to read.
    ///
    /// # Errors
    /// [`Error::Io`] if the sizes of huge pages cannot be listed.
    pub fn open(cgroup: &Cgroup) -> Result<Self, Error> {
        let unified = cgroup.unified().map(Arc::from);
        let in_unified = |name| Counter::in_some(unified.as_ref(), name);
        let pids = cgroup.home(Controller::Pids).map(|(_, directory)| Arc::from(directory));
        let in_pids = |name| Counter::in_some(pids.as_ref(), name);
        Ok(Self {
            cpu: cpu_files(cgroup),
            cpu_pressure: in_unified("cpu.pressure"),
            memory: memory_files(cgroup),
            memory_pressure: in_unified("memory.pressure"),
            pids: [in_pids("pids.current"), in_pids("pids.max")],
            io: io_files(cgroup),
            io_pressure: in_unified("io.pressure"),
            hugepages: hugepage_files(cgroup)?,
        })
    }

    /// Reads everything now.
    #[must_use]
    pub fn read(&self) -> Stats {
        let buffer = &mut vec![0; BUFFER_BYTES];
        let (memory, swap) = self.read_memory(buffer);
        let [current, limit] = &self.pids;
        let io = match &self.io {
            None => None,
            Some(IoFiles::V2 { stat }) => stat.read(buffer).and_then(parse::io_stat),
            Some(IoFiles::V1 { bytes, requests }) => {
                let bytes = bytes.read(buffer).map(str::to_owned);
                bytes.and_then(|bytes| parse::blkio(&bytes, requests.read(buffer)?))
            }
        };
        let hugepage = |(page_size, file): &(String, Counter), buffer: &mut Vec<u8>| HugepageStats {
            page_size: page_size.clone(),
            usage_bytes: file.number(buffer),
        };
        Stats {
            cpu: self.read_cpu(buffer),
            memory,
            swap,
            pids: PidsStats { current: current.number(buffer), limit: limit.bound(buffer) },
            io,
            io_pressure: self.io_pressure.pressure(buffer),
            hugepages: self.hugepages.iter().map(|file| hugepage(file, buffer)).collect(),
        }
    }

    fn read_cpu(&self, buffer: &mut Vec<u8>) -> CpuStats {
        let mut cpu = CpuStats { pressure: self.cpu_pressure.pressure(buffer), ..CpuStats::default() };
        let stat = match &self.cpu {
            None => return cpu,
            Some(CpuFiles::V1 { usage, user, system, stat }) => {
                cpu.usage_ns = usage.number(buffer);
                cpu.user_ns = user.number(buffer);
                cpu.system_ns = system.number(buffer);
                stat
            }
            Some(CpuFiles::V2 { stat }) => stat,
        };
        let is_v2 = matches!(self.cpu, Some(CpuFiles::V2 { .. }));
        parse::pairs(stat.read(buffer).unwrap_or_default(), |key, value| {
            let (place, value) = match key {
                "nr_periods" => (&mut cpu.periods, value),
                "nr_throttled" => (&mut cpu.throttled_periods, value),
                "throttled_time" => (&mut cpu.throttled_ns, value),
                "throttled_usec" => (&mut cpu.throttled_ns, value.saturating_mul(1000)),
                "usage_usec" if is_v2 => (&mut cpu.usage_ns, value.saturating_mul(1000)),
                "user_usec" if is_v2 => (&mut cpu.user_ns, value.saturating_mul(1000)),
                "system_usec" if is_v2 => (&mut cpu.system_ns, value.saturating_mul(1000)),
                _ => return,
            };
            *place = Some(value);
        });
        cpu
    }

    fn read_memory(&self, buffer: &mut Vec<u8>) -> (MemoryStats, SwapStats) {
        let (mut memory, swap, inactive) = match &self.memory {
            None => (MemoryStats::default(), SwapStats::default(), None),
            Some(MemoryFiles::V1 { files }) => files.read(buffer),
            Some(MemoryFiles::V2 { files }) => files.read(buffer),
        };
        memory.working_set_bytes =
            memory.usage_bytes.zip(inactive).map(|(usage, inactive)| usage.saturating_sub(inactive));
        memory.pressure = self.memory_pressure.pressure(buffer);
        (memory, swap)
    }
}

impl MemoryV1 {
    fn of(directory: &Path) -> Self {
        let directory = Arc::from(directory);
        let of = |name: &'static str| Counter::of(&directory, name);
        Self {
            usage: of("memory.usage_in_bytes"),
            stat: of("memory.stat"),
            limit: of("memory.limit_in_bytes"),
            both_limit: of("memory.memsw.limit_in_bytes"),
            max_usage: of("memory.max_usage_in_bytes"),
            hits: of("memory.failcnt"),
            kernel: of("memory.kmem.usage_in_bytes"),
            oom: of("memory.oom_control"),
        }
    }

    fn read(&self, buffer: &mut Vec<u8>) -> (MemoryStats, SwapStats, Option<u64>) {
        let mut memory = MemoryStats {
            usage_bytes: self.usage.number(buffer),
            kernel_bytes: self.kernel.number(buffer),
            limit: self.limit.bound(buffer),
            max_usage_bytes: self.max_usage.number(buffer),
            limit_hits: self.hits.number(buffer),
            oom_kills: self.oom.key(buffer, "oom_kill"),
            ..MemoryStats::default()
        };
        let rest = parse::memory_stat_v1(self.stat.read(buffer).unwrap_or_default(), &mut memory);
        let limit = memory
            .limit
            .zip(self.both_limit.bound(buffer))
            .map(|(limit, both)| parse::swap_bound(limit, both));
        (memory, SwapStats { usage_bytes: rest.swap, limit }, rest.inactive_file)
    }
}

impl MemoryV2 {
    fn of(directory: &Path) -> Self {
        let directory = Arc::from(directory);
        let of = |name: &'static str| Counter::of(&directory, name);
        Self {
            usage: of("memory.current"),
            stat: of("memory.stat"),
            limit: of("memory.max"),
            peak: of("memory.peak"),
            events: of("memory.events"),
            swap: of("memory.swap.current"),
            swap_limit: of("memory.swap.max"),
        }
    }

    fn read(&self, buffer: &mut Vec<u8>) -> (MemoryStats, SwapStats, Option<u64>) {
        let mut memory = MemoryStats {
            usage_bytes: self.usage.number(buffer),
            limit: self.limit.bound(buffer),
            max_usage_bytes: self.peak.number(buffer),
            ..MemoryStats::default()
        };
        parse::pairs(self.events.read(buffer).unwrap_or_default(), |key, value| match key {
            "max" => memory.limit_hits = Some(value),
            "oom_kill" => memory.oom_kills = Some(value),
            _ => {}
        });
        let rest = parse::memory_stat_v2(self.stat.read(buffer).unwrap_or_default(), &mut memory);
        let swap = SwapStats { usage_bytes: self.swap.number(buffer), limit: self.swap_limit.bound(buffer) };
        (memory, swap, rest.inactive_file)
    }
}

impl Counter {
    fn of(directory: &Arc<Path>, name: impl Into<Cow<'static, str>>) -> Self {
        Self(Some((Arc::clone(directory), name.into())))
    }

    fn in_some(directory: Option<&Arc<Path>>, name: &'static str) -> Self {
        directory.map_or(Self(None), |directory| Self::of(directory, name))
    }

    /// The whole content. These files are one record to the kernel, so one read gives all if it fits.
    fn read<'a>(&self, buffer: &'a mut Vec<u8>) -> Option<&'a str> {
        let (directory, name) = self.0.as_ref()?;
        let mut file = File::open(directory.join(&**name)).ok()?;
        let mut length = file.read(buffer).ok()?;
        while length == buffer.len() && length < BUFFER_MAX {
            buffer.resize(length * 2, 0);
            length += file.read(&mut buffer[length..]).ok()?;
        }
        std::str::from_utf8(buffer.get(..length)?).ok()
    }

    fn number(&self, buffer: &mut Vec<u8>) -> Option<u64> {
        self.read(buffer).and_then(parse::number)
    }

    fn bound(&self, buffer: &mut Vec<u8>) -> Option<Bound> {
        self.read(buffer).and_then(parse::bound)
    }

    fn pressure(&self, buffer: &mut Vec<u8>) -> Option<Pressure> {
        self.read(buffer).and_then(parse::pressure)
    }

    fn key(&self, buffer: &mut Vec<u8>, key: &str) -> Option<u64> {
        crate::files::keyed(self.read(buffer)?, key).and_then(parse::number)
    }
}

/// On v1 the time is counted by `cpuacct` and the throttling by `cpu`, which mostly share a hierarchy, but need not.
fn cpu_files(cgroup: &Cgroup) -> Option<CpuFiles> {
    if let Some((Kind::V1, time)) = cgroup.home(Controller::Cpuacct) {
        let (time, cpu) = (Arc::from(time), cgroup.home(Controller::Cpu));
        return Some(CpuFiles::V1 {
            usage: Counter::of(&time, "cpuacct.usage"),
            user: Counter::of(&time, "cpuacct.usage_user"),
            system: Counter::of(&time, "cpuacct.usage_sys"),
            stat: Counter::in_some(cpu.map(|(_, directory)| Arc::from(directory)).as_ref(), "cpu.stat"),
        });
    }
    // Without cpuacct, the unified hierarchy counts the time even where the cpu controller lives elsewhere.
    cgroup.unified().map(|directory| CpuFiles::V2 { stat: Counter::of(&Arc::from(directory), "cpu.stat") })
}

fn memory_files(cgroup: &Cgroup) -> Option<MemoryFiles> {
    cgroup.home(Controller::Memory).map(|(kind, directory)| match kind {
        Kind::V1 => MemoryFiles::V1 { files: Box::new(MemoryV1::of(directory)) },
        Kind::Unified => MemoryFiles::V2 { files: Box::new(MemoryV2::of(directory)) },
    })
}

fn io_files(cgroup: &Cgroup) -> Option<IoFiles> {
    let (kind, directory) = cgroup.home(Controller::Io)?;
    let directory = Arc::from(directory);
    Some(match kind {
        Kind::Unified => IoFiles::V2 { stat: Counter::of(&directory, "io.stat") },
        Kind::V1 => IoFiles::V1 {
            bytes: Counter::of(&directory, "blkio.throttle.io_service_bytes_recursive"),
            requests: Counter::of(&directory, "blkio.throttle.io_serviced_recursive"),
        },
    })
}

/// One file per page size of the node: `hugetlb.2MB.current`, on v1 `hugetlb.2MB.usage_in_bytes`.
fn hugepage_files(cgroup: &Cgroup) -> Result<Vec<(String, Counter)>, Error> {
    let Some((kind, directory)) = cgroup.home(Controller::Hugetlb) else { return Ok(Vec::new()) };
    let suffix = if kind == Kind::V1 { ".usage_in_bytes" } else { ".current" };
    let mut files = Vec::new();
    let entries = match fs::read_dir(directory) {
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => return Ok(files),
        entries => entries.map_err(Error::io("read", directory))?,
    };
    let shared = Arc::from(directory);
    for entry in entries {
        let name = entry.map_err(Error::io("read", directory))?.file_name();
        let Some(name) = name.to_str() else { continue };
        let size = name.strip_prefix("hugetlb.").and_then(|rest| rest.strip_suffix(suffix));
        if let Some(size) = size.filter(|size| !size.contains('.')) {
            files.push((size.to_owned(), Counter::of(&shared, name.to_owned())));
        }
    }
    files.sort_by(|left, right| left.0.cmp(&right.0));
    Ok(files)
}
