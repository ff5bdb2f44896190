//! The log writer: a child of the supervisor that has the log files open, and is the only process that waits for their
//! disk.
//!
//! It carries out orders one after another, and replies to those that have a token. When the supervisor's end of the
//! connection is closed, it exits after the last order.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use wharf_sys::clock::monotonic_ns;
use wharf_sys::socket;

use super::frame::{self, HEADER_BYTES, Header, Opening, Order, PAYLOAD_LIMIT_BYTES, Refusal};
use super::{Log, Stream};
use crate::diagnostics::{self, OrWarn as _};

/// How often it looks whether files have been replaced, with orders or without. The kubelet rotates a log every three
/// seconds at most.
const LOOK_S: u8 = 1;

/// All logs, by the supervisor's numbers.
#[derive(Debug, Default)]
struct Logs {
    open: BTreeMap<u64, Log>,
    /// The logs of containers that are gone, until they say what they lost.
    closing: Vec<Log>,
    /// When it last looked.
    looked_ns: u64,
}

/// Carries out orders until the supervisor closes the connection.
pub(super) fn run(orders: &OwnedFd) {
    let mut logs = Logs::default();
    let mut buffer = vec![0; HEADER_BYTES + PAYLOAD_LIMIT_BYTES];
    setsockopt(orders, sockopt::ReceiveTimeout, &TimeVal::new(LOOK_S.into(), 0))
        .or_warn("without orders, nobody looks whether logs have been replaced");
    loop {
        match socket::receive(orders.as_fd(), &mut buffer) {
            Ok((count @ 1.., descriptors)) => {
                if let Some((header, payload)) = Header::parse(&buffer[..count]) {
                    logs.carry_out(orders.as_fd(), header, payload, descriptors);
                }
            }
            Err(error) if matches!(error.errno, Errno::EINTR | Errno::EAGAIN) => {}
            Ok((0, _)) => break,
            Err(error) => {
                if error.errno != Errno::ECONNRESET {
                    diagnostics::warn(format_args!("the log writer's orders: {error}"));
                }
                break;
            }
        }
        logs.look();
    }
    logs.end();
}

impl Logs {
    /// Carries out an order. One for a log that could not be opened has no effect: the supervisor knows.
    fn carry_out(
        &mut self,
        supervisor: BorrowedFd<'_>,
        Header { order, log, number }: Header,
        payload: &[u8],
        descriptors: Vec<OwnedFd>,
    ) {
        match order {
            Order::Open => {
                let opened = self.open(log, payload, descriptors);
                let directory = self.open.get(&log).map(|log| log.directory.as_fd());
                reply(supervisor, number, &opened, directory);
            }
            Order::Flush => {
                self.with(log, |log| {
                    log.settle(wharf_sys::clock::now_ns());
                    log.note_loss();
                });
                reply(supervisor, number, &Ok(()), None);
            }
            Order::Rest => reply(supervisor, number, &self.check_rest(), None),
            Order::Close => self.close(log),
            Order::Write(stream) => self.with(log, |log| log.write(stream, number.cast_signed(), payload)),
            Order::Finish(stream) => self.with(log, |log| log.finish(stream, number.cast_signed())),
            Order::Lose => self.with(log, |log| log.lose(number, "the disk did not take them in time")),
        }
    }

    /// Goes on in the files that have replaced others, if it is time to look.
    fn look(&mut self) {
        let now_ns = monotonic_ns();
        if now_ns.saturating_sub(self.looked_ns) >= u64::from(LOOK_S) * 1_000_000_000 {
            self.looked_ns = now_ns;
            self.open.values_mut().chain(&mut self.closing).for_each(Log::follow);
        }
    }

    /// Does something with a log, if it is open.
    fn with<T>(&mut self, log: u64, act: impl FnOnce(&mut Log) -> T) {
        if let Some(log) = self.open.get_mut(&log) {
            act(log);
        }
    }

    fn open(&mut self, log: u64, payload: &[u8], descriptors: Vec<OwnedFd>) -> Result<(), Refusal> {
        let malformed = || Refusal { errno: Errno::EBADMSG, message: "a malformed order".to_owned() };
        let opening = Opening::parse(payload).ok_or_else(malformed)?;
        let opened = self.open_file(log, opening, descriptors.into_iter().next());
        opened.map_err(|error| Refusal { errno: error.errno, message: error.to_string() })
    }

    /// Opens or reopens a log. One whose directory is known is kept even without a file.
    fn open_file(
        &mut self,
        id: u64,
        opening: Opening<'_>,
        directory: Option<OwnedFd>,
    ) -> wharf_sys::Result<()> {
        if let Some(log) = self.open.get_mut(&id) {
            return log.reopen(opening.deadline_ns);
        }
        if let Some(directory) = directory {
            let log = Log::closed(directory, opening.name.to_owned(), opening.limits);
            let log = self.open.entry(id).or_insert(log);
            return log.reopen(opening.deadline_ns);
        }
        let directory = wharf_sys::fs::open(opening.directory, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        self.open.insert(id, Log::open(directory, opening.name.to_owned(), opening.limits)?);
        Ok(())
    }

    /// Forgets a log, at the latest once it says what was lost.
    fn close(&mut self, log: u64) {
        if let Some(mut log) = self.open.remove(&log)
            && !log.settle(wharf_sys::clock::now_ns())
        {
            self.closing.push(log);
        }
    }

    /// Whether this process can exit without losing anything.
    fn check_rest(&mut self) -> Result<(), Refusal> {
        match self.settle() {
            true => Ok(()),
            false => Err(Refusal { errno: Errno::EBUSY, message: "something is held back".to_owned() }),
        }
    }

    /// Records in the logs what was lost; returns whether nothing is left to record and nothing is held back.
    fn settle(&mut self) -> bool {
        let now_ns = wharf_sys::clock::now_ns();
        self.closing.retain_mut(|log| !log.settle(now_ns));
        // Every log is tried, whatever the result of the one before.
        let mut are_settled = self.closing.is_empty();
        for log in self.open.values_mut() {
            are_settled &= log.settle(now_ns);
        }
        are_settled
    }

    fn end(mut self) {
        for log in self.open.values_mut() {
            for stream in [Stream::Stdout, Stream::Stderr] {
                log.finish(stream, wharf_sys::clock::now_ns());
            }
        }
        self.settle();
    }
}

fn reply(
    supervisor: BorrowedFd<'_>,
    token: u64,
    outcome: &Result<(), Refusal>,
    directory: Option<BorrowedFd<'_>>,
) {
    let descriptors: Vec<_> = directory.into_iter().collect();
    match socket::send(supervisor, &frame::reply(token, outcome), &descriptors) {
        // If the supervisor is gone, nobody needs the reply.
        Ok(()) | Err(wharf_sys::Error { errno: Errno::EPIPE | Errno::ECONNRESET, .. }) => {}
        Err(error) => diagnostics::warn(format_args!("replying to the supervisor: {error}")),
    }
}
