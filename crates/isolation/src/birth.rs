//! The last step into a container: its PID namespace, by the birth of another process there.
//!
//! Who is in a PID namespace is seen by all in it, who may stop it and, with `CAP_SYS_PTRACE`, look at its root, its
//! descriptors and its memory. So a process that is to be among others does everything outside, in the supervisor's
//! namespace: it enters the container, connects the streams, becomes the user. Only then does it clone the process that
//! executes the program, as the supervisor's child, and tells the supervisor of it. The types say so: [`Shed`] can only be
//! made of [`Inside`], and [`Born`] of [`Shed`].
//!
//! Who may trace can take the new process over before it executes the program. So it has the program's rights and filter
//! already, where the filter lets [`CALLS`] through; and what it says to the supervisor counts for little.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sched::CloneFlags;
use wharf_sys::clone::{self, Child, Clone};
use wharf_sys::seccomp::Call;
use wharf_sys::{descriptors, process};

use crate::confine::Shed;
use crate::error::{Error, Stage};
use crate::report;

pub(crate) const STAGE: &str = "entering the PID namespace";

/// What is called from the loading of a filter on, by a process that others will see and by the one that it is born of,
/// beside what any program calls.
pub(crate) const CALLS: [(Call, u64); 8] = [
    (Call::CAPSET, 0),
    (Call::PRCTL, wharf_sys::capabilities::AMBIENT),
    (Call::CLOSE_RANGE, 3),
    (Call::CLONE, clone::SIBLING),
    (Call::SENDMSG, 0),
    (Call::PIDFD_SEND_SIGNAL, 0),
    (Call::SETSID, 0),
    (Call::EXIT_GROUP, 0),
];

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
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// Where its program runs.
    pub place: Place<'a>,
    /// Its line to the supervisor.
    pub supervisor: &'a OwnedFd,
    /// That it is one.
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

/// This process is in the PID namespace of its program.
#[derive(Debug)]
pub(crate) struct Born(Shed);

impl Born {
    /// What it has given up.
    pub(crate) fn shed(self) -> Shed {
        self.0
    }
}

impl Origin<'_> {
    /// Chooses the PID namespace of the process that will be born; this one stays where it is, unseen.
    pub(crate) fn choose_namespace(&self) -> Result<(), Error> {
        match self.place {
            Place::Of(process) => nix::sched::setns(process, CloneFlags::CLONE_NEWPID).stage(STAGE),
            Place::New | Place::Host => Ok(()),
        }
    }

    /// Goes on in the program's PID namespace. A process that others will see is born there with its streams and the line
    /// to the supervisor alone; the one that it is born of ends.
    pub(crate) fn be_born(&self, shed: Shed) -> Result<Born, Error> {
        let Place::Of(_) = self.place else { return Ok(Born(shed)) };
        descriptors::close_others(self.child, 3, &[self.supervisor.as_fd()]).stage(STAGE)?;
        match clone::clone_sibling(self.child).stage(STAGE)? {
            Clone::Child(_) => Ok(Born(shed)),
            Clone::Parent { pidfd, .. } => {
                let told = report::born(self.supervisor, &pidfd);
                if told.is_err() {
                    // The supervisor is gone, and nobody would ever know of the new process.
                    drop(process::signal(pidfd.as_fd(), 9));
                }
                process::exit_now(0)
            }
        }
    }
}
