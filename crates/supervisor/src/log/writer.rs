//! The log writer: a child of the supervisor that has the log files open, and is the only process that waits for their
//! disk.
//!
//! It carries out orders one after another. When the supervisor's end of the connection is closed, it exits after the
//! last order.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use wharf_sys::socket;

use super::frame::{self, HEADER_BYTES, Header, Opening, Order, PAYLOAD_LIMIT_BYTES, Refusal};
use super::{Log, Stream};
use crate::trouble;

/// All logs, by the supervisor's numbers.
#[derive(Debug, Default)]
struct Logs {
    open: BTreeMap<u64, Log>,
    /// The logs of containers that are gone, until they say what they lost.
    closing: Vec<Log>,
}

/// Carries out orders until the supervisor closes the connection.
pub(super) fn run(orders: &OwnedFd) {
    let mut logs = Logs::default();
    let mut buffer = vec![0; HEADER_BYTES + PAYLOAD_LIMIT_BYTES];
    loop {
        match socket::receive(orders.as_fd(), &mut buffer) {
            Ok((count @ 1.., descriptors)) => {
                if let Some((header, payload)) = Header::parse(&buffer[..count]) {
                    logs.follow(orders.as_fd(), header, payload, descriptors);
                }
            }
            Err(error) if error.errno == Errno::EINTR => {}
            Ok((0, _)) | Err(_) => break,
        }
    }
    logs.end();
}

impl Logs {
    fn follow(
        &mut self,
        supervisor: BorrowedFd<'_>,
        header: Header,
        payload: &[u8],
        descriptors: Vec<OwnedFd>,
    ) {
        let number = header.number;
        match (header.order, self.open.get_mut(&header.log)) {
            (Order::Open, _) => {
                let Some(opening) = Opening::parse(payload) else { return };
                let opened = self.open_log(header.log, opening, descriptors.into_iter().next());
                let directory = self.open.get(&header.log).map(|log| log.directory.as_fd());
                let refusal =
                    |error: wharf_sys::Error| Refusal { errno: error.errno, message: error.to_string() };
                answer(supervisor, number, &opened.map_err(refusal), directory);
            }
            (Order::Write(stream), Some(log)) => log.write(stream, number.cast_signed(), payload),
            (Order::Finish(stream), Some(log)) => log.finish(stream, number.cast_signed()),
            (Order::Lose, Some(log)) => log.lose(number, "the disk did not take them in time"),
            (Order::Flush, log) => {
                if let Some(log) = log {
                    log.settle(wharf_sys::clock::now_ns());
                }
                answer(supervisor, number, &Ok(()), None);
            }
            (Order::Close, Some(log)) => {
                if !log.settle(wharf_sys::clock::now_ns()) {
                    self.closing.extend(self.open.remove(&header.log));
                }
                self.open.remove(&header.log);
            }
            (Order::Rest, _) => {
                let held = || Refusal { errno: Errno::EBUSY, message: "something is held back".to_owned() };
                answer(supervisor, number, &self.settle().then_some(()).ok_or_else(held), None);
            }
            (Order::Write(_) | Order::Finish(_) | Order::Lose | Order::Close, None) => {}
        }
    }

    /// Opens or reopens a log. One whose directory is known is kept even without a file.
    fn open_log(
        &mut self,
        id: u64,
        opening: Opening<'_>,
        directory: Option<OwnedFd>,
    ) -> wharf_sys::Result<()> {
        if let Some(log) = self.open.get_mut(&id) {
            return log.reopen(opening.deadline_ns);
        }
        if let Some(directory) = directory {
            let log = self.open.entry(id).or_insert(Log::closed(directory, opening.name.to_owned()));
            return log.reopen(opening.deadline_ns);
        }
        let directory = wharf_sys::fs::open(opening.directory, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        self.open.insert(id, Log::open(directory, opening.name.to_owned())?);
        Ok(())
    }

    /// Records in the logs what was lost; returns whether nothing is left to record and nothing is held back.
    fn settle(&mut self) -> bool {
        let now_ns = wharf_sys::clock::now_ns();
        self.closing.retain_mut(|log| !log.settle(now_ns));
        // Every log is tried, whatever the result of the one before.
        let unsettled = self.open.values_mut().filter_map(|log| (!log.settle(now_ns)).then_some(())).count();
        unsettled == 0 && self.closing.is_empty()
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

fn answer(
    supervisor: BorrowedFd<'_>,
    token: u64,
    outcome: &Result<(), Refusal>,
    directory: Option<BorrowedFd<'_>>,
) {
    let descriptors: Vec<_> = directory.into_iter().collect();
    match socket::send(supervisor, &frame::answer(token, outcome), &descriptors) {
        // If the supervisor is gone, nobody needs the answer.
        Ok(()) | Err(wharf_sys::Error { errno: Errno::EPIPE | Errno::ECONNRESET, .. }) => {}
        Err(error) => trouble::tell(format_args!("answering the supervisor: {error}")),
    }
}
