//! A container's output: pipes or a terminal, read as they fill, written to its log and shown to its
//! clients.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;

use crate::audience::Audience;
use crate::log::{Held, Log, Stream};

/// One end that is read.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) source: OwnedFd,
    stream: Stream,
    held: Held,
}

/// Whether more can come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum More {
    Later,
    Never,
}

/// Where output goes.
#[derive(Debug)]
pub(crate) struct Sink {
    pub(crate) log: Option<Log>,
    pub(crate) audience: Audience,
}

/// How many reads one turn of the loop gives to one output, so that others get theirs.
const READS_A_TURN: usize = 16;

impl Output {
    pub(crate) fn new(source: OwnedFd, stream: Stream) -> Self {
        Self { source, stream, held: Held::default() }
    }

    /// Reads what is there, for one turn.
    pub(crate) fn pump(&mut self, sink: &mut Sink, buffer: &mut [u8]) -> More {
        self.read(sink, buffer, READS_A_TURN)
    }

    /// Reads all that was written before now; its writer is gone, so this is bounded by what a pipe holds.
    pub(crate) fn drain(&mut self, sink: &mut Sink, buffer: &mut [u8]) -> More {
        self.read(sink, buffer, usize::MAX)
    }

    fn read(&mut self, sink: &mut Sink, buffer: &mut [u8], turns: usize) -> More {
        for _ in 0..turns {
            match nix::unistd::read(self.source.as_fd(), buffer) {
                Ok(count @ 1..) => {
                    let bytes = &buffer[..count];
                    if let Some(log) = &mut sink.log {
                        log.write(self.stream, &mut self.held, bytes);
                    }
                    sink.audience.show(self.stream, bytes);
                }
                Err(Errno::EAGAIN) => return More::Later,
                Err(Errno::EINTR) => {}
                // The end of a pipe is 0, that of a terminal EIO.
                Ok(0) | Err(_) => {
                    self.finish(sink);
                    return More::Never;
                }
            }
        }
        More::Later
    }

    /// Writes what is held back.
    pub(crate) fn finish(&mut self, sink: &mut Sink) {
        if let Some(log) = &mut sink.log {
            log.finish(self.stream, &mut self.held);
        }
    }
}
