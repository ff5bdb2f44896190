//! The last step into a container: its PID namespace, which another process enters by being created in it.
//!
//! Everyone in a PID namespace sees the others, may stop them and, with `CAP_SYS_PTRACE`, may inspect their roots,
//! descriptors and memory. So a process that is to be among others does everything outside, in the supervisor's
//! namespace: it enters the container, connects the streams, becomes the user. It writes down the remaining steps, and
//! clones a process that has nothing but that script ([`wharf_sys::bare`]) and follows it, as a child of the
//! supervisor.
//!
//! A process with the right to trace can take the new one over before it executes the program. It gains the program's
//! rights and filter; three streams; and a line to the supervisor, whose peer is no process of the host. The supervisor
//! believes little of what is said on that line: it learns of the birth from the process that it cloned itself. If the
//! filter refuses a remaining call, the new process has to load it itself, and has no filter and more rights until
//! then: where a process with the right to trace may be, that is refused.
//!
//! The types keep the order: [`Inside`] is made by entering the container, and [`confine::Shed`] is made from it by
//! giving up rights; only a process that has both goes on to the program ([`Origin::go_on`]).

use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::sched::CloneFlags;
use wharf_sys::bare::SIBLING;
use wharf_sys::clone::Child;
use wharf_sys::error::Named as _;
use wharf_sys::seccomp::Call;
use wharf_sys::{capabilities, descriptors, process, socket};

use crate::error::{Error, Stage};
use crate::identity::Identity;
use crate::program::{self, Runner, Way};
use crate::streams::Connected;
use crate::{confine, executable, report};

pub(crate) const STAGE: &str = "entering the PID namespace";

/// The calls that the cloning process makes after the filter is loaded, unless its supervisor is gone.
const CALLS: [(Call, u64); 5] = [
    (Call::CAPSET, 0),
    (Call::PRCTL, capabilities::AMBIENT),
    (Call::CLONE, SIBLING as u64),
    (Call::SENDMSG, 0),
    (Call::EXIT_GROUP, 0),
];

/// Whether a process can still clone that of the program after its filter is loaded.
pub(crate) fn passes(filter: &[u8]) -> bool {
    CALLS.iter().all(|(call, first)| call.passes(filter, &[*first, 0, 0, 0, 0, 0]))
}

/// What the processes are that are in a PID namespace already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Others {
    /// None may have `CAP_SYS_PTRACE`.
    Bystanders,
    /// One may have it.
    Tracers,
}

/// The PID namespace in which a program runs.
#[derive(Debug, Clone, Copy)]
pub enum Place<'a> {
    /// One in which its own process is the first. Nobody else is there to see it, and nobody may enter before the
    /// program runs.
    New,
    /// The supervisor's own.
    Host,
    /// That of another process, with others in it.
    Of(BorrowedFd<'a>, Others),
    /// One that another runtime enters: that of a process, or else one that its spec alone names.
    Runtimes(Option<BorrowedFd<'a>>),
    /// One in the pod's sandbox, which is there, or cannot be made, once the other end of this pipe has been closed.
    Sandbox(BorrowedFd<'a>),
}

impl<'a> Place<'a> {
    /// The process whose PID namespace it is.
    #[must_use]
    pub fn process(self) -> Option<BorrowedFd<'a>> {
        match self {
            Self::New | Self::Host | Self::Sandbox(_) => None,
            Self::Of(process, _) => Some(process),
            Self::Runtimes(process) => process,
        }
    }

    /// What a child must keep open to get there: that process, or the pipe that tells of the sandbox.
    #[must_use]
    pub fn descriptor(self) -> Option<BorrowedFd<'a>> {
        match self {
            Self::Sandbox(made) => Some(made),
            place => place.process(),
        }
    }
}

/// What a child of the supervisor starts with.
#[derive(Debug)]
pub struct Origin<'a> {
    /// Where its program runs.
    pub place: Place<'a>,
    /// Its line to the supervisor.
    pub line: OwnedFd,
    /// Proof that it is a child.
    pub child: &'a Child,
}

/// Proof that this process's root, working directory and mounts are the container's.
#[derive(Debug)]
pub(crate) struct Inside(());

impl Inside {
    /// For code that has entered the container's root and working directory.
    pub(crate) fn entered() -> Self {
        Self(())
    }
}

impl Origin<'_> {
    /// Sets the PID namespace for the process that will be created; this one stays where it is, unseen.
    pub(crate) fn choose_namespace(&self) -> Result<(), Error> {
        match self.place {
            Place::Of(process, _) => nix::sched::setns(process, CloneFlags::CLONE_NEWPID)
                .named("setns", || "CLONE_NEWPID".into())
                .stage(STAGE),
            Place::New | Place::Host | Place::Runtimes(_) | Place::Sandbox(_) => Ok(()),
        }
    }

    /// Drops what the supervisor gave it, while it still may: others could reach all of it through the new process.
    pub(crate) fn leave_supervisor(&mut self) -> Result<(), Error> {
        let Place::Of(..) = self.place else { return Ok(()) };
        self.replace_line().stage(STAGE)?;
        descriptors::close_others(self.child, 3, &[self.line.as_fd()]).stage(STAGE)
    }

    /// Replaces the line to the supervisor. The supervisor made both ends of the first line, and whoever has one end
    /// can ask the kernel for a descriptor of its maker (`SO_PEERPIDFD`) and, with `CAP_SYS_PTRACE`, for what that has
    /// open, which leads to the host. This process makes the next line, and it has nothing worth taking.
    fn replace_line(&mut self) -> wharf_sys::Result<()> {
        let (theirs, ours) = socket::pair()?;
        socket::receive_senders(theirs.as_fd())?;
        report::line(&self.line, &theirs)?;
        drop(theirs);
        // At the same descriptor number, which others have noted.
        nix::unistd::dup3(&ours, &mut self.line, OFlag::O_CLOEXEC)
            .named("dup3", || "the line to the supervisor".into())
    }

    /// Names the process that executes the program in this one's place. It must be a child of the supervisor by now.
    /// This process lives on, and speaks for it.
    ///
    /// # Errors
    /// The supervisor is gone.
    pub fn name_successor(&mut self, number: i32) -> Result<(), Error> {
        const STAGE: &str = "naming the container's process";
        // The supervisor believes only a line that identifies its senders.
        self.replace_line().stage(STAGE)?;
        report::born(&self.line, number).stage(STAGE)
    }

    /// Reports that the program was executed, which the end of this process alone does not say.
    ///
    /// # Errors
    /// The supervisor is gone.
    pub fn report_executed(&self) -> Result<(), Error> {
        report::executed(&self.line).stage("reporting to the supervisor")
    }

    /// Reports that the program waits for its start.
    ///
    /// # Errors
    /// The supervisor is gone.
    pub fn report_ready(&self, identity: &Identity, terminal: Option<&OwnedFd>) -> Result<(), Error> {
        report::ready(&self.line, identity, terminal, &[])
    }

    /// Waits for the supervisor's order to start; `false` if the supervisor has forgotten the container, or is gone.
    #[must_use]
    pub fn await_start(&self) -> bool {
        report::await_start(&self.line).is_some()
    }

    /// Waits for the supervisor's order to send the program a signal; `None` if the supervisor is gone.
    #[must_use]
    pub fn await_signal(&self) -> Option<u8> {
        report::await_signal(&self.line)
    }

    /// Goes from the container that was entered to the program: gives up rights, and continues in the program's PID
    /// namespace. Among others that is a new process, and this one exits. Only after the start: the new one is there as
    /// its program and not while it waits.
    pub(crate) fn go_on(
        &mut self,
        inside: Inside,
        connected: Connected,
        runner: Runner<'_>,
    ) -> Result<Infallible, Error> {
        // Before this process has the program's limits on descriptors and memory.
        self.leave_supervisor()?;
        let Way { mut script, program, seal } = program::way(runner, connected, self, None)?;
        let shed = confine::shed(inside, runner, seal, self.child)?;
        // With the program's rights, and while no filter refuses it.
        if let Some(why) = executable::obstacle(&shed, runner, &program.candidates) {
            script = program::way(runner, connected, self, Some(why))?.script;
        }
        let Place::Of(..) = self.place else { script.follow(self.child) };
        // First, because the filter may refuse it.
        let bare = script.keep_memory(self.child).stage(STAGE)?;
        shed.seal()?;
        let born = bare.clone_sibling().stage(STAGE)?;
        if report::born(&self.line, born.number).is_err() {
            // The supervisor is gone, and nobody would ever learn of the new process.
            let _may_have_ended = process::kill(born.pidfd.as_fd());
        }
        process::exit_now(0)
    }
}
