//! A command in a running container.

use std::os::fd::BorrowedFd;

use anyhow::Context;
use nix::sched::{CloneFlags, setns};

use crate::cgroups::Directories;
use crate::container::Birth;
use crate::machine::{Machine, namespace};
use crate::pod::reap;
use crate::stages::{Laps, Stage, Where, Whole, stage, stage_of};

const STAGES: [Stage; 3] = [
    stage(Whole::Exec, "clone3 into the PID namespace"),
    stage_of(Where::V1, Whole::Exec, "cgroups of v1 entered"),
    stage(Whole::Exec, "namespaces joined"),
];

/// Runs `true` to its end in the container with this first process.
pub(crate) fn run(
    machine: &Machine,
    first: BorrowedFd<'_>,
    cgroups: &Directories,
    laps: &mut Laps<'_>,
) -> anyhow::Result<()> {
    let own = namespace("pid")?;
    laps.skip();
    // Applies only to children: a process never changes its own PID namespace.
    setns(first, CloneFlags::CLONE_NEWPID).context("choose the container's PID namespace")?;
    let birth = Birth { machine, flags: CloneFlags::empty(), cgroups, stages: &STAGES };
    let process = birth.run(laps, |mut report| {
        cgroups.enter_v1()?;
        report.ended();
        let all = CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWCGROUP;
        setns(first, all).context("join the container's namespaces")?;
        report.ended();
        report.execute(c"/bin/true", &[c"true"])
    })?;
    laps.ended(stage(Whole::Exec, "exec"));
    reap(&process)?;
    laps.ended(stage(Whole::Exec, "ended and reaped"));
    setns(&own, CloneFlags::CLONE_NEWPID).context("choose the host's PID namespace")
}
