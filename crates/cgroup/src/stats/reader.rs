//! The files of one cgroup. They are opened for each reading and nothing is kept open between two: twenty descriptors a
//! container would be the first bound on how many a node can have.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::OFlag;
use wharf_sys::fs::{Resolve, open_below};

use super::parse;
use super::{Bound, CpuStats, HugepageStats, MemoryStats, PidsStats, Pressure, Stats, SwapStats};
use crate::detect::{Cgroups, Controller, Kind};
use crate::error::Error;
use crate::group::Cgroup;
use crate::path::CgroupPath;

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
    /// Where there is a file for each size of huge pages.
    hugepages: Option<(Kind, Arc<Path>)>,
}

/// How much of a cgroup is read: each file costs some microseconds. What is not read is `None`, or empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Extent {
    /// What a container's statistics tell: the use of processors and memory, the limits of memory, and pressure.
    Usage,
    /// What a pod's tell: also how many tasks there are.
    Tasks,
    /// All that metrics tell.
    Everything,
}

/// A file, if the node has the controller; that there is none reads as nothing.
#[derive(Debug)]
struct Counter {
    file: Option<Place>,
    /// The least that is read when this is.
    extent: Extent,
}

/// Where a file is. The way to a cgroup is long for the kernel, which looks at each step anew.
#[derive(Debug)]
enum Place {
    /// In a directory of which nothing else is mostly read.
    Alone(PathBuf),
    /// In a directory that is opened once for a reading.
    In(Arc<Path>, Cow<'static, str>),
}

/// One reading of several files.
struct Reading {
    extent: Extent,
    buffer: Vec<u8>,
    /// Directories that were opened for it; those that are gone are none.
    directories: Vec<(Arc<Path>, Option<OwnedFd>)>,
}

impl Reading {
    fn new(extent: Extent) -> Self {
        Self { extent, buffer: vec![0; BUFFER_BYTES], directories: Vec::new() }
    }

    fn open(&mut self, place: &Place) -> Option<OwnedFd> {
        match place {
            Place::Alone(path) => wharf_sys::fs::open(path, OFlag::O_RDONLY).ok(),
            Place::In(directory, name) => {
                let directory = self.directory(directory)?;
                open_below(directory, &**name, OFlag::O_RDONLY, Resolve::BeneathNoLinks).ok()
            }
        }
    }

    fn directory(&mut self, path: &Arc<Path>) -> Option<BorrowedFd<'_>> {
        let known = self.directories.iter().position(|(open, _)| open == path);
        let place = known.unwrap_or_else(|| {
            let opened = wharf_sys::fs::open(path, OFlag::O_PATH | OFlag::O_DIRECTORY).ok();
            self.directories.push((Arc::clone(path), opened));
            self.directories.len() - 1
        });
        self.directories.get(place)?.1.as_ref().map(AsFd::as_fd)
    }
}

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
    /// Takes the places of what the node has; nothing is opened. Of a cgroup that is gone there is nothing to read.
    #[must_use]
    pub fn new(cgroup: &Cgroup) -> Self {
        let unified = cgroup.unified().map(Arc::from);
        let in_unified = |name| Counter::in_some(unified.as_ref(), name);
        let in_pids = |name| match cgroup.home(Controller::Pids) {
            Some((Kind::V1, directory)) => Counter::alone(directory, name),
            _ => in_unified(name),
        };
        Self {
            cpu: cpu_files(cgroup),
            cpu_pressure: in_unified("cpu.pressure"),
            memory: memory_files(cgroup),
            memory_pressure: in_unified("memory.pressure"),
            pids: [in_pids("pids.current").from(Extent::Tasks), in_pids("pids.max").in_full()],
            io: io_files(cgroup),
            io_pressure: in_unified("io.pressure"),
            hugepages: cgroup.home(Controller::Hugetlb).map(|(kind, directory)| (kind, Arc::from(directory))),
        }
    }

    /// The same of a cgroup that need not be there now: it may be made, removed, and made anew.
    ///
    /// # Errors
    /// [`Error::NoHierarchy`] if the node has none.
    pub fn at(cgroups: &Cgroups, path: &CgroupPath) -> Result<Self, Error> {
        cgroups.at(path).map(|cgroup| Self::new(&cgroup))
    }

    /// Reads so much now.
    #[must_use]
    pub fn read(&self, extent: Extent) -> Stats {
        let reading = &mut Reading::new(extent);
        let (memory, swap) = self.read_memory(reading);
        let [current, limit] = &self.pids;
        let io = match &self.io {
            None => None,
            Some(IoFiles::V2 { stat }) => stat.read(reading).and_then(parse::io_stat),
            Some(IoFiles::V1 { bytes, requests }) => {
                let bytes = bytes.read(reading).map(str::to_owned);
                bytes.and_then(|bytes| parse::blkio(&bytes, requests.read(reading)?))
            }
        };
        let hugepage = |(page_size, file): (String, Counter), reading: &mut Reading| HugepageStats {
            page_size,
            usage_bytes: file.number(reading),
        };
        Stats {
            cpu: self.read_cpu(reading),
            memory,
            swap,
            pids: PidsStats { current: current.number(reading), limit: limit.bound(reading) },
            io,
            io_pressure: self.io_pressure.pressure(reading),
            hugepages: match (&self.hugepages, extent) {
                (Some((kind, directory)), Extent::Everything) => {
                    let files = hugepage_files(*kind, directory).into_iter();
                    files.map(|file| hugepage(file, reading)).collect()
                }
                _ => Vec::new(),
            },
        }
    }

    fn read_cpu(&self, reading: &mut Reading) -> CpuStats {
        let mut cpu = CpuStats { pressure: self.cpu_pressure.pressure(reading), ..CpuStats::default() };
        let stat = match &self.cpu {
            None => return cpu,
            Some(CpuFiles::V1 { usage, user, system, stat }) => {
                cpu.usage_ns = usage.number(reading);
                cpu.user_ns = user.number(reading);
                cpu.system_ns = system.number(reading);
                stat
            }
            Some(CpuFiles::V2 { stat }) => stat,
        };
        let is_v2 = matches!(self.cpu, Some(CpuFiles::V2 { .. }));
        parse::pairs(stat.read(reading).unwrap_or_default(), |key, value| {
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

    fn read_memory(&self, reading: &mut Reading) -> (MemoryStats, SwapStats) {
        let (mut memory, swap, inactive) = match &self.memory {
            None => (MemoryStats::default(), SwapStats::default(), None),
            Some(MemoryFiles::V1 { files }) => files.read(reading),
            Some(MemoryFiles::V2 { files }) => files.read(reading),
        };
        memory.working_set_bytes =
            memory.usage_bytes.zip(inactive).map(|(usage, inactive)| usage.saturating_sub(inactive));
        memory.pressure = self.memory_pressure.pressure(reading);
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
            max_usage: of("memory.max_usage_in_bytes").in_full(),
            hits: of("memory.failcnt").in_full(),
            kernel: of("memory.kmem.usage_in_bytes").in_full(),
            oom: of("memory.oom_control").in_full(),
        }
    }

    fn read(&self, reading: &mut Reading) -> (MemoryStats, SwapStats, Option<u64>) {
        let mut memory = MemoryStats {
            usage_bytes: self.usage.number(reading),
            kernel_bytes: self.kernel.number(reading),
            max_usage_bytes: self.max_usage.number(reading),
            limit_hits: self.hits.number(reading),
            oom_kills: self.oom.key(reading, "oom_kill"),
            ..MemoryStats::default()
        };
        let rest = parse::memory_stat_v1(self.stat.read(reading).unwrap_or_default(), &mut memory);
        // Where not even a cgroup above has a limit, this one has none: its own file need not be read.
        let own = |least: Option<Bound>, file: &Counter, reading: &mut Reading| match least {
            Some(Bound::Unlimited) => Some(Bound::Unlimited),
            _ => file.bound(reading),
        };
        memory.limit = own(rest.least_limit, &self.limit, reading);
        let both = own(rest.least_both_limit, &self.both_limit, reading);
        let limit = memory.limit.zip(both).map(|(limit, both)| parse::swap_bound(limit, both));
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
            peak: of("memory.peak").in_full(),
            events: of("memory.events").in_full(),
            swap: of("memory.swap.current"),
            swap_limit: of("memory.swap.max"),
        }
    }

    fn read(&self, reading: &mut Reading) -> (MemoryStats, SwapStats, Option<u64>) {
        let mut memory = MemoryStats {
            usage_bytes: self.usage.number(reading),
            limit: self.limit.bound(reading),
            max_usage_bytes: self.peak.number(reading),
            ..MemoryStats::default()
        };
        parse::pairs(self.events.read(reading).unwrap_or_default(), |key, value| match key {
            "max" => memory.limit_hits = Some(value),
            "oom_kill" => memory.oom_kills = Some(value),
            _ => {}
        });
        let rest = parse::memory_stat_v2(self.stat.read(reading).unwrap_or_default(), &mut memory);
        let swap =
            SwapStats { usage_bytes: self.swap.number(reading), limit: self.swap_limit.bound(reading) };
        (memory, swap, rest.inactive_file)
    }
}

impl Counter {
    fn of(directory: &Arc<Path>, name: impl Into<Cow<'static, str>>) -> Self {
        Self { file: Some(Place::In(Arc::clone(directory), name.into())), extent: Extent::Usage }
    }

    fn alone(directory: &Path, name: &str) -> Self {
        Self { file: Some(Place::Alone(directory.join(name))), extent: Extent::Usage }
    }

    fn in_some(directory: Option<&Arc<Path>>, name: &'static str) -> Self {
        directory.map_or(Self { file: None, extent: Extent::Usage }, |directory| Self::of(directory, name))
    }

    /// Read only where at least this much is.
    fn from(self, extent: Extent) -> Self {
        Self { extent, ..self }
    }

    /// Read only where everything is.
    fn in_full(self) -> Self {
        self.from(Extent::Everything)
    }

    /// The whole content. These files are one record to the kernel, so one read gives all if it fits.
    fn read<'a>(&self, reading: &'a mut Reading) -> Option<&'a str> {
        if self.extent > reading.extent {
            return None;
        }
        let mut file = File::from(reading.open(self.file.as_ref()?)?);
        let buffer = &mut reading.buffer;
        let mut length = file.read(buffer).ok()?;
        while length == buffer.len() && length < BUFFER_MAX {
            buffer.resize(length * 2, 0);
            length += file.read(&mut buffer[length..]).ok()?;
        }
        std::str::from_utf8(buffer.get(..length)?).ok()
    }

    fn number(&self, reading: &mut Reading) -> Option<u64> {
        self.read(reading).and_then(parse::number)
    }

    fn bound(&self, reading: &mut Reading) -> Option<Bound> {
        self.read(reading).and_then(parse::bound)
    }

    fn pressure(&self, reading: &mut Reading) -> Option<Pressure> {
        self.read(reading).and_then(parse::pressure)
    }

    fn key(&self, reading: &mut Reading, key: &str) -> Option<u64> {
        crate::files::keyed(self.read(reading)?, key).and_then(parse::number)
    }
}

/// On v1 the time is counted by `cpuacct` and the throttling by `cpu`, which mostly share a hierarchy, but need not.
fn cpu_files(cgroup: &Cgroup) -> Option<CpuFiles> {
    if let Some((Kind::V1, time)) = cgroup.home(Controller::Cpuacct) {
        let (time, cpu) = (Arc::from(time), cgroup.home(Controller::Cpu));
        return Some(CpuFiles::V1 {
            usage: Counter::alone(&time, "cpuacct.usage"),
            user: Counter::of(&time, "cpuacct.usage_user").in_full(),
            system: Counter::of(&time, "cpuacct.usage_sys").in_full(),
            stat: Counter::in_some(cpu.map(|(_, directory)| Arc::from(directory)).as_ref(), "cpu.stat")
                .in_full(),
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
        Kind::Unified => IoFiles::V2 { stat: Counter::of(&directory, "io.stat").in_full() },
        Kind::V1 => IoFiles::V1 {
            bytes: Counter::of(&directory, "blkio.throttle.io_service_bytes_recursive").in_full(),
            requests: Counter::of(&directory, "blkio.throttle.io_serviced_recursive").in_full(),
        },
    })
}

/// One file per page size of the node: `hugetlb.2MB.current`, on v1 `hugetlb.2MB.usage_in_bytes`.
fn hugepage_files(kind: Kind, directory: &Arc<Path>) -> Vec<(String, Counter)> {
    let suffix = if kind == Kind::V1 { ".usage_in_bytes" } else { ".current" };
    let names = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let size = |name: &str| {
        let size = name.strip_prefix("hugetlb.")?.strip_suffix(suffix)?;
        (!size.contains('.')).then(|| size.to_owned())
    };
    let mut files: Vec<_> =
        names.filter_map(|name| Some((size(&name)?, Counter::of(directory, name).in_full()))).collect();
    files.sort_by(|left, right| left.0.cmp(&right.0));
    files
}
