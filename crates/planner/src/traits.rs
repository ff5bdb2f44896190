//! How the program runs beside others: umask, scheduling, priorities, personality.
//!
//! The CRI has no fields for most of it. It comes from annotations and from NRI plugins, by way of the runtime spec.

use oci_spec::runtime::{
    IOPriorityClass, LinuxPersonality, LinuxPersonalityDomain, LinuxSchedulerPolicy, Process, Scheduler, Spec,
};
use wharf_isolation::Traits;
use wharf_sys::scheduling::Scheduling;

use crate::Refusal;

/// The bits of a mode that are not permissions.
const UMASKS: std::ops::RangeInclusive<u32> = 0..=0o777;

/// The traits of the plan.
///
/// # Errors
/// [`Refusal`] for what no program can have, or not one of a container's.
pub(crate) fn plan(spec: &Spec, process: &Process) -> Result<Traits, Refusal> {
    let usual = Traits::default();
    let personality = spec.linux().as_ref().and_then(|linux| linux.personality().as_ref());
    Ok(Traits {
        umask: process.user().umask().map_or(Ok(usual.umask), umask)?,
        scheduling: process.scheduler().as_ref().map(scheduling).transpose()?,
        io_priority: process.io_priority().map(|io| io_priority(io.class(), io.priority())).transpose()?,
        personality: personality.map(domain).transpose()?,
    })
}

fn umask(umask: u32) -> Result<u32, Refusal> {
    match UMASKS.contains(&umask) {
        true => Ok(umask),
        false => {
            Err(Refusal::spec("process.user.umask", format!("{umask:o} has bits other than permissions")))
        }
    }
}

/// A process with deadlines cannot fork, so that no command could be executed in its container.
fn scheduling(asked: &Scheduler) -> Result<Scheduling, Refusal> {
    const FIELD: &str = "process.scheduler";
    let refused = |problem: &str| Err(Refusal::spec(FIELD, problem));
    let (policy, is_realtime) = match asked.policy() {
        LinuxSchedulerPolicy::SchedOther => (0, false),
        LinuxSchedulerPolicy::SchedFifo => (1, true),
        LinuxSchedulerPolicy::SchedRr => (2, true),
        LinuxSchedulerPolicy::SchedBatch => (3, false),
        LinuxSchedulerPolicy::SchedIdle => (5, false),
        LinuxSchedulerPolicy::SchedIso => return refused("Linux has no SCHED_ISO: choose another policy"),
        LinuxSchedulerPolicy::SchedDeadline => {
            return refused("a program with SCHED_DEADLINE cannot fork: choose SCHED_FIFO or SCHED_RR");
        }
    };
    let times = [asked.runtime(), asked.deadline(), asked.period()];
    if times.into_iter().any(|time| time.is_some_and(|time| time != 0)) {
        return refused("runtime, deadline and period belong to SCHED_DEADLINE: leave them out");
    }
    if asked.flags().as_ref().is_some_and(|flags| !flags.is_empty()) {
        return refused("flags are lost before the program runs: leave them out");
    }
    let (nice, priority) = (asked.nice().unwrap_or(0), asked.priority().unwrap_or(0));
    if !(-20..=19).contains(&nice) || (is_realtime && nice != 0) {
        return refused("nice must be from -20 to 19, and 0 with a real-time policy");
    }
    let range = if is_realtime { 1..=99 } else { 0..=0 };
    match u32::try_from(priority) {
        Ok(priority) if range.contains(&priority) => Ok(Scheduling { policy, nice, priority }),
        _ => refused("priority must be from 1 to 99 with a real-time policy, and 0 with any other"),
    }
}

fn io_priority(class: IOPriorityClass, level: i64) -> Result<(u32, u32), Refusal> {
    let number = match class {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    match u32::try_from(level) {
        Ok(level @ 0..=7) => Ok((number, level)),
        _ => Err(Refusal::spec("process.ioPriority", format!("{level} is not a level: levels are 0 to 7"))),
    }
}

fn domain(asked: &LinuxPersonality) -> Result<u32, Refusal> {
    if asked.flags().as_ref().is_some_and(|flags| !flags.is_empty()) {
        return Err(Refusal::spec("linux.personality", "the spec defines no flags: leave them out"));
    }
    Ok(match asked.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => 8,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scheduled(json: &str) -> Result<Scheduling, Refusal> {
        scheduling(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn a_policy_has_what_belongs_to_it() {
        let of = |policy, nice, priority| Ok(Scheduling { policy, nice, priority });
        assert_eq!(scheduled(r#"{"policy": "SCHED_OTHER", "nice": -5}"#), of(0, -5, 0));
        assert_eq!(scheduled(r#"{"policy": "SCHED_RR", "priority": 7}"#), of(2, 0, 7));
        assert_eq!(scheduled(r#"{"policy": "SCHED_IDLE", "runtime": 0, "flags": []}"#), of(5, 0, 0));
    }

    #[test]
    fn what_no_program_can_have_is_refused() {
        for (json, words) in [
            (r#"{"policy": "SCHED_ISO"}"#, "no SCHED_ISO"),
            (r#"{"policy": "SCHED_DEADLINE", "runtime": 1}"#, "cannot fork"),
            (r#"{"policy": "SCHED_OTHER", "period": 1}"#, "belong to SCHED_DEADLINE"),
            (r#"{"policy": "SCHED_OTHER", "flags": ["SCHED_RESET_ON_FORK"]}"#, "flags"),
            (r#"{"policy": "SCHED_OTHER", "nice": 20}"#, "nice"),
            (r#"{"policy": "SCHED_FIFO", "nice": 1, "priority": 1}"#, "nice"),
            (r#"{"policy": "SCHED_FIFO"}"#, "priority"),
            (r#"{"policy": "SCHED_OTHER", "priority": 1}"#, "priority"),
            (r#"{"policy": "SCHED_FIFO", "priority": -1}"#, "priority"),
        ] {
            let refusal = scheduled(json).unwrap_err().to_string();
            assert!(refusal.contains(words), "{json}: {refusal}");
        }
        for level in [-1, 8] {
            assert!(io_priority(IOPriorityClass::IoprioClassBe, level).is_err());
        }
        assert_eq!(io_priority(IOPriorityClass::IoprioClassIdle, 7), Ok((3, 7)));
        assert_eq!((umask(0o777), umask(0o1000).is_err()), (Ok(0o777), true));
    }
}
