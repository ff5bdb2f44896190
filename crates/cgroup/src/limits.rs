//! The limits of a container, in the terms of the CRI.

use std::collections::BTreeMap;

use crate::device::DeviceRule;

/// The most bytes of one kind of huge page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HugepageLimit {
    /// The page size as the kernel's file names have it: `2MB`, `1GB`.
    pub page_size: String,
    /// Bytes; 0 is a real limit.
    pub limit_bytes: u64,
}

/// What a container may use. Unset, and 0 where a number is not a real limit, mean: leave as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Limits {
    /// Share of the CPU in v1 terms (1024 is usual); on v2 converted by [`crate::weight_of_shares`].
    pub cpu_shares: Option<u64>,
    /// Length of a CFS period in microseconds.
    pub cpu_period_us: Option<u64>,
    /// CPU time per period in microseconds; negative is unlimited.
    pub cpu_quota_us: Option<i64>,
    /// CPUs, such as `0-2,7`; an empty string leaves them alone.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes, such as `0`; an empty string leaves them alone.
    pub cpuset_mems: Option<String>,
    /// Memory in bytes; negative is unlimited.
    pub memory_limit_bytes: Option<i64>,
    /// Memory and swap together in bytes, as OCI has it; negative is unlimited.
    pub memory_swap_limit_bytes: Option<i64>,
    /// Number of tasks; negative is unlimited.
    pub pids_limit: Option<i64>,
    /// Huge pages; ignored on a node without that page size or without the controller.
    pub hugepages: Vec<HugepageLimit>,
    /// Files of cgroup v2 and what to write to them, after all else.
    pub unified: BTreeMap<String, String>,
    /// The devices that may be used. What no rule allows is denied; the last rule that matches wins.
    pub devices: Option<Vec<DeviceRule>>,
}
