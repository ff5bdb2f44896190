//! A container's resource limits: those of the request, of the spec, and of the cgroup.
//!
//! Zero means that nothing is asked for, so an update changes only what it names. Which file takes which value is the
//! cgroup crate's to decide.

use oci_spec::runtime::{LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxPids, LinuxResources};
use wharf_cgroup::{HugepageLimit, Limits};
use wharf_cri_api::v1::{self, LinuxContainerResources};

use crate::{Refusal, block_io, devices};

/// Checks the numbers that the kernel would interpret differently; 0 means unset, -1 means no limit.
///
/// # Errors
/// The first number that is out of range.
pub fn check(resources: &LinuxContainerResources) -> Result<(), Refusal> {
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
            return Err(Refusal::field(field, format!("{value} is out of range")));
        }
    }
    Ok(())
}

/// A request's resources in the spec's form; zeros and empty texts change nothing.
#[must_use]
pub fn resources(asked: &LinuxContainerResources) -> LinuxResources {
    let text = |text: &String| (!text.is_empty()).then(|| text.clone());
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(positive(asked.cpu_shares))
        .set_period(positive(asked.cpu_period))
        .set_quota(set(asked.cpu_quota))
        .set_cpus(text(&asked.cpuset_cpus))
        .set_mems(text(&asked.cpuset_mems));
    let mut memory = LinuxMemory::default();
    // A limit on memory alone also limits memory and swap together, as in containerd: swapping must not circumvent it.
    let swap = set(asked.memory_swap_limit_in_bytes).or(set(asked.memory_limit_in_bytes));
    memory.set_limit(set(asked.memory_limit_in_bytes)).set_swap(swap);
    let mut resources = LinuxResources::default();
    resources
        .set_cpu(Some(cpu))
        .set_memory(Some(memory))
        .set_hugepage_limits(filled(&asked.hugepage_limits).map(|all| all.iter().map(hugepages).collect()));
    if !asked.unified.is_empty() {
        resources.set_unified(Some(asked.unified.clone().into_iter().collect()));
    }
    resources
}

fn filled<T>(list: &[T]) -> Option<&[T]> {
    (!list.is_empty()).then_some(list)
}

fn set(value: i64) -> Option<i64> {
    (value != 0).then_some(value)
}

fn positive(value: i64) -> Option<u64> {
    u64::try_from(value).ok().filter(|&value| value != 0)
}

/// The spec's numbers are signed. To the kernel, all larger ones mean the same: no limit.
fn hugepages(asked: &v1::HugepageLimit) -> LinuxHugepageLimit {
    let mut limit = LinuxHugepageLimit::default();
    limit.set_page_size(asked.page_size.clone()).set_limit(i64::try_from(asked.limit).unwrap_or(i64::MAX));
    limit
}

/// The cgroup's limits.
///
/// # Errors
/// [`Refusal`] for what no cgroup can have; [`resources`] asks for nothing like that.
pub fn limits(resources: &LinuxResources) -> Result<Limits, Refusal> {
    let cpu = resources.cpu().clone().unwrap_or_default();
    let memory = resources.memory().unwrap_or_default();
    let devices = resources.devices().as_deref().map(devices::limits).transpose()?;
    Ok(Limits {
        cpu_shares: cpu.shares(),
        cpu_period_us: cpu.period(),
        cpu_quota_us: cpu.quota(),
        cpu_burst_us: cpu.burst(),
        cpu_idle: cpu.idle().map(idle).transpose()?,
        cpuset_cpus: cpu.cpus().clone(),
        cpuset_mems: cpu.mems().clone(),
        memory_limit_bytes: memory.limit(),
        memory_swap_limit_bytes: memory.swap(),
        memory_reservation_bytes: memory.reservation(),
        memory_swappiness: memory.swappiness(),
        pids_limit: resources.pids().map(|pids| pids.limit()),
        hugepages: resources.hugepage_limits().iter().flatten().map(hugepage_limit).collect(),
        io: block_io::limits(resources.block_io().as_ref())?,
        unified: resources.unified().clone().into_iter().flatten().collect(),
        devices,
    })
}

/// The spec has a number where the kernel has two values.
fn idle(idle: i64) -> Result<bool, Refusal> {
    match idle {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(Refusal::spec("linux.resources.cpu.idle", format!("{other} is neither 0 nor 1"))),
    }
}

/// The limit on processes and threads in the spec's form.
pub(crate) fn pids(limit: i64) -> LinuxPids {
    let mut pids = LinuxPids::default();
    pids.set_limit(limit);
    pids
}

fn hugepage_limit(limit: &LinuxHugepageLimit) -> HugepageLimit {
    let limit_bytes = u64::try_from(limit.limit()).unwrap_or(u64::MAX);
    HugepageLimit { page_size: limit.page_size().clone(), limit_bytes }
}

/// The `oom_score_adj`; 0 means unset.
#[must_use]
pub fn oom_score(resources: &LinuxContainerResources) -> Option<i32> {
    i32::try_from(resources.oom_score_adj).ok().filter(|&score| score != 0)
}

/// The resources after an update: what the update sets replaces the old value.
#[must_use]
pub fn merge(old: &LinuxContainerResources, new: &LinuxContainerResources) -> LinuxContainerResources {
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
        // A limit on memory alone also limits swap, as in [`resources`]: the old limit no longer applies.
        memory_swap_limit_in_bytes: match new.memory_limit_in_bytes {
            0 => number(old.memory_swap_limit_in_bytes, new.memory_swap_limit_in_bytes),
            _ => new.memory_swap_limit_in_bytes,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(limit: i64, swap: i64) -> LinuxContainerResources {
        LinuxContainerResources {
            memory_limit_in_bytes: limit,
            memory_swap_limit_in_bytes: swap,
            ..LinuxContainerResources::default()
        }
    }

    #[test]
    fn an_update_changes_what_it_names() {
        let old = LinuxContainerResources { cpu_quota: 5, cpuset_cpus: "0".to_owned(), ..memory(10, 20) };
        let new = LinuxContainerResources { cpu_quota: -1, ..LinuxContainerResources::default() };
        assert_eq!(merge(&old, &new), LinuxContainerResources { cpu_quota: -1, ..old.clone() });
        let unified = |key: &str, value: &str| LinuxContainerResources {
            unified: [(key.to_owned(), value.to_owned())].into(),
            ..LinuxContainerResources::default()
        };
        let merged = merge(&unified("memory.high", "5"), &unified("memory.min", "1"));
        assert_eq!(merged.unified.len(), 2);
    }

    #[test]
    fn what_is_recorded_after_an_update_is_what_the_cgroup_was_given() {
        let old = memory(10, 20);
        for new in [memory(30, 0), memory(30, 40), memory(5, 0), memory(-1, 0)] {
            let (given, recorded) = (resources(&new), resources(&merge(&old, &new)));
            assert_eq!(recorded.memory(), given.memory(), "{new:?}");
        }
        assert_eq!(merge(&old, &memory(0, 30)), memory(10, 30));
    }
}
