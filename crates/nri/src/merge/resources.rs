//! Resources, of which each number has one owner.

use crate::Error;
use crate::api::{Field, LinuxCpu, LinuxMemory, LinuxResources};
use crate::owners::Claims;

/// Merges a plugin's resources into those collected so far.
pub(crate) fn merge(
    claims: &mut Claims<'_>,
    new: LinuxResources,
    all: &mut LinuxResources,
) -> Result<(), Error> {
    if let Some(new) = new.memory {
        memory(claims, new, all.memory.get_or_insert_default())?;
    }
    if let Some(new) = new.cpu {
        cpu(claims, new, all.cpu.get_or_insert_default())?;
    }
    for limit in new.hugepage_limits {
        claims.claim_entry(Field::HugepageLimits, &limit.page_size)?;
        all.hugepage_limits.retain(|known| known.page_size != limit.page_size);
        all.hugepage_limits.push(limit);
    }
    set(claims, Field::BlockioClass, new.blockio_class, &mut all.blockio_class)?;
    set(claims, Field::RdtClass, new.rdt_class, &mut all.rdt_class)?;
    for (key, value) in new.unified {
        claims.claim_entry(Field::CgroupsUnified, &key)?;
        all.unified.insert(key, value);
    }
    all.devices.extend(new.devices);
    set(claims, Field::PidsLimit, new.pids, &mut all.pids)
}

fn memory(claims: &mut Claims<'_>, new: LinuxMemory, all: &mut LinuxMemory) -> Result<(), Error> {
    set(claims, Field::MemLimit, new.limit, &mut all.limit)?;
    set(claims, Field::MemReservation, new.reservation, &mut all.reservation)?;
    set(claims, Field::MemSwapLimit, new.swap, &mut all.swap)?;
    set(claims, Field::MemKernelLimit, new.kernel, &mut all.kernel)?;
    set(claims, Field::MemTcpLimit, new.kernel_tcp, &mut all.kernel_tcp)?;
    set(claims, Field::MemSwappiness, new.swappiness, &mut all.swappiness)?;
    set(claims, Field::MemDisableOomKiller, new.disable_oom_killer, &mut all.disable_oom_killer)?;
    set(claims, Field::MemUseHierarchy, new.use_hierarchy, &mut all.use_hierarchy)
}

fn cpu(claims: &mut Claims<'_>, new: LinuxCpu, all: &mut LinuxCpu) -> Result<(), Error> {
    set(claims, Field::CpuShares, new.shares, &mut all.shares)?;
    set(claims, Field::CpuQuota, new.quota, &mut all.quota)?;
    set(claims, Field::CpuPeriod, new.period, &mut all.period)?;
    set(claims, Field::CpuRealtimeRuntime, new.realtime_runtime, &mut all.realtime_runtime)?;
    set(claims, Field::CpuRealtimePeriod, new.realtime_period, &mut all.realtime_period)?;
    text(claims, Field::CpusetCpus, new.cpus, &mut all.cpus)?;
    text(claims, Field::CpusetMems, new.mems, &mut all.mems)
}

/// Sets a value if the plugin does.
pub(crate) fn set<T>(
    claims: &mut Claims<'_>,
    field: Field,
    new: Option<T>,
    all: &mut Option<T>,
) -> Result<(), Error> {
    if new.is_some() {
        claims.claim(field)?;
        *all = new;
    }
    Ok(())
}

fn text(claims: &mut Claims<'_>, field: Field, new: String, all: &mut String) -> Result<(), Error> {
    if !new.is_empty() {
        claims.claim(field)?;
        *all = new;
    }
    Ok(())
}
