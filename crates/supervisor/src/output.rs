//! A container's output: pipes or a terminal, read as they fill, written to the log, and passed to attached clients.
//!
//! Each turn of the loop reads a bounded part, whatever the container writes. After the container's end only what it
//! can have written is read: another process may hold the pipe open and write forever.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use crate::clients::Clients;
use crate::diagnostics;
use crate::log::Stream;
use crate::log::frame::{HEADER_BYTES, PAYLOAD_LIMIT_BYTES};
use crate::log::writer::LogWriter;

/// The buffer for one read of an output: room for the head of the log writer's order, and the bytes.
pub(crate) const BUFFER_BYTES: usize = HEADER_BYTES + PAYLOAD_LIMIT_BYTES;
/// How many reads one turn of the loop gives to one output, so that the others get theirs.
const READS_A_TURN: usize = 16;
/// How much of an output's end is kept, if that is wanted.
const TAIL_BYTES: usize = 1000;
/// The most that is read from an output whose writer is gone: what the kernel lets a pipe hold by default, and more
/// than a terminal holds.
const DRAIN_LIMIT_BYTES: usize = 1 << 20;

/// One descriptor that is read.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) source: OwnedFd,
    stream: Stream,
}

/// Whether more output can come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum More {
    Later,
    Never,
    /// Only once the log writer has accepted what is queued.
    Blocked,
}

/// The destinations of output.
#[derive(Debug)]
pub(crate) struct Sink<'a> {
    pub(crate) log: Option<(u64, &'a mut LogWriter)>,
    pub(crate) clients: &'a mut Clients,
    /// Where the end of it is also kept.
    pub(crate) tail: Option<&'a mut Tail>,
}

/// The end of what was written, on which a failure may be explained.
#[derive(Debug, Default)]
pub(crate) struct Tail(Vec<u8>);

impl Tail {
    fn add(&mut self, bytes: &[u8]) {
        self.0.extend(&bytes[bytes.len().saturating_sub(TAIL_BYTES)..]);
        self.0.drain(..self.0.len().saturating_sub(TAIL_BYTES));
    }

    /// It on one line.
    pub(crate) fn line(&self) -> String {
        wharf_types::one_line(&String::from_utf8_lossy(&self.0))
    }
}

impl Output {
    pub(crate) fn new(source: OwnedFd, stream: Stream) -> Self {
        Self { source, stream }
    }

    /// Reads what is available, for one turn.
    pub(crate) fn pump(&self, sink: &mut Sink<'_>, buffer: &mut [u8]) -> More {
        for _ in 0..READS_A_TURN {
            if sink.log.as_ref().is_some_and(|(_, writer)| !writer.is_clear()) {
                return More::Blocked;
            }
            match self.read(sink, &mut buffer[..BUFFER_BYTES]) {
                Ok(1..) => {}
                Err(Errno::EAGAIN) => return More::Later,
                end => {
                    note_end(end);
                    self.finish(sink);
                    return More::Never;
                }
            }
        }
        More::Later
    }

    /// Reads what was written so far, and writes what is held back: the container has ended. Others may still have the
    /// other end open and write without end, but what a pipe cannot have held was written later.
    pub(crate) fn drain(&self, sink: &mut Sink<'_>, buffer: &mut [u8]) {
        // A terminal has no capacity that the kernel would tell.
        let capacity =
            fcntl(&self.source, FcntlArg::F_GETPIPE_SZ).ok().and_then(|size| usize::try_from(size).ok());
        let mut rest = capacity.map_or(DRAIN_LIMIT_BYTES, |capacity| capacity.min(DRAIN_LIMIT_BYTES));
        while rest > 0 {
            let window = HEADER_BYTES + rest.min(PAYLOAD_LIMIT_BYTES);
            match self.read(sink, &mut buffer[..window]) {
                Ok(count @ 1..) => rest -= count,
                Err(Errno::EAGAIN) => break,
                end => {
                    note_end(end);
                    break;
                }
            }
        }
        self.finish(sink);
    }

    fn read(&self, sink: &mut Sink<'_>, buffer: &mut [u8]) -> nix::Result<usize> {
        let count = loop {
            match nix::unistd::read(self.source.as_fd(), &mut buffer[HEADER_BYTES..]) {
                Err(Errno::EINTR) => {}
                other => break other?,
            }
        };
        if count > 0 {
            sink.clients.write(self.stream, &buffer[HEADER_BYTES..][..count]);
            sink.tail.iter_mut().for_each(|tail| tail.add(&buffer[HEADER_BYTES..][..count]));
            if let Some((log, writer)) = &mut sink.log {
                writer.write(*log, self.stream, buffer, count);
            }
        }
        Ok(count)
    }

    fn finish(&self, sink: &mut Sink<'_>) {
        if let Some((log, writer)) = &mut sink.log {
            writer.finish(*log, self.stream);
        }
    }
}

/// The end of a pipe is 0, that of a terminal EIO. Anything else is an error, after which nothing more is read.
fn note_end(end: nix::Result<usize>) {
    if let Err(errno) = end
        && errno != Errno::EIO
    {
        diagnostics::warn(format_args!("reading a container's output: {errno}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clients::{Client, Pace};
    use nix::fcntl::OFlag;
    use wharf_isolation::{LogFile, LogLimits};
    use wharf_types::{ContainerId, HostPath};

    fn pipe() -> (OwnedFd, OwnedFd) {
        nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap()
    }

    /// Writes without an end to a pipe, until nobody reads it.
    fn write_on(pipe: &OwnedFd) {
        while matches!(nix::unistd::write(pipe, &[b'y'; 4096]), Ok(_) | Err(Errno::EAGAIN)) {
            std::thread::yield_now();
        }
    }

    /// How much can be read at once without another writer.
    fn waiting_bytes(pipe: &OwnedFd) -> usize {
        let mut buffer = [0; 4096];
        std::iter::from_fn(|| nix::unistd::read(pipe, &mut buffer).ok().filter(|count| *count > 0)).sum()
    }

    #[test]
    fn draining_ends_even_if_others_go_on_writing() {
        let (read, write) = pipe();
        let capacity = fcntl(&read, FcntlArg::F_GETPIPE_SZ).unwrap();
        let writer = std::thread::spawn(move || write_on(&write));
        let (shown, client) = pipe();
        fcntl(&client, FcntlArg::F_SETPIPE_SZ(1 << 20)).unwrap();
        let mut clients = Clients::default();
        clients.add(1, Client { stdout: Some(client), stderr: None, pace: Pace::KeepsUp });
        let output = Output::new(read, Stream::Stdout);
        output.drain(&mut Sink { log: None, clients: &mut clients, tail: None }, &mut vec![0; BUFFER_BYTES]);
        // Closing it ends the other writer as well.
        drop((output, clients));
        writer.join().unwrap();
        assert!(waiting_bytes(&shown) <= usize::try_from(capacity).unwrap());
    }

    #[test]
    fn a_turn_ends_even_if_the_container_goes_on_writing() {
        let (read, write) = pipe();
        let writer = std::thread::spawn(move || write_on(&write));
        let output = Output::new(read, Stream::Stdout);
        let mut sink = Sink { log: None, clients: &mut Clients::default(), tail: None };
        assert_eq!(output.pump(&mut sink, &mut vec![0; BUFFER_BYTES]), More::Later);
        drop(output);
        writer.join().unwrap();
    }

    #[test]
    fn the_end_of_an_output_is_kept() {
        let (read, write) = pipe();
        let output = Output::new(read, Stream::Stderr);
        let (mut tail, mut clients) = (Tail::default(), Clients::default());
        let mut written = |bytes: &[u8]| {
            nix::unistd::write(&write, bytes).unwrap();
            let mut sink = Sink { log: None, clients: &mut clients, tail: Some(&mut tail) };
            output.pump(&mut sink, &mut vec![0; BUFFER_BYTES]);
            tail.line()
        };
        assert_eq!(written(b"one\n\n"), "one");
        assert_eq!(written(b" two"), "one; two");
        let last = written(&[b'x'; 2 * TAIL_BYTES]);
        assert_eq!(last, "x".repeat(TAIL_BYTES));
    }

    #[test]
    fn an_output_is_over_once_its_last_writer_is_gone() {
        let (read, write) = pipe();
        let output = Output::new(read, Stream::Stdout);
        let (mut clients, mut buffer) = (Clients::default(), vec![0; BUFFER_BYTES]);
        let mut pump =
            || output.pump(&mut Sink { log: None, clients: &mut clients, tail: None }, &mut buffer);
        assert_eq!(pump(), More::Later);
        nix::unistd::write(&write, b"last").unwrap();
        drop(write);
        assert_eq!(pump(), More::Never);
    }

    #[test]
    fn nothing_is_read_while_orders_to_the_log_writer_are_queued() {
        let (read, write) = pipe();
        nix::unistd::write(&write, b"line\n").unwrap();
        let file = LogFile {
            directory: HostPath::new("/logs").unwrap(),
            name: "0.log".into(),
            limits: LogLimits::default(),
        };
        let mut writer = LogWriter::default();
        let log = writer.open(file, None, ContainerId::from_random([1; 32]));
        let output = Output::new(read, Stream::Stdout);
        let mut clients = Clients::default();
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut pump = || {
            let mut sink = Sink { log: Some((log, &mut writer)), clients: &mut clients, tail: None };
            output.pump(&mut sink, &mut buffer)
        };
        // No writer runs yet, so what is read is queued.
        assert_eq!(pump(), More::Blocked);
        assert_eq!(nix::unistd::write(&write, b"next\n"), Ok(5));
        assert_eq!(pump(), More::Blocked);
        assert_eq!(waiting_bytes(&output.source), 5, "only the first line was read");
    }
}
