//! The limits of a container, in the terms of the CRI.
//!
//! They are values alone: which file takes which value is decided in `plan`, and whether a value makes sense is the
//! kernel's to say.

use std::collections::BTreeMap;

use crate::device::DeviceRule;

/// The limit on huge pages of one size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HugepageLimit {
    /// The page size, as the kernel writes it in file names: `2MB`, `1GB`.
    pub page_size: String,
    /// Bytes; 0 is a real limit.
    pub limit_bytes: u64,
}

/// The share and the rates of a cgroup's reads and writes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Io {
    /// Its share beside others', from 10 to 1000, of all devices.
    pub weight: Option<u16>,
    /// The same of single devices.
    pub weights: Vec<(BlockDevice, u16)>,
    /// Rates of single devices.
    pub rates: Vec<(BlockDevice, Rate, u64)>,
}

/// A block device by its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockDevice {
    /// The major number.
    pub major: u32,
    /// The minor number.
    pub minor: u32,
}

/// What is limited per second; a limit of 0 is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rate {
    /// Bytes that are read.
    ReadBytes,
    /// Bytes that are written.
    WriteBytes,
    /// Reads.
    Reads,
    /// Writes.
    Writes,
}

/// What a container may use. A limit is left as it is if it is unset, or if it is 0 where 0 is not a real limit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Limits {
    /// CPU shares as in v1 (the default is 1024); [`crate::weight_of_shares`] converts them for v2.
    pub cpu_shares: Option<u64>,
    /// The CFS period in microseconds.
    pub cpu_period_us: Option<u64>,
    /// CPU time per period in microseconds; negative means unlimited.
    pub cpu_quota_us: Option<i64>,
    /// CPU time that was not used and may be used on top of the quota, in microseconds.
    pub cpu_burst_us: Option<u64>,
    /// Whether it gets CPU time only when nobody else wants it.
    pub cpu_idle: Option<bool>,
    /// CPUs, such as `0-2,7`; an empty string leaves them as they are.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes, such as `0`; an empty string leaves them as they are.
    pub cpuset_mems: Option<String>,
    /// Memory in bytes; negative means unlimited.
    pub memory_limit_bytes: Option<i64>,
    /// Memory and swap together in bytes, as in OCI; negative means unlimited.
    pub memory_swap_limit_bytes: Option<i64>,
    /// Memory in bytes that the kernel leaves to it while others have some to spare; negative means all that it has.
    pub memory_reservation_bytes: Option<i64>,
    /// How readily its memory is swapped, from 0 to 100; v1 alone has it.
    pub memory_swappiness: Option<u64>,
    /// Number of tasks; negative means unlimited.
    pub pids_limit: Option<i64>,
    /// Huge pages; ignored on a node without that page size or without the controller.
    pub hugepages: Vec<HugepageLimit>,
    /// Reads and writes.
    pub io: Io,
    /// Files of cgroup v2 and their values, written after everything else.
    pub unified: BTreeMap<String, String>,
    /// The device rules. What no rule allows is denied; the last rule that matches wins.
    pub devices: Option<Vec<DeviceRule>>,
}
