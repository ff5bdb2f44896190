//! The pipes of a client that uses the streams of a process itself: both ends are made here, and no byte passes through
//! here.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;
use wharf_types::{Stage as _, StageError, StreamOptions};

use crate::exec::STAGE;

/// How much output may wait for a client. An attached client that falls further behind gets no more; an exec's command
/// waits. The kernel may provide less.
pub const CLIENT_PIPE_BYTES: i32 = 1 << 20;

/// Pipes for the requested outputs, each with its read end and its write end.
#[derive(Debug)]
pub struct Outputs([Option<(OwnedFd, OwnedFd)>; 2]);

impl Outputs {
    /// Makes them.
    pub fn of(wanted: StreamOptions) -> Result<Self, StageError> {
        let stdout = wanted.stdout.then(wide_pipe).transpose()?;
        let stderr = wanted.stderr.then(wide_pipe).transpose()?;
        Ok(Self([stdout, stderr]))
    }

    /// The process's ends.
    pub fn writers(&self) -> [Option<BorrowedFd<'_>>; 2] {
        self.0.each_ref().map(|pipe| pipe.as_ref().map(|(_, write)| write.as_fd()))
    }

    /// The client's ends. The other ends are closed here: only the process has them, and the stream ends with the last
    /// of them.
    pub fn into_readers(self) -> [Option<OwnedFd>; 2] {
        self.0.map(|pipe| pipe.map(|(read, _)| read))
    }
}

/// A pipe whose first end, for reading, is nonblocking.
pub fn pipe() -> Result<(OwnedFd, OwnedFd), StageError> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC).stage(STAGE)?;
    fcntl(&read, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).stage(STAGE)?;
    Ok((read, write))
}

/// What stands in for a stream that nobody wants.
pub fn null() -> Result<OwnedFd, StageError> {
    wharf_sys::fs::open("/dev/null", OFlag::O_RDWR).stage(STAGE)
}

/// A pipe whose second end, for writing, is nonblocking.
pub fn input_pipe() -> Result<(OwnedFd, OwnedFd), StageError> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC).stage(STAGE)?;
    fcntl(&write, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).stage(STAGE)?;
    Ok((read, write))
}

/// A pipe with more capacity than the default.
fn wide_pipe() -> Result<(OwnedFd, OwnedFd), StageError> {
    let (read, write) = pipe()?;
    // With less, output only has to wait sooner.
    let _capacity = fcntl(&read, FcntlArg::F_SETPIPE_SZ(CLIENT_PIPE_BYTES));
    Ok((read, write))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};

    const NOTHING: StreamOptions =
        StreamOptions { stdin: false, stdout: false, stderr: false, terminal: false };

    #[test]
    fn an_output_that_is_not_wanted_has_no_pipe() {
        for (stdout, stderr) in [(true, true), (true, false), (false, true), (false, false)] {
            let outputs = Outputs::of(StreamOptions { stdout, stderr, ..NOTHING }).unwrap();
            assert_eq!(outputs.writers().map(|writer| writer.is_some()), [stdout, stderr]);
            assert_eq!(outputs.into_readers().map(|reader| reader.is_some()), [stdout, stderr]);
        }
    }

    #[test]
    fn an_output_ends_with_the_process_and_not_with_this_one() {
        let outputs = Outputs::of(StreamOptions { stdout: true, ..NOTHING }).unwrap();
        let [stdout, _] = outputs.writers();
        let mut theirs = std::fs::File::from(stdout.unwrap().try_clone_to_owned().unwrap());
        let [stdout, _] = outputs.into_readers();
        let mut ours = std::fs::File::from(stdout.unwrap());
        let mut byte = [0];
        let empty = ours.read(&mut byte).unwrap_err();
        assert_eq!(empty.kind(), std::io::ErrorKind::WouldBlock, "a reader is not made to wait");
        theirs.write_all(b"x").unwrap();
        drop(theirs);
        assert_eq!(ours.read(&mut byte).unwrap(), 1);
        // A process that another test starts has a copy of the other end until it executes its program.
        let begin = std::time::Instant::now();
        while ours.read(&mut byte).map_err(|error| error.kind()) == Err(std::io::ErrorKind::WouldBlock) {
            assert!(begin.elapsed() < std::time::Duration::from_secs(20), "another end is left open");
            std::thread::yield_now();
        }
        assert_eq!(ours.read(&mut byte).unwrap(), 0);
    }
}
