//! The CRI's resources as limits of a cgroup.

use wharf_cgroup::{DeviceRule, HugepageLimit, Limits};
use wharf_cri_api::v1::LinuxContainerResources;

use crate::error::Error;

/// Checks the numbers that the kernel would take for something else; 0 is unset, -1 no limit.
pub(crate) fn check(resources: &LinuxContainerResources) -> Result<(), Error> {
    let fields = [
        ("cpu_shares", resources.cpu_shares, 0..=i64::MAX),
        ("cpu_period", resources.cpu_period, 0..=i64::MAX),
        ("cpu_quota", resources.cpu_quota, -1..=i64::MAX),
        ("memory_limit_in_bytes", resources.memory_limit_in_bytes, -1..=i64::MAX),
        ("memory_swap_limit_in_bytes", resources.memory_swap_limit_in_bytes, -1..=i64::MAX),
        ("oom_score_adj", resources.oom_score_adj, -1000..=1000),
    ];
    for (field, value, range) in fields {
        if !range.contains(&value) {
            return Err(Error::invalid(field, format!("{value} is out of range")));
        }
    }
    Ok(())
}

/// Limits of a request; zeros and empty texts leave things alone.
pub(crate) fn limits(resources: &LinuxContainerResources, devices: Option<Vec<DeviceRule>>) -> Limits {
    let text = |text: &String| (!text.is_empty()).then(|| text.clone());
    Limits {
        cpu_shares: u64::try_from(resources.cpu_shares).ok().filter(|&shares| shares != 0),
        cpu_period_us: u64::try_from(resources.cpu_period).ok().filter(|&period| period != 0),
        cpu_quota_us: (resources.cpu_quota != 0).then_some(resources.cpu_quota),
        cpuset_cpus: text(&resources.cpuset_cpus),
        cpuset_mems: text(&resources.cpuset_mems),
        memory_limit_bytes: (resources.memory_limit_in_bytes != 0).then_some(resources.memory_limit_in_bytes),
        // A limit of memory alone is one of memory and swap, as containerd has it: swapping is no way around it.
        memory_swap_limit_bytes: [resources.memory_swap_limit_in_bytes, resources.memory_limit_in_bytes]
            .into_iter()
            .find(|&limit| limit != 0),
        pids_limit: None,
        hugepages: resources
            .hugepage_limits
            .iter()
            .map(|limit| HugepageLimit { page_size: limit.page_size.clone(), limit_bytes: limit.limit })
            .collect(),
        unified: resources.unified.clone(),
        devices,
    }
}

/// The score for the out-of-memory killer; 0 is unset.
pub(crate) fn oom_score(resources: &LinuxContainerResources) -> Option<i32> {
    i32::try_from(resources.oom_score_adj).ok().filter(|&score| score != 0)
}

/// The resources after an update: what the update names replaces what was.
pub(crate) fn merge(old: &LinuxContainerResources, new: &LinuxContainerResources) -> LinuxContainerResources {
    let number = |old: i64, new: i64| if new == 0 { old } else { new };
    let text = |old: &String, new: &String| if new.is_empty() { old.clone() } else { new.clone() };
    let mut unified = old.unified.clone();
    unified.extend(new.unified.clone());
    LinuxContainerResources {
        cpu_period: number(old.cpu_period, new.cpu_period),
        cpu_quota: number(old.cpu_quota, new.cpu_quota),
        cpu_shares: number(old.cpu_shares, new.cpu_shares),
        memory_limit_in_bytes: number(old.memory_limit_in_bytes, new.memory_limit_in_bytes),
        oom_score_adj: number(old.oom_score_adj, new.oom_score_adj),
        cpuset_cpus: text(&old.cpuset_cpus, &new.cpuset_cpus),
        cpuset_mems: text(&old.cpuset_mems, &new.cpuset_mems),
        hugepage_limits: if new.hugepage_limits.is_empty() {
            &old.hugepage_limits
        } else {
            &new.hugepage_limits
        }
        .clone(),
        unified,
        memory_swap_limit_in_bytes: number(old.memory_swap_limit_in_bytes, new.memory_swap_limit_in_bytes),
    }
}
