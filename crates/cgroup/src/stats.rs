//! What a cgroup uses, by the files of its controllers.

mod parse;
mod read;
mod reading;

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

/// A limit that may be absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// There is no limit.
    Unlimited,
    /// The limit, in the unit of what it bounds.
    At(u64),
}

/// Everything at one time. What the node has no file for, or what could not be read, is `None`, never 0.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Stats {
    /// CPU time.
    pub cpu: CpuStats,
    /// Memory.
    pub memory: MemoryStats,
    /// Swap.
    pub swap: SwapStats,
    /// Tasks.
    pub pids: PidsStats,
    /// Block devices that were used, in the kernel's order.
    pub io: Option<Vec<DeviceIo>>,
    /// Waiting for block devices.
    pub io_pressure: Option<Pressure>,
    /// Huge pages, one entry per page size.
    pub hugepages: Vec<HugepageStats>,
}

/// CPU time since the cgroup was made.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CpuStats {
    /// All of it, in nanoseconds.
    pub usage_ns: Option<u64>,
    /// In programs, in nanoseconds.
    pub user_ns: Option<u64>,
    /// In the kernel, in nanoseconds.
    pub system_ns: Option<u64>,
    /// Quota periods that have passed with something to run.
    pub periods: Option<u64>,
    /// Periods in which the quota ran out.
    pub throttled_periods: Option<u64>,
    /// Time spent throttled, in nanoseconds.
    pub throttled_ns: Option<u64>,
    /// Waiting for a CPU.
    pub pressure: Option<Pressure>,
}

/// Memory, with all descendants.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct MemoryStats {
    /// Everything charged, page cache included, in bytes.
    pub usage_bytes: Option<u64>,
    /// Usage without inactive page cache, which could be dropped at once, in bytes.
    pub working_set_bytes: Option<u64>,
    /// Anonymous memory in bytes.
    pub rss_bytes: Option<u64>,
    /// Page cache in bytes.
    pub cache_bytes: Option<u64>,
    /// Mapped page cache in bytes.
    pub mapped_file_bytes: Option<u64>,
    /// Memory of the kernel in bytes.
    pub kernel_bytes: Option<u64>,
    /// Page faults so far, major ones included.
    pub page_faults: Option<u64>,
    /// Page faults so far that read from a disk.
    pub major_page_faults: Option<u64>,
    /// The limit in bytes.
    pub limit: Option<Bound>,
    /// The highest usage so far in bytes.
    pub max_usage_bytes: Option<u64>,
    /// How often the limit was hit.
    pub limit_hits: Option<u64>,
    /// Processes killed for want of memory.
    pub oom_kills: Option<u64>,
    /// Waiting for memory.
    pub pressure: Option<Pressure>,
}

/// Swap alone, without memory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SwapStats {
    /// Bytes swapped out.
    pub usage_bytes: Option<u64>,
    /// The limit in bytes. On v1 it is what memory and swap may take together beyond the memory limit.
    pub limit: Option<Bound>,
}

/// Tasks: processes and threads.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PidsStats {
    /// How many there are.
    pub current: Option<u64>,
    /// How many there may be.
    pub limit: Option<Bound>,
}

/// Traffic with one block device since the cgroup was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeviceIo {
    /// The device's major number.
    pub major: u32,
    /// The device's minor number.
    pub minor: u32,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Read requests.
    pub reads: u64,
    /// Write requests.
    pub writes: u64,
}

/// Huge pages of one size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HugepageStats {
    /// The size, as in `2MB`.
    pub page_size: String,
    /// Bytes in use.
    pub usage_bytes: Option<u64>,
}

/// How much time was lost waiting for a resource.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pressure {
    /// At least one task waited.
    pub some: PressureLine,
    /// All tasks waited; some kernels do not tell it for CPUs.
    pub full: Option<PressureLine>,
}

/// One kind of pressure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PressureLine {
    /// Percent of the last 10 s.
    pub avg10: f64,
    /// Percent of the last 60 s.
    pub avg60: f64,
    /// Percent of the last 300 s.
    pub avg300: f64,
    /// All of it, in nanoseconds (the kernel's file has microseconds).
    pub total_ns: u64,
}
