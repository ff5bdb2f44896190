//! What plugins adjust in a container's program: arguments, environment, limits, priorities.

use oci_spec::runtime as oci;
use wharf_planner::Description;

use crate::api::{
    ContainerAdjustment, IoPrioClass, KeyValue, LinuxIoPriority, LinuxScheduler, LinuxSchedulerFlag,
    LinuxSchedulerPolicy,
};
use crate::convert::{Problem, word};
use crate::merge::entries::{mark, pairs, texts};
use crate::merge::removes;

/// Adjusts the environment. A variable that is replaced stays in its place.
pub(super) fn environment(description: &mut Description, new: &[KeyValue]) {
    let Some(process) = description.spec.process_mut() else { return };
    let mut variables = pairs(process.env().as_deref().unwrap_or_default());
    variables.retain(|variable| !removes(new, &variable.key));
    for variable in new.iter().filter(|variable| !mark::is_removal(&variable.key)) {
        match variables.iter_mut().find(|known| known.key == variable.key) {
            Some(known) => known.clone_from(variable),
            None => variables.push(variable.clone()),
        }
    }
    process.set_env(Some(texts(&variables)));
    // The values beside the spec are the request's.
    let is_new = |bytes: &[u8]| {
        new.iter().any(|variable| {
            let name = mark::bare(&variable.key).as_bytes();
            bytes.strip_prefix(name).is_some_and(|rest| rest.starts_with(b"="))
        })
    };
    description.extra.binary_environment.retain(|bytes| !is_new(bytes));
}

/// Adjusts the rest.
pub(super) fn adjust(process: &mut oci::Process, adjust: &ContainerAdjustment) -> Result<(), Problem> {
    if !adjust.args.is_empty() {
        process.set_args(Some(adjust.args.clone()));
    }
    if !adjust.rlimits.is_empty() {
        let mut limits = process.rlimits().clone().unwrap_or_default();
        for new in &adjust.rlimits {
            let kind: oci::PosixRlimitType = word("rlimits", mark::bare(&new.r#type))?;
            limits.retain(|known| known.typ() != kind);
            if !mark::is_removal(&new.r#type) {
                let limit = oci::PosixRlimitBuilder::default().typ(kind).hard(new.hard).soft(new.soft);
                limits.push(limit.build().map_err(|error| Problem::new("rlimits", error))?);
            }
        }
        process.set_rlimits(Some(limits));
    }
    let Some(linux) = &adjust.linux else { return Ok(()) };
    if let Some(score) = &linux.oom_score_adj {
        let score = i32::try_from(score.value).ok().filter(|score| (-1000..=1000).contains(score));
        let score = score.ok_or_else(|| Problem::new("oom_score_adj", "it is out of range"))?;
        process.set_oom_score_adj(Some(score));
    }
    if let Some(priority) = &linux.io_priority {
        process.set_io_priority(io_priority(priority)?);
    }
    if let Some(new) = &linux.scheduler {
        process.set_scheduler(scheduler(new)?);
    }
    Ok(())
}

/// The class "none" takes a priority away.
fn io_priority(new: &LinuxIoPriority) -> Result<Option<oci::LinuxIOPriority>, Problem> {
    const FIELD: &str = "io_priority";
    let class = IoPrioClass::try_from(new.class).map_err(|_unknown| Problem::new(FIELD, new.class))?;
    if class == IoPrioClass::IoprioClassNone {
        return Ok(None);
    }
    let class: oci::IOPriorityClass = word(FIELD, class.as_str_name())?;
    let priority = oci::LinuxIOPriorityBuilder::default().class(class).priority(new.priority);
    priority.build().map(Some).map_err(|error| Problem::new(FIELD, error))
}

/// The policy "none" takes a scheduler away.
fn scheduler(new: &LinuxScheduler) -> Result<Option<oci::Scheduler>, Problem> {
    const FIELD: &str = "scheduler";
    let policy =
        LinuxSchedulerPolicy::try_from(new.policy).map_err(|_unknown| Problem::new(FIELD, new.policy))?;
    if policy == LinuxSchedulerPolicy::SchedNone {
        return Ok(None);
    }
    let flags = new.flags.iter().map(|number| scheduler_flag(*number)).collect::<Result<Vec<_>, _>>()?;
    let time = |time: u64| (time != 0).then_some(time);
    let mut scheduler = oci::Scheduler::default();
    scheduler
        .set_policy(word(FIELD, policy.as_str_name())?)
        .set_nice(Some(new.nice))
        .set_priority(Some(new.priority))
        .set_flags((!flags.is_empty()).then_some(flags))
        .set_runtime(time(new.runtime))
        .set_deadline(time(new.deadline))
        .set_period(time(new.period));
    Ok(Some(scheduler))
}

fn scheduler_flag(number: i32) -> Result<oci::LinuxSchedulerFlag, Problem> {
    use LinuxSchedulerFlag as Flag;
    let flag = Flag::try_from(number).map_err(|_unknown| Problem::new("scheduler", number))?;
    Ok(match flag {
        Flag::SchedFlagResetOnFork => oci::LinuxSchedulerFlag::SchedResetOnFork,
        Flag::SchedFlagReclaim => oci::LinuxSchedulerFlag::SchedFlagReclaim,
        Flag::SchedFlagDlOverrun => oci::LinuxSchedulerFlag::SchedFlagDLOverrun,
        Flag::SchedFlagKeepPolicy => oci::LinuxSchedulerFlag::SchedFlagKeepPolicy,
        Flag::SchedFlagKeepParams => oci::LinuxSchedulerFlag::SchedFlagKeepParams,
        Flag::SchedFlagUtilClampMin => oci::LinuxSchedulerFlag::SchedFlagUtilClampMin,
        Flag::SchedFlagUtilClampMax => oci::LinuxSchedulerFlag::SchedFlagUtilClampMax,
    })
}
