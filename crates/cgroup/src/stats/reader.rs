//! Held files of one cgroup, read again with pread(2): no path is walked and nothing is opened per reading.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::parse;
use super::{Bound, CpuStats, HugepageStats, MemoryStats, PidsStats, Pressure, Stats, SwapStats};
use crate::detect::{Controller, Kind};
use crate::error::Error;
use crate::group::Cgroup;

/// Larger than any of the files but `io.stat` with some hundred devices, for which it grows.
const BUFFER_BYTES: usize = 8192;
const BUFFER_MAX: usize = 1 << 20;

/// The statistics files of one cgroup, held open. It does not keep the cgroup from being removed; after that, all that
/// is read is `None`.
#[derive(Debug)]
pub struct StatsReader {
    cpu: Option<CpuFiles>,
    cpu_pressure: Held,
    memory: Option<MemoryFiles>,
    memory_pressure: Held,
    pids: [Held; 2],
    io: Option<IoFiles>,
    io_pressure: Held,
    hugepages: Vec<(String, Held)>,
}

/// A file, if the kernel has it.
#[derive(Debug)]
struct Held(Option<File>);

#[derive(Debug)]
enum CpuFiles {
    V1 { usage: Held, user: Held, system: Held, stat: Held },
    V2 { stat: Held },
}

#[derive(Debug)]
enum MemoryFiles {
    V1 { files: Box<MemoryV1> },
    V2 { files: Box<MemoryV2> },
}

#[derive(Debug)]
struct MemoryV1 {
    usage: Held,
    stat: Held,
    limit: Held,
    both_limit: Held,
    max_usage: Held,
    hits: Held,
    kernel: Held,
    oom: Held,
}

#[derive(Debug)]
struct MemoryV2 {
    usage: Held,
    stat: Held,
    limit: Held,
    peak: Held,
    events: Held,
    swap: Held,
    swap_limit: Held,
}

#[derive(Debug)]
enum IoFiles {
    V1 { bytes: Held, requests: Held },
    V2 { stat: Held },
}

impl StatsReader {
    /// Opens what the node has; about twenty descriptors. Of a cgroup that is gone there is nothing, and nothing to read.
    ///
    /// # Errors
    /// [`Error::Io`] if a file that exists cannot be opened, as when descriptors run out.
    pub fn open(cgroup: &Cgroup) -> Result<Self, Error> {
        let in_unified =
            |name| cgroup.unified().map_or(Ok(Held(None)), |directory| Held::open(directory, name));
        let in_pids = |name| match cgroup.home(Controller::Pids) {
            Some((_, directory)) => Held::open(directory, name),
            None => Ok(Held(None)),
        };
        Ok(Self {
            cpu: open_cpu(cgroup)?,
            cpu_pressure: in_unified("cpu.pressure")?,
            memory: open_memory(cgroup)?,
            memory_pressure: in_unified("memory.pressure")?,
            pids: [in_pids("pids.current")?, in_pids("pids.max")?],
            io: open_io(cgroup)?,
            io_pressure: in_unified("io.pressure")?,
            hugepages: open_hugepages(cgroup)?,
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
        let hugepage = |(page_size, file): &(String, Held), buffer: &mut Vec<u8>| HugepageStats {
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
            hugepages: self.hugepages.iter().map(|held| hugepage(held, buffer)).collect(),
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
    fn open(directory: &Path) -> Result<Self, Error> {
        let open = |name| Held::open(directory, name);
        Ok(Self {
            usage: open("memory.usage_in_bytes")?,
            stat: open("memory.stat")?,
            limit: open("memory.limit_in_bytes")?,
            both_limit: open("memory.memsw.limit_in_bytes")?,
            max_usage: open("memory.max_usage_in_bytes")?,
            hits: open("memory.failcnt")?,
            kernel: open("memory.kmem.usage_in_bytes")?,
            oom: open("memory.oom_control")?,
        })
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
    fn open(directory: &Path) -> Result<Self, Error> {
        let open = |name| Held::open(directory, name);
        Ok(Self {
            usage: open("memory.current")?,
            stat: open("memory.stat")?,
            limit: open("memory.max")?,
            peak: open("memory.peak")?,
            events: open("memory.events")?,
            swap: open("memory.swap.current")?,
            swap_limit: open("memory.swap.max")?,
        })
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

impl Held {
    fn open(directory: &Path, name: &str) -> Result<Self, Error> {
        let path = directory.join(name);
        match File::open(&path) {
            Ok(file) => Ok(Self(Some(file))),
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => Ok(Self(None)),
            Err(source) => Err(Error::Io { action: "open", path, source }),
        }
    }

    /// The whole content. These files are one record to the kernel, so one read gives all if it fits.
    fn read<'a>(&self, buffer: &'a mut Vec<u8>) -> Option<&'a str> {
        let file = self.0.as_ref()?;
        let mut length = file.read_at(buffer, 0).ok()?;
        while length == buffer.len() && length < BUFFER_MAX {
            buffer.resize(length * 2, 0);
            length = file.read_at(buffer, 0).ok()?;
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
fn open_cpu(cgroup: &Cgroup) -> Result<Option<CpuFiles>, Error> {
    let cpu = cgroup.home(Controller::Cpu);
    if let Some((Kind::V1, time)) = cgroup.home(Controller::Cpuacct) {
        return Ok(Some(CpuFiles::V1 {
            usage: Held::open(time, "cpuacct.usage")?,
            user: Held::open(time, "cpuacct.usage_user")?,
            system: Held::open(time, "cpuacct.usage_sys")?,
            stat: cpu.map_or(Ok(Held(None)), |(_, directory)| Held::open(directory, "cpu.stat"))?,
        }));
    }
    // Without cpuacct, the unified hierarchy counts the time even where the cpu controller lives elsewhere.
    match cgroup.unified() {
        Some(directory) => Ok(Some(CpuFiles::V2 { stat: Held::open(directory, "cpu.stat")? })),
        None => Ok(None),
    }
}

fn open_memory(cgroup: &Cgroup) -> Result<Option<MemoryFiles>, Error> {
    Ok(match cgroup.home(Controller::Memory) {
        None => None,
        Some((Kind::V1, directory)) => Some(MemoryFiles::V1 { files: Box::new(MemoryV1::open(directory)?) }),
        Some((Kind::Unified, directory)) => {
            Some(MemoryFiles::V2 { files: Box::new(MemoryV2::open(directory)?) })
        }
    })
}

fn open_io(cgroup: &Cgroup) -> Result<Option<IoFiles>, Error> {
    Ok(match cgroup.home(Controller::Io) {
        None => None,
        Some((Kind::Unified, directory)) => Some(IoFiles::V2 { stat: Held::open(directory, "io.stat")? }),
        Some((Kind::V1, directory)) => Some(IoFiles::V1 {
            bytes: Held::open(directory, "blkio.throttle.io_service_bytes_recursive")?,
            requests: Held::open(directory, "blkio.throttle.io_serviced_recursive")?,
        }),
    })
}

/// One file per page size of the node: `hugetlb.2MB.current`, on v1 `hugetlb.2MB.usage_in_bytes`.
fn open_hugepages(cgroup: &Cgroup) -> Result<Vec<(String, Held)>, Error> {
    let Some((kind, directory)) = cgroup.home(Controller::Hugetlb) else { return Ok(Vec::new()) };
    let suffix = if kind == Kind::V1 { ".usage_in_bytes" } else { ".current" };
    let mut held = Vec::new();
    let entries = match fs::read_dir(directory) {
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => return Ok(held),
        entries => entries.map_err(Error::io("read", directory))?,
    };
    for entry in entries {
        let name = entry.map_err(Error::io("read", directory))?.file_name();
        let Some(name) = name.to_str() else { continue };
        let size = name.strip_prefix("hugetlb.").and_then(|rest| rest.strip_suffix(suffix));
        if let Some(size) = size.filter(|size| !size.contains('.')) {
            held.push((size.to_owned(), Held::open(directory, name)?));
        }
    }
    held.sort_by(|left, right| left.0.cmp(&right.0));
    Ok(held)
}
