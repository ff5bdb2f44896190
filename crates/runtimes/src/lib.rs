//! Containers and commands made by other runtimes, such as runc, crun and gVisor's runsc, through OCI's command line.
//!
//! It takes the place of `isolation` in a child of the supervisor, and looks the same to it. The child makes the
//! bundle, has the runtime create the container, names the container's first process as its successor, reports that it
//! is ready, and waits for the start. The supervisor is a subreaper, so a process whose runtime has exited is the
//! supervisor's own child: its exit, its signals and its streams are handled like those of any other.
//!
//! A runtime with sandboxes leaves no process of a container behind. There the child itself stays, and stands for the
//! program (`attendant`); the sandbox has a keeper ([`keep`]).
//!
//! The runtime has the host's rights, and is trusted with them. It ends with this process, as this process ends with
//! the supervisor; and what it has started ends with it, if it fails or takes too long.

mod attendant;
mod call;
mod cgroups;
mod console;
mod guard;
mod json;
mod mounts;
mod process;
mod sandbox;

use std::os::fd::AsFd as _;
use std::path::Path;

use wharf_isolation::bundle::{self, Bundle, Found};
use wharf_isolation::{
    CgroupPlan, Error, Identity, JoinPlan, Origin, Plan, PodNamespaces, Runtime, Streams, report_failure,
};
use wharf_sys::process::exit_now;
use wharf_types::ContainerId;

pub use sandbox::keep;

use call::{Call, Stdio};
use console::Console;
use json::Described;
use process::Made;

/// The file with the container's spec, by OCI's rules.
const SPEC: &str = "config.json";
/// The file with a command's process.
const PROCESS: &str = "process.json";

/// A command in a container that another runtime has made.
#[derive(Debug)]
pub struct Command<'a> {
    /// The container.
    pub container: &'a ContainerId,
    /// Its runtime.
    pub runtime: &'a Runtime,
    /// Its cgroups.
    pub cgroup: &'a CgroupPlan,
    /// The directory of the command's own cgroup, below one of these.
    pub leaf: &'a Path,
    /// What is executed, and as whom.
    pub plan: &'a JoinPlan<'a>,
}

/// Has another runtime make the container of an encoded plan, and start it when the supervisor says so. Runs in a child
/// of the supervisor, in the supervisor's PID namespace and cgroup, and never returns.
pub fn create(plan: &[u8], pod: PodNamespaces<'_>, streams: &Streams, mut origin: Origin<'_>) -> ! {
    end(make(plan, pod, streams, &mut origin), &origin)
}

/// Has the container's runtime execute a command in it. Runs where [`create`] does, and never returns.
pub fn execute(command: &Command<'_>, streams: &Streams, mut origin: Origin<'_>) -> ! {
    end(join(command, streams, &mut origin), &origin)
}

/// Exits with a code, or with what a failure means.
fn end(ended: Result<u8, Error>, origin: &Origin<'_>) -> ! {
    match ended {
        Ok(code) => exit_now(code.into()),
        Err(error) => {
            report_failure(&origin.line, &error);
            exit_now(128)
        }
    }
}

fn make(
    plan: &[u8],
    pod: PodNamespaces<'_>,
    streams: &Streams,
    origin: &mut Origin<'_>,
) -> Result<u8, Error> {
    let plan = &Plan::decode(plan)?;
    let runtime = plan.runtime.as_ref().ok_or_else(|| Error::Plan { problem: "no runtime".to_owned() })?;
    if let Some(sandbox) = &runtime.sandbox {
        return attendant::create(plan, (runtime, sandbox), pod, streams, origin);
    }
    let (bundle, found) = bundle::make(plan, runtime, pod, origin)?;
    bundle::give_streams(streams, &found.identity)?;
    bundle.write(SPEC, spec(plan, runtime, &found)?.as_bytes())?;
    let container = plan.container.as_str();
    let call = Call { runtime, bundle: &bundle, container, cgroup: None, alone: origin.child };
    let console = plan.stdio.terminal.then(|| Console::listen(&bundle)).transpose()?;
    call.create(Stdio::of(streams, console.as_ref()), origin.line.as_fd())?;
    let made = Made::find(&bundle)?;
    // It would wait for its start for ever.
    attend(&made, plan, (&found.identity, console), origin)
        .and_then(|()| call.start(Stdio::None, origin.line.as_fd()))
        .and_then(|()| origin.report_executed())
        .inspect_err(|_failed| made.kill())
        .map(|()| 0)
}

/// Gives the process what its runtime has not given it, names it, and waits until it is to be started.
fn attend(
    made: &Made,
    plan: &Plan,
    (identity, console): (&Identity, Option<Console>),
    origin: &mut Origin<'_>,
) -> Result<(), Error> {
    cgroups::enter(made, &plan.cgroup)?;
    let terminal = console.map(Console::accept).transpose()?;
    origin.name_successor(made.pid)?;
    origin.report_ready(identity, terminal.as_ref())?;
    if origin.await_start() { Ok(()) } else { exit_now(0) }
}

fn spec(plan: &Plan, runtime: &Runtime, Found { identity, shown }: &Found) -> Result<String, Error> {
    let (process, terminal) = (&plan.process, plan.stdio.terminal);
    let process = Described { process, identity, terminal, rest: &runtime.process }.to_json()?;
    let mounts = mounts::to_json(plan, runtime, shown);
    json::with(&format!("\"process\":{process},\"mounts\":{mounts}"), &plan.runtime_spec)
}

fn join(command: &Command<'_>, streams: &Streams, origin: &mut Origin<'_>) -> Result<u8, Error> {
    let Command { container, runtime, plan, .. } = *command;
    if let Some(sandbox) = &runtime.sandbox {
        return attendant::execute(command, sandbox, streams, origin);
    }
    let JoinPlan { process, identity, terminal, .. } = plan;
    let bundle = Bundle::empty(runtime)?;
    bundle::give_streams(streams, identity)?;
    let described = Described { process, identity, terminal: *terminal, rest: &runtime.process };
    bundle.write(PROCESS, described.to_json()?.as_bytes())?;
    let container = container.as_str();
    let call = Call { runtime, bundle: &bundle, container, cgroup: None, alone: origin.child };
    let console = terminal.then(|| Console::listen(&bundle)).transpose()?;
    call.execute(Stdio::of(streams, console.as_ref()), origin.line.as_fd())?;
    let made = Made::find(&bundle)?;
    accompany(&made, command, console, origin).inspect_err(|_failed| made.kill()).map(|()| 0)
}

/// The same as [`attend`] for a command, which runs already.
fn accompany(
    made: &Made,
    command: &Command<'_>,
    console: Option<Console>,
    origin: &mut Origin<'_>,
) -> Result<(), Error> {
    let Command { cgroup, leaf, plan, .. } = command;
    cgroups::enter_leaf(made, cgroup, leaf)?;
    made.set_oom_score(plan.process.oom_score_adj)?;
    if let Some(terminal) = console.map(Console::accept).transpose()? {
        console::resize(&terminal, plan.size)?;
        origin.report_ready(&plan.identity, Some(&terminal))?;
    }
    origin.name_successor(made.pid)?;
    origin.report_executed()
}
