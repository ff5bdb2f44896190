//! The files of v1.
//!
//! The CRI's limits are in v1's terms, so most values are written as they came. Where the kernel checks one against the
//! other they are a pair. Files that are the same on v2 are planned here for both.

use super::{Step, Write};
use crate::detect::Controller;
use crate::error::Error;
use crate::limits::Limits;

pub(super) fn plan(
    controller: Controller,
    limits: &Limits,
    held: Option<(i64, i64)>,
    steps: &mut Vec<Step>,
) -> Result<(), Error> {
    match controller {
        Controller::Cpu => cpu(limits, steps),
        Controller::Cpuset => cpuset(limits, steps),
        Controller::Memory => memory(limits, held, steps)?,
        Controller::Pids => pids(limits, steps),
        _ => {}
    }
    Ok(())
}

fn cpu(limits: &Limits, steps: &mut Vec<Step>) {
    let write = |file, value: String| Write::new(Controller::Cpu, file, value);
    if let Some(shares) = limits.cpu_shares {
        steps.push(Step::One(write("cpu.shares", shares.to_string())));
    }
    let period = limits.cpu_period_us.map(|period| write("cpu.cfs_period_us", period.to_string()));
    let quota = limits.cpu_quota_us.map(|quota| write("cpu.cfs_quota_us", quota.max(-1).to_string()));
    // At every write the kernel checks their ratio against the parent's.
    pair(period, quota, steps);
    // It must not be more than the quota.
    let burst = limits.cpu_burst_us.map(|burst| write("cpu.cfs_burst_us", burst.to_string()));
    steps.extend(burst.map(Step::One));
    idle(limits, steps);
}

/// The same file as on v2. Last, because an idle cgroup's shares cannot be set.
pub(super) fn idle(limits: &Limits, steps: &mut Vec<Step>) {
    let idle = limits.cpu_idle.map(|idle| Write::new(Controller::Cpu, "cpu.idle", u8::from(idle)));
    steps.extend(idle.map(Step::One));
}

/// The same files as on v2.
pub(super) fn cpuset(limits: &Limits, steps: &mut Vec<Step>) {
    for (file, value) in [("cpuset.cpus", &limits.cpuset_cpus), ("cpuset.mems", &limits.cpuset_mems)] {
        if let Some(value) = value {
            steps.push(Step::One(Write::new(Controller::Cpuset, file, value)));
        }
    }
}

fn memory(limits: &Limits, held: Option<(i64, i64)>, steps: &mut Vec<Step>) -> Result<(), Error> {
    if let (Some(limit), Some(both)) = (limits.memory_limit_bytes, limits.memory_swap_limit_bytes)
        && both > 0
        && (limit < 0 || both < limit)
    {
        let limit = format!("memory_swap_limit {both}");
        return Err(Error::InvalidLimit {
            limit,
            reason: "it is less than the memory limit, which it includes",
        });
    }
    let write = |file, value: i64| Write::new(Controller::Memory, file, value.max(-1));
    let limit = limits.memory_limit_bytes.map(|value| write("memory.limit_in_bytes", value));
    let both = limits.memory_swap_limit_bytes.or_else(|| both_of(limits.memory_limit_bytes?, held));
    // A kernel without swap accounting does not have this file; it then limits memory alone.
    let both = both.map(|value| write("memory.memsw.limit_in_bytes", value).or_skip());
    pair(limit, both, steps);
    let reservation = limits.memory_reservation_bytes.map(|value| write("memory.soft_limit_in_bytes", value));
    let swappiness = limits.memory_swappiness;
    let swappiness = swappiness.map(|value| Write::new(Controller::Memory, "memory.swappiness", value));
    steps.extend(reservation.into_iter().chain(swappiness).map(Step::One));
    Ok(())
}

/// The limit on memory and swap together that fits a limit on memory alone. The amount that may be swapped stays the
/// same, as on v2, where it has its own limit.
fn both_of(limit: i64, held: Option<(i64, i64)>) -> Option<i64> {
    // No limit, rounded down to whole pages.
    const UNLIMITED: i64 = i64::MAX >> 16 << 16;
    if limit < 0 {
        // Unlimited memory with limited memory and swap is impossible.
        return Some(limit);
    }
    let (memory, both) = held.filter(|(_, both)| *both < UNLIMITED)?;
    Some(limit.saturating_add(both.saturating_sub(memory)))
}

/// The same file as on v2.
pub(super) fn pids(limits: &Limits, steps: &mut Vec<Step>) {
    if let Some(limit) = limits.pids_limit {
        let value = if limit < 0 { "max".to_owned() } else { limit.to_string() };
        steps.push(Step::One(Write::new(Controller::Pids, "pids.max", value)));
    }
}

fn pair(first: Option<Write>, second: Option<Write>, steps: &mut Vec<Step>) {
    match (first, second) {
        (Some(first), Some(second)) => steps.push(Step::Pair(first, second)),
        (first, second) => steps.extend(first.or(second).map(Step::One)),
    }
}
