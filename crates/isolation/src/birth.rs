//! The last step into a container: its PID namespace, by the birth of another process there.
//!
//! Who is in a PID namespace is seen by all in it, who may stop it and, with `CAP_SYS_PTRACE`, look at its root, its
//! descriptors and its memory. So a process that is to be among others does everything outside, in the supervisor's
//! namespace: it enters the container, connects the streams, becomes the user. What is left it writes down, and clones a
//! process that has nothing but that ([`wharf_sys::bare`]) and follows it, as the supervisor's child.
//!
//! Who may trace can take that process over before it executes the program. It finds the program's rights and filter,
//! where the filter lets through what is called then; three streams; and a line to the supervisor whose peer is no process of
//! the host. What is said there counts for little: the supervisor hears of a birth from the process that it cloned itself.
//!
//! The types keep the order: [`Inside`] is made by entering the container, [`Shed`] of it by giving up rights, and only who
//! shows that goes on to the program.

use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::sched::CloneFlags;
use wharf_sys::bare::{Prepared, SIBLING};
use wharf_sys::clone::Child;
use wharf_sys::error::Named as _;
use wharf_sys::seccomp::Call;
use wharf_sys::{capabilities, descriptors, process, socket};

use crate::confine::Shed;
use crate::error::{Error, Stage};
use crate::report;

pub(crate) const STAGE: &str = "entering the PID namespace";

/// What the process that clones calls when the filter is loaded.
const CALLS: [(Call, u64); 6] = [
    (Call::CAPSET, 0),
    (Call::PRCTL, capabilities::AMBIENT),
    (Call::CLONE, SIBLING as u64),
    (Call::SENDMSG, 0),
    (Call::PIDFD_SEND_SIGNAL, 0),
    (Call::EXIT_GROUP, 0),
];

/// Whether a process can clone the program's one after its filter is loaded.
pub(crate) fn passes(filter: &[u8]) -> bool {
    CALLS.iter().all(|(call, first)| call.passes(filter, &[*first, 0, 0, 0, 0, 0]))
}

/// In which PID namespace a program runs.
#[derive(Debug, Clone, Copy)]
pub enum Place<'a> {
    /// One that its process was cloned into as the first: nobody else is there to see it, and nobody may come before the
    /// program runs.
    New,
    /// The supervisor's own.
    Host,
    /// That of a process, where others are.
    Of(BorrowedFd<'a>),
}

impl<'a> Place<'a> {
    /// The process whose PID namespace it is.
    #[must_use]
    pub fn process(self) -> Option<BorrowedFd<'a>> {
        match self {
            Self::New | Self::Host => None,
            Self::Of(process) => Some(process),
        }
    }
}

/// Where a child of the supervisor begins.
#[derive(Debug)]
pub struct Origin<'a> {
    /// Where its program runs.
    pub place: Place<'a>,
    /// Its line to the supervisor.
    pub line: OwnedFd,
    /// That it is a child.
    pub child: &'a Child,
}

/// This process's root, working directory and mounts are the container's.
#[derive(Debug)]
pub(crate) struct Inside(());

impl Inside {
    /// For those who entered the container's root and its working directory.
    pub(crate) fn entered() -> Self {
        Self(())
    }
}

impl Origin<'_> {
    /// Chooses the PID namespace of the process that will be born; this one stays where it is, unseen.
    pub(crate) fn choose_namespace(&self) -> Result<(), Error> {
        match self.place {
            Place::Of(process) => nix::sched::setns(process, CloneFlags::CLONE_NEWPID)
                .named("setns", || "CLONE_NEWPID".into())
                .stage(STAGE),
            Place::New | Place::Host => Ok(()),
        }
    }

    /// Lets go of the supervisor, as long as this process may: all that others could get at through the one that is born.
    pub(crate) fn leave_supervisor(&mut self) -> Result<(), Error> {
        let Place::Of(_) = self.place else { return Ok(()) };
        self.replace_line().stage(STAGE)?;
        descriptors::close_others(self.child, 3, &[self.line.as_fd()]).stage(STAGE)
    }

    /// The two ends of the line were made by the supervisor, and whoever has one of them can ask the kernel for a descriptor
    /// of that process (`SO_PEERPIDFD`) and, with `CAP_SYS_PTRACE`, for what it has open, which leads to the host. Those of
    /// the next line are made by this process, which has nothing to take.
    fn replace_line(&mut self) -> wharf_sys::Result<()> {
        let (theirs, ours) = socket::pair()?;
        socket::receive_senders(theirs.as_fd())?;
        report::line(&self.line, &theirs)?;
        drop(theirs);
        // In its place, for whoever has noted the number.
        nix::unistd::dup3(&ours, &mut self.line, OFlag::O_CLOEXEC)
            .named("dup3", || "the line to the supervisor".into())
    }

    /// Goes on in the program's PID namespace, by the script that leads to the program. Among others that is another
    /// process, and this one ends.
    pub(crate) fn go_on(&self, shed: Shed, script: Prepared) -> Result<Infallible, Error> {
        let Place::Of(_) = self.place else { script.follow(self.child) };
        // First, since the filter may refuse it.
        let bare = script.keep_memory(self.child).stage(STAGE)?;
        shed.seal()?;
        let born = bare.clone_sibling().stage(STAGE)?;
        if report::born(&self.line, &born).is_err() {
            // The supervisor is gone, and nobody would ever know of the new process.
            process::signal(born.as_fd(), 9).unwrap_or_default();
        }
        process::exit_now(0)
    }
}
