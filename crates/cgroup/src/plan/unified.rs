//! The files of v2.
//!
//! The CRI's limits are in v1's terms: shares become weights, memory and swap together become swap alone, and quota and
//! period share a file. A limit that v2 does not have is refused, and not dropped. The files that a request names
//! itself (`unified`) are these, too, as long as a controller of v2 has them.

use super::{PERIOD_US, Present, Step, Write, v1};
use crate::detect::{Controller, Kind};
use crate::error::Error;
use crate::limits::Limits;
use crate::weight::weight_of_shares;

pub(super) fn plan(
    controller: Controller,
    limits: &Limits,
    cpu_max: Option<&str>,
    steps: &mut Vec<Step>,
) -> Result<(), Error> {
    match controller {
        Controller::Cpu => cpu(limits, cpu_max, steps),
        Controller::Cpuset => v1::cpuset(limits, steps),
        Controller::Memory => memory(limits, steps)?,
        Controller::Pids => v1::pids(limits, steps),
        _ => {}
    }
    Ok(())
}

fn cpu(limits: &Limits, cpu_max: Option<&str>, steps: &mut Vec<Step>) {
    if let Some(shares) = limits.cpu_shares {
        steps.push(Step::One(Write::new(Controller::Cpu, "cpu.weight", weight_of_shares(shares))));
    }
    if limits.cpu_quota_us.is_some() || limits.cpu_period_us.is_some() {
        steps.push(Step::One(quota(limits, cpu_max)));
    }
    // It must not be more than the quota.
    let burst = limits.cpu_burst_us.map(|burst| Write::new(Controller::Cpu, "cpu.max.burst", burst));
    steps.extend(burst.map(Step::One));
    v1::idle(limits, steps);
}

fn quota(limits: &Limits, cpu_max: Option<&str>) -> Write {
    // Quota and period share a file; the one that is not given keeps its value.
    let (held_quota, held_period) =
        cpu_max.and_then(|text| text.trim().split_once(' ')).unwrap_or(("max", ""));
    let quota = match limits.cpu_quota_us {
        None => held_quota.to_owned(),
        Some(quota) if quota < 0 => "max".to_owned(),
        Some(quota) => quota.to_string(),
    };
    let period = limits.cpu_period_us.or(held_period.parse().ok()).unwrap_or(PERIOD_US);
    Write::new(Controller::Cpu, "cpu.max", format!("{quota} {period}"))
}

fn memory(limits: &Limits, steps: &mut Vec<Step>) -> Result<(), Error> {
    let bytes = |value: i64| if value < 0 { "max".to_owned() } else { value.to_string() };
    let write = |file, value: String| Write::new(Controller::Memory, file, value);
    if let Some(value) = swap(limits)? {
        // A kernel without swap does not have this file, and has nothing to limit.
        steps.push(Step::One(write("memory.swap.max", bytes(value)).or_skip()));
    }
    if let Some(limit) = limits.memory_limit_bytes {
        steps.push(Step::One(write("memory.max", bytes(limit))));
    }
    if let Some(reservation) = limits.memory_reservation_bytes {
        steps.push(Step::One(write("memory.low", bytes(reservation))));
    }
    match limits.memory_swappiness {
        Some(value) => Err(Error::InvalidLimit {
            limit: format!("memory_swappiness {value}"),
            reason: "cgroup v2 has none: set memory.swap.max in unified",
        }),
        None => Ok(()),
    }
}

/// The limit on swap alone, from that on memory and swap together; negative means unlimited.
fn swap(limits: &Limits) -> Result<Option<i64>, Error> {
    let invalid =
        |both: i64, reason| Err(Error::InvalidLimit { limit: format!("memory_swap_limit {both}"), reason });
    match (limits.memory_limit_bytes, limits.memory_swap_limit_bytes) {
        (Some(limit), None) if limit < 0 => Ok(Some(-1)),
        (_, None) => Ok(None),
        (_, Some(both)) if both < 0 => Ok(Some(-1)),
        (None, Some(both)) => {
            invalid(both, "swap alone is its difference to the memory limit, which is not given")
        }
        (Some(limit), Some(both)) if limit < 0 || both < limit => {
            invalid(both, "it is less than the memory limit, which it includes")
        }
        (Some(limit), Some(both)) => Ok(Some(both - limit)),
    }
}

/// The files that the request itself names.
pub(super) fn plan_files(limits: &Limits, present: Present<'_>, steps: &mut Vec<Step>) -> Result<(), Error> {
    for (file, value) in &limits.unified {
        let invalid = |reason| Err(Error::InvalidLimit { limit: format!("unified {file:?}"), reason });
        if !is_resource_file(file) {
            return invalid("a file of a controller is written like memory.high");
        }
        if value.contains('\0') {
            return invalid("the value has a NUL byte");
        }
        if !present.unified {
            return invalid("this node has no cgroup v2");
        }
        if let Some(controller) = elsewhere(file, present) {
            return Err(Error::NotUnified { file: file.clone(), controller });
        }
        steps.push(Step::One(Write::unified(file, value)));
    }
    Ok(())
}

/// The controller of a file, if it is not in the unified hierarchy.
fn elsewhere(file: &str, present: Present<'_>) -> Option<Controller> {
    let controller = Controller::of_unified(file.split('.').next()?)?;
    ((present.home)(controller) != Some(Kind::Unified)).then_some(controller)
}

/// Whether a name is like `memory.high`. The core's own files (`cgroup.procs`, `cgroup.kill`) belong to the runtime
/// alone.
fn is_resource_file(file: &str) -> bool {
    // Sizes of pages have capitals: hugetlb.2MB.max.
    let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.';
    file.bytes().all(good)
        && file.contains('.')
        && file.starts_with(|first: char| first.is_ascii_lowercase())
        && !file.ends_with('.')
        && (!file.starts_with("cgroup.") || file.starts_with("cgroup.max."))
}
