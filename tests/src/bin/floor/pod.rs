//! The life of one pod with one container.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::Context;
use nix::sys::signal::Signal;
use wharf_sys::process::{Reap, await_end, signal, wait};

use crate::cgroups::Directories;
use crate::container::{self, Layer};
use crate::machine::Machine;
use crate::stages::{Laps, Stages, Where, Whole, stage, stage_of};
use crate::{exec, network};

/// Makes a pod, runs commands in it, and removes it.
pub(crate) fn live(machine: &Machine, number: u32, execs: usize, stages: &mut Stages) -> anyhow::Result<()> {
    let mut laps = Laps::begin(stages);
    let supervisor = supervisor(machine)?;
    laps.ended(stage(Whole::PodUp, "a process for the pod: clone3, exec"));
    let namespaces = network::make(machine, number, &mut laps)?;
    let cgroups = machine.hierarchies.directories(number);
    make_cgroups(&cgroups, &mut laps)?;
    let layer = Layer::make(machine, number)?;
    laps.ended(stage(Whole::PodUp, "directories of the writable layer"));
    let container = container::start(machine, &namespaces, &cgroups, &layer, &mut laps)?;
    for _ in 0..execs {
        exec::run(machine, container.as_fd(), &cgroups, &mut laps)?;
    }
    laps.skip();
    kill(&container)?;
    laps.ended(stage(Whole::PodDown, "container killed and reaped"));
    remove_cgroups(&cgroups, &mut laps)?;
    layer.remove()?;
    laps.ended(stage(Whole::PodDown, "writable layer removed"));
    drop(namespaces);
    laps.ended(stage(Whole::PodDown, "namespaces let go"));
    kill(&supervisor)?;
    laps.ended(stage(Whole::PodDown, "the pod's process killed and reaped"));
    Ok(())
}

/// Starts the process that is the parent of everything in the pod and outlives the program that started it.
fn supervisor(machine: &Machine) -> anyhow::Result<OwnedFd> {
    let null = File::open("/dev/null").context("open /dev/null")?;
    let arguments = [c"sleep".to_owned(), c"86413".to_owned()];
    Ok(machine.supervisor.start(&arguments, [null.as_fd(); 3], None)?)
}

fn make_cgroups(cgroups: &Directories, laps: &mut Laps<'_>) -> anyhow::Result<()> {
    laps.skip();
    cgroups.make_v1()?;
    laps.ended(stage_of(Where::V1, Whole::PodUp, "cgroup directories of v1"));
    cgroups.make_v2()?;
    laps.ended(stage_of(Where::V2, Whole::PodUp, "cgroup directory of v2"));
    Ok(())
}

fn remove_cgroups(cgroups: &Directories, laps: &mut Laps<'_>) -> anyhow::Result<()> {
    laps.skip();
    cgroups.remove_v1()?;
    laps.ended(stage_of(Where::V1, Whole::PodDown, "cgroup directories of v1 removed"));
    cgroups.remove_v2()?;
    laps.ended(stage_of(Where::V2, Whole::PodDown, "cgroup directory of v2 removed"));
    Ok(())
}

fn kill(process: &OwnedFd) -> anyhow::Result<()> {
    signal(process.as_fd(), Signal::SIGKILL as i32)?;
    reap(process)
}

/// Waits until a process ends, and reaps it.
pub(crate) fn reap(process: &OwnedFd) -> anyhow::Result<()> {
    await_end(process.as_fd())?;
    wait(process.as_fd(), Reap::Remove)?.context("the process had not ended").map(drop)
}
