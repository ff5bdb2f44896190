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

/// What a container may use. A limit is left as it is if it is unset, or if it is 0 where 0 is not a real limit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Limits {
    /// CPU shares as in v1 (the default is 1024); [`crate::weight_of_shares`] converts them for v2.
    pub cpu_shares: Option<u64>,
    /// The CFS period in microseconds.
    pub cpu_period_us: Option<u64>,
    /// CPU time per period in microseconds; negative means unlimited.
    pub cpu_quota_us: Option<i64>,
    /// CPUs, such as `0-2,7`; an empty string leaves them as they are.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes, such as `0`; an empty string leaves them as they are.
    pub cpuset_mems: Option<String>,
    /// Memory in bytes; negative means unlimited.
    pub memory_limit_bytes: Option<i64>,
    /// Memory and swap together in bytes, as in OCI; negative means unlimited.
    pub memory_swap_limit_bytes: Option<i64>,
    /// Number of tasks; negative means unlimited.
    pub pids_limit: Option<i64>,
    /// Huge pages; ignored on a node without that page size or without the controller.
    pub hugepages: Vec<HugepageLimit>,
    /// Files of cgroup v2 and their values, written after everything else.
    pub unified: BTreeMap<String, String>,
    /// The device rules. What no rule allows is denied; the last rule that matches wins.
    pub devices: Option<Vec<DeviceRule>>,
}
