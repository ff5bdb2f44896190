//! The life of a container in a sandbox, and of a command in it: an attendant on the host stands for the program.
//!
//! No process in a sandbox is one of the host's, so there is none that could become the supervisor's child. This
//! process is the child that the supervisor knows. It has the runtime make the program, passes on the signals that the
//! supervisor orders, waits for the end, and exits as the program did. It leaves nothing of the container behind in the
//! sandbox; a sandbox in which a container cannot be killed is killed itself.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use wharf_isolation::bundle::{self, Bundle};
use wharf_isolation::{
    Error, Identity, Origin, Place, Plan, PodNamespaces, Runtime, Sandbox, Stage as _, Streams,
};
use wharf_sys::descriptors;
use wharf_sys::process::{self, Ended, Reap};
use wharf_types::signal::{SHELL_BASE, SIGKILL};

use crate::call::{Call, EXIT, INNER_PID_FILE, Stdio};
use crate::console::{self, Console};
use crate::guard::{Guarded, become_subreaper};
use crate::json::{self, Described};
use crate::process::{Made, number};
use crate::{Command, PROCESS, SPEC, cgroups, sandbox, spec};

/// With what an attendant exits if nobody can say how its program ended, as a shell does whose command was killed.
const KILLED: u8 = SHELL_BASE + SIGKILL;
/// How long a killed container may take to end before its sandbox is killed.
const KILL_PATIENCE: Duration = Duration::from_secs(3);
/// How much of what the runtime says of an end is read, in bytes.
const EXIT_LIMIT_BYTES: usize = 4096;
const STAGE: &str = "attending to a program in the sandbox";

/// Has a container of an encoded plan made in the pod's sandbox, and attends to it; returns its exit code.
pub(crate) fn create(
    plan: &Plan,
    (runtime, sandbox): (&Runtime, &Sandbox),
    pod: PodNamespaces<'_>,
    streams: &Streams,
    origin: &Origin<'_>,
) -> Result<u8, Error> {
    become_subreaper().stage(STAGE)?;
    let (bundle, found) = bundle::make(plan, runtime, pod, origin)?;
    bundle::give_streams(streams, &found.identity)?;
    bundle.write(SPEC, spec(plan, runtime, &found)?.as_bytes())?;
    if let Place::Sandbox(made) = origin.place {
        sandbox::await_made(runtime, made, origin.line.as_fd())?;
    }
    let call = call(plan.container.as_str(), (runtime, sandbox), &bundle, origin);
    let console = plan.stdio.terminal.then(|| Console::listen(&bundle)).transpose()?;
    let made = if plan.stdio.terminal { Stdio::Terminal } else { Stdio::None };
    let code = call.create(made, origin.line.as_fd()).and_then(|()| {
        let mine = Attendant { call: &call, sandbox, origin };
        mine.live(streams, &found.identity, console)
    });
    // Nothing of it may go on, nor be in the way of others. What is not deleted now ends with the sandbox.
    let _may_be_gone = call.delete(origin.line.as_fd());
    code
}

/// Has a command executed in a container of the sandbox, and attends to it; returns its exit code.
pub(crate) fn execute(
    command: &Command<'_>,
    sandbox: &Sandbox,
    streams: &Streams,
    origin: &Origin<'_>,
) -> Result<u8, Error> {
    become_subreaper().stage(STAGE)?;
    let Command { runtime, plan, .. } = command;
    let bundle = Bundle::empty(runtime)?;
    bundle::give_streams(streams, &plan.identity)?;
    let (process, identity, terminal) = (&plan.process, &plan.identity, plan.terminal);
    let described = Described { process, identity, terminal, rest: &runtime.process };
    bundle.write(PROCESS, described.to_json()?.as_bytes())?;
    let call = call(command.container.as_str(), (runtime, sandbox), &bundle, origin);
    let console = terminal.then(|| Console::listen(&bundle)).transpose()?;
    call.execute_inside(Stdio::of(streams, console.as_ref()), origin.line.as_fd())?;
    let (made, inner) = (Made::find(&bundle)?, number(&bundle, INNER_PID_FILE)?);
    Attendant { call: &call, sandbox, origin }.accompany(&made, inner, console, command)
}

fn call<'a>(
    container: &'a str,
    (runtime, sandbox): (&'a Runtime, &'a Sandbox),
    bundle: &'a Bundle,
    origin: &'a Origin<'_>,
) -> Call<'a> {
    Call { runtime, bundle, container, cgroup: Some(&sandbox.cgroup), alone: origin.child }
}

/// What attending needs.
struct Attendant<'a> {
    call: &'a Call<'a>,
    sandbox: &'a Sandbox,
    origin: &'a Origin<'a>,
}

impl Attendant<'_> {
    /// From the created container to its end.
    fn live(&self, streams: &Streams, identity: &Identity, console: Option<Console>) -> Result<u8, Error> {
        let stdio = if console.is_some() { Stdio::None } else { Stdio::Streams(streams) };
        let terminal = console.map(Console::accept).transpose()?;
        self.origin.report_ready(identity, terminal.as_ref())?;
        drop(terminal);
        if !self.origin.await_start() {
            return Ok(KILLED);
        }
        self.call.start(stdio, self.line())?;
        self.release(&[])?;
        let waiting = self.call.wait()?;
        self.origin.report_executed()?;
        self.attend(&waiting)?;
        waiting.await_end(self.line(), KILL_PATIENCE).stage(STAGE)?;
        Ok(json::exit_code(&self.call.bundle.read(EXIT, EXIT_LIMIT_BYTES)).unwrap_or(KILLED))
    }

    /// Passes on signals until the container has ended.
    fn attend(&self, waiting: &Guarded) -> Result<(), Error> {
        while !waiting.ends_before(self.line()).stage(STAGE)? {
            match self.origin.await_signal() {
                Some(SIGKILL) => self.kill(waiting)?,
                Some(number) => {
                    let _may_have_ended = self.call.signal(&[], number, self.line());
                }
                // The sandbox ends with the supervisor.
                None => return Ok(()),
            }
        }
        Ok(())
    }

    fn kill(&self, waiting: &Guarded) -> Result<(), Error> {
        let _may_have_ended = self.call.signal(&["--all"], SIGKILL, self.line());
        if !waiting.ends_within(KILL_PATIENCE, self.line()).stage(STAGE)? {
            cgroups::kill(&self.sandbox.cgroup);
        }
        Ok(())
    }

    /// From the executed command to its end. Its process on the host is the runtime's, which ends as the command does.
    fn accompany(
        &self,
        made: &Made,
        inner: i32,
        console: Option<Console>,
        command: &Command<'_>,
    ) -> Result<u8, Error> {
        if let Some(terminal) = console.map(Console::accept).transpose()? {
            console::resize(&terminal, command.plan.size)?;
            self.origin.report_ready(&command.plan.identity, Some(&terminal))?;
        }
        self.origin.report_executed()?;
        self.release(&[made.process.as_fd()])?;
        let group = format!("--pgid={inner}");
        let is_over =
            |deadline| process::await_end_or(made.process.as_fd(), self.line(), deadline, KILL_PATIENCE);
        while !process::await_end_or(made.process.as_fd(), self.line(), None, Duration::ZERO).stage(STAGE)? {
            if self.origin.await_signal().is_none() {
                return Ok(KILLED);
            }
            let _may_have_ended = self.call.signal(&[&group], SIGKILL, self.line());
            if !is_over(Some(Instant::now() + KILL_PATIENCE)).stage(STAGE)? {
                made.kill();
            }
        }
        Ok(match process::wait(made.process.as_fd(), Reap::Remove).stage(STAGE)? {
            Some(Ended::Code(code)) => code,
            Some(Ended::Signal(number)) => SHELL_BASE.saturating_add(number),
            None => KILLED,
        })
    }

    /// Closes what is not needed any more but these: others wait for the ends of streams.
    fn release(&self, keep: &[BorrowedFd<'_>]) -> Result<(), Error> {
        let keep = [keep, &[self.line(), self.call.bundle.as_fd()]].concat();
        descriptors::close_others(self.origin.child, 3, &keep).stage(STAGE)
    }

    fn line(&self) -> BorrowedFd<'_> {
        self.origin.line.as_fd()
    }
}
