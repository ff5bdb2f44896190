//! The statistics of a cgroup, from the files of its controllers.
//!
//! A value that the node does not have, or that could not be read, is `None`: nobody may take it for zero. `read` knows
//! the files and `parse` their content; the conversion to the CRI is not here.

mod parse;
mod read;
mod reading;

/// How much of a cgroup is read: each file costs some microseconds. What is not read is `None` or empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Extent {
    /// What a container's statistics need: CPU and memory usage, memory limits, and pressure.
    Usage,
    /// What a pod's statistics need: the number of tasks as well.
    Tasks,
    /// Everything that metrics need.
    Everything,
}

/// A limit that may be absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// There is no limit.
    Unlimited,
    /// The limit, in the unit of the limited resource.
    At(u64),
}

/// All statistics at one moment. A value without a file on this node, or that could not be read, is `None`, never 0.
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
    /// The block devices that were used, in the kernel's order.
    pub io: Option<Vec<DeviceIo>>,
    /// Pressure on block devices.
    pub io_pressure: Option<Pressure>,
    /// Huge pages, one entry per page size.
    pub hugepages: Vec<HugepageStats>,
}

impl Stats {
    /// Those of a pod without a cgroup, for example before its first container: it has used nothing and uses nothing.
    #[must_use]
    pub fn unused() -> Self {
        let mut stats = Self::default();
        stats.cpu.usage_ns = Some(0);
        stats.memory.usage_bytes = Some(0);
        stats.memory.working_set_bytes = Some(0);
        stats.memory.rss_bytes = Some(0);
        stats.memory.page_faults = Some(0);
        stats.memory.major_page_faults = Some(0);
        stats.pids.current = Some(0);
        stats
    }
}

/// CPU time since the cgroup was made.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CpuStats {
    /// The total, in nanoseconds.
    pub usage_ns: Option<u64>,
    /// In user space, in nanoseconds.
    pub user_ns: Option<u64>,
    /// In the kernel, in nanoseconds.
    pub system_ns: Option<u64>,
    /// Quota periods in which something was runnable.
    pub periods: Option<u64>,
    /// Periods in which the quota ran out.
    pub throttled_periods: Option<u64>,
    /// Time spent throttled, in nanoseconds.
    pub throttled_ns: Option<u64>,
    /// Pressure on CPUs.
    pub pressure: Option<Pressure>,
}

/// Memory, including all descendants.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct MemoryStats {
    /// Everything that is charged, page cache included, in bytes.
    pub usage_bytes: Option<u64>,
    /// Usage without the inactive page cache, which could be reclaimed at once, in bytes.
    pub working_set_bytes: Option<u64>,
    /// Anonymous memory in bytes.
    pub rss_bytes: Option<u64>,
    /// Page cache in bytes.
    pub cache_bytes: Option<u64>,
    /// Mapped page cache in bytes.
    pub mapped_file_bytes: Option<u64>,
    /// Kernel memory in bytes.
    pub kernel_bytes: Option<u64>,
    /// Page faults so far, major ones included.
    pub page_faults: Option<u64>,
    /// Page faults so far that needed a disk read.
    pub major_page_faults: Option<u64>,
    /// The limit in bytes.
    pub limit: Option<Bound>,
    /// The highest usage so far in bytes.
    pub max_usage_bytes: Option<u64>,
    /// How often the limit was hit.
    pub limit_hits: Option<u64>,
    /// OOM-killed processes.
    pub oom_kills: Option<u64>,
    /// Pressure on memory.
    pub pressure: Option<Pressure>,
}

/// Swap alone, without memory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SwapStats {
    /// Bytes that are swapped out.
    pub usage_bytes: Option<u64>,
    /// The limit in bytes. On v1 it is the limit on memory and swap together minus the memory limit.
    pub limit: Option<Bound>,
}

/// Tasks: processes and threads.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PidsStats {
    /// The number of tasks.
    pub current: Option<u64>,
    /// The limit on tasks.
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
    /// The most that were in use so far; v2 does not say.
    pub max_usage_bytes: Option<u64>,
}

/// How much time was lost waiting for a resource.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pressure {
    /// At least one task waited.
    pub some: PressureLine,
    /// All tasks waited; some kernels do not report it for CPUs.
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
    /// The total, in nanoseconds (the kernel's file has microseconds).
    pub total_ns: u64,
}
