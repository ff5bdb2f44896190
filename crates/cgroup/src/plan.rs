//! From limits to writes: which value goes into which file of which controller.
//!
//! It does no I/O. What it must know about the cgroup is in [`Present`]; `apply` makes the writes, and undoes them all
//! if one is refused.

use crate::detect::{Controller, Kind};
use crate::error::Error;
use crate::limits::{Io, Limits};
use io::Scheduler;

pub(crate) mod io;
pub(crate) mod twice;
mod unified;
mod v1;

/// The CFS period of a new cgroup, in microseconds.
const PERIOD_US: u64 = 100_000;

/// What to do if a file is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// Fail: the limit cannot be enforced.
    Fail,
    /// Skip the write: the kernel was built or booted without this feature, and the other limits still hold.
    Skip,
}

/// Which of the two cgroups of an enclosed one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// The one whose limits hold; the only one of any other cgroup.
    Above,
    /// The one below it, with the processes.
    Inside,
}

/// One value for one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Write {
    pub(crate) place: Place,
    /// The controller whose directory has the file; `None` is the unified directory.
    pub(crate) controller: Option<Controller>,
    pub(crate) file: String,
    pub(crate) value: String,
    pub(crate) missing: Missing,
    /// The value that leaves the file without this one, where others stay beside it.
    pub(crate) none: Option<String>,
}

/// A step that is done or undone as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    One(Write),
    /// Two values that the kernel checks against each other. The right order depends on the present values: if the
    /// first write is refused, the order is reversed.
    Pair(Write, Write),
}

/// What the plan needs to know about the cgroup.
#[derive(Clone, Copy)]
pub(crate) struct Present<'a> {
    /// The hierarchy version of a controller's home; `None` if the node has no such controller.
    pub(crate) home: &'a dyn Fn(Controller) -> Option<Kind>,
    /// The content of v2's `cpu.max` (`quota period`), if the file exists.
    pub(crate) cpu_max: Option<&'a str>,
    /// v1's limits on memory and on memory and swap together, if both files exist.
    pub(crate) memory: Option<(i64, i64)>,
    /// Whether there is a unified hierarchy.
    pub(crate) unified: bool,
    /// What shares reads and writes.
    pub(crate) scheduler: Scheduler,
}

/// Plans everything but devices.
pub(crate) fn plan(limits: &Limits, present: Present<'_>) -> Result<Vec<Step>, Error> {
    let mut steps = Vec::new();
    let limits = &meaningful(limits);
    for (controller, name) in needs(limits) {
        let kind = (present.home)(controller)
            .ok_or_else(|| Error::NoController { limit: name.to_owned(), controller })?;
        match (controller, kind) {
            (Controller::Io, kind) => io::plan(limits, kind, present.scheduler, &mut steps)?,
            (_, Kind::V1) => v1::plan(controller, limits, present.memory, &mut steps)?,
            (_, Kind::Unified) => unified::plan(controller, limits, present.cpu_max, &mut steps)?,
        }
    }
    // The kubelet sends every page size of the node, even if the controller is missing.
    match (present.home)(Controller::Hugetlb) {
        None => {}
        Some(Kind::V1) => hugepages(limits, "limit_in_bytes", &mut steps)?,
        Some(Kind::Unified) => hugepages(limits, "max", &mut steps)?,
    }
    unified::plan_files(limits, present, &mut steps)?;
    Ok(steps)
}

/// The limits without values that mean "not specified" in the CRI.
fn meaningful(limits: &Limits) -> Limits {
    let text = |text: &Option<String>| text.clone().filter(|text| !text.trim().is_empty());
    Limits {
        cpu_shares: limits.cpu_shares.filter(|shares| *shares != 0),
        cpu_period_us: limits.cpu_period_us.filter(|period| *period != 0),
        cpu_quota_us: limits.cpu_quota_us.filter(|quota| *quota != 0),
        cpuset_cpus: text(&limits.cpuset_cpus),
        cpuset_mems: text(&limits.cpuset_mems),
        memory_limit_bytes: limits.memory_limit_bytes.filter(|limit| *limit != 0),
        memory_swap_limit_bytes: limits.memory_swap_limit_bytes.filter(|limit| *limit != 0),
        memory_reservation_bytes: limits.memory_reservation_bytes.filter(|bytes| *bytes != 0),
        pids_limit: limits.pids_limit.filter(|limit| *limit != 0),
        ..limits.clone()
    }
}

/// The limits without values that a new cgroup has. To write a period or a quota takes the kernel the longer the more
/// cgroups there are: it goes through all of them.
pub(crate) fn beyond_defaults(limits: &Limits) -> Limits {
    const SHARES: u64 = 1024;
    Limits {
        cpu_shares: limits.cpu_shares.filter(|shares| *shares != SHARES),
        cpu_period_us: limits.cpu_period_us.filter(|period| *period != PERIOD_US),
        cpu_quota_us: limits.cpu_quota_us.filter(|quota| *quota >= 0),
        ..limits.clone()
    }
}

/// The controllers that the limits need, each with the name of a limit that needs it.
fn needs(limits: &Limits) -> Vec<(Controller, &'static str)> {
    let cpu = limits.cpu_shares.is_some() || limits.cpu_period_us.is_some() || limits.cpu_quota_us.is_some();
    let cpu = cpu || limits.cpu_burst_us.is_some() || limits.cpu_idle.is_some();
    let cpuset = limits.cpuset_cpus.is_some() || limits.cpuset_mems.is_some();
    let memory = limits.memory_limit_bytes.is_some() || limits.memory_swap_limit_bytes.is_some();
    let memory = memory || limits.memory_reservation_bytes.is_some() || limits.memory_swappiness.is_some();
    [
        (cpu, (Controller::Cpu, "cpu")),
        (cpuset, (Controller::Cpuset, "cpuset")),
        (memory, (Controller::Memory, "memory")),
        (limits.pids_limit.is_some(), (Controller::Pids, "pids")),
        (limits.io != Io::default(), (Controller::Io, "io")),
    ]
    .into_iter()
    .filter_map(|(needed, need)| needed.then_some(need))
    .collect()
}

/// The limit on usage, and the limit on reservations, which newer kernels have as well.
fn hugepages(limits: &Limits, suffix: &str, steps: &mut Vec<Step>) -> Result<(), Error> {
    for limit in &limits.hugepages {
        let size = &limit.page_size;
        if size.is_empty() || !size.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase()) {
            let limit = format!("hugepages of size {size:?}");
            return Err(Error::InvalidLimit { limit, reason: "a page size is written like 2MB" });
        }
        for middle in ["", "rsvd."] {
            let file = format!("hugetlb.{size}.{middle}{suffix}");
            steps.push(Step::One(Write::new(Controller::Hugetlb, &file, limit.limit_bytes).or_skip()));
        }
    }
    Ok(())
}

impl Write {
    fn new(controller: Controller, file: &str, value: impl ToString) -> Self {
        Self { controller: Some(controller), ..Self::unified(file, value) }
    }

    /// For a file of the unified directory.
    fn unified(file: &str, value: impl ToString) -> Self {
        let (file, value) = (file.to_owned(), value.to_string());
        Self { place: Place::Above, controller: None, file, value, missing: Missing::Fail, none: None }
    }

    fn or_skip(self) -> Self {
        Self { missing: Missing::Skip, ..self }
    }
}

#[cfg(test)]
mod tests;
