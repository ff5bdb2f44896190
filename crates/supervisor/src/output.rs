//! A container's output: pipes or a terminal, read as they fill, written to its log.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;

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

/// How many reads one turn of the loop gives to one output, so that others get theirs.
const READS_A_TURN: usize = 16;

impl Output {
    pub(crate) fn new(source: OwnedFd, stream: Stream) -> Self {
        Self { source, stream, held: Held::default() }
    }

    /// Reads what is there, for one turn.
    pub(crate) fn pump(&mut self, log: Option<&mut Log>, buffer: &mut [u8]) -> More {
        self.read(log, buffer, READS_A_TURN)
    }

    /// Reads all that was written before now; its writer is gone, so this is bounded by what a pipe holds.
    pub(crate) fn drain(&mut self, log: Option<&mut Log>, buffer: &mut [u8]) -> More {
        self.read(log, buffer, usize::MAX)
    }

    fn read(&mut self, mut log: Option<&mut Log>, buffer: &mut [u8], turns: usize) -> More {
        for _ in 0..turns {
            match nix::unistd::read(self.source.as_fd(), buffer) {
                Ok(count @ 1..) => {
                    if let Some(log) = &mut log {
                        log.write(self.stream, &mut self.held, &buffer[..count]);
                    }
                }
                Err(Errno::EAGAIN) => return More::Later,
                Err(Errno::EINTR) => {}
                // The end of a pipe is 0, that of a terminal EIO.
                Ok(0) | Err(_) => {
                    self.finish(log);
                    return More::Never;
                }
            }
        }
        More::Later
    }

    /// Writes what is held back.
    pub(crate) fn finish(&mut self, log: Option<&mut Log>) {
        if let Some(log) = log {
            log.finish(self.stream, &mut self.held);
        }
    }
}
