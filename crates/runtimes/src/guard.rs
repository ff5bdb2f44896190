//! A program of which nothing is left unless it succeeds: whatever it has started, and whatever those processes have.
//!
//! A guard is between the caller and the program. It is a subreaper, so what the program's processes leave behind
//! becomes its child. When the program fails, when the caller says so, and when the caller is gone, the guard kills all
//! of that. When the program succeeds, the guard only ends, and what is left becomes the supervisor's child.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use wharf_sys::clone::{Child, Clone, clone, end_with_parent};
use wharf_sys::error::Named as _;
use wharf_sys::process::{self, Ended, Reap, exit_now};
use wharf_sys::{descriptors, socket};
use wharf_types::signal::{SHELL_BASE, SIGRTMAX};

/// The exit code if the program could not be executed; none of a program's own.
const NOT_EXECUTED: i32 = 126;
/// How long killed processes may take to exit. One that waits for a disk that does not respond is left behind.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a program may still take once nobody wants its result.
const HURRY: Duration = Duration::from_secs(5);

/// A program that runs, with its guard.
#[derive(Debug)]
pub(crate) struct Guarded {
    guard: OwnedFd,
    /// The guard waits for the end of this.
    hold: OwnedFd,
}

impl Guarded {
    /// Clones the guard, and has that clone a process which becomes the program.
    pub(crate) fn begin(alone: &Child, program: impl FnOnce(&Child)) -> wharf_sys::Result<Self> {
        let (hold, end) = socket::pair()?;
        match clone(alone.single_threaded(), CloneFlags::empty(), None)? {
            Clone::Parent { pidfd, .. } => Ok(Self { guard: pidfd, hold }),
            Clone::Child(child) => {
                drop(hold);
                exit_now(guard(&child, &end, program).unwrap_or(NOT_EXECUTED))
            }
        }
    }

    /// Waits until the program has ended; `false` as soon as something can be read from the line before that.
    pub(crate) fn ends_before(&self, line: BorrowedFd<'_>) -> wharf_sys::Result<bool> {
        process::await_end_or(self.guard.as_fd(), line, None, Duration::ZERO)
    }

    /// Waits until the program has ended, for so long at most; whether it has.
    pub(crate) fn ends_within(&self, patience: Duration, line: BorrowedFd<'_>) -> wharf_sys::Result<bool> {
        process::await_end_or(self.guard.as_fd(), line, Some(Instant::now() + patience), patience)
    }

    /// Waits until the program has ended, for so long at most, and for a moment at most once something can be read from
    /// the line. Afterwards it has ended. `None` if it had to be killed.
    pub(crate) fn await_end(
        self,
        line: BorrowedFd<'_>,
        patience: Duration,
    ) -> wharf_sys::Result<Option<Ended>> {
        let Self { guard, hold } = self;
        let in_time = process::await_end_or(guard.as_fd(), line, Some(Instant::now() + patience), HURRY)?;
        drop(hold);
        process::await_end(guard.as_fd())?;
        let ended = process::wait(guard.as_fd(), Reap::Remove)?.filter(|_ended| in_time);
        Ok(ended.map(|ended| match ended {
            Ended::Code(code) => told(code),
            ended @ Ended::Signal(_) => ended,
        }))
    }
}

/// How the program ended if the guard's exit code is this. What is above all signals is a code of the program's own:
/// with 255 `runc exec` fails.
fn told(code: u8) -> Ended {
    match code.checked_sub(SHELL_BASE) {
        Some(number @ 1..=SIGRTMAX) => Ended::Signal(number),
        _ => Ended::Code(code),
    }
}

/// What this process's descendants leave behind becomes its children.
pub(crate) fn become_subreaper() -> wharf_sys::Result<()> {
    nix::sys::prctl::set_child_subreaper(true).named("prctl", || "PR_SET_CHILD_SUBREAPER, 1".into())
}

/// Runs the program and guards it; returns the code with which to exit.
fn guard(child: &Child, end: &OwnedFd, program: impl FnOnce(&Child)) -> wharf_sys::Result<i32> {
    become_subreaper()?;
    let this = std::process::id();
    let running = match clone(child.single_threaded(), CloneFlags::empty(), None)? {
        Clone::Parent { pidfd, .. } => pidfd,
        Clone::Child(child) => {
            if matches!(end_with_parent(this), Ok(true)) {
                program(&child);
            }
            exit_now(NOT_EXECUTED)
        }
    };
    let code = match watch(child, end, &running) {
        Ok(Some(Ended::Code(0))) => return Ok(0),
        Ok(Some(Ended::Code(code))) => code.into(),
        Ok(Some(Ended::Signal(number))) => SHELL_BASE.saturating_add(number).into(),
        Ok(None) | Err(_) => NOT_EXECUTED,
    };
    kill_all();
    Ok(code)
}

/// Waits for the end of the program, or of the caller, which is `None`.
fn watch(child: &Child, end: &OwnedFd, running: &OwnedFd) -> wharf_sys::Result<Option<Ended>> {
    // Others wait for the ends of the caller's line and of the streams.
    descriptors::keep_only(child, &[end.as_fd(), running.as_fd()])?;
    let is_over = process::await_end_or(running.as_fd(), end.as_fd(), None, Duration::ZERO)?;
    if is_over { process::wait(running.as_fd(), Reap::Remove) } else { Ok(None) }
}

/// Kills every descendant: the children of one that is killed become this process's.
pub(crate) fn kill_all() {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        process::reap_strays(|_pid| false);
        let left = children();
        if left.is_empty() {
            return;
        }
        for child in &left {
            // The next round tries again.
            let _may_be_gone = process::kill(child.as_fd());
        }
        let mut ends: Vec<PollFd<'_>> =
            left.iter().map(|child| PollFd::new(child.as_fd(), PollFlags::POLLIN)).collect();
        let _any_ended = poll(&mut ends, PollTimeout::from(100_u8));
    }
}

fn children() -> Vec<OwnedFd> {
    let listed = wharf_sys::fs::kernel_text("/proc/thread-self/children").unwrap_or_default();
    listed.split_whitespace().filter_map(|pid| process::open_pidfd(pid.parse().ok()?).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use wharf_types::signal::SIGKILL;

    #[test]
    fn codes_of_the_programs_own_are_no_signals() {
        for (code, ended) in [
            (0, Ended::Code(0)),
            (126, Ended::Code(126)),
            (128, Ended::Code(128)),
            (SHELL_BASE + SIGKILL, Ended::Signal(SIGKILL)),
            (SHELL_BASE + SIGRTMAX, Ended::Signal(SIGRTMAX)),
            (255, Ended::Code(255)),
        ] {
            assert_eq!(told(code), ended, "{code}");
        }
    }
}
