//! What the container's first process reports to its supervisor, and waits for, over one socket.
//!
//! It says that it is ready, or why it failed; the supervisor answers with the order to start. Once a process is among
//! others of its container its reports prove nothing, so the supervisor checks who may have sent each (its `child`).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use wharf_sys::socket;
use wharf_types::{ErrorKind, Failure as _, OwnerId, Subject};

use crate::birth::Others;
use crate::error::{Error, Stage};
use crate::identity::Identity;

const READY: u8 = b'R';
const LINE: u8 = b'L';
const BORN: u8 = b'B';
const EXECUTED: u8 = b'X';
const FAILED: u8 = b'E';
/// A failure whose message was written before it happened; the errno follows.
const PREPARED: u8 = b'P';
/// The longest message of a failure.
const MESSAGE_LIMIT_BYTES: usize = 8000;
/// The letter of every class that is not in the list.
const INTERNAL: u8 = b'x';
/// The classes that a child distinguishes, with their letters; any other is internal.
const KINDS: [(ErrorKind, u8); 3] = [
    (ErrorKind::InvalidArgument, b'i'),
    (ErrorKind::FailedPrecondition, b'n'),
    (ErrorKind::ResourceExhausted, b'e'),
];
/// What a failure may be about, with its letter.
const SUBJECTS: [(Subject, u8); 2] = [(Subject::Other, b'-'), (Subject::ImageVolume, b'v')];
/// The longest report: a user with 4000 groups and a home directory.
const REPORT_LIMIT_BYTES: usize = 24 * 1024;

/// A message from the child. The end of the connection means that the program was executed, unless another runtime does
/// that: then it is said.
#[derive(Debug)]
pub enum Report {
    /// Everything is set up, and the program waits for its start.
    Ready {
        /// The identity with which it will run.
        identity: Identity,
        /// The terminal, if it has one.
        terminal: Option<OwnedFd>,
        /// When each of the stages of a creation ended, by CLOCK_MONOTONIC; none for a command.
        ends_ns: Vec<u64>,
    },
    /// All further reports come on another line, which identifies their sender.
    Line {
        /// That line.
        line: OwnedFd,
        /// The sender, if this line identifies it.
        sender: Option<i32>,
    },
    /// From here on, another process is the one that executes the program; it is a child of the supervisor, too.
    Born {
        /// The number of that process, as the supervisor sees it.
        number: i32,
        /// The sender, if the line identifies it.
        sender: Option<i32>,
    },
    /// Another runtime says that the program was executed.
    Executed,
    /// It failed, and the child is about to exit.
    Failed {
        /// The class of the failure, and what it is about.
        class: (ErrorKind, Subject),
        /// For people.
        message: String,
    },
    /// The program was executed, or the child died.
    Closed,
}

impl Report {
    /// Receives the next report.
    ///
    /// # Errors
    /// The socket's error; EAGAIN if the call would have blocked.
    pub fn receive(socket: BorrowedFd<'_>) -> wharf_sys::Result<Self> {
        let (bytes, received) = socket::receive_whole(socket, REPORT_LIMIT_BYTES)?;
        let sender = received.sender;
        let descriptor = received.descriptors.into_iter().next();
        Ok(match (bytes.split_first(), descriptor) {
            (Some((&READY, body)), terminal) => {
                let (ends_ns, identity) = read_ends(body);
                match read_identity(identity) {
                    Some(identity) => Self::Ready { identity, terminal, ends_ns },
                    None => Self::Closed,
                }
            }
            (Some((&LINE, _)), Some(line)) => Self::Line { line, sender },
            (Some((&BORN, body)), _) => match body.try_into() {
                Ok(number) => Self::Born { number: i32::from_le_bytes(number), sender },
                Err(_length) => Self::Closed,
            },
            (Some((&EXECUTED, _)), _) => Self::Executed,
            (Some((&FAILED, body)), _) => read_failure(body, None),
            (Some((&PREPARED, body)), _) => match body.split_last_chunk() {
                Some((body, number)) => read_failure(body, Some(isize::from_ne_bytes(*number))),
                None => Self::Closed,
            },
            _ => Self::Closed,
        })
    }
}

/// The letters of the class and of the subject, the message, and the meaning of the errno.
fn read_failure(body: &[u8], number: Option<isize>) -> Report {
    let kind = KINDS.iter().find(|(_, letter)| Some(letter) == body.first());
    let mut kind = kind.map_or(ErrorKind::Internal, |(kind, _)| *kind);
    let subject = SUBJECTS.iter().find(|(_, letter)| Some(letter) == body.get(1));
    let subject = subject.map_or(Subject::Other, |(subject, _)| *subject);
    let mut message = String::from_utf8_lossy(body.get(2..).unwrap_or_default()).into_owned();
    if let Some(number) = number {
        let errno = Errno::from_raw(i32::try_from(number).unwrap_or_default());
        let reason = if kind == ErrorKind::FailedPrecondition { of_program(errno) } else { errno.desc() };
        message = format!("{message}: {reason}");
        // The class was chosen before the errno was known.
        if errno.kind() == ErrorKind::ResourceExhausted {
            kind = ErrorKind::ResourceExhausted;
        }
    }
    Report::Failed { class: (kind, subject), message }
}

/// What the error of an exec means, for the person who named the program.
fn of_program(errno: Errno) -> &'static str {
    match errno {
        Errno::ENOENT => wharf_types::program::MISSING,
        Errno::EACCES => wharf_types::program::DENIED,
        Errno::ENOEXEC => wharf_types::program::FORMAT,
        other => other.desc(),
    }
}

/// The letters of a class and a subject.
fn letters(kind: ErrorKind, subject: Subject) -> [u8; 2] {
    let kind = KINDS.iter().find(|(of, _)| *of == kind).map_or(INTERNAL, |(_, letter)| *letter);
    [kind, SUBJECTS.iter().find(|(of, _)| *of == subject).map_or(b'-', |(_, letter)| *letter)]
}

/// The message of a failure that may happen later, with its class.
pub(crate) fn prepared(kind: ErrorKind, message: &str) -> Vec<u8> {
    let mut words = vec![PREPARED];
    words.extend(letters(kind, Subject::Other));
    words.extend(message.bytes().take(MESSAGE_LIMIT_BYTES));
    words
}

/// Reports the line on which the next reports come.
pub(crate) fn line(socket: &OwnedFd, next: &OwnedFd) -> wharf_sys::Result<()> {
    socket::send(socket.as_fd(), &[LINE], &[next.as_fd()])
}

/// How many ends there are, and each of them.
fn ends_bytes(ends_ns: &[u64]) -> Vec<u8> {
    let count = u8::try_from(ends_ns.len()).unwrap_or(u8::MAX);
    let ends = ends_ns.iter().take(count.into()).flat_map(|end| end.to_le_bytes());
    std::iter::once(count).chain(ends).collect()
}

/// The ends, and what follows them.
fn read_ends(body: &[u8]) -> (Vec<u64>, &[u8]) {
    let (count, rest) = body.split_first().unwrap_or((&0, body));
    let (ends, rest) = rest.split_at_checked(8 * usize::from(*count)).unwrap_or((&[], rest));
    (ends.as_chunks().0.iter().map(|end| u64::from_le_bytes(*end)).collect(), rest)
}

/// User, group, the number of groups, the groups, and the home directory if there is one.
fn identity_bytes(identity: &Identity) -> Vec<u8> {
    let count = u32::try_from(identity.groups.len()).unwrap_or(u32::MAX);
    let groups = identity.groups.iter().map(|group| group.number());
    let numbers = [identity.uid.number(), identity.gid.number(), count].into_iter().chain(groups);
    let mut bytes: Vec<u8> = numbers.flat_map(u32::to_le_bytes).collect();
    bytes.extend(identity.home.iter().flat_map(|home| home.bytes()));
    bytes
}

/// `None` for an id that nobody can have.
fn read_identity(body: &[u8]) -> Option<Identity> {
    let mut numbers = body.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let mut next = || numbers.next().unwrap_or(0);
    let (uid, gid, count) = (OwnerId::new(next())?, OwnerId::new(next())?, next());
    let count = usize::try_from(count).unwrap_or(0);
    let groups = numbers.take(count).map(OwnerId::new).collect::<Option<_>>()?;
    let home = body.get(12 + 4 * count..).map(String::from_utf8_lossy);
    let home = home.filter(|home| !home.is_empty()).map(std::borrow::Cow::into_owned);
    Some(Identity { uid, gid, groups, home })
}

/// Reports that everything is set up, and when each stage of that ended.
pub(crate) fn ready(
    socket: &OwnedFd,
    identity: &Identity,
    terminal: Option<&OwnedFd>,
    ends_ns: &[u64],
) -> Result<(), Error> {
    let bytes = [&[READY][..], &ends_bytes(ends_ns), &identity_bytes(identity)].concat();
    let terminal: Vec<BorrowedFd<'_>> = terminal.iter().map(|fd| fd.as_fd()).collect();
    socket::send(socket.as_fd(), &bytes, &terminal).stage("reporting to the supervisor")
}

/// Reports that another process continues. It is sent without a descriptor: of those on their way the kernel counts all
/// that a user has sent, whatever the container, and lets a process that has given up its rights send no more than its
/// own limit of open files allows.
pub(crate) fn born(socket: &OwnedFd, number: i32) -> wharf_sys::Result<()> {
    socket::send(socket.as_fd(), &[&[BORN][..], &number.to_le_bytes()].concat(), &[])
}

/// Reports that the program was executed.
pub(crate) fn executed(socket: &OwnedFd) -> wharf_sys::Result<()> {
    socket::send(socket.as_fd(), &[EXECUTED], &[])
}

/// Reports a failure.
pub fn failed(socket: &OwnedFd, error: &Error) {
    let mut bytes = vec![FAILED];
    bytes.extend(letters(error.kind(), error.subject()));
    bytes.extend(error.line().into_bytes().into_iter().take(MESSAGE_LIMIT_BYTES));
    let _supervisor_may_be_gone = socket::send(socket.as_fd(), &bytes, &[]);
}

/// The order to start where no process in the PID namespace may trace.
const START: u8 = b'S';
/// The same where one may.
const START_UNDER_TRACE: u8 = b'T';
/// The order to send the program a signal, whose number follows.
const SIGNAL: u8 = b'K';

/// Orders a container's first process to execute its program, among these.
///
/// # Errors
/// The process is gone.
pub fn order_start(socket: BorrowedFd<'_>, others: Others) -> wharf_sys::Result<()> {
    let order = match others {
        Others::Bystanders => START,
        Others::Tracers => START_UNDER_TRACE,
    };
    socket::send(socket, &[order], &[])
}

/// Waits for the supervisor's order to start, which says who is in the PID namespace by now; `None` if the supervisor
/// is gone.
pub(crate) fn await_start(socket: &OwnedFd) -> Option<Others> {
    let mut order = [0; 2];
    match socket::receive(socket.as_fd(), &mut order) {
        Ok((1, _)) if order[0] == START => Some(Others::Bystanders),
        Ok((1, _)) => Some(Others::Tracers),
        _ => None,
    }
}

/// Orders whoever stands for a program in a sandbox to send it a signal.
///
/// # Errors
/// The process is gone, or has not carried out many orders before.
pub fn order_signal(socket: BorrowedFd<'_>, number: u8) -> wharf_sys::Result<()> {
    socket::send(socket, &[SIGNAL, number], &[])
}

/// Waits for the order to send a signal; `None` if the supervisor is gone.
pub(crate) fn await_signal(socket: &OwnedFd) -> Option<u8> {
    let mut order = [0; 2];
    match socket::receive(socket.as_fd(), &mut order) {
        Ok((2, _)) if order[0] == SIGNAL => Some(order[1]),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wharf_types::signal::SIGTERM;

    #[test]
    fn an_order_to_start_is_no_signal_and_no_signal_is_a_start() {
        let (ours, theirs) = socket::pair().unwrap();
        for others in [Others::Bystanders, Others::Tracers] {
            order_start(ours.as_fd(), others).unwrap();
            assert_eq!(await_start(&theirs), Some(others));
        }
        order_signal(ours.as_fd(), SIGTERM).unwrap();
        assert_eq!(await_signal(&theirs), Some(SIGTERM));
        order_signal(ours.as_fd(), START).unwrap();
        assert_eq!(await_start(&theirs), None, "it is to be killed before it was started");
        order_start(ours.as_fd(), Others::Bystanders).unwrap();
        assert_eq!(await_signal(&theirs), None);
        drop(ours);
        assert_eq!((await_start(&theirs), await_signal(&theirs)), (None, None));
    }

    #[test]
    fn the_largest_identity_arrives_whole() {
        let identity = Identity {
            uid: OwnerId::ROOT,
            gid: OwnerId::new(u32::MAX - 1).unwrap(),
            groups: (0..4000).filter_map(OwnerId::new).collect(),
            home: Some(format!("/{}", "h".repeat(4095))),
        };
        let (ours, theirs) = socket::pair().unwrap();
        for (identity, ends_ns) in [(identity, vec![7, u64::MAX]), (Identity::default(), vec![])] {
            ready(&theirs, &identity, None, &ends_ns).unwrap();
            let Report::Ready { identity: received, ends_ns: ends, .. } =
                Report::receive(ours.as_fd()).unwrap()
            else {
                panic!("no identity")
            };
            assert_eq!((received, ends), (identity, ends_ns));
        }
    }

    #[test]
    fn a_failure_arrives_with_its_class_and_its_subject() {
        let call = |errno| wharf_sys::Error::new("open", "/x", errno);
        let volume = |errno| Error::ImageVolume { target: "/v".into(), source: call(errno) };
        let path = |errno| Error::HostPath { path: "/x".into(), source: call(errno) };
        let stage = |errno| Error::Stage { stage: "making it", source: call(errno) };
        let (ours, theirs) = socket::pair().unwrap();
        for (error, class) in [
            (stage(Errno::ENOSPC), (ErrorKind::ResourceExhausted, Subject::Other)),
            (stage(Errno::EACCES), (ErrorKind::Internal, Subject::Other)),
            (stage(Errno::ESRCH), (ErrorKind::FailedPrecondition, Subject::Other)),
            (path(Errno::EACCES), (ErrorKind::InvalidArgument, Subject::Other)),
            (path(Errno::EMFILE), (ErrorKind::ResourceExhausted, Subject::Other)),
            (volume(Errno::ENOMEM), (ErrorKind::ResourceExhausted, Subject::ImageVolume)),
            (volume(Errno::EIO), (ErrorKind::Internal, Subject::ImageVolume)),
            (Error::Plan { problem: "no".into() }, (ErrorKind::Internal, Subject::Other)),
        ] {
            failed(&theirs, &error);
            let Report::Failed { class: received, message } = Report::receive(ours.as_fd()).unwrap() else {
                panic!("no failure")
            };
            assert_eq!((received, message), (class, error.line()));
        }
    }

    #[test]
    fn a_program_that_the_machine_cannot_execute_now_is_not_at_fault() {
        let (ours, theirs) = socket::pair().unwrap();
        for (errno, kind) in [
            (Errno::ENOENT, ErrorKind::FailedPrecondition),
            (Errno::ENOMEM, ErrorKind::ResourceExhausted),
            (Errno::EAGAIN, ErrorKind::ResourceExhausted),
        ] {
            let mut words = prepared(ErrorKind::FailedPrecondition, "exec failed");
            words.extend((errno as isize).to_ne_bytes());
            socket::send(theirs.as_fd(), &words, &[]).unwrap();
            let Report::Failed { class, .. } = Report::receive(ours.as_fd()).unwrap() else {
                panic!("no failure")
            };
            assert_eq!(class, (kind, Subject::Other), "{errno}");
        }
    }
}
