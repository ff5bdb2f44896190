//! A container's output: pipes or a terminal, read as they fill, written to the log, and passed to attached clients.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use crate::audience::Audience;
use crate::log::Stream;
use crate::log::frame::{HEADER_BYTES, PAYLOAD_LIMIT_BYTES};
use crate::log::queue::LogWriter;

/// The buffer for one read of an output: room for the head of the log writer's order, and the bytes.
pub(crate) const BUFFER_BYTES: usize = HEADER_BYTES + PAYLOAD_LIMIT_BYTES;
/// How many reads one turn of the loop gives to one output, so that the others get theirs.
const READS_A_TURN: usize = 16;
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
    pub(crate) audience: &'a mut Audience,
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
                // The end of a pipe is 0, that of a terminal EIO.
                Ok(0) | Err(_) => {
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
        let capacity =
            fcntl(&self.source, FcntlArg::F_GETPIPE_SZ).ok().and_then(|size| usize::try_from(size).ok());
        let mut rest = capacity.map_or(DRAIN_LIMIT_BYTES, |capacity| capacity.min(DRAIN_LIMIT_BYTES));
        while rest > 0 {
            let window = HEADER_BYTES + rest.min(PAYLOAD_LIMIT_BYTES);
            match self.read(sink, &mut buffer[..window]) {
                Ok(count @ 1..) => rest -= count,
                Ok(0) | Err(_) => break,
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
            sink.audience.show(self.stream, &buffer[HEADER_BYTES..][..count]);
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

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::OFlag;

    /// Another writer fills the pipe again after each read.
    #[test]
    fn draining_ends_whoever_goes_on_writing() {
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
        let capacity = fcntl(&read, FcntlArg::F_GETPIPE_SZ).unwrap();
        let writer = std::thread::spawn(move || {
            while !matches!(nix::unistd::write(&write, &[b'y'; 4096]), Err(errno) if errno != Errno::EAGAIN) {
                std::thread::yield_now();
            }
        });
        let (shown, client) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
        fcntl(&client, FcntlArg::F_SETPIPE_SZ(1 << 20)).unwrap();
        let mut audience = Audience::default();
        audience.add(
            1,
            crate::audience::Client {
                stdout: Some(client),
                stderr: None,
                pace: crate::audience::Pace::Keeps,
            },
        );
        let output = Output::new(read, Stream::Stdout);
        output.drain(&mut Sink { log: None, audience: &mut audience }, &mut vec![0; BUFFER_BYTES]);
        // Closing it ends the other writer as well.
        drop((output, audience));
        writer.join().unwrap();
        let mut all = Vec::new();
        std::io::Read::read_to_end(&mut std::fs::File::from(shown), &mut all).unwrap();
        assert!(all.len() <= usize::try_from(capacity).unwrap(), "{}", all.len());
    }
}
