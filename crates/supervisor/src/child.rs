//! A child of the supervisor, as the supervisor sees it: the first process of a container, or the process of an exec.
//!
//! A process enters a PID namespace with others in it last, by being created there. So a child may begin as the creator
//! of another process: the container cannot see it, and at last it names that process, its successor, which is a child
//! of the supervisor, too, and takes its place. Others in the container may trace the successor, and can then say
//! anything on its line. So a report is only believed from a process that can have made it.
//!
//! Where another runtime makes the process, the one that calls it names that process, too, and speaks for it until the
//! program is executed.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use wharf_isolation::Report;
use wharf_sys::process::{self, Reap};

use crate::diagnostics::{self, OrWarn as _};
use crate::failure::Failure;
use crate::kill;
use crate::spawn::set_nonblocking;
use crate::watch::{Owner, Watch};
use wharf_types::signal::SIGKILL;

/// A child and the line to it.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
    /// Its reports come from here, and its start is sent here.
    pub(crate) report: OwnedFd,
    pub(crate) role: Role,
    line: Line,
    /// Whether it will still report that it is ready.
    pub(crate) awaits_ready: bool,
}

/// Which of two processes a child is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// The one that executes the program.
    Program,
    /// One that the container cannot see, and that will create the one that executes the program.
    Creator,
    /// The one that executes the program, created where others can see it.
    Successor,
    /// One that calls another runtime, which will make the one that executes the program.
    Caller,
    /// The one that executes the program, made by another runtime. Its caller has the line.
    Made,
    /// One that stands for the program, which another runtime executes in a sandbox.
    Attendant,
}

impl Role {
    /// Whether it will name another process, which executes the program.
    pub(crate) fn is_maker(self) -> bool {
        matches!(self, Self::Creator | Self::Caller)
    }

    /// What it means that its line ends without another word: the kernel closes it when the program is executed, if the
    /// process has it that executes the program. All others have ended before they could say how they did.
    pub(crate) fn end_of_line(self) -> Result<(), Failure> {
        match self {
            Self::Program | Self::Successor => Ok(()),
            // Mostly with its container.
            Self::Creator => Err(Failure::precondition("the process that was to create it was killed")),
            Self::Caller | Self::Made | Self::Attendant => {
                Err(Failure::precondition("the process that called the runtime for it was killed"))
            }
        }
    }
}

/// Whether a child's reports are still read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    Open,
    /// It has sent its last report; anything else on the line is not the child's.
    Over,
}

impl Child {
    pub(crate) fn new(pid: i32, pidfd: OwnedFd, report: OwnedFd, role: Role) -> Self {
        Self { pid, pidfd, report, role, line: Line::Open, awaits_ready: true }
    }

    /// The next report, if one has arrived. Only the creator can name its successor, and only once: an impossible
    /// report counts as the end of the line, because whoever sent it is on its own.
    pub(crate) fn receive_report(&mut self) -> Option<Report> {
        if self.line == Line::Over {
            return None;
        }
        let report = match Report::receive(self.report.as_fd()) {
            Ok(report) => report,
            Err(error) => {
                // Nothing has arrived yet. If the line was reset, the next call finds that it is closed.
                if !matches!(error.errno, Errno::EAGAIN | Errno::ECONNRESET) {
                    diagnostics::warn(format_args!("what process {} reports: {error}", self.pid));
                }
                return None;
            }
        };
        let is_believed = match &report {
            Report::Ready { .. } => std::mem::take(&mut self.awaits_ready),
            // The first line has no senders, and the second is the last.
            Report::Line { sender, .. } => self.role.is_maker() && sender.is_none(),
            Report::Born { sender, .. } => self.role.is_maker() && *sender == Some(self.pid),
            Report::Executed => matches!(self.role, Role::Made | Role::Attendant),
            Report::Failed { .. } | Report::Closed => true,
        };
        Some(if is_believed { report } else { Report::Closed })
    }

    /// Watches for its reports and its exit. A child that cannot be watched is killed, and reaped with the strays.
    pub(crate) fn watch(&self, watch: &mut Watch, owner: &Owner) -> wharf_sys::Result<()> {
        let watched = watch.add(self.report.as_fd(), owner.report());
        let watched = watched.and_then(|()| watch.add(self.pidfd.as_fd(), owner.exit()));
        watched.inspect_err(|_unwatched| self.abandon())
    }

    /// Stops watching it.
    pub(crate) fn unwatch(&self, watch: &mut Watch, owner: &Owner) {
        watch.remove(self.report.as_fd(), &owner.report());
        watch.remove(self.pidfd.as_fd(), &owner.exit());
    }

    /// Sends the program a signal. Of one in a sandbox that is for its attendant to do.
    pub(crate) fn signal(&self, number: i32) -> wharf_sys::Result<()> {
        match u8::try_from(number) {
            Ok(number) if self.role == Role::Attendant => {
                wharf_isolation::order_signal(self.report.as_fd(), number)
            }
            _ => process::signal(self.pidfd.as_fd(), number),
        }
    }

    /// Kills the program. What has ended needs that no more.
    pub(crate) fn kill(&self) {
        if self.role == Role::Attendant {
            let ordered = self.signal(SIGKILL.into());
            let ordered =
                ordered.or_else(|error| if error.errno == Errno::EPIPE { Ok(()) } else { Err(error) });
            ordered.or_warn("having a program in a sandbox killed");
        } else {
            kill::kill_process(self.pidfd.as_fd());
        }
    }

    /// Whether it is not known yet that the program was executed, or that it will not be.
    pub(crate) fn begins(&self) -> bool {
        self.line == Line::Open
    }

    /// Stops listening to it: nothing more is expected, and others that hold the line could fill it without end.
    pub(crate) fn silence(&mut self, watch: &mut Watch, owner: &Owner) {
        self.line = Line::Over;
        watch.remove(self.report.as_fd(), &owner.report());
    }

    /// Takes its reports from another line.
    pub(crate) fn listen_at(&mut self, line: OwnedFd, watch: &mut Watch, owner: &Owner) {
        let heard = set_nonblocking(&line)
            .and_then(|()| watch.replace(self.report.as_fd(), line.as_fd(), owner.report()));
        self.abandon_unless(heard);
        self.report = line;
    }

    /// Takes the successor in its place, and returns the creator, which is about to exit. `None` if that process cannot
    /// be the successor.
    pub(crate) fn continue_as(
        &mut self,
        successor: i32,
        watch: &mut Watch,
        owner: &Owner,
    ) -> Option<OwnedFd> {
        match self.replace(successor) {
            Ok(creator) => {
                let watched = watch.replace(creator.as_fd(), self.pidfd.as_fd(), owner.exit());
                self.abandon_unless(watched);
                Some(creator)
            }
            Err(error) => {
                diagnostics::warn(format_args!("process {} names a false successor: {error}", self.pid));
                None
            }
        }
    }

    /// Only a child of the supervisor can be the successor. No stray is reaped until it is known, so that it still has
    /// its number if it has ended.
    fn replace(&mut self, number: i32) -> wharf_sys::Result<OwnedFd> {
        let successor = process::open_pidfd(number)?;
        process::wait(successor.as_fd(), Reap::Leave)?;
        self.pid = number;
        self.role = if self.role == Role::Caller { Role::Made } else { Role::Successor };
        Ok(std::mem::replace(&mut self.pidfd, successor))
    }

    /// Ends it if it cannot be watched: nobody would ever learn of its exit.
    fn abandon_unless(&self, watched: wharf_sys::Result<()>) {
        let watched = watched.inspect_err(|_unwatched| self.abandon());
        watched.or_warn("a process that cannot be watched is killed");
    }

    fn abandon(&self) {
        kill::kill_process(self.pidfd.as_fd());
    }
}

/// Processes that have named their successors, until they have exited.
#[derive(Debug, Default)]
pub(crate) struct Creators(Vec<OwnedFd>);

impl Creators {
    pub(crate) fn add(&mut self, pidfd: OwnedFd) {
        self.0.push(pidfd);
    }

    /// Reaps those that have exited.
    pub(crate) fn reap(&mut self) {
        self.0.retain(|pidfd| match process::wait(pidfd.as_fd(), Reap::Remove) {
            Ok(ended) => ended.is_none(),
            // It was reaped among the strays.
            Err(error) if error.errno == Errno::ECHILD => false,
            Err(error) => {
                diagnostics::warn(format_args!("how a process before its command ended: {error}"));
                false
            }
        });
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "some process is needed that is a child")]
mod tests {
    use super::*;
    use crate::refusing::refusing;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use nix::sys::epoll::EpollTimeout;
    use std::process::Command;
    use wharf_sys::{seccomp::Call, socket};
    use wharf_types::signal::SIGKILL;

    const READY: &[u8] = b"R\0\0\0\0\0\0\0\0\0\0\0\0\0";

    /// The word that names a successor.
    fn born(number: i32) -> Vec<u8> {
        [&b"B"[..], &number.to_le_bytes()].concat()
    }

    /// A child that waits, its end of the line, and the supervisor's view of it. It is killed at the end of its test.
    struct Waiting {
        process: std::process::Child,
        line: OwnedFd,
        seen: Child,
    }

    impl Waiting {
        fn new(role: Role) -> Self {
            let process = Command::new("sleep").arg("1000").spawn().unwrap();
            let (report, line) = socket::pair().unwrap();
            set_nonblocking(&report).unwrap();
            let pid = process.id().cast_signed();
            let seen = Child::new(pid, process::open_pidfd(pid).unwrap(), report, role);
            Self { process, line, seen }
        }

        fn pidfd(&self) -> OwnedFd {
            process::open_pidfd(self.number()).unwrap()
        }

        fn number(&self) -> i32 {
            self.process.id().cast_signed()
        }

        fn say(&self, word: &[u8], beside: &OwnedFd) {
            socket::send(self.line.as_fd(), word, &[beside.as_fd()]).unwrap();
        }

        /// From now on the line identifies its senders, and this process is the one that says what the child says.
        fn speak_as_child(&mut self) {
            socket::receive_senders(self.seen.report.as_fd()).unwrap();
            self.seen.pid = std::process::id().cast_signed();
        }

        #[track_caller]
        fn is_not_believed(&mut self, word: &[u8], beside: &OwnedFd) {
            self.say(word, beside);
            assert!(matches!(self.seen.receive_report(), Some(Report::Closed)), "{word:?} is believed");
        }
    }

    impl Drop for Waiting {
        fn drop(&mut self) {
            self.process.kill().unwrap();
            self.process.wait().unwrap();
        }
    }

    #[test]
    fn only_who_has_the_program_says_by_its_end_that_it_runs() {
        for (role, runs) in [
            (Role::Program, true),
            (Role::Successor, true),
            (Role::Creator, false),
            (Role::Caller, false),
            (Role::Made, false),
            (Role::Attendant, false),
        ] {
            assert_eq!(role.end_of_line().is_ok(), runs, "{role:?}");
        }
        let (mut made, program) = (Waiting::new(Role::Made), Waiting::new(Role::Program));
        made.say(b"X", &program.pidfd());
        assert!(matches!(made.seen.receive_report(), Some(Report::Executed)));
        let mut creator = Waiting::new(Role::Creator);
        creator.is_not_believed(b"X", &program.pidfd());
    }

    #[test]
    fn what_a_runtime_has_made_is_named_by_its_caller() {
        let (mut caller, made) = (Waiting::new(Role::Caller), Waiting::new(Role::Caller));
        caller.say(b"L", &made.pidfd());
        assert!(matches!(caller.seen.receive_report(), Some(Report::Line { .. })));
        drop(caller.seen.replace(made.number()).unwrap());
        assert_eq!((caller.seen.pid, caller.seen.role), (made.seen.pid, Role::Made));
        assert!(caller.seen.role.end_of_line().is_err());
    }

    #[test]
    fn only_the_creator_can_name_its_successor() {
        let (mut creator, other) = (Waiting::new(Role::Creator), Waiting::new(Role::Creator));
        // Nobody is known to have said it.
        creator.is_not_believed(&born(other.number()), &other.pidfd());
        creator.say(b"L", &other.pidfd());
        assert!(matches!(creator.seen.receive_report(), Some(Report::Line { .. })));
        let pid = creator.seen.pid;
        creator.speak_as_child();
        creator.seen.pid = pid;
        // It was this process, which is not the creator.
        creator.is_not_believed(&born(other.number()), &other.pidfd());
        creator.is_not_believed(b"L", &other.pidfd());
        creator.speak_as_child();
        creator.say(&born(other.number()), &other.pidfd());
        assert!(matches!(creator.seen.receive_report(), Some(Report::Born { .. })));
        let mut program = Waiting::new(Role::Program);
        program.speak_as_child();
        program.is_not_believed(&born(other.number()), &other.pidfd());
    }

    #[test]
    fn a_successor_is_believed_only_to_fail() {
        let (mut creator, successor) = (Waiting::new(Role::Creator), Waiting::new(Role::Creator));
        creator.speak_as_child();
        creator.seen.awaits_ready = false;
        drop(creator.seen.replace(successor.number()).unwrap());
        assert_eq!((creator.seen.pid, creator.seen.role), (successor.seen.pid, Role::Successor));
        for word in [&born(successor.number())[..], b"L", READY] {
            creator.is_not_believed(word, &successor.pidfd());
        }
        creator.say(b"Ex-why", &successor.pidfd());
        assert!(matches!(creator.seen.receive_report(), Some(Report::Failed { .. })));
    }

    #[test]
    fn only_a_child_can_be_the_successor() {
        let mut creator = Waiting::new(Role::Creator);
        let (mut watch, owner) = (Watch::new().unwrap(), Owner::Exec(1));
        creator.seen.watch(&mut watch, &owner).unwrap();
        for other in [std::process::id().cast_signed(), i32::MAX, 0, -1] {
            assert!(creator.seen.continue_as(other, &mut watch, &owner).is_none());
            assert_eq!((creator.seen.pid, creator.seen.role), (creator.number(), Role::Creator));
        }
    }

    #[test]
    fn a_child_that_cannot_be_watched_is_killed() {
        let child = Waiting::new(Role::Creator);
        let mut watch = Watch::new().unwrap();
        refusing(Call::EPOLL_CTL, Errno::ENOMEM, || {
            let error = child.seen.watch(&mut watch, &Owner::Exec(1)).unwrap_err();
            assert_eq!(error.errno, Errno::ENOMEM);
        });
        let mut ends = [PollFd::new(child.seen.pidfd.as_fd(), PollFlags::POLLIN)];
        assert_eq!(
            poll(&mut ends, PollTimeout::from(20_000_u16)).unwrap(),
            1,
            "nobody would learn of its end"
        );
        let ended = process::wait(child.seen.pidfd.as_fd(), Reap::Leave).unwrap();
        assert_eq!(ended, Some(process::Ended::Signal(SIGKILL)));
    }

    #[test]
    fn a_child_is_ready_once() {
        let mut child = Waiting::new(Role::Creator);
        socket::send(child.line.as_fd(), READY, &[]).unwrap();
        assert!(matches!(child.seen.receive_report(), Some(Report::Ready { .. })));
        let beside = child.pidfd();
        child.is_not_believed(READY, &beside);
    }

    #[test]
    fn the_successor_is_watched_in_place_of_its_creator() {
        let (mut child, mut successor) = (Waiting::new(Role::Creator), Waiting::new(Role::Creator));
        let (mut watch, owner) = (Watch::new().unwrap(), Owner::Exec(1));
        child.seen.watch(&mut watch, &owner).unwrap();
        let creator = child.seen.continue_as(successor.number(), &mut watch, &owner).unwrap();
        let mut creators = Creators::default();
        creators.add(creator);
        creators.reap();
        assert_eq!(creators.0.len(), 1, "it has not exited");
        child.process.kill().unwrap();
        child.process.wait().unwrap();
        creators.reap();
        assert!(creators.0.is_empty());
        assert!(watch.wait(EpollTimeout::ZERO).is_empty(), "its end is no news");
        successor.process.kill().unwrap();
        assert_eq!(watch.wait(EpollTimeout::NONE), [owner.exit()]);
        child.seen.unwatch(&mut watch, &owner);
        assert!(watch.wait(EpollTimeout::ZERO).is_empty());
    }

    #[test]
    fn a_child_is_heard_on_its_last_line_until_that_is_over() {
        let mut child = Waiting::new(Role::Creator);
        let (mut watch, owner) = (Watch::new().unwrap(), Owner::Exec(1));
        child.seen.watch(&mut watch, &owner).unwrap();
        let (line, next) = socket::pair().unwrap();
        child.seen.listen_at(line, &mut watch, &owner);
        // It is closed here. A process that another test is starting has a copy of it until it executes its program.
        let mut closed = [PollFd::new(child.line.as_fd(), PollFlags::empty())];
        poll(&mut closed, PollTimeout::NONE).unwrap();
        assert_eq!(closed[0].revents(), Some(PollFlags::POLLHUP));
        assert!(watch.wait(EpollTimeout::ZERO).is_empty());
        drop(next);
        assert_eq!(watch.wait(EpollTimeout::NONE), [owner.report()]);
        child.seen.silence(&mut watch, &owner);
        assert!(watch.wait(EpollTimeout::ZERO).is_empty());
        assert!(child.seen.receive_report().is_none());
    }
}
