//! Spawning a child: with its streams and its cgroup, and with nothing of the supervisor's that it does not need.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sched::CloneFlags;
use wharf_isolation::{Input, Origin, Place, Report, Stream, Streams};
use wharf_sys::clone::{Clone, SingleThreaded, clone, end_with_parent};
use wharf_sys::descriptors;
use wharf_sys::process::{self, Reap};
use wharf_sys::{Error, Result, signals, socket};

use crate::kill;

/// What every child needs from the supervisor.
#[derive(Debug)]
pub(crate) struct Spawner {
    witness: SingleThreaded,
}

/// A child, as the supervisor sees it.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
    /// Its reports come from here, and its start is sent here.
    pub(crate) report: OwnedFd,
    pub(crate) kin: Kin,
    pub(crate) line: Line,
    /// Whether it will still report that it is ready.
    pub(crate) awaits_ready: bool,
}

/// Whether a child's reports are still read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Line {
    Open,
    /// It has sent its last report; anything else on the line is not the child's.
    Over,
}

/// Which of two processes a child is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kin {
    /// The one that executes the program.
    Itself,
    /// One that the container cannot see, and that will create the one that does.
    Parent,
    /// The one that executes the program, created where others can see it.
    Born,
}

impl Child {
    /// Receives a report. A process that may trace the new process can say anything on its line, but not in the name of
    /// its creator, which alone can report the birth. An impossible report ends the line: whoever sent it is on its
    /// own.
    pub(crate) fn hear(&mut self) -> Result<Report> {
        let report = Report::receive(self.report.as_fd())?;
        let believed = match &report {
            Report::Ready { .. } => std::mem::take(&mut self.awaits_ready),
            // The first line has no senders, and the second is the last.
            Report::Line { sender, .. } => self.kin == Kin::Parent && sender.is_none(),
            Report::Born { sender, .. } => self.kin == Kin::Parent && *sender == Some(self.pid),
            Report::Failed { .. } | Report::Closed => true,
        };
        Ok(if believed { report } else { Report::Closed })
    }

    /// Takes the new process, which must be a child of this one, in place of its creator, which is returned and about
    /// to exit.
    pub(crate) fn take_over(&mut self, process: OwnedFd) -> Result<OwnedFd> {
        self.pid = process::child_number(process.as_fd())?;
        self.kin = Kin::Born;
        Ok(std::mem::replace(&mut self.pidfd, process))
    }

    /// Ends a child that cannot be watched: nobody would ever learn of its exit.
    pub(crate) fn abandon(&self) {
        kill::signal(self.pidfd.as_fd(), 9);
    }
}

impl Spawner {
    /// Also sets the signals of this process as its children need them.
    pub(crate) fn new() -> Result<Self> {
        signals::reset_actions()?;
        Ok(Self { witness: SingleThreaded::check()? })
    }

    pub(crate) fn witness(&self) -> &SingleThreaded {
        &self.witness
    }

    /// Spawns a child that runs `body`, in a PID namespace of its own or in the supervisor's. It may keep the
    /// descriptors `keep` and its end of the report socket.
    pub(crate) fn spawn(
        &self,
        place: Place<'_>,
        cgroup: Option<BorrowedFd<'_>>,
        keep: &[BorrowedFd<'_>],
        body: impl FnOnce(Origin<'_>),
    ) -> Result<Child> {
        let (report, child_report) = socket::pair()?;
        set_nonblocking(&report)?;
        let (flags, kin) = match place {
            Place::New => (CloneFlags::CLONE_NEWPID, Kin::Itself),
            Place::Host => (CloneFlags::empty(), Kin::Itself),
            Place::Of(_) => (CloneFlags::empty(), Kin::Parent),
        };
        let supervisor = std::process::id();
        match clone(&self.witness, flags, cgroup)? {
            Clone::Parent { pid, pidfd } => {
                Ok(Child { pid, pidfd, report, kin, line: Line::Open, awaits_ready: true })
            }
            Clone::Child(child) => {
                let kept: Vec<BorrowedFd<'_>> = keep.iter().copied().chain([child_report.as_fd()]).collect();
                let alone = descriptors::keep_only(&child, &kept).is_ok();
                drop(kept);
                // A process that never becomes the program's must not outlive the supervisor: it may not even be in its
                // cgroup yet, through which the container's processes are found.
                if alone && (kin == Kin::Itself || end_with_parent(supervisor) == Ok(true)) {
                    body(Origin { place, line: child_report, child: &child });
                }
                process::exit_now(128)
            }
        }
    }
}

/// Processes that have created their successors, until they have exited.
#[derive(Debug, Default)]
pub(crate) struct Spent(Vec<OwnedFd>);

impl Spent {
    pub(crate) fn add(&mut self, pidfd: OwnedFd) {
        self.0.push(pidfd);
    }

    /// Reaps those that have exited.
    pub(crate) fn reap(&mut self) {
        self.0.retain(|pidfd| matches!(process::wait(pidfd.as_fd(), Reap::Remove), Ok(None)));
    }
}

/// The supervisor's ends of a container's pipes.
#[derive(Debug)]
pub(crate) struct Pipes {
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
    pub(crate) stdin: Option<OwnedFd>,
}

/// Makes a container's pipes. Its input is empty unless it is to stay open.
pub(crate) fn pipes(input: Input) -> Result<(Streams, Pipes)> {
    let (stdout, out) = pipe()?;
    let (stderr, err) = pipe()?;
    set_nonblocking(&stdout)?;
    set_nonblocking(&stderr)?;
    let (stdin, keep) = match input {
        Input::Empty => (Stream::Null, None),
        Input::Kept | Input::Once => {
            let (read, write) = pipe()?;
            (Stream::Pipe(read), Some(write))
        }
    };
    Ok((
        Streams { stdin, stdout: Stream::Pipe(out), stderr: Stream::Pipe(err) },
        Pipes { stdout, stderr, stdin: keep },
    ))
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|errno| Error::new("pipe2", "O_CLOEXEC", errno))
}

pub(crate) fn set_nonblocking(fd: &OwnedFd) -> Result<()> {
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
        .map(drop)
        .map_err(|errno| Error::new("fcntl(F_SETFL)", "O_NONBLOCK", errno))
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "some process is needed that is a child")]
mod tests {
    use super::*;

    /// A child that waits, its line to the supervisor, and the supervisor's view of it.
    fn child(kin: Kin) -> (std::process::Child, OwnedFd, Child) {
        let process = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let (report, line) = socket::pair().unwrap();
        let pid = process.id().cast_signed();
        let pidfd = process::open_pidfd(pid).unwrap();
        (process, line, Child { pid, pidfd, report, kin, line: Line::Open, awaits_ready: false })
    }

    #[test]
    fn only_a_child_takes_over() {
        let (mut process, _line, mut seen) = child(Kin::Parent);
        let own = process::open_pidfd(std::process::id().cast_signed()).unwrap();
        assert_eq!(seen.take_over(own).unwrap_err().errno, nix::errno::Errno::ECHILD);
        process.kill().unwrap();
        process.wait().unwrap();
    }

    #[test]
    fn who_was_born_is_told_of_by_its_parent_and_believed_no_more() {
        let (mut parent, line, mut seen) = child(Kin::Parent);
        let (mut other, _line, _child) = child(Kin::Parent);
        let say = |word: &[u8], fd: &OwnedFd| socket::send(line.as_fd(), word, &[fd.as_fd()]).unwrap();
        let born = process::open_pidfd(other.id().cast_signed()).unwrap();
        say(b"B", &born);
        assert!(matches!(seen.hear(), Ok(Report::Closed)), "nobody is known to have said it");
        say(b"L", &born);
        assert!(matches!(seen.hear(), Ok(Report::Line { .. })));
        socket::receive_senders(seen.report.as_fd()).unwrap();
        for word in [b"B", b"L"] {
            say(word, &born);
            assert!(matches!(seen.hear(), Ok(Report::Closed)), "it was this process that said it");
        }
        // From here on this process speaks for the creator.
        seen.pid = std::process::id().cast_signed();
        say(b"B", &born);
        let Report::Born { process, .. } = seen.hear().unwrap() else { panic!("it was not heard of") };
        drop(seen.take_over(process).unwrap());
        assert_eq!((seen.pid, seen.kin), (other.id().cast_signed(), Kin::Born));
        for word in [&b"B"[..], b"L", b"R\0\0\0\0\0\0\0\0\0\0\0\0"] {
            say(word, &born);
            assert!(matches!(seen.hear(), Ok(Report::Closed)), "{word:?}");
        }
        say(b"Exwhy", &born);
        assert!(matches!(seen.hear(), Ok(Report::Failed { .. })));
        for process in [&mut parent, &mut other] {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    #[test]
    fn a_child_is_ready_once() {
        let (mut process, line, mut seen) = child(Kin::Parent);
        seen.awaits_ready = true;
        let ready = || {
            socket::send(line.as_fd(), b"R\0\0\0\0\0\0\0\0\0\0\0\0", &[]).unwrap();
        };
        ready();
        assert!(matches!(seen.hear(), Ok(Report::Ready { .. })));
        ready();
        assert!(matches!(seen.hear(), Ok(Report::Closed)));
        process.kill().unwrap();
        process.wait().unwrap();
    }
}
